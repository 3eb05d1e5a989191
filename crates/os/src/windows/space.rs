//! Virtual memory as Windows translates it: through page tables, and through entries that are not present and lead
//! somewhere all the same.
//!
//! ```text
//! bit 0                      valid: the processor's own format
//! bit 11, bit 10 clear       transition: the page is still in RAM, on its way out or in
//! bit 10                     prototype: bits 63:16 are the address of the entry that counts; all ones: in the VAD
//! bits 63:32, page file bits in a page file; zero: demand zero
//! ```
//!
//! From Windows 10 1803 on an entry whose swizzle bit (4) is clear has the bits of `MiInvalidPteMask` set in its page number,
//! so that a speculating processor reads nothing through it (L1 terminal fault).
//!
//! Sources: the public types `_MMPTE_TRANSITION`, `_MMPTE_PROTOTYPE`, `_MMPTE_SOFTWARE`, `_MMPTE_SUBSECTION`; Intel SDM
//! volume 3, 4.5.

use super::page_files::PageFiles;
use ramsift_layers::translate::{PhysError, PhysRead, Shape, TranslateError, walk};
use ramsift_layers::{Dtb, PhysAddr, VirtAddr};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Why virtual memory could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// A table above the page is not there, or can't be read.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// The page is in a page file.
    #[error("virtual address {va:#x} is in page file {file}, at page {page:#x}")]
    PageFile {
        /// The address.
        va: u64,
        /// Number of the page file.
        file: u8,
        /// Page in it.
        page: u64,
    },
    /// The page is compressed, in the store of a process: its page file is on no disk.
    #[error(
        "virtual address {va:#x} is compressed: page {page:#x} of the store behind page file {file}, which is not unpacked"
    )]
    Compressed {
        /// The address.
        va: u64,
        /// Number of the page file.
        file: u8,
        /// Page in it.
        page: u64,
    },
    /// The page is in a page file, and the one at hand is another machine's.
    #[error(
        "virtual address {va:#x} is in page file {file}, at page {page:#x}; the one at hand is not this machine's"
    )]
    ForeignPageFile {
        /// The address.
        va: u64,
        /// Number of the page file.
        file: u8,
        /// Page in it.
        page: u64,
    },
    /// The page is in a page file, and the one at hand is too short.
    #[error(
        "virtual address {va:#x} is in page file {file}, at page {page:#x}; the one at hand has {pages:#x} pages"
    )]
    PastPageFile {
        /// The address.
        va: u64,
        /// Number of the page file.
        file: u8,
        /// Page in it.
        page: u64,
        /// Pages of the one at hand.
        pages: u64,
    },
    /// The page was never written: it is all zeros when somebody reads it.
    #[error("virtual address {va:#x} is demand zero")]
    DemandZero {
        /// The address.
        va: u64,
    },
    /// The page is in a file that is mapped there.
    #[error("virtual address {va:#x} is in the mapped file, by the subsection at {subsection:#x}")]
    Mapped {
        /// The address.
        va: u64,
        /// The `_SUBSECTION`.
        subsection: u64,
    },
    /// The entry has a form that is not known.
    #[error("virtual address {va:#x} is not present: its entry is {entry:#x}")]
    Unknown {
        /// The address.
        va: u64,
        /// The entry.
        entry: u64,
    },
    /// The image does not hold the page.
    #[error("virtual address {va:#x}: {source}")]
    Phys {
        /// The address.
        va: u64,
        /// What is missing.
        source: PhysError,
    },
}

impl PageError {
    /// Number of the page file, and the page in it, of a page that is in one and not at hand.
    pub(super) fn in_page_file(&self) -> Option<(u8, u64)> {
        match *self {
            Self::PageFile { file, page, .. }
            | Self::Compressed { file, page, .. }
            | Self::ForeignPageFile { file, page, .. }
            | Self::PastPageFile { file, page, .. } => Some((file, page)),
            _ => None,
        }
    }
}

const PAGE: u64 = 4096;
/// Prototype entries that one translation follows, each in memory that another leads to.
const FOLLOWED: u32 = 8;
/// Translations kept at a time; they are forgotten together.
const KEPT: usize = 64 << 10;
/// Bits 47:12, which hold a page's number.
const NUMBER: u64 = 0x0000_ffff_ffff_f000;
const PROTOTYPE: u64 = 1 << 10;
const TRANSITION: u64 = 1 << 11;
const SWIZZLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;

/// What the entries of a build look like, and where those lead that are in page files.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// Bits that are set in the page numbers of entries without the swizzle bit.
    pub(super) invalid_mask: u64,
    /// First bit of the page file's number.
    pub(super) page_file_low: u32,
    pub(super) page_files: Rc<PageFiles>,
}

/// An address space.
pub struct Space<'a> {
    memory: &'a dyn PhysRead,
    shape: Shape,
    dtb: Dtb,
    entries: Entries,
    known: RefCell<HashMap<u64, u64>>,
    /// Prototype entries that are being followed: forged ones lead to each other.
    following: Cell<u32>,
}

impl std::fmt::Debug for Space<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space({}, {})", self.shape.name, self.dtb.0)
    }
}

impl<'a> Space<'a> {
    /// The space below the table at `dtb`, whose low bits are flags.
    pub(super) fn new(memory: &'a dyn PhysRead, shape: Shape, dtb: u64) -> Self {
        Self {
            memory,
            shape,
            dtb: Dtb(dtb & NUMBER),
            entries: Entries {
                page_file_low: 1,
                ..Entries::default()
            },
            known: RefCell::default(),
            following: Cell::default(),
        }
    }

    pub(super) fn with_entries(mut self, entries: Entries) -> Self {
        self.entries = entries;
        self
    }

    /// The same machine below another table: the memory of a process.
    pub fn with_table(&self, dtb: u64) -> Space<'a> {
        Self::new(self.memory, self.shape, dtb).with_entries(self.entries.clone())
    }

    /// Where its top table lies.
    pub fn dtb(&self) -> Dtb {
        self.dtb
    }

    /// The shape of its tables.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Physical memory.
    pub fn memory(&self) -> &'a dyn PhysRead {
        self.memory
    }

    /// The page files of the machine.
    pub(super) fn page_files(&self) -> &PageFiles {
        &self.entries.page_files
    }

    /// Forgets translations.
    pub(super) fn forget(&self) {
        self.known.borrow_mut().clear();
    }

    /// The physical address of a virtual one. Pages of page files at hand have addresses of their own
    /// ([`ramsift_layers::page_file`]).
    pub fn translate(&self, va: u64) -> Result<PhysAddr, PageError> {
        let (page, inside) = (va & !(PAGE - 1), va & (PAGE - 1));
        if let Some(pa) = self.known.borrow().get(&page) {
            return Ok(PhysAddr(pa + inside));
        }
        let pa = match walk(self.memory, &self.shape, self.dtb, VirtAddr(page)) {
            Ok(t) => t.pa.0,
            Err(TranslateError::NotPresent {
                level: 1, entry, ..
            }) => self.software(page, entry, true)?,
            Err(TranslateError::NotPresent { level, entry, .. }) if level > 1 && entry != 0 => {
                self.below(page, level, entry)?
            }
            Err(e) => return Err(e.into()),
        };
        let mut known = self.known.borrow_mut();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(page, pa);
        Ok(PhysAddr(pa + inside))
    }

    /// Goes on below an entry of a level that the processor calls not present: tables are written out as other pages are.
    fn below(&self, va: u64, mut level: usize, mut entry: u64) -> Result<u64, PageError> {
        loop {
            let present = entry & 1 != 0;
            let bits = 12 + 9 * (level - 1);
            if present && level <= 3 && entry & LARGE != 0 {
                let inside = (1u64 << bits) - 1;
                return Ok((entry & NUMBER & !inside) | (va & inside));
            }
            let table = match present {
                true => entry & NUMBER,
                false => self.software(va, entry, false)?,
            };
            level -= 1;
            let index = va >> (bits - 9) & 511;
            let mut raw = [0; 8];
            let read = self.memory.read_phys(PhysAddr(table + index * 8), &mut raw);
            read.map_err(|source| PageError::Phys { va, source })?;
            entry = u64::from_le_bytes(raw);
            if level == 1 {
                return match entry & 1 != 0 {
                    true => Ok(entry & NUMBER),
                    false => self.software(va, entry, true),
                };
            }
        }
    }

    /// The page of an entry that the processor calls not present. Of a prototype entry the one that it leads to counts,
    /// once.
    pub(super) fn software(&self, va: u64, entry: u64, follow: bool) -> Result<u64, PageError> {
        if entry & PROTOTYPE != 0 {
            let at = ((entry.cast_signed()) >> 16).cast_unsigned();
            if !follow {
                return Err(PageError::Mapped { va, subsection: at });
            }
            // All ones: the VAD knows the entry.
            if at == 0xffff_ffff || at == u64::MAX {
                return Err(PageError::Unknown { va, entry });
            }
            let depth = self.following.get();
            if depth >= FOLLOWED {
                return Err(PageError::Unknown { va, entry });
            }
            self.following.set(depth + 1);
            let counts = self.u64(at);
            self.following.set(depth);
            let counts = counts?;
            if counts & 1 != 0 {
                return Ok(counts & NUMBER);
            }
            return self.software(va, counts, false);
        }
        if entry & TRANSITION != 0 {
            return Ok(self.unmasked(entry) & NUMBER);
        }
        if entry >> 12 == 0 {
            return Err(PageError::DemandZero { va });
        }
        let page = self.unmasked(entry) >> 32;
        let file = (entry >> self.entries.page_file_low & 0xf) as u8;
        if page == 0 {
            return Err(PageError::DemandZero { va });
        }
        self.entries.page_files.place(va, file, page)
    }

    /// The physical page that an entry leads to, wherever the entry stands: it is present, in transition, or in a page file at
    /// hand. Nothing is followed further.
    pub(super) fn resident(&self, entry: u64) -> Option<u64> {
        if entry & 1 != 0 {
            return Some(entry & NUMBER);
        }
        if entry & PROTOTYPE != 0 {
            return None;
        }
        self.software(0, entry, false).ok()
    }

    fn unmasked(&self, entry: u64) -> u64 {
        if self.entries.invalid_mask != 0 && entry & SWIZZLE == 0 {
            entry & !self.entries.invalid_mask
        } else {
            entry
        }
    }

    /// Fills `buf` from `va`, all of it or nothing that counts.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), PageError> {
        let mut done = 0;
        while done < buf.len() {
            let at = va.wrapping_add(done as u64);
            let left = usize::try_from(PAGE - (at & (PAGE - 1))).unwrap_or(usize::MAX);
            let n = left.min(buf.len() - done);
            let pa = self.translate(at)?;
            let read = self.memory.read_phys(pa, &mut buf[done..done + n]);
            read.map_err(|source| PageError::Phys { va: at, source })?;
            done += n;
        }
        Ok(())
    }

    /// A 64-bit number.
    pub fn u64(&self, va: u64) -> Result<u64, PageError> {
        let mut raw = [0; 8];
        self.read(va, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// A 32-bit number.
    pub fn u32(&self, va: u64) -> Result<u32, PageError> {
        let mut raw = [0; 4];
        self.read(va, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// UTF-16 text of this many bytes.
    pub fn utf16(&self, va: u64, bytes: usize) -> Result<String, PageError> {
        let mut raw = vec![0; bytes & !1];
        self.read(va, &mut raw)?;
        Ok(wide(&raw))
    }
}

/// UTF-16 text up to its NUL; what is none is replaced.
pub(super) fn wide(raw: &[u8]) -> String {
    let units = raw
        .as_chunks::<2>()
        .0
        .iter()
        .map(|u| u16::from_le_bytes(*u));
    let units: Vec<u16> = units.take_while(|u| *u != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::translate::X86_64;
    use std::collections::BTreeMap;

    /// Words of physical memory below 1 MiB.
    struct Words(BTreeMap<u64, u64>);

    impl PhysRead for Words {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            if pa.0 >= 1 << 20 {
                return Err(PhysError::NotInImage { pa });
            }
            for (i, b) in buf.chunks_mut(8).enumerate() {
                let v = self.0.get(&(pa.0 + i as u64 * 8)).copied().unwrap_or(0);
                b.copy_from_slice(&v.to_le_bytes()[..b.len()]);
            }
            Ok(())
        }
    }

    /// One table of each level; the entries of the last are those given.
    fn machine(last: &[u64]) -> Words {
        let mut w = BTreeMap::from([(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067)]);
        for (i, e) in last.iter().enumerate() {
            w.insert(0x4000 + i as u64 * 8, *e);
        }
        w.insert(0x9000, 0x1122_3344);
        // What is at address 8 counts as an entry: page 0xa000 is there.
        w.insert(0x9008, 0xa063);
        Words(w)
    }

    #[test]
    fn entries_that_are_not_present_say_where_the_page_is() {
        // As the public types have them: transition is bit 11, prototype bit 10, the address from bit 16 on.
        let words = machine(&[
            0x9880,
            0x8_0400,
            0,
            0x0000_0007_0000_0084,
            0x00c0,
            0xffff_ffff_ffff_0400,
        ]);
        let s = Space::new(&words, X86_64, 0x1002);
        assert_eq!(s.u64(0).expect("there"), 0x1122_3344, "transition");
        assert_eq!(
            s.translate(0x1004).expect("there"),
            PhysAddr(0xa004),
            "prototype"
        );
        let e = s.translate(0x2000).expect_err("not there");
        assert!(matches!(e, PageError::DemandZero { .. }), "{e}");
        let e = s.translate(0x3000).expect_err("not there");
        let PageError::PageFile { file, page, .. } = e else {
            panic!("{e}");
        };
        assert_eq!((file, page), (2, 7));
        assert!(s.translate(0x4000).is_err());
        let e = s.translate(0x5000).expect_err("not there");
        assert!(matches!(e, PageError::Unknown { .. }), "{e}");
    }

    #[test]
    fn entries_that_lead_to_each_other_end() {
        // Each prototype entry is said to lie in the page that it stands for, or in that of the other.
        let words = machine(&[0x8_0400, 0x1008_0400, 0x2000_0400, 0x3000_0400]);
        let s = Space::new(&words, X86_64, 0x1000);
        for va in [0x1000, 0x2000, 0x3000] {
            let e = s.translate(va).expect_err("nowhere");
            assert!(
                matches!(e, PageError::Unknown { .. } | PageError::Phys { .. }),
                "{va:#x} {e}"
            );
        }
    }

    #[test]
    fn tables_in_transition_are_followed() {
        let mut words = machine(&[0x9063]);
        // The table of the first level is on its way out.
        words.0.insert(0x3000, 0x4880);
        let s = Space::new(&words, X86_64, 0x1000);
        assert_eq!(s.translate(4).expect("there"), PhysAddr(0x9004));
    }

    #[test]
    fn the_mask_is_taken_off_unless_the_entry_is_swizzled() {
        let mask = 1 << 45;
        let words = machine(&[0x9880 | mask, 0x9880 | mask | SWIZZLE]);
        let s = Space::new(&words, X86_64, 0x1000).with_entries(Entries {
            invalid_mask: mask,
            page_file_low: 12,
            ..Entries::default()
        });
        assert_eq!(s.translate(8).expect("there"), PhysAddr(0x9008));
        assert_eq!(s.translate(0x1000).expect("there"), PhysAddr(0x9000 | mask));
    }

    #[test]
    fn text_ends_with_its_nul() {
        assert_eq!(wide(b"a\0\xe4\0\0\0x\0"), "aä");
    }
}
