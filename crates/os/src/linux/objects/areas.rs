//! Areas of virtual memory that the kernel has given out, with who asked for them.
//!
//! ```text
//! until 6.8   vmap_area_list -> vmap_area { va_start, va_end, list, vm -> vm_struct { caller } }
//! from 6.9    vmap_nodes[nr_vmap_nodes] { busy { head -> the same list } }
//! ```
//!
//! Source: Linux `mm/vmalloc.c`, `include/linux/vmalloc.h`.

use crate::linux::{Kernel, LinuxError};
use std::ops::Range;

/// An area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Area {
    pub(in crate::linux) start: u64,
    pub(in crate::linux) end: u64,
    /// The place in the kernel's code that asked for it; 0 where it is not noted.
    pub(in crate::linux) caller: u64,
    /// Virtual address of its struct vmap_area.
    pub(in crate::linux) va: u64,
}

/// Lists of areas at most: one for each CPU, as the kernel makes them.
const MAX_LISTS: u64 = 8192;

/// The areas that begin inside a range. `None` where the kernel's lists can't be found.
pub(in crate::linux) fn areas(
    kernel: &Kernel<'_>,
    inside: &Range<u64>,
    doubts: &mut Vec<String>,
) -> Result<Option<Vec<Area>>, LinuxError> {
    let mut heads = Vec::new();
    if let Some(head) = kernel.symbols.address("vmap_area_list") {
        heads.push(head.0);
    } else if let (Ok(first), Ok(count)) =
        (kernel.u64_at("vmap_nodes"), kernel.u32_at("nr_vmap_nodes"))
    {
        let types = kernel.symbols.types();
        let size = types.size_of("vmap_node")?;
        let head = types.field("vmap_node", "busy.head")?.offset;
        let place = |i: u64| first.wrapping_add(i * size + head);
        heads.extend((0..u64::from(count).min(MAX_LISTS)).map(place));
    } else {
        return Ok(None);
    }
    let fields = kernel.fields("vmap_area", ["va_start", "va_end", "vm"])?;
    let caller = kernel.symbols.types().field("vm_struct", "caller")?.offset;
    let mut out = Vec::new();
    for head in heads {
        let walk = kernel.list(head, "vmap_area", "list")?;
        doubts.extend(walk.broken);
        for va in walk.items {
            let [start, end, vm] = fields.read(kernel, va)?;
            if !inside.contains(&start) {
                continue;
            }
            let caller = match vm {
                0 => 0,
                _ => kernel.space.u64(vm.wrapping_add(caller))?,
            };
            out.push(Area {
                start,
                end,
                caller,
                va,
            });
        }
    }
    out.sort_by_key(|a| a.start);
    Ok(Some(out))
}
