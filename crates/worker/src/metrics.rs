//! Metrics that every worker has.

use crate::Tasks;
use crate::life::Worker;
use ramsift_queue::Lane;
use ramsift_telemetry::{Counter, Histogram, KeyValue, count, observe_of, seconds};
use std::sync::Arc;
use std::time::Duration;

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    redeliveries: Counter<u64>,
    waited: Histogram<f64>,
    tasks: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            redeliveries: count(
                "ramsift_redeliveries_total",
                "messages that had been delivered before",
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
}

/// Tells metrics what the worker does at the moment.
pub(crate) fn observe<T: Tasks>(worker: &Arc<Worker<T>>) {
    observe_of(
        worker,
        "ramsift_slots",
        "tasks that the worker can work on at once",
        |w, tell| tell(w.tasks.slots().1 as f64, &[]),
    );
    observe_of(
        worker,
        "ramsift_slots_busy",
        "tasks that the worker works on",
        |w, tell| tell(w.tasks.slots().0 as f64, &[]),
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
