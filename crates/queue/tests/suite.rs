//! One suite for the queue in process and for RabbitMQ: pausing, putting back, dropping.

mod support;

use ramsift_queue::{Consumer, Delivery, Lane, LaneState, MemoryQueue, Queue};
use std::collections::BTreeSet;
use std::time::Duration;
use support::{Broker, message, soon};

async fn take(c: &mut dyn Consumer) -> Delivery {
    soon("a delivery", c.next()).await.expect("delivered")
}

/// Pausing stops a consumer and frees what it has not given out.
async fn pausing(q: &dyn Queue) {
    for text in ["a", "b", "c", "d"] {
        q.publish(Lane::Chunks, message(text))
            .await
            .expect("stored");
    }
    let mut first = q.consume(Lane::Chunks, 4).await.expect("subscribed");
    let held = take(first.as_mut()).await;
    first.pause().await.expect("paused");
    first.pause().await.expect("twice is once");
    let mut second = q.consume(Lane::Chunks, 4).await.expect("subscribed");
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let d = take(second.as_mut()).await;
        assert_eq!(d.redelivered, 0, "a pause is no attempt");
        seen.insert(d.message.body.clone());
        d.ack().await.expect("answered");
    }
    seen.insert(held.message.body.clone());
    assert_eq!(seen.len(), 4, "{seen:?}");
    drop(second);
    // What was given out before the pause is still this consumer's.
    held.ack().await.expect("answered");
    q.publish(Lane::Chunks, message("e")).await.expect("stored");
    first.resume().await.expect("resumed");
    first.resume().await.expect("twice is once");
    let d = take(first.as_mut()).await;
    assert_eq!(d.message, message("e"));
    d.ack().await.expect("answered");
}

/// What was given out before a pause counts towards the prefetch after it.
async fn room_after_a_pause(q: &dyn Queue) {
    for text in ["a", "b"] {
        q.publish(Lane::Chunks, message(text))
            .await
            .expect("stored");
    }
    let mut c = q.consume(Lane::Chunks, 1).await.expect("subscribed");
    let held = take(c.as_mut()).await;
    c.pause().await.expect("paused");
    c.resume().await.expect("resumed");
    let early = tokio::time::timeout(Duration::from_millis(200), c.next()).await;
    assert!(early.is_err(), "more than the prefetch");
    held.ack().await.expect("answered");
    let d = take(c.as_mut()).await;
    assert_eq!(d.message, message("b"));
    d.ack().await.expect("answered");
}

/// Putting back doesn't wear a message out; dropping does.
async fn putting_back(q: &dyn Queue) {
    q.publish(Lane::Suspects, message("one"))
        .await
        .expect("stored");
    let mut c = q.consume(Lane::Suspects, 1).await.expect("subscribed");
    for _ in 0..10 {
        let d = take(c.as_mut()).await;
        assert_eq!((&d.message, d.redelivered), (&message("one"), 0));
        d.put_back().await.expect("answered");
    }
    for tries in 0..=Lane::Suspects.delivery_limit().expect("limited") {
        let d = take(c.as_mut()).await;
        assert_eq!(d.redelivered, tries);
        drop(d);
    }
    let mut dead = q.consume(Lane::Dead, 1).await.expect("subscribed");
    let d = take(dead.as_mut()).await;
    assert_eq!(d.message.body, "one");
    d.ack().await.expect("answered");
}

/// What stands in a lane can be seen.
async fn looking(q: &dyn Queue) {
    let sees = async |waiting, consumers| {
        let seen = async {
            let wanted = LaneState { waiting, consumers };
            // A broker counts a little later.
            while q.look(Lane::Views).await.expect("an answer") != Some(wanted) {
                tokio::task::yield_now().await;
            }
        };
        soon("that many messages and consumers", seen).await;
    };
    sees(0, 0).await;
    for text in ["a", "b", "c"] {
        q.publish(Lane::Views, message(text)).await.expect("stored");
    }
    sees(3, 0).await;
    let mut c = q.consume(Lane::Views, 1).await.expect("subscribed");
    let held = take(c.as_mut()).await;
    sees(2, 1).await;
    held.ack().await.expect("answered");
    drop(c);
    sees(2, 0).await;
}

async fn suite(q: &dyn Queue) {
    looking(q).await;
    pausing(q).await;
    room_after_a_pause(q).await;
    putting_back(q).await;
}

#[tokio::test]
async fn in_process() {
    suite(&MemoryQueue::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq() {
    let broker = Broker::start();
    let queue = broker.queue();
    assert!(queue.has_forgotten().await.expect("an answer"));
    assert!(!queue.has_forgotten().await.expect("an answer"));
    suite(&queue).await;
}
