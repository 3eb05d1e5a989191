//! W3C trace context across processes: in message headers and gRPC metadata.

use opentelemetry::global;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{Status, TraceContextExt};
use std::collections::BTreeMap;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Keys of the context, as the W3C's "Trace Context" names them.
const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// Names and values that carry a context.
pub type Carrier = BTreeMap<String, String>;

struct Write<'a>(&'a mut Carrier);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

struct Read<'a>(&'a Carrier);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// The context of the current span, to send along.
pub fn current() -> Carrier {
    let mut c = Carrier::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut Write(&mut c)));
    c
}

/// Sends the context of the current span along with a call, unless that carries one already.
pub fn inject(metadata: &mut MetadataMap) {
    if metadata.contains_key(PARENT) {
        return;
    }
    for (k, v) in current() {
        let key = MetadataKey::from_bytes(k.as_bytes());
        if let (Ok(k), Ok(v)) = (key, MetadataValue::try_from(v)) {
            metadata.insert(k, v);
        }
    }
}

/// The context that was sent along with a call.
pub fn extract(metadata: &MetadataMap) -> Carrier {
    let text = |k: &str| metadata.get(k).and_then(|v| v.to_str().ok());
    [PARENT, STATE]
        .into_iter()
        .filter_map(|k| Some((k.to_owned(), text(k)?.to_owned())))
        .collect()
}

/// Makes `span` a child of the context that was sent along.
pub fn set_parent(span: &Span, carrier: &Carrier) {
    let context = global::get_text_map_propagator(|p| p.extract(&Read(carrier)));
    // Without a tracer there is nothing to attach to.
    let _ = span.set_parent(context);
}

/// Marks a span as failed, with the reason.
pub fn failed(span: &Span, why: &str) {
    span.set_status(Status::error(why.to_owned()));
}

/// Links `span` to the context that was sent along: one message of many that a batch sent.
pub fn link(span: &Span, carrier: &Carrier) {
    let context = global::get_text_map_propagator(|p| p.extract(&Read(carrier)));
    let sender = context.span().span_context().clone();
    if sender.is_valid() {
        span.add_link(sender);
    }
}
