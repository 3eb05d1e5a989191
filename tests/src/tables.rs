//! Rows of results, to be compared with those of another run.

use crate::block_on;
use ramsift_store::Objects;
use ramsift_store::query::{QueryLimits, Tables};
use std::sync::Arc;

/// All rows of a job's tables as text, without what names the run.
pub fn tables(objects: Arc<dyn Objects>, job: &str, names: &[&str]) -> Vec<(String, Vec<String>)> {
    block_on(async {
        let t = Tables::new(objects, &QueryLimits::default()).expect("session");
        t.register_jobs(&[job.to_owned()]).await.expect("tables");
        let mut out = Vec::new();
        for table in names.iter().copied() {
            // A pack lies in its job's folder; its name after that is the hash of its content.
            // How long a view took, and how much was read for it, are each run's own.
            let columns = match table {
                "artifacts" => "* EXCLUDE (object), regexp_replace(object, '^.*/', '') AS object",
                "views" => "* EXCLUDE (micros)",
                "system" => "* EXCLUDE (bytes_read)",
                _ => "*",
            };
            let batches = t
                .collect(&format!("SELECT {columns} FROM {table}"))
                .await
                .expect(table);
            let mut text = Vec::new();
            let mut w = arrow::json::LineDelimitedWriter::new(&mut text);
            for b in &batches {
                w.write(b).expect("json");
            }
            w.finish().expect("json");
            let mut rows: Vec<String> = String::from_utf8(text)
                .expect("text")
                .lines()
                .map(str::to_owned)
                .collect();
            rows.sort();
            out.push((table.to_owned(), rows));
        }
        out
    })
}

/// Rows without times that rest on the file's or object's own time.
pub fn without_inference(rows: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = rows
        .into_iter()
        .map(|r| {
            let mut v: serde_json::Value = serde_json::from_str(&r).expect("JSON");
            if let Some(o) = v.as_object_mut() {
                o.remove("inferred_time");
                o.remove("inferred_from");
            }
            v.to_string()
        })
        .collect();
    out.sort();
    out
}
