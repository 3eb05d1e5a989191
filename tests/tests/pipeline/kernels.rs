//! Captures whose kernel is not where or not as usual, through the whole pipeline.

use crate::embedded::{manifest, ok, query};
use ramsift_tests::fixtures::{another_capture, capture};
use ramsift_tests::program::scan;
use std::path::Path;

/// Indicators that carvers found in the first `end` bytes of an image.
fn indicators(out: &Path, end: u64) -> Vec<serde_json::Value> {
    query(
        out,
        &format!(
            "SELECT detector, value, image_offset, physical_address, length FROM findings \
             WHERE detector LIKE 'carver:%' AND image_offset < {end} \
             ORDER BY image_offset, length, detector"
        ),
    )
}

fn text<'r>(row: &'r serde_json::Value, column: &str) -> &'r str {
    row[column].as_str().unwrap_or_default()
}

#[test]
fn addresses_of_a_raw_image_count_from_where_its_memory_begins() {
    let Some(c) = another_capture("deb6.1-cloud-arm64-256m") else {
        eprintln!("skipped: tests/captures deb6.1-cloud-arm64-256m builds what it needs");
        return;
    };
    let base = c.info["raw_base"].as_u64().expect("a base");
    assert!(base > 0, "a machine whose memory does not begin at 0");
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let r = scan(&c.image, &out, &[]);
    assert!([0, 3].contains(&r.code), "{}{}", r.out, r.err);
    let system = query(&out, "SELECT status, physical_base FROM system");
    assert_eq!(text(&system[0], "status"), "recognised");
    assert_eq!(system[0]["physical_base"].as_u64(), Some(base));
    for table in ["findings", "events", "artifacts", "frames"] {
        let sql = format!(
            "SELECT count(physical_address) AS n, \
             count(*) FILTER (WHERE physical_address <> image_offset + {base}) AS wrong \
             FROM {table}"
        );
        let row = &query(&out, &sql)[0];
        assert!(row["n"].as_u64() > Some(100), "{table}: {row}");
        assert_eq!(row["wrong"], 0, "{table}");
    }
    // The kernel's note on itself is text, where the machine said that it lies.
    let said = text(&c.truth, "vmcoreinfo");
    let at = said.split_whitespace().next().expect("an address");
    let at = u64::from_str_radix(at.trim_start_matches("0x"), 16).expect("hexadecimal");
    let sql = format!(
        "SELECT count(*) AS n FROM artifacts WHERE kind = 'text' \
         AND physical_address BETWEEN {at} AND {at} + 64"
    );
    assert_eq!(query(&out, &sql)[0]["n"], 1, "at {at:#x}");
}

#[test]
fn torn_types_cost_the_views_and_nothing_else() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
    ok(&scan(&c.image, &whole, &["--only", "unstructured"]));
    let mut bytes = std::fs::read(&c.image).expect("image");
    let header = b"\x9f\xeb\x01\x00";
    let mut at = 0;
    while let Some(n) = bytes[at..].windows(4).position(|w| w == header) {
        bytes[at + n..at + n + 4].fill(0);
        at += n + 4;
    }
    let path = dir.path().join("torn.raw");
    std::fs::write(&path, &bytes).expect("write");
    let r = scan(&path, &torn, &[]);
    assert!([0, 3].contains(&r.code), "{}{}", r.out, r.err);
    let system = query(&torn, "SELECT status, reason, release FROM system");
    assert_eq!(text(&system[0], "status"), "not possible");
    let release = c.truth["uname"][2].as_str().expect("a release");
    assert_eq!(text(&system[0], "release"), release);
    let why = text(&system[0], "reason");
    for part in ["BTF", release, "ramsift symbols build"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let end = bytes.len() as u64;
    assert_eq!(indicators(&torn, end), indicators(&whole, end));
}

#[test]
fn an_image_cut_off_in_the_middle_has_all_that_lies_before() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let (whole, half) = (dir.path().join("whole"), dir.path().join("half"));
    ok(&scan(&c.image, &whole, &["--only", "unstructured"]));
    let bytes = std::fs::read(&c.image).expect("image");
    // Inside a page.
    let cut = bytes.len() / 2 + 1234;
    let path = dir.path().join("half.raw");
    std::fs::write(&path, &bytes[..cut]).expect("write");
    let r = scan(&path, &half, &[]);
    assert!([0, 3].contains(&r.code), "{}{}", r.out, r.err);
    let covered = &manifest(&half).coverage["carvers"];
    assert_eq!(covered.total(), cut as u64);
    // What ends where the image ends may differ: a text, or a file that went on.
    let end = cut as u64 - (64 << 10);
    assert_eq!(indicators(&half, end), indicators(&whole, end));
    // Half of the memory lacks what the other half pointed to: views are built with doubts, or the
    // reason why they are not is a sentence.
    let system = query(&half, "SELECT status, reason FROM system");
    if text(&system[0], "status") == "recognised" {
        let doubts = query(&half, "SELECT sum(doubtful) AS n FROM views");
        assert!(doubts[0]["n"].as_u64() > Some(0), "{doubts:?}");
    } else {
        assert!(text(&system[0], "reason").len() > 20, "{system:?}");
    }
}

#[test]
fn a_kernel_at_no_known_place_is_found_by_what_chunks_report() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let (whole, without) = (dir.path().join("whole"), dir.path().join("without"));
    let mut bytes = std::fs::read(&c.image).expect("image");
    // Where processors start.
    bytes[..1 << 20].fill(0);
    let path = dir.path().join("without.raw");
    std::fs::write(&path, &bytes).expect("write");
    let found = |image: &Path, out: &Path| {
        let r = scan(image, out, &["--set", "scan.chunk_size=67108864"]);
        assert!([0, 3].contains(&r.code), "{}{}", r.out, r.err);
        let system = query(out, "SELECT status, found_by, bytes_read FROM system");
        assert_eq!(system.len(), 1, "{system:?}");
        assert_eq!(text(&system[0], "status"), "recognised");
        let list = query(
            out,
            "SELECT * EXCLUDE (capture, pass) FROM linux_pslist ORDER BY pid",
        );
        let views = query(out, "SELECT view, status, rows FROM views ORDER BY view");
        (system[0].clone(), list, views)
    };
    let (system, list, views) = found(&c.image, &whole);
    assert!(
        text(&system, "found_by").contains("processors start"),
        "{system}"
    );
    assert!(system["bytes_read"].as_u64() <= Some(48 << 20), "{system}");
    let (system, same_list, same_views) = found(&path, &without);
    assert!(text(&system, "found_by").contains("chunks"), "{system}");
    assert!(
        same_list == list,
        "{} rows and {}",
        same_list.len(),
        list.len()
    );
    assert_eq!(same_views.len(), views.len());
}
