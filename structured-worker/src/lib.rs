//! The structured worker: opens the whole image through a block cache, takes the anchors that the
//! chunk workers found (or looks for them in one streaming pass, when no chunks are scanned), and
//! builds views.

mod alone;
mod anchors;
mod artifacts;
mod build;
mod glance;
mod lists;
mod metrics;
mod parts;
mod rows;
mod sha256;
mod symbols;

pub use alone::{Alone, AloneError, Means, view_alone, with_machine};
pub use glance::{Glance, Prospect, glance};
pub use rows::{batch, table_name};
pub use symbols::{ObjectFiles, symbol_store};

pub use sha256::SHA256;

use async_trait::async_trait;
use build::{build, failed};
use metrics::Metrics;
use ramsift_layers::FileOffset;
use ramsift_layers::source::{DiskCaches, Sources};
use ramsift_proto::Deployment;
use ramsift_proto::v1::Task;
use ramsift_proto::v1::task::Work;
use ramsift_queue::{Lane, Queue};
use ramsift_store::job::read;
use ramsift_store::{Keys, Ledger, Objects, Plan, Report, Reporter};
use ramsift_telemetry::Readiness;
use ramsift_worker::{Stop, Tasks, Trouble};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// How a structured worker works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in reports and logs.
    pub name: String,
    /// Tasks at once.
    pub slots: usize,
    /// What kernels are read with; the tasks share the cache.
    pub means: Means,
    /// What of objects is kept on this machine's disk.
    pub disk: Arc<DiskCaches>,
    /// How long an outage is waited out before a task is handed back.
    pub patience: Duration,
    /// How the services run: in one command there is no other worker.
    pub deployment: Deployment,
    /// How long running tasks may take after a stop before they are handed back.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "structured-worker".into(),
            slots: 2,
            means: Means {
                cache: 128 << 20,
                symbols: None,
            },
            disk: Arc::default(),
            patience: Duration::from_secs(600),
            deployment: Deployment::default(),
            grace: Duration::from_secs(25),
        }
    }
}

/// What a structured worker needs from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where tasks come from.
    pub queue: Arc<dyn Queue>,
    /// Whether a task is still wanted.
    pub ledger: Arc<dyn Ledger>,
    /// Plans and records.
    pub objects: Arc<dyn Objects>,
    /// Where reports go.
    pub reporter: Arc<dyn Reporter>,
    /// Where evidence is read from.
    pub sources: Sources,
    /// Told when the worker can and can't work.
    pub readiness: Readiness,
}

#[derive(Debug)]
struct Worker {
    config: Config,
    deps: Deps,
    /// Tasks that are worked on.
    busy: AtomicUsize,
    metrics: Metrics,
}

/// Works until `stop` is cancelled, then hands back what is unfinished.
pub async fn run(config: Config, deps: Deps, stop: CancellationToken) {
    let stop = Stop::new(stop, config.grace);
    let life = ramsift_worker::Config {
        patience: config.patience,
        deployment: config.deployment,
    };
    let means = ramsift_worker::Deps {
        queue: deps.queue.clone(),
        ledger: deps.ledger.clone(),
        objects: deps.objects.clone(),
        reporter: deps.reporter.clone(),
        readiness: deps.readiness.clone(),
    };
    let worker = Arc::new(Worker {
        config,
        deps,
        busy: AtomicUsize::new(0),
        metrics: Metrics::new(),
    });
    ramsift_worker::run(worker, life, means, stop).await;
}

/// Which part a task is for, for metrics.
fn part_name(task: &Task) -> &'static str {
    match &task.work {
        Some(Work::View(v)) if v.view == SHA256 => SHA256,
        Some(Work::View(v)) => parts::Part::of(&v.view).map_or("unknown", parts::Part::name),
        _ => "unknown",
    }
}

/// A task that is worked on, until dropped.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Tasks for Worker {
    fn lanes(&self) -> Vec<(Lane, usize)> {
        vec![(Lane::Views, self.config.slots.max(1))]
    }

    fn kind(&self, _: &Task) -> &'static str {
        "view"
    }

    fn span(&self, task: &Task) -> Span {
        tracing::info_span!("build view", job = %task.job, task = %task.task)
    }

    fn slots(&self) -> (usize, usize) {
        (self.busy.load(Ordering::Relaxed), self.config.slots.max(1))
    }

    async fn perform(self: Arc<Self>, task: &Task) -> Result<Report, Trouble> {
        let _busy = Busy::new(&self.busy);
        build(&self, task).await
    }

    fn failed(&self, task: &Task, why: String, fatal: bool) -> Report {
        let mut report = failed(self, task, why);
        report.header.fatal = fatal;
        report
    }

    async fn probe(&self, task: &Task) -> Result<(), String> {
        let keys = Keys::new(&task.job);
        let plan = match read::<Plan>(self.deps.objects.as_ref(), &keys.plan()).await {
            Ok((plan, _)) => plan,
            Err(e) if e.is_content() => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        let looked = async {
            let source = self.deps.sources.open_pinned(&plan.pin).await?;
            source.read_at(FileOffset(0), &mut [0]).await
        };
        match looked.await {
            // What no other try would change is for the task to say.
            Err(e) if !e.is_content() && !e.is_fatal() => Err(e.to_string()),
            _ => Ok(()),
        }
    }

    fn ended(&self, task: &Task, outcome: &'static str, taken: Duration) {
        self.metrics.ended(part_name(task), outcome, taken);
    }
}
