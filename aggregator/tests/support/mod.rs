//! A small job whose reports lie in the store, ready to be sealed.

#![allow(dead_code)]

use arrow::array::RecordBatch;
use ramsift_aggregator::{Aggregator, CommitLimits, FinaliseInfo};
use ramsift_layers::format::Layout;
use ramsift_layers::hash::PieceHasher;
use ramsift_layers::run::RunMap;
use ramsift_layers::{ChunkParams, Severity, SourcePin};
use ramsift_proto::v1::{CommitRecord, JobSpec, Outcome, SegmentPart, SegmentRef, TaskReport};
use ramsift_store::commits::{CommitSegments, encode};
use ramsift_store::job::to_json;
use ramsift_store::query::QueryLimits;
use ramsift_store::tables::{
    CoverageBuilder, CoverageRow, FindingRow, FindingsBuilder, name, write_segment,
};
use ramsift_store::{Keys, LocalObjects, MemoryLedger, Objects, Plan};
use std::sync::Arc;

/// Bytes of a chunk and of the image, whose last chunk is short.
pub(crate) const CHUNK: u64 = 64 << 10;
pub(crate) const IMAGE: u64 = 3 * CHUNK + 5000;
pub(crate) const JOB: &str = "j";

/// What a chunk worker tells of one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) report: TaskReport,
    pub(crate) coverage: Vec<CoverageRow>,
    /// Image offsets of findings.
    pub(crate) findings: Vec<u64>,
}

pub(crate) fn evidence() -> Vec<u8> {
    (0..IMAGE).map(|i| (i * 7 % 251) as u8).collect()
}

pub(crate) fn plan() -> Plan {
    let spec = JobSpec {
        job: JOB.into(),
        source: "a.mem".into(),
        unstructured: true,
        clamav: true,
        av: "files".into(),
        chunk_size: CHUNK,
        overlap: 4096,
        submitted_micros: 1_000_000,
        ..JobSpec::default()
    };
    Plan {
        spec,
        pin: SourcePin::Ram {
            name: "a.mem".into(),
            size: IMAGE,
        },
        layout: Layout {
            format: "lime".into(),
            version: None,
            runs: RunMap::raw(IMAGE),
            arch: None,
            dtb_hints: Vec::new(),
            notes: Vec::new(),
            gaps: Vec::new(),
            extents: None,
            page_files: Vec::new(),
        },
        chunks: ChunkParams {
            size: CHUNK,
            overlap: 4096,
            ..ChunkParams::default()
        },
        chunk_count: IMAGE.div_ceil(CHUNK),
        views: Vec::new(),
        reference_time: None,
    }
}

/// What an honest worker tells of every chunk.
pub(crate) fn honest() -> Vec<Told> {
    let data = evidence();
    let chunk = |i: u64| {
        let r = i * CHUNK..((i + 1) * CHUNK).min(IMAGE);
        let mut h = PieceHasher::new(&r, IMAGE).expect("a subtree");
        h.update(&data[r.start as usize..r.end as usize]);
        let row = |start, end, outcome: &str| CoverageRow {
            engine: "carvers".into(),
            outcome: outcome.into(),
            start,
            end,
            reason: None,
        };
        Told {
            report: TaskReport {
                job: JOB.into(),
                task: format!("chunk-{i}"),
                attempt: format!("attempt-{i}"),
                outcome: Outcome::Done.into(),
                hash: h.finish(),
                ..TaskReport::default()
            },
            coverage: vec![
                row(r.start, r.start + 4096, "sparse"),
                row(r.start + 4096, r.end, "scanned"),
            ],
            findings: vec![r.start + 10, r.start + 4500],
        }
    };
    (0..IMAGE.div_ceil(CHUNK)).map(chunk).collect()
}

fn findings(at: &[u64]) -> Option<RecordBatch> {
    let mut b = FindingsBuilder::default();
    for at in at {
        b.push(&FindingRow {
            id: u128::from(*at).to_be_bytes(),
            detector: "carver:url",
            kind: "url",
            severity: Severity::Info,
            severity_reason: "",
            scope: "image",
            image_offset: *at,
            physical_address: Some(*at),
            length: 4,
            value: "http://a.example.org/",
            encoding: None,
            context: None,
            fields: None,
            path: None,
            artifact: None,
            rule: None,
        });
    }
    b.finish().expect("valid")
}

fn coverage(rows: &[CoverageRow]) -> Option<RecordBatch> {
    let mut b = CoverageBuilder::default();
    rows.iter().for_each(|r| b.push(r));
    b.finish().expect("valid")
}

/// The rows of one table that a task told.
type Rows<'a> = &'a dyn Fn(&Told) -> Option<RecordBatch>;

/// Stores the plan and what was told, as an aggregator commits it: one segment of a table for all.
pub(crate) async fn store(objects: &dyn Objects, told: &[Told]) {
    let keys = Keys::new(JOB);
    let put = async |key: &str, data: Vec<u8>| {
        objects.put(key, data.into()).await.expect("stored");
    };
    put(&keys.plan(), to_json(&plan()).expect("JSON").to_vec()).await;
    let tables: [(&str, Rows<'_>); 2] = [
        (name::COVERAGE, &|t| coverage(&t.coverage)),
        (name::FINDINGS, &|t| findings(&t.findings)),
    ];
    let mut segments = Vec::new();
    for (table, of) in tables {
        let (mut parts, mut batches) = (Vec::new(), Vec::new());
        for t in told {
            let Some(batch) = of(t) else { continue };
            parts.push(SegmentPart {
                task: t.report.task.clone(),
                attempt: t.report.attempt.clone(),
                rows: batch.num_rows() as u64,
            });
            batches.push(batch);
        }
        let Some(first) = batches.first() else {
            continue;
        };
        let data = write_segment(table, first.schema(), &batches).expect("Parquet");
        let key = keys.segment("1", table);
        segments.push(SegmentRef {
            table: table.into(),
            key: key.clone(),
            rows: parts.iter().map(|p| p.rows).sum(),
            bytes: data.len() as u64,
            blake3: blake3::hash(&data).to_hex().to_string(),
            parts,
        });
        put(&key, data).await;
    }
    let record = CommitRecord {
        id: "1".into(),
        job: JOB.into(),
        time_micros: 2_000_000,
        reports: told.iter().map(|t| t.report.clone()).collect(),
        segments,
    };
    record_again(objects, &record).await;
}

/// Stores the job's commit record.
pub(crate) async fn record_again(objects: &dyn Objects, record: &CommitRecord) {
    let key = Keys::new(JOB).commit(&record.id);
    let data = encode(record.clone(), CommitSegments::default()).expect("JSON");
    objects.put(&key, data).await.expect("stored");
}

pub(crate) fn aggregator(objects: &Arc<dyn Objects>) -> Aggregator {
    let ledger = Arc::new(MemoryLedger::default());
    Aggregator::new(objects.clone(), ledger, CommitLimits::default())
}

/// What an aggregator says of itself that has, or has not, a clamd.
pub(crate) fn info(clamav: Option<&str>) -> FinaliseInfo {
    FinaliseInfo {
        carvers: [("url".to_owned(), 1)].into(),
        carvers_digest: |_| "d".into(),
        clamav: clamav.map(str::to_owned),
        limits: QueryLimits::default(),
    }
}

/// A store in a folder that is removed with it.
pub(crate) fn folder() -> (tempfile::TempDir, Arc<dyn Objects>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let objects = LocalObjects::open(dir.path()).expect("a store");
    (dir, Arc::new(objects))
}

/// Files of a manifest whose content is not what it says.
pub(crate) async fn differing(objects: &dyn Objects, m: &ramsift_store::Manifest) -> Vec<String> {
    let mut out = Vec::new();
    for f in &m.files {
        let (data, _) = objects.get(&f.key).await.expect("a table");
        if blake3::hash(&data).to_hex().as_str() != f.blake3 || data.len() as u64 != f.bytes {
            out.push(f.key.clone());
        }
    }
    out
}
