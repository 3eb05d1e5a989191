//! Metrics of the structured worker.

use ramsift_telemetry::{Histogram, KeyValue, seconds};
use std::sync::OnceLock;
use std::time::Duration;

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    task_seconds: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            task_seconds: seconds(
                "ramsift_view_task_duration_seconds",
                "tasks of views from delivery to answer, by part and how they ended",
            ),
        }
    }

    /// A task has ended, after this time.
    pub(crate) fn ended(&self, part: &'static str, outcome: &'static str, taken: Duration) {
        let labels = [
            KeyValue::new("part", part),
            KeyValue::new("outcome", outcome),
        ];
        self.task_seconds.record(taken.as_secs_f64(), &labels);
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
