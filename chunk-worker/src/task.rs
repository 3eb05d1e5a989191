//! What a chunk worker does with a task: read, scan, and a report of what was found.

use crate::context::{ContextError, JobContext};
use crate::read::{self, Slab};
use crate::scan::{self, ScanError, Scanned};
use crate::{SMALL, Worker, memory, processes, recovered, tasks_in_hand, verdict};
use async_trait::async_trait;
use ramsift_engines::clamav::AvVerdict;
use ramsift_layers::{FileOffset, SourceError};
use ramsift_proto::TaskId;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{ChunkWork, MemoryWork, Outcome, Task, TaskReport};
use ramsift_queue::Lane;
use ramsift_store::lists::{FileList, MemoryList};
use ramsift_store::{Report, StoreError, job};
use ramsift_telemetry::current;
use ramsift_worker::{Tasks, Trouble};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tracing::Span;

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

fn of_source(e: SourceError) -> Trouble {
    let why = e.to_string();
    match e {
        SourceError::Denied { .. } => Trouble::Elsewhere { why, fatal: false },
        e if e.is_fatal() || e.is_content() => Trouble::Wrong { why, fatal: true },
        _ => Trouble::Outage(why),
    }
}

fn of_scan(e: ScanError) -> Trouble {
    match e {
        ScanError::Source(e) => of_source(e),
        ScanError::Store(why) => Trouble::Outage(why),
        ScanError::Torn => Trouble::Again,
    }
}

fn of_context(e: ContextError) -> Trouble {
    match e {
        ContextError::Source(e) => of_source(e),
        // Another version of this program may be able to.
        ContextError::Unusable(why) => Trouble::Elsewhere { why, fatal: true },
        // Perhaps the store of this worker is not the job's.
        ContextError::NoPlan(why) => Trouble::Elsewhere { why, fatal: false },
        ContextError::Store(e) => of_store(&e, true),
    }
}

fn of_store(e: &StoreError, fatal: bool) -> Trouble {
    let why = e.to_string();
    if e.is_content() {
        Trouble::Wrong { why, fatal }
    } else {
        Trouble::Outage(why)
    }
}

fn stopping() -> Trouble {
    Trouble::Stopped("stopping".into())
}

#[async_trait]
impl Tasks for Worker {
    fn lanes(&self) -> Vec<(Lane, usize)> {
        let slots = self.config.slots.max(1);
        vec![(Lane::Chunks, tasks_in_hand(slots)), (Lane::Suspects, 1)]
    }

    fn kind(&self, task: &Task) -> &'static str {
        kind(task)
    }

    fn span(&self, task: &Task) -> Span {
        tracing::info_span!("process chunk", job = %task.job, task = %task.task)
    }

    fn slots(&self) -> (usize, usize) {
        let all = self.config.slots.max(1);
        (all.saturating_sub(self.slots.available_permits()), all)
    }

    async fn perform(self: Arc<Self>, task: &Task) -> Result<Report, Trouble> {
        let attempt = uuid::Uuid::now_v7().to_string();
        perform(&self, task, &attempt).await
    }

    fn failed(&self, task: &Task, why: String, fatal: bool) -> Report {
        let attempt = uuid::Uuid::now_v7().to_string();
        let header = TaskReport {
            outcome: Outcome::Failed.into(),
            reason: why,
            fatal,
            ..header(self, task, &attempt)
        };
        Report {
            header,
            ..Report::default()
        }
    }

    async fn probe(&self, task: &Task) -> Result<(), String> {
        let ctx = match self.jobs.get(&task.job).await {
            Ok(ctx) => ctx,
            Err(e) if e.is_outage() => return Err(e.to_string()),
            Err(_) => return Ok(()),
        };
        let mut byte = [0];
        let at = FileOffset(first_byte(task));
        match ctx.source.read_at(at, &mut byte).await {
            // What no other try would change is for the task to say.
            Err(e) if !e.is_content() && !e.is_fatal() => return Err(e.to_string()),
            _ => {}
        }
        if let Some(clamd) = self.deps.clamd.as_ref().filter(|_| ctx.plan.spec.clamav)
            && let AvVerdict::Error { reason } = clamd.scan(b"probe").await
        {
            return Err(format!("clamd failed: {reason}"));
        }
        Ok(())
    }
}

/// Where a task begins to read.
fn first_byte(task: &Task) -> u64 {
    match &task.work {
        Some(Work::Chunk(c)) => c.file_start,
        _ => 0,
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

async fn perform(worker: &Arc<Worker>, task: &Task, attempt: &str) -> Result<Report, Trouble> {
    let ctx = worker.jobs.get(&task.job).await.map_err(of_context)?;
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let done = match &task.work {
        Some(Work::Chunk(work)) => return chunk(worker, &ctx, task, work, attempt).await,
        Some(Work::Memory(work)) => return memory(worker, &ctx, task, work, attempt).await,
        Some(Work::Verdict(work)) => {
            let work = work.clone();
            in_slot(worker, &ctx, task, move || {
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
                .map_err(|e| of_store(&e, false))?;
            let near = worker.config.disk.source(&task.job, &ctx.source);
            let near = ctx.image.over(near).bytes();
            in_slot(worker, &ctx, task, move || {
                recovered::inspect(&w, &c, near.as_ref(), &list, &a)
            })
            .await
        }
        _ => {
            let why = format!("{} is no task of a chunk worker", task.task);
            return Err(Trouble::Wrong { why, fatal: false });
        }
    };
    Ok(report_of(worker, task, attempt, done?, 0))
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

/// Whether a capture is so small that its tasks need not wait for others' chunks.
fn is_small(ctx: &JobContext) -> bool {
    ctx.plan.layout.runs.image_len().max(ctx.plan.pin.size()) <= SMALL
}

/// The buffers that tasks of a job take.
fn buffers<'a>(worker: &'a Worker, ctx: &JobContext) -> &'a read::BufferPool {
    match is_small(ctx) {
        true => &worker.small_buffers,
        false => &worker.buffers,
    }
}

/// Does work of the processor in a slot.
async fn in_slot<T: Send + 'static>(
    worker: &Worker,
    ctx: &JobContext,
    task: &Task,
    what: impl FnOnce() -> Result<T, ScanError> + Send + 'static,
) -> Result<T, Trouble> {
    let slot = match is_small(ctx) {
        true => tokio::select! {
            slot = worker.slots.acquire() => slot,
            slot = worker.small_slot.acquire() => slot,
        },
        false => worker.slots.acquire().await,
    };
    let _slot = slot.map_err(|_| stopping())?;
    let span = Span::current();
    let working = tokio::task::spawn_blocking(move || {
        let _in = span.enter();
        what()
    });
    match working.await {
        // What was cut short because the worker ends counts for nothing.
        _ if worker.stop.abandon.is_cancelled() => Err(stopping()),
        Ok(done) => done.map_err(of_scan),
        Err(e) => Err(Trouble::Defect(format!(
            "{} took its scan down: {e}",
            task.task
        ))),
    }
}

/// Searches a list of memory of processes.
async fn memory(
    worker: &Arc<Worker>,
    ctx: &Arc<JobContext>,
    task: &Task,
    work: &MemoryWork,
    attempt: &str,
) -> Result<Report, Trouble> {
    needs_clamd(worker, ctx)?;
    let (list, _): (MemoryList, _) = job::read(worker.deps.objects.as_ref(), &work.list)
        .await
        .map_err(|e| of_store(&e, false))?;
    // Counts among the buffers of chunks, which are about as large.
    let mut buffer = buffers(worker, ctx).take().await.ok_or_else(stopping)?;
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let near = worker.config.disk.source(&task.job, &ctx.source);
    let near = ctx.image.over(near).paged_bytes();
    let searched = in_slot(worker, ctx, task, move || {
        memory::search(&w, &c, near.as_ref(), &list, &mut buffer.bytes, &a)
    });
    let (s, bytes_read) = searched.await?;
    // The evidence may have been written to while it was read.
    ctx.source.check_pin().await.map_err(of_source)?;
    Ok(report_of(worker, task, attempt, s, bytes_read))
}

/// Reads, scans and reports one chunk.
async fn chunk(
    worker: &Arc<Worker>,
    ctx: &Arc<JobContext>,
    task: &Task,
    work: &ChunkWork,
    attempt: &str,
) -> Result<Report, Trouble> {
    let file = work.file_start..work.file_end;
    task.task.parse::<TaskId>().map_err(|e| Trouble::Wrong {
        why: e.to_string(),
        fatal: false,
    })?;
    needs_clamd(worker, ctx)?;
    let (chunks, runs) = (&ctx.plan.chunks, &ctx.plan.layout.runs);
    let windows = ctx.image.windows(chunks, runs, file.clone()).await;
    let windows = windows.map_err(of_source)?;
    if ctx.image.extents().is_none() && ctx.source.is_hole(file.clone()) {
        let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
        let scanned = in_slot(worker, ctx, task, move || {
            scan::scan_hole(&w, &c, file, &windows, &a)
        });
        let s = scanned.await?;
        // A hole that was filled meanwhile is evidence that was written to.
        ctx.source.check_pin().await.map_err(of_source)?;
        return Ok(report_of(worker, task, attempt, s, 0));
    }
    let buffer = buffers(worker, ctx).take().await.ok_or_else(stopping)?;
    if worker.stop.stop.is_cancelled() {
        return Err(stopping());
    }
    let slab = read(worker, ctx, &file, &windows, buffer).await?;
    let bytes_read = slab.len();
    let (w, c, a) = (worker.clone(), ctx.clone(), attempt.to_owned());
    let scanned = in_slot(worker, ctx, task, move || {
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
    });
    let s = scanned.await?;
    // The evidence may have been written to while it was read.
    ctx.source.check_pin().await.map_err(of_source)?;
    Ok(report_of(worker, task, attempt, s, bytes_read))
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
    });
    let bad = bad.map_err(of_source)?;
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
