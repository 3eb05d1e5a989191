//! Sealing a job: which attempts count, the sorted tables, coverage, and the manifest.
//!
//! Everything here can be done again from the start by another aggregator: the list of commits is
//! frozen by one conditional write, and all that follows depends on that list alone.

use crate::Aggregator;
use ramsift_layers::hash;
use ramsift_proto::TaskId;
use ramsift_proto::v1::{CommitRecord, Outcome, SegmentRef, TaskReport};
use ramsift_store::job::{self, ManifestFile, now_micros, to_json};
use ramsift_store::query::{QueryLimits, merge};
use ramsift_store::tables::{self, CoverageRow, coverage_rows, name, read_segment};
use ramsift_store::{Coverage, Frozen, Keys, Manifest, Objects, Plan, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a job could not be sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinaliseError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The temporary disk.
    #[error("temporary files for sorting: {0}")]
    Temp(#[from] std::io::Error),
    /// Tasks are missing: it is too early.
    #[error("{0} tasks are not settled yet")]
    Early(usize),
    /// The evidence is not what was expected.
    #[error("{0}")]
    Evidence(String),
}

impl FinaliseError {
    /// Whether another try is no use.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Evidence(_))
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

/// Everything read from the records, with one attempt chosen per task.
struct Chosen {
    records: Vec<CommitRecord>,
    /// Commit and attempt by task. The same attempt can stand in two commits, when its worker did
    /// not hear of the first.
    attempts: BTreeMap<String, (String, String)>,
    reports: BTreeMap<String, TaskReport>,
}

/// The attempt that counts for each task: of several, the first in the order of commits, so that
/// every reader of the same list chooses alike. A task that was cut in two counts for nothing;
/// its halves do.
fn choose(records: Vec<CommitRecord>, split: &BTreeSet<String>) -> Chosen {
    let mut attempts = BTreeMap::new();
    let mut reports = BTreeMap::new();
    for (c, r) in records
        .iter()
        .flat_map(|c| c.reports.iter().map(move |r| (c, r)))
    {
        if split.contains(&r.task) || attempts.contains_key(&r.task) {
            continue;
        }
        attempts.insert(r.task.clone(), (c.id.clone(), r.attempt.clone()));
        reports.insert(r.task.clone(), r.clone());
    }
    Chosen {
        records,
        attempts,
        reports,
    }
}

/// Names of tasks that were cut in two.
pub(crate) async fn splits(
    objects: &dyn Objects,
    keys: &Keys,
) -> Result<BTreeSet<String>, StoreError> {
    let folder = keys.splits();
    let all = objects.list(&folder).await?;
    Ok(all
        .into_iter()
        .filter_map(|m| {
            m.key[folder.len()..]
                .strip_suffix(".json")
                .map(str::to_owned)
        })
        .collect())
}

async fn freeze(objects: &dyn Objects, keys: &Keys) -> Result<Frozen, StoreError> {
    if let Some((f, _)) = job::read_opt::<Frozen>(objects, &keys.frozen()).await? {
        return Ok(f);
    }
    let split = splits(objects, keys).await?;
    let chosen = choose(job::commits(objects, keys).await?, &split);
    let frozen = Frozen {
        commits: chosen.records.iter().map(|r| r.id.clone()).collect(),
        chosen: chosen.attempts,
        split,
    };
    match objects.put_new(&keys.frozen(), to_json(&frozen)?).await {
        Ok(_) => Ok(frozen),
        // Another aggregator was faster; its list counts.
        Err(e) if e.is_conflict() => Ok(job::read(objects, &keys.frozen()).await?.0),
        Err(e) => Err(e.into()),
    }
}

/// Every task that the plan calls for, given the splits.
fn expected(plan: &Plan, groups: usize, split: &BTreeSet<String>) -> Vec<String> {
    let mut out = Vec::new();
    let chunks = if plan.spec.unstructured {
        plan.chunk_count
    } else {
        0
    };
    let mut todo: Vec<TaskId> = (0..chunks).map(TaskId::chunk).collect();
    todo.extend(
        (0..groups)
            .filter_map(|g| u32::try_from(g).ok())
            .map(TaskId::Verdict),
    );
    todo.extend(plan.views.iter().cloned().map(TaskId::View));
    while let Some(t) = todo.pop() {
        let name = t.to_string();
        match t.halves() {
            Some(halves) if split.contains(&name) => todo.extend(halves),
            _ => out.push(name),
        }
    }
    out
}

/// Seals a job and writes its tables and manifest. Doing it again changes nothing.
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
    let (plan, _): (Plan, _) = job::read(objects.as_ref(), &keys.plan()).await?;
    let split = splits(objects.as_ref(), &keys).await?;
    let groups = job::read_opt::<ramsift_store::VerdictPlan>(objects.as_ref(), &keys.verdicts())
        .await?
        .map_or(0, |(v, _)| v.groups.len());
    let settled: BTreeSet<String> = job::commits(objects.as_ref(), &keys)
        .await?
        .into_iter()
        .flat_map(|c| c.reports)
        .map(|r| r.task)
        .collect();
    let open = expected(&plan, groups, &split)
        .iter()
        .filter(|t| !settled.contains(*t))
        .count();
    if open > 0 {
        return Err(FinaliseError::Early(open));
    }
    let frozen = freeze(objects.as_ref(), &keys).await?;
    let mut records = Vec::with_capacity(frozen.commits.len());
    for id in &frozen.commits {
        records.push(
            job::read::<CommitRecord>(objects.as_ref(), &keys.commit(id))
                .await?
                .0,
        );
    }
    // The list of splits is frozen with the commits: every aggregator chooses alike.
    let chosen = choose(records, &frozen.split);
    let evidence = evidence_hash(&plan, &chosen);
    let sha256 = evidence_sha256(&plan, &chosen);
    let sha = sha256.as_ref().map(|(h, _)| h.as_str());
    check_expected(&plan, evidence.as_deref(), sha)?;
    let capture = capture_id(&plan, evidence.as_deref());
    let temp = tempfile::tempdir_in(&info.limits.spill)?;
    let mut limits = info.limits.clone();
    limits.spill = temp.path().to_owned();
    let segments = segments_of(objects.as_ref(), &keys, &chosen).await?;
    let mut files = Vec::new();
    let mut coverage = None;
    for table in tables::FINAL {
        let inputs = segments.get(*table).cloned().unwrap_or_default();
        if *table == name::COVERAGE {
            let (c, key) = merge_coverage(objects, &keys, &plan, &chosen, &inputs).await?;
            coverage = Some(c);
            files.push(write_table(objects, &keys, table, &[key], &capture, &limits).await?);
        } else if *table != name::SYSTEM || !inputs.is_empty() {
            files.push(write_table(objects, &keys, table, &inputs, &capture, &limits).await?);
        }
    }
    let (coverage, gaps) = coverage.unwrap_or_default();
    let system = system_row(objects, segments.get(name::SYSTEM)).await?;
    let manifest = manifest_of(
        &plan,
        &chosen,
        info,
        Facts {
            evidence,
            sha256,
            coverage,
            gaps,
            system,
            files,
        },
    );
    let captures = captures_table(objects, &keys, &manifest, &plan, &capture).await?;
    let mut manifest = manifest;
    manifest.files.push(captures);
    match objects.put_new(&keys.manifest(), to_json(&manifest)?).await {
        Ok(_) => Ok(manifest),
        Err(e) if e.is_conflict() => Ok(job::read(objects.as_ref(), &keys.manifest()).await?.0),
        Err(e) => Err(StoreError::from(e).into()),
    }
}

/// BLAKE3 of the evidence from its chunks, when all were read whole.
fn evidence_hash(plan: &Plan, chosen: &Chosen) -> Option<String> {
    if !plan.spec.unstructured {
        return None;
    }
    if plan.chunk_count == 1 {
        let h = &chosen.reports.get("chunk-0")?.hash;
        return (!h.is_empty()).then(|| h.clone());
    }
    let pieces = (0..plan.chunk_count)
        .map(|i| {
            let h = &chosen.reports.get(&TaskId::chunk(i).to_string())?.hash;
            let mut cv = [0u8; 32];
            hex::decode_to_slice(h, &mut cv).ok()?;
            Some(cv)
        })
        .collect::<Option<Vec<_>>>()?;
    Some(hash::whole(&pieces)?.to_hex().to_string())
}

/// SHA-256 of the evidence and where it comes from: the provider, or a pass of our own.
fn evidence_sha256(plan: &Plan, chosen: &Chosen) -> Option<(String, &'static str)> {
    if let ramsift_layers::SourcePin::S3 {
        sha256: Some(s), ..
    } = &plan.pin
    {
        return Some((s.clone(), "the provider's checksum of the full object"));
    }
    let report = chosen
        .reports
        .get("view-sha256")
        .filter(|r| !r.hash.is_empty())?;
    Some((report.hash.clone(), "a sequential pass over every byte"))
}

fn check_expected(
    plan: &Plan,
    blake3: Option<&str>,
    sha256: Option<&str>,
) -> Result<(), FinaliseError> {
    let want = plan.spec.expect_hash.to_ascii_lowercase();
    if want.is_empty() || [blake3, sha256].contains(&Some(want.as_str())) {
        return Ok(());
    }
    Err(FinaliseError::Evidence(format!(
        "the evidence does not have the expected hash {want}: its BLAKE3 is {}, its SHA-256 {}",
        blake3.unwrap_or("not known"),
        sha256.unwrap_or("not known (ask for it with --hash sha256)"),
    )))
}

/// The same for the same evidence wherever it lies; without a hash, of its pin.
fn capture_id(plan: &Plan, blake3: Option<&str>) -> String {
    match blake3 {
        Some(h) => h[..32].to_owned(),
        None => {
            let pin = serde_json::to_vec(&plan.pin).unwrap_or_default();
            format!("pin-{}", &blake3::hash(&pin).to_hex()[..28])
        }
    }
}

/// Segment keys by table, of the chosen attempts only. A segment that also holds rows of attempts
/// that don't count is written again without them.
async fn segments_of(
    objects: &dyn Objects,
    keys: &Keys,
    chosen: &Chosen,
) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
    let counts = |commit: &str, task: &str, attempt: &str| {
        chosen
            .attempts
            .get(task)
            .is_some_and(|(c, a)| c == commit && a == attempt)
    };
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for c in &chosen.records {
        for s in &c.segments {
            let kept = s
                .parts
                .iter()
                .filter(|p| counts(&c.id, &p.task, &p.attempt))
                .count();
            let key = match kept {
                0 => continue,
                n if n == s.parts.len() => s.key.clone(),
                _ => keep(objects, keys, &c.id, s, &counts).await?,
            };
            out.entry(s.table.clone()).or_default().push(key);
        }
        for r in c
            .reports
            .iter()
            .filter(|r| counts(&c.id, &r.task, &r.attempt))
        {
            for s in &r.segments {
                out.entry(s.table.clone()).or_default().push(s.key.clone());
            }
        }
    }
    Ok(out)
}

/// Writes a segment again with the rows of the attempts that count.
async fn keep(
    objects: &dyn Objects,
    keys: &Keys,
    commit: &str,
    s: &SegmentRef,
    counts: &(dyn Fn(&str, &str, &str) -> bool + Sync),
) -> Result<String, StoreError> {
    let damaged = |source| StoreError::Segment {
        what: s.key.clone(),
        source,
    };
    let (data, _) = objects.get(&s.key).await?;
    let batches = read_segment(data).map_err(damaged)?;
    let schema = tables::schema(&s.table)
        .ok_or_else(|| StoreError::Query(format!("there is no table {}", s.table)))?;
    let whole = arrow::compute::concat_batches(&schema, &batches).map_err(|e| damaged(e.into()))?;
    let (mut at, mut kept) = (0usize, Vec::new());
    for p in &s.parts {
        let n = usize::try_from(p.rows)
            .unwrap_or(usize::MAX)
            .min(whole.num_rows() - at);
        if counts(commit, &p.task, &p.attempt) {
            kept.push(whole.slice(at, n));
        }
        at += n;
    }
    let data = tables::write_segment(schema, &kept).map_err(damaged)?;
    let key = keys.segment(&format!("kept-{commit}"), &s.table);
    objects.put(&key, data.into()).await?;
    Ok(key)
}

async fn write_table(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    table: &str,
    segments: &[String],
    capture: &str,
    limits: &QueryLimits,
) -> Result<ManifestFile, FinaliseError> {
    let path = limits.spill.join(format!("{table}.parquet"));
    let merged = merge(objects, table, segments, capture, 1, &path, limits).await?;
    let hashed = path.clone();
    let blake3 = tokio::task::spawn_blocking(move || hash_file(&hashed)).await??;
    let key = keys.table(table);
    objects
        .put_file(&key, &path)
        .await
        .map_err(StoreError::from)?;
    std::fs::remove_file(&path)?;
    Ok(ManifestFile {
        key,
        bytes: merged.bytes,
        blake3,
        rows: Some(merged.rows),
    })
}

fn hash_file(path: &std::path::Path) -> std::io::Result<String> {
    let mut h = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut h)?;
    Ok(h.finalize().to_hex().to_string())
}

impl From<tokio::task::JoinError> for FinaliseError {
    fn from(e: tokio::task::JoinError) -> Self {
        Self::Temp(std::io::Error::other(e))
    }
}

type Sums = (BTreeMap<String, Coverage>, Vec<String>);

/// Gaps that the manifest names one by one.
const MAX_GAPS: usize = 1000;

/// All coverage rows, neighbours of one outcome joined; bytes by outcome and engine; the gaps.
async fn merge_coverage(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    plan: &Plan,
    chosen: &Chosen,
    segments: &[String],
) -> Result<(Sums, String), FinaliseError> {
    let mut rows = Vec::new();
    for key in segments {
        let (data, _) = objects.get(key).await.map_err(StoreError::from)?;
        let batches = read_segment(data).map_err(|source| StoreError::Segment {
            what: key.clone(),
            source,
        })?;
        rows.extend(batches.iter().flat_map(coverage_rows));
    }
    let mut engines = vec!["carvers"];
    if !plan.spec.rules_digest.is_empty() {
        engines.push("yara");
    }
    let mut more = Vec::new();
    if plan.spec.unstructured {
        for engine in &engines {
            for r in plan.layout.runs.missing() {
                more.push(gap(engine, "missing", r.start, r.end, "not in the file"));
            }
        }
        for (task, r) in &chosen.reports {
            if r.outcome() == Outcome::Failed {
                for range in core_of(plan, task) {
                    for engine in &engines {
                        more.push(gap(engine, "failed", range.start, range.end, &r.reason));
                    }
                }
            }
        }
    }
    rows.extend(more);
    let rows = join(rows);
    let (mut sums, mut gaps) = (BTreeMap::<String, Coverage>::new(), Vec::new());
    for (task, r) in &chosen.reports {
        let of_image = matches!(task.parse(), Ok(TaskId::Chunk { .. }));
        // The reason of a view that is not possible stands in the view itself.
        if r.outcome() == Outcome::Failed && !of_image && task != "view-system" {
            gaps.push(format!("{task} failed: {}", r.reason));
        }
    }
    for r in &rows {
        let n = r.end - r.start;
        let c = sums.entry(r.engine.clone()).or_default();
        match r.outcome.as_str() {
            "scanned" => c.scanned += n,
            "sparse" => c.sparse += n,
            "partial" => c.partial += n,
            "failed" => c.failed += n,
            "missing" => c.missing += n,
            _ => {}
        }
        let gap = !matches!(r.outcome.as_str(), "scanned" | "sparse");
        if gap && gaps.len() == MAX_GAPS {
            gaps.push("and more, in the coverage table".to_owned());
        } else if gap && gaps.len() < MAX_GAPS {
            gaps.push(format!(
                "{}: {} bytes from image offset {:#x} {}: {}",
                r.engine,
                n,
                r.start,
                r.outcome,
                r.reason.as_deref().unwrap_or("no reason given")
            ));
        }
    }
    // Engines that work on artifacts or rules don't cover the image byte by byte.
    sums.retain(|e, _| engines.contains(&e.as_str()));
    let mut b = tables::CoverageBuilder::default();
    rows.iter().for_each(|r| b.push(r));
    let batch = b.finish().map_err(|e| StoreError::Query(e.to_string()))?;
    let schema = tables::schema(name::COVERAGE)
        .ok_or_else(|| StoreError::Query("coverage has no schema".into()))?;
    let batches: Vec<_> = batch.into_iter().collect();
    let data = tables::write_segment(schema, &batches).map_err(|source| StoreError::Segment {
        what: "coverage".into(),
        source,
    })?;
    let key = keys.segment("final", name::COVERAGE);
    objects
        .put(&key, data.into())
        .await
        .map_err(StoreError::from)?;
    Ok(((sums, gaps), key))
}

fn gap(engine: &str, outcome: &str, start: u64, end: u64, why: &str) -> CoverageRow {
    CoverageRow {
        engine: engine.to_owned(),
        outcome: outcome.to_owned(),
        start,
        end,
        reason: Some(why.to_owned()),
    }
}

/// The image ranges that a chunk task owns.
fn core_of(plan: &Plan, task: &str) -> Vec<std::ops::Range<u64>> {
    let Ok(id) = task.parse::<TaskId>() else {
        return Vec::new();
    };
    let TaskId::Chunk { index, .. } = &id else {
        return Vec::new();
    };
    let start = index * plan.chunks.size;
    let whole = start..(start + plan.chunks.size).min(plan.pin.size());
    plan.layout.runs.stored_in(id.narrow(whole))
}

/// Sorts rows, drops doubles, joins neighbours of one outcome and reason.
fn join(mut rows: Vec<CoverageRow>) -> Vec<CoverageRow> {
    rows.sort_by(|a, b| {
        (&a.engine, a.start, a.end, &a.outcome, &a.reason)
            .cmp(&(&b.engine, b.start, b.end, &b.outcome, &b.reason))
    });
    rows.dedup();
    let mut out: Vec<CoverageRow> = Vec::with_capacity(rows.len());
    for r in rows {
        match out.last_mut() {
            Some(l)
                if l.engine == r.engine
                    && l.outcome == r.outcome
                    && l.reason == r.reason
                    && l.end == r.start =>
            {
                l.end = r.end;
            }
            _ => out.push(r),
        }
    }
    out
}

/// Status and reason of the system view.
async fn system_row(
    objects: &Arc<dyn Objects>,
    segments: Option<&Vec<String>>,
) -> Result<Option<tables::SystemRow>, FinaliseError> {
    let Some(key) = segments.and_then(|s| s.first()) else {
        return Ok(None);
    };
    let (data, _) = objects.get(key).await.map_err(StoreError::from)?;
    let batches = read_segment(data).map_err(|source| StoreError::Segment {
        what: key.clone(),
        source,
    })?;
    Ok(batches.first().and_then(tables::system_row))
}

/// What was found out while sealing.
struct Facts {
    evidence: Option<String>,
    sha256: Option<(String, &'static str)>,
    coverage: BTreeMap<String, Coverage>,
    gaps: Vec<String>,
    system: Option<tables::SystemRow>,
    files: Vec<ManifestFile>,
}

fn manifest_of(plan: &Plan, chosen: &Chosen, info: &FinaliseInfo, f: Facts) -> Manifest {
    let complete = f.gaps.is_empty() && !f.coverage.values().any(Coverage::has_gaps);
    let (evidence_sha256, from) = f.sha256.map(|(h, from)| (h, from.to_owned())).unzip();
    let structured = match &f.system {
        _ if !plan.spec.structured => Err("not asked for".to_owned()),
        Some(s) if s.status == "recognised" => Ok(()),
        Some(s) => Err(s.reason.clone().unwrap_or_else(|| "no reason given".into())),
        None => Err("the system view gave no row".into()),
    };
    let analyses = match (plan.spec.unstructured, structured) {
        (true, Ok(())) => "structured + unstructured".to_owned(),
        (true, Err(why)) => format!("unstructured only: {why}"),
        (false, Ok(())) => "structured only".to_owned(),
        (false, Err(why)) => format!("neither: {why}"),
    };
    let artifacts: BTreeMap<&str, u64> = chosen
        .reports
        .values()
        .flat_map(|r| &r.objects)
        .map(|o| (o.key.as_str(), o.bytes))
        .collect();
    Manifest {
        job: plan.spec.job.clone(),
        spec: plan.spec.clone(),
        evidence: plan.pin.clone(),
        evidence_bytes: plan.pin.size(),
        evidence_blake3: f.evidence,
        evidence_sha256,
        evidence_sha256_from: from,
        format: plan.layout.format.clone(),
        image_bytes: plan.layout.runs.image_len(),
        verdict: if complete {
            "complete"
        } else {
            "complete with gaps"
        }
        .to_owned(),
        coverage: f.coverage,
        gaps: f.gaps,
        analyses,
        carvers: info.carvers.clone(),
        carvers_digest: (info.carvers_digest)(plan),
        rules_digest: Some(plan.spec.rules_digest.clone()).filter(|d| !d.is_empty()),
        clamav: info.clamav.clone().filter(|_| plan.spec.clamav),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: f.files,
        // The name of such an object is the hash of its content.
        artifacts: artifacts
            .into_iter()
            .map(|(key, bytes)| ManifestFile {
                key: key.to_owned(),
                bytes,
                blake3: key
                    .rsplit('/')
                    .next()
                    .and_then(|n| n.strip_suffix(".pack"))
                    .unwrap_or_default()
                    .to_owned(),
                rows: None,
            })
            .collect(),
        started_micros: plan.spec.submitted_micros,
        finished_micros: now_micros(),
    }
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
        tables::write_segment(batch.schema(), &[batch]).map_err(|source| StoreError::Segment {
            what: name::CAPTURES.into(),
            source,
        })?;
    let key = keys.table(name::CAPTURES);
    let file = ManifestFile {
        key: key.clone(),
        bytes: data.len() as u64,
        blake3: blake3::hash(&data).to_hex().to_string(),
        rows: Some(1),
    };
    objects
        .put(&key, data.into())
        .await
        .map_err(StoreError::from)?;
    Ok(file)
}
