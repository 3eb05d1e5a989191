//! `struct page`: what the allocator says of each page.
//!
//! ```text
//! vmemmap_base + page number * SIZE(page)
//!   flags        PG_slab (until 6.11), PG_head
//!   _mapcount    a page type where nothing maps the page: free (buddy), slab (from 6.12)
//!   private      of a free page: the order of its block
//!   compound_head, compound_info   of a tail page: address of the head page, or a mask, plus 1
//! ```
//!
//! Sources: Linux `include/linux/page-flags.h`, `kernel/crash_core.c` (what VMCOREINFO tells),
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use crate::frames::PageState;
use crate::linux::{Kernel, LinuxError};

/// The array of `struct page`.
#[derive(Debug)]
pub struct PageStates<'k> {
    kernel: &'k Kernel<'k>,
    base: u64,
    size: u64,
    mapcount: usize,
    private: usize,
    head: usize,
    slab_bit: Option<u32>,
    free: u32,
    slab: Option<u32>,
}

/// Orders of free blocks are below this.
const ORDERS: u64 = 16;
/// Addresses of the array are below this, masks above.
const MASKS: u64 = 0xffff_ffff_0000_0000;
/// Structs read at a time.
const BATCH: u64 = 1024;

impl<'k> PageStates<'k> {
    /// Finds the array.
    pub fn new(kernel: &'k Kernel<'_>) -> Result<Self, LinuxError> {
        let info = &kernel.info;
        let base = kernel.vmemmap()?;
        let types = kernel.symbols.types();
        let at = |path: &str| -> Result<usize, LinuxError> {
            let offset = types.field("page", path)?.offset;
            Ok(usize::try_from(offset).unwrap_or(usize::MAX))
        };
        let word = |name: &str| info.number(name).map(|n| (n & 0xffff_ffff) as u32);
        let head = if types.has_field("page", "compound_head") {
            at("compound_head")?
        } else {
            at("compound_info")?
        };
        let slab_type = word("PAGE_SLAB_MAPCOUNT_VALUE");
        Ok(Self {
            kernel,
            base,
            size: types.size_of("page")?,
            mapcount: at("_mapcount")?,
            private: at("private")?,
            head,
            slab_bit: word("PG_slab").filter(|_| slab_type.is_none()),
            free: word("PAGE_BUDDY_MAPCOUNT_VALUE")
                .ok_or(LinuxError::Symbol("PAGE_BUDDY_MAPCOUNT_VALUE"))?,
            slab: slab_type,
        })
    }

    /// The states of pages from a physical address on. `Used` where nothing can be read.
    pub fn states(&self, from: u64, count: u64) -> Vec<PageState> {
        let first = from / 4096;
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut out = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        let mut free_until = 0;
        let mut buf = Vec::new();
        let mut at = 0;
        while at < count {
            // Batches end where pages of the array do, so that a hole costs no neighbours.
            let n = (BATCH - (first + at) % BATCH).min(count - at);
            buf.resize(usize::try_from(n).unwrap_or(0) * size, 0);
            let va = self.base.wrapping_add((first + at).wrapping_mul(self.size));
            if self.kernel.space.read(va, &mut buf).is_err() {
                self.piecewise(va, &mut buf);
            }
            for (i, page) in buf.chunks_exact(size).enumerate() {
                let number = at + i as u64;
                let state = self.state(page, number, first, &mut free_until, &out);
                out.push(state);
            }
            at += n;
        }
        out
    }

    /// Reads page by page where a whole batch can't be had.
    fn piecewise(&self, va: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = va.wrapping_add(done as u64);
            let left = usize::try_from(4096 - at % 4096).unwrap_or(4096);
            let n = left.min(buf.len() - done);
            let piece = &mut buf[done..done + n];
            if self.kernel.space.read(at, piece).is_err() {
                piece.fill(0);
            }
            done += n;
        }
    }

    fn state(
        &self,
        page: &[u8],
        number: u64,
        first: u64,
        free_until: &mut u64,
        before: &[PageState],
    ) -> PageState {
        if number < *free_until {
            return PageState::Free;
        }
        let u32_at = |at: usize| {
            let b = page.get(at..).and_then(|b| b.first_chunk());
            b.map_or(0, |b| u32::from_le_bytes(*b))
        };
        let u64_at = |at: usize| {
            let b = page.get(at..).and_then(|b| b.first_chunk());
            b.map_or(0, |b| u64::from_le_bytes(*b))
        };
        let is = |value: u32, kind: u32| {
            // From 6.10 on the type is the upper byte alone.
            value == kind || (kind & 0x00ff_ffff == 0 && value & 0xff00_0000 == kind)
        };
        let kind = u32_at(self.mapcount);
        if is(kind, self.free) {
            let order = u64_at(self.private);
            if order < ORDERS {
                *free_until = number + (1 << order);
            }
            return PageState::Free;
        }
        let head = u64_at(self.head);
        if head & 1 == 1 {
            // A tail page is what its head is. Since 7.0 the word is a mask of the tail's own
            // address, where the size of the struct is a power of two.
            let own = self
                .base
                .wrapping_add((first + number).wrapping_mul(self.size));
            let head = if head >= MASKS { own & head } else { head - 1 };
            let index = head.wrapping_sub(self.base) / self.size.max(1);
            let index = index
                .checked_sub(first)
                .and_then(|i| usize::try_from(i).ok());
            if let Some(s) = index.and_then(|i| before.get(i)) {
                return *s;
            }
        }
        let flags = u64_at(0);
        let slab = self.slab_bit.is_some_and(|b| b < 64 && flags >> b & 1 == 1)
            || self.slab.is_some_and(|s| is(kind, s));
        if slab {
            PageState::Slab
        } else {
            PageState::Used
        }
    }
}
