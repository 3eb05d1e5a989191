//! Which attempts count, and the segments that hold their rows.

use super::once;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use ramsift_proto::v1::{CommitRecord, SegmentRef, TaskReport, Wishes};
use ramsift_proto::{MAX_LISTS, TaskId};
use ramsift_store::job::{self, to_json};
use ramsift_store::merge::Segment;
use ramsift_store::tables::{self, read_segment};
use ramsift_store::{Frozen, Keys, Objects, Plan, SealedBy, StoreError, VerdictPlan};
use std::collections::{BTreeMap, BTreeSet};

/// Everything read from the records, with one attempt chosen per task.
pub(super) struct Chosen {
    pub(super) records: Vec<CommitRecord>,
    /// Commit and attempt by task. The same attempt can stand in two commits, when its worker did
    /// not hear of the first.
    pub(super) attempts: BTreeMap<String, (String, String)>,
    pub(super) reports: BTreeMap<String, TaskReport>,
}

/// The attempt that counts for each task: of several, the first in the order of commits, so that
/// every reader of the same list chooses alike. A task that was cut in two counts for nothing;
/// its halves do.
pub(super) fn choose(records: Vec<CommitRecord>, split: &BTreeSet<String>) -> Chosen {
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

impl Chosen {
    /// Forgets reports on tasks that the job doesn't have.
    pub(super) fn keep(&mut self, closed: &BTreeSet<String>) {
        for task in self.reports.keys().filter(|t| !closed.contains(*t)) {
            tracing::warn!(
                task,
                "a report on a task that the job does not have was left out"
            );
        }
        self.attempts.retain(|t, _| closed.contains(t));
        self.reports.retain(|t, _| closed.contains(t));
    }
}

/// Every task of a job, as its plan and the reports that count have it: views ask for more views and lists.
pub(super) fn closed_set<'a>(
    plan: &Plan,
    groups: &Groups,
    split: &BTreeSet<String>,
    reports: impl Iterator<Item = &'a TaskReport> + Clone,
) -> BTreeSet<String> {
    let mut closed = BTreeSet::new();
    loop {
        let mut seen = BTreeSet::new();
        // Of several attempts the first counts, and so what it asks for.
        let first = reports.clone().filter(|r| seen.insert(r.task.as_str()));
        let asks = first
            .filter(|r| closed.contains(&r.task) && matches!(r.task.parse(), Ok(TaskId::View(_))));
        let wishes: Vec<Wishes> = asks.filter_map(|r| r.wishes.clone()).collect();
        let all: BTreeSet<String> = expected(plan, groups, &wishes, split).into_iter().collect();
        if all.len() == closed.len() {
            return closed;
        }
        closed = all;
    }
}

/// Names of tasks that were cut in two.
pub(super) async fn splits(
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

/// Fixes the commits that count, once; who does says what the manifest says of the program.
pub(super) async fn freeze(
    objects: &dyn Objects,
    keys: &Keys,
    by: SealedBy,
    records: &[CommitRecord],
    split: BTreeSet<String>,
) -> Result<Frozen, StoreError> {
    if let Some((f, _)) = job::read_opt::<Frozen>(objects, &keys.frozen()).await? {
        return Ok(f);
    }
    let chosen = choose(records.to_vec(), &split);
    let frozen = Frozen {
        commits: chosen.records.iter().map(|r| r.id.clone()).collect(),
        chosen: chosen.attempts,
        split,
        micros: job::now_micros(),
        by: Some(by),
    };
    match objects.put_new(&keys.frozen(), to_json(&frozen)?).await {
        Ok(_) => Ok(frozen),
        // Another aggregator was faster; its list counts.
        Err(e) if e.is_conflict() => Ok(job::read(objects, &keys.frozen()).await?.0),
        Err(e) => Err(e.into()),
    }
}

/// Groups of rules to decide.
pub(super) struct Groups {
    /// Over the image.
    pub(super) image: u32,
    /// For each process; `None` where they are not planned.
    pub(super) processes: Option<u32>,
}

impl Groups {
    pub(super) async fn read(
        objects: &dyn Objects,
        keys: &Keys,
        plan: &Plan,
    ) -> Result<Self, StoreError> {
        if plan.spec.rules_digest.is_empty() {
            return Ok(Self {
                image: 0,
                processes: None,
            });
        }
        let count = |p: (VerdictPlan, String)| u32::try_from(p.0.groups.len()).unwrap_or(u32::MAX);
        let image = job::read_opt(objects, &keys.verdicts()).await?;
        let processes = job::read_opt(objects, &keys.process_verdicts()).await?;
        Ok(Self {
            image: image.map_or(0, count),
            processes: processes.map(count),
        })
    }
}

/// Every task that the plan calls for, given the splits and what views ask for.
fn expected(
    plan: &Plan,
    groups: &Groups,
    wishes: &[Wishes],
    split: &BTreeSet<String>,
) -> Vec<String> {
    let mut out = Vec::new();
    let chunks = if plan.spec.unstructured {
        plan.chunk_count
    } else {
        0
    };
    let mut todo: Vec<TaskId> = (0..chunks).map(TaskId::chunk).collect();
    todo.extend((0..groups.image).map(TaskId::Verdict));
    for w in wishes {
        todo.extend((0..w.memory.min(MAX_LISTS)).map(TaskId::Memory));
        todo.extend((0..w.files.min(MAX_LISTS)).map(TaskId::Files));
        todo.extend(w.views.iter().cloned().map(TaskId::View));
    }
    let rules = !plan.spec.rules_digest.is_empty();
    if rules && wishes.iter().any(|w| w.memory > 0) {
        // Not planned yet: one that can't be settled.
        todo.extend((0..groups.processes.unwrap_or(1)).map(TaskId::Process));
    }
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

/// Segment keys by table, of the chosen attempts only. A segment that also holds rows of attempts
/// that don't count is written again without them.
pub(super) async fn segments_of(
    objects: &dyn Objects,
    keys: &Keys,
    chosen: &Chosen,
) -> Result<BTreeMap<String, Vec<Segment>>, StoreError> {
    let counts = |commit: &str, task: &str, attempt: &str| {
        chosen
            .attempts
            .get(task)
            .is_some_and(|(c, a)| c == commit && a == attempt)
    };
    let stored = |s: &SegmentRef| Segment {
        key: s.key.clone(),
        bytes: s.bytes,
    };
    let mut out: BTreeMap<String, Vec<Segment>> = BTreeMap::new();
    for c in &chosen.records {
        for s in &c.segments {
            let kept = s
                .parts
                .iter()
                .filter(|p| counts(&c.id, &p.task, &p.attempt))
                .count();
            let segment = match kept {
                0 => continue,
                n if n == s.parts.len() => stored(s),
                _ => keep(objects, keys, &c.id, s, &counts).await?,
            };
            out.entry(s.table.clone()).or_default().push(segment);
        }
        for r in c
            .reports
            .iter()
            .filter(|r| counts(&c.id, &r.task, &r.attempt))
        {
            for s in &r.segments {
                out.entry(s.table.clone()).or_default().push(stored(s));
            }
        }
    }
    Ok(out)
}

/// The rows of a segment that are of attempts that count.
pub(super) async fn rows_that_count(
    objects: &dyn Objects,
    commit: &str,
    s: &SegmentRef,
    counts: &(dyn Fn(&str, &str, &str) -> bool + Sync),
) -> Result<(SchemaRef, Vec<RecordBatch>), StoreError> {
    let damaged = |source| StoreError::Segment {
        what: s.key.clone(),
        source,
    };
    let (data, _) = objects.get(&s.key).await?;
    let batches = read_segment(data).map_err(damaged)?;
    let schema = batches
        .first()
        .and_then(|b| tables::accepted(&s.table, &b.schema()))
        .ok_or_else(|| StoreError::Query(format!("{} is no segment of {}", s.key, s.table)))?;
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
    Ok((schema, kept))
}

/// Writes a segment again with the rows of the attempts that count.
async fn keep(
    objects: &dyn Objects,
    keys: &Keys,
    commit: &str,
    s: &SegmentRef,
    counts: &(dyn Fn(&str, &str, &str) -> bool + Sync),
) -> Result<Segment, StoreError> {
    let (schema, kept) = rows_that_count(objects, commit, s, counts).await?;
    let data =
        tables::write_segment(&s.table, schema, &kept).map_err(|source| StoreError::Segment {
            what: s.key.clone(),
            source,
        })?;
    let key = keys.segment(&format!("kept-{commit}"), &s.table);
    let bytes = once::segment(objects, &key, data).await?;
    Ok(Segment { key, bytes })
}
