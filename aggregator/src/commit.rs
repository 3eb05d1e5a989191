//! Group commit: many reports, a few objects.
//!
//! A group waits for more reports until it is old or large, but not for what won't come: a report that asks for
//! more tasks, and the last ones that a job waits for, are committed at once.

use crate::metrics::{Metrics, observe_aggregator};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use async_trait::async_trait;
use bytes::Bytes;
use ramsift_proto::v1::{CommitRecord, SegmentPart, SegmentRef, TaskReport};
use ramsift_proto::{MAX_LISTS, TaskId};
use ramsift_store::commits::{self, CommitSegments};
use ramsift_store::job::now_micros;
use ramsift_store::tables::{accepted, is_view, place_columns, schema, write_segment};
use ramsift_store::{Ack, Keys, Ledger, Objects, Report, ReportError, Reporter, StoreError};
use ramsift_telemetry::Carrier;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// When a group is committed.
#[derive(Clone, Copy, Debug)]
pub struct CommitLimits {
    /// Bytes of rows in memory.
    pub bytes: usize,
    /// Age of the oldest report.
    pub age: Duration,
    /// Reports that wait for a commit. Where all workers together take no more tasks than that before an answer, nothing
    /// else would join.
    pub reports: usize,
    /// Bytes of rows of all jobs that are in memory at a time, from the first part of a report that
    /// arrives to the end of its commit; more are refused for now.
    pub total: usize,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            age: Duration::from_secs(1),
            reports: usize::MAX,
            total: 512 << 20,
        }
    }
}

/// Bytes of rows in memory, counted until this is dropped.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    /// Counts `more` bytes; an error when that would be too many, unless nothing else is held.
    pub fn grow(&mut self, more: usize, total: usize) -> Result<(), String> {
        let before = self.all.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        // A report that is larger than the limit must get through alone.
        let others = (before + more).saturating_sub(self.bytes);
        if before + more > total && others > 0 {
            return Err("too many reports wait for their commit; try again".into());
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

type Waiter = oneshot::Sender<Result<Ack, String>>;

/// A table; of a view's also the attempt, since such rows bring their columns along.
type TableOf = (String, Option<String>);

/// Rows by table, as they came.
type Tables = BTreeMap<TableOf, Vec<(SegmentPart, RecordBatch)>>;

#[derive(Debug, Default)]
struct Group {
    reports: Vec<TaskReport>,
    tables: Tables,
    traces: Vec<Carrier>,
    waiters: Vec<Waiter>,
    held: Vec<Held>,
    bytes: usize,
    /// Tells a group from those that took its place.
    number: u64,
}

#[derive(Debug)]
pub(crate) struct Inner {
    objects: Arc<dyn Objects>,
    ledger: Arc<dyn Ledger>,
    limits: CommitLimits,
    groups: Mutex<BTreeMap<String, Group>>,
    /// Reports of each job whose commit has begun.
    committing: Mutex<BTreeMap<String, usize>>,
    numbers: AtomicU64,
    /// Bytes of rows in memory.
    held: Arc<AtomicUsize>,
    metrics: Metrics,
    /// No more reports are taken.
    stop: CancellationToken,
}

/// Takes reports; the same whether they come in process or over gRPC.
#[derive(Clone, Debug)]
pub struct Aggregator {
    inner: Arc<Inner>,
}

impl Aggregator {
    /// An aggregator over this store.
    pub fn new(objects: Arc<dyn Objects>, ledger: Arc<dyn Ledger>, limits: CommitLimits) -> Self {
        let inner = Inner {
            objects,
            ledger,
            limits,
            groups: Mutex::default(),
            committing: Mutex::default(),
            numbers: AtomicU64::default(),
            held: Arc::default(),
            metrics: Metrics::new(),
            stop: CancellationToken::new(),
        };
        let inner = Arc::new(inner);
        observe_aggregator(&inner);
        Self { inner }
    }

    /// The store.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.inner.objects
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.inner.ledger
    }

    /// Why the job takes no more reports, if it does not.
    async fn closed(&self, job: &str) -> Result<Option<String>, StoreError> {
        let (sealed, planned) = tokio::try_join!(self.sealed(job), self.planned(job))?;
        Ok(sealed.or_else(|| (!planned).then(|| format!("there is no job {job}"))))
    }

    async fn sealed(&self, job: &str) -> Result<Option<String>, StoreError> {
        match self.inner.objects.head(&Keys::new(job).frozen()).await {
            Ok(_) => Ok(Some(format!("job {job} is sealed"))),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn planned(&self, job: &str) -> Result<bool, StoreError> {
        match self.inner.objects.head(&Keys::new(job).plan()).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// An account for the rows of a report that is about to arrive.
    pub fn account(&self) -> Held {
        Held {
            bytes: 0,
            all: self.inner.held.clone(),
        }
    }

    /// Bytes of rows that may be in memory.
    pub fn memory(&self) -> usize {
        self.inner.limits.total
    }

    /// Takes a report; returns when it is durable.
    pub async fn take(&self, report: Report) -> Result<Ack, String> {
        let mut held = self.account();
        held.grow(report.bytes(), self.inner.limits.total)?;
        self.take_held(report, held).await
    }

    /// Takes a report whose rows are counted already.
    pub async fn take_held(&self, report: Report, held: Held) -> Result<Ack, String> {
        if self.inner.stop.is_cancelled() {
            return Err("this aggregator is stopping".into());
        }
        let job = report.header.job.clone();
        if let Err(why) = sound(&report) {
            return Ok(Ack::Refused(why));
        }
        if let Some(why) = self.closed(&job).await.map_err(|e| e.to_string())? {
            return Ok(Ack::Refused(why));
        }
        self.all_there(&report.header).await?;
        let (tx, rx) = oneshot::channel();
        let mut ready = self.join(&job, report, held, tx);
        if ready.is_none() {
            ready = self.last(&job).await;
        }
        if let Some(group) = ready {
            self.spawn_commit(job, group);
        }
        rx.await
            .unwrap_or_else(|_| Err("the commit was abandoned".into()))
    }

    /// Checks that everything a report refers to is stored whole.
    async fn all_there(&self, header: &TaskReport) -> Result<(), String> {
        let objects = header.objects.iter().map(|o| (o.key.clone(), o.bytes));
        let segments = header.segments.iter().map(|s| (s.key.clone(), s.bytes));
        let mut checks = JoinSet::new();
        let mut all = objects.chain(segments);
        loop {
            // A few at a time: a report can name hundreds.
            if checks.len() < CHECKS
                && let Some((key, bytes)) = all.next()
            {
                checks.spawn(is_there(self.inner.objects.clone(), key, bytes));
                continue;
            }
            match checks.join_next().await {
                Some(done) => done.map_err(|e| e.to_string())??,
                None => return Ok(()),
            }
        }
    }

    /// The group of a job when all tasks that are left are in it, or in a commit that has begun.
    async fn last(&self, job: &str) -> Option<Group> {
        // No ledger, no count: the group's age decides.
        let left = self.inner.ledger.left(job).await.ok()??;
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let begun = lock(&self.inner.committing).get(job).copied().unwrap_or(0);
        let mut groups = lock(&self.inner.groups);
        let here = groups.get(job)?.reports.len();
        if here + begun < left {
            return None;
        }
        groups.remove(job)
    }

    /// Adds a report to its job's group. Returns the group when it is to be committed at once.
    fn join(&self, job: &str, report: Report, held: Held, waiter: Waiter) -> Option<Group> {
        let bytes = report.bytes();
        let asks = report.header.wishes.is_some();
        let begun = lock(&self.inner.committing).get(job).copied().unwrap_or(0);
        let mut groups = lock(&self.inner.groups);
        let group = groups.entry(job.to_owned()).or_default();
        if group.reports.is_empty() {
            group.number = self.inner.numbers.fetch_add(1, Ordering::Relaxed);
            self.spawn_timer(job.to_owned(), group.number);
        }
        if group
            .reports
            .iter()
            .any(|r| r.attempt == report.header.attempt)
        {
            // Sent again by a worker that lost its answer: it waits for the same commit.
            group.waiters.push(waiter);
            return None;
        }
        group.bytes += bytes;
        group.held.push(held);
        let (task, attempt) = (report.header.task.clone(), report.header.attempt.clone());
        group.reports.push(report.header);
        group.traces.push(report.trace);
        group.waiters.push(waiter);
        for (table, b) in report.batches {
            let rows = b.num_rows() as u64;
            let part = SegmentPart {
                task: task.clone(),
                attempt: attempt.clone(),
                rows,
            };
            let own = is_view(&table).then(|| attempt.clone());
            let rows = group.tables.entry((table, own)).or_default();
            rows.push((part, b));
        }
        let full = group.reports.len() + begun >= self.inner.limits.reports;
        if asks || full || group.bytes >= self.inner.limits.bytes {
            groups.remove(job)
        } else {
            None
        }
    }

    fn spawn_timer(&self, job: String, number: u64) {
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(this.inner.limits.age) => {}
                () = this.inner.stop.cancelled() => {}
            }
            let group = {
                let mut groups = lock(&this.inner.groups);
                match groups.get(&job) {
                    Some(g) if g.number == number => groups.remove(&job),
                    _ => None,
                }
            };
            if let Some(group) = group {
                this.spawn_commit(job, group);
            }
        });
    }

    fn spawn_commit(&self, job: String, mut group: Group) {
        let this = self.clone();
        let span =
            tracing::info_span!("aggregate.commit", job = %job, reports = group.reports.len());
        // All reports are of one job, and so of one trace: below the first, and linked to every one.
        if let Some(first) = group.traces.first() {
            ramsift_telemetry::set_parent(&span, first);
        }
        for t in group.traces.drain(..) {
            ramsift_telemetry::link(&span, &t);
        }
        let this_commit = span.clone();
        let reports = group.reports.len();
        *lock(&self.inner.committing).entry(job.clone()).or_default() += reports;
        tokio::spawn(
            async move {
                let started = Instant::now();
                let waiters = std::mem::take(&mut group.waiters);
                let held = std::mem::take(&mut group.held);
                let done = this.commit(&job, group).await;
                this.begun_less(&job, reports);
                let taken = started.elapsed();
                this.inner.metrics.commit(done.as_ref(), reports, taken);
                drop(held);
                if let Err(e) = &done {
                    tracing::error!(error = %e, "commit failed");
                    ramsift_telemetry::failed(&this_commit, e);
                }
                for w in waiters {
                    // A worker that hung up sends its report again.
                    let _ = w.send(done.clone());
                }
            }
            .instrument(span),
        );
    }

    /// A commit has ended.
    fn begun_less(&self, job: &str, reports: usize) {
        let mut all = lock(&self.inner.committing);
        if let Some(n) = all.get_mut(job) {
            *n -= reports;
            if *n == 0 {
                all.remove(job);
            }
        }
    }

    /// The record with its segments, then the ledger.
    async fn commit(&self, job: &str, group: Group) -> Result<Ack, String> {
        let keys = Keys::new(job);
        // Sealed while the group waited?
        if let Some(why) = self.sealed(job).await.map_err(|e| e.to_string())? {
            return Ok(Ack::Refused(why));
        }
        let id = uuid::Uuid::now_v7().to_string();
        let record = CommitRecord {
            id: id.clone(),
            job: job.to_owned(),
            time_micros: now_micros(),
            reports: group.reports,
            segments: Vec::new(),
        };
        let tasks: Vec<String> = record.reports.iter().map(|r| r.task.clone()).collect();
        let tables = group.tables;
        let encoded = tokio::task::spawn_blocking(move || encode(record, tables));
        let data = encoded.await.map_err(|e| e.to_string())??;
        self.inner
            .objects
            .put_new(&keys.commit(&id), data)
            .await
            .map_err(|e| e.to_string())?;
        let settle = tracing::info_span!("settle", tasks = tasks.len());
        if let Err(e) = self
            .inner
            .ledger
            .settle(job, &tasks)
            .instrument(settle)
            .await
        {
            // A cache: the coordinator fills it again from the records.
            tracing::warn!(error = %e, "ledger not updated");
        }
        Ok(Ack::Durable)
    }

    /// Commits what waits and takes no more reports.
    pub fn drain(&self) {
        self.inner.stop.cancel();
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Whether no report waits for its commit.
    pub fn is_idle(&self) -> bool {
        lock(&self.inner.groups).is_empty()
    }
}

impl Inner {
    /// Bytes of rows in memory, and how many there may be.
    pub(crate) fn memory(&self) -> (usize, usize) {
        (self.held.load(Ordering::Relaxed), self.limits.total)
    }

    /// Reports that wait for their commit, and those whose commit has begun.
    pub(crate) fn reports(&self) -> (usize, usize) {
        let waiting = lock(&self.groups).values().map(|g| g.reports.len()).sum();
        let begun = lock(&self.committing).values().sum();
        (waiting, begun)
    }
}

/// The object of a commit.
fn encode(record: CommitRecord, tables: Tables) -> Result<Bytes, String> {
    let mut segments = CommitSegments::default();
    for ((table, _), parts) in tables {
        let (parts, batches): (Vec<_>, Vec<_>) = by_place(&table, parts).into_iter().unzip();
        let schema = batches.first().and_then(|b| accepted(&table, &b.schema()));
        let schema = schema.ok_or_else(|| format!("no table {table} of such rows"))?;
        let data = write_segment(&table, schema, &batches).map_err(|e| e.to_string())?;
        let segment = SegmentRef {
            table,
            rows: batches.iter().map(|b| b.num_rows() as u64).sum(),
            blake3: blake3::hash(&data).to_hex().to_string(),
            parts,
            ..SegmentRef::default()
        };
        segments.add(segment, &data);
    }
    commits::encode(record, segments).map_err(|e| e.to_string())
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what a report names are names, and of its own job: they become keys in the store and names of files.
fn sound(r: &Report) -> Result<(), String> {
    let h = &r.header;
    let plain = |s: &str| {
        let bad = |c: char| c.is_control() || matches!(c, '/' | '\\');
        !s.is_empty() && s.len() <= NAME && !s.starts_with('.') && !s.contains(bad)
    };
    let within = |key: &str, folder: &str| {
        let rest = key.strip_prefix(folder);
        rest.is_some_and(|k| k.split('/').all(plain))
    };
    if !plain(&h.job) || !plain(&h.attempt) || h.task.parse::<TaskId>().is_err() {
        return Err(format!("{:?}: a report of this name is none", h.task));
    }
    let keys = Keys::new(&h.job);
    let (segments, packs) = (keys.segments(), keys.packs());
    let stray = |key: &str| format!("{}: {key} is not its own to report", h.task);
    for s in &h.segments {
        if !within(&s.key, &segments) {
            return Err(stray(&s.key));
        }
        if !is_table(&s.table) {
            return Err(format!("{}: there is no table {}", h.task, s.table));
        }
    }
    for o in &h.objects {
        if !within(&o.key, &packs) && !within(&o.key, ARTIFACTS) {
            return Err(stray(&o.key));
        }
    }
    if let Some(w) = &h.wishes {
        let folder = w.folder.strip_suffix('/').unwrap_or(&w.folder);
        if !folder.is_empty() && !within(folder, &keys.all_lists()) {
            return Err(stray(&w.folder));
        }
        if w.memory > MAX_LISTS || w.files > MAX_LISTS || w.views.len() > VIEWS {
            return Err(format!("{}: asks for too many tasks", h.task));
        }
    }
    match r.batches.iter().find(|(t, _)| !is_table(t)) {
        Some((t, _)) => Err(format!("{}: there is no table {t}", h.task)),
        None => Ok(()),
    }
}

/// Whether rows of such a table can be reported.
fn is_table(table: &str) -> bool {
    is_view(table) || schema(table).is_some()
}

/// Where large artifacts lie.
const ARTIFACTS: &str = "artifacts/";
/// Characters of a name at most.
const NAME: usize = 256;
/// Views that one report may ask for.
const VIEWS: usize = 64;

/// Objects of a report looked up at a time.
const CHECKS: usize = 16;

/// Whether an object is stored whole.
async fn is_there(objects: Arc<dyn Objects>, key: String, bytes: u64) -> Result<(), String> {
    match objects.head(&key).await {
        Ok(m) if m.size == bytes => Ok(()),
        Ok(m) => Err(format!(
            "{key} has {} bytes and should have {bytes}: the task must be done again",
            m.size
        )),
        Err(e) => Err(e.to_string()),
    }
}

/// Parts of a table that is sorted by place in the order in which they begin, so that those of
/// neighbouring chunks share a row group.
fn by_place(
    table: &str,
    mut parts: Vec<(SegmentPart, RecordBatch)>,
) -> Vec<(SegmentPart, RecordBatch)> {
    if let Some(c) = place_columns(table) {
        parts.sort_by_cached_key(|(_, b)| {
            b.column_by_name(c.start)
                .and_then(|a| a.as_primitive_opt::<UInt64Type>())
                .and_then(|a| a.values().first().copied())
        });
    }
    parts
}

#[async_trait]
impl Reporter for Aggregator {
    async fn report(&self, report: &Report) -> Result<Ack, ReportError> {
        self.take(report.clone())
            .await
            .map_err(|detail| ReportError {
                at: "this process".into(),
                detail,
                refused: false,
            })
    }

    async fn check(&self) -> Result<(), ReportError> {
        Ok(())
    }
}
