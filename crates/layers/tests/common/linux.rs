//! Page tables of a machine with Linux.
#![allow(dead_code)]

use super::large::Large;
use std::collections::BTreeMap;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const P: u64 = 0x63;
const LARGE: u64 = 0xe3;

/// Page tables of a Linux machine with memory below `hole` and from 4 GiB to `end`: where tables lie, and how large its pages are, differs.
pub(crate) struct Linux {
    pub(crate) hole: u64,
    pub(crate) end: u64,
    /// Where the kernel's tables lie.
    pub(crate) kernel: u64,
    /// Where the tables of the map of all memory lie.
    pub(crate) tables: u64,
    /// Pages of 1 GiB where there is all of one.
    pub(crate) huge: bool,
    /// Memory at the end of what lies below the hole that firmware keeps.
    pub(crate) firmware: u64,
}

impl Linux {
    pub(crate) fn of(hole: u64, end: u64) -> Self {
        Self {
            hole,
            end,
            kernel: 0x280_0000,
            tables: end - 16 * MIB,
            huge: false,
            firmware: 128 * KIB,
        }
    }

    fn has(&self, pa: u64) -> bool {
        pa < self.hole - self.firmware || (4 * GIB..self.end).contains(&pa)
    }

    /// All tables by their physical addresses.
    pub(crate) fn pages(&self) -> BTreeMap<u64, [u64; 512]> {
        let mut all = BTreeMap::new();
        // Some pages behind the top table are those of the kernel's image.
        let image = self.kernel + 5 * 4096;
        let mut top = [0; 512];
        top[511] = image | P;
        top[273] = self.tables | P;
        top[402] = (self.tables + 0x1000) | P;
        all.insert(self.kernel, top);
        let mut low = [0; 512];
        low[511] = image | P;
        all.insert(0x9c000, low);
        let mut level3 = [0; 512];
        level3[510] = (image + 0x1000) | P;
        level3[511] = (image + 0x2000) | P;
        all.insert(image, level3);
        let mut text = [0; 512];
        text[8..24].copy_from_slice(&std::array::from_fn::<u64, 16, _>(|i| {
            (0x100_0000 + ((i as u64) << 21)) | LARGE
        }));
        all.insert(image + 0x1000, text);
        let mut fixed = [0; 512];
        fixed[507] = 0xfec0_0000 | LARGE;
        all.insert(image + 0x2000, fixed);
        // vmalloc: a table of its own, and what it leads to.
        let mut next = self.tables + 0x2000;
        let mut alone = [0; 512];
        for slot in alone.iter_mut().take(3) {
            *slot = next | P;
            let mut level2 = [0; 512];
            level2[0] = (next + 0x1000) | P;
            all.insert(next, level2);
            let mut level1 = [0; 512];
            level1[..4].copy_from_slice(&[0x500_0063, 0x501_0063, 0, 0x502_0063]);
            all.insert(next + 0x1000, level1);
            next += 0x2000;
        }
        all.insert(self.tables + 0x1000, alone);
        // The map of all memory, at the beginning of its entry.
        let mut gib = [0; 512];
        for (g, slot) in gib.iter_mut().enumerate() {
            let first = g as u64 * GIB;
            let pages: Vec<u64> = (0..512)
                .map(|i| first + i * 2 * MIB)
                .filter(|pa| self.has(*pa))
                .collect();
            let whole = pages.len() == 512 && self.has(first + GIB - 4096);
            if pages.is_empty() {
                continue;
            }
            if whole && self.huge {
                *slot = first | LARGE;
                continue;
            }
            *slot = next | P;
            let mut level2 = [0; 512];
            let at = next;
            next += 0x1000;
            for pa in pages {
                let i = ((pa - first) / (2 * MIB)) as usize;
                if self.has(pa + 2 * MIB - 4096) {
                    level2[i] = pa | LARGE;
                    continue;
                }
                level2[i] = next | P;
                let small = (0..512).map(|i| pa + i * 4096);
                let mut level1 = [0; 512];
                for (e, pa) in level1.iter_mut().zip(small) {
                    *e = if self.has(pa) { pa | P } else { 0 };
                }
                all.insert(next, level1);
                next += 0x1000;
            }
            all.insert(at, level2);
        }
        all.insert(self.tables, gib);
        all
    }

    /// The raw image, of which the hole was left out where `packed`; the bytes from `len` on are cut off.
    pub(crate) fn image(&self, packed: bool, len: u64) -> Large {
        let lacks = if packed { 4 * GIB - self.hole } else { 0 };
        let pieces = self.pages().into_iter().map(|(pa, t)| {
            let at = if pa >= 4 * GIB { pa - lacks } else { pa };
            (at, t.iter().flat_map(|e| e.to_le_bytes()).collect())
        });
        Large::object(len, pieces.filter(|(at, _)| *at < len).collect::<Vec<_>>())
    }

    pub(crate) fn len(&self) -> u64 {
        self.end - (4 * GIB - self.hole)
    }
}
