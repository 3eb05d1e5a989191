//! All four services in one process: in-process queue and ledger, no port opened.

use crate::config::Config;
use crate::setup::{self, LocalFinaliser, Specs, YaraVerdicts, finalise_info};
use anyhow::Result;
use ramsift_aggregator::{Aggregator, CommitLimits};
use ramsift_chunk_worker::tasks_in_hand;
use ramsift_coordinator::Coordinator;
use ramsift_engines::clamav::Clamd;
use ramsift_layers::source::{DiskCaches, Sources};
use ramsift_proto::Deployment;
use ramsift_queue::{MemoryQueue, Queue};
use ramsift_store::{Ledger, MemoryLedger, Objects};
use ramsift_telemetry::Readiness;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One command.
const EMBEDDED: Deployment = Deployment::Embedded;

/// Services that run in this process.
pub(crate) struct Embedded {
    pub(crate) coordinator: Coordinator,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    aggregator: Aggregator,
}

/// Chunk slots: one per processor unless configured.
pub(crate) fn slots(config: &Config) -> usize {
    match usize::try_from(config.worker.slots) {
        Ok(0) | Err(_) => std::thread::available_parallelism().map_or(2, usize::from),
        Ok(n) => n,
    }
}

/// The chunk worker's settings.
pub(crate) fn worker_config(
    config: &Config,
    name: &str,
    deployment: Deployment,
    disk: Arc<DiskCaches>,
) -> ramsift_chunk_worker::Config {
    let w = &config.worker;
    ramsift_chunk_worker::Config {
        name: name.to_owned(),
        slots: slots(config),
        chunk_time: Duration::from_secs(w.chunk_seconds),
        rule_time: Duration::from_secs(w.rule_seconds),
        follow_budget: w.follow_bytes,
        max_artifact: usize::try_from(w.max_artifact_bytes).unwrap_or(usize::MAX),
        patience: deployment.patience(Duration::from_secs(w.patience_seconds)),
        deployment,
        grace: deployment.grace(Duration::from_secs(w.grace_seconds)),
        disk,
    }
}

/// Starts the services for these jobs.
pub(crate) async fn start(
    config: &Config,
    objects: Arc<dyn Objects>,
    sources: Sources,
    clamd: Option<Clamd>,
    jobs: Vec<String>,
) -> Result<Embedded> {
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new());
    let ledger: Arc<dyn Ledger> = Arc::new(MemoryLedger::default());
    let limits = CommitLimits {
        bytes: usize::try_from(config.aggregator.commit_bytes).unwrap_or(usize::MAX),
        age: EMBEDDED.commit_age(Duration::from_millis(config.aggregator.commit_milliseconds)),
        reports: tasks_in_hand(slots(config)),
        ..CommitLimits::default()
    };
    let aggregator = Aggregator::new(objects.clone(), ledger.clone(), limits);
    let info = finalise_info(config, clamd.as_ref())?;
    let readiness = Readiness::default();
    let coordinator = Coordinator::new(
        ramsift_coordinator::Config {
            name: "embedded".into(),
            poll: Duration::from_millis(50),
            deployment: EMBEDDED,
            only: Some(jobs),
            unpack: config.unpack.limits(),
            spill: setup::temporary(&config.worker.spill),
            ..ramsift_coordinator::Config::default()
        },
        ramsift_coordinator::Deps {
            queue: queue.clone(),
            ledger: ledger.clone(),
            objects: objects.clone(),
            sources: sources.clone(),
            verdicts: Arc::new(YaraVerdicts),
            specs: Arc::new(Specs),
            finaliser: Arc::new(LocalFinaliser {
                aggregator: aggregator.clone(),
                info,
            }),
            readiness: readiness.clone(),
        },
    );
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (c, s) = (coordinator.clone(), stop.clone());
    tasks.spawn(async move { c.run(s).await });
    let disk = setup::disk(config);
    let worker = worker_config(config, "embedded", EMBEDDED, disk.clone());
    let deps = ramsift_chunk_worker::Deps {
        queue: queue.clone(),
        ledger: ledger.clone(),
        objects: objects.clone(),
        reporter: Arc::new(aggregator.clone()),
        sources: sources.clone(),
        clamd,
        readiness: readiness.clone(),
    };
    tasks.spawn(ramsift_chunk_worker::run(worker, deps, stop.clone()));
    let deps = ramsift_structured_worker::Deps {
        queue,
        ledger,
        objects,
        reporter: Arc::new(aggregator.clone()),
        sources,
        readiness,
    };
    let structured = setup::structured(config, "embedded".into(), EMBEDDED, disk).await?;
    tasks.spawn(ramsift_structured_worker::run(
        structured,
        deps,
        stop.clone(),
    ));
    Ok(Embedded {
        coordinator,
        stop,
        tasks,
        aggregator,
    })
}

impl Embedded {
    /// Stops the services; what is settled stays, the rest is done when the scan goes on.
    pub(crate) async fn stop(mut self) {
        self.aggregator.drain();
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
