//! Runs: which physical addresses a capture holds, and where in the file their bytes lie.
//!
//! ```text
//! physical   0x1000......0x9fc00     0x100000.........................0x10000000
//! image      0...........0x9ec00     0x9ec00........................................
//! file       [hdr][ run 0 ]          [hdr][ run 1 ]              (LiME; raw has no headers)
//! ```
//!
//! The image is the runs laid end to end in physical order. A run of which the file lacks the end
//! keeps its claimed length; the missing part has image offsets but no bytes.

use crate::{FileOffset, ImageOffset, PhysAddr};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::{Bound, Range};

/// A range of physical addresses that the capture claims to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First physical address.
    pub pa: u64,
    /// Claimed bytes.
    pub len: u64,
    /// Where the first byte lies in the file.
    pub file: u64,
    /// Bytes that the file really has, at most `len`.
    pub stored: u64,
}

impl Run {
    /// The part of a run that holds these of its addresses.
    fn part(&self, addresses: Range<u64>) -> Self {
        let skipped = addresses.start - self.pa;
        let len = addresses.end - addresses.start;
        Self {
            pa: addresses.start,
            len,
            file: self.file + skipped,
            stored: self.stored.saturating_sub(skipped).min(len),
        }
    }
}

/// Why a set of runs can't be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The end of a run, or the sum of all, leaves the 64-bit space.
    #[error("run at physical {pa:#x} with {len:#x} bytes leaves the 64-bit address space")]
    Overflow {
        /// Its physical address.
        pa: u64,
        /// Its claimed length.
        len: u64,
    },
    /// Two runs claim the same physical address.
    #[error("runs at physical {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Start of the lower run.
        first: u64,
        /// Start of the upper run.
        second: u64,
    },
}

/// The runs of one capture, in physical order, with the image offset of each.
///
/// Written as its runs, many of them packed; what is read is checked as what a container says is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct RunMap {
    runs: Vec<Run>,
    /// Image offset of each run's first byte.
    starts: Vec<u64>,
    len: u64,
}

/// Runs that are written one by one; more are packed.
const PLAIN_RUNS: usize = 4096;

/// How runs are written.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
    /// Four little-endian words for each run, packed with zstd, in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    packed: String,
}

impl From<RunMap> for Wire {
    fn from(m: RunMap) -> Self {
        if m.runs.len() > PLAIN_RUNS {
            let words = m.runs.iter().flat_map(|r| [r.pa, r.len, r.file, r.stored]);
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            if let Ok(packed) = zstd::bulk::compress(&bytes, 3) {
                let packed = BASE64.encode(packed);
                return Self {
                    runs: Vec::new(),
                    packed,
                };
            }
        }
        Self {
            runs: m.runs,
            packed: String::new(),
        }
    }
}

impl TryFrom<Wire> for RunMap {
    type Error = String;

    fn try_from(w: Wire) -> Result<Self, String> {
        let mut runs = w.runs;
        if !w.packed.is_empty() {
            let packed = BASE64.decode(&w.packed).map_err(|e| format!("runs: {e}"))?;
            let most = 32 * crate::format::MAX_RUNS;
            let bytes = zstd::bulk::decompress(&packed, most).map_err(|e| format!("runs: {e}"))?;
            let word = |b: &[u8], i: usize| {
                b.get(8 * i..8 * i + 8)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, u64::from_le_bytes)
            };
            if !bytes.len().is_multiple_of(32) {
                return Err(format!("runs: {} bytes are no whole runs", bytes.len()));
            }
            runs.extend(bytes.chunks_exact(32).map(|b| Run {
                pa: word(b, 0),
                len: word(b, 1),
                file: word(b, 2),
                stored: word(b, 3),
            }));
        }
        Self::new(runs).map_err(|e| e.to_string())
    }
}

/// A part of a run that was left out, because another run holds the same physical addresses or because it
/// leaves the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The part: its addresses and the place of its bytes.
    pub run: Run,
    /// Whether another run holds these addresses; else they are none.
    pub overlaps: bool,
}

/// A contiguous piece of the image with the place of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First image offset.
    pub image: u64,
    /// Where it lies in the file.
    pub file: u64,
    /// Bytes.
    pub len: u64,
}

impl RunMap {
    /// Sorts the runs by physical address and lays them end to end. Empty runs are dropped.
    pub fn new(mut runs: Vec<Run>) -> Result<Self, RunError> {
        runs.retain(|r| r.len > 0);
        runs.sort_by_key(|r| r.pa);
        let mut starts = Vec::with_capacity(runs.len());
        let mut len = 0u64;
        for (i, r) in runs.iter_mut().enumerate() {
            let overflow = RunError::Overflow {
                pa: r.pa,
                len: r.len,
            };
            r.stored = r.stored.min(r.len);
            if r.pa.checked_add(r.len).is_none() || r.file.checked_add(r.len).is_none() {
                return Err(overflow);
            }
            starts.push(len);
            len = len.checked_add(r.len).ok_or(overflow)?;
            debug_assert_eq!(starts.len(), i + 1);
        }
        for pair in runs.windows(2) {
            if pair[0].pa + pair[0].len > pair[1].pa {
                return Err(RunError::Overlap {
                    first: pair[0].pa,
                    second: pair[1].pa,
                });
            }
        }
        Ok(Self { runs, starts, len })
    }

    /// Lays out what is sound of these runs, and says what was left out. Of runs that hold the same physical
    /// addresses the longest keeps them, of equally long ones the first; of the others what is left is kept.
    pub fn keeping_sound(runs: Vec<Run>) -> (Self, Vec<LeftOut>) {
        let mut order: Vec<Run> = runs.into_iter().filter(|r| r.len > 0).collect();
        order.sort_by_key(|r| std::cmp::Reverse(r.len));
        let (mut kept, mut left_out) = (Vec::new(), Vec::new());
        // Addresses that are taken: first to end, neighbours joined, so that many runs over one place cost no more than one.
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        let mut total = 0u64;
        for mut run in order {
            run.stored = run.stored.min(run.len);
            let sound = run.pa.checked_add(run.len).is_some()
                && run.file.checked_add(run.len).is_some()
                && total.checked_add(run.len).is_some();
            if !sound {
                left_out.push(LeftOut {
                    run,
                    overlaps: false,
                });
                continue;
            }
            let end = run.pa + run.len;
            let below = taken.range(..=run.pa).next_back().map(|(s, e)| (*s, *e));
            let (mut first, mut at) = (run.pa, run.pa);
            let mut last = end;
            let mut joined = Vec::new();
            let inside = taken.range((Bound::Excluded(run.pa), Bound::Included(end)));
            for (s, e) in below.into_iter().chain(inside.map(|(s, e)| (*s, *e))) {
                if e < run.pa {
                    continue;
                }
                if s > at {
                    kept.push(run.part(at..s.min(end)));
                }
                let common = at.max(s)..e.min(end);
                if common.start < common.end {
                    left_out.push(LeftOut {
                        run: run.part(common),
                        overlaps: true,
                    });
                }
                at = at.max(e);
                first = first.min(s);
                last = last.max(e);
                joined.push(s);
            }
            if at < end {
                kept.push(run.part(at..end));
            }
            for s in joined {
                taken.remove(&s);
            }
            taken.insert(first, last);
            total += run.len;
        }
        // What is kept neither overlaps nor overflows.
        let map = Self::new(kept).unwrap_or_default();
        (map, left_out)
    }

    /// One run from physical 0: a raw image of `len` bytes.
    pub fn raw(len: u64) -> Self {
        Self {
            runs: vec![Run {
                pa: 0,
                len,
                file: 0,
                stored: len,
            }],
            starts: vec![0],
            len,
        }
    }

    /// The same image with every physical address moved up: a raw image of a machine whose memory does not
    /// begin at 0. Image offsets stay.
    pub fn moved_up(&self, by: u64) -> Result<Self, RunError> {
        let up = |r: &Run| Run {
            pa: r.pa.wrapping_add(by),
            ..*r
        };
        Self::new(self.runs.iter().map(up).collect())
    }

    /// The runs in physical order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Claimed bytes of the image, missing ones included.
    pub fn image_len(&self) -> u64 {
        self.len
    }

    /// Image ranges that the header claims and the file lacks.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.runs
            .iter()
            .zip(&self.starts)
            .filter(|(r, _)| r.stored < r.len)
            .map(|(r, s)| s + r.stored..s + r.len)
            .collect()
    }

    fn run_at(&self, image: u64) -> Option<(usize, u64)> {
        if image >= self.len {
            return None;
        }
        let i = self
            .starts
            .partition_point(|s| *s <= image)
            .checked_sub(1)?;
        Some((i, image - self.starts[i]))
    }

    /// Physical address of an image offset.
    pub fn to_phys(&self, image: ImageOffset) -> Option<PhysAddr> {
        let (i, off) = self.run_at(image.0)?;
        Some(PhysAddr(self.runs[i].pa + off))
    }

    /// Place in the file of an image offset; `None` where nothing is stored.
    pub fn to_file(&self, image: ImageOffset) -> Option<FileOffset> {
        let (i, off) = self.run_at(image.0)?;
        (off < self.runs[i].stored).then(|| FileOffset(self.runs[i].file + off))
    }

    /// Image offset of a physical address; `None` in holes.
    pub fn from_phys(&self, pa: PhysAddr) -> Option<ImageOffset> {
        let i = self.runs.partition_point(|r| r.pa <= pa.0).checked_sub(1)?;
        let off = pa.0 - self.runs[i].pa;
        (off < self.runs[i].len).then(|| ImageOffset(self.starts[i] + off))
    }

    /// Where a physical address is stored in the file, and how many bytes lie there in one piece.
    pub fn stored_at(&self, pa: PhysAddr) -> Option<(FileOffset, u64)> {
        let i = self.runs.partition_point(|r| r.pa <= pa.0).checked_sub(1)?;
        let r = &self.runs[i];
        let off = pa.0 - r.pa;
        (off < r.stored).then(|| (FileOffset(r.file + off), r.stored - off))
    }

    /// Where each byte of an image range is stored, in image order; missing bytes are left out.
    pub fn pieces(&self, image: Range<u64>) -> Vec<Piece> {
        let mut out: Vec<Piece> = Vec::new();
        let mut at = image.start;
        let end = image.end.min(self.len);
        while at < end {
            let Some((i, off)) = self.run_at(at) else {
                break;
            };
            let r = &self.runs[i];
            let run_end = self.starts[i] + r.len;
            if off < r.stored {
                let len = (end - at).min(r.stored - off);
                let (file, image) = (r.file + off, at);
                match out.last_mut() {
                    Some(p) if p.image + p.len == image && p.file + p.len == file => p.len += len,
                    _ => out.push(Piece { image, file, len }),
                }
            }
            at = run_end;
        }
        out
    }

    /// The image range of stored, physically contiguous bytes around `image`: runs that touch in
    /// physical addresses count as one. `None` where nothing is stored.
    pub fn stretch(&self, image: ImageOffset) -> Option<Range<u64>> {
        let (i, off) = self.run_at(image.0)?;
        if off >= self.runs[i].stored {
            return None;
        }
        let touches = |a: &Run, b: &Run| a.stored == a.len && a.pa + a.len == b.pa;
        let mut first = i;
        while first > 0 && touches(&self.runs[first - 1], &self.runs[first]) {
            first -= 1;
        }
        let mut last = i;
        while last + 1 < self.runs.len() && touches(&self.runs[last], &self.runs[last + 1]) {
            last += 1;
        }
        Some(self.starts[first]..self.starts[last] + self.runs[last].stored)
    }

    /// Whether an image offset is the physical neighbour of the one before it.
    pub fn touches(&self, image: u64) -> bool {
        let before = image
            .checked_sub(1)
            .and_then(|b| self.to_phys(ImageOffset(b)));
        let here = self.to_phys(ImageOffset(image));
        before.zip(here).is_some_and(|(a, b)| a.0 + 1 == b.0)
    }

    /// Image ranges whose bytes are stored in a range of the file, in image order, each
    /// physically contiguous.
    pub fn stored_in(&self, file: Range<u64>) -> Vec<Range<u64>> {
        let mut out: Vec<(Range<u64>, u64)> = Vec::new();
        for (r, s) in self.runs.iter().zip(&self.starts) {
            let a = r.file.max(file.start);
            let b = (r.file + r.stored).min(file.end);
            if a >= b {
                continue;
            }
            let image = s + (a - r.file)..s + (b - r.file);
            let pa = r.pa + (a - r.file);
            match out.last_mut() {
                Some((last, pa_end)) if last.end == image.start && *pa_end == pa => {
                    *pa_end = pa + (image.end - image.start);
                    last.end = image.end;
                }
                _ => {
                    let pa_end = pa + (image.end - image.start);
                    out.push((image, pa_end));
                }
            }
        }
        out.into_iter().map(|(r, _)| r).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> RunMap {
        // LiME-like: headers of 32 bytes, a hole between the runs, the second cut short
        RunMap::new(vec![
            Run {
                pa: 0x10000,
                len: 0x3000,
                file: 0x1040,
                stored: 0x2000,
            },
            Run {
                pa: 0,
                len: 0x1000,
                file: 0x20,
                stored: 0x1000,
            },
        ])
        .expect("valid")
    }

    #[test]
    fn lays_runs_end_to_end_in_physical_order() {
        let m = two();
        assert_eq!(m.image_len(), 0x4000);
        assert_eq!(m.to_phys(ImageOffset(0xfff)), Some(PhysAddr(0xfff)));
        assert_eq!(m.to_phys(ImageOffset(0x1000)), Some(PhysAddr(0x10000)));
        assert_eq!(m.to_file(ImageOffset(0x1001)), Some(FileOffset(0x1041)));
        assert_eq!(m.to_file(ImageOffset(0x3000)), None, "missing");
        assert_eq!(m.from_phys(PhysAddr(0x2000)), None, "hole");
        assert_eq!(m.from_phys(PhysAddr(0x10010)), Some(ImageOffset(0x1010)));
        assert_eq!(m.missing(), vec![0x3000..0x4000]);
        let stored = m.stored_at(PhysAddr(0x11000));
        assert_eq!(stored, Some((FileOffset(0x2040), 0x1000)));
        assert_eq!(m.stored_at(PhysAddr(0x12000)), None, "missing");
        assert_eq!(m.stored_at(PhysAddr(0x1000)), None, "hole");
        assert_eq!(m.to_phys(ImageOffset(0x4000)), None);
    }

    #[test]
    fn stretches_stop_at_holes_and_at_missing_bytes() {
        let m = two();
        assert_eq!(m.stretch(ImageOffset(5)), Some(0..0x1000));
        assert_eq!(m.stretch(ImageOffset(0x1000)), Some(0x1000..0x3000));
        assert_eq!(m.stretch(ImageOffset(0x3500)), None);
        let touching = RunMap::new(vec![
            Run {
                pa: 0,
                len: 0x1000,
                file: 0x20,
                stored: 0x1000,
            },
            Run {
                pa: 0x1000,
                len: 0x1000,
                file: 0x1040,
                stored: 0x1000,
            },
        ])
        .expect("valid");
        assert_eq!(touching.stretch(ImageOffset(0x1800)), Some(0..0x2000));
        assert_eq!(touching.stored_in(0..0x2040), vec![0..0x2000]);
        assert_eq!(touching.pieces(0xf00..0x1100).len(), 2);
    }

    #[test]
    fn of_runs_that_overlap_the_longest_keeps_the_addresses() {
        let r = |pa, len, file| Run {
            pa,
            len,
            file,
            stored: len,
        };
        let (m, out) = RunMap::keeping_sound(vec![
            r(0x2000, 0x2000, 0x100),
            r(0x1000, 0x4000, 0x5000),
            r(0x4000, 0x3000, 0x20000),
            r(u64::MAX - 0xfff, 0x2000, 0x30000),
        ]);
        assert_eq!(
            m.runs(),
            [r(0x1000, 0x4000, 0x5000), r(0x5000, 0x2000, 0x21000)]
        );
        let overlaps: Vec<_> = out.iter().filter(|o| o.overlaps).map(|o| o.run).collect();
        assert_eq!(
            overlaps,
            [r(0x4000, 0x1000, 0x20000), r(0x2000, 0x2000, 0x100)]
        );
        assert_eq!(out.iter().filter(|o| !o.overlaps).count(), 1);
    }

    proptest::proptest! {
        /// Every address that a run claims is kept once; what is left out is claimed by what is kept.
        #[test]
        fn every_claimed_address_is_kept_once(
            claims in proptest::collection::vec((0u64..64, 1u64..24), 1..20),
        ) {
            let runs: Vec<Run> = claims.iter().enumerate().map(|(i, (pa, len))| Run {
                pa: *pa, len: *len, file: 1000 * i as u64, stored: *len,
            }).collect();
            let (m, out) = RunMap::keeping_sound(runs.clone());
            for pa in 0..100 {
                let claimed = runs.iter().filter(|r| r.pa <= pa && pa < r.pa + r.len).count();
                let kept = m.runs().iter().filter(|r| r.pa <= pa && pa < r.pa + r.len).count();
                let left = out.iter().filter(|o| o.run.pa <= pa && pa < o.run.pa + o.run.len).count();
                proptest::prop_assert_eq!(kept, claimed.min(1));
                proptest::prop_assert_eq!(left, claimed.saturating_sub(1));
                if let Some((at, _)) = m.stored_at(PhysAddr(pa)) {
                    let of = &runs[(at.0 / 1000) as usize];
                    proptest::prop_assert_eq!(of.pa + at.0 % 1000, pa);
                }
            }
        }
    }

    #[test]
    fn a_map_that_was_written_is_read_again_and_checked() {
        let json = serde_json::to_string(&two()).expect("json");
        assert_eq!(serde_json::from_str::<RunMap>(&json).expect("read"), two());
        let many = (0..100_000u64).map(|i| Run {
            pa: i * 0x2000,
            len: 0x1000,
            file: i * 0x1000,
            stored: 0x1000,
        });
        let many = RunMap::new(many.collect()).expect("valid");
        let json = serde_json::to_string(&many).expect("json");
        assert!(json.len() < 1 << 20, "{}", json.len());
        assert_eq!(serde_json::from_str::<RunMap>(&json).expect("read"), many);
        for damaged in [
            r#"{"runs":[{"pa":0,"len":10,"file":0,"stored":10},{"pa":5,"len":10,"file":0,"stored":10}]}"#,
            r#"{"packed":"AAAA"}"#,
            r#"{"packed":"*"}"#,
            &json[..json.len() - 100],
        ] {
            assert!(
                serde_json::from_str::<RunMap>(damaged).is_err(),
                "{damaged}"
            );
        }
    }

    #[test]
    fn refuses_overlap_and_overflow() {
        let r = |pa, len| Run {
            pa,
            len,
            file: 0,
            stored: 0,
        };
        assert!(matches!(
            RunMap::new(vec![r(0, 0x2000), r(0x1000, 1)]),
            Err(RunError::Overlap { .. })
        ));
        assert!(matches!(
            RunMap::new(vec![r(u64::MAX, 2)]),
            Err(RunError::Overflow { .. })
        ));
    }
}
