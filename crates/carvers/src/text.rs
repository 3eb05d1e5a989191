//! Text that no line parser claimed: runs of printable characters, ASCII and UTF-8 or UTF-16LE.
//!
//! ```text
//!     ... \0 some text \n more text | claimed log line | \n text again \0 ...
//!            <------ region ------>                     <- too short ->
//!                          ^ regions are also cut at image offsets that are multiples of 64 KiB
//! ```
//!
//! A region is at least 256 bytes of printable characters, tabs and line ends. The cut keeps
//! regions bounded and independent of windows; pages of one repeated byte are no text.

use crate::api::{Artifact, Field, Sink};
use crate::chars::{LINE, is, printable_len};
use crate::lines::{is_wide, utf8};
use crate::masks::BLOCK;
use ramsift_layers::ImageOffset;
use std::ops::Range;

pub(crate) const VERSION: u32 = 1;
/// Shortest region, in bytes.
const SHORTEST: usize = 256;
/// Regions end at multiples of this.
pub(crate) const CUT: u64 = 64 << 10;

/// Runs of blocks that are all text, merged as they come; to be looked at exactly at the end.
#[derive(Default)]
pub(crate) struct Runs(Vec<Range<usize>>);

impl Runs {
    /// Notes the block at byte `at`.
    #[inline]
    pub(crate) fn push(&mut self, at: usize) {
        match self.0.last_mut() {
            Some(last) if last.end == at => last.end = at + BLOCK,
            _ => self.0.push(at..at + BLOCK),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What regions are cut out of.
pub(crate) struct Text<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) base: u64,
    pub(crate) core: Range<usize>,
    /// Lines with an owner, sorted by their first byte.
    pub(crate) claims: &'a [Range<usize>],
    /// Constant pages, sorted.
    pub(crate) holes: &'a [Range<usize>],
}

impl Text<'_> {
    /// Reports the regions that the runs belong to and that begin in the core. `odd` is 1 for
    /// UTF-16 whose characters lie at odd offsets.
    pub(crate) fn report<const STEP: usize>(&self, runs: &Runs, odd: usize, sink: &mut dyn Sink) {
        let mut done = 0;
        for run in &runs.0 {
            let mut at = self.begin::<STEP>(run.start + odd, done);
            while at < run.end && at < self.core.end {
                let limit = self.limit(at);
                let end = if limit > at {
                    text_end::<STEP>(&self.data[at..limit]) + at
                } else {
                    at
                };
                if end - at >= SHORTEST && self.core.contains(&at) {
                    self.emit::<STEP>(at, end, sink);
                }
                done = done.max(end);
                at = self.next::<STEP>(end, run.end, limit);
            }
        }
    }

    /// The first byte to look at for a run whose first block is at `at`. In UTF-8 less than a
    /// block of a region lies before its first whole block; in UTF-16 blocks that are not ASCII
    /// throughout may.
    fn begin<const STEP: usize>(&self, at: usize, done: usize) -> usize {
        if STEP == 1 {
            return at.saturating_sub(BLOCK + 3).max(done);
        }
        let cell = (self.base + at as u64) % CUT;
        let claim = self.claims.partition_point(|c| c.start <= at);
        let hole = self.holes.partition_point(|c| c.start <= at);
        let claim = claim.checked_sub(1).map_or(0, |i| self.claims[i].end);
        let hole = hole.checked_sub(1).map_or(0, |i| self.holes[i].end);
        let low = at
            .saturating_sub(cell as usize)
            .max(done)
            .max(claim)
            .max(hole);
        let mut p = at;
        while p >= low + 2 && is_text16(self.data[p - 2], self.data[p - 1]) {
            p -= 2;
        }
        p
    }

    /// Where a region that begins at `at` must end: the next cut, claim or constant page; `at`
    /// itself when it can't begin there.
    fn limit(&self, at: usize) -> usize {
        let cell = CUT - (self.base + at as u64) % CUT;
        let mut limit = self.data.len().min(at + cell as usize);
        for ranges in [self.claims, self.holes] {
            let i = ranges.partition_point(|c| c.end <= at);
            if let Some(r) = ranges.get(i) {
                limit = limit.min(r.start.max(at));
            }
        }
        limit
    }

    /// Where the next region may begin after one that ended at `end`, no later than `stop`.
    fn next<const STEP: usize>(&self, end: usize, stop: usize, limit: usize) -> usize {
        for ranges in [self.claims, self.holes] {
            let i = ranges.partition_point(|c| c.end <= end);
            if let Some(r) = ranges.get(i).filter(|r| r.contains(&end)) {
                return r.end;
            }
        }
        if STEP == 1 && end < limit {
            let rest = &self.data[end..limit.min(stop).max(end)];
            let skip = rest.iter().position(|&b| is_text8(b)).unwrap_or(rest.len());
            return end + skip.max(usize::from(!self.data[end].is_ascii()));
        }
        // At a cut the next region begins at once.
        if end == limit { end } else { end + STEP }
    }

    fn emit<const STEP: usize>(&self, from: usize, to: usize, sink: &mut dyn Sink) {
        let data = &self.data[from..to];
        let lines = memchr::memchr_iter(b'\n', data).count() as i64 + 1;
        sink.artifact(&Artifact {
            carver: "text",
            kind: if STEP == 2 { "text_utf16le" } else { "text" },
            offset: ImageOffset(self.base + from as u64),
            data,
            name: None,
            partial: None,
            fields: &[("lines", Field::Int(lines))],
        });
    }
}

fn is_text8(b: u8) -> bool {
    is(b, LINE) || matches!(b, b'\n' | b'\r') || b >= 0x80
}

fn is_text16(low: u8, high: u8) -> bool {
    is_wide(low, high) || (high == 0 && matches!(low, b'\n' | b'\r'))
}

/// Length of the text at the start of `bytes`.
fn text_end<const STEP: usize>(bytes: &[u8]) -> usize {
    if STEP == 2 {
        let (units, _) = bytes.as_chunks::<2>();
        return 2 * units
            .iter()
            .position(|u| !is_text16(u[0], u[1]))
            .unwrap_or(units.len());
    }
    let mut p = 0;
    loop {
        p += printable_len::<true>(&bytes[p..]);
        let n = utf8(&bytes[p..]);
        if n == 0 {
            return p;
        }
        p += n;
    }
}
