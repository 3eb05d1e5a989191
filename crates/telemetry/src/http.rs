//! `/livez`, `/readyz` and `/metrics`, which every service answers.

use crate::instruments::observe_of;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use opentelemetry::KeyValue;
use prometheus::{Encoder, Registry, TextEncoder};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What keeps a service from being ready, by part. Ready when nothing does.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    blockers: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Notes why a part is not ready.
    pub fn block(&self, part: &'static str, why: impl Into<String>) {
        self.blockers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, why.into());
    }

    /// Notes that a part is ready.
    pub fn ready(&self, part: &'static str) {
        self.blockers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(part);
    }

    /// Why the service is not ready, a line each; empty when it is.
    pub fn blockers(&self) -> Vec<String> {
        let b = self.blockers.lock().unwrap_or_else(PoisonError::into_inner);
        b.iter()
            .map(|(part, why)| format!("{part}: {why}"))
            .collect()
    }
}

/// What `/metrics` gives.
pub(crate) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::new)
}

async fn metrics() -> Result<impl axum::response::IntoResponse, (StatusCode, String)> {
    let encoder = TextEncoder::new();
    let mut out = Vec::new();
    encoder
        .encode(&registry().gather(), &mut out)
        .map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], out))
}

/// Tells metrics what keeps a service from being ready.
fn observe_readiness(r: &Readiness) {
    observe_of(
        &r.blockers,
        "ramsift_ready",
        "1 when nothing keeps the service from working",
        |b, tell| {
            let none = b.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            tell(f64::from(u8::from(none)), &[]);
        },
    );
    observe_of(
        &r.blockers,
        "ramsift_blocked",
        "1 for each part that keeps the service from working; /readyz says why",
        |b, tell| {
            for part in b.lock().unwrap_or_else(PoisonError::into_inner).keys() {
                tell(1.0, &[KeyValue::new("part", *part)]);
            }
        },
    );
}

async fn readyz(State(r): State<Readiness>) -> (StatusCode, String) {
    let why = r.blockers();
    if why.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, why.join("\n") + "\n")
    }
}

/// Answers `/livez`, `/readyz` and `/metrics` on `address` until cancelled. Returns the bound address.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    observe_readiness(&readiness);
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(readiness);
    tokio::spawn(async move {
        let done = axum::serve(listener, app)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await;
        if let Err(e) = done {
            tracing::error!(error = %e, "health endpoint ended");
        }
    });
    Ok(bound)
}
