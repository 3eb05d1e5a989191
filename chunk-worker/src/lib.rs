//! The chunk worker: takes tasks from the queue, reads their bytes once, feeds carvers and engines
//! in one pass, and reports what starts in its core. Stateless.
//!
//! ```text
//! delivery -> wanted? -> read (pinned, prefetched) -> slot: hash, carve, YARA -> packs, clamd
//!          -> report -> durable -> ack
//! ```
//!
//! Buffers bound how many chunks are in memory; slots bound how many are scanned at once. A slot
//! is given back before the report is sent, so it never waits for a commit.

mod attacks;
mod context;
mod coverage;
mod gather;
mod memory;
mod metrics;
mod ordered;
mod processes;
mod read;
mod recovered;
mod scan;
mod sink;
mod task;
mod verdict;
mod virus;

pub use context::{ContextError, JobCache, JobContext, parse_timezone};

use metrics::Metrics;
use ramsift_engines::clamav::Clamd;
use ramsift_layers::source::{DiskCaches, Sources};
use ramsift_proto::Deployment;
use ramsift_queue::Queue;
use ramsift_store::{Ledger, Objects, Reporter};
use ramsift_telemetry::Readiness;
use ramsift_worker::Stop;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How a chunk worker works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in reports and logs.
    pub name: String,
    /// Chunks scanned at once.
    pub slots: usize,
    /// Time for one chunk in all carvers, and again in all rules.
    pub chunk_time: Duration,
    /// Time for one rule in one chunk.
    pub rule_time: Duration,
    /// Bytes that a chunk may read past its window to follow long artifacts.
    pub follow_budget: u64,
    /// Largest artifact that is recovered.
    pub max_artifact: usize,
    /// How long an outage of store, source or aggregator is waited out before a task is handed
    /// back (or, in one command, the job is given up).
    pub patience: Duration,
    /// How the services run: in one command there is no other worker.
    pub deployment: Deployment,
    /// How long running tasks may take after a stop before they are handed back.
    pub grace: Duration,
    /// What of objects is kept on this machine's disk while processes' memory is read.
    pub disk: Arc<DiskCaches>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "chunk-worker".into(),
            slots: std::thread::available_parallelism().map_or(2, usize::from),
            chunk_time: Duration::from_secs(300),
            rule_time: Duration::from_secs(10),
            follow_budget: 256 << 20,
            max_artifact: 64 << 20,
            patience: Duration::from_secs(600),
            deployment: Deployment::default(),
            grace: Duration::from_secs(25),
            disk: Arc::default(),
        }
    }
}

/// What a chunk worker needs from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where tasks come from.
    pub queue: Arc<dyn Queue>,
    /// Whether a task is still wanted.
    pub ledger: Arc<dyn Ledger>,
    /// Plans, rules, artifacts.
    pub objects: Arc<dyn Objects>,
    /// Where reports go.
    pub reporter: Arc<dyn Reporter>,
    /// Where evidence is read from.
    pub sources: Sources,
    /// clamd, where one is configured.
    pub clamd: Option<Clamd>,
    /// Told when the worker can and can't work.
    pub readiness: Readiness,
}

/// A worker and its shared state.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) jobs: JobCache,
    pub(crate) slots: Semaphore,
    pub(crate) buffers: read::BufferPool,
    /// One more slot, and buffers, for tasks of small captures: a worker's hands are full of a large one's chunks, which they
    /// need not wait for.
    pub(crate) small_slot: Semaphore,
    pub(crate) small_buffers: read::BufferPool,
    pub(crate) metrics: Metrics,
    /// Why the only clamd there is was given up.
    pub(crate) clamd_gone: Arc<OnceLock<String>>,
    pub(crate) stop: Stop,
}

/// Bytes of memory of a capture that is small.
pub(crate) const SMALL: u64 = 16 << 20;

/// Tasks of chunks that a worker takes before their answers: some are scanned, some read ahead, the rest waits for its
/// commit.
pub fn tasks_in_hand(slots: usize) -> usize {
    slots.saturating_mul(6)
}

/// Works until `stop` is cancelled, then hands back what is unfinished.
pub async fn run(config: Config, deps: Deps, stop: CancellationToken) {
    let slots = config.slots.max(1);
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
        jobs: JobCache::new(&config, &deps),
        slots: Semaphore::new(slots),
        // One chunk being scanned per slot, and for every two slots one read ahead.
        buffers: read::BufferPool::new(slots + slots.div_ceil(2)),
        small_slot: Semaphore::new(1),
        small_buffers: read::BufferPool::new(2),
        metrics: Metrics::new(),
        clamd_gone: Arc::default(),
        stop: stop.clone(),
        config,
        deps,
    });
    ramsift_worker::run(worker, life, means, stop).await;
}
