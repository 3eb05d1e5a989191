//! What a client shows, and whom it trusts.

use crate::SecurityError;
use crate::files::{Named, Reloaded};
use crate::server::{authorities, certificates, private_key, provider};
use crate::tokens;
use http::Uri;
use hyper_util::rt::TokioIo;
use ramsift_mask::MaskedUrl;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower_service::Service;

/// Settings of a client, the section `client`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSettings {
    /// PEM file of the authorities that sign the certificates of services; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of its own certificate, with the authorities between it and the root.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the certificate's key.
    pub key_file: Option<PathBuf>,
    /// File whose first token it sends.
    pub token_file: Option<PathBuf>,
    /// Sends tokens over plain HTTP to other machines too.
    pub insecure: bool,
}

/// How a client speaks to services.
#[derive(Clone, Debug)]
pub struct ClientSecurity {
    settings: ClientSettings,
    token: Option<Arc<Reloaded<MetadataValue<Ascii>>>>,
}

/// A channel that sends what its client shows.
pub type AuthChannel = InterceptedService<Channel, Credentials>;

/// Adds the token to each call, where there is one, and the trace that the call belongs to.
#[derive(Clone, Debug)]
pub struct Credentials(Option<Arc<Reloaded<MetadataValue<Ascii>>>>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = (*token.get()).clone();
            request.metadata_mut().insert("authorization", value);
        }
        ramsift_telemetry::inject(request.metadata_mut());
        Ok(request)
    }
}

impl ClientSecurity {
    /// Shows nothing, and trusts the authorities of the system.
    pub fn nothing() -> Self {
        Self {
            settings: ClientSettings::default(),
            token: None,
        }
    }

    /// By these settings. Reads the token; certificates are read when there is something to connect to.
    pub fn new(settings: &ClientSettings) -> Result<Self, SecurityError> {
        if settings.cert_file.is_some() != settings.key_file.is_some() {
            let why = "client.cert_file and client.key_file go together: set both, or neither";
            return Err(SecurityError(why.into()));
        }
        let token = match Named::new("client.token_file", &settings.token_file) {
            Some(file) => Some(Arc::new(token(file)?)),
            None => None,
        };
        Ok(Self {
            settings: settings.clone(),
            token,
        })
    }

    /// A channel to `http://host:port` or `https://host:port`, which `setting` names. Connects when it is first used, and
    /// again after a failure. `tune` sets what else the endpoint needs.
    pub fn channel(
        &self,
        setting: &str,
        url: &MaskedUrl,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<AuthChannel, SecurityError> {
        self.channel_to(setting, url, None, tune)
    }

    /// The same, to one of the addresses that the host's name stands for.
    pub(crate) fn channel_to(
        &self,
        setting: &str,
        url: &MaskedUrl,
        address: Option<SocketAddr>,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<AuthChannel, SecurityError> {
        let wrong = |why: &str| SecurityError(format!("{setting} {url}: {why}"));
        let uri: Uri = url
            .reveal()
            .parse()
            .map_err(|_| wrong("not a valid address; use https://host:port or http://host:port"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("use https://host:port or http://host:port")),
        };
        let host = uri.host().filter(|h| !h.is_empty());
        let host = host.ok_or_else(|| wrong("it names no host"))?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if !tls {
            self.plain(setting, url, host)?;
        }
        // TLS is the connector's, so that it can take new files for each connection: tonic is told of plain HTTP, and of the
        // true origin for what it writes into requests.
        let place = format!("{host}:{port}");
        let endpoint = Endpoint::from_shared(format!("http://{place}"));
        let endpoint = endpoint.map_err(|_| wrong("not a valid address"))?;
        let scheme = if tls { "https" } else { "http" };
        let origin = format!("{scheme}://{place}").parse();
        let origin = origin.map_err(|_| wrong("not a valid address"))?;
        let connector = Connector {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            address,
            setting: setting.into(),
            tls: if tls {
                Some(Arc::new(self.tls()?))
            } else {
                None
            },
            shows: self.settings.cert_file.is_some(),
        };
        let channel = tune(endpoint.origin(origin)).connect_with_connector_lazy(connector);
        let credentials = Credentials(self.token.clone());
        Ok(InterceptedService::new(channel, credentials))
    }

    /// Whether what there is to show may go over plain HTTP.
    fn plain(&self, setting: &str, url: &MaskedUrl, host: &str) -> Result<(), SecurityError> {
        let s = &self.settings;
        for (name, set) in [
            ("client.ca_file", &s.ca_file),
            ("client.cert_file", &s.cert_file),
        ] {
            if set.is_some() {
                return Err(SecurityError(format!(
                    "{name} is set, and {setting} {url} is plain HTTP: write https://, or take {name} away"
                )));
            }
        }
        let name = host.trim_matches(['[', ']']);
        let local = name == "localhost"
            || name
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback());
        if self.token.is_some() && !local && !s.insecure {
            return Err(SecurityError(format!(
                "client.token_file is set, and {setting} {url} is plain HTTP, where others can read the token: write \
                 https://, or take the risk with --insecure"
            )));
        }
        Ok(())
    }

    fn tls(&self) -> Result<Reloaded<ClientConfig>, SecurityError> {
        let ca = Named::new("client.ca_file", &self.settings.ca_file);
        let cert = Named::new("client.cert_file", &self.settings.cert_file);
        let key = Named::new("client.key_file", &self.settings.key_file);
        let files: Vec<Named> = [&ca, &cert, &key].into_iter().flatten().cloned().collect();
        Reloaded::new(files, move |contents| {
            let mut contents = contents.iter();
            let mut next = || contents.next().map(Vec::as_slice).unwrap_or_default();
            let roots = match &ca {
                Some(ca) => authorities(ca, next())?,
                None => of_the_system(),
            };
            let builder = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(|e| SecurityError(e.to_string()))?
                .with_root_certificates(roots);
            let mut config = match (&cert, &key) {
                (Some(cert), Some(key)) => {
                    let (chain, secret) = (certificates(cert, next())?, private_key(key, next())?);
                    builder.with_client_auth_cert(chain, secret).map_err(|e| {
                        cert.wrong(format!(
                            "{e}; does {} {} belong to it?",
                            key.setting,
                            key.path.display()
                        ))
                    })?
                }
                _ => builder.with_no_client_auth(),
            };
            config.alpn_protocols = vec![b"h2".to_vec()];
            Ok(config)
        })
    }
}

fn token(file: Named) -> Result<Reloaded<MetadataValue<Ascii>>, SecurityError> {
    Reloaded::new(vec![file.clone()], move |contents| {
        let text = contents.first().map(Vec::as_slice).unwrap_or_default();
        let token = tokens::first(text).map_err(|e| file.wrong(e))?;
        let value = MetadataValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| file.wrong("the token can't be sent in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    })
}

fn of_the_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for e in &found.errors {
        tracing::debug!(error = %e, "some of the system's authorities can't be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// Connects, with TLS where there is a configuration for it.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    /// Where to connect; `None`: wherever the host's name leads.
    address: Option<SocketAddr>,
    setting: Arc<str>,
    tls: Option<Arc<Reloaded<ClientConfig>>>,
    /// It shows a certificate.
    shows: bool,
}

impl Connector {
    async fn connect(self) -> io::Result<Wire> {
        let socket = match self.address {
            Some(a) => TcpStream::connect(a).await?,
            None => TcpStream::connect((self.host.as_str(), self.port)).await?,
        };
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Wire::Plain(socket));
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|e| {
            io::Error::other(format!(
                "{}: {:?} is no name of a host ({e})",
                self.setting, self.host
            ))
        })?;
        let connector = TlsConnector::from(tls.get());
        let stream = connector.connect(name, socket).await;
        let mut stream = stream.map_err(untrusted)?;
        let early = if self.shows {
            first_word(&mut stream).await.map_err(untrusted)?
        } else {
            Vec::new()
        };
        let stream = Box::new(stream);
        Ok(Wire::Tls { stream, early })
    }
}

fn untrusted(e: io::Error) -> io::Error {
    let said = e.to_string();
    let hint = hint(&said).unwrap_or_default();
    io::Error::new(e.kind(), format!("{TLS}: {said}{hint}"))
}

/// How failures of TLS begin.
const TLS: &str = "TLS";
/// How long a service's first word is waited for.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// Waits for what the service says first. In TLS 1.3 it looks at our certificate when the handshake is over for us, and only
/// here can its refusal be told from a connection that broke. HTTP/2 services begin with their settings; one that waits
/// for ours instead is not waited for long.
async fn first_word(stream: &mut TlsStream<TcpStream>) -> io::Result<Vec<u8>> {
    let mut word = vec![0; 1024];
    match tokio::time::timeout(FIRST_WORD, stream.read(&mut word)).await {
        Err(_) => Ok(Vec::new()),
        Ok(Err(e)) => Err(e),
        Ok(Ok(0)) => Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the service closed the connection after the handshake",
        )),
        Ok(Ok(n)) => {
            word.truncate(n);
            Ok(word)
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connect = self.clone().connect();
        Box::pin(async move { connect.await.map(TokioIo::new) })
    }
}

/// A connection to a service.
enum Wire {
    Plain(TcpStream),
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// What was read of it before it was handed out.
        early: Vec<u8>,
    },
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls { early, .. } if !early.is_empty() => {
                let n = early.len().min(buf.remaining());
                buf.put_slice(&early[..n]);
                early.drain(..n);
                Poll::Ready(Ok(()))
            }
            Self::Tls { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What ends a connection when the other side does not like our certificate.
const ALERT: &str = "received fatal alert";

/// What a failed handshake means to who set the services up.
fn hint(said: &str) -> Option<&'static str> {
    let has = |what: &str| said.contains(what);
    Some(
        if has("UnknownIssuer") || has("peer certificate: BadSignature") {
            "; name the authority that signed the service's certificate in client.ca_file"
        } else if has("not valid for name") || has("NotValidForName") {
            "; the host in the URL must be a name in the service's certificate"
        } else if has("InvalidContentType") {
            "; the service does not speak TLS: give it server.cert_file and server.key_file, or write http://"
        } else if has(ALERT) && (has("UnknownCA") || has("BadCertificate") || has("DecryptError")) {
            "; the service does not trust the authority that signed client.cert_file (its server.client_ca_file)"
        } else if has(ALERT) && has("CertificateExpired") {
            "; the certificate in client.cert_file has expired"
        } else if has(ALERT) {
            "; the service refuses the certificate in client.cert_file"
        } else {
            return None;
        },
    )
}

/// The innermost reason of a failed call, where it says more than its message.
fn root_cause(status: &Status) -> Option<String> {
    let mut at: &dyn std::error::Error = std::error::Error::source(status)?;
    while let Some(next) = at.source() {
        at = next;
    }
    Some(at.to_string()).filter(|root| !status.message().contains(root.as_str()))
}

/// A failed call for people: its message, what lies below, and what mends it where that is known.
pub fn describe(status: &Status) -> String {
    let mut out = status.message().to_owned();
    if let Some(root) = root_cause(status) {
        if !out.is_empty() {
            out.push_str(": ");
        }
        out.push_str(&root);
        out.push_str(hint(&root).unwrap_or_default());
    }
    if out.is_empty() {
        out = status.code().description().to_owned();
    }
    out
}

/// Whether a call failed because a service that is there could not be spoken to over TLS.
pub fn is_untrusted(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with(TLS)
}

/// Whether a call failed because the service does not know who calls, or does not let them: trying again helps only once
/// somebody has mended it.
pub fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied
    ) || status.message().contains(ALERT)
        || root_cause(status).is_some_and(|root| root.contains(ALERT))
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Wire::Plain",
            Self::Tls { .. } => "Wire::Tls",
        })
    }
}
