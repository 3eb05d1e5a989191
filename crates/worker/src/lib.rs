//! The life of a worker, whatever its tasks are: it takes them from lanes, tries each until there is a report, waits
//! outages out, hands the report over, and answers the queue.
//!
//! ```text
//! delivery -> wanted? -> perform -> report -> durable -> ack
//!                 |         |          |
//!                 |         |          +- not taken: again, until the patience ends -> hand back, probe
//!                 |         +- an outage: again, until the patience ends -> hand back, probe
//!                 |         +- another worker may be able to: pass on, twice
//!                 |         +- wrong: a report that says so
//!                 +- no: ack
//! ```
//!
//! What a kind of worker does with a task, and what it needs for it, is its own ([`Tasks`]).

mod gate;
mod lanes;
mod life;
mod metrics;

pub use lanes::run;

use async_trait::async_trait;
use ramsift_proto::Deployment;
use ramsift_proto::v1::Task;
use ramsift_queue::{Lane, Queue};
use ramsift_store::{Ledger, Objects, Report, Reporter};
use ramsift_telemetry::Readiness;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// How a worker waits.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long an outage is waited out before a task is handed back (or, in one command, the job is given up).
    pub patience: Duration,
    /// How the services run: in one command there is no other worker.
    pub deployment: Deployment,
}

/// What every worker needs from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where tasks come from.
    pub queue: Arc<dyn Queue>,
    /// Whether a task is still wanted.
    pub ledger: Arc<dyn Ledger>,
    /// Where jobs are.
    pub objects: Arc<dyn Objects>,
    /// Where reports go.
    pub reporter: Arc<dyn Reporter>,
    /// Told when the worker can and can't work.
    pub readiness: Readiness,
}

/// When a worker ends.
#[derive(Clone, Debug)]
pub struct Stop {
    /// No more tasks are begun.
    pub stop: CancellationToken,
    /// The grace period is over: what still runs is handed back.
    pub abandon: CancellationToken,
}

impl Stop {
    /// Ends with `stop`; what runs then has `grace` to finish.
    pub fn new(stop: CancellationToken, grace: Duration) -> Self {
        let abandon = CancellationToken::new();
        let (stopping, over) = (stop.clone(), abandon.clone());
        tokio::spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(grace).await;
            over.cancel();
        });
        Self { stop, abandon }
    }

    /// Waits, unless the worker stops.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Another try would find the same; with `fatal` the job can't go on, else this task of it can't.
    Wrong {
        /// What is wrong.
        why: String,
        /// The job ends with it.
        fatal: bool,
    },
    /// This worker can't; one that is set up otherwise may.
    Elsewhere {
        /// What it lacks.
        why: String,
        /// The job ends with it when no worker can.
        fatal: bool,
    },
    /// What every job would meet: worth another try, here or elsewhere.
    Outage(String),
    /// Worth another try at once, which goes another way.
    Again,
    /// The worker stops: not its to finish.
    Stopped(String),
    /// The attempt failed on a defect of this program.
    Defect(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Outage(why)
    }
}

/// What a kind of worker does with its tasks.
#[async_trait]
pub trait Tasks: Send + Sync + fmt::Debug + 'static {
    /// The lanes that it takes tasks from, and how many unanswered ones of each at a time. Suspects run one at a time,
    /// with nothing beside them.
    fn lanes(&self) -> Vec<(Lane, usize)>;

    /// What a task is, for metrics.
    fn kind(&self, task: &Task) -> &'static str;

    /// The span of an attempt.
    fn span(&self, task: &Task) -> Span;

    /// Tasks that are worked on, and how many can be at once.
    fn slots(&self) -> (usize, usize);

    /// Tries a task.
    async fn perform(self: Arc<Self>, task: &Task) -> Result<Report, Trouble>;

    /// The report that a task failed.
    fn failed(&self, task: &Task, why: String, fatal: bool) -> Report;

    /// Whether what the task needs of its own job (plan, evidence, engines) is in reach. An error is an outage; what is
    /// wrong with the job alone is none.
    async fn probe(&self, task: &Task) -> Result<(), String>;

    /// A task has ended, as metrics call it, after this time.
    fn ended(&self, _task: &Task, _outcome: &'static str, _taken: Duration) {}
}
