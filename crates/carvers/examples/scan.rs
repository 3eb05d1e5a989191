//! Scans an image with every carver and says how fast, or prints what is found.
//!
//! `scan IMAGE [CHUNK_MIB] [--dump] [--only NAME,...]`

use ramsift_carvers::api::{Anchor, Artifact, Event, Finding, MoreError, ReadMore, Sink, Window};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_layers::ImageOffset;
use std::collections::BTreeMap;
use std::time::Instant;

/// CPU seconds of this thread so far, where the system tells.
fn cpu() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

#[derive(Default)]
struct Count {
    dump: bool,
    kinds: BTreeMap<(&'static str, &'static str), (u64, u64)>,
}

impl Count {
    fn add(&mut self, what: &'static str, kind: &'static str, bytes: u64) {
        let n = self.kinds.entry((what, kind)).or_default();
        n.0 += 1;
        n.1 += bytes;
    }
}

impl Sink for Count {
    fn finding(&mut self, f: &Finding<'_>) {
        self.add("finding", f.kind, f.len);
        if self.dump {
            println!(
                "F\t{}\t{}\t{}\t{}\t{:?}",
                f.kind, f.offset.0, f.len, f.value, f.fields
            );
        }
    }

    fn event(&mut self, e: &Event<'_>) {
        self.add("event", e.kind, e.len);
        if self.dump {
            let message = e.message.replace('\n', " ");
            let fields = format!("{:?}", e.fields).replace('\n', " ");
            println!(
                "E\t{}\t{}\t{}\t{:?}\t{:?}\t{}\t{:?}\t{:?}\t{:?}\t{message}\t{fields}",
                e.kind,
                e.offset.0,
                e.len,
                e.time,
                e.inferred_time,
                e.raw_time,
                e.host,
                e.program,
                e.pid
            );
        }
    }

    fn artifact(&mut self, a: &Artifact<'_>) {
        self.add("artifact", a.kind, a.data.len() as u64);
        match a.complete {
            Some(true) => {}
            Some(false) => self.add("partial", a.kind, a.data.len() as u64),
            None => self.add("unknown", a.kind, a.data.len() as u64),
        }
        if self.dump {
            println!(
                "A\t{}\t{}\t{}\t{:?}\t{:?}\t{:?}",
                a.kind,
                a.offset.0,
                a.data.len(),
                a.complete,
                a.gap,
                a.fields
            );
        }
    }

    fn anchor(&mut self, a: &Anchor<'_>) {
        self.add("anchor", a.kind, a.data.len() as u64);
        if self.dump {
            println!("K\t{}\t{}\t{}", a.kind, a.offset.0, a.data.len());
        }
    }
}

struct Rest<'a>(&'a [u8]);

impl ReadMore for Rest<'_> {
    fn read_more(
        &mut self,
        at: ImageOffset,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), MoreError> {
        let at = (at.0 as usize).min(self.0.len());
        buf.extend_from_slice(&self.0[at..at.saturating_add(len).min(self.0.len())]);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dump = args.iter().any(|a| a == "--dump");
    let only = args
        .iter()
        .position(|a| a == "--only")
        .and_then(|i| args.get(i + 1));
    let only = only.map(|o| o.split(',').map(str::to_owned).collect());
    let image = std::fs::read(args.first().ok_or("which image?")?)?;
    let chunk = args
        .get(1)
        .and_then(|a| a.parse::<usize>().ok())
        .unwrap_or(64)
        << 20;
    let set = CarverSet::new(CarverOptions {
        only,
        ..Default::default()
    })?;
    let mut count = Count {
        dump,
        ..Count::default()
    };
    let mut rest = Rest(&image);
    let (begin, cpu_begin) = (Instant::now(), cpu());
    let (mut sparse, mut partial) = (0, 0);
    for start in (0..image.len()).step_by(chunk) {
        let from = start.saturating_sub(ramsift_carvers::api::LOOK_BEHIND);
        let end = (start + chunk).min(image.len());
        let to = (end + (1 << 20)).min(image.len());
        let window = Window {
            data: &image[from..to],
            base: ImageOffset(from as u64),
            core_start: start - from,
            core_end: end - from,
            image_len: image.len() as u64,
        };
        let stats = set.scan(&window, &mut rest, &mut count, &|| false);
        sparse += stats.sparse.iter().map(|r| r.end - r.start).sum::<u64>();
        partial += stats.partial.len();
        for p in stats.partial.iter().take(5) {
            eprintln!("partial {p:?}");
        }
    }
    let took = begin.elapsed().as_secs_f64();
    let rate = image.len() as f64 / 1e6 / took;
    if let Some(cpu) = cpu().zip(cpu_begin).map(|(b, a)| b - a) {
        eprintln!(
            "{cpu:.3} CPU s, {:.0} MB per CPU second",
            image.len() as f64 / 1e6 / cpu
        );
    }
    eprintln!("{took:.3} s, {rate:.0} MB/s; sparse {sparse} bytes, {partial} partial ranges");
    for ((what, kind), (n, bytes)) in &count.kinds {
        eprintln!("{what:9} {kind:22} {n:9} {bytes:12}");
    }
    Ok(())
}
