//! A real event log, against what other programs read in it (`testdata/evtx_golden.py`).

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Random, Rows, all, window};
use serde_json::Value;
use std::path::Path;

/// Where the log lies in the image: on no boundary of anything.
const AT: usize = 0x3_0c85;
const IMAGE: usize = 1 << 20;
/// The log's header, and then its chunk.
const HEADER: usize = 4096;
const CHUNK: usize = 64 << 10;

fn testdata(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/evtx");
    std::fs::read(root.join(name)).unwrap()
}

fn golden() -> Vec<Value> {
    serde_json::from_slice(&testdata("security.golden.json")).unwrap()
}

/// Memory as it is: pages of zeros, of noise and of text.
fn memory() -> Vec<u8> {
    let mut random = Random(0x5eed);
    let mut image = Vec::with_capacity(IMAGE);
    for page in 0..IMAGE / 4096 {
        match page % 3 {
            0 => image.resize(image.len() + 4096, 0),
            1 => image.extend((0..512).flat_map(|_| random.next().to_le_bytes())),
            _ => image.extend(b"lorem ipsum dolor sit amet. ".iter().cycle().take(4096)),
        }
    }
    image
}

fn planted(log: &[u8]) -> Vec<u8> {
    let mut image = memory();
    image[AT..AT + log.len()].copy_from_slice(log);
    image
}

/// The log's own records; it has older ones behind its end.
fn events(rows: &Rows) -> Vec<&Value> {
    let own = |e: &&Value| e["kind"] == "evtx" && e["fields"]["stale"].is_null();
    let mut found: Vec<_> = rows.of("event").filter(own).collect();
    found.sort_by_key(|e| e["offset"].as_u64());
    found
}

/// Scans in windows of `size`.
fn in_windows(image: &[u8], size: usize) -> Rows {
    let set = all();
    let mut rows = Rows::default();
    for start in (0..image.len()).step_by(size) {
        let core = start..(start + size).min(image.len());
        window(&set, image, core, 1 << 20, &mut rows);
    }
    rows
}

/// The event's data as this program writes it: a handle or a status without leading zeros.
fn data(record: &Value) -> Vec<String> {
    let plain = |value: &str| match value.strip_prefix("0x") {
        Some(digits) => format!("0x{}", digits.trim_start_matches('0')),
        None => value.trim().to_owned(),
    };
    let pairs = record["data"].as_array().unwrap().iter();
    let mut all: Vec<_> = pairs
        .map(|p| {
            format!(
                "{}={}",
                p[0].as_str().unwrap(),
                plain(p[1].as_str().unwrap())
            )
        })
        .collect();
    all.sort_unstable();
    all
}

/// Cuts a message before each name of the record's data.
fn said(event: &Value, record: &Value) -> Vec<String> {
    let message = event["message"].as_str().unwrap();
    let names = record["data"].as_array().unwrap().iter();
    let mut cuts: Vec<usize> = names
        .map(|p| format!(" {}=", p[0].as_str().unwrap()))
        .map(|name| format!(" {message}").find(&name).expect(&name))
        .collect();
    cuts.push(message.len() + 1);
    cuts.sort_unstable();
    let mut all: Vec<_> = cuts
        .windows(2)
        .map(|c| message[c[0]..c[1] - 1].to_owned())
        .collect();
    all.sort_unstable();
    all
}

fn assert_same(event: &Value, record: &Value) {
    let at = AT as u64 + record["offset"].as_u64().unwrap();
    assert_eq!(event["offset"], at, "{event}");
    for column in ["len", "time", "program", "host", "pid"] {
        assert_eq!(event[column], record[column], "{column} of {event}");
    }
    let fields = [
        "record_id",
        "event_record_id",
        "event_id",
        "level",
        "channel",
    ];
    for field in fields {
        assert_eq!(event["fields"][field], record[field], "{field} of {event}");
    }
    assert_eq!(said(event, record), data(record), "{event}");
}

#[test]
fn every_record_as_other_programs_read_it() {
    let golden = golden();
    assert_eq!(golden.len(), 7);
    let image = planted(&testdata("security.evtx"));
    // Borders in front of, inside and behind the log and its records.
    for size in [IMAGE, 0x1_0000, 0x4000, 0x3_1000] {
        let rows = in_windows(&image, size);
        let events = events(&rows);
        assert_eq!(events.len(), golden.len(), "windows of {size:#x}");
        events
            .iter()
            .zip(&golden)
            .for_each(|(e, g)| assert_same(e, g));
        let mut files: Vec<_> = rows
            .of("artifact")
            .filter(|a| a["kind"].as_str().unwrap().starts_with("evtx"))
            .map(|a| {
                (
                    a["kind"].clone(),
                    a["offset"].clone(),
                    a["len"].clone(),
                    a["complete"].clone(),
                )
            })
            .collect();
        files.sort_by_key(|f| f.1.as_u64());
        let whole = |kind: &str, at: usize, len: usize| {
            (kind.into(), at.into(), len.into(), Value::Bool(true))
        };
        let want = [
            whole("evtx", AT, HEADER + CHUNK),
            whole("evtx_chunk", AT + HEADER, CHUNK),
        ];
        assert_eq!(files, want, "windows of {size:#x}");
    }
}

#[test]
fn a_chunk_without_its_file_header_gives_the_same() {
    let mut log = testdata("security.evtx");
    log[..HEADER].fill(0xa5);
    let rows = in_windows(&planted(&log), IMAGE);
    let (events, golden) = (events(&rows), golden());
    assert_eq!(events.len(), golden.len());
    events
        .iter()
        .zip(&golden)
        .for_each(|(e, g)| assert_same(e, g));
}

#[test]
fn a_lost_page_costs_the_records_in_it() {
    for page in 1..3 {
        let mut log = testdata("security.evtx");
        let lost = HEADER + page * 4096..HEADER + (page + 1) * 4096;
        log[lost.clone()].fill(0);
        let image = planted(&log);
        let rows = in_windows(&image, IMAGE);
        let golden = golden();
        // Templates and names are where they are first used, so what lies before the page is whole.
        let before: Vec<_> = golden
            .iter()
            .filter(|g| {
                g["offset"].as_u64().unwrap() + g["len"].as_u64().unwrap() <= lost.start as u64
            })
            .collect();
        let events = events(&rows);
        assert!(!before.is_empty() && before.len() < golden.len());
        assert!(events.len() >= before.len(), "page {page}: {events:?}");
        events
            .iter()
            .zip(&before)
            .for_each(|(e, g)| assert_same(e, g));
        let chunk = rows.of("artifact").find(|a| a["kind"] == "evtx_chunk");
        let partial = chunk.expect("the chunk")["gap"].clone();
        assert!(
            partial.as_str().is_some_and(|p| p.contains("checksum")),
            "{partial}"
        );
    }
}

/// Whole records of the golden list, less those that a lost range touches.
fn untouched(golden: &[Value], lost: &std::ops::Range<usize>) -> Vec<Value> {
    let whole = |g: &&Value| {
        let at = g["offset"].as_u64().unwrap() as usize;
        let end = at + g["len"].as_u64().unwrap() as usize;
        end <= lost.start || at >= lost.end
    };
    golden.iter().filter(whole).cloned().collect()
}

#[test]
fn records_are_found_without_their_chunks_header() {
    let mut log = testdata("security.evtx");
    log[HEADER..HEADER + 512].fill(0xa5);
    let image = planted(&log);
    let golden = golden();
    for size in [IMAGE, 0x1_0000, 0x4000] {
        let rows = in_windows(&image, size);
        assert_eq!(
            rows.of("artifact")
                .filter(|a| a["kind"] == "evtx_chunk")
                .count(),
            0
        );
        // Without the header nothing tells which are old.
        let own = events(&rows);
        let own: Vec<_> = own
            .iter()
            .filter(|e| {
                golden
                    .iter()
                    .any(|g| g["len"] == e["len"] && e["fields"]["event_id"] == g["event_id"])
            })
            .collect();
        assert_eq!(own.len(), golden.len());
        own.iter().zip(&golden).for_each(|(e, g)| assert_same(e, g));
    }
}

#[test]
fn what_cannot_be_rendered_is_a_row_with_its_values() {
    for page in 0..3 {
        let mut log = testdata("security.evtx");
        let lost = HEADER + page * 4096..HEADER + (page + 1) * 4096;
        log[lost.clone()].fill(0);
        let image = planted(&log);
        let want = untouched(&golden(), &lost);
        let found = in_windows(&image, IMAGE);
        let found: Vec<_> = found.of("event").filter(|e| e["kind"] == "evtx").collect();
        for w in &want {
            let at = AT as u64 + w["offset"].as_u64().unwrap();
            let own: Vec<_> = found.iter().filter(|e| e["offset"] == at).collect();
            assert_eq!(own.len(), 1, "page {page}, record {}", w["record_id"]);
            let row = own[0];
            if row["fields"]["gap"].is_null() {
                assert_same(row, w);
                continue;
            }
            assert_eq!(row["fields"]["record_id"], w["record_id"]);
            assert_eq!(row["time_kind"], "written");
            assert!(row["fields"]["template"].is_string());
            let values = row["fields"]["values"].as_array().unwrap();
            let has = |text: &str| values.iter().any(|v| v == text);
            for field in ["event_id", "event_record_id"] {
                assert!(has(&w[field].to_string()), "{field} of {row}");
            }
            assert!(has(w["channel"].as_str().unwrap()), "{row}");
        }
    }
}

#[test]
fn a_template_is_taken_from_a_chunk_close_by() {
    let whole = testdata("security.evtx");
    let mut log = whole.clone();
    log[HEADER..HEADER + 4096].fill(0);
    let mut image = planted(&log);
    let copy = AT + log.len() + 100;
    image[copy..copy + whole.len()].copy_from_slice(&whole);
    let golden = golden();
    for size in [IMAGE, 0x1_0000, 0x3_1000] {
        let rows = in_windows(&image, size);
        let taken: Vec<_> = rows
            .of("event")
            .filter(|e| !e["fields"]["template_from"].is_null())
            .collect();
        assert!(!taken.is_empty());
        for row in taken {
            let at = row["offset"].as_u64().unwrap() - AT as u64;
            let own = golden.iter().find(|g| g["offset"] == at).unwrap();
            assert_same(row, own);
            assert!(row["fields"]["template_from"].as_u64().unwrap() > copy as u64);
        }
    }
}

#[test]
fn old_records_are_marked() {
    let log = testdata("security.evtx");
    let chunk = &log[HEADER..HEADER + CHUNK];
    let u32_at = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap()) as usize;
    // Behind the free space's start: a magic, and a size that stands at both ends.
    let old: Vec<_> = (u32_at(48)..CHUNK - 28)
        .filter(|&n| chunk[n..n + 4] == *b"**\0\0")
        .filter(|&n| {
            (28..=CHUNK - n).contains(&u32_at(n + 4))
                && u32_at(n + u32_at(n + 4) - 4) == u32_at(n + 4)
        })
        .map(|n| (AT + HEADER + n) as u64)
        .collect();
    assert!(!old.is_empty());
    let rows = in_windows(&planted(&log), IMAGE);
    let mut stale: Vec<_> = rows
        .of("event")
        .filter(|e| e["fields"]["stale"] == true)
        .map(|e| e["offset"].as_u64().unwrap())
        .collect();
    stale.sort_unstable();
    assert_eq!(stale, old);
}
