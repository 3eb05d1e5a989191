//! What a job has found so far: the rows that its commit records name, chosen as sealing would choose them now. Nothing is
//! written.

use super::choose::{choose, rows_that_count, splits};
use arrow::array::RecordBatch;
use ramsift_proto::TaskId;
use ramsift_proto::v1::TaskReport;
use ramsift_store::{Keys, Objects, Plan, StoreError, commits, job};
use std::collections::{BTreeMap, BTreeSet};

/// Where the rows of one table are.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Segments all rows of which count.
    pub segments: Vec<String>,
    /// The rows that count of segments that hold others too.
    pub rows: Vec<RecordBatch>,
}

/// What is committed of a job that is not sealed.
#[derive(Clone, Debug, Default)]
pub struct SoFar {
    /// By table.
    pub tables: BTreeMap<String, Committed>,
    /// The part of the capture's chunks that is settled, from 0 to 1.
    pub share: f64,
}

/// Reads the commit records of a job; `None` where it is not planned yet.
pub async fn so_far(objects: &dyn Objects, job: &str) -> Result<Option<SoFar>, StoreError> {
    let keys = Keys::new(job);
    let Some((plan, _)) = job::read_opt::<Plan>(objects, &keys.plan()).await? else {
        return Ok(None);
    };
    let split = splits(objects, &keys).await?;
    let chosen = choose(commits::all(objects, &keys).await?, &split);
    let counts = |commit: &str, task: &str, attempt: &str| {
        let one = chosen.attempts.get(task);
        one.is_some_and(|(c, a)| c == commit && a == attempt)
    };
    let mut out = SoFar {
        share: share(&plan, &chosen.reports, &split),
        ..SoFar::default()
    };
    for c in &chosen.records {
        for s in &c.segments {
            let of = |p: &&ramsift_proto::v1::SegmentPart| counts(&c.id, &p.task, &p.attempt);
            let kept = s.parts.iter().filter(of).count();
            if kept == 0 {
                continue;
            }
            let table = out.tables.entry(s.table.clone()).or_default();
            if kept == s.parts.len() {
                table.segments.push(s.key.clone());
            } else {
                let (_, rows) = rows_that_count(objects, &c.id, s, &counts).await?;
                table.rows.extend(rows);
            }
        }
        for r in &c.reports {
            if counts(&c.id, &r.task, &r.attempt) {
                for s in &r.segments {
                    let table = out.tables.entry(s.table.clone()).or_default();
                    table.segments.push(s.key.clone());
                }
            }
        }
    }
    Ok(Some(out))
}

/// The part of the chunks that is settled; halves of a chunk that was cut count as such.
fn share(plan: &Plan, reports: &BTreeMap<String, TaskReport>, split: &BTreeSet<String>) -> f64 {
    fn of(t: &TaskId, reports: &BTreeMap<String, TaskReport>, split: &BTreeSet<String>) -> f64 {
        let name = t.to_string();
        match t.halves() {
            Some(halves) if split.contains(&name) => {
                halves.iter().map(|h| of(h, reports, split)).sum::<f64>() / 2.0
            }
            _ if reports.contains_key(&name) => 1.0,
            _ => 0.0,
        }
    }
    if !plan.spec.unstructured || plan.chunk_count == 0 {
        return 0.0;
    }
    let done: f64 = (0..plan.chunk_count)
        .map(|i| of(&TaskId::chunk(i), reports, split))
        .sum();
    done / plan.chunk_count as f64
}
