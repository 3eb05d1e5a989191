//! Connections that a listener takes, over TLS or not.

use crate::access::Caller;
use crate::files::Reloaded;
use crate::roles::Role;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes at a time; more wait in the system's queue.
const HANDSHAKES: usize = 256;
/// How long one may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a client to read why it was refused.
const GOODBYE: Duration = Duration::from_secs(1);

/// Whom a connection is with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: Option<SocketAddr>,
    /// Who its certificate says that it is; `None` where it has shown none.
    pub certificate: Option<Caller>,
}

/// A connection, with TLS or without.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Io::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Io::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Io::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(s) => s.is_write_vectored(),
            Io::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_flush(cx),
            Io::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Io::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// Who a certificate that was verified is for.
fn caller(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let cert = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut roles: Vec<Role> = cert.valid_uri_names().filter_map(Role::of_uri).collect();
    roles.sort_unstable();
    roles.dedup();
    let name = cert
        .valid_uri_names()
        .find(|uri| Role::of_uri(uri).is_some())
        .or_else(|| cert.valid_dns_names().next())
        .map_or_else(
            || "a certificate without a name".into(),
            |n| format!("the certificate of {n}"),
        );
    Some(Caller { name, roles })
}

/// Accepts connections until what is returned is dropped. Each takes its handshake beside the others.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Option<Arc<Reloaded<ServerConfig>>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                a = listener.accept() => a,
                () = tx.closed() => return,
            };
            let (socket, address) = match accepted {
                Ok(a) => a,
                Err(e) => {
                    // Such as too many open files: goes on when some are closed.
                    tracing::warn!(error = %e, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Messages are small and answers are waited for.
            socket.set_nodelay(true).ok();
            let peer = Peer {
                address: Some(address),
                certificate: None,
            };
            let Some(tls) = &tls else {
                let io = Io::Plain(socket);
                if tx.send(Ok(Connection { io, peer })).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(place) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (config, tx) = (tls.get(), tx.clone());
            tokio::spawn(async move {
                if let Some(c) = handshake(socket, config, peer).await {
                    // An error means that the server has ended.
                    let _ = tx.send(Ok(c)).await;
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(rx)
}

async fn handshake(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    mut peer: Peer,
) -> Option<Connection> {
    let address = peer.address;
    let accept = TlsAcceptor::from(config).accept(socket).into_fallible();
    match tokio::time::timeout(HANDSHAKE, accept).await {
        Err(_) => {
            tracing::debug!(?address, "no TLS handshake within {HANDSHAKE:?}");
            None
        }
        Ok(Err((e, socket))) => {
            tracing::info!(?address, error = %e, "TLS handshake failed");
            part(socket).await;
            None
        }
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            peer.certificate = chain.and_then(|c| c.first()).and_then(caller);
            let io = Io::Tls(Box::new(stream));
            Some(Connection { io, peer })
        }
    }
}

/// Closes a connection whose handshake failed. What the client has sent is read first: closed with data unread, the
/// system would take back the alert that says why.
async fn part(mut socket: TcpStream) {
    let read = async {
        socket.shutdown().await?;
        let mut rest = [0; 4096];
        for _ in 0..64 {
            if socket.read(&mut rest).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection is over.
    let _ = tokio::time::timeout(GOODBYE, read).await;
}
