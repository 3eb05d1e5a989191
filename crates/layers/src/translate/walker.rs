//! The page walk, for every table whose shape can be written down as data.

use super::{PhysError, PhysRead};
use crate::{Dtb, PhysAddr, VirtAddr};

/// The shape of a page table with 8-byte entries.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// A name for messages and tables.
    pub name: &'static str,
    /// Index bits of each level, top first; then the page's own bits.
    pub bits: &'static [u32],
    /// An entry with these bits clear is not present.
    pub present: u64,
    /// Bits of an entry that hold an address.
    pub address: u64,
    /// Whether an entry above the last level ends the walk. Takes the entry and how many levels
    /// lie below.
    pub is_block: fn(u64, usize) -> bool,
}

impl Shape {
    /// Bits of a virtual address that the table translates.
    pub fn va_bits(&self) -> u32 {
        self.bits.iter().sum()
    }

    /// Levels of the table.
    pub fn levels(&self) -> usize {
        self.bits.len() - 1
    }
}

/// Where a virtual address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Its physical address.
    pub pa: PhysAddr,
    /// Bytes of the page that holds it.
    pub page: u64,
    /// The entry that maps it, with its flags.
    pub entry: u64,
}

/// Why a virtual address has no physical one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranslateError {
    /// An entry says that nothing is mapped here.
    #[error("virtual address {va} is not present: level {level} entry is {entry:#x}")]
    NotPresent {
        /// The address.
        va: VirtAddr,
        /// Level of the entry, 1 is the last.
        level: usize,
        /// The entry.
        entry: u64,
    },
    /// A table can't be read.
    #[error(transparent)]
    Phys(#[from] PhysError),
}

/// Walks the table at `dtb` for `va`. Bits above the table's reach are ignored.
pub fn walk(
    memory: &dyn PhysRead,
    shape: &Shape,
    dtb: Dtb,
    va: VirtAddr,
) -> Result<Translation, TranslateError> {
    let mut table = dtb.0 & shape.address;
    let mut below: u32 = shape.va_bits();
    for (i, bits) in shape.bits[..shape.levels()].iter().enumerate() {
        below -= bits;
        let index = va.0 >> below & ((1 << bits) - 1);
        let mut raw = [0; 8];
        memory.read_phys(PhysAddr(table + index * 8), &mut raw)?;
        let entry = u64::from_le_bytes(raw);
        let level = shape.levels() - i;
        if entry & shape.present != shape.present {
            return Err(TranslateError::NotPresent { va, level, entry });
        }
        let address = entry & shape.address;
        if level == 1 || (shape.is_block)(entry, level - 1) {
            let page = 1u64 << below;
            let pa = PhysAddr((address & !(page - 1)) | (va.0 & (page - 1)));
            return Ok(Translation { pa, page, entry });
        }
        table = address;
    }
    Err(TranslateError::NotPresent {
        va,
        level: 0,
        entry: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{AARCH64_4K_48, X86_64, X86_64_LA57};
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Words(BTreeMap<u64, u64>);

    impl PhysRead for Words {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            let v = self.0.get(&pa.0).copied().unwrap_or(0);
            buf.copy_from_slice(&v.to_le_bytes()[..buf.len()]);
            Ok(())
        }
    }

    #[test]
    fn four_levels_of_x86_64_by_hand() {
        // Intel SDM volume 3, 4.5: indices are bits 47:39, 38:30, 29:21, 20:12.
        let va = VirtAddr(0xffff_8880_1234_5678);
        let mut w = Words::default();
        w.0.insert(0x1000 + 0x111 * 8, 0x2003);
        w.0.insert(0x2000, 0x3003);
        w.0.insert(0x3000 + 0x91 * 8, 0x4003);
        w.0.insert(0x4000 + 0x145 * 8, 0x8000_0000_0777_7063);
        let t = walk(&w, &X86_64, Dtb(0x1000), va).expect("mapped");
        assert_eq!((t.pa, t.page), (PhysAddr(0x0777_7678), 4096));
        // The same with a 2 MiB page at level 2.
        w.0.insert(0x3000 + 0x91 * 8, 0x0a00_0083);
        let t = walk(&w, &X86_64, Dtb(0x1000), va).expect("mapped");
        assert_eq!((t.pa, t.page), (PhysAddr(0x0a14_5678), 2 << 20));
        let e = walk(&w, &X86_64, Dtb(0x1000), VirtAddr(0)).expect_err("nothing there");
        assert!(matches!(e, TranslateError::NotPresent { level: 4, .. }));
    }

    #[test]
    fn five_levels_and_arm_blocks() {
        let mut w = Words::default();
        w.0.insert(0x1000 + 0x1ff * 8, 0x2003);
        w.0.insert(0x2000 + 0x1ff * 8, 0x3003);
        w.0.insert(0x3000 + 0x1fe * 8, 0x4000_0083);
        let va = VirtAddr(0xffff_ffff_8000_1234);
        let t = walk(&w, &X86_64_LA57, Dtb(0x1000), va).expect("mapped");
        assert_eq!((t.pa, t.page), (PhysAddr(0x4000_1234), 1 << 30));
        // Arm ARM D8.3: bits 1:0 are 01 for a block, 11 for a table.
        let mut w = Words::default();
        w.0.insert(0x1000, 0x2003);
        w.0.insert(0x2000 + 8, 0x4000_0701);
        let t = walk(&w, &AARCH64_4K_48, Dtb(0x1000), VirtAddr(0x4000_5678)).expect("mapped");
        assert_eq!((t.pa, t.page), (PhysAddr(0x4000_5678), 1 << 30));
    }
}
