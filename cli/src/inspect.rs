//! `ramsift inspect`: what captures are, before anything is queued. Reads headers and known places, never the whole capture.

use crate::args::{InspectArgs, Rows};
use crate::config::Config;
use crate::terminal::{Shown, say, tell};
use crate::{CANNOT_RUN, capture, evidence, rows, symbols};
use anyhow::Result;
use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use ramsift_coordinator::is_container;
use ramsift_layers::container::{Inside, Kind, PEEK_LEN, peek};
use ramsift_layers::format::{self, FormatError, Layout, Told, outline};
use ramsift_layers::source::{CountedSource, SourceError, Sources};
use ramsift_layers::{ByteSource, ChunkParams};
use ramsift_structured_worker::{Glance, Means, Prospect, glance};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Captures that are looked at side by side: most of the time goes by waiting for a store.
const SIDE_BY_SIDE: usize = 16;
/// MB per second that a slot scans with all carvers and without rules, by the measurements in the README.
const RATE: u64 = 300;
/// What a read costs, in bytes, where it is a request over the network.
const FAR: u64 = 256 << 10;

/// What is known of one file or object.
#[derive(Debug, Default)]
struct Row {
    capture: String,
    /// `ok`, `gaps`, `no capture`, `unreadable`.
    status: &'static str,
    format: Option<String>,
    version: Option<String>,
    size: Option<u64>,
    image_size: Option<u64>,
    runs: Option<u64>,
    lowest: Option<u64>,
    highest: Option<u64>,
    missing: Option<u64>,
    gaps: Vec<String>,
    architecture: Option<String>,
    system: Option<String>,
    kernel: Option<String>,
    host: Option<String>,
    /// RFC 3339.
    acquired: Option<String>,
    place: Option<String>,
    structured: Option<String>,
    chunks: Option<u64>,
    estimated_seconds: Option<u64>,
    notes: Vec<String>,
    problem: Option<String>,
    bytes_read: u64,
    millis: u64,
}

/// Columns of text, by name.
type Text = (&'static str, fn(&Row) -> Option<String>);
/// Columns of numbers, by name.
type Number = (&'static str, fn(&Row) -> Option<u64>);

/// A column.
enum Column {
    Text(Text),
    Number(Number),
}

fn joined(all: &[String]) -> Option<String> {
    (!all.is_empty()).then(|| all.join("; "))
}

/// The columns in the order in which they are shown: what a person sorts captures by comes first.
fn columns() -> Vec<Column> {
    let t = |name, of: fn(&Row) -> Option<String>| Column::Text((name, of));
    let n = |name, of: fn(&Row) -> Option<u64>| Column::Number((name, of));
    vec![
        t("capture", |r| Some(r.capture.clone())),
        t("status", |r| Some(r.status.to_owned())),
        t("format", |r| r.format.clone()),
        n("size", |r| r.size),
        n("image_size", |r| r.image_size),
        t("system", |r| r.system.clone()),
        t("kernel", |r| r.kernel.clone()),
        t("structured", |r| r.structured.clone()),
        t("problem", |r| r.problem.clone()),
        n("chunks", |r| r.chunks),
        n("estimated_seconds", |r| r.estimated_seconds),
        n("runs", |r| r.runs),
        n("missing_bytes", |r| r.missing),
        t("gaps", |r| joined(&r.gaps)),
        t("version", |r| r.version.clone()),
        t("architecture", |r| r.architecture.clone()),
        t("place", |r| r.place.clone()),
        t("host", |r| r.host.clone()),
        t("acquired", |r| r.acquired.clone()),
        t("lowest_address", |r| r.lowest.map(|a| format!("{a:#x}"))),
        t("highest_address", |r| r.highest.map(|a| format!("{a:#x}"))),
        t("notes", |r| joined(&r.notes)),
        n("bytes_read", |r| Some(r.bytes_read)),
        n("millis", |r| Some(r.millis)),
    ]
}

fn schema() -> SchemaRef {
    let field = |c: Column| match c {
        Column::Text((name, _)) => Field::new(name, DataType::Utf8, true),
        Column::Number((name, _)) => Field::new(name, DataType::UInt64, true),
    };
    Arc::new(Schema::new(
        columns().into_iter().map(field).collect::<Vec<_>>(),
    ))
}

fn batch(r: &Row) -> Result<RecordBatch, arrow::error::ArrowError> {
    let cell = |c: Column| -> ArrayRef {
        match c {
            Column::Text((_, of)) => Arc::new(StringArray::from(vec![of(r)])),
            Column::Number((_, of)) => Arc::new(UInt64Array::from(vec![of(r)])),
        }
    };
    RecordBatch::try_new(schema(), columns().into_iter().map(cell).collect())
}

/// What captures are looked at with.
#[derive(Clone, Debug)]
struct Look {
    sources: Sources,
    means: Means,
    chunk_size: u64,
    deep: bool,
    /// Bytes of memory per second.
    rate: u64,
    config: Arc<Config>,
}

/// Bytes of memory per second that a scan is taken to do.
fn rate(config: &Config, given: Option<u64>) -> u64 {
    let slots = u64::try_from(crate::embedded::slots(config)).unwrap_or(1);
    given.unwrap_or(RATE * slots).saturating_mul(1_000_000)
}

/// What a job on all that was looked at takes.
#[derive(Debug, Default)]
struct Total {
    captures: u64,
    unreadable: u64,
    with_gaps: u64,
    passed_over: u64,
    bytes: u64,
    memory: u64,
    chunks: u64,
    seconds: u64,
}

impl Total {
    fn add(&mut self, r: &Row) {
        match r.status {
            "unreadable" => self.unreadable += 1,
            "no capture" => self.passed_over += 1,
            "gaps" => self.with_gaps += 1,
            _ => {}
        }
        if !matches!(r.status, "unreadable" | "no capture") {
            self.captures += 1;
            self.bytes += r.size.unwrap_or(0);
            self.memory += r.image_size.or(r.size).unwrap_or(0);
            self.chunks += r.chunks.unwrap_or(0);
            self.seconds += r.estimated_seconds.unwrap_or(0);
        }
    }

    fn say(&self, rate: u64) {
        let other = |n: u64, what: &str| match n {
            0 => String::new(),
            n => format!(", {n} {what}"),
        };
        tell!(
            "{} captures{}{}{}: {} in files, {} of memory, {} chunks; a scan of all of it takes about {} at {} MB per second",
            self.captures,
            other(self.with_gaps, "with gaps"),
            other(self.unreadable, "files that can't be read"),
            other(self.passed_over, "files passed over"),
            HumanBytes(self.bytes),
            HumanBytes(self.memory),
            HumanCount(self.chunks),
            HumanDuration(Duration::from_secs(self.seconds)),
            rate / 1_000_000
        );
    }
}

/// Runs the command. The exit code tells of the worst: 2 where something can't be read, 3 where something is missing.
pub(crate) async fn run(config: &Config, args: InspectArgs) -> Result<u8> {
    let sources = Sources::new(config.s3.to_layers()?);
    let found = capture::look(&args.images, &sources).await?;
    let look = Look {
        means: symbols::means(config).await?,
        sources,
        chunk_size: config.scan.chunk_size,
        deep: args.deep,
        rate: rate(config, args.rate),
        config: Arc::new(config.clone()),
    };
    let named: Vec<(String, Option<String>)> = found
        .captures
        .into_iter()
        .map(|c| (c, None))
        .chain(found.skipped.into_iter().map(|(n, why)| (n, Some(why))))
        .collect();
    let alone = named.len() == 1;
    let worst = Arc::new(std::sync::atomic::AtomicU8::new(0));
    let seen = worst.clone();
    let total = Arc::new(Mutex::new(Total::default()));
    let sum = total.clone();
    let rate = look.rate;
    let all = futures::stream::iter(named)
        .map(move |(name, skipped)| {
            let look = look.clone();
            async move {
                match skipped {
                    None => row(&look, name).await,
                    Some(why) => passed_over(&look, name, why).await,
                }
            }
        })
        .buffered(SIDE_BY_SIDE)
        .inspect(move |r| {
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(r);
            let code = match r.status {
                "unreadable" => CANNOT_RUN,
                "gaps" => crate::scan::GAPS,
                _ => 0,
            };
            let worse = |now: u8| {
                // What can't be read is worse than what has gaps.
                let rank = |c: u8| {
                    [0, crate::scan::GAPS, CANNOT_RUN]
                        .iter()
                        .position(|x| *x == c)
                };
                (rank(code) > rank(now)).then_some(code)
            };
            let order = std::sync::atomic::Ordering::Relaxed;
            let _ = seen.fetch_update(order, order, worse);
        });
    if alone && args.how.format == Rows::Table && args.how.columns.is_empty() {
        for r in all.collect::<Vec<_>>().await {
            page(&r, config.scan.chunk_size, rate);
        }
    } else {
        let batches = all.map(|r| Ok(batch(&r)?));
        let stream = Box::pin(RecordBatchStreamAdapter::new(schema(), batches));
        rows::print(stream, &args.how, false).await?;
        if args.how.format == Rows::Table {
            let all = total.lock().unwrap_or_else(PoisonError::into_inner);
            all.say(rate);
        }
    }
    Ok(worst.load(std::sync::atomic::Ordering::Relaxed))
}

/// A file of a folder that doesn't look like a capture: one that would be, could it be read, is told apart.
async fn passed_over(look: &Look, name: String, why: String) -> Row {
    let refused = async {
        let source = look.sources.open(&name).await.ok()?;
        if is_container(source.as_ref()).await.ok()? {
            return None;
        }
        match format::recognise(source.as_ref()).await {
            Err(FormatError::Unsupported { .. }) => Some(source.len()),
            _ => None,
        }
    };
    let size = refused.await;
    Row {
        status: if size.is_some() {
            "unreadable"
        } else {
            "no capture"
        },
        size,
        problem: Some(why),
        capture: name,
        ..Row::default()
    }
}

async fn row(look: &Look, name: String) -> Row {
    let began = Instant::now();
    let mut row = Row {
        capture: name,
        status: "ok",
        ..Row::default()
    };
    if let Err(why) = fill(look, &mut row).await {
        row.status = "unreadable";
        row.problem = Some(why);
    } else if !row.gaps.is_empty() || row.missing.is_some_and(|m| m > 0) {
        row.status = "gaps";
    }
    // Memory that is packed is unpacked, so it is memory that counts.
    let scanned = row.image_size.or(row.size).filter(|_| row.chunks.is_some());
    row.estimated_seconds = scanned.map(|n| n.div_ceil(look.rate));
    row.millis = millis(began.elapsed());
    row
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Enters what a capture tells; the error says why it can't be read.
async fn fill(look: &Look, row: &mut Row) -> Result<(), String> {
    let opened = look.sources.open(&row.capture).await;
    let source = opened.map_err(|e| e.to_string())?;
    let beside = look.sources.beside(source.pin());
    let joined = format::joined(&source, &beside).await;
    let source = joined.map_err(|e| e.to_string())?.unwrap_or(source);
    let counted = Arc::new(CountedSource::new(source));
    row.size = Some(counted.len());
    let mut head = counted.head(format::HEAD_LEN).await;
    if head.as_ref().is_ok_and(|h| Kind::of(h).is_some()) {
        head = counted.head(PEEK_LEN).await;
    }
    let head = head.map_err(|e| e.to_string())?;
    let filled = match peek(&head, counted.pin().name()) {
        None => of_source(look, counted.clone(), row).await,
        Some(inside) if !look.deep => of_container(row, inside),
        Some(inside) => unpacked(look, counted.clone(), row, &inside).await,
    };
    row.bytes_read = counted.bytes();
    filled
}

/// What the first bytes of a container tell of the capture in it.
fn of_container(row: &mut Row, inside: Inside) -> Result<(), String> {
    row.format = Some(inside.what.clone());
    row.notes.push(format!(
        "begins with {}{}",
        inside.name,
        if inside.archive {
            "; there may be more in it"
        } else {
            ""
        }
    ));
    if let Some(f) = format::named(&inside.head) {
        row.notes.push(format!("that is {}", article(f)));
    }
    row.structured = Some("not tried: it is unpacked first; --deep does that".to_owned());
    Ok(())
}

/// Unpacks a container, and looks at what came out.
async fn unpacked(
    look: &Look,
    source: Arc<CountedSource>,
    row: &mut Row,
    inside: &Inside,
) -> Result<(), String> {
    row.format = Some(inside.what.clone());
    let size = row.size;
    let done = evidence::unpack(&look.config, source).await;
    let (file, from) = done.map_err(|e| format!("{e:#}"))?;
    let counted = Arc::new(CountedSource::new(file));
    let filled = of_source(look, counted, row).await;
    let u = from.unpacked;
    let format = row.format.take().unwrap_or_default();
    row.format = Some(format!("{format} in {}", u.what));
    row.size = size;
    row.notes
        .insert(0, format!("unpacked {}: {} bytes", u.name, u.len));
    if !u.others.is_empty() {
        row.notes
            .push(format!("also in it: {}", u.others.join(", ")));
    }
    row.gaps.extend(u.cut);
    filled
}

async fn of_source(look: &Look, source: Arc<CountedSource>, row: &mut Row) -> Result<(), String> {
    let chunks = ChunkParams {
        size: look.chunk_size,
        ..ChunkParams::default()
    };
    row.size = Some(source.len());
    row.chunks = Some(chunks.count(source.len()));
    let far = source.coalesce_distance() >= FAR;
    if far && !look.deep {
        let seen = outline(source.as_ref()).await;
        if let Some(o) = seen.map_err(|e| e.to_string())? {
            row.format = Some(o.format.to_owned());
            row.version = o.version;
            row.image_size = o.memory;
            row.architecture = o.arch;
            of_machine(row, &o.told);
            row.gaps.extend(o.damage);
            row.notes = o.notes;
            row.structured = Some(format!(
                "not tried: where the memory lies in {} is known after a pass over it; --deep makes that pass",
                article(o.format)
            ));
            return Ok(());
        }
    }
    let beside = look.sources.beside(source.pin());
    let opened = format::open_beside(source.as_ref(), &beside).await;
    let opened = opened.map_err(|e| e.to_string())?;
    of_layout(row, &opened.layout);
    let reader = opened.reader(source.clone()).await;
    let reader = reader.map_err(|e| e.to_string())?;
    let whole = look.deep || !far;
    match glance(&reader, &opened.layout, look.means.clone(), whole).await {
        Ok(g) => of_glance(row, g),
        Err(e) => row.structured = Some(format!("not tried: {e}")),
    }
    let unchanged = source.check_pin().await;
    unchanged.map_err(|e: SourceError| e.to_string())
}

fn article(format: &str) -> String {
    let vowel = format.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {format} file", if vowel { "an" } else { "a" })
}

/// What the container says of its machine; what its memory says comes first.
fn of_machine(row: &mut Row, told: &Told) {
    row.system.clone_from(&told.system);
    row.kernel.clone_from(&told.kernel);
    row.host.clone_from(&told.host);
    let time = |micros| jiff::Timestamp::from_microsecond(micros).ok();
    row.acquired = told.acquired.and_then(time).map(|t| t.to_string());
}

fn of_layout(row: &mut Row, layout: &Layout) {
    let runs = layout.runs.runs();
    row.format = Some(layout.format.clone());
    row.version.clone_from(&layout.version);
    row.image_size = Some(layout.runs.image_len());
    row.runs = Some(runs.len() as u64);
    row.lowest = runs.first().map(|r| r.pa);
    row.highest = runs.last().map(|r| r.pa.saturating_add(r.len));
    row.missing = Some(layout.runs.missing().iter().map(|m| m.end - m.start).sum());
    row.architecture.clone_from(&layout.arch);
    of_machine(row, &layout.told);
    let told = |g: &format::ContainerGap| {
        format!("{:#x} to {:#x}: {}", g.file.start, g.file.end, g.reason)
    };
    row.gaps = layout.gaps.iter().map(told).collect();
    row.notes.clone_from(&layout.notes);
}

fn of_glance(row: &mut Row, g: Glance) {
    row.system = g.system.map(str::to_owned).or(row.system.take());
    row.kernel = g.kernel.or(row.kernel.take());
    row.place = g.place;
    row.structured = Some(match g.prospect {
        Prospect::Possible => "possible: processes can be listed".to_owned(),
        Prospect::Impossible(why) => format!("not possible: {why}"),
        Prospect::Open(why) => format!("not tried: {why}"),
    });
}

/// Everything about one capture, a line each.
fn page(r: &Row, chunk_size: u64, rate: u64) {
    let line = |name: &str, value: String| say!("{name:<13} {}", Shown(value));
    let bytes = |n: u64| format!("{} ({} bytes)", HumanBytes(n), HumanCount(n));
    line("capture", r.capture.clone());
    line("status", r.status.to_owned());
    if let Some(p) = &r.problem {
        line("problem", p.clone());
    }
    if let Some(f) = &r.format {
        let version = r
            .version
            .as_ref()
            .map_or(String::new(), |v| format!(", {v}"));
        line("format", format!("{f}{version}"));
    }
    if let Some(n) = r.size {
        line("file", bytes(n));
    }
    if let Some(n) = r.image_size {
        line("memory", bytes(n));
    }
    if let (Some(n), Some(a), Some(b)) = (r.runs, r.lowest, r.highest) {
        line("runs", format!("{n}, physical {a:#x} to {b:#x}"));
    }
    if let Some(n) = r.missing.filter(|n| *n > 0) {
        line("missing", bytes(n));
    }
    for g in &r.gaps {
        line("gap", g.clone());
    }
    for (name, value) in [
        ("architecture", &r.architecture),
        ("system", &r.system),
        ("kernel", &r.kernel),
        ("host", &r.host),
        ("acquired", &r.acquired),
        ("found by", &r.place),
        ("structured", &r.structured),
    ] {
        if let Some(v) = value {
            line(name, v.clone());
        }
    }
    if let Some(n) = r.chunks {
        let what = r.size.map_or(0, |s| s.min(chunk_size));
        let time = r.estimated_seconds.unwrap_or(0);
        line(
            "work",
            format!(
                "{n} chunks of up to {}; about {} at {} MB per second",
                HumanBytes(what),
                HumanDuration(Duration::from_secs(time)),
                rate / 1_000_000
            ),
        );
    }
    for n in &r.notes {
        line("note", n.clone());
    }
    line(
        "looked at",
        format!(
            "{} read in {:.1} s",
            HumanBytes(r.bytes_read),
            r.millis as f64 / 1000.0
        ),
    );
}

/// One line on a capture that is about to be scanned, from its headers alone. What is wrong with it is for the job to say.
pub(crate) async fn line(
    sources: &Sources,
    source: &dyn ByteSource,
    chunk_size: u64,
) -> Option<String> {
    let chunks = ChunkParams {
        size: chunk_size,
        ..ChunkParams::default()
    };
    let chunks = chunks.count(source.len());
    let head = source.head(format::HEAD_LEN).await.ok()?;
    if let Some(inside) = peek(&head, source.pin().name()) {
        return Some(format!(
            "{}, {}; it is unpacked before it is planned",
            inside.what,
            HumanBytes(source.len())
        ));
    }
    if let Some(o) = outline(source).await.ok()? {
        let memory = o
            .memory
            .map_or(String::new(), |n| format!("{} of memory, ", HumanBytes(n)));
        return Some(format!(
            "{}, {memory}{} in {chunks} chunks",
            o.format,
            HumanBytes(source.len())
        ));
    }
    let beside = sources.beside(source.pin());
    let layout = format::open_beside(source, &beside).await.ok()?.layout;
    let missing: u64 = layout.runs.missing().iter().map(|m| m.end - m.start).sum();
    let mut out = format!(
        "{}, {} of memory in {} runs, {chunks} chunks",
        layout.format,
        HumanBytes(layout.runs.image_len()),
        layout.runs.runs().len()
    );
    if missing > 0 {
        out.push_str(&format!(", {} missing", HumanBytes(missing)));
    }
    if !layout.gaps.is_empty() {
        out.push_str(&format!(", {} gaps", layout.gaps.len()));
    }
    Some(out)
}
