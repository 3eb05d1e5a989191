//! Archives that unpack themselves: a shell script in front of the first entry.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Rows, all, crc32, golden_inputs, whole, window};
use serde_json::{Value, json};

const SCRIPT: &[u8] = b"#!/bin/sh\nexec unzip -q \"$0\"\n";
const PAGE: usize = 4096;

/// An archive that another program wrote.
fn archive() -> Vec<u8> {
    let stored = |p: &std::path::Path| p.ends_with("zip/reordered.in");
    let found = golden_inputs().into_iter().find(|(p, _)| stored(p));
    let bytes = found.unwrap().1;
    let from = bytes.windows(4).position(|w| w == b"PK\x03\x04").unwrap();
    let end = bytes.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    bytes[from..end + 22].to_vec()
}

/// What `zip -A` does: offsets count from the script's first byte.
fn adjusted(mut zip: Vec<u8>, front: u32) -> Vec<u8> {
    let mut add = |at: usize| {
        let n = u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) + front;
        zip[at..at + 4].copy_from_slice(&n.to_le_bytes());
    };
    let end = archive();
    let places = |mark: &[u8], field: usize| {
        let found = end.windows(4).enumerate().filter(|(_, w)| *w == mark);
        found.map(|(at, _)| at + field).collect::<Vec<_>>()
    };
    places(b"PK\x01\x02", 42).into_iter().for_each(&mut add);
    places(b"PK\x05\x06", 16).into_iter().for_each(&mut add);
    zip
}

/// Pages: noise, the file, noise.
fn image(file: &[u8]) -> Vec<u8> {
    let mut out = vec![0x81; 2 * PAGE];
    out.extend_from_slice(file);
    let end = out.len().next_multiple_of(PAGE) + PAGE;
    out.resize(end, 0x81);
    out
}

fn zips(rows: &Rows) -> Vec<&Value> {
    let mut found: Vec<_> = rows.of("artifact").filter(|a| a["kind"] == "zip").collect();
    found.sort_by_key(|a| a["offset"].as_u64());
    found
}

#[test]
fn a_script_in_front_is_part_of_the_file() {
    let front = SCRIPT.len() + 500;
    let zip = archive();
    for (behind, complete) in [
        (zip.clone(), Value::Null),
        (adjusted(zip.clone(), front as u32), json!(true)),
    ] {
        let file = [SCRIPT, &[0; 500], &behind].concat();
        let image = image(&file);
        let rows = whole(&all(), &image);
        let found = zips(&rows);
        // The file, and the archive in it.
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0]["offset"], 2 * PAGE);
        assert_eq!(found[0]["len"], file.len());
        assert_eq!(found[0]["crc32"], crc32(&file));
        assert_eq!(found[0]["complete"], complete);
        assert_eq!(found[0]["fields"]["script"], front);
        assert_eq!(found[1]["offset"], 2 * PAGE + front);
        assert_eq!(found[1]["len"], behind.len());
        // The same in windows.
        let want = rows.sorted();
        for cut in (2 * PAGE - 3..2 * PAGE + front + 40).step_by(29) {
            let mut got = Rows::default();
            window(&all(), &image, 0..cut, 0, &mut got);
            window(&all(), &image, cut..image.len(), 0, &mut got);
            assert_eq!(zips(&got).len(), 2, "{cut}");
            assert!(zips(&got).iter().all(|z| want.contains(&z.to_string())));
        }
    }
}

#[test]
fn other_bytes_in_front_are_not() {
    let zip = archive();
    let page = |text: &[u8]| [text, &vec![0; PAGE - text.len()]].concat();
    for front in [
        b"#!bin/sh\n".to_vec(),
        b"# /bin/sh\n".to_vec(),
        b"#!/bin/\x01sh\n".to_vec(),
        b"#!/bin/sh".to_vec(),
        // Another page is another file's, for all that the bytes tell.
        page(SCRIPT),
    ] {
        let file = [&front[..], &zip].concat();
        let rows = whole(&all(), &image(&file));
        let offsets: Vec<_> = zips(&rows).iter().map(|z| z["offset"].clone()).collect();
        assert_eq!(offsets, [json!(2 * PAGE + front.len())]);
    }
    // What is broken is not joined with it.
    let mut broken = [SCRIPT, &zip].concat();
    let len = broken.len();
    broken.truncate(len - 22);
    let rows = whole(&all(), &image(&broken));
    assert!(zips(&rows).iter().all(|z| z["offset"] != 2 * PAGE));
}
