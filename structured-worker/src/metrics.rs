//! Metrics of the structured worker.

use crate::Worker;
use ramsift_telemetry::{Counter, Histogram, KeyValue, count, observe_of, seconds};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    redeliveries: Counter<u64>,
    waited: Histogram<f64>,
    tasks: Counter<u64>,
    task_seconds: Histogram<f64>,
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
            task_seconds: seconds(
                "ramsift_view_task_duration_seconds",
                "tasks of views from delivery to answer, by part",
            ),
        }
    }

    /// A delivery, by how long its message is old.
    pub(crate) fn delivered(&self, age: Option<Duration>, again: bool) {
        if again {
            self.redeliveries.add(1, &[]);
        }
        if let Some(age) = age {
            let lane = KeyValue::new("lane", "views");
            self.waited.record(age.as_secs_f64(), &[lane]);
        }
    }

    /// How a task ended, and how long it took.
    pub(crate) fn task(&self, part: &'static str, outcome: &'static str, taken: Duration) {
        let labels = [
            KeyValue::new("kind", "view"),
            KeyValue::new("outcome", outcome),
        ];
        self.tasks.add(1, &labels);
        let part = KeyValue::new("part", part);
        self.task_seconds.record(taken.as_secs_f64(), &[part]);
    }
}

/// Notes how long a view took. Views are built by threads that know no worker.
pub(crate) fn view(name: &'static str, status: &'static str, taken: Duration) {
    static SECONDS: OnceLock<Histogram<f64>> = OnceLock::new();
    let histogram = SECONDS.get_or_init(|| {
        seconds(
            "ramsift_view_duration_seconds",
            "building a view, by name and status",
        )
    });
    let labels = [KeyValue::new("view", name), KeyValue::new("status", status)];
    histogram.record(taken.as_secs_f64(), &labels);
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
            let busy = w.busy.load(std::sync::atomic::Ordering::Relaxed);
            tell(busy as f64, &[]);
        },
    );
    observe_of(
        worker,
        "ramsift_gate_closed",
        "1 for each reason for which the worker takes no tasks: an outage lasts",
        |w, tell| {
            let closed = w.outage.borrow().is_some();
            let why = KeyValue::new("why", "outage");
            tell(f64::from(u8::from(closed)), &[why]);
        },
    );
}
