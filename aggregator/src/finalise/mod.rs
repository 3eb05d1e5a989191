//! Sealing a job: which attempts count, the sorted tables, coverage, and the manifest.
//!
//! Everything here can be done again from the start by another aggregator: the list of commits is
//! frozen by one conditional write, and all that follows depends on that list alone.

mod agreement;
mod choose;
mod cores;
mod coverage;
mod evidence;
mod manifest;
mod once;
mod proof;
mod reference;
mod so_far;

pub use so_far::{Committed, SoFar, so_far};

use crate::Aggregator;
use choose::{Groups, choose, closed_set, freeze, segments_of, splits};
use cores::Cores;
use coverage::Covered;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use manifest::{Facts, manifest_of};
use ramsift_store::groups::{Agreement, group_findings};
use ramsift_store::job::{self, ManifestFile, to_json};
use ramsift_store::merge::{Filter, Merged, Segment, Stamp, merge_through};
use ramsift_store::query::QueryLimits;
use ramsift_store::splice::Order;
use ramsift_store::tables::{self, name, ordered_rows, read_segment, segment_batches};
use ramsift_store::{Keys, Manifest, Objects, Plan, SealedBy, StoreError, commits};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of the segments of a view whose table is made beside others.
const SMALL: u64 = 4 << 20;
/// Tables of views made at a time.
const SIDE_BY_SIDE: usize = 8;

/// Why a job could not be sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinaliseError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The temporary disk.
    #[error("temporary files for sorting, in {folder} (aggregator.spill): {detail}")]
    Temp {
        /// Where they are.
        folder: String,
        /// What happened.
        detail: String,
    },
    /// Tasks are missing: it is too early.
    #[error("{0} tasks are not settled yet")]
    Early(usize),
    /// The evidence is not what was expected, or what was stored is not what was reported.
    #[error("{0}")]
    Evidence(String),
    /// Another attempt has sealed the job.
    #[error("sealed by another attempt")]
    Sealed,
}

impl From<std::io::Error> for FinaliseError {
    fn from(e: std::io::Error) -> Self {
        Self::Store(StoreError::Disk(e.to_string()))
    }
}

impl FinaliseError {
    /// Whether another try is no use.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Evidence(_) | Self::Store(StoreError::Segment { .. } | StoreError::Format { .. })
        )
    }
}

/// What the manifest says of the program, and what sealing may use.
#[derive(Clone, Debug)]
pub struct FinaliseInfo {
    /// Carvers with their versions.
    pub carvers: BTreeMap<String, u32>,
    /// Digest of the carver set, by the options of a plan.
    pub carvers_digest: fn(&Plan) -> String,
    /// clamd's engine and signature version.
    pub clamav: Option<String>,
    /// Memory and disk.
    pub limits: QueryLimits,
}

impl FinaliseInfo {
    /// What the manifest of a job says.
    fn of(&self, plan: &Plan) -> SealedBy {
        SealedBy {
            carvers: self.carvers.clone(),
            carvers_digest: (self.carvers_digest)(plan),
            clamav: self.clamav.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Seals a job and writes its tables and manifest. Doing it again changes nothing, nor does doing it at the same time.
pub async fn finalise(
    aggregator: &Aggregator,
    job: &str,
    info: &FinaliseInfo,
) -> Result<Manifest, FinaliseError> {
    let objects = aggregator.objects();
    let keys = Keys::new(job);
    if let Some((m, _)) = job::read_opt::<Manifest>(objects.as_ref(), &keys.manifest()).await? {
        return Ok(m);
    }
    let begun = Instant::now();
    let sealed = seal(objects, &keys, info).await;
    aggregator.metrics().seal(&sealed, begun.elapsed());
    match sealed {
        Err(FinaliseError::Store(StoreError::Disk(detail))) => Err(FinaliseError::Temp {
            folder: info.limits.spill.display().to_string(),
            detail,
        }),
        Err(FinaliseError::Sealed) => Ok(job::read(objects.as_ref(), &keys.manifest()).await?.0),
        sealed => sealed,
    }
}

/// One attempt at sealing a job.
async fn seal(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    info: &FinaliseInfo,
) -> Result<Manifest, FinaliseError> {
    let (plan, _): (Plan, _) = job::read(objects.as_ref(), &keys.plan()).await?;
    let split = splits(objects.as_ref(), keys).await?;
    let groups = Groups::read(objects.as_ref(), keys, &plan).await?;
    let mut records = commits::all(objects.as_ref(), keys).await?;
    let reports = || records.iter().flat_map(|c| &c.reports);
    let settled: BTreeSet<&str> = reports().map(|r| r.task.as_str()).collect();
    let open = closed_set(&plan, &groups, &split, reports());
    let open = open
        .iter()
        .filter(|t| !settled.contains(t.as_str()))
        .count();
    if open > 0 {
        return Err(FinaliseError::Early(open));
    }
    let frozen = freeze(objects.as_ref(), keys, info.of(&plan), &records, split).await?;
    // Another attempt may have frozen others.
    if !frozen.commits.iter().eq(records.iter().map(|r| &r.id)) {
        records = commits::all(objects.as_ref(), keys).await?;
        records.retain(|r| frozen.commits.contains(&r.id));
        if records.len() != frozen.commits.len() {
            let why = "a commit that counts is not in the store any more".to_owned();
            return Err(FinaliseError::Evidence(why));
        }
    }
    // The list of splits is frozen with the commits: every aggregator chooses alike.
    let reports = records.iter().flat_map(|c| &c.reports);
    let closed = closed_set(&plan, &groups, &frozen.split, reports);
    let mut chosen = choose(records, &frozen.split);
    chosen.keep(&closed);
    let cores = Cores::open(objects, keys, &plan).await?;
    let unproved = proof::of(objects, &cores, &chosen, &closed).await?;
    let evidence = evidence::blake3(&plan, &chosen, &frozen.split);
    let sha256 = evidence::sha256(&plan, &chosen);
    let sha = sha256.as_ref().map(|(h, _)| h.as_str());
    evidence::check(&plan, evidence.as_deref(), sha)?;
    let capture = evidence::capture_id(&plan, evidence.as_deref());
    let temp = tempfile::tempdir_in(&info.limits.spill)?;
    let mut limits = info.limits.clone();
    limits.spill = temp.path().to_owned();
    let mut segments = segments_of(objects.as_ref(), keys, &chosen).await?;
    let mut covered = Covered::new(&plan, &chosen);
    segments
        .entry(name::COVERAGE.to_owned())
        .or_default()
        .extend(covered.unreported(objects, keys, &cores, &chosen).await?);
    let mut files = Vec::new();
    let system = system_row(objects, segments.get(name::SYSTEM)).await?;
    let mut frames: Option<PathBuf> = None;
    let clock = reference::of(objects, &plan, &segments).await?;
    let order = order_of(objects, &plan, segments.get(name::ORDERED)).await?;
    for table in tables::FINAL.iter().copied() {
        let inputs = segments.get(table).map_or(&[][..], Vec::as_slice);
        let optional = [name::SYSTEM, name::VIEWS, name::FRAMES, name::YARA_MATCHES];
        if optional.contains(&table) && inputs.is_empty() {
            continue;
        }
        let filter: Option<&mut dyn Filter> = if table == name::COVERAGE {
            Some(&mut covered)
        } else {
            None
        };
        let stamp = Stamp {
            capture: &capture,
            pass: 1,
            frames: frames.as_deref(),
            base: system.as_ref().and_then(|s| s.physical_base),
            order: order.as_ref(),
            clock: clock.as_ref().filter(|_| table == name::EVENTS),
        };
        let (file, path) =
            write_table(objects, keys, table, inputs, stamp, &limits, filter).await?;
        files.push(file);
        if table == name::FINDINGS {
            let agreeing = agreement::of(objects, &segments).await?;
            files.push(groups_table(objects, keys, &path, agreeing, &capture, &limits).await?);
        }
        if table == name::FRAMES {
            frames = Some(path);
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    let stamp = Stamp {
        capture: &capture,
        pass: 1,
        frames: frames.as_deref(),
        base: system.as_ref().and_then(|s| s.physical_base),
        order: order.as_ref(),
        clock: None,
    };
    files.extend(view_tables(objects, keys, &segments, stamp, &limits).await?);
    let recognised = system.as_ref().is_some_and(|s| s.status == "recognised");
    let (coverage, mut gaps) = covered.finish(&plan, recognised);
    let damage = system.as_ref().and_then(|s| s.damage.as_deref());
    gaps.extend(damage.map(|d| format!("views: the kernel is damaged: {d}")));
    gaps.extend(unproved);
    let untold = evidence::untold(&plan, &chosen, evidence.as_deref(), sha256.is_some());
    gaps.extend(untold.filter(|_| gaps.is_empty()));
    if plan.spec.structured && system.is_none() {
        gaps.push("view-system: no row on the system was reported".to_owned());
    }
    let by = frozen.by.unwrap_or_else(|| info.of(&plan));
    let manifest = manifest_of(
        &plan,
        &chosen,
        by,
        Facts {
            evidence,
            sha256,
            coverage,
            gaps,
            system,
            files,
            micros: frozen.micros,
        },
    );
    let captures = captures_table(objects, keys, &manifest, &plan, &capture).await?;
    let mut manifest = manifest;
    manifest.files.push(captures);
    match objects.put_new(&keys.manifest(), to_json(&manifest)?).await {
        Ok(_) => Ok(manifest),
        Err(e) if e.is_conflict() => Ok(job::read(objects.as_ref(), &keys.manifest()).await?.0),
        Err(e) => Err(StoreError::from(e).into()),
    }
}

/// Writes a table; gives what the manifest says of it, and the local file that it was made in.
async fn write_table(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    table: &str,
    segments: &[Segment],
    stamp: Stamp<'_>,
    limits: &QueryLimits,
    filter: Option<&mut dyn Filter>,
) -> Result<(ManifestFile, PathBuf), FinaliseError> {
    let path = limits.spill.join(format!("{table}.parquet"));
    let merged = merge_through(objects, table, segments, stamp, &path, limits, filter).await?;
    tracing::debug!(
        table,
        rows = merged.rows,
        copied = merged.copied,
        "table merged"
    );
    let file = store_table(objects, keys, table, &path, merged).await?;
    Ok((file, path))
}

/// Writes the tables of views. There are many small ones, each of which is several requests: those are made side by side.
async fn view_tables(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    segments: &BTreeMap<String, Vec<Segment>>,
    stamp: Stamp<'_>,
    limits: &QueryLimits,
) -> Result<Vec<ManifestFile>, FinaliseError> {
    let views = segments.iter().filter(|(t, _)| tables::is_view(t));
    let is_small = |of: &[Segment]| of.iter().map(|s| s.bytes).sum::<u64>() <= SMALL;
    let (small, large): (Vec<_>, Vec<_>) = views.partition(|(_, of)| is_small(of));
    let made = |(table, of): (&'_ String, &'_ Vec<Segment>)| {
        let (table, of) = (table.clone(), of.clone());
        async move {
            let made = write_table(objects, keys, &table, &of, stamp, limits, None).await;
            let (file, path) = made?;
            std::fs::remove_file(&path)?;
            Ok::<_, FinaliseError>(file)
        }
        .boxed()
    };
    let all: Vec<BoxFuture<'_, _>> = small.into_iter().map(&made).collect();
    let mut files: Vec<ManifestFile> = futures::stream::iter(all)
        .buffered(SIDE_BY_SIDE)
        .try_collect()
        .await?;
    for view in large {
        files.push(made(view).await?);
    }
    files.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(files)
}

/// Which pages carvers looked at in the order of their file or process.
async fn order_of(
    objects: &Arc<dyn Objects>,
    plan: &Plan,
    segments: Option<&Vec<Segment>>,
) -> Result<Option<Order>, FinaliseError> {
    let Some(segments) = segments else {
        return Ok(None);
    };
    let mut out = Order::new(plan.layout.runs.image_len());
    for s in segments {
        let (data, _) = objects.get(&s.key).await.map_err(StoreError::from)?;
        let damaged = |source| StoreError::Segment {
            what: s.key.clone(),
            source,
        };
        for b in segment_batches(data).map_err(damaged)? {
            ordered_rows(&b.map_err(damaged)?)
                .iter()
                .for_each(|r| out.add(r));
        }
    }
    Ok(Some(out))
}

/// Groups the findings, for whoever lists results.
async fn groups_table(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    findings: &std::path::Path,
    agreeing: Agreement,
    capture: &str,
    limits: &QueryLimits,
) -> Result<ManifestFile, FinaliseError> {
    let path = limits.spill.join(format!("{}.parquet", name::GROUPS));
    let made = group_findings(findings, agreeing, capture, &path, limits).await?;
    store_table(objects, keys, name::GROUPS, &path, made).await
}

/// Stores a table that was made in a local file.
async fn store_table(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    table: &str,
    path: &std::path::Path,
    made: Merged,
) -> Result<ManifestFile, FinaliseError> {
    let (hashed, kind) = (path.to_owned(), tables::kind_column(table));
    let (blake3, kinds) = tokio::task::spawn_blocking(move || {
        let kinds = kind.map(|column| tables::count_by(&hashed, column));
        Ok::<_, FinaliseError>((hash_file(&hashed)?, kinds.transpose()?.unwrap_or_default()))
    })
    .await??;
    let made = ManifestFile {
        key: keys.table(table),
        bytes: made.bytes,
        blake3,
        rows: Some(made.rows),
        kinds,
    };
    once::file(objects, keys, made, path).await
}

fn hash_file(path: &std::path::Path) -> std::io::Result<String> {
    let mut h = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut h)?;
    Ok(h.finalize().to_hex().to_string())
}

impl From<tokio::task::JoinError> for FinaliseError {
    fn from(e: tokio::task::JoinError) -> Self {
        std::io::Error::other(e).into()
    }
}

/// Status and reason of the system view.
async fn system_row(
    objects: &Arc<dyn Objects>,
    segments: Option<&Vec<Segment>>,
) -> Result<Option<tables::SystemRow>, FinaliseError> {
    let Some(Segment { key, .. }) = segments.and_then(|s| s.first()) else {
        return Ok(None);
    };
    let (data, _) = objects.get(key).await.map_err(StoreError::from)?;
    let batches = read_segment(data).map_err(|source| StoreError::Segment {
        what: key.clone(),
        source,
    })?;
    Ok(batches.first().and_then(tables::system_row))
}

/// The one row on the evidence, as a table.
async fn captures_table(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    m: &Manifest,
    plan: &Plan,
    capture: &str,
) -> Result<ManifestFile, FinaliseError> {
    let query = |e: arrow::error::ArrowError| StoreError::Query(e.to_string());
    let batch = tables::captures_batch(m, plan, capture).map_err(query)?;
    let data =
        tables::write_segment(name::CAPTURES, batch.schema(), &[batch]).map_err(|source| {
            StoreError::Segment {
                what: name::CAPTURES.into(),
                source,
            }
        })?;
    let file = ManifestFile {
        key: keys.table(name::CAPTURES),
        bytes: data.len() as u64,
        blake3: blake3::hash(&data).to_hex().to_string(),
        rows: Some(1),
        kinds: BTreeMap::new(),
    };
    once::bytes(objects, keys, file, data).await
}
