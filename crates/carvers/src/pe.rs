//! Windows programs and libraries ("PE Format", Microsoft).
//!
//! ```text
//! 'M' 'Z' ... e_lfanew at 3C | 'P' 'E' 0 0 | COFF header | optional header | section headers
//!     sections at PointerToRawData, their relocations and line numbers | COFF symbols, their names
//!     debug data (directory 6, PointerToRawData) | certificates (directory 4 holds a file offset)
//! ```
//!
//! The anchor is `PE\0\0`; the `MZ` header lies at most [`STUB`] bytes before it. The extent is the
//! furthest end of all that the headers point to in the file. An image that the loader laid out by
//! virtual addresses has the same headers, so its extent as a file is a guess. The optional
//! header's checksum covers the file with its length: where there is one, it decides.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Pe;

/// Furthest that the PE header may lie behind the MZ header.
const STUB: usize = 32 << 10;
/// Machines of COFF headers: x86, MIPS, SH, ARM, PowerPC, IA-64, EFI byte code, RISC-V, LoongArch,
/// x86-64, M32R, ARM64 and its hybrids.
const MACHINES: &[u16] = &[
    0x14c, 0x160, 0x162, 0x166, 0x168, 0x169, 0x184, 0x1a2, 0x1a3, 0x1a6, 0x1a8, 0x1c0, 0x1c2,
    0x1c4, 0x1d3, 0x1f0, 0x1f1, 0x200, 0x266, 0x284, 0x366, 0x466, 0xebc, 0x3a64, 0x5032, 0x5064,
    0x5128, 0x6232, 0x6264, 0x8664, 0x9041, 0xa641, 0xa64e, 0xaa64,
];
/// Size of a section header.
const SECTION: usize = 40;
/// Headers are no longer than this.
const HEADERS: usize = 1 << 20;
/// Entries of a debug directory, each 28 bytes.
const DEBUG: usize = 64;
/// The loader lays out whole pages.
const PAGE: usize = 4096;

impl Carver for Pe {
    fn name(&self) -> &'static str {
        "pe"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"PE\0\0"]
    }

    fn reach(&self) -> usize {
        STUB
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let data = hit.source.data;
        let Some(machine) = data.get(at + 4..at + 6) else {
            return;
        };
        if !MACHINES.contains(&u16::from_le_bytes([machine[0], machine[1]])) {
            return;
        }
        let before = hit.source.behind(at, STUB);
        // No MZ header has another PE header before its own; and many in a row cost little so.
        let nearer = memchr::memmem::rfind(before, b"PE\0\0").unwrap_or(0);
        let before = &before[nearer..];
        let first = at - before.len();
        for n in memchr::memmem::rfind_iter(before, b"MZ") {
            let mz = first + n;
            let Some(lfanew) = data.get(mz + 0x3c..mz + 0x40) else {
                continue;
            };
            let lfanew = u32::from_le_bytes([lfanew[0], lfanew[1], lfanew[2], lfanew[3]]);
            if mz + lfanew as usize == at {
                hit.follow(mz, |item| walk(item, at - mz));
                return;
            }
        }
    }
}

/// A section: where it lies in memory and in the file.
#[derive(Clone, Copy, Debug)]
struct Section {
    address: usize,
    raw: usize,
    size: usize,
}

/// What the headers say.
struct Headers {
    machine: u16,
    stamp: u32,
    dll: bool,
    /// Their end.
    len: usize,
    /// Where the optional header's checksum stands, and what it is.
    checksum: (usize, u32),
    sections: Vec<Section>,
    /// Furthest end of what the section headers point to.
    end: usize,
    /// COFF symbols: where, how many.
    symbols: (usize, usize),
    /// Debug directory: address, size.
    debug: (usize, usize),
    /// Certificates: place in the file, size.
    certificates: (usize, usize),
}

fn u32_at(b: &[u8], at: usize) -> usize {
    b.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, |b| u32::from_le_bytes(b) as usize)
}

/// `None`: these are no headers.
fn headers(item: &mut Item<'_, '_>, pe: usize) -> Option<Headers> {
    let machine = item.u16le(pe + 4)?;
    let count = usize::from(item.u16le(pe + 6)?);
    let stamp = item.u32le(pe + 8)?;
    let symbols = (item.u32le(pe + 12)? as usize, item.u32le(pe + 16)? as usize);
    let optional = usize::from(item.u16le(pe + 20)?);
    let characteristics = item.u16le(pe + 22)?;
    if count > 96 || !(0x60..=0x400).contains(&optional) {
        return None;
    }
    let fixed = pe + 24;
    // PE32 or PE32+, whose data directories begin in different places.
    let directories = match item.u16le(fixed)? {
        0x10b => 96,
        0x20b => 112,
        _ => return None,
    };
    let table = fixed + optional;
    let told = item.u32le(fixed + 60)? as usize;
    let alignment = (item.u32le(fixed + 32)?, item.u32le(fixed + 36)?);
    // The loader asks for no more than that the headers lie before the first section.
    let len = told.max(table + SECTION * count);
    let aligned = alignment.0.is_power_of_two() && alignment.1.is_power_of_two();
    if len > HEADERS || told == 0 || (count == 0 && !(aligned && told == len)) {
        return None;
    }
    let checksum = (fixed + 64, item.u32le(fixed + 64)?);
    let n = (item.u32le(fixed + directories - 4)? as usize).min(16);
    let mut directory = |i: usize| {
        let at = directories + 8 * i;
        if i >= n || optional < at + 8 {
            return (0, 0);
        }
        let read = |at, item: &mut Item<'_, '_>| item.u32le(at).unwrap_or(0) as usize;
        (read(fixed + at, item), read(fixed + at + 4, item))
    };
    let (certificates, debug) = (directory(4), directory(6));
    let mut end = len;
    let mut sections = Vec::with_capacity(count);
    for s in item.get(table, SECTION * count)?.chunks_exact(SECTION) {
        let section = Section {
            address: u32_at(s, 12),
            size: u32_at(s, 16),
            raw: u32_at(s, 20),
        };
        let count16 = |at: usize| usize::from(u16::from_le_bytes([s[at], s[at + 1]]));
        let parts = [
            (section.raw, section.size),
            (u32_at(s, 24), 10 * count16(32)),
            (u32_at(s, 28), 6 * count16(34)),
        ];
        for (at, size) in parts.into_iter().filter(|&(at, size)| at > 0 && size > 0) {
            end = end.max(at + size);
        }
        sections.push(section);
    }
    Some(Headers {
        machine,
        stamp,
        dll: characteristics >> 13 & 1 == 1,
        len,
        checksum,
        sections,
        end,
        symbols,
        debug,
        certificates,
    })
}

fn walk(item: &mut Item<'_, '_>, pe: usize) -> Option<Extent> {
    let h = headers(item, pe)?;
    let mut extent = Extent {
        kind: "pe",
        ..Extent::default()
    };
    extent.fields = vec![
        ("machine", i64::from(h.machine).into()),
        ("timestamp", i64::from(h.stamp).into()),
        ("dll", i64::from(h.dll).into()),
    ];
    let room = item.room();
    let mapped = is_mapped(item, &h);
    if mapped {
        extent.fields.push(("mapped", true.into()));
        extent.doubt("the loader laid it out by addresses: its extent as a file is a guess");
    }
    extent.len = h.end;
    if h.end > room {
        extent.len = room;
        extent.lacks("it reaches past what could be followed");
        return Some(extent);
    }
    if !mapped {
        symbols(item, &h, &mut extent);
        debug(item, &h, &mut extent);
    }
    certificates(item, &h, &mut extent);
    prove(item, &h, &mut extent);
    Some(extent)
}

/// True when the headers' page goes on with zeros where the file's first section would lie.
fn is_mapped(item: &mut Item<'_, '_>, h: &Headers) -> bool {
    let own = h.sections.iter().filter(|s| s.size > 0 && s.raw > 0);
    let Some(first) = own.min_by_key(|s| s.raw) else {
        return false;
    };
    let page = h.sections.iter().map(|s| s.address).min().unwrap_or(0);
    let to = page.min(PAGE).min(first.raw + first.size);
    // Where both layouts are one, either is the file's.
    if h.sections.iter().all(|s| s.size == 0 || s.raw == s.address) || first.raw >= to {
        return false;
    }
    let from = first.raw.max(h.len);
    to > from && item.some(from, to - from).iter().all(|&b| b == 0)
}

/// COFF symbols and the string table behind them, whose first four bytes are its size.
fn symbols(item: &mut Item<'_, '_>, h: &Headers, extent: &mut Extent) {
    let (at, count) = h.symbols;
    if at == 0 || (count == 0 && at < h.end) {
        return;
    }
    let end = count
        .checked_mul(18)
        .and_then(|n| n.checked_add(at))
        .filter(|&end| at >= h.len && end <= item.room());
    // Some linkers leave what was there before in these fields.
    let Some(end) = end else {
        extent.doubt("its symbols' place makes no sense");
        return;
    };
    extent.len = extent.len.max(end);
    let size = item.peek(end, 4).map_or(0, |b| u32_at(b, 0));
    if size >= 4 && end + size <= item.room() {
        extent.len = extent.len.max(end + size);
    } else {
        extent.doubt("the size of its symbols' names makes no sense");
    }
}

/// What the debug directory points to may lie behind the sections.
fn debug(item: &mut Item<'_, '_>, h: &Headers, extent: &mut Extent) {
    let (address, size) = h.debug;
    let inside = |s: &&Section| address >= s.address && address - s.address < s.size;
    let at = match h.sections.iter().find(inside) {
        Some(s) => s.raw + (address - s.address),
        None if address < h.len => address,
        None => return,
    };
    if address == 0 || size < 28 {
        return;
    }
    let table = item.peek(at, (size / 28).min(DEBUG) * 28);
    let entries: Vec<(usize, usize)> = table
        .unwrap_or_default()
        .chunks_exact(28)
        .map(|e| (u32_at(e, 24), u32_at(e, 16)))
        .collect();
    for (at, size) in entries {
        if at == 0 || size == 0 {
            continue;
        }
        match at.checked_add(size).filter(|&end| end <= item.room()) {
            Some(end) => extent.len = extent.len.max(end),
            None => extent.doubt("its debug directory makes no sense"),
        }
    }
}

/// The certificates lie at a place in the file, and mostly end it.
fn certificates(item: &mut Item<'_, '_>, h: &Headers, extent: &mut Extent) {
    let (at, len) = h.certificates;
    if at == 0 || len == 0 {
        return;
    }
    // A certificate begins with its length, revision 1 or 2 and a type.
    let head: Option<[u8; 8]> = item.peek(at, 8).and_then(|b| b.try_into().ok());
    let fits = head.is_some_and(|b| {
        let size = u32_at(&b, 0);
        (8..=len).contains(&size) && matches!(b[4..6], [0, 1] | [0, 2]) && b[7] == 0 && b[6] < 16
    });
    let end = at.checked_add(len).filter(|&end| end <= item.room());
    match end {
        Some(end) if fits && at >= h.len => extent.len = extent.len.max(end),
        _ => extent.lacks("its certificates are not where they should be"),
    }
}

/// Lets the checksum decide; without one, what follows may tell that the headers don't tell all.
fn prove(item: &mut Item<'_, '_>, h: &Headers, extent: &mut Extent) {
    let (at, told) = h.checksum;
    if told != 0 {
        if !item.charge(extent.len / 4) {
            extent.doubt("its checksum was not computed");
            return;
        }
        let sum = item.get(0, extent.len).map(|b| checksum(b, at));
        if sum == Some(told) {
            extent.whole = crate::carver::Whole::Yes;
        } else {
            extent.doubt("its checksum is not that of these bytes");
        }
        return;
    }
    if item.goes_on(extent.len) {
        extent.doubt("data follows in its last page that its headers don't tell of");
    }
}

/// The checksum of a file: ones' complement sum of words without the field itself, plus the length.
fn checksum(file: &[u8], field: usize) -> u32 {
    let words = |b: &[u8]| -> u64 {
        let (pairs, rest) = b.as_chunks::<2>();
        let sum: u64 = pairs
            .iter()
            .map(|w| u64::from(u16::from_le_bytes(*w)))
            .sum();
        sum + rest.first().map_or(0, |&b| u64::from(b))
    };
    // The field may begin at an odd place, where its bytes belong to three words.
    let mut sum = words(file);
    for (i, &b) in file.iter().enumerate().skip(field).take(4) {
        sum -= u64::from(b) << (8 * (i % 2));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u32).wrapping_add(file.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_other_programs() {
        // By hand: words 0x0201 + 0x0403, the field's four bytes left out, the odd byte 5 alone.
        let file = [1, 2, 3, 4, 9, 9, 9, 9, 5];
        assert_eq!(checksum(&file, 4), 0x0201 + 0x0403 + 5 + 9);
        assert_eq!(checksum(&[0xff; 6], 2), 0xffff + 6);
    }
}
