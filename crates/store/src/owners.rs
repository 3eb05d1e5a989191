//! Whose memory a row lies in: the frame map laid beside a table that is sorted by place.
//!
//! Both are in the order of image offsets, so one pass over the map serves a whole table, however
//! large they are.

use crate::StoreError;
use crate::query::{fail, on_disk};
use arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, StringBuilder, UInt64Builder, new_null_array,
};
use arrow::datatypes::{DataType, Field, UInt64Type};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Columns behind those of the segments.
pub(crate) const COLUMNS: usize = 3;

/// Their fields: what the page is used for, who owns it, and where it is in the owner's space.
pub(crate) fn fields() -> [Arc<Field>; COLUMNS] {
    [
        Arc::new(Field::new("page_state", DataType::Utf8, true)),
        Arc::new(Field::new("owner", DataType::Utf8, true)),
        Arc::new(Field::new("virtual_address", DataType::UInt64, true)),
    ]
}

/// The three columns of rows without a frame map.
pub(crate) fn unknown(rows: usize) -> [ArrayRef; COLUMNS] {
    fields().map(|f| new_null_array(f.data_type(), rows))
}

/// Reads a finished frame table along with the rows of another.
pub(crate) struct Owners {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// Where the map ended, once it has.
    end: Option<u64>,
}

impl Owners {
    /// Opens the `frames` table in a file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut o = Self {
            path: path.to_owned(),
            reader: reader(path)?,
            batch: None,
            end: None,
        };
        o.next()?;
        Ok(o)
    }

    fn next(&mut self) -> Result<(), StoreError> {
        self.batch = self.reader.next().transpose().map_err(fail)?;
        Ok(())
    }

    /// The columns for rows at these image offsets, which should not go back.
    pub(crate) fn columns(&mut self, offsets: &[u64]) -> Result<[ArrayRef; COLUMNS], StoreError> {
        let mut state = StringBuilder::new();
        let mut owner = StringBuilder::new();
        let mut va = UInt64Builder::new();
        let mut at = 0;
        for offset in offsets {
            match self.find(*offset, &mut at)? {
                Some((b, i)) => {
                    let text = |c: usize| {
                        let a = b.column(c).as_string::<i32>();
                        a.is_valid(i).then(|| a.value(i))
                    };
                    let number = |c: usize| {
                        let a = b.column(c).as_primitive::<UInt64Type>();
                        a.is_valid(i).then(|| a.value(i))
                    };
                    let inside = offset - number(COL_START).unwrap_or(*offset);
                    state.append_option(text(COL_STATE));
                    owner.append_option(text(COL_OWNER));
                    va.append_option(number(COL_VA).map(|v| v.wrapping_add(inside)));
                }
                None => {
                    state.append_null();
                    owner.append_null();
                    va.append_null();
                }
            }
        }
        Ok([
            Arc::new(state.finish()),
            Arc::new(owner.finish()),
            Arc::new(va.finish()),
        ])
    }

    /// Whether the map shows that a range was written as one: all of it is in one stretch of the map, or in stretches
    /// of one owner that follow each other in its addresses or its file.
    pub(crate) fn is_continuous(&mut self, start: u64, len: u64) -> Result<bool, StoreError> {
        let Some(first) = self.spot(start)? else {
            return Ok(false);
        };
        let end = start.saturating_add(len);
        if end <= first.end {
            return Ok(first.known);
        }
        let mut before = first;
        while before.end < end {
            let Some(next) = self.spot(before.end)? else {
                return Ok(false);
            };
            let by = next.start.wrapping_sub(before.start);
            let follows = |a: Option<u64>, b: Option<u64>| {
                a.zip(b).is_some_and(|(a, b)| b == a.wrapping_add(by))
            };
            let same = next.state == before.state
                && (follows(before.va, next.va) || follows(before.file, next.file));
            if !same || !next.known {
                return Ok(false);
            }
            before = next;
        }
        Ok(true)
    }

    /// The stretch of the map that holds an offset.
    fn spot(&mut self, offset: u64) -> Result<Option<Spot>, StoreError> {
        let Some((b, i)) = self.find(offset, &mut 0)? else {
            return Ok(None);
        };
        let number = |c: usize| {
            let a = b.column(c).as_primitive::<UInt64Type>();
            a.is_valid(i).then(|| a.value(i))
        };
        let state = b.column(COL_STATE).as_string::<i32>().value(i).to_owned();
        let start = starts(b)[i];
        Ok(Some(Spot {
            start,
            end: start + lengths(b)[i],
            // Pages that are free, or of which nothing is known, may have been anybody's.
            known: !matches!(state.as_str(), "free" | "unknown" | "in use"),
            state,
            va: number(COL_VA),
            file: number(COL_FILE),
        }))
    }

    /// The row of the map that holds an offset; `at` is where the last one was found.
    fn find(
        &mut self,
        offset: u64,
        at: &mut usize,
    ) -> Result<Option<(&RecordBatch, usize)>, StoreError> {
        if self.end.is_some_and(|e| offset >= e) {
            return Ok(None);
        }
        let first = self.batch.as_ref().and_then(|b| starts(b).first().copied());
        // What was asked for before lay further on: from the start once more.
        if first.is_none_or(|f| offset < f) {
            self.reader = reader(&self.path)?;
            self.next()?;
            *at = 0;
        }
        loop {
            let Some(b) = &self.batch else {
                return Ok(None);
            };
            let starts = starts(b);
            let end = starts.last().copied().unwrap_or(0) + lengths(b).last().copied().unwrap_or(0);
            if offset >= end {
                self.next()?;
                if self.batch.is_none() {
                    self.end = Some(end);
                }
                *at = 0;
                continue;
            }
            if starts.get(*at).is_none_or(|s| *s > offset) {
                *at = 0;
            }
            *at += starts[*at..].partition_point(|s| *s <= offset);
            let Some(i) = at.checked_sub(1) else {
                return Ok(None);
            };
            *at = i;
            let inside = offset - starts[i] < lengths(b)[i];
            return Ok(inside
                .then_some(i)
                .and_then(|i| Some((self.batch.as_ref()?, i))));
        }
    }
}

/// A stretch of the map.
struct Spot {
    start: u64,
    end: u64,
    state: String,
    known: bool,
    va: Option<u64>,
    file: Option<u64>,
}

/// Columns of the frame table behind capture and pass.
const COL_START: usize = 2;
const COL_LENGTH: usize = 4;
const COL_STATE: usize = 5;
const COL_OWNER: usize = 6;
const COL_VA: usize = 7;
const COL_FILE: usize = 8;

fn starts(b: &RecordBatch) -> &[u64] {
    b.column(COL_START).as_primitive::<UInt64Type>().values()
}

fn lengths(b: &RecordBatch) -> &[u64] {
    b.column(COL_LENGTH).as_primitive::<UInt64Type>().values()
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReader, StoreError> {
    let file = File::open(path).map_err(|e| on_disk(path, &e))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|b| b.with_batch_size(8192).build())
        .map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{FrameRow, FramesBuilder, write_segment};
    use arrow::array::{StringArray, UInt16Array};
    use arrow::datatypes::Schema;

    /// A finished frame table: pages 0 and 1 of a process, 2 free, 4 of a file; 3 is in no run.
    fn table() -> tempfile::NamedTempFile {
        let mut b = FramesBuilder::default();
        let row = |at: u64, len: u64, state, owner, va| FrameRow {
            image_offset: at,
            physical_address: at,
            length: len,
            state,
            owner,
            virtual_address: va,
            file_offset: None,
        };
        b.push(&row(
            0,
            0x2000,
            "process",
            Some("a[1] [heap]"),
            Some(0x7000),
        ));
        b.push(&row(0x2000, 0x1000, "free", None, None));
        b.push(&row(0x4000, 0x1000, "file", Some("/x"), None));
        let rows = b.finish().expect("valid").expect("rows");
        let n = rows.num_rows();
        let mut fields = vec![
            Arc::new(Field::new("capture", DataType::Utf8, false)),
            Arc::new(Field::new("pass", DataType::UInt16, false)),
        ];
        fields.extend(rows.schema().fields().iter().cloned());
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["c"; n])),
            Arc::new(UInt16Array::from(vec![1; n])),
        ];
        columns.extend(rows.columns().iter().cloned());
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns).expect("valid");
        let data = write_segment("frames", schema, &[batch]).expect("parquet");
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), data).expect("write");
        file
    }

    #[test]
    fn every_offset_has_the_owner_of_its_stretch() {
        let file = table();
        let mut o = Owners::open(file.path()).expect("opened");
        let ask = |o: &mut Owners, offsets: &[u64]| {
            let [state, owner, va] = o.columns(offsets).expect("columns");
            (0..offsets.len())
                .map(|i| {
                    let text = |a: &ArrayRef| {
                        let a = a.as_string::<i32>();
                        a.is_valid(i).then(|| a.value(i).to_owned())
                    };
                    let va = va.as_primitive::<UInt64Type>();
                    let va = va.is_valid(i).then(|| va.value(i));
                    (text(&state), text(&owner), va)
                })
                .collect::<Vec<_>>()
        };
        let some = |s: &str| Some(s.to_owned());
        let heap = |va| (some("process"), some("a[1] [heap]"), Some(va));
        let file = (some("file"), some("/x"), None);
        let none = (None, None, None);
        let got = ask(
            &mut o,
            &[0, 5, 0x1fff, 0x2000, 0x3000, 0x4fff, 0x5000, 0x9000],
        );
        let free = (some("free"), None, None);
        let want = [
            heap(0x7000),
            heap(0x7005),
            heap(0x8fff),
            free,
            none.clone(),
            file.clone(),
            none.clone(),
            none,
        ];
        assert_eq!(got, want);
        // Asked again from the start.
        assert_eq!(ask(&mut o, &[1, 0x4000]), [heap(0x7001), file]);
    }
}
