//! ELF images as they lie in the memory of a process.
//!
//! ```text
//! header     \x7fELF, class (1: 32, 2: 64 bits), byte order, type, machine, entry, program headers
//! segment    PT_LOAD: vaddr, filesz, memsz; memory = where the image begins - lowest vaddr + vaddr
//!            PT_DYNAMIC: pairs of tag and value (DT_STRTAB, DT_SONAME, DT_DEBUG)
//! ```
//!
//! An image begins with an area whose first bytes are a header; the areas that its segments cover and
//! that have the same file (or none) belong to it. Where the header is neither in the process nor in the page cache, an executable file
//! is an image all the same: as long as its areas.
//!
//! Sources: System V ABI, chapters 4 and 5; `elf.h`.

use crate::linux::VM_EXEC;
use crate::linux::memory::{Area, ProcessMemory};
use std::ops::Range;

/// `PT_LOAD`.
pub(in crate::linux) const PT_LOAD: u32 = 1;
/// `PT_DYNAMIC`.
pub(in crate::linux) const PT_DYNAMIC: u32 = 2;
/// `PT_PHDR`.
pub(in crate::linux) const PT_PHDR: u32 = 6;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;

/// Segments of an image at most.
const MAX_SEGMENTS: u16 = 1024;
/// Entries of a dynamic section at most.
const MAX_DYNAMIC: u64 = 4096;
/// Bytes of an image at most.
const MAX_IMAGE: u64 = 1 << 40;
/// Images before an area that are asked whether it is theirs: others may lie in their gaps.
const NEAR: usize = 64;
/// Images of a process at most.
const MAX_IMAGES: usize = 16 << 10;
const PAGE: u64 = 4096;

/// A segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Segment {
    pub(in crate::linux) kind: u32,
    pub(in crate::linux) vaddr: u64,
    pub(in crate::linux) memsz: u64,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Elf {
    /// Whether it is of 64 bits.
    pub(in crate::linux) wide: bool,
    /// `e_type`.
    pub(in crate::linux) kind: u16,
    /// `e_machine`.
    pub(in crate::linux) machine: u16,
    /// `e_entry`.
    pub(in crate::linux) entry: u64,
    pub(in crate::linux) segments: Vec<Segment>,
}

/// A little-endian number of 2, 4 or 8 bytes; 0 where there are none.
fn number(raw: &[u8], at: usize, n: usize) -> u64 {
    let bytes = raw.get(at..at + n).unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |all, b| all << 8 | u64::from(*b))
}

/// Program headers from their bytes.
pub(in crate::linux) fn segments(raw: &[u8], size: usize, wide: bool) -> Vec<Segment> {
    let one = |p: &[u8]| Segment {
        kind: number(p, 0, 4) as u32,
        vaddr: if wide {
            number(p, 16, 8)
        } else {
            number(p, 8, 4)
        },
        memsz: if wide {
            number(p, 40, 8)
        } else {
            number(p, 20, 4)
        },
    };
    raw.chunks_exact(size.max(1)).map(one).collect()
}

impl Elf {
    /// Reads a header and its program headers; `None` where there is none.
    pub(in crate::linux) fn read(p: &ProcessMemory<'_>, base: u64) -> Option<Self> {
        let mut raw = [0; 64];
        p.read(base, &mut raw)?;
        // Little-endian, version 1.
        if !raw.starts_with(b"\x7fELF") || raw[5] != 1 || raw[6] != 1 {
            return None;
        }
        let wide = match raw[4] {
            1 => false,
            2 => true,
            _ => return None,
        };
        let (entry, phoff, sizes) = if wide {
            (number(&raw, 24, 8), number(&raw, 32, 8), 54)
        } else {
            (number(&raw, 24, 4), number(&raw, 28, 4), 42)
        };
        let size = number(&raw, sizes, 2);
        let count = number(&raw, sizes + 2, 2);
        if size != if wide { 56 } else { 32 } || count > u64::from(MAX_SEGMENTS) {
            return None;
        }
        let mut table = vec![0; usize::try_from(size * count).ok()?];
        p.read(base.checked_add(phoff)?, &mut table)?;
        Some(Self {
            wide,
            kind: number(&raw, 16, 2) as u16,
            machine: number(&raw, 18, 2) as u16,
            entry,
            segments: segments(&table, usize::try_from(size).ok()?, wide),
        })
    }

    /// First and last address of what is loaded, whole pages, before it is moved.
    pub(in crate::linux) fn span(&self) -> Option<Range<u64>> {
        let loads = || self.segments.iter().filter(|s| s.kind == PT_LOAD);
        let from = loads().map(|s| s.vaddr).min()? & !(PAGE - 1);
        let to = loads().try_fold(0, |end, s| Some(s.vaddr.checked_add(s.memsz)?.max(end)))?;
        let to = to.checked_next_multiple_of(PAGE)?;
        (from < to && to - from <= MAX_IMAGE).then_some(from..to)
    }

    /// `EXEC`, `DYN`, …
    pub(in crate::linux) fn kind_name(&self) -> String {
        match self.kind {
            1 => "REL".into(),
            2 => "EXEC".into(),
            3 => "DYN".into(),
            4 => "CORE".into(),
            n => format!("{n:#x}"),
        }
    }

    /// Name of the machine, the common ones.
    pub(in crate::linux) fn machine_name(&self) -> String {
        match self.machine {
            3 => "x86".into(),
            40 => "arm".into(),
            62 => "x86-64".into(),
            183 => "aarch64".into(),
            243 => "riscv".into(),
            n => n.to_string(),
        }
    }
}

/// Entries of a dynamic section (64-bit) up to its end.
pub(in crate::linux) fn dynamic(p: &ProcessMemory<'_>, at: u64, bytes: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for i in 0..(bytes / 16).min(MAX_DYNAMIC) {
        let mut raw = [0; 16];
        if p.read(at.wrapping_add(i * 16), &mut raw).is_none() {
            break;
        }
        let (tag, value) = (number(&raw, 0, 8), number(&raw, 8, 8));
        if tag == 0 {
            break;
        }
        out.push((tag, value));
    }
    out
}

/// Text up to its NUL, of a process.
pub(in crate::linux) fn text(p: &ProcessMemory<'_>, va: u64, max: usize) -> Option<String> {
    let (mut out, mut at) = (Vec::new(), va);
    while out.len() < max {
        let n = usize::try_from(PAGE - at % PAGE).ok()?.min(256);
        let mut piece = vec![0; n];
        p.read(at, &mut piece)?;
        let end = piece.iter().position(|b| *b == 0);
        out.extend_from_slice(&piece[..end.unwrap_or(n)]);
        if end.is_some() {
            return Some(String::from_utf8_lossy(&out).into_owned());
        }
        at = at.wrapping_add(n as u64);
    }
    None
}

/// An image in a process.
#[derive(Clone, Debug)]
pub(in crate::linux) struct Image {
    /// Number of the area that it begins with.
    pub(in crate::linux) first: usize,
    /// Its first address.
    pub(in crate::linux) base: u64,
    /// Past its last.
    pub(in crate::linux) end: u64,
    /// Nothing where its header is not in memory or damaged.
    pub(in crate::linux) elf: Option<Elf>,
}

impl Image {
    /// Whether an area is a part of it: of the same file, or memory without a file where a segment has
    /// more of it than its file. Other memory may lie in its gaps.
    pub(in crate::linux) fn owns(&self, p: &ProcessMemory<'_>, area: &Area) -> bool {
        let Some(first) = p.areas.get(self.first) else {
            return false;
        };
        let (start, end) = (area.vma.start, area.vma.end);
        if start >= self.end || end <= self.base || area.special != first.special {
            return false;
        }
        match (first.file, area.file) {
            (Some(own), Some(f)) => own.inode == f.inode,
            (None, Some(_)) => false,
            (_, None) => start == self.base || self.has_segment(start),
        }
    }

    /// Whether a segment covers an address.
    fn has_segment(&self, va: u64) -> bool {
        let (Some(elf), Some(bias)) = (&self.elf, self.bias()) else {
            return false;
        };
        elf.segments.iter().any(|s| {
            let from = s.vaddr & !(PAGE - 1);
            let to = s.vaddr.saturating_add(s.memsz);
            s.kind == PT_LOAD && (from..to).contains(&va.wrapping_sub(bias))
        })
    }

    /// What addresses of the file are moved by.
    pub(in crate::linux) fn bias(&self) -> Option<u64> {
        let span = self.elf.as_ref()?.span()?;
        Some(self.base.wrapping_sub(span.start))
    }

    /// The name that a library has itself, where its pages are in memory.
    pub(in crate::linux) fn soname(&self, p: &ProcessMemory<'_>) -> Option<String> {
        let elf = self.elf.as_ref().filter(|e| e.wide)?;
        let bias = self.bias()?;
        let d = elf.segments.iter().find(|s| s.kind == PT_DYNAMIC)?;
        let all = dynamic(p, bias.wrapping_add(d.vaddr), d.memsz);
        let of = |tag| all.iter().find(|e| e.0 == tag).map(|e| e.1);
        let (names, name) = (of(DT_STRTAB)?, of(DT_SONAME)?);
        // The linker may have made an address of it.
        let names = if (self.base..self.end).contains(&names) {
            names
        } else {
            bias.wrapping_add(names)
        };
        text(p, names.wrapping_add(name), 256)
    }
}

/// The images in a process, by address, [`MAX_IMAGES`] at most.
pub(in crate::linux) fn images(p: &ProcessMemory<'_>) -> Vec<Image> {
    let mut out: Vec<Image> = Vec::new();
    for (first, area) in p.areas.iter().enumerate() {
        if out.len() == MAX_IMAGES {
            break;
        }
        let base = area.vma.start;
        let inside = |i: &Image| base < i.end && i.owns(p, area);
        // A segment may begin with the file's first page as well.
        if out.iter().rev().take(NEAR).any(inside) {
            continue;
        }
        let mut magic = [0; 4];
        let read = p.read(base, &mut magic).is_some();
        if read && &magic == b"\x7fELF" {
            let elf = Elf::read(p, base);
            let span = elf.as_ref().and_then(Elf::span);
            let end = span.and_then(|s| base.checked_add(s.end - s.start));
            out.push(Image {
                first,
                base,
                end: end.unwrap_or(area.vma.end),
                elf,
            });
        } else if !read && let Some(end) = unread(p, first) {
            let elf = None;
            out.push(Image {
                first,
                base,
                end,
                elf,
            });
        }
    }
    out
}

/// Where the areas of a file end that begins with this area, if it is executable.
fn unread(p: &ProcessMemory<'_>, first: usize) -> Option<u64> {
    let area = p.areas.get(first)?;
    let file = area.file?;
    if area.vma.pgoff != 0 {
        return None;
    }
    // Other files may lie in its gaps; its first page again is another image of it.
    let rest = p.areas.iter().skip(first + 1);
    let own = rest
        .filter(|a| a.file.is_some_and(|f| f.inode == file.inode))
        .take_while(|a| a.vma.pgoff != 0);
    let (mut end, mut code) = (area.vma.end, area.has(VM_EXEC));
    for a in own {
        end = a.vma.end;
        code |= a.has(VM_EXEC);
    }
    code.then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(loads: &[(u64, u64)]) -> Elf {
        let segments = loads.iter().map(|(vaddr, memsz)| Segment {
            kind: PT_LOAD,
            vaddr: *vaddr,
            memsz: *memsz,
        });
        Elf {
            wide: true,
            kind: 3,
            machine: 62,
            entry: 0,
            segments: segments.collect(),
        }
    }

    #[test]
    fn a_span_is_of_whole_pages_and_bounded() {
        assert_eq!(elf(&[(0, 10), (0x2f00, 0x200)]).span(), Some(0..0x4000));
        assert_eq!(elf(&[(0x40_0123, 1)]).span(), Some(0x40_0000..0x40_1000));
        // Hostile headers: nothing, the end of all addresses, beyond it, more than there can be.
        assert_eq!(elf(&[]).span(), None);
        assert_eq!(elf(&[(0, 0)]).span(), None);
        assert_eq!(elf(&[(u64::MAX - 5, 2)]).span(), None);
        assert_eq!(elf(&[(u64::MAX, 2)]).span(), None);
        assert_eq!(elf(&[(0, MAX_IMAGE + 1)]).span(), None);
    }

    #[test]
    fn program_headers_of_both_classes() {
        let mut wide = vec![0; 56 * 2 + 3];
        wide[0] = 1;
        wide[16..24].copy_from_slice(&0x1122_3344_5566u64.to_le_bytes());
        wide[40..48].copy_from_slice(&7u64.to_le_bytes());
        let all = segments(&wide, 56, true);
        assert_eq!(all.len(), 2, "what is cut is none");
        assert_eq!(
            (all[0].kind, all[0].vaddr, all[0].memsz),
            (1, 0x1122_3344_5566, 7)
        );
        let mut narrow = vec![0; 32];
        narrow[0] = 2;
        narrow[8..12].copy_from_slice(&0xfff0_0000u32.to_le_bytes());
        narrow[20..24].copy_from_slice(&9u32.to_le_bytes());
        let all = segments(&narrow, 32, false);
        assert_eq!(
            (all[0].kind, all[0].vaddr, all[0].memsz),
            (2, 0xfff0_0000, 9)
        );
    }
}
