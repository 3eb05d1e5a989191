//! Sealed tables of raw images whose memory begins elsewhere than at 0.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use ramsift_layers::Severity;
use ramsift_store::merge::{Merged, Segment, Stamp, merge};
use ramsift_store::query::QueryLimits;
use ramsift_store::tables::{FindingRow, FindingsBuilder, name, read_segment, write_segment};
use ramsift_store::{LocalObjects, Objects};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Findings at these places, as chunk workers report them. Every tenth has no address.
fn rows(places: Range<u64>) -> RecordBatch {
    let mut b = FindingsBuilder::default();
    for at in places {
        b.push(&FindingRow {
            id: u128::from(at).to_be_bytes(),
            detector: "carver:url",
            kind: "url",
            severity: Severity::Info,
            severity_reason: "",
            scope: "image",
            image_offset: at * 16,
            physical_address: (at % 10 != 0).then_some(at * 16),
            length: 4,
            value: "x",
            encoding: None,
            context: None,
            fields: None,
            path: None,
            artifact: None,
            rule: None,
        });
    }
    b.finish().expect("valid").expect("rows")
}

async fn store(objects: &dyn Objects, key: &str, batch: RecordBatch) -> Segment {
    let data = write_segment(name::FINDINGS, batch.schema(), &[batch]).expect("Parquet");
    let bytes = data.len() as u64;
    objects.put(key, data.into()).await.expect("stored");
    Segment {
        key: key.to_owned(),
        bytes,
    }
}

/// One large segment, which is copied, and two small ones that share 50 rows: each of these is told once.
async fn sealed(dir: &Path, base: Option<u64>) -> (Merged, RecordBatch) {
    let objects: Arc<dyn Objects> = Arc::new(LocalObjects::open(dir).expect("store"));
    let segments = [
        store(objects.as_ref(), "segments/a", rows(0..6000)).await,
        store(objects.as_ref(), "segments/b", rows(7000..7100)).await,
        store(objects.as_ref(), "segments/c", rows(7050..7200)).await,
    ];
    let stamp = Stamp {
        capture: "c",
        pass: 1,
        frames: None,
        base,
        order: None,
        clock: None,
    };
    let to = dir.join("findings.parquet");
    let limits = QueryLimits::default();
    let merged = merge(&objects, name::FINDINGS, &segments, stamp, &to, &limits);
    let merged = merged.await.expect("merged");
    let batches = read_segment(std::fs::read(&to).expect("written").into()).expect("Parquet");
    let schema = batches[0].schema();
    let all = arrow::compute::concat_batches(&schema, &batches).expect("one schema");
    (merged, all)
}

fn numbers(b: &RecordBatch, column: &str) -> Vec<Option<u64>> {
    let c: &ArrayRef = b.column_by_name(column).expect(column);
    let c = c.as_primitive::<UInt64Type>();
    (0..c.len())
        .map(|i| c.is_valid(i).then(|| c.value(i)))
        .collect()
}

#[tokio::test]
async fn addresses_count_from_where_memory_begins_and_nothing_else_changes() {
    const BASE: u64 = 1 << 30;
    let (plain, moved) = (tempfile::tempdir(), tempfile::tempdir());
    let (plain, moved) = (plain.expect("folder"), moved.expect("folder"));
    let (merged, before) = sealed(plain.path(), None).await;
    assert_eq!((merged.rows, merged.copied), (6200, 6000));
    let (merged, after) = sealed(moved.path(), Some(BASE)).await;
    assert_eq!((merged.rows, merged.copied), (6200, 6000));
    let (offsets, addresses) = (
        numbers(&after, "image_offset"),
        numbers(&after, "physical_address"),
    );
    for (offset, address) in offsets.iter().zip(&addresses) {
        let at = offset.expect("a place");
        let want = (at / 16 % 10 != 0).then_some(at + BASE);
        assert_eq!(*address, want, "at {at:#x}");
    }
    assert_eq!(before.schema(), after.schema());
    for (i, f) in before.schema().fields().iter().enumerate() {
        if f.name() != "physical_address" {
            assert_eq!(before.column(i), after.column(i), "{}", f.name());
        }
    }
    let raw = numbers(&before, "physical_address");
    assert!(raw.iter().zip(&offsets).all(|(a, o)| a.is_none() || a == o));
}
