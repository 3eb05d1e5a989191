//! The cluster with real servers: what it finds, and what it survives.

use ramsift_store::objects::Objects;
use ramsift_store::{Keys, LocalObjects, Manifest, S3Objects};
use ramsift_tests::fixtures::{another_capture, capture, image, planted};
use ramsift_tests::program::{Cluster, Run, run, scan};
pub(crate) use ramsift_tests::tables::{tables, without_inference};
use ramsift_tests::{block_on, wait_for};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn objects(c: &Cluster, bucket: &str, prefix: &str) -> S3Objects {
    block_on(async {
        let client = ramsift_layers::source::S3Client::connect(&c.s3.config()).await;
        S3Objects::new(client, bucket, prefix)
    })
}

pub(crate) fn upload(c: &Cluster, key: &str, path: &Path) {
    block_on(objects(c, "evidence", "").put_file(key, path)).expect("upload");
}

pub(crate) fn submit(c: &Cluster, args: &[&str]) -> String {
    let r = run(c.command().arg("submit").args(args));
    assert_eq!(r.code, 0, "{}\n{}", r.err, c.log());
    r.out.split_whitespace().next().expect("a job").to_owned()
}

pub(crate) fn manifest(c: &Cluster, job: &str) -> Manifest {
    let results = objects(c, "results", "r");
    let (data, _) = block_on(results.get(&Keys::new(job).manifest())).expect("manifest");
    serde_json::from_slice(&data).expect("JSON")
}

#[test]
fn results_survive_killed_workers_aggregator_broker_and_ledger() {
    let p = planted();
    let rules = p.rules.display().to_string();
    let sets = [
        ("RAMSIFT_SCAN_CHUNK_SIZE", "131072"),
        ("RAMSIFT_SCAN_OVERLAP", "65536"),
        ("RAMSIFT_COORDINATOR_WINDOW", "24"),
    ];
    let mut c = Cluster::start(&sets);
    upload(&c, "planted.mem", &p.image);
    let coordinator = c.service("coordinator");
    let mut aggregator = c.service("aggregator");
    let mut workers: Vec<_> = (0..3).map(|_| c.service("chunk-worker")).collect();
    let _structured = c.service("structured-worker");
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/planted.mem", "--rules", &rules]);
    let results: Arc<dyn Objects> = Arc::new(objects(&c, "results", "r"));
    let count = |folder: String| {
        block_on(results.list(&folder))
            .map(|l| l.len())
            .unwrap_or(0)
    };
    let keys = Keys::new(&job);
    let ended = || count(keys.manifest()) > 0;
    wait_for("the first commit", Duration::from_secs(60), || {
        (count(keys.commits()) > 0).then_some(())
    });
    assert!(!ended(), "too fast to be disturbed");
    workers[0].process.kill();
    // Right after a commit: workers may not have heard of it yet.
    let heard_of = count(keys.commits());
    wait_for("another commit", Duration::from_secs(60), || {
        (count(keys.commits()) > heard_of || ended()).then_some(())
    });
    aggregator.process.kill();
    c.redis.flush();
    drop(aggregator);
    let _aggregator = c.service("aggregator");
    let so_far = count(keys.commits());
    wait_for("the job goes on", Duration::from_secs(120), || {
        (count(keys.commits()) > so_far || ended()).then_some(())
    });
    c.rabbit.down();
    c.rabbit.up();
    wait_for("the job ends", Duration::from_secs(300), || {
        ended().then_some(())
    });
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let m = manifest(&c, &job);
    let bytes = std::fs::read(&p.image).expect("image");
    assert_eq!(
        m.evidence_blake3.as_deref(),
        Some(blake3::hash(&bytes).to_hex().as_str())
    );
    assert_eq!(m.verdict, "complete");
    // An undisturbed embedded run finds the same, row for row.
    let dir = tempfile::tempdir().expect("tempdir");
    // The object's time is another than the file's: it bounds what is inferred of missing years.
    let mut settings = vec!["--rules".to_owned(), rules];
    for (k, v) in [("scan.chunk_size", "131072"), ("scan.overlap", "65536")] {
        settings.extend(["--set".to_owned(), format!("{k}={v}")]);
    }
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let copy = dir.path().join("planted.mem");
    std::fs::copy(&p.image, &copy).expect("copy");
    let e = scan(&copy, &dir.path().join("out"), &settings);
    assert_eq!(e.code, 0, "{}", e.err);
    let local: Arc<dyn Objects> =
        Arc::new(LocalObjects::open_existing(&dir.path().join("out")).expect("store"));
    let local_job = block_on(local.list_folders("jobs/"))
        .expect("jobs")
        .remove(0);
    let names = ["findings", "events", "artifacts", "coverage", "system"];
    for ((table, a), (_, b)) in tables(results, &job, &names)
        .into_iter()
        .zip(tables(local, &local_job, &names))
    {
        assert!(!a.is_empty(), "{table} is empty");
        let (a, b) = (without_inference(a), without_inference(b));
        let differ = a.iter().zip(&b).find(|(x, y)| x != y);
        assert_eq!(a.len(), b.len(), "{table}: {differ:?}");
        assert!(a == b, "{table}: {differ:?}");
    }
    for w in &mut workers[1..] {
        assert_eq!(w.process.terminate(), Some(0), "a worker drains on SIGTERM");
    }
}

#[test]
fn bad_input_is_refused_with_a_reason_and_loses_nothing_else() {
    let c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "65536"),
        ("RAMSIFT_SCAN_OVERLAP", "4096"),
    ]);
    let dir = tempfile::tempdir().expect("tempdir");
    let good = dir.path().join("good.mem");
    std::fs::write(
        &good,
        image(1 << 20, &[(64, b"\0http://good.example.org/\0")]),
    )
    .expect("write");
    upload(&c, "good.mem", &good);
    let _coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    let _worker = c.service("chunk-worker");
    let _structured = c.service("structured-worker");
    let refused = |args: &[&str], say: &str| {
        let r = run(c.command().arg("submit").args(args));
        assert_eq!(r.code, 2, "{args:?}: {}", r.err);
        assert!(r.err.contains(say), "{args:?}: {}", r.err);
    };
    refused(&["s3://evidence/none.mem"], "none.mem");
    refused(&["s3://nowhere/a.mem"], "nowhere");
    refused(&["/local/file.mem"], "ramsift scan");
    let mut wrong = c.command();
    wrong
        .env("RAMSIFT_S3_SECRET_KEY", "wrong")
        .args(["submit", "s3://evidence/good.mem"]);
    let r = run(&mut wrong);
    assert_eq!(r.code, 2);
    assert!(r.err.contains("access key"), "{}", r.err);
    // Gone between submission and planning, and a good one beside it.
    let gone = objects(&c, "evidence", "");
    block_on(gone.put_file("gone.mem", &good)).expect("upload");
    let a = submit(&c, &["s3://evidence/good.mem"]);
    let r = run(c.command().args(["watch", &a]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let r = run(c.command().args(["results", &a, "--kind", "url"]));
    assert!(r.out.contains("good.example.org"), "{}{}", r.out, r.err);
    let r = run(c.command().args(["status", "no-such-job"]));
    assert_eq!(r.code, 2);
    assert!(r.err.contains("no such job"), "{}", r.err);
}

#[test]
fn a_job_can_be_cancelled_and_a_replaced_object_fails_its_job() {
    let c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "65536"),
        ("RAMSIFT_SCAN_OVERLAP", "4096"),
        ("RAMSIFT_COORDINATOR_WINDOW", "4"),
    ]);
    let evidence = tempfile::NamedTempFile::new().expect("tempfile");
    let urls: [(usize, &[u8]); 1] = [(64, b"\0http://a.example.org/\0")];
    std::fs::write(evidence.path(), image(2 << 20, &urls)).expect("write");
    upload(&c, "a.mem", evidence.path());
    upload(&c, "b.mem", evidence.path());
    let _coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    // Nobody takes the tasks yet.
    let job = submit(&c, &["s3://evidence/a.mem"]);
    let r = run(c.command().args(["cancel", &job, "--reason", "wrong case"]));
    assert_eq!(r.code, 0, "{}", r.err);
    let r = run(c.command().args(["watch", &job]));
    assert!(
        r.out.contains("cancelled") && r.out.contains("wrong case"),
        "{}{}",
        r.out,
        r.err
    );
    let cancelled = job;
    let job = submit(&c, &["s3://evidence/b.mem"]);
    let results = objects(&c, "results", "r");
    wait_for("the plan", Duration::from_secs(60), || {
        block_on(results.head(&Keys::new(&job).plan())).ok()
    });
    let other = tempfile::NamedTempFile::new().expect("tempfile");
    std::fs::write(other.path(), image(1 << 20, &[])).expect("write");
    upload(&c, "b.mem", other.path());
    let _worker = c.service("chunk-worker");
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 2);
    assert!(
        r.out.contains("evidence changed"),
        "{}{}\n{}",
        r.out,
        r.err,
        c.log()
    );
    // The evidence is what it was again: the job goes on.
    upload(&c, "b.mem", evidence.path());
    let _structured = c.service("structured-worker");
    let retry = |job: &str| run(c.command().args(["retry", job]));
    for job in [&job, &cancelled] {
        let r = retry(job);
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let r = run(c.command().args(["watch", job]));
        assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
        let r = run(c.command().args(["verify", job]));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let r = retry(job);
        assert_eq!(r.code, 2);
        assert!(
            r.err.contains("is complete; only jobs that failed"),
            "{}",
            r.err
        );
    }
    let r = retry("none");
    assert_eq!(r.code, 2);
    assert!(r.err.contains("no such job"), "{}", r.err);
}

#[test]
fn status_says_what_was_found_before_the_first_chunk_is_scanned() {
    let tampered = another_capture("deb6.1-cloud-256m-tampered").expect("tests/run builds it");
    let c = Cluster::start(&[]);
    upload(&c, "tampered.raw", &tampered.image);
    let _services = ["coordinator", "aggregator", "structured-worker"].map(|s| c.service(s));
    let job = submit(&c, &["s3://evidence/tampered.raw"]);
    // Its module was hidden by who made the capture.
    wait_for("the hidden module", Duration::from_secs(180), || {
        let r = run(c.command().args(["status", &job]));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let line = r.out.lines().find(|l| l.contains("hidden_module"))?;
        assert!(line.trim_start().starts_with("critical: "), "{}", r.out);
        Some(())
    });
}

#[test]
fn services_wait_for_what_is_down_and_say_so() {
    let mut c = Cluster::start(&[
        ("RAMSIFT_SCAN_CHUNK_SIZE", "262144"),
        ("RAMSIFT_SCAN_OVERLAP", "4096"),
    ]);
    let dir = tempfile::tempdir().expect("tempdir");
    let good = dir.path().join("good.mem");
    std::fs::write(
        &good,
        image(1 << 20, &[(64, b"\0http://late.example.org/\0")]),
    )
    .expect("write");
    upload(&c, "late.mem", &good);
    c.rabbit.down();
    let coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    let worker = c.service("chunk-worker");
    let _structured = c.service("structured-worker");
    let why = wait_for("not ready", Duration::from_secs(30), || {
        worker
            .ready()
            .filter(|(s, body)| *s == 503 && body.contains("RabbitMQ"))
    });
    assert!(why.1.contains("can't be reached"), "{}", why.1);
    let job = submit(&c, &["s3://evidence/late.mem"]);
    c.rabbit.up();
    worker.await_ready();
    coordinator.await_ready();
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    // The store goes away and comes back under a second job.
    let job = submit(&c, &["s3://evidence/late.mem"]);
    c.s3.down();
    c.s3.up();
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
}

#[test]
fn processes_are_there_before_the_first_chunk() {
    let capture = capture();
    let c = Cluster::start(&[]);
    upload(&c, "machine.raw", &capture.image);
    let coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    let _structured = c.service("structured-worker");
    coordinator.await_ready();
    // No chunk worker is there.
    let job = submit(&c, &["s3://evidence/machine.raw"]);
    let list = wait_for("the list of processes", Duration::from_secs(120), || {
        let r = run(c
            .command()
            .args(["view", "linux/pslist", &job, "--format", "jsonl"]));
        // Before that the view is built from the capture, which is as good and takes longer.
        r.err.contains("so far: 0 %").then_some(r)
    });
    assert_eq!(list.code, 0, "{}", list.err);
    let rows: Vec<serde_json::Value> = list
        .out
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    // Workers of the kernel's pools come and go while the machine writes its list.
    let said = capture.truth["ps"].as_object().expect("processes");
    let mut checked = 0;
    for (pid, p) in said {
        let status = p["status"].as_str().expect("a status");
        let name = status.lines().find_map(|l| l.strip_prefix("Name:\t"));
        let name = name.expect("a name");
        if !name.starts_with("kworker/") {
            let is = |r: &&serde_json::Value| r["pid"].as_u64() == pid.parse().ok();
            let row = rows.iter().find(is);
            let row = row.unwrap_or_else(|| panic!("{pid} {name} is not listed"));
            // A thread of the kernel has a longer name elsewhere.
            let listed = row["comm"].as_str().expect("a name");
            assert!(
                name.starts_with(listed) && listed.len() >= name.len().min(15),
                "{row}"
            );
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
    let _worker = c.service("chunk-worker");
    let r = run(c.command().args(["watch", &job]));
    assert!([0, 3].contains(&r.code), "{}{}\n{}", r.out, r.err, c.log());
    let sealed = run(c
        .command()
        .args(["view", "linux/pslist", &job, "--format", "jsonl"]));
    let first = |r: &Run| r.out.lines().next().unwrap_or_default().to_owned();
    assert_eq!(first(&sealed), first(&list));
    assert!(sealed.out == list.out, "the same rows in the same order");
}
