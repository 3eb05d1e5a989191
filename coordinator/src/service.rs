//! The loop of the active coordinator, and what users call.

use crate::check::{SubmitError, check};
use crate::job::Job;
use crate::lanes;
use crate::leadership::Leadership;
use crate::lease::{Lease, Watch};
use crate::metrics::Metrics;
use crate::outage::Outage;
use crate::plan::KeptPlan;
use crate::retry::{RETRIES, RetryError, ended, queue_again};
use crate::{Config, Deps};
use futures::StreamExt;
use prost::Message as _;
use ramsift_proto::v1::{JobPhase, JobProgress, JobSpec, JobState, Task};
use ramsift_queue::Lane;
use ramsift_store::job::{now_micros, read, read_opt, to_json};
use ramsift_store::{Keys, Plan, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a submission gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// A new job.
    New,
    /// A job of this name was there already.
    Known,
}

/// Jobs looked at side by side.
const LOOKS: usize = 64;
/// Complete jobs that are kept in mind, a KiB each.
const LISTED: usize = 20_000;

/// Changes when a coordinator that stands by has taken a job or a wish to end one.
pub(crate) const NEWS: &str = "leases/news";

/// Results of what runs apart from the loop.
#[derive(Debug)]
pub(crate) enum Event {
    Planned(String, Result<Box<KeptPlan>, (String, bool)>),
    Sealed(String, Result<bool, (String, bool)>),
    Dead(Task, tokio::sync::oneshot::Sender<bool>),
    /// Tasks of a job that nobody is at, of those that were asked about.
    Idle(String, Vec<String>),
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) metrics: Metrics,
    wake: Notify,
    /// Jobs that were handed to this coordinator while it is active and that its loop has not seen yet.
    pub(crate) submitted: Mutex<BTreeSet<String>>,
    pub(crate) progress: Mutex<BTreeMap<String, watch::Sender<JobProgress>>>,
    pub(crate) cancels: Mutex<BTreeMap<String, String>>,
    /// Who is active, while this one stands by.
    pub(crate) active: Mutex<Option<String>>,
    /// This one is active.
    pub(crate) leads: AtomicBool,
    /// The highest epoch that states were seen with.
    pub(crate) used_epoch: AtomicU64,
    /// Jobs that are complete, which nothing changes any more: a list of a thousand need not read each of them again.
    complete: Mutex<BTreeMap<String, JobProgress>>,
    /// Digests of rule sets that were looked at.
    pub(crate) good_rules: Mutex<BTreeSet<String>>,
    pub(crate) outage: Outage,
}

/// A coordinator: active or standing by.
#[derive(Clone, Debug)]
pub struct Coordinator {
    pub(crate) inner: Arc<Inner>,
}

impl Coordinator {
    /// A coordinator that does nothing yet.
    pub fn new(config: Config, deps: Deps) -> Self {
        let inner = Inner {
            config,
            deps,
            metrics: Metrics::new(),
            wake: Notify::new(),
            submitted: Mutex::default(),
            progress: Mutex::default(),
            cancels: Mutex::default(),
            active: Mutex::default(),
            leads: AtomicBool::new(false),
            used_epoch: AtomicU64::new(0),
            complete: Mutex::default(),
            good_rules: Mutex::default(),
            outage: Outage::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Checks a job and stores it. The active coordinator takes it up.
    pub async fn submit(&self, mut spec: JobSpec) -> Result<Submitted, SubmitError> {
        check(&self.inner, &spec).await?;
        let objects = self.inner.deps.objects.as_ref();
        let keys = Keys::new(&spec.job);
        if spec.submitted_micros == 0 {
            spec.submitted_micros = now_micros();
        }
        let new = match objects.put_new(&keys.spec(), to_json(&spec)?).await {
            Ok(_) => true,
            Err(e) if e.is_conflict() => false,
            Err(e) => return Err(StoreError::from(e).into()),
        };
        let state = JobState {
            job: spec.job.clone(),
            phase: JobPhase::Queued.into(),
            updated_micros: now_micros(),
            trace: ramsift_telemetry::current().into_iter().collect(),
            ..JobState::default()
        };
        match objects.put_new(&keys.state(), to_json(&state)?).await {
            Err(e) if !e.is_conflict() => return Err(StoreError::from(e).into()),
            _ => {}
        }
        if self.inner.leads.load(Ordering::Relaxed) {
            lock(&self.inner.submitted).insert(spec.job);
        }
        self.tell_active().await;
        Ok(if new {
            Submitted::New
        } else {
            Submitted::Known
        })
    }

    /// Asks for the end of a job.
    pub async fn cancel(&self, job: &str, reason: &str) -> Result<(), StoreError> {
        let objects = self.inner.deps.objects.as_ref();
        let keys = Keys::new(job);
        objects.head(&keys.spec()).await?;
        let note = serde_json::json!({ "reason": reason });
        objects.put(&keys.cancel(), to_json(&note)?).await?;
        lock(&self.inner.cancels).insert(job.to_owned(), reason.to_owned());
        self.tell_active().await;
        Ok(())
    }

    /// Has a job that failed or was cancelled run again: what it settled stays.
    pub async fn retry(&self, job: &str) -> Result<(), RetryError> {
        let objects = self.inner.deps.objects.as_ref();
        let ended = ended(objects, job).await?;
        // Workers would drop tasks of a job that the ledger calls closed.
        self.inner.deps.ledger.forget(job).await?;
        queue_again(objects, ended).await?;
        self.forget_the_end(job);
        // Whoever runs jobs has put this one aside.
        let note = format!("{RETRIES}{job}");
        let put = objects.put(&note, job.to_owned().into()).await;
        put.map_err(StoreError::from)?;
        self.tell_active().await;
        Ok(())
    }

    /// Forgets how a job has ended, which runs again.
    pub(crate) fn forget_the_end(&self, job: &str) {
        lock(&self.inner.cancels).remove(job);
        lock(&self.inner.progress).remove(job);
    }

    /// Wakes the loop, or leaves a note for the coordinator that is active.
    async fn tell_active(&self) {
        self.inner.wake.notify_one();
        let inner = &self.inner;
        if inner.leads.load(Ordering::Relaxed) || inner.config.deployment.is_embedded() {
            return;
        }
        let note = uuid::Uuid::now_v7().to_string();
        if let Err(e) = inner.deps.objects.put(NEWS, note.into()).await {
            // It looks through the store by itself every few seconds.
            tracing::debug!(error = %e, "the active coordinator was not told");
        }
    }

    /// Where a job stands, from the loop or else from the store.
    pub async fn progress(&self, job: &str) -> Result<JobProgress, StoreError> {
        if let Some(w) = self.subscribe(job) {
            return Ok(w.borrow().clone());
        }
        self.stored(job, true).await
    }

    /// Where a job stands, by what lies in the store; the tasks of one that has ended only when asked for.
    async fn stored(&self, job: &str, tasks: bool) -> Result<JobProgress, StoreError> {
        let keys = Keys::new(job);
        let deps = &self.inner.deps;
        let objects = deps.objects.as_ref();
        let (spec, state, plan) = (keys.spec(), keys.state(), keys.plan());
        let (spec, state, plan) = tokio::try_join!(
            read::<JobSpec>(objects, &spec),
            read::<JobState>(objects, &state),
            read_opt::<Plan>(objects, &plan),
        )?;
        let mut job = Job::new(spec.0, state.0, state.1);
        match plan {
            Some((plan, _)) if tasks || !job.is_final() => job.begin(deps, plan).await?,
            Some((plan, _)) => job.ended_with(plan),
            None => {}
        }
        Ok(JobProgress {
            // Nobody here has seen it run.
            running_seconds: 0.0,
            ..job.progress()
        })
    }

    /// A job of the store, for a list.
    async fn listed(&self, job: String) -> Result<JobProgress, StoreError> {
        if let Some(p) = lock(&self.inner.complete).get(&job) {
            return Ok(p.clone());
        }
        let p = self.stored(&job, false).await?;
        let complete = [JobPhase::Complete, JobPhase::CompleteWithGaps];
        if p.state
            .as_ref()
            .is_some_and(|s| complete.contains(&s.phase()))
        {
            let mut all = lock(&self.inner.complete);
            if all.len() < LISTED {
                all.insert(job, p.clone());
            }
        }
        Ok(p)
    }

    /// Progress of a job as it changes, when this coordinator runs it.
    pub fn subscribe(&self, job: &str) -> Option<watch::Receiver<JobProgress>> {
        let p = lock(&self.inner.progress);
        p.get(job).map(watch::Sender::subscribe)
    }

    /// All jobs in the store.
    pub async fn jobs(&self) -> Result<Vec<JobProgress>, StoreError> {
        let jobs = self.inner.deps.objects.list_folders("jobs/").await?;
        let mut looks = futures::stream::iter(jobs)
            .map(|job| async move {
                match self.subscribe(&job) {
                    Some(w) => Ok(w.borrow().clone()),
                    None => self.listed(job).await,
                }
            })
            .buffered(LOOKS);
        let mut out = Vec::new();
        while let Some(look) = looks.next().await {
            match look {
                Ok(p) => out.push(p),
                Err(StoreError::Object(e)) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Stands by until the lease is free, then runs jobs; until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut watch = Watch::default();
        let mut told = String::new();
        if !self.inner.config.deployment.is_embedded() {
            self.remember_jobs(stop.clone());
        }
        while !stop.is_cancelled() {
            match self.lead(&mut watch, &stop).await {
                Ok(()) => {}
                Err(e) => {
                    let why = e.to_string();
                    if self
                        .inner
                        .outage
                        .lasts_too_long(self.inner.config.deployment, Instant::now())
                    {
                        return self.give_up(&why);
                    }
                    if told == why {
                        tracing::debug!(error = why, "store trouble, trying again");
                    } else {
                        tracing::warn!(error = why, "store trouble, trying again");
                    }
                    self.inner.deps.readiness.block("store", why.clone());
                    told = why;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Reads the jobs that are complete, apart from the loop: the first list that somebody asks for need not.
    fn remember_jobs(&self, stop: CancellationToken) {
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                all = this.jobs() => {
                    // Without them the first list takes longer.
                    let jobs = all.map_or(0, |all| all.len());
                    tracing::debug!(jobs, "jobs in the store looked at");
                }
                () = stop.cancelled() => {}
            }
        });
    }

    /// Ends the jobs of one command whose store stays in trouble, so that not even that can be written down: whoever
    /// follows them hears it, and the same command goes on with them later.
    fn give_up(&self, why: &str) {
        tracing::error!(error = why, "the store stays in trouble, giving up");
        let reason = format!("{why} (what is done is kept: the same command goes on from there)");
        let mut all = lock(&self.inner.progress);
        for job in self.inner.config.only.iter().flatten() {
            let w = all
                .entry(job.clone())
                .or_insert_with(|| watch::Sender::new(JobProgress::default()));
            w.send_modify(|p| {
                let state = p.state.get_or_insert_with(JobState::default);
                if !state.phase().is_final() {
                    state.job = job.clone();
                    state.set_phase(JobPhase::Failed);
                    state.reason = reason.clone();
                }
            });
        }
    }

    /// Notes who is active while this one stands by.
    fn note_active(&self, who: Option<&str>) {
        *lock(&self.inner.active) = who.map(str::to_owned);
    }

    /// Who is active, when that is another.
    pub fn active_elsewhere(&self) -> Option<String> {
        lock(&self.inner.active).clone()
    }

    /// Notes an epoch of another term: the next of this coordinator's is higher.
    pub(crate) fn saw_epoch(&self, epoch: u64) {
        self.inner.used_epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// One time as the active coordinator, from getting the lease to losing it.
    async fn lead(&self, watch: &mut Watch, stop: &CancellationToken) -> Result<(), StoreError> {
        let inner = &self.inner;
        let lost = CancellationToken::new();
        let mut keeper = None;
        let mut epoch = 0;
        if !inner.config.deployment.is_embedded() {
            let (name, length) = (&inner.config.name, inner.config.lease);
            watch.used(inner.used_epoch.load(Ordering::Relaxed));
            let got = Lease::acquire(&inner.deps.objects, watch, name, length).await?;
            self.note_active(watch.holder());
            let Some(lease) = got else {
                inner.deps.readiness.ready("store");
                return Ok(());
            };
            epoch = lease.epoch();
            keeper = Some(tokio::spawn(keep(lease, length / 3, lost.clone())));
            let agreement = &inner.config.agreement;
            if let Err(e) = agreement.store(inner.deps.objects.as_ref()).await {
                // Others compare with what was said before; the lease that is held must not be left alone for it.
                tracing::warn!(error = %e, "what services must have in common was not stored");
            }
        }
        inner.deps.readiness.ready("store");
        inner.leads.store(true, Ordering::Relaxed);
        tracing::info!(epoch, "active");
        let mut own = Leadership::new(self.clone(), epoch);
        let watching = CancellationToken::new();
        let grave = tokio::spawn(dead_letters(
            inner.clone(),
            own.events_in.clone(),
            watching.clone(),
        ));
        // A queue in this process loses nothing, and its workers are here.
        if !inner.config.deployment.is_embedded() {
            let (queue, lanes) = (inner.deps.queue.clone(), own.lanes.clone());
            tokio::spawn(lanes::watch(queue, lanes, watching.clone()));
        }
        let (poll, soon) = (inner.config.poll, inner.config.poll / 5);
        let done = loop {
            if stop.is_cancelled() || lost.is_cancelled() {
                break Ok(());
            }
            match own.tick().await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(e) => break Err(e),
            }
            let pause = if own.is_at_a_turn() { soon } else { poll };
            let next = tokio::time::Instant::now() + pause;
            // What was kept back is published as soon as workers have taken what lay there, without a look at each job.
            loop {
                let look = tokio::time::Instant::now() + soon;
                let (until, publishes) = match own.publishing.has_kept_back() && look < next {
                    true => (look, true),
                    false => (next, false),
                };
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {
                        if publishes {
                            own.publish().await;
                            continue;
                        }
                    }
                    () = inner.wake.notified() => {}
                    Some(e) = own.events.recv() => own.backlog.push(e),
                    () = stop.cancelled() => {}
                    () = lost.cancelled() => {}
                }
                break;
            }
        };
        inner.leads.store(false, Ordering::Relaxed);
        inner.metrics.set(None);
        watching.cancel();
        grave.abort();
        // Who asks from now on is told what the store says.
        lock(&inner.progress).clear();
        lost.cancel();
        if let Some(k) = keeper
            && let Err(e) = k.await
        {
            tracing::warn!(error = %e, "lease keeper ended badly");
        }
        done
    }
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Renews a lease apart from the loop, which can be busy, until it is lost or no longer wanted;
/// then gives it up. A store that does not answer is waited for until another may have taken over, and no longer.
async fn keep(mut lease: Lease, pause: Duration, lost: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = lost.cancelled() => break,
        }
        let good_until = lease.good_until();
        let renewed = tokio::time::timeout_at(good_until, lease.renew()).await;
        match renewed {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                tracing::warn!("another coordinator took over");
                lost.cancel();
                return;
            }
            Ok(Err(e)) => tracing::warn!(error = %e, "lease not renewed"),
            Err(_) => tracing::warn!("lease not renewed: the store did not answer in time"),
        }
        if tokio::time::Instant::now() >= lease.good_until() {
            lost.cancel();
            return;
        }
    }
    if let Err(e) = lease.release().await {
        tracing::warn!(error = %e, "lease not released; it runs out by itself");
    }
}

/// Hands messages of the dead lane to the loop.
async fn dead_letters(inner: Arc<Inner>, to: mpsc::Sender<Event>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut consumer = match inner.deps.queue.consume(Lane::Dead, 8).await {
            Ok(c) => {
                inner.deps.readiness.ready("queue");
                c
            }
            Err(e) => {
                inner.deps.readiness.block("queue", e.to_string());
                tokio::time::sleep(Duration::from_secs(2)).await;
                continue;
            }
        };
        while let Ok(d) = consumer.next().await {
            let Ok(task) = Task::decode(d.message.body.clone()) else {
                let _ = d.ack().await;
                continue;
            };
            let (tx, rx) = tokio::sync::oneshot::channel();
            if to.send(Event::Dead(task, tx)).await.is_err() {
                return;
            }
            let answered = match rx.await {
                Ok(true) => d.ack().await,
                _ => d.hand_back().await,
            };
            if let Err(e) = answered {
                tracing::warn!(error = %e, "dead letter not answered");
                break;
            }
        }
    }
}
