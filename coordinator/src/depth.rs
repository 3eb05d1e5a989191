//! How many tasks may wait in a lane: enough that no worker runs dry between two looks, and no more, since what lies in
//! the queue is taken in the order in which it came and a job that is submitted now waits behind all of it.
//!
//! Nobody tells how fast workers are. A lane that was found empty while tasks were kept back gets twice as many the
//! next time; one that keeps more than half of what it may hold gets half.

use ramsift_queue::LaneState;

/// Tasks that may wait in one lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Depth {
    tasks: u64,
    /// Tasks were kept back for want of room.
    kept_back: bool,
}

impl Depth {
    /// How many tasks may be published now, and with them `most` wait at most.
    pub(crate) fn room(&mut self, lane: LaneState, most: u64) -> u64 {
        // Each consumer takes one at once.
        let least = lane.consumers.max(1);
        if lane.waiting > self.tasks / 2 {
            self.tasks /= 2;
        } else if self.kept_back && lane.waiting == 0 {
            self.tasks = self.tasks.saturating_mul(2);
        }
        self.tasks = self.tasks.max(least).min(most.max(1));
        self.kept_back = false;
        self.tasks.saturating_sub(lane.waiting)
    }

    /// Tasks were kept back: there was no more room.
    pub(crate) fn keep_back(&mut self) {
        self.kept_back = true;
    }

    /// Whether tasks wait for room.
    pub(crate) fn has_kept_back(&self) -> bool {
        self.kept_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 256;

    /// Publishes to workers that take `rate` tasks between two looks, `looks` times, with more tasks than there is room
    /// for; returns how many were taken in all and how many waited at most.
    fn run(rate: u64, consumers: u64, looks: usize) -> (u64, u64) {
        let mut depth = Depth::default();
        let (mut waiting, mut taken, mut deepest) = (0, 0, 0);
        for _ in 0..looks {
            waiting += depth.room(LaneState { waiting, consumers }, MOST);
            depth.keep_back();
            deepest = deepest.max(waiting);
            let now = waiting.min(rate);
            (waiting, taken) = (waiting - now, taken + now);
        }
        (taken, deepest)
    }

    #[test]
    fn fast_workers_are_kept_busy() {
        let (taken, deepest) = run(40, 2, 100);
        assert!(taken >= 35 * 100, "{taken}");
        assert!(deepest <= 2 * 64, "{deepest}");
    }

    #[test]
    fn little_waits_before_slow_workers() {
        let (taken, deepest) = run(1, 1, 100);
        assert_eq!(taken, 100);
        assert!(deepest <= 4, "{deepest}");
    }

    #[test]
    fn nobody_there_gets_one_and_a_fleet_one_each() {
        assert_eq!(run(0, 0, 50).1, 1);
        assert_eq!(run(0, 30, 50).1, 30);
    }

    #[test]
    fn what_has_no_need_does_not_grow() {
        let mut d = Depth::default();
        let idle = LaneState {
            waiting: 0,
            consumers: 1,
        };
        for _ in 0..20 {
            d.room(idle, MOST);
        }
        assert_eq!(d.room(idle, MOST), 1);
        assert!(!d.has_kept_back());
    }
}
