//! Metrics of the chunk worker.

use crate::Worker;
use ramsift_queue::Lane;
use ramsift_telemetry::{Counter, Histogram, KeyValue, bytes, count, observe_of, seconds};
use std::sync::Arc;
use std::time::Duration;

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    bytes: Counter<u64>,
    chunk_seconds: Histogram<f64>,
    engine_seconds: Histogram<f64>,
    engine_bytes: Counter<u64>,
    read_seconds: Histogram<f64>,
    read_errors: Counter<u64>,
    redeliveries: Counter<u64>,
    rule_timeouts: Counter<u64>,
    waited: Histogram<f64>,
    tasks: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            bytes: bytes("ramsift_chunk_bytes_total", "image bytes by outcome"),
            chunk_seconds: seconds("ramsift_chunk_duration_seconds", "scanning a chunk"),
            engine_seconds: seconds(
                "ramsift_engine_duration_seconds",
                "time of an engine in a chunk",
            ),
            engine_bytes: bytes(
                "ramsift_engine_bytes_total",
                "bytes that an engine was given",
            ),
            read_seconds: seconds("ramsift_read_duration_seconds", "reading a chunk"),
            read_errors: count("ramsift_read_errors_total", "failed reads by class"),
            redeliveries: count(
                "ramsift_redeliveries_total",
                "messages that had been delivered before",
            ),
            rule_timeouts: count(
                "ramsift_rule_timeouts_total",
                "rules that used up their time in a chunk",
            ),
            waited: seconds(
                "ramsift_queue_wait_seconds",
                "from the publication of a task to its delivery, by lane",
            ),
            tasks: count(
                "ramsift_tasks_total",
                "tasks that were taken from the queue, by kind and how they ended",
            ),
        }
    }

    /// A delivery, by how long its message is old.
    pub(crate) fn delivered(&self, lane: Lane, age: Option<Duration>, again: bool) {
        if again {
            self.redeliveries.add(1, &[]);
        }
        if let Some(age) = age {
            let lane = KeyValue::new("lane", lane.name());
            self.waited.record(age.as_secs_f64(), &[lane]);
        }
    }

    /// How a task ended.
    pub(crate) fn task(&self, kind: &'static str, outcome: &'static str) {
        let labels = [
            KeyValue::new("kind", kind),
            KeyValue::new("outcome", outcome),
        ];
        self.tasks.add(1, &labels);
    }

    pub(crate) fn bytes(&self, outcome: &str, n: u64) {
        self.bytes
            .add(n, &[KeyValue::new("outcome", outcome.to_owned())]);
    }

    pub(crate) fn chunk(&self, seconds: f64) {
        self.chunk_seconds.record(seconds, &[]);
    }

    pub(crate) fn engine(&self, engine: &'static str, bytes: u64, seconds: f64) {
        let label = [KeyValue::new("engine", engine)];
        self.engine_bytes.add(bytes, &label);
        self.engine_seconds.record(seconds, &label);
    }

    pub(crate) fn read(&self, seconds: f64) {
        self.read_seconds.record(seconds, &[]);
    }

    pub(crate) fn read_error(&self, class: &'static str) {
        self.read_errors.add(1, &[KeyValue::new("class", class)]);
    }

    pub(crate) fn rule_timeouts(&self, n: u64) {
        if n > 0 {
            self.rule_timeouts.add(n, &[]);
        }
    }
}

/// Tells metrics what the worker does at the moment.
pub(crate) fn observe_worker(worker: &Arc<Worker>) {
    observe_of(
        worker,
        "ramsift_slots",
        "tasks that the worker can work on at once",
        |w, tell| tell(w.config.slots.max(1) as f64, &[]),
    );
    observe_of(
        worker,
        "ramsift_slots_busy",
        "tasks that the worker works on",
        |w, tell| {
            let free = w.slots.available_permits();
            tell(w.config.slots.max(1).saturating_sub(free) as f64, &[]);
        },
    );
    observe_of(
        worker,
        "ramsift_gate_closed",
        "1 for each reason for which the worker takes no tasks: a suspect runs, or an outage lasts",
        |w, tell| {
            for (why, closed) in w.gate.closed_for() {
                let why = KeyValue::new("why", why);
                tell(f64::from(u8::from(closed)), &[why]);
            }
        },
    );
}
