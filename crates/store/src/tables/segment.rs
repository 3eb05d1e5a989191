//! Segments: batches as Parquet objects, and as Arrow IPC between processes.
//!
//! A segment of a table that is sorted by place (see [`super::place_columns`]) has sorted row
//! groups, cut between batches. Merging copies such row groups as they are where no other reaches
//! into them.

use super::order::{Key, PlaceColumns, bounds, place_columns};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// Why a batch could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// Parquet.
    #[error("table segment: {0}")]
    Parquet(#[from] ParquetError),
    /// Arrow.
    #[error("table batch: {0}")]
    Arrow(#[from] ArrowError),
}

/// Rows of one row group at most.
pub(crate) const ROW_GROUP: usize = 128 << 10;

/// Rows from which on a row group ends with its batch.
const FULL: usize = 32 << 10;

/// Rows from which on a row group is large enough to be left alone by a merge.
pub(crate) const FAIR_GROUP: usize = 4 << 10;

/// A gap in the image, in bytes, where a row group ends: the chunk between may be in another
/// segment. Groups of fewer rows are not cut for that.
const GAP: u64 = 32 << 20;
const WORTH_A_CUT: usize = 256;

/// Bytes that the segment of one chunk mostly has at most: it need not be copied as it grows.
const ROOM: usize = 4 << 20;

/// How tables are written: zstd, dictionaries where values repeat, statistics where they help.
/// `sorted`: the column that the rows are sorted by, if any.
pub fn writer_properties(sorted: Option<usize>) -> WriterProperties {
    let sorted = sorted.and_then(|c| i32::try_from(c).ok());
    let mut p = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_created_by("ramsift".to_owned())
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_sorting_columns(sorted.map(|column_idx| {
            vec![SortingColumn {
                column_idx,
                descending: false,
                nulls_first: false,
            }]
        }));
    // Nearly every value is another one: a dictionary would be built and thrown away.
    for column in [
        "id",
        "message",
        "raw_time",
        "fields",
        "image_offset",
        "physical_address",
        "context",
        "window",
        "sha256",
        "md5",
        "time",
        "inferred_time",
    ] {
        p = p.set_column_dictionary_enabled(ColumnPath::from(column), false);
    }
    // Ranges that a query can skip row groups by; comparing every text costs more than it saves.
    for column in [
        "image_offset",
        "physical_address",
        "time",
        "inferred_time",
        "severity_rank",
        "kind",
        "source",
        "start",
        "end",
        "size",
        "pid",
    ] {
        p = p.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Chunk);
    }
    p = p.set_column_compression(ColumnPath::from("id"), Compression::UNCOMPRESSED);
    // Rows are in the order of the image, and most log lines in the order of their times: differences are small,
    // and packing them costs less than compressing.
    for column in ["image_offset", "physical_address", "time", "inferred_time"] {
        p = p
            .set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED)
            .set_column_compression(ColumnPath::from(column), Compression::UNCOMPRESSED);
    }
    p.build()
}

/// A segment that is encoded as its rows arrive.
#[derive(Debug)]
pub struct SegmentWriter {
    writer: ArrowWriter<Vec<u8>>,
    place: Option<PlaceColumns>,
    end: Option<Key>,
    rows: u64,
}

impl SegmentWriter {
    /// An empty segment of a table.
    pub fn new(table: &str, schema: SchemaRef) -> Result<Self, SegmentError> {
        let place = place_columns(table);
        let sorted = place.and_then(|c| schema.index_of(c.start).ok());
        let properties = writer_properties(sorted);
        Ok(Self {
            writer: ArrowWriter::try_new(Vec::with_capacity(ROOM), schema, Some(properties))?,
            place,
            end: None,
            rows: 0,
        })
    }

    /// Adds rows. Those of a table that is sorted by place must be in order among themselves.
    pub fn write(&mut self, b: &RecordBatch) -> Result<(), SegmentError> {
        if let Some(c) = self.place
            && let Some((first, last)) = bounds(b, c)?
        {
            // A row group must be sorted, and should not span what lies in other segments.
            let unsorted = self.end.is_some_and(|e| e > first);
            let gap = self.end.is_some_and(|e| first.0.saturating_sub(e.0) > GAP);
            let rows = self.writer.in_progress_rows();
            if unsorted || rows >= FULL || gap && rows >= WORTH_A_CUT {
                self.writer.flush()?;
            }
            self.end = Some(last);
        }
        self.rows += b.num_rows() as u64;
        self.writer.write(b)?;
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes that are held: those encoded, and what the open row group takes.
    pub fn held(&self) -> usize {
        self.writer.bytes_written() + self.writer.memory_size()
    }

    /// The Parquet file.
    pub fn finish(self) -> Result<Vec<u8>, SegmentError> {
        Ok(self.writer.into_inner()?)
    }
}

/// Batches of one table as a Parquet file in memory, in the order given. Batches of a table that
/// is sorted by place must each be sorted.
pub fn write_segment(
    table: &str,
    schema: SchemaRef,
    batches: &[RecordBatch],
) -> Result<Vec<u8>, SegmentError> {
    let mut w = SegmentWriter::new(table, schema)?;
    for b in batches {
        w.write(b)?;
    }
    w.finish()
}

/// The batches of a Parquet file in memory, decoded one after the other.
pub fn segment_batches(
    data: Bytes,
) -> Result<impl Iterator<Item = Result<RecordBatch, SegmentError>>, SegmentError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(data)?.build()?;
    Ok(reader.map(|b| b.map_err(SegmentError::from)))
}

/// The batches of a Parquet file in memory with these of its columns, which alone are decoded.
pub fn segment_columns(
    data: Bytes,
    columns: &[&str],
) -> Result<impl Iterator<Item = Result<RecordBatch, SegmentError>>, SegmentError> {
    let b = ParquetRecordBatchReaderBuilder::try_new(data)?;
    let only = ProjectionMask::columns(b.parquet_schema(), columns.iter().copied());
    let reader = b.with_projection(only).build()?;
    Ok(reader.map(|b| b.map_err(SegmentError::from)))
}

/// All batches of a Parquet file in memory.
pub fn read_segment(data: Bytes) -> Result<Vec<RecordBatch>, SegmentError> {
    segment_batches(data)?.collect()
}

/// A batch as an Arrow IPC stream.
pub fn to_ipc(batch: &RecordBatch) -> Result<Vec<u8>, SegmentError> {
    let mut out = Vec::with_capacity(batch.get_array_memory_size());
    let mut w = StreamWriter::try_new(&mut out, &batch.schema())?;
    w.write(batch)?;
    w.finish()?;
    drop(w);
    Ok(out)
}

/// The batches of an Arrow IPC stream.
pub fn from_ipc(data: &[u8]) -> Result<Vec<RecordBatch>, SegmentError> {
    Ok(StreamReader::try_new(data, None)?.collect::<Result<_, _>>()?)
}
