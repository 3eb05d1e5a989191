//! The list of loaded objects that the dynamic linker keeps in each process.
//!
//! ```text
//! mm.saved_auxv: AT_PHDR -> program headers -> PT_DYNAMIC -> DT_DEBUG -> r_debug { version, map, .., state }
//! link_map { l_addr, l_name, l_ld, l_next, l_prev }
//! ```
//!
//! Programs without a dynamic linker have none, those of 32 bits are not read.
//!
//! Sources: `link.h` (`struct r_debug`, `struct link_map`), `elf.h` (`AT_*`), Linux
//! `include/linux/mm_types.h` (`saved_auxv`).

use crate::linux::Kernel;
use crate::linux::elf::{PT_DYNAMIC, PT_PHDR, dynamic, segments, text};
use crate::linux::memory::ProcessMemory;
use std::collections::HashSet;

const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const DT_DEBUG: u64 = 21;

/// Objects of a process at most.
const MAX: usize = 16 << 10;
/// Bytes of the vector at most.
const MAX_VECTOR: usize = 4096;

/// A loaded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Loaded {
    /// Address of its link_map, in the process.
    pub(in crate::linux) va: u64,
    /// What its addresses are moved by.
    pub(in crate::linux) addr: u64,
    /// The path that it was loaded by; empty for the program itself.
    pub(in crate::linux) name: String,
    /// Where its dynamic section lies.
    pub(in crate::linux) ld: u64,
}

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct LinkMap {
    pub(in crate::linux) all: Vec<Loaded>,
    /// Whether it was read to its end, and the linker was not just changing it.
    pub(in crate::linux) whole: bool,
}

/// Reads the list; `None` where the process has none or its start is not in memory.
pub(in crate::linux) fn link_map(kernel: &Kernel<'_>, p: &ProcessMemory<'_>) -> Option<LinkMap> {
    let vector = auxiliary(kernel, p)?;
    let of = |key| vector.iter().find(|e| e.0 == key).map(|e| e.1);
    let (at, size, count) = (of(AT_PHDR)?, of(AT_PHENT)?, of(AT_PHNUM)?);
    if size != 56 || count > 1024 {
        return None;
    }
    let mut raw = vec![0; usize::try_from(size * count).ok()?];
    p.read(at, &mut raw)?;
    let all = segments(&raw, 56, true);
    let find = |kind| all.iter().find(|s| s.kind == kind);
    // Without a header for the headers the program is not moved.
    let bias = find(PT_PHDR).map_or(0, |s| at.wrapping_sub(s.vaddr));
    let d = find(PT_DYNAMIC)?;
    let entries = dynamic(p, bias.wrapping_add(d.vaddr), d.memsz);
    let debug = entries.iter().find(|e| e.0 == DT_DEBUG)?.1;
    if debug == 0 {
        return None;
    }
    let mut state = [0; 4];
    let consistent = p.read(debug.wrapping_add(24), &mut state).is_some() && state == [0; 4];
    let mut out = LinkMap::default();
    let (mut at, mut seen) = (p.u64(debug.wrapping_add(8))?, HashSet::new());
    while at != 0 {
        if out.all.len() == MAX || !seen.insert(at) {
            return Some(out);
        }
        let word = |i: u64| p.u64(at.wrapping_add(i * 8));
        let (Some(addr), Some(name), Some(ld), Some(next)) = (word(0), word(1), word(2), word(3))
        else {
            return Some(out);
        };
        out.all.push(Loaded {
            va: at,
            addr,
            name: text(p, name, 4096).unwrap_or_default(),
            ld,
        });
        at = next;
    }
    out.whole = consistent && !out.all.is_empty();
    Some(out)
}

/// What the kernel told the program at its start, by key.
fn auxiliary(kernel: &Kernel<'_>, p: &ProcessMemory<'_>) -> Option<Vec<(u64, u64)>> {
    let types = kernel.symbols.types();
    let f = types.field("mm_struct", "saved_auxv").ok()?;
    let mut raw = vec![0; usize::try_from(f.size).ok()?.min(MAX_VECTOR)];
    let at = p.mm.va.wrapping_add(f.offset);
    kernel.space.read(at, &mut raw).ok()?;
    let words: Vec<u64> = raw
        .as_chunks::<8>()
        .0
        .iter()
        .map(|w| u64::from_le_bytes(*w))
        .collect();
    let pairs = words.as_chunks::<2>().0.iter();
    Some(
        pairs
            .map(|p| (p[0], p[1]))
            .take_while(|p| p.0 != 0)
            .collect(),
    )
}
