//! What devices, servers and workers do at the worst moment, and what is left of the results.

use crate::distributed::{manifest, objects, submit, upload};
use crate::embedded::{self, ok, png_with_text, query};
use ramsift_store::Keys;
use ramsift_store::objects::Objects;
use ramsift_tests::fixtures::{capture, faults, image, lime, planted};
use ramsift_tests::program::{
    Cluster, Run, Service, command, http_get, run, scan, with_hosts, with_small_disk,
    with_small_disk_kept,
};
use ramsift_tests::servers::{CLAM_NEEDLE, Clamd};
use ramsift_tests::{block_on, wait_for};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Chunks of 1 MiB, so that small images have several.
const SMALL: [&str; 4] = [
    "--set",
    "scan.chunk_size=1048576",
    "--set",
    "scan.overlap=65536",
];

#[test]
fn a_failing_disk_costs_its_bad_sectors_and_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("worn.mem");
    let (before, after) = (0x10_0000 + 0x2000, 0x10_0000 + 0x9_0000);
    let bytes = image(
        4 << 20,
        &[
            (before, b"\0http://before.example.org/\0"),
            (after, b"\0http://after.example.org/\0"),
        ],
    );
    std::fs::write(&path, &bytes).expect("write");
    let out = dir.path().join("out");
    let (from, to) = (0x10_0000 + 0x4_0000, 0x10_0000 + 0x4_2001);
    let r = run(command()
        .env("LD_PRELOAD", faults())
        .env("FAULT_READ_FILE", "worn.mem")
        .env("FAULT_READ_FROM", from.to_string())
        .env("FAULT_READ_TO", to.to_string())
        .arg("scan")
        .arg(&path)
        .arg("--out")
        .arg(&out)
        .args(SMALL));
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    let m = embedded::manifest(&out);
    let c = &m.coverage["carvers"];
    // Whole pages are given up: three, since the last bad byte lies in a third.
    assert_eq!((c.failed, c.total()), (3 * 4096, 4 << 20));
    assert!(
        m.gaps
            .iter()
            .any(|g| g.contains("0x140000") && g.contains("Input/output error")),
        "{:?}",
        m.gaps
    );
    assert_eq!(
        m.evidence_blake3, None,
        "what can't be read can't be hashed"
    );
    let urls = query(
        &out,
        "SELECT value FROM findings WHERE kind = 'url' ORDER BY image_offset",
    );
    assert_eq!(urls.len(), 2, "{urls:?}");
}

/// Forwards connections to a server until `limit` of them were made; then it is gone.
fn dies_after(limit: usize, server: String) -> String {
    let front = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = front.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for client in front.incoming().take(limit).flatten() {
            let server = TcpStream::connect(&server).expect("the server behind");
            let pump = |mut from: TcpStream, mut to: TcpStream| {
                std::thread::spawn(move || {
                    let mut buf = [0; 4096];
                    while let Ok(n @ 1..) = from.read(&mut buf) {
                        if to.write_all(&buf[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            };
            let twin = |s: &TcpStream| s.try_clone().expect("a second handle");
            pump(twin(&client), twin(&server));
            pump(server, client);
        }
    });
    address
}

#[test]
fn clamd_that_dies_in_the_middle_leaves_a_gap_and_everything_else() {
    let clamd = Clamd::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let files: Vec<_> = (0..40u8)
        .map(|i| png_with_text(&[CLAM_NEEDLE, &[b'0' + i]].concat()))
        .collect();
    let mut plants: Vec<(usize, &[u8])> = files
        .iter()
        .enumerate()
        .map(|(i, f)| (0x8000 * (i + 1), f.as_slice()))
        .collect();
    plants.push((0x1f_0000, b"\0http://kept.example.org/\0"));
    std::fs::write(&path, image(2 << 20, &plants)).expect("write");
    // The first connections ask for version and limits.
    let front = dies_after(24, clamd.address());
    let out = dir.path().join("out");
    let r = scan(&path, &out, &["--clamd", &front, "--av", "files"]);
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    let one = |sql: &str| query(&out, sql)[0]["n"].as_i64().expect("a number");
    let verdicts = one("SELECT count(*) AS n FROM findings WHERE kind = 'av'");
    let without = one("SELECT count(*) AS n FROM coverage WHERE engine = 'clamav'");
    assert!(verdicts > 0 && without > 0, "{verdicts} and {without}");
    assert_eq!(verdicts + without, 40);
    assert_eq!(
        one("SELECT count(*) AS n FROM findings WHERE value LIKE '%kept.example.org%'"),
        1,
        "the URL, and no domain beside it"
    );
    let m = embedded::manifest(&out);
    assert!(
        m.gaps.iter().any(|g| g.contains("clamd stopped answering")),
        "{:?}",
        m.gaps
    );
}

#[test]
fn only_the_smallest_part_that_kills_workers_is_lost() {
    const POISON: &str = "ramsift-poison-58213";
    let c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "4194304"),
        ("RAMSIFT_SCAN_OVERLAP", "65536"),
        ("RAMSIFT_COORDINATOR_SMALLEST_BYTES", "1048576"),
    ]);
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("poisoned.mem");
    // Out of reach of what the neighbours read around their own bytes.
    let at = (4 << 20) + 0x8_0000;
    // Laid down a few times: one may be cut by the border of two packets.
    let poison = POISON.repeat(8);
    let names: Vec<String> = (0..16)
        .map(|i| format!("\0http://part-{i}.example.org/\0"))
        .collect();
    let mut plants: Vec<(usize, &[u8])> = names
        .iter()
        .enumerate()
        .map(|(i, n)| ((i << 20) + 0x3000, n.as_bytes()))
        .collect();
    plants.push((at, poison.as_bytes()));
    // The last chunk is short, and so is the last piece of the hash tree.
    let bytes = image((16 << 20) + 3 * 4096 + 100, &plants);
    let hash = blake3::hash(&bytes).to_hex().to_string();
    std::fs::write(&path, &bytes).expect("write");
    upload(&c, "poisoned.mem", &path);
    let _coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    let _structured = c.service("structured-worker");
    let job = submit(&c, &["s3://evidence/poisoned.mem"]);
    let results = objects(&c, "results", "r");
    let library = faults().display().to_string();
    let mortal = [("LD_PRELOAD", library.as_str()), ("FAULT_POISON", POISON)];
    let mut worker = c.service_with("chunk-worker", &mortal);
    let mut deaths = 0;
    let ended = || block_on(results.head(&Keys::new(&job).manifest())).is_ok();
    wait_for("the job ends", Duration::from_secs(300), || {
        if worker.process.exited().is_some() {
            deaths += 1;
            worker = c.service_with("chunk-worker", &mortal);
        }
        ended().then_some(())
    });
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 3, "{}{}\n{}", r.out, r.err, c.log());
    assert!(deaths >= 4, "{deaths} deaths");
    let m = manifest(&c, &job);
    let covered = &m.coverage["carvers"];
    let total = bytes.len() as u64;
    assert_eq!((covered.failed, covered.total()), (1 << 20, total));
    // What no worker survives was read all the same.
    assert_eq!(m.evidence_blake3.as_deref(), Some(hash.as_str()));
    assert!(
        m.gaps
            .iter()
            .any(|g| g.contains("0x400000") && g.contains("died")),
        "{:?}",
        m.gaps
    );
    let r = run(c
        .command()
        .args(["results", &job, "--kind", "url", "--format", "jsonl"]));
    let found = |i: usize| r.out.contains(&format!("part-{i}."));
    let lost: Vec<usize> = (0..16).filter(|i| !found(*i)).collect();
    assert_eq!(lost, [4], "{}{}", r.out, r.err);
}

#[test]
fn a_standby_takes_over_and_redis_may_stay_away() {
    let mut c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "1048576"),
        ("RAMSIFT_SCAN_OVERLAP", "65536"),
        ("RAMSIFT_COORDINATOR_WINDOW", "4"),
    ]);
    let p = planted();
    upload(&c, "a.mem", &p.image);
    c.redis.down();
    let mut first = c.service("coordinator");
    first.await_ready();
    let second = c.service_with(
        "coordinator",
        &[("RAMSIFT_COORDINATOR_LISTEN", "127.0.0.1:0")],
    );
    second.await_ready();
    let _aggregator = c.service("aggregator");
    let _structured = c.service("structured-worker");
    let job = submit(&c, &["s3://evidence/a.mem"]);
    let results = objects(&c, "results", "r");
    let keys = Keys::new(&job);
    wait_for("the plan", Duration::from_secs(60), || {
        block_on(results.head(&keys.plan())).ok()
    });
    // Four tasks are out; the rest is the second coordinator's to publish.
    first.process.kill();
    let _worker = c.service("chunk-worker");
    wait_for("the job ends", Duration::from_secs(180), || {
        block_on(results.head(&keys.manifest())).ok()
    });
    c.redis.up();
    let m = manifest(&c, &job);
    assert_eq!(m.verdict, "complete");
    let bytes = std::fs::read(&p.image).expect("image");
    assert_eq!(
        m.evidence_blake3.as_deref(),
        Some(blake3::hash(&bytes).to_hex().as_str())
    );
    // A coordinator that is started again knows the job from the store.
    let _third = c.service("coordinator");
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
}

#[test]
fn evidence_that_vanishes_fails_its_job_and_a_cut_one_has_gaps() {
    let c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "262144"),
        ("RAMSIFT_SCAN_OVERLAP", "4096"),
    ]);
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("gone.mem");
    std::fs::write(&path, image(1 << 20, &[])).expect("write");
    upload(&c, "gone.mem", &path);
    let bytes = image(1 << 20, &[(0x2000, b"\0http://cut.example.org/\0")]);
    let mut file = lime(&[(0x1000, &bytes), (0x20_0000, &bytes)]);
    file.truncate(file.len() - 300_000);
    std::fs::write(&path, &file).expect("write");
    upload(&c, "cut.lime", &path);
    let _coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    let _structured = c.service("structured-worker");
    let gone = submit(&c, &["s3://evidence/gone.mem"]);
    let results = objects(&c, "results", "r");
    wait_for("the plan", Duration::from_secs(60), || {
        block_on(results.head(&Keys::new(&gone).plan())).ok()
    });
    block_on(objects(&c, "evidence", "").delete("gone.mem")).expect("delete");
    let cut = submit(&c, &["s3://evidence/cut.lime"]);
    let _worker = c.service("chunk-worker");
    let r = run(c.command().args(["watch", &gone]));
    assert_eq!(r.code, 2, "{}{}\n{}", r.out, r.err, c.log());
    assert!(r.out.contains("gone.mem"), "{}{}", r.out, r.err);
    let r = run(c.command().args(["watch", &cut]));
    assert_eq!(r.code, 3, "{}{}\n{}", r.out, r.err, c.log());
    let covered = &manifest(&c, &cut).coverage["carvers"];
    assert_eq!((covered.missing, covered.total()), (300_000, 2 << 20));
    let r = run(c.command().args(["results", &cut, "--kind", "url"]));
    assert!(r.out.contains("cut.example.org"), "{}{}", r.out, r.err);
    ok(&run(c.command().args(["verify", &cut])));
}

#[test]
fn a_job_says_what_it_waits_for_and_outlives_a_broker_that_lost_its_queue() {
    let p = planted();
    let mut c = Cluster::start(&[]);
    upload(&c, "planted.mem", &p.image);
    let coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/planted.mem"]);
    let says = |what: &str| {
        wait_for(what, Duration::from_secs(60), || {
            let r = run(c.command().args(["status", &job]));
            r.out.contains(what).then_some(())
        });
    };
    says("no chunk worker takes tasks");
    says("no structured worker takes tasks");
    c.rabbit.down();
    c.rabbit.forget();
    c.rabbit.up();
    let _worker = c.service("chunk-worker");
    let _structured = c.service("structured-worker");
    // Long before tasks are published again for their age alone.
    let results: Arc<dyn Objects> = Arc::new(objects(&c, "results", "r"));
    let manifest = Keys::new(&job).manifest();
    wait_for("the job ends", Duration::from_secs(180), || {
        block_on(results.head(&manifest)).is_ok().then_some(())
    });
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
}

#[test]
fn what_a_full_disk_could_not_take_is_a_gap_and_everything_else_is_there() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let (whole, less) = (dir.path().join("whole"), dir.path().join("less"));
    let full = dir.path().join("full");
    std::fs::create_dir(&full).expect("a folder");
    let copies = ["--copy-artifacts", "all"];
    ok(&scan(&c.image, &whole, &copies));
    let mut small = command();
    small.arg("scan").arg(&c.image).arg("--out").arg(&less);
    small.args(copies);
    small
        .arg("--set")
        .arg(format!("worker.spill={}", full.display()));
    let r = run(&mut with_small_disk(&full, "1m", &small));
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    assert!(r.out.contains("No space left on device"), "{}", r.out);
    let gaps = "SELECT count(*) AS n FROM coverage WHERE engine = 'recovered files' \
                AND outcome = 'failed'";
    let gaps = query(&less, gaps)[0]["n"].as_u64().expect("a number");
    assert!(gaps > 0);
    let count = |out: &Path, what: &str| {
        let sql = format!("SELECT count(*) AS n FROM {what}");
        query(out, &sql)[0]["n"].as_u64().expect("a number")
    };
    assert_eq!(count(&less, "artifacts") + gaps, count(&whole, "artifacts"));
    for table in [
        "findings",
        "events",
        "linux_pslist",
        "linux_pagecache_files",
    ] {
        assert_eq!(count(&less, table), count(&whole, table), "{table}");
    }
    assert_eq!(embedded::manifest(&less).verdict, "complete with gaps");
}

/// A folder on a disk of its own that is full at once, and a scan of the planted image that is to write there.
fn scan_with_full(dir: &Path, size: &str, set: &str) -> (Run, std::path::PathBuf) {
    let p = planted();
    let (out, full) = (dir.join("out"), dir.join("full"));
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&full).expect("a folder");
    let mut c = command();
    c.arg("scan").arg(&p.image).arg("--rules").arg(&p.rules);
    c.arg("--set").arg(format!("{set}={}", full.display()));
    c.arg("--out").arg(&out);
    (run(&mut with_small_disk(&full, size, &c)), out)
}

#[test]
fn caches_on_a_full_disk_cost_time_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let findings = |out: &Path| {
        let rows = query(out, "SELECT * EXCLUDE (capture) FROM findings ORDER BY id");
        assert!(!rows.is_empty());
        rows
    };
    let whole = dir.path().join("whole");
    let p = planted();
    ok(&scan(
        &p.image,
        &whole,
        &["--rules", &p.rules.display().to_string()],
    ));
    for cache in ["rules.cache", "worker.kernels", "symbols.store"] {
        let (r, out) = scan_with_full(dir.path(), "8k", cache);
        assert_eq!(r.code, 0, "{cache}: {}{}", r.out, r.err);
        assert_eq!(embedded::manifest(&out).verdict, "complete", "{cache}");
        assert!(findings(&out) == findings(&whole), "{cache}");
    }
}

#[test]
fn a_seal_without_room_for_its_temporary_files_says_where_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (r, out) = scan_with_full(dir.path(), "8k", "aggregator.spill");
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    for said in ["aggregator.spill", "full", "No space left on device"] {
        assert!(r.err.contains(said), "{said}: {}", r.err);
    }
    let p = planted();
    ok(&scan(
        &p.image,
        &out,
        &["--rules", &p.rules.display().to_string()],
    ));
    assert_eq!(embedded::manifest(&out).verdict, "complete");
}

#[test]
fn a_scan_whose_results_fill_the_disk_ends_with_the_reason_and_the_next_run_goes_on() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    // Room for the job, not for what it finds.
    let (full, kept) = (dir.path().join("full"), dir.path().join("kept"));
    for folder in [&full, &kept] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let mut c = command();
    c.arg("scan")
        .arg(&p.image)
        .arg("--out")
        .arg(full.join("out"));
    let r = run(&mut with_small_disk_kept(&full, "2m", &kept, &c));
    let out = kept.join("out");
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("the disk is full"), "{}", r.err);
    let said = r.err.matches("store trouble").count();
    assert!(said < 10, "{said} times: {}", r.err);
    // Nothing that was half written is left behind.
    let temporary = out.join(".tmp");
    let left = std::fs::read_dir(&temporary).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{}", temporary.display());
    ok(&scan(&p.image, &out, &[]));
    assert_eq!(embedded::manifest(&out).verdict, "complete");
}

#[test]
fn reports_go_to_every_aggregator_behind_a_name_and_to_the_one_that_is_left() {
    let p = planted();
    let sets = [
        ("RAMSIFT_SCAN_CHUNK_SIZE", "1048576"),
        ("RAMSIFT_SCAN_OVERLAP", "65536"),
    ];
    let c = Cluster::start(&sets);
    upload(&c, "planted.mem", &p.image);
    let hosts = c.logs.path().join("hosts");
    let names = "127.0.0.1 localhost aggregators.test\n127.0.0.2 aggregators.test\n";
    std::fs::write(&hosts, names).expect("hosts");
    let port = c.ports[1];
    let url = format!("http://aggregators.test:{port}");
    let url = [("RAMSIFT_AGGREGATOR_URL", url.as_str())];
    let named = |what: &str| c.service_as(what, &url, |c| with_hosts(&hosts, &c));
    let coordinator = named("coordinator");
    let mut first = c.service("aggregator");
    let listen = format!("127.0.0.2:{port}");
    let second = c.service_with("aggregator", &[("RAMSIFT_AGGREGATOR_LISTEN", &listen)]);
    let _worker = named("chunk-worker");
    let _structured = named("structured-worker");
    coordinator.await_ready();
    let durable = |s: &Service| {
        let (_, text) = http_get(s.http(), "/metrics").expect("metrics");
        let of = |l: &&str| l.starts_with("ramsift_reports_total{") && l.contains("\"durable\"");
        let line = text.lines().find(of).map(str::to_owned);
        line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let job = submit(&c, &["s3://evidence/planted.mem"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let (a, b) = (durable(&first), durable(&second));
    // In turn: neither has much more than the other.
    assert!(a >= 20.0 && b >= 20.0, "{a} and {b}");
    first.process.kill();
    upload(&c, "again.mem", &p.image);
    let job = submit(&c, &["s3://evidence/again.mem"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    assert!(
        durable(&second) >= b + 64.0,
        "{} after {b}",
        durable(&second)
    );
}

#[test]
fn a_service_whose_store_does_not_exist_ends_with_the_reason() {
    let c = Cluster::start(&[]);
    for what in [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ] {
        let r = run(c
            .command()
            .env("RAMSIFT_STORE_URL", "s3://nowhere/r")
            .arg(what));
        assert_eq!(r.code, 2, "{what}: {}", r.err);
        assert!(r.err.contains("bucket nowhere does not exist"), "{}", r.err);
    }
}

#[test]
fn a_worker_with_another_queue_prefix_says_so() {
    let c = Cluster::start(&[]);
    let coordinator = c.service("coordinator");
    coordinator.await_ready();
    let prefix = [("RAMSIFT_QUEUE_PREFIX", "elsewhere")];
    for what in ["chunk-worker", "structured-worker"] {
        let worker = c.service_with(what, &prefix);
        wait_for("the reason", Duration::from_secs(60), || {
            let (code, body) = worker.ready()?;
            let said =
                "settings: queue.prefix is \"elsewhere\" here and \"ramsift\" at the coordinator";
            (code == 503 && body.contains(said)).then_some(())
        });
    }
    let same = c.service("structured-worker");
    let _aggregator = c.service("aggregator");
    same.await_ready();
}
