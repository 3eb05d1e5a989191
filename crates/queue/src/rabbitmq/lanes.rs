//! The queues at the broker: one per lane.
//!
//! A broker of our versions confirms that a quorum queue exists before it has written down on disk
//! that it does: the name of a queue's log (`names.dets` of the library `ra`) reaches the file with
//! the next look at that table, or up to a second later. A broker that is killed in between starts
//! the queue again with an empty log and no leader, for ever: confirmed messages are lost, and
//! neither a subscription nor a publish is ever answered. So where a queue had to be made, another
//! one is made after it, which makes the broker look at the table, before anything is published.
//!
//! Source: `ra_directory:register_name/6`, `ra_server_proc` (a new server calls no election) and
//! `rabbit_quorum_queue:recover/2` of RabbitMQ 3.10;
//! <https://github.com/rabbitmq/rabbitmq-server/issues/15725>.

use super::link::Broker;
use crate::{Lane, LaneState, QueueError};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, ErrorKind};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where messages go that were tried too often comes before those that send them there.
const ORDER: [Lane; 4] = [Lane::Dead, Lane::Suspects, Lane::Chunks, Lane::Views];
/// Milliseconds after which the broker removes the queue that is made for its effect alone, should
/// this program not get to it.
const LEFT_BEHIND: i32 = 60_000;

fn text(s: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(s))
}

fn arguments(broker: &Broker, lane: Lane) -> FieldTable {
    let mut t = FieldTable::default();
    t.insert("x-queue-type".into(), text("quorum"));
    if let (Some(limit), Some(next)) = (lane.delivery_limit(), lane.next()) {
        let next = broker.config.queue(next);
        let limit = AMQPValue::LongInt(limit.cast_signed());
        t.insert("x-delivery-limit".into(), limit);
        t.insert("x-dead-letter-exchange".into(), text(""));
        t.insert("x-dead-letter-routing-key".into(), text(&next));
        t.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        t.insert("x-overflow".into(), text("reject-publish"));
    }
    t
}

/// Declares all lanes; when this returns, they outlive the broker's sudden end.
pub(super) async fn set_up(
    broker: &Broker,
    connection: &Connection,
    channel: &Channel,
) -> Result<(), QueueError> {
    let known = all_known(broker, connection).await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    for lane in ORDER {
        let name = ShortString::from(broker.config.queue(lane));
        let declared = channel.queue_declare(name, durable, arguments(broker, lane));
        let declared = broker.ask("declaring a queue", declared).await;
        declared.map_err(|e| QueueError::Setup {
            lane: lane.name(),
            detail: format!("{e}; delete the queue or choose another prefix"),
        })?;
    }
    if known {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = format!(
        "{}.made-{:x}",
        broker.config.prefix,
        now.unwrap_or_default().as_nanos()
    );
    let name = ShortString::from(name);
    let mut t = FieldTable::default();
    t.insert("x-queue-type".into(), text("quorum"));
    t.insert("x-expires".into(), AMQPValue::LongInt(LEFT_BEHIND));
    let declared = channel.queue_declare(name.clone(), durable, t);
    broker.ask("declaring a queue", declared).await?;
    let deleted = channel.queue_delete(name, QueueDeleteOptions::default());
    broker.ask("deleting a queue", deleted).await?;
    Ok(())
}

/// Whether the broker has all lanes already.
async fn all_known(broker: &Broker, connection: &Connection) -> Result<bool, QueueError> {
    // Of its own: asking for what isn't there closes a channel.
    let channel = connection.create_channel();
    let channel = broker.ask("opening a channel", channel).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    for lane in ORDER {
        let name = ShortString::from(broker.config.queue(lane));
        let asked = state(&channel, name, passive);
        if broker.ask("asking for a queue", asked).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What stands in a queue, `None` if there is no such queue.
async fn state(
    channel: &Channel,
    name: ShortString,
    passive: QueueDeclareOptions,
) -> lapin::Result<Option<LaneState>> {
    let asked = channel.queue_declare(name, passive, FieldTable::default());
    match asked.await {
        Ok(q) => Ok(Some(LaneState {
            waiting: q.message_count().into(),
            consumers: q.consumer_count().into(),
        })),
        Err(e) if is_not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What stands in a lane, `None` if the broker has it no more.
pub(super) async fn look(
    broker: &Broker,
    connection: &Connection,
    lane: Lane,
) -> Result<Option<LaneState>, QueueError> {
    let name = broker.config.queue(lane);
    look_at(broker, connection, name).await
}

/// Whether the broker lacks the queue that nobody else makes: workers make the lanes again as soon as it is back.
pub(super) async fn has_forgotten(
    broker: &Broker,
    connection: &Connection,
) -> Result<bool, QueueError> {
    let name = format!("{}.generation", broker.config.prefix);
    if look_at(broker, connection, name.clone()).await?.is_some() {
        return Ok(false);
    }
    let channel = connection.create_channel();
    let channel = broker.ask("opening a channel", channel).await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let mut t = FieldTable::default();
    t.insert("x-queue-type".into(), text("classic"));
    let declared = channel.queue_declare(ShortString::from(name), durable, t);
    broker.ask("declaring a queue", declared).await?;
    Ok(true)
}

async fn look_at(
    broker: &Broker,
    connection: &Connection,
    name: String,
) -> Result<Option<LaneState>, QueueError> {
    // Of its own: asking for what isn't there closes a channel.
    let channel = connection.create_channel();
    let channel = broker.ask("opening a channel", channel).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let asked = state(&channel, ShortString::from(name), passive);
    let found = broker.ask("asking for a queue", asked).await?;
    if found.is_some() {
        let closed = channel.close(200, "asked".into());
        broker.ask("closing a channel", closed).await?;
    }
    Ok(found)
}

fn is_not_found(e: &lapin::Error) -> bool {
    let not_found = AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
    matches!(e.kind(), ErrorKind::ProtocolError(e) if *e.kind() == not_found)
}
