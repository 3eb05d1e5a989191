//! Rows of `events`, the timeline.

use super::name::EVENTS;
use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
    UInt32Builder, UInt64Builder,
};
use arrow::error::ArrowError;
use std::sync::Arc;

/// One record with a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventRow<'a> {
    /// See [`super::row_id`].
    pub id: [u8; 16],
    /// Microseconds since 1970 UTC, when the record itself says so in full.
    pub time: Option<i64>,
    /// A time that rests on something else.
    pub inferred_time: Option<i64>,
    /// On what.
    pub inferred_from: Option<&'a str>,
    /// The time as it stands in the record.
    pub raw_time: &'a str,
    /// What the time means.
    pub time_kind: &'a str,
    /// What kind of record.
    pub source: &'a str,
    /// Host name.
    pub host: Option<&'a str>,
    /// Program or provider.
    pub program: Option<&'a str>,
    /// Process id.
    pub pid: Option<u32>,
    /// The message.
    pub message: &'a str,
    /// Typed fields as JSON.
    pub fields: Option<&'a str>,
    /// How it was stored.
    pub encoding: &'a str,
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Bytes.
    pub length: u64,
    /// Table and number of the row that it comes from: `linux_pslist/12`.
    pub row: Option<&'a str>,
}

/// Collects events column by column.
#[derive(Debug, Default)]
pub struct EventsBuilder {
    id: Option<FixedSizeBinaryBuilder>,
    time: TimestampMicrosecondBuilder,
    inferred_time: TimestampMicrosecondBuilder,
    inferred_from: StringBuilder,
    raw_time: StringBuilder,
    time_kind: StringBuilder,
    source: StringBuilder,
    host: StringBuilder,
    program: StringBuilder,
    pid: UInt32Builder,
    message: StringBuilder,
    fields: StringBuilder,
    encoding: StringBuilder,
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    length: UInt64Builder,
    row: StringBuilder,
    rows: usize,
    bytes: usize,
    /// Rows that there is room for from the start.
    room: usize,
}

impl EventsBuilder {
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
        self.time = TimestampMicrosecondBuilder::with_capacity(n);
        self.inferred_time = TimestampMicrosecondBuilder::with_capacity(n);
        self.inferred_from = text(0);
        self.raw_time = text(32);
        self.time_kind = text(8);
        self.source = text(12);
        self.host = text(16);
        self.program = text(16);
        self.pid = UInt32Builder::with_capacity(n);
        self.message = text(128);
        self.fields = text(128);
        self.encoding = text(8);
        self.image_offset = UInt64Builder::with_capacity(n);
        self.physical_address = UInt64Builder::with_capacity(n);
        self.length = UInt64Builder::with_capacity(n);
        self.row = text(0);
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
    pub fn push(&mut self, r: &EventRow<'_>) {
        // The width is right by its type, so this can't fail.
        let _ = self
            .id
            .get_or_insert_with(|| FixedSizeBinaryBuilder::with_capacity(self.room, 16))
            .append_value(r.id);
        self.time.append_option(r.time);
        self.inferred_time.append_option(r.inferred_time);
        self.inferred_from.append_option(r.inferred_from);
        self.raw_time.append_value(r.raw_time);
        self.time_kind.append_value(r.time_kind);
        self.source.append_value(r.source);
        self.host.append_option(r.host);
        self.program.append_option(r.program);
        self.pid.append_option(r.pid);
        self.message.append_value(r.message);
        self.fields.append_option(r.fields);
        self.encoding.append_value(r.encoding);
        self.image_offset.append_value(r.image_offset);
        self.physical_address.append_option(r.physical_address);
        self.length.append_value(r.length);
        self.row.append_option(r.row);
        self.rows += 1;
        self.bytes += 160 + r.message.len() + r.fields.map_or(0, str::len) + r.raw_time.len();
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
            Arc::new(self.time.finish().with_timezone("UTC")),
            Arc::new(self.inferred_time.finish().with_timezone("UTC")),
            Arc::new(self.inferred_from.finish()),
            Arc::new(self.raw_time.finish()),
            Arc::new(self.time_kind.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.host.finish()),
            Arc::new(self.program.finish()),
            Arc::new(self.pid.finish()),
            Arc::new(self.message.finish()),
            Arc::new(self.fields.finish()),
            Arc::new(self.encoding.finish()),
            Arc::new(self.image_offset.finish()),
            Arc::new(self.physical_address.finish()),
            Arc::new(self.length.finish()),
            Arc::new(self.row.finish()),
        ];
        self.make_room();
        let schema = super::schema(EVENTS)
            .ok_or_else(|| ArrowError::SchemaError("events has no schema".into()))?;
        RecordBatch::try_new(schema, columns).map(Some)
    }
}
