//! SHA-256 of the evidence: one sequential pass, with reads in flight ahead of the hash.

use crate::Worker;
use crate::build::{gone, header, no_record};
use futures::{StreamExt, TryStreamExt};
use ramsift_layers::{FileOffset, SourceError};
use ramsift_proto::v1::{Outcome, Task, TaskReport};
use ramsift_store::job::read;
use ramsift_store::{Keys, Plan, Report};
use ramsift_telemetry::current;
use ramsift_worker::Trouble;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Name of the task that hashes the evidence in one sequential pass.
pub const SHA256: &str = "sha256";

/// Bytes read at a time.
const STEP: u64 = 8 << 20;
/// Reads in flight.
const AHEAD: usize = 4;

/// SHA-256 of the whole file or object.
pub(crate) async fn hash(worker: &Arc<Worker>, task: &Task) -> Result<Report, Trouble> {
    let keys = Keys::new(&task.job);
    let plan = match read::<Plan>(worker.deps.objects.as_ref(), &keys.plan()).await {
        Ok((plan, _)) => plan,
        Err(e) => return no_record(worker, task, &e),
    };
    let source = match worker.deps.sources.open_pinned(&plan.pin).await {
        Ok(s) => s,
        Err(e) => return gone(worker, task, e),
    };
    let len = source.len();
    let starts = (0..len).step_by(usize::try_from(STEP).unwrap_or(usize::MAX));
    let mut pieces = futures::stream::iter(starts)
        .map(|at| {
            let source = source.clone();
            async move {
                // A file's reads block.
                let read = tokio::task::spawn_blocking(move || {
                    let mut buf = vec![0; usize::try_from(STEP.min(len - at)).unwrap_or(0)];
                    let runtime = tokio::runtime::Handle::current();
                    runtime.block_on(source.read_at(FileOffset(at), &mut buf))?;
                    Ok::<_, SourceError>(buf)
                });
                read.await
            }
        })
        .buffered(AHEAD);
    let mut hasher = Sha256::new();
    loop {
        let piece = match pieces.try_next().await {
            Ok(Some(Ok(p))) => p,
            Ok(Some(Err(e))) if e.is_content() => return Ok(unreadable(worker, task, &e)),
            Ok(Some(Err(e))) => return gone(worker, task, e),
            Ok(None) => break,
            Err(e) => return Err(e.to_string().into()),
        };
        hasher = tokio::task::spawn_blocking(move || hasher.chain_update(&piece))
            .await
            .map_err(|e| e.to_string())?;
    }
    if let Err(e) = source.check_pin().await {
        return gone(worker, task, e);
    }
    Ok(Report {
        header: TaskReport {
            hash: hex::encode(hasher.finalize()),
            bytes_read: len,
            ..header(worker, task)
        },
        batches: Vec::new(),
        trace: current(),
    })
}

/// A medium that fails somewhere has no hash; everything else goes on.
fn unreadable(worker: &Worker, task: &Task, e: &SourceError) -> Report {
    Report {
        header: TaskReport {
            outcome: Outcome::Failed.into(),
            reason: e.to_string(),
            ..header(worker, task)
        },
        ..Report::default()
    }
}
