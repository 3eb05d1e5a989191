//! One connection to the broker, and the channel that everything is published on.
//!
//! lapin reads and writes on a thread per connection. It ends with the socket, and with nothing
//! else: a broker that accepts and stays silent would keep one thread and one socket for every
//! try. So a second handle to the socket is kept here, and shuts it down.

use super::{RabbitConfig, lanes};
use crate::QueueError;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Seconds between signs of life. Twice as many without one, and the connection is given up.
const HEARTBEAT: u16 = 10;
/// Time for a last word to the broker.
const GOODBYE: Duration = Duration::from_secs(2);

/// The broker, and how long it may take to answer.
#[derive(Clone)]
pub(super) struct Broker {
    pub(super) config: Arc<RabbitConfig>,
    pub(super) answer: Duration,
}

impl Broker {
    pub(super) fn unavailable(&self, detail: String) -> QueueError {
        QueueError::Unavailable {
            at: self.config.place().to_owned(),
            detail: self.config.url.scrub(&detail),
        }
    }

    /// Bounds a call to the broker and names it in errors.
    pub(super) async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, QueueError> {
        match tokio::time::timeout(self.answer, call).await {
            Err(_) => {
                Err(self.unavailable(format!("no answer to {what} within {:?}", self.answer)))
            }
            Ok(Err(e)) => Err(self.unavailable(format!("{what}: {e}"))),
            Ok(Ok(v)) => Ok(v),
        }
    }
}

/// A handle to the connection's socket, which is shut down with it.
struct Wire(std::net::TcpStream);

impl Drop for Wire {
    fn drop(&mut self) {
        // An error means that it is shut down already.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

/// A connection with what every user of it needs.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) publisher: Channel,
    wire: Option<Wire>,
    given_up: AtomicBool,
}

impl Link {
    /// Connects, and sets up the queues.
    pub(super) async fn open(broker: &Broker) -> Result<Self, QueueError> {
        // Dropped when this is given up at any point from here on.
        let (connection, wire) = broker.ask("connecting", connect(&broker.config)).await?;
        let publisher = broker
            .ask("opening a channel", connection.create_channel())
            .await?;
        lanes::set_up(broker, &connection, &publisher).await?;
        let confirms = publisher.confirm_select(ConfirmSelectOptions::default());
        broker.ask("confirm mode", confirms).await?;
        Ok(Self {
            connection,
            publisher,
            wire: Some(wire),
            given_up: AtomicBool::new(false),
        })
    }

    /// Whether it looks alive.
    pub(super) fn works(&self) -> bool {
        !self.given_up.load(Ordering::Relaxed)
            && self.connection.status().connected()
            && self.publisher.status().connected()
    }

    /// It is of no more use to new calls.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Link {
    /// The connection takes its leave when it is dropped, which a broker that is gone never
    /// answers.
    fn drop(&mut self) {
        let wire = self.wire.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GOODBYE).await;
                drop(wire);
            });
        }
    }
}

async fn connect(config: &RabbitConfig) -> lapin::Result<(Connection, Wire)> {
    let mut uri: AMQPUri = config.url.reveal().parse().map_err(std::io::Error::other)?;
    if uri.query.heartbeat.is_none_or(|h| h == 0) {
        uri.query.heartbeat = Some(HEARTBEAT);
    }
    let runtime = lapin::runtime::default_runtime()?;
    let tls = config.tls()?;
    let plain = AMQPUri {
        scheme: AMQPScheme::AMQP,
        ..uri.clone()
    };
    let mut stream = plain
        .connect_with_config_async(tls.as_ref(), &runtime)
        .await?;
    let AsyncTcpStream::Plain(socket) = &stream else {
        return Err(std::io::Error::other("not a plain connection").into());
    };
    let wire = Wire(socket.get_ref().as_fd().try_clone_to_owned()?.into());
    if uri.scheme == AMQPScheme::AMQPS {
        stream = stream
            .into_tls(&uri.authority.host, tls.as_ref())
            .await
            .map_err(untrusted)?;
    }
    let stream = Mutex::new(Some(stream));
    let name = config.name.as_str().into();
    let props = ConnectionProperties::default().with_connection_name(name);
    // It asks for a stream once: recovery is off.
    let once = async move |_, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
    };
    let connection = Connection::connector(uri, runtime, once, props).await?;
    Ok((connection, wire))
}

/// What a failed handshake means to who set the broker up.
fn untrusted(e: std::io::Error) -> std::io::Error {
    let said = e.to_string();
    let hint = if said.contains("UnknownIssuer") {
        "; name the authority that signed its certificate in queue.ca_file"
    } else if said.contains("not valid for name") || said.contains("NotValidForName") {
        "; the host in queue.url must be a name in its certificate"
    } else {
        ""
    };
    std::io::Error::new(e.kind(), format!("TLS: {said}{hint}"))
}
