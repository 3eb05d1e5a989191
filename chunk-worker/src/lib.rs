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
mod gate;
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
use ramsift_queue::{Lane, Queue, QueueError};
use ramsift_store::{Ledger, Objects, Reporter};
use ramsift_telemetry::Readiness;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
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
    pub(crate) metrics: Metrics,
    pub(crate) gate: gate::Gate,
    pub(crate) passed: task::Passed,
    /// Why the only clamd there is was given up.
    pub(crate) clamd_gone: Arc<OnceLock<String>>,
    pub(crate) stop: CancellationToken,
    /// Set when the grace period is over: what still waits gives up.
    pub(crate) abandon: CancellationToken,
}

/// Tasks of chunks that a worker takes before their answers: some are scanned, some read ahead, the rest waits for its
/// commit.
pub fn tasks_in_hand(slots: usize) -> usize {
    slots.saturating_mul(6)
}

/// Works until `stop` is cancelled, then hands back what is unfinished.
pub async fn run(config: Config, deps: Deps, stop: CancellationToken) {
    let slots = config.slots.max(1);
    let abandon = CancellationToken::new();
    let worker = Arc::new(Worker {
        jobs: JobCache::new(&config, &deps),
        slots: Semaphore::new(slots),
        // One chunk being scanned per slot, and for every two slots one read ahead.
        buffers: read::BufferPool::new(slots + slots.div_ceil(2)),
        metrics: Metrics::new(),
        gate: gate::Gate::new(),
        passed: task::Passed::default(),
        clamd_gone: Arc::default(),
        stop: stop.clone(),
        abandon: abandon.clone(),
        config,
        deps,
    });
    metrics::observe_worker(&worker);
    let mut lanes = JoinSet::new();
    let prefetch = u16::try_from(tasks_in_hand(slots)).unwrap_or(u16::MAX);
    lanes.spawn(serve(worker.clone(), Lane::Chunks, prefetch));
    lanes.spawn(serve(worker.clone(), Lane::Suspects, 1));
    let grace = worker.config.grace;
    tokio::spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
        abandon.cancel();
    });
    while lanes.join_next().await.is_some() {}
}

/// Takes tasks of one lane until the worker stops; subscribes again when the broker went away.
async fn serve(worker: Arc<Worker>, lane: Lane, prefetch: u16) {
    let part = lane.name();
    let mut wait = Duration::from_millis(200);
    let mut running = JoinSet::new();
    while !worker.stop.is_cancelled() {
        worker.deps.readiness.block(part, "subscribing");
        let subscribed = tokio::select! {
            r = worker.deps.queue.consume(lane, prefetch) => r,
            () = worker.stop.cancelled() => break,
        };
        let broke = match subscribed {
            Ok(mut consumer) => {
                worker.deps.readiness.ready(part);
                wait = Duration::from_millis(200);
                consume(&worker, lane, consumer.as_mut(), &mut running).await
            }
            Err(e) => Some(e),
        };
        let Some(e) = broke else { break };
        worker.deps.readiness.block(part, e.to_string());
        tracing::warn!(lane = part, error = %e, "queue lost, trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = worker.stop.cancelled() => {}
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
    worker.deps.readiness.block(part, "stopping");
    while running.join_next().await.is_some() {}
}

/// Takes tasks from one subscription until it breaks (the error) or the worker stops (none).
async fn consume(
    worker: &Arc<Worker>,
    lane: Lane,
    consumer: &mut dyn ramsift_queue::Consumer,
    running: &mut JoinSet<()>,
) -> Option<QueueError> {
    let done = if lane == Lane::Suspects {
        suspects(worker, consumer).await
    } else {
        chunks(worker, lane, consumer, running).await
    };
    done.err()
}

/// Many tasks side by side, while the gate is open.
async fn chunks(
    worker: &Arc<Worker>,
    lane: Lane,
    consumer: &mut dyn ramsift_queue::Consumer,
    running: &mut JoinSet<()>,
) -> Result<(), QueueError> {
    loop {
        while running.try_join_next().is_some() {}
        let delivery = tokio::select! {
            biased;
            // What the broker sent ahead goes back at once, not when the last task has ended.
            () = worker.stop.cancelled() => return consumer.pause().await,
            () = worker.gate.closed() => {
                consumer.pause().await?;
                tokio::select! {
                    () = worker.gate.open() => {}
                    () = worker.stop.cancelled() => return Ok(()),
                }
                consumer.resume().await?;
                continue;
            }
            d = consumer.next() => d?,
        };
        let worker = worker.clone();
        running.spawn(async move {
            let Some(_pass) = worker.gate.enter() else {
                if let Err(e) = delivery.put_back().await {
                    tracing::warn!(error = %e, "answer did not reach the queue");
                }
                return;
            };
            task::handle(worker.clone(), lane, delivery).await;
        });
    }
}

/// One task at a time, and nothing beside it.
async fn suspects(
    worker: &Arc<Worker>,
    consumer: &mut dyn ramsift_queue::Consumer,
) -> Result<(), QueueError> {
    loop {
        let next = async {
            worker.gate.in_reach().await;
            consumer.next().await
        };
        let delivery = tokio::select! {
            biased;
            () = worker.stop.cancelled() => return consumer.pause().await,
            d = next => d?,
        };
        let _alone = worker.gate.alone().await;
        task::handle(worker.clone(), Lane::Suspects, delivery).await;
    }
}
