//! `ramsift grep`: text, bytes or a regular expression in the image, in processes and in cached files.
//!
//! ```text
//! image      every byte once, where it lies           -> all hits
//! processes  pages in the order of their addresses    -> hits that cross pages which lie apart in RAM
//! files      recovered content in its own order       -> the same, of jobs
//! ```
//!
//! What lies within a page is found in the image, and its owner is told; only what the image tears is looked for in
//! processes and files. With `--pid` everything in those processes is told, with its virtual address.

use crate::args::{Format, GrepArgs};
use crate::artifacts::{COLUMNS, Stored};
use crate::config::Config;
use crate::evidence::{self, Evidence, Named};
use crate::terminal::{Shown, count, shown_bytes, tell};
use crate::{rows, symbols};
use anyhow::{Context, Result, anyhow, bail};
use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use futures::StreamExt;
use ramsift_layers::page_file::place_of;
use ramsift_layers::{ByteSource, FileOffset, ImageOffset, PhysAddr};
use ramsift_os::Machine;
use ramsift_os::content::Extent;
use ramsift_os::resident::Unit;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_structured_worker::with_machine;
use regex::bytes::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Bytes searched at a time, and how far a hit may reach past them.
const STEP: u64 = 16 << 20;
const OVERLAP: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// Memory of a process that is laid out at a time.
const PIECE: u64 = 32 << 20;

/// What is looked for, as bytes and as UTF-16.
struct Patterns {
    bytes: Regex,
    wide: Option<Regex>,
}

/// A literal as a regular expression over bytes.
fn literal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("\\x{b:02x}")).collect()
}

impl Patterns {
    fn new(a: &GrepArgs) -> Result<Self> {
        let build = |text: &str| {
            RegexBuilder::new(text)
                .unicode(false)
                .dot_matches_new_line(false)
                .case_insensitive(a.ignore_case)
                .size_limit(64 << 20)
                .build()
                .with_context(|| {
                    format!(
                        "{:?} is no regular expression that can be searched for",
                        a.pattern
                    )
                })
        };
        if a.pattern.is_empty() {
            bail!("the pattern is empty");
        }
        if a.hex {
            let digits: String = a.pattern.chars().filter(|c| !c.is_whitespace()).collect();
            let bytes = hex::decode(&digits)
                .with_context(|| format!("{:?} is no bytes in hexadecimal", a.pattern))?;
            return Ok(Self {
                bytes: build(&literal(&bytes))?,
                wide: None,
            });
        }
        if a.regex {
            let bytes = build(&a.pattern)?;
            if bytes.is_match(b"") {
                bail!("{:?} matches nothing at all, everywhere", a.pattern);
            }
            // Of UTF-16 the low bytes are searched, see `narrowed`.
            let wide = (!a.no_utf16).then(|| bytes.clone());
            return Ok(Self { bytes, wide });
        }
        // Case is folded for ASCII; what lies beyond is searched for as written.
        let bytes = build(&literal(a.pattern.as_bytes()))?;
        let wide: Vec<u8> = a
            .pattern
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let wide = (!a.no_utf16).then(|| build(&literal(&wide))).transpose()?;
        Ok(Self { bytes, wide })
    }
}

/// A hit in a piece of memory: where it begins, its length, its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hit {
    at: usize,
    len: usize,
    wide: bool,
}

/// Every second byte of a range in which every other one is zero, from an even or odd start; what is no such text is
/// a line end, which no pattern crosses by accident.
fn narrowed(data: &[u8], parity: usize) -> Vec<u8> {
    data[parity.min(data.len())..]
        .chunks_exact(2)
        .map(|p| if p[1] == 0 && p[0] != 0 { p[0] } else { b'\n' })
        .collect()
}

fn hits(p: &Patterns, regex: bool, data: &[u8]) -> Vec<Hit> {
    let mut out: Vec<Hit> = p
        .bytes
        .find_iter(data)
        .map(|m| Hit {
            at: m.start(),
            len: m.len(),
            wide: false,
        })
        .collect();
    match &p.wide {
        Some(w) if regex => {
            for parity in 0..2 {
                let low = narrowed(data, parity);
                out.extend(w.find_iter(&low).map(|m| Hit {
                    at: parity + 2 * m.start(),
                    len: 2 * m.len(),
                    wide: true,
                }));
            }
        }
        Some(w) => out.extend(w.find_iter(data).map(|m| Hit {
            at: m.start(),
            len: m.len(),
            wide: true,
        })),
        None => {}
    }
    out.sort_unstable();
    out.retain(|h| h.len > 0);
    out
}

/// A hit with what is told of it.
#[derive(Clone, Debug, Default)]
struct Told {
    place: &'static str,
    image_offset: u64,
    physical: Option<u64>,
    virtual_address: Option<u64>,
    length: u64,
    encoding: &'static str,
    owner: Option<String>,
    text: String,
}

fn told(data: &[u8], h: Hit, context: usize) -> Told {
    let from = h.at.saturating_sub(context);
    let to = (h.at + h.len + context).min(data.len());
    let piece = &data[from..to];
    let text = if h.wide {
        // In step with the hit, whatever lies before it.
        let piece = &piece[(h.at - from) % 2..];
        let units = piece
            .chunks_exact(2)
            .map(|c| u16::from_le_bytes([c[0], c[1]]));
        Shown(
            char::decode_utf16(units)
                .map(|c| c.unwrap_or('\u{fffd}'))
                .collect::<String>(),
        )
        .to_string()
    } else {
        shown_bytes(piece)
    };
    Told {
        length: h.len as u64,
        encoding: if h.wide { "utf16le" } else { "bytes" },
        text,
        ..Told::default()
    }
}

/// Searches the image, several pieces at a time; hits come in its order.
async fn image(
    e: &Evidence,
    p: &Arc<Patterns>,
    a: &GrepArgs,
    limit: usize,
) -> Result<(Vec<Told>, u64)> {
    let runs = &e.plan.layout.runs;
    let mut pieces: Vec<(Range<u64>, u64)> = Vec::new();
    let mut at = 0;
    while at < runs.image_len() {
        let Some(stretch) = runs.stretch(ImageOffset(at)) else {
            // Not stored: the next page may be.
            at = (at / PAGE + 1) * PAGE;
            if let Some(gap) = runs.missing().into_iter().find(|m| m.contains(&at)) {
                at = gap.end;
            }
            continue;
        };
        let mut from = at.max(stretch.start);
        while from < stretch.end {
            let to = (from + STEP).min(stretch.end);
            pieces.push((from..to, stretch.end.min(to + OVERLAP)));
            from = to;
        }
        at = stretch.end;
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (regex, context) = (a.regex, a.context);
    let search = |(core, end): (Range<u64>, u64)| {
        let (p, source) = (p.clone(), e.image.bytes());
        let places = runs.pieces(core.start..end);
        async move {
            let data = gathered(source.as_ref(), &places, core.start, end).await?;
            let found = tokio::task::spawn_blocking(move || {
                let inside = usize::try_from(core.end - core.start).unwrap_or(usize::MAX);
                let all = hits(&p, regex, &data).into_iter().filter(|h| h.at < inside);
                all.map(|h| Told {
                    place: "image",
                    image_offset: core.start + h.at as u64,
                    ..told(&data, h, context)
                })
                .collect::<Vec<_>>()
            });
            anyhow::Ok(found.await?)
        }
    };
    let mut found = futures::stream::iter(pieces).map(search).buffered(threads);
    let (mut out, mut all) = (Vec::new(), 0);
    while let Some(hits) = found.next().await {
        for h in hits? {
            all += 1;
            if out.len() < limit {
                let physical = runs.to_phys(ImageOffset(h.image_offset)).map(|p| p.0);
                out.push(Told { physical, ..h });
            }
        }
    }
    Ok((out, all))
}

/// The bytes of an image range, read from where they lie.
async fn gathered(
    source: &dyn ByteSource,
    places: &[ramsift_layers::run::Piece],
    start: u64,
    end: u64,
) -> Result<Vec<u8>> {
    let mut data = vec![0; usize::try_from(end - start).unwrap_or(0)];
    for p in places {
        let at = usize::try_from(p.image - start).unwrap_or(0);
        let n = usize::try_from(p.len).unwrap_or(0);
        if let Some(to) = data.get_mut(at..at + n) {
            source.read_at(FileOffset(p.file), to).await?;
        }
    }
    Ok(data)
}

/// What is adjacent in a unit's addresses, with where its pieces begin in what is laid out.
fn stretches(unit: &Unit) -> Vec<Vec<Extent>> {
    let mut out: Vec<Vec<Extent>> = Vec::new();
    let mut bytes = 0;
    for e in &unit.extents {
        let joins = out
            .last()
            .and_then(|s| s.last())
            .is_some_and(|l| l.offset + l.len == e.offset);
        if joins
            && bytes < PIECE
            && let Some(last) = out.last_mut()
        {
            last.push(*e);
            bytes += e.len;
        } else {
            // A piece begins with the page before it, so that nothing is torn where it was cut.
            let before = out
                .last()
                .and_then(|s| s.last())
                .filter(|l| l.offset + l.len == e.offset)
                .map(|l| {
                    let n = l.len.min(OVERLAP);
                    Extent {
                        offset: l.offset + l.len - n,
                        pa: PhysAddr(l.pa.0 + l.len - n),
                        len: n,
                    }
                });
            bytes = e.len;
            out.push(before.into_iter().chain([*e]).collect());
        }
    }
    out
}

/// Searches the memory of processes in the order of its addresses. Without `pids` only what the image tears is told.
async fn processes(
    config: &Config,
    e: &Evidence,
    p: &Arc<Patterns>,
    a: &GrepArgs,
    limit: usize,
) -> Result<(Vec<Told>, Vec<String>)> {
    let record = e.record(config).await;
    let means = symbols::means(config).await?;
    let (p, pids, regex, context) = (p.clone(), a.pid.clone(), a.regex, a.context);
    let ask = move |machine: &dyn Machine, runs: &ramsift_layers::run::RunMap| {
        let mut doubts = Vec::new();
        let mut found: BTreeMap<u32, Vec<Told>> = BTreeMap::new();
        let memory = machine.memory();
        let listed = machine
            .resident(&mut doubts, &mut |unit| {
                for s in stretches(&unit) {
                    // What is in a page file is not in the image.
                    let paged = s.iter().any(|x| place_of(x.pa.0).is_some());
                    let joined = s.windows(2).all(|w| w[0].pa.0 + w[0].len == w[1].pa.0);
                    if pids.is_empty() && joined && !paged {
                        continue;
                    }
                    let len: u64 = s.iter().map(|x| x.len).sum();
                    let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
                    let mut at = 0;
                    for x in &s {
                        let n = usize::try_from(x.len).unwrap_or(0);
                        if memory.read_phys(x.pa, &mut data[at..at + n]).is_err() {
                            data[at..at + n].fill(0);
                        }
                        at += n;
                    }
                    for h in hits(&p, regex, &data) {
                        let (mut first, mut rest) = (None, h.at as u64);
                        let mut whole = false;
                        for x in &s {
                            if rest < x.len {
                                whole = rest + h.len as u64 <= x.len;
                                first = Some((x.pa.0 + rest, x.offset + rest));
                                break;
                            }
                            rest -= x.len;
                        }
                        let Some((pa, address)) = first else { continue };
                        if pids.is_empty() && whole && place_of(pa).is_none() {
                            continue;
                        }
                        let list = found.entry(unit.number).or_default();
                        if list.len() < limit {
                            list.push(Told {
                                place: "process",
                                image_offset: runs.from_phys(PhysAddr(pa)).map_or(0, |i| i.0),
                                physical: Some(pa),
                                virtual_address: Some(address),
                                owner: unit.file.clone(),
                                ..told(&data, h, context)
                            });
                        }
                    }
                }
                ControlFlow::Continue(())
            })
            .map_err(|e| ramsift_structured_worker::AloneError::NoKernel(e.to_string()))?;
        let mut out = Vec::new();
        for r in &listed {
            if !pids.is_empty() && !pids.iter().any(|p| i64::from(*p) == r.pid) {
                continue;
            }
            for (unit, shift) in &r.units {
                for h in found.get(unit).into_iter().flatten() {
                    let name = format!("{}[{}]", r.comm, r.pid);
                    let owner = h
                        .owner
                        .as_ref()
                        .map_or(name.clone(), |f| format!("{name} {f}"));
                    out.push(Told {
                        virtual_address: h.virtual_address.map(|v| v.wrapping_add(*shift)),
                        owner: Some(owner),
                        ..h.clone()
                    });
                }
            }
        }
        let known = pids
            .iter()
            .filter(|p| !listed.iter().any(|r| r.pid == i64::from(**p)));
        let unknown: Vec<String> = known.map(u32::to_string).collect();
        Ok((out, doubts, unknown))
    };
    let got = with_machine(&e.image, &e.plan, record.as_ref(), means, ask).await?;
    e.keep(config, got.found.as_ref()).await;
    let (out, doubts, unknown) = got.answer;
    if !unknown.is_empty() {
        bail!(
            "no process {} with memory is in the list; see ramsift view pslist",
            unknown.join(", ")
        );
    }
    Ok((out, doubts))
}

/// Names whose memory hits lie in, by the frame map.
async fn owners(config: &Config, e: &Evidence, found: &mut [Told]) -> Result<()> {
    let asked: Vec<u64> = found.iter().filter_map(|f| f.physical).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let record = e.record(config).await;
    let means = symbols::means(config).await?;
    let ask = move |machine: &dyn Machine, runs: &ramsift_layers::run::RunMap| {
        let mut sorted = asked;
        sorted.sort_unstable();
        sorted.dedup();
        let mut out: BTreeMap<u64, (String, Option<u64>)> = BTreeMap::new();
        machine
            .frames(runs, &mut Vec::new(), &mut |f| {
                let first = sorted.partition_point(|pa| *pa < f.start.0);
                for pa in sorted[first..]
                    .iter()
                    .take_while(|pa| **pa - f.start.0 < f.len)
                {
                    let owner = f
                        .owner
                        .as_ref()
                        .map_or_else(|| f.state.to_owned(), |o| format!("{}: {o}", f.state));
                    out.insert(*pa, (owner, f.va.map(|v| v.wrapping_add(pa - f.start.0))));
                }
            })
            .map_err(|e| ramsift_structured_worker::AloneError::NoKernel(e.to_string()))?;
        Ok(out)
    };
    let got = with_machine(&e.image, &e.plan, record.as_ref(), means, ask).await?;
    e.keep(config, got.found.as_ref()).await;
    for f in found.iter_mut() {
        if let Some((owner, va)) = f.physical.and_then(|pa| got.answer.get(&pa)) {
            f.owner = Some(owner.clone());
            f.virtual_address = *va;
        }
    }
    Ok(())
}

/// Content of a job's recovered files that pages of the image tear.
async fn files(e: &Evidence, p: &Patterns, a: &GrepArgs, limit: usize) -> Result<Vec<Told>> {
    let Some((objects, job)) = &e.job else {
        return Ok(Vec::new());
    };
    let (t, there) = crate::results::session(objects.clone(), std::slice::from_ref(job)).await?;
    if !there.iter().any(|n| n == "artifacts") {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT name, image_offset, {COLUMNS} FROM artifacts WHERE kind = 'cached_file' AND size > 4096 \
         ORDER BY object, object_offset, image_offset"
    );
    let mut out = Vec::new();
    for r in crate::overview::rows_of_query(&t, &sql).await? {
        let (Some(Ok(image)), Some(row)) = (r.get(1).map(|i| i.parse::<u64>()), r.get(2..)) else {
            continue;
        };
        let stored = Stored::of(row)?;
        let data = stored.content(objects.as_ref(), Some(e)).await?;
        for h in hits(p, a.regex, &data) {
            let torn = h.at as u64 / PAGE != (h.at + h.len - 1) as u64 / PAGE;
            if torn && out.len() < limit {
                out.push(Told {
                    place: "file",
                    image_offset: image,
                    owner: Some(format!("{} at {:#x}", r[0], h.at)),
                    ..told(&data, h, a.context)
                });
            }
        }
    }
    Ok(out)
}

fn batch(all: &[Told]) -> Result<RecordBatch> {
    let text = |f: fn(&Told) -> Option<&str>| -> ArrayRef {
        Arc::new(StringArray::from_iter(all.iter().map(f)))
    };
    let number = |f: fn(&Told) -> Option<u64>| -> ArrayRef {
        Arc::new(UInt64Array::from_iter(all.iter().map(f)))
    };
    let columns: Vec<(&str, DataType, ArrayRef)> = vec![
        ("found_in", DataType::Utf8, text(|t| Some(t.place))),
        (
            "image_offset",
            DataType::UInt64,
            number(|t| Some(t.image_offset)),
        ),
        ("physical_address", DataType::UInt64, number(|t| t.physical)),
        (
            "virtual_address",
            DataType::UInt64,
            number(|t| t.virtual_address),
        ),
        ("length", DataType::UInt64, number(|t| Some(t.length))),
        ("encoding", DataType::Utf8, text(|t| Some(t.encoding))),
        ("owner", DataType::Utf8, text(|t| t.owner.as_deref())),
        ("context", DataType::Utf8, text(|t| Some(&t.text))),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(n, k, _)| Field::new(*n, k.clone(), true))
        .collect();
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|c| c.2).collect(),
    )?)
}

async fn print(all: &[Told], how: &Format) -> Result<()> {
    let nothing = Arc::new(ramsift_store::LocalObjects::open_existing(
        &std::env::temp_dir(),
    )?);
    let t = Tables::new(nothing, &QueryLimits::default())?;
    t.register_batch("v", batch(all)?)?;
    rows::print(t.stream("SELECT * FROM v").await?, how, false).await?;
    Ok(())
}

/// Runs the command: 0 where there are hits, 1 where there are none.
pub(crate) async fn run(config: &Config, args: GrepArgs) -> Result<u8> {
    let p = Arc::new(Patterns::new(&args)?);
    let named = evidence::named(config, &args.image).await?;
    let moved = args.place.evidence.as_deref();
    let e = match named {
        Named::Capture(path) => evidence::open(config, &path, moved).await?,
        Named::Job(j) => j.open(config, moved).await?,
    };
    let limit = if args.limit == 0 {
        usize::MAX
    } else {
        args.limit
    };
    let (mut found, mut all) = (Vec::new(), 0);
    if args.pid.is_empty() {
        (found, all) = image(&e, &p, &args, limit).await?;
        if let Err(why) = owners(config, &e, &mut found).await {
            tell!(
                "whose memory it is can't be told: {}",
                Shown(format!("{why:#}"))
            );
        }
    }
    if !args.image_only {
        match processes(config, &e, &p, &args, limit).await {
            Ok((more, doubts)) => {
                all += more.len() as u64;
                found.extend(more);
                for d in doubts {
                    tell!("doubtful: {}", Shown(d));
                }
            }
            Err(why) if args.pid.is_empty() => {
                tell!("processes were not searched: {}", Shown(format!("{why:#}")));
            }
            Err(why) => return Err(why),
        }
        if args.pid.is_empty() {
            let more = files(&e, &p, &args, limit)
                .await
                .map_err(|e| anyhow!("recovered files: {e:#}"))?;
            all += more.len() as u64;
            found.extend(more);
        }
    }
    found.truncate(limit);
    print(&found, &args.how).await?;
    if all > found.len() as u64 {
        tell!(
            "{} of {} hits; --limit 0 for all",
            count(found.len() as u64),
            count(all)
        );
    }
    Ok(u8::from(found.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(more: &[&str]) -> GrepArgs {
        let all = ["ramsift", "grep"].iter().chain(more).copied();
        match crate::args::Args::parse_from(all).command {
            crate::args::Command::Grep(a) => a,
            _ => unreachable!("grep was asked for"),
        }
    }

    fn found(more: &[&str], data: &[u8]) -> Vec<(usize, usize, bool)> {
        let a = args(more);
        let p = Patterns::new(&a).expect("pattern");
        hits(&p, a.regex, data)
            .iter()
            .map(|h| (h.at, h.len, h.wide))
            .collect()
    }

    #[test]
    fn text_is_found_as_bytes_and_as_utf16() {
        let wide: Vec<u8> = "Pass".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let data = [b"xpass\0".as_slice(), b"y", &wide].concat();
        assert_eq!(found(&["pass", "x"], &data), [(1, 4, false)]);
        assert_eq!(
            found(&["-i", "pass", "x"], &data),
            [(1, 4, false), (7, 8, true)]
        );
        assert_eq!(
            found(&["-i", "--no-utf16", "pass", "x"], &data),
            [(1, 4, false)]
        );
        assert_eq!(
            found(&["-e", "-i", "p[a-z]s+", "x"], &data),
            [(1, 4, false), (7, 8, true)]
        );
        assert_eq!(found(&["--hex", "70 61", "x"], &data), [(1, 2, false)]);
        // Regular expressions mean nothing in text.
        assert_eq!(found(&["a.c", "x"], b"abc a.c"), [(4, 3, false)]);
    }

    #[test]
    fn what_can_not_be_searched_for_is_told() {
        assert!(Patterns::new(&args(&["-e", "(", "x"])).is_err());
        assert!(Patterns::new(&args(&["-e", "a*", "x"])).is_err());
        assert!(Patterns::new(&args(&["--hex", "zz", "x"])).is_err());
        assert!(Patterns::new(&args(&["", "x"])).is_err());
    }
}
