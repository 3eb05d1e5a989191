//! How the services run.

use std::time::Duration;

/// Whether the services of a job are one process or many. What differs between the two hangs on this value alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deployment {
    /// One command: a queue and a ledger in this process, no other coordinator and no other worker. An outage that lasts ends
    /// the job with the reason, since nobody else could go on with it.
    Embedded,
    /// Services that come and go. Outages are waited out, and tasks handed back to whoever is there.
    #[default]
    Cluster,
}

impl Deployment {
    /// Whether this is one command.
    pub fn is_embedded(self) -> bool {
        self == Self::Embedded
    }

    /// How long an outage is waited out, of what is configured.
    pub fn patience(self, configured: Duration) -> Duration {
        match self {
            Self::Embedded => configured.min(Duration::from_secs(30)),
            Self::Cluster => configured,
        }
    }

    /// How long running tasks may go on after a stop: of one command what is settled is on disk.
    pub fn grace(self, configured: Duration) -> Duration {
        match self {
            Self::Embedded => configured.min(Duration::from_secs(2)),
            Self::Cluster => configured,
        }
    }

    /// How long reports wait for others to share a commit with. What can't be joined is committed at once in any case; who
    /// stops one command loses no more than that.
    pub fn commit_age(self, configured: Duration) -> Duration {
        match self {
            Self::Embedded => configured.min(Duration::from_secs(2)),
            Self::Cluster => configured,
        }
    }
}
