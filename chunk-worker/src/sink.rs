//! From what carvers and engines find to rows of tables.

mod files;
mod json;
mod ordered;
mod viruses;

pub(crate) use files::Inspected;
pub(crate) use ordered::Ordered;
pub(crate) use viruses::Av;

use crate::context::JobContext;
use arrow::array::RecordBatch;
use json::fields_json;
use ramsift_carvers::api::{Anchor, Artifact, Event, Finding, Sink};
use ramsift_engines::yara::{FileScanner, RuleInfo, ScanLimits};
use ramsift_layers::{ImageOffset, Severity};
use ramsift_proto::v1::{ObjectRef, SegmentRef};
use ramsift_store::Objects;
use ramsift_store::commits::SegmentPacks;
use ramsift_store::packs::{Copies, Meta, PackWriter, is_file};
use ramsift_store::report::batch_bytes;
use ramsift_store::tables::{
    AnchorsBuilder, CoverageBuilder, EventRow, EventsBuilder, FindingRow, FindingsBuilder,
    MatchesBuilder, MemoryMatchesBuilder, OrderedBuilder, SegmentError, SegmentWriter,
    YaraMatchesBuilder, detector_key, in_order, name, place_columns, row_id, schema, sort_batch,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Rows of one table are closed as a batch at this size.
const BATCH: usize = 2 << 20;
/// Rows that make about that many bytes.
const ROWS: usize = 7 << 10;
/// The size between two checkpoints, where a batch may cut across the order of rows.
const BURST: usize = 8 * BATCH;
/// Rows of one table that are worth a segment of their own. Less goes with the report, to share
/// one with other chunks.
const SEGMENT: usize = 4 << 20;
/// A segment is stored when it holds this many bytes, encoded.
const LARGEST: usize = 32 << 20;

/// Collects the rows of one task.
pub(crate) struct Rows<'a> {
    ctx: &'a JobContext,
    runtime: Handle,
    /// Physical address less image offset in the window at hand.
    delta: u64,
    /// What of the window at hand could not be read, and is zeros there.
    unread: Vec<Range<u64>>,
    keys: BTreeMap<&'static str, (Arc<str>, u64)>,
    json: String,
    pub(crate) findings: FindingsBuilder,
    events: EventsBuilder,
    anchors: AnchorsBuilder,
    pub(crate) matches: MatchesBuilder,
    pub(crate) memory_matches: MemoryMatchesBuilder,
    pub(crate) coverage: CoverageBuilder,
    pub(crate) ordered: OrderedBuilder,
    pub(crate) yara_matches: YaraMatchesBuilder,
    packs: PackWriter,
    files: Option<FileScanner<'a>>,
    /// Looks at files; at memory, too, where that is asked for.
    av: Option<Av>,
    memory_av: Option<Av>,
    held: BTreeMap<&'static str, Held>,
    segments: SegmentPacks,
    /// The first failure of the store; the attempt counts for nothing then.
    pub(crate) error: Option<String>,
}

/// Closed batches of one table, or the segment that they became.
#[derive(Default)]
struct Held {
    batches: Vec<RecordBatch>,
    bytes: usize,
    segment: Option<SegmentWriter>,
}

/// Batches of a table that is sorted by place in that order; others as they are.
fn in_place_order(
    table: &str,
    batches: Vec<RecordBatch>,
) -> Result<Vec<RecordBatch>, SegmentError> {
    match place_columns(table) {
        Some(c) => Ok(in_order(batches, c)?),
        None => Ok(batches),
    }
}

/// The rows of one task, ready to report.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) batches: Vec<(String, RecordBatch)>,
    pub(crate) segments: Vec<SegmentRef>,
    pub(crate) objects: Vec<ObjectRef>,
}

/// Rule metadata as JSON.
pub(crate) fn rule_json(r: &RuleInfo) -> String {
    let meta: serde_json::Map<String, serde_json::Value> = r
        .meta
        .iter()
        .map(|(k, v)| (k.clone(), serde_json::to_value(v).unwrap_or_default()))
        .collect();
    serde_json::json!({
        "rule": r.identifier, "namespace": r.namespace, "tags": r.tags, "meta": meta,
    })
    .to_string()
}

impl<'a> Rows<'a> {
    pub(crate) fn new(
        ctx: &'a JobContext,
        objects: Arc<dyn Objects>,
        av: Option<Av>,
        attempt: &str,
        limits: Option<ScanLimits>,
    ) -> Self {
        let runtime = Handle::current();
        let copies = Copies::parse(&ctx.plan.spec.copy_artifacts);
        let packs = PackWriter::new(objects.clone(), ctx.keys.clone(), runtime.clone(), copies);
        let mut error = None;
        let mut files = None;
        if let (Some(rules), Some(limits)) = (&ctx.rules, limits) {
            match FileScanner::new(rules, limits) {
                Ok(f) => files = Some(f.file_oriented_only(true)),
                Err(e) => error = Some(e.to_string()),
            }
        }
        Self {
            ctx,
            runtime,
            delta: 0,
            unread: Vec::new(),
            keys: BTreeMap::new(),
            json: String::new(),
            findings: FindingsBuilder::with_room(ROWS),
            events: EventsBuilder::with_room(ROWS),
            anchors: AnchorsBuilder::default(),
            matches: MatchesBuilder::default(),
            memory_matches: MemoryMatchesBuilder::default(),
            coverage: CoverageBuilder::default(),
            ordered: OrderedBuilder::default(),
            yara_matches: YaraMatchesBuilder::default(),
            packs,
            files,
            memory_av: av.clone().filter(|_| ctx.plan.spec.av != "files"),
            av: av.filter(|_| ctx.plan.spec.av != "memory"),
            held: BTreeMap::new(),
            segments: SegmentPacks::new(objects, ctx.keys.clone(), attempt),
            error,
        }
    }

    /// The window at hand: physical address of an image offset is that plus `delta`.
    pub(crate) fn set_delta(&mut self, delta: u64) {
        self.delta = delta;
    }

    /// What of the window at hand could not be read.
    pub(crate) fn set_unread(&mut self, unread: Vec<Range<u64>>) {
        self.unread = unread;
    }

    fn pa(&self, image: u64) -> Option<u64> {
        Some(image.wrapping_add(self.delta))
    }

    /// `carver:<name>` and the key of its ids.
    fn detector(&mut self, carver: &'static str) -> (Arc<str>, u64) {
        let ctx = self.ctx;
        self.keys
            .entry(carver)
            .or_insert_with(|| {
                let name = format!("carver:{carver}");
                let version = ctx.carvers.carver_version(carver).to_le_bytes();
                let key = detector_key(&name, &version);
                (name.into(), key)
            })
            .clone()
    }

    /// Runs all rules on files, the memory-safe ones too: in a file they say more than in an image.
    pub(crate) fn all_rules(mut self) -> Self {
        self.files = self.files.map(|f| f.file_oriented_only(false));
        self
    }

    pub(crate) fn fail(&mut self, what: impl std::fmt::Display) {
        self.error.get_or_insert_with(|| what.to_string());
    }

    fn take(
        &mut self,
        table: &'static str,
        b: Result<Option<RecordBatch>, arrow::error::ArrowError>,
    ) {
        let sorted = b.and_then(|b| match (b, place_columns(table)) {
            (Some(b), Some(c)) => sort_batch(b, c).map(Some),
            (b, _) => Ok(b),
        });
        let taken = match sorted {
            Ok(Some(b)) => self.hold(table, b),
            Ok(None) => Ok(()),
            Err(e) => Err(e.into()),
        };
        if let Err(e) = taken {
            self.fail(e);
        }
    }

    /// Keeps rows for the report; once they are many, encodes them as they come.
    fn hold(&mut self, table: &'static str, b: RecordBatch) -> Result<(), SegmentError> {
        let held = self.held.entry(table).or_default();
        match &mut held.segment {
            Some(s) => s.write(&b)?,
            None => {
                held.bytes += batch_bytes(&b);
                held.batches.push(b);
                if held.bytes >= SEGMENT
                    && let Some(schema) = schema(table)
                {
                    let mut s = SegmentWriter::new(table, schema)?;
                    for b in in_place_order(table, std::mem::take(&mut held.batches))? {
                        s.write(&b)?;
                    }
                    held.segment = Some(s);
                }
            }
        }
        if held.segment.as_ref().is_some_and(|s| s.held() > LARGEST) {
            self.spill(table)?;
        }
        Ok(())
    }

    /// Closes builders that have become large, between two pieces of work.
    pub(crate) fn checkpoint_rows(&mut self) {
        self.relieve(BATCH);
    }

    /// Closes builders of at least this size.
    fn relieve(&mut self, size: usize) {
        if self.findings.bytes() > size {
            let b = self.findings.finish();
            self.take(name::FINDINGS, b);
        }
        if self.events.bytes() > size {
            let b = self.events.finish();
            self.take(name::EVENTS, b);
        }
        if self.packs.rows.bytes() > size {
            let b = self.packs.rows.finish();
            self.take(name::ARTIFACTS, b);
        }
        if self.matches.bytes() > size {
            let b = self.matches.finish();
            self.take(name::MATCHES, b);
        }
        if self.yara_matches.bytes() > size {
            let b = self.yara_matches.finish();
            self.take(name::YARA_MATCHES, b);
        }
        if self.ordered.bytes() > size {
            let b = self.ordered.finish();
            self.take(name::ORDERED, b);
        }
        if self.memory_matches.bytes() > size {
            let b = self.memory_matches.finish();
            self.take(name::MEMORY_MATCHES, b);
        }
    }

    /// Stores the open segment of a table.
    fn spill(&mut self, table: &'static str) -> Result<(), SegmentError> {
        let held = self.held.entry(table).or_default();
        let Some(segment) = held.segment.take() else {
            return Ok(());
        };
        held.bytes = 0;
        let rows = segment.rows();
        let data = segment.finish()?;
        let added = self.segments.add(table, rows, data);
        if let Err(e) = self.runtime.block_on(added) {
            self.error.get_or_insert_with(|| e.to_string());
        }
        Ok(())
    }

    /// Closes everything.
    pub(crate) fn finish(mut self) -> Result<Collected, String> {
        if let Err(e) = self.packs.flush() {
            self.fail(e);
        }
        let all = [
            (name::FINDINGS, self.findings.finish()),
            (name::EVENTS, self.events.finish()),
            (name::ARTIFACTS, self.packs.rows.finish()),
            (name::ANCHORS, self.anchors.finish()),
            (name::MATCHES, self.matches.finish()),
            (name::MEMORY_MATCHES, self.memory_matches.finish()),
            (name::COVERAGE, self.coverage.finish()),
            (name::ORDERED, self.ordered.finish()),
            (name::YARA_MATCHES, self.yara_matches.finish()),
        ];
        for (table, b) in all {
            self.take(table, b);
        }
        // What waits for its commit is held in memory: large tables are not.
        let tables: Vec<&'static str> = self.held.keys().copied().collect();
        for table in tables {
            if let Err(e) = self.spill(table) {
                self.fail(e);
            }
        }
        let mut batches = Vec::new();
        for (table, held) in self.held {
            match in_place_order(table, held.batches) {
                Ok(b) => batches.extend(b.into_iter().map(|b| (table.to_owned(), b))),
                Err(e) => {
                    self.error.get_or_insert_with(|| e.to_string());
                }
            }
        }
        if let Some(e) = self.error {
            return Err(e);
        }
        let segments = self.runtime.block_on(self.segments.finish());
        Ok(Collected {
            batches,
            segments: segments.map_err(|e| e.to_string())?,
            objects: self.packs.refs,
        })
    }
}

impl Sink for Rows<'_> {
    fn finding(&mut self, f: &Finding<'_>) {
        let (detector, key) = self.detector(f.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = fields_json(&mut json, f.fields);
        self.findings.push(&FindingRow {
            id: row_id(key, "image", "", f.offset.0, f.len),
            detector: &detector,
            kind: f.kind,
            severity: Severity::Info,
            severity_reason: "carved feature",
            scope: "image",
            image_offset: f.offset.0,
            physical_address: self.pa(f.offset.0),
            length: f.len,
            value: f.value,
            encoding: Some(f.encoding.as_str()),
            context: Some(f.context),
            fields,
            path: None,
            artifact: None,
            rule: None,
        });
        self.json = json;
        self.relieve(BURST);
    }

    fn event(&mut self, e: &Event<'_>) {
        let (_, key) = self.detector(e.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = fields_json(&mut json, e.fields);
        self.events.push(&EventRow {
            id: row_id(key, "image", "", e.offset.0, e.len),
            time: e.time,
            inferred_time: e.inferred_time,
            inferred_from: e.inferred_from,
            raw_time: e.raw_time,
            time_kind: e.time_kind,
            source: e.kind,
            host: e.host,
            program: e.program,
            pid: e.pid,
            message: e.message,
            fields,
            encoding: e.encoding.as_str(),
            image_offset: e.offset.0,
            physical_address: self.pa(e.offset.0),
            length: e.len,
            row: None,
        });
        self.json = json;
        self.attack(e, e.offset.0, self.pa(e.offset.0), "image", None);
        self.relieve(BURST);
    }

    fn artifact(&mut self, a: &Artifact<'_>) {
        let (_, key) = self.detector(a.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = fields_json(&mut json, a.fields).map(str::to_owned);
        self.json = json;
        let meta = Meta {
            id: row_id(key, "image", "", a.offset.0, a.data.len() as u64),
            detector: a.carver,
            kind: a.kind,
            name: a.name.map(str::to_owned),
            image_offset: a.offset.0,
            physical_address: self.pa(a.offset.0),
            complete: a.complete,
            gap: a.gap.map(str::to_owned),
            fields,
        };
        let (from, to) = (a.offset.0, a.offset.0.saturating_add(a.data.len() as u64));
        // What could not be read was zeros here: another reading may find something else there.
        let torn = self.unread.iter().any(|r| r.start < to && from < r.end);
        let added = if torn || self.packs.copies(a.kind) {
            self.packs.add(meta, a.data)
        } else {
            Ok(self.packs.refer_to(&meta, a.data))
        };
        match added {
            Ok(sha) if is_file(a.kind) => {
                let path = format!("{}/{}", a.offset.0, a.kind);
                self.inspect(&Inspected {
                    offset: a.offset.0,
                    physical: self.pa(a.offset.0),
                    path: &path,
                    named: false,
                    kind: a.kind,
                    sha256: &sha,
                    data: a.data,
                    gap: a.gap,
                    file_oriented_only: true,
                });
            }
            Ok(_) => {}
            Err(e) => self.fail(e),
        }
        self.relieve(BURST);
    }

    fn anchor(&mut self, a: &Anchor<'_>) {
        let pa = self.pa(a.offset.0);
        self.anchors.push(a.kind, a.offset.0, pa, a.data);
    }

    fn checkpoint(&mut self, _done: ImageOffset) {
        self.relieve(BATCH);
    }
}
