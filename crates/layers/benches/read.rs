//! What reading a packed capture costs: each codec alone, the reader in sequence, and single pages at random.
//!
//! ```text
//! cargo bench -p ramsift-layers --bench read
//! ```
//!
//! Bytes of memory per second. `codec` unpacks every piece by itself; `sequence` and `random` go through the table of extents.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/dumps.rs"]
mod dumps;
#[path = "../tests/common/hiber.rs"]
mod hiber;
#[path = "../tests/common/hyperv.rs"]
mod hyperv;

use divan::Bencher;
use divan::counter::BytesCount;
use dumps::{Kind, Memory, Packed};
use ramsift_layers::extent::{Codec, Decoder, Extent};
use ramsift_layers::source::RamSource;
use ramsift_layers::{ByteSource, FileOffset, ImageReader, format};
use std::sync::Arc;
use tokio::runtime::Runtime;

const PAGES: u64 = 8192;
const FORMS: [&str; 10] = [
    "raw", "avml", "plain", "zlib", "lzo", "snappy", "zstd", "xpress", "huffman", "hyperv",
];

fn main() {
    divan::main();
}

fn memory() -> Memory {
    vec![(0x1000, (0..PAGES).flat_map(dumps::page).collect())]
}

fn packed(form: &str) -> Vec<u8> {
    let m = memory();
    let kind = match form {
        "raw" => return m.into_iter().next().unwrap().1,
        "avml" => {
            let block = |(i, b): (usize, &[u8])| dumps::avml_range(0x1000 + ((i as u64) << 24), b);
            return m[0]
                .1
                .chunks(16 << 20)
                .enumerate()
                .flat_map(block)
                .collect();
        }
        // Hibernation files, by the two ways of Xpress.
        "xpress" | "huffman" => {
            let h = hiber::Hiber {
                method: Some(if form == "xpress" { 0 } else { 2 }),
                ..hiber::Hiber::of(0x3e0)
            };
            return hiber::modern(&m, h);
        }
        "hyperv" => {
            let s = hyperv::State {
                packed: true,
                objects: 1000,
                log: 0,
            };
            return hyperv::vmrs(&m, s, 0x1000);
        }
        "plain" => Packed::Plain,
        "zlib" => Packed::Zlib,
        "lzo" => Packed::Lzo,
        "snappy" => Packed::Snappy,
        _ => Packed::Zstd,
    };
    dumps::kdump(&m, &Kind::of(kind))
}

fn reader(runtime: &Runtime, file: Vec<u8>) -> ImageReader {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x", file));
    runtime.block_on(async {
        let o = format::open(source.as_ref()).await.unwrap();
        o.reader(source).await.unwrap()
    })
}

#[divan::bench(args = FORMS, sample_count = 10)]
fn sequence(b: Bencher<'_, '_>, form: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let bytes = reader(&runtime, packed(form)).bytes();
    let mut buf = vec![0; 1 << 20];
    b.counter(BytesCount::new(PAGES * 4096)).bench_local(|| {
        for at in (0..PAGES * 4096).step_by(buf.len()) {
            runtime
                .block_on(bytes.read_at(FileOffset(at), &mut buf))
                .unwrap();
        }
    });
}

#[divan::bench(args = FORMS, sample_count = 10)]
fn random(b: Bencher<'_, '_>, form: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let bytes = reader(&runtime, packed(form)).bytes();
    let mut buf = vec![0; 4096];
    const READS: u64 = 1000;
    b.counter(BytesCount::new(READS * 4096)).bench_local(|| {
        for i in 0..READS {
            // A stride that is prime to the number of pages.
            let page = i * 4801 % PAGES;
            runtime
                .block_on(bytes.read_at(FileOffset(page * 4096), &mut buf))
                .unwrap();
        }
    });
}

#[divan::bench(args = ["zlib", "lzo", "snappy", "zstd", "xpress", "huffman", "hyperv"], sample_count = 10)]
fn codec(b: Bencher<'_, '_>, form: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let file = packed(form);
    let r = reader(&runtime, file.clone());
    let extents = runtime
        .block_on(r.extents().unwrap().in_image(0..u64::MAX))
        .unwrap();
    // What is packed may stand for more than one extent.
    let whole = |e: &Extent| e.part.map_or(e.len, |(_, all)| all);
    let mut out = vec![0; 1 << 20];
    let mut d = Decoder::default();
    b.counter(BytesCount::new(PAGES * 4096)).bench_local(|| {
        for e in &extents {
            if e.codec != Codec::Zero && e.codec != Codec::Raw {
                let data = &file[e.source as usize..(e.source + e.stored) as usize];
                let out = &mut out[..whole(e) as usize];
                d.decode(e.codec, data, out).unwrap();
            }
        }
    });
}
