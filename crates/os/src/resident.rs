//! What processes have in memory, each byte once: for scans that take a process as a whole.

use crate::content::{Content, Extent};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

/// Memory that is scanned once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its number; numbers ascend.
    pub number: u32,
    /// Path of the file that it is a part of; `None` of memory that is a process's own.
    pub file: Option<String>,
    /// The process whose own memory it is, `sshd[812]`; of several that share it the first.
    pub process: Option<String>,
    /// Its bytes, by address, which is their [`Extent::offset`].
    pub extents: Vec<Extent>,
}

/// A process and its units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Process id.
    pub pid: i64,
    /// Its name.
    pub comm: String,
    /// Address of the kernel's object of the process.
    pub object: u64,
    /// When it was started, in nanoseconds since a moment that is the same for all processes of the machine.
    pub started: Option<u64>,
    /// Units, and what is added to their addresses to get the process's (wrapping).
    pub units: Vec<(u32, u64)>,
}

/// Units that processes have, counted for each process, at most: 65,530 areas are the kernel's limit for
/// one.
const UNITS: usize = 4 << 20;

/// An area that maps unchanged pages of a file.
pub(crate) struct Use {
    /// Number of the process.
    pub(crate) process: usize,
    /// Offsets in the file.
    pub(crate) range: Range<u64>,
    /// What is added to an offset to get an address.
    pub(crate) shift: u64,
}

/// A file that processes map.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) content: Rc<Content>,
    /// Where areas begin and end.
    pub(crate) bounds: BTreeSet<u64>,
    pub(crate) uses: Vec<Use>,
}

/// Visits the parts of a file and notes who has them.
pub(crate) fn file_units(
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
