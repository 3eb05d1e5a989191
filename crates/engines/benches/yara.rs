//! YARA: a chunk with 1,000 rules, against plain yara-x and its block scanner, and loading 5,000.
//!
//! `cargo bench -p ramsift-engines`; `RAMSIFT_BENCH_IMAGE=file` takes the first 64 MiB of a file
//! instead of generated memory.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{io::Read, sync::LazyLock};

use divan::{Bencher, counter::BytesCount};
use ramsift_engines::yara::{ChunkScanner, FileScanner, RuleSet, ScanLimits};
use ramsift_layers::ImageOffset;

const SIZE: usize = 64 << 20;

static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| match std::env::var_os("RAMSIFT_BENCH_IMAGE") {
    None => support::memory(SIZE, 1),
    Some(path) => {
        let mut data = Vec::new();
        let file = std::fs::File::open(path).expect("the image opens");
        file.take(SIZE as u64)
            .read_to_end(&mut data)
            .expect("the image can be read");
        data.resize(SIZE, 0);
        data
    }
});
static SOURCE: LazyLock<String> = LazyLock::new(|| support::rules(1000, 2));
static RULES: LazyLock<RuleSet> =
    LazyLock::new(|| RuleSet::from_source("bench.yar", &SOURCE).expect("rules load"));
static PLAIN: LazyLock<yara_x::Rules> =
    LazyLock::new(|| yara_x::compile(SOURCE.as_str()).expect("rules compile"));
static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let source = support::rules(5000, 3);
    RuleSet::from_source("bench.yar", &source)
        .expect("rules load")
        .to_bytes()
});

fn main() {
    divan::main();
}

/// What the `yr` command does with a file.
#[divan::bench(sample_count = 5)]
fn plain_scanner(bencher: Bencher<'_, '_>) {
    let mut scanner = yara_x::Scanner::new(&PLAIN);
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        scanner.scan(&DATA).map(|r| r.matching_rules().len()).ok();
    });
}

#[divan::bench(sample_count = 5, args = [1, 16, 64])]
fn block_scanner(bencher: Bencher<'_, '_>, mebibytes: usize) {
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        let mut scanner = yara_x::blocks::Scanner::new(&PLAIN);
        for (i, block) in DATA.chunks(mebibytes << 20).enumerate() {
            scanner.scan(i * (mebibytes << 20), block).ok();
        }
        scanner.finish().map(|r| r.matching_rules().len()).ok();
    });
}

#[divan::bench(sample_count = 5, args = [16, 64])]
fn chunk_scanner(bencher: Bencher<'_, '_>, mebibytes: usize) {
    let mut scanner = ChunkScanner::new(&RULES, ScanLimits::default());
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        for (i, chunk) in DATA.chunks(mebibytes << 20).enumerate() {
            let base = ImageOffset((i * (mebibytes << 20)) as u64);
            divan::black_box(scanner.scan(chunk, base, 0..chunk.len(), &[]));
        }
    });
}

#[divan::bench(sample_count = 3)]
fn load_5000_for_chunks(bencher: Bencher<'_, '_>) {
    LazyLock::force(&LARGE);
    bencher.bench_local(|| RuleSet::from_bytes(&LARGE).map(|r| r.rules().len()).ok());
}

#[divan::bench(sample_count = 3)]
fn load_5000_for_files(bencher: Bencher<'_, '_>) {
    LazyLock::force(&LARGE);
    bencher.bench_local(|| {
        let rules = RuleSet::from_bytes(&LARGE).ok()?;
        FileScanner::new(&rules, ScanLimits::default())
            .ok()
            .map(|mut s| s.scan(b"x").hits.len())
    });
}
