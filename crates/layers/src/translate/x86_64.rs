//! x86-64 paging with four and five levels.
//!
//! Source: Intel SDM volume 3, chapter 4.5: bit 0 is present, bit 7 above the last level ends the
//! walk with a large page (1 GiB at level 3, 2 MiB at level 2), bits 51:12 hold the address.

use super::Shape;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE: u64 = 1 << 7;

fn is_block(entry: u64, below: usize) -> bool {
    (1..=2).contains(&below) && entry & LARGE != 0
}

/// Four levels, 48-bit addresses.
pub const X86_64: Shape = Shape {
    name: "x86_64",
    bits: &[9, 9, 9, 9, 12],
    present: 1,
    address: ADDRESS,
    is_block,
};

/// Five levels, 57-bit addresses.
pub const X86_64_LA57: Shape = Shape {
    name: "x86_64 5-level",
    bits: &[9, 9, 9, 9, 9, 12],
    present: 1,
    address: ADDRESS,
    is_block,
};
