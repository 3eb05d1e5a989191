//! What a listener shows and asks for.

use crate::SecurityError;
use crate::access::{Access, AccessLayer, Authenticator, ByCertificate, ByToken};
use crate::files::{Named, Reloaded};
use crate::listener::{Connection, accept};
use crate::tokens::Tokens;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_stream::wrappers::ReceiverStream;

/// How long a connection lives at most where callers are known: who is no longer trusted is gone by then.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Settings of a listener, the section `server`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// PEM file of its certificate, with the authorities between it and the root.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the certificate's key.
    pub key_file: Option<PathBuf>,
    /// PEM file of the authorities that sign the certificates of callers.
    pub client_ca_file: Option<PathBuf>,
    /// Files of the tokens that callers may send.
    pub token_files: Vec<PathBuf>,
    /// Starts without TLS, or without knowing who calls, wherever it listens.
    pub insecure: bool,
}

/// How a listener speaks, and whom it listens to.
#[derive(Clone, Debug)]
pub struct ServerSecurity {
    tls: Option<Arc<Reloaded<ServerConfig>>>,
    access: Arc<Access>,
}

/// Certificates of a PEM file.
pub(crate) fn certificates(
    file: &Named,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| file.wrong(e))?;
    if all.is_empty() {
        return Err(file.wrong("no certificate in it; it must be a PEM file"));
    }
    Ok(all)
}

/// The key of a PEM file.
pub(crate) fn private_key(
    file: &Named,
    pem: &[u8],
) -> Result<PrivateKeyDer<'static>, SecurityError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| {
        file.wrong(format!(
            "no private key can be read from it ({e}); it must be a PEM file"
        ))
    })
}

/// The authorities of a PEM file.
pub(crate) fn authorities(file: &Named, pem: &[u8]) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for c in certificates(file, pem)? {
        roots.add(c).map_err(|e| file.wrong(e))?;
    }
    Ok(roots)
}

/// Fails for a PEM file that holds no authorities, or what none can be. `setting` names the file in the message.
pub fn check_authorities(
    setting: &'static str,
    path: &std::path::Path,
    pem: &[u8],
) -> Result<(), SecurityError> {
    let path = path.to_owned();
    authorities(&Named { setting, path }, pem).map(drop)
}

/// The one provider of cryptography, whatever else is linked.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn tls(
    cert: Named,
    key: Named,
    ca: Option<Named>,
) -> Result<Reloaded<ServerConfig>, SecurityError> {
    let mut files = vec![cert.clone(), key.clone()];
    files.extend(ca.clone());
    Reloaded::new(files, move |contents| {
        let pem = |i: usize| contents.get(i).map(Vec::as_slice).unwrap_or_default();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| cert.wrong(e))?;
        let builder = match &ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(authorities(ca, pem(2))?);
                // Who shows none is refused call by call, with a reason, and may ask for health.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| ca.wrong(e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, secret) = (certificates(&cert, pem(0))?, private_key(&key, pem(1))?);
        let mut config = builder.with_single_cert(chain, secret).map_err(|e| {
            cert.wrong(format!(
                "{e}; does {} {} belong to it?",
                key.setting,
                key.path.display()
            ))
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    })
}

/// Whether an address is of this machine alone.
pub(crate) fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl ServerSecurity {
    /// No TLS, and everyone may call everything: for listeners of this machine alone.
    pub fn anyone() -> Self {
        Self {
            tls: None,
            access: Arc::new(Access::new(Vec::new())),
        }
    }

    /// By the settings of the listener that `listener` names (`coordinator.listen`), reading the files that they name. An
    /// address that is not loopback needs TLS and a way to know who calls, or `insecure`, which is warned of.
    pub fn new(
        listener: &str,
        address: SocketAddr,
        settings: &ServerSettings,
    ) -> Result<Self, SecurityError> {
        let cert = Named::new("server.cert_file", &settings.cert_file);
        let key = Named::new("server.key_file", &settings.key_file);
        let ca = Named::new("server.client_ca_file", &settings.client_ca_file);
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => Some(Arc::new(tls(cert, key, ca.clone())?)),
            (None, None) if ca.is_some() => {
                let why =
                    "server.client_ca_file needs TLS: set server.cert_file and server.key_file";
                return Err(SecurityError(why.into()));
            }
            (None, None) => None,
            _ => {
                let why = "server.cert_file and server.key_file go together: set both, or neither";
                return Err(SecurityError(why.into()));
            }
        };
        let mut ways: Vec<Box<dyn Authenticator>> = Vec::new();
        if ca.is_some() {
            ways.push(Box::new(ByCertificate));
        }
        if !settings.token_files.is_empty() {
            ways.push(Box::new(ByToken(Arc::new(tokens(&settings.token_files)?))));
        }
        let missing = missing(tls.is_some(), !ways.is_empty());
        match missing {
            Some(why) if !is_local(address) && !settings.insecure => {
                return Err(SecurityError(format!(
                    "{listener} {address} is reached from other machines, and {why}; or listen on 127.0.0.1; or, where \
                     everyone in the network may do everything, start with --insecure"
                )));
            }
            Some(why) if !is_local(address) => {
                tracing::warn!(
                    listener, %address,
                    "INSECURE, as --insecure asks: everyone who reaches this address may submit, read and forge what the \
                     services say; {why}"
                );
            }
            _ if settings.insecure => {
                tracing::warn!(listener, %address, "--insecure is set and changes nothing for this address");
            }
            _ => {}
        }
        Ok(Self {
            tls,
            access: Arc::new(Access::new(ways)),
        })
    }

    /// Whether connections are over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What every call goes through.
    pub fn layer(&self) -> AccessLayer {
        AccessLayer(self.access.clone())
    }

    /// Connections of a listener, until it is dropped.
    pub fn incoming(&self, listener: TcpListener) -> ReceiverStream<std::io::Result<Connection>> {
        accept(listener, self.tls.clone())
    }

    /// A server on these terms: every method added to it is behind [`ServerSecurity::layer`].
    pub fn server(
        &self,
    ) -> tonic::transport::Server<tower_layer::Stack<AccessLayer, tower_layer::Identity>> {
        let server = tonic::transport::Server::builder();
        let server = if self.access.is_open() {
            server
        } else {
            server.max_connection_age(MAX_AGE)
        };
        server.layer(self.layer())
    }
}

fn tokens(paths: &[PathBuf]) -> Result<Reloaded<Tokens>, SecurityError> {
    let files: Vec<Named> = paths
        .iter()
        .filter_map(|p| Named::new("server.token_file", &Some(p.clone())))
        .collect();
    let named = files.clone();
    Reloaded::new(files, move |contents| {
        // One by one first, for errors that name the file.
        for (file, text) in named.iter().zip(contents) {
            Tokens::parse(std::slice::from_ref(text)).map_err(|e| file.wrong(e))?;
        }
        Tokens::parse(contents).map_err(SecurityError)
    })
}

/// What a listener lacks to be reached by other machines, as a sentence that says which settings mend it.
fn missing(tls: bool, callers: bool) -> Option<&'static str> {
    match (tls, callers) {
        (true, true) => None,
        (false, false) => Some(
            "needs TLS (server.cert_file and server.key_file) and a way to know who calls (server.client_ca_file or \
             server.token_file)",
        ),
        (false, true) => Some("needs TLS: set server.cert_file and server.key_file"),
        (true, false) => {
            Some("needs a way to know who calls: set server.client_ca_file or server.token_file")
        }
    }
}
