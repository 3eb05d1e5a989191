//! Physical addresses that a container stores more than once: the copy that is left out is compared with the one
//! that is kept, so that nothing is called complete that was not. And bytes of it that stand for no address at all.

use super::content::readable;
use super::{ContainerGap, gap, note};
use crate::run::{LeftOut, Run, RunMap};
use crate::source::{ByteSource, SourceError};
use crate::{FileOffset, PhysAddr};
use std::ops::Range;

/// Bytes that are compared in all: a kernel's text is 16 to 40 MiB.
const MAX_COMPARED: u64 = 64 << 20;
/// Bytes compared at a time.
const STEP: u64 = 1 << 20;

/// Lays out the runs and says what of the file is not in the image.
pub(super) async fn lay_out(
    source: &dyn ByteSource,
    runs: Vec<Run>,
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) -> Result<RunMap, SourceError> {
    let (map, left_out) = RunMap::keeping_sound(runs);
    let mut budget = MAX_COMPARED;
    for LeftOut { run, overlaps } in left_out {
        let file = run.file..run.file.saturating_add(run.stored);
        let (pa, end) = (run.pa, run.pa.saturating_add(run.len));
        if !overlaps {
            gap(gaps, file, || {
                format!(
                    "a range of {:#x} bytes at physical {pa:#x} leaves the address space",
                    run.len
                )
            });
        } else if same(source, &map, &run, &mut budget).await? {
            note(notes, || {
                format!("physical {pa:#x} to {end:#x} is there twice, with the same bytes")
            });
        } else {
            gap(gaps, file, || {
                format!(
                    "physical {pa:#x} to {end:#x} is there twice, and this copy differs or was not compared; the longer range was taken"
                )
            });
        }
    }
    Ok(map)
}

/// Whether the image holds the same bytes as a run that was left out.
async fn same(
    source: &dyn ByteSource,
    map: &RunMap,
    run: &Run,
    budget: &mut u64,
) -> Result<bool, SourceError> {
    let mut done = 0;
    while done < run.stored {
        let Some((kept, there)) = map.stored_at(PhysAddr(run.pa + done)) else {
            return Ok(false);
        };
        let mut n = there.min(run.stored - done);
        let at = run.file + done;
        if kept.0 != at {
            n = n.min(STEP);
            if n > *budget {
                return Ok(false);
            }
            *budget -= n;
            let len = usize::try_from(n).unwrap_or(usize::MAX);
            let a = readable(source.read_vec(kept, len).await)?;
            let b = readable(source.read_vec(FileOffset(at), len).await)?;
            if a.len() != len || a != b {
                return Ok(false);
            }
        }
        done += n;
    }
    Ok(true)
}

/// Says which parts of a range of the file nothing names, where they are longer than `slack`: what headers name is told by first
/// offset and the one behind the last. `by` is what names bytes in the format.
pub(super) fn unnamed(
    within: Range<u64>,
    named: impl Iterator<Item = (u64, u64)>,
    slack: u64,
    by: &str,
    gaps: &mut Vec<ContainerGap>,
) {
    let mut named: Vec<(u64, u64)> = named.collect();
    named.sort_unstable();
    let mut at = within.start;
    for (start, end) in named.into_iter().chain([(within.end, within.end)]) {
        if start > at.saturating_add(slack) && start <= within.end {
            gap(gaps, at..start, || {
                format!("{} bytes that no {by} names are not read", start - at)
            });
        }
        at = at.max(end);
    }
}
