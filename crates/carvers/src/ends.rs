//! Where a mark stands, searched for once however many beginnings look for it.

use crate::source::Item;
use memchr::memmem;

/// Steps of the search.
const STEP: usize = 64 << 10;

/// What is remembered between the hits of one part.
#[derive(Debug)]
pub(crate) struct Seen {
    /// End records of archives.
    pub(crate) zip: Ends,
    /// Ends of documents.
    pub(crate) pdf: Ends,
    /// Headers of documents.
    pub(crate) pdf_headers: Ends,
    /// Event log chunks.
    pub(crate) evtx: crate::evtx::Memory,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            zip: Ends::of(b"PK\x05\x06"),
            pdf: Ends::of(b"%%EOF"),
            pdf_headers: Ends::of(b"%PDF-"),
            evtx: crate::evtx::Memory::default(),
        }
    }
}

/// End marks seen, so that many beginnings before one cost one search.
#[derive(Debug)]
pub(crate) struct Ends {
    mark: &'static [u8],
    /// Image offsets, ascending, of all marks that begin in `from..to`.
    found: Vec<u64>,
    from: u64,
    to: u64,
}

impl Ends {
    fn of(mark: &'static [u8]) -> Self {
        Self {
            mark,
            found: Vec::new(),
            from: 0,
            to: 0,
        }
    }

    /// The next mark at or after `from` that begins before `limit`; both count from the item's
    /// first byte.
    pub(crate) fn next(
        &mut self,
        item: &mut Item<'_, '_>,
        from: usize,
        limit: usize,
    ) -> Option<usize> {
        let limit = limit.min(item.room());
        let base = item.offset();
        let want = base + from as u64;
        if want < self.from || want > self.to {
            self.found.clear();
            (self.from, self.to) = (want, want);
        }
        let over = self.mark.len() - 1;
        loop {
            let i = self.found.partition_point(|&e| e < want);
            if let Some(&e) = self.found.get(i) {
                let at = (e - base) as usize;
                return (at < limit).then_some(at);
            }
            let at = (self.to - base) as usize;
            if at >= limit || !item.charge(STEP / 8) {
                return None;
            }
            let part = item.search(at, STEP + over);
            if part.len() <= over {
                return None;
            }
            let ends = memmem::find_iter(part, self.mark).map(|n| self.to + n as u64);
            self.found.extend(ends);
            self.to += (part.len() - over) as u64;
        }
    }
}
