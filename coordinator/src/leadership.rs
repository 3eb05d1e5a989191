//! One time as the active coordinator: the loop that moves jobs on.

use crate::Deps;
use crate::job::{Job, READS, Stage};
use crate::lanes::Lanes;
use crate::metrics::Active;
use crate::retry::RETRIES;
use crate::schedule::Round;
use crate::service::{Coordinator, Event, NEWS, lock};
use crate::unpacked::{self, Unpacking};
use futures::{StreamExt, TryStreamExt};
use prost::Message as _;
use ramsift_layers::{SourceError, SourcePin};
use ramsift_proto::v1::{JobPhase, JobSpec, JobState};
use ramsift_queue::{Lane, Message};
use ramsift_store::image;
use ramsift_store::job::{read, read_opt, to_json};
use ramsift_store::{Keys, Plan, StoreError};
use ramsift_telemetry::failed;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// How often the store is looked through for jobs that others submitted.
const DISCOVER: Duration = Duration::from_secs(5);
/// Pause before a lost task is noted again.
const AGAIN: Duration = Duration::from_secs(1);
/// Publishes in flight at a time.
const BATCH: usize = 64;

/// Tries to write a state that others write to.
const WRITES: usize = 4;

/// A job's state under this term's epoch, and its tag.
type Adopted = (JobState, String);

/// Looks at the evidence once more before its job is sealed. The error says whether it is final.
async fn unchanged(deps: &Deps, pin: Option<SourcePin>) -> Result<(), (String, bool)> {
    let Some(pin) = pin else { return Ok(()) };
    let last = |e: SourceError| (e.to_string(), e.is_fatal());
    let source = deps.sources.open_pinned(&pin).await.map_err(last)?;
    source.check_pin().await.map_err(last)
}

/// Has a job publish again what the queue has lost, and say what it waits for. Whether something was lost.
fn look(job: &mut Job, lanes: &Lanes, longest: Duration) -> bool {
    job.waits_for = lanes.waits(&|l| job.out_in(l), job.last_progress.elapsed());
    lanes.has_no_chunks() && job.republish_lost(longest)
}

/// The state of one term.
pub(crate) struct Leadership {
    me: Coordinator,
    epoch: u64,
    jobs: BTreeMap<String, Job>,
    ended: std::collections::BTreeSet<String>,
    round: Round,
    /// What stands in the queue.
    pub(crate) lanes: Arc<Mutex<Lanes>>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) events_in: mpsc::Sender<Event>,
    pub(crate) backlog: Vec<Event>,
    discover_at: Instant,
    /// The note of those that stand by, as it was last seen, and when to look again.
    news: Option<String>,
    news_at: Instant,
}

impl Leadership {
    pub(crate) fn new(me: Coordinator, epoch: u64) -> Self {
        let (events_in, events) = mpsc::channel(64);
        Self {
            me,
            epoch,
            jobs: BTreeMap::new(),
            ended: Default::default(),
            round: Round::default(),
            lanes: Arc::default(),
            events,
            events_in,
            backlog: Vec::new(),
            discover_at: Instant::now(),
            news: None,
            news_at: Instant::now(),
        }
    }

    fn deps(&self) -> Deps {
        self.me.inner.deps.clone()
    }

    /// One turn of the loop. `false`: another coordinator writes states; stand down.
    pub(crate) async fn tick(&mut self) -> Result<bool, StoreError> {
        let mut events = std::mem::take(&mut self.backlog);
        while let Ok(e) = self.events.try_recv() {
            events.push(e);
        }
        for e in events {
            if !self.event(e).await? {
                return Ok(false);
            }
        }
        if !self.discover().await? {
            return Ok(false);
        }
        if lock(&self.lanes).take_forgotten() {
            let with_tasks = self.jobs.values_mut().filter(|j| j.has_out());
            for job in with_tasks {
                tracing::warn!(job = %job.spec.job, "the broker has lost its queue, publishing again");
                job.republish();
            }
        }
        let names: Vec<String> = self.jobs.keys().cloned().collect();
        for name in names {
            match self.step(&name).await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) => {
                    if !self.trouble(&name, e).await? {
                        return Ok(false);
                    }
                }
            }
        }
        self.publish().await;
        self.tell();
        Ok(true)
    }

    /// What went wrong with one job stays with that job: it ends when its records are damaged, and
    /// is tried again a little later when the store is in trouble.
    async fn trouble(&mut self, name: &str, e: StoreError) -> Result<bool, StoreError> {
        let lasting = matches!(
            e,
            StoreError::Format { .. } | StoreError::Query(_) | StoreError::Segment { .. }
        );
        if lasting {
            return self.end(name, JobPhase::Failed, &e.to_string()).await;
        }
        let why = e.to_string();
        self.warn_once(name, &why, "store trouble, trying again");
        self.retry(name, &why).await
    }

    /// Finds jobs in the store that are not known and not ended. `false`: a later coordinator has written to one.
    async fn discover(&mut self) -> Result<bool, StoreError> {
        let embedded = self.me.inner.config.deployment.is_embedded();
        if !embedded && !self.has_news().await && Instant::now() < self.discover_at {
            return Ok(true);
        }
        self.discover_at = Instant::now() + DISCOVER;
        let deps = self.deps();
        let objects = deps.objects.as_ref();
        if !embedded {
            for note in objects.list(RETRIES).await? {
                let job = &note.key[RETRIES.len()..];
                self.me.forget_the_end(job);
                self.ended.remove(job);
                objects.delete(&note.key).await?;
            }
        }
        let only = self.me.inner.config.only.as_ref();
        let (mut running, mut unknown) = (Vec::new(), Vec::new());
        for job in objects.list_folders("jobs/").await? {
            if self.ended.contains(&job) || only.is_some_and(|o| !o.contains(&job)) {
                continue;
            }
            if self.jobs.contains_key(&job) {
                running.push(job);
            } else {
                unknown.push(job);
            }
        }
        let mut notes = futures::stream::iter(running)
            .map(|job| async move {
                let key = Keys::new(&job).cancel();
                let note = read_opt::<serde_json::Value>(objects, &key).await?;
                Ok::<_, StoreError>((job, note))
            })
            .buffer_unordered(READS);
        while let Some((job, note)) = notes.try_next().await? {
            if let Some((note, _)) = note {
                let why = note["reason"].as_str().unwrap_or("cancelled").to_owned();
                self.jobs.entry(job).and_modify(|j| j.cancel = Some(why));
            }
        }
        let mut states = futures::stream::iter(unknown)
            .map(|job| async move {
                let state = read_opt::<JobState>(objects, &Keys::new(&job).state()).await;
                (job, state)
            })
            .buffer_unordered(READS);
        while let Some((job, state)) = states.next().await {
            let (state, etag) = match state {
                Ok(Some(s)) => s,
                Ok(None) => continue,
                Err(e @ StoreError::Format { .. }) => {
                    tracing::warn!(job, error = %e, "job left alone: its state can't be read");
                    continue;
                }
                Err(e) => return Err(e),
            };
            if state.phase().is_final() {
                self.ended.insert(job);
                continue;
            }
            if !embedded && state.epoch > self.epoch {
                self.me.saw_epoch(state.epoch);
                return Ok(false);
            }
            let adopted = match embedded {
                true => Some((state, etag)),
                false => self.adopt(state, etag).await?,
            };
            let Some((state, etag)) = adopted else {
                self.discover_at = Instant::now();
                continue;
            };
            let spec = match read::<JobSpec>(objects, &Keys::new(&job).spec()).await {
                Ok((spec, _)) => spec,
                Err(e) => {
                    tracing::warn!(job, error = %e, "job left alone: its record can't be read");
                    continue;
                }
            };
            let j = Job::new(spec, state, etag);
            let mut all = lock(&self.me.inner.progress);
            all.entry(job.clone())
                .or_insert_with(|| watch::Sender::new(j.progress()));
            drop(all);
            self.jobs.insert(job, j);
        }
        Ok(true)
    }

    /// Moves one job on.
    async fn step(&mut self, name: &str) -> Result<bool, StoreError> {
        let deps = self.deps();
        let asked = {
            let c = lock(&self.me.inner.cancels);
            c.get(name).cloned()
        };
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        if let Some(why) = asked {
            job.cancel = Some(why);
        }
        if let Some(why) = job.cancel.clone() {
            return self.end(name, JobPhase::Cancelled, &why).await;
        }
        if job.busy || job.not_before.is_some_and(|t| Instant::now() < t) {
            return Ok(true);
        }
        if job.stage == Stage::Unplanned {
            return self.plan(name).await;
        }
        let failed_before = job.failed_tasks();
        let news = job.refresh(&deps).await?;
        let failed = job.failed_tasks() - failed_before;
        let done = (news.len() as u64).saturating_sub(failed);
        self.me.inner.metrics.settled(done, failed);
        if !news.is_empty() {
            (job.trouble_since, job.trouble) = (None, None);
            self.me.inner.outage.settled(name, job.settled().len());
        }
        if let Some(why) = job.fatal.clone() {
            return self.end(name, JobPhase::Failed, &why).await;
        }
        self.heal_ledger(name, &news);
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        job.advance(&deps).await?;
        self.count_tasks(name);
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        let silent = job.last_progress.elapsed() >= self.me.inner.config.republish;
        if silent && job.has_out() {
            tracing::warn!(job = name, "nothing settled for long, publishing again");
            job.republish();
        }
        let longest = self.me.inner.config.republish;
        if look(job, &lock(&self.lanes), longest) {
            tracing::warn!(
                job = name,
                "nothing settled and no task of it in the queue, publishing again"
            );
        }
        if lock(&self.lanes).is_empty(Lane::Views) {
            let tasks = job.views_to_ask_about();
            if !tasks.is_empty() {
                self.ask_who_works(name, tasks);
            }
        }
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        if job.stage == Stage::Settled {
            job.busy = true;
            let ok = self.write(name, JobPhase::Finalising, "").await?;
            self.seal(name);
            return Ok(ok);
        }
        let priority = job.spec.priority;
        self.round.enter(name, priority);
        Ok(true)
    }

    /// Asks the ledger, apart from the loop, which of these tasks nobody is at.
    fn ask_who_works(&self, name: &str, tasks: Vec<String>) {
        let (ledger, to) = (self.me.inner.deps.ledger.clone(), self.events_in.clone());
        let name = name.to_owned();
        tokio::spawn(async move {
            // Without a ledger only the age of tasks decides.
            let Ok(worked_on) = ledger.worked_on(&name, &tasks).await else {
                return;
            };
            let all = tasks.into_iter().zip(worked_on);
            let idle = all.filter(|(_, worked_on)| !worked_on).map(|(t, _)| t);
            let _ = to.send(Event::Idle(name, idle.collect())).await;
        });
    }

    /// The ledger is a cache: what it has forgotten is told to it again, apart from the loop.
    fn heal_ledger(&self, name: &str, news: &[String]) {
        let Some(job) = self.jobs.get(name) else {
            return;
        };
        if news.is_empty() || job.healing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (ledger, healing) = (self.me.inner.deps.ledger.clone(), job.healing.clone());
        let (name, known) = (name.to_owned(), job.settled());
        let total = job.total();
        tokio::spawn(async move {
            let forgotten = ledger.settled(&name).await;
            if forgotten.is_ok_and(|n| n < known.len() as u64) {
                let told = ledger.settle(&name, &known).await;
                if let Err(e) = told.and(ledger.expect(&name, total).await) {
                    tracing::debug!(error = %e, "ledger not told");
                }
            }
            healing.store(false, Ordering::Relaxed);
        });
    }

    /// Tells the ledger how many tasks there are, when that has changed, apart from the loop: who commits reports
    /// need not wait for others when none are left.
    fn count_tasks(&mut self, name: &str) {
        let Some(total) = self.jobs.get_mut(name).and_then(Job::untold_total) else {
            return;
        };
        let (ledger, name) = (self.me.inner.deps.ledger.clone(), name.to_owned());
        tokio::spawn(async move {
            if let Err(e) = ledger.expect(&name, total).await {
                tracing::debug!(error = %e, "ledger not told");
            }
        });
    }

    /// Whether some job is about to go on to its next stage: it is worth a look sooner.
    pub(crate) fn is_at_a_turn(&self) -> bool {
        self.jobs.values().any(Job::is_at_a_turn)
    }

    /// Plans a job apart from the loop, or takes up the plan it has.
    async fn plan(&mut self, name: &str) -> Result<bool, StoreError> {
        let deps = self.deps();
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        if let Some((p, _)) = read_opt::<Plan>(deps.objects.as_ref(), &job.keys.plan()).await? {
            job.begin(&deps, p).await?;
            return self.write(name, JobPhase::Running, "").await;
        }
        job.busy = true;
        let (spec, to, sources) = (
            job.spec.clone(),
            self.events_in.clone(),
            deps.sources.clone(),
        );
        let (objects, keys) = (deps.objects.clone(), job.keys.clone());
        let config = &self.me.inner.config;
        let how = Unpacking {
            limits: config.unpack,
            folder: config.spill.clone(),
            says: job.unpacking.clone(),
        };
        let name_of = name.to_owned();
        let span = job.in_trace(tracing::info_span!("job.plan", job = name));
        let planning = span.clone();
        tokio::spawn(
            async move {
                let planned = match unpacked::plan(&sources, &objects, &keys, spec, &how).await {
                    // Whoever reads the plan finds the table beside it.
                    Ok(p) => match p.table {
                        Some(t) => image::put_table(objects.as_ref(), &keys, t)
                            .await
                            .map(|()| Box::new(p.plan))
                            .map_err(|e| (e.to_string(), false)),
                        None => Ok(Box::new(p.plan)),
                    },
                    Err(e) => Err((e.to_string(), !e.is_outage())),
                };
                if let Err((why, _)) = &planned {
                    failed(&planning, why);
                }
                let _ = to.send(Event::Planned(name_of, planned)).await;
            }
            .instrument(span),
        );
        self.write(name, JobPhase::Planning, "").await
    }

    fn seal(&self, name: &str) {
        let (deps, to, name) = (self.deps(), self.events_in.clone(), name.to_owned());
        let job = self.jobs.get(&name);
        let pin = job.and_then(|j| j.plan.as_ref()).map(|p| p.pin.clone());
        let span = tracing::info_span!("job.seal", job = name);
        let span = job.map_or_else(Span::none, |j| j.in_trace(span));
        let sealing = span.clone();
        let seal = async move {
            let sealed = match unchanged(&deps, pin).await {
                Ok(()) => deps.finaliser.finalise(&name).await,
                Err(e) => Err(e),
            };
            if let Err((why, _)) = &sealed {
                failed(&sealing, why);
            }
            let _ = to.send(Event::Sealed(name, sealed)).await;
        };
        tokio::spawn(seal.instrument(span));
    }

    async fn event(&mut self, e: Event) -> Result<bool, StoreError> {
        let deps = self.deps();
        match e {
            Event::Planned(name, Ok(p)) => {
                let Some(job) = self.jobs.get_mut(&name) else {
                    return Ok(true);
                };
                job.busy = false;
                let put = deps.objects.put_new(&job.keys.plan(), to_json(&*p)?).await;
                match put {
                    Err(e) if !e.is_conflict() => return Err(e.into()),
                    _ => {}
                }
                let (p, _): (Plan, _) = read(deps.objects.as_ref(), &job.keys.plan()).await?;
                (job.trouble_since, job.trouble) = (None, None);
                job.begin(&deps, p).await?;
                self.write(&name, JobPhase::Running, "").await
            }
            Event::Planned(name, Err((why, true))) => self.end(&name, JobPhase::Failed, &why).await,
            Event::Planned(name, Err((why, false))) => {
                self.warn_once(&name, &why, "planning failed, trying again");
                self.retry(&name, &why).await
            }
            Event::Sealed(name, Ok(gaps)) => {
                let phase = if gaps {
                    JobPhase::CompleteWithGaps
                } else {
                    JobPhase::Complete
                };
                self.end(&name, phase, "").await
            }
            Event::Sealed(name, Err((why, true))) => self.end(&name, JobPhase::Failed, &why).await,
            Event::Sealed(name, Err((why, false))) => {
                self.warn_once(&name, &why, "sealing failed, trying again");
                // Plan, splits and records are read again: what is missing is published then.
                if let Some(j) = self.jobs.get_mut(&name) {
                    j.start_over();
                }
                self.retry(&name, &why).await
            }
            Event::Idle(name, tasks) => {
                let job = self.jobs.get_mut(&name);
                if job.is_some_and(|j| j.republish_idle(&tasks)) {
                    tracing::warn!(
                        job = name,
                        "views lie in no queue and nobody is at them, publishing again"
                    );
                }
                Ok(true)
            }
            Event::Dead(task, done) => {
                let config = self.me.inner.config.clone();
                self.me.inner.metrics.cut();
                let lost = match self.jobs.get_mut(&task.job) {
                    Some(job) => job.bury(&deps, &config, &task.task).await?,
                    None => None,
                };
                // Its bytes are read apart from the loop. In an outage the message goes back.
                tokio::spawn(async move {
                    let noted = match lost {
                        Some(lost) => lost.note(&deps).await,
                        None => Ok(()),
                    };
                    if let Err(e) = &noted {
                        tracing::warn!(task = %task.task, error = %e, "not noted yet");
                        tokio::time::sleep(AGAIN).await;
                    }
                    let _ = done.send(noted.is_ok());
                });
                Ok(true)
            }
        }
    }

    /// One line for a trouble that lasts, however often it is met.
    fn warn_once(&self, name: &str, why: &str, what: &str) {
        let known = self.jobs.get(name).and_then(|j| j.trouble.as_deref());
        if known == Some(why) {
            tracing::debug!(job = name, reason = why, "{what}");
        } else {
            tracing::warn!(job = name, reason = why, "{what}");
        }
    }

    /// Tries again after a while; in embedded form an outage that lasts ends the job.
    async fn retry(&mut self, name: &str, why: &str) -> Result<bool, StoreError> {
        let deployment = self.me.inner.config.deployment;
        let Some(j) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        j.busy = false;
        j.not_before = Some(Instant::now() + Duration::from_secs(1));
        j.trouble = Some(why.to_owned());
        let since = *j.trouble_since.get_or_insert_with(Instant::now);
        let longest = deployment.patience(Duration::MAX);
        if deployment.is_embedded() && since.elapsed() > longest {
            return self.end(name, JobPhase::Failed, why).await;
        }
        Ok(true)
    }

    /// Ends a job.
    async fn end(&mut self, name: &str, phase: JobPhase, why: &str) -> Result<bool, StoreError> {
        if !self.write(name, phase, why).await? {
            // Another coordinator owns the job by now: its ledger must stay open.
            return Ok(false);
        }
        if let Err(e) = self.me.inner.deps.ledger.close(name).await {
            tracing::debug!(error = %e, "ledger not told");
        }
        self.me.inner.metrics.ended(phase.name());
        tracing::info!(job = name, phase = phase.name(), reason = why, "job ended");
        self.tell();
        self.jobs.remove(name);
        self.ended.insert(name.to_owned());
        Ok(true)
    }

    /// Writes a job's state under this term's epoch. `false`: another coordinator did.
    async fn write(&mut self, name: &str, phase: JobPhase, why: &str) -> Result<bool, StoreError> {
        let deps = self.deps();
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        if job.state.phase() == phase && !phase.is_final() {
            return Ok(true);
        }
        let next = job.state_as(phase, why, self.epoch);
        let (data, key) = (to_json(&next)?, job.keys.state());
        for _ in 0..WRITES {
            match deps.objects.put_over(&key, data.clone(), &job.etag).await {
                Ok(etag) => {
                    (job.state, job.etag) = (next, etag);
                    return Ok(true);
                }
                Err(e) if e.is_conflict() => {}
                Err(e) => return Err(e.into()),
            }
            let (found, etag): (JobState, _) = read(deps.objects.as_ref(), &key).await?;
            if self.epoch == 0 || found.epoch > self.epoch {
                self.me.saw_epoch(found.epoch);
                return Ok(false);
            }
            if found.phase().is_final() && found != next {
                // An earlier term ended it before this one had put its epoch there.
                self.jobs.remove(name);
                self.ended.insert(name.to_owned());
                return Ok(true);
            }
            // Of an earlier term, or of this one with its answer lost.
            job.etag = etag;
        }
        Ok(false)
    }

    /// Puts this term's epoch on the state that an earlier one left: what that one still writes is refused from then on.
    /// `None`: the state has changed since it was read.
    async fn adopt(&self, state: JobState, etag: String) -> Result<Option<Adopted>, StoreError> {
        if state.epoch == 0 || state.epoch == self.epoch {
            return Ok(Some((state, etag)));
        }
        let key = Keys::new(&state.job).state();
        let mine = JobState {
            epoch: self.epoch,
            ..state
        };
        let deps = self.deps();
        match deps.objects.put_over(&key, to_json(&mine)?, &etag).await {
            Ok(etag) => Ok(Some((mine, etag))),
            Err(e) if e.is_conflict() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a coordinator that stands by has left word.
    async fn has_news(&mut self) -> bool {
        if Instant::now() < self.news_at {
            return false;
        }
        self.news_at = Instant::now() + self.me.inner.config.poll;
        // Without an answer the next look through the store finds out.
        let Ok(now) = self.deps().objects.head(NEWS).await else {
            return false;
        };
        let before = self.news.replace(now.etag.clone());
        before.is_none_or(|b| b != now.etag)
    }

    /// Publishes what windows and fair share allow.
    async fn publish(&mut self) {
        let window = self.me.inner.config.window;
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let jobs = &self.jobs;
                let next = self
                    .round
                    .next(&mut |j| jobs.get(j).and_then(|j| j.next_cost(window)));
                let Some(name) = next else { break };
                let Some(t) = self.jobs.get_mut(&name).and_then(Job::take) else {
                    break;
                };
                batch.push(t);
            }
            if batch.is_empty() {
                return;
            }
            let deps = self.deps();
            // A span for each job that the batch has tasks of: a task's work belongs to its own job's trace.
            let mut spans: BTreeMap<&str, (Span, usize)> = BTreeMap::new();
            for (_, task) in &batch {
                if let Some(job) = self.jobs.get(&task.job) {
                    let span =
                        || tracing::info_span!("tasks.publish", job = task.job, tasks = Empty);
                    let of_job = spans.entry(&task.job);
                    of_job.or_insert_with(|| (job.in_trace(span()), 0)).1 += 1;
                }
            }
            for (span, tasks) in spans.values() {
                span.record("tasks", tasks);
            }
            let sends = batch.iter().map(|(lane, task)| {
                let span = spans.get(task.job.as_str()).map(|(s, _)| s);
                let message = Message {
                    body: task.encode_to_vec().into(),
                    headers: span
                        .map(|s| s.in_scope(ramsift_telemetry::current))
                        .unwrap_or_default(),
                };
                let queue = deps.queue.clone();
                let lane = *lane;
                async move { queue.publish(lane, message).await }
            });
            let done = futures::future::join_all(sends).await;
            let mut stopped = false;
            for ((lane, task), r) in batch.iter().zip(done) {
                match r {
                    Ok(()) => self.me.inner.metrics.published(lane.name()),
                    Err(e) => {
                        stopped = true;
                        if let Some((span, _)) = spans.get(task.job.as_str()) {
                            failed(span, &e.to_string());
                        }
                        self.me.inner.deps.readiness.block("queue", e.to_string());
                        if let Some(j) = self.jobs.get_mut(&task.job) {
                            j.put_back(&task.task);
                        }
                    }
                }
            }
            if stopped {
                return;
            }
            self.me.inner.deps.readiness.ready("queue");
        }
    }

    /// Tells watchers and metrics.
    fn tell(&self) {
        let all = lock(&self.me.inner.progress);
        let mut a = Active {
            jobs: self.jobs.len() as u64,
            epoch: self.epoch,
            lanes: lock(&self.lanes).states(),
            out: [(Lane::Chunks, 0), (Lane::Views, 0)].into(),
            ..Active::default()
        };
        let waits = |l: &Lane| a.lanes.get(l).is_some_and(|s| s.waiting > 0);
        let with_messages: Vec<Lane> = Lane::ALL.into_iter().filter(waits).collect();
        for (name, job) in &self.jobs {
            let p = job.progress();
            if !job.is_final() {
                a.backlog += job.backlog();
                a.oldest_job = a.oldest_job.max(job.age());
                a.longest_eta = a.longest_eta.max(p.eta_seconds);
                a.waiting_jobs += u64::from(!p.waits_for.is_empty());
                for lane in [Lane::Chunks, Lane::Views] {
                    *a.out.entry(lane).or_default() += job.out_in(lane) as u64;
                }
                for lane in &with_messages {
                    if let Some(age) = job.oldest_out(*lane) {
                        let oldest = a.oldest_message.entry(*lane).or_default();
                        *oldest = oldest.max(age.as_secs_f64());
                    }
                }
            }
            if let Some(w) = all.get(name) {
                w.send_if_modified(|old| {
                    let changed = *old != p;
                    *old = p;
                    changed
                });
            }
        }
        self.me.inner.metrics.set(Some(a));
    }
}
