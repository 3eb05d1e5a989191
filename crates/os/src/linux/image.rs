//! Where an x86-64 kernel lies, by the table that starts its processors.
//!
//! ```text
//! first MiB                                   kernel image (at a random place)
//! trampoline_pgd  [511] --> level3_kernel_pgt [510] --> level2_kernel_pgt --> pages of 2 MiB: text, data
//!                                                       kallsyms in it --> vmcoreinfo_data --> VMCOREINFO
//! ```
//!
//! A processor starts in real mode, so the code for that and its page table must lie below 1 MiB; the kernel reserves
//! and fills them at boot on every machine, and they stay. Entry 511 is that of the kernel's own top table.
//!
//! Source: Linux, `arch/x86/realmode/init.c` (`setup_real_mode`), `arch/x86/kernel/head_64.S`
//! (`level3_kernel_pgt`, `level2_kernel_pgt`), `kernel/vmcore_info.c` (`vmcoreinfo_data`, a page of its own).

use super::open;
use crate::discover::Anchor;
use crate::image::KernelImage;
use crate::input::ViewInput;
use ramsift_layers::translate::{Mapped, PhysRead, Shape, X86_64, X86_64_LA57, mappings, walk};
use ramsift_layers::{Dtb, PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{self, Hints};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where real mode ends.
const REAL_MODE: u64 = 1 << 20;
/// Bytes of a page table.
const TABLE: usize = 4096;
/// The top table's entry for the kernel's image.
const KERNEL_ENTRY: usize = 511;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Virtual addresses that the kernel's image may have, as far as the kernel's own limit goes
/// (`KERNEL_IMAGE_SIZE`): the upper bits are all ones.
const IMAGE: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
/// Pages of tables that one candidate may take: one of 2 MiB pages takes four, one split to 4 KiB pages one more for
/// each 2 MiB.
const BUDGET: usize = 256;
/// Smallest image and what is too large for one: three captures have 42, 42 and 54 MiB. It bounds what is read.
const SIZES: Range<u64> = (4 << 20)..(256 << 20);
/// Images that are looked at: an earlier kernel's trampoline may be there too.
const MOST: usize = 4;

/// Images that the first MiB and the container's page tables lead to.
pub(super) fn images(memory: &dyn PhysRead, roots: &[u64]) -> Vec<KernelImage> {
    let recorded = roots.iter().map(|r| {
        let root = r & !(TABLE as u64 - 1);
        (
            root,
            format!("a page table that the container recorded, {root:#x}"),
        )
    });
    let low = (0..REAL_MODE).step_by(TABLE).map(|pa| {
        (
            pa,
            format!("the page table that processors start with, {pa:#x}"),
        )
    });
    let mut out: Vec<KernelImage> = Vec::new();
    for (root, place) in recorded.chain(low) {
        if out.len() >= MOST {
            break;
        }
        if !may_be_top(memory, root) {
            continue;
        }
        let found = [X86_64, X86_64_LA57]
            .into_iter()
            .find_map(|shape| image(memory, Dtb(root), shape, &place));
        out.extend(found.filter(|f| !out.iter().any(|o| o.data == f.data)));
    }
    out
}

/// Whether the last entry leads to a table.
fn may_be_top(memory: &dyn PhysRead, root: u64) -> bool {
    let mut raw = [0; 8];
    let at = PhysAddr(root).saturating_add(KERNEL_ENTRY as u64 * 8);
    if memory.read_phys(at, &mut raw).is_err() {
        return false;
    }
    let entry = u64::from_le_bytes(raw);
    entry & PRESENT != 0 && entry & LARGE == 0 && entry & X86_64.address != 0
}

/// What a table maps where kernels lie: pages that lie in physical memory as they do in virtual.
fn image(memory: &dyn PhysRead, root: Dtb, shape: Shape, place: &str) -> Option<KernelImage> {
    let mask = (1 << shape.va_bits()) - 1;
    let range = (IMAGE.start & mask)..(IMAGE.end & mask);
    let mut budget = BUDGET;
    let mut pages: Vec<(u64, Range<u64>, bool)> = Vec::new();
    mappings(memory, &shape, root, range, &mut budget, &mut |m| {
        if let Mapped::Page { va, pa, len, entry } = m {
            let delta = (va | !mask).wrapping_sub(pa.0);
            let code = entry & NO_EXECUTE == 0;
            pages.push((delta, pa.0..pa.0.saturating_add(len), code));
        }
    });
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    for (delta, r, _) in &pages {
        *bytes.entry(*delta).or_default() += r.end - r.start;
    }
    let (&delta, &size) = bytes.iter().max_by_key(|(_, n)| **n)?;
    if !SIZES.contains(&size) {
        return None;
    }
    pages.retain(|(d, ..)| *d == delta);
    let joined = |only_data: bool| {
        let mut out: Vec<Range<u64>> = Vec::new();
        for (_, r, code) in &pages {
            match out.last_mut() {
                _ if only_data && *code => {}
                Some(last) if last.end == r.start => last.end = r.end,
                _ => out.push(r.clone()),
            }
        }
        out
    };
    let data = joined(true);
    Some(KernelImage {
        place: place.to_owned(),
        root,
        shape,
        delta,
        // Without the protection every page may hold code.
        data: if data.is_empty() { joined(false) } else { data },
    })
}

/// VMCOREINFO, by the variable that points at it.
pub(super) fn anchors_beside(input: &ViewInput<'_>, image: &KernelImage) -> Vec<Anchor> {
    let hints = Hints {
        known: &[],
        delta: Some(image.delta),
    };
    let own = open::places(input, "kallsyms_token_table").filter(|pa| image.contains(pa.0));
    let tables = own.filter_map(|pa| kallsyms::carve(input.memory, pa, &hints).ok());
    tables
        .filter_map(|k| vmcoreinfo(input, image, &k))
        .take(1)
        .collect()
}

/// Names of the kernel's own top table: by now, and before 4.13.
const TOP: [&str; 2] = ["init_top_pgt", "init_level4_pgt"];

fn vmcoreinfo(
    input: &ViewInput<'_>,
    image: &KernelImage,
    symbols: &kallsyms::Kallsyms,
) -> Option<Anchor> {
    let pa = |name: &str| {
        let va = symbols.find(name)?.address.0;
        Some(PhysAddr(va.wrapping_sub(image.delta)))
    };
    // The variable lies in the image, the page that it points at in the map of all memory.
    let mut raw = [0; 8];
    input
        .memory
        .read_phys(pa("vmcoreinfo_data")?, &mut raw)
        .ok()?;
    let top = TOP.iter().find_map(|name| pa(name))?;
    let va = VirtAddr(u64::from_le_bytes(raw));
    let at = walk(input.memory, &image.shape, Dtb(top.0), va).ok()?;
    let mut block = vec![0; TABLE];
    input.memory.read_phys(at.pa, &mut block).ok()?;
    let text = |b: &u8| (0x20..0x7f).contains(b) || matches!(b, b'\t' | b'\n');
    let end = block.iter().position(|b| !text(b)).unwrap_or(block.len());
    block.truncate(end);
    block.starts_with(b"OSRELEASE=").then_some(())?;
    Some(Anchor {
        kind: "vmcoreinfo".into(),
        image_offset: input.runs.from_phys(at.pa)?.0,
        data: block,
    })
}
