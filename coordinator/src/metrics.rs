//! Metrics of the coordinator. What it knows as the active one is told only while it is.

use crate::service::lock;
use ramsift_queue::{Lane, LaneState};
use ramsift_telemetry::{Counter, KeyValue, Reading, count, observe_of};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What the active coordinator knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active {
    /// Bytes of unsettled chunk tasks of all jobs.
    pub(crate) backlog: u64,
    pub(crate) jobs: u64,
    /// Jobs in which nothing moves, for a reason that is known.
    pub(crate) waiting_jobs: u64,
    pub(crate) oldest_job: f64,
    pub(crate) longest_eta: f64,
    /// Tasks that were published and are not settled.
    pub(crate) out: BTreeMap<Lane, u64>,
    /// Seconds since the first of those was published, where messages wait.
    pub(crate) oldest_message: BTreeMap<Lane, f64>,
    pub(crate) lanes: BTreeMap<Lane, LaneState>,
    pub(crate) epoch: u64,
}

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// `None` while another is active.
    active: Arc<Mutex<Option<Active>>>,
    published: Counter<u64>,
    settled: Counter<u64>,
    cut: Counter<u64>,
    ended: Counter<u64>,
}

fn lane(l: Lane) -> [KeyValue; 1] {
    [KeyValue::new("lane", l.name())]
}

/// A gauge of what the active coordinator knows.
fn gauge(
    of: &Arc<Mutex<Option<Active>>>,
    name: &'static str,
    description: &'static str,
    ask: impl Fn(&Active, &Reading<'_>) + Send + Sync + 'static,
) {
    observe_of(of, name, description, move |active, tell| {
        // A copy, so that the loop need not wait for who reads metrics.
        let active = lock(active).clone();
        if let Some(a) = active {
            ask(&a, tell);
        }
    });
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let active: Arc<Mutex<Option<Active>>> = Arc::default();
        observe_of(
            &active,
            "ramsift_coordinator_active",
            "1 for the coordinator that runs jobs, 0 for one that stands by",
            |a, tell| tell(f64::from(u8::from(lock(a).is_some())), &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_lease_epoch",
            "number of the lease that the active coordinator holds",
            |a, tell| tell(a.epoch as f64, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_backlog_bytes",
            "bytes of unsettled chunk tasks of all jobs",
            |a, tell| tell(a.backlog as f64, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_active_jobs",
            "jobs that have not ended",
            |a, tell| tell(a.jobs as f64, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_waiting_jobs",
            "jobs that wait for something that is missing; ramsift status says for what",
            |a, tell| tell(a.waiting_jobs as f64, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_oldest_job_seconds",
            "age of the oldest job that has not ended",
            |a, tell| tell(a.oldest_job, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_longest_eta_seconds",
            "longest time to go of any job at its present speed; below 0: not known",
            |a, tell| tell(a.longest_eta, &[]),
        );
        gauge(
            &active,
            "ramsift_coordinator_tasks_out",
            "tasks that were published and are not settled",
            |a, tell| a.out.iter().for_each(|(l, n)| tell(*n as f64, &lane(*l))),
        );
        gauge(
            &active,
            "ramsift_queue_oldest_message_seconds",
            "age of the oldest task that is not settled, while messages wait in the lane",
            |a, tell| {
                for (l, age) in &a.oldest_message {
                    tell(*age, &lane(*l));
                }
            },
        );
        gauge(
            &active,
            "ramsift_queue_messages",
            "messages that wait in the lane; those in lane dead are dead letters",
            |a, tell| {
                for (l, s) in &a.lanes {
                    tell(s.waiting as f64, &lane(*l));
                }
            },
        );
        gauge(
            &active,
            "ramsift_queue_consumers",
            "subscriptions to the lane",
            |a, tell| {
                for (l, s) in &a.lanes {
                    tell(s.consumers as f64, &lane(*l));
                }
            },
        );
        Self {
            active,
            published: count(
                "ramsift_coordinator_tasks_published_total",
                "tasks that the broker has taken, by lane; suspects are tasks that took workers down",
            ),
            settled: count(
                "ramsift_coordinator_tasks_settled_total",
                "tasks that were seen to be settled, by outcome",
            ),
            cut: count(
                "ramsift_coordinator_tasks_cut_total",
                "dead letters: tasks that took a worker down even alone, cut in two or noted as failed",
            ),
            ended: count(
                "ramsift_coordinator_jobs_ended_total",
                "jobs that have ended, by phase",
            ),
        }
    }

    /// Tells what the active coordinator knows; `None` when it is no longer.
    pub(crate) fn set(&self, active: Option<Active>) {
        *lock(&self.active) = active;
    }

    pub(crate) fn published(&self, lane: &'static str) {
        self.published.add(1, &[KeyValue::new("lane", lane)]);
    }

    pub(crate) fn settled(&self, done: u64, failed: u64) {
        for (outcome, n) in [("done", done), ("failed", failed)] {
            if n > 0 {
                self.settled.add(n, &[KeyValue::new("outcome", outcome)]);
            }
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.add(1, &[]);
    }

    pub(crate) fn ended(&self, phase: &'static str) {
        self.ended.add(1, &[KeyValue::new("phase", phase)]);
    }
}
