//! Lists of the kernel. In a capture they may be smeared: every walk ends, and says how.

use super::{Kernel, LinuxError};
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
        let mut out = Walk::default();
        let mut seen = HashSet::new();
        let mut at = self.space.u64(head.wrapping_add(next))?;
        while at != head {
            if !seen.insert(at) {
                out.broken = Some(format!("the list runs into itself at {at:#x}"));
                break;
            }
            if out.items.len() == MAX {
                out.broken = Some(format!("the list has more than {MAX} members"));
                break;
            }
            out.items.push(at.wrapping_sub(offset));
            match self.space.u64(at.wrapping_add(next)) {
                Ok(n) => at = n,
                Err(e) => {
                    out.broken = Some(format!("the list breaks off after {at:#x}: {e}"));
                    break;
                }
            }
        }
        Ok(out)
    }
}
