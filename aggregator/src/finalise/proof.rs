//! What reports claim, held against what is there: each tells of its own bytes, and has the rows that it says.
//!
//! That the outcomes of each engine sum to the image is proved where the coverage table is written (coverage.rs).

use super::FinaliseError;
use super::choose::Chosen;
use super::cores::Cores;
use super::coverage::engines;
use arrow::array::RecordBatch;
use ramsift_proto::TaskId;
use ramsift_proto::v1::{Outcome, SegmentPart, SegmentRef, TaskReport};
use ramsift_store::merge::{Segment, segment_facts};
use ramsift_store::tables::{CoverageRow, accepted, coverage_rows, name, read_segment};
use ramsift_store::{Objects, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Segments looked at side by side.
const AHEAD: usize = 8;
/// Sentences at most.
const MAX: usize = 100;

/// Says where reports claim what is not so.
pub(super) async fn of(
    objects: &Arc<dyn Objects>,
    cores: &Cores<'_>,
    chosen: &Chosen,
    closed: &BTreeSet<String>,
) -> Result<Vec<String>, FinaliseError> {
    let mut out: Vec<String> = closed
        .iter()
        .filter(|t| !chosen.reports.contains_key(*t))
        .map(|t| format!("{t}: no report on it was stored"))
        .collect();
    let claims = claims(chosen);
    for some in claims.chunks(AHEAD) {
        let looks = some.iter().map(|c| rows_of(objects, c));
        let said = futures::future::try_join_all(looks).await?;
        out.extend(said.into_iter().flatten());
    }
    if cores.plan().spec.unstructured {
        let told = told(objects, &claims).await?;
        for (task, r) in &chosen.reports {
            let rows = told.get(task.as_str()).map_or(&[][..], Vec::as_slice);
            out.extend(ranges(cores, task, r, rows).await?);
        }
    }
    if out.len() > MAX {
        let more = out.len() - MAX;
        out.truncate(MAX);
        out.push(format!("and {more} more reports that don't hold"));
    }
    Ok(out)
}

/// A segment that reports which count have rows in, and whose rows they are.
struct Claim<'a> {
    segment: &'a SegmentRef,
    parts: Vec<(&'a str, u64, bool)>,
}

impl Claim<'_> {
    /// Its rows by the tasks that count, in the order of the parts.
    fn split(&self, all: &[RecordBatch]) -> Vec<(&str, Vec<CoverageRow>)> {
        let rows: Vec<CoverageRow> = all.iter().flat_map(coverage_rows).collect();
        let mut rest = rows.as_slice();
        let mut out = Vec::new();
        for (task, n, counts) in &self.parts {
            let n = usize::try_from(*n).unwrap_or(usize::MAX).min(rest.len());
            let (own, tail) = rest.split_at(n);
            rest = tail;
            if *counts {
                out.push((*task, own.to_vec()));
            }
        }
        out
    }

    /// The task that tells of it, for people.
    fn task(&self) -> &str {
        let counts = self.parts.iter().find(|p| p.2);
        counts.map_or("", |p| p.0)
    }
}

fn claims(chosen: &Chosen) -> Vec<Claim<'_>> {
    let counts = |commit: &str, task: &str, attempt: &str| {
        let of = chosen.attempts.get(task);
        of.is_some_and(|(c, a)| c == commit && a == attempt)
    };
    let mut out = Vec::new();
    for c in &chosen.records {
        for segment in &c.segments {
            let part = |p: &'_ SegmentPart| counts(&c.id, &p.task, &p.attempt);
            let parts: Vec<_> = segment
                .parts
                .iter()
                .map(|p| (p.task.as_str(), p.rows, part(p)))
                .collect();
            if parts.iter().any(|p| p.2) {
                out.push(Claim { segment, parts });
            }
        }
        let own = c
            .reports
            .iter()
            .filter(|r| counts(&c.id, &r.task, &r.attempt));
        for r in own {
            out.extend(r.segments.iter().map(|segment| Claim {
                segment,
                parts: vec![(r.task.as_str(), segment.rows, true)],
            }));
        }
    }
    out
}

/// Holds the counts of a segment against its footer.
async fn rows_of(
    objects: &Arc<dyn Objects>,
    c: &Claim<'_>,
) -> Result<Option<String>, FinaliseError> {
    let s = c.segment;
    let of = Segment {
        key: s.key.clone(),
        bytes: s.bytes,
    };
    let broken = |why: String| FinaliseError::Evidence(format!("{}: {}: {why}", c.task(), s.key));
    let (rows, schema) = match segment_facts(objects, &of).await {
        Ok(facts) => facts,
        Err(e @ StoreError::Segment { .. }) => return Err(broken(e.to_string())),
        Err(e) => {
            // A segment that is gone or cut short stays so.
            return Err(match objects.head(&s.key).await {
                Ok(m) if m.size != s.bytes => broken(format!(
                    "it has {} bytes and should have {}",
                    m.size, s.bytes
                )),
                Err(gone) if gone.is_not_found() => broken("it is gone".into()),
                _ => e.into(),
            });
        }
    };
    if accepted(&s.table, &schema).is_none() {
        return Err(broken(format!("these are no rows of {}", s.table)));
    }
    let parts: u64 = c.parts.iter().fold(0, |n, p| n.saturating_add(p.1));
    if rows == s.rows && rows == parts {
        return Ok(None);
    }
    Ok(Some(format!(
        "{}: {} has {rows} rows in {}, and {} were reported",
        c.task(),
        s.key,
        s.table,
        if parts == rows { s.rows } else { parts }
    )))
}

/// What each task says of its coverage.
async fn told<'a>(
    objects: &Arc<dyn Objects>,
    claims: &'a [Claim<'a>],
) -> Result<BTreeMap<&'a str, Vec<CoverageRow>>, FinaliseError> {
    let mut out: BTreeMap<&str, Vec<CoverageRow>> = BTreeMap::new();
    for c in claims.iter().filter(|c| c.segment.table == name::COVERAGE) {
        let (data, _) = objects
            .get(&c.segment.key)
            .await
            .map_err(StoreError::from)?;
        let all = read_segment(data).map_err(|source| StoreError::Segment {
            what: c.segment.key.clone(),
            source,
        })?;
        for (task, rows) in c.split(&all) {
            out.entry(task).or_default().extend(rows);
        }
    }
    Ok(out)
}

/// Whether a task tells of each of its own bytes once, and of no others.
async fn ranges(
    cores: &Cores<'_>,
    task: &str,
    r: &TaskReport,
    rows: &[CoverageRow],
) -> Result<Option<String>, FinaliseError> {
    let engines = engines(cores.plan());
    let of_image = |c: &&CoverageRow| engines.contains(&c.engine.as_str());
    let chunk = matches!(task.parse(), Ok(TaskId::Chunk { .. }));
    if !chunk || r.outcome() != Outcome::Done {
        let stray = rows.iter().find(of_image);
        return Ok(stray.map(|s| format!("{task} tells of {}, which is not its own", s.engine)));
    }
    let own = joined(cores.of(task).await?);
    let wrong = engines.iter().find_map(|e| {
        let mine = rows.iter().filter(|c| c.engine == *e);
        let told: Vec<Range<u64>> = mine.map(|c| c.start..c.end).collect();
        let len = |rs: &[Range<u64>]| {
            rs.iter()
                .map(|r| r.end.saturating_sub(r.start))
                .sum::<u64>()
        };
        let (n, of) = (len(&told), len(&own));
        let told = joined(told);
        if told == own && n == of {
            return None;
        }
        let within = told
            .iter()
            .all(|t| own.iter().any(|o| o.start <= t.start && t.end <= o.end));
        Some(if within {
            format!("{task}: {e} tell of {n} of its {of} bytes")
        } else {
            format!("{task}: {e} tell of bytes that are not its own")
        })
    });
    Ok(wrong)
}

/// Ranges in order, those that touch or overlap as one.
fn joined(mut all: Vec<Range<u64>>) -> Vec<Range<u64>> {
    all.retain(|r| r.start < r.end);
    all.sort_by_key(|r| (r.start, r.end));
    let mut out: Vec<Range<u64>> = Vec::new();
    for r in all {
        match out.last_mut() {
            Some(l) if r.start <= l.end => l.end = l.end.max(r.end),
            _ => out.push(r),
        }
    }
    out
}
