//! What reading a packed capture costs: each codec alone, the reader in sequence, and single pages at random.
//!
//! ```text
//! cargo bench -p ramsift-layers --bench read
//! ```
//!
//! Bytes of memory per second. `codec` unpacks every piece by itself; `sequence` and `random` go through the table of extents. `planning`
//! opens captures of 512 GiB, of which a source stands in for what is not headers.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/dumps.rs"]
mod dumps;
#[path = "../tests/common/forms.rs"]
mod forms;
#[path = "../tests/common/hiber.rs"]
mod hiber;
#[path = "../tests/common/hyperv.rs"]
mod hyperv;
#[path = "../tests/common/large.rs"]
mod large;
#[path = "../tests/common/linux.rs"]
mod linux;
#[path = "../tests/common/machines.rs"]
mod machines;

use divan::Bencher;
use divan::counter::BytesCount;
use dumps::{Kind, Memory, Packed};
use ramsift_layers::extent::{Codec, Decoder, Extent};
use ramsift_layers::source::RamSource;
use ramsift_layers::{ByteSource, FileOffset, ImageReader, format};
use std::sync::Arc;
use tokio::runtime::Runtime;

const PAGES: u64 = 8192;
const FORMS: [&str; 15] = [
    "raw", "lime", "elf", "crash", "vmware", "ewf", "avml", "plain", "zlib", "lzo", "snappy",
    "zstd", "xpress", "huffman", "hyperv",
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
        "lime" => return forms::lime(&m),
        "elf" => return forms::elf_core(&m, true),
        "crash" => return forms::crash_full(&m, true),
        "vmware" => {
            let vm = machines::Vm {
                magic: 0xbed2_bed2,
                inside: true,
                regions: true,
            };
            return machines::vmware(&m, vm).0;
        }
        "ewf" => return machines::ewf(&m[0].1, 1, 10_000).remove(0),
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

/// A reader, and where the memory begins in what it reads.
fn reader(runtime: &Runtime, file: Vec<u8>) -> (ImageReader, u64) {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x", file));
    runtime.block_on(async {
        let o = format::open(source.as_ref()).await.unwrap();
        let first = o.layout.runs.runs()[0].file;
        (o.reader(source).await.unwrap(), first)
    })
}

/// Captures of 512 GiB: a raw image without its hole, and a LiME file.
#[divan::bench(args = ["raw", "lime"], sample_count = 10)]
fn planning(b: Bencher<'_, '_>, form: &str) {
    const LEN: u64 = 512 << 30;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let source = if form == "raw" {
        linux::Linux::of(0xc000_0000, LEN + (1 << 30)).image(true, LEN)
    } else {
        let mut h = b"EMiL\x01\0\0\0".to_vec();
        for v in [0u64, LEN - 33, 0] {
            h.extend(v.to_le_bytes());
        }
        large::Large::object(LEN, [(0, h)])
    };
    b.bench_local(|| runtime.block_on(format::open(&source)).unwrap());
}

#[divan::bench(args = FORMS, sample_count = 10)]
fn sequence(b: Bencher<'_, '_>, form: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (r, first) = reader(&runtime, packed(form));
    let bytes = r.bytes();
    let mut buf = vec![0; 1 << 20];
    b.counter(BytesCount::new(PAGES * 4096)).bench_local(|| {
        for at in (first..first + PAGES * 4096).step_by(buf.len()) {
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
    let (r, first) = reader(&runtime, packed(form));
    let bytes = r.bytes();
    let mut buf = vec![0; 4096];
    const READS: u64 = 1000;
    b.counter(BytesCount::new(READS * 4096)).bench_local(|| {
        for i in 0..READS {
            // A stride that is prime to the number of pages.
            let page = i * 4801 % PAGES;
            runtime
                .block_on(bytes.read_at(FileOffset(first + page * 4096), &mut buf))
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
    let (r, _) = reader(&runtime, file.clone());
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
