//! Windows event logs ("Windows XML Event Log (EVTX)", J. Metz, libevtx; MS-EVEN6 2.2.12).
//!
//! ```text
//! "ElfFile\0" header, 4 KiB | chunk | chunk | ...
//! "ElfChnk\0" header, 512 bytes: record numbers and ids, header size 128 at 40, end of the last
//!             record at 44, free space at 48, CRC-32s | { 2A 2A 00 00, size, id, time, BinXML, size }
//! ```
//!
//! A chunk is 64 KiB and stands alone: its names and templates lie inside. Each record becomes an
//! event at its own offset; whose core that offset lies in reports it, so both neighbours read a
//! chunk that crosses a border. Of a damaged chunk, whose pages were scattered in memory, the
//! records that can be read are. A file is its header and the chunks that follow it without a gap;
//! what Windows allocated behind the last chunk is not part of it.

use crate::api::{Encoding, Event, Field};
use crate::carver::{Carver, Extent, Hit};
use crate::crc::crc32;
use crate::source::Item;
use evtx::{EvtxChunkData, ParserSettings, SerializedEvtxRecord};
use jiff::Timestamp;
use ramsift_layers::ImageOffset;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(crate) struct EvtxChunk;
pub(crate) struct EvtxFile;

const CHUNK: usize = 64 << 10;
const HEADER: usize = 512;
const FILE_HEADER: usize = 4096;
/// Longest message, in bytes: a record can't be longer than its chunk, but its text is wider.
const MESSAGE: usize = 32 << 10;

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// What a chunk's header says about the chunk.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    Sound,
    Damaged(&'static str),
}

/// `None`: no chunk.
fn check(chunk: &[u8]) -> Option<Health> {
    if !chunk.starts_with(b"ElfChnk\0") || u32_at(chunk, 40)? != 128 {
        return None;
    }
    let (last, free) = (u32_at(chunk, 44)? as usize, u32_at(chunk, 48)? as usize);
    if !(HEADER..=CHUNK).contains(&free) || last >= free.max(HEADER + 1) {
        return None;
    }
    let unchecked = u32_at(chunk, 120)? & 4 != 0;
    let header = crc32(&[chunk.get(..120)?, chunk.get(128..HEADER)?]);
    let header_fits = unchecked || u32_at(chunk, 124)? == header;
    let records = chunk.get(HEADER..free);
    let first_fits = records.is_some_and(|r| r.is_empty() || r.starts_with(b"**\0\0"));
    if !header_fits && !first_fits {
        return None;
    }
    Some(match records {
        None => Health::Damaged("the image ends inside"),
        Some(_) if !header_fits => Health::Damaged("the checksum of its header is wrong"),
        Some(r) if !unchecked && u32_at(chunk, 52)? != crc32(&[r]) => {
            Health::Damaged("the checksum of its records is wrong")
        }
        Some(_) if chunk.len() < CHUNK => Health::Damaged("the image ends inside"),
        Some(_) => Health::Sound,
    })
}

impl Carver for EvtxChunk {
    fn name(&self) -> &'static str {
        "evtx_chunk"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"ElfChnk\0"]
    }

    fn carry(&self) -> usize {
        CHUNK - 1
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        // AHEAD is more than a chunk: no reading on is needed.
        let data = hit.source.data;
        if at >= hit.source.core.end || !hit.source.charge(CHUNK) {
            return;
        }
        let chunk = &data[at..data.len().min(at + CHUNK)];
        let Some(health) = check(chunk) else { return };
        if (hit.stop)() {
            let from = hit.source.base + at as u64;
            hit.partial
                .push((hit.carver, from, CHUNK as u64, "out of time".to_owned()));
            return;
        }
        let there = chunk.len();
        let mut bytes = chunk.to_vec();
        bytes.resize(CHUNK, 0);
        // The parser keeps to its bounds, but it is not ours and the bytes are hostile.
        let read = catch_unwind(AssertUnwindSafe(|| {
            records(bytes.clone(), there, at, hit).or_else(|| {
                // The table of names is only a short cut to them, and may point to lost pages.
                bytes[128..HEADER].fill(0);
                records(bytes, there, at, hit)
            })
        }));
        // Torn content was looked at in full: it is a fact on the artifact, no gap in the scan.
        let torn = match read {
            Ok(Some(why)) => why,
            _ => Some("the records could not be read".to_owned()),
        };
        hit.follow(at, |_| {
            let partial = match health {
                Health::Sound => torn,
                Health::Damaged(why) => Some(why.to_owned()),
            };
            Some(Extent {
                kind: "evtx_chunk",
                len: chunk.len(),
                partial,
                ..Extent::default()
            })
        });
    }
}

/// Reports the records of a chunk that begin in the core; `None` when nothing could be read, else
/// why not every record could. The image has the first `there` bytes of the chunk.
fn records(
    bytes: Vec<u8>,
    there: usize,
    at: usize,
    hit: &mut Hit<'_, '_>,
) -> Option<Option<String>> {
    let settings = Arc::new(ParserSettings::new());
    let mut data = EvtxChunkData::new(bytes, false).ok()?;
    let mut chunk = data.parse(settings).ok()?;
    let mut failed = None;
    for record in chunk.iter() {
        let record = match record {
            Ok(r) => r,
            Err(e) => {
                failed.get_or_insert_with(|| words(&e));
                continue;
            }
        };
        let start = at + (record.binxml_offset as usize).saturating_sub(24);
        if !hit.source.core.contains(&start) {
            continue;
        }
        let len = (record.binxml_size as usize).saturating_add(28);
        let len = len.min((at + there).saturating_sub(start)) as u64;
        match record.into_json_value() {
            Ok(value) => event(&value, start, len, hit),
            Err(e) => drop(failed.get_or_insert_with(|| words(&e))),
        }
    }
    Some(failed.map(|why| format!("not every record could be read: {why}")))
}

/// An error and what it came from, on one line.
fn words(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let lines = chain
        .take(4)
        .map(|e| e.to_string().lines().next().unwrap_or("").to_owned());
    lines.collect::<Vec<_>>().join(": ")
}

/// A member's own text, which lies beside its attributes when it has any.
fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Object(o) => text(o.get("#text")?),
        _ => None,
    }
}

fn event(record: &SerializedEvtxRecord<Value>, start: usize, len: u64, hit: &mut Hit<'_, '_>) {
    let root = &record.data["Event"];
    let system = &root["System"];
    let member = |name: &str| text(&system[name]);
    let number = |name: &str| member(name).and_then(|t| t.parse::<i64>().ok());
    let provider = text(&system["Provider"]["#attributes"]["Name"]);
    let pid = text(&system["Execution"]["#attributes"]["ProcessID"]);
    let stamp = text(&system["TimeCreated"]["#attributes"]["SystemTime"]);
    let (channel, computer) = (member("Channel"), member("Computer"));
    // When it happened; the record's header only says when it was written, which may be long after.
    let happened = stamp.as_deref().and_then(|s| s.parse::<Timestamp>().ok());
    let time = happened.unwrap_or(record.timestamp).as_microsecond();
    let raw = stamp.unwrap_or_else(|| record.timestamp.to_string());
    let mut message = String::new();
    for part in ["EventData", "UserData", "ProcessingErrorData"] {
        flatten(&root[part], "", &mut message, 0);
    }
    let mut fields = vec![("record_id", Field::Int(record.event_record_id as i64))];
    // A log that was exported counts its records anew, and its events keep their numbers.
    if let Some(id) = number("EventRecordID").filter(|id| *id != record.event_record_id as i64) {
        fields.push(("event_record_id", Field::Int(id)));
    }
    if let Some(id) = number("EventID") {
        fields.push(("event_id", Field::Int(id)));
    }
    if let Some(level) = number("Level") {
        fields.push(("level", Field::Int(level)));
    }
    if let Some(c) = &channel {
        fields.push(("channel", Field::Str(c)));
    }
    hit.event(&Event {
        carver: "evtx_chunk",
        kind: "evtx",
        offset: ImageOffset(hit.source.base + start as u64),
        len,
        time: Some(time),
        inferred_time: None,
        inferred_from: None,
        raw_time: &raw,
        time_kind: "logged",
        host: computer.as_deref(),
        program: provider.as_deref(),
        pid: pid.and_then(|p| p.parse().ok()),
        message: message.trim_end(),
        encoding: Encoding::Utf16Le,
        fields: &fields,
    });
}

/// Adds `name=value` for each value below `v`.
fn flatten(v: &Value, name: &str, out: &mut String, depth: usize) {
    if out.len() >= MESSAGE || depth > 8 {
        return;
    }
    match v {
        Value::Object(o) => {
            for (k, v) in o.iter().filter(|(k, _)| !k.starts_with("xmlns")) {
                // Attributes tell as much as text does in what programs log as user data.
                let own = k == "#text" || k == "#attributes";
                flatten(v, if own { name } else { k }, out, depth + 1);
            }
        }
        Value::Array(a) => a.iter().for_each(|v| flatten(v, name, out, depth + 1)),
        Value::Null => {}
        other => {
            let value = text(other).unwrap_or_default();
            let clean = value.split_whitespace().collect::<Vec<_>>().join(" ");
            let mut room = MESSAGE
                .saturating_sub(out.len() + name.len())
                .min(clean.len());
            while !clean.is_char_boundary(room) {
                room -= 1;
            }
            out.push_str(name);
            out.push('=');
            out.push_str(&clean[..room]);
            out.push(' ');
        }
    }
}

impl Carver for EvtxFile {
    fn name(&self) -> &'static str {
        "evtx"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"ElfFile\0"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, file);
    }
}

/// The file's header and its chunks.
fn file(item: &mut Item<'_, '_>) -> Option<Extent> {
    let head: [u8; 128] = item.array(0)?;
    let sound = u32_at(&head, 32)? == 128
        && head[40..42] == [0, 16]
        && u32_at(&head, 124)? == crc32(&[&head[..120]]);
    if !sound {
        return None;
    }
    let count = i64::from(u16::from_le_bytes([head[42], head[43]]));
    let mut chunks = 0;
    while item.charge(64) {
        let at = FILE_HEADER + chunks * CHUNK;
        let fits = item.get(at, 8).is_some_and(|b| b == b"ElfChnk\0");
        if !fits || item.get(at, CHUNK).is_none() {
            break;
        }
        chunks += 1;
    }
    if chunks == 0 {
        return None;
    }
    let len = FILE_HEADER + chunks * CHUNK;
    let missing = (chunks as i64) < count;
    let partial = missing.then(|| format!("{chunks} of {count} chunks lie behind its header"));
    let fields = vec![("chunks", chunks as i64)];
    Some(Extent {
        kind: "evtx",
        len,
        partial,
        fields,
        name: None,
    })
}
