//! `ramsift overview`: one page about a job. What matters most is at its top.

use crate::args::OverviewArgs;
use crate::config::Config;
use crate::results::session;
use crate::terminal::{Shown, count, say};
use crate::{setup, terminal};
use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use indicatif::HumanBytes;
use ramsift_os::SYSTEMS;
use ramsift_os::page::joined;
use ramsift_os::view::Purpose;
use ramsift_store::job::read;
use ramsift_store::query::Tables;
use ramsift_store::tables::{kind_column, name};
use ramsift_store::{Keys, Manifest};
use ramsift_structured_worker::table_name;

/// Rows of one section.
const ROWS: usize = 12;

/// The rows of a statement as text; a statement that can't be answered (a view that is not there) gives none.
pub(crate) async fn texts(t: &Tables, sql: &str) -> Vec<Vec<String>> {
    rows_of_query(t, sql).await.unwrap_or_else(|e| {
        tracing::debug!(error = %e, sql, "section left out");
        Vec::new()
    })
}

/// Rows of a query as texts, nulls empty.
pub(crate) async fn rows_of_query(t: &Tables, sql: &str) -> Result<Vec<Vec<String>>> {
    let batches = t.collect(sql).await?;
    Ok(batches.iter().flat_map(rows_of).collect())
}

fn rows_of(b: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default()
        .with_null("")
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%SZ"));
    let columns: Vec<_> = b
        .columns()
        .iter()
        .filter_map(|c| ArrayFormatter::try_new(c.as_ref(), &options).ok())
        .collect();
    (0..b.num_rows())
        .map(|i| columns.iter().map(|c| c.value(i).to_string()).collect())
        .collect()
}

/// Prints a section: its title beside its first row. Says how many rows there are where not all are shown.
pub(crate) fn section(
    title: &str,
    rows: &[Vec<String>],
    shape: impl Fn(&[String]) -> String,
    most: usize,
    more: &str,
) {
    for (i, r) in rows.iter().take(most).enumerate() {
        let title = if i == 0 { title } else { "" };
        say!("{title:<12} {}", Shown(shape(r)));
    }
    if rows.len() > most {
        say!(
            "{:<12} … {} more: {more}",
            "",
            count((rows.len() - most) as u64)
        );
    }
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: OverviewArgs) -> Result<u8> {
    let objects = setup::existing_store(config).await?;
    let job = setup::pick_job(objects.as_ref(), args.job.as_deref()).await?;
    let (m, _): (Manifest, _) = read(objects.as_ref(), &Keys::new(&job).manifest())
        .await
        .with_context(|| {
            format!("job {job} has no manifest: it is not finished; see ramsift status {job}")
        })?;
    let (t, _) = session(objects, std::slice::from_ref(&job)).await?;
    let at = |what: &str| format!("ramsift --store {} {what} {job}", config.store.url);
    say!("{}", Shown(m.evidence.to_string()));
    say!("{:<12} {}", "verdict", m.verdict);
    section(
        "",
        &m.gaps.iter().map(|g| vec![g.clone()]).collect::<Vec<_>>(),
        |r| format!("gap: {}", r[0]),
        5,
        "SELECT * FROM coverage",
    );
    let loud = "SELECT severity, kind, value, count, place FROM groups WHERE severity_rank > 0 ORDER BY position";
    let loud = texts(&t, &format!("{loud} LIMIT 200")).await;
    section(
        "loudest",
        &loud,
        |r| format!("{:<8} {:<8} {} ({}x, {})", r[0], r[1], r[2], r[3], r[4]),
        ROWS,
        &at("results"),
    );
    if loud.is_empty() {
        say!("{:<12} nothing above info", "loudest");
    }
    machine(&t, &m, &at).await;
    let sql = "SELECT kind, value, place, agrees, count FROM groups WHERE severity_rank = 0 AND reserved IS NULL ORDER BY position LIMIT 13";
    let worth = texts(&t, sql).await;
    let shape = |r: &[String]| {
        let agrees = if r[3].is_empty() {
            String::new()
        } else {
            format!(", also {}", r[3])
        };
        format!("{:<8} {} ({}x, {}{agrees})", r[0], r[1], r[4], r[2])
    };
    section("look at", &worth, shape, ROWS, &at("results"));
    counts(&t, &m).await;
    next(&t, &at).await;
    Ok(0)
}

async fn machine(t: &Tables, m: &Manifest, at: &impl Fn(&str) -> String) {
    let system = texts(
        t,
        "SELECT os, release, architecture, coalesce(banner, reason) FROM system",
    )
    .await;
    section("system", &system, joined, 1, "");
    say!(
        "{:<12} {} {}, {}",
        "capture",
        HumanBytes(m.image_bytes),
        m.format,
        m.analyses
    );
    if let Some(h) = &m.evidence_blake3 {
        say!("{:<12} {h}", "blake3");
    }
    let os = system.first().and_then(|r| r.first());
    let Some(system) = SYSTEMS.iter().find(|s| os.is_some_and(|os| os == s.name())) else {
        return;
    };
    for s in system.overview() {
        let rows = texts(t, s.sql).await;
        section(s.title, &rows, s.shape, s.most, &at(s.command));
    }
}

/// Rows by kind: counted when the job was sealed, or now where the program that did so was an older one.
async fn counts(t: &Tables, m: &Manifest) {
    for table in [name::FINDINGS, name::EVENTS, name::ARTIFACTS] {
        let Some(column) = kind_column(table) else {
            continue;
        };
        let sealed = m
            .files
            .iter()
            .find(|f| f.key.ends_with(&format!("/{table}.parquet")));
        let mut kinds: Vec<(String, u64)> = match sealed {
            Some(f) if !f.kinds.is_empty() || f.rows == Some(0) => {
                f.kinds.clone().into_iter().collect()
            }
            _ => texts(
                t,
                &format!("SELECT {column}, count(*) FROM {table} GROUP BY {column}"),
            )
            .await
            .into_iter()
            .filter_map(|mut r| Some((r.first_mut().map(std::mem::take)?, r.get(1)?.parse().ok()?)))
            .collect(),
        };
        kinds.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let shown: Vec<String> = kinds
            .iter()
            .map(|(kind, n)| format!("{kind} {}", count(*n)))
            .collect();
        say!(
            "{table:<12} {}",
            Shown(if shown.is_empty() {
                "none".to_owned()
            } else {
                shown.join(", ")
            })
        );
    }
}

/// Where to look next, by what was found.
async fn next(t: &Tables, at: &impl Fn(&str) -> String) {
    let mut hints = Vec::new();
    let has = async |sql: &str| !texts(t, sql).await.is_empty();
    if has("SELECT 1 FROM groups WHERE kind = 'anomaly' LIMIT 1").await {
        hints.push(at("results --kind anomaly"));
    }
    let table = |purpose| {
        let views = SYSTEMS.iter().filter_map(move |s| s.view_for(purpose));
        views.map(|v| table_name(v.name))
    };
    for list in table(Purpose::Processes) {
        if has(&format!("SELECT 1 FROM {list} LIMIT 1")).await {
            hints.push(at("view pstree"));
            break;
        }
    }
    if has("SELECT 1 FROM events LIMIT 1").await {
        // The last hour before the capture; where the machine's clock is not known, before the newest event.
        let clocks = table(Purpose::Clock).map(|clock| ("captured", clock));
        let events = ("coalesce(time, inferred_time)", name::EVENTS.to_owned());
        for (newest, table) in clocks.chain([events]) {
            let sql = format!(
                "SELECT to_char(max({newest}) - interval '1 hour', '%Y-%m-%dT%H:%M:%SZ') FROM {table}"
            );
            let last = texts(t, &sql).await;
            let last = last.first().and_then(|r| r.first());
            if let Some(since) = last.filter(|s| !s.is_empty()) {
                hints.push(format!("{} --since {since}", at("results")));
                break;
            }
        }
    }
    if terminal::closed() {
        return;
    }
    for (i, h) in hints.iter().enumerate() {
        say!("{:<12} {}", if i == 0 { "next" } else { "" }, Shown(h));
    }
}

/// The first cell of a statement, as text.
pub(crate) async fn cell(t: &Tables, sql: &str) -> Option<String> {
    let b = t.collect(sql).await.ok()?;
    let b = b.into_iter().find(|b| b.num_rows() > 0)?;
    let c = b.column(0).as_string_opt::<i32>()?;
    c.is_valid(0).then(|| c.value(0).to_owned())
}
