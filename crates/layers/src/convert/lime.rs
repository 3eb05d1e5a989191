//! LiME: a header of 32 bytes in front of each range, with the last address inclusive.
//!
//! Source: LiME `src/lime.h`.

use super::Writer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const HEADER: u64 = 32;

/// Writes LiME files.
pub(super) struct Lime<'a> {
    file: &'a File,
    /// Where the next byte goes.
    at: u64,
    /// The range that is being written: where its header lies, its first address, the one behind its last byte.
    open: Option<(u64, u64, u64)>,
}

impl<'a> Lime<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            at: 0,
            open: None,
        }
    }

    /// Writes the header of the range that ends here.
    fn close(&mut self) -> io::Result<()> {
        if let Some((at, first, end)) = self.open.take() {
            let mut h = b"EMiL\x01\0\0\0".to_vec();
            for v in [first, end - 1, 0] {
                h.extend(v.to_le_bytes());
            }
            self.file.write_all_at(&h, at)?;
        }
        Ok(())
    }
}

impl Writer for Lime<'_> {
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()> {
        // A range that has a hole in it becomes two.
        if self.open.is_none_or(|(_, _, end)| end != pa) {
            self.close()?;
            self.open = Some((self.at, pa, pa));
            self.at += HEADER;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        if let Some((_, _, end)) = &mut self.open {
            *end += bytes.len() as u64;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<Vec<String>> {
        self.close()?;
        Ok(Vec::new())
    }
}
