//! Chains of hash tables: a head with one pointer, nodes that lead on until null, or, in lists that
//! are read without locks (`hlist_nulls`), until an odd number.
//!
//! Sources: Linux `include/linux/list.h`, `include/linux/list_nulls.h`.

use crate::linux::{Kernel, ReadError, Walk};
use std::collections::HashSet;

/// Members of a chain at most.
const MAX: usize = 1 << 20;

impl Kernel<'_> {
    /// Follows the `hlist_head` or `hlist_nulls_head` at `head`. A node lies `offset` bytes into the
    /// struct whose address is given.
    pub fn hlist(&self, head: u64, offset: u64) -> Result<Walk, ReadError> {
        Ok(self.chain(self.space.u64(head)?, offset))
    }

    /// The same from the first node on.
    pub fn chain(&self, first: u64, offset: u64) -> Walk {
        let mut out = Walk::default();
        let mut at = first;
        if at == 0 || at & 1 != 0 {
            return out;
        }
        let mut seen = HashSet::new();
        while at != 0 && at & 1 == 0 {
            if out.items.len() == MAX || !seen.insert(at) {
                out.broken = Some(format!(
                    "the chain from {first:#x} on runs into itself at {at:#x}"
                ));
                break;
            }
            // `next` is the first member of a node. A node that can't be read is none.
            match self.space.u64(at) {
                Ok(next) => {
                    out.items.push(at.wrapping_sub(offset));
                    at = next;
                }
                Err(e) => {
                    out.broken = Some(format!(
                        "the chain from {first:#x} on breaks off at {at:#x}: {e}"
                    ));
                    break;
                }
            }
        }
        out
    }
}
