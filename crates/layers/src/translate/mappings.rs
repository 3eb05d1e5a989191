//! Everything that a page table maps, in the order of virtual addresses.

use super::{PhysRead, Shape};
use crate::{Dtb, PhysAddr};
use std::ops::Range;

/// What a visit meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A page.
    Page {
        /// Its virtual address, of as many bits as the table translates.
        va: u64,
        /// Its physical address.
        pa: PhysAddr,
        /// Bytes.
        len: u64,
        /// The entry that maps it, with its flags.
        entry: u64,
    },
    /// A page of the table itself.
    Table {
        /// Its physical address.
        pa: PhysAddr,
        /// Its level, 1 is the last.
        level: usize,
    },
}

/// Bytes of a page that holds a table.
const TABLE: usize = 4096;

/// Visits everything that the table at `dtb` maps in a range of virtual addresses, the pages of
/// the table included. Parts of it that can't be read are passed over and counted.
///
/// A hostile table may lead to itself, and so to more pages than there is memory: `budget` is how
/// many pages of tables may still be read, and is counted down. The visit ends when it is used up.
pub fn mappings(
    memory: &dyn PhysRead,
    shape: &Shape,
    dtb: Dtb,
    range: Range<u64>,
    budget: &mut usize,
    visit: &mut dyn FnMut(Mapped),
) -> usize {
    let mut v = Visit {
        memory,
        shape,
        range,
        budget,
        visit,
        unread: 0,
    };
    v.table(dtb.0 & shape.address, 0, shape.va_bits(), 0);
    v.unread
}

struct Visit<'v> {
    memory: &'v dyn PhysRead,
    shape: &'v Shape,
    range: Range<u64>,
    budget: &'v mut usize,
    visit: &'v mut dyn FnMut(Mapped),
    unread: usize,
}

impl Visit<'_> {
    /// One table: `depth` below the top, its entries cover `1 << bits` addresses from `base`
    /// together. Recursion ends with the levels of the shape.
    fn table(&mut self, pa: u64, depth: usize, bits: u32, base: u64) {
        if *self.budget == 0 {
            return;
        }
        *self.budget -= 1;
        let level = self.shape.levels() - depth;
        let mut raw = [0; TABLE];
        if self.memory.read_phys(PhysAddr(pa), &mut raw).is_err() {
            self.unread += 1;
            return;
        }
        (self.visit)(Mapped::Table {
            pa: PhysAddr(pa),
            level,
        });
        let own = self.shape.bits[depth];
        let below = bits - own;
        let step = 1u64 << below;
        for (i, b) in raw.chunks_exact(8).take(1 << own).enumerate() {
            let va = base + i as u64 * step;
            if va >= self.range.end {
                break;
            }
            let entry = b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            if entry & self.shape.present != self.shape.present || va + step <= self.range.start {
                continue;
            }
            let address = entry & self.shape.address;
            if level == 1 || (self.shape.is_block)(entry, level - 1) {
                (self.visit)(Mapped::Page {
                    va,
                    pa: PhysAddr(address & !(step - 1)),
                    len: step,
                    entry,
                });
            } else {
                self.table(address, depth + 1, below, va);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PhysError, X86_64};
    use super::*;
    use std::collections::BTreeMap;

    struct Words(BTreeMap<u64, u64>);

    impl PhysRead for Words {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            if pa.0 >= 0x10_0000 {
                return Err(PhysError::NotInImage { pa });
            }
            for (i, b) in buf.chunks_exact_mut(8).enumerate() {
                let v = self.0.get(&(pa.0 + i as u64 * 8)).copied().unwrap_or(0);
                b.copy_from_slice(&v.to_le_bytes());
            }
            Ok(())
        }
    }

    fn pages(w: &Words, range: Range<u64>, budget: &mut usize) -> (Vec<(u64, u64, u64)>, usize) {
        let mut out = Vec::new();
        let unread = mappings(w, &X86_64, Dtb(0x1000), range, budget, &mut |m| {
            if let Mapped::Page { va, pa, len, .. } = m {
                out.push((va, pa.0, len));
            }
        });
        (out, unread)
    }

    #[test]
    fn small_and_large_pages_in_order() {
        // Intel SDM volume 3, 4.5: bit 7 of a level 2 entry maps 2 MiB.
        let w = Words(BTreeMap::from([
            (0x1000, 0x2007),
            (0x2000, 0x3007),
            (0x3000, 0x4007),
            (0x3008, 0x60_0087),
            (0x3010, 0x50_0007_u64 << 12 | 7),
            (0x4008, 0x9007),
            (0x4010, 0x8007),
        ]));
        let (got, unread) = pages(&w, 0..1 << 47, &mut 100);
        assert_eq!(
            got,
            [
                (0x1000, 0x9000, 4096),
                (0x2000, 0x8000, 4096),
                (0x20_0000, 0x60_0000, 2 << 20)
            ]
        );
        assert_eq!(unread, 1, "a table outside the image");
        let (got, _) = pages(&w, 0x2000..0x3000, &mut 100);
        assert_eq!(got, [(0x2000, 0x8000, 4096)]);
    }

    #[test]
    fn a_table_that_leads_to_itself_ends_with_the_budget() {
        let w = Words((0..512).map(|i| (0x1000 + i * 8, 0x1007)).collect());
        let mut budget = 1000;
        let (got, _) = pages(&w, 0..1 << 48, &mut budget);
        assert_eq!(budget, 0);
        assert!(got.len() <= 512 * 1000);
    }
}
