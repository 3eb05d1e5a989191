//! The kernel's sparse arrays: xarray (4.20 and later), the radix tree before, and IDRs made of
//! either.
//!
//! ```text
//! head -> entry | node { shift, slots[64] }      index = slot << shift, down to shift 0
//! ```
//!
//! | low bits of an entry | xarray | radix tree |
//! | --- | --- | --- |
//! | 00 | pointer | pointer |
//! | 10 | internal: node if above 4096, else sibling of slot n / retry / zero | exceptional value |
//! | x1 | value (shifted by 1) | 01: node, or sibling if it points into its own node |
//!
//! Nodes go down by their shifts and each is visited once, so that a walk ends whatever the bytes
//! say.
//!
//! Sources: Linux `include/linux/xarray.h`, `include/linux/radix-tree.h`, `include/linux/idr.h`.

use crate::linux::{Kernel, LinuxError, ReadError};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A pointer.
    Pointer(u64),
    /// A number: what the page cache has of a page that is gone or swapped out.
    Value(u64),
}

/// Called for each used slot with its index and how many indices it covers.
pub type Visit<'v> = dyn FnMut(u64, u64, Slot) -> ControlFlow<()> + 'v;

/// Nodes of one tree at most: enough for 256 GiB of cached file.
const MAX_NODES: usize = 1 << 20;
/// Nodes that can't be read and are told one by one.
const TOLD: usize = 16;
/// Bits of an index that a node decides.
const CHUNK: u32 = 6;
const SLOTS: usize = 1 << CHUNK;
/// Internal entries up to this are no nodes.
const MAX_INTERNAL: u64 = 4096;

/// Where nodes keep what.
struct Shape {
    /// Offset of the head in its root.
    head: u64,
    shift: u64,
    slots: u64,
    /// Whether entries are those of an xarray.
    xarray: bool,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Empty,
    Node(u64),
    Sibling(usize),
    Slot(Slot),
}

impl Shape {
    fn new(kernel: &Kernel<'_>) -> Result<Self, LinuxError> {
        let types = kernel.symbols.types();
        let xarray = types.has_field("xarray", "xa_head");
        let (root, head, node) = if xarray {
            ("xarray", "xa_head", "xa_node")
        } else {
            ("radix_tree_root", "rnode", "radix_tree_node")
        };
        Ok(Self {
            head: types.field(root, head)?.offset,
            shift: types.field(node, "shift")?.offset,
            slots: types.field(node, "slots")?.offset,
            xarray,
        })
    }

    /// What an entry of the node at `node` is (0 for the head).
    fn decode(&self, entry: u64, node: u64) -> Entry {
        match (entry, self.xarray, entry & 3) {
            (0, ..) => Entry::Empty,
            (e, true, 2) if e > MAX_INTERNAL => Entry::Node(e - 2),
            (e, true, 2) => match usize::try_from(e >> 2) {
                Ok(n) if n < SLOTS => Entry::Sibling(n),
                _ => Entry::Empty,
            },
            (e, true, 1 | 3) => Entry::Slot(Slot::Value(e >> 1)),
            (e, false, 1) => {
                let first = node.wrapping_add(self.slots);
                let inside = (e - 1).wrapping_sub(first) / 8;
                match usize::try_from(inside) {
                    Ok(n) if node != 0 && n < SLOTS => Entry::Sibling(n),
                    _ => Entry::Node(e - 1),
                }
            }
            (e, false, 2) => Entry::Slot(Slot::Value(e >> 2)),
            (e, ..) => Entry::Slot(Slot::Pointer(e)),
        }
    }
}

/// A node that is being gone through.
struct Level {
    node: u64,
    base: u64,
    shift: u32,
    next: usize,
    slots: [u64; SLOTS],
}

struct Walker<'k, 'd> {
    kernel: &'k Kernel<'k>,
    shape: Shape,
    seen: HashSet<u64>,
    doubts: &'d mut Vec<String>,
    bad: usize,
}

impl Walker<'_, '_> {
    /// Reads a node that must lie below `above` in shift.
    fn level(&mut self, node: u64, base: u64, above: u32) -> Option<Level> {
        let mut why = |w: String| {
            self.bad += 1;
            if self.bad <= TOLD {
                self.doubts.push(format!("tree node at {node:#x}: {w}"));
            }
        };
        if self.seen.len() >= MAX_NODES || !self.seen.insert(node) {
            why("it was there before, or is one too many".into());
            return None;
        }
        match read_node(self.kernel, &self.shape, node) {
            Ok((shift, slots)) if shift < above && shift < 64 => Some(Level {
                node,
                base,
                shift,
                next: 0,
                slots,
            }),
            Ok((shift, _)) => {
                why(format!("its shift of {shift} is not below {above}"));
                None
            }
            Err(e) => {
                why(e.to_string());
                None
            }
        }
    }
}

fn read_node(kernel: &Kernel<'_>, s: &Shape, node: u64) -> Result<(u32, [u64; SLOTS]), ReadError> {
    let mut shift = [0];
    kernel.space.read(node.wrapping_add(s.shift), &mut shift)?;
    let mut raw = [0; SLOTS * 8];
    kernel.space.read(node.wrapping_add(s.slots), &mut raw)?;
    let mut slots = [0; SLOTS];
    for (slot, bytes) in slots.iter_mut().zip(raw.as_chunks::<8>().0) {
        *slot = u64::from_le_bytes(*bytes);
    }
    Ok((shift[0].into(), slots))
}

impl Kernel<'_> {
    /// Visits the used slots of the `xarray` (or `radix_tree_root`) at `va`, by index. What can't be
    /// read is a doubt.
    pub fn xarray(
        &self,
        va: u64,
        doubts: &mut Vec<String>,
        visit: &mut Visit<'_>,
    ) -> Result<(), LinuxError> {
        let shape = Shape::new(self)?;
        let head = self.space.u64(va.wrapping_add(shape.head))?;
        let mut w = Walker {
            kernel: self,
            shape,
            seen: HashSet::new(),
            doubts,
            bad: 0,
        };
        let mut levels: Vec<Level> = Vec::new();
        match w.shape.decode(head, 0) {
            Entry::Node(n) => levels.extend(w.level(n, 0, 64)),
            Entry::Slot(s) => {
                let _ = visit(0, 1, s);
            }
            Entry::Empty | Entry::Sibling(_) => {}
        }
        while let Some(l) = levels.last_mut() {
            let i = l.next;
            let Some(entry) = l.slots.get(i).copied() else {
                levels.pop();
                continue;
            };
            l.next += 1;
            let index = l.base.wrapping_add((i as u64).wrapping_shl(l.shift));
            match w.shape.decode(entry, l.node) {
                Entry::Node(n) => {
                    let above = l.shift;
                    levels.extend(w.level(n, index, above));
                }
                Entry::Slot(s) => {
                    let same = |e: &u64| w.shape.decode(*e, l.node) == Entry::Sibling(i);
                    let siblings = l.slots.iter().skip(i + 1).take_while(|e| same(e)).count();
                    l.next += siblings;
                    let count = (siblings as u64 + 1).wrapping_shl(l.shift);
                    if visit(index, count, s).is_break() {
                        break;
                    }
                }
                Entry::Empty | Entry::Sibling(_) => {}
            }
        }
        if let Some(more) = w.bad.checked_sub(TOLD).filter(|n| *n > 0) {
            w.doubts
                .push(format!("tree at {va:#x}: {more} more nodes like that"));
        }
        Ok(())
    }

    /// The pointers of the `idr` at `va` with their ids.
    pub fn idr(&self, va: u64, doubts: &mut Vec<String>) -> Result<Vec<(u64, u64)>, LinuxError> {
        let idr = self.object("idr", va);
        let base = if idr.has("idr_base") {
            idr.number("idr_base")?
        } else {
            0
        };
        let mut out = Vec::new();
        self.xarray(idr.at("idr_rt")?, doubts, &mut |index, _, slot| {
            if let Slot::Pointer(p) = slot {
                out.push((index.wrapping_add(base), p));
            }
            ControlFlow::Continue(())
        })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{FREE, Machine, Type};

    const XARRAY: &[Type<'_>] = &[
        ("xarray", 16, &[("xa_head", 8, "pointer")]),
        (
            "xa_node",
            576,
            &[("shift", 0, "byte"), ("slots", 40, "pointer")],
        ),
    ];
    const RADIX: &[Type<'_>] = &[
        ("radix_tree_root", 16, &[("rnode", 8, "pointer")]),
        (
            "radix_tree_node",
            576,
            &[("shift", 0, "byte"), ("slots", 40, "pointer")],
        ),
    ];
    const TOP: u64 = FREE + 0x100;
    const LOW: u64 = FREE + 0x800;

    fn walk(k: &Kernel<'_>) -> (Vec<(u64, u64, Slot)>, Vec<String>) {
        let (mut out, mut doubts) = (Vec::new(), Vec::new());
        k.xarray(FREE, &mut doubts, &mut |index, count, slot| {
            out.push((index, count, slot));
            ControlFlow::Continue(())
        })
        .expect("its types are there");
        (out, doubts)
    }

    fn slot(node: u64, i: u64) -> u64 {
        node + 40 + i * 8
    }

    #[test]
    fn levels_siblings_and_values() {
        let mut m = Machine::new(0x5000);
        m.put(FREE + 8, TOP + 2);
        m.put(TOP, 6);
        m.put(slot(TOP, 2), LOW + 2);
        m.put(slot(LOW, 0), 0x1000);
        m.put(slot(LOW, 4), 0x2000);
        for i in 5..8 {
            m.put(slot(LOW, i), 4 << 2 | 2);
        }
        m.put(slot(LOW, 9), 0x77 << 1 | 1);
        // Being changed by somebody; reserved.
        m.put(slot(LOW, 10), 256 << 2 | 2);
        m.put(slot(LOW, 11), 257 << 2 | 2);
        // One entry for all that a slot of the upper node covers.
        m.put(slot(TOP, 3), 0x3000);
        let (got, doubts) = walk(&m.kernel(XARRAY));
        assert_eq!(doubts, Vec::<String>::new());
        let want = [
            (128, 1, Slot::Pointer(0x1000)),
            (132, 4, Slot::Pointer(0x2000)),
            (137, 1, Slot::Value(0x77)),
            (192, 64, Slot::Pointer(0x3000)),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn a_single_entry_needs_no_node() {
        let mut m = Machine::new(0x5000);
        m.put(FREE + 8, 0x1000);
        let (got, _) = walk(&m.kernel(XARRAY));
        assert_eq!(got, [(0, 1, Slot::Pointer(0x1000))]);
    }

    #[test]
    fn the_radix_tree_marks_nodes_otherwise() {
        let mut m = Machine::new(0x5000);
        m.put(FREE + 8, TOP + 1);
        m.put(TOP, 6);
        m.put(slot(TOP, 1), LOW + 1);
        m.put(slot(LOW, 0), 0x1000);
        m.put(slot(LOW, 1), slot(LOW, 0) + 1);
        m.put(slot(LOW, 3), 0x77 << 2 | 2);
        let (got, doubts) = walk(&m.kernel(RADIX));
        assert_eq!(doubts, Vec::<String>::new());
        let want = [(64, 2, Slot::Pointer(0x1000)), (67, 1, Slot::Value(0x77))];
        assert_eq!(got, want);
    }

    #[test]
    fn a_tree_that_leads_back_ends() {
        let mut m = Machine::new(0x5000);
        m.put(FREE + 8, TOP + 2);
        m.put(TOP, 6);
        for i in 0..64 {
            m.put(slot(TOP, i), LOW + 2);
            m.put(slot(LOW, i), TOP + 2);
        }
        m.put(slot(TOP, 9), 0x1234_5670_0002);
        let (got, doubts) = walk(&m.kernel(XARRAY));
        assert_eq!(got, []);
        assert_eq!(doubts.len(), TOLD + 1, "{doubts:?}");
    }

    #[test]
    fn chains_end_at_null_at_odd_numbers_and_where_they_come_back() {
        let mut m = Machine::new(0x5000);
        let k = |m: &Machine| m.kernel(XARRAY).hlist(FREE, 0x10).expect("mapped");
        assert_eq!(k(&m), crate::linux::Walk::default());
        m.put(FREE, 0x4010);
        m.put(0x4010, 0x4110);
        m.put(0x4110, 0x17);
        assert_eq!(k(&m).items, [0x4000, 0x4100]);
        assert_eq!(k(&m).broken, None);
        m.put(0x4110, 0x4010);
        assert_eq!(k(&m).items, [0x4000, 0x4100]);
        assert!(k(&m).broken.is_some());
        m.put(0x4110, 0x99_0000);
        assert_eq!(k(&m).items, [0x4000, 0x4100]);
        assert!(k(&m).broken.is_some());
    }
}
