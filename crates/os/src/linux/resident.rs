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
use super::{Content, Extent, Kernel, LinuxError};
use crate::resident::{Resident, Unit};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

/// Units that processes have, counted for each process, at most: 65,530 areas are the kernel's limit for
/// one.
const UNITS: usize = 4 << 20;

/// An area that maps unchanged pages of a file.
struct Use {
    process: usize,
    /// Offsets in the file.
    range: Range<u64>,
    /// What is added to an offset to get an address.
    shift: u64,
}

/// A file that processes map.
struct File {
    path: String,
    content: Rc<Content>,
    /// Where areas begin and end.
    bounds: BTreeSet<u64>,
    uses: Vec<Use>,
}

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

/// Visits the parts of a file and notes who has them.
fn file_units(
    f: File,
    number: &mut u32,
    processes: &mut [Resident],
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // By where the part begins: its number, if it has bytes.
    let mut parts: BTreeMap<u64, Option<u32>> = BTreeMap::new();
    let mut had = 0;
    for u in &f.uses {
        let Some(p) = processes.get_mut(u.process) else {
            continue;
        };
        let mut from = u.range.start;
        for to in f.bounds.range(u.range.start + 1..=u.range.end) {
            if had == UNITS {
                doubts.push(format!(
                    "{}: its parts are mapped more than {UNITS} times; the rest is left out",
                    f.path
                ));
                return ControlFlow::Continue(());
            }
            had += 1;
            let part = match parts.get(&from) {
                Some(part) => *part,
                None => {
                    let extents = part_of(&f.content, from..*to);
                    let made = (!extents.is_empty()).then_some(*number);
                    parts.insert(from, made);
                    if made.is_some() {
                        *number += 1;
                        visit(Unit {
                            number: *number - 1,
                            file: Some(f.path.clone()),
                            process: None,
                            extents,
                        })?;
                    }
                    made
                }
            };
            p.units.extend(part.map(|n| (n, u.shift)));
            from = *to;
        }
    }
    ControlFlow::Continue(())
}

/// The extents of a content in a range.
fn part_of(c: &Content, range: Range<u64>) -> Vec<Extent> {
    let first = c
        .extents()
        .partition_point(|e| e.offset + e.len <= range.start);
    let inside = c.extents()[first..]
        .iter()
        .take_while(|e| e.offset < range.end);
    inside
        .map(|e| {
            let from = e.offset.max(range.start);
            Extent {
                offset: from,
                pa: e.pa.saturating_add(from - e.offset),
                len: (e.offset + e.len).min(range.end) - from,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::PhysAddr;

    fn extent(offset: u64, pa: u64, len: u64) -> Extent {
        Extent {
            offset,
            pa: PhysAddr(pa),
            len,
        }
    }

    #[test]
    fn a_part_of_a_file_is_cut_on_both_sides() {
        let mut c = Content::new(0x9000);
        for e in [
            extent(0, 0x1_0000, 0x3000),
            extent(0x4000, 0x2_0000, 0x1000),
            extent(0x6000, 0x3_0000, 0x3000),
        ] {
            c.push(e);
        }
        let want = [
            extent(0x1000, 0x1_1000, 0x2000),
            extent(0x4000, 0x2_0000, 0x1000),
            extent(0x6000, 0x3_0000, 0x1000),
        ];
        assert_eq!(part_of(&c, 0x1000..0x7000), want);
        assert_eq!(part_of(&c, 0x3000..0x4000), []);
        assert_eq!(part_of(&c, 0xa000..0xb000), []);
    }

    #[test]
    fn files_are_cut_where_areas_begin_and_end() {
        let mut content = Content::new(0x6000);
        content.push(extent(0, 0x1_0000, 0x6000));
        let name = |pid| Resident {
            pid,
            comm: String::new(),
            object: 0,
            started: None,
            units: Vec::new(),
        };
        let mut processes = [name(1), name(2)];
        let mapped = |process, range: Range<u64>, shift| Use {
            process,
            range,
            shift,
        };
        let file = File {
            path: "/x".into(),
            content: Rc::new(content),
            bounds: [0, 0x2000, 0x3000, 0x6000].into(),
            uses: vec![
                mapped(0, 0..0x3000, 0x10_0000),
                mapped(1, 0x2000..0x6000, 0x20_0000),
            ],
        };
        let (mut number, mut got) = (5, Vec::new());
        let done = file_units(
            file,
            &mut number,
            &mut processes,
            &mut Vec::new(),
            &mut |u| {
                got.push((u.number, u.extents));
                ControlFlow::Continue(())
            },
        );
        assert!(done.is_continue());
        let want = [
            (5, vec![extent(0, 0x1_0000, 0x2000)]),
            (6, vec![extent(0x2000, 0x1_2000, 0x1000)]),
            (7, vec![extent(0x3000, 0x1_3000, 0x3000)]),
        ];
        assert_eq!(got, want);
        assert_eq!(processes[0].units, [(5, 0x10_0000), (6, 0x10_0000)]);
        assert_eq!(processes[1].units, [(6, 0x20_0000), (7, 0x20_0000)]);
    }
}
