//! The table being written: row groups that are copied, and rows that are encoded.

use super::{Group, Merged, Piece, Reference, Stamp, clock};
use crate::StoreError;
use crate::owners::{self, Owners};
use crate::query::{fail, on_disk, wrong};
use crate::splice::{self, Judged, Order};
use crate::tables::{ROW_GROUP, finished_schema, place_columns, writer_properties};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchReader, StringArray,
    UInt16Array, UInt64Array,
};
use arrow::datatypes::{Field, SchemaRef, UInt64Type};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask, add_encoded_arrow_schema_to_metadata};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

/// The table being written.
pub(super) struct Output<'a> {
    schema: SchemaRef,
    writer: SerializedFileWriter<BufWriter<File>>,
    factory: ArrowRowGroupWriterFactory,
    capture: String,
    pass: u16,
    /// The column that says where a row lies, in tables that are sorted by place.
    place: Option<usize>,
    /// The column of physical addresses, and what memory begins at, where these are not right yet.
    physical: Option<(usize, u64)>,
    owners: Option<Owners>,
    /// Looks up where rows end, so that the order of where they begin is not disturbed.
    tails: Option<Owners>,
    /// Whether what chunks found across pages is judged, by these pages.
    judged: bool,
    order: Option<&'a Order>,
    /// The columns of inferred times and of what they rest on, and what they rest on from now on.
    clock: Option<(usize, usize, &'a Reference)>,
    /// Identity of the last row that was written.
    last: Option<[u8; 16]>,
    table: String,
    /// The row group being encoded: its columns and rows.
    open: Option<(Vec<ArrowColumnWriter>, usize)>,
    groups: usize,
    rows: u64,
    copied: u64,
}

/// Encodes a column of a row group.
fn encode(
    mut w: ArrowColumnWriter,
    field: &Field,
    array: &ArrayRef,
    group: &mut SerializedRowGroupWriter<'_, BufWriter<File>>,
) -> Result<(), StoreError> {
    for leaf in compute_leaves(field, array).map_err(fail)? {
        w.write(&leaf).map_err(fail)?;
    }
    w.close()
        .and_then(|c| c.append_to_row_group(group))
        .map_err(fail)
}

/// Columns that are written anew, with their numbers, and the owners' columns.
type Decoded = (Vec<(usize, ArrayRef)>, Vec<ArrayRef>);

/// What a row group that may be copied is: to be copied with these columns, or not to be copied since rows of it go.
enum Copy {
    Whole(Decoded),
    Thinned,
}

/// Some columns of a row group.
fn decode(g: &Group, piece: &Piece, columns: Vec<usize>) -> Result<RecordBatch, StoreError> {
    let meta =
        ArrowReaderMetadata::try_new(g.meta.clone(), ArrowReaderOptions::new()).map_err(fail)?;
    let only = ProjectionMask::leaves(g.meta.file_metadata().schema_descr(), columns);
    let piece = Piece {
        start: piece.start,
        bytes: piece.bytes.clone(),
    };
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, meta)
        .with_row_groups(vec![g.index])
        .with_projection(only)
        .with_batch_size(g.rows)
        .build()
        .map_err(fail)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    arrow::compute::concat_batches(&schema, &batches).map_err(fail)
}

/// Physical addresses of rows at these image offsets of a raw image whose memory begins at `base`.
/// Rows without an address stay without one.
fn moved(offsets: &ArrayRef, old: &ArrayRef, base: u64) -> ArrayRef {
    let offsets = offsets.as_primitive::<UInt64Type>();
    let rows = offsets.values().iter().enumerate();
    let new = rows.map(|(i, at)| old.is_valid(i).then(|| at.wrapping_add(base)));
    Arc::new(new.collect::<UInt64Array>())
}

/// Columns in front of those of the segments.
const STAMPED: usize = 2;

impl<'a> Output<'a> {
    pub(super) fn create(
        to: &Path,
        table: &str,
        rows: &SchemaRef,
        stamp: Stamp<'a>,
    ) -> Result<Self, StoreError> {
        let place = place_columns(table).and_then(|c| rows.index_of(c.start).ok());
        let (mut owners, mut tails) = (None, None);
        let judged = place.is_some() && splice::is_judged(table);
        let column = place.and_then(|_| rows.index_of("physical_address").ok());
        let physical = column.zip(stamp.base.filter(|b| *b > 0));
        if place.is_some() {
            owners = stamp.frames.map(Owners::open).transpose()?;
            if judged {
                tails = stamp.frames.map(Owners::open).transpose()?;
            }
        }
        let schema = finished_schema(table, rows);
        let sorted = place_columns(table).and_then(|c| schema.index_of(c.start).ok());
        let mut properties = writer_properties(sorted);
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let described = ArrowSchemaConverter::new().convert(&schema).map_err(fail)?;
        let file = File::create(to).map_err(|e| on_disk(to, &e))?;
        let writer = SerializedFileWriter::new(
            BufWriter::with_capacity(1 << 20, file),
            described.root_schema_ptr(),
            Arc::new(properties),
        )
        .map_err(fail)?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, schema.clone());
        Ok(Self {
            schema,
            writer,
            factory,
            capture: stamp.capture.to_owned(),
            pass: stamp.pass,
            place,
            physical,
            owners,
            tails,
            judged,
            order: stamp.order,
            clock: stamp.clock.and_then(|c| {
                let column = |name| rows.index_of(name).ok();
                Some((column("inferred_time")?, column("inferred_from")?, c))
            }),
            last: None,
            table: table.to_owned(),
            open: None,
            groups: 0,
            rows: 0,
            copied: 0,
        })
    }

    /// The columns that stand in front of `rows` rows.
    fn stamps(&self, rows: usize) -> [ArrayRef; STAMPED] {
        [
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
                self.capture.as_str(),
                rows,
            ))),
            Arc::new(UInt16Array::from_value(self.pass, rows)),
        ]
    }

    pub(super) fn copy(&mut self, g: &Group, piece: &Piece) -> Result<(), StoreError> {
        let (anew, tail) = match self.decoded(g, piece)? {
            Copy::Whole(d) => d,
            Copy::Thinned => {
                let all = g.meta().num_columns();
                return self.write(&decode(g, piece, (0..all).collect())?);
            }
        };
        self.cut()?;
        let columns = self
            .factory
            .create_column_writers(self.groups)
            .map_err(fail)?;
        let stamps = self.stamps(g.rows);
        let mut group = self.writer.next_row_group().map_err(fail)?;
        let mut columns = columns.into_iter().zip(self.schema.fields().iter());
        for ((w, field), array) in columns.by_ref().take(STAMPED).zip(stamps) {
            encode(w, field, &array, &mut group)?;
        }
        for (i, c) in g.meta().columns().iter().enumerate() {
            let (w, field) = columns
                .next()
                .ok_or_else(|| wrong("a row has more columns than its table"))?;
            if let Some((_, array)) = anew.iter().find(|(at, _)| *at == i) {
                encode(w, field, array, &mut group)?;
                continue;
            }
            let close = ColumnCloseResult {
                bytes_written: c.compressed_size().cast_unsigned(),
                rows_written: g.rows as u64,
                metadata: c.clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            group.append_column(piece, close).map_err(fail)?;
        }
        for ((w, field), array) in columns.zip(tail) {
            encode(w, field, &array, &mut group)?;
        }
        group.close().map_err(fail)?;
        self.groups += 1;
        self.rows += g.rows as u64;
        self.copied += g.rows as u64;
        Ok(())
    }

    /// What is not copied of a row group that is: its physical addresses, where memory begins
    /// elsewhere than the image, and its owners' columns.
    fn decoded(&mut self, g: &Group, piece: &Piece) -> Result<Copy, StoreError> {
        let Some(place) = self.place else {
            return Ok(Copy::Whole((Vec::new(), Vec::new())));
        };
        if self.owners.is_none() && self.physical.is_none() && !self.judged {
            return Ok(Copy::Whole((Vec::new(), owners::unknown(g.rows).into())));
        }
        let mut wanted = vec![place];
        wanted.extend(self.physical.map(|(at, _)| at));
        wanted.extend(self.clock.iter().flat_map(|(t, f, _)| [*t, *f]));
        let own = &self.schema.fields()[STAMPED..];
        for name in splice::columns(&self.table).unwrap_or_default() {
            wanted.extend(own.iter().position(|f| f.name() == name));
        }
        let rows = decode(g, piece, wanted)?;
        let judged = self.judged.then(|| splice::judge(&rows, self.order));
        if judged.as_ref().is_some_and(|j| j.keep.is_some()) {
            return Ok(Copy::Thinned);
        }
        let offsets = rows.column_by_name("image_offset").cloned();
        let offsets = offsets.ok_or_else(|| wrong("rows without their place"))?;
        let mut anew = Vec::new();
        if let (Some((at, base)), Some(old)) =
            (self.physical, rows.column_by_name("physical_address"))
        {
            anew.push((at, moved(&offsets, old, base)));
        }
        if let Some((t, f, reference)) = self.clock
            && let (Some(times), Some(reasons)) = (
                rows.column_by_name("inferred_time"),
                rows.column_by_name("inferred_from"),
            )
            && let Some((times, reasons)) = clock::inferred(times, reasons, reference)
        {
            anew.extend([(t, times), (f, reasons)]);
        }
        let mut tail = self.owners_at(&offsets)?;
        if let Some(j) = judged {
            tail.push(self.spliced(&rows, &j)?);
        }
        Ok(Copy::Whole((anew, tail)))
    }

    /// Which rows may be made of halves that have nothing to do with each other.
    fn spliced(&mut self, rows: &RecordBatch, j: &Judged) -> Result<ArrayRef, StoreError> {
        let mut out = vec![None; rows.num_rows()];
        for (i, start, len) in &j.crossing {
            let whole = match &mut self.tails {
                Some(t) => t.is_continuous(*start, *len)?,
                None => false,
            };
            out[*i] = (!whole).then_some(true);
        }
        Ok(Arc::new(BooleanArray::from(out)))
    }

    /// Rows without those that were told from their order, and each once.
    fn thinned(&mut self, rows: &RecordBatch) -> Result<RecordBatch, StoreError> {
        let mut keep: Vec<bool> = match splice::judge(rows, self.order).keep {
            Some(k) => k.iter().map(|k| k.unwrap_or(true)).collect(),
            None => vec![true; rows.num_rows()],
        };
        let ids = rows
            .column_by_name("id")
            .and_then(|c| c.as_fixed_size_binary_opt());
        if let Some(ids) = ids {
            for (i, k) in keep.iter_mut().enumerate().filter(|(_, k)| **k) {
                let id = ids.value(i).try_into().ok();
                // Pages that two processes share are looked at in the order of both.
                *k = id.is_none() || id != self.last;
                self.last = id;
            }
        }
        if keep.iter().all(|k| *k) {
            return Ok(rows.clone());
        }
        arrow::compute::filter_record_batch(rows, &BooleanArray::from(keep)).map_err(fail)
    }

    /// The owners' columns of rows at these image offsets.
    fn owners_at(&mut self, offsets: &ArrayRef) -> Result<Vec<ArrayRef>, StoreError> {
        let offsets = offsets.as_primitive::<UInt64Type>();
        match &mut self.owners {
            Some(owners) => Ok(owners.columns(offsets.values())?.into()),
            None => Ok(owners::unknown(offsets.len()).into()),
        }
    }

    /// The columns of rows that are encoded: their own, and the owners' behind them.
    fn completed(&mut self, rows: &RecordBatch) -> Result<Vec<ArrayRef>, StoreError> {
        let mut columns = rows.columns().to_vec();
        let Some(place) = self.place else {
            return Ok(columns);
        };
        let offsets = columns[place].clone();
        if let Some((at, base)) = self.physical {
            columns[at] = moved(&offsets, &columns[at], base);
        }
        if let Some((t, f, reference)) = self.clock
            && let Some((times, reasons)) = clock::inferred(&columns[t], &columns[f], reference)
        {
            (columns[t], columns[f]) = (times, reasons);
        }
        columns.extend(self.owners_at(&offsets)?);
        if self.judged {
            let j = splice::judge(rows, None);
            columns.push(self.spliced(rows, &j)?);
        }
        Ok(columns)
    }

    /// Encodes rows, which come without the stamped columns.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let thinned = if self.judged {
            Some(self.thinned(batch)?)
        } else {
            None
        };
        let batch = thinned.as_ref().unwrap_or(batch);
        let mut at = 0;
        while at < batch.num_rows() {
            let (mut columns, before) = match self.open.take() {
                Some(o) => o,
                None => (
                    self.factory
                        .create_column_writers(self.groups)
                        .map_err(fail)?,
                    0,
                ),
            };
            let n = (ROW_GROUP - before).min(batch.num_rows() - at);
            let slice = batch.slice(at, n);
            let all = self.stamps(n).into_iter();
            let all = all.chain(self.completed(&slice)?);
            let mut writers = columns.iter_mut();
            for (field, array) in self.schema.fields().iter().zip(all) {
                for leaf in compute_leaves(field, &array).map_err(fail)? {
                    let w = writers
                        .next()
                        .ok_or_else(|| wrong("a row has more columns than its table"))?;
                    w.write(&leaf).map_err(fail)?;
                }
            }
            self.open = Some((columns, before + n));
            at += n;
            if before + n == ROW_GROUP {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Ends the row group that is being encoded.
    pub(super) fn cut(&mut self) -> Result<(), StoreError> {
        let Some((columns, rows)) = self.open.take() else {
            return Ok(());
        };
        let mut group = self.writer.next_row_group().map_err(fail)?;
        for w in columns {
            w.close()
                .and_then(|c| c.append_to_row_group(&mut group))
                .map_err(fail)?;
        }
        group.close().map_err(fail)?;
        self.groups += 1;
        self.rows += rows as u64;
        Ok(())
    }

    pub(super) fn close(mut self, to: &Path) -> Result<Merged, StoreError> {
        self.cut()?;
        let (rows, copied) = (self.rows, self.copied);
        self.writer.close().map_err(fail)?;
        let bytes = std::fs::metadata(to).map_err(|e| on_disk(to, &e))?.len();
        Ok(Merged {
            rows,
            bytes,
            copied,
        })
    }
}
