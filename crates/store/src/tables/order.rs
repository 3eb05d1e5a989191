//! The order of rows by place in the image.
//!
//! Chunks own disjoint stretches of the image, so rows that each worker puts in order give, laid
//! end to end, a sorted table: what was encoded once need not be decoded to merge it.

use super::name;
use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::UInt64Type;
use arrow::error::ArrowError;
use std::cmp::Ordering;

/// Columns that place a row in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceColumns {
    /// First byte.
    pub start: &'static str,
    /// Bytes.
    pub length: &'static str,
}

/// The columns that a table is sorted by before its `id`; `None` for one that is not sorted by
/// place.
pub fn place_columns(table: &str) -> Option<PlaceColumns> {
    let length = match table {
        name::FINDINGS | name::EVENTS | name::YARA_MATCHES => "length",
        name::ARTIFACTS => "size",
        _ => return None,
    };
    Some(PlaceColumns {
        start: "image_offset",
        length,
    })
}

/// Sort key of a row: start, length, id.
pub(crate) type Key = (u64, u64, [u8; 16]);

/// The sort keys of a batch, borrowed.
struct Keys<'a> {
    start: &'a [u64],
    length: &'a [u64],
    id: &'a arrow::array::FixedSizeBinaryArray,
}

impl<'a> Keys<'a> {
    fn of(batch: &'a RecordBatch, c: PlaceColumns) -> Result<Self, ArrowError> {
        let number = |name: &str| {
            batch
                .column_by_name(name)
                .and_then(|a| a.as_primitive_opt::<UInt64Type>())
                .map(|a| a.values().as_ref())
                .ok_or_else(|| ArrowError::SchemaError(format!("no column {name} of numbers")))
        };
        let id = batch
            .column_by_name("id")
            .and_then(|a| a.as_fixed_size_binary_opt())
            .filter(|a| a.value_length() == 16)
            .ok_or_else(|| ArrowError::SchemaError("no column id of 16 bytes".into()))?;
        Ok(Self {
            start: number(c.start)?,
            length: number(c.length)?,
            id,
        })
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        (self.start[a], self.length[a])
            .cmp(&(self.start[b], self.length[b]))
            .then_with(|| self.id.value(a).cmp(self.id.value(b)))
    }

    fn key(&self, i: usize) -> Key {
        let mut id = [0; 16];
        id.copy_from_slice(self.id.value(i));
        (self.start[i], self.length[i], id)
    }
}

/// A batch with its rows in order.
pub fn sort_batch(batch: RecordBatch, c: PlaceColumns) -> Result<RecordBatch, ArrowError> {
    let keys = Keys::of(&batch, c)?;
    let n = batch.num_rows();
    if (1..n).all(|i| keys.compare(i - 1, i).is_le()) {
        return Ok(batch);
    }
    let mut order: Vec<u32> = (0..u32::try_from(n).unwrap_or(u32::MAX)).collect();
    // Rows arrive nearly in order, which a stable merge sort makes use of.
    order.sort_by(|a, b| keys.compare(*a as usize, *b as usize));
    take_record_batch(&batch, &UInt32Array::from(order))
}

/// Least and greatest key of a sorted batch; `None` of an empty one.
pub(crate) fn bounds(
    batch: &RecordBatch,
    c: PlaceColumns,
) -> Result<Option<(Key, Key)>, ArrowError> {
    let keys = Keys::of(batch, c)?;
    Ok(batch
        .num_rows()
        .checked_sub(1)
        .map(|last| (keys.key(0), keys.key(last))))
}

/// All rows of the batches in order, as sorted batches none of which reaches into the next.
pub fn in_order(
    batches: Vec<RecordBatch>,
    c: PlaceColumns,
) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut sorted = Vec::with_capacity(batches.len());
    for b in batches {
        let b = sort_batch(b, c)?;
        if let Some(bounds) = bounds(&b, c)? {
            sorted.push((bounds, b));
        }
    }
    sorted.sort_by_key(|(bounds, _)| *bounds);
    let mut out = Vec::with_capacity(sorted.len());
    let mut run: Vec<RecordBatch> = Vec::new();
    let mut end: Option<Key> = None;
    for ((first, last), b) in sorted {
        if end.is_some_and(|e| e <= first) {
            out.push(join(&mut run, c)?);
            end = None;
        }
        end = Some(end.map_or(last, |e| e.max(last)));
        run.push(b);
    }
    if !run.is_empty() {
        out.push(join(&mut run, c)?);
    }
    Ok(out)
}

/// Batches that reach into one another as one.
fn join(run: &mut Vec<RecordBatch>, c: PlaceColumns) -> Result<RecordBatch, ArrowError> {
    let all = std::mem::take(run);
    match <[RecordBatch; 1]>::try_from(all) {
        Ok([only]) => Ok(only),
        Err(all) => sort_batch(concat_batches(&all[0].schema(), &all)?, c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{EventRow, EventsBuilder};
    use proptest::prelude::*;

    fn batch(starts: &[u64]) -> RecordBatch {
        let mut b = EventsBuilder::default();
        for s in starts {
            b.push(&EventRow {
                id: u128::from(*s).to_be_bytes(),
                image_offset: *s,
                length: 1,
                ..EventRow::default()
            });
        }
        b.finish().expect("valid").expect("rows")
    }

    fn starts(b: &RecordBatch) -> Vec<u64> {
        b.column_by_name("image_offset")
            .expect("column")
            .as_primitive::<UInt64Type>()
            .values()
            .to_vec()
    }

    proptest! {
        #[test]
        fn any_batches_come_out_as_one_order(
            parts in proptest::collection::vec(proptest::collection::vec(0u64..500, 1..20), 1..12)
        ) {
            let c = place_columns(name::EVENTS).expect("placed");
            let out = in_order(parts.iter().map(|p| batch(p)).collect(), c).expect("valid");
            let got: Vec<u64> = out.iter().flat_map(starts).collect();
            let mut want: Vec<u64> = parts.into_iter().flatten().collect();
            want.sort_unstable();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn disjoint_batches_stay_apart() {
        let c = place_columns(name::EVENTS).expect("placed");
        let out = in_order(vec![batch(&[7, 6]), batch(&[1, 2]), batch(&[3, 9])], c).expect("valid");
        let got: Vec<_> = out.iter().map(starts).collect();
        assert_eq!(got, [vec![1, 2], vec![3, 6, 7, 9]]);
    }
}
