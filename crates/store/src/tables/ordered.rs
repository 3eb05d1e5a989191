//! Segments of pages that carvers looked at in the order of a file or of a process's addresses.

use super::name::ORDERED;
use super::small::batch;
use arrow::array::{Array, AsArray, BooleanBuilder, RecordBatch, UInt64Builder};
use arrow::datatypes::UInt64Type;
use arrow::error::ArrowError;
use std::sync::Arc;

/// Bytes that are adjacent in the image and in their file or process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderedRow {
    /// First byte.
    pub image_offset: u64,
    /// Bytes.
    pub length: u64,
    /// What comes before in the order lies elsewhere in the image, or not in it.
    pub starts: bool,
    /// What comes behind does.
    pub ends: bool,
}

/// Collects them.
#[derive(Debug, Default)]
pub struct OrderedBuilder {
    image_offset: UInt64Builder,
    length: UInt64Builder,
    starts: BooleanBuilder,
    ends: BooleanBuilder,
}

impl OrderedBuilder {
    /// Adds bytes.
    pub fn push(&mut self, r: &OrderedRow) {
        self.image_offset.append_value(r.image_offset);
        self.length.append_value(r.length);
        self.starts.append_value(r.starts);
        self.ends.append_value(r.ends);
    }

    /// Bytes of the rows so far, about.
    pub fn bytes(&self) -> usize {
        arrow::array::ArrayBuilder::len(&self.image_offset) * 17
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        batch(
            ORDERED,
            vec![
                Arc::new(self.image_offset.finish()),
                Arc::new(self.length.finish()),
                Arc::new(self.starts.finish()),
                Arc::new(self.ends.finish()),
            ],
        )
    }
}

/// The rows of a batch.
pub fn ordered_rows(b: &RecordBatch) -> Vec<OrderedRow> {
    let number = |i: usize| b.column(i).as_primitive::<UInt64Type>();
    let (at, length) = (number(0), number(1));
    let (starts, ends) = (b.column(2).as_boolean(), b.column(3).as_boolean());
    (0..b.num_rows())
        .filter(|i| at.is_valid(*i))
        .map(|i| OrderedRow {
            image_offset: at.value(i),
            length: length.value(i),
            starts: starts.value(i),
            ends: ends.value(i),
        })
        .collect()
}
