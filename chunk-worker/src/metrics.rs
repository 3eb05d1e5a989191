//! Metrics of the chunk worker.

use ramsift_telemetry::{Counter, Histogram, KeyValue, global};

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
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let m = global::meter("ramsift");
        Self {
            bytes: m
                .u64_counter("ramsift_chunk_bytes_total")
                .with_unit("By")
                .with_description("image bytes by outcome")
                .build(),
            chunk_seconds: m
                .f64_histogram("ramsift_chunk_duration_seconds")
                .with_unit("s")
                .build(),
            engine_seconds: m
                .f64_histogram("ramsift_engine_duration_seconds")
                .with_unit("s")
                .build(),
            engine_bytes: m
                .u64_counter("ramsift_engine_bytes_total")
                .with_unit("By")
                .build(),
            read_seconds: m
                .f64_histogram("ramsift_read_duration_seconds")
                .with_unit("s")
                .build(),
            read_errors: m.u64_counter("ramsift_read_errors_total").build(),
            redeliveries: m.u64_counter("ramsift_redeliveries_total").build(),
            rule_timeouts: m.u64_counter("ramsift_rule_timeouts_total").build(),
        }
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

    pub(crate) fn redelivered(&self) {
        self.redeliveries.add(1, &[]);
    }

    pub(crate) fn rule_timeouts(&self, n: u64) {
        if n > 0 {
            self.rule_timeouts.add(n, &[]);
        }
    }
}
