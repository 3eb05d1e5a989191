//! Doubly linked lists (`_LIST_ENTRY`).

use super::{Kernel, Space, WindowsError};
use std::collections::HashSet;

/// Members of a list at most.
const MOST: usize = 1 << 20;

/// Members of a list, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk {
    /// Addresses of the members, in their order; of a broken list also those that its end leads to.
    pub(super) items: Vec<u64>,
    /// Why it could not be followed to its end.
    pub(super) broken: Option<String>,
}

/// The members of the list at `head`, of this type and linked by this field.
pub(super) fn list(k: &Kernel<'_>, head: u64, ty: &str, links: &str) -> Result<Walk, WindowsError> {
    list_in(k, &k.space, head, ty, links)
}

/// The same in another address space.
pub(super) fn list_in(
    k: &Kernel<'_>,
    space: &Space<'_>,
    head: u64,
    ty: &str,
    links: &str,
) -> Result<Walk, WindowsError> {
    let inside = k.symbols.types().field(ty, links)?.offset;
    let mut walk = Walk::default();
    let mut seen = HashSet::from([head]);
    let forward = follow(space, head, 0, &mut seen, &mut walk.items);
    if let Err(why) = forward {
        // What lies behind the break is reached from the other end.
        let mut rest = Vec::new();
        let _ = follow(space, head, 8, &mut seen, &mut rest);
        rest.reverse();
        walk.broken = Some(format!(
            "the list at {head:#x} is broken after {} members ({why}); {} more are reached from its end",
            walk.items.len(),
            rest.len()
        ));
        walk.items.append(&mut rest);
    }
    for va in &mut walk.items {
        *va = va.wrapping_sub(inside);
    }
    Ok(walk)
}

/// Follows links until they lead back to the head.
fn follow(
    space: &Space<'_>,
    head: u64,
    link: u64,
    seen: &mut HashSet<u64>,
    out: &mut Vec<u64>,
) -> Result<(), String> {
    let mut at = head;
    loop {
        let next = space
            .u64(at.wrapping_add(link))
            .map_err(|e| e.to_string())?;
        if next == head {
            return Ok(());
        }
        if !seen.insert(next) {
            return Err(format!("it leads back to {next:#x}"));
        }
        // The other link must lead back, or this is no member.
        let mut pair = [0; 16];
        space.read(next, &mut pair).map_err(|e| e.to_string())?;
        let [a, b] = [&pair[..8], &pair[8..]].map(|b| {
            let b = b.first_chunk();
            b.map_or(0, |b| u64::from_le_bytes(*b))
        });
        let back = if link == 0 { b } else { a };
        if back != at {
            return Err(format!("{next:#x} leads back to {back:#x}, not to {at:#x}"));
        }
        if out.len() >= MOST {
            return Err(format!("it has more than {MOST} members"));
        }
        out.push(next);
        at = next;
    }
}
