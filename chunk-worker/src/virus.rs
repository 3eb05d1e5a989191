//! The virus scanner over memory: the image in pieces, and memory of processes in the order of its addresses.
//!
//! clamd says of a piece which signature matches, and not where. So a piece with a verdict is halved until the smallest
//! range that still has it is known:
//!
//! ```text
//! [................X.....]  FOUND        halves with an overlap, down to 64 KiB
//!          [.......X.....]  FOUND
//!                 [X.]      FOUND        then the last start and the first end that still have it, by bisection
//! ```
//!
//! clamd names one signature a piece. What lies before and behind the range is asked again, each without the whole of it, so
//! that every place is found once. Ranges of zero pages are left out. A clamd reaches about 100 MB a CPU second, and a hit
//! costs about twice its piece.

use crate::sink::{Av, Rows};
use futures::StreamExt;
use ramsift_engines::clamav::AvVerdict;
use std::ops::Range;
use tokio::runtime::Handle;

/// Bytes of a piece at most, its overlap apart.
const PIECE: usize = 15 << 20;
/// Bytes behind a piece that are sent with it: longer signatures are not sure to be found across two.
const OVERLAP: usize = 256 << 10;
/// Sparse ranges from this size on part pieces; shorter ones are sent.
const SPARSE: usize = 64 << 10;
/// Pieces under way at a time: clamd has threads of its own.
const AT_ONCE: usize = 4;
/// Hits of one buffer that are narrowed down; further pieces with a verdict are told as they are.
const HITS: usize = 256;
/// Ranges that are halved further.
const SMALL: usize = 64 << 10;

/// A signature and where it matches in what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) signature: String,
    pub(crate) range: Range<usize>,
}

/// What of a buffer was not looked at, and why.
pub(crate) type Missed = (Range<usize>, String);

/// One question to clamd at a time, with what is known so far.
struct Search<'a> {
    av: &'a Av,
    data: &'a [u8],
    hits: Vec<Hit>,
    missed: Vec<Missed>,
}

/// Ranges of a core, with what is sent behind each, without long sparse ranges.
fn pieces(
    len: usize,
    core: &Range<usize>,
    sparse: &[Range<usize>],
    most: usize,
) -> Vec<(Range<usize>, usize)> {
    let overlap = OVERLAP.min(most / 4);
    let size = PIECE.min(most.saturating_sub(overlap)).max(1);
    let mut dense = Vec::new();
    let mut at = core.start;
    for s in sparse.iter().filter(|s| s.len() >= SPARSE) {
        if s.start > at {
            dense.push((at..s.start.min(core.end), s.start));
        }
        at = at.max(s.end);
    }
    if at < core.end {
        dense.push((at..core.end, len));
    }
    let mut out = Vec::new();
    for (range, limit) in dense {
        let mut from = range.start;
        while from < range.end {
            let to = range.end.min(from + size);
            out.push((from..to, limit.min(to + overlap).max(to)));
            from = to;
        }
    }
    out
}

/// Looks at the core of a buffer. Hits begin in the core.
pub(crate) fn search(
    av: &Av,
    data: &[u8],
    core: Range<usize>,
    sparse: &[Range<usize>],
) -> (Vec<Hit>, Vec<Missed>) {
    let most = usize::try_from(av.clamd.max_size()).unwrap_or(usize::MAX);
    let all = pieces(data.len(), &core, sparse, most);
    let (mut hits, mut missed) = (Vec::new(), Vec::new());
    Handle::current().block_on(async {
        let first = |(core, end): (Range<usize>, usize)| async move {
            let verdict = av.scan(&data[core.start..end]).await;
            (core, end, verdict)
        };
        let mut verdicts = futures::stream::iter(all).map(first).buffered(AT_ONCE);
        while let Some((core, end, verdict)) = verdicts.next().await {
            let mut s = Search {
                av,
                data,
                hits: Vec::new(),
                missed: Vec::new(),
            };
            match verdict {
                AvVerdict::Clean => {}
                AvVerdict::Infected(signature) if hits.len() < HITS => {
                    s.within(core.start..end, signature).await;
                }
                AvVerdict::Infected(signature) => {
                    s.hits.push(Hit {
                        signature,
                        range: core.start..end,
                    });
                    s.missed.push((
                        core.clone(),
                        format!("more than {HITS} hits: places behind these were not told apart"),
                    ));
                }
                AvVerdict::NotScanned { reason } | AvVerdict::Error { reason } => {
                    s.missed.push((core.clone(), reason))
                }
            }
            // What begins behind the core belongs to the next piece.
            hits.extend(s.hits.into_iter().filter(|h| h.range.start < core.end));
            missed.extend(s.missed);
        }
    });
    hits.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.signature).cmp(&(b.range.start, b.range.end, &b.signature))
    });
    hits.dedup();
    (hits, missed)
}

impl Search<'_> {
    /// The signature that a range has, if it has one.
    async fn ask(&mut self, r: &Range<usize>) -> Option<String> {
        if r.is_empty() {
            return None;
        }
        match self.av.scan(&self.data[r.clone()]).await {
            AvVerdict::Infected(s) => Some(s),
            AvVerdict::Clean => None,
            AvVerdict::NotScanned { reason } | AvVerdict::Error { reason } => {
                self.missed.push((r.clone(), reason));
                None
            }
        }
    }

    /// Finds every place in a range that is known to have a verdict.
    async fn within(&mut self, range: Range<usize>, signature: String) {
        let mut todo = vec![(range, signature)];
        while let Some((range, signature)) = todo.pop() {
            if self.hits.len() >= HITS {
                self.missed
                    .push((range, format!("more than {HITS} hits in one piece")));
                return;
            }
            let found = self.smallest(range.clone(), signature).await;
            let place = found.range.clone();
            self.hits.push(found);
            // Before it and behind it, each without the whole of it.
            let before = range.start..place.end.saturating_sub(1).max(range.start);
            let behind = (place.start + 1).min(range.end)..range.end;
            for rest in [before, behind] {
                // What is no longer than what was found is a part of it.
                if rest.len() <= place.len().saturating_sub(1) {
                    continue;
                }
                if let Some(s) = self.ask(&rest).await {
                    todo.push((rest, s));
                }
            }
        }
    }

    /// The smallest part of a range that still has a verdict, and which.
    async fn smallest(&mut self, range: Range<usize>, signature: String) -> Hit {
        let mut hit = Hit { signature, range };
        while hit.range.len() > SMALL {
            let (r, mid) = (hit.range.clone(), hit.range.start + hit.range.len() / 2);
            let around = r.len() / 8;
            let mut smaller = None;
            for half in [
                r.start..(mid + around).min(r.end),
                mid.saturating_sub(around).max(r.start)..r.end,
            ] {
                if let Some(s) = self.ask(&half).await {
                    smaller = Some(Hit {
                        signature: s,
                        range: half,
                    });
                    break;
                }
            }
            match smaller {
                Some(h) => hit = h,
                // It reaches across both.
                None => break,
            }
        }
        // The last start that still has it, then the first end.
        let (mut good, mut bad) = (hit.range.start, hit.range.end);
        while bad - good > 1 {
            let mid = good + (bad - good) / 2;
            match self.ask(&(mid..hit.range.end)).await {
                Some(s) => (good, hit.signature) = (mid, s),
                None => bad = mid,
            }
        }
        hit.range.start = good;
        let (mut good, mut bad) = (hit.range.end, hit.range.start);
        while good - bad > 1 {
            let mid = bad + (good - bad) / 2;
            match self.ask(&(hit.range.start..mid)).await {
                Some(s) => (good, hit.signature) = (mid, s),
                None => bad = mid,
            }
        }
        hit.range.end = good;
        hit
    }
}

/// Adds the findings of a window of the image. `base` is the image offset of the first byte.
pub(crate) fn image(
    rows: &mut Rows<'_>,
    av: &Av,
    data: &[u8],
    base: u64,
    core: Range<usize>,
    sparse: &[Range<u64>],
) -> Vec<(Range<u64>, String)> {
    let at = |image: u64| {
        usize::try_from(image.saturating_sub(base))
            .unwrap_or(usize::MAX)
            .min(data.len())
    };
    let local: Vec<Range<usize>> = sparse.iter().map(|s| at(s.start)..at(s.end)).collect();
    let (hits, missed) = search(av, data, core, &local);
    for h in &hits {
        let (start, len) = (base + h.range.start as u64, h.range.len() as u64);
        rows.virus_in_image(
            &h.signature,
            start,
            len,
            &data[h.range.clone()],
            &av.clamd.version().engine,
        );
    }
    missed
        .into_iter()
        .map(|(r, why)| (base + r.start as u64..base + r.end as u64, why))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_what_is_not_sparse_once() {
        let len = 40 << 20;
        let core = (1 << 20)..(36 << 20);
        let sparse = [
            (2 << 20)..(3 << 20),
            (5 << 20)..((5 << 20) + 4096),
            (34 << 20)..(40 << 20),
        ];
        let all = pieces(len, &core, &sparse, 100 << 20);
        let covered: usize = all.iter().map(|(r, _)| r.len()).sum();
        assert_eq!(covered, (36 << 20) - (1 << 20) - (1 << 20) - (2 << 20));
        for (r, end) in &all {
            assert!(r.len() <= PIECE && *end >= r.end && *end <= r.end + OVERLAP);
            assert!(
                !sparse.iter().any(|s| s.len() >= SPARSE
                    && s.start < *end
                    && *end <= s.end
                    && s.start < r.end)
            );
        }
        // A clamd with a small limit is sent small pieces.
        let small = pieces(len, &core, &[], 1 << 20);
        assert!(small.iter().all(|(r, end)| end - r.start <= 1 << 20));
        assert_eq!(
            small.iter().map(|(r, _)| r.len()).sum::<usize>(),
            core.len()
        );
    }
}
