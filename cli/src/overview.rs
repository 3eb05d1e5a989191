//! `ramsift overview`: one page about a job. What matters most is at its top.

use crate::args::OverviewArgs;
use crate::config::Config;
use crate::results::session;
use crate::terminal::{Shown, count, say};
use crate::{glue, terminal};
use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use indicatif::HumanBytes;
use ramsift_store::job::read;
use ramsift_store::query::Tables;
use ramsift_store::tables::{kind_column, name};
use ramsift_store::{Keys, Manifest};

/// Rows of one section.
const ROWS: usize = 12;

/// The rows of a statement as text; a statement that can't be answered (a view that is not there) gives none.
pub(crate) async fn texts(t: &Tables, sql: &str) -> Vec<Vec<String>> {
    let batches = match t.collect(sql).await {
        Ok(b) => b,
        Err(e) => {
            tracing::debug!(error = %e, sql, "section left out");
            return Vec::new();
        }
    };
    batches.iter().flat_map(rows_of).collect()
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

fn joined(r: &[String]) -> String {
    r.iter()
        .filter(|c| !c.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join("  ")
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: OverviewArgs) -> Result<u8> {
    let objects = glue::existing_store(config).await?;
    let job = glue::pick_job(objects.as_ref(), args.job.as_deref()).await?;
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
    machine(&t, &m).await;
    people(&t, &job).await;
    network(&t, &job).await;
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

async fn machine(t: &Tables, m: &Manifest) {
    let system = texts(
        t,
        "SELECT os, release, architecture, coalesce(banner, reason) FROM system",
    )
    .await;
    section("system", &system, joined, 1, "");
    let names = "SELECT nodename, release, version FROM linux_uname ORDER BY processes DESC";
    section(
        "machine",
        &texts(t, names).await,
        joined,
        3,
        "view linux/uname",
    );
    let clock = "SELECT boot, captured, uptime_s FROM linux_boottime LIMIT 1";
    let shape = |r: &[String]| {
        let up = r[2].parse::<u64>().map_or_else(
            |_| String::new(),
            |s| format!(", up {} h {} min", s / 3600, s / 60 % 60),
        );
        format!("started {}, captured {}{up}", r[0], r[1])
    };
    section("clock", &texts(t, clock).await, shape, 1, "");
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
    let containers = "SELECT container, min(runtime), min(hostname), count(*) FROM linux_namespaces WHERE container IS NOT NULL GROUP BY container ORDER BY 4 DESC";
    let shape = |r: &[String]| format!("{:.12} {} {} ({} processes)", r[0], r[1], r[2], r[3]);
    section(
        "containers",
        &texts(t, containers).await,
        shape,
        5,
        "view linux/namespaces",
    );
}

async fn people(t: &Tables, job: &str) {
    let who = "SELECT uid, count(*) AS n, array_to_string(array_slice(array_agg(DISTINCT comm), 1, 6), ' ') FROM linux_pslist \
               WHERE NOT kernel_thread GROUP BY uid ORDER BY n DESC";
    section(
        "users",
        &texts(t, who).await,
        |r| format!("uid {}: {} processes ({})", r[0], r[1], r[2]),
        6,
        "view linux/creds",
    );
    let logins = "SELECT * FROM (SELECT coalesce(time, inferred_time) AS at, message FROM events WHERE source = 'sshd' \
                  AND (message LIKE 'Accepted %' OR message LIKE 'Failed %') \
                  UNION ALL SELECT time, concat(kind, ' ', \"user\", ' on ', line, ' from ', coalesce(host, address, 'here')) \
                  FROM linux_logins WHERE kind IN ('login', 'failed')) ORDER BY at DESC LIMIT 50";
    section(
        "logins",
        &texts(t, logins).await,
        joined,
        5,
        &format!("ramsift logins {job}"),
    );
    let typed = "SELECT time, \"user\", program, command FROM linux_history ORDER BY time DESC NULLS LAST LIMIT 200";
    let shape = joined;
    section(
        "typed",
        &texts(t, typed).await,
        shape,
        8,
        &format!("ramsift history {job}"),
    );
}

async fn network(t: &Tables, job: &str) {
    let own = "SELECT interface, address, prefix FROM linux_ip_addr WHERE address IS NOT NULL AND interface <> 'lo'";
    section(
        "addresses",
        &texts(t, own).await,
        |r| format!("{} {}/{}", r[0], r[1], r[2]),
        6,
        "view linux/ip_addr",
    );
    let listening = "SELECT DISTINCT protocol, local, local_port, comm, pid FROM linux_sockstat WHERE state = 'LISTEN' AND local_port IS NOT NULL ORDER BY local_port";
    let shape = |r: &[String]| format!("{} {}:{} {}[{}]", r[0], r[1], r[2], r[3], r[4]);
    section(
        "listening",
        &texts(t, listening).await,
        shape,
        8,
        &format!("ramsift view sockstat {job}"),
    );
    let peers = "SELECT DISTINCT protocol, remote, remote_port, state, comm, pid FROM linux_sockstat WHERE remote IS NOT NULL AND remote_port > 0 ORDER BY remote";
    let shape = |r: &[String]| format!("{} {}:{} {} {}[{}]", r[0], r[1], r[2], r[3], r[4], r[5]);
    section(
        "connected",
        &texts(t, peers).await,
        shape,
        10,
        &format!("ramsift view sockstat {job}"),
    );
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
    if has("SELECT 1 FROM linux_pslist LIMIT 1").await {
        hints.push(at("view pstree"));
    }
    if has("SELECT 1 FROM events LIMIT 1").await {
        // The last hour before the capture; where the machine's clock is not known, before the newest event.
        for (newest, table) in [
            ("captured", "linux_boottime"),
            ("coalesce(time, inferred_time)", "events"),
        ] {
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
