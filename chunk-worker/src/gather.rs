//! Reads of bytes that are scattered over the file: in the order of the file, what lies close together
//! with one read.

use crate::read::read_range;
use futures::{StreamExt, TryStreamExt};
use ramsift_layers::{ByteSource, SourceError};
use std::ops::Range;

/// Bytes that are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where they lie in the file.
    pub(crate) file: u64,
    pub(crate) len: usize,
    /// Where they go in the buffer.
    pub(crate) at: usize,
}

/// Bytes of one read at most.
const READ: usize = 8 << 20;
/// Reads at a time.
const READS: usize = 4;

/// Reads into `buf`. Gives the bytes of it that could not be read and are zeros, with the reason.
pub(crate) async fn gather(
    source: &dyn ByteSource,
    all: &[Wanted],
    buf: &mut [u8],
) -> Result<Vec<(Range<usize>, String)>, SourceError> {
    let mut all: Vec<Wanted> = all.iter().flat_map(pieces).collect();
    all.sort_unstable_by_key(|w| (w.file, w.at));
    let groups = group(&all, source.coalesce_distance());
    let mut reads = futures::stream::iter(groups)
        .map(|g| async move {
            let (first, last) = (g[0].file, g[g.len() - 1]);
            let mut bytes = Vec::new();
            let range = first..last.file + last.len as u64;
            let bad = read_range(source, range, &mut bytes).await?;
            Ok::<_, SourceError>((g, bytes, bad))
        })
        .buffered(READS);
    let mut out = Vec::new();
    while let Some((g, bytes, bad)) = reads.try_next().await? {
        let first = g[0].file;
        for w in g {
            let from = usize::try_from(w.file - first).unwrap_or(usize::MAX);
            if let (Some(to), Some(from)) = (
                buf.get_mut(w.at..w.at + w.len),
                bytes.get(from..from + w.len),
            ) {
                to.copy_from_slice(from);
            }
            for (range, why) in &bad {
                let a = range.start.max(w.file);
                let b = range.end.min(w.file + w.len as u64);
                if a < b {
                    let at = |file: u64| w.at + usize::try_from(file - w.file).unwrap_or(0);
                    out.push((at(a)..at(b), why.clone()));
                }
            }
        }
    }
    out.sort_by_key(|(r, _)| r.start);
    Ok(out)
}

/// What one read may hold of it.
fn pieces(w: &Wanted) -> impl Iterator<Item = Wanted> {
    let w = *w;
    (0..w.len).step_by(READ).map(move |from| Wanted {
        file: w.file + from as u64,
        len: READ.min(w.len - from),
        at: w.at + from,
    })
}

/// Neighbours that one read gets, in order.
fn group(all: &[Wanted], distance: u64) -> Vec<&[Wanted]> {
    let end = |w: &Wanted| w.file + w.len as u64;
    let mut out = Vec::new();
    let mut from = 0;
    for i in 1..=all.len() {
        let cut = all.get(i).is_none_or(|w| {
            let before = end(&all[i - 1]);
            w.file < before || w.file - before > distance || end(w) - all[from].file > READ as u64
        });
        if cut {
            out.push(&all[from..i]);
            from = i;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::source::{Fault, FaultSource, RamSource};

    fn wanted(file: u64, len: usize, at: usize) -> Wanted {
        Wanted { file, len, at }
    }

    #[test]
    fn close_neighbours_share_a_read() {
        let all = [
            wanted(0, 4096, 9),
            wanted(4096, 4096, 0),
            wanted(8192 + 100, 10, 0),
            wanted(50_000, 10, 0),
            wanted(50_005, 10, 0),
            wanted(60_000, READ, 0),
        ];
        let sizes =
            |distance| -> Vec<usize> { group(&all, distance).iter().map(|g| g.len()).collect() };
        assert_eq!(sizes(1000), [3, 1, 1, 1]);
        assert_eq!(sizes(10), [2, 1, 1, 1, 1]);
        assert_eq!(sizes(0), [2, 1, 1, 1, 1]);
        assert!(group(&[], 5).is_empty());
        let long: Vec<Wanted> = pieces(&wanted(5, READ + 7, 3)).collect();
        assert_eq!(
            long,
            [wanted(5, READ, 3), wanted(5 + READ as u64, 7, 3 + READ)]
        );
    }

    #[tokio::test]
    async fn every_byte_goes_where_it_belongs() {
        let data: Vec<u8> = (0..400_000u32).map(|i| (i % 251) as u8 + 1).collect();
        let source = FaultSource::new(
            RamSource::new("disk", data.clone()),
            vec![Fault::BadRange(300_000..300_001)],
        );
        let all = vec![
            wanted(100_000, 5000, 0),
            wanted(0, 5000, 5000),
            wanted(105_000, 4096, 10_000),
            wanted(296_000, 8000, 14_096),
        ];
        let mut buf = vec![0; 14_096 + 8000];
        let bad = gather(&source, &all, &mut buf).await.expect("content");
        let lost: usize = bad.iter().map(|(r, _)| r.len()).sum();
        assert!(bad.iter().any(|(r, _)| r.contains(&(14_096 + 4000))));
        assert!((1..=4096).contains(&lost), "{lost}");
        for w in all {
            for i in 0..w.len {
                let is_bad = bad.iter().any(|(r, _)| r.contains(&(w.at + i)));
                let want = if is_bad { 0 } else { data[w.file as usize + i] };
                assert_eq!(buf[w.at + i], want);
            }
        }
    }
}
