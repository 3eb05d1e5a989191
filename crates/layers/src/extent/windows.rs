//! Which parts of an image belong to a range of the source, and the windows around them.

use super::{Extents, ImageReader};
use crate::ImageOffset;
use crate::chunk::{ChunkParams, ChunkWindow};
use crate::run::RunMap;
use crate::source::SourceError;
use std::ops::Range;

/// Bytes of the core of a window at most, where what a chunk stands for can be much larger than the chunk.
const MAX_CORE: u64 = 32 << 20;
/// Zeros that are stored nowhere and have a window of their own, of which nothing is read; fewer are read with what is around them.
pub(super) const ZEROS_ALONE: u64 = 4 << 20;

impl ImageReader {
    /// The image ranges that belong to a range of the source, in the order of the image, each physically contiguous.
    pub async fn owned(
        &self,
        runs: &RunMap,
        source: Range<u64>,
    ) -> Result<Vec<Range<u64>>, SourceError> {
        owned(self.extents().map(AsRef::as_ref), runs, source).await
    }

    /// The windows whose cores belong to a range of the source: a whole chunk, or a part of one.
    pub async fn windows(
        &self,
        chunks: &ChunkParams,
        runs: &RunMap,
        source: Range<u64>,
    ) -> Result<Vec<ChunkWindow>, SourceError> {
        let Some(x) = self.extents() else {
            return Ok(chunks.windows(runs, source));
        };
        let mut pieces: Vec<(Range<u64>, bool)> = Vec::new();
        for (r, zero) in x.in_source(source).await? {
            let zero = zero && r.end - r.start >= ZEROS_ALONE;
            match pieces.last_mut() {
                Some((l, false)) if !zero && l.end == r.start => l.end = r.end,
                _ => pieces.push((r, zero)),
            }
        }
        let mut out = Vec::new();
        for (r, zero) in pieces {
            for r in contiguous(runs, r) {
                let mut at = r.start;
                while at < r.end {
                    let most = if zero { u64::MAX } else { MAX_CORE };
                    let end = at.saturating_add(most).min(r.end);
                    let w = chunks.window(runs, at..end);
                    out.extend(w.map(|w| ChunkWindow { zero, ..w }));
                    at = end;
                }
            }
        }
        Ok(out)
    }
}

/// The image ranges that belong to a range of the source, in the order of the image, each physically contiguous. `extents` are
/// those of the capture, where it does not hold memory as it is.
pub async fn owned(
    extents: Option<&Extents>,
    runs: &RunMap,
    source: Range<u64>,
) -> Result<Vec<Range<u64>>, SourceError> {
    let Some(x) = extents else {
        return Ok(runs.stored_in(source));
    };
    let mut out: Vec<Range<u64>> = Vec::new();
    for (r, _) in x.in_source(source).await? {
        for r in contiguous(runs, r) {
            match out.last_mut() {
                Some(l) if l.end == r.start && runs.touches(r.start) => l.end = r.end,
                _ => out.push(r),
            }
        }
    }
    Ok(out)
}

/// The parts of an image range that are physically contiguous each.
fn contiguous(runs: &RunMap, image: Range<u64>) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut at = image.start;
    while at < image.end {
        let Some(stretch) = runs.stretch(ImageOffset(at)) else {
            break;
        };
        let end = stretch.end.min(image.end);
        out.push(at..end);
        at = end.max(at + 1);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::read::tests::{packed, reader};

    #[tokio::test]
    async fn windows_of_all_chunks_own_every_byte_once_and_stop_at_holes() {
        let (source, image, runs, table) = packed();
        let len = source.len() as u64;
        let r = reader(source, &table).await;
        let chunks = ChunkParams {
            size: 4096,
            overlap: 5000,
            behind: 100,
        };
        let mut owned = vec![0; image.len()];
        for i in 0..chunks.count(len) {
            let of = i * 4096..((i + 1) * 4096).min(len);
            let cores = r.owned(&runs, of.clone()).await.expect("read");
            let windows = r.windows(&chunks, &runs, of).await.expect("read");
            let sum =
                |it: &mut dyn Iterator<Item = Range<u64>>| it.map(|r| r.end - r.start).sum::<u64>();
            assert_eq!(
                sum(&mut cores.into_iter()),
                sum(&mut windows.iter().map(|w| w.core.clone()))
            );
            for w in windows {
                for b in &mut owned[w.core.start as usize..w.core.end as usize] {
                    *b += 1;
                }
                let hole = 32 * 4096;
                assert!(w.span.end <= hole || w.span.start >= hole);
                assert!(w.span.start <= w.core.start && w.span.end >= w.core.end);
                assert_eq!(w.zero, w.core.end - w.core.start >= ZEROS_ALONE);
            }
        }
        assert!(owned.iter().all(|n| *n == 1));
    }
}
