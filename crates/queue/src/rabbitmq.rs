//! RabbitMQ: durable quorum queues, publisher confirms, `mandatory`, delivery limits with an
//! at-least-once dead-letter path. Works on 3.10 and up.
//!
//! ```text
//! RabbitQueue --> Link: connection, publisher's channel    made on first use, and again after a
//!                  |                                       failure; dropped whole
//!                  +--> RabbitConsumer: a channel each --> Delivery
//! ```
//!
//! A connection that breaks is dropped whole and made anew: a confirm that was pending when a
//! broker died may never come, so every wait has an end. A publish that failed may have been
//! stored all the same; tasks carry a name, and settling one twice leaves no trace.
//!
//! Source: RabbitMQ documentation, "Quorum Queues" (delivery limit, `x-delivery-count`,
//! at-least-once dead-lettering) and "Consumer Acknowledgements and Publisher Confirms".

mod consumer;
mod lanes;
mod link;

use crate::{Consumer, Lane, LaneState, Message, Queue, QueueError};
use async_trait::async_trait;
use consumer::RabbitConsumer;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation};
use link::{Broker, Link};
use ramsift_mask::MaskedUrl;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Longest wait for the broker to answer one call, unless set.
const ANSWER: Duration = Duration::from_secs(15);
/// Tries of one publish over fresh connections.
const PUBLISH_TRIES: u32 = 4;

/// How to reach the broker.
#[derive(Clone)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`. A `heartbeat` of 10 s is added where
    /// there is none: without one, a broker that falls silent is never noticed.
    pub url: MaskedUrl,
    /// First part of the queues' names: `<prefix>.chunks`, ...
    pub prefix: String,
    /// Name of this connection in the broker's lists.
    pub name: String,
    /// A PEM file of the authorities that may have signed the broker's certificate, beside those of
    /// the system; for `amqps://` alone. Read whenever a connection is made, so that it may be
    /// renewed.
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitConfig({})", self.place())
    }
}

impl RabbitConfig {
    /// Where the broker is, without user and password.
    fn place(&self) -> &str {
        self.url.place()
    }

    /// What connections over TLS trust.
    fn tls(&self) -> std::io::Result<OwnedTLSConfig> {
        let Some(path) = &self.ca_file else {
            return Ok(OwnedTLSConfig::default());
        };
        let wrong = |why: &dyn std::fmt::Display| {
            std::io::Error::other(format!("queue.ca_file {}: {why}", path.display()))
        };
        let pem = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(wrong(&"no certificate in it; it must be a PEM file"));
        }
        Ok(OwnedTLSConfig {
            identity: None,
            cert_chain: Some(pem),
        })
    }

    fn queue(&self, lane: Lane) -> String {
        format!("{}.{}", self.prefix, lane.name())
    }
}

/// A connection to RabbitMQ, made on first use and again after a failure.
///
/// No call waits for ever: connecting takes up to twice [`RabbitQueue::answer_within`], whoever
/// asks for it, publishing up to four times, consuming four times, checking three times.
#[derive(Clone)]
pub struct RabbitQueue {
    broker: Broker,
    link: Arc<Mutex<Option<Arc<Link>>>>,
    /// Publishes that have failed since one worked.
    failures: Arc<AtomicU64>,
}

impl std::fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitQueue({})", self.broker.config.place())
    }
}

impl RabbitQueue {
    /// A queue at this broker. Connects when it is first used.
    pub fn new(config: RabbitConfig) -> Self {
        Self {
            broker: Broker {
                config: Arc::new(config),
                answer: ANSWER,
            },
            link: Arc::default(),
            failures: Arc::default(),
        }
    }

    /// Sets the longest wait for the broker to answer one call, 15 s otherwise.
    #[must_use]
    pub fn answer_within(mut self, limit: Duration) -> Self {
        self.broker.answer = limit;
        self
    }

    /// The link there is, or a new one. Who waits while another connects waits no longer for it.
    async fn link(&self) -> Result<Arc<Link>, QueueError> {
        let limit = self.broker.answer * 2;
        let found = tokio::time::timeout(limit, async {
            let mut slot = self.link.lock().await;
            if let Some(l) = slot.as_ref().filter(|l| l.works()) {
                return Ok(l.clone());
            }
            *slot = None;
            let link = Arc::new(Link::open(&self.broker).await?);
            *slot = Some(link.clone());
            Ok(link)
        });
        found.await.unwrap_or_else(|_| {
            let detail = format!("not connected within {limit:?}");
            Err(self.broker.unavailable(detail))
        })
    }

    /// Has a link replaced that may look alive although its broker is gone. Waits for nobody: who
    /// holds the slot looks at the link, or is replacing it.
    fn drop_link(&self, old: &Arc<Link>) {
        old.give_up();
        if let Ok(mut slot) = self.link.try_lock()
            && slot.as_ref().is_some_and(|l| Arc::ptr_eq(l, old))
        {
            *slot = None;
        }
    }

    /// One try of a publish.
    async fn send(&self, lane: Lane, m: &Message) -> Result<(), QueueError> {
        let link = self.link().await?;
        let now = SystemTime::now();
        let sent = publish_on(&self.broker, &link, lane, m, now).await;
        if sent.is_err() {
            self.drop_link(&link);
        }
        sent
    }
}

/// Publishes and waits for the broker's word that the message is stored.
async fn publish_on(
    broker: &Broker,
    link: &Link,
    lane: Lane,
    m: &Message,
    published: SystemTime,
) -> Result<(), QueueError> {
    let mut headers = FieldTable::default();
    for (k, v) in &m.headers {
        headers.insert(k.as_str().into(), AMQPValue::LongString(v.as_str().into()));
    }
    let since_epoch = published.duration_since(UNIX_EPOCH).unwrap_or_default();
    let props = BasicProperties::default()
        .with_delivery_mode(2)
        .with_timestamp(since_epoch.as_secs())
        .with_headers(headers);
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let queue = ShortString::from(broker.config.queue(lane));
    let publish = async {
        link.publisher
            .basic_publish("".into(), queue, options, &m.body, props)
            .await?
            .await
    };
    let refused = |detail: &str| {
        Err(QueueError::Refused {
            lane: lane.name(),
            detail: detail.to_owned(),
        })
    };
    match broker.ask("publishing", publish).await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => refused("it has no such queue"),
        Confirmation::Nack(_) => refused("it could not store it (nack)"),
        _ => refused("it gave no confirmation"),
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn publish(&self, lane: Lane, message: Message) -> Result<(), QueueError> {
        let until = Instant::now() + self.broker.answer * 4;
        let mut last = None;
        for tries in 1..=PUBLISH_TRIES {
            let Ok(done) = tokio::time::timeout_at(until, self.send(lane, &message)).await else {
                break;
            };
            let Err(e) = done else {
                match self.failures.swap(0, Ordering::Relaxed) {
                    0 => {}
                    failures => tracing::info!(failures, "publishing works again"),
                }
                return Ok(());
            };
            // One line for an outage, however many messages meet it.
            match self.failures.fetch_add(1, Ordering::Relaxed) {
                0 => tracing::warn!(error = %e, "publish failed; tried again until it works"),
                n => tracing::debug!(error = %e, tries, failures = n + 1, "publish failed"),
            }
            last = Some(e);
            let pause = Duration::from_millis(250 << tries);
            if tries == PUBLISH_TRIES || Instant::now() + pause > until {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(last.unwrap_or_else(|| self.broker.unavailable("not published in time".into())))
    }

    async fn consume(&self, lane: Lane, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let link = self.link().await?;
        match RabbitConsumer::subscribe(&self.broker, &link, lane, prefetch).await {
            Ok(c) => Ok(Box::new(c)),
            Err(e) => {
                self.drop_link(&link);
                Err(e)
            }
        }
    }

    async fn look(&self, lane: Lane) -> Result<Option<LaneState>, QueueError> {
        let link = self.link().await?;
        let found = lanes::look(&self.broker, &link.connection, lane).await;
        // The next link declares what is missing.
        if !matches!(found, Ok(Some(_))) {
            self.drop_link(&link);
        }
        found
    }

    async fn has_forgotten(&self) -> Result<bool, QueueError> {
        let link = self.link().await?;
        let forgot = lanes::has_forgotten(&self.broker, &link.connection).await;
        if forgot.is_err() {
            self.drop_link(&link);
        }
        forgot
    }

    async fn check(&self) -> Result<(), QueueError> {
        let link = self.link().await?;
        // A link that looks alive may have lost its broker: ask something.
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let name = ShortString::from(self.broker.config.queue(Lane::Dead));
        let asked = link
            .publisher
            .queue_declare(name, options, FieldTable::default());
        let answer = self.broker.ask("asking for a queue", asked).await;
        if answer.is_err() {
            self.drop_link(&link);
        }
        answer.map(|_| ())
    }
}
