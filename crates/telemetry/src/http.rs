//! `/livez` and `/readyz`, which every service answers.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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

async fn readyz(State(r): State<Readiness>) -> (StatusCode, String) {
    let why = r.blockers();
    if why.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, why.join("\n") + "\n")
    }
}

/// Answers `/livez` and `/readyz` on `address` until cancelled. Returns the bound address.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
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
