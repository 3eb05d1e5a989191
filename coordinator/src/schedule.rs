//! Fair share: which job may publish next. Small jobs and large ones have a class each with equal shares; within a class,
//! deficit round robin over bytes, weighted by priority, with a window of unsettled tasks per job.
//!
//! Source: Shreedhar and Varghese, "Efficient Fair Queueing using Deficit Round Robin" (1995).

use std::collections::VecDeque;

/// Bytes that a job of priority 0 may publish per turn.
const QUANTUM: u64 = 128 << 20;

/// A job's place in the round.
#[derive(Debug)]
struct Entry {
    job: String,
    /// Bytes it may still publish this turn.
    deficit: u64,
    priority: i32,
}

/// Bytes up to which a job is a small one.
pub(crate) const SMALL: u64 = 256 << 20;

/// What a task costs besides its bytes, as bytes: taking it, reporting and committing it.
const OVERHEAD: u64 = 8 << 20;

/// Jobs of one class that have something to publish, in turn.
#[derive(Debug, Default)]
struct Class {
    turns: VecDeque<Entry>,
    /// What was published of them, in bytes of priority 0.
    served: u64,
}

/// The round of jobs that have something to publish. Small jobs as a class and large ones as a class have equal shares
/// while both have tasks: neither do two hundred small jobs hold up a large one, nor does it hold up them.
#[derive(Debug, Default)]
pub(crate) struct Round {
    small: Class,
    large: Class,
}

/// Weight of a priority: doubles with each step, between 1/16 and 16.
fn quantum(priority: i32) -> u64 {
    let p = priority.clamp(-4, 4);
    if p >= 0 { QUANTUM << p } else { QUANTUM >> -p }
}

/// The same bytes as bytes of priority 0.
fn weighed(bytes: u64, priority: i32) -> u64 {
    let p = priority.clamp(-4, 4);
    if p >= 0 { bytes >> p } else { bytes << -p }
}

impl Class {
    fn has(&self, job: &str) -> bool {
        self.turns.iter().any(|e| e.job == job)
    }

    /// The next job to publish a task, by deficit round robin.
    fn next(&mut self, cost: &mut dyn FnMut(&str) -> Option<u64>) -> Option<String> {
        while let Some(mut e) = self.turns.pop_front() {
            let Some(bytes) = cost(&e.job) else { continue };
            if e.deficit < bytes {
                e.deficit += quantum(e.priority);
                if e.deficit < bytes {
                    // Tasks larger than a quantum wait several turns.
                    self.turns.push_back(e);
                    continue;
                }
            }
            e.deficit -= bytes;
            self.served += weighed(bytes + OVERHEAD, e.priority);
            let job = e.job.clone();
            if e.deficit < bytes {
                self.turns.push_back(e);
            } else {
                // What is left of the turn is used before the next job's.
                self.turns.push_front(e);
            }
            return Some(job);
        }
        None
    }
}

impl Round {
    /// Adds a job of so many bytes at the end of its class, if it isn't in it.
    pub(crate) fn enter(&mut self, job: &str, priority: i32, bytes: u64) {
        if self.small.has(job) || self.large.has(job) {
            return;
        }
        let (class, other) = match bytes <= SMALL {
            true => (&mut self.small, &self.large),
            false => (&mut self.large, &self.small),
        };
        if class.turns.is_empty() {
            // A class that had nothing to do has nothing to make up for.
            class.served = class.served.max(other.served);
        }
        class.turns.push_back(Entry {
            job: job.to_owned(),
            deficit: 0,
            priority,
        });
    }

    /// Takes those jobs out of the round that have nothing to publish.
    pub(crate) fn retain(&mut self, mut has_tasks: impl FnMut(&str) -> bool) {
        self.small.turns.retain(|e| has_tasks(&e.job));
        self.large.turns.retain(|e| has_tasks(&e.job));
    }

    /// Whether no job has something to publish.
    pub(crate) fn is_empty(&self) -> bool {
        self.small.turns.is_empty() && self.large.turns.is_empty()
    }

    /// The next job to publish a task. `cost`: bytes of a job's next task if it may publish one
    /// now, else `None` (its window is full, or nothing is left); such a job leaves the round.
    pub(crate) fn next(&mut self, cost: &mut dyn FnMut(&str) -> Option<u64>) -> Option<String> {
        let small_first = self.small.served <= self.large.served;
        let (first, second) = match small_first {
            true => (&mut self.small, &mut self.large),
            false => (&mut self.large, &mut self.small),
        };
        first.next(cost).or_else(|| second.next(cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Publishes `n` tasks of 64 MiB and counts whose they were.
    fn run(jobs: &[(&str, i32, u64)], n: usize) -> BTreeMap<String, u64> {
        let mut left: BTreeMap<String, u64> = jobs
            .iter()
            .map(|(j, _, tasks)| ((*j).to_owned(), *tasks))
            .collect();
        let mut round = Round::default();
        for (j, p, tasks) in jobs {
            round.enter(j, *p, tasks * (64 << 20));
        }
        let mut done = BTreeMap::new();
        for _ in 0..n {
            let next = round.next(&mut |j| left.get(j).filter(|n| **n > 0).map(|_| 64 << 20));
            let Some(j) = next else { break };
            *left.entry(j.clone()).or_default() -= 1;
            *done.entry(j).or_default() += 1;
        }
        done
    }

    #[test]
    fn a_giant_does_not_starve_the_small() {
        let done = run(
            &[("giant", 0, 8192), ("small-1", 0, 16), ("small-2", 0, 16)],
            48,
        );
        assert_eq!(done["small-1"], 16);
        assert_eq!(done["small-2"], 16);
    }

    #[test]
    fn priority_doubles_the_share() {
        let done = run(&[("low", 0, 10_000), ("high", 1, 10_000)], 3000);
        let ratio = done["high"] as f64 / done["low"] as f64;
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_large_job_and_two_hundred_small_ones_share_evenly() {
        let mut left: BTreeMap<String, (u64, u64)> = [("large".to_owned(), (16, 64 << 20))].into();
        let mut round = Round::default();
        round.enter("large", 0, 1 << 30);
        for i in 0..200 {
            left.insert(format!("small-{i}"), (1, 1 << 20));
            round.enter(&format!("small-{i}"), 0, 1 << 20);
        }
        let mut order = Vec::new();
        while let Some(j) = round.next(&mut |j| left.get(j).filter(|l| l.0 > 0).map(|l| l.1)) {
            if let Some(l) = left.get_mut(&j) {
                l.0 -= 1;
            }
            order.push(j);
        }
        assert_eq!(order.len(), 216);
        let last = order.iter().rposition(|j| j == "large").expect("published");
        // Eight small tasks weigh as much as a chunk.
        assert!((110..150).contains(&last), "{last}");
        let first = order.iter().position(|j| j != "large");
        assert!(first.is_some_and(|n| n <= 1), "{first:?}");
    }
}
