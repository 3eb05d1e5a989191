//! Rows of `findings`.

use super::name::FINDINGS;
use arrow::array::{
    ArrayRef, BinaryBuilder, FixedSizeBinaryBuilder, RecordBatch, StringBuilder, UInt8Builder,
    UInt64Builder,
};
use arrow::error::ArrowError;
use ramsift_layers::Severity;
use std::sync::Arc;

/// One finding.
#[derive(Clone, Copy, Debug)]
pub struct FindingRow<'a> {
    /// See [`super::row_id`].
    pub id: [u8; 16],
    /// `carver:url`, `yara:<namespace>:<rule>`, `clamav`.
    pub detector: &'a str,
    /// What was found.
    pub kind: &'a str,
    /// How loud it is.
    pub severity: Severity,
    /// Why it is that loud.
    pub severity_reason: &'a str,
    /// `image`, `process` or `file`.
    pub scope: &'a str,
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Bytes.
    pub length: u64,
    /// The value as text.
    pub value: &'a str,
    /// How it was stored.
    pub encoding: Option<&'a str>,
    /// Bytes around it.
    pub context: Option<&'a [u8]>,
    /// Typed fields as JSON.
    pub fields: Option<&'a str>,
    /// Forensic path.
    pub path: Option<&'a str>,
    /// SHA-256 of the artifact it was found in.
    pub artifact: Option<&'a str>,
    /// The rule's metadata as JSON.
    pub rule: Option<&'a str>,
}

/// Collects findings column by column.
#[derive(Debug, Default)]
pub struct FindingsBuilder {
    id: Option<FixedSizeBinaryBuilder>,
    detector: StringBuilder,
    kind: StringBuilder,
    severity: StringBuilder,
    severity_rank: UInt8Builder,
    severity_reason: StringBuilder,
    scope: StringBuilder,
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    length: UInt64Builder,
    value: StringBuilder,
    encoding: StringBuilder,
    context: BinaryBuilder,
    fields: StringBuilder,
    path: StringBuilder,
    artifact: StringBuilder,
    rule: StringBuilder,
    rows: usize,
    bytes: usize,
    /// Rows that there is room for from the start.
    room: usize,
}

impl FindingsBuilder {
    /// Takes room at once for batches of about this many rows: builders that grow copy what they have, again and
    /// again.
    pub fn with_room(rows: usize) -> Self {
        let mut b = Self {
            room: rows,
            ..Self::default()
        };
        b.make_room();
        b
    }

    fn make_room(&mut self) {
        let n = self.room;
        if n == 0 {
            return;
        }
        let text = |each| StringBuilder::with_capacity(n, n * each);
        self.detector = text(16);
        self.kind = text(8);
        self.severity = text(8);
        self.severity_rank = UInt8Builder::with_capacity(n);
        self.severity_reason = text(16);
        self.scope = text(8);
        self.image_offset = UInt64Builder::with_capacity(n);
        self.physical_address = UInt64Builder::with_capacity(n);
        self.length = UInt64Builder::with_capacity(n);
        self.value = text(32);
        self.encoding = text(8);
        self.context = BinaryBuilder::with_capacity(n, n * 128);
        self.fields = text(0);
        self.path = text(0);
        self.artifact = text(0);
        self.rule = text(0);
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Roughly the bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a row.
    pub fn push(&mut self, r: &FindingRow<'_>) {
        // The width is right by its type, so this can't fail.
        let _ = self
            .id
            .get_or_insert_with(|| FixedSizeBinaryBuilder::with_capacity(self.room, 16))
            .append_value(r.id);
        self.detector.append_value(r.detector);
        self.kind.append_value(r.kind);
        self.severity.append_value(r.severity.as_str());
        self.severity_rank.append_value(r.severity as u8);
        self.severity_reason.append_value(r.severity_reason);
        self.scope.append_value(r.scope);
        self.image_offset.append_value(r.image_offset);
        self.physical_address.append_option(r.physical_address);
        self.length.append_value(r.length);
        self.value.append_value(r.value);
        self.encoding.append_option(r.encoding);
        self.context.append_option(r.context);
        self.fields.append_option(r.fields);
        self.path.append_option(r.path);
        self.artifact.append_option(r.artifact);
        self.rule.append_option(r.rule);
        self.rows += 1;
        self.bytes += 150
            + r.value.len()
            + r.context.map_or(0, <[u8]>::len)
            + r.fields.map_or(0, str::len)
            + r.rule.map_or(0, str::len)
            + r.detector.len()
            + r.severity_reason.len();
    }

    /// The rows as a batch; the builder is empty afterwards. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(mut id) = self.id.take() else {
            return Ok(None);
        };
        self.rows = 0;
        self.bytes = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(id.finish()),
            Arc::new(self.detector.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.severity.finish()),
            Arc::new(self.severity_rank.finish()),
            Arc::new(self.severity_reason.finish()),
            Arc::new(self.scope.finish()),
            Arc::new(self.image_offset.finish()),
            Arc::new(self.physical_address.finish()),
            Arc::new(self.length.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.encoding.finish()),
            Arc::new(self.context.finish()),
            Arc::new(self.fields.finish()),
            Arc::new(self.path.finish()),
            Arc::new(self.artifact.finish()),
            Arc::new(self.rule.finish()),
        ];
        self.make_room();
        let schema = super::schema(FINDINGS)
            .ok_or_else(|| ArrowError::SchemaError("findings has no schema".into()))?;
        RecordBatch::try_new(schema, columns).map(Some)
    }
}
