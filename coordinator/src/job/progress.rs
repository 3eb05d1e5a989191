//! Where a job stands, for people and metrics.

use super::{Job, Stage};
use ramsift_proto::v1::{JobPhase, JobProgress, JobState};
use ramsift_store::Plan;
use ramsift_store::job::now_micros;
use std::sync::PoisonError;

impl Job {
    /// Takes the plan of a job that has ended.
    pub(crate) fn ended_with(&mut self, plan: Plan) {
        if matches!(
            self.state.phase(),
            JobPhase::Complete | JobPhase::CompleteWithGaps
        ) {
            self.bytes_done = plan.pin.size();
        }
        self.plan = Some(plan);
    }

    /// Bytes of unsettled chunk tasks.
    pub(crate) fn backlog(&self) -> u64 {
        self.open.iter().map(|t| self.bytes(t)).sum()
    }

    /// Age of the job, seconds.
    pub(crate) fn age(&self) -> f64 {
        (now_micros() - self.spec.submitted_micros).max(0) as f64 / 1e6
    }

    /// Where it stands.
    pub(crate) fn progress(&self) -> JobProgress {
        let running = self.started.elapsed().as_secs_f64();
        let total = self
            .plan
            .as_ref()
            .filter(|p| p.spec.unstructured)
            .map_or(0, |p| p.pin.size());
        let speed = self.bytes_at_start.map_or(0.0, |b| {
            self.bytes_done.saturating_sub(b) as f64 / running.max(0.001)
        });
        let eta = if speed > 0.0 {
            total.saturating_sub(self.bytes_done) as f64 / speed
        } else {
            -1.0
        };
        let unpacking = self
            .unpacking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let unpacking = (!unpacking.is_empty()).then(|| unpacking.clone());
        JobProgress {
            state: Some(self.state.clone()),
            source: self.spec.source.clone(),
            bytes_total: total,
            bytes_done: self.bytes_done,
            tasks_total: self.total.max(self.settled.len() as u64),
            tasks_done: self.settled.len() as u64,
            tasks_failed: self.failed_tasks,
            running_seconds: running,
            eta_seconds: eta,
            priority: self.spec.priority,
            stage: self.stage_name().to_owned(),
            waits_for: {
                let trouble = self
                    .trouble
                    .iter()
                    .map(|t| format!("tried again until it works: {t}"));
                trouble
                    .chain(self.waits_for.iter().cloned())
                    .chain(unpacking)
                    .collect()
            },
        }
    }

    /// What it does now, in words.
    pub(super) fn stage_name(&self) -> &'static str {
        match (self.state.phase(), self.stage) {
            (p, _) if p.is_final() => "",
            (_, Stage::Unplanned) => "planning",
            (_, Stage::Chunks) => "chunks and views",
            (_, Stage::Rest) => "verdicts and views",
            (_, Stage::Processes) => "verdicts on processes",
            (_, Stage::Settled) => "sealing",
        }
    }

    /// Whether the job has ended.
    pub(crate) fn is_final(&self) -> bool {
        self.state.phase().is_final()
    }

    /// The state that the job is to have.
    pub(crate) fn state_as(&self, phase: JobPhase, reason: &str, epoch: u64) -> JobState {
        JobState {
            job: self.spec.job.clone(),
            phase: phase.into(),
            reason: reason.to_owned(),
            epoch,
            updated_micros: now_micros(),
            trace: self.state.trace.clone(),
        }
    }
}
