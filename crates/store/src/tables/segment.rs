//! Segments: batches as Parquet objects, and as Arrow IPC between processes.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
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

/// Rows of one row group.
const ROW_GROUP: usize = 256 << 10;

/// How tables are written: zstd, dictionaries where values repeat, statistics per chunk.
pub fn writer_properties() -> WriterProperties {
    let mut p = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_created_by("ramsift".to_owned())
        .set_statistics_enabled(EnabledStatistics::Chunk);
    // Nearly every value is another one: a dictionary would be built and thrown away.
    for column in [
        "id",
        "message",
        "raw_time",
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
    // Ids and hashes don't compress, and nobody asks for their range.
    for column in [
        "id", "message", "context", "window", "fields", "rule", "value",
    ] {
        p = p.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::None);
    }
    p = p.set_column_compression(ColumnPath::from("id"), Compression::UNCOMPRESSED);
    p.build()
}

/// Batches of one schema as a Parquet file in memory.
pub fn write_segment(schema: SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, SegmentError> {
    let mut out = Vec::new();
    let mut w = ArrowWriter::try_new(&mut out, schema, Some(writer_properties()))?;
    for b in batches {
        w.write(b)?;
    }
    w.close()?;
    Ok(out)
}

/// The batches of a Parquet file in memory.
pub fn read_segment(data: Bytes) -> Result<Vec<RecordBatch>, SegmentError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(data)?.build()?;
    Ok(reader.collect::<Result<_, _>>()?)
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
