//! Reading single pages of an object through the block cache on disk: cold, warm, and without it.
//!
//! ```text
//! cargo bench -p ramsift-layers --bench cache
//! ```
//!
//! A source stands in for the store: a request takes 8 ms and 1 ms for each 800 KB, as SeaweedFS does on one machine.

#![allow(clippy::unwrap_used, missing_docs)]

use async_trait::async_trait;
use divan::Bencher;
use divan::counter::BytesCount;
use ramsift_layers::source::{DiskCache, DiskLimits, RamSource, SourceError, SourcePin};
use ramsift_layers::{ByteSource, FileOffset};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

const PAGE: usize = 4096;
const PAGES: u64 = 32 << 10;
const READS: u64 = 200;

fn main() {
    divan::main();
}

/// Memory behind a network.
#[derive(Debug)]
struct Store(RamSource);

#[async_trait]
impl ByteSource for Store {
    fn pin(&self) -> &SourcePin {
        self.0.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        let micros = 8000 + buf.len() as u64 / 800;
        tokio::time::sleep(Duration::from_micros(micros)).await;
        self.0.read_at(offset, buf).await
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn coalesce_distance(&self) -> u64 {
        512 << 10
    }
}

fn store() -> Arc<dyn ByteSource> {
    let bytes = vec![0x5a; PAGES as usize * PAGE];
    Arc::new(Store(RamSource::new("object", bytes)))
}

fn runtime() -> Runtime {
    let mut b = tokio::runtime::Builder::new_multi_thread();
    b.worker_threads(2).enable_all().build().unwrap()
}

/// Pages by a stride that is prime to their number.
async fn pages(source: &dyn ByteSource) {
    let mut buf = vec![0; PAGE];
    for i in 0..READS {
        let page = i * 4801 % PAGES;
        let at = FileOffset(page * PAGE as u64);
        source.read_at(at, &mut buf).await.unwrap();
    }
}

fn cache(of: &Arc<dyn ByteSource>) -> DiskCache {
    DiskCache::new(of.clone(), &DiskLimits::default()).unwrap()
}

#[divan::bench(sample_count = 5)]
fn cold(b: Bencher<'_, '_>) {
    let (runtime, store) = (runtime(), store());
    b.counter(BytesCount::new(READS * PAGE as u64))
        .with_inputs(|| cache(&store))
        .bench_local_values(|c| runtime.block_on(pages(&c)));
}

#[divan::bench(sample_count = 20)]
fn warm(b: Bencher<'_, '_>) {
    let (runtime, store) = (runtime(), store());
    let c = cache(&store);
    runtime.block_on(pages(&c));
    b.counter(BytesCount::new(READS * PAGE as u64))
        .bench_local(|| runtime.block_on(pages(&c)));
}

#[divan::bench(sample_count = 5)]
fn straight(b: Bencher<'_, '_>) {
    let (runtime, store) = (runtime(), store());
    b.counter(BytesCount::new(READS * PAGE as u64))
        .bench_local(|| runtime.block_on(pages(store.as_ref())));
}
