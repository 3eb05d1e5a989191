//! An ended job that is to run again: what it settled stays, what ended it goes.

use ramsift_proto::v1::{JobPhase, JobState};
use ramsift_store::job::{now_micros, read, read_opt, to_json};
use ramsift_store::{Keys, Objects, StoreError, commits};

/// Notes of jobs that are to run again, for the active coordinator: one object each.
pub(crate) const RETRIES: &str = "leases/retries/";

/// Why a job does not run again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job is in no state to run again.
    #[error(
        "job {job} is {phase}; only jobs that failed or were cancelled can be tried again{hint}"
    )]
    Phase {
        /// Its name.
        job: String,
        /// Where it stands.
        phase: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

/// The state of a job that can run again, and its tag.
pub(crate) async fn ended(
    objects: &dyn Objects,
    job: &str,
) -> Result<(JobState, String), RetryError> {
    let (state, etag): (JobState, _) = read(objects, &Keys::new(job).state()).await?;
    let phase = state.phase();
    if matches!(phase, JobPhase::Failed | JobPhase::Cancelled) {
        return Ok((state, etag));
    }
    let hint = if phase.is_final() {
        ": submit the capture again for a new job"
    } else {
        ""
    };
    Err(RetryError::Phase {
        job: job.to_owned(),
        phase: phase.name(),
        hint,
    })
}

/// Takes away what ended a job: fatal reports, its cancellation, the frozen list of what was to be sealed. Reports of tasks
/// that are settled stay. Then the job is queued again, unless another has changed its state meanwhile.
pub(crate) async fn queue_again(
    objects: &dyn Objects,
    (state, etag): (JobState, String),
) -> Result<(), StoreError> {
    let keys = Keys::new(&state.job);
    clear(objects, &keys).await?;
    let queued = JobState {
        phase: JobPhase::Queued.into(),
        reason: String::new(),
        updated_micros: now_micros(),
        ..state
    };
    objects
        .put_over(&keys.state(), to_json(&queued)?, &etag)
        .await?;
    Ok(())
}

/// Takes away what ended a job that failed or was cancelled. A job in another state, or none of that name, is left alone;
/// whether it was such a job.
pub async fn revive(objects: &dyn Objects, job: &str) -> Result<bool, StoreError> {
    let keys = Keys::new(job);
    let Some((state, _)) = read_opt::<JobState>(objects, &keys.state()).await? else {
        return Ok(false);
    };
    if !matches!(state.phase(), JobPhase::Failed | JobPhase::Cancelled) {
        return Ok(false);
    }
    clear(objects, &keys).await?;
    for key in [keys.state(), keys.spec()] {
        objects.delete(&key).await?;
    }
    Ok(true)
}

async fn clear(objects: &dyn Objects, keys: &Keys) -> Result<(), StoreError> {
    for m in objects.list(&keys.commits()).await? {
        let c = commits::read(objects, &m.key, m.size).await?;
        if c.reports.iter().any(|r| r.fatal) {
            objects.delete(&m.key).await?;
        }
    }
    for key in [keys.cancel(), keys.frozen()] {
        objects.delete(&key).await?;
    }
    Ok(())
}
