//! The coordinator: opens the capture, plans chunks and views, publishes tasks in a window per
//! job, and owns the life of every job. The object store is its only memory: a coordinator that
//! restarts, or another that takes over, goes on from plans and commit records.
//!
//! ```text
//! queued -> planning -> running -> finalising -> complete | complete with gaps
//!                    \-> failed | cancelled
//! ```

mod check;
mod depth;
mod job;
mod lanes;
mod leadership;
mod lease;
mod lost;
mod metrics;
mod outage;
mod plan;
mod publish;
mod retry;
mod schedule;
mod server;
mod service;
mod states;
mod unpacked;

pub use check::{SpecCheck, SubmitError};
pub use lease::{Lease, Watch};
pub use plan::{PlanError, Planned, plan, plan_of};
pub use retry::{RetryError, revive};
pub use server::serve;
pub use service::{Coordinator, Submitted};
pub use unpacked::{FromContainer, is_container};

use async_trait::async_trait;
use ramsift_layers::container::Limits;
use ramsift_layers::source::Sources;
use ramsift_proto::Deployment;
use ramsift_proto::v1::RuleCount;
use ramsift_queue::Queue;
use ramsift_store::{Agreement, Ledger, Objects};
use ramsift_telemetry::Readiness;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How a coordinator works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in leases and logs.
    pub name: String,
    /// Unsettled tasks of one job in the queue at a time; at least twice the fleet's prefetch.
    pub window: usize,
    /// How often commit records are looked for.
    pub poll: Duration,
    /// How long a published task may stay unsettled before it is published again.
    pub republish: Duration,
    /// How long a standby of a cluster must see the lease unchanged before it takes over.
    pub lease: Duration,
    /// What the other services must have in common with this one; its name is `name`.
    pub agreement: Agreement,
    /// How the services run: one command needs no lease, and loses no messages.
    pub deployment: Deployment,
    /// Smallest part of a chunk that is tried on its own.
    pub smallest: u64,
    /// Jobs to run; `None`: all in the store.
    pub only: Option<Vec<String>>,
    /// What unpacking a container may cost.
    pub unpack: Limits,
    /// Folder for what is unpacked, on its way to a store that is not on this machine.
    pub spill: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "coordinator".into(),
            window: 256,
            poll: Duration::from_millis(500),
            republish: Duration::from_secs(900),
            lease: Duration::from_secs(10),
            agreement: Agreement::default(),
            deployment: Deployment::default(),
            smallest: 1 << 20,
            only: None,
            unpack: Limits::default(),
            spill: std::env::temp_dir(),
        }
    }
}

/// Groups rules into verdict tasks. The rule engine's business, handed in by the binary.
pub trait VerdictPlanner: Send + Sync + fmt::Debug {
    /// Groups for a compiled rule set, given the matches per rule.
    fn groups(&self, rules: &[u8], matched: &[RuleCount])
    -> Result<Vec<serde_json::Value>, String>;
}

/// Seals a job: the aggregator, in process or remote.
#[async_trait]
pub trait Finaliser: Send + Sync + fmt::Debug {
    /// Returns whether the job has gaps. An error with `true` is final.
    async fn finalise(&self, job: &str) -> Result<bool, (String, bool)>;
}

/// What a coordinator needs from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where tasks go.
    pub queue: Arc<dyn Queue>,
    /// Told what is settled and closed.
    pub ledger: Arc<dyn Ledger>,
    /// The truth.
    pub objects: Arc<dyn Objects>,
    /// Where evidence is read from.
    pub sources: Sources,
    /// Groups rules.
    pub verdicts: Arc<dyn VerdictPlanner>,
    /// Looks at what jobs ask for.
    pub specs: Arc<dyn SpecCheck>,
    /// Seals jobs.
    pub finaliser: Arc<dyn Finaliser>,
    /// Told when the coordinator can and can't work.
    pub readiness: Readiness,
}
