//! Fair share: which job may publish next. Deficit round robin over bytes, weighted by priority,
//! with a window of unsettled tasks per job.
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

/// The round of jobs that have something to publish.
#[derive(Debug, Default)]
pub(crate) struct Round {
    turns: VecDeque<Entry>,
}

/// Weight of a priority: doubles with each step, between 1/16 and 16.
fn quantum(priority: i32) -> u64 {
    let p = priority.clamp(-4, 4);
    if p >= 0 { QUANTUM << p } else { QUANTUM >> -p }
}

impl Round {
    /// Adds a job at the end of the round, if it isn't in it.
    pub(crate) fn enter(&mut self, job: &str, priority: i32) {
        if self.turns.iter().all(|e| e.job != job) {
            self.turns.push_back(Entry {
                job: job.to_owned(),
                deficit: 0,
                priority,
            });
        }
    }

    /// Takes those jobs out of the round that have nothing to publish.
    pub(crate) fn retain(&mut self, mut has_tasks: impl FnMut(&str) -> bool) {
        self.turns.retain(|e| has_tasks(&e.job));
    }

    /// Whether no job has something to publish.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The next job to publish a task. `cost`: bytes of a job's next task if it may publish one
    /// now, else `None` (its window is full, or nothing is left); such a job leaves the round.
    pub(crate) fn next(&mut self, cost: &mut dyn FnMut(&str) -> Option<u64>) -> Option<String> {
        while let Some(mut e) = self.turns.pop_front() {
            let Some(bytes) = cost(&e.job) else { continue };
            if e.deficit < bytes {
                e.deficit += quantum(e.priority);
                if e.deficit < bytes {
                    // Tasks larger than a quantum wait several turns.
                    self.turns.push_back(e);
                    continue;
                }
                e.deficit -= bytes;
                let job = e.job.clone();
                // What is left of the turn is used before the next job's.
                self.turns.push_front(e);
                if self.turns.len() > 1 && self.turns.front().is_some_and(|f| f.deficit < bytes) {
                    self.turns.rotate_left(1);
                }
                return Some(job);
            }
            e.deficit -= bytes;
            let job = e.job.clone();
            if e.deficit < bytes {
                self.turns.push_back(e);
            } else {
                self.turns.push_front(e);
            }
            return Some(job);
        }
        None
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
        for (j, p, _) in jobs {
            round.enter(j, *p);
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
}
