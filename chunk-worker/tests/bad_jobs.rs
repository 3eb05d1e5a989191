//! What is wrong with one job stays with it: the worker goes on with the others.

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use ramsift_chunk_worker::{Config, Deps, run};
use ramsift_layers::source::{Allowed, S3Config, Sources};
use ramsift_layers::{ChunkParams, format};
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{ChunkWork, JobPhase, JobSpec, JobState, Outcome, Task, TaskReport};
use ramsift_queue::{Lane, MemoryQueue, Message, Queue};
use ramsift_store::job::{rules_key, to_json};
use ramsift_store::objects::ObjectMeta;
use ramsift_store::{
    Ack, Keys, LocalObjects, MemoryLedger, ObjectError, Objects, Plan, Report, ReportError,
    Reporter,
};
use ramsift_telemetry::Readiness;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(120);
/// More tasks than one worker takes at a time.
const TASKS: u64 = 8;

/// Takes every report.
#[derive(Debug, Default)]
struct Reports {
    all: Mutex<Vec<TaskReport>>,
    more: Notify,
}

#[async_trait]
impl Reporter for Reports {
    async fn report(&self, report: &Report) -> Result<Ack, ReportError> {
        self.all
            .lock()
            .expect("not poisoned")
            .push(report.header.clone());
        self.more.notify_waiters();
        Ok(Ack::Durable)
    }

    async fn check(&self) -> Result<(), ReportError> {
        Ok(())
    }
}

impl Reports {
    /// Waits for so many reports of a job.
    async fn of(&self, job: &str, n: usize) -> Vec<TaskReport> {
        let waiting = async {
            loop {
                let more = self.more.notified();
                let all = self.all.lock().expect("not poisoned").clone();
                let of: Vec<_> = all.into_iter().filter(|r| r.job == job).collect();
                if of.len() >= n {
                    return of;
                }
                more.await;
            }
        };
        let done = tokio::time::timeout(HANGS, waiting).await;
        done.unwrap_or_else(|_| panic!("{job}: not {n} reports within {HANGS:?}"))
    }
}

/// A store that fails for some keys, as one in trouble does.
#[derive(Debug)]
struct Failing {
    inner: LocalObjects,
    prefix: String,
}

impl Failing {
    fn look(&self, key: &str) -> Result<(), ObjectError> {
        if !self.prefix.is_empty() && key.starts_with(&self.prefix) {
            return Err(ObjectError::Failed {
                what: key.into(),
                detail: "the store is overloaded".into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Objects for Failing {
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.inner.put(key, data).await
    }
    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.inner.put_new(key, data).await
    }
    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError> {
        self.inner.put_over(key, data, etag).await
    }
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.inner.put_file(key, path).await
    }
    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.inner.put_file_new(key, path).await
    }
    async fn get(&self, key: &str) -> Result<(Bytes, String), ObjectError> {
        self.look(key)?;
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        self.look(key)?;
        self.inner.get_range(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        self.look(key)?;
        self.inner.head(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.inner.list(prefix).await
    }
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        self.inner.list_folders(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.inner.delete(key).await
    }
    fn url(&self, key: &str) -> String {
        self.inner.url(key)
    }
    fn path(&self, key: &str) -> Option<PathBuf> {
        self.inner.path(key)
    }
}

struct World {
    dir: tempfile::TempDir,
    objects: Arc<Failing>,
    queue: Arc<MemoryQueue>,
    reports: Arc<Reports>,
}

fn world(failing: &str) -> World {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(dir.path().join("in")).expect("folder");
    std::fs::write(dir.path().join("in/a.mem"), vec![7; 1 << 16]).expect("written");
    std::fs::write(dir.path().join("other"), vec![7; 1 << 16]).expect("written");
    let inner = LocalObjects::open(&dir.path().join("store")).expect("a store");
    World {
        dir,
        objects: Arc::new(Failing {
            inner,
            prefix: failing.into(),
        }),
        queue: Arc::default(),
        reports: Arc::default(),
    }
}

impl World {
    async fn state(&self, job: &str, phase: JobPhase) {
        let state = JobState {
            job: job.into(),
            phase: phase.into(),
            ..JobState::default()
        };
        let key = Keys::new(job).state();
        let put = self.objects.put(&key, to_json(&state).expect("JSON"));
        put.await.expect("stored");
    }

    /// Stores a job of one file, whose plan is changed so, and publishes tasks of it.
    async fn job(&self, job: &str, tasks: u64, change: impl FnOnce(&mut Plan)) {
        let path = self.dir.path().join("in/a.mem").display().to_string();
        let sources = Sources::new(S3Config::default());
        let source = sources.open(&path).await.expect("opened");
        let chunks = ChunkParams {
            size: 1 << 16,
            overlap: 4096,
            ..ChunkParams::default()
        };
        let mut plan = Plan {
            spec: JobSpec {
                job: job.into(),
                source: path,
                unstructured: true,
                chunk_size: 1 << 16,
                overlap: 4096,
                ..JobSpec::default()
            },
            pin: source.pin().clone(),
            layout: format::open(source.as_ref()).await.expect("raw").layout,
            chunks,
            chunk_count: 1,
            views: Vec::new(),
            reference_time: None,
        };
        change(&mut plan);
        let key = Keys::new(job).plan();
        let put = self.objects.put(&key, to_json(&plan).expect("JSON"));
        put.await.expect("stored");
        self.state(job, JobPhase::Running).await;
        for i in 0..tasks {
            let task = Task {
                job: job.into(),
                task: format!("chunk-{i}"),
                publication: 1,
                work: Some(Work::Chunk(ChunkWork {
                    index: i,
                    file_start: 0,
                    file_end: 1 << 16,
                    suspect: false,
                })),
            };
            let message = Message {
                body: task.encode_to_vec().into(),
                ..Message::default()
            };
            self.queue
                .publish(Lane::Chunks, message)
                .await
                .expect("published");
        }
    }

    fn start(&self, patience: Duration) -> CancellationToken {
        let stop = CancellationToken::new();
        let allowed = self.dir.path().join("in").display().to_string();
        let config = Config {
            slots: 1,
            patience,
            ..Config::default()
        };
        let deps = Deps {
            queue: self.queue.clone(),
            ledger: Arc::new(MemoryLedger::default()),
            objects: self.objects.clone(),
            reporter: self.reports.clone(),
            sources: Sources::new(S3Config::default())
                .only(Allowed::parse(&allowed).expect("a list")),
            clamd: None,
            readiness: Readiness::default(),
        };
        tokio::spawn(run(config, deps, stop.clone()));
        stop
    }

    /// A job that is as it should be gets done.
    async fn others_go_on(&self) {
        self.job("good", 1, |_| {}).await;
        let done = self.reports.of("good", 1).await;
        assert_eq!(done[0].outcome(), Outcome::Done, "{:?}", done[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_job_fails_with_its_reason_and_others_go_on() {
    type Change = Box<dyn FnOnce(&mut Plan, &World) + Send>;
    let digest = "ab".repeat(32);
    let rules = digest.clone();
    let bad: Vec<(&str, &str, bool, Change)> = vec![
        (
            "carver",
            "nonsense",
            true,
            Box::new(|p, _| p.spec.carvers = vec!["nonsense".into()]),
        ),
        (
            "zone",
            "Mars/Olympus",
            true,
            Box::new(|p, _| p.spec.timezone = "Mars/Olympus".into()),
        ),
        (
            "rules",
            "does not exist",
            true,
            Box::new(move |p, _| p.spec.rules_digest = rules),
        ),
        (
            "clamav",
            "clamd",
            false,
            Box::new(|p, _| p.spec.clamav = true),
        ),
        (
            "forged",
            "sources.allow",
            true,
            Box::new(|p, w| {
                let other = w.dir.path().join("other");
                let s = ramsift_layers::source::FileSource::open(&other).expect("opened");
                p.pin = ramsift_layers::ByteSource::pin(&s).clone();
            }),
        ),
    ];
    for (what, says, fatal, change) in bad {
        let w = world("");
        w.job("bad", TASKS, |p| change(p, &w)).await;
        let stop = w.start(Duration::from_secs(600));
        w.others_go_on().await;
        for r in w.reports.of("bad", TASKS as usize).await {
            assert_eq!(r.outcome(), Outcome::Failed, "{what}: {r:?}");
            assert!(r.reason.contains(says), "{what}: {}", r.reason);
            assert_eq!(r.fatal, fatal, "{what}");
        }
        stop.cancel();
    }
    // Rules that are none.
    let w = world("");
    let key = rules_key(&digest);
    let put = w.objects.put(&key, "no rules".into());
    put.await.expect("stored");
    w.job("bad", 1, |p| p.spec.rules_digest = digest).await;
    let stop = w.start(Duration::from_secs(600));
    let r = w.reports.of("bad", 1).await.remove(0);
    assert!(r.fatal && r.outcome() == Outcome::Failed, "{r:?}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_out_an_outage_looks_whether_its_job_still_lives() {
    for ends in ["cancelled", "to be cancelled", "failed", "gone"] {
        let w = world("rules/");
        w.job("bad", TASKS, |p| p.spec.rules_digest = "ab".repeat(32))
            .await;
        // Without patience the worker takes no tasks until what this one needs is in reach.
        let stop = w.start(Duration::ZERO);
        w.job("good", 1, |_| {}).await;
        let keys = Keys::new("bad");
        match ends {
            "cancelled" => w.state("bad", JobPhase::Cancelled).await,
            "failed" => w.state("bad", JobPhase::Failed).await,
            "gone" => {
                for key in [keys.state(), keys.plan()] {
                    w.objects.delete(&key).await.expect("deleted");
                }
            }
            _ => {
                let key = keys.cancel();
                let put = w.objects.put(&key, "{}".into());
                put.await.expect("stored");
            }
        }
        let done = w.reports.of("good", 1).await;
        assert_eq!(done[0].outcome(), Outcome::Done, "{ends}");
        stop.cancel();
    }
}
