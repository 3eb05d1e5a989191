//! What a job that is not finished has found so far: its loudest findings, and what was not looked at.

use crate::overview::texts;
use crate::terminal::Shown;
use ramsift_aggregator::so_far;
use ramsift_store::Objects;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::name;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a look at a running job may take. A large one has many rows; its progress is worth more than a complete list.
const LIMIT: Duration = Duration::from_secs(10);
/// Time between two looks, at least.
const PAUSE: Duration = Duration::from_secs(15);

/// The findings above info, by value.
const LOUD: &str = "SELECT severity, detector, value, count(*), min(image_offset) FROM findings WHERE severity_rank > 0 \
    GROUP BY severity, severity_rank, detector, value ORDER BY severity_rank DESC, count(*), min(image_offset), value LIMIT 10";
/// What was not looked at in full.
const GAPS: &str = "SELECT engine, outcome, sum(\"end\" - start), coalesce(min(reason), '') FROM coverage \
    WHERE outcome NOT IN ('scanned', 'sparse') GROUP BY engine, outcome ORDER BY engine, outcome LIMIT 10";

/// Lines that say what a job has found so far.
async fn look(objects: &Arc<dyn Objects>, job: &str) -> anyhow::Result<Vec<String>> {
    let Some(now) = so_far(objects.as_ref(), job).await? else {
        return Ok(Vec::new());
    };
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    for table in [name::FINDINGS, name::COVERAGE] {
        if let Some(rows) = now.tables.get(table) {
            t.register_unfinished(table, &rows.segments, rows.rows.clone())
                .await?;
        }
    }
    t.register_empty(&now.tables.into_keys().collect::<Vec<_>>())?;
    let mut out = Vec::new();
    for r in texts(&t, LOUD).await {
        let at = r[4].parse::<u64>().unwrap_or(0);
        let what = format!("{} {}", r[1], r[2]);
        out.push(format!(
            "{}: {} ({}x, first at {at:#x})",
            r[0],
            Shown(&what),
            r[3]
        ));
    }
    for r in texts(&t, GAPS).await {
        let why = if r[3].is_empty() {
            String::new()
        } else {
            format!(": {}", Shown(&r[3]))
        };
        out.push(format!("gap: {} bytes {} by {}{why}", r[2], r[1], r[0]));
    }
    Ok(out)
}

/// Looks at a running job from time to time, and says what is new.
pub(crate) struct Loudest {
    /// The store, where it can be read from here.
    objects: Option<Arc<dyn Objects>>,
    job: String,
    said: BTreeSet<String>,
    looked: Instant,
}

impl Loudest {
    pub(crate) fn new(objects: Option<Arc<dyn Objects>>, job: &str) -> Self {
        Self {
            objects,
            job: job.to_owned(),
            said: BTreeSet::new(),
            looked: Instant::now(),
        }
    }

    /// What there is so far, or why that is not known.
    pub(crate) async fn all(&self) -> Vec<String> {
        let Some(objects) = &self.objects else {
            return vec!["found so far: not known, the store can't be read from here".to_owned()];
        };
        match tokio::time::timeout(LIMIT, look(objects, &self.job)).await {
            Ok(Ok(lines)) => lines,
            Ok(Err(e)) => vec![format!(
                "found so far: not known: {}",
                Shown(format!("{e:#}"))
            )],
            Err(_) => vec![format!(
                "found so far: not read within {} s; ramsift results {} reads all of it",
                LIMIT.as_secs(),
                self.job
            )],
        }
    }

    /// What is new since this was asked last, when it is time to look again.
    pub(crate) async fn news(&mut self) -> Vec<String> {
        if self.objects.is_none() || self.looked.elapsed() < PAUSE {
            return Vec::new();
        }
        let all = self.all().await;
        self.looked = Instant::now();
        let new = |l: &String| {
            // A count that has grown is no news.
            let known = l.split(" (").next().unwrap_or(l).to_owned();
            !l.starts_with("found so far") && self.said.insert(known)
        };
        all.into_iter().filter(new).collect()
    }
}
