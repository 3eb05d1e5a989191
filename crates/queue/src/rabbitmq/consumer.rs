//! A subscription on a channel of its own, and the answers to what it delivers.

use super::link::{Broker, Link};
use super::publish_on;
use crate::{Answer, Consumer, Delivery, How, Lane, Message, QueueError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct RabbitConsumer {
    broker: Broker,
    lane: Lane,
    link: Arc<Link>,
    channel: Channel,
    /// What the broker sends; nothing while paused.
    inner: Option<lapin::Consumer>,
    /// A message that waits for room.
    ahead: Option<lapin::message::Delivery>,
    /// The broker counts by subscription: without this, what was taken before a pause would come on
    /// top.
    room: Arc<Semaphore>,
}

impl RabbitConsumer {
    pub(super) async fn subscribe(
        broker: &Broker,
        link: &Arc<Link>,
        lane: Lane,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        let prefetch = prefetch.max(1);
        let channel = broker
            .ask("opening a channel", async {
                let channel = link.connection.create_channel().await?;
                channel
                    .basic_qos(prefetch, BasicQosOptions::default())
                    .await?;
                Ok(channel)
            })
            .await?;
        let mut c = Self {
            broker: broker.clone(),
            lane,
            link: link.clone(),
            channel,
            inner: None,
            ahead: None,
            room: Arc::new(Semaphore::new(usize::from(prefetch))),
        };
        c.resume().await?;
        Ok(c)
    }

    fn delivery(
        &self,
        mut d: lapin::message::Delivery,
        room: Option<OwnedSemaphorePermit>,
    ) -> Delivery {
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
        let published = d.properties.timestamp().map(Duration::from_secs);
        let published = published.and_then(|s| UNIX_EPOCH.checked_add(s));
        let message = Message {
            body: Bytes::from(std::mem::take(&mut d.data)),
            headers,
        };
        let answer = RabbitAnswer {
            broker: self.broker.clone(),
            lane: self.lane,
            fresh: (redelivered == 0).then(|| message.clone()),
            published,
            delivery: Some(d),
            channel: self.channel.clone(),
            link: self.link.clone(),
            _room: room,
        };
        Delivery {
            message,
            redelivered,
            published,
            answer: Box::new(answer),
        }
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        let Some(inner) = &mut self.inner else {
            return std::future::pending().await;
        };
        if self.ahead.is_none() {
            let gone = |detail: String| self.broker.unavailable(detail);
            match inner.next().await {
                None => return Err(gone("the subscription was closed".into())),
                Some(Err(e)) => return Err(gone(format!("the subscription broke: {e}"))),
                Some(Ok(d)) => self.ahead = Some(d),
            }
        }
        let room = self.room.clone().acquire_owned();
        let room = room.await.map_err(|_| QueueError::Closed)?;
        let d = self.ahead.take().ok_or(QueueError::Closed)?;
        Ok(self.delivery(d, Some(room)))
    }

    async fn pause(&mut self) -> Result<(), QueueError> {
        let Some(mut inner) = self.inner.take() else {
            return Ok(());
        };
        let options = BasicCancelOptions::default();
        let cancelled = self.channel.basic_cancel(inner.tag(), options);
        self.broker.ask("unsubscribing", cancelled).await?;
        if let Some(d) = self.ahead.take() {
            self.delivery(d, None).put_back().await?;
        }
        // What was sent before the broker heard of it; then comes the end.
        while let Some(d) = self.broker.ask("unsubscribing", next(&mut inner)).await? {
            self.delivery(d, None).put_back().await?;
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), QueueError> {
        if self.inner.is_some() {
            return Ok(());
        }
        let queue = ShortString::from(self.broker.config.queue(self.lane));
        let options = BasicConsumeOptions::default();
        let subscribed =
            self.channel
                .basic_consume(queue, "".into(), options, FieldTable::default());
        let what = format!(
            "subscribing to {} (`rabbitmq-queues quorum_status` tells whether it has a leader)",
            self.lane.name()
        );
        self.inner = Some(self.broker.ask(&what, subscribed).await?);
        Ok(())
    }
}

async fn next(inner: &mut lapin::Consumer) -> lapin::Result<Option<lapin::message::Delivery>> {
    inner.next().await.transpose()
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

struct RabbitAnswer {
    broker: Broker,
    lane: Lane,
    /// The message, if it was delivered for the first time.
    fresh: Option<Message>,
    /// When it was published; stays that when it is published anew.
    published: Option<SystemTime>,
    delivery: Option<lapin::message::Delivery>,
    /// A channel closes with its last handle, and gives back what is unanswered: it must outlive
    /// the subscription while work is going on.
    channel: Channel,
    link: Arc<Link>,
    _room: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for RabbitAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitAnswer")
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

impl RabbitAnswer {
    async fn publish_anew(&self, m: &Message) -> Result<(), QueueError> {
        let published = self.published.unwrap_or_else(SystemTime::now);
        publish_on(&self.broker, &self.link, self.lane, m, published).await
    }
}

#[async_trait]
impl Answer for RabbitAnswer {
    async fn answer(&mut self, how: How) -> Result<(), QueueError> {
        let Some(d) = self.delivery.take() else {
            return Ok(());
        };
        let mut how = how;
        // The broker counts every return. One that was never tried is published anew instead, which
        // is the same message; two of it, should the broker go away in between, do no harm.
        if how == How::PutBack
            && let Some(m) = self.fresh.take()
            && self.publish_anew(&m).await.is_ok()
        {
            how = How::Ack;
        }
        let done = match how {
            How::Ack => {
                let ack = d.ack(BasicAckOptions::default());
                self.broker.ask("ack", ack).await
            }
            How::HandBack | How::PutBack => {
                let options = BasicNackOptions {
                    requeue: true,
                    ..Default::default()
                };
                self.broker.ask("nack", d.nack(options)).await
            }
            How::GiveUp => {
                let reject = d.reject(BasicRejectOptions { requeue: true });
                self.broker.ask("reject", reject).await
            }
        };
        if done? {
            return Ok(());
        }
        let detail = "the channel of this message is gone; it will be delivered again";
        Err(self.broker.unavailable(detail.into()))
    }
}

impl Drop for RabbitAnswer {
    /// A delivery that nobody answered was a task that died. Its channel goes on, so the broker has
    /// to be told.
    fn drop(&mut self) {
        let (Some(d), Ok(runtime)) = (self.delivery.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (broker, channel, link) =
            (self.broker.clone(), self.channel.clone(), self.link.clone());
        runtime.spawn(async move {
            let reject = d.reject(BasicRejectOptions { requeue: true });
            broker.ask("reject", reject).await.ok();
            drop((channel, link));
        });
    }
}
