//! Tracing, metrics and their export.
//!
//! Services answer `/metrics` in Prometheus' text format. Export over OTLP is off by default; the standard variables turn it on: `OTEL_EXPORTER_OTLP_ENDPOINT` (or the
//! per-signal ones), `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`;
//! `OTEL_SDK_DISABLED=true` turns it off. Logs go to standard error, filtered by `RAMSIFT_LOG`.

mod context;
mod http;
mod instruments;
mod shown;

pub use context::{Carrier, current, extract, failed, inject, link, set_parent};
pub use http::{Readiness, serve};
pub use instruments::{Reading, bytes, count, observe_of, seconds};
pub use opentelemetry::KeyValue;
pub use opentelemetry::metrics::{Counter, Histogram};
pub use shown::{Plain, Shown, commands, shown_bytes, shown_json, shown_lines};

use opentelemetry::Key;
use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::collections::HashSet;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("telemetry can't be set up: {0}; check the OTEL_* variables")]
pub struct TelemetryError(String);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which process of the deployment speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `coordinator`, `scan`, …: part of `service.name`.
    pub service: &'static str,
    /// `service.instance.id`: one process of one machine.
    pub instance: String,
    /// Answers `/metrics`.
    pub is_service: bool,
}

/// Exports what is left when it is shut down.
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

const INSTANCE: &str = "service.instance.id";
const VERSION: &str = "service.version";

fn wanted(get: &dyn Fn(&str) -> Option<String>, signal: &str) -> bool {
    let set = |k: &str| get(k).is_some_and(|v| !v.is_empty());
    let off = get("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
        || get(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|v| v == "none");
    !off && (set("OTEL_EXPORTER_OTLP_ENDPOINT")
        || set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")))
}

/// Sets up logs, metrics for [`serve`], and export of traces and metrics where the environment asks for it. Must run
/// inside the async runtime, before any instrument is made. Of what is no service, only lines from `warn` on go to the terminal.
pub fn init(who: &Identity, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let get = |k: &str| std::env::var(k).ok();
    let fail = |e: &dyn std::fmt::Display| TelemetryError(e.to_string());
    let mut out = Telemetry::default();
    let name = get("OTEL_SERVICE_NAME").unwrap_or_else(|| format!("ramsift-{}", who.service));
    let resource = || {
        Resource::builder()
            .with_service_name(name.clone())
            .with_attributes([
                KeyValue::new(VERSION, env!("CARGO_PKG_VERSION")),
                KeyValue::new(INSTANCE, who.instance.clone()),
            ])
            .build()
    };
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    let default = if who.is_service {
        "info,hyper=warn,lapin=warn,aws_config=warn,evtx=off"
    } else {
        "warn,evtx=off"
    };
    let filter = EnvFilter::try_from_env("RAMSIFT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt::layer()
        // Names and paths of captured machines are in these lines.
        .with_writer(|| Plain(std::io::stderr()))
        .with_ansi(false)
        .with_target(false);
    layers.push(match format {
        LogFormat::Text => log.with_filter(filter).boxed(),
        LogFormat::Json => log.json().with_filter(filter).boxed(),
    });
    global::set_text_map_propagator(TraceContextPropagator::new());
    if wanted(&get, "TRACES") {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .build()
            .map_err(|e| fail(&e))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        let tracer = provider.tracer("ramsift");
        let only_ours = EnvFilter::new(
            "off,ramsift=info,ramsift_coordinator=info,ramsift_chunk_worker=info,ramsift_structured_worker=info,ramsift_aggregator=info,ramsift_store=info,ramsift_layers=info",
        );
        layers.push(
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_filter(only_ours)
                .boxed(),
        );
        global::set_tracer_provider(provider.clone());
        out.traces = Some(provider);
    }
    let mut metrics = None;
    if who.is_service {
        let registry = http::registry().clone();
        let labels: HashSet<Key> = [INSTANCE, VERSION].map(Key::new).into();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry)
            .with_resource_selector(labels)
            .scope_info_enabled(false)
            // Names are whole already, so that they are the same over OTLP.
            .without_units()
            .without_counter_suffixes()
            .build()
            .map_err(|e| fail(&e))?;
        metrics = Some(SdkMeterProvider::builder().with_reader(reader));
    }
    if wanted(&get, "METRICS") {
        let exporter = MetricExporter::builder()
            .with_tonic()
            .build()
            .map_err(|e| fail(&e))?;
        let builder = metrics.unwrap_or_else(SdkMeterProvider::builder);
        metrics = Some(builder.with_periodic_exporter(exporter));
    }
    if let Some(builder) = metrics {
        let provider = builder.with_resource(resource()).build();
        global::set_meter_provider(provider.clone());
        out.metrics = Some(provider);
    }
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    Ok(out)
}

impl Telemetry {
    /// Exports what is left.
    pub fn shutdown(self) {
        if let Some(Err(e)) = self.traces.map(|t| t.shutdown()) {
            tracing::warn!(error = %e, "last traces were not exported");
        }
        if let Some(Err(e)) = self.metrics.map(|m| m.shutdown()) {
            tracing::warn!(error = %e, "last metrics were not exported");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_unless_an_endpoint_is_named() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |k: &str| {
                pairs
                    .iter()
                    .find(|(n, _)| *n == k)
                    .map(|(_, v)| (*v).to_owned())
            }
        };
        assert!(!wanted(&env(&[]), "TRACES"));
        assert!(wanted(
            &env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")]),
            "TRACES"
        ));
        assert!(!wanted(
            &env(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
                ("OTEL_SDK_DISABLED", "true")
            ]),
            "METRICS"
        ));
        assert!(!wanted(
            &env(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317")]),
            "METRICS"
        ));
    }
}
