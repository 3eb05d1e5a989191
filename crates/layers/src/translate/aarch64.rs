//! AArch64 paging, 4 KiB granule, 48-bit addresses.
//!
//! Source: Arm Architecture Reference Manual, D8.3: bit 0 is valid, bit 1 tells a table (1) from a
//! block (0) above the last level, bits 47:12 hold the address.

use super::Shape;

fn is_block(entry: u64, below: usize) -> bool {
    (1..=2).contains(&below) && entry & 2 == 0
}

/// 4 KiB pages, four levels.
pub const AARCH64_4K_48: Shape = Shape {
    name: "aarch64",
    bits: &[9, 9, 9, 9, 12],
    present: 1,
    address: 0x0000_ffff_ffff_f000,
    is_block,
};
