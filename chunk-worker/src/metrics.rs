//! Metrics of the chunk worker.

use ramsift_telemetry::{Counter, Histogram, KeyValue, bytes, count, seconds};

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    bytes: Counter<u64>,
    chunk_seconds: Histogram<f64>,
    engine_seconds: Histogram<f64>,
    engine_bytes: Counter<u64>,
    read_seconds: Histogram<f64>,
    read_errors: Counter<u64>,
    rule_timeouts: Counter<u64>,
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
            rule_timeouts: count(
                "ramsift_rule_timeouts_total",
                "rules that used up their time in a chunk",
            ),
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

    pub(crate) fn rule_timeouts(&self, n: u64) {
        if n > 0 {
            self.rule_timeouts.add(n, &[]);
        }
    }
}
