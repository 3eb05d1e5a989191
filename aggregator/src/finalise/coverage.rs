//! The coverage table: rows in order, neighbours of one outcome joined, bytes summed on the way.

use super::FinaliseError;
use super::choose::Chosen;
use arrow::array::RecordBatch;
use ramsift_proto::TaskId;
use ramsift_proto::v1::Outcome;
use ramsift_store::merge::{Filter, Segment};
use ramsift_store::tables::{self, CoverageBuilder, CoverageRow, coverage_rows, name};
use ramsift_store::{Coverage, Keys, Objects, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gaps that the manifest names one by one.
const MAX_GAPS: usize = 1000;

/// What speaks of parts of the file that are not in the image: its ranges are file offsets.
const CONTAINER: &str = "container";

/// Joins the rows as they pass and keeps the sums and the gaps.
pub(super) struct Covered {
    engines: Vec<&'static str>,
    /// The row that its successors may still belong to.
    last: Option<CoverageRow>,
    sums: BTreeMap<String, Coverage>,
    gaps: Vec<String>,
}

impl Covered {
    pub(super) fn new(plan: &Plan, chosen: &Chosen) -> Self {
        let mut engines = vec!["carvers"];
        if !plan.spec.rules_digest.is_empty() {
            engines.push("yara");
        }
        if plan.spec.clamav && plan.spec.av != "files" {
            engines.push("clamav memory");
        }
        let mut gaps = Vec::new();
        for (task, r) in &chosen.reports {
            let of_image = matches!(task.parse(), Ok(TaskId::Chunk { .. }));
            // The reason of a view that is not possible stands in the view itself.
            if r.outcome() == Outcome::Failed && !of_image && task != "view-system" {
                gaps.push(format!("{task} failed: {}", r.reason));
            }
        }
        Self {
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
        plan: &Plan,
        chosen: &Chosen,
    ) -> Result<Option<Segment>, FinaliseError> {
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
                    for range in core_of(plan, task) {
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
        let segment = Segment {
            key: keys.segment("final", name::COVERAGE),
            bytes: data.len() as u64,
        };
        objects
            .put(&segment.key, data.into())
            .await
            .map_err(StoreError::from)?;
        Ok(Some(segment))
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
        if gap && self.gaps.len() == MAX_GAPS {
            self.gaps.push("and more, in the coverage table".to_owned());
        } else if gap && self.gaps.len() < MAX_GAPS {
            self.gaps.push(words(r));
        }
    }

    /// What the sums say of the whole: an image without a single page of one repeated byte is no memory of a machine,
    /// unless a system was found in it.
    fn looks_like_memory(&self, plan: &Plan, recognised: bool) -> Option<String> {
        let c = self.sums.get("carvers")?;
        let all = plan.layout.runs.image_len();
        let told = plan
            .layout
            .gaps
            .iter()
            .any(|g| g.reason.starts_with(NO_MEMORY));
        let doubt = plan.layout.format == "raw" && !recognised && !told && c.scanned == all;
        doubt.then(|| {
            format!(
                "{NO_MEMORY}: none of its {} pages is of one repeated byte",
                all.div_ceil(4096)
            )
        })
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
        r.end - r.start,
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
            match &mut self.last {
                // A chunk that was settled twice.
                Some(l) if *l == r => {}
                Some(l)
                    if l.engine == r.engine
                        && l.outcome == r.outcome
                        && l.reason == r.reason
                        && l.end == r.start =>
                {
                    l.end = r.end;
                }
                _ => {
                    if let Some(whole) = self.last.replace(r) {
                        self.count(&whole);
                        out.push(&whole);
                    }
                }
            }
        }
        batch_of(out)
    }

    fn end(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let mut out = CoverageBuilder::default();
        if let Some(whole) = self.last.take() {
            self.count(&whole);
            out.push(&whole);
        }
        batch_of(out)
    }
}

/// The image ranges that a chunk task owns.
fn core_of(plan: &Plan, task: &str) -> Vec<std::ops::Range<u64>> {
    let Ok(id) = task.parse::<TaskId>() else {
        return Vec::new();
    };
    let TaskId::Chunk { index, .. } = &id else {
        return Vec::new();
    };
    let start = index * plan.chunks.size;
    let whole = start..(start + plan.chunks.size).min(plan.pin.size());
    plan.layout.runs.stored_in(id.narrow(whole))
}
