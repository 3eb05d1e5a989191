//! Bytes per second of a scan whose results are only counted, on the image that
//! `RAMSIFT_BENCH_IMAGE` names.

use divan::counter::BytesCount;
use ramsift_carvers::api::{Anchor, Artifact, Event, Finding, MoreError, ReadMore, Sink, Window};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_layers::ImageOffset;
use std::sync::LazyLock;

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = std::env::var("RAMSIFT_BENCH_IMAGE").unwrap_or_default();
    std::fs::read(path).unwrap_or_default()
});

struct Count(u64);

impl Sink for Count {
    fn finding(&mut self, _: &Finding<'_>) {
        self.0 += 1;
    }

    fn event(&mut self, _: &Event<'_>) {
        self.0 += 1;
    }

    fn artifact(&mut self, _: &Artifact<'_>) {
        self.0 += 1;
    }

    fn anchor(&mut self, _: &Anchor<'_>) {
        self.0 += 1;
    }
}

struct Nothing;

impl ReadMore for Nothing {
    fn read_more(&mut self, _: ImageOffset, _: usize, _: &mut Vec<u8>) -> Result<(), MoreError> {
        Ok(())
    }
}

/// All carvers, and each group alone.
#[divan::bench(args = ["all", "log,text", "url,domain,email,ip", "elf,pe,png,jpeg,pdf,zip,sqlite,evtx,evtx_chunk,anchors"], sample_count = 3)]
fn scan(bencher: divan::Bencher<'_, '_>, carvers: &str) {
    let only = (carvers != "all").then(|| carvers.split(',').map(str::to_owned).collect());
    let set = CarverSet::new(CarverOptions {
        only,
        ..Default::default()
    })
    .expect("known names");
    let image = &*IMAGE;
    bencher.counter(BytesCount::of_slice(image)).bench(|| {
        let window = Window {
            data: image,
            base: ImageOffset(0),
            core_start: 0,
            core_end: image.len(),
            image_len: image.len() as u64,
        };
        let mut count = Count(0);
        set.scan(&window, &mut Nothing, &mut count, &|| false);
        count.0
    });
}

fn main() {
    if IMAGE.is_empty() {
        println!("nothing to scan: RAMSIFT_BENCH_IMAGE names no image");
        return;
    }
    divan::main();
}
