//! W3C trace context across processes: in message headers and gRPC metadata.

use opentelemetry::global;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use std::collections::BTreeMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

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

/// Makes `span` a child of the context that was sent along.
pub fn set_parent(span: &Span, carrier: &Carrier) {
    let context = global::get_text_map_propagator(|p| p.extract(&Read(carrier)));
    // Without a tracer there is nothing to attach to.
    let _ = span.set_parent(context);
}

/// Links `span` to the context that was sent along: one message of many that a batch sent.
pub fn link(span: &Span, carrier: &Carrier) {
    let context = global::get_text_map_propagator(|p| p.extract(&Read(carrier)));
    let sender = context.span().span_context().clone();
    if sender.is_valid() {
        span.add_link(sender);
    }
}
