//! Grouping keeps to the memory that it is given, however many findings there are: every allocation is counted.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt8Array, UInt64Array,
};
use arrow::datatypes::UInt64Type;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ramsift_store::groups::{Agreement, group_findings};
use ramsift_store::query::QueryLimits;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is the system allocator's; what is counted beside it changes nothing that it returns.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `at` came from `alloc`, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROWS: u64 = 400_000;
const BATCH: u64 = 8192;

/// A fixed sequence without order (Weyl's, by the golden ratio).
fn mixed(i: u64) -> u64 {
    let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

fn value(i: u64) -> String {
    format!("host-{:08x}.example.com", mixed(i) % (ROWS * 3 / 4))
}

/// A table of findings in the order of their places, most of them of values of their own and of owners of their own.
fn findings(to: &Path) {
    let mut out: Option<ArrowWriter<File>> = None;
    for from in (0..ROWS).step_by(BATCH as usize) {
        let rows = from..(from + BATCH).min(ROWS);
        let text = |f: &dyn Fn(u64) -> String| {
            Arc::new(StringArray::from_iter_values(rows.clone().map(f))) as ArrayRef
        };
        let offsets = Arc::new(UInt64Array::from_iter_values(rows.clone().map(|i| i * 64)));
        let none = Arc::new(StringArray::from_iter(rows.clone().map(|_| None::<&str>)));
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("detector", text(&|_| "carver:domain".into()), false),
            ("kind", text(&|_| "domain".into()), false),
            ("severity", text(&|_| "info".into()), false),
            (
                "severity_rank",
                Arc::new(UInt8Array::from_iter_values(rows.clone().map(|_| 0))),
                false,
            ),
            ("image_offset", offsets.clone() as ArrayRef, false),
            ("physical_address", offsets, true),
            ("value", text(&value), false),
            ("fields", none, true),
            ("page_state", text(&|_| "process".into()), true),
            (
                "owner",
                text(&|i| format!("worker[{}] [heap]", i % 997)),
                true,
            ),
            (
                "spliced",
                Arc::new(BooleanArray::from_iter(rows.clone().map(|_| Some(false)))),
                true,
            ),
        ])
        .unwrap();
        out.get_or_insert_with(|| {
            ArrowWriter::try_new(File::create(to).unwrap(), batch.schema(), None).unwrap()
        })
        .write(&batch)
        .unwrap();
    }
    out.unwrap().close().unwrap();
}

#[test]
fn memory_is_what_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("f.parquet"), dir.path().join("g.parquet"));
    findings(&from);
    let limits = QueryLimits {
        memory: 48 << 20,
        spill: dir.path().to_owned(),
        threads: 2,
    };
    let held = HELD.load(Ordering::Relaxed);
    MOST.store(held, Ordering::Relaxed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let done = runtime.block_on(group_findings(
        &from,
        Agreement::default(),
        "c",
        &to,
        &limits,
    ));
    let groups = done.unwrap().rows;
    let most = MOST.load(Ordering::Relaxed) - held;
    let allowed = limits.memory;
    assert!(most <= allowed, "{most} bytes where {allowed} are allowed");

    let mut want: BTreeMap<String, u64> = BTreeMap::new();
    for i in 0..ROWS {
        *want.entry(value(i)).or_default() += 1;
    }
    assert_eq!(groups, want.len() as u64);
    let file = ParquetRecordBatchReaderBuilder::try_new(File::open(&to).unwrap()).unwrap();
    let mut positions = 0;
    for b in file.build().unwrap() {
        let b = b.unwrap();
        let values = b.column_by_name("value").unwrap().as_string::<i32>();
        let counts = b
            .column_by_name("count")
            .unwrap()
            .as_primitive::<UInt64Type>();
        for i in 0..b.num_rows() {
            assert_eq!(want.remove(values.value(i)), Some(counts.value(i)));
            positions += 1;
        }
    }
    assert_eq!((positions, want.len()), (groups, 0));
}
