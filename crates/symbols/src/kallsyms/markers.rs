//! Markers: the offset of every 256th name, and how the names are found from them.
//!
//! ```text
//! < 4.20   u64 each        4.20   u32 each
//! ```
//!
//! They stand behind the names. The count of symbols stands before the names, as `u64` below 4.20
//! and as `u32` with or without padding since. None of it is taken on trust: a place counts only
//! when the names from there on hit every marker.
//!
//! Source: Linux, `scripts/kallsyms.c`.

use super::names::{MAX_SYMBOLS, NameLength};
use crate::phys::{u32_at, u64_at};

/// A block of 256 names has at least a length and a token each ...
const MIN_STEP: u64 = 512;
/// ... and at most this many bytes; real ones have 2 to 6 thousand.
const MAX_STEP: u64 = 256 << 8;
/// Runs to look at, longest first.
const MAX_RUNS: usize = 16;
/// Places to check against the markers, in all: bounds the work on hostile bytes.
const MAX_QUICK: usize = 40_000;
const MAX_FULL: usize = 16;

/// An array that may be the markers.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Offset in the window.
    pub(super) at: usize,
    /// The values.
    pub(super) values: Vec<u64>,
}

/// Names that hit all markers.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamesAt {
    /// Offset of the first name in the window.
    pub(super) names: usize,
    /// Offset of the count.
    pub(super) num_syms: usize,
    /// The count.
    pub(super) count: usize,
    /// How lengths are written.
    pub(super) lengths: NameLength,
    /// Offset of the markers, and bytes of each.
    pub(super) markers: usize,
    /// Bytes of a marker.
    pub(super) width: usize,
}

/// The longest runs of a zero and values that rise as markers do.
fn runs(window: &[u8], width: usize) -> Vec<Run> {
    let get = |i: usize| match width {
        4 => u32_at(window, i * 4).map(u64::from),
        _ => u64_at(window, i * 8),
    };
    let rises = |a: u64, b: u64| (MIN_STEP..=MAX_STEP).contains(&b.wrapping_sub(a));
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut i = 0;
    while let (Some(a), Some(b)) = (get(i), get(i + 1)) {
        if a != 0 || !rises(a, b) {
            i += 1;
            continue;
        }
        let mut last = i + 1;
        while let (Some(a), Some(b)) = (get(last), get(last + 1)) {
            if !rises(a, b) {
                break;
            }
            last += 1;
        }
        found.push((i, last + 1 - i));
        i = last;
    }
    found.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    found.truncate(MAX_RUNS);
    found
        .into_iter()
        .map(|(i, len)| Run {
            at: i * width,
            values: (i..i + len).filter_map(get).collect(),
        })
        .collect()
}

/// Whether the `count` names from `at` on hit all markers of the run and end before them.
fn hits_all(window: &[u8], at: usize, count: usize, run: &Run, how: NameLength) -> bool {
    let mut pos = at;
    for (block, marker) in run.values.iter().enumerate() {
        let done = block * 256;
        if done >= count {
            // The run's last values belong to what follows the markers.
            break;
        }
        if (pos - at) as u64 != *marker {
            return false;
        }
        match how.skip(window, pos, 256.min(count - done)) {
            Some(end) => pos = end,
            None => return false,
        }
    }
    count.div_ceil(256) <= run.values.len() && pos <= run.at
}

/// The names that belong to the markers somewhere in the window, and how many runs were tried.
pub(super) fn find_names(window: &[u8]) -> (Option<NamesAt>, usize) {
    let mut tried = 0;
    let (mut quick, mut full) = (0, 0);
    let mut all: Vec<(usize, Run)> = [4, 8]
        .into_iter()
        .flat_map(|width| runs(window, width).into_iter().map(move |r| (width, r)))
        .collect();
    all.sort_by_key(|(_, r)| std::cmp::Reverse(r.values.len()));
    for (width, run) in all {
        tried += 1;
        let blocks = run.values.len();
        // What follows may lengthen a run by chance, but seldom by more than two.
        let low = blocks.saturating_sub(3) * 256;
        let high = (blocks * 256).min(MAX_SYMBOLS);
        for num_syms in (0..run.at.saturating_sub(8)).step_by(4).rev() {
            let count = u32_at(window, num_syms).unwrap_or(0) as usize;
            if count <= low.max(256) || count > high {
                continue;
            }
            for (gap, how) in [
                (8, NameLength::Uleb128),
                (8, NameLength::Byte),
                (4, NameLength::Uleb128),
                (4, NameLength::Byte),
            ] {
                let names = num_syms + gap;
                quick += 1;
                if quick > MAX_QUICK {
                    return (None, tried);
                }
                let end = how.skip(window, names, 256);
                let first = end.map(|e| (e - names) as u64);
                if first != run.values.get(1).copied() {
                    continue;
                }
                full += 1;
                if full > MAX_FULL {
                    return (None, tried);
                }
                if hits_all(window, names, count, &run, how) {
                    let found = NamesAt {
                        names,
                        num_syms,
                        count,
                        lengths: how,
                        markers: run.at,
                        width,
                    };
                    return (Some(found), tried);
                }
            }
        }
    }
    (None, tried)
}

/// How the lengths of `count` names at the front of `b` are written: the way whose names end at
/// markers that repeat their offsets. `None` if neither does.
pub(super) fn lengths_by_markers(b: &[u8], pa: u64, count: usize) -> Option<NameLength> {
    [NameLength::Uleb128, NameLength::Byte]
        .into_iter()
        .find(|how| {
            let Some(block) = how.skip(b, 0, 256.min(count)) else {
                return false;
            };
            let Some(end) = how.skip(b, 0, count) else {
                return false;
            };
            [8u64, 4].iter().any(|align| {
                let gap = (pa + end as u64).next_multiple_of(*align) - pa;
                let Ok(at) = usize::try_from(gap) else {
                    return false;
                };
                if count <= 256 {
                    return u32_at(b, at) == Some(0);
                }
                (u32_at(b, at) == Some(0) && u32_at(b, at + 4).map(u64::from) == Some(block as u64))
                    || (u64_at(b, at) == Some(0) && u64_at(b, at + 8) == Some(block as u64))
            })
        })
}
