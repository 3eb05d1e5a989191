//! A store that stays in trouble under one command: nobody else goes on with its jobs, so the command ends and says why.

use ramsift_proto::Deployment;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Since when nothing has been settled while the store was in trouble.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    inner: Mutex<Since>,
}

#[derive(Debug, Default)]
struct Since {
    first: Option<Instant>,
    /// The most settled tasks that each job was seen with: those that are read again after an error are no progress.
    settled: BTreeMap<String, usize>,
}

impl Outage {
    /// Notes how many tasks of a job are settled: with more than ever the store works.
    pub(crate) fn settled(&self, job: &str, tasks: usize) {
        let mut s = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = s.settled.insert(job.to_owned(), tasks).unwrap_or(0);
        if tasks > before {
            s.first = None;
        } else {
            s.settled.insert(job.to_owned(), before);
        }
    }

    /// Notes an error of the store. Whether it is time to give up: in a cluster it never is.
    pub(crate) fn lasts_too_long(&self, deployment: Deployment, now: Instant) -> bool {
        let mut s = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *s.first.get_or_insert(now);
        deployment.is_embedded() && now.duration_since(first) > deployment.patience(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn one_command_gives_up_and_a_cluster_does_not() {
        let (o, now) = (Outage::default(), Instant::now());
        assert!(!o.lasts_too_long(Deployment::Embedded, now));
        assert!(o.lasts_too_long(Deployment::Embedded, now + HOUR));
        assert!(!o.lasts_too_long(Deployment::Cluster, now + HOUR));
    }

    #[test]
    fn only_what_is_newly_settled_is_progress() {
        let (o, now) = (Outage::default(), Instant::now());
        o.settled("a", 3);
        assert!(!o.lasts_too_long(Deployment::Embedded, now));
        o.settled("a", 2);
        o.settled("a", 3);
        assert!(o.lasts_too_long(Deployment::Embedded, now + HOUR));
        o.settled("a", 4);
        assert!(!o.lasts_too_long(Deployment::Embedded, now + HOUR));
    }
}
