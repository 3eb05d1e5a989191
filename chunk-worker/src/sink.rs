//! From what carvers and engines find to rows of tables.

use crate::attacks;
use crate::context::JobContext;
use arrow::array::RecordBatch;
use md5::{Digest, Md5};
use ramsift_carvers::api::{Anchor, Artifact, Event, Field, Finding, Sink};
use ramsift_engines::clamav::{AvVerdict, Clamd};
use ramsift_engines::yara::{FileFacts, FileScanner, RuleInfo, ScanLimits, UnfinishedReason};
use ramsift_layers::{ImageOffset, Severity};
use ramsift_proto::v1::{ObjectRef, SegmentRef};
use ramsift_store::Objects;
use ramsift_store::packs::{Copies, Meta, PackWriter, is_file};
use ramsift_store::report::batch_bytes;
use ramsift_store::tables::{
    AnchorsBuilder, CoverageBuilder, CoverageRow, EventRow, EventsBuilder, FindingRow,
    FindingsBuilder, MatchesBuilder, MemoryMatchesBuilder, OrderedBuilder, SegmentError,
    SegmentWriter, YaraMatchesBuilder, detector_key, in_order, name, place_columns, row_id, schema,
    sort_batch,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
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
    objects: Arc<dyn Objects>,
    runtime: Handle,
    attempt: String,
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
    segments: Vec<SegmentRef>,
    /// The first failure of the store; the attempt counts for nothing then.
    pub(crate) error: Option<String>,
}

/// The virus scanner, and what to do when it goes away.
#[derive(Clone, Debug)]
pub(crate) struct Av {
    pub(crate) clamd: Clamd,
    /// Nobody else can do the task when clamd stays away: go on without it, and say so.
    pub(crate) alone: bool,
    /// Why clamd is given up.
    pub(crate) gone: Arc<OnceLock<String>>,
}

/// How long a scan that has only this clamd waits for it to come back.
const CLAMD_PATIENCE: Duration = Duration::from_secs(10);

impl Av {
    pub(crate) async fn scan(&self, data: &[u8]) -> AvVerdict {
        let given_up = || {
            let reason = self.gone.get()?.clone();
            Some(AvVerdict::NotScanned { reason })
        };
        let until = Instant::now() + CLAMD_PATIENCE;
        let mut wait = Duration::from_millis(250);
        loop {
            if let Some(v) = given_up() {
                return v;
            }
            let reason = match self.clamd.scan(data).await {
                AvVerdict::Error { reason } if self.alone => reason,
                v => return v,
            };
            if Instant::now() >= until {
                self.gone
                    .get_or_init(|| format!("clamd stopped answering: {reason}"));
                continue;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }
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
            objects,
            runtime,
            attempt: attempt.to_owned(),
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
            segments: Vec::new(),
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
        let n = self.segments.len();
        let key = self
            .ctx
            .keys
            .segment(&format!("{}-{n}", self.attempt), table);
        let rows = segment.rows();
        let data = segment.finish()?;
        let blake3 = blake3::hash(&data).to_hex().to_string();
        let bytes = data.len() as u64;
        if let Err(e) = self.runtime.block_on(self.objects.put(&key, data.into())) {
            self.error.get_or_insert_with(|| e.to_string());
        }
        self.segments.push(SegmentRef {
            table: table.to_owned(),
            key,
            rows,
            bytes,
            blake3,
            parts: Vec::new(),
        });
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
        match self.error {
            Some(e) => Err(e),
            None => Ok(Collected {
                batches,
                segments: self.segments,
                objects: self.packs.refs,
            }),
        }
    }

    /// Rules and the virus scanner on content that is a file.
    pub(crate) fn inspect(&mut self, f: &Inspected<'_>) {
        self.rules(f);
        if let Some(av) = self.av.clone() {
            let verdict = self.runtime.block_on(av.scan(f.data));
            self.av(f, verdict, &av.clamd.version().engine);
        }
    }

    fn rules(&mut self, f: &Inspected<'_>) {
        let (Some(scanner), Some(rules)) = (&mut self.files, &self.ctx.rules) else {
            return;
        };
        let mut facts = FileFacts::of(if f.named { f.path } else { "" }, f.kind);
        f.sha256.clone_into(&mut facts.sha256);
        if !f.named {
            facts.extension = format!(".{}", f.kind);
        }
        if scanner.wants_md5() {
            facts.md5 = hex::encode(Md5::digest(f.data));
        }
        let scan = scanner.scan_file(f.data, &facts);
        for hit in scan.hits {
            let Some(r) = rules.rules().get(hit.rule as usize) else {
                continue;
            };
            if f.file_oriented_only && !r.is_for_files() {
                continue;
            }
            let matches: Vec<_> = hit
                .matches
                .iter()
                .map(|m| {
                    let name = r.patterns.get(m.pattern as usize);
                    serde_json::json!({"pattern": name, "offset": m.offset, "length": m.len})
                })
                .collect();
            let mut fields = serde_json::json!({"matches": matches, "counts": hit.counts});
            if let Some(gap) = f.gap {
                fields["gap"] = gap.into();
            }
            let key = detector_key(&format!("yara:{}", r.full_name()), &rules.digest());
            self.findings.push(&FindingRow {
                detector: "yara",
                kind: "yara",
                severity: r.severity,
                severity_reason: &r.severity_reason,
                value: &r.identifier,
                fields: Some(&fields.to_string()),
                rule: Some(&rule_json(r)),
                ..f.row(key)
            });
        }
        let slow = scan.unfinished.iter();
        let slow = slow.filter(|u| u.reason == UnfinishedReason::TimeLimit);
        let slow = slow.map(|u| u.rule).collect::<BTreeSet<u32>>().len();
        if slow > 0 {
            let why = format!("{}: {slow} rules were not run to their end", f.path);
            self.not_scanned(f, "yara files", "partial", why);
        }
    }

    fn not_scanned(&mut self, f: &Inspected<'_>, engine: &str, outcome: &str, reason: String) {
        self.coverage.push(&CoverageRow {
            engine: engine.into(),
            outcome: outcome.into(),
            start: f.offset,
            end: f.offset + f.data.len() as u64,
            reason: Some(reason),
        });
    }

    fn av(&mut self, f: &Inspected<'_>, verdict: AvVerdict, engine: &str) {
        match verdict {
            AvVerdict::Clean => {}
            AvVerdict::Infected(signature) => {
                let fields = serde_json::json!({"engine": engine}).to_string();
                self.findings.push(&FindingRow {
                    detector: "clamav",
                    kind: "av",
                    severity: Severity::High,
                    severity_reason: "anti-virus verdict",
                    value: &signature,
                    fields: Some(&fields),
                    ..f.row(detector_key(&format!("clamav:{signature}"), &[]))
                });
            }
            AvVerdict::NotScanned { reason } => {
                self.not_scanned(f, "clamav", "not scanned", reason);
            }
            // Not a word on the object: the task is tried again when clamd works.
            AvVerdict::Error { reason } => self.fail(format!("clamd failed: {reason}")),
        }
    }
}

/// Content for file-oriented rules and the virus scanner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inspected<'a> {
    /// Where its first byte lies in the image.
    pub(crate) offset: u64,
    pub(crate) physical: Option<u64>,
    /// What findings call it: a path inside the image, or the file's own.
    pub(crate) path: &'a str,
    /// The path is the file's own.
    pub(crate) named: bool,
    /// What it is: `pe`, `cached_file`, …
    pub(crate) kind: &'a str,
    pub(crate) sha256: &'a str,
    pub(crate) data: &'a [u8],
    /// Why it is not whole.
    pub(crate) gap: Option<&'a str>,
    /// Rules that are not file-oriented are decided elsewhere: over the image, or over the process.
    pub(crate) file_oriented_only: bool,
}

impl Inspected<'_> {
    /// A finding on it, less what the detector says.
    fn row(&self, detector: u64) -> FindingRow<'_> {
        let len = self.data.len() as u64;
        FindingRow {
            id: row_id(detector, "file", self.path, self.offset, len),
            detector: "",
            kind: "",
            severity: Severity::Info,
            severity_reason: "",
            scope: "file",
            image_offset: self.offset,
            physical_address: self.physical,
            length: len,
            value: "",
            encoding: None,
            context: None,
            fields: None,
            path: Some(self.path),
            artifact: Some(self.sha256),
            rule: None,
        }
    }
}

/// Fields as a JSON object in `out`; nothing without fields.
fn fields_json<'s>(out: &'s mut String, fields: &[(&'static str, Field<'_>)]) -> Option<&'s str> {
    if fields.is_empty() {
        return None;
    }
    out.clear();
    out.push('{');
    for (i, (k, v)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push('"');
        out.push_str(k);
        out.push_str("\":");
        match v {
            Field::Int(n) => {
                let _ = write!(out, "{n}");
            }
            Field::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Field::Str(s) => json_string(out, s),
            Field::List(items) => {
                out.push('[');
                for (i, s) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    json_string(out, s);
                }
                out.push(']');
            }
        }
    }
    out.push('}');
    Some(out)
}

/// A JSON string; the common case has nothing to escape.
fn json_string(out: &mut String, s: &str) {
    out.push('"');
    // Without a way out, so that the compiler looks at many bytes at a time.
    let special = |b: u8| (b < 0x20) | (b == b'"') | (b == b'\\');
    if !s.bytes().fold(false, |any, b| any | special(b)) {
        out.push_str(s);
    } else {
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if u32::from(c) < 0x20 => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
    }
    out.push('"');
}

impl Rows<'_> {
    /// The virus scanner, where it is to look at memory.
    pub(crate) fn memory_av(&self) -> Option<Av> {
        self.memory_av.clone()
    }

    /// A signature that matches in the image.
    pub(crate) fn virus_in_image(
        &mut self,
        signature: &str,
        at: u64,
        len: u64,
        data: &[u8],
        engine: &str,
    ) {
        let physical = self.pa(at);
        self.virus(
            signature,
            "image",
            None,
            (at, physical, len),
            data,
            serde_json::json!({"engine": engine}),
        );
    }

    /// A signature that matches in memory of a process across pages that lie apart in the image.
    pub(crate) fn virus_in_order(
        &mut self,
        signature: &str,
        o: &Ordered<'_>,
        len: u64,
        data: &[u8],
        engine: &str,
    ) {
        let mut fields =
            serde_json::json!({"engine": engine, "virtual_address": format!("{:#x}", o.address)});
        fields["pieces"] = serde_json::json!(o.pieces);
        fields["order"] = o.name.into();
        self.virus(
            signature,
            o.scope(),
            Some(o.name),
            (o.image_offset, o.physical_address, len),
            data,
            fields,
        );
    }

    fn virus(
        &mut self,
        signature: &str,
        scope: &str,
        path: Option<&str>,
        (at, physical, len): (u64, Option<u64>, u64),
        data: &[u8],
        fields: serde_json::Value,
    ) {
        let key = detector_key(&format!("clamav:{signature}"), &[]);
        self.findings.push(&FindingRow {
            id: row_id(key, scope, "", at, len),
            detector: "clamav",
            kind: "av",
            severity: Severity::High,
            severity_reason: "an anti-virus verdict on memory",
            scope,
            image_offset: at,
            physical_address: physical,
            length: len,
            value: signature,
            encoding: None,
            context: Some(&data[..data.len().min(CONTEXT)]),
            fields: Some(&fields.to_string()),
            path,
            artifact: None,
            rule: None,
        });
        self.relieve(BURST);
    }
}

/// Bytes of what a signature matches that go with a finding.
const CONTEXT: usize = 256;

/// Where something lies whose pages were looked at in their own order.
#[derive(Debug)]
pub(crate) struct Ordered<'a> {
    /// Whose order: `file:/var/log/auth.log`, `process:sshd[812]`.
    pub(crate) name: &'a str,
    /// Its first byte.
    pub(crate) image_offset: u64,
    pub(crate) physical_address: Option<u64>,
    /// Of its first byte in the order: an offset in the file, or a virtual address.
    pub(crate) address: u64,
    /// The order breaks off at its start or its end.
    pub(crate) cut: bool,
    /// Image offset and length of what it is made of.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Ordered<'_> {
    /// Its fields, added to those that a row has.
    fn fields(&self, own: Option<&str>) -> String {
        let mut all: serde_json::Map<String, serde_json::Value> = own
            .and_then(|f| serde_json::from_str(f).ok())
            .unwrap_or_default();
        all.insert("order".into(), self.name.into());
        all.insert("order_address".into(), self.address.into());
        if self.pieces.len() > 1 {
            all.insert("pieces".into(), serde_json::json!(self.pieces));
        }
        if self.cut {
            all.insert("cut".into(), true.into());
        }
        serde_json::Value::Object(all).to_string()
    }

    fn scope(&self) -> &'static str {
        if self.name.starts_with("file:") {
            "file"
        } else {
            "process"
        }
    }
}

impl Rows<'_> {
    /// A request of a web log that is an attack is a finding besides.
    fn attack(
        &mut self,
        e: &Event<'_>,
        image_offset: u64,
        physical_address: Option<u64>,
        scope: &str,
        path: Option<&str>,
    ) {
        let Some(a) = attacks::of(e) else { return };
        let detector = format!("weblog:{}", a.family);
        let fields = serde_json::json!({"string": a.string, "field": a.field, "client": e.host});
        self.findings.push(&FindingRow {
            id: row_id(
                detector_key(&detector, &[1]),
                scope,
                "",
                image_offset,
                e.len,
            ),
            detector: &detector,
            kind: "attack",
            severity: a.severity,
            severity_reason: "well-known attack string in a web log",
            scope,
            image_offset,
            physical_address,
            length: e.len,
            value: e.message,
            encoding: Some(e.encoding.as_str()),
            context: None,
            fields: Some(&fields.to_string()),
            path,
            artifact: None,
            rule: None,
        });
    }

    /// A feature that touches the end of physically adjacent bytes, as it stands in its own order.
    pub(crate) fn finding_in_order(&mut self, f: &Finding<'_>, o: &Ordered<'_>) {
        let (detector, key) = self.detector(f.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = o.fields(fields_json(&mut json, f.fields));
        self.json = json;
        self.findings.push(&FindingRow {
            id: row_id(key, "order", "", o.image_offset, f.len),
            detector: &detector,
            kind: f.kind,
            severity: Severity::Info,
            severity_reason: "carved feature",
            scope: o.scope(),
            image_offset: o.image_offset,
            physical_address: o.physical_address,
            length: f.len,
            value: f.value,
            encoding: Some(f.encoding.as_str()),
            context: Some(f.context),
            fields: Some(&fields),
            path: Some(o.name),
            artifact: None,
            rule: None,
        });
        self.relieve(BURST);
    }

    /// A record that does.
    pub(crate) fn event_in_order(&mut self, e: &Event<'_>, o: &Ordered<'_>) {
        let (_, key) = self.detector(e.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = o.fields(fields_json(&mut json, e.fields));
        self.events.push(&EventRow {
            id: row_id(key, "order", "", o.image_offset, e.len),
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
            fields: Some(&fields),
            encoding: e.encoding.as_str(),
            image_offset: o.image_offset,
            physical_address: o.physical_address,
            length: e.len,
            row: Some(o.name),
        });
        self.json = json;
        self.attack(
            e,
            o.image_offset,
            o.physical_address,
            o.scope(),
            Some(o.name),
        );
        self.relieve(BURST);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_valid_json_whatever_they_hold() {
        let mut s = String::new();
        let nasty = "a\"b\\c\n\u{1}é";
        let list = [nasty.to_owned(), String::new()];
        let all = [
            ("x", Field::Str(nasty)),
            ("n", Field::Int(-3)),
            ("b", Field::Bool(true)),
            ("l", Field::List(&list)),
        ];
        let json = fields_json(&mut s, &all);
        let v: serde_json::Value = serde_json::from_str(json.expect("fields")).expect("json");
        assert_eq!(v["x"], nasty);
        assert_eq!(v["n"], -3);
        assert_eq!(v["b"], true);
        assert_eq!(v["l"], serde_json::json!([nasty, ""]));
        assert_eq!(fields_json(&mut s, &[]), None);
    }
}
