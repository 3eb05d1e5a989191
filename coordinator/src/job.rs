//! One running job: which of its tasks are to be published, which are out, which are settled.

mod progress;
mod publish;
mod stages;

use crate::lanes::QUIET;
use crate::lost::Lost;
use crate::{Config, Deps};
use futures::{StreamExt, TryStreamExt};
use ramsift_proto::v1::{JobSpec, JobState, Outcome, RuleCount, RuleGap, TaskReport, Wishes};
use ramsift_proto::{MAX_LISTS, TaskId, view};
use ramsift_queue::Lane;
use ramsift_store::job::{now_micros, to_json};
use ramsift_store::{Keys, Plan, StoreError, commits};
use ramsift_telemetry::set_parent;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::Span;

/// How often the commits of a job are listed although the ledger knows of no news.
const LIST_ANYWAY: Duration = Duration::from_secs(5);

/// Small objects read at a time.
pub(crate) const READS: usize = 16;

/// What the store has told of a job.
#[derive(Debug)]
pub(crate) enum News {
    /// It has no plan.
    Unplanned,
    /// A plan that was there was taken up.
    Planned,
    /// Tasks are newly settled.
    Settled {
        /// How many.
        tasks: usize,
        /// How many of them failed.
        failed: u64,
        /// What kept the job from its next stage.
        trouble: Option<StoreError>,
    },
}

/// What a job does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not planned yet.
    Unplanned,
    /// Chunks are out, and the views that need none of them.
    Chunks,
    /// Verdicts and the other views are out, and what views ask for.
    Rest,
    /// Verdicts on processes are out.
    Processes,
    /// Every task is settled.
    Settled,
}

/// What the searches of one scope gave, as far as verdicts need to know.
#[derive(Debug, Default)]
struct Searched {
    matched: BTreeMap<u32, u64>,
    gaps: BTreeSet<(u32, Option<u32>, String)>,
    failed: bool,
}

impl Searched {
    fn add(&mut self, r: TaskReport) {
        self.failed |= r.outcome() == Outcome::Failed;
        for c in r.rule_matches {
            *self.matched.entry(c.rule).or_default() += c.count;
        }
        let gap = |g: RuleGap| (g.rule, g.pattern, g.reason);
        self.gaps.extend(r.rule_gaps.into_iter().map(gap));
    }

    fn counts(&self) -> Vec<RuleCount> {
        let count = |(rule, count): (&u32, &u64)| RuleCount {
            rule: *rule,
            count: *count,
        };
        self.matched.iter().map(count).collect()
    }

    fn gaps(&self) -> Vec<RuleGap> {
        let gap = |(rule, pattern, reason): &(u32, Option<u32>, String)| RuleGap {
            rule: *rule,
            pattern: *pattern,
            reason: reason.clone(),
        };
        self.gaps.iter().map(gap).collect()
    }
}

/// A task that was published and is not settled.
#[derive(Clone, Copy, Debug)]
struct Out {
    /// Publications, this one included.
    publication: u32,
    since: Instant,
}

/// A job in the coordinator's memory; all of it can be read from the store again.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) spec: JobSpec,
    pub(crate) keys: Keys,
    pub(crate) plan: Option<Plan>,
    pub(crate) state: JobState,
    pub(crate) etag: String,
    pub(crate) stage: Stage,
    /// Since when something for this job runs apart from the loop: planning, or sealing.
    pub(crate) busy_since: Option<Instant>,
    pub(crate) cancel: Option<String>,
    /// The ledger is being told what it has forgotten.
    pub(crate) healing: Arc<AtomicBool>,
    /// Tasks that are to be published, by lane; none of them is out.
    pending: BTreeMap<Lane, VecDeque<TaskId>>,
    out: BTreeMap<TaskId, Out>,
    open: BTreeSet<TaskId>,
    settled: BTreeSet<String>,
    split: BTreeSet<String>,
    commits: BTreeSet<String>,
    /// The image, by its chunks.
    image: Searched,
    /// The memory of processes.
    memory: Searched,
    /// Folders of the lists of memory and of recovered content.
    lists: [String; 2],
    /// Lists of memory of processes.
    memory_lists: u32,
    /// Views that wait until every chunk is settled.
    waiting: Vec<String>,
    failed_tasks: u64,
    bytes_done: u64,
    /// Tasks that are known so far.
    total: u64,
    /// What the ledger was told of that.
    told: u64,
    pub(crate) fatal: Option<String>,
    started: Instant,
    bytes_at_start: Option<u64>,
    pub(crate) last_progress: Instant,
    /// When its commits were listed last.
    listed: Option<Instant>,
    /// How long nothing may be settled before tasks that lie nowhere are taken for lost.
    patience: Duration,
    /// Views that nobody was at when that was asked last, and when that was.
    idle: BTreeSet<TaskId>,
    asked: Option<Instant>,
    /// What keeps it from going on.
    pub(crate) waits_for: Vec<String>,
    /// How far unpacking its capture is.
    pub(crate) unpacking: Arc<Mutex<String>>,
    /// Nothing is done for the job before this moment: it was in trouble.
    pub(crate) not_before: Option<Instant>,
    /// Since when nothing has gone right.
    pub(crate) trouble_since: Option<Instant>,
    /// What it was, until something goes on.
    pub(crate) trouble: Option<String>,
}

impl Job {
    pub(crate) fn new(spec: JobSpec, state: JobState, etag: String) -> Self {
        Self {
            keys: Keys::new(&spec.job),
            spec,
            plan: None,
            state,
            etag,
            stage: Stage::Unplanned,
            busy_since: None,
            cancel: None,
            healing: Arc::default(),
            pending: BTreeMap::new(),
            out: BTreeMap::new(),
            open: BTreeSet::new(),
            settled: BTreeSet::new(),
            split: BTreeSet::new(),
            commits: BTreeSet::new(),
            image: Searched::default(),
            memory: Searched::default(),
            lists: Default::default(),
            memory_lists: 0,
            waiting: Vec::new(),
            failed_tasks: 0,
            bytes_done: 0,
            total: 0,
            told: 0,
            fatal: None,
            started: Instant::now(),
            bytes_at_start: None,
            last_progress: Instant::now(),
            listed: None,
            patience: QUIET,
            idle: BTreeSet::new(),
            asked: None,
            waits_for: Vec::new(),
            unpacking: Arc::default(),
            not_before: None,
            trouble_since: None,
            trouble: None,
        }
    }

    /// Forgets what was read from the store, so that it is read again.
    pub(crate) fn start_over(&mut self) {
        let fresh = Self::new(self.spec.clone(), self.state.clone(), self.etag.clone());
        let kept = (self.cancel.take(), self.trouble_since, self.trouble.take());
        *self = fresh;
        (self.cancel, self.trouble_since, self.trouble) = kept;
    }

    /// Takes a plan over and works out what is left to do, from the records in the store.
    pub(crate) async fn begin(&mut self, deps: &Deps, plan: Plan) -> Result<(), StoreError> {
        let folder = self.keys.splits();
        for m in deps.objects.list(&folder).await? {
            if let Some(t) = m.key[folder.len()..].strip_suffix(".json") {
                self.split.insert(t.to_owned());
            }
        }
        self.begin_anew(plan);
        self.refresh(deps).await?;
        self.bytes_at_start = Some(self.bytes_done);
        Ok(())
    }

    /// Takes up a plan that nobody has worked by yet.
    pub(crate) fn begin_anew(&mut self, plan: Plan) {
        let chunks = if plan.spec.unstructured {
            plan.chunk_count
        } else {
            0
        };
        let views = plan.views.clone();
        self.plan = Some(plan);
        self.stage = Stage::Chunks;
        // Before the chunks: a list of processes is there while they are scanned.
        views.into_iter().for_each(|v| self.add_view(v));
        for i in 0..chunks {
            self.add(TaskId::chunk(i));
        }
        self.bytes_at_start = Some(0);
        self.started = Instant::now();
        self.last_progress = Instant::now();
    }

    /// Adds a task, or its halves where it was cut.
    fn add(&mut self, task: TaskId) {
        let name = task.to_string();
        if self.split.contains(&name) {
            if let Some(halves) = task.halves() {
                halves.into_iter().for_each(|h| self.add(h));
            }
            return;
        }
        self.total += 1;
        if self.settled.contains(&name) {
            return;
        }
        self.open.insert(task.clone());
        self.wait_for_turn(task);
    }

    /// Bytes of the file that a task reads.
    fn range(&self, task: &TaskId) -> std::ops::Range<u64> {
        let (Some(plan), TaskId::Chunk { index, .. }) = (&self.plan, task) else {
            return 0..0;
        };
        let start = index * plan.chunks.size;
        task.narrow(start..(start + plan.chunks.size).min(plan.pin.size()))
    }

    fn bytes(&self, task: &TaskId) -> u64 {
        let r = self.range(task);
        r.end - r.start
    }

    /// Whether its commits are to be listed: the ledger, as far as it answers, knows of more settled tasks or of fewer, or
    /// it was long ago.
    pub(crate) fn is_to_be_listed(&self, in_ledger: Option<u64>) -> bool {
        let known = self.settled.len() as u64;
        self.stage == Stage::Unplanned
            || self.stage_is_over()
            || in_ledger != Some(known)
            || self.listed.is_none_or(|t| t.elapsed() >= LIST_ANYWAY)
    }

    /// Reads the commit records that are new. Returns the names of newly settled tasks.
    pub(crate) async fn refresh(&mut self, deps: &Deps) -> Result<Vec<String>, StoreError> {
        let mut news = Vec::new();
        let objects = deps.objects.as_ref();
        let mut fresh = objects.list(&self.keys.commits()).await?;
        fresh.retain(|m| !self.commits.contains(&m.key));
        let mut records = futures::stream::iter(fresh)
            .map(|m| async move {
                let record = commits::read(objects, &m.key, m.size).await?;
                Ok::<_, StoreError>((m.key, record))
            })
            .buffered(READS);
        while let Some((key, record)) = records.try_next().await? {
            self.commits.insert(key);
            for r in record.reports {
                if let Some(name) = self.settle(r) {
                    news.push(name);
                }
            }
        }
        self.listed = Some(Instant::now());
        if !news.is_empty() {
            self.last_progress = Instant::now();
            self.patience = QUIET;
        }
        Ok(news)
    }

    fn settle(&mut self, r: TaskReport) -> Option<String> {
        if r.fatal {
            self.fatal.get_or_insert_with(|| r.reason.clone());
        }
        if self.split.contains(&r.task) || !self.settled.insert(r.task.clone()) {
            return None;
        }
        let id = r.task.parse::<TaskId>().ok()?;
        if r.outcome() == Outcome::Failed {
            self.failed_tasks += 1;
        }
        self.bytes_done += self.bytes(&id);
        self.open.remove(&id);
        if self.out.remove(&id).is_none() {
            // Another coordinator published it.
            self.withdraw(&id);
        }
        if let (Some(w), TaskId::View(_)) = (&r.wishes, &id) {
            self.wish(w.clone());
        }
        let name = r.task.clone();
        match id {
            TaskId::Chunk { .. } => self.image.add(r),
            TaskId::Memory(_) => self.memory.add(r),
            _ => {}
        }
        Some(name)
    }

    /// Adds what a view asks for.
    fn wish(&mut self, mut w: Wishes) {
        w.memory = w.memory.min(MAX_LISTS);
        w.files = w.files.min(MAX_LISTS);
        if w.memory > 0 {
            self.lists[0].clone_from(&w.folder);
            self.memory_lists = w.memory;
            (0..w.memory).for_each(|n| self.add(TaskId::Memory(n)));
        }
        if w.files > 0 {
            self.lists[1] = w.folder;
            (0..w.files).for_each(|n| self.add(TaskId::Files(n)));
        }
        w.views.into_iter().for_each(|v| self.add_view(v));
    }

    /// Adds a view, or keeps it until its turn.
    fn add_view(&mut self, name: String) {
        if self.stage == Stage::Chunks && view::waits_for_chunks(&name) {
            self.waiting.push(name);
        } else {
            self.add(TaskId::View(name));
        }
    }

    /// A span of this job's trace.
    pub(crate) fn in_trace(&self, span: Span) -> Span {
        set_parent(&span, &self.state.trace.clone().into_iter().collect());
        span
    }

    /// Tasks that are known so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The same when it has changed since this was asked last.
    pub(crate) fn untold_total(&mut self) -> Option<u64> {
        let told = std::mem::replace(&mut self.told, self.total);
        (told != self.total).then_some(self.total)
    }

    /// A task took a worker down even alone: cut it in two. Gives what is lost when it is too
    /// small to cut, to be noted as failed.
    pub(crate) async fn bury(
        &mut self,
        deps: &Deps,
        config: &Config,
        task: &str,
    ) -> Result<Option<Lost>, StoreError> {
        let Ok(id) = task.parse::<TaskId>() else {
            return Ok(None);
        };
        if !self.open.contains(&id) {
            return Ok(None);
        }
        let halves = id
            .halves()
            .filter(|_| self.bytes(&id) > config.smallest.max(4096));
        if let Some(halves) = halves {
            let data = to_json(&serde_json::json!({"task": task, "micros": now_micros()}))?;
            match deps.objects.put_new(&self.keys.split(task), data).await {
                Err(e) if !e.is_conflict() => return Err(e.into()),
                _ => {}
            }
            tracing::warn!(job = %self.spec.job, task, "took workers down, cut in two");
            self.split.insert(task.to_owned());
            self.open.remove(&id);
            self.out.remove(&id);
            self.withdraw(&id);
            self.total = self.total.saturating_sub(1);
            halves.into_iter().for_each(|h| self.add(h));
            return Ok(None);
        }
        let pin = self.plan.as_ref().map(|p| p.pin.clone());
        Ok(pin.map(|pin| Lost {
            job: self.spec.job.clone(),
            task: task.to_owned(),
            file: self.range(&id),
            pin,
            worker: config.name.clone(),
        }))
    }

    /// Bytes of its capture.
    pub(crate) fn size(&self) -> u64 {
        self.plan.as_ref().map_or(0, |p| p.pin.size())
    }

    /// How many tasks are settled.
    pub(crate) fn settled_count(&self) -> usize {
        self.settled.len()
    }

    /// Names of settled tasks.
    pub(crate) fn settled(&self) -> Vec<String> {
        self.settled.iter().cloned().collect()
    }
}

/// The lane that a task is published to first.
fn lane(task: &TaskId) -> Lane {
    match task {
        TaskId::View(_) => Lane::Views,
        _ => Lane::Chunks,
    }
}

#[cfg(test)]
mod tests;
