//! Rows of the small tables: coverage, anchors, YARA matches, the system view.

use super::name::{ANCHORS, COVERAGE, FRAMES, MATCHES, SYSTEM, VIEWS};
use super::schema;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, RecordBatch, StringArray, StringBuilder, UInt8Builder,
    UInt32Builder, UInt64Array, UInt64Builder,
};
use arrow::datatypes::{UInt8Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use std::sync::Arc;

pub(super) fn batch(
    table: &str,
    columns: Vec<ArrayRef>,
) -> Result<Option<RecordBatch>, ArrowError> {
    let schema =
        schema(table).ok_or_else(|| ArrowError::SchemaError(format!("{table} has no schema")))?;
    if columns.first().is_none_or(|c| c.is_empty()) {
        return Ok(None);
    }
    RecordBatch::try_new(schema, columns).map(Some)
}

/// A range of the image and what one engine made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoverageRow {
    /// `carvers`, `yara`, `clamav`.
    pub engine: String,
    /// `scanned`, `sparse`, `partial`, `failed`, `missing`.
    pub outcome: String,
    /// First image offset.
    pub start: u64,
    /// Past the last.
    pub end: u64,
    /// Why it is not `scanned`.
    pub reason: Option<String>,
}

/// Collects coverage.
#[derive(Debug, Default)]
pub struct CoverageBuilder {
    engine: StringBuilder,
    outcome: StringBuilder,
    start: UInt64Builder,
    end: UInt64Builder,
    reason: StringBuilder,
}

impl CoverageBuilder {
    /// Adds a range; empty ones are dropped.
    pub fn push(&mut self, r: &CoverageRow) {
        if r.start >= r.end {
            return;
        }
        self.engine.append_value(&r.engine);
        self.outcome.append_value(&r.outcome);
        self.start.append_value(r.start);
        self.end.append_value(r.end);
        self.reason.append_option(r.reason.as_deref());
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        batch(
            COVERAGE,
            vec![
                Arc::new(self.engine.finish()),
                Arc::new(self.outcome.finish()),
                Arc::new(self.start.finish()),
                Arc::new(self.end.finish()),
                Arc::new(self.reason.finish()),
            ],
        )
    }
}

/// The rows of a coverage batch.
pub fn coverage_rows(b: &RecordBatch) -> Vec<CoverageRow> {
    let text = |i: usize| b.column(i).as_string::<i32>();
    let num = |i: usize| b.column(i).as_primitive::<UInt64Type>();
    (0..b.num_rows())
        .map(|i| CoverageRow {
            engine: text(0).value(i).to_owned(),
            outcome: text(1).value(i).to_owned(),
            start: num(2).value(i),
            end: num(3).value(i),
            reason: text(4).is_valid(i).then(|| text(4).value(i).to_owned()),
        })
        .collect()
}

/// Collects anchors.
#[derive(Debug, Default)]
pub struct AnchorsBuilder {
    kind: StringBuilder,
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    data: BinaryBuilder,
}

impl AnchorsBuilder {
    /// Adds an anchor.
    pub fn push(&mut self, kind: &str, image_offset: u64, pa: Option<u64>, data: &[u8]) {
        self.kind.append_value(kind);
        self.image_offset.append_value(image_offset);
        self.physical_address.append_option(pa);
        self.data.append_value(data);
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        batch(
            ANCHORS,
            vec![
                Arc::new(self.kind.finish()),
                Arc::new(self.image_offset.finish()),
                Arc::new(self.physical_address.finish()),
                Arc::new(self.data.finish()),
            ],
        )
    }
}

/// The rows of an anchors batch: kind, image offset, physical address, bytes.
pub fn anchor_rows(b: &RecordBatch) -> Vec<(String, u64, Option<u64>, Vec<u8>)> {
    let (kind, data) = (
        b.column(0).as_string::<i32>(),
        b.column(3).as_binary::<i32>(),
    );
    let off = b.column(1).as_primitive::<UInt64Type>();
    let pa = b.column(2).as_primitive::<UInt64Type>();
    (0..b.num_rows())
        .map(|i| {
            let pa = pa.is_valid(i).then(|| pa.value(i));
            (
                kind.value(i).to_owned(),
                off.value(i),
                pa,
                data.value(i).to_vec(),
            )
        })
        .collect()
}

/// One match of one YARA pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchRow {
    /// Number of the rule in its set.
    pub rule: u32,
    /// Number of the pattern in its rule.
    pub pattern: u32,
    /// First byte.
    pub image_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Image offset of the window's first byte.
    pub window_base: u64,
    /// Bytes around the match.
    pub window: Vec<u8>,
    /// Key of an `xor` pattern.
    pub xor_key: Option<u8>,
    /// Further matches of the pattern, in what the chunk holds of an aligned 64 MiB, that aren't listed.
    pub more: u64,
    /// First byte of the last of those.
    pub last: u64,
}

/// Collects matches.
#[derive(Debug, Default)]
pub struct MatchesBuilder {
    rule: UInt32Builder,
    pattern: UInt32Builder,
    image_offset: UInt64Builder,
    length: UInt64Builder,
    window_base: UInt64Builder,
    window: BinaryBuilder,
    xor_key: UInt8Builder,
    more: UInt64Builder,
    last: UInt64Builder,
    bytes: usize,
}

impl MatchesBuilder {
    /// Adds a match with the bytes around it.
    pub fn push(&mut self, m: &MatchRow, window: &[u8]) {
        self.rule.append_value(m.rule);
        self.pattern.append_value(m.pattern);
        self.image_offset.append_value(m.image_offset);
        self.length.append_value(m.length);
        self.window_base.append_value(m.window_base);
        self.window.append_value(window);
        self.xor_key.append_option(m.xor_key);
        self.more.append_value(m.more);
        self.last.append_value(m.last);
        self.bytes += 56 + window.len();
    }

    /// Roughly the bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.bytes = 0;
        batch(
            MATCHES,
            vec![
                Arc::new(self.rule.finish()),
                Arc::new(self.pattern.finish()),
                Arc::new(self.image_offset.finish()),
                Arc::new(self.length.finish()),
                Arc::new(self.window_base.finish()),
                Arc::new(self.window.finish()),
                Arc::new(self.xor_key.finish()),
                Arc::new(self.more.finish()),
                Arc::new(self.last.finish()),
            ],
        )
    }
}

/// The rows of a matches batch whose rule is wanted.
pub fn match_rows(b: &RecordBatch, wanted: &dyn Fn(u32) -> bool) -> Vec<MatchRow> {
    let rule = b.column(0).as_primitive::<UInt32Type>();
    let pattern = b.column(1).as_primitive::<UInt32Type>();
    let at = b.column(2).as_primitive::<UInt64Type>();
    let len = b.column(3).as_primitive::<UInt64Type>();
    let base = b.column(4).as_primitive::<UInt64Type>();
    let window = b.column(5).as_binary::<i32>();
    let key = b.column(6).as_primitive::<UInt8Type>();
    let more = b.column(7).as_primitive::<UInt64Type>();
    let last = b.column(8).as_primitive::<UInt64Type>();
    (0..b.num_rows())
        .filter(|i| wanted(rule.value(*i)))
        .map(|i| MatchRow {
            rule: rule.value(i),
            pattern: pattern.value(i),
            image_offset: at.value(i),
            length: len.value(i),
            window_base: base.value(i),
            window: window.value(i).to_vec(),
            xor_key: key.is_valid(i).then(|| key.value(i)),
            more: more.value(i),
            last: last.value(i),
        })
        .collect()
}

/// The one row of the system view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemRow {
    /// `recognised` or `not possible`.
    pub status: String,
    /// Why structured analysis is not possible.
    pub reason: Option<String>,
    /// `linux`, `windows`.
    pub os: Option<String>,
    /// `x86_64`, `aarch64`.
    pub architecture: Option<String>,
    /// The kernel's banner.
    pub banner: Option<String>,
    /// Its image offset.
    pub banner_offset: Option<u64>,
    /// Kernel release.
    pub release: Option<String>,
    /// Build id, hex.
    pub build_id: Option<String>,
    /// Candidates for the page-table root, as JSON.
    pub page_tables: String,
    /// How many anchors of each kind there were, as JSON.
    pub anchors: String,
    /// Where the memory of a raw image begins, when the kernel says that it is not at 0.
    pub physical_base: Option<u64>,
    /// What of the kernel's own tables lies in damaged pages, and what is read without them.
    pub damage: Option<String>,
    /// What led to the kernel: a known place, the anchors of chunks, a pass over the image.
    pub found_by: Option<String>,
    /// Bytes read of the capture until the kernel was open, a pass over the image aside.
    pub bytes_read: Option<u64>,
    /// Page files that were read with the capture, as JSON: number, source, bytes, and whether nobody named it. Whether they are the
    /// machine's own is told by its views.
    pub page_files: Option<String>,
}

/// The system view as a batch of one row.
pub fn system_batch(r: &SystemRow) -> Result<RecordBatch, ArrowError> {
    let text = |s: &Option<String>| -> ArrayRef { Arc::new(StringArray::from(vec![s.clone()])) };
    let plain = |s: &str| -> ArrayRef { Arc::new(StringArray::from(vec![s.to_owned()])) };
    let columns: Vec<ArrayRef> = vec![
        plain(&r.status),
        text(&r.reason),
        text(&r.os),
        text(&r.architecture),
        text(&r.banner),
        Arc::new(UInt64Array::from(vec![r.banner_offset])),
        text(&r.release),
        text(&r.build_id),
        plain(&r.page_tables),
        plain(&r.anchors),
        Arc::new(UInt64Array::from(vec![r.physical_base])),
        text(&r.damage),
        text(&r.found_by),
        Arc::new(UInt64Array::from(vec![r.bytes_read])),
        text(&r.page_files),
    ];
    let schema =
        schema(SYSTEM).ok_or_else(|| ArrowError::SchemaError("system has no schema".into()))?;
    RecordBatch::try_new(schema, columns)
}

/// The row of a system view batch; `None` when it has none.
pub fn system_row(b: &RecordBatch) -> Option<SystemRow> {
    if b.num_rows() == 0 {
        return None;
    }
    let text = |i: usize| {
        let c = b.column(i).as_string::<i32>();
        c.is_valid(0).then(|| c.value(0).to_owned())
    };
    let number = |i: usize| {
        let c = b.column(i).as_primitive::<UInt64Type>();
        c.is_valid(0).then(|| c.value(0))
    };
    Some(SystemRow {
        status: text(0)?,
        reason: text(1),
        os: text(2),
        architecture: text(3),
        banner: text(4),
        banner_offset: number(5),
        release: text(6),
        build_id: text(7),
        page_tables: text(8)?,
        anchors: text(9)?,
        physical_base: number(10),
        damage: text(11),
        found_by: text(12),
        bytes_read: number(13),
        // Segments of before have no such column.
        page_files: (b.num_columns() > 14).then(|| text(14)).flatten(),
    })
}

/// What came of one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewRow {
    /// Its name: `linux/pslist`.
    pub view: String,
    /// `built` or `failed`.
    pub status: String,
    /// Rows.
    pub rows: u64,
    /// Places that could not be read or are doubtful.
    pub doubtful: u64,
    /// What is wrong with rows.
    pub anomalies: u64,
    /// Why it failed, or what is doubtful, in words.
    pub detail: Option<String>,
    /// Microseconds that it took.
    pub micros: u64,
}

/// What came of views, as a batch.
pub fn views_batch(rows: &[ViewRow]) -> Result<Option<RecordBatch>, ArrowError> {
    let text = |f: fn(&ViewRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(f)))
    };
    let number = |f: fn(&ViewRow) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(f)))
    };
    let detail: StringArray = rows.iter().map(|r| r.detail.as_deref()).collect();
    batch(
        VIEWS,
        vec![
            text(|r| &r.view),
            text(|r| &r.status),
            number(|r| r.rows),
            number(|r| r.doubtful),
            number(|r| r.anomalies),
            Arc::new(detail),
            number(|r| r.micros),
        ],
    )
}

/// A stretch of memory of one owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameRow<'a> {
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: u64,
    /// Bytes.
    pub length: u64,
    /// What it is used for.
    pub state: &'a str,
    /// Who owns it, in words.
    pub owner: Option<&'a str>,
    /// Its virtual address in the owner's space.
    pub virtual_address: Option<u64>,
    /// Its offset in a file.
    pub file_offset: Option<u64>,
}

/// Collects stretches.
#[derive(Debug, Default)]
pub struct FramesBuilder {
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    length: UInt64Builder,
    state: StringBuilder,
    owner: StringBuilder,
    virtual_address: UInt64Builder,
    file_offset: UInt64Builder,
}

impl FramesBuilder {
    /// Adds a stretch.
    pub fn push(&mut self, r: &FrameRow<'_>) {
        self.image_offset.append_value(r.image_offset);
        self.physical_address.append_value(r.physical_address);
        self.length.append_value(r.length);
        self.state.append_value(r.state);
        self.owner.append_option(r.owner);
        self.virtual_address.append_option(r.virtual_address);
        self.file_offset.append_option(r.file_offset);
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        arrow::array::ArrayBuilder::len(&self.image_offset)
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        batch(
            FRAMES,
            vec![
                Arc::new(self.image_offset.finish()),
                Arc::new(self.physical_address.finish()),
                Arc::new(self.length.finish()),
                Arc::new(self.state.finish()),
                Arc::new(self.owner.finish()),
                Arc::new(self.virtual_address.finish()),
                Arc::new(self.file_offset.finish()),
            ],
        )
    }
}
