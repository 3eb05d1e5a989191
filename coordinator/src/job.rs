//! One running job: which of its tasks are to be published, which are out, which are settled.

use crate::lanes::QUIET;
use crate::lost::Lost;
use crate::{Config, Deps};
use futures::{StreamExt, TryStreamExt};
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{
    ChunkWork, FilesWork, JobPhase, JobProgress, JobSpec, JobState, MemoryWork, Outcome, RuleCount,
    RuleGap, Task, TaskReport, VerdictWork, ViewWork, Wishes,
};
use ramsift_proto::{MAX_LISTS, TaskId, view};
use ramsift_queue::Lane;
use ramsift_store::job::{self, now_micros, rules_key, to_json};
use ramsift_store::lists::{LIST, PROCESSES, files_name, memory_name};
use ramsift_store::tables::name;
use ramsift_store::{Keys, Plan, StoreError, VerdictPlan, commits};
use ramsift_telemetry::set_parent;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::Span;

/// Small objects read at a time.
pub(crate) const READS: usize = 16;
/// How often it is asked whether anybody is at views; more than workers take to note it anew in a ledger that has forgotten.
const ASK: Duration = Duration::from_secs(15);
/// Tasks that are few.
const TURN: usize = 8;

/// What the store has told of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It has no plan.
    Unplanned,
    /// A plan that was there was taken up.
    Planned,
    /// So many tasks are newly settled, and so many of them failed.
    Settled { tasks: usize, failed: u64 },
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
    /// Something for this job runs apart from the loop (planning, sealing).
    pub(crate) busy: bool,
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
            busy: false,
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

    /// Takes the plan of a job that has ended.
    pub(crate) fn ended_with(&mut self, plan: Plan) {
        if matches!(
            self.state.phase(),
            JobPhase::Complete | JobPhase::CompleteWithGaps
        ) {
            self.bytes_done = plan.pin.size();
        }
        self.plan = Some(plan);
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

    /// Puts a task behind those of its lane that are to be published.
    fn wait_for_turn(&mut self, task: TaskId) {
        self.pending.entry(lane(&task)).or_default().push_back(task);
    }

    /// Publishes a task no more.
    fn withdraw(&mut self, task: &TaskId) {
        if let Some(of_lane) = self.pending.get_mut(&lane(task)) {
            of_lane.retain(|t| t != task);
        }
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

    /// Bytes that a task works on, for the fairness between jobs.
    fn cost(&self, task: &TaskId) -> u64 {
        match task {
            TaskId::Memory(_) | TaskId::Files(_) => LIST,
            _ => self.bytes(task).max(1 << 20),
        }
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

    /// Whether every task of the stage is settled.
    fn stage_is_over(&self) -> bool {
        match self.stage {
            Stage::Unplanned | Stage::Settled => false,
            // Chunks are first in order.
            Stage::Chunks => !matches!(self.open.first(), Some(TaskId::Chunk { .. })),
            Stage::Rest | Stage::Processes => self.open.is_empty(),
        }
    }

    /// Bytes that the next task of a lane reads, when one may be published now.
    pub(crate) fn next_cost(&self, of: Lane, window: usize) -> Option<u64> {
        if self.busy || self.cancel.is_some() || self.fatal.is_some() || self.out.len() >= window {
            return None;
        }
        self.pending.get(&of)?.front().map(|t| self.cost(t))
    }

    /// Whether a task of a lane may be published now.
    pub(crate) fn has_next(&self, of: Lane, window: usize) -> bool {
        self.next_cost(of, window).is_some()
    }

    /// Whether tasks are to be published and none is out: others' come first.
    pub(crate) fn waits_for_turn(&self) -> bool {
        self.out.is_empty() && !self.nothing_is_pending()
    }

    fn nothing_is_pending(&self) -> bool {
        self.pending.values().all(VecDeque::is_empty)
    }

    /// The next task of a lane, and the lane it goes to: parts of what took workers down go to the suspects'.
    pub(crate) fn take(&mut self, of: Lane) -> Option<(Lane, Task)> {
        let id = self.pending.get_mut(&of)?.pop_front()?;
        if self.out.is_empty() {
            // It waited for others' tasks: nothing of it could be settled.
            self.last_progress = Instant::now();
        }
        let out = self.out.entry(id.clone()).or_insert(Out {
            publication: 0,
            since: Instant::now(),
        });
        out.publication += 1;
        let publication = out.publication;
        let (lane, work) = match &id {
            TaskId::Chunk { index, .. } => {
                let r = self.range(&id);
                // A part of what took workers down may do the same: it takes no others along.
                let suspect = id.parent().is_some();
                let work = ChunkWork {
                    index: *index,
                    file_start: r.start,
                    file_end: r.end,
                    suspect,
                };
                let lane = if suspect {
                    Lane::Suspects
                } else {
                    Lane::Chunks
                };
                (lane, Work::Chunk(work))
            }
            TaskId::Verdict(group) => (Lane::Chunks, self.verdict(*group, String::new())),
            TaskId::Process(group) => {
                let processes = format!("{}{PROCESSES}", self.lists[0]);
                (Lane::Chunks, self.verdict(*group, processes))
            }
            TaskId::Memory(n) => {
                let list = format!("{}{}", self.lists[0], memory_name(*n));
                (Lane::Chunks, Work::Memory(MemoryWork { list }))
            }
            TaskId::Files(n) => {
                let list = format!("{}{}", self.lists[1], files_name(*n));
                (Lane::Chunks, Work::Files(FilesWork { list }))
            }
            TaskId::View(view) => (Lane::Views, Work::View(ViewWork { view: view.clone() })),
        };
        let task = Task {
            job: self.spec.job.clone(),
            task: id.to_string(),
            publication,
            work: Some(work),
        };
        Some((lane, task))
    }

    fn verdict(&self, group: u32, processes: String) -> Work {
        Work::Verdict(VerdictWork { group, processes })
    }

    /// A task could not be published after all.
    pub(crate) fn put_back(&mut self, task: &str) {
        if let Ok(id) = task.parse::<TaskId>() {
            self.out.remove(&id);
            if self.open.contains(&id) {
                self.pending.entry(lane(&id)).or_default().push_front(id);
            }
        }
    }

    /// Publishes everything again that is out: nothing has come back for too long, or the broker has lost it.
    pub(crate) fn republish(&mut self) {
        self.publish_again(|_| true);
    }

    /// Publishes the chunks' tasks again when none of them lies in the queue and none was settled for long: the broker
    /// lost them, or workers take long over them, which each time is waited for twice as long. A task that is done
    /// twice counts once.
    pub(crate) fn republish_lost(&mut self, longest: Duration) -> bool {
        let lost = self.last_progress.elapsed() >= self.patience.min(longest)
            && self.out.keys().any(|t| lane(t) == Lane::Chunks);
        if lost {
            self.publish_again(|t| lane(t) == Lane::Chunks);
            self.patience *= 2;
        }
        lost
    }

    fn publish_again(&mut self, which: impl Fn(&TaskId) -> bool) {
        self.last_progress = Instant::now();
        let all: Vec<TaskId> = self.out.keys().filter(|t| which(t)).cloned().collect();
        for id in all {
            self.out.remove(&id);
            if self.open.contains(&id) {
                self.wait_for_turn(id);
            }
        }
    }

    /// Views that were published long ago, when it is time to ask whether anybody is at them.
    pub(crate) fn views_to_ask_about(&mut self) -> Vec<String> {
        if self.asked.is_some_and(|t| t.elapsed() < ASK) {
            return Vec::new();
        }
        let old = |(t, o): &(&TaskId, &Out)| lane(t) == Lane::Views && o.since.elapsed() >= QUIET;
        let tasks: Vec<String> = self
            .out
            .iter()
            .filter(old)
            .map(|(t, _)| t.to_string())
            .collect();
        if !tasks.is_empty() {
            self.asked = Some(Instant::now());
        }
        tasks
    }

    /// Publishes views again that nobody was at, now and when that was asked before: the broker has lost them.
    /// Whether there were any.
    pub(crate) fn republish_idle(&mut self, tasks: &[String]) -> bool {
        let now: BTreeSet<TaskId> = tasks.iter().filter_map(|t| t.parse().ok()).collect();
        let lost: Vec<TaskId> = now.intersection(&self.idle).cloned().collect();
        self.idle = now;
        self.idle.retain(|t| !lost.contains(t));
        self.publish_again(|t| lost.contains(t));
        !lost.is_empty()
    }

    /// Tasks that were published to a lane and are not settled.
    pub(crate) fn out_in(&self, of: Lane) -> usize {
        self.out.keys().filter(|t| lane(t) == of).count()
    }

    /// How long ago the first task was published to a lane that is not settled.
    pub(crate) fn oldest_out(&self, of: Lane) -> Option<Duration> {
        let there = |t: &TaskId| match of {
            Lane::Suspects => t.parent().is_some(),
            _ => lane(t) == of && t.parent().is_none(),
        };
        let all = self.out.iter().filter(|(t, _)| there(t));
        all.map(|(_, o)| o.since.elapsed()).max()
    }

    /// A span of this job's trace.
    pub(crate) fn in_trace(&self, span: Span) -> Span {
        set_parent(&span, &self.state.trace.clone().into_iter().collect());
        span
    }

    pub(crate) fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether few tasks are left before others can begin, or the job can end.
    pub(crate) fn is_at_a_turn(&self) -> bool {
        self.nothing_is_pending() && (1..=TURN).contains(&self.out.len())
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

    /// Reads what is new in the store and moves on as far as that allows; only the plan that is there is taken up for a
    /// job without one.
    pub(crate) async fn move_on(&mut self, deps: &Deps) -> Result<News, StoreError> {
        if self.stage == Stage::Unplanned {
            let plan = job::read_opt::<Plan>(deps.objects.as_ref(), &self.keys.plan()).await?;
            let Some((plan, _)) = plan else {
                return Ok(News::Unplanned);
            };
            self.begin(deps, plan).await?;
            return Ok(News::Planned);
        }
        let failed_before = self.failed_tasks;
        let tasks = self.refresh(deps).await?.len();
        if self.fatal.is_none() {
            self.advance(deps).await?;
        }
        Ok(News::Settled {
            tasks,
            failed: self.failed_tasks - failed_before,
        })
    }

    /// Moves on while all tasks of a stage are settled.
    pub(crate) async fn advance(&mut self, deps: &Deps) -> Result<(), StoreError> {
        while self.stage_is_over() {
            self.stage = match self.stage {
                Stage::Chunks => {
                    self.start_rest(deps).await?;
                    Stage::Rest
                }
                Stage::Rest if self.memory_lists > 0 => {
                    let (key, failed) = (self.keys.process_verdicts(), self.memory.failed);
                    let of = (&self.memory, name::MEMORY_MATCHES);
                    let groups = self.plan_verdicts(deps, &key, of, failed).await?;
                    (0..groups).for_each(|g| self.add(TaskId::Process(g)));
                    Stage::Processes
                }
                _ => Stage::Settled,
            };
        }
        Ok(())
    }

    /// Adds what waits for the chunks: verdicts over the image, and some views.
    async fn start_rest(&mut self, deps: &Deps) -> Result<(), StoreError> {
        if self.spec.unstructured {
            let missing = |p: &Plan| !p.layout.runs.missing().is_empty();
            let failed = self.image.failed || self.plan.as_ref().is_some_and(missing);
            let (key, of) = (self.keys.verdicts(), (&self.image, name::MATCHES));
            let groups = self.plan_verdicts(deps, &key, of, failed).await?;
            (0..groups).for_each(|g| self.add(TaskId::Verdict(g)));
        }
        let waiting = std::mem::take(&mut self.waiting);
        for v in waiting {
            self.add(TaskId::View(v));
        }
        Ok(())
    }

    /// Groups the rules, once; the stored plan counts. Returns the number of groups.
    async fn plan_verdicts(
        &self,
        deps: &Deps,
        key: &str,
        (searched, table): (&Searched, &str),
        failed_ranges: bool,
    ) -> Result<u32, StoreError> {
        let digest = &self.spec.rules_digest;
        if digest.is_empty() {
            return Ok(0);
        }
        let objects = deps.objects.as_ref();
        let number = |v: &VerdictPlan| u32::try_from(v.groups.len()).unwrap_or(u32::MAX);
        if let Some((v, _)) = job::read_opt::<VerdictPlan>(objects, key).await? {
            return Ok(number(&v));
        }
        let (rules, _) = objects.get(&rules_key(digest)).await?;
        let matched = searched.counts();
        let planner = deps.verdicts.clone();
        let groups = tokio::task::spawn_blocking(move || planner.groups(&rules, &matched))
            .await
            .map_err(|e| StoreError::Query(e.to_string()))?
            .map_err(StoreError::Query)?;
        let v = VerdictPlan {
            groups,
            gaps: searched.gaps(),
            failed_ranges,
            segments: self.match_segments(deps, table).await?,
        };
        match objects.put_new(key, to_json(&v)?).await {
            Ok(_) => Ok(number(&v)),
            Err(e) if e.is_conflict() => {
                let (v, _) = job::read::<VerdictPlan>(objects, key).await?;
                Ok(number(&v))
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn match_segments(&self, deps: &Deps, table: &str) -> Result<Vec<String>, StoreError> {
        let mut out = Vec::new();
        for c in commits::all(deps.objects.as_ref(), &self.keys).await? {
            let of_reports = c.reports.iter().flat_map(|r| &r.segments);
            out.extend(
                c.segments
                    .iter()
                    .chain(of_reports)
                    .filter(|s| s.table == table)
                    .map(|s| s.key.clone()),
            );
        }
        Ok(out)
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

    /// Bytes of unsettled chunk tasks.
    pub(crate) fn backlog(&self) -> u64 {
        self.open.iter().map(|t| self.bytes(t)).sum()
    }

    /// Age of the job, seconds.
    pub(crate) fn age(&self) -> f64 {
        (now_micros() - self.spec.submitted_micros).max(0) as f64 / 1e6
    }

    /// Where it stands.
    pub(crate) fn progress(&self) -> JobProgress {
        let running = self.started.elapsed().as_secs_f64();
        let total = self
            .plan
            .as_ref()
            .filter(|p| p.spec.unstructured)
            .map_or(0, |p| p.pin.size());
        let speed = self.bytes_at_start.map_or(0.0, |b| {
            self.bytes_done.saturating_sub(b) as f64 / running.max(0.001)
        });
        let eta = if speed > 0.0 {
            total.saturating_sub(self.bytes_done) as f64 / speed
        } else {
            -1.0
        };
        let unpacking = self
            .unpacking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let unpacking = (!unpacking.is_empty()).then(|| unpacking.clone());
        JobProgress {
            state: Some(self.state.clone()),
            source: self.spec.source.clone(),
            bytes_total: total,
            bytes_done: self.bytes_done,
            tasks_total: self.total.max(self.settled.len() as u64),
            tasks_done: self.settled.len() as u64,
            tasks_failed: self.failed_tasks,
            running_seconds: running,
            eta_seconds: eta,
            priority: self.spec.priority,
            stage: self.stage_name().to_owned(),
            waits_for: {
                let trouble = self
                    .trouble
                    .iter()
                    .map(|t| format!("tried again until it works: {t}"));
                trouble
                    .chain(self.waits_for.iter().cloned())
                    .chain(unpacking)
                    .collect()
            },
        }
    }

    /// What it does now, in words.
    fn stage_name(&self) -> &'static str {
        match (self.state.phase(), self.stage) {
            (p, _) if p.is_final() => "",
            (_, Stage::Unplanned) => "planning",
            (_, Stage::Chunks) => "chunks and views",
            (_, Stage::Rest) => "verdicts and views",
            (_, Stage::Processes) => "verdicts on processes",
            (_, Stage::Settled) => "sealing",
        }
    }

    /// Whether the job has ended.
    pub(crate) fn is_final(&self) -> bool {
        self.state.phase().is_final()
    }

    /// Names of settled tasks.
    pub(crate) fn settled(&self) -> Vec<String> {
        self.settled.iter().cloned().collect()
    }

    /// The state that the job is to have.
    pub(crate) fn state_as(&self, phase: JobPhase, reason: &str, epoch: u64) -> JobState {
        JobState {
            job: self.spec.job.clone(),
            phase: phase.into(),
            reason: reason.to_owned(),
            epoch,
            updated_micros: now_micros(),
            trace: self.state.trace.clone(),
        }
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
