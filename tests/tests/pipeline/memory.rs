//! Rules over processes and on recovered files, against what the machine said of both.

use crate::embedded::{ok, query};
use crate::structured::whole_files;
use ramsift_tests::fixtures::{Capture, capture};
use ramsift_tests::program::scan;
use ramsift_tests::servers::Clamd;
use std::path::Path;

/// Markers that the machine put on the borders of pages that lie apart: one fewer than pages.
const BORDERS: usize = 63;

/// A file that was wholly in memory, with the hash that the machine computed.
fn whole_file(c: &Capture) -> (String, String) {
    let all = whole_files(c);
    let report = all.into_iter().find(|(p, _)| p.ends_with("/report.txt"));
    report.expect("a report")
}

/// Rules for the process with the markers, and for that file.
pub(crate) fn rules(c: &Capture, dir: &Path) -> String {
    let (_, sha256) = whole_file(c);
    let text = format!(
        r#"
        import "hash"
        rule all_borders {{
            strings: $a = /[0-9][0-9]-PAGE-BORDER-MARKER-[0-9][0-9]/
            condition: #a == {BORDERS}
        }}
        rule any_border {{
            strings: $a = "17-PAGE-BORDER-MARKER-17"
            condition: $a
        }}
        rule worker_heap {{
            strings: $a = /PYHEAP-MARKER-[0-9]{{1,3}}/
            condition: #a >= 200
        }}
        rule the_report {{
            condition: hash.sha256(0, filesize) == "{sha256}"
        }}
        rule in_file_and_process {{
            strings: $a = "MALFIND-MARKER-LAB"
            condition: $a
        }}"#
    );
    let path = dir.join("memory.yar");
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn yara(out: &Path, rule: &str) -> Vec<(String, serde_json::Value)> {
    let rows = query(
        out,
        &format!(
            "SELECT scope, path, image_offset, length, fields FROM findings \
             WHERE detector = 'yara' AND value = '{rule}' ORDER BY scope, path"
        ),
    );
    let scope = |r: &serde_json::Value| r["scope"].as_str().expect("scope").to_owned();
    rows.into_iter().map(|r| (scope(&r), r)).collect()
}

fn fields(row: &serde_json::Value) -> serde_json::Value {
    serde_json::from_str(row["fields"].as_str().expect("fields")).expect("JSON")
}

#[test]
fn conditions_hold_over_a_process_wherever_its_pages_lie() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    ok(&scan(&c.image, &out, &["--rules", &rules(c, dir.path())]));
    let notes = &c.truth["notes"];
    let number = |k: &str| notes[k].as_u64().expect(k);
    let pages: Vec<u64> = notes["borders_pages"]
        .as_array()
        .expect("pages")
        .iter()
        .map(|p| p.as_u64().expect("a page number"))
        .collect();
    assert_eq!(pages.len(), BORDERS + 1);
    let apart = |i: usize| pages[i] + 1 != pages[i + 1];
    assert!(
        (0..BORDERS).all(apart),
        "the machine gave neighbours: {pages:?}"
    );

    // Every marker crosses a border: over the image there is none, in the process there are all.
    let found = yara(&out, "all_borders");
    let scopes: Vec<&str> = found.iter().map(|(s, _)| s.as_str()).collect();
    assert_eq!(scopes, ["process"], "once, though two processes have them");
    let row = &found[0].1;
    let f = fields(row);
    let pids: Vec<u64> = f["processes"]
        .as_array()
        .expect("processes")
        .iter()
        .map(|p| p["pid"].as_u64().expect("pid"))
        .collect();
    assert_eq!(pids, [number("borders"), number("borders_child")]);
    assert_eq!(f["counts"], serde_json::json!([BORDERS]));
    for (i, m) in f["matches"].as_array().expect("matches").iter().enumerate() {
        let want = serde_json::json!({
            "pattern": "$a",
            "virtual_address": number("borders_at") + (i as u64 + 1) * 4096 - 13,
            "length": 24,
            "image_offset": pages[i] * 4096 + 4096 - 13,
            "pieces": 2,
            "file": null,
        });
        assert_eq!(m, &want);
    }
    assert_eq!(row["image_offset"], pages[0] * 4096 + 4083);
    let one: Vec<String> = yara(&out, "any_border")
        .into_iter()
        .map(|(s, _)| s)
        .collect();
    assert_eq!(one, ["process"]);

    // What a program keeps on its heap is counted over all of it.
    let worker = number("worker");
    let of_worker = yara(&out, "worker_heap").into_iter().filter(|(scope, r)| {
        scope == "process" && fields(r)["processes"][0]["pid"].as_u64() == Some(worker)
    });
    assert_eq!(of_worker.count(), 1);
}

#[test]
fn file_rules_and_the_virus_scanner_see_recovered_files() {
    let c = capture();
    let clamd = Clamd::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let rules = rules(c, dir.path());
    ok(&scan(
        &c.image,
        &out,
        &[
            "--rules",
            &rules,
            "--clamd",
            &clamd.address(),
            "--av",
            "files",
        ],
    ));
    // A rule on the hash of a whole file: the one that the machine computed.
    let found = yara(&out, "the_report");
    assert_eq!(found.len(), 1);
    let (path, _) = whole_file(c);
    assert_eq!(
        (found[0].0.as_str(), &found[0].1["path"]),
        ("file", &path.into())
    );
    // The script that the machine ran has the text, and so has the process that it started.
    let found = yara(&out, "in_file_and_process");
    let paths = |scope: &str| -> Vec<&str> {
        let of = found.iter().filter(|(s, _)| s == scope);
        of.filter_map(|(_, r)| r["path"].as_str()).collect()
    };
    assert!(paths("file").contains(&"/lab/scenario.py"), "{found:?}");
    let rwx = format!("[{}]", c.truth["notes"]["rwx"]);
    assert!(
        paths("process").iter().any(|p| p.contains(&rwx)),
        "{found:?}"
    );
    // An open file whose name is gone.
    let rows = query(
        &out,
        "SELECT value, path, scope FROM findings WHERE kind = 'av'",
    );
    // Carved programs may hold what lies behind them in RAM, so there may be more.
    let deleted = rows.iter().find(|r| {
        let path = r["path"].as_str().expect("path");
        path.starts_with("/tmp/exfil.dat")
    });
    let deleted = deleted.unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(deleted["value"], "Ramsift.Test.Deleted.UNOFFICIAL");
    assert_eq!(deleted["scope"], "file");
}
