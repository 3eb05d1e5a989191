//! The queue in process, with the broker's rules: unanswered messages come back when their
//! consumer goes, and the delivery limit moves them on.

use crate::{Answer, Consumer, Delivery, How, Lane, LaneState, Message, Queue, QueueError};
use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};

#[derive(Debug, Default)]
struct State {
    lanes: BTreeMap<Lane, VecDeque<(Message, u32)>>,
    consumers: BTreeMap<Lane, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn back(&self, lane: Lane, message: Message, deliveries: u32) {
        let mut s = self.lock();
        match (lane.delivery_limit(), lane.next()) {
            (Some(limit), Some(next)) if deliveries > limit => {
                s.lanes.entry(next).or_default().push_back((message, 0));
            }
            _ => s
                .lanes
                .entry(lane)
                .or_default()
                .push_front((message, deliveries)),
        }
        drop(s);
        self.arrived.notify_waiters();
    }
}

/// A queue in this process.
#[derive(Clone, Debug, Default)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

impl MemoryQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn publish(&self, lane: Lane, message: Message) -> Result<(), QueueError> {
        self.shared
            .lock()
            .lanes
            .entry(lane)
            .or_default()
            .push_back((message, 0));
        self.shared.arrived.notify_waiters();
        Ok(())
    }

    async fn consume(&self, lane: Lane, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let room = Arc::new(Semaphore::new(usize::from(prefetch.max(1))));
        *self.shared.lock().consumers.entry(lane).or_default() += 1;
        Ok(Box::new(MemoryConsumer {
            shared: self.shared.clone(),
            lane,
            room,
            paused: false,
        }))
    }

    async fn look(&self, lane: Lane) -> Result<Option<LaneState>, QueueError> {
        let s = self.shared.lock();
        Ok(Some(LaneState {
            waiting: s.lanes.get(&lane).map_or(0, |l| l.len() as u64),
            consumers: s.consumers.get(&lane).copied().unwrap_or(0),
        }))
    }

    async fn has_forgotten(&self) -> Result<bool, QueueError> {
        Ok(false)
    }

    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryConsumer {
    shared: Arc<Shared>,
    lane: Lane,
    room: Arc<Semaphore>,
    paused: bool,
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        if let Some(n) = self.shared.lock().consumers.get_mut(&self.lane) {
            *n = n.saturating_sub(1);
        }
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        if self.paused {
            return std::future::pending().await;
        }
        let room = self
            .room
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| QueueError::Closed)?;
        loop {
            let arrived = self.shared.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let next = self
                .shared
                .lock()
                .lanes
                .entry(self.lane)
                .or_default()
                .pop_front();
            if let Some((message, deliveries)) = next {
                let answer = MemoryAnswer {
                    shared: self.shared.clone(),
                    lane: self.lane,
                    message: Some((message.clone(), deliveries + 1)),
                    _room: room,
                };
                return Ok(Delivery {
                    message,
                    redelivered: deliveries,
                    published: None,
                    answer: Box::new(answer),
                });
            }
            arrived.await;
        }
    }

    async fn pause(&mut self) -> Result<(), QueueError> {
        self.paused = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), QueueError> {
        self.paused = false;
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryAnswer {
    shared: Arc<Shared>,
    lane: Lane,
    message: Option<(Message, u32)>,
    _room: tokio::sync::OwnedSemaphorePermit,
}

#[async_trait]
impl Answer for MemoryAnswer {
    async fn answer(&mut self, how: How) -> Result<(), QueueError> {
        let Some((message, deliveries)) = self.message.take() else {
            return Ok(());
        };
        match how {
            How::Ack => {}
            How::HandBack | How::PutBack => {
                self.shared
                    .back(self.lane, message, deliveries.saturating_sub(1))
            }
            How::GiveUp => self.shared.back(self.lane, message, deliveries),
        }
        Ok(())
    }
}

impl Drop for MemoryAnswer {
    /// A delivery that nobody answered was a worker that died.
    fn drop(&mut self) {
        if let Some((message, deliveries)) = self.message.take() {
            self.shared.back(self.lane, message, deliveries);
        }
    }
}
