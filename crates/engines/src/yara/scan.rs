//! The chunk pass: searches a chunk for the patterns of all memory-safe rules.
//!
//! ```text
//!             base                                                  base + data.len()
//!   data      |--look-behind--|----------- core -----------|--overlap--|
//!   reported                   every match that starts here
//! ```
//!
//! A whole stretch is scanned by one call: `fullword`, `\b` and match lengths depend on neighbours,
//! so each cut within it would have to be mended.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use ramsift_layers::ImageOffset;
use serde::{Deserialize, Serialize};
use yara_x::{Scanner, errors::ScanError};

use super::{
    RuleInfo, RuleSet,
    probe::Probe,
    slow::{Budget, Clock, Moment, Ran, SlowRules, Trial, Which, run_set, time_out},
};

/// Bytes that a chunk should have before its core: enough for `fullword`, `wide` and `\b`, and for
/// `^` not to take the start of the core for that of the image.
pub const LOOK_BEHIND: usize = 64;
/// Stretches of zeros shorter than this (after margins) are scanned: each cut costs a call.
const LEAST_SKIP: u64 = 32 << 10;
/// Matches of a pattern that get a window; the rest of thousands is of no use to a reader.
const WINDOWS: usize = 16;

/// Bounds on what a scan may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Processor time for all rules over one chunk or file, and a quarter of the time of day that it
    /// may take on a busy node. yara-x looks at its clock once a second, so it may be a second more.
    pub per_chunk: Duration,
    /// Processor time for one slow rule over one chunk or file, to the second.
    pub per_rule: Duration,
    /// Matches of one pattern in one [`BLOCK`] or file after which the rest isn't looked for.
    pub max_matches_per_pattern: usize,
    /// List every match of presence-only rules too, up to that many.
    pub list_all: bool,
    /// Bytes of context kept before a reported match.
    pub window_before: usize,
    /// Bytes kept from the start of a reported match on.
    pub window_after: usize,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            per_chunk: Duration::from_secs(120),
            per_rule: Duration::from_secs(5),
            max_matches_per_pattern: 10_000,
            list_all: false,
            window_before: 64,
            window_after: 192,
        }
    }
}

/// Why matches of a rule may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum UnfinishedReason {
    /// It ran out of time.
    TimeLimit,
    /// It has more matches than are kept.
    MatchCap,
}

/// A rule, or one of its patterns, that wasn't searched for to the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Unfinished {
    /// Rule id.
    pub rule: u32,
    /// Position of the pattern; all of them when `None`.
    pub pattern: Option<u32>,
    /// What happened.
    pub reason: UnfinishedReason,
}

/// A match of a pattern that starts in the core.
///
/// Of a presence-only rule the first ones of each [`BLOCK`] are listed; the last of these stands for `more` others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternMatch {
    /// Rule id.
    pub rule: u32,
    /// Position in [`RuleInfo::patterns`](super::RuleInfo::patterns).
    pub pattern: u32,
    /// First byte.
    pub offset: ImageOffset,
    /// Length in bytes.
    pub len: u64,
    /// Key of a pattern with `xor`.
    pub xor_key: Option<u8>,
    /// Further matches of this pattern in what the chunk holds of the block that aren't listed, up to one more than the cap.
    pub more: u64,
    /// First byte of the last of those; `offset` when there are none.
    pub last: ImageOffset,
    /// First byte of the window.
    pub window_base: ImageOffset,
    /// Where the window lies in [`ChunkMatches::arena`]; empty for all but the first few matches of
    /// a pattern, and in records made for a verdict.
    pub window: Range<u32>,
}

/// What a chunk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkMatches {
    /// By rule, pattern and offset.
    pub matches: Vec<PatternMatch>,
    /// The bytes of all windows.
    pub arena: Vec<u8>,
    /// Where matches may be missing.
    pub unfinished: Vec<Unfinished>,
    /// `unfinished` is empty.
    pub complete: bool,
}

impl ChunkMatches {
    /// The bytes around a match, from [`PatternMatch::window_base`] on.
    pub fn window(&self, m: &PatternMatch) -> &[u8] {
        self.arena
            .get(m.window.start as usize..m.window.end as usize)
            .unwrap_or_default()
    }
}

/// A match as yara-x tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawMatch {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) xor_key: Option<u8>,
}

/// Aligned range of the image within which matches are counted up to a cap, and listed: how large the chunks are changes
/// nothing of what a verdict says.
pub const BLOCK: u64 = 64 << 20;
/// Matches of a pattern of a presence-only rule that are listed of a block: more than a verdict lists, and enough to see
/// whether some lie together.
const PRESENT: usize = 64;

impl ScanLimits {
    /// Matches of one pattern of a rule that are listed of one [`BLOCK`], its first ones.
    pub fn listed(&self, rule: &RuleInfo) -> usize {
        let all = rule.class.is_positional() || self.list_all;
        let cap = self.max_matches_per_pattern.max(1);
        if all { cap } else { PRESENT.min(cap) }
    }
}

/// The matches of one pattern in what the core holds of one block, in positions of `data`.
#[derive(Debug, Default)]
struct Found {
    list: Vec<RawMatch>,
    count: u64,
    last: usize,
    capped: bool,
}

/// By rule, pattern and block.
type FoundMap = BTreeMap<(u32, u32, u64), Found>;

/// Searches chunks. One per thread; it remembers which rules were slow.
#[derive(Debug)]
pub struct ChunkScanner<'r> {
    rules: &'r RuleSet,
    limits: ScanLimits,
    /// Rules that ran out of time in an earlier chunk: searched for apart from the rest.
    slow: SlowRules,
    /// The set's probes without the slow rules, once there are some.
    trimmed: [Option<Probe>; 2],
}

/// A chunk being scanned.
struct Job<'a> {
    data: &'a [u8],
    base: u64,
    core: Range<usize>,
    clock: Clock,
    found: FoundMap,
    unfinished: BTreeSet<Unfinished>,
}

impl<'r> ChunkScanner<'r> {
    /// A scanner for the memory-safe rules of `rules`.
    pub fn new(rules: &'r RuleSet, limits: ScanLimits) -> Self {
        Self {
            rules,
            limits,
            slow: SlowRules::default(),
            trimmed: [None, None],
        }
    }

    /// Searches `data`, which starts at image offset `base`, and reports matches that start within
    /// `core`, a range of positions in `data`.
    ///
    /// `sparse` are ranges of image offsets that hold nothing but zeros. They only save time: it is
    /// checked that they do, and what a pattern can match there is still found.
    pub fn scan(
        &mut self,
        data: &[u8],
        base: ImageOffset,
        core: Range<usize>,
        sparse: &[Range<u64>],
    ) -> ChunkMatches {
        let core = core.start.min(data.len())..core.end.min(data.len());
        let clock = Clock::start();
        let budget = Budget::new(&self.limits, clock.now());
        let mut job = Job {
            data,
            base: base.0,
            core,
            clock,
            found: BTreeMap::new(),
            unfinished: BTreeSet::new(),
        };
        let everything = self.segments(data, base, &[]);
        let segments = [self.segments(data, base, sparse), everything];
        for (slot, segments) in segments.iter().enumerate() {
            self.search(slot, segments, &budget, &mut job);
        }
        self.report(job, base)
    }

    /// What is left of `data` without stretches of zeros in which no pattern of the first probe can
    /// lie.
    fn segments(&self, data: &[u8], base: ImageOffset, sparse: &[Range<u64>]) -> Vec<Range<usize>> {
        let margin = self.rules.longest_match().max(LOOK_BEHIND as u64);
        let len = data.len() as u64;
        let mut zeros: Vec<Range<u64>> = sparse
            .iter()
            .map(|r| r.start.saturating_sub(base.0).min(len)..r.end.saturating_sub(base.0).min(len))
            .collect();
        zeros.sort_by_key(|r| r.start);
        let (mut segments, mut from) = (Vec::new(), 0);
        for r in zeros {
            let (start, end) = (r.start.saturating_add(margin), r.end.saturating_sub(margin));
            let long = end.checked_sub(start).is_some_and(|n| n >= LEAST_SKIP);
            let (start, end) = (start as usize, end as usize);
            if long && start >= from && all_zero(&data[start..end]) {
                segments.push(from..start);
                from = end;
            }
        }
        segments.push(from..data.len());
        segments
    }

    fn search(
        &mut self,
        slot: usize,
        segments: &[Range<usize>],
        budget: &Budget,
        job: &mut Job<'_>,
    ) {
        let Some(own) = self.rules.probes().into_iter().nth(slot).flatten() else {
            return;
        };
        let len = job.data.len();
        let mut trial = ChunkTrial {
            rules: self.rules,
            limits: &self.limits,
            usual: self.trimmed[slot].as_ref().unwrap_or(own),
            segments,
            job,
        };
        let report = run_set(&mut trial, &own.rules, len, &mut self.slow, budget);
        for rule in report.unfinished {
            job.unfinished.insert(Unfinished {
                rule,
                pattern: None,
                reason: UnfinishedReason::TimeLimit,
            });
        }
        if report.learned {
            let rest = own.rules.iter().copied();
            let rest = rest.filter(|r| !self.slow.contains(*r)).collect();
            self.trimmed[slot] = Probe::compile(rest, |id| self.rules.patterns(id)).ok();
        }
    }

    fn report(&self, job: Job<'_>, base: ImageOffset) -> ChunkMatches {
        let mut out = ChunkMatches::default();
        let mut unfinished = job.unfinished;
        for ((rule, pattern, _), found) in job.found {
            if found.capped {
                let reason = UnfinishedReason::MatchCap;
                unfinished.insert(Unfinished {
                    rule,
                    pattern: Some(pattern),
                    reason,
                });
            }
            let more = found.count.saturating_sub(found.list.len() as u64);
            let last_listed = found.list.len().saturating_sub(1);
            for (i, m) in found.list.iter().enumerate() {
                let from = m.start.saturating_sub(self.limits.window_before);
                let to = m
                    .start
                    .saturating_add(self.limits.window_after)
                    .min(job.data.len());
                let window = if i < WINDOWS {
                    &job.data[from..to]
                } else {
                    &[]
                };
                let at = out.arena.len() as u32;
                // Past 4 GiB of windows there are none, rather than wrong ones.
                let fits = u32::try_from(out.arena.len() + window.len()).is_ok();
                let window = if fits { window } else { &[] };
                out.arena.extend_from_slice(window);
                let offset = base.saturating_add(m.start as u64);
                out.matches.push(PatternMatch {
                    rule,
                    pattern,
                    offset,
                    len: (m.end - m.start) as u64,
                    xor_key: m.xor_key,
                    // The last that is listed stands for those that are not.
                    more: if i == last_listed { more } else { 0 },
                    last: if i == last_listed {
                        base.saturating_add(found.last as u64)
                    } else {
                        offset
                    },
                    window_base: base.saturating_add(from as u64),
                    window: at..at + window.len() as u32,
                });
            }
        }
        out.complete = unfinished.is_empty();
        out.unfinished = unfinished.into_iter().collect();
        out
    }
}

/// A search of one chunk with one probe.
struct ChunkTrial<'a, 'd> {
    rules: &'a RuleSet,
    limits: &'a ScanLimits,
    usual: &'a Probe,
    segments: &'a [Range<usize>],
    job: &'a mut Job<'d>,
}

impl Trial for ChunkTrial<'_, '_> {
    fn run(&mut self, which: Which<'_>, wall: Duration) -> Ran {
        let apart;
        let probe = match which {
            Which::Usual => self.usual,
            Which::Only(rules) => {
                match Probe::compile(rules.to_vec(), |id| self.rules.patterns(id)) {
                    Ok(probe) => apart = probe,
                    Err(_) => return Ran::Impossible,
                }
                &apart
            }
        };
        match self.search(probe, wall) {
            Ok(found) => {
                self.job.found.extend(found);
                Ran::Done
            }
            Err(ran) => ran,
        }
    }

    fn now(&self) -> Moment {
        self.job.clock.now()
    }
}

impl ChunkTrial<'_, '_> {
    /// The block that a position of the data lies in.
    fn block(&self, at: usize) -> u64 {
        self.job.base.saturating_add(at as u64) / BLOCK
    }

    /// One search with one set of patterns.
    fn search(&self, probe: &Probe, wall: Duration) -> Result<FoundMap, Ran> {
        let started = Instant::now();
        let cap = self.limits.max_matches_per_pattern.max(1);
        let core = &self.job.core;
        let blocks = self.block(core.end.saturating_sub(1)) - self.block(core.start) + 1;
        // At most one match begins at each byte before the core; one more than the cap shows that there are more.
        let usual = cap
            .saturating_add(1)
            .saturating_mul(usize::try_from(blocks).unwrap_or(usize::MAX))
            .saturating_add(core.start);
        let mut most = usual;
        loop {
            let left = wall.saturating_sub(started.elapsed());
            let (found, cut) = self.search_up_to(probe, left, most, cap)?;
            if !cut {
                return Ok(found);
            }
            // A block full of matches has used up what those behind it have a right to.
            most = most.saturating_mul(4);
        }
    }

    /// One search that takes this many matches of a pattern of each segment, and whether that kept a block from the
    /// matches that are its own.
    fn search_up_to(
        &self,
        probe: &Probe,
        wall: Duration,
        most: usize,
        cap: usize,
    ) -> Result<(FoundMap, bool), Ran> {
        let started = Instant::now();
        let mut scanner = Scanner::new(&probe.compiled);
        scanner.max_matches_per_pattern(most);
        let (mut found, mut cut) = (FoundMap::new(), false);
        for segment in self.segments {
            let left = wall.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Ran::OutOfTime);
            }
            scanner.set_timeout(time_out(left));
            let core_end = self.job.core.end.min(segment.end);
            let last_block = self.block(core_end.saturating_sub(1));
            let results = scanner
                .scan(&self.job.data[segment.clone()])
                .map_err(|e| ran(&e))?;
            Probe::each_match(&results, |rule, pattern, matches| {
                let info = self.rules.rules().get(rule as usize);
                let positional = info.is_some_and(|i| i.class.is_positional());
                let keep = info.map_or(0, |i| self.limits.listed(i));
                // Whether what was seen is all that the core's last block takes.
                let (mut seen, mut enough) = (0, false);
                for mut m in matches {
                    seen += 1;
                    m.start += segment.start;
                    m.end += segment.start;
                    if !self.job.core.contains(&m.start) {
                        enough |= m.start >= core_end;
                        continue;
                    }
                    let block = self.block(m.start);
                    let entry = found.entry((rule, pattern, block)).or_default();
                    if entry.count > cap as u64 {
                        enough |= block == last_block;
                        continue;
                    }
                    if entry.list.len() < keep {
                        entry.list.push(m);
                    }
                    entry.count += 1;
                    entry.capped |= positional && entry.count > cap as u64;
                    entry.last = m.start;
                    enough |= block == last_block && entry.count > cap as u64;
                }
                cut |= seen >= most && !enough && most < self.job.data.len();
            });
        }
        Ok((found, cut))
    }
}

/// What an error of yara-x means for the rules that were run.
pub(super) fn ran(e: &ScanError) -> Ran {
    match e {
        ScanError::Timeout => Ran::OutOfTime,
        e => {
            tracing::debug!(error = %e, "scan failed");
            Ran::Impossible
        }
    }
}

fn all_zero(data: &[u8]) -> bool {
    // Whole blocks without a branch, so that it runs at the speed of memory.
    data.chunks(4096)
        .all(|block| block.iter().fold(0, |all, b| all | b) == 0)
}
