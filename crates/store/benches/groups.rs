//! How long findings take to be grouped at the seal, and how long a list of results takes afterwards.
//!
//! ```text
//! cargo bench -p ramsift-store --bench groups                      10^7 findings, a third of them values of their own
//! cargo bench -p ramsift-store --bench groups -- 1000000000 sim    lists over the groups of 10^9 findings (10^8 values),
//!                                                                  written as the seal would, without the findings
//! ```
//!
//! Prints seconds and the most memory that the process ever held.

#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int32Array, ListBuilder, RecordBatch, StringArray,
    StringBuilder, UInt8Array, UInt64Array,
};
use arrow::datatypes::Int64Type;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use ramsift_store::groups::{Agreement, group_findings, groups_schema};
use ramsift_store::query::{QueryLimits, local};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const BATCH: u64 = 1 << 16;
const KINDS: [&str; 5] = ["domain", "url", "ipv4", "email", "ipv6"];
const PLACES: [(&str, &str); 4] = [
    ("process", "sshd[812] [heap]"),
    ("file", "/var/log/syslog"),
    ("file", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
    ("free", ""),
];

/// A fixed sequence without order (Weyl's, by the golden ratio).
fn mixed(i: u64) -> u64 {
    let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

fn writer(to: &Path, schema: Arc<arrow::datatypes::Schema>) -> ArrowWriter<File> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_max_row_group_row_count(Some(128 << 10))
        .build();
    ArrowWriter::try_new(File::create(to).unwrap(), schema, Some(properties)).unwrap()
}

fn kind(value: u64) -> &'static str {
    KINDS[(value % 64).min(4) as usize]
}

/// A table of findings in the order of their places: half of them are of few values, the rest of many.
fn findings(to: &Path, n: u64) {
    let mut out: Option<ArrowWriter<File>> = None;
    for from in (0..n).step_by(BATCH as usize) {
        let rows = from..(from + BATCH).min(n);
        let value = |i: u64| match mixed(i) % 2 {
            0 => mixed(i) % 5000,
            _ => mixed(i) % (n * 2 / 3).max(1),
        };
        let text = |f: &dyn Fn(u64) -> String| {
            Arc::new(StringArray::from_iter_values(rows.clone().map(f))) as ArrayRef
        };
        let numbers = |f: &dyn Fn(u64) -> u64| {
            Arc::new(UInt64Array::from_iter_values(rows.clone().map(f))) as ArrayRef
        };
        let place = |i: u64| PLACES[(mixed(i + 7) % 4) as usize];
        let some = |s: &'static str| (!s.is_empty()).then_some(s);
        let batch = RecordBatch::try_from_iter_with_nullable([
            (
                "detector",
                text(&|i| format!("carver:{}", kind(value(i)))),
                false,
            ),
            ("kind", text(&|i| kind(value(i)).to_owned()), false),
            ("severity", text(&|_| "info".to_owned()), false),
            (
                "severity_rank",
                Arc::new(UInt8Array::from_iter_values(rows.clone().map(|_| 0))) as ArrayRef,
                false,
            ),
            ("image_offset", numbers(&|i| i * 512), false),
            ("physical_address", numbers(&|i| i * 512), true),
            (
                "value",
                text(&|i| format!("host-{:08x}.example.com", value(i))),
                false,
            ),
            (
                "fields",
                Arc::new(StringArray::from_iter(rows.clone().map(|_| None::<&str>))) as ArrayRef,
                true,
            ),
            (
                "page_state",
                Arc::new(StringArray::from_iter_values(
                    rows.clone().map(|i| place(i).0),
                )) as ArrayRef,
                true,
            ),
            (
                "owner",
                Arc::new(StringArray::from_iter(
                    rows.clone().map(|i| some(place(i).1)),
                )) as ArrayRef,
                true,
            ),
            (
                "spliced",
                Arc::new(BooleanArray::from_iter(rows.clone().map(|_| Some(false)))) as ArrayRef,
                true,
            ),
        ])
        .unwrap();
        out.get_or_insert_with(|| writer(to, batch.schema()))
            .write(&batch)
            .unwrap();
    }
    out.unwrap().close().unwrap();
}

/// Groups as a seal leaves them, in their order.
fn groups(to: &Path, n: u64) {
    let schema = groups_schema();
    let mut out = writer(to, schema.clone());
    for from in (0..n).step_by(BATCH as usize) {
        let rows = from..(from + BATCH).min(n);
        let len = (rows.end - rows.start) as usize;
        let text = |f: &dyn Fn(u64) -> String| {
            Arc::new(StringArray::from_iter_values(rows.clone().map(f))) as ArrayRef
        };
        let none =
            || Arc::new(StringArray::from_iter(rows.clone().map(|_| None::<&str>))) as ArrayRef;
        let bytes =
            |v: u8| Arc::new(UInt8Array::from_iter_values(rows.clone().map(|_| v))) as ArrayRef;
        let numbers = |f: &dyn Fn(u64) -> u64| {
            Arc::new(UInt64Array::from_iter_values(rows.clone().map(f))) as ArrayRef
        };
        let mut owners = ListBuilder::new(StringBuilder::new());
        for i in rows.clone() {
            owners
                .values()
                .append_value(PLACES[(mixed(i) % 3) as usize].1);
            owners.append(true);
        }
        let rank = |i: u64| 90 - i32::try_from(i * 90 / n).unwrap();
        let columns: Vec<ArrayRef> = vec![
            text(&|_| "bench".to_owned()),
            numbers(&|i| i),
            text(&|_| "info".to_owned()),
            bytes(0),
            text(&|i| kind(mixed(i)).to_owned()),
            text(&|i| format!("carver:{}", kind(mixed(i)))),
            text(&|i| format!("host-{:08x}.example.com", mixed(i) >> 16)),
            numbers(&|i| 1 + mixed(i) % 20),
            Arc::new(Int32Array::from_iter_values(rows.clone().map(rank))),
            text(&|i| PLACES[(mixed(i) % 3) as usize].0.to_owned()),
            none(),
            none(),
            bytes(1),
            Arc::new(owners.finish()),
            Arc::new(BooleanArray::from_iter((0..len).map(|_| Some(false)))),
            numbers(&|i| mixed(i) >> 20),
            numbers(&|i| mixed(i) >> 20),
        ];
        out.write(&RecordBatch::try_new(schema.clone(), columns).unwrap())
            .unwrap();
    }
    out.close().unwrap();
}

/// The most memory that this process held, in MiB (proc(5), VmHWM).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        >> 10
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let n: u64 = args.first().map_or(10_000_000, |n| n.parse().unwrap());
    let simulated = args.get(1).is_some_and(|a| a == "sim");
    let dir = tempfile::tempdir().unwrap();
    let limits = QueryLimits {
        spill: dir.path().to_owned(),
        ..QueryLimits::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let to = dir.path().join("groups.parquet");
    if simulated {
        groups(&to, n / 10);
        println!("{n} findings simulated: {} groups written", n / 10);
    } else {
        let from = dir.path().join("findings.parquet");
        findings(&from, n);
        let size = std::fs::metadata(&from).unwrap().len() >> 20;
        println!("{n} findings written, {size} MiB; {} MiB held", peak());
        let start = Instant::now();
        let done = group_findings(&from, Agreement::default(), "bench", &to, &limits);
        let done = runtime.block_on(done).unwrap();
        let s = start.elapsed().as_secs_f64();
        println!(
            "grouped in {s:.1} s: {} groups; {} MiB held",
            done.rows,
            peak()
        );
    }
    let lists = [
        ("results", "true"),
        ("results --kind domain", "kind = 'domain'"),
        ("results --kind ipv6", "kind = 'ipv6'"),
        ("results --text", "strpos(value, '0badcafe') > 0"),
        ("results --severity high", "severity_rank >= 3"),
    ];
    for (name, filter) in lists {
        let start = Instant::now();
        let rows = runtime.block_on(async {
            let t = local(dir.path(), &limits).unwrap();
            t.register("groups", &["groups.parquet".to_owned()], None)
                .await
                .unwrap();
            // As the command line does: the first groups, and more where they don't suffice.
            let (mut first, mut filter) = (1_u64 << 16, filter.to_owned());
            while filter != "true" && first < n {
                let part = format!("position < {first} AND ({filter})");
                let sql = format!("SELECT count(*) FROM groups WHERE {part}");
                let found = t.collect(&sql).await.unwrap();
                if found[0].column(0).as_primitive::<Int64Type>().value(0) >= 50 {
                    filter = part;
                    break;
                }
                first *= 16;
            }
            let sql = ramsift_store::groups::list(&filter, 50);
            t.collect(&sql)
                .await
                .unwrap()
                .iter()
                .map(RecordBatch::num_rows)
                .sum::<usize>()
        });
        println!(
            "{name:<26} {rows:>3} rows in {:>7.1} ms; {} MiB held",
            start.elapsed().as_secs_f64() * 1e3,
            peak()
        );
    }
}
