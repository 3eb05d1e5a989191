//! Walks `testdata`: every case's rows are found, with the values that it gives.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{golden_inputs, whole};
use ramsift_carvers::{CarverOptions, CarverSet};
use serde_json::Value;

fn options(case: &Value) -> CarverOptions {
    let o = &case["options"];
    let reference = o["reference_time"].as_i64();
    let basis = o["reference_basis"].as_str().unwrap_or_default().to_owned();
    let zone = o["timezone"]
        .as_str()
        .map(|z| jiff::tz::TimeZone::fixed(jiff::tz::offset(z.parse().unwrap())));
    CarverOptions {
        timezone: zone,
        reference_time: reference.map(|r| (r, basis)),
        ..Default::default()
    }
}

/// True when `row` has every value of `want`; a nested object may have more.
fn matches(want: &Value, row: &Value) -> bool {
    want.as_object()
        .unwrap()
        .iter()
        .all(|(k, w)| match (k.as_str(), w) {
            ("context_around", w) => {
                let around: u64 = w.as_array().unwrap().iter().filter_map(Value::as_u64).sum();
                row["context"].as_array().unwrap().len() as u64
                    == around + row["len"].as_u64().unwrap()
            }
            ("fields", Value::Object(o)) => o.iter().all(|(k, w)| row["fields"][k] == *w),
            _ => row[k] == *w,
        })
}

#[test]
fn every_case() {
    let mut failures = Vec::new();
    let cases = golden_inputs();
    assert!(cases.len() >= 20, "the cases are there");
    for (path, image) in cases {
        let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let case: Value = serde_json::from_str(&text).unwrap();
        let set = CarverSet::new(options(&case)).unwrap();
        let mut rows = common::Rows::default();
        let stats = common::window(&set, &image, 0..image.len(), 0, &mut rows);
        if !stats.partial.is_empty() {
            failures.push(format!("{}: partial {:?}", path.display(), stats.partial));
        }
        for want in case["rows"].as_array().unwrap() {
            let n = rows.0.iter().filter(|r| matches(want, r)).count();
            if n != 1 {
                let near: Vec<_> = rows
                    .0
                    .iter()
                    .filter(|r| r["offset"] == want["offset"])
                    .collect();
                failures.push(format!(
                    "{}: {n} rows for {want}\n  there: {near:?}",
                    path.display()
                ));
            }
        }
        for (row, n) in case["counts"].as_object().unwrap() {
            let found: Vec<_> = rows.of(row).collect();
            if found.len() as u64 != n.as_u64().unwrap() {
                failures.push(format!(
                    "{}: {} {row} rows, not {n}",
                    path.display(),
                    found.len()
                ));
                let brief = found
                    .iter()
                    .map(|r| format!("  {} {}", r["kind"], r["offset"]));
                failures.extend(brief);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Real event logs, when there are some: as many records as the chunks' headers say.
#[test]
fn real_event_logs() {
    let Ok(dir) = std::env::var("RAMSIFT_EVTX_DIR") else {
        eprintln!("skipped: RAMSIFT_EVTX_DIR names no folder of event logs");
        return;
    };
    let set = common::all();
    for file in std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|f| f.path().is_file())
    {
        let image = std::fs::read(file.path()).unwrap();
        let rows = whole(&set, &image);
        let chunks = rows
            .of("artifact")
            .filter(|a| a["kind"] == "evtx_chunk" && a["complete"] == true);
        for c in chunks {
            let at = c["offset"].as_u64().unwrap();
            let header = &image[at as usize..];
            let id = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().unwrap());
            let inside = rows.of("event").filter(|e| {
                e["kind"] == "evtx" && (at..at + 65536).contains(&e["offset"].as_u64().unwrap())
            });
            assert_eq!(
                inside.count() as u64,
                id(32) - id(24) + 1,
                "{:?} {at}",
                file.path()
            );
        }
    }
}
