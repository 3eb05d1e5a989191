//! The one row of `captures`: the evidence and what was made of it.

use crate::{Manifest, Plan};
use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::error::ArrowError;
use std::sync::Arc;

/// The captures table of one job.
pub fn captures_batch(m: &Manifest, plan: &Plan, capture: &str) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let mut text = |name: &str, v: Option<String>| {
        fields.push(Field::new(name, DataType::Utf8, true));
        columns.push(Arc::new(StringArray::from(vec![
            v.filter(|s| !s.is_empty()),
        ])));
    };
    let labels: serde_json::Map<String, serde_json::Value> = m
        .spec
        .labels
        .iter()
        .map(|l| (l.key.clone(), l.value.clone().into()))
        .collect();
    text("capture", Some(capture.to_owned()));
    text("job", Some(m.job.clone()));
    text("source", Some(m.evidence.to_string()));
    text("pin", serde_json::to_string(&m.evidence).ok());
    text("blake3", m.evidence_blake3.clone());
    text("sha256", m.evidence_sha256.clone());
    text("sha256_from", m.evidence_sha256_from.clone());
    text("format", Some(m.format.clone()));
    text("notes", Some(plan.layout.notes.join("; ")));
    text("verdict", Some(m.verdict.clone()));
    text("analyses", Some(m.analyses.clone()));
    text("case", Some(m.spec.case_name.clone()));
    text("evidence", Some(m.spec.evidence.clone()));
    text("examiner", Some(m.spec.examiner.clone()));
    text("labels", serde_json::to_string(&labels).ok());
    text("coverage", serde_json::to_string(&m.coverage).ok());
    text("rules_digest", m.rules_digest.clone());
    text("version", Some(m.version.clone()));
    for (name, v) in [
        ("file_size", m.evidence_bytes),
        ("image_size", m.image_bytes),
    ] {
        fields.push(Field::new(name, DataType::UInt64, false));
        columns.push(Arc::new(UInt64Array::from(vec![v])));
    }
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    for (name, v) in [
        ("started", m.started_micros),
        ("finished", m.finished_micros),
    ] {
        fields.push(Field::new(name, micros.clone(), false));
        let a = TimestampMicrosecondArray::from(vec![v]).with_timezone("UTC");
        columns.push(Arc::new(a));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
