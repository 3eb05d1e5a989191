//! RabbitMQ: durable quorum queues, publisher confirms, `mandatory`, delivery limits with an
//! at-least-once dead-letter path. Works on 3.10 and up.
//!
//! A connection that breaks is dropped whole and made anew: a confirm that was pending when a
//! broker died may never come, so every wait has an end. A publish that failed may have been
//! stored all the same; tasks carry a name, and settling one twice leaves no trace.
//!
//! Source: RabbitMQ documentation, "Quorum Queues" (delivery limit, `x-delivery-count`,
//! at-least-once dead-lettering) and "Consumer Acknowledgements and Publisher Confirms".

use crate::{Answer, Consumer, Delivery, How, Lane, Message, Queue, QueueError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    BasicRejectOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Longest wait for the broker to answer one call.
const ANSWER: Duration = Duration::from_secs(15);
/// Tries of one publish over fresh connections.
const PUBLISH_TRIES: u32 = 4;

/// How to reach the broker.
#[derive(Clone)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`.
    pub url: String,
    /// First part of the queues' names: `<prefix>.chunks`, ...
    pub prefix: String,
    /// Name of this connection in the broker's lists.
    pub name: String,
}

impl std::fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitConfig({})", self.place())
    }
}

impl RabbitConfig {
    /// Where the broker is, without user and password.
    fn place(&self) -> String {
        let rest = self
            .url
            .split_once("://")
            .map_or(self.url.as_str(), |(_, r)| r);
        rest.rsplit_once('@')
            .map_or(rest, |(_, host)| host)
            .to_owned()
    }

    fn queue(&self, lane: Lane) -> String {
        format!("{}.{}", self.prefix, lane.name())
    }
}

struct Link {
    connection: Connection,
    publisher: Channel,
}

/// A connection to RabbitMQ, made on first use and again after a failure.
#[derive(Clone)]
pub struct RabbitQueue {
    config: RabbitConfig,
    link: Arc<Mutex<Option<Arc<Link>>>>,
}

impl std::fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitQueue({})", self.config.place())
    }
}

/// Bounds a call to the broker and names it in errors.
async fn bounded<T>(
    config: &RabbitConfig,
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    let fail = |detail: String| QueueError::Unavailable {
        at: config.place(),
        detail,
    };
    match tokio::time::timeout(ANSWER, call).await {
        Err(_) => Err(fail(format!(
            "no answer to {what} within {} s",
            ANSWER.as_secs()
        ))),
        Ok(Err(e)) => Err(fail(format!("{what}: {e}"))),
        Ok(Ok(v)) => Ok(v),
    }
}

fn arguments(config: &RabbitConfig, lane: Lane) -> FieldTable {
    let text = |s: &str| AMQPValue::LongString(LongString::from(s));
    let mut t = FieldTable::default();
    t.insert("x-queue-type".into(), text("quorum"));
    if let (Some(limit), Some(next)) = (lane.delivery_limit(), lane.next()) {
        t.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongInt(limit.cast_signed()),
        );
        t.insert("x-dead-letter-exchange".into(), text(""));
        t.insert(
            "x-dead-letter-routing-key".into(),
            text(&config.queue(next)),
        );
        t.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        t.insert("x-overflow".into(), text("reject-publish"));
    }
    t
}

impl RabbitQueue {
    /// A queue at this broker. Connects when it is first used.
    pub fn new(config: RabbitConfig) -> Self {
        Self {
            config,
            link: Arc::default(),
        }
    }

    async fn link(&self) -> Result<Arc<Link>, QueueError> {
        let mut slot = self.link.lock().await;
        if let Some(l) = slot.as_ref()
            && l.connection.status().connected()
            && l.publisher.status().connected()
        {
            return Ok(l.clone());
        }
        *slot = None;
        let c = &self.config;
        let props = ConnectionProperties::default().with_connection_name(c.name.as_str().into());
        let connection = bounded(c, "connecting", Connection::connect(&c.url, props)).await?;
        let publisher = bounded(c, "opening a channel", connection.create_channel()).await?;
        for lane in [Lane::Dead, Lane::Suspects, Lane::Chunks, Lane::Views] {
            let options = QueueDeclareOptions {
                durable: true,
                ..Default::default()
            };
            let name = ShortString::from(c.queue(lane));
            let declared = bounded(
                c,
                "declaring a queue",
                publisher.queue_declare(name, options, arguments(c, lane)),
            );
            declared.await.map_err(|e| QueueError::Setup {
                lane: lane.name(),
                detail: format!("{e}; delete the queue or choose another prefix"),
            })?;
        }
        bounded(
            c,
            "confirm mode",
            publisher.confirm_select(ConfirmSelectOptions::default()),
        )
        .await?;
        let link = Arc::new(Link {
            connection,
            publisher,
        });
        *slot = Some(link.clone());
        Ok(link)
    }

    async fn drop_link(&self, old: &Arc<Link>) {
        let mut slot = self.link.lock().await;
        if slot.as_ref().is_some_and(|l| Arc::ptr_eq(l, old)) {
            *slot = None;
        }
    }

    async fn subscribe(
        &self,
        link: &Arc<Link>,
        lane: Lane,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, QueueError> {
        let c = &self.config;
        let channel = bounded(c, "opening a channel", link.connection.create_channel()).await?;
        bounded(
            c,
            "setting prefetch",
            channel.basic_qos(prefetch, BasicQosOptions::default()),
        )
        .await?;
        let queue = ShortString::from(c.queue(lane));
        let inner = bounded(
            c,
            "subscribing",
            channel.basic_consume(
                queue,
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            ),
        )
        .await?;
        Ok(Box::new(RabbitConsumer {
            config: c.clone(),
            inner,
            channel,
            _link: link.clone(),
        }))
    }

    async fn publish_on(&self, link: &Link, lane: Lane, m: &Message) -> Result<(), QueueError> {
        let mut headers = FieldTable::default();
        for (k, v) in &m.headers {
            headers.insert(k.as_str().into(), AMQPValue::LongString(v.as_str().into()));
        }
        let props = BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(headers);
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let queue = ShortString::from(self.config.queue(lane));
        let confirm = bounded(&self.config, "publishing", async {
            link.publisher
                .basic_publish("".into(), queue, options, &m.body, props)
                .await?
                .await
        })
        .await?;
        let refused = |detail: &str| {
            Err(QueueError::Refused {
                lane: lane.name(),
                detail: detail.to_owned(),
            })
        };
        match confirm {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => refused("it has no such queue"),
            Confirmation::Nack(_) => refused("it could not store it (nack)"),
            _ => refused("it gave no confirmation"),
        }
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn publish(&self, lane: Lane, message: Message) -> Result<(), QueueError> {
        let mut tries = 0;
        loop {
            let done = match self.link().await {
                Ok(link) => {
                    let r = self.publish_on(&link, lane, &message).await;
                    if r.is_err() {
                        self.drop_link(&link).await;
                    }
                    r
                }
                Err(e) => Err(e),
            };
            tries += 1;
            match done {
                Ok(()) => return Ok(()),
                Err(e) if tries >= PUBLISH_TRIES => return Err(e),
                Err(e) => {
                    tracing::warn!(error = %e, tries, "publish failed, trying again");
                    tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                }
            }
        }
    }

    async fn consume(&self, lane: Lane, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let link = self.link().await?;
        let subscribed = self.subscribe(&link, lane, prefetch).await;
        if subscribed.is_err() {
            // It may look alive although its broker is gone.
            self.drop_link(&link).await;
        }
        subscribed
    }

    async fn check(&self) -> Result<(), QueueError> {
        let link = self.link().await?;
        // A link that looks alive may have lost its broker: ask something.
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let name = ShortString::from(self.config.queue(Lane::Dead));
        let asked = link
            .publisher
            .queue_declare(name, options, FieldTable::default());
        let answer = bounded(&self.config, "asking for a queue", asked).await;
        if answer.is_err() {
            self.drop_link(&link).await;
        }
        answer.map(|_| ())
    }
}

struct RabbitConsumer {
    config: RabbitConfig,
    inner: lapin::Consumer,
    channel: Channel,
    _link: Arc<Link>,
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        let gone = |detail: String| QueueError::Unavailable {
            at: self.config.place(),
            detail,
        };
        let mut d = match self.inner.next().await {
            None => return Err(gone("the subscription was closed".into())),
            Some(Err(e)) => return Err(gone(format!("the subscription broke: {e}"))),
            Some(Ok(d)) => d,
        };
        let table = d.properties.headers().clone().unwrap_or_default();
        let mut headers = BTreeMap::new();
        let mut redelivered = u32::from(d.redelivered);
        for (k, v) in table.inner() {
            match v {
                AMQPValue::LongString(s) => {
                    headers.insert(k.to_string(), s.to_string());
                }
                _ if k.as_str() == "x-delivery-count" => {
                    redelivered = count(v).unwrap_or(redelivered);
                }
                _ => {}
            }
        }
        let message = Message {
            body: Bytes::from(std::mem::take(&mut d.data)),
            headers,
        };
        let answer = RabbitAnswer {
            config: self.config.clone(),
            delivery: Some(d),
            _channel: self.channel.clone(),
        };
        Ok(Delivery {
            message,
            redelivered,
            answer: Box::new(answer),
        })
    }
}

fn count(v: &AMQPValue) -> Option<u32> {
    let n = match v {
        AMQPValue::LongLongInt(n) => *n,
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        _ => return None,
    };
    u32::try_from(n).ok()
}

#[derive(Debug)]
struct RabbitAnswer {
    config: RabbitConfig,
    delivery: Option<lapin::message::Delivery>,
    /// A channel closes with its last handle, and gives back what is unanswered: it must outlive
    /// the subscription while work is going on.
    _channel: Channel,
}

#[async_trait]
impl Answer for RabbitAnswer {
    async fn answer(&mut self, how: How) -> Result<(), QueueError> {
        let Some(acker) = self.delivery.take() else {
            return Ok(());
        };
        let c = &self.config;
        let done = match how {
            How::Ack => bounded(c, "ack", acker.ack(BasicAckOptions::default())).await,
            How::HandBack => {
                let o = BasicNackOptions {
                    requeue: true,
                    ..Default::default()
                };
                bounded(c, "nack", acker.nack(o)).await
            }
            How::GiveUp => {
                bounded(
                    c,
                    "reject",
                    acker.reject(BasicRejectOptions { requeue: true }),
                )
                .await
            }
        };
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(QueueError::Unavailable {
                at: c.place(),
                detail: "the channel of this message is gone; it will be delivered again".into(),
            }),
            Err(e) => Err(e),
        }
    }
}
