//! Memory of processes: what is adjacent in a unit's addresses is put side by side, wherever it lies in
//! the image, and searched for the patterns of all memory-safe rules. What they found is told with the
//! unit's addresses; verdicts on processes are reached from it.
//!
//! ```text
//! buffer   |before| core ...                                   ... core |after|
//! bytes    stretch .. stretch | guard | stretch | guard | stretch .. stretch
//! ```
//!
//! All stretches of a buffer are searched in one go: pages of a process are many and small. A match that
//! reaches into a guard is none; where there is one, the stretches are searched one by one.

use crate::context::JobContext;
use crate::gather::{Wanted, gather};
use crate::scan::{ScanError, Scanned, Told, limits, rows, thread_cpu};
use crate::sink::Rows;
use crate::{Worker, ordered};
use ramsift_engines::yara::{ChunkMatches, ChunkScanner, PatternMatch, RuleSet};
use ramsift_layers::{ByteSource, ImageOffset};
use ramsift_store::lists::{Buffer, MemoryList};
use ramsift_store::tables::{CoverageRow, MemoryMatchRow};
use std::ops::Range;
use std::time::Instant;
use tokio::runtime::Handle;

/// Bytes between stretches. No letter and rare in patterns; enough for `fullword` and `\b`.
const GUARD: [u8; 64] = [0xfe; 64];

/// Bytes that are adjacent in the image too, in a laid-out buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it begins in the buffer.
    pub(crate) at: usize,
    pub(crate) len: usize,
    /// Of its first byte, in the unit.
    pub(crate) address: u64,
    /// Image offset of its first byte.
    pub(crate) image: u64,
}

/// Where everything of a buffer goes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    len: usize,
    /// In order.
    places: Vec<Place>,
    /// Range of each stretch, in order.
    pub(crate) stretches: Vec<Range<usize>>,
    pub(crate) core: Range<usize>,
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Plan {
    fn of(b: &Buffer) -> Self {
        let mut out = Self::default();
        for s in b.stretches.iter().filter(|s| !s.is_empty()) {
            if out.len > 0 {
                out.len += GUARD.len();
            }
            let (from, mut address) = (out.len, s.address);
            for &(image, len) in &s.extents {
                out.places.push(Place {
                    at: out.len,
                    len: size(len),
                    address,
                    image,
                });
                out.len += size(len);
                address += len;
            }
            out.stretches.push(from..out.len);
        }
        out.core = size(b.before).min(out.len)..out.len.saturating_sub(size(b.after));
        out
    }

    /// The places from the one that holds a position on.
    pub(crate) fn places_from(&self, at: usize) -> impl Iterator<Item = &Place> {
        let i = self.places.partition_point(|p| p.at + p.len <= at);
        self.places.get(i..).unwrap_or_default().iter()
    }

    /// The place that holds a position.
    pub(crate) fn place(&self, at: usize) -> Option<&Place> {
        let i = self.places.partition_point(|p| p.at + p.len <= at);
        self.places.get(i).filter(|p| p.at <= at)
    }

    /// The stretch that holds a range whole.
    fn stretch(&self, r: &Range<usize>) -> Option<&Range<usize>> {
        let i = self.stretches.partition_point(|s| s.end <= r.start);
        let s = self.stretches.get(i)?;
        (s.start <= r.start && r.end <= s.end).then_some(s)
    }

    fn address(&self, at: usize) -> Option<u64> {
        let p = self.place(at)?;
        Some(p.address + (at - p.at) as u64)
    }

    /// What is to be read, into a buffer that begins at `base`.
    fn wanted(&self, ctx: &JobContext, base: usize) -> Vec<Wanted> {
        let runs = &ctx.paged_runs;
        let of = |p: &Place| {
            let (image, at) = (p.image, base + p.at);
            let pieces = runs.pieces(image..image.saturating_add(p.len as u64));
            pieces.into_iter().map(move |piece| Wanted {
                file: piece.file,
                len: size(piece.len),
                at: at + size(piece.image - image),
            })
        };
        self.places.iter().flat_map(of).collect()
    }
}

/// Range of a match in a buffer that is searched as if it began at 0.
fn range(m: &PatternMatch) -> Range<usize> {
    let start = size(m.offset.0);
    start..start.saturating_add(size(m.len))
}

/// Searches a list of memory, read from `source`. `bytes` is a buffer that is used for all of it.
pub(crate) fn search(
    worker: &Worker,
    ctx: &JobContext,
    source: &dyn ByteSource,
    list: &MemoryList,
    bytes: &mut Vec<u8>,
    attempt: &str,
) -> Result<(Scanned, u64), ScanError> {
    let cpu = thread_cpu();
    let searched = |r: &&RuleSet| r.rules().iter().any(|r| r.class.is_memory_safe());
    let rules = ctx.rules.as_ref().filter(searched);
    let mut scanner = rules.map(|rules| ChunkScanner::new(rules, limits(worker, ctx)));
    let mut rows = rows(worker, ctx, attempt);
    let mut told = Told::default();
    // All of the list is read at once: its pages lie closer together than those of a buffer.
    let (mut plans, mut wanted, mut len) = (Vec::new(), Vec::new(), 0);
    for b in &list.buffers {
        let plan = Plan::of(b);
        wanted.extend(plan.wanted(ctx, len));
        let from = len;
        len += plan.len;
        plans.push((b, from, plan));
    }
    bytes.clear();
    bytes.resize(len, GUARD[0]);
    let bad = {
        let _span = tracing::info_span!("s3.read", bytes = len).entered();
        let started = Instant::now();
        let read = gather(source, &wanted, bytes);
        let bad = Handle::current().block_on(read);
        worker.metrics.read(started.elapsed().as_secs_f64());
        bad.map_err(ScanError::Source)?
    };
    let bytes_read = wanted.iter().map(|w| w.len as u64).sum();
    for (buffer, from, plan) in plans {
        if worker.stop.abandon.is_cancelled() {
            return Err(ScanError::Store("stopping".into()));
        }
        let bytes = &bytes[from..from + plan.len];
        if buffer.carve {
            let _span = tracing::info_span!("scan.carvers", bytes = plan.len).entered();
            let name = list.names.get(&buffer.unit).map_or("", String::as_str);
            let stop = || worker.stop.abandon.is_cancelled();
            ordered::carve(ctx, buffer, name, &plan, bytes, &stop, &mut rows);
        }
        if let Some(av) = rows.memory_av().filter(|_| buffer.scan) {
            let name = list.names.get(&buffer.unit).map_or("", String::as_str);
            ordered::viruses(ctx, &av, name, &plan, bytes, &mut rows).map_err(ScanError::Store)?;
        }
        let started = Instant::now();
        let _span = tracing::info_span!("scan.yara", bytes = plan.len).entered();
        let scanned = scanner.as_mut().filter(|_| buffer.scan);
        for (slot, found) in scanned.map_or_else(Vec::new, |s| found(s, &plan, bytes)) {
            let slow = told.unfinished(&found.unfinished);
            worker.metrics.rule_timeouts(slow as u64);
            if slow > 0 {
                let why = format!("{slow} rules ran out of time in memory of processes");
                not_searched("yara memory", &plan, &plan.core, "partial", &why, &mut rows);
            }
            for m in &found.matches {
                if let Some(row) = match_row(buffer.unit, &plan, slot, &found, m) {
                    told.matched(m.rule, 1 + m.more);
                    rows.memory_matches.push(&row);
                }
            }
        }
        for (r, why) in &bad {
            let (a, b) = (r.start.max(from), r.end.min(from + plan.len));
            if a < b {
                let engine = if buffer.scan {
                    "yara memory"
                } else {
                    "carvers in order"
                };
                not_searched(
                    engine,
                    &plan,
                    &(a - from..b - from),
                    "failed",
                    why,
                    &mut rows,
                );
            }
        }
        rows.checkpoint_rows();
        worker.metrics.engine(
            "yara",
            plan.core.len() as u64,
            started.elapsed().as_secs_f64(),
        );
    }
    let (rule_matches, rule_gaps) = told.finish();
    let rows = rows.finish().map_err(ScanError::Store)?;
    let scanned = Scanned {
        rows,
        hash: String::new(),
        rule_matches,
        rule_gaps,
        cpu: thread_cpu().saturating_sub(cpu),
    };
    Ok((scanned, bytes_read))
}

/// The matches of a laid-out buffer, each with where what was searched begins: the whole buffer, or its
/// stretches one by one.
fn found(scanner: &mut ChunkScanner<'_>, plan: &Plan, bytes: &[u8]) -> Vec<(usize, ChunkMatches)> {
    let whole = scanner.scan(bytes, ImageOffset(0), plan.core.clone(), &[]);
    let real = |m: &PatternMatch| plan.stretch(&range(m)).is_some();
    if whole.matches.iter().all(real) {
        return vec![(0, whole)];
    }
    let one = |s: &Range<usize>| {
        let core = plan.core.start.max(s.start)..plan.core.end.min(s.end);
        let core = core.start - s.start..core.end.max(core.start) - s.start;
        let found = scanner.scan(&bytes[s.clone()], ImageOffset(0), core, &[]);
        (s.start, found)
    };
    plan.stretches.iter().map(one).collect()
}

fn match_row(
    unit: u32,
    plan: &Plan,
    slot: usize,
    found: &ChunkMatches,
    m: &PatternMatch,
) -> Option<MemoryMatchRow> {
    let r = range(m);
    let r = slot + r.start..slot + r.end;
    let stretch = plan.stretch(&r)?;
    let place = plan.place(r.start)?;
    let behind = plan.places.partition_point(|p| p.at < r.end);
    let first = plan.places.partition_point(|p| p.at + p.len <= r.start);
    let base = slot + size(m.window_base.0);
    let window = found.window(m);
    let from = stretch.start.saturating_sub(base).min(window.len());
    let to = stretch.end.saturating_sub(base).clamp(from, window.len());
    let address = plan.address(r.start)?;
    Some(MemoryMatchRow {
        rule: m.rule,
        pattern: m.pattern,
        unit,
        address,
        image_offset: place.image + (r.start - place.at) as u64,
        length: m.len,
        pieces: u32::try_from(behind.saturating_sub(first)).unwrap_or(u32::MAX),
        window: window[from..to].to_vec(),
        xor_key: m.xor_key,
        more: m.more,
        last: plan.address(slot + size(m.last.0)).unwrap_or(address),
    })
}

/// Notes that a range of a buffer was not searched in full, for what of it lies in the image.
pub(crate) fn not_searched(
    engine: &str,
    plan: &Plan,
    r: &Range<usize>,
    outcome: &str,
    why: &str,
    rows: &mut Rows<'_>,
) {
    let first = plan.places.partition_point(|p| p.at + p.len <= r.start);
    for p in plan.places[first..].iter().take_while(|p| p.at < r.end) {
        let from = r.start.max(p.at) - p.at;
        let to = r.end.min(p.at + p.len) - p.at;
        rows.coverage.push(&CoverageRow {
            engine: engine.to_owned(),
            outcome: outcome.to_owned(),
            start: p.image + from as u64,
            end: p.image + to as u64,
            reason: Some(why.to_owned()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_engines::yara::ScanLimits;
    use ramsift_store::lists::Stretch;

    fn rules(text: &str) -> RuleSet {
        let set = RuleSet::from_source("test", text).expect("rules");
        assert!(set.errors().is_empty(), "{:?}", set.errors());
        set
    }

    fn stretch(address: u64, extents: &[(u64, u64)]) -> Stretch {
        Stretch {
            address,
            extents: extents.to_vec(),
        }
    }

    /// What is found in an image's stretches: pattern, address, image offset, pieces.
    fn search_in(set: &RuleSet, image: &[u8], b: &Buffer) -> Vec<(u32, u64, u64, u32)> {
        let plan = Plan::of(b);
        let mut bytes = vec![GUARD[0]; plan.len];
        for p in &plan.places {
            let from = size(p.image);
            bytes[p.at..p.at + p.len].copy_from_slice(&image[from..from + p.len]);
        }
        let mut scanner = ChunkScanner::new(set, ScanLimits::default());
        let mut out = Vec::new();
        for (slot, f) in found(&mut scanner, &plan, &bytes) {
            for m in &f.matches {
                if let Some(r) = match_row(b.unit, &plan, slot, &f, m) {
                    out.push((r.pattern, r.address, r.image_offset, r.pieces));
                }
            }
        }
        out.sort_unstable();
        out
    }

    /// Three pages of an image, the second half of a word on the first.
    fn image() -> Vec<u8> {
        let mut image = vec![b'.'; 3 * 4096];
        image[..6].copy_from_slice(b"border");
        image[2 * 4096 - 4..2 * 4096].copy_from_slice(b"over");
        image[2 * 4096..2 * 4096 + 7].copy_from_slice(b"nothere");
        image
    }

    #[test]
    fn a_match_is_found_across_pages_that_lie_apart() {
        let set = rules(
            r#"rule r { strings: $a = "overborder" $b = "overnothere" condition: any of them and #a >= 0 }"#,
        );
        let b = Buffer {
            unit: 1,
            stretches: vec![stretch(0x7000, &[(4096, 4096), (0, 4096)])],
            ..Buffer::default()
        };
        // "overnothere" is adjacent in the image, and not in the process.
        assert_eq!(
            search_in(&set, &image(), &b),
            [(0, 0x7000 + 4092, 2 * 4096 - 4, 2)]
        );
    }

    #[test]
    fn what_reaches_into_a_guard_is_no_match() {
        let set = rules(
            r#"rule r { strings: $a = /over.{0,80}border/s $b = { FE FE } $c = "border" condition: any of them and #a >= 0 }"#,
        );
        let parted = Buffer {
            unit: 1,
            stretches: vec![
                stretch(0x7000, &[(4096, 4096)]),
                stretch(0x9000, &[(0, 4096)]),
            ],
            ..Buffer::default()
        };
        assert_eq!(search_in(&set, &image(), &parted), [(2, 0x9000, 0, 1)]);
    }

    #[test]
    fn a_match_belongs_to_the_core_that_it_starts_in() {
        let set = rules(r#"rule r { strings: $a = "overborder" condition: #a >= 0 }"#);
        let whole = [(4096, 4096), (0, 4096)];
        let cut = |before, after| Buffer {
            unit: 1,
            before,
            after,
            stretches: vec![stretch(0x7000, &whole)],
            ..Buffer::default()
        };
        let hit = [(0, 0x7000 + 4092, 2 * 4096 - 4, 2)];
        assert_eq!(search_in(&set, &image(), &cut(0, 4096)), hit);
        assert_eq!(search_in(&set, &image(), &cut(4096, 0)), []);
        assert_eq!(search_in(&set, &image(), &cut(4092, 0)), hit);
        assert_eq!(search_in(&set, &image(), &cut(0, 4100)), []);
    }
}
