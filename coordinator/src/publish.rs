//! Publishing: which job's task goes to a lane next, and how many may wait there.

use crate::depth::Depth;
use crate::leadership::Leadership;
use crate::schedule::Round;
use crate::service::lock;
use prost::Message as _;
use ramsift_proto::v1::Task;
use ramsift_queue::{Lane, LaneState, Message};
use ramsift_telemetry::failed;
use std::collections::BTreeMap;
use std::time::Instant;
use tracing::Span;
use tracing::field::Empty;

/// Publishes in flight at a time.
const BATCH: usize = 64;
/// Lanes that tasks are published to; parts of chunks that took workers down go to the suspects with the chunks' turn.
const LANES: [Lane; 2] = [Lane::Views, Lane::Chunks];

/// The turns of jobs in each lane, and what may wait there.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    rounds: BTreeMap<Lane, Round>,
    depths: BTreeMap<Lane, Depth>,
}

impl Publishing {
    /// Adds a job of so many bytes to the rounds that it is not in.
    pub(crate) fn enter(&mut self, job: &str, priority: i32, bytes: u64) {
        for lane in LANES {
            let round = self.rounds.entry(lane).or_default();
            round.enter(job, priority, bytes);
        }
    }

    /// Whether tasks wait for room in a lane.
    pub(crate) fn has_kept_back(&self) -> bool {
        self.depths.values().any(Depth::has_kept_back)
    }
}

impl Leadership {
    /// Publishes what room in the lanes, windows and fair share allow.
    pub(crate) async fn publish(&mut self) {
        for lane in LANES {
            // A lane that does not answer keeps nothing from the other.
            let Some(room) = self.room(lane).await else {
                continue;
            };
            self.publish_to(lane, room).await;
        }
    }

    /// How many tasks a lane has room for. `None`: the broker does not answer.
    async fn room(&mut self, lane: Lane) -> Option<u64> {
        let (config, jobs) = (&self.me.inner.config, &self.jobs);
        let window = config.window;
        let round = self.publishing.rounds.entry(lane).or_default();
        round.retain(|j| jobs.get(j).is_some_and(|j| j.has_next(lane, window)));
        if round.is_empty() {
            self.publishing.depths.remove(&lane);
            return Some(0);
        }
        if config.deployment.is_embedded() {
            return Some(u64::MAX);
        }
        let deps = &self.me.inner.deps;
        let state = match deps.queue.look(lane).await {
            Ok(Some(state)) => {
                lock(&self.lanes).saw(lane, Some(state), Instant::now());
                state
            }
            // Whoever watches the lanes finds out that the broker has lost one.
            Ok(None) => LaneState::default(),
            Err(e) => {
                deps.readiness.block("queue", e.to_string());
                return None;
            }
        };
        deps.readiness.ready("queue");
        Some(self.room_in(lane, state))
    }

    fn room_in(&mut self, lane: Lane, state: LaneState) -> u64 {
        let window = u64::try_from(self.me.inner.config.window).unwrap_or(u64::MAX);
        let most = window.max(state.consumers.saturating_mul(2));
        let depth = self.publishing.depths.entry(lane).or_default();
        depth.room(state, most)
    }

    /// Publishes at most `room` tasks to a lane, as long as the broker takes them.
    async fn publish_to(&mut self, lane: Lane, room: u64) {
        let mut room = usize::try_from(room).unwrap_or(usize::MAX);
        while room > 0 {
            let batch = self.next_tasks(lane, room.min(BATCH));
            if batch.is_empty() {
                return;
            }
            room -= batch.len();
            if !self.send(&batch).await {
                return;
            }
        }
        let window = self.me.inner.config.window;
        let mut jobs = self.jobs.values();
        if jobs.any(|j| j.has_next(lane, window)) {
            self.publishing.depths.entry(lane).or_default().keep_back();
        }
    }

    /// The next tasks of a lane, at most `most`.
    fn next_tasks(&mut self, lane: Lane, most: usize) -> Vec<(Lane, Task)> {
        let window = self.me.inner.config.window;
        let round = self.publishing.rounds.entry(lane).or_default();
        let mut batch = Vec::new();
        while batch.len() < most {
            let jobs = &self.jobs;
            let next = round.next(&mut |j| jobs.get(j).and_then(|j| j.next_cost(lane, window)));
            let Some(name) = next else { break };
            let Some(t) = self.jobs.get_mut(&name).and_then(|j| j.take(lane)) else {
                break;
            };
            batch.push(t);
        }
        batch
    }

    async fn send(&mut self, batch: &[(Lane, Task)]) -> bool {
        let deps = self.deps();
        // A span for each job that the batch has tasks of: a task's work belongs to its own job's trace.
        let mut spans: BTreeMap<&str, (Span, usize)> = BTreeMap::new();
        for (_, task) in batch {
            if let Some(job) = self.jobs.get(&task.job) {
                let span = || tracing::info_span!("tasks.publish", job = task.job, tasks = Empty);
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
        let mut all = true;
        for ((lane, task), r) in batch.iter().zip(done) {
            match r {
                Ok(()) => self.me.inner.metrics.published(lane.name()),
                Err(e) => {
                    all = false;
                    if let Some((span, _)) = spans.get(task.job.as_str()) {
                        failed(span, &e.to_string());
                    }
                    deps.readiness.block("queue", e.to_string());
                    if let Some(j) = self.jobs.get_mut(&task.job) {
                        j.put_back(&task.task);
                    }
                }
            }
        }
        if all {
            deps.readiness.ready("queue");
        }
        all
    }
}
