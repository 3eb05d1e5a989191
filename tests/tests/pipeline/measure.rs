//! What a cluster costs: CPU time and peak memory of each service, and the objects that it writes.
//! `tests/bench` runs this; the figures are for people, nothing is asserted on them.

use crate::distributed::{objects, submit};
use ramsift_store::objects::Objects;
use ramsift_tests::block_on;
use ramsift_tests::program::{Cluster, Service, run};
use std::path::PathBuf;
use std::time::Instant;

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
        ("RAMSIFT_AGGREGATOR_COMMIT_MILLISECONDS", "2000"),
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
