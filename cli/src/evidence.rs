//! The capture that a user means: a file, an s3:// URL, or a job whose evidence it is; and where its
//! kernel was found before.

use crate::config::Config;
use crate::setup;
use crate::terminal::{Shown, tell};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ramsift_coordinator::{FromContainer, is_container, plan_of};
use ramsift_layers::container;
use ramsift_layers::format;
use ramsift_layers::source::{FileSource, Sources, path_of};
use ramsift_layers::{ByteSource, FileOffset, ImageReader};
use ramsift_proto::v1::JobSpec;
use ramsift_store::image;
use ramsift_store::job::{read_opt, to_json};
use ramsift_store::kernel::{KernelRecord, record_name};
use ramsift_store::{Keys, LocalObjects, Manifest, Objects, Plan};
use std::path::PathBuf;
use std::sync::Arc;

/// A capture, opened.
pub(crate) struct Evidence {
    pub(crate) image: ImageReader,
    pub(crate) plan: Plan,
    /// Whether it is a file that goes with this process: nothing is kept about it.
    pub(crate) passing: bool,
    /// The store and the job, where the user named a job.
    pub(crate) job: Option<(Arc<dyn Objects>, String)>,
}

/// What a name stands for.
pub(crate) enum Named {
    /// A capture, by its path or URL.
    Capture(String),
    /// A job, or a name that begins as that of one job only.
    Job(Box<NamedJob>),
}

/// A job with its plan.
pub(crate) struct NamedJob {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) job: String,
    pub(crate) plan: Plan,
}

/// Finds out what a name stands for: what is there as a file is one, what is a URL is one, everything else is a job.
pub(crate) async fn named(config: &Config, name: &str) -> Result<Named> {
    if name.contains("://") || path_of(name).exists() {
        return Ok(Named::Capture(name.to_owned()));
    }
    let neither =
        |why: &dyn std::fmt::Display| anyhow!("{name} is neither a file nor a job: {why:#}");
    let objects = setup::existing_store(config)
        .await
        .map_err(|e| neither(&format!("{e:#}")))?;
    let job = setup::pick_job(objects.as_ref(), Some(name))
        .await
        .map_err(|e| neither(&e))?;
    let Some((plan, _)) = read_opt::<Plan>(objects.as_ref(), &Keys::new(&job).plan()).await? else {
        bail!("job {job} has not been planned yet; see ramsift status {job}");
    };
    Ok(Named::Job(Box::new(NamedJob { objects, job, plan })))
}

/// Opens a capture by its path or URL, or that of a job by the job's name; `moved` is where the capture of a job is now.
pub(crate) async fn open(config: &Config, name: &str, moved: Option<&str>) -> Result<Evidence> {
    match named(config, name).await? {
        Named::Capture(path) => {
            if moved.is_some() {
                bail!("--evidence goes with a job; {name} is a capture itself");
            }
            of_path(config, &path).await
        }
        Named::Job(j) => j.open(config, moved).await,
    }
}

pub(crate) async fn of_path(config: &Config, name: &str) -> Result<Evidence> {
    let sources = Sources::new(config.s3.to_layers()?);
    let spec = JobSpec {
        source: name.to_owned(),
        structured: true,
        chunk_size: config.scan.chunk_size,
        overlap: config.scan.overlap,
        page_files: config.scan.page_files.clone(),
        ..JobSpec::default()
    };
    let source = sources.open(name).await?;
    let passing = is_container(source.as_ref()).await?;
    let planned = if passing {
        let (unpacked, from) = unpack(config, source).await?;
        plan_of(&sources, unpacked, spec, Some(&from)).await?
    } else {
        plan_of(&sources, source, spec, None).await?
    };
    Ok(Evidence {
        image: planned.reader().await?,
        plan: planned.plan,
        passing,
        job: None,
    })
}

/// The bytes that a job hashed and counts in, by the name of what it was given: all files of a capture in several, what comes out of a
/// container.
pub(crate) async fn as_scanned(
    config: &Config,
    sources: &Sources,
    name: &str,
) -> Result<Arc<dyn ByteSource>> {
    let source = sources.open(name).await?;
    if is_container(source.as_ref()).await? {
        return Ok(unpack(config, source).await?.0);
    }
    let joined = format::joined(&source, &sources.beside(source.pin())).await?;
    Ok(joined.unwrap_or(source))
}

/// Unpacks the capture in a container into a file without a name, which goes when nobody reads it any more.
pub(crate) async fn unpack(
    config: &Config,
    source: Arc<dyn ByteSource>,
) -> Result<(Arc<dyn ByteSource>, FromContainer)> {
    let folder = setup::temporary(&config.worker.spill);
    let limits = config.unpack.limits();
    let pin = source.pin().clone();
    tell!(
        "unpacking {} ({}); unpack it for good where it is to be looked at more than once",
        Shown(pin.to_string()),
        HumanBytes(source.len())
    );
    let container = pin.clone();
    let unpacked = tokio::task::spawn_blocking(move || {
        let place = folder.display().to_string();
        let file = tempfile::tempfile_in(&folder)
            .with_context(|| format!("a file for what is unpacked, in {place} (worker.spill)"))?;
        let bar = unpack_bar(source.len());
        let progress = |read: u64, _: u64| bar.set_position(read);
        let done = container::unpack(&source, &file, &place, limits, false, &progress);
        bar.finish_and_clear();
        let unpacked = done.with_context(|| source.pin().to_string())?;
        let name = format!("{} in {}", unpacked.name, source.pin());
        let file = FileSource::unnamed(file, &name)?;
        anyhow::Ok((file, unpacked))
    });
    let (file, unpacked) = unpacked.await??;
    if let Some(why) = &unpacked.cut {
        tell!("not all of it could be unpacked: {}", Shown(why));
    }
    let from = FromContainer {
        container,
        unpacked,
    };
    Ok((Arc::new(file), from))
}

/// How far it is, where a terminal shows it.
fn unpack_bar(len: u64) -> ProgressBar {
    let bar = match std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        true => ProgressBar::new(len),
        false => ProgressBar::hidden(),
    };
    if let Ok(s) =
        ProgressStyle::with_template("unpacking [{bar:32}] {bytes}/{total_bytes} eta {eta}")
    {
        bar.set_style(s.progress_chars("=> "));
    }
    bar
}

/// Bytes hashed at a time.
const STEP: usize = 16 << 20;

/// BLAKE3 of a source.
async fn blake3_of(source: &dyn ByteSource) -> Result<String> {
    let mut h = blake3::Hasher::new();
    let mut at = 0;
    while at < source.len() {
        let n = usize::try_from(source.len() - at)
            .unwrap_or(usize::MAX)
            .min(STEP);
        h.update(&source.read_vec(FileOffset(at), n).await?);
        at += n as u64;
    }
    Ok(h.finalize().to_hex().to_string())
}

impl NamedJob {
    /// Opens the capture of the job: where it was, or where it is said to be now.
    pub(crate) async fn open(self, config: &Config, moved: Option<&str>) -> Result<Evidence> {
        let sources = Sources::new(config.s3.to_layers()?);
        let job = &self.job;
        let source = match moved {
            None => sources.open_pinned(&self.plan.pin).await.with_context(|| {
                format!("the capture of job {job} is not where it was; name its new place with --evidence PATH")
            })?,
            Some(path) => {
                let source = as_scanned(config, &sources, path).await?;
                self.check(config, source.as_ref(), path).await?;
                source
            }
        };
        let keys = Keys::new(job);
        let image = image::reader(&self.objects, &keys, &self.plan, source).await?;
        let mut plan = self.plan;
        let files = match sources.open_page_files(&plan.layout.page_files).await {
            Ok(files) => files,
            Err(e) => {
                tell!(
                    "without the page files of job {job}: {}",
                    Shown(e.to_string())
                );
                plan.layout.page_files.clear();
                Vec::new()
            }
        };
        Ok(Evidence {
            image: image.with_page_files(files),
            plan,
            passing: false,
            job: Some((self.objects, self.job)),
        })
    }

    /// Refuses what is not the capture of the job. What was checked before is not hashed again.
    async fn check(&self, config: &Config, source: &dyn ByteSource, path: &str) -> Result<()> {
        let job = &self.job;
        let (is, was) = (source.len(), self.plan.pin.size());
        if is != was {
            bail!(
                "{path} is not the capture of job {job}: it has {is} bytes, the capture had {was}"
            );
        }
        let manifest =
            read_opt::<Manifest>(self.objects.as_ref(), &Keys::new(job).manifest()).await?;
        let Some(want) = manifest.and_then(|(m, _)| m.evidence_blake3) else {
            tell!(
                "{}: only its size is that of the capture of job {job}, which has no hash",
                Shown(path)
            );
            return Ok(());
        };
        let checked =
            folder(config).map(|f| f.join(record_name(source.pin())).with_extension("blake3"));
        let known = checked
            .as_ref()
            .and_then(|f| std::fs::read_to_string(f).ok());
        let found = match known {
            Some(hash) => hash.trim().to_owned(),
            None => {
                tell!(
                    "hashing {} ({}), to see that it is the capture of job {job}",
                    Shown(path),
                    HumanBytes(is)
                );
                let hash = blake3_of(source).await?;
                if let Some(f) = checked {
                    let kept = f
                        .parent()
                        .map_or(Ok(()), std::fs::create_dir_all)
                        .and_then(|()| std::fs::write(&f, &hash));
                    if let Err(e) = kept {
                        tracing::debug!(error = %e, "hash not kept");
                    }
                }
                hash
            }
        };
        if found != want {
            bail!(
                "{path} is not the capture of job {job}: its BLAKE3 is {found}, the capture's was {want}"
            );
        }
        tell!("{} is the capture of job {job}, by its hash", Shown(path));
        Ok(())
    }
}

/// The user's folder for records.
fn folder(config: &Config) -> Option<PathBuf> {
    match config.worker.kernels.as_str() {
        "" => user_cache("kernels"),
        dir => Some(dir.into()),
    }
}

/// A folder of the user's for what can be made again (XDG Base Directory Specification).
pub(crate) fn user_cache(what: &str) -> Option<PathBuf> {
    let set = |k: &str| {
        std::env::var_os(k)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("ramsift").join(what))
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
        let (Some(found), Some(folder), false) = (found, folder(config), self.passing) else {
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
