//! What a broker's sudden end and return mean to those who use it.

mod support;

use ramsift_queue::{Lane, Queue, QueueError};
use support::{Broker, message, next_of, soon};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_outlives_the_broker_that_just_made_its_queue() {
    let mut broker = Broker::start();
    let q = broker.queue();
    for lane in Lane::ALL {
        let stored = q.publish(lane, message(lane.name())).await;
        stored.expect("stored");
    }
    broker.kill();
    q.check().await.expect_err("the broker is gone");
    broker.up();
    for lane in Lane::ALL {
        let (_c, d) = next_of(&q, lane).await;
        assert_eq!(d.message, message(lane.name()), "{}", broker.log());
        d.ack().await.expect("answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_broke_is_made_again() {
    let mut broker = Broker::start();
    let q = broker.queue();
    q.publish(Lane::Chunks, message("held"))
        .await
        .expect("stored");
    let mut c = q.consume(Lane::Chunks, 2).await.expect("subscribed");
    let held = soon("a delivery", c.next()).await.expect("delivered");
    broker.kill();
    let broke = soon("the end of the subscription", c.next()).await;
    assert!(matches!(broke, Err(QueueError::Unavailable { .. })));
    // Its answer has nowhere to go, and says so.
    held.ack().await.expect_err("the broker is gone");
    broker.up();
    let (_c, d) = next_of(&q, Lane::Chunks).await;
    assert_eq!(d.message, message("held"));
    d.ack().await.expect("answered");
    q.publish(Lane::Chunks, message("later"))
        .await
        .expect("stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_fails_while_the_broker_is_away_and_is_confirmed_when_it_is_back() {
    let mut broker = Broker::start();
    let q = broker.queue();
    q.publish(Lane::Views, message("before"))
        .await
        .expect("stored");
    broker.kill();
    let failed = soon("an error", q.publish(Lane::Views, message("during"))).await;
    assert!(matches!(failed, Err(QueueError::Unavailable { .. })));
    broker.up();
    // A broker that listens may not have all of its queues at work yet.
    soon("a confirmation", async {
        while q.publish(Lane::Views, message("after")).await.is_err() {}
    })
    .await;
    let mut bodies = Vec::new();
    while bodies.last().is_none_or(|b| b != "after") {
        let (_c, d) = next_of(&q, Lane::Views).await;
        bodies.push(d.message.body.clone());
        d.ack().await.expect("answered");
    }
    assert_eq!(bodies, ["before", "after"]);
}
