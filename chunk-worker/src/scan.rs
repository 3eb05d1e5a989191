//! One chunk through all carvers and rules. Runs on a blocking thread.

use crate::Worker;
use crate::context::JobContext;
use crate::coverage::CoreCoverage;
use crate::read::Slab;
use crate::sink::{Av, Collected, Rows};
use crate::virus;
use ramsift_carvers::api::{Anchor, MoreError, ReadMore, Sink, Window};
use ramsift_carvers::windows::{self, PoolHeaders};
use ramsift_engines::yara::{ChunkMatches, ChunkScanner, ScanLimits, Unfinished, UnfinishedReason};
use ramsift_layers::chunk::ChunkWindow;
use ramsift_layers::hash::PieceHasher;
use ramsift_layers::{ByteSource, FileOffset, ImageOffset, SourceError};
use ramsift_proto::v1::{RuleCount, RuleGap};
use ramsift_store::tables::MatchRow;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Why a scan gave nothing.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// Evidence.
    Source(SourceError),
    /// Store or rules; another try may do.
    Store(String),
    /// Mapped bytes turned out not to be there: read them.
    Torn,
}

impl From<String> for ScanError {
    fn from(why: String) -> Self {
        Self::Store(why)
    }
}

/// What a task gave.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) rows: Collected,
    pub(crate) hash: String,
    pub(crate) rule_matches: Vec<RuleCount>,
    pub(crate) rule_gaps: Vec<RuleGap>,
    pub(crate) cpu: Duration,
}

/// Limits of the rules for one chunk.
pub(crate) fn limits(worker: &Worker, ctx: &JobContext) -> ScanLimits {
    ScanLimits {
        list_all: ctx.plan.spec.matches == crate::verdict::ALL,
        per_chunk: worker.config.chunk_time,
        per_rule: worker.config.rule_time,
        ..ScanLimits::default()
    }
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec on this stack, and the clock id is valid.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    if done != 0 {
        return Duration::ZERO;
    }
    Duration::new(
        t.tv_sec.unsigned_abs(),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

/// Reads past a window for the carvers, within the chunk's budget.
struct Follow<'a> {
    ctx: &'a JobContext,
    /// What the runs count in.
    bytes: Arc<dyn ByteSource>,
    runtime: Handle,
    end: u64,
    budget: &'a mut u64,
    fatal: Option<SourceError>,
}

impl ReadMore for Follow<'_> {
    fn read_more(
        &mut self,
        at: ImageOffset,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), MoreError> {
        let end = at.0.saturating_add(len as u64).min(self.end);
        if at.0 >= end {
            return Ok(());
        }
        if *self.budget < end - at.0 {
            return Err(MoreError::Budget);
        }
        *self.budget -= end - at.0;
        for p in self.ctx.plan.layout.runs.pieces(at.0..end) {
            let from = buf.len();
            buf.resize(from + usize::try_from(p.len).unwrap_or(0), 0);
            let read = self.bytes.read_at(FileOffset(p.file), &mut buf[from..]);
            if let Err(e) = self.runtime.block_on(read) {
                buf.truncate(from);
                let message = e.to_string();
                if !e.is_content() {
                    self.fatal.get_or_insert(e);
                }
                return Err(MoreError::Source(message));
            }
        }
        Ok(())
    }
}

/// Rows of a task that looks at files too.
pub(crate) fn rows<'a>(worker: &Worker, ctx: &'a JobContext, attempt: &str) -> Rows<'a> {
    let clamd = worker.deps.clamd.clone().filter(|_| ctx.plan.spec.clamav);
    let av = clamd.map(|clamd| Av {
        clamd,
        alone: worker.config.deployment.is_embedded(),
        gone: worker.clamd_gone.clone(),
    });
    let limits = ctx.rules.is_some().then(|| limits(worker, ctx));
    Rows::new(ctx, worker.deps.objects.clone(), av, attempt, limits)
}

/// Scans the windows of a chunk (or of a part of one).
pub(crate) fn scan(
    worker: &Worker,
    ctx: &JobContext,
    slab: &Slab,
    file: Range<u64>,
    windows: &[ChunkWindow],
    attempt: &str,
) -> Result<Scanned, ScanError> {
    let cpu = thread_cpu();
    let mut rows = rows(worker, ctx, attempt);
    let mut yara = YaraPass::new(worker, ctx);
    let mut budget = worker.config.follow_budget;
    let mut unpacked = Vec::new();
    for w in windows {
        if w.zero {
            all_zero(worker, ctx, w, yara.is_some(), &mut rows);
            continue;
        }
        let (data, bad, unread) = if ctx.image.extents().is_some() {
            let bad = slab.unpack(&ctx.image, w, &mut unpacked);
            let mut bad = Handle::current().block_on(bad).map_err(ScanError::Source)?;
            let unread = bad.iter().map(|b| b.0.clone()).collect();
            bad.retain_mut(|(r, _)| {
                *r = r.start.max(w.core.start)..r.end.min(w.core.end);
                r.start < r.end
            });
            (Cow::Borrowed(unpacked.as_slice()), bad, unread)
        } else {
            let data = Handle::current()
                .block_on(slab.window(ctx.source.as_ref(), w))
                .map_err(ScanError::Source)?;
            let unread = bad_in(ctx, slab, &w.span).into_iter().map(|b| b.0);
            (data, bad_in(ctx, slab, &w.core), unread.collect())
        };
        rows.set_unread(unread);
        let sparse = carve(worker, ctx, w, &data, &bad, &mut budget, &mut rows)?;
        if let Some(y) = &mut yara {
            y.window(worker, w, &data, &bad, &sparse, &mut rows);
        }
        if let Some(av) = rows.memory_av() {
            virus(worker, &av, w, &data, &bad, &sparse, &mut rows)?;
        }
    }
    let hash = hash_of(ctx, slab, &file);
    finish(rows, yara, hash, cpu)
}

/// What a chunk gave, of which the work began at `begun` of this thread's time.
fn finish(
    rows: Rows<'_>,
    yara: Option<YaraPass<'_>>,
    hash: String,
    begun: Duration,
) -> Result<Scanned, ScanError> {
    let (rule_matches, rule_gaps) = yara.map(|y| y.told.finish()).unwrap_or_default();
    Ok(Scanned {
        rows: rows.finish().map_err(ScanError::Store)?,
        hash,
        rule_matches,
        rule_gaps,
        cpu: thread_cpu().saturating_sub(begun),
    })
}

/// A chunk that is a hole of a sparse file: zeros, of which nothing is read.
pub(crate) fn scan_hole(
    worker: &Worker,
    ctx: &JobContext,
    file: Range<u64>,
    windows: &[ChunkWindow],
    attempt: &str,
) -> Result<Scanned, ScanError> {
    let cpu = thread_cpu();
    let mut rows = rows(worker, ctx, attempt);
    let yara = YaraPass::new(worker, ctx);
    for w in windows {
        all_zero(worker, ctx, w, yara.is_some(), &mut rows);
    }
    let hasher = PieceHasher::new(&file, ctx.source.len());
    let hash = hasher.map_or_else(String::new, |mut h| {
        h.update_zeros(file.end - file.start);
        h.finish()
    });
    finish(rows, yara, hash, cpu)
}

/// A window whose core is zeros that the container holds no bytes of: there is nothing to look at.
fn all_zero(worker: &Worker, ctx: &JobContext, w: &ChunkWindow, yara: bool, rows: &mut Rows<'_>) {
    if ctx.plan.spec.structured {
        let none = PoolHeaders {
            len: w.core.end - w.core.start,
            at: Vec::new(),
        };
        tell_headers(w, &none, rows);
    }
    let mut coverage = CoreCoverage::new(w.core.clone());
    coverage.sparse(std::slice::from_ref(&w.core));
    coverage.write("carvers", &mut rows.coverage);
    if yara {
        coverage.write("yara", &mut rows.coverage);
    }
    if rows.memory_av().is_some() {
        coverage.write(CLAMAV_MEMORY, &mut rows.coverage);
    }
    worker.metrics.bytes("sparse", w.core.end - w.core.start);
}

/// What a part of the file adds to the hash of the whole; empty when some of it could not be read.
fn hash_of(ctx: &JobContext, slab: &Slab, file: &Range<u64>) -> String {
    let hasher = PieceHasher::new(file, ctx.source.len()).filter(|_| slab.bad.is_empty());
    hasher.map_or_else(String::new, |mut h| {
        h.update(slab.bytes(file.clone()));
        h.finish()
    })
}

/// Image ranges of a core that could not be read.
fn bad_in(ctx: &JobContext, slab: &Slab, core: &Range<u64>) -> Vec<(Range<u64>, String)> {
    let mut out = Vec::new();
    for (file, why) in &slab.bad {
        for r in ctx.plan.layout.runs.stored_in(file.clone()) {
            let (a, b) = (r.start.max(core.start), r.end.min(core.end));
            if a < b {
                out.push((a..b, why.clone()));
            }
        }
    }
    out
}

/// Tells what may be a kernel's top table, and where pool memory has the tags of objects: views of Windows need both, and make
/// no pass of their own then. `pa` is the physical address of the core's first byte.
fn marks_of_windows(w: &ChunkWindow, data: &[u8], pa: u64, rows: &mut Rows<'_>) {
    let at = |image: u64| usize::try_from(image - w.span.start).unwrap_or(usize::MAX);
    let core = at(w.core.start)..at(w.core.end);
    let physical = pa.wrapping_sub(core.start as u64);
    let found = PoolHeaders::find(data, physical, &core);
    tell_headers(w, &found, rows);
    for table in windows::top_tables(data, physical, &core) {
        rows.anchor(&Anchor {
            kind: windows::TOP_TABLE,
            offset: ImageOffset(w.span.start + table as u64),
            data: &[],
        });
    }
}

fn tell_headers(w: &ChunkWindow, found: &PoolHeaders, rows: &mut Rows<'_>) {
    rows.anchor(&Anchor {
        kind: windows::POOL,
        offset: ImageOffset(w.core.start),
        data: &found.encode(),
    });
}

/// All carvers over one window. Returns the sparse ranges.
fn carve(
    worker: &Worker,
    ctx: &JobContext,
    w: &ChunkWindow,
    data: &[u8],
    bad: &[(Range<u64>, String)],
    budget: &mut u64,
    rows: &mut Rows<'_>,
) -> Result<Vec<Range<u64>>, ScanError> {
    let started = Instant::now();
    let _span = tracing::info_span!("scan.carve", bytes = data.len()).entered();
    let pa = ctx
        .plan
        .layout
        .runs
        .to_phys(ImageOffset(w.core.start))
        .map_or(0, |p| p.0);
    rows.set_delta(pa.wrapping_sub(w.core.start));
    let at = |image: u64| usize::try_from(image - w.span.start).unwrap_or(usize::MAX);
    let window = Window {
        data,
        base: ImageOffset(w.span.start),
        core_start: at(w.core.start),
        core_end: at(w.core.end),
        image_len: w.stretch_end,
    };
    if ctx.plan.spec.structured {
        marks_of_windows(w, data, pa, rows);
    }
    let mut follow = Follow {
        ctx,
        bytes: ctx.image.bytes(),
        runtime: Handle::current(),
        end: w.stretch_end,
        budget,
        fatal: None,
    };
    let deadline = started + worker.config.chunk_time;
    let stop = || Instant::now() >= deadline || worker.stop.abandon.is_cancelled();
    let stats = ctx.carvers.scan(&window, &mut follow, rows, &stop);
    if let Some(e) = follow.fatal {
        return Err(ScanError::Source(e));
    }
    let mut coverage = CoreCoverage::new(w.core.clone());
    coverage.sparse(&stats.sparse);
    for (carver, range, why) in &stats.partial {
        coverage.mark(range, "partial", Some(&format!("{carver}: {why}")));
    }
    for (range, why) in bad {
        coverage.mark(range, "failed", Some(why));
    }
    coverage.write("carvers", &mut rows.coverage);
    let core = w.core.end - w.core.start;
    worker
        .metrics
        .engine("carvers", core, started.elapsed().as_secs_f64());
    for outcome in ["scanned", "sparse", "partial", "failed"] {
        worker.metrics.bytes(outcome, coverage.sum(outcome));
    }
    Ok(stats.sparse)
}

/// What clamd looks at, in the coverage.
const CLAMAV_MEMORY: &str = "clamav memory";

/// The virus scanner over one window.
fn virus(
    worker: &Worker,
    av: &Av,
    w: &ChunkWindow,
    data: &[u8],
    bad: &[(Range<u64>, String)],
    sparse: &[Range<u64>],
    rows: &mut Rows<'_>,
) -> Result<(), ScanError> {
    let started = Instant::now();
    let _span = tracing::info_span!("scan.clamav", bytes = data.len()).entered();
    let at = |image: u64| usize::try_from(image - w.span.start).unwrap_or(usize::MAX);
    let core = at(w.core.start)..at(w.core.end);
    let missed = virus::image(rows, av, data, w.span.start, core, sparse);
    if worker.stop.abandon.is_cancelled() {
        return Err(ScanError::Store("stopping".into()));
    }
    let mut coverage = CoreCoverage::new(w.core.clone());
    coverage.sparse(sparse);
    for (range, why) in &missed {
        // A scanner that others have may still answer them.
        if !av.alone && why.starts_with("clamd at ") {
            return Err(ScanError::Store(why.clone()));
        }
        coverage.mark(range, "partial", Some(why));
    }
    for (range, why) in bad {
        coverage.mark(range, "failed", Some(why));
    }
    coverage.write(CLAMAV_MEMORY, &mut rows.coverage);
    let n = w.core.end - w.core.start;
    worker
        .metrics
        .engine("clamav", n, started.elapsed().as_secs_f64());
    Ok(())
}

/// The memory-safe rules over all windows of a chunk.
struct YaraPass<'a> {
    scanner: ChunkScanner<'a>,
    told: Told,
}

/// What verdicts need to know of a search besides its matches.
#[derive(Debug, Default)]
pub(crate) struct Told {
    counts: BTreeMap<u32, u64>,
    gaps: BTreeSet<(u32, Option<u32>, &'static str)>,
}

impl Told {
    /// Rules that were not searched for to the end; gives how many ran out of time.
    pub(crate) fn unfinished(&mut self, all: &[Unfinished]) -> usize {
        let gap = |u: &Unfinished| (u.rule, u.pattern, reason(u.reason));
        self.gaps.extend(all.iter().map(gap));
        let slow = all
            .iter()
            .filter(|u| u.reason == UnfinishedReason::TimeLimit);
        slow.map(|u| u.rule).collect::<BTreeSet<u32>>().len()
    }

    /// Matches of a rule.
    pub(crate) fn matched(&mut self, rule: u32, n: u64) {
        *self.counts.entry(rule).or_default() += n;
    }

    pub(crate) fn finish(self) -> (Vec<RuleCount>, Vec<RuleGap>) {
        let counts = self
            .counts
            .into_iter()
            .map(|(rule, count)| RuleCount { rule, count });
        let gaps = self.gaps.into_iter().map(|(rule, pattern, why)| RuleGap {
            rule,
            pattern,
            reason: why.to_owned(),
        });
        (counts.collect(), gaps.collect())
    }
}

fn reason(r: UnfinishedReason) -> &'static str {
    match r {
        UnfinishedReason::TimeLimit => TIME_LIMIT,
        UnfinishedReason::MatchCap => MATCH_CAP,
    }
}

/// Reasons of rule gaps in reports.
pub(crate) const TIME_LIMIT: &str = "time limit";
pub(crate) const MATCH_CAP: &str = "match cap";

impl<'a> YaraPass<'a> {
    fn new(worker: &Worker, ctx: &'a JobContext) -> Option<Self> {
        let rules = ctx.rules.as_ref()?;
        let scanner = ChunkScanner::new(rules, limits(worker, ctx));
        Some(Self {
            scanner,
            told: Told::default(),
        })
    }

    fn window(
        &mut self,
        worker: &Worker,
        w: &ChunkWindow,
        data: &[u8],
        bad: &[(Range<u64>, String)],
        sparse: &[Range<u64>],
        rows: &mut Rows<'_>,
    ) {
        let started = Instant::now();
        let _span = tracing::info_span!("scan.yara", bytes = data.len()).entered();
        let at = |image: u64| usize::try_from(image - w.span.start).unwrap_or(usize::MAX);
        let core = at(w.core.start)..at(w.core.end);
        let found = self
            .scanner
            .scan(data, ImageOffset(w.span.start), core, sparse);
        self.take(&found, rows);
        let mut coverage = CoreCoverage::new(w.core.clone());
        coverage.sparse(sparse);
        let slow = self.told.unfinished(&found.unfinished);
        worker.metrics.rule_timeouts(slow as u64);
        if slow > 0 {
            let why = format!("{slow} rules ran out of time");
            coverage.mark(&w.core, "partial", Some(&why));
        }
        for (range, why) in bad {
            coverage.mark(range, "failed", Some(why));
        }
        coverage.write("yara", &mut rows.coverage);
        let n = w.core.end - w.core.start;
        worker
            .metrics
            .engine("yara", n, started.elapsed().as_secs_f64());
    }

    fn take(&mut self, found: &ChunkMatches, rows: &mut Rows<'_>) {
        for m in &found.matches {
            self.told.matched(m.rule, 1 + m.more);
            let row = MatchRow {
                rule: m.rule,
                pattern: m.pattern,
                image_offset: m.offset.0,
                length: m.len,
                window_base: m.window_base.0,
                window: Vec::new(),
                xor_key: m.xor_key,
                more: m.more,
                last: m.last.0,
            };
            rows.matches.push(&row, found.window(m));
        }
    }
}
