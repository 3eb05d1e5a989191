//! Metrics of the coordinator.

use ramsift_telemetry::{Counter, Gauge, KeyValue, global};

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    backlog: Gauge<u64>,
    active: Gauge<u64>,
    oldest: Gauge<f64>,
    eta: Gauge<f64>,
    published: Counter<u64>,
    ended: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let m = global::meter("ramsift");
        Self {
            backlog: m
                .u64_gauge("ramsift_coordinator_backlog_bytes")
                .with_unit("By")
                .with_description("bytes of unsettled chunk tasks of all jobs")
                .build(),
            active: m.u64_gauge("ramsift_coordinator_active_jobs").build(),
            oldest: m
                .f64_gauge("ramsift_coordinator_oldest_job_seconds")
                .with_unit("s")
                .build(),
            eta: m
                .f64_gauge("ramsift_coordinator_longest_eta_seconds")
                .with_unit("s")
                .build(),
            published: m
                .u64_counter("ramsift_coordinator_tasks_published_total")
                .build(),
            ended: m
                .u64_counter("ramsift_coordinator_jobs_ended_total")
                .build(),
        }
    }

    pub(crate) fn state(&self, backlog: u64, active: u64, oldest: f64, eta: f64) {
        self.backlog.record(backlog, &[]);
        self.active.record(active, &[]);
        self.oldest.record(oldest, &[]);
        self.eta.record(eta, &[]);
    }

    pub(crate) fn published(&self, lane: &'static str) {
        self.published.add(1, &[KeyValue::new("lane", lane)]);
    }

    pub(crate) fn ended(&self, phase: &'static str) {
        self.ended.add(1, &[KeyValue::new("phase", phase)]);
    }
}
