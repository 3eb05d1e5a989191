//! A coordinator over a folder, with nothing behind it.

#![allow(dead_code)]

use async_trait::async_trait;
use ramsift_coordinator::{Config, Coordinator, Deps, Finaliser, SpecCheck, VerdictPlanner};
use ramsift_layers::source::{Allowed, S3Config, Sources};
use ramsift_proto::v1::{JobSpec, RuleCount};
use ramsift_queue::MemoryQueue;
use ramsift_store::{LocalObjects, MemoryLedger, Objects};
use ramsift_telemetry::Readiness;
use std::sync::Arc;
use std::time::Duration;

/// No rules, nothing to seal; carvers and zones of two names, rules that begin with `good`.
#[derive(Debug)]
pub(crate) struct Stub;

impl VerdictPlanner for Stub {
    fn groups(&self, _: &[u8], _: &[RuleCount]) -> Result<Vec<serde_json::Value>, String> {
        Ok(Vec::new())
    }
}

impl SpecCheck for Stub {
    fn spec(&self, spec: &JobSpec) -> Result<(), String> {
        match spec.carvers.iter().find(|c| *c != "url") {
            Some(c) => Err(format!("there is no carver {c}")),
            None if ["", "UTC"].contains(&spec.timezone.as_str()) => Ok(()),
            None => Err(format!("{:?} is no time zone", spec.timezone)),
        }
    }

    fn rules(&self, rules: &[u8]) -> Result<(), String> {
        if rules.starts_with(b"good") {
            return Ok(());
        }
        Err("made by another version".into())
    }
}

#[async_trait]
impl Finaliser for Stub {
    async fn finalise(&self, _: &str) -> Result<bool, (String, bool)> {
        Err(("nothing is sealed here".into(), false))
    }
}

/// A store in a folder that is removed with it.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) objects: Arc<dyn Objects>,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let objects = LocalObjects::open(&dir.path().join("store")).expect("a store");
        Self {
            dir,
            objects: Arc::new(objects),
        }
    }

    /// A coordinator of a cluster that may read what the setting allows.
    pub(crate) fn coordinator(&self, name: &str, allow: &str) -> Coordinator {
        self.coordinator_with(name, allow, Arc::new(MemoryQueue::new()))
    }

    /// The same that publishes to this queue.
    pub(crate) fn coordinator_with(
        &self,
        name: &str,
        allow: &str,
        queue: Arc<MemoryQueue>,
    ) -> Coordinator {
        let config = Config {
            name: name.into(),
            poll: Duration::from_millis(20),
            lease: Duration::from_secs(15),
            ..Config::default()
        };
        let allowed = Allowed::parse(allow).expect("a list");
        Coordinator::new(
            config,
            Deps {
                queue,
                ledger: Arc::new(MemoryLedger::default()),
                objects: self.objects.clone(),
                sources: Sources::new(S3Config::default()).only(allowed),
                verdicts: Arc::new(Stub),
                specs: Arc::new(Stub),
                finaliser: Arc::new(Stub),
                readiness: Readiness::default(),
            },
        )
    }
}

/// A job that is right.
pub(crate) fn spec(job: &str, source: &str) -> JobSpec {
    JobSpec {
        job: job.into(),
        source: source.into(),
        unstructured: true,
        structured: true,
        chunk_size: 1 << 20,
        overlap: 4096,
        ..JobSpec::default()
    }
}
