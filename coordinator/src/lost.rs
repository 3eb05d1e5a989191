//! The smallest part of the evidence that no worker survives: what is noted of it.
//!
//! Its bytes are only read here, never looked into, so that the hash of the evidence is known
//! although a part of it was not scanned.

use crate::Deps;
use ramsift_layers::hash::PieceHasher;
use ramsift_layers::{ByteSource, FileOffset, SourceError, SourcePin};
use ramsift_proto::v1::{CommitRecord, Outcome, TaskReport};
use ramsift_store::commits::{self, CommitSegments};
use ramsift_store::job::now_micros;
use ramsift_store::{Keys, StoreError};
use std::ops::Range;
use std::sync::Arc;

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// A task that is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) job: String,
    pub(crate) task: String,
    /// Its bytes of the file; none for a task that is no chunk.
    pub(crate) file: Range<u64>,
    pub(crate) pin: SourcePin,
    /// Who notes it.
    pub(crate) worker: String,
}

/// Why it could not be noted yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LostError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lost {
    /// Hashes the bytes and notes the task as failed.
    pub(crate) async fn note(self, deps: &Deps) -> Result<(), LostError> {
        let hash = self.hash(deps).await?;
        let attempt = uuid::Uuid::now_v7().to_string();
        let key = Keys::new(&self.job).commit(&attempt);
        let (job, task) = (self.job.clone(), self.task.clone());
        let report = TaskReport {
            job: self.job.clone(),
            task: self.task,
            attempt: attempt.clone(),
            worker: self.worker,
            outcome: Outcome::Failed.into(),
            reason: "every worker that tried it died".into(),
            hash,
            ..TaskReport::default()
        };
        let record = CommitRecord {
            id: attempt,
            job: self.job,
            time_micros: now_micros(),
            reports: vec![report],
            segments: Vec::new(),
        };
        let data = commits::encode(record, CommitSegments::default())?;
        let put = deps.objects.put_new(&key, data).await;
        put.map_err(StoreError::from)?;
        if let Err(e) = deps.ledger.settle(&job, &[task]).await {
            tracing::debug!(error = %e, "ledger not told");
        }
        Ok(())
    }

    /// What the bytes add to the hash of the evidence; empty when they can't be read, or when the
    /// evidence is gone, which is for the end of the job to say. An outage is an error.
    async fn hash(&self, deps: &Deps) -> Result<String, SourceError> {
        let Some(hasher) = PieceHasher::new(&self.file, self.pin.size()) else {
            return Ok(String::new());
        };
        let hashed = async {
            let source = deps.sources.open_pinned(&self.pin).await?;
            let (from, file) = (source.clone(), self.file.clone());
            let read = tokio::task::spawn_blocking(move || read(&from, file, hasher));
            let hash = read.await.map_err(|e| SourceError::Unavailable {
                what: self.pin.to_string(),
                detail: e.to_string(),
            })??;
            source.check_pin().await?;
            Ok(hash)
        };
        match hashed.await {
            Err(e @ SourceError::Unavailable { .. }) => Err(e),
            Err(e) => {
                tracing::warn!(job = %self.job, task = %self.task, error = %e, "not hashed");
                Ok(String::new())
            }
            Ok(hash) => Ok(hash),
        }
    }
}

/// Reads a range and hashes it. A file source blocks.
fn read(
    source: &Arc<dyn ByteSource>,
    file: Range<u64>,
    mut hasher: PieceHasher,
) -> Result<String, SourceError> {
    let runtime = tokio::runtime::Handle::current();
    let mut buf = Vec::new();
    let mut at = file.start;
    while at < file.end {
        let n = (file.end - at).min(PIECE);
        buf.resize(usize::try_from(n).unwrap_or(0), 0);
        runtime.block_on(source.read_at(FileOffset(at), &mut buf))?;
        hasher.update(&buf);
        at += n;
    }
    Ok(hasher.finish())
}
