//! The loop of the active coordinator, and what users call.

use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::reign::Reign;
use crate::{Config, Deps};
use prost::Message as _;
use ramsift_proto::v1::{JobPhase, JobProgress, JobSpec, JobState, Task};
use ramsift_queue::Lane;
use ramsift_store::job::{now_micros, read, to_json};
use ramsift_store::{Keys, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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

/// Results of what runs apart from the loop.
#[derive(Debug)]
pub(crate) enum Event {
    Planned(String, Result<Box<Plan>, (String, bool)>),
    Sealed(String, Result<bool, (String, bool)>),
    Dead(Task, tokio::sync::oneshot::Sender<bool>),
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) metrics: Metrics,
    wake: Notify,
    pub(crate) progress: Mutex<BTreeMap<String, watch::Sender<JobProgress>>>,
    pub(crate) cancels: Mutex<BTreeMap<String, String>>,
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
            let mut pause = inner.config.poll;
            if reign.is_at_a_turn() {
                pause /= 5;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
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
