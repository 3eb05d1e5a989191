//! Metrics of the aggregator.

use crate::commit::Inner;
use crate::finalise::FinaliseError;
use ramsift_store::{Ack, Manifest};
use ramsift_telemetry::{Counter, Histogram, KeyValue, bytes, count, observe_of, seconds};
use std::sync::Arc;
use std::time::Duration;

/// Instruments, made once.
#[derive(Debug)]
pub(crate) struct Metrics {
    commit_seconds: Histogram<f64>,
    commits: Counter<u64>,
    reports: Counter<u64>,
    seal_seconds: Histogram<f64>,
    seals: Counter<u64>,
    gaps: Counter<u64>,
    bytes: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            commit_seconds: seconds(
                "ramsift_commit_duration_seconds",
                "from the end of a group's wait to its commit record",
            ),
            commits: count("ramsift_commits_total", "group commits by outcome"),
            reports: count("ramsift_reports_total", "reports in commits by outcome"),
            seal_seconds: seconds("ramsift_seal_duration_seconds", "sealing a job"),
            seals: count("ramsift_seals_total", "attempts at sealing by outcome"),
            gaps: count(
                "ramsift_gaps_total",
                "gaps that manifests of sealed jobs name",
            ),
            bytes: bytes(
                "ramsift_sealed_bytes_total",
                "bytes of the images of sealed jobs by engine and outcome",
            ),
        }
    }

    /// A commit has ended.
    pub(crate) fn commit(&self, done: Result<&Ack, &String>, reports: usize, taken: Duration) {
        let outcome = match done {
            Ok(Ack::Durable) => "durable",
            Ok(Ack::Refused(_)) => "refused",
            Err(_) => "failed",
        };
        let outcome = [KeyValue::new("outcome", outcome)];
        self.commit_seconds.record(taken.as_secs_f64(), &outcome);
        self.commits.add(1, &outcome);
        self.reports.add(reports as u64, &outcome);
    }

    /// An attempt at sealing has ended; `new`: it was not sealed before.
    pub(crate) fn seal(&self, done: &Result<Manifest, FinaliseError>, taken: Duration) {
        let outcome = match done {
            Ok(m) if m.verdict == "complete" => "complete",
            Ok(_) => "complete_with_gaps",
            Err(FinaliseError::Early(_)) => "early",
            Err(e) if e.is_fatal() => "failed",
            Err(_) => "tried_again",
        };
        let labels = [KeyValue::new("outcome", outcome)];
        self.seal_seconds.record(taken.as_secs_f64(), &labels);
        self.seals.add(1, &labels);
        let Ok(m) = done else { return };
        self.gaps.add(m.gaps.len() as u64, &[]);
        for (engine, c) in &m.coverage {
            let all = [
                ("scanned", c.scanned),
                ("sparse", c.sparse),
                ("partial", c.partial),
                ("failed", c.failed),
                ("missing", c.missing),
            ];
            for (outcome, n) in all.into_iter().filter(|(_, n)| *n > 0) {
                let labels = [
                    KeyValue::new("engine", engine.clone()),
                    KeyValue::new("outcome", outcome),
                ];
                self.bytes.add(n, &labels);
            }
        }
    }
}

/// Tells metrics what waits in memory.
pub(crate) fn observe_aggregator(inner: &Arc<Inner>) {
    observe_of(
        inner,
        "ramsift_aggregator_memory_bytes",
        "bytes of rows in memory, from a report's first part to the end of its commit",
        |i, tell| tell(i.memory().0 as f64, &[]),
    );
    observe_of(
        inner,
        "ramsift_aggregator_memory_limit_bytes",
        "bytes of rows that may be in memory; above that, reports are refused for now",
        |i, tell| tell(i.memory().1 as f64, &[]),
    );
    observe_of(
        inner,
        "ramsift_aggregator_reports_waiting",
        "reports that wait for others to share a commit with",
        |i, tell| tell(i.reports().0 as f64, &[]),
    );
    observe_of(
        inner,
        "ramsift_aggregator_reports_committing",
        "reports whose commit has begun",
        |i, tell| tell(i.reports().1 as f64, &[]),
    );
}
