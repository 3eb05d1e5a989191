//! A 64-bit ELF core: a header for each range, VMCOREINFO where it is known.
//!
//! ```text
//! ELF header, program headers (PT_NOTE, then PT_LOAD for each range), notes, memory at whole pages
//! ```
//!
//! A range that turns out to have holes takes more program headers than there is room for: then the table of them lies at
//! the end of the file, where the format allows it.
//!
//! Source: System V ABI, generic and AMD64 parts; Linux `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use super::{ConvertError, Machine, Writer};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// From so many program headers on their number stands elsewhere.
const MANY: usize = 0xffff;
/// Memory is aligned to this in the file, as it is in the machine.
const ALIGN: u64 = 4096;

/// Writes ELF cores.
pub(super) struct ElfCore<'a> {
    file: &'a File,
    machine: u16,
    /// Where the notes lie, and their length.
    notes: Range<u64>,
    /// Program headers that there is room for in front.
    room: usize,
    /// Ranges so far: physical address, place in the file, length.
    loads: Vec<(u64, u64, u64)>,
    at: u64,
    told: Vec<String>,
}

/// A note: name, type 0 and descriptor, both padded to 4 bytes.
pub(super) fn note(name: &[u8], desc: &[u8]) -> Vec<u8> {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Vec::new();
    out.extend(len(name.len() + 1));
    out.extend(len(desc.len()));
    out.extend([0; 4]);
    out.extend(name);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

impl<'a> ElfCore<'a> {
    pub(super) fn new(
        file: &'a File,
        ranges: &[Range<u64>],
        machine: &Machine,
    ) -> Result<Self, ConvertError> {
        let mut told = Vec::new();
        let number = match machine.arch.as_deref() {
            Some("aarch64") => 183,
            Some("x86_64") => 62,
            Some("x86") => 3,
            Some("riscv") => 243,
            Some("ppc64") => 21,
            Some("loongarch") => 258,
            other => {
                let what = other.unwrap_or("not known");
                told.push(format!(
                    "the header says x86_64: the processor of the capture is {what}"
                ));
                62
            }
        };
        let room = ranges.len() + 1;
        let headers = EHDR + PHDR * room as u64;
        let notes = match &machine.vmcoreinfo {
            Some(i) => note(b"VMCOREINFO", i),
            None => Vec::new(),
        };
        file.write_all_at(&notes, headers)?;
        let end = headers + notes.len() as u64;
        Ok(Self {
            file,
            machine: number,
            notes: headers..end,
            room,
            loads: Vec::new(),
            at: end.next_multiple_of(ALIGN),
            told,
        })
    }
}

fn phdr(kind: u32, flags: u32, offset: u64, pa: u64, len: u64, align: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    for v in [offset, 0, pa, len, len, align] {
        out.extend(v.to_le_bytes());
    }
    out
}

impl Writer for ElfCore<'_> {
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()> {
        let n = bytes.len() as u64;
        match self.loads.last_mut() {
            Some((first, _, len)) if *first + *len == pa => *len += n,
            _ => {
                // The same place in its page as in memory.
                self.at = self.at.next_multiple_of(ALIGN) + pa % ALIGN;
                self.loads.push((pa, self.at, n));
            }
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += n;
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<Vec<String>> {
        let mut table = phdr(
            PT_NOTE,
            0,
            self.notes.start,
            0,
            self.notes.end - self.notes.start,
            4,
        );
        for (pa, at, len) in &self.loads {
            table.extend(phdr(PT_LOAD, 7, *at, *pa, *len, ALIGN));
        }
        let count = self.loads.len() + 1;
        let phoff = if count <= self.room {
            EHDR
        } else {
            self.at.next_multiple_of(8)
        };
        self.file.write_all_at(&table, phoff)?;
        let end = self.at.max(phoff + table.len() as u64);
        let mut shoff = 0;
        if count >= MANY {
            shoff = end.next_multiple_of(8);
            let mut sh = vec![0; usize::try_from(SHDR).unwrap_or(64)];
            sh[44..48].copy_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
            self.file.write_all_at(&sh, shoff)?;
        }
        let half = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
        let mut h = b"\x7fELF\x02\x01\x01".to_vec();
        h.resize(16, 0);
        h.extend(4u16.to_le_bytes());
        h.extend(self.machine.to_le_bytes());
        h.extend(1u32.to_le_bytes());
        for v in [0, phoff, shoff] {
            h.extend(v.to_le_bytes());
        }
        h.extend(0u32.to_le_bytes());
        h.extend(64u16.to_le_bytes());
        h.extend(56u16.to_le_bytes());
        h.extend(half(count.min(MANY)));
        h.extend(64u16.to_le_bytes());
        h.extend(half(usize::from(shoff > 0)));
        h.extend(0u16.to_le_bytes());
        self.file.write_all_at(&h, 0)?;
        Ok(self.told)
    }
}
