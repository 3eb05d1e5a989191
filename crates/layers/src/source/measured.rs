//! Metrics of requests to object stores and of the disk cache in front of them.

use aws_sdk_s3::config::interceptors::{
    BeforeSerializationInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use std::sync::OnceLock;
use std::time::Instant;

/// Bounds of a request's seconds.
const SECONDS: [f64; 12] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// Counts and times every request of a client: until the answer's head is there, all tries together.
#[derive(Debug)]
pub(super) struct Measured {
    requests: Counter<u64>,
    seconds: Histogram<f64>,
    tries: Counter<u64>,
}

/// When a request began.
#[derive(Clone, Copy, Debug)]
struct Begun(Instant);

impl Storable for Begun {
    type Storer = StoreReplace<Self>;
}

impl Measured {
    pub(super) fn new() -> Self {
        let m = global::meter("ramsift");
        Self {
            requests: m
                .u64_counter("ramsift_s3_requests_total")
                .with_description("requests to object stores by operation and outcome")
                .build(),
            seconds: m
                .f64_histogram("ramsift_s3_request_duration_seconds")
                .with_description("until the answer's head is there, tries that failed included")
                .with_unit("s")
                .with_boundaries(SECONDS.into())
                .build(),
            tries: m
                .u64_counter("ramsift_s3_tries_total")
                .with_description("tries of requests: more than requests where some were repeated")
                .build(),
        }
    }
}

/// The operation that a request is for: `GetObject`.
fn operation(cfg: &ConfigBag) -> KeyValue {
    let name = cfg.load::<Metadata>().map(|m| m.name().to_owned());
    KeyValue::new("operation", name.unwrap_or_else(|| "unknown".to_owned()))
}

impl Intercept for Measured {
    fn name(&self) -> &'static str {
        "Measured"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        cfg.interceptor_state().store_put(Begun(Instant::now()));
        Ok(())
    }

    fn read_after_attempt(
        &self,
        _: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.tries.add(1, &[operation(cfg)]);
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let operation = operation(cfg);
        if let Some(Begun(at)) = cfg.load::<Begun>() {
            let taken = at.elapsed().as_secs_f64();
            self.seconds.record(taken, std::slice::from_ref(&operation));
        }
        // What is not there, and what is there already, are answers.
        let outcome = match (context.output_or_error(), context.response()) {
            (Some(Ok(_)), _) => "done",
            (_, Some(r)) if matches!(r.status().as_u16(), 404 | 409 | 412) => "condition",
            (_, Some(r)) if r.status().as_u16() == 503 => "slow_down",
            (_, Some(r)) if r.status().is_client_error() => "refused",
            (_, Some(_)) => "server_error",
            _ => "no_answer",
        };
        self.requests
            .add(1, &[operation, KeyValue::new("outcome", outcome)]);
        Ok(())
    }
}

/// Notes bytes that readers asked of a disk cache for, by where they came from.
pub(super) fn cache_bytes(from: &'static str, bytes: u64) {
    static BYTES: OnceLock<Counter<u64>> = OnceLock::new();
    BYTES
        .get_or_init(|| {
            let m = global::meter("ramsift");
            m.u64_counter("ramsift_disk_cache_bytes_total")
                .with_description(
                    "bytes that were asked of the disk cache: held, or fetched for it",
                )
                .with_unit("By")
                .build()
        })
        .add(bytes, &[KeyValue::new("from", from)]);
}
