//! Captures that come compressed or in an archive, through the whole pipeline, against the same ones as they are.

use crate::distributed::{manifest as sealed, submit, upload};
use crate::embedded::{manifest, ok, query};
use ramsift_tests::dumps::avml_capture;
use ramsift_tests::fixtures::{capture, planted};
use ramsift_tests::program::{Cluster, command, run, scan, with_small_disk};
use ramsift_tests::wait_for;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Packs a file by a program that reads it from its standard input.
fn packed(dir: &Path, name: &str, program: &[&str], of: &Path) -> PathBuf {
    let to = dir.join(name);
    let done = Command::new(program[0])
        .args(&program[1..])
        .stdin(std::fs::File::open(of).expect("the capture"))
        .stdout(std::fs::File::create(&to).expect("a file"))
        .status()
        .expect("the program");
    assert!(done.success(), "{program:?}");
    to
}

/// A tar archive of files, compressed by zstd.
fn archive(dir: &Path, name: &str, files: &[&Path]) -> PathBuf {
    let to = dir.join(name);
    let mut c = Command::new("tar");
    c.args(["--zstd", "-cf"]).arg(&to);
    for f in files {
        c.arg("-C")
            .arg(f.parent().expect("a folder"))
            .arg(f.file_name().expect("a name"));
    }
    assert!(c.status().expect("tar").success());
    to
}

fn rows(out: &Path, table: &str) -> Vec<String> {
    let but = if table == "artifacts" {
        "capture, object, object_offset"
    } else {
        "capture"
    };
    let all = query(out, &format!("SELECT * EXCLUDE ({but}) FROM {table}"));
    let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.sort_unstable();
    all
}

fn notes(out: &Path) -> String {
    let r = query(out, "SELECT notes FROM captures");
    r[0]["notes"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_capture_in_a_container_gives_the_tables_of_the_plain_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let lime = capture().image.with_file_name("memory.lime");
    let gz = packed(dir.path(), "memory.lime.gz", &["gzip", "-1"], &lime);
    let plain = dir.path().join("plain");
    ok(&scan(&lime, &plain, &[]));
    let out = dir.path().join("gz");
    let r = scan(&gz, &out, &[]);
    ok(&r);
    let m = manifest(&out);
    assert_eq!(
        (m.verdict.as_str(), m.analyses.as_str()),
        ("complete", "structured + unstructured")
    );
    // What was scanned has the hash of the capture, and the container's is told.
    let of = |p: &Path| {
        blake3::hash(&std::fs::read(p).expect("read"))
            .to_hex()
            .to_string()
    };
    assert_eq!(m.evidence_blake3, Some(of(&lime)));
    assert!(notes(&out).contains(&of(&gz)), "{}", notes(&out));
    for table in [
        "findings",
        "events",
        "artifacts",
        "linux_pslist",
        "linux_pagecache_files",
    ] {
        assert_eq!(rows(&plain, table), rows(&out, table), "{table}");
    }
    // The job's own commands find the capture where it was unpacked.
    let job = query(&out, "SELECT capture FROM captures");
    assert_eq!(job.len(), 1);
    let jobs: Vec<_> = std::fs::read_dir(out.join("jobs")).expect("jobs").collect();
    let job = jobs[0]
        .as_ref()
        .expect("a job")
        .file_name()
        .to_string_lossy()
        .into_owned();
    let cat = |c: &mut Command, what: &str| {
        let r = run(c.args(["cat", what]));
        ok(&r);
        r.out
    };
    let own = cat(
        command().arg("--store").arg(&out),
        &format!("{job}:/etc/nginx/nginx.conf"),
    );
    assert_eq!(
        own,
        cat(
            &mut command(),
            &format!("{}:/etc/nginx/nginx.conf", lime.display())
        )
    );
    // The hash that it must have may be the container's, the capture's, and no other.
    let job = |name: &str, hash: &str| {
        let out = dir.path().join(name);
        scan(
            &gz,
            &out,
            &[
                "--only",
                "unstructured",
                "--carvers",
                "log",
                "--expect-hash",
                hash,
            ],
        )
    };
    ok(&job("container", &of(&gz)));
    ok(&job("capture", &of(&lime)));
    let r = job("neither", &"0".repeat(64));
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
}

#[test]
fn archives_in_folders_are_scanned_and_cut_ones_have_gaps() {
    let dir = tempfile::tempdir().expect("tempdir");
    let image = &planted().image;
    let tar = archive(dir.path(), "planted.tar.zst", &[image, &planted().rules]);
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::rename(&tar, folder.join("planted.tar.zst")).expect("moved");
    let out = dir.path().join("out");
    let r = scan(&folder, &out, &[]);
    ok(&r);
    assert!(
        notes(&out).contains("tar in zstd") && notes(&out).contains("also in it"),
        "{}",
        notes(&out)
    );
    let plain = dir.path().join("plain");
    ok(&scan(image, &plain, &[]));
    assert_eq!(rows(&plain, "findings"), rows(&out, "findings"));
    // The year of log lines is that of the container, not of the unpacking.
    let xz = packed(dir.path(), "cut.img.xz", &["xz", "-0"], image);
    let whole = std::fs::read(&xz).expect("read");
    std::fs::write(&xz, &whole[..whole.len() - whole.len() / 3]).expect("write");
    let out = dir.path().join("cut");
    let r = scan(&xz, &out, &[]);
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    let gaps = query(
        &out,
        "SELECT reason FROM coverage WHERE engine = 'container'",
    );
    let why = gaps[0]["reason"].as_str().expect("a reason");
    assert!(why.contains("not all there") && why.contains("xz"), "{why}");
    // What holds no capture, or two, is explained.
    for (name, files, why) in [
        (
            "none.tar.zst",
            vec![planted().rules.as_path()],
            "no capture",
        ),
        (
            "two.tar.zst",
            vec![image.as_path(), avml_capture()],
            "2 captures",
        ),
    ] {
        let tar = archive(dir.path(), name, &files);
        let r = scan(&tar, &dir.path().join("refused"), &[]);
        assert_eq!(r.code, 2, "{}{}", r.out, r.err);
        assert!(r.err.contains(why), "{}", r.err);
    }
    // Bounds are those of the configuration.
    let gz = packed(dir.path(), "small.img.gz", &["gzip", "-1"], image);
    let r = scan(
        &gz,
        &dir.path().join("bound"),
        &["--set", "unpack.bytes=1048576"],
    );
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("unpack.bytes"), "{}", r.err);
}

#[test]
fn commands_without_a_job_look_into_containers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let lime = capture().image.with_file_name("memory.lime");
    let zst = packed(
        dir.path(),
        "memory.lime.zst",
        &["zstd", "-q", "-1", "-c"],
        &lime,
    );
    let view = |image: &Path| {
        let mut c = command();
        c.env("XDG_CACHE_HOME", dir.path())
            .args(["view", "linux/pslist"]);
        let r = run(c.arg(image).args(["--format", "jsonl"]));
        ok(&r);
        r.out
    };
    assert_eq!(view(&lime), view(&zst));
    let inspect = |more: &[&str]| -> Value {
        let mut c = command();
        c.arg("inspect")
            .arg(&zst)
            .args(["--format", "jsonl"])
            .args(more);
        let r = run(&mut c);
        ok(&r);
        serde_json::from_str(&r.out).expect("JSON")
    };
    let v = inspect(&[]);
    assert_eq!(v["format"], "zstd", "{v}");
    assert!(
        v["notes"]
            .as_str()
            .is_some_and(|n| n.contains("a lime file")),
        "{v}"
    );
    let v = inspect(&["--deep"]);
    assert_eq!(
        (&v["format"], &v["status"]),
        (&"lime in zstd".into(), &"ok".into()),
        "{v}"
    );
    assert_eq!(v["kernel"], capture().truth["uname"][2]);
}

/// The coordinator unpacks into the job's folder, which workers read although evidence must lie elsewhere.
#[test]
fn a_cluster_unpacks_what_lies_in_the_store() {
    let c = Cluster::start(&[("RAMSIFT_SOURCES_ALLOW", "s3://evidence")]);
    let dir = tempfile::tempdir().expect("tempdir");
    let avml = packed(
        dir.path(),
        "memory.avml.gz",
        &["gzip", "-1"],
        avml_capture(),
    );
    upload(&c, "memory.avml.gz", &avml);
    let (coordinator, _aggregator) = (c.service("coordinator"), c.service("aggregator"));
    let _workers = [c.service("chunk-worker"), c.service("structured-worker")];
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/memory.avml.gz"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let m = sealed(&c, &job);
    assert_eq!(
        (m.verdict.as_str(), m.analyses.as_str()),
        ("complete", "structured + unstructured")
    );
    let hash = blake3::hash(&std::fs::read(avml_capture()).expect("read"));
    assert_eq!(m.evidence_blake3, Some(hash.to_hex().to_string()));
    // Nobody else may name what was unpacked.
    let r = run(c.command().args([
        "submit",
        &format!("s3://results/r/jobs/{job}/unpacked/memory.avml"),
    ]));
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("sources.allow"), "{}", r.err);
}

/// The folder of the coordinator that unpacks is full: the job says so and waits, others go on, and room ends the wait.
#[test]
fn a_coordinator_without_room_to_unpack_says_so_and_goes_on_when_there_is_some() {
    let c = Cluster::start(&[]);
    let dir = tempfile::tempdir().expect("tempdir");
    let gz = packed(
        dir.path(),
        "planted.mem.gz",
        &["gzip", "-1"],
        &planted().image,
    );
    upload(&c, "planted.mem.gz", &gz);
    upload(&c, "plain.mem", &planted().image);
    let full = dir.path().join("full");
    std::fs::create_dir(&full).expect("a folder");
    let spill = full.display().to_string();
    let spill = [("RAMSIFT_WORKER_SPILL", spill.as_str())];
    let mut coordinator = c.service_as("coordinator", &spill, |c| with_small_disk(&full, "1m", &c));
    let _aggregator = c.service("aggregator");
    let _workers = [c.service("chunk-worker"), c.service("structured-worker")];
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/planted.mem.gz"]);
    wait_for("status says what is full", Duration::from_secs(60), || {
        let r = run(c.command().args(["status", &job]));
        let says = ["worker.spill", "No space left on device", "tried again"];
        says.iter().all(|s| r.out.contains(s)).then_some(())
    });
    let other = submit(&c, &["s3://evidence/plain.mem"]);
    let r = run(c.command().args(["watch", &other]));
    assert!([0, 3].contains(&r.code), "{}{}\n{}", r.out, r.err, c.log());
    coordinator.process.terminate();
    let coordinator = c.service("coordinator");
    coordinator.await_ready();
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    assert_eq!(sealed(&c, &job).verdict, "complete");
}
