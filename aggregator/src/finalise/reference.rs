//! When the capture was taken: what years that records lack are inferred from.
//!
//! The captured machine's own clock comes first, then the newest time that a record of the image states in full, then what
//! the plan has: the container's time or the file's. Nothing is later than that: it is when the file was last written to.

use super::FinaliseError;
use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use ramsift_store::merge::{Reference, Segment};
use ramsift_store::tables::{name, segment_columns};
use ramsift_store::{Objects, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ending of a view's table and the column that says when the machine was captured. Views of all systems have these names.
const CLOCKS: &[(&str, &str)] = &[("_boottime", "captured"), ("_info", "captured")];

/// A day: clocks of the machine and of whoever stored its capture differ.
const SLACK: i64 = 86_400_000_000;

/// Finds out when the capture was taken.
pub(super) async fn of(
    objects: &Arc<dyn Objects>,
    plan: &Plan,
    segments: &BTreeMap<String, Vec<Segment>>,
) -> Result<Option<Reference>, FinaliseError> {
    let none = Vec::new();
    for (ending, column) in CLOCKS {
        for (table, all) in segments.iter().filter(|(t, _)| t.ends_with(ending)) {
            let newest = newest(objects, all, column, None).await?;
            if let Some(micros) = newest {
                tracing::debug!(table, micros, "the captured machine's clock");
                return Ok(Some(Reference {
                    micros,
                    label: "the captured machine's clock".to_owned(),
                }));
            }
        }
    }
    let Some((file, _)) = &plan.reference_time else {
        return Ok(None);
    };
    let events = segments.get(name::EVENTS).unwrap_or(&none);
    let stated = newest(objects, events, "time", Some(file.saturating_add(SLACK))).await?;
    Ok(stated.map(|micros| Reference {
        // A record that is a little newer than the file was written by a clock that is fast.
        micros: micros.min(*file),
        label: "the newest time that a record states in full".to_owned(),
    }))
}

/// The newest time of a column; what is later than `limit` is passed over.
async fn newest(
    objects: &Arc<dyn Objects>,
    segments: &[Segment],
    column: &str,
    limit: Option<i64>,
) -> Result<Option<i64>, FinaliseError> {
    let mut out = None;
    for s in segments {
        let (data, _) = objects.get(&s.key).await.map_err(StoreError::from)?;
        let damaged = |source| StoreError::Segment {
            what: s.key.clone(),
            source,
        };
        for b in segment_columns(data, &[column]).map_err(damaged)? {
            let b = b.map_err(damaged)?;
            let Some(times) = b
                .column_by_name(column)
                .and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
            else {
                continue;
            };
            let fits = |t: &i64| limit.is_none_or(|l| *t <= l);
            out = out.max(times.iter().flatten().filter(fits).max());
        }
    }
    Ok(out)
}
