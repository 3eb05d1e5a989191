//! ELF files (System V ABI, chapter 4; gABI 4.1).
//!
//! ```text
//! 7F 'E' 'L' 'F' class data version ... | program headers | segments, sections | section headers
//!   e_phoff, e_phentsize, e_phnum --------^                                       ^
//!   e_shoff, e_shentsize, e_shnum, e_shstrndx ------------------------------------+
//! ```
//!
//! The extent is the furthest end of the headers' tables, of a segment's file part and of a
//! section that has bytes. Memory holds many ELF headers without the rest of their file: unless
//! the section table stands where the header says, with its names in a string table, only the
//! first 64 KiB at most are reported, as partial. So the table is looked at first, without what lies between.
//! Little-endian only, as are the captured machines.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Elf;

/// What is kept of a file whose section table isn't there.
const HEAD: usize = 64 << 10;
const SHT_NOBITS: u64 = 8;
const SHT_STRTAB: u64 = 3;

impl Carver for Elf {
    fn name(&self) -> &'static str {
        "elf"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x01\x01"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, walk);
    }
}

/// Widths and places of header fields in the two classes.
struct Layout {
    wide: bool,
}

impl Layout {
    /// A field as wide as an address.
    fn word(&self, b: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            return Some(u64::from_le_bytes(b.get(wide..wide + 8)?.try_into().ok()?));
        }
        Some(u32::from_le_bytes(b.get(narrow..narrow + 4)?.try_into().ok()?).into())
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?).into())
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let head: [u8; 52] = item.array(0)?;
    let l = Layout { wide: head[4] == 2 };
    let header = if l.wide { 64 } else { 52 };
    let head = item.get(0, header)?.to_vec();
    let (kind, machine) = (u16_at(&head, 16)?, u16_at(&head, 18)?);
    let tail = header - 12;
    let (phoff, shoff) = (l.word(&head, 28, 32)?, l.word(&head, 32, 40)?);
    let phentsize = u16_at(&head, tail + 2)?;
    let (phnum, shentsize) = (u16_at(&head, tail + 4)?, u16_at(&head, tail + 6)?);
    let (shnum, shstrndx) = (u16_at(&head, tail + 8)?, u16_at(&head, tail + 10)?);
    let sizes = if l.wide { (56, 64) } else { (32, 40) };
    let sound = (1..=4).contains(&kind)
        && machine != 0
        && u32_at(&head, 20)? == 1
        && u16_at(&head, tail)? == header as u64
        && (phnum == 0 || (phentsize == sizes.0 && phoff >= header as u64))
        && (shnum == 0 || shentsize == sizes.1)
        && phnum < 4096
        && (phnum > 0 || shnum > 0);
    if !sound {
        return None;
    }
    let mut end = (phoff + phnum * phentsize).max(header as u64);
    if phnum > 0 {
        end = end.max(segments(item, &l, phoff, phnum, phentsize)?);
    }
    let mut extent = Extent {
        kind: "elf",
        ..Extent::default()
    };
    extent.fields = vec![("type", kind as i64), ("machine", machine as i64)];
    if shoff == 0 && shnum == 0 {
        extent.len = usize::try_from(end).ok()?;
    } else {
        match sections(item, &l, shoff, shnum, shstrndx) {
            Some(sections) => extent.len = usize::try_from(end.max(sections)).ok()?,
            None if phnum == 0 => return None,
            None => {
                extent.len = (end as usize).min(HEAD);
                extent.partial = Some("its section table is not where it should be".to_owned());
            }
        }
    }
    if extent.len > item.room() {
        extent.len = HEAD.min(item.room());
        extent.partial = Some("it reaches past what could be followed".to_owned());
    }
    Some(extent)
}

/// The furthest end of a segment in the file; `None` when a program header makes no sense.
fn segments(item: &mut Item<'_, '_>, l: &Layout, off: u64, n: u64, size: u64) -> Option<u64> {
    let table = item.get(usize::try_from(off).ok()?, (n * size) as usize)?;
    let mut end = 0;
    for p in table.chunks_exact(size as usize) {
        let (offset, filesz) = (l.word(p, 4, 8)?, l.word(p, 16, 32)?);
        let memsz = l.word(p, 20, 40)?;
        let kind = u32_at(p, 0)?;
        if kind == 1 && filesz > memsz {
            return None;
        }
        end = end.max(offset.checked_add(filesz)?);
    }
    Some(end)
}

/// The furthest end of a section and of the table; `None` when the table isn't there.
fn sections(item: &mut Item<'_, '_>, l: &Layout, off: u64, n: u64, names: u64) -> Option<u64> {
    let size = if l.wide { 64 } else { 40 };
    if n == 0 || names >= n || off == 0 {
        return None;
    }
    let off = usize::try_from(off).ok()?;
    let table = item.peek(off, (n * size) as usize)?;
    let mut end = off as u64 + n * size;
    // The first entry is all zeros.
    if table[..size as usize].iter().any(|&b| b != 0) {
        return None;
    }
    let mut names_at = None;
    for (i, s) in table.chunks_exact(size as usize).enumerate().skip(1) {
        let (kind, offset) = (u32_at(s, 4)?, l.word(s, 16, 24)?);
        let bytes = l.word(s, 20, 32)?;
        if kind != SHT_NOBITS && kind != 0 {
            end = end.max(offset.checked_add(bytes)?);
        }
        if i as u64 == names {
            names_at = (kind == SHT_STRTAB && bytes > 1).then_some((offset, bytes));
        }
    }
    let (at, len) = names_at?;
    let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
    let ends = (
        item.peek(at, 1)?[0],
        item.peek(at.checked_add(len)? - 1, 1)?[0],
    );
    (ends == (0, 0)).then_some(end)
}
