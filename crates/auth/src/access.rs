//! The one place that every call goes through: who calls, and may they.

use crate::files::Reloaded;
use crate::listener::Peer;
use crate::roles::{Role, is_open, may_call};
use crate::tokens::Tokens;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

/// Who calls. Handlers find it among the extensions of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For logs.
    pub name: String,
    /// What it may do; none where it is known and may do nothing.
    pub roles: Vec<Role>,
}

/// A way to know who calls.
pub trait Authenticator: Send + Sync + fmt::Debug {
    /// Who calls, by the headers of a request and the connection it came on. `None`: it carries no proof of this kind. An
    /// error refuses the call: the proof is wrong.
    fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Option<Caller>, Status>;

    /// What a caller has to show, for messages: "a certificate (…)".
    fn asks_for(&self) -> &'static str;
}

/// Knows callers by the certificates of their connections.
#[derive(Debug)]
pub(crate) struct ByCertificate;

impl Authenticator for ByCertificate {
    fn authenticate(&self, _: &HeaderMap, peer: Option<&Peer>) -> Result<Option<Caller>, Status> {
        Ok(peer.and_then(|p| p.certificate.clone()))
    }

    fn asks_for(&self) -> &'static str {
        "a certificate of its authority (client.cert_file and client.key_file)"
    }
}

/// Knows callers by the tokens that they send.
#[derive(Debug)]
pub(crate) struct ByToken(pub(crate) Arc<Reloaded<Tokens>>);

impl Authenticator for ByToken {
    fn authenticate(
        &self,
        headers: &HeaderMap,
        _: Option<&Peer>,
    ) -> Result<Option<Caller>, Status> {
        let Some(value) = headers.get(AUTHORIZATION) else {
            return Ok(None);
        };
        let given = value.to_str().ok().and_then(|v| v.split_once(' '));
        let roles = match given {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                self.0.get().roles(token.trim())
            }
            _ => Vec::new(),
        };
        if roles.is_empty() {
            return Err(Status::unauthenticated(
                "the token is none that this service takes: compare client.token_file with its server.token_file",
            ));
        }
        Ok(Some(Caller {
            name: "a token".into(),
            roles,
        }))
    }

    fn asks_for(&self) -> &'static str {
        "a token (client.token_file)"
    }
}

/// Who may call the methods of a listener.
#[derive(Debug)]
pub struct Access {
    /// Tried in turn; none: everyone may call everything.
    authenticators: Vec<Box<dyn Authenticator>>,
    began: Instant,
    /// The second, since it began, in which a refusal was logged.
    logged: AtomicU64,
}

impl Access {
    /// Callers are known in these ways. With none, everyone may call everything.
    pub fn new(authenticators: Vec<Box<dyn Authenticator>>) -> Self {
        Self {
            authenticators,
            began: Instant::now(),
            logged: AtomicU64::new(0),
        }
    }

    /// Whether everyone may call everything.
    pub fn is_open(&self) -> bool {
        self.authenticators.is_empty()
    }

    /// Whether a method may be called, and who calls it. `None`: one need not be known for it.
    pub fn check(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Option<Caller>, Status> {
        if self.is_open() || is_open(path) {
            return Ok(None);
        }
        let mut known = Vec::new();
        for a in &self.authenticators {
            known.extend(a.authenticate(headers, peer)?);
        }
        if known.is_empty() {
            let ways: Vec<_> = self.authenticators.iter().map(|a| a.asks_for()).collect();
            return Err(Status::unauthenticated(format!(
                "who calls is not known: this service asks for {}",
                ways.join(" or ")
            )));
        }
        let Some(role) = may_call(path) else {
            return Err(Status::permission_denied(format!(
                "nobody may call {path}: it is no method of this service"
            )));
        };
        if let Some(caller) = known.iter().find(|c| c.roles.contains(&role)) {
            return Ok(Some(caller.clone()));
        }
        let method = path.rsplit('/').next().unwrap_or(path);
        let roles: Vec<_> = known
            .iter()
            .flat_map(|c| &c.roles)
            .map(|r| r.name())
            .collect();
        let who = known.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        let who = who.join(" and ");
        Err(Status::permission_denied(if roles.is_empty() {
            format!(
                "{who} has no role here: a certificate needs the URI ramsift://{role} among its alternative names to \
                 call {method}"
            )
        } else {
            format!(
                "{who} may not call {method}: its role is {}, and {method} is for the role {role}",
                roles.join(" and ")
            )
        }))
    }

    /// Tells of a refusal; of many, one a second.
    fn log(&self, path: &str, peer: Option<&Peer>, status: &Status) {
        let from = peer.and_then(|p| p.address).map(|a| a.to_string());
        let from = from.unwrap_or_else(|| "unknown".into());
        let second = self.began.elapsed().as_secs() + 1;
        if self.logged.swap(second, Ordering::Relaxed) == second {
            tracing::debug!(from, path, reason = status.message(), "call refused");
        } else {
            tracing::warn!(from, path, reason = status.message(), "call refused");
        }
    }
}

/// Puts [`Access::check`] before every method of a server.
#[derive(Clone, Debug)]
pub struct AccessLayer(pub(crate) Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessService {
            inner,
            access: self.0.clone(),
        }
    }
}

/// A server behind [`AccessLayer`].
#[derive(Clone, Debug)]
pub struct AccessService<S> {
    inner: S,
    access: Arc<Access>,
}

impl<S, B> Service<Request<B>> for AccessService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        let path = request.uri().path();
        match self.access.check(path, request.headers(), peer) {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Box::pin(self.inner.call(request))
            }
            Err(status) => {
                self.access.log(path, peer, &status);
                Box::pin(ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const SUBMIT: &str = "/ramsift.v1.Coordinator/Submit";
    const REPORT: &str = "/ramsift.v1.Aggregator/Report";
    const TOKEN: &str = "0123456789abcdef";

    fn certified(roles: &[Role]) -> Peer {
        Peer {
            address: None,
            certificate: Some(Caller {
                name: "someone".into(),
                roles: roles.to_vec(),
            }),
        }
    }

    fn bearer(value: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(AUTHORIZATION, value.parse().expect("a header"));
        h
    }

    fn access() -> Access {
        let tokens = Reloaded::new(Vec::new(), |_| {
            let text = format!("worker:{TOKEN}").into();
            Tokens::parse(&[text]).map_err(crate::SecurityError)
        });
        let tokens = Arc::new(tokens.expect("tokens"));
        Access::new(vec![Box::new(ByCertificate), Box::new(ByToken(tokens))])
    }

    #[test]
    fn who_is_not_known_may_ask_for_health_alone() {
        let a = access();
        let none = HeaderMap::new();
        for peer in [None, Some(&Peer::default())] {
            for path in [SUBMIT, REPORT, "/ramsift.v1.Aggregator/Other", "/", ""] {
                let e = a.check(path, &none, peer).expect_err(path);
                assert_eq!(e.code(), Code::Unauthenticated);
                for setting in ["client.cert_file", "client.token_file"] {
                    assert!(e.message().contains(setting), "{e}");
                }
            }
            assert_eq!(
                a.check("/grpc.health.v1.Health/Check", &none, peer).ok(),
                Some(None)
            );
        }
        for wrong in ["Bearer", "Bearer x", "Basic 0123456789abcdef", TOKEN] {
            let e = a.check(REPORT, &bearer(wrong), None).expect_err(wrong);
            assert_eq!(e.code(), Code::Unauthenticated);
        }
    }

    #[test]
    fn a_role_may_do_what_is_its_own() {
        let a = access();
        let none = HeaderMap::new();
        let (worker, client) = (certified(&[Role::Worker]), certified(&[Role::Client]));
        assert!(a.check(REPORT, &none, Some(&worker)).is_ok());
        assert!(a.check(SUBMIT, &none, Some(&client)).is_ok());
        for (path, peer, role) in [(SUBMIT, &worker, "client"), (REPORT, &client, "worker")] {
            let e = a.check(path, &none, Some(peer)).expect_err(path);
            assert_eq!(e.code(), Code::PermissionDenied);
            assert!(e.message().contains(role), "{e}");
        }
        let e = a
            .check(REPORT, &none, Some(&certified(&[])))
            .expect_err("no role");
        assert_eq!(e.code(), Code::PermissionDenied);
        assert!(e.message().contains("ramsift://worker"), "{e}");
        let e = a.check("/ramsift.v1.Aggregator/Other", &none, Some(&worker));
        assert_eq!(e.expect_err("no method").code(), Code::PermissionDenied);
    }

    #[test]
    fn a_token_gives_a_role_too() {
        let a = access();
        let token = bearer(&format!("bearer {TOKEN}"));
        let known = a
            .check(REPORT, &token, None)
            .expect("allowed")
            .expect("known");
        assert_eq!(known.roles, [Role::Worker]);
        // Beside a certificate that has none, as of a mesh.
        assert!(a.check(REPORT, &token, Some(&certified(&[]))).is_ok());
        let e = a.check(SUBMIT, &token, None).expect_err("another role");
        assert_eq!(e.code(), Code::PermissionDenied);
    }

    #[test]
    fn without_a_way_to_know_callers_everyone_may() {
        let a = Access::new(Vec::new());
        assert!(a.is_open());
        assert_eq!(a.check(SUBMIT, &HeaderMap::new(), None).ok(), Some(None));
    }
}
