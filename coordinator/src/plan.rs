//! Planning: pin the evidence, find its format, cut it into chunks.

use crate::unpacked::FromContainer;
use ramsift_layers::container::ContainerError;
use ramsift_layers::extent::Table;
use ramsift_layers::format::{self, ContainerGap, FormatError, Opened};
use ramsift_layers::page_file::{self, PageFile};
use ramsift_layers::source::{SourceError, SourcePin, Sources};
use ramsift_layers::{ByteSource, ChunkParams, ImageReader};
use ramsift_proto::v1::JobSpec;
use ramsift_proto::view;
use ramsift_store::{Keys, Objects, Plan, StoreError, image, job};
use std::sync::Arc;

/// Why a job can't be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The evidence.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its container.
    #[error("{source_name}: {error}")]
    Format {
        /// The capture.
        source_name: String,
        /// What is wrong.
        error: FormatError,
    },
    /// It can't be unpacked.
    #[error("{source_name}: {error}")]
    Container {
        /// The container.
        source_name: String,
        /// What is wrong.
        error: ContainerError,
    },
    /// What was unpacked can't be kept.
    #[error("{0}")]
    Store(String),
    /// The parameters.
    #[error("{0}")]
    Parameters(String),
}

impl PlanError {
    /// Whether another try may do.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Container { error, .. } => error.is_outage(),
            Self::Store(_) => true,
            Self::Source(e)
            | Self::Format {
                error: FormatError::Source(e),
                ..
            } => {
                matches!(e, SourceError::Unavailable { .. })
            }
            _ => false,
        }
    }
}

/// Bytes of a chunk at most: a worker holds some in memory.
const MAX_CHUNK: u64 = 1 << 30;
/// Chunks of a job at most: the coordinator holds their names in memory.
const MAX_CHUNKS: u64 = 1 << 20;

/// The numbers of a job that can be judged without its capture.
pub(crate) fn parameters(spec: &JobSpec) -> Result<ChunkParams, String> {
    let chunks = ChunkParams {
        size: spec.chunk_size,
        overlap: spec.overlap,
        ..ChunkParams::default()
    };
    chunks.validate().map_err(|e| e.to_string())?;
    if chunks.size > MAX_CHUNK {
        return Err(format!(
            "a chunk of {} bytes is more than {MAX_CHUNK}",
            chunks.size
        ));
    }
    if chunks.overlap > chunks.size {
        return Err(format!(
            "an overlap of {} bytes is more than a chunk",
            chunks.overlap
        ));
    }
    match spec.hash.as_str() {
        "" | "sha256" => Ok(chunks),
        other => Err(format!("unknown hash {other:?}: use sha256")),
    }
}

/// A planned job.
#[derive(Debug)]
pub struct Planned {
    /// Its plan.
    pub plan: Plan,
    /// The capture.
    pub source: Arc<dyn ByteSource>,
    /// The table of extents that is to lie beside the plan, where the container packs its memory.
    pub table: Option<Table>,
    /// Page files of the captured system, in the order of the layout.
    pub page_files: Vec<Arc<dyn ByteSource>>,
}

impl Planned {
    /// A reader of the image, whose table is in memory.
    pub async fn reader(&self) -> Result<ImageReader, SourceError> {
        let opened = Opened {
            layout: self.plan.layout.clone(),
            table: self.table.clone(),
        };
        let reader = opened.reader(self.source.clone()).await?;
        Ok(reader.with_page_files(self.page_files.clone()))
    }
}

/// Opens a capture and plans its job. Reads a few KiB of one that holds memory as it is; of one that packs it, what tells where.
pub async fn plan(sources: &Sources, spec: JobSpec) -> Result<Planned, PlanError> {
    parameters(&spec).map_err(PlanError::Parameters)?;
    let source = sources.open(&spec.source).await?;
    plan_of(sources, source, spec, None).await
}

/// The same of a capture that is open; `from` is the container that it was unpacked from, if it was.
pub async fn plan_of(
    sources: &Sources,
    source: Arc<dyn ByteSource>,
    spec: JobSpec,
    from: Option<&FromContainer>,
) -> Result<Planned, PlanError> {
    let chunks = parameters(&spec).map_err(PlanError::Parameters)?;
    let beside = sources.beside(source.pin());
    let wrong = |error| PlanError::Format {
        source_name: spec.source.clone(),
        error,
    };
    let joined = format::joined(&source, &beside).await.map_err(wrong)?;
    let source = joined.unwrap_or(source);
    let opened = format::open_beside(source.as_ref(), &beside)
        .await
        .map_err(wrong)?;
    let Opened { mut layout, table } = opened;
    if let Some(from) = from {
        layout.notes.splice(0..0, from.notes());
        if let Some(why) = &from.unpacked.cut {
            layout.gaps.push(ContainerGap {
                file: source.len().saturating_sub(1)..source.len(),
                reason: format!("the container is not all there, so the capture may go on: {why}"),
            });
        }
    }
    let pin = source.pin().clone();
    let (named, page_files) = page_files(sources, &spec, from.map_or(&pin, |f| &f.container))
        .await?
        .into_iter()
        .unzip();
    layout.page_files = named;
    for f in &layout.page_files {
        let how = if f.found {
            "found beside the capture"
        } else {
            "named"
        };
        layout.notes.push(format!(
            "page file {}: {} of {} bytes, {how}; views say whether it is this machine's",
            f.number,
            f.pin,
            f.pin.size()
        ));
    }
    let mut views = Vec::new();
    if spec.structured {
        views.push(view::SYSTEM.to_owned());
    }
    if spec.hash == "sha256" {
        views.push(view::SHA256.to_owned());
    }
    // What was unpacked is as old as its container.
    let dated = from.map_or(&pin, |f| &f.container);
    let what = match dated.is_object() {
        true => "the object's last modification",
        false => "the capture file's modification time",
    };
    let reference_time = dated.mtime_ns().map(|ns| (ns / 1000, what.to_owned()));
    let chunk_count = chunks.count(source.len());
    if chunk_count > MAX_CHUNKS {
        let why = format!(
            "{chunk_count} chunks of {} bytes are too many; at most {MAX_CHUNKS}: use larger ones",
            chunks.size
        );
        return Err(PlanError::Parameters(why));
    }
    let plan = Plan {
        spec,
        pin,
        layout,
        chunks,
        chunk_count,
        views,
        reference_time,
    };
    Ok(Planned {
        plan,
        source,
        table,
        page_files,
    })
}

/// The plan of a job as it lies in the store.
#[derive(Debug)]
pub(crate) struct KeptPlan {
    pub(crate) plan: Plan,
    /// Nobody had planned the job before: nothing can have been done for it yet.
    pub(crate) new: bool,
}

/// Stores a plan, unless the job has one; that one counts then.
pub(crate) async fn keep_plan(
    objects: &dyn Objects,
    keys: &Keys,
    planned: Planned,
) -> Result<Box<KeptPlan>, StoreError> {
    // Whoever reads the plan finds the table beside it.
    if let Some(table) = planned.table {
        image::put_table(objects, keys, table).await?;
    }
    let (key, data) = (keys.plan(), job::to_json(&planned.plan)?);
    let (plan, new) = match objects.put_new(&key, data).await {
        Ok(_) => (planned.plan, true),
        Err(e) if e.is_conflict() => (job::read(objects, &key).await?.0, false),
        Err(e) => return Err(e.into()),
    };
    Ok(Box::new(KeptPlan { plan, new }))
}

/// The page files that a job names, or those beside its capture.
async fn page_files(
    sources: &Sources,
    spec: &JobSpec,
    capture: &SourcePin,
) -> Result<Vec<(PageFile, Arc<dyn ByteSource>)>, PlanError> {
    if !spec.structured {
        return Ok(Vec::new());
    }
    if spec.page_files.is_empty() {
        return Ok(sources.page_files_beside(capture).await?);
    }
    let mut out: Vec<(PageFile, Arc<dyn ByteSource>)> = Vec::new();
    for (number, path) in named_page_files(spec).map_err(PlanError::Parameters)? {
        let source = sources.open(path).await?;
        let file = PageFile {
            number,
            pin: source.pin().clone(),
            found: false,
        };
        out.push((file, source));
    }
    Ok(out)
}

/// Numbers and names of the page files that a job names.
pub(crate) fn named_page_files(spec: &JobSpec) -> Result<Vec<(u8, &str)>, String> {
    let mut out: Vec<(u8, &str)> = Vec::new();
    for (i, text) in spec.page_files.iter().enumerate() {
        let (number, path) = page_file::named(text, i)?;
        if out.iter().any(|(n, _)| *n == number) {
            return Err(format!("two page files have the number {number}"));
        }
        out.push((number, path));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::source::S3Config;

    fn spec(source: &str) -> JobSpec {
        JobSpec {
            source: source.to_owned(),
            chunk_size: 64 << 20,
            overlap: 1 << 20,
            unstructured: true,
            structured: true,
            ..JobSpec::default()
        }
    }

    #[tokio::test]
    async fn a_sparse_quarter_tebibyte_is_planned_without_reading_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("big.raw");
        std::fs::File::create(&path)
            .and_then(|f| f.set_len(256 << 30))
            .expect("sparse file");
        let sources = Sources::new(S3Config::default());
        let p = plan(&sources, spec(&path.display().to_string()))
            .await
            .expect("plan")
            .plan;
        assert_eq!(p.chunk_count, 4096);
        assert_eq!(p.layout.format, "raw");
    }

    #[tokio::test]
    async fn bad_parameters_and_files_are_named() {
        let sources = Sources::new(S3Config::default());
        let e = plan(
            &sources,
            JobSpec {
                chunk_size: 5000,
                ..spec("x")
            },
        )
        .await
        .expect_err("size");
        assert!(e.to_string().contains("5000"), "{e}");
        let e = plan(&sources, spec("/no/such.mem"))
            .await
            .expect_err("missing");
        assert!(e.to_string().contains("/no/such.mem"), "{e}");
    }
}
