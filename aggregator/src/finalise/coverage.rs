//! The coverage table: rows in order, neighbours of one outcome joined, bytes summed on the way.

use super::FinaliseError;
use super::choose::Chosen;
use super::cores::Cores;
use super::once;
use arrow::array::RecordBatch;
use ramsift_proto::v1::Outcome;
use ramsift_proto::{TaskId, view};
use ramsift_store::merge::{Filter, Segment};
use ramsift_store::tables::{self, CoverageBuilder, CoverageRow, coverage_rows, name};
use ramsift_store::{Coverage, Keys, Objects, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gaps that the manifest names one by one.
const MAX_GAPS: usize = 1000;

/// What speaks of parts of the file that are not in the image: its ranges are file offsets.
const CONTAINER: &str = "container";

/// What is said of bytes that nobody tells of.
const UNTOLD: &str = "no report accounts for these bytes";

/// The engines whose coverage sums to the image.
pub(super) fn engines(plan: &Plan) -> Vec<&'static str> {
    let mut out = vec!["carvers"];
    if !plan.spec.rules_digest.is_empty() {
        out.push("yara");
    }
    if plan.spec.clamav && plan.spec.av != "files" {
        out.push("clamav memory");
    }
    out
}

/// Joins the rows as they pass, sees to it that those of each engine are the whole image and no byte twice, and keeps
/// the sums and the gaps.
pub(super) struct Covered {
    engines: Vec<&'static str>,
    /// How far each engine that covers the image has come.
    cursors: BTreeMap<&'static str, u64>,
    image_len: u64,
    /// The engine of the rows that pass, when it covers the image.
    passing: Option<&'static str>,
    /// The row that its successors may still belong to.
    last: Option<CoverageRow>,
    sums: BTreeMap<String, Coverage>,
    gaps: Vec<String>,
}

impl Covered {
    pub(super) fn new(plan: &Plan, chosen: &Chosen) -> Self {
        let engines = engines(plan);
        let whole = engines.iter().filter(|_| plan.spec.unstructured);
        let mut gaps = Vec::new();
        for (task, r) in &chosen.reports {
            // Chunks have coverage; why a system can't be read stands in the view itself.
            let told = match task.parse() {
                Ok(TaskId::Chunk { .. }) => true,
                Ok(TaskId::View(v)) => v == view::SYSTEM || v == view::ANCHORED,
                _ => false,
            };
            if r.outcome() == Outcome::Failed && !told {
                gaps.push(format!("{task} failed: {}", r.reason));
            }
        }
        Self {
            cursors: whole.map(|e| (*e, 0)).collect(),
            image_len: plan.layout.runs.image_len(),
            passing: None,
            engines,
            last: None,
            sums: BTreeMap::new(),
            gaps,
        }
    }

    /// Writes the rows that no worker could: what the file lacks, and chunks that failed whole.
    pub(super) async fn unreported(
        &self,
        objects: &Arc<dyn Objects>,
        keys: &Keys,
        cores: &Cores<'_>,
        chosen: &Chosen,
    ) -> Result<Option<Segment>, FinaliseError> {
        let plan = cores.plan();
        let mut b = CoverageBuilder::default();
        for g in &plan.layout.gaps {
            b.push(&CoverageRow {
                engine: CONTAINER.to_owned(),
                outcome: "not scanned".to_owned(),
                start: g.file.start,
                end: g.file.end,
                reason: Some(g.reason.clone()),
            });
        }
        for engine in self.engines.iter().filter(|_| plan.spec.unstructured) {
            let mut gap = |outcome: &str, start, end, why: &str| {
                b.push(&CoverageRow {
                    engine: (*engine).to_owned(),
                    outcome: outcome.to_owned(),
                    start,
                    end,
                    reason: Some(why.to_owned()),
                });
            };
            for r in plan.layout.runs.missing() {
                gap("missing", r.start, r.end, "not in the file");
            }
            for (task, r) in &chosen.reports {
                if r.outcome() == Outcome::Failed {
                    for range in cores.of(task).await? {
                        gap("failed", range.start, range.end, &r.reason);
                    }
                }
            }
        }
        let query = |e: arrow::error::ArrowError| StoreError::Query(e.to_string());
        let Some(batch) = b.finish().map_err(query)? else {
            return Ok(None);
        };
        let damaged = |source| StoreError::Segment {
            what: name::COVERAGE.into(),
            source,
        };
        let data =
            tables::write_segment(name::COVERAGE, batch.schema(), &[batch]).map_err(damaged)?;
        let key = keys.segment("final", name::COVERAGE);
        let bytes = once::segment(objects.as_ref(), &key, data).await?;
        let segment = Segment { key, bytes };
        Ok(Some(segment))
    }

    /// What a row adds: itself as far as it is new, and a hole before it.
    fn account(&mut self, mut r: CoverageRow) -> Vec<CoverageRow> {
        let mut out = Vec::new();
        let engine = self.engines.iter().copied().find(|e| *e == r.engine);
        let engine = engine.filter(|e| self.cursors.contains_key(e));
        if self.passing != engine {
            out.extend(self.leave());
            self.passing = engine;
        }
        let (Some(engine), len) = (engine, self.image_len) else {
            if r.start < r.end {
                out.push(r);
            }
            return out;
        };
        let cursor = self.cursors.entry(engine).or_default();
        if r.start < *cursor || r.end > len || r.start >= r.end {
            let why = format!(
                "{engine}: reports tell of image offset {:#x} to {:#x} twice, or of bytes that are not there",
                r.start, r.end
            );
            note(&mut self.gaps, why);
            r.start = r.start.max(*cursor);
            r.end = r.end.min(len);
        }
        if r.start >= r.end {
            return out;
        }
        if *cursor < r.start {
            out.push(hole(engine, *cursor, r.start));
        }
        *cursor = r.end;
        out.push(r);
        out
    }

    /// The hole that the engine leaves whose rows have passed.
    fn leave(&mut self) -> Option<CoverageRow> {
        let engine = self.passing.take()?;
        let cursor = self.cursors.get_mut(engine)?;
        let from = std::mem::replace(cursor, self.image_len);
        (from < self.image_len).then(|| hole(engine, from, self.image_len))
    }

    /// Joins a row to the one before, or gives that one.
    fn join(&mut self, r: CoverageRow) -> Option<CoverageRow> {
        match &mut self.last {
            Some(l)
                if l.engine == r.engine
                    && l.outcome == r.outcome
                    && l.reason == r.reason
                    && l.end == r.start =>
            {
                l.end = r.end;
                None
            }
            _ => self.last.replace(r),
        }
    }

    /// Adds a row to the table, when it is whole.
    fn add(&mut self, r: CoverageRow, out: &mut CoverageBuilder) {
        if let Some(whole) = self.join(r) {
            self.count(&whole);
            out.push(&whole);
        }
    }

    /// Counts a row that is whole.
    fn count(&mut self, r: &CoverageRow) {
        let n = r.end.saturating_sub(r.start);
        // Engines that work on artifacts or rules don't cover the image byte by byte.
        if self.engines.contains(&r.engine.as_str()) {
            let c = self.sums.entry(r.engine.clone()).or_default();
            match r.outcome.as_str() {
                "scanned" => c.scanned += n,
                "sparse" => c.sparse += n,
                "partial" => c.partial += n,
                "failed" => c.failed += n,
                "missing" => c.missing += n,
                _ => {}
            }
        }
        let gap = !matches!(r.outcome.as_str(), "scanned" | "sparse");
        if gap {
            note(&mut self.gaps, words(r));
        }
    }

    /// What the sums say of the whole: an image without a single page of one repeated byte, or of nothing else, is no memory
    /// of a machine,
    /// unless a system was found in it.
    fn looks_like_memory(&self, plan: &Plan, recognised: bool) -> Option<String> {
        let c = self.sums.get("carvers")?;
        let all = plan.layout.runs.image_len();
        let told = plan
            .layout
            .gaps
            .iter()
            .any(|g| g.reason.starts_with(NO_MEMORY));
        if plan.layout.format != "raw" || recognised || told {
            return None;
        }
        let pages = all.div_ceil(4096);
        match (c.scanned, c.sparse) {
            (scanned, _) if scanned == all => Some(format!(
                "{NO_MEMORY}: none of its {pages} pages is of one repeated byte"
            )),
            (_, sparse) if sparse == all => Some(format!(
                "{NO_MEMORY}: each of its {pages} pages is of one repeated byte, so nothing was acquired"
            )),
            _ => None,
        }
    }

    /// Bytes by outcome and engine, and the gaps.
    pub(super) fn finish(
        mut self,
        plan: &Plan,
        recognised: bool,
    ) -> (BTreeMap<String, Coverage>, Vec<String>) {
        if let Some(doubt) = self.looks_like_memory(plan, recognised) {
            self.gaps.insert(0, doubt);
        }
        (self.sums, self.gaps)
    }
}

/// Adds a gap while there is room.
fn note(gaps: &mut Vec<String>, why: String) {
    match gaps.len().cmp(&MAX_GAPS) {
        std::cmp::Ordering::Less => gaps.push(why),
        std::cmp::Ordering::Equal => gaps.push("and more, in the coverage table".to_owned()),
        std::cmp::Ordering::Greater => {}
    }
}

/// Bytes that nobody tells of.
fn hole(engine: &str, start: u64, end: u64) -> CoverageRow {
    CoverageRow {
        engine: engine.to_owned(),
        outcome: "failed".to_owned(),
        start,
        end,
        reason: Some(UNTOLD.to_owned()),
    }
}

/// How a doubt begins that the whole file is no capture.
const NO_MEMORY: &str = "does not look like physical memory";

/// A gap in words.
fn words(r: &CoverageRow) -> String {
    let reason = r.reason.as_deref().unwrap_or("no reason given");
    if r.engine == CONTAINER {
        return format!("{reason} (file offset {:#x} to {:#x})", r.start, r.end);
    }
    format!(
        "{}: {} bytes from image offset {:#x} {}: {reason}",
        r.engine,
        r.end.saturating_sub(r.start),
        r.start,
        r.outcome
    )
}

fn batch_of(mut b: CoverageBuilder) -> Result<Option<RecordBatch>, StoreError> {
    b.finish().map_err(|e| StoreError::Query(e.to_string()))
}

impl Filter for Covered {
    fn rows(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>, StoreError> {
        let mut out = CoverageBuilder::default();
        for r in coverage_rows(&batch) {
            for r in self.account(r) {
                self.add(r, &mut out);
            }
        }
        batch_of(out)
    }

    fn end(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let mut out = CoverageBuilder::default();
        let mut holes: Vec<CoverageRow> = self.leave().into_iter().collect();
        // Engines of which there was not one row.
        let open = self.cursors.iter().filter(|(_, at)| **at < self.image_len);
        holes.extend(open.map(|(e, at)| hole(e, *at, self.image_len)));
        for h in holes {
            self.add(h, &mut out);
        }
        if let Some(whole) = self.last.take() {
            self.count(&whole);
            out.push(&whole);
        }
        batch_of(out)
    }
}
