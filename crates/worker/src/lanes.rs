//! Taking tasks from lanes.

use crate::gate::Gate;
use crate::life::{Passed, Worker};
use crate::metrics::{Metrics, observe};
use crate::{Config, Deps, Stop, Tasks};
use ramsift_queue::{Consumer, Lane, QueueError};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Pause before a lost queue is asked again, at first and at most.
const WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Works until it is to stop, then hands back what is unfinished.
pub async fn run<T: Tasks>(tasks: Arc<T>, config: Config, deps: Deps, stop: Stop) {
    let worker = Arc::new(Worker {
        tasks,
        config,
        deps,
        stop,
        gate: Gate::new(),
        passed: Passed::default(),
        metrics: Metrics::new(),
    });
    observe(&worker);
    let mut lanes = JoinSet::new();
    for (lane, prefetch) in worker.tasks.lanes() {
        let prefetch = u16::try_from(prefetch.max(1)).unwrap_or(u16::MAX);
        lanes.spawn(serve(worker.clone(), lane, prefetch));
    }
    while lanes.join_next().await.is_some() {}
}

/// Takes tasks of one lane until the worker stops; subscribes again when the broker went away.
async fn serve<T: Tasks>(worker: Arc<Worker<T>>, lane: Lane, prefetch: u16) {
    let (part, stop) = (lane.name(), worker.stop.stop.clone());
    let readiness = worker.deps.readiness.clone();
    let mut wait = WAIT;
    let mut running = JoinSet::new();
    while !stop.is_cancelled() {
        readiness.block(part, "subscribing");
        let subscribed = tokio::select! {
            r = worker.deps.queue.consume(lane, prefetch) => r,
            () = stop.cancelled() => break,
        };
        let broke = match subscribed {
            Ok(mut consumer) => {
                readiness.ready(part);
                wait = WAIT;
                let done = match lane {
                    Lane::Suspects => alone(&worker, consumer.as_mut()).await,
                    _ => side_by_side(&worker, lane, consumer.as_mut(), &mut running).await,
                };
                done.err()
            }
            Err(e) => Some(e),
        };
        let Some(e) = broke else { break };
        readiness.block(part, e.to_string());
        tracing::warn!(lane = part, error = %e, "queue lost, trying again");
        worker.stop.pause(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    readiness.block(part, "stopping");
    while running.join_next().await.is_some() {}
}

/// Many tasks side by side, while the gate is open, until the subscription breaks or the worker stops.
async fn side_by_side<T: Tasks>(
    worker: &Arc<Worker<T>>,
    lane: Lane,
    consumer: &mut dyn Consumer,
    running: &mut JoinSet<()>,
) -> Result<(), QueueError> {
    let stop = &worker.stop.stop;
    loop {
        while running.try_join_next().is_some() {}
        let delivery = tokio::select! {
            biased;
            // What the broker sent ahead goes back at once, not when the last task has ended.
            () = stop.cancelled() => return consumer.pause().await,
            () = worker.gate.closed() => {
                consumer.pause().await?;
                tokio::select! {
                    () = worker.gate.open() => {}
                    () = stop.cancelled() => return Ok(()),
                }
                consumer.resume().await?;
                continue;
            }
            d = consumer.next() => d?,
        };
        let worker = worker.clone();
        running.spawn(async move {
            let Some(_pass) = worker.gate.enter() else {
                if let Err(e) = delivery.put_back().await {
                    tracing::warn!(error = %e, "answer did not reach the queue");
                }
                return;
            };
            worker.handle(lane, delivery).await;
        });
    }
}

/// One task at a time, and nothing beside it.
async fn alone<T: Tasks>(
    worker: &Arc<Worker<T>>,
    consumer: &mut dyn Consumer,
) -> Result<(), QueueError> {
    loop {
        let next = async {
            worker.gate.in_reach().await;
            consumer.next().await
        };
        let delivery = tokio::select! {
            biased;
            () = worker.stop.stop.cancelled() => return consumer.pause().await,
            d = next => d?,
        };
        let _alone = worker.gate.alone().await;
        worker.handle(Lane::Suspects, delivery).await;
    }
}
