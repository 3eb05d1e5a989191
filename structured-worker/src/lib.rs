//! The structured worker: opens the whole image through a block cache, takes the anchors that the
//! chunk workers found (or looks for them in one streaming pass, when no chunks are scanned), and
//! builds views.

mod alone;
mod anchors;
mod linux;
mod lists;
mod rows;
mod sha256;
mod symbols;

pub use alone::{Alone, AloneError, Means, view_alone, with_kernel};
pub use rows::{batch, table_name};
pub use symbols::{ObjectFiles, symbol_store};

use linux::{Collector, Part};
use lists::Asked;
use prost::Message as _;
use ramsift_layers::source::{DiskCaches, SourceError, Sources};
use ramsift_os::discover::{Discovery, discover};
use ramsift_os::linux::open;
use ramsift_os::view::ViewInput;
use ramsift_proto::TaskId;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{Outcome, Task, TaskReport};
use ramsift_queue::{Consumer, Delivery, Lane, Queue, QueueError};
use ramsift_store::job::{is_over, read, to_json};
use ramsift_store::kernel::KernelRecord;
use ramsift_store::ledger::Wanted;
use ramsift_store::tables::{SystemRow, name, system_batch};
use ramsift_store::{Ack, Keys, Ledger, Objects, Plan, Report, Reporter, StoreError};
use ramsift_telemetry::{Readiness, current, set_parent};
pub use sha256::SHA256;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// The task that finds the kernel and builds every view of it.
pub const SYSTEM: &str = "system";

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
    /// What tasks need is out of reach: none are taken until a probe succeeds.
    outage: watch::Sender<bool>,
    /// Tasks that were passed on, and how often.
    passed: Mutex<BTreeMap<(String, String), u32>>,
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
        outage: watch::Sender::new(false),
        passed: Mutex::default(),
    });
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
        // An error means that the sender is gone, which is a field of the worker.
        let _ = worker.outage.subscribe().wait_for(|out| *out).await;
    };
    loop {
        while running.try_join_next().is_some() {}
        let delivery = tokio::select! {
            biased;
            // What the broker sent ahead goes back at once, not when the last task has ended.
            () = worker.stop.cancelled() => return consumer.pause().await,
            () = outage() => {
                consumer.pause().await?;
                tokio::select! {
                    () = await_reach(worker) => {}
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

/// Whether store and aggregator answer.
async fn in_reach(worker: &Worker) -> Result<(), String> {
    let store = worker.deps.objects.list_folders("jobs/").await;
    store.map_err(|e| e.to_string())?;
    let reporter = worker.deps.reporter.check().await;
    reporter.map_err(|e| e.to_string())
}

/// Waits until store and aggregator answer.
async fn await_reach(worker: &Worker) {
    let mut wait = Duration::from_secs(1);
    loop {
        match in_reach(worker).await {
            Ok(()) => break,
            Err(why) => worker.deps.readiness.block("work", why),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
    worker.deps.readiness.ready("work");
    worker.outage.send_replace(false);
}

/// How an attempt at a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Settled, by us or another.
    Done,
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

async fn handle(worker: Arc<Worker>, delivery: Delivery) {
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
    let done = tokio::select! {
        done = attempt(&worker, &task).instrument(span) => done,
        // Its thread goes on until it looks up; the process need not wait for it.
        () = worker.abandon.cancelled() => End::HandBack,
    };
    let answered = match done {
        End::Done => delivery.ack().await,
        End::HandBack => delivery.hand_back().await,
        End::PassOn => delivery.put_back().await,
    };
    if let Err(e) = answered {
        tracing::warn!(error = %e, "answer did not reach the queue");
    }
}

/// Tries a task until it is settled or outages outlast the patience.
async fn attempt(worker: &Arc<Worker>, task: &Task) -> End {
    let give_up_at = Instant::now() + worker.config.patience;
    let mut wait = Duration::from_millis(250);
    loop {
        if let Ok(Wanted::Settled | Wanted::Closed) =
            worker.deps.ledger.wanted(&task.job, &task.task).await
        {
            return End::Done;
        }
        let over = Instant::now() >= give_up_at;
        let built = match build(worker, task).await {
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
            // Everything else is in reach: it is this task.
            Err(Trouble::Outage(why)) if over && in_reach(worker).await.is_ok() => {
                Ok(failed(worker, task, why))
            }
            Err(Trouble::Outage(why)) => Err(why),
            Ok(report) => Ok(report),
        };
        let tried = match built {
            Ok(report) => match worker.deps.reporter.report(&report).await {
                Ok(Ack::Durable) => return End::Done,
                Ok(Ack::Refused(why)) => {
                    tracing::info!(reason = %why, "report refused, task dropped");
                    return End::Done;
                }
                Err(e) => e.to_string(),
            },
            Err(why) => why,
        };
        if let Ok(true) = is_over(worker.deps.objects.as_ref(), &task.job).await {
            return End::Done;
        }
        if over {
            worker.outage.send_replace(true);
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

/// Builds a view. An error is an outage; what is wrong with the evidence is a report.
async fn build(worker: &Arc<Worker>, task: &Task) -> Result<Report, Trouble> {
    let Some(Work::View(work)) = &task.work else {
        return Ok(failed(
            worker,
            task,
            "this is no task of a structured worker".into(),
        ));
    };
    if work.view == SHA256 {
        return sha256::hash(worker, task).await;
    }
    let Some(part) = Part::of(&work.view) else {
        let why = format!("there is no view {}", work.view);
        return Ok(failed(worker, task, why));
    };
    let objects = worker.deps.objects.as_ref();
    let keys = Keys::new(&task.job);
    let plan = match read::<Plan>(objects, &keys.plan()).await {
        Ok((plan, _)) => plan,
        Err(e) => return no_record(worker, task, &e),
    };
    let source = match worker.deps.sources.open_pinned(&plan.pin).await {
        Ok(s) => s,
        Err(e) => return gone(worker, task, e),
    };
    let anchors = if part != Part::System {
        match read::<KernelRecord>(objects, &keys.kernel()).await {
            Ok((record, _)) => alone::known(&record),
            Err(e) => return no_record(worker, task, &e),
        }
    } else if plan.spec.unstructured {
        anchors::reported(objects, &keys).await?
    } else {
        match anchors::stream(source.clone(), &plan, &worker.config.means).await {
            Ok(a) => a,
            Err(e) => return gone(worker, task, e),
        }
    };
    if part == Part::System {
        let kernel = to_json(&alone::record(&anchors)).map_err(|e| e.to_string())?;
        let put = objects.put(&keys.kernel(), kernel).await;
        put.map_err(|e| e.to_string())?;
    }
    let pinned = source.clone();
    let mut header = header(worker, task);
    let asked = Asked::of(&plan);
    let mut collector = Collector::new(
        worker.deps.objects.clone(),
        keys,
        &header.attempt,
        asked,
        worker.config.disk.folder().to_owned(),
    );
    let layout = plan.layout.clone();
    let means = worker.config.means.clone();
    // All views together read most of a capture.
    let near = worker.config.disk.source(&task.job, &source);
    let cache = means.cache / worker.config.slots.max(1) as u64;
    let built = tokio::task::spawn_blocking(move || {
        let around = near.worth();
        let (memory, runs) = alone::memory(near, &layout, &anchors, cache);
        let memory = memory.around(around);
        let input = ViewInput {
            memory: &memory,
            runs: &runs,
            arch: layout.arch.as_deref(),
            dtb_hints: &layout.dtb_hints,
            anchors: &anchors,
            symbols: means.symbols.as_deref(),
        };
        let base = (runs != layout.runs).then(|| runs.runs().first().map_or(0, |r| r.pa));
        let rows = build_part(part, &input, discover(&input), base, &mut collector);
        (
            rows.map(|()| collector),
            memory.bytes_read(),
            memory.take_trouble(),
        )
    })
    .await;
    match built {
        // What looked like unreadable memory was an outage, or evidence that is gone.
        Ok((_, _, Some(e))) => gone(worker, task, e),
        Ok((collected, bytes_read, None)) => {
            if let Err(e) = pinned.check_pin().await {
                return gone(worker, task, e);
            }
            let mut collected = collected?;
            header.bytes_read = bytes_read;
            header.wishes = collected.wishes();
            header.segments = collected.segments;
            header.objects = collected.refs;
            Ok(Report {
                header,
                batches: collected.batches,
                trace: current(),
            })
        }
        Err(e) => Ok(failed(worker, task, format!("the view failed: {e}"))),
    }
}

/// Opens the kernel and does a part's work on it; the system part tells of the kernel in a row. `base` is where
/// memory begins when the container did not say so.
fn build_part(
    part: Part,
    input: &ViewInput<'_>,
    mut d: Discovery,
    base: Option<u64>,
    rows: &mut Collector,
) -> Result<(), String> {
    let mut damage = None;
    if d.impossible.is_none() {
        match open(input, &d) {
            Ok(kernel) => {
                damage = kernel.damage();
                part.build(&kernel, input.runs, rows)?;
            }
            Err(e) => d.impossible = Some(e.to_string()),
        }
    }
    if part == Part::System {
        let row = SystemRow {
            physical_base: base,
            damage,
            ..system_row(&d)
        };
        let batch = system_batch(&row).map_err(|e| e.to_string())?;
        rows.take(name::SYSTEM, Some(batch))?;
    } else if let Some(why) = d.impossible {
        rows.not_built(part, why);
    }
    rows.finish()
}

fn header(worker: &Worker, task: &Task) -> TaskReport {
    TaskReport {
        job: task.job.clone(),
        task: task.task.clone(),
        attempt: uuid::Uuid::now_v7().to_string(),
        worker: worker.config.name.clone(),
        outcome: Outcome::Done.into(),
        ..TaskReport::default()
    }
}

/// Evidence that is gone or changed ends the job; an outage is tried again.
fn gone(worker: &Worker, task: &Task, e: SourceError) -> Result<Report, Trouble> {
    if let SourceError::Denied { .. } = e {
        return Err(Trouble::Elsewhere(e.to_string()));
    }
    if !e.is_fatal() {
        return Err(Trouble::Outage(e.to_string()));
    }
    let mut report = failed(worker, task, e.to_string());
    report.header.fatal = true;
    Ok(report)
}

/// A record of the job that can't be read: gone or damaged, perhaps in this worker's store alone, or out of reach.
fn no_record(worker: &Worker, task: &Task, e: &StoreError) -> Result<Report, Trouble> {
    let why = e.to_string();
    match e {
        StoreError::Object(o) if o.is_not_found() => Err(Trouble::Elsewhere(why)),
        e if e.is_content() => Ok(failed(worker, task, why)),
        _ => Err(Trouble::Outage(why)),
    }
}

fn failed(worker: &Worker, task: &Task, why: String) -> Report {
    let row = SystemRow {
        status: "not possible".into(),
        reason: Some(why.clone()),
        page_tables: "[]".into(),
        anchors: "{}".into(),
        ..SystemRow::default()
    };
    // The other parts only come where the system is known.
    let batches = if task.task == TaskId::View(SYSTEM.to_owned()).to_string() {
        system_batch(&row).map(|b| vec![(name::SYSTEM.to_owned(), b)])
    } else {
        Ok(Vec::new())
    };
    Report {
        header: TaskReport {
            outcome: Outcome::Failed.into(),
            reason: why,
            ..header(worker, task)
        },
        batches: batches.unwrap_or_default(),
        trace: current(),
    }
}

fn system_row(d: &Discovery) -> SystemRow {
    let tables: Vec<_> = d
        .page_tables
        .iter()
        .map(|p| {
            serde_json::json!({
                "dtb": p.dtb.0, "shape": p.shape, "source": p.source, "confirmed": p.confirmed,
            })
        })
        .collect();
    SystemRow {
        status: if d.impossible.is_none() {
            "recognised"
        } else {
            "not possible"
        }
        .into(),
        reason: d
            .impossible
            .as_ref()
            .map(|why| format!("structured analysis not possible: {why}")),
        os: d.os.map(str::to_owned),
        architecture: d.architecture.clone(),
        banner: d.banner.clone(),
        banner_offset: d.banner_offset,
        release: d.release.clone(),
        build_id: d.build_id.clone(),
        page_tables: serde_json::Value::from(tables).to_string(),
        anchors: serde_json::to_string(&d.anchors).unwrap_or_else(|_| "{}".into()),
        physical_base: None,
        damage: None,
    }
}
