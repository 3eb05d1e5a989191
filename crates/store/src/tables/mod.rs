//! Tables: their schemas, the builders that fill them, and segments in Parquet.
//!
//! The schema of every table is documented in `docs/TABLES.md`.

mod artifacts;
mod captures;
mod count;
mod events;
mod findings;
mod memory_matches;
mod order;
mod ordered;
mod segment;
mod small;
mod yara_matches;

pub use artifacts::{ArtifactRow, ArtifactsBuilder};
pub use captures::captures_batch;
pub use count::{count_by, kind_column};
pub use events::{EventRow, EventsBuilder};
pub use findings::{FindingRow, FindingsBuilder};
pub use memory_matches::{MemoryMatchRow, MemoryMatchesBuilder, memory_match_rows};
pub use order::{PlaceColumns, in_order, place_columns, sort_batch};
pub use ordered::{OrderedBuilder, OrderedRow, ordered_rows};
pub(crate) use segment::{FAIR_GROUP, ROW_GROUP};
pub use segment::{
    SegmentError, SegmentWriter, from_ipc, read_segment, segment_batches, segment_columns, to_ipc,
    write_segment, writer_properties,
};
pub use small::{
    AnchorsBuilder, CoverageBuilder, CoverageRow, FrameRow, FramesBuilder, MatchRow,
    MatchesBuilder, SystemRow, ViewRow, anchor_rows, coverage_rows, match_rows, system_batch,
    system_row, views_batch,
};

pub use yara_matches::{YaraMatchRow, YaraMatchesBuilder};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::{Arc, LazyLock};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Names of the tables.
pub mod name {
    /// What detectors reported.
    pub const FINDINGS: &str = "findings";
    /// The timeline.
    pub const EVENTS: &str = "events";
    /// Recovered content.
    pub const ARTIFACTS: &str = "artifacts";
    /// Which bytes were looked at, per engine.
    pub const COVERAGE: &str = "coverage";
    /// One row on the evidence.
    pub const CAPTURES: &str = "captures";
    /// Spots that help to find the kernel (segments only).
    pub const ANCHORS: &str = "anchors";
    /// YARA matches that verdicts are reached from (segments only).
    pub const MATCHES: &str = "matches";
    /// The same in the memory of processes (segments only).
    pub const MEMORY_MATCHES: &str = "memory_matches";
    /// Pages that were carved in the order of their file or process, and where that order leaves them (segments only).
    pub const ORDERED: &str = "ordered";
    /// The system view.
    pub const SYSTEM: &str = "system";
    /// Who owns each page of memory.
    pub const FRAMES: &str = "frames";
    /// What came of each view.
    pub const VIEWS: &str = "views";
    /// Every match of the YARA rules that fired, where all are asked for.
    pub const YARA_MATCHES: &str = "yara_matches";
    /// Findings grouped by value, in the order in which a person should look (finished tables only).
    pub const GROUPS: &str = "groups";
}

/// Tables that users see, in the order in which they are made.
pub const FINAL: &[&str] = &[
    // First: the others are given their owners from it.
    name::FRAMES,
    name::FINDINGS,
    name::EVENTS,
    name::ARTIFACTS,
    name::YARA_MATCHES,
    name::COVERAGE,
    name::SYSTEM,
    name::VIEWS,
];

/// Whether a table is that of one view: `linux_pslist`. Its columns are the view's; the first, `row`,
/// numbers the rows.
pub fn is_view(table: &str) -> bool {
    let own = |system: &&str| {
        let rest = table.strip_prefix(system);
        rest.and_then(|r| r.strip_prefix('_'))
            .is_some_and(|r| !r.is_empty())
    };
    let of_os = ramsift_proto::view::SYSTEMS.iter().any(own);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    of_os && table.len() <= 64 && table.bytes().all(plain)
}

/// The schema that rows of a table must have, given the schema that they come with: the table's own, or
/// that of the rows where the table is a view's. `None` where that is not so.
pub fn accepted(table: &str, rows: &SchemaRef) -> Option<SchemaRef> {
    if is_view(table) {
        let numbered = rows
            .fields()
            .first()
            .is_some_and(|f| f.name() == "row" && f.data_type() == &DataType::UInt64);
        return numbered.then(|| rows.clone());
    }
    schema(table).filter(|s| s.fields() == rows.fields())
}

/// Identity of a detector: its name and the version of what it does. Part of every row's id.
pub fn detector_key(detector: &str, version: &[u8]) -> u64 {
    xxh3_64_with_seed(detector.as_bytes(), xxh3_64_with_seed(version, 0))
}

/// Identity of a row: of the detector, the space, the path inside an artifact, and where it begins
/// and ends. The same evidence and the same detector give the same id on every run.
pub fn row_id(detector_key: u64, space: &str, path: &str, start: u64, len: u64) -> [u8; 16] {
    let mut fixed = [0u8; 24];
    fixed[..8].copy_from_slice(&start.to_le_bytes());
    fixed[8..16].copy_from_slice(&len.to_le_bytes());
    fixed[16..].copy_from_slice(&xxh3_64_with_seed(space.as_bytes(), 1).to_le_bytes());
    if path.is_empty() {
        return xxh3_128_with_seed(&fixed, detector_key).to_be_bytes();
    }
    let whole = [&fixed[..], path.as_bytes()].concat();
    xxh3_128_with_seed(&whole, detector_key).to_be_bytes()
}

fn field(name: &str, t: DataType, null: bool) -> Field {
    Field::new(name, t, null)
}

fn text(name: &str) -> Field {
    field(name, DataType::Utf8, false)
}

fn text_or_null(name: &str) -> Field {
    field(name, DataType::Utf8, true)
}

fn number(name: &str) -> Field {
    field(name, DataType::UInt64, false)
}

fn number_or_null(name: &str) -> Field {
    field(name, DataType::UInt64, true)
}

fn id() -> Field {
    field("id", DataType::FixedSizeBinary(16), false)
}

fn time(name: &str) -> Field {
    field(
        name,
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        true,
    )
}

type Lazy = LazyLock<SchemaRef>;

static FINDINGS: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        id(),
        text("detector"),
        text("kind"),
        text("severity"),
        field("severity_rank", DataType::UInt8, false),
        text("severity_reason"),
        text("scope"),
        number("image_offset"),
        number_or_null("physical_address"),
        number("length"),
        text("value"),
        text_or_null("encoding"),
        field("context", DataType::Binary, true),
        text_or_null("fields"),
        text_or_null("path"),
        text_or_null("artifact"),
        text_or_null("rule"),
    ]))
});

static EVENTS: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        id(),
        time("time"),
        time("inferred_time"),
        text_or_null("inferred_from"),
        text("raw_time"),
        text("time_kind"),
        text("source"),
        text_or_null("host"),
        text_or_null("program"),
        field("pid", DataType::UInt32, true),
        text("message"),
        text_or_null("fields"),
        text_or_null("encoding"),
        number("image_offset"),
        number_or_null("physical_address"),
        number("length"),
        text_or_null("row"),
    ]))
});

static ARTIFACTS: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        id(),
        text("sha256"),
        text_or_null("md5"),
        text("detector"),
        text("kind"),
        text_or_null("name"),
        number("size"),
        number("image_offset"),
        number_or_null("physical_address"),
        field("complete", DataType::Boolean, true),
        text_or_null("gap"),
        text_or_null("object"),
        number_or_null("object_offset"),
        text_or_null("extents"),
        text_or_null("fields"),
    ]))
});

static COVERAGE: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text("engine"),
        text("outcome"),
        number("start"),
        number("end"),
        text_or_null("reason"),
    ]))
});

static ANCHORS: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text("kind"),
        number("image_offset"),
        number_or_null("physical_address"),
        field("data", DataType::Binary, false),
    ]))
});

static MATCHES: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        field("rule", DataType::UInt32, false),
        field("pattern", DataType::UInt32, false),
        number("image_offset"),
        number("length"),
        number("window_base"),
        field("window", DataType::Binary, false),
        field("xor_key", DataType::UInt8, true),
        number("more"),
        number("last"),
    ]))
});

static MEMORY_MATCHES: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        field("rule", DataType::UInt32, false),
        field("pattern", DataType::UInt32, false),
        field("unit", DataType::UInt32, false),
        number("address"),
        number("image_offset"),
        number("length"),
        field("pieces", DataType::UInt32, false),
        field("window", DataType::Binary, false),
        field("xor_key", DataType::UInt8, true),
        number("more"),
        number("last"),
    ]))
});

static YARA_MATCHES: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        id(),
        text("rule"),
        text("namespace"),
        text("pattern"),
        number("image_offset"),
        number_or_null("physical_address"),
        number("length"),
    ]))
});

static ORDERED: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        number("image_offset"),
        number("length"),
        field("starts", DataType::Boolean, false),
        field("ends", DataType::Boolean, false),
    ]))
});

static SYSTEM: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text("status"),
        text_or_null("reason"),
        text_or_null("os"),
        text_or_null("architecture"),
        text_or_null("banner"),
        number_or_null("banner_offset"),
        text_or_null("release"),
        text_or_null("build_id"),
        text("page_tables"),
        text("anchors"),
        number_or_null("physical_base"),
        text_or_null("damage"),
        text_or_null("found_by"),
        number_or_null("bytes_read"),
        text_or_null("page_files"),
    ]))
});

static FRAMES: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        number("image_offset"),
        number("physical_address"),
        number("length"),
        text("state"),
        text_or_null("owner"),
        number_or_null("virtual_address"),
        number_or_null("file_offset"),
    ]))
});

static VIEWS: Lazy = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text("view"),
        text("status"),
        number("rows"),
        number("doubtful"),
        number("anomalies"),
        text_or_null("detail"),
        number("micros"),
    ]))
});

/// Schema of a table by its name; `None` of those of views.
pub fn schema(table: &str) -> Option<SchemaRef> {
    let s: &Lazy = match table {
        name::FINDINGS => &FINDINGS,
        name::EVENTS => &EVENTS,
        name::ARTIFACTS => &ARTIFACTS,
        name::COVERAGE => &COVERAGE,
        name::ANCHORS => &ANCHORS,
        name::MATCHES => &MATCHES,
        name::MEMORY_MATCHES => &MEMORY_MATCHES,
        name::ORDERED => &ORDERED,
        name::YARA_MATCHES => &YARA_MATCHES,
        name::SYSTEM => &SYSTEM,
        name::VIEWS => &VIEWS,
        name::FRAMES => &FRAMES,
        _ => return None,
    };
    Some(Arc::clone(s))
}

/// The schema of a finished table: capture and pass in front of its own columns, owners behind those of a table whose
/// rows have a place.
pub fn finished_schema(table: &str, own: &SchemaRef) -> SchemaRef {
    let mut fields = vec![
        Arc::new(Field::new("capture", DataType::Utf8, false)),
        Arc::new(Field::new("pass", DataType::UInt16, false)),
    ];
    fields.extend(own.fields().iter().cloned());
    if place_columns(table).is_some() {
        fields.extend(crate::owners::fields());
    }
    if crate::splice::is_judged(table) {
        fields.push(Arc::new(Field::new("spliced", DataType::Boolean, true)));
    }
    Arc::new(Schema::new(fields))
}

/// The order of rows in a finished table: total, so that it doesn't depend on who found what when.
pub fn sort_keys(table: &str) -> &'static str {
    match table {
        name::FINDINGS => "image_offset, length, id",
        name::EVENTS | name::YARA_MATCHES => "image_offset, length, id",
        name::ARTIFACTS => "image_offset, size, id",
        name::FRAMES => "image_offset",
        name::COVERAGE => "engine, start, \"end\", outcome, reason",
        _ => "1",
    }
}
