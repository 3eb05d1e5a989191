//! What stands in the queue, looked at every few seconds: whether anybody takes tasks, and whether the broker has lost
//! some.

use crate::service::lock;
use ramsift_queue::{Lane, LaneState, Queue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the lanes are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long nothing may happen before it is worth a word.
pub(crate) const QUIET: Duration = Duration::from_secs(30);
/// A lane as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    state: LaneState,
    /// Since when as many messages wait.
    since: Instant,
}

/// All lanes as they were seen last.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    seen: BTreeMap<Lane, Seen>,
    /// The broker lost what it had.
    forgotten: bool,
}

impl Lanes {
    /// Notes what stands in a lane; `None`: the broker does not have it.
    pub(crate) fn saw(&mut self, lane: Lane, state: Option<LaneState>, now: Instant) {
        let Some(state) = state else {
            self.forgotten = true;
            self.seen.remove(&lane);
            return;
        };
        let same = |s: &&Seen| s.state.waiting == state.waiting;
        let since = self.seen.get(&lane).filter(same).map_or(now, |s| s.since);
        self.seen.insert(lane, Seen { state, since });
    }

    /// Whether the broker has lost what it had since this was asked last.
    pub(crate) fn take_forgotten(&mut self) -> bool {
        std::mem::take(&mut self.forgotten)
    }

    /// What stands in each lane, as far as is known.
    pub(crate) fn states(&self) -> BTreeMap<Lane, LaneState> {
        self.seen.iter().map(|(l, s)| (*l, s.state)).collect()
    }

    /// Whether no chunk has waited in the queue for long: what is out lies with workers, or nowhere.
    pub(crate) fn has_no_chunks(&self) -> bool {
        [Lane::Chunks, Lane::Suspects]
            .iter()
            .all(|l| self.is_empty(*l))
    }

    /// Whether nothing has waited in a lane for long.
    pub(crate) fn is_empty(&self, lane: Lane) -> bool {
        let empty = self.seen.get(&lane).filter(|s| s.state.waiting == 0);
        empty.is_some_and(|s| s.since.elapsed() >= LOOK)
    }

    /// Whether somebody takes tasks from each lane, as far as is known.
    pub(crate) fn has_workers(&self) -> bool {
        [Lane::Chunks, Lane::Views]
            .iter()
            .all(|l| self.seen.get(l).is_some_and(|s| s.state.consumers > 0))
    }

    /// What a job waits for that has tasks `open` in each lane, published or to be published, and of which nothing was settled for `quiet`.
    pub(crate) fn waits(&self, open: &dyn Fn(Lane) -> usize, quiet: Duration) -> Vec<String> {
        let mut waits = Vec::new();
        for (lane, who) in [
            (Lane::Chunks, "chunk worker"),
            (Lane::Views, "structured worker"),
        ] {
            let (n, Some(seen)) = (open(lane), self.seen.get(&lane)) else {
                continue;
            };
            if n == 0 {
                continue;
            }
            let LaneState { waiting, consumers } = seen.state;
            let still = seen.since.elapsed().min(quiet);
            if consumers == 0 {
                waits.push(format!(
                    "no {who} takes tasks from the queue, and {n} are to be done: none is running, or it waits for \
                     something itself (its readiness says what), or its queue.prefix differs"
                ));
            } else if waiting > 0 && still >= QUIET {
                waits.push(format!(
                    "no {who} has taken a task for {} s; {waiting} wait in the queue",
                    still.as_secs()
                ));
            }
        }
        waits
    }
}

/// Looks at the lanes until `stop`.
pub(crate) async fn watch(
    queue: Arc<dyn Queue>,
    lanes: Arc<Mutex<Lanes>>,
    stop: CancellationToken,
) {
    // The first answer is about what was published before this term, which publishes all of that again.
    let mut first = true;
    loop {
        // Without an answer nothing is known, and readiness says why.
        if let Ok(forgotten) = queue.has_forgotten().await {
            let counts = !std::mem::take(&mut first);
            lock(&lanes).forgotten |= forgotten && counts;
        }
        for lane in Lane::ALL {
            if let Ok(state) = queue.look(lane).await {
                lock(&lanes).saw(lane, state, Instant::now());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(all: &[(Lane, u64, u64, u64)]) -> Lanes {
        let mut l = Lanes::default();
        for (lane, waiting, consumers, seconds) in all {
            let state = LaneState {
                waiting: *waiting,
                consumers: *consumers,
            };
            let since = Instant::now().checked_sub(Duration::from_secs(*seconds));
            l.saw(
                *lane,
                Some(state),
                since.expect("a clock that runs for long"),
            );
        }
        l
    }

    #[test]
    fn who_is_missing_is_named() {
        let l = lanes(&[(Lane::Chunks, 7, 0, 9), (Lane::Views, 0, 1, 9)]);
        let waits = l.waits(&|_| 3, QUIET);
        assert_eq!(waits.len(), 1, "{waits:?}");
        assert!(waits[0].contains("no chunk worker"), "{waits:?}");
        let l = lanes(&[(Lane::Views, 2, 1, 45)]);
        let waits = l.waits(&|_| 3, Duration::from_secs(40));
        assert!(waits[0].contains("for 40 s; 2 wait"), "{waits:?}");
        assert!(l.waits(&|_| 3, Duration::from_secs(9)).is_empty());
        assert!(l.waits(&|_| 0, QUIET).is_empty());
    }

    #[test]
    fn a_lane_that_is_gone_is_told_once() {
        let mut l = lanes(&[(Lane::Chunks, 0, 1, 60), (Lane::Suspects, 0, 1, 60)]);
        assert!(l.has_no_chunks() && !l.take_forgotten());
        l.saw(Lane::Chunks, None, Instant::now());
        assert!(!l.has_no_chunks());
        assert!(l.take_forgotten() && !l.take_forgotten());
        let l = lanes(&[(Lane::Chunks, 1, 1, 60), (Lane::Suspects, 0, 1, 60)]);
        assert!(!l.has_no_chunks());
    }
}
