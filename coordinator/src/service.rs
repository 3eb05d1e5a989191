//! The loop of the active coordinator, and what users call.

use crate::job::{Job, Stage};
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::plan::plan;
use crate::schedule::Round;
use crate::{Config, Deps};
use prost::Message as _;
use ramsift_proto::v1::{JobPhase, JobProgress, JobSpec, JobState, Task};
use ramsift_queue::{Lane, Message};
use ramsift_store::job::{now_micros, read, read_opt, to_json};
use ramsift_store::{Keys, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What a submission gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// A new job.
    New,
    /// A job of this name was there already.
    Known,
}

/// Results of what runs apart from the loop.
#[derive(Debug)]
enum Event {
    Planned(String, Result<Box<Plan>, (String, bool)>),
    Sealed(String, Result<bool, (String, bool)>),
    Dead(Task, tokio::sync::oneshot::Sender<bool>),
}

#[derive(Debug)]
struct Inner {
    config: Config,
    deps: Deps,
    metrics: Metrics,
    wake: Notify,
    progress: Mutex<BTreeMap<String, watch::Sender<JobProgress>>>,
    cancels: Mutex<BTreeMap<String, String>>,
}

/// A coordinator: active or standing by.
#[derive(Clone, Debug)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

/// How often the store is looked through for jobs that others submitted.
const DISCOVER: Duration = Duration::from_secs(5);
/// How long the embedded form waits for a store that fails.
const EMBEDDED_PATIENCE: Duration = Duration::from_secs(30);
/// Publishes in flight at a time.
const BATCH: usize = 64;

impl Coordinator {
    /// A coordinator that does nothing yet.
    pub fn new(config: Config, deps: Deps) -> Self {
        let inner = Inner {
            config,
            deps,
            metrics: Metrics::new(),
            wake: Notify::new(),
            progress: Mutex::default(),
            cancels: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Stores a job. The active coordinator takes it up.
    pub async fn submit(&self, mut spec: JobSpec) -> Result<Submitted, StoreError> {
        let objects = self.inner.deps.objects.as_ref();
        let keys = Keys::new(&spec.job);
        if spec.submitted_micros == 0 {
            spec.submitted_micros = now_micros();
        }
        let new = match objects.put_new(&keys.spec(), to_json(&spec)?).await {
            Ok(_) => true,
            Err(e) if e.is_conflict() => false,
            Err(e) => return Err(e.into()),
        };
        let state = JobState {
            job: spec.job.clone(),
            phase: JobPhase::Queued.into(),
            updated_micros: now_micros(),
            ..JobState::default()
        };
        match objects.put_new(&keys.state(), to_json(&state)?).await {
            Err(e) if !e.is_conflict() => return Err(e.into()),
            _ => {}
        }
        self.inner.wake.notify_one();
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
        let mut cancels = self
            .inner
            .cancels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        cancels.insert(job.to_owned(), reason.to_owned());
        drop(cancels);
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Where a job stands, from the loop or else from the store.
    pub async fn progress(&self, job: &str) -> Result<JobProgress, StoreError> {
        if let Some(w) = self.subscribe(job) {
            return Ok(w.borrow().clone());
        }
        let keys = Keys::new(job);
        let objects = self.inner.deps.objects.as_ref();
        let (spec, _): (JobSpec, _) = read(objects, &keys.spec()).await?;
        let (state, _): (JobState, _) = read(objects, &keys.state()).await?;
        Ok(JobProgress {
            state: Some(state),
            source: spec.source,
            priority: spec.priority,
            eta_seconds: -1.0,
            ..JobProgress::default()
        })
    }

    /// Progress of a job as it changes, when this coordinator runs it.
    pub fn subscribe(&self, job: &str) -> Option<watch::Receiver<JobProgress>> {
        let p = self
            .inner
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        p.get(job).map(watch::Sender::subscribe)
    }

    /// All jobs in the store.
    pub async fn jobs(&self) -> Result<Vec<JobProgress>, StoreError> {
        let mut out = Vec::new();
        for job in self.inner.deps.objects.list_folders("jobs/").await? {
            match self.progress(&job).await {
                Ok(p) => out.push(p),
                Err(StoreError::Object(e)) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Stands by until the lease is free, then runs jobs; until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.reign(&stop).await {
                Ok(()) => {}
                Err(e) => {
                    self.inner.deps.readiness.block("store", e.to_string());
                    tracing::warn!(error = %e, "store trouble, trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One time as the active coordinator, from getting the lease to losing it.
    async fn reign(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let inner = &self.inner;
        let lost = CancellationToken::new();
        let mut keeper = None;
        let mut epoch = 0;
        if !inner.config.lease.is_zero() {
            let got = Lease::acquire(&inner.deps.objects, &inner.config.name, inner.config.lease);
            let Some(lease) = got.await? else {
                inner.deps.readiness.ready("store");
                return Ok(());
            };
            epoch = lease.epoch();
            keeper = Some(tokio::spawn(keep(lease, inner.config.lease, lost.clone())));
        }
        inner.deps.readiness.ready("store");
        tracing::info!(epoch, "active");
        let mut reign = Reign::new(self.clone(), epoch);
        let watching = CancellationToken::new();
        let grave = tokio::spawn(dead_letters(
            inner.clone(),
            reign.events_in.clone(),
            watching.clone(),
        ));
        let done = loop {
            if stop.is_cancelled() || lost.is_cancelled() {
                break Ok(());
            }
            match reign.tick().await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(e) => break Err(e),
            }
            tokio::select! {
                () = tokio::time::sleep(inner.config.poll) => {}
                () = inner.wake.notified() => {}
                Some(e) = reign.events.recv() => reign.backlog.push(e),
                () = stop.cancelled() => {}
                () = lost.cancelled() => {}
            }
        };
        watching.cancel();
        grave.abort();
        // Who asks from now on is told what the store says.
        inner
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        lost.cancel();
        if let Some(k) = keeper
            && let Err(e) = k.await
        {
            tracing::warn!(error = %e, "lease keeper ended badly");
        }
        done
    }
}

/// Renews a lease apart from the loop, which can be busy, until it is lost or no longer wanted;
/// then gives it up.
async fn keep(mut lease: Lease, length: Duration, lost: CancellationToken) {
    let mut good_until = Instant::now() + length;
    loop {
        tokio::select! {
            () = tokio::time::sleep(length / 3) => {}
            () = lost.cancelled() => break,
        }
        match lease.renew().await {
            Ok(true) => good_until = Instant::now() + length,
            Ok(false) => {
                tracing::warn!("another coordinator took over");
                lost.cancel();
                return;
            }
            Err(e) => {
                tracing::warn!(error = %e, "lease not renewed");
                if Instant::now() >= good_until {
                    lost.cancel();
                    return;
                }
            }
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

/// The state of one reign.
struct Reign {
    me: Coordinator,
    epoch: u64,
    jobs: BTreeMap<String, Job>,
    ended: std::collections::BTreeSet<String>,
    round: Round,
    events: mpsc::Receiver<Event>,
    events_in: mpsc::Sender<Event>,
    backlog: Vec<Event>,
    discover_at: Instant,
}

impl Reign {
    fn new(me: Coordinator, epoch: u64) -> Self {
        let (events_in, events) = mpsc::channel(64);
        Self {
            me,
            epoch,
            jobs: BTreeMap::new(),
            ended: Default::default(),
            round: Round::default(),
            events,
            events_in,
            backlog: Vec::new(),
            discover_at: Instant::now(),
        }
    }

    fn deps(&self) -> Deps {
        self.me.inner.deps.clone()
    }

    /// One turn of the loop. `false`: another coordinator writes states; stand down.
    async fn tick(&mut self) -> Result<bool, StoreError> {
        let mut events = std::mem::take(&mut self.backlog);
        while let Ok(e) = self.events.try_recv() {
            events.push(e);
        }
        for e in events {
            if !self.event(e).await? {
                return Ok(false);
            }
        }
        self.discover().await?;
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
        tracing::warn!(job = name, error = %e, "store trouble, trying again");
        self.retry(name, &e.to_string()).await
    }

    /// Finds jobs in the store that are not known and not ended.
    async fn discover(&mut self) -> Result<(), StoreError> {
        let fresh = self.me.inner.config.lease.is_zero();
        if Instant::now() < self.discover_at && !fresh {
            return Ok(());
        }
        self.discover_at = Instant::now() + DISCOVER;
        let deps = self.deps();
        let objects = deps.objects.as_ref();
        for job in objects.list_folders("jobs/").await? {
            let ours = self
                .me
                .inner
                .config
                .only
                .as_ref()
                .is_none_or(|o| o.contains(&job));
            if self.ended.contains(&job) || !ours {
                continue;
            }
            let keys = Keys::new(&job);
            if self.jobs.contains_key(&job) {
                if let Some((note, _)) =
                    read_opt::<serde_json::Value>(objects, &keys.cancel()).await?
                {
                    let why = note["reason"].as_str().unwrap_or("cancelled").to_owned();
                    self.jobs.entry(job).and_modify(|j| j.cancel = Some(why));
                }
                continue;
            }
            let (state, etag) = match read_opt::<JobState>(objects, &keys.state()).await {
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
            let spec = match read::<JobSpec>(objects, &keys.spec()).await {
                Ok((spec, _)) => spec,
                Err(e) => {
                    tracing::warn!(job, error = %e, "job left alone: its record can't be read");
                    continue;
                }
            };
            let j = Job::new(spec, state, etag);
            let mut all = self
                .me
                .inner
                .progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.entry(job.clone())
                .or_insert_with(|| watch::Sender::new(j.progress()));
            drop(all);
            self.jobs.insert(job, j);
        }
        Ok(())
    }

    /// Moves one job on.
    async fn step(&mut self, name: &str) -> Result<bool, StoreError> {
        let deps = self.deps();
        let asked = {
            let c = self
                .me
                .inner
                .cancels
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
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
        let news = job.refresh(&deps).await?;
        if !news.is_empty() {
            job.trouble_since = None;
        }
        if let Some(why) = job.fatal.clone() {
            return self.end(name, JobPhase::Failed, &why).await;
        }
        self.heal_ledger(name, &news).await;
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        job.advance(&deps).await?;
        let silent = job.last_progress.elapsed() >= self.me.inner.config.republish;
        if silent && job.has_out() {
            tracing::warn!(job = name, "nothing settled for long, publishing again");
            job.republish();
        }
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

    /// The ledger is a cache: what it has forgotten is told to it again.
    async fn heal_ledger(&self, name: &str, news: &[String]) {
        let Some(job) = self.jobs.get(name) else {
            return;
        };
        if news.is_empty() {
            return;
        }
        let deps = &self.me.inner.deps;
        let known = job.settled();
        if deps
            .ledger
            .settled(name)
            .await
            .is_ok_and(|n| n < known.len() as u64)
            && let Err(e) = deps.ledger.settle(name, &known).await
        {
            tracing::debug!(error = %e, "ledger not told");
        }
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
        let name_of = name.to_owned();
        let span = tracing::info_span!("job.plan", job = name);
        tokio::spawn(
            async move {
                let planned = match plan(&sources, spec).await {
                    Ok((p, _)) => Ok(Box::new(p)),
                    Err(e) => Err((e.to_string(), !e.is_outage())),
                };
                let _ = to.send(Event::Planned(name_of, planned)).await;
            }
            .instrument(span),
        );
        self.write(name, JobPhase::Planning, "").await
    }

    fn seal(&self, name: &str) {
        let (deps, to, name) = (self.deps(), self.events_in.clone(), name.to_owned());
        tokio::spawn(async move {
            let sealed = deps.finaliser.finalise(&name).await;
            let _ = to.send(Event::Sealed(name, sealed)).await;
        });
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
                job.begin(&deps, p).await?;
                self.write(&name, JobPhase::Running, "").await
            }
            Event::Planned(name, Err((why, true))) => self.end(&name, JobPhase::Failed, &why).await,
            Event::Planned(name, Err((why, false))) => {
                tracing::warn!(job = %name, reason = %why, "planning failed, trying again");
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
                tracing::warn!(job = %name, reason = %why, "sealing failed, trying again");
                // Plan, splits and records are read again: what is missing is published then.
                if let Some(j) = self.jobs.get_mut(&name) {
                    j.start_over();
                }
                self.retry(&name, &why).await
            }
            Event::Dead(task, done) => {
                let config = self.me.inner.config.clone();
                if let Some(job) = self.jobs.get_mut(&task.job) {
                    job.bury(&deps, &config, &task.task).await?;
                }
                let _ = done.send(true);
                Ok(true)
            }
        }
    }

    /// Tries again after a while; in embedded form an outage that lasts ends the job.
    async fn retry(&mut self, name: &str, why: &str) -> Result<bool, StoreError> {
        let embedded = self.me.inner.config.lease.is_zero();
        let Some(j) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        j.busy = false;
        j.not_before = Some(Instant::now() + Duration::from_secs(1));
        let since = *j.trouble_since.get_or_insert_with(Instant::now);
        if embedded && since.elapsed() > EMBEDDED_PATIENCE {
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

    /// Writes a job's state under this reign's epoch. `false`: another coordinator did.
    async fn write(&mut self, name: &str, phase: JobPhase, why: &str) -> Result<bool, StoreError> {
        let deps = self.deps();
        let Some(job) = self.jobs.get_mut(name) else {
            return Ok(true);
        };
        if job.state.phase() == phase && !phase.is_final() {
            return Ok(true);
        }
        job.set_phase(phase, why, self.epoch);
        let data = to_json(&job.state)?;
        match deps
            .objects
            .put_over(&job.keys.state(), data, &job.etag)
            .await
        {
            Ok(etag) => {
                job.etag = etag;
                Ok(true)
            }
            Err(e) if e.is_conflict() => Ok(false),
            Err(e) => Err(e.into()),
        }
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
            let span = tracing::info_span!("send chunks", tasks = batch.len());
            let deps = self.deps();
            let sends = batch.iter().map(|(lane, task)| {
                let message = Message {
                    body: task.encode_to_vec().into(),
                    headers: span.in_scope(ramsift_telemetry::current),
                };
                let queue = deps.queue.clone();
                let lane = *lane;
                async move { queue.publish(lane, message).await }
            });
            let done = futures::future::join_all(sends).await;
            let mut failed = false;
            for ((lane, task), r) in batch.iter().zip(done) {
                match r {
                    Ok(()) => self.me.inner.metrics.published(lane.name()),
                    Err(e) => {
                        failed = true;
                        self.me.inner.deps.readiness.block("queue", e.to_string());
                        if let Some(j) = self.jobs.get_mut(&task.job) {
                            j.put_back(&task.task);
                        }
                    }
                }
            }
            if failed {
                return;
            }
            self.me.inner.deps.readiness.ready("queue");
        }
    }

    /// Tells watchers and metrics.
    fn tell(&self) {
        let all = self
            .me
            .inner
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut backlog, mut oldest, mut eta) = (0, 0f64, 0f64);
        for (name, job) in &self.jobs {
            let p = job.progress();
            if !job.is_final() {
                backlog += job.backlog();
                oldest = oldest.max(job.age());
                eta = eta.max(p.eta_seconds);
            }
            if let Some(w) = all.get(name) {
                w.send_if_modified(|old| {
                    let changed = *old != p;
                    *old = p;
                    changed
                });
            }
        }
        self.me
            .inner
            .metrics
            .state(backlog, self.jobs.len() as u64, oldest, eta);
    }
}
