//! Raw: physical memory from address 0 on. Holes are zeros, and holes of the file where the file system has such.

use super::{ConvertError, Writer};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a file at most for each byte of memory, and bytes that are always all right: a machine of a few GiB has a hole below 4 GiB.
const SPARSE: u64 = 16;
const SMALL: u64 = 64 << 30;
/// Zeros of this length are not written.
const BLOCK: usize = 64 << 10;

/// Writes raw images.
pub(super) struct Raw<'a> {
    file: &'a File,
    end: u64,
    holes: u64,
}

impl<'a> Raw<'a> {
    pub(super) fn new(file: &'a File, ranges: &[Range<u64>]) -> Result<Self, ConvertError> {
        let end = ranges.last().map_or(0, |r| r.end);
        let memory: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        if end > SMALL.max(memory.saturating_mul(SPARSE)) || i64::try_from(end).is_err() {
            return Err(ConvertError::Refused {
                target: "raw",
                why: format!(
                    "{memory} bytes of memory lie below {end:#x}, and the rest would be zeros; use lime or elf-core"
                ),
            });
        }
        Ok(Self {
            file,
            end,
            holes: end - memory,
        })
    }
}

impl Writer for Raw<'_> {
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = pa;
        for b in bytes.chunks(BLOCK) {
            if b.iter().any(|x| *x != 0) {
                self.file.write_all_at(b, at)?;
            }
            at += b.len() as u64;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<Vec<String>> {
        self.file.set_len(self.end)?;
        Ok(match self.holes {
            0 => Vec::new(),
            n => vec![format!("{n} bytes of holes are zeros in a raw image")],
        })
    }
}
