//! The capture that a user means: a file, an s3:// URL, or a job whose evidence it is; and where its
//! kernel was found before.

use crate::config::Config;
use crate::glue;
use anyhow::Result;
use ramsift_coordinator::plan;
use ramsift_layers::ByteSource;
use ramsift_layers::source::Sources;
use ramsift_proto::v1::JobSpec;
use ramsift_store::job::{read_opt, to_json};
use ramsift_store::kernel::{KernelRecord, record_name};
use ramsift_store::{Keys, LocalObjects, Objects, Plan};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A capture, opened.
pub(crate) struct Evidence {
    pub(crate) source: Arc<dyn ByteSource>,
    pub(crate) plan: Plan,
    /// The store and the job, where the user named a job.
    pub(crate) job: Option<(Arc<dyn Objects>, String)>,
}

/// Opens a capture by its path or URL, or that of a job by the job's name.
pub(crate) async fn open(config: &Config, name: &str) -> Result<Evidence> {
    let sources = Sources::new(config.s3.to_layers());
    if !name.contains("://") && !Path::new(name).exists() {
        let objects = glue::existing_store(config).await;
        if let Ok(objects) = objects
            && let Ok(job) = glue::pick_job(objects.as_ref(), Some(name)).await
            && let Some((plan, _)) =
                read_opt::<Plan>(objects.as_ref(), &Keys::new(&job).plan()).await?
        {
            let source = sources.open_pinned(&plan.pin).await?;
            return Ok(Evidence {
                source,
                plan,
                job: Some((objects, job)),
            });
        }
    }
    let spec = JobSpec {
        source: name.to_owned(),
        structured: true,
        chunk_size: config.scan.chunk_size,
        overlap: config.scan.overlap,
        ..JobSpec::default()
    };
    let (plan, source) = plan(&sources, spec).await?;
    Ok(Evidence {
        source,
        plan,
        job: None,
    })
}

/// The user's folder for records.
fn folder(config: &Config) -> Option<PathBuf> {
    match config.worker.kernels.as_str() {
        "" => {
            let set = |k: &str| {
                std::env::var_os(k)
                    .filter(|v| !v.is_empty())
                    .map(PathBuf::from)
            };
            let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
            Some(base.join("ramsift/kernels"))
        }
        dir => Some(dir.into()),
    }
}

impl Evidence {
    /// Where the kernel was found before, if it was.
    pub(crate) async fn record(&self, config: &Config) -> Option<KernelRecord> {
        let read = match &self.job {
            Some((objects, job)) => {
                read_opt::<KernelRecord>(objects.as_ref(), &Keys::new(job).kernel()).await
            }
            None => {
                let objects = LocalObjects::open_existing(&folder(config)?).ok()?;
                read_opt::<KernelRecord>(&objects, &record_name(&self.plan.pin)).await
            }
        };
        // A record that can't be read costs a pass, not the answer.
        let read = read.inspect_err(|e| tracing::debug!(error = %e, "record not read"));
        read.ok().flatten().map(|(r, _)| r)
    }

    /// Keeps where the kernel was found, so that it isn't looked for again.
    pub(crate) async fn keep(&self, config: &Config, found: Option<&KernelRecord>) {
        let (Some(found), Some(folder)) = (found, folder(config)) else {
            return;
        };
        let kept = async {
            let objects = LocalObjects::open(&folder)?;
            let data = to_json(found)?;
            objects.put(&record_name(&self.plan.pin), data).await?;
            anyhow::Ok(())
        };
        if let Err(e) = kept.await {
            tracing::debug!(error = %e, "record not kept");
        }
    }
}
