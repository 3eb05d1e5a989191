//! What is wrong with one job stays with it: the worker goes on with the others.

use async_trait::async_trait;
use prost::Message as _;
use ramsift_layers::source::{Allowed, FileSource, S3Config, Sources};
use ramsift_layers::{ByteSource, ChunkParams, SourcePin, format};
use ramsift_proto::Deployment;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{JobPhase, JobSpec, JobState, Outcome, Task, TaskReport, ViewWork};
use ramsift_queue::{Lane, MemoryQueue, Message, Queue};
use ramsift_store::job::{read, to_json};
use ramsift_store::{
    Ack, Keys, LocalObjects, MemoryLedger, Objects, Plan, Report, ReportError, Reporter,
};
use ramsift_structured_worker::{Config, Deps, run};
use ramsift_telemetry::Readiness;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(120);

/// Takes every report.
#[derive(Debug, Default)]
struct Reports {
    all: Mutex<Vec<TaskReport>>,
    more: Notify,
    /// Reports that are still to be met by an outage, and the attempts that were.
    outage: AtomicUsize,
    turned_away: Mutex<Vec<String>>,
}

#[async_trait]
impl Reporter for Reports {
    async fn report(&self, report: &Report) -> Result<Ack, ReportError> {
        let less = |n: usize| n.checked_sub(1);
        let out = self.outage.fetch_update(SeqCst, SeqCst, less).is_ok();
        if out {
            let mut away = self.turned_away.lock().expect("not poisoned");
            away.push(report.header.attempt.clone());
            return Err(ReportError {
                at: "the aggregator".into(),
                detail: "the aggregator is out of reach".into(),
                refused: false,
            });
        }
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
    /// Waits for the report on a job.
    async fn of(&self, job: &str) -> TaskReport {
        let waiting = async {
            loop {
                let more = self.more.notified();
                let all = self.all.lock().expect("not poisoned").clone();
                if let Some(r) = all.into_iter().find(|r| r.job == job) {
                    return r;
                }
                more.await;
            }
        };
        let done = tokio::time::timeout(HANGS, waiting).await;
        done.unwrap_or_else(|_| panic!("{job}: no report within {HANGS:?}"))
    }
}

struct World {
    dir: tempfile::TempDir,
    objects: Arc<LocalObjects>,
    queue: Arc<MemoryQueue>,
    reports: Arc<Reports>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("in")).expect("folder");
        for name in ["in/a.mem", "other"] {
            std::fs::write(dir.path().join(name), vec![7; 1 << 16]).expect("written");
        }
        let objects = LocalObjects::open(&dir.path().join("store")).expect("a store");
        Self {
            dir,
            objects: Arc::new(objects),
            queue: Arc::default(),
            reports: Arc::default(),
        }
    }

    async fn put(&self, key: &str, data: impl Into<bytes::Bytes>) {
        let put = self.objects.put(key, data.into());
        put.await.expect("stored");
    }

    /// Has the evidence of a job lie in an object store.
    async fn move_to_s3(&self, job: &str) {
        let key = Keys::new(job).plan();
        let (mut plan, _): (Plan, _) = read(self.objects.as_ref(), &key).await.expect("a plan");
        plan.pin = SourcePin::S3 {
            bucket: "evidence".into(),
            key: "a.mem".into(),
            version_id: None,
            etag: "\"1\"".into(),
            size: plan.pin.size(),
            mtime_ns: 0,
            sha256: None,
        };
        self.put(&key, to_json(&plan).expect("JSON")).await;
    }

    /// Stores a job and publishes a view of it. `None`: a plan that is damaged.
    async fn job(&self, job: &str, view: &str, file: Option<&str>) {
        let keys = Keys::new(job);
        match file {
            Some(file) => {
                let source = FileSource::open(&self.dir.path().join(file)).expect("opened");
                let plan = Plan {
                    spec: JobSpec {
                        job: job.into(),
                        structured: true,
                        ..JobSpec::default()
                    },
                    pin: source.pin().clone(),
                    layout: format::open(&source).await.expect("raw").layout,
                    chunks: ChunkParams::default(),
                    chunk_count: 1,
                    views: vec![view.into()],
                    reference_time: None,
                };
                self.put(&keys.plan(), to_json(&plan).expect("JSON")).await;
            }
            None => self.put(&keys.plan(), "no plan").await,
        }
        let state = JobState {
            job: job.into(),
            phase: JobPhase::Running.into(),
            ..JobState::default()
        };
        self.put(&keys.state(), to_json(&state).expect("JSON"))
            .await;
        let task = Task {
            job: job.into(),
            task: format!("view-{view}"),
            publication: 1,
            work: Some(Work::View(ViewWork { view: view.into() })),
        };
        let message = Message {
            body: task.encode_to_vec().into(),
            ..Message::default()
        };
        let published = self.queue.publish(Lane::Views, message);
        published.await.expect("published");
    }

    fn start(&self) -> CancellationToken {
        let allowed = self.dir.path().join("in").display().to_string();
        let allowed = Allowed::parse(&allowed).expect("a list");
        let sources = Sources::new(S3Config::default()).only(allowed);
        let config = Config {
            slots: 1,
            ..Config::default()
        };
        self.start_with(config, sources)
    }

    fn start_with(&self, config: Config, sources: Sources) -> CancellationToken {
        let stop = CancellationToken::new();
        let deps = Deps {
            queue: self.queue.clone(),
            ledger: Arc::new(MemoryLedger::default()),
            objects: self.objects.clone(),
            reporter: self.reports.clone(),
            sources,
            readiness: Readiness::default(),
        };
        tokio::spawn(run(config, deps, stop.clone()));
        stop
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_job_fails_with_its_reason_and_others_go_on() {
    // View, evidence, what is said.
    let bad = [
        ("sha256", None, "damaged"),
        ("system", None, "damaged"),
        ("sha256", Some("other"), "sources.allow"),
        ("content", Some("in/a.mem"), "kernel.json does not exist"),
    ];
    for (view, file, says) in bad {
        let w = World::new();
        w.job("bad", view, file).await;
        let stop = w.start();
        w.job("good", "sha256", Some("in/a.mem")).await;
        let good = w.reports.of("good").await;
        assert_eq!(good.outcome(), Outcome::Done, "{good:?}");
        let r = w.reports.of("bad").await;
        assert_eq!(r.outcome(), Outcome::Failed, "{view}: {r:?}");
        assert!(r.reason.contains(says), "{view}: {}", r.reason);
        stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_built_is_reported_when_the_aggregator_is_back() {
    let w = World::new();
    w.reports.outage.store(3, SeqCst);
    w.job("job", "sha256", Some("in/a.mem")).await;
    let stop = w.start();
    let r = w.reports.of("job").await;
    assert_eq!(r.outcome(), Outcome::Done, "{r:?}");
    // One attempt, not one for each try.
    let away = w.reports.turned_away.lock().expect("not poisoned").clone();
    assert_eq!(away, [r.attempt.as_str(); 3]);
    stop.cancel();
}

/// An object store that takes connections and closes them at once.
async fn dead_store() -> S3Config {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("bound");
    let at = listener.local_addr().expect("an address");
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    S3Config {
        endpoint: format!("http://{at}").into(),
        access_key: "key".into(),
        secret_key: "secret".into(),
        path_style: true,
        ..S3Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_stays_out_of_reach_ends_a_job_of_one_command_and_waits_in_a_cluster() {
    for view in ["sha256", "system"] {
        let w = World::new();
        w.job("job", view, Some("in/a.mem")).await;
        w.move_to_s3("job").await;
        let config = Config {
            patience: Duration::ZERO,
            deployment: Deployment::Embedded,
            ..Config::default()
        };
        let stop = w.start_with(config, Sources::new(dead_store().await));
        let r = w.reports.of("job").await;
        assert!(r.fatal && r.outcome() == Outcome::Failed, "{view}: {r:?}");
        assert!(r.reason.contains("s3://evidence/a.mem"), "{}", r.reason);
        stop.cancel();
    }
    // The worker of a cluster hands the task back, takes no other, and says why.
    let w = World::new();
    w.job("job", "sha256", Some("in/a.mem")).await;
    w.move_to_s3("job").await;
    let readiness = Readiness::default();
    let config = Config {
        patience: Duration::ZERO,
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let deps = Deps {
        queue: w.queue.clone(),
        ledger: Arc::new(MemoryLedger::default()),
        objects: w.objects.clone(),
        reporter: w.reports.clone(),
        sources: Sources::new(dead_store().await),
        readiness: readiness.clone(),
    };
    tokio::spawn(run(config, deps, stop.clone()));
    let waits = async {
        loop {
            let why = readiness.blockers();
            let lane = w.queue.look(Lane::Views).await.expect("a lane");
            let back = lane.is_some_and(|l| l.waiting == 1);
            if back
                && why
                    .iter()
                    .any(|b| b.starts_with("work: ") && b.contains("s3://evidence"))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(HANGS, waits).await;
    waited.unwrap_or_else(|_| panic!("{:?}", readiness.blockers()));
    assert!(w.reports.all.lock().expect("not poisoned").is_empty());
    stop.cancel();
}
