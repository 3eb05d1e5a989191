//! One time as the active coordinator: the loop that moves jobs on.

use crate::Deps;
use crate::job::{Job, News, READS, Stage};
use crate::lanes::{Lanes, QUIET};
use crate::metrics::Active;
use crate::plan::keep_plan;
use crate::publish::Publishing;
use crate::retry::RETRIES;
use crate::service::{Coordinator, Event, NEWS, lock};
use crate::states::Wanted;
use crate::unpacked::{self, Unpacking};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use ramsift_layers::{SourceError, SourcePin};
use ramsift_proto::v1::{JobPhase, JobSpec, JobState};
use ramsift_queue::Lane;
use ramsift_store::job::{read, read_opt};
use ramsift_store::{Keys, StoreError};
use ramsift_telemetry::failed;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

/// How often the store is looked through for jobs that others submitted.
const DISCOVER: Duration = Duration::from_secs(5);
/// Pause before a lost task is noted again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an answer of the ledger is waited for.
const ANSWER: Duration = Duration::from_millis(200);
/// Planning and sealing that take no longer leave no state of their own in the store.
const LASTING: Duration = Duration::from_secs(1);

/// Looks at the evidence once more before its job is sealed. The error says whether it is final.
async fn unchanged(deps: &Deps, pin: Option<SourcePin>) -> Result<(), (String, bool)> {
    let Some(pin) = pin else { return Ok(()) };
    let last = |e: SourceError| (e.to_string(), e.is_fatal());
    let source = deps.sources.open_pinned(&pin).await.map_err(last)?;
    source.check_pin().await.map_err(last)
}

/// Has a job publish again what the queue has lost, and say what it waits for. Whether something was lost.
fn look(job: &mut Job, lanes: &Lanes, longest: Duration) -> bool {
    let quiet = job.last_progress.elapsed();
    job.waits_for = lanes.waits(&|l| job.open_in(l), quiet);
    if job.waits_for.is_empty() && job.waits_for_turn() && quiet >= QUIET && lanes.has_workers() {
        job.waits_for
            .push("tasks of other jobs come first in the queue".to_owned());
    }
    lanes.has_no_chunks() && job.republish_lost(longest)
}

/// How many settled tasks of each job the ledger knows of. `None`: it does not answer at once, and is asked again when the
/// last question is over.
async fn in_ledger(
    deps: &Deps,
    asked: &mut Option<JoinHandle<()>>,
    jobs: Vec<String>,
) -> Option<Vec<u64>> {
    if asked.as_ref().is_some_and(|a| !a.is_finished()) {
        return None;
    }
    let (ledger, (tell, told)) = (deps.ledger.clone(), oneshot::channel());
    *asked = Some(tokio::spawn(async move {
        // Who asked may have gone on without.
        let _ = tell.send(ledger.settled_of(&jobs).await);
    }));
    let answer = tokio::time::timeout(ANSWER, told).await;
    answer.ok()?.ok()?.ok()
}

/// The state of one term.
pub(crate) struct Leadership {
    pub(crate) me: Coordinator,
    pub(crate) epoch: u64,
    pub(crate) jobs: BTreeMap<String, Job>,
    pub(crate) ended: std::collections::BTreeSet<String>,
    pub(crate) publishing: Publishing,
    /// States that jobs are to have and that are not written yet.
    pub(crate) wanted: BTreeMap<String, Wanted>,
    /// The last question to the ledger.
    asked: Option<JoinHandle<()>>,
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
            publishing: Publishing::default(),
            wanted: BTreeMap::new(),
            asked: None,
            lanes: Arc::default(),
            events,
            events_in,
            backlog: Vec::new(),
            discover_at: Instant::now(),
            news: None,
            news_at: Instant::now(),
        }
    }

    pub(crate) fn deps(&self) -> Deps {
        self.me.inner.deps.clone()
    }

    /// One turn of the loop. `false`: another coordinator writes states; stand down.
    pub(crate) async fn tick(&mut self) -> Result<bool, StoreError> {
        let mut events = std::mem::take(&mut self.backlog);
        while let Ok(e) = self.events.try_recv() {
            events.push(e);
        }
        for e in events {
            self.event(e).await;
        }
        if !self.write_states().await? || !self.discover().await? {
            return Ok(false);
        }
        if lock(&self.lanes).take_forgotten() {
            let with_tasks = self.jobs.values_mut().filter(|j| j.has_out());
            for job in with_tasks {
                tracing::warn!(job = %job.spec.job, "the broker has lost its queue, publishing again");
                job.republish();
            }
        }
        self.step_all().await;
        if !self.write_states().await? {
            return Ok(false);
        }
        self.publish().await;
        self.tell();
        Ok(true)
    }

    /// What went wrong with one job stays with that job: it ends when its records are damaged, and
    /// is tried again a little later when the store is in trouble.
    pub(crate) fn trouble(&mut self, name: &str, e: &StoreError) {
        let lasting = matches!(
            e,
            StoreError::Format { .. } | StoreError::Query(_) | StoreError::Segment { .. }
        );
        let why = e.to_string();
        if lasting {
            return self.want(name, JobPhase::Failed, &why);
        }
        self.warn_once(name, &why, "store trouble, trying again");
        self.retry(name, &why);
    }

    /// Finds jobs in the store that are not known and not ended. `false`: a later coordinator has written to one.
    async fn discover(&mut self) -> Result<bool, StoreError> {
        let embedded = self.me.inner.config.deployment.is_embedded();
        let submitted = std::mem::take(&mut *lock(&self.me.inner.submitted));
        let everything = embedded || self.has_news().await || Instant::now() >= self.discover_at;
        let found = match everything {
            true => self.look_through().await?,
            false => submitted.into_iter().collect(),
        };
        self.take_up(found).await
    }

    /// All jobs in the store, after what others have left word of.
    async fn look_through(&mut self) -> Result<Vec<String>, StoreError> {
        self.discover_at = Instant::now() + DISCOVER;
        let deps = self.deps();
        let objects = deps.objects.as_ref();
        if !self.me.inner.config.deployment.is_embedded() {
            for note in objects.list(RETRIES).await? {
                let job = &note.key[RETRIES.len()..];
                self.me.forget_the_end(job);
                self.ended.remove(job);
                objects.delete(&note.key).await?;
            }
        }
        Ok(objects.list_folders("jobs/").await?)
    }

    /// Takes up those of these jobs that are not known and not ended, and looks whether the others are to end.
    async fn take_up(&mut self, jobs: Vec<String>) -> Result<bool, StoreError> {
        let deps = self.deps();
        let objects = deps.objects.as_ref();
        let embedded = self.me.inner.config.deployment.is_embedded();
        let only = self.me.inner.config.only.as_ref();
        let (mut running, mut unknown) = (Vec::new(), Vec::new());
        for job in jobs {
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
                let keys = Keys::new(&job);
                let (state, spec) = (keys.state(), keys.spec());
                let read = tokio::join!(
                    read_opt::<JobState>(objects, &state),
                    read::<JobSpec>(objects, &spec)
                );
                (job, read)
            })
            .buffer_unordered(READS);
        while let Some((job, (state, spec))) = states.next().await {
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
            let spec = match spec {
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

    /// Moves all jobs on. What each of them reads from the store is read side by side.
    async fn step_all(&mut self) {
        let deps = self.deps();
        let asked = lock(&self.me.inner.cancels).clone();
        let mut ready = Vec::new();
        let mut cancelled = Vec::new();
        let mut lasting = Vec::new();
        for (name, job) in &mut self.jobs {
            if let Some(why) = asked.get(name) {
                job.cancel = Some(why.clone());
            }
            if self.wanted.contains_key(name) {
                continue;
            }
            if let Some(why) = job.cancel.clone() {
                cancelled.push((name.clone(), why));
            } else if let Some(since) = job.busy_since {
                if since.elapsed() >= LASTING {
                    lasting.push((name.clone(), job.busy_with()));
                }
            } else if job.not_before.is_none_or(|t| Instant::now() >= t) {
                ready.push((name.clone(), job));
            }
        }
        let names: Vec<String> = ready.iter().map(|(name, _)| name.clone()).collect();
        let counts = in_ledger(&deps, &mut self.asked, names).await;
        let (mut unheard, mut still) = (Vec::new(), Vec::new());
        let mut counts = counts.map(Vec::into_iter);
        ready.retain(|(name, job)| {
            let count = counts.as_mut().and_then(Iterator::next);
            if count.is_some_and(|n| n < job.settled_count() as u64) {
                unheard.push(name.clone());
            }
            let listed = job.is_to_be_listed(count);
            if !listed {
                still.push(name.clone());
            }
            listed
        });
        let deps = &deps;
        let moves: Vec<BoxFuture<'_, _>> = ready
            .into_iter()
            .map(|(name, job)| async move { (name, job.move_on(deps).await) }.boxed())
            .collect();
        let moved: Vec<_> = futures::stream::iter(moves)
            .buffer_unordered(READS)
            .collect()
            .await;
        for (name, why) in cancelled {
            self.want(&name, JobPhase::Cancelled, &why);
        }
        unheard.iter().for_each(|name| self.heal_ledger(name));
        for name in still {
            let nothing = News::Settled {
                tasks: 0,
                failed: 0,
                trouble: None,
            };
            self.moved(&name, nothing);
        }
        for (name, phase) in lasting {
            self.want(&name, phase, "");
        }
        for (name, moved) in moved {
            match moved {
                Ok(news) => self.moved(&name, news),
                Err(e) => self.trouble(&name, &e),
            }
        }
    }

    /// Does what follows from the news of a job.
    fn moved(&mut self, name: &str, news: News) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        match news {
            News::Unplanned => return self.plan(name),
            News::Planned => return self.want(name, JobPhase::Running, ""),
            News::Settled {
                tasks,
                failed,
                trouble,
            } => {
                let done = (tasks as u64).saturating_sub(failed);
                self.me.inner.metrics.settled(done, failed);
                if tasks > 0 {
                    (job.trouble_since, job.trouble) = (None, None);
                    self.me.inner.outage.settled(name, job.settled_count());
                }
                if let Some(why) = job.fatal.clone() {
                    return self.want(name, JobPhase::Failed, &why);
                }
                if tasks > 0 {
                    self.heal_ledger(name);
                }
                if let Some(e) = trouble {
                    return self.trouble(name, &e);
                }
            }
        }
        self.count_tasks(name);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let longest = self.me.inner.config.republish;
        if job.last_progress.elapsed() >= longest && job.has_out() {
            tracing::warn!(job = name, "nothing settled for long, publishing again");
            job.republish();
        }
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
            return;
        };
        if job.stage == Stage::Settled {
            job.busy_since = Some(Instant::now());
            return self.seal(name);
        }
        let (priority, bytes) = (job.spec.priority, job.size());
        self.publishing.enter(name, priority, bytes);
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
    fn heal_ledger(&self, name: &str) {
        let Some(job) = self.jobs.get(name) else {
            return;
        };
        if job.healing.swap(true, Ordering::Relaxed) {
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

    /// Plans a job apart from the loop.
    fn plan(&mut self, name: &str) {
        let deps = self.deps();
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.busy_since = Some(Instant::now());
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
                    Ok(p) => keep_plan(objects.as_ref(), &keys, p)
                        .await
                        .map_err(|e| (e.to_string(), false)),
                    Err(e) => Err((e.to_string(), !e.is_outage())),
                };
                if let Err((why, _)) = &planned {
                    failed(&planning, why);
                }
                let _ = to.send(Event::Planned(name_of, planned)).await;
            }
            .instrument(span),
        );
    }

    /// Has a job sealed, apart from the loop.
    pub(crate) fn seal(&self, name: &str) {
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

    async fn event(&mut self, e: Event) {
        let deps = self.deps();
        match e {
            Event::Planned(name, Ok(kept)) => {
                let Some(job) = self.jobs.get_mut(&name) else {
                    return;
                };
                job.busy_since = None;
                (job.trouble_since, job.trouble) = (None, None);
                // What was there before is read with the news.
                if kept.new && job.stage == Stage::Unplanned {
                    job.begin_anew(kept.plan);
                    self.want(&name, JobPhase::Running, "");
                }
            }
            Event::Planned(name, Err((why, true))) | Event::Sealed(name, Err((why, true))) => {
                self.want(&name, JobPhase::Failed, &why);
            }
            Event::Planned(name, Err((why, false))) => {
                self.warn_once(&name, &why, "planning failed, trying again");
                self.retry(&name, &why);
            }
            Event::Sealed(name, Ok(gaps)) => {
                let phase = if gaps {
                    JobPhase::CompleteWithGaps
                } else {
                    JobPhase::Complete
                };
                self.want(&name, phase, "");
            }
            Event::Sealed(name, Err((why, false))) => {
                self.warn_once(&name, &why, "sealing failed, trying again");
                // Plan, splits and records are read again: what is missing is published then.
                if let Some(j) = self.jobs.get_mut(&name) {
                    j.start_over();
                }
                self.retry(&name, &why);
            }
            Event::Idle(name, tasks) => {
                let job = self.jobs.get_mut(&name);
                if job.is_some_and(|j| j.republish_idle(&tasks)) {
                    tracing::warn!(
                        job = name,
                        "views lie in no queue and nobody is at them, publishing again"
                    );
                }
            }
            Event::Dead(task, done) => {
                let config = self.me.inner.config.clone();
                self.me.inner.metrics.cut();
                let lost = match self.jobs.get_mut(&task.job) {
                    Some(job) => job.bury(&deps, &config, &task.task).await,
                    None => Ok(None),
                };
                // Its bytes are read apart from the loop. In an outage the message goes back.
                tokio::spawn(async move {
                    let noted = match lost {
                        Ok(Some(lost)) => lost.note(&deps).await.map_err(|e| e.to_string()),
                        Ok(None) => Ok(()),
                        Err(e) => Err(e.to_string()),
                    };
                    if let Err(e) = &noted {
                        tracing::warn!(task = %task.task, error = %e, "not noted yet");
                        tokio::time::sleep(AGAIN).await;
                    }
                    let _ = done.send(noted.is_ok());
                });
            }
        }
    }

    /// One line for a trouble that lasts, however often it is met.
    pub(crate) fn warn_once(&self, name: &str, why: &str, what: &str) {
        let known = self.jobs.get(name).and_then(|j| j.trouble.as_deref());
        if known == Some(why) {
            tracing::debug!(job = name, reason = why, "{what}");
        } else {
            tracing::warn!(job = name, reason = why, "{what}");
        }
    }

    /// Tries again after a while; in embedded form an outage that lasts ends the job.
    fn retry(&mut self, name: &str, why: &str) {
        let deployment = self.me.inner.config.deployment;
        let Some(j) = self.jobs.get_mut(name) else {
            return;
        };
        j.busy_since = None;
        j.not_before = Some(Instant::now() + Duration::from_secs(1));
        j.trouble = Some(why.to_owned());
        let since = *j.trouble_since.get_or_insert_with(Instant::now);
        let longest = deployment.patience(Duration::MAX);
        if deployment.is_embedded() && since.elapsed() > longest {
            self.want(name, JobPhase::Failed, why);
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

    /// Tells watchers and metrics.
    pub(crate) fn tell(&self) {
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
