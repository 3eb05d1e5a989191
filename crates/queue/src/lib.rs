//! Task queues, behind one trait: RabbitMQ quorum queues, or in process.
//!
//! Delivery is at least once. A message that was taken is answered once: [`Delivery::ack`] when its
//! work is settled, [`Delivery::put_back`] when it was not begun (pausing), [`Delivery::hand_back`]
//! when it is not this worker's to do (shutting down), [`Delivery::give_up`] when the attempt
//! failed, which is what dropping it unanswered stands for too. A consumer that vanishes hands its messages back.
//! A message that was tried more often than the delivery limit allows moves to the lane's
//! [`Lane::next`]: from the chunks to the suspects, from there and from the views to the dead.

mod memory;
mod rabbitmq;

pub use memory::MemoryQueue;
pub use rabbitmq::{RabbitConfig, RabbitQueue};

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

/// The queues there are, one per kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Chunks to scan and verdicts to reach.
    Chunks,
    /// Views to build.
    Views,
    /// Tasks that took workers down; each runs alone.
    Suspects,
    /// Tasks that took a worker down even alone; the coordinator cuts them up.
    Dead,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 4] = [Self::Chunks, Self::Views, Self::Suspects, Self::Dead];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chunks => "chunks",
            Self::Views => "views",
            Self::Suspects => "suspects",
            Self::Dead => "dead",
        }
    }

    /// Where a message goes that was delivered too often.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Chunks => Some(Self::Suspects),
            Self::Views | Self::Suspects => Some(Self::Dead),
            Self::Dead => None,
        }
    }

    /// How often a message may be delivered again before it moves on.
    pub fn delivery_limit(self) -> Option<u32> {
        match self {
            Self::Chunks | Self::Views => Some(5),
            Self::Suspects => Some(1),
            Self::Dead => None,
        }
    }
}

/// What is published: a body, and headers that carry the trace context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The task, as protobuf.
    pub body: Bytes,
    /// Names and values, a few dozen bytes.
    pub headers: BTreeMap<String, String>,
}

/// Why the queue can't do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The broker can't be reached, or went away.
    #[error("RabbitMQ at {at} can't be reached: {detail}")]
    Unavailable {
        /// Where, without the password.
        at: String,
        /// What happened.
        detail: String,
    },
    /// The broker refused a message.
    #[error("RabbitMQ did not take a message for {lane}: {detail}")]
    Refused {
        /// Which queue.
        lane: &'static str,
        /// What it said.
        detail: String,
    },
    /// The broker's queues are not as this program declares them.
    #[error("RabbitMQ refused to set up {lane}: {detail}")]
    Setup {
        /// Which queue.
        lane: &'static str,
        /// What it said.
        detail: String,
    },
    /// The queue was closed from this side.
    #[error("the queue is closed")]
    Closed,
}

/// What stands in a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneState {
    /// Messages that no consumer holds.
    pub waiting: u64,
    /// Subscriptions.
    pub consumers: u64,
}

/// A way to publish and to consume.
#[async_trait]
pub trait Queue: Send + Sync + fmt::Debug {
    /// Stores a message; returns when it is safe (confirmed, on a quorum of nodes).
    async fn publish(&self, lane: Lane, message: Message) -> Result<(), QueueError>;

    /// Begins to consume, with at most `prefetch` unanswered messages at a time.
    async fn consume(&self, lane: Lane, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError>;

    /// What stands in a lane. `None`: the broker did not have it any more, with whatever lay in it; it is there
    /// again when it is used next.
    async fn look(&self, lane: Lane) -> Result<Option<LaneState>, QueueError>;

    /// Whether the broker has forgotten everything since this was asked last: it came back empty, or is another. True
    /// when it is asked for the first time.
    async fn has_forgotten(&self) -> Result<bool, QueueError>;

    /// Whether the broker answers.
    async fn check(&self) -> Result<(), QueueError>;
}

/// A running subscription. Dropping it hands back what was not answered.
#[async_trait]
pub trait Consumer: Send {
    /// The next message; waits for one. An error means that the subscription is gone: subscribe
    /// again. Dropping the future loses no message.
    ///
    /// While paused there is none: this waits for ever then.
    async fn next(&mut self) -> Result<Delivery, QueueError>;

    /// Takes no more messages until [`Consumer::resume`]. What the broker has sent ahead and `next`
    /// has not given out goes back, as [`Delivery::put_back`] does it. What was given out stays
    /// this consumer's to answer. After an error, subscribe again.
    async fn pause(&mut self) -> Result<(), QueueError>;

    /// Takes messages again, with what was given out before still counting towards `prefetch`.
    /// After an error, subscribe again.
    async fn resume(&mut self) -> Result<(), QueueError>;
}

/// A message that was taken and must be answered.
#[derive(Debug)]
pub struct Delivery {
    /// What was published.
    pub message: Message,
    /// How often it was delivered before.
    pub redelivered: u32,
    /// When it was published first, to the second, by the publisher's clock; `None` where that is not known.
    pub published: Option<SystemTime>,
    answer: Box<dyn Answer>,
}

/// How a delivery is answered at the broker.
#[async_trait]
trait Answer: Send + Sync + fmt::Debug {
    async fn answer(&mut self, how: How) -> Result<(), QueueError>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Ack,
    HandBack,
    PutBack,
    GiveUp,
}

impl Delivery {
    /// How long ago the message was published; 0 where clocks differ so that it would not have been yet.
    pub fn age(&self) -> Option<Duration> {
        let at = self.published?;
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    /// The work is settled: forget the message.
    pub async fn ack(mut self) -> Result<(), QueueError> {
        self.answer.answer(How::Ack).await
    }

    /// Not this worker's to do: let another take it. Counts as little as the broker allows.
    pub async fn hand_back(mut self) -> Result<(), QueueError> {
        self.answer.answer(How::HandBack).await
    }

    /// Work on it has not begun: let another take it, as if it had not been delivered. A message that
    /// was delivered before is handed back instead where the broker counts.
    pub async fn put_back(mut self) -> Result<(), QueueError> {
        self.answer.answer(How::PutBack).await
    }

    /// The attempt failed: another try, up to the delivery limit.
    pub async fn give_up(mut self) -> Result<(), QueueError> {
        self.answer.answer(How::GiveUp).await
    }
}
