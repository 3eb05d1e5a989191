//! What a cluster costs: CPU time and peak memory of each service, and the objects that it writes.
//! `tests/bench` runs this; the figures are for people, nothing is asserted on them.

use crate::distributed::{objects, submit};
use ramsift_proto::v1::{JobSpec, JobState};
use ramsift_store::Keys;
use ramsift_store::commits;
use ramsift_store::objects::Objects;
use ramsift_tests::fixtures::{capture, planted};
use ramsift_tests::program::{Cluster, Service, run};
use ramsift_tests::sparse_s3::SparseS3;
use ramsift_tests::{block_on, wait_for};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// CPU seconds and peak resident MiB of a process.
fn usage(s: &Service) -> (f64, u64) {
    let id = s.process.id();
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("it runs");
    // The name in parentheses may hold spaces; the times are fields 14 and 15, in ticks of 10 ms.
    let rest = stat.rsplit(") ").next().expect("fields");
    let ticks: f64 = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(|t| t.parse::<f64>().expect("a number"))
        .sum();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|k| k.parse::<u64>().ok())
        .expect("VmHWM");
    (ticks / 100.0, peak >> 10)
}

#[test]
#[ignore = "a measurement of minutes: tests/bench runs it"]
fn cluster() {
    let image =
        PathBuf::from(std::env::var_os("RAMSIFT_BENCH_IMAGE").expect("RAMSIFT_BENCH_IMAGE"));
    let c = Cluster::start(&[
        ("RAMSIFT_WORKER_SLOTS", "2"),
        // As in a cluster by default; tests are quicker.
        ("RAMSIFT_AGGREGATOR_COMMIT_MILLISECONDS", "1000"),
        ("RAMSIFT_COORDINATOR_POLL_MILLISECONDS", "500"),
    ]);
    c.s3.put_as_is("evidence", "bench.raw", &image);
    let services: Vec<(&str, Service)> = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ]
    .into_iter()
    .map(|s| (s, c.service(s)))
    .collect();
    services.iter().for_each(|(_, s)| s.await_ready());
    let before: Vec<f64> = services.iter().map(|(_, s)| usage(s).0).collect();
    let bytes = std::fs::metadata(&image).expect("image").len() as f64;
    let started = Instant::now();
    let rules = std::env::var("RAMSIFT_BENCH_RULES").ok();
    let mut args = vec!["s3://evidence/bench.raw"];
    if let Some(r) = &rules {
        args.extend(["--rules", r]);
    }
    let job = submit(&c, &args);
    let r = run(c.command().args(["watch", &job]));
    let wall = started.elapsed().as_secs_f64();
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let mut all = 0.0;
    for ((name, s), before) in services.iter().zip(before) {
        let (cpu, peak) = usage(s);
        all += cpu - before;
        println!("{name}: {:.2} s CPU, peak {peak} MiB", cpu - before);
    }
    let written = block_on(objects(&c, "results", "r").list("")).expect("list");
    let gib = bytes / f64::from(1 << 30);
    println!(
        "cluster: {:.0} MB per CPU second, {all:.2} s CPU, {wall:.2} s wall, {:.0} objects per GiB",
        bytes / 1e6 / all,
        written.len() as f64 / gib
    );
}

/// How long each job of a list took from its submission to its end, in seconds, in their order.
fn times(c: &Cluster, jobs: &[String]) -> Vec<f64> {
    let results = objects(c, "results", "r");
    let read = |key: String| -> Option<Vec<u8>> {
        let (data, _) = block_on(results.get(&key)).ok()?;
        Some(data.to_vec())
    };
    let mut done: Vec<Option<f64>> = vec![None; jobs.len()];
    wait_for("every job ends", Duration::from_secs(1800), || {
        for (job, time) in jobs.iter().zip(&mut done).filter(|(_, t)| t.is_none()) {
            let keys = Keys::new(job);
            let state: JobState = serde_json::from_slice(&read(keys.state())?).expect("JSON");
            if state.phase().is_final() {
                let spec: JobSpec = serde_json::from_slice(&read(keys.spec())?).expect("JSON");
                let micros = state.updated_micros - spec.submitted_micros;
                *time = Some(micros as f64 / 1e6);
            }
        }
        done.iter().all(Option::is_some).then_some(())
    });
    done.into_iter().flatten().collect()
}

#[test]
#[ignore = "a measurement of minutes: tests/bench runs it"]
fn small_jobs_beside_a_large_one() {
    const SMALL: usize = 200;
    let large = std::env::var_os("RAMSIFT_BENCH_IMAGE").expect("RAMSIFT_BENCH_IMAGE");
    let c = Cluster::start(&[
        ("RAMSIFT_WORKER_SLOTS", "2"),
        // As in a cluster by default; tests are quicker.
        ("RAMSIFT_AGGREGATOR_COMMIT_MILLISECONDS", "1000"),
        ("RAMSIFT_COORDINATOR_POLL_MILLISECONDS", "500"),
    ]);
    c.s3.put_as_is("evidence", "large.raw", &PathBuf::from(large));
    let bytes = std::fs::read(&planted().image).expect("the planted image");
    let evidence = objects(&c, "evidence", "");
    for (i, mib) in bytes.chunks_exact(1 << 20).cycle().take(SMALL).enumerate() {
        // No two are the same capture.
        let mut own = mib.to_vec();
        own[..8].copy_from_slice(&(i as u64).to_le_bytes());
        block_on(evidence.put(&format!("small-{i}.raw"), own.into())).expect("upload");
    }
    let services: Vec<Service> = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ]
    .into_iter()
    .map(|s| c.service(s))
    .collect();
    services.iter().for_each(Service::await_ready);
    let alone = times(&c, &[submit(&c, &["s3://evidence/large.raw"])])[0];
    let cpu: f64 = services.iter().map(|s| usage(s).0).sum();
    let begun = Instant::now();
    let mut jobs = vec![submit(&c, &["s3://evidence/large.raw", "--case", "again"])];
    let r = run(c.command().args(["submit", "s3://evidence/small-"]));
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    jobs.extend(
        r.out
            .lines()
            .filter_map(|l| Some(l.split_whitespace().next()?.to_owned())),
    );
    assert_eq!(jobs.len(), SMALL + 1, "{}", r.out);
    let submitted = begun.elapsed().as_secs_f64();
    let all = times(&c, &jobs);
    let beside = all[0];
    let mut small = all[1..].to_vec();
    small.sort_by(f64::total_cmp);
    let cpu = services.iter().map(|s| usage(s).0).sum::<f64>() - cpu;
    println!(
        "{SMALL} small jobs: submitted in {submitted:.1} s, first {:.1} s, median {:.1} s, last {:.1} s; \
         the large one {beside:.1} s beside them, {alone:.1} s alone; {cpu:.1} s CPU",
        small[0],
        small[SMALL / 2],
        small[SMALL - 1]
    );
}

#[test]
#[ignore = "a measurement of minutes: tests/bench runs it"]
fn a_list_of_a_thousand_jobs() {
    let c = Cluster::start(&[]);
    let bytes = std::fs::read(&planted().image).expect("the planted image");
    let evidence = objects(&c, "evidence", "");
    block_on(evidence.put("small.raw", bytes[..1 << 20].to_vec().into())).expect("upload");
    let services = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ]
    .map(|s| c.service(s));
    services.iter().for_each(Service::await_ready);
    let job = submit(&c, &["s3://evidence/small.raw"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    let results = objects(&c, "results", "r");
    let keys = Keys::new(&job);
    for key in [keys.spec(), keys.plan(), keys.state(), keys.manifest()] {
        let (data, _) = block_on(results.get(&key)).expect("of the job");
        let text = String::from_utf8(data.to_vec()).expect("JSON");
        for i in 0..1000 {
            let name = format!("{job}-{i:03}");
            let (key, text) = (key.replace(&job, &name), text.replace(&job, &name));
            block_on(results.put(&key, text.into_bytes().into())).expect("put");
        }
    }
    for what in ["first", "second", "third"] {
        let began = Instant::now();
        let r = run(c.command().arg("jobs"));
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        println!(
            "a list of {} jobs, {what}: {seconds:.2} s",
            r.out.lines().count()
        );
    }
}

#[test]
#[ignore = "a measurement of minutes: tests/bench runs it"]
fn the_processes_of_a_large_capture_in_s3() {
    const SIZE: u64 = 64 << 30;
    let dir = tempfile::tempdir().expect("tempdir");
    let large = dir.path().join("large.raw");
    std::fs::copy(&capture().image, &large).expect("copied");
    let file = std::fs::File::options().write(true).open(&large);
    file.and_then(|f| f.set_len(SIZE)).expect("made longer");
    let s3 = SparseS3::start(dir.path());
    let buckets = dir.path().join("buckets.toml");
    let table = format!(
        "[sparse]\nendpoint = \"{}\"\naccess_key = \"any\"\nsecret_key = \"any\"\npath_style = true\n",
        s3.endpoint()
    );
    std::fs::write(&buckets, table).expect("written");
    let c = Cluster::start(&[
        ("RAMSIFT_WORKER_SLOTS", "2"),
        ("RAMSIFT_AGGREGATOR_COMMIT_MILLISECONDS", "1000"),
        ("RAMSIFT_COORDINATOR_POLL_MILLISECONDS", "500"),
        ("RAMSIFT_S3_BUCKETS_FILE", buckets.to_str().expect("a name")),
    ]);
    let services = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ]
    .map(|s| c.service(s));
    services.iter().for_each(Service::await_ready);
    let results = objects(&c, "results", "r");
    for (i, name) in ["first", "second", "third"].iter().enumerate() {
        let begun = Instant::now();
        let job = submit(&c, &["s3://sparse/large.raw", "--case", &i.to_string()]);
        let submitted = begun.elapsed().as_secs_f64();
        let keys = Keys::new(&job);
        wait_for("a list of processes", Duration::from_secs(600), || {
            let all = block_on(commits::all(&results, &keys)).ok()?;
            let mut segments = all.iter().flat_map(|c| &c.segments);
            segments
                .any(|s| s.table == "linux_pslist" && s.rows > 0)
                .then_some(())
        });
        let listed = begun.elapsed().as_secs_f64();
        println!(
            "processes of 64 GiB in S3, {name}: {listed:.2} s after submit began, which took {submitted:.2} s"
        );
        let r = run(c.command().args(["cancel", &job]));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let ended = times(&c, &[job]);
        println!(
            "cancelled, over after {:.1} s; {} MiB read from the server so far",
            ended[0],
            s3.sent() >> 20
        );
    }
}
