//! `ramsift results` and `ramsift query`: tables for people and for programs.

use crate::args::{QueryArgs, ResultsArgs};
use crate::config::Config;
use crate::overview::texts;
use crate::terminal::{Shown, tell};
use crate::{rows, setup, suggest};
use anyhow::{Result, bail};
use arrow::array::{AsArray, RecordBatch};
use ramsift_aggregator::so_far;
use ramsift_os::table::Table;
use ramsift_os::{View, views};
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::name;
use ramsift_store::{Objects, StoreError};
use ramsift_structured_worker::{batch, table_name};
use std::sync::Arc;

/// A text as an SQL literal.
pub(crate) fn quote(s: &str) -> String {
    format!("'{}'", s.replace('\'', "''"))
}

/// A session over the tables of jobs. Views without rows have their tables.
pub(crate) async fn session(
    objects: Arc<dyn Objects>,
    jobs: &[String],
) -> Result<(Tables, Vec<String>)> {
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    let mut there = t.register_jobs(jobs).await?;
    if let ([job], true) = (jobs, there.is_empty()) {
        there = unfinished(&t, objects.as_ref(), job).await?;
    }
    if there.iter().any(|n| n == name::VIEWS) {
        // Of the captured systems alone: others have no tables here.
        let systems = "SELECT DISTINCT split_part(view, '/', 1) FROM views";
        let systems = texts(&t, systems).await.concat();
        let own = |v: &&View| {
            let system = v.name.split('/').next();
            system.is_some_and(|s| systems.iter().any(|own| own == s))
        };
        for v in views().filter(own) {
            let table = table_name(v.name);
            if !there.contains(&table) {
                let own = batch(&Table::new(v.columns))?;
                let schema = ramsift_store::tables::finished_schema(&table, &own.schema());
                t.register_batch(&table, RecordBatch::new_empty(schema))?;
            }
        }
    }
    there.sort();
    Ok((t, there))
}

/// Registers what a job that is not sealed has committed, and says how much that is. Gives the names of its tables.
async fn unfinished(t: &Tables, objects: &dyn Objects, job: &str) -> Result<Vec<String>> {
    let Some(now) = so_far(objects, job).await? else {
        return Ok(Vec::new());
    };
    if now.tables.is_empty() {
        return Ok(Vec::new());
    }
    tell!(
        "so far: {:.0} % of the chunks of {}; it is not finished: owners, order and verdicts come at its end",
        100.0 * now.share,
        Shown(job)
    );
    for (name, rows) in &now.tables {
        t.register_unfinished(name, &rows.segments, rows.rows.clone())
            .await?;
    }
    let there: Vec<String> = now.tables.into_keys().collect();
    t.register_empty(&there)?;
    Ok(there)
}

/// `ramsift results`
pub(crate) async fn results(config: &Config, args: ResultsArgs) -> Result<u8> {
    let objects = setup::existing_store(config).await?;
    let jobs = if args.all {
        objects.list_folders("jobs/").await?
    } else {
        vec![setup::pick_job(objects.as_ref(), args.job.as_deref()).await?]
    };
    let (t, there) = session(objects, &jobs).await?;
    if there.is_empty() {
        bail!(
            "no results yet; see ramsift status {}",
            jobs.first().map_or("", String::as_str)
        );
    }
    let grouped = there.iter().any(|n| n == name::GROUPS);
    check_names(&t, &args, grouped).await?;
    let mut ask = Ask::of(&args, grouped);
    if let Order::Groups(filter) = &mut ask.order
        && let Some(n) = reach(&t, filter, args.limit).await?
    {
        *filter = format!("({filter}) AND position < {n}");
    }
    let n = rows::print(t.stream(&ask.sql(args.limit)).await?, &args.how, false).await?;
    // A list that ends where it was cut must say so, but nobody counts for a program that reads on.
    if args.limit > 0 && n == args.limit as u64 {
        let all = crate::view::count(&t, &ask.count_sql()).await?;
        rows::cut(n, all, ask.what);
    }
    Ok(0)
}

/// Groups that are looked at first; sixteen times as many each time that those don't suffice.
const FIRST: u64 = 1 << 16;

/// How many of the first groups hold as many rows as are asked for, so that a list of a few does not read thousands of
/// millions; `None`: all are needed, or nothing is asked of them.
async fn reach(t: &Tables, filter: &str, limit: usize) -> Result<Option<u64>> {
    if limit == 0 || filter == "true" {
        return Ok(None);
    }
    let all = crate::view::count(t, "SELECT count(*) FROM groups").await?;
    let mut first = FIRST;
    while first < all {
        let sql = format!("SELECT count(*) FROM groups WHERE position < {first} AND ({filter})");
        if crate::view::count(t, &sql).await? >= limit as u64 {
            return Ok(Some(first));
        }
        first = first.saturating_mul(16);
    }
    Ok(None)
}

/// A kind, a rule or a source that is none in these results, with what may have been meant.
async fn check_names(t: &Tables, a: &ResultsArgs, grouped: bool) -> Result<()> {
    // Groups hold every name that findings do, in fewer rows.
    let findings = if grouped { "groups" } else { "findings" };
    let known = async |sql: String| -> Result<Vec<String>> {
        let mut out = Vec::new();
        for b in t.collect(&sql).await? {
            out.extend(
                b.column(0)
                    .as_string::<i32>()
                    .iter()
                    .flatten()
                    .map(str::to_owned),
            );
        }
        Ok(out)
    };
    let timeline = a.since.is_some() || a.until.is_some();
    if let Some(kind) = a
        .kind
        .as_ref()
        .filter(|k| timeline || !KINDS.contains(&k.as_str()))
    {
        let (column, table) = if timeline {
            ("source", "events")
        } else {
            ("kind", findings)
        };
        let all = known(format!("SELECT DISTINCT {column} FROM {table} ORDER BY 1")).await?;
        if !all.iter().any(|k| k == kind) {
            let mut names: Vec<&str> = all.iter().map(String::as_str).collect();
            names.extend(KINDS.iter().filter(|_| !timeline));
            names.dedup();
            bail!(suggest::unknown(
                if timeline { "source" } else { "kind" },
                kind,
                &names
            ));
        }
    }
    if let Some(rule) = &a.rule {
        let sql = format!(
            "SELECT DISTINCT value FROM {findings} WHERE detector IN ('yara', 'clamav') ORDER BY 1"
        );
        let all = known(sql).await?;
        if !all.iter().any(|r| r == rule) {
            let names: Vec<&str> = all.iter().map(String::as_str).collect();
            bail!(suggest::unknown(
                "rule or signature with a finding",
                rule,
                &names
            ));
        }
    }
    Ok(())
}

/// Kinds of findings that there can be, whether or not there are any.
const KINDS: &[&str] = &[
    "url", "domain", "email", "ipv4", "ipv6", "yara", "av", "anomaly", "attack",
];

/// What the flags ask for.
struct Ask {
    /// The statement without LIMIT.
    select: String,
    order: Order,
    /// What the rows are, for people.
    what: &'static str,
}

/// How rows are ordered.
enum Order {
    /// As the seal ordered the groups that this condition chooses.
    Groups(String),
    /// By columns; the first may be one that only orders.
    By(&'static str),
}

/// Groups over several captures.
const BY_RANK: &str = "severity_rank DESC, captures, rank DESC, count, value";
/// Groups of jobs that have no table of them.
const BY_SEVERITY: &str = "severity_rank DESC, count, first_offset";

impl Ask {
    fn of(a: &ResultsArgs, grouped: bool) -> Self {
        let filter = findings_where(a);
        if a.since.is_some() || a.until.is_some() {
            return timeline(a);
        }
        if a.each {
            return Self {
                select: format!(
                    "SELECT severity, detector, kind, value, image_offset, physical_address, length, scope, \
                     owner, path, artifact, fields, severity_rank FROM findings WHERE {filter}"
                ),
                order: Order::By("severity_rank DESC, image_offset"),
                what: "findings",
            };
        }
        if a.all {
            return Self {
                select: format!(
                    "SELECT severity, kind, value, count(DISTINCT capture) AS captures, sum(count) AS count, \
                     max(rank) AS rank, min(place) AS place, min(agrees) AS agrees, min(capture) AS first_capture, \
                     severity_rank FROM groups WHERE {filter} GROUP BY severity, severity_rank, kind, value"
                ),
                order: Order::By(BY_RANK),
                what: "values",
            };
        }
        if grouped {
            return Self {
                select: format!("SELECT * FROM groups WHERE {filter}"),
                order: Order::Groups(filter),
                what: "values",
            };
        }
        Self {
            select: format!(
                "SELECT severity, kind, value, count(*) AS count, min(image_offset) AS first_offset, detector, severity_rank \
                 FROM findings WHERE {filter} GROUP BY severity, severity_rank, kind, value, detector"
            ),
            order: Order::By(BY_SEVERITY),
            what: "values",
        }
    }

    /// The columns that only order are left out of what is printed.
    fn sql(&self, limit: usize) -> String {
        let order = match &self.order {
            Order::Groups(filter) => return ramsift_store::groups::list(filter, limit),
            Order::By(order) => order,
        };
        let limit = if limit == 0 {
            String::new()
        } else {
            format!(" LIMIT {limit}")
        };
        let helper = if order.starts_with("severity_rank") {
            " EXCLUDE (severity_rank)"
        } else {
            ""
        };
        format!(
            "SELECT *{helper} FROM ({}) ORDER BY {order}{limit}",
            self.select
        )
    }

    fn count_sql(&self) -> String {
        format!("SELECT count(*) FROM ({})", self.select)
    }
}

/// The conditions that the flags ask for.
fn findings_where(a: &ResultsArgs) -> String {
    let mut all = Vec::new();
    if let Some(k) = &a.kind {
        all.push(format!("kind = {}", quote(k)));
    }
    if let Some(r) = &a.rule {
        all.push(format!(
            "detector IN ('yara', 'clamav') AND value = {}",
            quote(r)
        ));
    }
    if let Some(s) = a.severity {
        all.push(format!("severity_rank >= {}", s as u8));
    }
    if let Some(text) = &a.text {
        all.push(format!("strpos(value, {}) > 0", quote(text)));
    }
    if all.is_empty() {
        all.push("true".to_owned());
    }
    all.join(" AND ")
}

/// A time as people write it, as SQL.
fn instant(s: &str) -> String {
    format!(
        "arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')",
        quote(s)
    )
}

/// Events by time. The same line in a file, the journal and a heap is one row that says where else it is.
fn timeline(a: &ResultsArgs) -> Ask {
    let at = "coalesce(time, inferred_time)";
    let mut all = vec![format!("{at} IS NOT NULL")];
    all.extend(
        a.since
            .as_deref()
            .map(|s| format!("{at} >= {}", instant(s))),
    );
    all.extend(a.until.as_deref().map(|u| format!("{at} < {}", instant(u))));
    all.extend(a.kind.as_deref().map(|k| format!("source = {}", quote(k))));
    all.extend(
        a.text
            .as_deref()
            .map(|t| format!("strpos(message, {}) > 0", quote(t))),
    );
    let filter = all.join(" AND ");
    if a.each {
        return Ask {
            select: format!(
                "SELECT {at} AS at, time IS NULL AS inferred, source, host, program, pid, message, owner, image_offset \
                 FROM events WHERE {filter}"
            ),
            order: Order::By("at, image_offset"),
            what: "events",
        };
    }
    Ask {
        select: format!(
            "SELECT min({at}) AS at, bool_and(time IS NULL) AS inferred, min(source) AS source, min(host) AS host, \
             program, pid, message, count(*) AS count, min(image_offset) AS image_offset, \
             array_to_string(array_slice(array_agg(DISTINCT coalesce(owner, page_state)), 1, 4), '; ') AS also_at \
             FROM events WHERE {filter} \
             GROUP BY date_trunc('second', {at}), program, pid, message"
        ),
        order: Order::By("at, image_offset"),
        what: "events",
    }
}

/// An error of the query engine in words that say what to do.
fn explained(e: StoreError, sql: &str, there: &[String]) -> anyhow::Error {
    let text = e.to_string();
    let missing = text
        .split_once("table '")
        .filter(|_| text.contains("not found"))
        .and_then(|(_, rest)| rest.split('\'').next())
        .map(|n| n.rsplit('.').next().unwrap_or(n));
    if let Some(table) = missing {
        let names: Vec<&str> = there.iter().map(String::as_str).collect();
        return suggest::unknown("table", table, &names);
    }
    if text.contains("Resources exhausted") {
        return anyhow::anyhow!(
            "the query needs more than the 256 MiB of memory that it may use, where it can't spill to disk: \
             narrow it with WHERE, select fewer columns, or aggregate ({text})"
        );
    }
    if let StoreError::Disk(why) = &e {
        return anyhow::anyhow!(
            "the query has no room for its temporary files in {} (TMPDIR): {why}",
            std::env::temp_dir().display()
        );
    }
    let plain = text
        .trim_start_matches("query: ")
        .trim_start_matches("SQL error: ")
        .trim_start_matches("Schema error: ")
        .trim_start_matches("Error during planning: ");
    // The names of the parser's own types say nothing.
    let parsed = ["ParserError(\"", "TokenizerError(\""];
    let inner = parsed
        .iter()
        .find_map(|p| plain.strip_prefix(p)?.strip_suffix("\")"));
    let words = match inner {
        Some(why) => format!("this is no SQL statement: {}", why.replace("\\\"", "\"")),
        None => plain.to_owned(),
    };
    anyhow::anyhow!("{words}; the statement was: {sql}")
}

/// `ramsift query`
pub(crate) async fn query(config: &Config, args: QueryArgs) -> Result<u8> {
    let objects = setup::existing_store(config).await?;
    let mut jobs = Vec::new();
    for j in &args.job {
        jobs.push(setup::pick_job(objects.as_ref(), Some(j)).await?);
    }
    if jobs.is_empty() {
        jobs = objects.list_folders("jobs/").await?;
    }
    let (t, there) = session(objects, &jobs).await?;
    if there.is_empty() {
        bail!("there are no finished results in {}", config.store.url);
    }
    let sql = args.sql.trim().trim_end_matches(';');
    let shown = sql
        .split_whitespace()
        .map(str::to_ascii_uppercase)
        .collect::<Vec<_>>();
    if shown.iter().map(String::as_str).eq(["SHOW", "TABLES"]) {
        let list = "SELECT table_name AS \"table\", count(*) AS columns FROM information_schema.columns \
                    WHERE table_schema = 'public' GROUP BY table_name ORDER BY 1";
        rows::print(t.stream(list).await?, &args.how, false).await?;
        return Ok(0);
    }
    let stream = t.stream(sql).await.map_err(|e| explained(e, sql, &there))?;
    rows::print(stream, &args.how, false).await.map_err(|e| {
        match e.downcast::<datafusion::error::DataFusionError>() {
            Ok(e) => explained(StoreError::Query(e.to_string()), sql, &there),
            Err(e) => e,
        }
    })?;
    if shown.first().is_some_and(|w| w == "SHOW") {
        tell!("SHOW TABLES lists the tables, DESCRIBE table its columns");
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_was_meant() {
        let there = ["findings".to_owned(), "events".to_owned()];
        let e = StoreError::Query(
            "Error during planning: table 'datafusion.public.finding' not found".into(),
        );
        let text = explained(e, "SELECT * FROM finding", &there).to_string();
        assert!(text.contains("did you mean findings"), "{text}");
        let e = StoreError::Query("Resources exhausted: HashJoinInput".into());
        assert!(explained(e, "x", &there).to_string().contains("WHERE"));
    }

    #[test]
    fn texts_are_quoted() {
        assert_eq!(quote("it's"), "'it''s'");
    }
}
