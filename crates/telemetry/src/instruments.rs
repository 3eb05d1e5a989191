//! Instruments by what they measure. Names are Prometheus': `ramsift_<what>_<unit>`, with `_total` for what only grows.
//!
//! Instruments are made after [`crate::init`]: those made before count nothing.

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use std::sync::Arc;

/// Bounds of durations in seconds: from a request to an object store to a view of a large capture.
const SECONDS: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
];

fn meter() -> opentelemetry::metrics::Meter {
    global::meter("ramsift")
}

/// Counts things.
pub fn count(name: &'static str, description: &'static str) -> Counter<u64> {
    let m = meter();
    let c = m.u64_counter(name).with_description(description);
    c.build()
}

/// Counts bytes.
pub fn bytes(name: &'static str, description: &'static str) -> Counter<u64> {
    let m = meter();
    let c = m.u64_counter(name).with_description(description);
    c.with_unit("By").build()
}

/// Durations in seconds.
pub fn seconds(name: &'static str, description: &'static str) -> Histogram<f64> {
    let m = meter();
    let h = m.f64_histogram(name).with_description(description);
    h.with_unit("s").with_boundaries(SECONDS.into()).build()
}

/// Takes values of a gauge, each with its labels.
pub type Reading<'a> = dyn Fn(f64, &[KeyValue]) + 'a;

/// A gauge of what `of` knows, as long as that lives.
pub fn observe_of<T: Send + Sync + 'static>(
    of: &Arc<T>,
    name: &'static str,
    description: &'static str,
    ask: impl Fn(&T, &Reading<'_>) + Send + Sync + 'static,
) {
    let of = Arc::downgrade(of);
    observe(name, description, move |tell| {
        if let Some(of) = of.upgrade() {
            ask(&of, tell);
        }
    });
}

/// A gauge that is asked whenever metrics are read; what it does not tell then is not there.
///
/// It is asked until the process ends, so it must hold nothing alive.
fn observe(
    name: &'static str,
    description: &'static str,
    ask: impl Fn(&Reading<'_>) + Send + Sync + 'static,
) {
    let m = meter();
    m.f64_observable_gauge(name)
        .with_description(description)
        .with_callback(move |o| ask(&|value, labels| o.observe(value, labels)))
        .build();
}
