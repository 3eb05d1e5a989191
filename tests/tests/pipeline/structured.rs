//! A capture of a real machine through the whole pipeline, against what the machine said of itself.

use crate::distributed::{objects, submit, tables, upload};
use crate::embedded::{manifest, ok, query};
use crate::memory;
use ramsift_store::{Keys, LocalObjects, Objects};
use ramsift_tests::fixtures::{Capture, capture, image};
use ramsift_tests::program::{Cluster, command, run, scan};
use ramsift_tests::{block_on, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A command that keeps where kernels are in a folder of the test's.
fn with_cache(cache: &Path) -> Command {
    let mut c = command();
    c.env("XDG_CACHE_HOME", cache);
    c
}

/// Processes that the machine listed, without those of the kernel's pools, which come and go.
fn processes(c: &Capture) -> BTreeSet<i64> {
    let ps = c.truth["ps"].as_object().expect("ps");
    ps.iter()
        .filter(|(_, p)| {
            let name = p["status"].as_str().expect("status").lines().next();
            !name.expect("name").contains("kworker/")
        })
        .map(|(pid, _)| pid.parse().expect("a pid"))
        .collect()
}

/// Files that were wholly in memory, with the hashes that the machine computed.
pub(crate) fn whole_files(c: &Capture) -> BTreeMap<String, String> {
    let files = c.truth["files"].as_array().expect("files");
    // resident bytes, pages, size, path
    let cached: BTreeSet<&str> = c.truth["fincore"]
        .as_str()
        .expect("fincore")
        .lines()
        .filter_map(|l| {
            let f: Vec<&str> = l.splitn(4, ' ').collect();
            let [bytes, _, size, path] = f.as_slice() else {
                return None;
            };
            let number = |s: &str| s.parse::<u64>().ok();
            // An empty file has no pages to recover.
            let size = number(size)?;
            (size > 0 && number(bytes)? >= size).then_some(*path)
        })
        .collect();
    let text = |f: &serde_json::Value, k: &str| f[k].as_str().map(str::to_owned);
    files
        .iter()
        .filter_map(|f| Some((text(f, "path")?, text(f, "sha256")?)))
        .filter(|(path, _)| cached.contains(path.as_str()) && !path.contains("link"))
        .collect()
}

#[test]
fn a_job_builds_every_view_recovers_files_and_says_whose_memory_findings_lie_in() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    ok(&scan(&c.image, &out, &[]));
    assert_eq!(manifest(&out).analyses, "structured + unstructured");
    let failed = query(
        &out,
        "SELECT view, detail FROM views WHERE status <> 'built'",
    );
    assert_eq!(failed, Vec::<serde_json::Value>::new());
    // Processes.
    let rows = query(
        &out,
        "SELECT pid FROM linux_pslist WHERE comm NOT LIKE 'kworker/%'",
    );
    let got: BTreeSet<i64> = rows
        .iter()
        .map(|r| r["pid"].as_i64().expect("pid"))
        .collect();
    assert_eq!(got, processes(c));
    // Files, by the hashes that the machine computed.
    let rows = query(
        &out,
        "SELECT name, sha256 FROM artifacts WHERE kind = 'cached_file' AND complete",
    );
    let text = |r: &serde_json::Value, k: &str| r[k].as_str().expect(k).to_owned();
    let got: BTreeMap<String, String> = rows
        .iter()
        .map(|r| (text(r, "name"), text(r, "sha256")))
        .collect();
    let want = whole_files(c);
    assert!(want.len() > 10, "{}", want.len());
    for (path, sha) in &want {
        assert_eq!(got.get(path), Some(sha), "{path}");
    }
    // The frame map covers every byte once.
    let sums = query(
        &out,
        "SELECT sum(length) AS bytes, min(image_offset) AS first, \
         max(image_offset + length) AS last FROM frames",
    );
    let bytes = std::fs::metadata(&c.image).expect("image").len();
    assert_eq!(sums[0]["bytes"].as_u64(), Some(bytes));
    assert_eq!(sums[0]["first"].as_u64(), Some(0));
    assert_eq!(sums[0]["last"].as_u64(), Some(bytes));
    // Every finding lies where the frame map says.
    let wrong = query(
        &out,
        "SELECT count(*) AS n FROM findings f JOIN frames m \
         ON f.image_offset >= m.image_offset AND f.image_offset < m.image_offset + m.length \
         WHERE (f.page_state IS DISTINCT FROM m.state) OR (f.owner IS DISTINCT FROM m.owner)",
    );
    assert_eq!(wrong[0]["n"], 0);
    // What stands in a cached file is said to be in that file.
    let owners = query(
        &out,
        "SELECT DISTINCT owner FROM findings WHERE kind = 'url' AND page_state = 'file'",
    );
    let owners: Vec<String> = owners.iter().map(|r| text(r, "owner")).collect();
    assert!(
        owners.iter().any(|o| o.starts_with("/etc/nginx/")),
        "the machine ran nginx with Debian's commented configuration: {owners:?}"
    );
    // The timeline has the processes' starts.
    let starts = query(
        &out,
        "SELECT count(*) AS n FROM events WHERE time_kind = 'process started' AND time IS NOT NULL",
    );
    assert!(starts[0]["n"].as_u64().expect("n") >= processes(c).len() as u64);
}

#[test]
fn one_moment_in_three_containers_gives_the_same_views() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let rows = |view: &str, container: &str| {
        let image = c.image.with_file_name(container);
        let r = run(with_cache(dir.path())
            .args(["view", view, "--format", "jsonl"])
            .arg(&image));
        ok(&r);
        r.out
    };
    for view in [
        "linux/pslist",
        "linux/lsmod",
        "linux/maps",
        "linux/lsof",
        "linux/sockstat",
        "linux/pagecache_files",
        "linux/kmsg",
    ] {
        let raw = rows(view, "memory.raw");
        assert!(raw.lines().count() > 5, "{view}: {raw}");
        // Written by the emulator, and by a LiME of System RAM alone.
        assert_eq!(raw, rows(view, "memory.elf"), "{view}");
        assert_eq!(raw, rows(view, "memory.lime"), "{view}");
    }
}

#[test]
fn files_owners_and_views_without_a_job() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let cache = dir.path().join("cache");
    let target = |path: &str| format!("{}:{path}", c.image.display());
    // A view, twice: the second run finds the record of the first.
    let view = || {
        let r = run(with_cache(&cache)
            .args(["view", "linux/pslist"])
            .arg(&c.image)
            .args(["--format", "jsonl"]));
        ok(&r);
        r.out
    };
    let first = view();
    let kept = std::fs::read_dir(cache.join("ramsift/kernels"))
        .expect("records")
        .filter(|e| {
            let name = e.as_ref().expect("entry").file_name();
            name.to_string_lossy().ends_with(".json")
        })
        .count();
    assert_eq!(kept, 1);
    assert_eq!(first, view());
    let rows: Vec<serde_json::Value> = first
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let pids: BTreeSet<i64> = rows.iter().filter_map(|r| r["pid"].as_i64()).collect();
    assert!(processes(c).is_subset(&pids));
    // The kernel's structs of processes lie in slabs.
    let at = rows[0]["physical"].as_str().expect("physical");
    let r = run(with_cache(&cache).arg("owner").arg(&c.image).arg(at));
    ok(&r);
    assert!(r.out.contains("slab"), "{}", r.out);
    // A listing shows the sizes that the machine gave.
    let r = run(with_cache(&cache).args(["ls", &target("/srv/docs")]));
    ok(&r);
    for f in c.truth["files"].as_array().expect("files") {
        let path = f["path"].as_str().expect("path");
        let Some(name) = path.strip_prefix("/srv/docs/") else {
            continue;
        };
        if !name.contains('/') && !name.contains("link") {
            let size = f["size"].as_u64().expect("size").to_string();
            let line = r.out.lines().find(|l| l.ends_with(&format!("  {name}")));
            let line = line.unwrap_or_else(|| panic!("{name} in {}", r.out));
            assert!(line.split_whitespace().any(|w| w == size), "{line}: {size}");
        }
    }
    // One file out, and all of them.
    let want = whole_files(c);
    let (path, sha) = want
        .iter()
        .find(|(p, _)| p.starts_with("/srv/docs/report"))
        .expect("a report");
    let r = with_cache(&cache)
        .args(["cat", &target(path)])
        .output()
        .expect("runs");
    assert_eq!(r.status.code(), Some(0));
    assert_eq!(&sha256(&r.stdout), sha);
    let to = dir.path().join("recovered");
    ok(&run(with_cache(&cache)
        .args(["recover", &target("/srv/docs")])
        .arg(&to)));
    for (path, sha) in want.iter().filter(|(p, _)| p.starts_with("/srv/docs/")) {
        let file = to.join("files").join(path.trim_start_matches('/'));
        let data = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(&sha256(&data), sha, "{path}");
    }
}

/// By the machine's own program.
fn sha256(data: &[u8]) -> String {
    use std::io::Write;
    let mut child = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(data)
        .expect("write");
    let out = child.wait_with_output().expect("ends").stdout;
    String::from_utf8_lossy(&out)
        .split_whitespace()
        .next()
        .expect("a hash")
        .to_owned()
}

#[test]
fn what_is_not_there_is_said_in_a_sentence() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let cases: [(&[&str], &str); 3] = [
        (
            &["cat", "/no/such/file"],
            "/no/such/file is not in the capture's memory",
        ),
        (
            &["ls", "/no/such"],
            "/no/such is not in the capture's memory",
        ),
        (&["cat", "/etc"], "/etc is no regular file"),
    ];
    for (args, want) in cases {
        let target = format!("{}:{}", c.image.display(), args[1]);
        let r = run(with_cache(dir.path()).args([args[0], &target]));
        assert_eq!(r.code, 2, "{}", r.out);
        assert!(r.err.contains(want), "{}", r.err);
    }
    let empty = dir.path().join("empty.raw");
    std::fs::write(&empty, image(1 << 20, &[])).expect("image");
    let r = run(with_cache(dir.path())
        .args(["view", "linux/pslist"])
        .arg(&empty));
    assert_eq!(r.code, 2);
    assert!(r.err.contains("no kernel was found"), "{}", r.err);
}

#[test]
fn a_cluster_gives_the_same_views_and_owners() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let rules = memory::rules(c, dir.path());
    ok(&scan(&c.image, &out, &["--rules", &rules]));
    let cluster = Cluster::start(&[]);
    upload(&cluster, "machine.mem", &c.image);
    let coordinator = cluster.service("coordinator");
    let _aggregator = cluster.service("aggregator");
    let _chunks = cluster.service("chunk-worker");
    let _views = cluster.service("structured-worker");
    coordinator.await_ready();
    let job = submit(&cluster, &["s3://evidence/machine.mem", "--rules", &rules]);
    let results: Arc<dyn Objects> = Arc::new(objects(&cluster, "results", "r"));
    wait_for("the job ends", Duration::from_secs(300), || {
        block_on(results.head(&Keys::new(&job).manifest())).ok()
    });
    let local: Arc<dyn Objects> = Arc::new(LocalObjects::open_existing(&out).expect("results"));
    let here = block_on(local.list_folders("jobs/"))
        .expect("jobs")
        .remove(0);
    let names = [
        "findings",
        "events",
        "artifacts",
        "frames",
        "linux_pslist",
        "linux_sockstat",
        "linux_pagecache_files",
    ];
    let (mut a, b) = (tables(results, &job, &names), tables(local, &here, &names));
    // What a year was inferred from has another name there.
    for row in a.iter_mut().flat_map(|(_, rows)| rows) {
        *row = row.replace(
            "the object's last modification",
            "the capture file's modification time",
        );
    }
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert!(!a.is_empty(), "{name}");
        assert_eq!(a.len(), b.len(), "{name}");
        let differ = a.iter().zip(b).find(|(a, b)| a != b);
        assert!(differ.is_none(), "{name}: {differ:?}");
    }
}

/// Cached logs whose content the machine hashed, as its own programs read them.
fn logs(c: &Capture, dir: &Path) -> BTreeMap<String, String> {
    let whole = whole_files(c);
    let mut out = BTreeMap::new();
    for (path, sha256) in whole.iter().filter(|(p, _)| p.starts_with("/var/log/")) {
        let target = format!("{}:{path}", c.image.display());
        let r = with_cache(dir)
            .args(["cat", &target])
            .output()
            .expect("the program starts");
        let file = dir.join("log");
        std::fs::write(&file, &r.stdout).expect("write");
        let said = Command::new("sha256sum")
            .arg(&file)
            .output()
            .expect("sha256sum");
        assert!(
            String::from_utf8_lossy(&said.stdout).starts_with(sha256.as_str()),
            "{path} is what the machine hashed"
        );
        if let Ok(text) = String::from_utf8(r.stdout) {
            out.insert(path.clone(), text);
        }
    }
    out
}

/// Pages of a log lie apart in RAM, beside those of others: each of its lines is told once, and no line that
/// is in no file.
#[test]
fn every_line_of_a_cached_log_is_told_once_and_none_that_was_never_written() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    ok(&scan(&c.image, &out, &[]));
    let logs = logs(c, dir.path());
    let lines: usize = logs.values().map(|t| t.lines().count()).sum();
    assert!(lines > 300, "{lines} lines in {:?}", logs.keys());
    let mut wrong = Vec::new();
    let mut torn = 0;
    for (path, text) in &logs {
        let own = path.replace('\'', "''");
        let sql = format!(
            "SELECT raw_time, message, image_offset, fields, spliced FROM events WHERE row = 'file:{own}' \
             OR (row IS NULL AND (owner = '{own}' OR starts_with(owner, '{own},')))"
        );
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        for e in query(&out, &sql) {
            let (at, message) = (
                e["raw_time"].as_str().unwrap_or(""),
                e["message"].as_str().unwrap_or(""),
            );
            torn += usize::from(
                e["fields"]
                    .as_str()
                    .is_some_and(|f| f.contains("\"pieces\"")),
            );
            let is = |l: &&str| l.contains(at) && l.contains(message.trim_end());
            match text.lines().find(is) {
                Some(l) => *told.entry(l.to_owned()).or_default() += 1,
                None => wrong.push(format!(
                    "{path}: no such line: {at} {message} at {}",
                    e["image_offset"]
                )),
            }
        }
        // What parsers of logs know: a line that begins with a time.
        let months = ["Jan ", "Feb ", "Mar ", "20"];
        for l in text
            .lines()
            .filter(|l| months.iter().any(|m| l.starts_with(m)))
        {
            let n = told.get(l).copied().unwrap_or(0);
            let same = text.lines().filter(|x| *x == l).count();
            if n != same {
                wrong.push(format!("{path}: {n} times, should be {same}: {l}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {lines}: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
    assert!(torn > 0, "some line goes on beyond its page");
}
