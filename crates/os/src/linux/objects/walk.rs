//! Lists of the kernel. In a capture they may be smeared: every walk ends, and says how.

use crate::linux::{Kernel, LinuxError};
use std::collections::HashSet;

/// Members of a list at most.
const MAX: usize = 1 << 20;

/// What a walk over a list gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Addresses of the structs that hold the list's nodes, in order.
    pub items: Vec<u64>,
    /// Why the walk ended elsewhere than at its head, if it did.
    pub broken: Option<String>,
}

impl Kernel<'_> {
    /// Follows the `list_head` at `head`; its nodes are the `member` of structs of type `ty`.
    pub fn list(&self, head: u64, ty: &'static str, member: &str) -> Result<Walk, LinuxError> {
        let types = self.symbols.types();
        let offset = types.field(ty, member)?.offset;
        let next = types.field("list_head", "next")?.offset;
        let prev = types.field("list_head", "prev")?.offset;
        let mut out = Walk::default();
        let mut seen = HashSet::new();
        out.broken = self.follow(head, next, &mut seen, |at| {
            out.items.push(at.wrapping_sub(offset));
        });
        if out.broken.is_some() {
            // What lies behind the break is reached from the other end.
            let mut rest = Vec::new();
            self.follow(head, prev, &mut seen, |at| {
                rest.push(at.wrapping_sub(offset));
            });
            rest.reverse();
            out.items.extend(rest);
        }
        Ok(out)
    }

    /// Follows one of the two pointers of `list_head`s from `head` until it comes back to it; gives why it did not.
    fn follow(
        &self,
        head: u64,
        pointer: u64,
        seen: &mut HashSet<u64>,
        mut visit: impl FnMut(u64),
    ) -> Option<String> {
        let mut from = head;
        loop {
            let at = match self.space.u64(from.wrapping_add(pointer)) {
                Ok(at) => at,
                Err(e) => return Some(format!("the list breaks off after {from:#x}: {e}")),
            };
            if at == head {
                return None;
            }
            if self.space.prefers_linear() && !self.is_node(at) {
                return Some(format!(
                    "the list breaks off after {from:#x}: nothing of it at {at:#x}"
                ));
            }
            if !seen.insert(at) {
                return Some(format!("the list runs into itself at {at:#x}"));
            }
            if seen.len() > MAX {
                return Some(format!("the list has more than {MAX} members"));
            }
            visit(at);
            from = at;
        }
    }

    /// Whether one of the neighbours of a node knows it.
    pub(in crate::linux) fn is_node(&self, at: u64) -> bool {
        let read = |at: u64| self.space.u64(at).ok();
        let next = read(at).and_then(|n| read(n.wrapping_add(8)));
        let prev = read(at.wrapping_add(8)).and_then(read);
        next == Some(at) || prev == Some(at)
    }
}
