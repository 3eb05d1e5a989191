//! Who speaks: services and clients show each other certificates, or clients show a token, and each may call what its role
//! allows.
//!
//! ```text
//! client                                        listener
//! ClientSecurity -- certificate of its role --> ServerSecurity::incoming   TLS, who the certificate is for: Peer
//!                -- authorization: Bearer … --> ServerSecurity::layer      Peer or token -> Caller -> may it call this?
//! ```
//!
//! * A listener that is not loopback does not start without TLS and a way to know its callers, unless it is told to
//!   (`insecure`), which it says each time.
//! * A certificate names its roles as URIs in its subject's alternative names: `ramsift://worker`, `ramsift://client`,
//!   `ramsift://coordinator`; what follows after a slash is a name for logs (`ramsift://worker/rack-7`).
//! * A file of tokens has a line for each: `worker:…`.
//! * Files are read again when their content changes. What can't be used is warned of, and what was there before stays.
//! * [`AccessLayer`] is the one place that every call goes through. Another way to know who calls is another
//!   [`Authenticator`]; finer rights are another table in `roles.rs`.
//!
//! Sources: RFC 8446 (TLS 1.3); RFC 5280, section 4.2.1.6 (alternative names); RFC 6750, section 2.1 (bearer tokens); gRPC
//! over HTTP/2 (paths of methods, status codes).

mod access;
mod client;
mod files;
mod listener;
mod replicas;
mod roles;
mod server;
mod tokens;

pub use access::{Access, AccessLayer, AccessService, Authenticator, Caller};
pub use client::{
    AuthChannel, ClientSecurity, ClientSettings, Credentials, describe, is_refusal, is_untrusted,
};
pub use listener::{Connection, Peer};
pub use replicas::Replicas;
pub use roles::{Role, may_call};
pub use server::{ServerSecurity, ServerSettings, check_authorities};

/// What is wrong with the settings of a listener or a client, or with a file that they name: what, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecurityError(pub(crate) String);
