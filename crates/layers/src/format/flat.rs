//! Flattened dumps of makedumpfile: the parts of a file in the order in which they were written, each with its place.
//!
//! ```text
//! 0      "makedumpfile\0\0\0\0", type 1, version 1   (i64, big-endian)
//! 4096   offset, length (i64, big-endian), the bytes; again and again
//!        -1, -1
//! ```
//!
//! A part that was written later counts where two hold the same place. Source: makedumpfile `IMPLEMENTATION`, "The flattened
//! format".

use super::ahead::{Ahead, NETWORK};
use super::{ContainerGap, FormatError, gap, note};
use crate::FileOffset;
use crate::source::{ByteSource, SourceError};
use std::collections::BTreeMap;

/// What a flattened file begins with.
pub(super) const MAGIC: &[u8] = b"makedumpfile\0";
const FIRST: u64 = 4096;
const HEAD: u64 = 16;
/// Parts at most: one for each 64 KiB of a file of 1 TiB.
const MAX_PARTS: usize = 16 << 20;

/// A dump by its own offsets, wherever its bytes lie in the file.
#[derive(Debug)]
pub(super) struct Dump<'a> {
    source: &'a dyn ByteSource,
    /// Offset in the dump: bytes, place in the file. `None`: the file is the dump.
    parts: Option<BTreeMap<u64, (u64, u64)>>,
    /// Where the file begins, among several that are one after the other.
    base: u64,
    /// Whether a flattened file goes up to its end mark: else what is not there may be lost.
    complete: bool,
}

impl<'a> Dump<'a> {
    pub(super) fn plain(source: &'a dyn ByteSource) -> Self {
        Self {
            source,
            parts: None,
            base: 0,
            complete: true,
        }
    }

    /// The same file behind others of `base` bytes: places in it count from the first of these.
    pub(super) fn behind(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// Goes over the parts of a flattened file.
    pub(super) async fn flattened(
        source: &'a dyn ByteSource,
        notes: &mut Vec<String>,
        gaps: &mut Vec<ContainerGap>,
    ) -> Result<Dump<'a>, FormatError> {
        let end = source.len();
        let mut ahead = Ahead::new(source);
        let (mut parts, mut at, mut complete) = (BTreeMap::new(), FIRST, false);
        loop {
            let head = ahead.get(at, 16).await?;
            let number = |i: usize| head.get(i..i + 8)?.try_into().ok().map(i64::from_be_bytes);
            let (Some(offset), Some(len)) = (number(0), number(8)) else {
                note(notes, || {
                    "the flattened dump is cut short: its end mark is missing".to_owned()
                });
                break;
            };
            if (offset, len) == (-1, -1) {
                complete = true;
                break;
            }
            let data = at + HEAD;
            let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else {
                gap(gaps, at..end, || {
                    format!(
                        "expected the head of a part of a flattened dump, found offset {offset} and length {len}: {} bytes are not read",
                        end - at
                    )
                });
                break;
            };
            let there = len.min(end.saturating_sub(data));
            if there > 0 && offset.checked_add(there).is_some() {
                lay_over(&mut parts, offset, there, data);
            }
            if parts.len() > MAX_PARTS {
                return Err(FormatError::Header {
                    format: "kdump",
                    offset: at,
                    expected: format!("at most {MAX_PARTS} parts of a flattened dump"),
                    found: "more".into(),
                });
            }
            at = data.saturating_add(len);
        }
        // Parts that touch in the file and in the dump are one.
        let mut joined: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (offset, (len, file)) in parts {
            match joined.last_entry() {
                Some(mut l) if l.key() + l.get().0 == offset && l.get().1 + l.get().0 == file => {
                    l.get_mut().0 += len;
                }
                _ => {
                    joined.insert(offset, (len, file));
                }
            }
        }
        Ok(Self {
            source,
            parts: Some(joined),
            base: 0,
            complete,
        })
    }

    /// Whether a read is a request over the network.
    pub(super) fn is_far(&self) -> bool {
        self.source.coalesce_distance() >= NETWORK
    }

    /// Offset behind the last byte.
    pub(super) fn len(&self) -> u64 {
        match &self.parts {
            None => self.source.len(),
            Some(p) => p.last_key_value().map_or(0, |(at, (len, _))| at + len),
        }
    }

    /// Where a range lies in the file: at most `most` pieces that hold all of it.
    pub(super) fn pieces(&self, at: u64, len: u64, most: usize) -> Option<Vec<(u64, u64)>> {
        let end = at.checked_add(len)?;
        let Some(parts) = &self.parts else {
            return (end <= self.source.len()).then(|| vec![(self.base + at, len)]);
        };
        let (mut out, mut done) = (Vec::new(), at);
        while done < end {
            let (start, (n, file)) = parts.range(..=done).next_back()?;
            let inside = done - start;
            if inside >= *n || out.len() == most {
                return None;
            }
            let take = (n - inside).min(end - done);
            out.push((self.base + file + inside, take));
            done += take;
        }
        Some(out)
    }

    /// Reads a range; `None` where it goes past the end. What was never written between parts is zeros, as in a file.
    pub(super) async fn read(&self, at: u64, len: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let end = at.checked_add(len as u64);
        let Some(end) = end.filter(|end| *end <= self.len()) else {
            return Ok(None);
        };
        let Some(parts) = &self.parts else {
            return Ok(Some(self.source.read_vec(FileOffset(at), len).await?));
        };
        let mut out = vec![0; len];
        let first = parts.range(..=at).next_back().map_or(at, |(s, _)| *s);
        for (start, (n, file)) in parts.range(first..end) {
            let (a, b) = (at.max(*start), end.min(start + n));
            let index = |x: u64| usize::try_from(x - at).unwrap_or(usize::MAX);
            if a < b
                && let Some(to) = out.get_mut(index(a)..index(b))
            {
                let place = FileOffset(file + (a - start));
                self.source.read_at(place, to).await?;
            }
        }
        Ok(Some(out))
    }

    /// Whether a range is known: bytes of it that were never written are zeros, unless they were lost.
    pub(super) fn is_known(&self, at: u64, len: u64) -> bool {
        self.complete || self.pieces(at, len, usize::MAX).is_some()
    }

    /// As many bytes of a range as there are, from its start on.
    pub(super) async fn read_some(&self, at: u64, len: u64) -> Result<Vec<u8>, SourceError> {
        let n = len.min(self.len().saturating_sub(at));
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        Ok(self.read(at, n).await?.unwrap_or_default())
    }
}

/// Adds a part; what it lies over no longer counts.
fn lay_over(parts: &mut BTreeMap<u64, (u64, u64)>, at: u64, len: u64, file: u64) {
    let end = at + len;
    if let Some((start, (n, f))) = parts.range(..at).next_back().map(|(s, v)| (*s, *v))
        && start + n > at
    {
        parts.insert(start, (at - start, f));
        if start + n > end {
            parts.insert(end, (start + n - end, f + (end - start)));
        }
    }
    let under: Vec<u64> = parts.range(at..end).map(|(s, _)| *s).collect();
    for start in under {
        if let Some((n, f)) = parts.remove(&start)
            && start + n > end
        {
            parts.insert(end, (start + n - end, f + (end - start)));
        }
    }
    parts.insert(at, (len, file));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    proptest::proptest! {
        /// A byte of the dump is the one that was written last.
        #[test]
        fn what_was_written_last_counts(
            writes in proptest::collection::vec((0u64..200, 1u64..60), 1..30),
        ) {
            let mut file = MAGIC.to_vec();
            file.resize(FIRST as usize, 0);
            let mut dump: Vec<Option<u8>> = vec![None; 300];
            for (i, (at, len)) in writes.iter().enumerate() {
                file.extend((*at as i64).to_be_bytes());
                file.extend((*len as i64).to_be_bytes());
                file.extend(vec![i as u8; *len as usize]);
                dump[*at as usize..(at + len) as usize].fill(Some(i as u8));
            }
            file.extend([0xff; 16]);
            let source = RamSource::new("x", file);
            let (mut notes, mut gaps) = (Vec::new(), Vec::new());
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let d = Dump::flattened(&source, &mut notes, &mut gaps).await.expect("flat");
                for (at, want) in dump.iter().enumerate() {
                    let got = d.read(at as u64, 1).await.expect("in memory");
                    let behind = dump[at..].iter().all(Option::is_none);
                    let want = (!behind).then_some(want.unwrap_or(0));
                    assert_eq!(got.map(|b| b[0]), want, "{at}");
                }
            });
            proptest::prop_assert!(notes.is_empty() && gaps.is_empty());
        }
    }
}
