//! Pages of a process: what its tables map, and what lies in RAM although the processor calls it not present.
//!
//! ```text
//! valid entry                  a page of the process, or of a section that it touched
//! transition                   a page of the process on its way out
//! in a page file               a page that was written out, where the file is at hand
//! prototype                    the entry of the section that counts
//! ```
//!
//! Source: as in `space.rs`.

use super::{PageError, Space};
use ramsift_layers::PhysAddr;
use std::ops::Range;

/// Something in the tables of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A page of the tables.
    Table { pa: u64 },
    /// A page, or several side by side.
    Page { va: u64, pa: u64, len: u64 },
}

const PAGE: u64 = 4096;
/// Bits 47:12.
const NUMBER: u64 = 0x0000_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const PROTOTYPE: u64 = 1 << 10;

struct Visit<'v> {
    space: &'v Space<'v>,
    range: &'v Range<u64>,
    budget: &'v mut usize,
    visit: &'v mut dyn FnMut(Result<Place, PageError>) -> bool,
    unread: usize,
}

/// Visits what the tables of a space lead to in a range of addresses, by address. Gives how many pages of tables could not be
/// read. Tables may lead in circles: `budget` is how many pages of them may still be read. The visit ends when it is used up,
/// or when the visitor has enough.
pub(super) fn places(
    space: &Space<'_>,
    range: &Range<u64>,
    budget: &mut usize,
    visit: &mut dyn FnMut(Place) -> bool,
) -> usize {
    places_and_lacks(space, range, budget, &mut |m| m.map_or(true, &mut *visit))
}

/// The same, and why pages are not there that entries tell of.
pub(super) fn places_and_lacks(
    space: &Space<'_>,
    range: &Range<u64>,
    budget: &mut usize,
    visit: &mut dyn FnMut(Result<Place, PageError>) -> bool,
) -> usize {
    let mut v = Visit {
        space,
        range,
        budget,
        visit,
        unread: 0,
    };
    let levels = u32::try_from(space.shape().levels()).unwrap_or(4);
    v.table(space.dtb().0, levels, 0);
    v.unread
}

impl Visit<'_> {
    fn tell(&mut self, place: Place) {
        if !(self.visit)(Ok(place)) {
            *self.budget = 0;
        }
    }

    fn lacks(&mut self, why: PageError) {
        if !(self.visit)(Err(why)) {
            *self.budget = 0;
        }
    }

    /// A table of a level, 1 being that of pages; `base` is the first address that it covers.
    fn table(&mut self, pa: u64, level: u32, base: u64) {
        if *self.budget == 0 {
            return;
        }
        *self.budget -= 1;
        let mut raw = [0; 4096];
        if self
            .space
            .memory()
            .read_phys(PhysAddr(pa), &mut raw)
            .is_err()
        {
            self.unread += 1;
            return;
        }
        self.tell(Place::Table { pa });
        let step = PAGE << (9 * (level - 1));
        for (i, e) in raw.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*e);
            if *self.budget == 0 {
                break;
            }
            let mut va = base + i as u64 * step;
            // The upper half has the sign of its highest bit.
            let bits = 12 + 9 * u32::try_from(self.space.shape().levels()).unwrap_or(4);
            if va >> (bits - 1) & 1 != 0 {
                va |= u64::MAX << bits;
            }
            if va >= self.range.end {
                break;
            }
            if entry == 0 || va.saturating_add(step) <= self.range.start {
                continue;
            }
            let is_present = entry & PRESENT != 0;
            match level {
                1 => {
                    let page = if is_present {
                        Ok(entry & NUMBER)
                    } else {
                        self.space.software(va, entry, true)
                    };
                    match page {
                        Ok(pa) => self.tell(Place::Page { va, pa, len: PAGE }),
                        Err(e) => self.lacks(e),
                    }
                }
                2 | 3 if is_present && entry & LARGE != 0 => {
                    let pa = entry & NUMBER & !(step - 1);
                    self.tell(Place::Page { va, pa, len: step });
                }
                // The entry that leads to the top table itself shows tables as pages.
                _ if pa == self.space.dtb().0 && entry & NUMBER == pa => {}
                // A table that is in transition, or in a page file at hand, is still there.
                _ if is_present || entry & PROTOTYPE == 0 => {
                    let table = match is_present {
                        true => Ok(entry & NUMBER),
                        false => self.space.software(va, entry, false),
                    };
                    match table {
                        Ok(pa) => self.table(pa, level - 1, base + i as u64 * step),
                        Err(e) => self.lacks(e),
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::translate::{PhysError, PhysRead, X86_64};

    /// Tables in the first MiB: words by their addresses.
    struct Words(Vec<(u64, u64)>);

    impl PhysRead for Words {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            if pa.0 >= 1 << 20 {
                return Err(PhysError::NotInImage { pa });
            }
            buf.fill(0);
            for (at, v) in &self.0 {
                if let Some(i) = at.checked_sub(pa.0).filter(|i| *i + 8 <= buf.len() as u64) {
                    buf[i as usize..i as usize + 8].copy_from_slice(&v.to_le_bytes());
                }
            }
            Ok(())
        }
    }

    fn all(words: &Words, budget: &mut usize) -> (Vec<Place>, usize) {
        let s = Space::new(words, X86_64, 0x1000);
        let mut out = Vec::new();
        let unread = places(&s, &(0..1 << 47), budget, &mut |p| {
            out.push(p);
            true
        });
        (out, unread)
    }

    #[test]
    fn pages_that_are_on_their_way_out_count_and_what_is_not_there_does_not() {
        let words = Words(vec![
            (0x1000, 0x2067),
            // The upper half is the kernel's.
            (0x1000 + 8 * 256, 0x2067),
            (0x2000, 0x3067),
            // A large page, a table in transition, a table that the image lacks.
            (0x3000, 0x0020_00e7),
            (0x3008, 0x4880),
            (0x3010, 0x4000_0067),
            (0x4000, 0x9067),
            (0x4008, 0xa880),
            (0x4010, 0x0000_0007_0000_0084),
        ]);
        let page = |va, pa, len| Place::Page { va, pa, len };
        let (got, unread) = all(&words, &mut 100);
        let want = [
            Place::Table { pa: 0x1000 },
            Place::Table { pa: 0x2000 },
            Place::Table { pa: 0x3000 },
            page(0, 0x20_0000, 2 << 20),
            Place::Table { pa: 0x4000 },
            page(0x20_0000, 0x9000, PAGE),
            page(0x20_1000, 0xa000, PAGE),
        ];
        assert_eq!(got, want);
        assert_eq!(unread, 1);
    }

    #[test]
    fn tables_that_lead_in_circles_end() {
        // Two tables that lead to each other.
        let both = [(0x1000, 0x2067), (0x2000, 0x1067)];
        let all_of = |(at, e): (u64, u64)| (0..512).map(move |i| (at + i * 8, e));
        let words = Words(both.into_iter().flat_map(all_of).collect());
        let mut budget = 100;
        all(&words, &mut budget);
        assert_eq!(budget, 0);
    }
}
