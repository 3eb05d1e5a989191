//! Mutates containers for some seconds and unpacks them:
//! `cargo run --release -p ramsift-layers --example fuzz_containers [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[path = "../tests/common/dumps.rs"]
mod dumps;

use ramsift_layers::ByteSource;
use ramsift_layers::container::{Limits, peek, unpack};
use ramsift_layers::source::RamSource;
use std::io::{Cursor, Write};
use std::sync::Arc;

/// A small capture in each kind of container, and some in one another.
fn seeds() -> Vec<Vec<u8>> {
    let m: Vec<u8> = (0..3).flat_map(dumps::page).chain([0; 8192]).collect();
    let lime = dumps::lime_range(0x1000, &m);
    let gzip = |b: &[u8]| {
        let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        w.write_all(b).expect("into memory");
        w.finish().expect("into memory")
    };
    let tar = |name: &str, b: &[u8]| {
        let mut t = tar::Builder::new(Vec::new());
        for (name, b) in [("notes.txt", &b"notes"[..]), (name, b)] {
            let mut h = tar::Header::new_gnu();
            h.set_size(b.len() as u64);
            h.set_cksum();
            t.append_data(&mut h, name, b).expect("into memory");
        }
        t.into_inner().expect("into memory")
    };
    let zip = |name: &str, b: &[u8]| {
        let mut z = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let how = zip::write::SimpleFileOptions::default();
        z.start_file(name, how).expect("into memory");
        z.write_all(b).expect("into memory");
        z.finish().expect("into memory").into_inner()
    };
    let lz4 = |b: &[u8]| {
        let mut w = lz4_flex::frame::FrameEncoder::new(Vec::new());
        w.write_all(b).expect("into memory");
        w.finish().expect("into memory")
    };
    let xz = |b: &[u8]| {
        let how = lzma_rust2::XzOptions::with_preset(1);
        let mut w = lzma_rust2::XzWriter::new(Vec::new(), how).expect("options");
        w.write_all(b).expect("into memory");
        w.finish().expect("into memory")
    };
    let zlib = miniz_oxide::deflate::compress_to_vec_zlib(&lime, 6);
    let zstd = zstd::bulk::compress(&lime, 3).expect("zstd");
    let all = [gzip(&lime), zlib, zstd, lz4(&lime), xz(&lime)];
    // A block of chunks of LZNT1 as they are, a packed one of zeros behind them.
    let zdmp = |b: &[u8]| {
        let mut out = b"ZDMP\0\x01\0\0".to_vec();
        out.extend((b.len() as u64 + 4096).to_le_bytes());
        out.extend([0, 0, 1, 0, 1, 0, 2, 0]);
        out.resize(4096, 0);
        let mut block: Vec<u8> = Vec::new();
        for c in b.chunks(4096) {
            block.extend((0x3000 | (c.len() as u16 - 1)).to_le_bytes());
            block.extend(c);
        }
        block.extend([0x03, 0xb0, 2, 0, 0xfc, 0x0f]);
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &block) as u32;
        out.extend(b"ZBLK");
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(sum.to_le_bytes());
        out.extend(block);
        out
    };
    let mut out = vec![
        zdmp(&lime),
        tar("memory.lime", &lime),
        zip("memory.lime", &lime),
        gzip(&tar("memory.lime", &lime)),
        tar("memory.lime.lz4", &all[3]),
        zip("memory.lime.gz", &all[0]),
        gzip(&gzip(&gzip(&lime))),
    ];
    out.extend(all);
    out
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime");
    let _in = runtime.enter();
    let file = tempfile::tempfile().expect("a file");
    let limits = Limits {
        bytes: 8 << 20,
        ratio: 1000,
    };
    drive::drive("containers", &seeds(), |data: &[u8]| {
        let _ = peek(&data[..data.len().min(4096)], "x.lime.gz");
        file.set_len(0).expect("emptied");
        let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x.gz", data.to_vec()));
        match unpack(&source, &file, "here", limits, false, &|_, _| {}) {
            Ok(u) => {
                let len = file.metadata().expect("metadata").len();
                assert!(u.len == len && len > 0 && len <= limits.bytes);
            }
            Err(e) => assert!(!e.is_outage(), "{e}"),
        }
    });
}
