//! The life of one delivery: wanted, read, scan, report, ack.

use crate::context::{ContextError, JobContext};
use crate::read::{self, Slab};
use crate::scan::{self, ScanError, Scanned};
use crate::{Worker, gate, memory, processes, recovered, verdict};
use prost::Message as _;
use ramsift_layers::SourceError;
use ramsift_proto::TaskId;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{ChunkWork, MemoryWork, Outcome, Task, TaskReport};
use ramsift_queue::{Delivery, Lane};
use ramsift_store::job;
use ramsift_store::ledger::Wanted;
use ramsift_store::lists::{FileList, MemoryList};
use ramsift_store::{Ack, Report, StoreError};
use ramsift_telemetry::{current, link, set_parent};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::Instrument;

/// How long a task that this worker can't do is kept before it is passed on.
const PASS_ON: Duration = Duration::from_millis(500);
/// How often a task is passed on by one worker.
const PASSES: u32 = 2;
/// Tasks that are remembered to have been passed on.
const REMEMBERED: usize = 4096;

/// Tasks that were passed on, and how often.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<BTreeMap<(String, String), u32>>);

impl Passed {
    /// Notes that a task is to be passed on; whether it was often enough.
    fn often(&self, task: &Task) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (task.job.clone(), task.task.clone());
        if !all.contains_key(&key) && all.len() >= REMEMBERED {
            all.pop_first();
        }
        let n = all.entry(key).or_default();
        *n += 1;
        *n > PASSES
    }
}

/// How a task ended.
#[derive(Debug)]
enum End {
    /// Settled, by us or another, or not wanted: forget it. How, for metrics.
    Done(&'static str),
    /// Not ours to finish: let another have it.
    HandBack(String),
    /// Not begun, since this worker can't: let another have it, as if it had not been delivered.
    PassOn(String),
    /// This attempt failed on its content, or on a defect of ours.
    GiveUp(String),
}

impl End {
    /// The same, for metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Done(how) => how,
            Self::HandBack(_) => "handed_back",
            Self::PassOn(_) => "passed_on",
            Self::GiveUp(_) => "given_up",
        }
    }
}

/// What a task is, for metrics.
fn kind(task: &Task) -> &'static str {
    match &task.work {
        Some(Work::Chunk(_)) => "chunk",
        Some(Work::Memory(_)) => "memory",
        Some(Work::Files(_)) => "files",
        Some(Work::Verdict(v)) if v.processes.is_empty() => "verdict",
        Some(Work::Verdict(_)) => "process",
        Some(Work::View(_)) => "view",
        None => "unknown",
    }
}

/// What went wrong before there was a report.
#[derive(Debug)]
enum Trouble {
    /// Another try would find the same; the job can't go on, or this task of it can't.
    Wrong { why: String, fatal: bool },
    /// This worker can't; one that is set up otherwise may.
    Elsewhere { why: String, fatal: bool },
    /// What every job would meet: worth another try, here or elsewhere.
    Outage(String),
    /// Worth another try at once, which goes another way.
    Again,
}

impl From<SourceError> for Trouble {
    fn from(e: SourceError) -> Self {
        let why = e.to_string();
        match e {
            SourceError::Denied { .. } => Self::Elsewhere { why, fatal: false },
            e if e.is_fatal() || e.is_content() => Self::Wrong { why, fatal: true },
            _ => Self::Outage(why),
        }
    }
}

impl From<ScanError> for Trouble {
    fn from(e: ScanError) -> Self {
        match e {
            ScanError::Source(e) => e.into(),
            ScanError::Store(why) => Self::Outage(why),
            ScanError::Torn => Self::Again,
        }
    }
}

impl From<ContextError> for Trouble {
    fn from(e: ContextError) -> Self {
        match e {
            ContextError::Source(e) => e.into(),
            // Another version of this program may be able to.
            ContextError::Unusable(why) => Self::Elsewhere { why, fatal: true },
            // Perhaps the store of this worker is not the job's.
            ContextError::NoPlan(why) => Self::Elsewhere { why, fatal: false },
            ContextError::Store(e) => Self::of_store(&e, true),
        }
    }
}

impl Trouble {
    fn of_store(e: &StoreError, fatal: bool) -> Self {
        let why = e.to_string();
        if e.is_content() {
            Self::Wrong { why, fatal }
        } else {
            Self::Outage(why)
        }
    }
}

/// Does what a delivery asks for and answers it.
pub(crate) async fn handle(worker: Arc<Worker>, lane: Lane, delivery: Delivery) {
    let again = delivery.redelivered > 0;
    worker.metrics.delivered(lane, delivery.age(), again);
    let end = match Task::decode(delivery.message.body.clone()) {
        Ok(task) => {
            let span = tracing::info_span!("process chunk", job = %task.job, task = %task.task);
            set_parent(&span, &delivery.message.headers);
            link(&span, &delivery.message.headers);
            let end = attempt(&worker, lane, &task).instrument(span.clone()).await;
            if let End::GiveUp(why) = &end {
                ramsift_telemetry::failed(&span, why);
            }
            worker.metrics.task(kind(&task), end.outcome());
            end
        }
        Err(e) => {
            tracing::error!(error = %e, "a message that is no task was dropped");
            End::Done("dropped")
        }
    };
    let answered = match end {
        End::Done(_) => delivery.ack().await,
        End::HandBack(why) => {
            tracing::info!(reason = %why, "task handed back");
            delivery.hand_back().await
        }
        End::PassOn(why) => {
            tracing::info!(reason = %why, "task passed on");
            delivery.put_back().await
        }
        End::GiveUp(why) => {
            tracing::error!(reason = %why, "attempt failed");
            delivery.give_up().await
        }
    };
    if let Err(e) = answered {
        // The broker delivers it again; the ledger then says that it is settled.
        tracing::warn!(error = %e, "answer did not reach the queue");
    }
}

/// Tries a task until it is done, or outages outlast the patience.
async fn attempt(worker: &Arc<Worker>, lane: Lane, task: &Task) -> End {
    let give_up_at = Instant::now() + worker.config.patience;
    let mut wait = Duration::from_millis(250);
    loop {
        // No ledger: go on.
        match worker.deps.ledger.wanted(&task.job, &task.task).await {
            Ok(Wanted::Yes) => {}
            Ok(_) => return End::Done("unwanted"),
            Err(e) => tracing::debug!(error = %e, "ledger did not answer"),
        }
        let attempt = uuid::Uuid::now_v7().to_string();
        let report = match perform(worker, lane, task, &attempt).await {
            Ok(Ok(report)) => report,
            Ok(Err(end)) => return end,
            Err(Trouble::Again) => continue,
            Err(Trouble::Wrong { why, fatal }) => failed(worker, task, &attempt, why, fatal),
            Err(Trouble::Elsewhere { why, fatal }) => {
                // There may be no other worker that can: then it is said, and holds up no other job.
                if worker.config.deployment.is_embedded() || worker.passed.often(task) {
                    failed(worker, task, &attempt, why, fatal)
                } else {
                    pause(worker, PASS_ON).await;
                    return End::PassOn(why);
                }
            }
            Err(Trouble::Outage(why)) => {
                worker.deps.readiness.block("work", why.clone());
                let over = Instant::now() >= give_up_at;
                if let Ok(true) = job::is_over(worker.deps.objects.as_ref(), &task.job).await {
                    worker.deps.readiness.ready("work");
                    return End::Done("unwanted");
                }
                if over && worker.config.deployment.is_embedded() {
                    failed(worker, task, &attempt, why, true)
                } else if over
                    && gate::probe(worker, &task.job, first_byte(task))
                        .await
                        .is_ok()
                {
                    // Everything is in reach: it is this task.
                    failed(worker, task, &attempt, why, false)
                } else if over || worker.stop.is_cancelled() {
                    if over {
                        gate::await_reach(worker, &task.job, first_byte(task));
                    }
                    return End::HandBack(why);
                } else {
                    tracing::warn!(reason = %why, wait_ms = wait.as_millis(), "outage, waiting");
                    pause(worker, wait).await;
                    wait = (wait * 2).min(Duration::from_secs(15));
                    continue;
                }
            }
        };
        worker.deps.readiness.ready("work");
        if report.header.outcome() == Outcome::Failed {
            ramsift_telemetry::failed(&tracing::Span::current(), &report.header.reason);
        }
        let end = send(worker, &report, give_up_at).await;
        if matches!(end, End::HandBack(_)) && !worker.stop.is_cancelled() {
            gate::await_reach(worker, &task.job, first_byte(task));
        }
        return end;
    }
}

/// Where a task begins to read.
fn first_byte(task: &Task) -> u64 {
    match &task.work {
        Some(Work::Chunk(c)) => c.file_start,
        _ => 0,
    }
}

async fn pause(worker: &Worker, wait: Duration) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = worker.stop.cancelled() => {}
    }
}

fn header(worker: &Worker, task: &Task, attempt: &str) -> TaskReport {
    TaskReport {
        job: task.job.clone(),
        task: task.task.clone(),
        attempt: attempt.to_owned(),
        worker: worker.config.name.clone(),
        outcome: Outcome::Done.into(),
        ..TaskReport::default()
    }
}

fn failed(worker: &Worker, task: &Task, attempt: &str, why: String, fatal: bool) -> Report {
    let header = TaskReport {
        outcome: Outcome::Failed.into(),
        reason: why,
        fatal,
        ..header(worker, task, attempt)
    };
    Report {
        header,
        ..Report::default()
    }
}

/// Hands a report over until it is durable, or the patience ends.
async fn send(worker: &Worker, report: &Report, give_up_at: Instant) -> End {
    let mut wait = Duration::from_millis(250);
    loop {
        let refused = match worker.deps.reporter.report(report).await {
            Ok(Ack::Durable) if report.header.outcome() == Outcome::Failed => {
                return End::Done("failed");
            }
            Ok(Ack::Durable) => return End::Done("done"),
            Ok(Ack::Refused(why)) => {
                tracing::info!(reason = %why, "report refused, task dropped");
                return End::Done("unwanted");
            }
            Err(e) => {
                if e.refused {
                    tracing::error!(reason = %e, "this worker may not report; its tasks go back until it may");
                }
                e.to_string()
            }
        };
        let over = Instant::now() >= give_up_at;
        if over && worker.config.deployment.is_embedded() {
            // Nobody else can store it: the loop that runs the job sees the same store fail.
            return End::GiveUp(refused);
        }
        if over || worker.abandon.is_cancelled() {
            return End::HandBack(refused);
        }
        tracing::warn!(reason = %refused, "report not taken, trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = worker.abandon.cancelled() => return End::HandBack(refused),
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// One try: a report, or an end without one.
async fn perform(
    worker: &Arc<Worker>,
    lane: Lane,
    task: &Task,
    attempt: &str,
) -> Result<Result<Report, End>, Trouble> {
    let ctx = worker.jobs.get(&task.job).await?;
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let done = match &task.work {
        Some(Work::Chunk(work)) => return chunk(worker, lane, &ctx, task, work, attempt).await,
        Some(Work::Memory(work)) => return memory(worker, &ctx, task, work, attempt).await,
        Some(Work::Verdict(work)) => {
            let work = work.clone();
            in_slot(worker, task, move || {
                let rows = if work.processes.is_empty() {
                    verdict::decide(&w, &c, work.group, &a)?
                } else {
                    processes::decide(&w, &c, &work, &a)?
                };
                Ok(Scanned {
                    rows,
                    ..Scanned::default()
                })
            })
            .await
        }
        Some(Work::Files(work)) => {
            needs_clamd(worker, &ctx)?;
            let (list, _): (FileList, _) = job::read(worker.deps.objects.as_ref(), &work.list)
                .await
                .map_err(|e| Trouble::of_store(&e, false))?;
            let near = worker.config.disk.source(&task.job, &ctx.source);
            let near = ctx.image.over(near).bytes();
            in_slot(worker, task, move || {
                recovered::inspect(&w, &c, near.as_ref(), &list, &a)
            })
            .await
        }
        _ => {
            let why = format!("{} is no task of a chunk worker", task.task);
            return Ok(Ok(failed(worker, task, attempt, why, false)));
        }
    };
    match done {
        Ok(Ok(s)) => Ok(Ok(report_of(worker, task, attempt, s, 0))),
        Ok(Err(e)) => Err(e.into()),
        Err(end) => Ok(Err(end)),
    }
}

/// A job that wants ClamAV needs a worker that has it.
fn needs_clamd(worker: &Worker, ctx: &JobContext) -> Result<(), Trouble> {
    if ctx.plan.spec.clamav && worker.deps.clamd.is_none() {
        let why = "the job wants ClamAV and this worker has no clamd (clamd.address)";
        return Err(Trouble::Elsewhere {
            why: why.into(),
            fatal: false,
        });
    }
    Ok(())
}

/// Does work of the processor in a slot.
async fn in_slot<T: Send + 'static>(
    worker: &Worker,
    task: &Task,
    what: impl FnOnce() -> Result<T, ScanError> + Send + 'static,
) -> Result<Result<T, ScanError>, End> {
    let Ok(_slot) = worker.slots.acquire().await else {
        return Err(End::HandBack("stopping".into()));
    };
    let span = tracing::Span::current();
    let working = tokio::task::spawn_blocking(move || {
        let _in = span.enter();
        what()
    });
    let stopped = || End::HandBack(format!("stopped before {} was finished", task.task));
    let done = tokio::select! {
        done = working => done,
        // The thread goes on until its engine looks up; the process need not wait for it.
        () = worker.abandon.cancelled() => return Err(stopped()),
    };
    if worker.abandon.is_cancelled() {
        return Err(stopped());
    }
    done.map_err(|e| End::GiveUp(format!("{} took its scan down: {e}", task.task)))
}

/// Searches a list of memory of processes.
async fn memory(
    worker: &Arc<Worker>,
    ctx: &Arc<JobContext>,
    task: &Task,
    work: &MemoryWork,
    attempt: &str,
) -> Result<Result<Report, End>, Trouble> {
    needs_clamd(worker, ctx)?;
    let (list, _): (MemoryList, _) = job::read(worker.deps.objects.as_ref(), &work.list)
        .await
        .map_err(|e| Trouble::of_store(&e, false))?;
    // Counts among the buffers of chunks, which are about as large.
    let Some(mut buffer) = worker.buffers.take().await else {
        return Ok(Err(End::HandBack("stopping".into())));
    };
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let near = worker.config.disk.source(&task.job, &ctx.source);
    let near = ctx.image.over(near).paged_bytes();
    let done = in_slot(worker, task, move || {
        memory::search(&w, &c, near.as_ref(), &list, &mut buffer.bytes, &a)
    })
    .await;
    match done {
        Ok(Ok((s, bytes_read))) => {
            // The evidence may have been written to while it was read.
            ctx.source.check_pin().await?;
            Ok(Ok(report_of(worker, task, attempt, s, bytes_read)))
        }
        Ok(Err(e)) => Err(e.into()),
        Err(end) => Ok(Err(end)),
    }
}

/// Reads, scans and reports one chunk.
async fn chunk(
    worker: &Arc<Worker>,
    _lane: Lane,
    ctx: &Arc<JobContext>,
    task: &Task,
    work: &ChunkWork,
    attempt: &str,
) -> Result<Result<Report, End>, Trouble> {
    let file = work.file_start..work.file_end;
    task.task.parse::<TaskId>().map_err(|e| Trouble::Wrong {
        why: e.to_string(),
        fatal: false,
    })?;
    needs_clamd(worker, ctx)?;
    let (chunks, runs) = (&ctx.plan.chunks, &ctx.plan.layout.runs);
    let windows = ctx.image.windows(chunks, runs, file.clone()).await?;
    if ctx.image.extents().is_none() && ctx.source.is_hole(file.clone()) {
        let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
        let scanned = in_slot(worker, task, move || {
            scan::scan_hole(&w, &c, file, &windows, &a)
        });
        return match scanned.await {
            Ok(Ok(s)) => {
                // A hole that was filled meanwhile is evidence that was written to.
                ctx.source.check_pin().await?;
                Ok(Ok(report_of(worker, task, attempt, s, 0)))
            }
            Ok(Err(e)) => Err(e.into()),
            Err(end) => Ok(Err(end)),
        };
    }
    let Some(buffer) = worker.buffers.take().await else {
        return Ok(Err(End::HandBack("stopping".into())));
    };
    if worker.stop.is_cancelled() {
        return Ok(Err(End::HandBack("stopping".into())));
    }
    let slab = read(worker, ctx, &file, &windows, buffer).await?;
    let bytes_read = slab.len();
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let scanned = in_slot(worker, task, move || {
        let started = Instant::now();
        let scanned = scan::scan(&w, &c, &slab, file, &windows, &a);
        w.metrics.chunk(started.elapsed().as_secs_f64());
        // A system call that meets a bad page fails where others would be told.
        if slab.mapped.is_some_and(|m| m.is_torn() || scanned.is_err()) {
            tracing::warn!(
                at = slab.file.start,
                "mapped evidence can't be relied on, reading it"
            );
            c.source.unmap();
            return Err(ScanError::Torn);
        }
        scanned
    })
    .await;
    match scanned {
        Ok(Ok(s)) => {
            // The evidence may have been written to while it was read.
            ctx.source.check_pin().await?;
            Ok(Ok(report_of(worker, task, attempt, s, bytes_read)))
        }
        Ok(Err(e)) => Err(e.into()),
        Err(end) => Ok(Err(end)),
    }
}

fn report_of(worker: &Worker, task: &Task, attempt: &str, s: Scanned, bytes_read: u64) -> Report {
    let header = TaskReport {
        hash: s.hash,
        bytes_read,
        cpu_micros: u64::try_from(s.cpu.as_micros()).unwrap_or(u64::MAX),
        rule_matches: s.rule_matches,
        rule_gaps: s.rule_gaps,
        segments: s.rows.segments,
        objects: s.rows.objects,
        ..header(worker, task, attempt)
    };
    Report {
        header,
        batches: s.rows.batches,
        trace: current(),
    }
}

/// Reads the bytes of a chunk and what lies around it.
async fn read(
    worker: &Worker,
    ctx: &Arc<JobContext>,
    file: &Range<u64>,
    windows: &[ramsift_layers::ChunkWindow],
    mut buffer: read::Buffer,
) -> Result<Slab, Trouble> {
    let started = Instant::now();
    let around = ctx.plan.chunks.overlap + ctx.plan.chunks.behind;
    // Windows of a container that packs its memory name no places of the file.
    let named = if ctx.image.extents().is_some() {
        &[]
    } else {
        windows
    };
    let span = read::span(file, named, around);
    let (c, range) = (ctx.clone(), span.clone());
    // A file source blocks, so the read has a thread of its own; an object's reads run elsewhere.
    let here = tracing::info_span!("s3.read", bytes = span.end - span.start);
    let done = tokio::task::spawn_blocking(move || {
        let _in = here.enter();
        if let Some(m) = c.source.map(range.clone()) {
            return (buffer, Some(m), Ok(Vec::new()));
        }
        let runtime = tokio::runtime::Handle::current();
        let bad = runtime.block_on(read::read_range(
            c.source.as_ref(),
            range,
            &mut buffer.bytes,
        ));
        (buffer, None, bad)
    })
    .await;
    let (buffer, mapped, bad) = done.map_err(|e| Trouble::Outage(format!("read: {e}")))?;
    worker.metrics.read(started.elapsed().as_secs_f64());
    let bad = bad.inspect_err(|e| {
        worker.metrics.read_error(if e.is_content() {
            "content"
        } else {
            "infrastructure"
        });
    })?;
    if !bad.is_empty() {
        worker.metrics.read_error("content");
    }
    Ok(Slab {
        buffer,
        mapped,
        file: span,
        bad,
    })
}
