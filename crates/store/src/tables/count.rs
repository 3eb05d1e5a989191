//! How many rows of a finished table are of which kind.

use super::name;
use crate::StoreError;
use crate::query::{fail, on_disk};
use arrow::array::AsArray;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// The column that says of which kind a row is, for tables that hold several.
pub fn kind_column(table: &str) -> Option<&'static str> {
    match table {
        name::FINDINGS | name::ARTIFACTS => Some("kind"),
        name::EVENTS => Some("source"),
        _ => None,
    }
}

/// How many rows of a finished table have each value of a column of text; rows without one are not counted.
pub fn count_by(path: &Path, column: &str) -> Result<BTreeMap<String, u64>, StoreError> {
    let file = File::open(path).map_err(|e| on_disk(path, &e))?;
    let b = ParquetRecordBatchReaderBuilder::try_new(file).map_err(fail)?;
    let only = ProjectionMask::columns(b.parquet_schema(), [column]);
    let rows = b.with_projection(only).with_batch_size(8192).build();
    let mut all = BTreeMap::<String, u64>::new();
    for batch in rows.map_err(fail)? {
        let batch = batch.map_err(fail)?;
        let column = batch
            .columns()
            .first()
            .and_then(|c| c.as_string_opt::<i32>());
        for value in column.into_iter().flatten().flatten() {
            match all.get_mut(value) {
                Some(n) => *n += 1,
                None => {
                    all.insert(value.to_owned(), 1);
                }
            }
        }
    }
    Ok(all)
}
