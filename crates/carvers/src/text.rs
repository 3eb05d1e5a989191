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

pub(crate) const VERSION: u32 = 2;
/// Shortest region, in bytes.
const SHORTEST: usize = 256;
/// Whole blocks that a region has at least, wherever it begins.
pub(crate) const BLOCKS: usize = SHORTEST / BLOCK - 1;
/// Regions end at multiples of this.
pub(crate) const CUT: u64 = 64 << 10;

/// Runs of blocks that are all text, merged as they come; to be looked at exactly at the end.
#[derive(Default)]
pub(crate) struct Runs(Vec<Range<usize>>);

impl Runs {
    /// Notes the block at byte `at`. A run of fewer than `LEAST` blocks gives way to the next.
    #[inline]
    pub(crate) fn push<const LEAST: usize>(&mut self, at: usize) {
        match self.0.last_mut() {
            Some(last) if last.end == at => last.end = at + BLOCK,
            Some(last) if last.end - last.start < LEAST * BLOCK => *last = at..at + BLOCK,
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

/// Ranges in order, and the place reached in them: the ones before are done with.
struct Cursor<'a>(&'a [Range<usize>]);

impl<'a> Cursor<'a> {
    /// The first range that ends after `at`, which never goes back.
    fn after(&mut self, at: usize) -> Option<&'a Range<usize>> {
        while self.0.first().is_some_and(|r| r.end <= at) {
            self.0 = &self.0[1..];
        }
        self.0.first()
    }
}

impl Text<'_> {
    /// Reports the regions that the runs belong to and that begin in the core. `odd` is 1 for
    /// UTF-16 whose characters lie at odd offsets.
    pub(crate) fn report<const STEP: usize>(&self, runs: &Runs, odd: usize, sink: &mut dyn Sink) {
        let mut stops = [Cursor(self.claims), Cursor(self.holes)];
        // Everything before is done with.
        let mut done = 0;
        for run in &runs.0 {
            let mut at = self.begin::<STEP>(run.start + odd, done);
            while at < run.end && at < self.core.end {
                if STEP == 2 {
                    // Cuts, claims and pages end where they do; characters keep to their half.
                    at += (at ^ (run.start + odd)) & 1;
                }
                if at >= self.data.len() {
                    break;
                }
                let (limit, jump) = self.limit(at, &mut stops);
                if limit - at < SHORTEST {
                    at = jump;
                    continue;
                }
                let end = at + text_end::<STEP>(&self.data[at..limit]);
                let whole = end - at >= SHORTEST && self.core.contains(&at);
                if whole && (STEP == 1 || !is_table(&self.data[at..end])) {
                    self.emit::<STEP>(at, end, sink);
                }
                at = if end == limit {
                    jump
                } else {
                    self.next::<STEP>(end, run.end.min(limit))
                };
            }
            done = done.max(at);
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

    /// Where a region that begins at `at` must end: at the next cut, claim or constant page (at
    /// `at` itself, when it lies in one); and where the next may begin then.
    fn limit(&self, at: usize, stops: &mut [Cursor<'_>; 2]) -> (usize, usize) {
        let cell = CUT - (self.base + at as u64) % CUT;
        let cut = self.data.len().min(at + cell as usize);
        let (mut limit, mut jump) = (cut, cut);
        for stop in stops {
            if let Some(r) = stop.after(at).filter(|r| r.start < limit) {
                (limit, jump) = (r.start.max(at), r.end);
            }
        }
        (limit, jump)
    }

    /// Where the next region may begin after text that ended at `end`, no later than `stop`.
    fn next<const STEP: usize>(&self, end: usize, stop: usize) -> usize {
        if STEP == 2 || end >= stop {
            return end + STEP;
        }
        let rest = &self.data[end..stop];
        let skip = rest.iter().position(|&b| is_text8(b)).unwrap_or(rest.len());
        // A byte with the high bit that belongs to no sequence looks like text to the bitmaps.
        end + skip.max(1)
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
            complete: Some(true),
            gap: None,
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

/// True for small numbers that lie there like UTF-16: tables of states, of widths, of tones. In
/// text of any language most letters and digits stand beside another one that is no neighbour in
/// the alphabet; in tables values repeat or count.
fn is_table(bytes: &[u8]) -> bool {
    let (units, _) = bytes.as_chunks::<2>();
    let (mut turns, mut last) = (0usize, ' ');
    let mut seen = [0u64; 4];
    let mut distinct = 0;
    for u in units {
        let n = u16::from_le_bytes(*u);
        let bit = 1 << (n & 63);
        let slot = &mut seen[usize::from(n >> 6 & 3)];
        distinct += usize::from(*slot & bit == 0);
        *slot |= bit;
        let c = char::from_u32(n.into()).unwrap_or(' ');
        let far = u32::from(c).abs_diff(u32::from(last)) > 1;
        turns += usize::from(far && c.is_alphanumeric() && last.is_alphanumeric());
        last = c;
    }
    distinct < 6 || turns * 100 < units.len() * 15
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Anchor, Event, Finding};

    struct Ranges(Vec<Range<u64>>);

    impl Sink for Ranges {
        fn finding(&mut self, _: &Finding<'_>) {}
        fn event(&mut self, _: &Event<'_>) {}
        fn artifact(&mut self, a: &Artifact<'_>) {
            self.0.push(a.offset.0..a.offset.0 + a.data.len() as u64);
        }
        fn anchor(&mut self, _: &Anchor<'_>) {}
    }

    #[test]
    fn utf16_at_odd_offsets_goes_on_after_a_cut() {
        let mut data = vec![0x81; 2 * CUT as usize];
        let span = CUT as usize - 4001..CUT as usize + 3999;
        data[span.clone()]
            .iter_mut()
            .enumerate()
            .for_each(|(i, b)| {
                *b = if i & 1 == 1 {
                    0
                } else {
                    b"wide words. "[i / 2 % 12]
                }
            });
        let mut runs = Runs::default();
        let first = span.start.next_multiple_of(BLOCK);
        (first..span.end - BLOCK)
            .step_by(BLOCK)
            .for_each(|at| runs.push::<1>(at));
        let core = 0..data.len();
        let text = Text {
            data: &data,
            base: 0,
            core,
            claims: &[],
            holes: &[],
        };
        let mut got = Ranges(Vec::new());
        text.report::<2>(&runs, 1, &mut got);
        assert_eq!(got.0, [CUT - 4001..CUT - 1, CUT + 1..CUT + 3999]);
    }

    #[test]
    fn tables_are_no_text() {
        let wide = |s: &str| {
            s.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>()
        };
        let count: String = (0x20u8..0x7f).map(char::from).collect();
        let drawn = "+--------+\r\n| name   |\r\n+--------+\r\n| Value of a key |\r\n".repeat(4);
        for text in [
            "Execute a module's code without importing it",
            "Das Gerät wird nicht unterstützt",
            "Устройство не поддерживается",
            "{4D36E972-E325-11CE-BFC1-08002BE10318}",
            drawn.as_str(),
        ] {
            assert!(!is_table(&wide(text)), "{text}");
        }
        for table in [
            &*"7".repeat(200),
            &*count,
            &*"ʚ¬".repeat(90),
            &*"77Ƅ7777T".repeat(30),
        ] {
            assert!(is_table(&wide(table)), "{table}");
        }
    }
}
