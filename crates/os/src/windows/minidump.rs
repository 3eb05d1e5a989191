//! A process's memory as a minidump, which debuggers and many tools open.
//!
//! ```text
//! header, 32 bytes     "MDMP", version, streams, place of their directory
//! directory            kind, bytes, place of each stream
//! system               processor, version, build
//! threads              number, environment block; without registers
//! modules              base, bytes, name
//! memory information   what is reserved, and how it may be used
//! memory, 64-bit       ranges of pages that are there; their bytes follow, one range behind the other
//! ```
//!
//! Source: `MINIDUMP_HEADER` and the structs of its streams in the public header `minidumpapiset.h`.

use crate::content::{Content, Extent};
use ramsift_layers::PhysAddr;
use std::collections::BTreeMap;

const PAGE: u64 = 4096;

/// A library of the process.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) path: String,
}

/// Reserved memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) len: u64,
    /// A protection constant of `winnt.h`.
    pub(super) protection: u32,
    pub(super) kind: RegionKind,
}

/// What memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionKind {
    Private = 0x2_0000,
    Mapped = 0x4_0000,
    Image = 0x100_0000,
}

/// What goes into a dump.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    /// Major and minor version, and build.
    pub(super) version: (u32, u32, u32),
    pub(super) processors: u8,
    pub(super) pid: u32,
    /// Seconds since 1970.
    pub(super) created: u32,
    pub(super) captured: u32,
    /// Numbers and environment blocks.
    pub(super) threads: Vec<(u32, u64)>,
    pub(super) modules: Vec<Module>,
    pub(super) regions: Vec<Region>,
    /// Physical pages by their addresses in the process.
    pub(super) pages: BTreeMap<u64, u64>,
}

/// Bytes that are written one field after the other.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn half(&mut self, v: u16) {
        self.0.extend(v.to_le_bytes());
    }

    fn word(&mut self, v: u32) {
        self.0.extend(v.to_le_bytes());
    }

    fn long(&mut self, v: u64) {
        self.0.extend(v.to_le_bytes());
    }

    fn zeros(&mut self, n: usize) {
        self.0.resize(self.0.len() + n, 0);
    }

    /// Where the next byte goes. What goes before memory stays far below 4 GiB.
    fn here(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// A text as dumps have them: bytes, UTF-16, NUL.
    fn text(&mut self, t: &str) -> u32 {
        let at = self.here();
        let units: Vec<u16> = t.encode_utf16().take(4096).collect();
        self.word(u32::try_from(units.len() * 2).unwrap_or(0));
        units.iter().for_each(|u| self.half(*u));
        self.half(0);
        self.zeros(self.0.len().next_multiple_of(8) - self.0.len());
        at
    }
}

/// Kinds of streams.
const THREADS: u32 = 3;
const MODULES: u32 = 4;
const SYSTEM: u32 = 7;
const MEMORY: u32 = 9;
const MISC: u32 = 15;
const REGIONS: u32 = 16;
/// `MiniDumpWithFullMemory`, `MiniDumpWithFullMemoryInfo`.
const FLAGS: u64 = 2 | 0x800;
/// `PROCESSOR_ARCHITECTURE_AMD64`, `VER_PLATFORM_WIN32_NT`.
const AMD64: u16 = 9;
const NT: u32 = 2;
/// `MEM_COMMIT`, `MEM_RESERVE`.
const COMMIT: u32 = 0x1000;
const RESERVE: u32 = 0x2000;

/// The dump: its head in bytes, and where in RAM the rest lies.
pub(super) fn content(p: &Process) -> Content {
    let ranges = ranges(&p.pages);
    let mut o = Out::default();
    let streams = 6u32;
    o.word(u32::from_le_bytes(*b"MDMP"));
    o.word(0xa793);
    o.word(streams);
    o.word(32);
    o.word(0);
    o.word(p.captured);
    o.long(FLAGS);
    o.zeros(12 * streams as usize);
    let mut directory = Vec::new();
    let from = o.here();
    system(&mut o, p);
    directory.push((SYSTEM, from, o.here() - from));
    let from = o.here();
    o.word(24);
    // MINIDUMP_MISC1_PROCESS_ID, MINIDUMP_MISC1_PROCESS_TIMES.
    o.word(3);
    o.word(p.pid);
    o.word(p.created);
    o.zeros(8);
    directory.push((MISC, from, o.here() - from));
    let from = o.here();
    threads(&mut o, p);
    directory.push((THREADS, from, o.here() - from));
    let names: Vec<u32> = p.modules.iter().map(|m| o.text(&m.path)).collect();
    let from = o.here();
    modules(&mut o, p, &names);
    directory.push((MODULES, from, o.here() - from));
    o.zeros(o.0.len().next_multiple_of(8) - o.0.len());
    let from = o.here();
    regions(&mut o, p);
    directory.push((REGIONS, from, o.here() - from));
    let from = o.here();
    let len = 16 + 16 * ranges.len();
    // The bytes of memory begin at a page, so that they can be mapped.
    let base = (o.0.len() + len).next_multiple_of(4096);
    o.long(ranges.len() as u64);
    o.long(base as u64);
    for (start, pages) in &ranges {
        o.long(*start);
        o.long(pages * PAGE);
    }
    directory.push((MEMORY, from, o.here() - from));
    o.zeros(base - o.0.len());
    for (i, (kind, at, len)) in directory.iter().enumerate() {
        let place = 32 + i * 12;
        for (j, v) in [*kind, *len, *at].iter().enumerate() {
            o.0[place + j * 4..place + j * 4 + 4].copy_from_slice(&v.to_le_bytes());
        }
    }
    let pages = p.pages.len() as u64;
    let mut out = Content::new(base as u64 + pages * PAGE).with_head(o.0);
    for (i, pa) in p.pages.values().enumerate() {
        out.push(Extent {
            offset: base as u64 + i as u64 * PAGE,
            pa: PhysAddr(*pa),
            len: PAGE,
        });
    }
    out
}

/// Pages side by side: first address and how many.
fn ranges(pages: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for va in pages.keys() {
        match out.last_mut() {
            Some((start, n)) if *start + *n * PAGE == *va => *n += 1,
            _ => out.push((*va, 1)),
        }
    }
    out
}

fn system(o: &mut Out, p: &Process) {
    let (major, minor, build) = p.version;
    o.half(AMD64);
    o.half(6);
    o.half(0);
    o.0.push(p.processors);
    // VER_NT_WORKSTATION; which it was changes nothing for readers.
    o.0.push(1);
    for v in [major, minor, build, NT] {
        o.word(v);
    }
    // The name of the service pack is empty: it stands behind.
    let pack = o.here() + 4 + 4 + 24;
    o.word(pack);
    o.zeros(4 + 24);
    o.word(0);
    o.half(0);
    o.zeros(o.0.len().next_multiple_of(8) - o.0.len());
}

fn threads(o: &mut Out, p: &Process) {
    o.word(u32::try_from(p.threads.len()).unwrap_or(u32::MAX));
    for (tid, teb) in &p.threads {
        o.word(*tid);
        o.zeros(12);
        o.long(*teb);
        // Neither stack nor registers are told.
        o.zeros(16 + 8);
    }
}

fn modules(o: &mut Out, p: &Process, names: &[u32]) {
    o.word(u32::try_from(p.modules.len()).unwrap_or(u32::MAX));
    for (m, name) in p.modules.iter().zip(names) {
        o.long(m.base);
        o.word(u32::try_from(m.size).unwrap_or(u32::MAX));
        o.zeros(8);
        o.word(*name);
        // Version, records of symbol files, reserved.
        o.zeros(52 + 16 + 16);
    }
}

fn regions(o: &mut Out, p: &Process) {
    o.word(16);
    o.word(48);
    o.long(p.regions.len() as u64);
    for r in &p.regions {
        let there = p
            .pages
            .range(r.start..r.start.saturating_add(r.len))
            .next()
            .is_some();
        o.long(r.start);
        o.long(r.start);
        o.word(r.protection);
        o.word(0);
        o.long(r.len);
        o.word(if there { COMMIT } else { RESERVE });
        o.word(r.protection);
        o.word(r.kind as u32);
        o.word(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_pages_side_by_side() {
        let pages = [0x1000, 0x2000, 0x5000].map(|va| (va, va + 0x10_0000));
        let p = Process {
            pages: pages.into(),
            ..Process::default()
        };
        assert_eq!(ranges(&p.pages), [(0x1000, 2), (0x5000, 1)]);
        let c = content(&p);
        assert!(c.head().starts_with(b"MDMP\x93\xa7\0\0"));
        assert_eq!(c.head().len() % 4096, 0);
        assert_eq!(c.size(), c.head().len() as u64 + 3 * PAGE);
        assert_eq!(c.holes(), []);
        // The first two lie side by side in RAM too.
        assert_eq!(c.extents().len(), 2);
    }
}
