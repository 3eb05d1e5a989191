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

use build::{build, failed};
use metrics::Metrics;
use prost::Message as _;
use ramsift_layers::FileOffset;
use ramsift_layers::source::{DiskCaches, Sources};
use ramsift_proto::Deployment;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{Outcome, Task};
use ramsift_queue::{Consumer, Delivery, Lane, Queue, QueueError};
use ramsift_store::job::{is_over, read};
use ramsift_store::ledger::Wanted;
use ramsift_store::{Ack, Keys, Ledger, Objects, Plan, Reporter};
use ramsift_telemetry::{Readiness, link, set_parent};
pub use sha256::SHA256;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

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
    stop: CancellationToken,
    /// Set when the grace period is over: what still runs is handed back.
    abandon: CancellationToken,
    /// The job whose task met an outage that outlasted the patience: no tasks are taken until a probe of what it needs succeeds.
    outage: watch::Sender<Option<String>>,
    /// Tasks that were passed on, and how often.
    passed: Mutex<BTreeMap<(String, String), u32>>,
    /// Tasks that are worked on.
    busy: AtomicUsize,
    metrics: Metrics,
}

impl Worker {
    /// Notes that a task is to be passed on; whether it was often enough.
    fn passed_often(&self, task: &Task) -> bool {
        let mut all = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (task.job.clone(), task.task.clone());
        if !all.contains_key(&key) && all.len() >= REMEMBERED {
            all.pop_first();
        }
        let n = all.entry(key).or_default();
        *n += 1;
        *n > PASSES
    }
}

/// Works until `stop` is cancelled.
pub async fn run(config: Config, deps: Deps, stop: CancellationToken) {
    let abandon = CancellationToken::new();
    let worker = Arc::new(Worker {
        config,
        deps,
        stop,
        abandon: abandon.clone(),
        outage: watch::Sender::new(None),
        passed: Mutex::default(),
        busy: AtomicUsize::new(0),
        metrics: Metrics::new(),
    });
    metrics::observe_worker(&worker);
    let (stopping, grace) = (worker.stop.clone(), worker.config.grace);
    tokio::spawn(async move {
        stopping.cancelled().await;
        tokio::time::sleep(grace).await;
        abandon.cancel();
    });
    let prefetch = u16::try_from(worker.config.slots.max(1)).unwrap_or(u16::MAX);
    let mut wait = Duration::from_millis(200);
    let mut running = JoinSet::new();
    while !worker.stop.is_cancelled() {
        let subscribed = tokio::select! {
            r = worker.deps.queue.consume(Lane::Views, prefetch) => r,
            () = worker.stop.cancelled() => break,
        };
        let e = match subscribed {
            Ok(mut consumer) => {
                worker.deps.readiness.ready("views");
                wait = Duration::from_millis(200);
                take(&worker, consumer.as_mut(), &mut running).await.err()
            }
            Err(e) => Some(e),
        };
        let Some(e) = e else { break };
        worker.deps.readiness.block("views", e.to_string());
        tracing::warn!(error = %e, "queue lost, trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = worker.stop.cancelled() => {}
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
    worker.deps.readiness.block("views", "stopping");
    while running.join_next().await.is_some() {}
}

/// Takes tasks from one subscription until it breaks (the error) or the worker stops.
async fn take(
    worker: &Arc<Worker>,
    consumer: &mut dyn Consumer,
    running: &mut JoinSet<()>,
) -> Result<(), QueueError> {
    let outage = async || {
        let mut watch = worker.outage.subscribe();
        // An error means that the sender is gone, which is a field of the worker.
        let found = watch.wait_for(Option::is_some).await;
        found.ok().and_then(|job| job.clone()).unwrap_or_default()
    };
    loop {
        while running.try_join_next().is_some() {}
        let delivery = tokio::select! {
            biased;
            // What the broker sent ahead goes back at once, not when the last task has ended.
            () = worker.stop.cancelled() => return consumer.pause().await,
            job = outage() => {
                consumer.pause().await?;
                tokio::select! {
                    () = await_reach(worker, &job) => {}
                    () = worker.stop.cancelled() => return Ok(()),
                }
                consumer.resume().await?;
                continue;
            }
            d = consumer.next() => d?,
        };
        running.spawn(handle(worker.clone(), delivery));
    }
}

/// Tries everything that a task of a job needs, as long as its job lives: what is wrong with one job alone is no outage.
async fn probe(worker: &Worker, job: &str) -> Result<(), String> {
    let objects = worker.deps.objects.as_ref();
    let over = match is_over(objects, job).await {
        Err(e) if !e.is_content() => return Err(e.to_string()),
        other => other.unwrap_or(true),
    };
    let reporter = worker.deps.reporter.check().await;
    reporter.map_err(|e| e.to_string())?;
    if over {
        return Ok(());
    }
    let plan = match read::<Plan>(objects, &Keys::new(job).plan()).await {
        Ok((plan, _)) => plan,
        Err(e) if e.is_content() => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    let looked = async {
        let source = worker.deps.sources.open_pinned(&plan.pin).await?;
        source.read_at(FileOffset(0), &mut [0]).await
    };
    match looked.await {
        // What no other try would change is for the task to say.
        Err(e) if !e.is_content() && !e.is_fatal() => Err(e.to_string()),
        _ => Ok(()),
    }
}

/// Waits until what a task of the job needs is in reach.
async fn await_reach(worker: &Worker, job: &str) {
    let mut wait = Duration::from_secs(1);
    loop {
        match probe(worker, job).await {
            Ok(()) => break,
            Err(why) => worker.deps.readiness.block("work", why),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
    worker.deps.readiness.ready("work");
    worker.outage.send_replace(None);
}

/// How an attempt at a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Settled, by us or another, or not wanted. How, for metrics.
    Done(&'static str),
    /// Not ours to finish.
    HandBack,
    /// Not begun, since this worker can't.
    PassOn,
}

/// What went wrong before there was a report.
#[derive(Debug)]
enum Trouble {
    /// What every job would meet: worth another try.
    Outage(String),
    /// This worker can't; one that is set up otherwise may.
    Elsewhere(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Outage(why)
    }
}

/// How long a task that this worker can't do is kept before it is passed on, and how often it is.
const PASS_ON: Duration = Duration::from_millis(500);
const PASSES: u32 = 2;
/// Tasks that are remembered to have been passed on.
const REMEMBERED: usize = 256;

impl End {
    /// The same, for metrics.
    fn outcome(self) -> &'static str {
        match self {
            Self::Done(how) => how,
            Self::HandBack => "handed_back",
            Self::PassOn => "passed_on",
        }
    }
}

/// Which part a task is for, for metrics.
fn part_name(task: &Task) -> &'static str {
    match &task.work {
        Some(Work::View(v)) if v.view == SHA256 => SHA256,
        Some(Work::View(v)) => parts::Part::of(&v.view).map_or("unknown", parts::Part::name),
        _ => "unknown",
    }
}

async fn handle(worker: Arc<Worker>, delivery: Delivery) {
    let begun = Instant::now();
    let again = delivery.redelivered > 0;
    worker.metrics.delivered(delivery.age(), again);
    let task = match Task::decode(delivery.message.body.clone()) {
        Ok(t) => t,
        Err(e) => {
            tracing::error!(error = %e, "a message that is no task was dropped");
            if let Err(e) = delivery.ack().await {
                tracing::warn!(error = %e, "answer did not reach the queue");
            }
            return;
        }
    };
    let span = tracing::info_span!("build view", job = %task.job, task = %task.task);
    set_parent(&span, &delivery.message.headers);
    link(&span, &delivery.message.headers);
    worker.busy.fetch_add(1, Ordering::Relaxed);
    let done = tokio::select! {
        done = attempt(&worker, &task).instrument(span) => done,
        never = tell_of_work(&worker, &task) => never,
        // Its thread goes on until it looks up; the process need not wait for it.
        () = worker.abandon.cancelled() => End::HandBack,
    };
    worker.busy.fetch_sub(1, Ordering::Relaxed);
    worker
        .metrics
        .task(part_name(&task), done.outcome(), begun.elapsed());
    let answered = match done {
        End::Done(_) => delivery.ack().await,
        End::HandBack => delivery.hand_back().await,
        End::PassOn => delivery.put_back().await,
    };
    if let Err(e) = answered {
        tracing::warn!(error = %e, "answer did not reach the queue");
    }
}

/// How often a worker notes that it is at a task, and for how long that holds.
const NOTE: Duration = Duration::from_secs(10);
const HOLDS: Duration = Duration::from_secs(30);

/// Notes again and again that somebody is at a task: views take minutes, and one that the broker has lost must be told from one
/// that takes long.
async fn tell_of_work(worker: &Worker, task: &Task) -> End {
    loop {
        let noted = worker.deps.ledger.working(&task.job, &task.task, HOLDS);
        if let Err(e) = noted.await {
            tracing::debug!(error = %e, "ledger not told");
        }
        tokio::time::sleep(NOTE).await;
    }
}

/// Tries a task until it is settled or outages outlast the patience.
async fn attempt(worker: &Arc<Worker>, task: &Task) -> End {
    let give_up_at = Instant::now() + worker.config.patience;
    let mut wait = Duration::from_millis(250);
    // What was built waits for whoever takes it.
    let mut ready = None;
    loop {
        if let Ok(Wanted::Settled | Wanted::Closed) =
            worker.deps.ledger.wanted(&task.job, &task.task).await
        {
            return End::Done("unwanted");
        }
        let over = Instant::now() >= give_up_at;
        let built = match ready.take() {
            Some(report) => Ok(report),
            None => build(worker, task).await,
        };
        let built = match built {
            Err(Trouble::Elsewhere(why)) => {
                if !worker.passed_often(task) {
                    tracing::info!(reason = %why, "task passed on");
                    tokio::select! {
                        () = tokio::time::sleep(PASS_ON) => {}
                        () = worker.stop.cancelled() => {}
                    }
                    return End::PassOn;
                }
                Ok(failed(worker, task, why))
            }
            // Nobody else can do it: the job ends with the reason.
            Err(Trouble::Outage(why)) if over && worker.config.deployment.is_embedded() => {
                let mut report = failed(worker, task, why);
                report.header.fatal = true;
                Ok(report)
            }
            // Everything is in reach: it is this task.
            Err(Trouble::Outage(why)) if over && probe(worker, &task.job).await.is_ok() => {
                Ok(failed(worker, task, why))
            }
            Err(Trouble::Outage(why)) => Err(why),
            Ok(report) => Ok(report),
        };
        let tried = match built {
            Ok(report) => match worker.deps.reporter.report(&report).await {
                Ok(Ack::Durable) => {
                    let failed = report.header.outcome() == Outcome::Failed;
                    if failed {
                        ramsift_telemetry::failed(&tracing::Span::current(), &report.header.reason);
                    }
                    return End::Done(if failed { "failed" } else { "done" });
                }
                Ok(Ack::Refused(why)) => {
                    tracing::info!(reason = %why, "report refused, task dropped");
                    return End::Done("unwanted");
                }
                Err(e) => {
                    if e.refused {
                        tracing::error!(reason = %e, "this worker may not report; its tasks go back until it may");
                    }
                    ready = Some(report);
                    e.to_string()
                }
            },
            Err(why) => why,
        };
        if let Ok(true) = is_over(worker.deps.objects.as_ref(), &task.job).await {
            return End::Done("unwanted");
        }
        if over {
            worker.outage.send_replace(Some(task.job.clone()));
            return End::HandBack;
        }
        if worker.stop.is_cancelled() {
            return End::HandBack;
        }
        tracing::warn!(reason = %tried, "outage, waiting");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = worker.stop.cancelled() => {}
        }
        wait = (wait * 2).min(Duration::from_secs(15));
    }
}
