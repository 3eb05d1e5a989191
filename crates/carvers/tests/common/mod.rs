//! What the integration tests share: a sink that keeps rows, scans in windows, a planted image.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod fuzz;

use ramsift_carvers::api::{
    Anchor, Artifact, Event, Field, Finding, LOOK_BEHIND, MoreError, ReadMore, ScanStats, Sink,
    Window,
};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_layers::ImageOffset;
use serde_json::{Map, Value, json};

/// Everything found, as JSON rows.
#[derive(Default)]
pub(crate) struct Rows(pub(crate) Vec<Value>);

fn fields(items: &[(&'static str, Field<'_>)]) -> Value {
    let mut m = Map::new();
    for (k, v) in items {
        let v = match v {
            Field::Str(s) => json!(s),
            Field::Int(n) => json!(n),
            Field::Bool(b) => json!(b),
            Field::List(l) => json!(l),
        };
        m.insert((*k).to_owned(), v);
    }
    Value::Object(m)
}

/// CRC-32, bit by bit: not the crate's.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, &b| {
        (0..8).fold(c ^ u32::from(b), |c, _| {
            if c & 1 == 1 {
                c >> 1 ^ 0xedb8_8320
            } else {
                c >> 1
            }
        })
    })
}

impl Sink for Rows {
    fn finding(&mut self, f: &Finding<'_>) {
        self.0.push(json!({
            "row": "finding", "carver": f.carver, "kind": f.kind, "offset": f.offset.0,
            "len": f.len, "value": f.value, "encoding": f.encoding.as_str(),
            "context": f.context, "fields": fields(f.fields),
        }));
    }

    fn event(&mut self, e: &Event<'_>) {
        self.0.push(json!({
            "row": "event", "carver": e.carver, "kind": e.kind, "offset": e.offset.0,
            "len": e.len, "time": e.time, "inferred_time": e.inferred_time,
            "inferred_from": e.inferred_from, "raw_time": e.raw_time, "time_kind": e.time_kind,
            "host": e.host, "program": e.program, "pid": e.pid, "message": e.message,
            "encoding": e.encoding.as_str(), "fields": fields(e.fields),
        }));
    }

    fn artifact(&mut self, a: &Artifact<'_>) {
        self.0.push(json!({
            "row": "artifact", "carver": a.carver, "kind": a.kind, "offset": a.offset.0,
            "len": a.data.len(), "crc32": crc32(a.data), "name": a.name, "complete": a.complete, "gap": a.gap,
            "fields": fields(a.fields),
        }));
    }

    fn anchor(&mut self, a: &Anchor<'_>) {
        self.0.push(json!({
            "row": "anchor", "kind": a.kind, "offset": a.offset.0, "data": a.data,
        }));
    }
}

impl Rows {
    /// The rows as sorted text, to compare.
    pub(crate) fn sorted(&self) -> Vec<String> {
        let mut v: Vec<_> = self.0.iter().map(Value::to_string).collect();
        v.sort_unstable();
        v
    }

    pub(crate) fn of<'a>(&'a self, row: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |r| r["row"] == row)
    }
}

/// The rest of an image, up to a budget.
pub(crate) struct Rest<'a> {
    pub(crate) image: &'a [u8],
    pub(crate) budget: usize,
}

impl ReadMore for Rest<'_> {
    fn read_more(
        &mut self,
        at: ImageOffset,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), MoreError> {
        if len > self.budget {
            return Err(MoreError::Budget);
        }
        self.budget -= len;
        let from = (at.0 as usize).min(self.image.len());
        buf.extend_from_slice(&self.image[from..from.saturating_add(len).min(self.image.len())]);
        Ok(())
    }
}

/// Scans `core` of the image, with `overlap` bytes after it.
pub(crate) fn window(
    set: &CarverSet,
    image: &[u8],
    core: std::ops::Range<usize>,
    overlap: usize,
    rows: &mut Rows,
) -> ScanStats {
    let from = core.start.saturating_sub(LOOK_BEHIND);
    let to = (core.end + overlap).min(image.len());
    let window = Window {
        data: &image[from..to],
        base: ImageOffset(from as u64),
        core_start: core.start - from,
        core_end: core.end - from,
        image_len: image.len() as u64,
    };
    let mut rest = Rest {
        image,
        budget: usize::MAX,
    };
    set.scan(&window, &mut rest, rows, &|| false)
}

/// Scans the image as one window.
pub(crate) fn whole(set: &CarverSet, image: &[u8]) -> Rows {
    let mut rows = Rows::default();
    window(set, image, 0..image.len(), 0, &mut rows);
    rows
}

pub(crate) fn all() -> CarverSet {
    let basis = (1_717_200_000_000_000, "the test".to_owned());
    CarverSet::new(CarverOptions {
        reference_time: Some(basis),
        ..Default::default()
    })
    .unwrap()
}

/// A small generator of numbers (xorshift64*): the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// The golden cases' files.
pub(crate) fn golden_inputs() -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut out = Vec::new();
    for dir in std::fs::read_dir(root)
        .unwrap()
        .flatten()
        .filter(|d| d.path().is_dir())
    {
        for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
            if file.path().extension().is_some_and(|e| e == "in") {
                out.push((file.path(), std::fs::read(file.path()).unwrap()));
            }
        }
    }
    out.sort();
    out
}

/// A real event log.
pub(crate) fn real_event_log() -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read(root.join("testdata/evtx/security.evtx")).unwrap()
}
