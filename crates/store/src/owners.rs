//! Whose memory a row lies in: the frame map laid beside a table that is sorted by place.
//!
//! Both are in the order of image offsets, so one pass over the map serves a whole table, however
//! large they are.

use crate::StoreError;
use crate::query::fail;
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
}

impl Owners {
    /// Opens the `frames` table in a file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut o = Self {
            path: path.to_owned(),
            reader: reader(path)?,
            batch: None,
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

    /// The row of the map that holds an offset; `at` is where the last one was found.
    fn find(
        &mut self,
        offset: u64,
        at: &mut usize,
    ) -> Result<Option<(&RecordBatch, usize)>, StoreError> {
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

/// Columns of the frame table behind capture and pass.
const COL_START: usize = 2;
const COL_LENGTH: usize = 4;
const COL_STATE: usize = 5;
const COL_OWNER: usize = 6;
const COL_VA: usize = 7;

fn starts(b: &RecordBatch) -> &[u64] {
    b.column(COL_START).as_primitive::<UInt64Type>().values()
}

fn lengths(b: &RecordBatch) -> &[u64] {
    b.column(COL_LENGTH).as_primitive::<UInt64Type>().values()
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReader, StoreError> {
    let file = File::open(path).map_err(|e| fail(format!("{}: {e}", path.display())))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|b| b.with_batch_size(8192).build())
        .map_err(fail)
}
