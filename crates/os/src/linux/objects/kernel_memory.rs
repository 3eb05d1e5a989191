//! Memory of the kernel that has a formula of its own: each CPU's variables, the map of all memory,
//! small trees and chains.
//!
//! ```text
//! variable of CPU n = its symbol + __per_cpu_offset[n]       (whatever the symbol counts from)
//! virtual = physical + page_offset_base                      (x86-64)
//! ```
//!
//! Sources: Linux `include/asm-generic/percpu.h`, `arch/x86/include/asm/page_64_types.h`,
//! `include/linux/rbtree.h`.

use crate::linux::{Kernel, LinuxError, Walk};
use std::collections::HashSet;

/// CPUs at most: what the largest configuration allows.
const MAX_CPUS: u64 = 8192;
/// Nodes of a tree or chain at most.
const MAX_NODES: usize = 1 << 20;
/// Where the map of all memory begins without address randomisation, under four and five levels.
const PAGE_OFFSETS: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];

impl Kernel<'_> {
    /// A number of four bytes at a symbol.
    pub fn u32_at(&self, name: &'static str) -> Result<u32, LinuxError> {
        let mut raw = [0; 4];
        self.space.read(self.address(name)?, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// Eight bytes at a symbol: a number or a pointer.
    pub fn u64_at(&self, name: &'static str) -> Result<u64, LinuxError> {
        Ok(self.space.u64(self.address(name)?)?)
    }

    /// Text up to its NUL, of `max` bytes at most; what lies behind an unreadable page is cut.
    pub fn text(&self, va: u64, max: usize) -> Result<String, LinuxError> {
        let mut out = Vec::new();
        while out.len() < max {
            let at = va.wrapping_add(out.len() as u64);
            let n = usize::try_from(4096 - at % 4096).unwrap_or(4096);
            let mut piece = vec![0; n.min(max - out.len()).min(256)];
            match self.space.read(at, &mut piece) {
                Ok(()) => {}
                Err(e) if out.is_empty() => return Err(e.into()),
                Err(_) => break,
            }
            let end = piece.iter().position(|b| *b == 0);
            out.extend_from_slice(&piece[..end.unwrap_or(piece.len())]);
            if end.is_some() {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// How far each CPU's variables lie from their symbols.
    pub fn per_cpu_offsets(&self) -> Result<Vec<u64>, LinuxError> {
        let table = self.address("__per_cpu_offset")?;
        let count = u64::from(self.u32_at("nr_cpu_ids")?).min(MAX_CPUS);
        let read = |i: u64| self.space.u64(table.wrapping_add(i * 8));
        Ok((0..count).map(read).collect::<Result<_, _>>()?)
    }

    /// The address of a per-CPU variable on each CPU.
    pub fn per_cpu(&self, name: &'static str) -> Result<Vec<u64>, LinuxError> {
        let symbol = self.address(name)?;
        let offsets = self.per_cpu_offsets()?;
        Ok(offsets.iter().map(|o| symbol.wrapping_add(*o)).collect())
    }

    /// The virtual address of physical memory in the kernel's map of all memory, where the page
    /// tables agree.
    pub fn direct_map(&self, pa: u64) -> Option<u64> {
        let told = self.u64_at("page_offset_base").ok();
        let bases = told.into_iter().chain(PAGE_OFFSETS);
        bases
            .map(|b| b.wrapping_add(pa))
            .find(|va| self.space.translate(*va).is_ok_and(|p| p.0 == pa))
    }

    /// The nodes of a red-black tree in order; `root` is the address of its `rb_root`.
    pub fn rb_tree(&self, root: u64) -> Result<Walk, LinuxError> {
        let types = self.symbols.types();
        let left = types.field("rb_node", "rb_left")?.offset;
        let right = types.field("rb_node", "rb_right")?.offset;
        let mut out = Walk::default();
        let (mut seen, mut above) = (HashSet::new(), Vec::new());
        let mut at = self.space.u64(root)?;
        loop {
            while at != 0 {
                if seen.len() >= MAX_NODES || !seen.insert(at) {
                    out.broken = Some(format!("the tree runs into itself at {at:#x}"));
                    return Ok(out);
                }
                above.push(at);
                match self.space.u64(at.wrapping_add(left)) {
                    Ok(n) => at = n,
                    Err(e) => {
                        out.broken = Some(format!("the tree's node at {at:#x}: {e}"));
                        above.pop();
                        break;
                    }
                }
            }
            let Some(node) = above.pop() else {
                return Ok(out);
            };
            out.items.push(node);
            match self.space.u64(node.wrapping_add(right)) {
                Ok(n) => at = n,
                Err(e) => {
                    out.broken = Some(format!("the tree's node at {node:#x}: {e}"));
                    at = 0;
                }
            }
        }
    }

    /// The nodes of a chain that ends at `end` (or with a null): `first` is the address of the first
    /// one, and each has the next one's at `next`.
    pub fn chain_until(&self, first: u64, next: u64, end: u64) -> Walk {
        let mut out = Walk::default();
        let mut seen = HashSet::new();
        let mut at = first;
        while at != 0 && at != end {
            if seen.len() >= MAX_NODES || !seen.insert(at) {
                out.broken = Some(format!("the chain runs into itself at {at:#x}"));
                break;
            }
            match self.space.u64(at.wrapping_add(next)) {
                Ok(n) => {
                    out.items.push(at);
                    at = n;
                }
                Err(e) => {
                    out.broken = Some(format!("the chain breaks off at {at:#x}: {e}"));
                    break;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::{FREE, Machine, Type};

    const TREE: &[Type<'_>] = &[(
        "rb_node",
        24,
        &[("rb_right", 8, "pointer"), ("rb_left", 16, "pointer")],
    )];

    /// A node of its children.
    fn node(m: &mut Machine, at: u64, left: u64, right: u64) {
        m.put(at + 16, left);
        m.put(at + 8, right);
    }

    #[test]
    fn trees_are_walked_in_order_and_rings_in_them_end_it() {
        let (root, a, b, c, d) = (FREE, FREE + 32, FREE + 64, FREE + 96, FREE + 128);
        let mut m = Machine::new(0x5000);
        m.put(root, c);
        node(&mut m, c, a, d);
        node(&mut m, a, 0, b);
        let walk = m.kernel(TREE).rb_tree(root).expect("its types are there");
        assert_eq!((walk.items, walk.broken), (vec![a, b, c, d], None));
        node(&mut m, b, c, 0);
        let walk = m.kernel(TREE).rb_tree(root).expect("its types are there");
        assert!(walk.broken.is_some_and(|b| b.contains("runs into itself")));
        // A child that nobody holds: the rest goes on.
        node(&mut m, b, 0x7fff_0000, 0);
        let walk = m.kernel(TREE).rb_tree(root).expect("its types are there");
        assert!(walk.items.ends_with(&[c, d]), "{:x?}", walk.items);
        assert!(walk.broken.is_some());
    }

    #[test]
    fn chains_end_at_their_end_at_null_and_where_they_close() {
        let (a, b, c) = (FREE, FREE + 32, FREE + 64);
        let mut m = Machine::new(0x5000);
        m.put(a + 8, b);
        m.put(b + 8, c);
        let walk = m.kernel(TREE).chain_until(a, 8, c);
        assert_eq!((walk.items, walk.broken), (vec![a, b], None));
        let walk = m.kernel(TREE).chain_until(a, 8, 0);
        assert_eq!((walk.items, walk.broken), (vec![a, b, c], None));
        m.put(c + 8, a);
        let walk = m.kernel(TREE).chain_until(a, 8, 0);
        assert_eq!(walk.items, [a, b, c]);
        assert!(walk.broken.is_some_and(|b| b.contains("runs into itself")));
    }
}
