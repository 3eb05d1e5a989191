//! A storm over a private cluster: services are killed, stopped and restarted, broker and ledger go away and forget, links
//! stand still, clocks are wrong, a disk is full. Every job must end with the tables of an undisturbed run.
//!
//! Two minutes long unless `RAMSIFT_CHAOS_SECONDS` says otherwise; `RAMSIFT_CHAOS_SEED` chooses another storm. What happened,
//! and how long it took to recover, goes to standard error (`--nocapture`).
#![allow(clippy::unwrap_used, missing_docs)]

mod fleet;
mod storm;

use fleet::Fleet;
use ramsift_proto::v1::{JobPhase, JobState};
use ramsift_store::objects::Objects;
use ramsift_store::{Keys, LocalObjects, Manifest, S3Objects};
use ramsift_tests::fixtures::{capture, planted};
use ramsift_tests::program::run;
use ramsift_tests::tables::tables;
use ramsift_tests::{block_on, wait_for};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storm::Storm;

/// A number from the environment.
fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(v) => v
            .parse()
            .unwrap_or_else(|_| panic!("{name}={v} is no number")),
        Err(_) => otherwise,
    }
}

/// How often a long storm says how far it is.
const NEWS: Duration = Duration::from_secs(300);

/// A capture in the bucket, and the tables that an undisturbed run makes of it.
struct Evidence {
    key: &'static str,
    more: Vec<String>,
    tables: BTreeMap<String, Vec<String>>,
}

/// Every table of a sealed job, by name.
fn all_tables(objects: &Arc<dyn Objects>, job: &str) -> BTreeMap<String, Vec<String>> {
    let (data, _) = block_on(objects.get(&Keys::new(job).manifest())).expect("a manifest");
    let m: Manifest = serde_json::from_slice(&data).expect("JSON");
    assert_eq!(m.verdict, "complete", "{job}: {:?}", m.gaps);
    let names = m.files.iter().filter_map(|f| {
        let name = Path::new(&f.key).file_stem()?.to_str()?;
        // The capture's row says when and under which name it was scanned.
        (name != "captures").then_some(name)
    });
    let names: Vec<&str> = names.collect();
    tables(objects.clone(), job, &names).into_iter().collect()
}

impl Evidence {
    /// Uploads a capture and scans it with one command that nothing disturbs.
    fn new(fleet: &Fleet, key: &'static str, path: &Path, more: Vec<String>) -> Self {
        block_on(fleet.objects("evidence", "").put_file(key, path)).expect("upload");
        let out = tempfile::tempdir().expect("a folder");
        let mut c = fleet.cluster.command();
        c.arg("scan").arg(format!("s3://evidence/{key}"));
        let r = run(c.arg("--out").arg(out.path()).args(&more));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let local: Arc<dyn Objects> =
            Arc::new(LocalObjects::open_existing(out.path()).expect("a store"));
        let job = block_on(local.list_folders("jobs/"))
            .expect("jobs")
            .remove(0);
        let tables = all_tables(&local, &job);
        assert!(tables.len() > 4, "{:?}", tables.keys());
        Self { key, more, tables }
    }
}

/// A job that was submitted, and when.
struct Submitted<'a> {
    name: String,
    of: &'a Evidence,
    at: Instant,
}

/// Hands a job in; a coordinator that is away is asked again.
fn submit<'a>(fleet: &Fleet, of: &'a Evidence) -> Option<Submitted<'a>> {
    let mut c = fleet.cluster.command();
    c.arg("submit").arg(format!("s3://evidence/{}", of.key));
    let at = Instant::now();
    let r = run(c.args(&of.more));
    let name = r.out.split_whitespace().next()?.to_owned();
    (r.code == 0).then_some(Submitted { name, of, at })
}

fn phase(results: &S3Objects, job: &str) -> Option<JobState> {
    let (data, _) = block_on(results.get(&Keys::new(job).state())).ok()?;
    serde_json::from_slice(&data).ok()
}

/// Fails unless a job ended as if nothing had happened.
fn check(fleet: &Fleet, results: &Arc<dyn Objects>, job: &Submitted<'_>) {
    let r = run(fleet.cluster.command().args(["verify", &job.name]));
    assert_eq!(r.code, 0, "{}: {}{}", job.name, r.out, r.err);
    let found = all_tables(results, &job.name);
    let (is, want): (Vec<_>, Vec<_>) = (found.keys().collect(), job.of.tables.keys().collect());
    assert_eq!(is, want, "{}", job.name);
    for (table, want) in &job.of.tables {
        let is = &found[table];
        let differ = is.iter().zip(want).find(|(a, b)| a != b);
        assert!(
            is == want,
            "{} of {}: {} rows, {} undisturbed; {differ:?}",
            table,
            job.name,
            is.len(),
            want.len()
        );
    }
}

#[test]
fn every_job_of_a_storm_ends_as_if_nothing_had_happened() {
    let seed = setting("RAMSIFT_CHAOS_SEED", 1);
    let length = Duration::from_secs(setting("RAMSIFT_CHAOS_SECONDS", 120));
    let mut fleet = Fleet::new();
    let p = planted();
    let rules = p.rules.display().to_string();
    let evidence = [
        Evidence::new(
            &fleet,
            "planted.mem",
            &p.image,
            vec!["--rules".into(), rules],
        ),
        Evidence::new(
            &fleet,
            "machine.raw",
            &capture().image,
            // Copies go over the worker's disk, which is full at times.
            vec!["--copy-artifacts".into(), "all".into()],
        ),
    ];
    fleet.start();
    let results: Arc<dyn Objects> = Arc::new(fleet.objects("results", "r"));
    let mut storm = Storm::new(seed);
    let began = Instant::now();
    let (mut running, mut ended): (Vec<Submitted<'_>>, Vec<Duration>) = (Vec::new(), Vec::new());
    let mut submitted = 0;
    let mut collect = |fleet: &Fleet, running: &mut Vec<Submitted<'_>>| {
        let store = fleet.objects("results", "r");
        running.retain(|job| {
            let Some(state) = phase(&store, &job.name) else {
                return true;
            };
            if !state.phase().is_final() {
                return true;
            }
            let said = format!(
                "{}: {}\nseed {seed}\n{}",
                job.name,
                state.reason,
                fleet.cluster.log()
            );
            assert_eq!(state.phase(), JobPhase::Complete, "{said}");
            ended.push(job.at.elapsed());
            check(fleet, &results, job);
            false
        });
    };
    let mut next_word = NEWS;
    while began.elapsed() < length {
        if began.elapsed() >= next_word {
            next_word += NEWS;
            eprintln!(
                "after {:.0} s: {} faults, {submitted} jobs submitted",
                began.elapsed().as_secs_f64(),
                storm.faults()
            );
        }
        if running.len() < 2
            && let Some(job) = submit(&fleet, &evidence[submitted % evidence.len()])
        {
            submitted += 1;
            running.push(job);
        }
        storm.next(&mut fleet);
        collect(&fleet, &mut running);
    }
    storm.calm(&mut fleet);
    let calm = Instant::now();
    wait_for("every job ends", Duration::from_secs(600), || {
        collect(&fleet, &mut running);
        running.is_empty().then_some(())
    });
    let after = calm.elapsed().as_secs_f64();
    ended.sort();
    assert!(!ended.is_empty(), "no job ended: the storm was too short");
    eprintln!(
        "seed {seed}: {} faults in {:.0} s: {}",
        storm.faults(),
        length.as_secs_f64(),
        storm.told()
    );
    eprintln!(
        "{} jobs, each as undisturbed; median {:.1} s, longest {:.1} s; the last ended {after:.1} s after the storm",
        ended.len(),
        ended[ended.len() / 2].as_secs_f64(),
        ended[ended.len() - 1].as_secs_f64(),
    );
    eprintln!(
        "takeovers of the coordinator, seconds: {:?}",
        storm.takeovers()
    );
}
