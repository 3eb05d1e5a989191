//! The life of one delivery.

use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::{Config, Deps, Stop, Tasks, Trouble};
use prost::Message as _;
use ramsift_proto::v1::{Outcome, Task};
use ramsift_queue::{Delivery, Lane};
use ramsift_store::job;
use ramsift_store::ledger::Wanted;
use ramsift_store::{Ack, Report};
use ramsift_telemetry::{failed, link, set_parent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{Instrument, Span};

/// How long a task that this worker can't do is kept before it is passed on, and how often it is.
const PASS_ON: Duration = Duration::from_millis(500);
const PASSES: u32 = 2;
/// Tasks that are remembered to have been passed on.
const REMEMBERED: usize = 4096;
/// Pause before another try, at first and at most.
const WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How often a worker notes that it is at a view, and for how long that holds.
const NOTE: Duration = Duration::from_secs(10);
const HOLDS: Duration = Duration::from_secs(30);

/// Tasks that were passed on, and how often.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<BTreeMap<(String, String), u32>>);

impl Passed {
    /// Notes that a task is to be passed on; whether it was often enough.
    fn often(&self, task: &Task) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (task.job.clone(), task.task.clone());
        if !all.contains_key(&key) && all.len() >= REMEMBERED {
            all.pop_first();
        }
        let n = all.entry(key).or_default();
        *n += 1;
        *n > PASSES
    }
}

/// How a task ended.
#[derive(Debug)]
enum End {
    /// Settled, by us or another, or not wanted: forget it. How, for metrics.
    Done(&'static str),
    /// Not ours to finish: let another have it.
    HandBack(String),
    /// Not begun, since this worker can't: let another have it, as if it had not been delivered.
    PassOn(String),
    /// This attempt failed on its content, or on a defect of ours.
    GiveUp(String),
}

impl End {
    /// The same, for metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Done(how) => how,
            Self::HandBack(_) => "handed_back",
            Self::PassOn(_) => "passed_on",
            Self::GiveUp(_) => "given_up",
        }
    }
}

/// A worker of some kind.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    pub(crate) tasks: Arc<T>,
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) stop: Stop,
    pub(crate) gate: Gate,
    pub(crate) passed: Passed,
    pub(crate) metrics: Metrics,
}

impl<T: Tasks> Worker<T> {
    /// Does what a delivery asks for and answers it.
    pub(crate) async fn handle(self: &Arc<Self>, lane: Lane, delivery: Delivery) {
        let again = delivery.redelivered > 0;
        self.metrics.delivered(lane, delivery.age(), again);
        let end = match Task::decode(delivery.message.body.clone()) {
            Ok(task) => self.work(lane, &task, &delivery).await,
            Err(e) => {
                tracing::error!(error = %e, "a message that is no task was dropped");
                End::Done("dropped")
            }
        };
        let answered = match end {
            End::Done(_) => delivery.ack().await,
            End::HandBack(why) => {
                tracing::info!(reason = %why, "task handed back");
                delivery.hand_back().await
            }
            End::PassOn(why) => {
                tracing::info!(reason = %why, "task passed on");
                delivery.put_back().await
            }
            End::GiveUp(why) => {
                tracing::error!(reason = %why, "attempt failed");
                delivery.give_up().await
            }
        };
        if let Err(e) = answered {
            // The broker delivers it again; the ledger then says that it is settled.
            tracing::warn!(error = %e, "answer did not reach the queue");
        }
    }

    async fn work(self: &Arc<Self>, lane: Lane, task: &Task, delivery: &Delivery) -> End {
        let begun = Instant::now();
        let span = self.tasks.span(task);
        set_parent(&span, &delivery.message.headers);
        link(&span, &delivery.message.headers);
        let end = tokio::select! {
            end = self.attempt(task).instrument(span.clone()) => end,
            never = self.tell_of_work(lane, task) => never,
            // A thread goes on until its engine looks up; the process need not wait for it.
            () = self.stop.abandon.cancelled() => {
                End::HandBack(format!("stopped before {} was finished", task.task))
            }
        };
        if let End::GiveUp(why) = &end {
            failed(&span, why);
        }
        self.metrics.task(self.tasks.kind(task), end.outcome());
        self.tasks.ended(task, end.outcome(), begun.elapsed());
        end
    }

    /// Notes again and again that somebody is at a view: they take minutes, and one that the broker has lost must be told
    /// from one that takes long.
    async fn tell_of_work(&self, lane: Lane, task: &Task) -> End {
        if lane != Lane::Views {
            return std::future::pending().await;
        }
        loop {
            let noted = self.deps.ledger.working(&task.job, &task.task, HOLDS);
            if let Err(e) = noted.await {
                tracing::debug!(error = %e, "ledger not told");
            }
            tokio::time::sleep(NOTE).await;
        }
    }

    /// Tries a task until it is done, or outages outlast the patience.
    async fn attempt(self: &Arc<Self>, task: &Task) -> End {
        let give_up_at = Instant::now() + self.config.patience;
        let embedded = self.config.deployment.is_embedded();
        let mut wait = WAIT;
        loop {
            // No ledger: go on.
            match self.deps.ledger.wanted(&task.job, &task.task).await {
                Ok(Wanted::Yes) => {}
                Ok(_) => {
                    self.deps.readiness.ready("work");
                    return End::Done("unwanted");
                }
                Err(e) => tracing::debug!(error = %e, "ledger did not answer"),
            }
            let report = match self.tasks.clone().perform(task).await {
                Ok(report) => report,
                Err(Trouble::Again) => continue,
                Err(Trouble::Stopped(why)) => return End::HandBack(why),
                Err(Trouble::Defect(why)) => {
                    self.deps.readiness.ready("work");
                    return End::GiveUp(why);
                }
                Err(Trouble::Wrong { why, fatal }) => self.tasks.failed(task, why, fatal),
                Err(Trouble::Elsewhere { why, fatal }) => {
                    // There may be no other worker that can: then it is said, and holds up no other job.
                    if !embedded && !self.passed.often(task) {
                        self.deps.readiness.ready("work");
                        self.stop.pause(PASS_ON).await;
                        return End::PassOn(why);
                    }
                    self.tasks.failed(task, why, fatal)
                }
                Err(Trouble::Outage(why)) => {
                    self.deps.readiness.block("work", why.clone());
                    let over = Instant::now() >= give_up_at;
                    if self.is_over(task).await {
                        self.deps.readiness.ready("work");
                        return End::Done("unwanted");
                    }
                    if over && embedded {
                        // Nobody else can do it: the job ends with the reason.
                        self.tasks.failed(task, why, true)
                    } else if over && self.probe(task).await.is_ok() {
                        // Everything is in reach: it is this task.
                        self.tasks.failed(task, why, false)
                    } else if over || self.stop.stop.is_cancelled() {
                        if over {
                            self.await_reach(task);
                        }
                        return End::HandBack(why);
                    } else {
                        tracing::warn!(reason = %why, wait_ms = wait.as_millis(), "outage, waiting");
                        self.stop.pause(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                        continue;
                    }
                }
            };
            self.deps.readiness.ready("work");
            if report.header.outcome() == Outcome::Failed {
                failed(&Span::current(), &report.header.reason);
            }
            let end = self.send(task, &report, give_up_at).await;
            if matches!(end, End::HandBack(_)) && !self.stop.stop.is_cancelled() {
                self.await_reach(task);
            }
            return end;
        }
    }

    /// Whether the job of a task wants nothing more, as far as the store tells.
    async fn is_over(&self, task: &Task) -> bool {
        let over = job::is_over(self.deps.objects.as_ref(), &task.job).await;
        over.unwrap_or(false)
    }

    /// Hands a report over until it is durable, or the patience ends. What was built is not built again.
    async fn send(&self, task: &Task, report: &Report, give_up_at: Instant) -> End {
        let mut wait = WAIT;
        loop {
            let refused = match self.deps.reporter.report(report).await {
                Ok(Ack::Durable) if report.header.outcome() == Outcome::Failed => {
                    return End::Done("failed");
                }
                Ok(Ack::Durable) => return End::Done("done"),
                Ok(Ack::Refused(why)) => {
                    tracing::info!(reason = %why, "report refused, task dropped");
                    return End::Done("unwanted");
                }
                Err(e) => {
                    if e.refused {
                        tracing::error!(reason = %e, "this worker may not report; its tasks go back until it may");
                    }
                    e.to_string()
                }
            };
            if self.is_over(task).await {
                return End::Done("unwanted");
            }
            let over = Instant::now() >= give_up_at;
            if over && self.config.deployment.is_embedded() {
                // Nobody else can store it: the loop that runs the job sees the same store fail.
                return End::GiveUp(refused);
            }
            if over || self.stop.abandon.is_cancelled() {
                return End::HandBack(refused);
            }
            tracing::warn!(reason = %refused, "report not taken, trying again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.abandon.cancelled() => return End::HandBack(refused),
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Takes no more tasks until what the given one needs is in reach again.
    fn await_reach(self: &Arc<Self>, task: &Task) {
        if !self.gate.shut() {
            return;
        }
        let (this, task) = (self.clone(), task.clone());
        tokio::spawn(async move {
            let mut wait = Duration::from_secs(1);
            while !this.stop.stop.is_cancelled() {
                match this.probe(&task).await {
                    Ok(()) => break,
                    Err(why) => this.deps.readiness.block("work", why),
                }
                this.stop.pause(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
            this.deps.readiness.ready("work");
            this.gate.reopen();
        });
    }

    /// Tries everything that a task needs, as long as its job lives: what is wrong with one job alone is no outage.
    async fn probe(&self, task: &Task) -> Result<(), String> {
        let over = match job::is_over(self.deps.objects.as_ref(), &task.job).await {
            Err(e) if !e.is_content() => return Err(e.to_string()),
            other => other.unwrap_or(true),
        };
        let reporter = self.deps.reporter.check().await;
        reporter.map_err(|e| e.to_string())?;
        if over {
            return Ok(());
        }
        self.tasks.probe(task).await
    }
}
