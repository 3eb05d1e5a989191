//! Addresses that are physical ones plus a constant: the kernel's image, and its map of all memory.
//!
//! ```text
//! image    virtual = physical + delta                               VMCOREINFO: phys_base, kimage_voffset
//! memory   virtual = physical + page_offset_base                    x86-64
//!          virtual = physical - PHYS_OFFSET + PAGE_OFFSET           arm64; PAGE_OFFSET = -(1 << VA_BITS)
//! ```
//!
//! With them a kernel is read whose page tables are missing or overwritten.
//!
//! Sources: Linux `arch/x86/include/asm/page_64.h`, `Documentation/arch/x86/x86_64/mm.rst`,
//! `arch/arm64/include/asm/memory.h`.

use crate::input::ViewInput;
use ramsift_layers::PhysAddr;
use ramsift_symbols::{SymbolTable, VmCoreInfo};
use std::ops::Range;

/// Bytes of an image whose end is not known.
const IMAGE: u64 = 48 << 20;
/// Where the map of all memory begins without address randomisation, under four and five levels.
const PAGE_OFFSETS: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];
/// Randomised bases are multiples of this (`PUD_SIZE`).
const STEP: u64 = 1 << 30;
/// Kernel addresses begin here.
const KERNEL: u64 = 0xff00_0000_0000_0000;

/// Virtual addresses, and what to take off for the physical ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Linear {
    stretches: Vec<(Range<u64>, u64)>,
}

impl Linear {
    /// The physical address of a virtual one by arithmetic alone.
    pub(super) fn translate(&self, va: u64) -> Option<PhysAddr> {
        let of = self.stretches.iter().find(|(r, _)| r.contains(&va))?;
        Some(PhysAddr(va.wrapping_sub(of.1)))
    }
}

/// What is linear in a kernel.
pub(super) fn of(
    input: &ViewInput<'_>,
    info: &VmCoreInfo,
    symbols: &SymbolTable,
    delta: u64,
) -> Linear {
    let mut out = Linear::default();
    let at = |name: &str| {
        symbols
            .address(name)
            .map(|a| a.0)
            .or_else(|| info.symbol(name))
    };
    if let Some(start) = at("_text").or_else(|| at("_stext")) {
        let start = start & !0xfff;
        let end = at("_end").filter(|e| *e > start && e - start < 1 << 30);
        out.stretches
            .push((start..end.unwrap_or(start.saturating_add(IMAGE)), delta));
    }
    let runs = input.runs.runs();
    let memory = runs
        .iter()
        .map(|r| r.pa.saturating_add(r.len))
        .max()
        .unwrap_or(0);
    let base = match (info.number("VA_BITS"), info.number("PHYS_OFFSET")) {
        (Some(bits @ 36..=52), Some(first)) => Some((u64::MAX << bits).wrapping_sub(first)),
        _ => page_offset(input, at("page_offset_base"), delta),
    };
    if let Some(base) = base {
        out.stretches
            .push((base..base.saturating_add(memory), base));
    }
    out
}

/// Where the map of all memory begins on x86-64: as the kernel says, or where it is without randomisation.
fn page_offset(input: &ViewInput<'_>, variable: Option<u64>, delta: u64) -> Option<u64> {
    let mut raw = [0; 8];
    let va = variable?;
    let read = input
        .memory
        .read_phys(PhysAddr(va.wrapping_sub(delta)), &mut raw);
    let told = read.ok().map(|()| u64::from_le_bytes(raw));
    told.filter(|b| *b >= KERNEL && b.is_multiple_of(STEP))
        .or_else(|| PAGE_OFFSETS.first().copied())
}
