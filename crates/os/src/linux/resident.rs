//! What processes have in memory, each byte once: for scans that take a process as a whole.
//!
//! ```text
//! unit of a process   its own pages, by address: anonymous memory, and areas of files that it changed
//! unit of a file      a part of a file's cached pages that processes map unchanged; its addresses are
//!                     offsets in the file
//! ```
//!
//! Parts of a file are cut wherever an area of some process begins or ends, so that a process has a unit
//! whole or not at all. Cached pages count although a process did not touch them yet: it would get them
//! without a read from the disk.
//!
//! Sources: as in `memory.rs`.

use super::memory::{Memories, Page, ProcessMemory};
use super::threads::start_ns;
use super::{Extent, Kernel, LinuxError};
use crate::resident::{File, Resident, Unit, Use, file_units};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

/// Visits all units until the visitor breaks off, and gives the processes that have them.
pub fn resident(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
) -> Result<Vec<Resident>, LinuxError> {
    let mut memories = Memories::new(kernel)?;
    let mut out: Vec<Resident> = Vec::new();
    let mut files = BTreeMap::new();
    // Processes may share their memory (vfork).
    let mut own: HashMap<u64, u32> = HashMap::new();
    let mut number = 0;
    for task in kernel.processes(doubts)? {
        let Some(p) = memories.of(task, doubts) else {
            continue;
        };
        let mut r = Resident {
            pid: p.pid,
            comm: p.comm.clone(),
            object: p.task.va,
            started: start_ns(&p.task).ok(),
            units: Vec::new(),
        };
        if let Some(unit) = own.get(&p.mm.va) {
            r.units.push((*unit, 0));
            maps(&p, &HashSet::new(), out.len(), &mut files);
            out.push(r);
            continue;
        }
        let pages = p.stretches(&mut memories.budget, doubts);
        let changed = changed(&p, &pages);
        let shared = maps(&p, &changed, out.len(), &mut files);
        let extents = private(&pages, &shared);
        if !extents.is_empty() {
            own.insert(p.mm.va, number);
            r.units.push((number, 0));
            let unit = Unit {
                number,
                file: None,
                process: Some(p.name()),
                extents,
            };
            number += 1;
            if visit(unit).is_break() {
                return Ok(out);
            }
        }
        out.push(r);
    }
    for f in files.into_values() {
        if file_units(f, &mut number, &mut out, doubts, visit).is_break() {
            break;
        }
    }
    Ok(out)
}

/// Areas of which a process changed pages.
fn changed(p: &ProcessMemory<'_>, pages: &[(usize, Page)]) -> HashSet<usize> {
    let changed = pages.iter().filter(|(i, page)| {
        let area = p.areas.get(*i);
        area.is_some_and(|a| p.is_changed(a, page))
    });
    changed.map(|(i, _)| *i).collect()
}

/// Notes the areas that map unchanged pages of files; gives their numbers.
fn maps(
    p: &ProcessMemory<'_>,
    changed: &HashSet<usize>,
    process: usize,
    files: &mut BTreeMap<u64, File>,
) -> HashSet<usize> {
    let mut out = HashSet::new();
    for (i, a) in p.areas.iter().enumerate() {
        if a.special || changed.contains(&i) {
            continue;
        }
        let Some((inode, content)) = p.file_pages(a) else {
            continue;
        };
        let Some(from) = a.vma.pgoff.checked_mul(4096) else {
            continue;
        };
        let Some(to) = from.checked_add(a.len()) else {
            continue;
        };
        let f = files.entry(inode).or_insert_with(|| File {
            path: a.label().to_owned(),
            content,
            bounds: BTreeSet::new(),
            uses: Vec::new(),
        });
        f.bounds.extend([from, to]);
        f.uses.push(Use {
            process,
            range: from..to,
            shift: a.vma.start.wrapping_sub(from),
        });
        out.insert(i);
    }
    out
}

/// A process's own pages; neighbours in both spaces are one.
fn private(pages: &[(usize, Page)], shared: &HashSet<usize>) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::new();
    for (_, p) in pages.iter().filter(|(i, _)| !shared.contains(i)) {
        match out.last_mut() {
            Some(l) if l.offset + l.len == p.va && l.pa.0.checked_add(l.len) == Some(p.pa.0) => {
                l.len += p.len;
            }
            // Areas that overlap are damage; each page counts once.
            Some(l) if l.offset + l.len > p.va => {}
            _ => out.push(Extent {
                offset: p.va,
                pa: p.pa,
                len: p.len,
            }),
        }
    }
    out
}
