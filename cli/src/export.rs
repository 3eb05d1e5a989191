//! `ramsift export` and `ramsift artifact`: results in other formats, recovered files as files.

use crate::args::{ArtifactArgs, ExportArgs, ExportFormat};
use crate::artifacts::{COLUMNS, Opened, Stored};
use crate::config::Config;
use crate::overview::rows_of_query;
use crate::rows::{write_csv, write_json};
use crate::setup;
use crate::terminal::{say, shown_json};
use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use futures::StreamExt;
use ramsift_store::Keys;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::is_view;
use std::io::Write;

/// Timesketch wants `message`, `datetime` and `timestamp_desc` in every line; further attributes are its columns.
/// Source: Timesketch documentation, "Create timeline from JSON/JSONL/CSV file".
const TIMESKETCH: &str = "SELECT message, \
    to_char(coalesce(time, inferred_time), '%Y-%m-%dT%H:%M:%S%.6f+00:00') AS datetime, \
    CASE WHEN time IS NULL THEN concat(time_kind, ' (inferred: ', inferred_from, ')') \
    ELSE time_kind END AS timestamp_desc, \
    source AS data_type, host AS hostname, program, pid, owner, page_state, raw_time, image_offset, physical_address, \
    fields, capture \
    FROM events WHERE coalesce(time, inferred_time) IS NOT NULL \
    ORDER BY coalesce(time, inferred_time), image_offset";

/// Rows as Timesketch takes them: the members of `fields` are attributes of their own, and nothing is null.
fn write_timesketch(out: &mut dyn Write, b: &RecordBatch) -> Result<()> {
    let mut lines = Vec::new();
    write_json(&mut lines, b, false)?;
    for line in lines.split(|c| *c == b'\n').filter(|l| !l.is_empty()) {
        let mut row: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line)?;
        let fields = row.remove("fields");
        let fields = fields.as_ref().and_then(|f| f.as_str()).unwrap_or("{}");
        if let Ok(serde_json::Value::Object(more)) = serde_json::from_str(fields) {
            for (k, v) in more {
                // A name of ours stays.
                let k = if row.contains_key(&k) {
                    format!("field_{k}")
                } else {
                    k
                };
                row.insert(k, v);
            }
        }
        row.retain(|_, v| !v.is_null());
        let text = serde_json::to_string(&row)?;
        writeln!(out, "{}", shown_json(&text))?;
    }
    Ok(())
}

/// `ramsift export`
pub(crate) async fn export(config: &Config, args: ExportArgs) -> Result<u8> {
    let objects = setup::existing_store(config).await?;
    let job = setup::pick_job(objects.as_ref(), args.job.as_deref()).await?;
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    let there = t.register_jobs(std::slice::from_ref(&job)).await?;
    if there.is_empty() {
        bail!("job {job} has no results yet; see ramsift status {job}");
    }
    std::fs::create_dir_all(&args.to).with_context(|| format!("folder {}", args.to.display()))?;
    let timesketch = args.format == ExportFormat::Timesketch;
    let tables = match (args.table.is_empty(), timesketch) {
        (_, true) => vec!["events".to_owned()],
        (true, false) => there.clone(),
        (false, false) => args.table.clone(),
    };
    for table in tables {
        if !there.contains(&table) {
            let names: Vec<&str> = there.iter().map(String::as_str).collect();
            return Err(crate::suggest::unknown("table", &table, &names));
        }
        let ending = match args.format {
            ExportFormat::Jsonl => "jsonl",
            ExportFormat::Csv => "csv",
            ExportFormat::Parquet => "parquet",
            ExportFormat::Timesketch => "timesketch.jsonl",
        };
        let path = args.to.join(format!("{table}.{ending}"));
        let file =
            std::fs::File::create(&path).with_context(|| format!("file {}", path.display()))?;
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        if args.format == ExportFormat::Parquet {
            let (data, _) = objects.get(&Keys::new(&job).table(&table)).await?;
            out.write_all(&data)?;
        } else {
            let sql = if timesketch {
                TIMESKETCH.to_owned()
            } else {
                format!("SELECT * FROM {table}")
            };
            let mut rows = t.stream(&sql).await?;
            let mut first = true;
            while let Some(b) = rows.next().await {
                let b = b?;
                let view = is_view(&table);
                match args.format {
                    ExportFormat::Csv => {
                        write_csv(&mut out, &b, view, std::mem::take(&mut first), args.raw_csv)?;
                    }
                    ExportFormat::Timesketch => write_timesketch(&mut out, &b)?,
                    _ => write_json(&mut out, &b, view)?,
                }
            }
        }
        out.flush()?;
        say!("{}", path.display());
    }
    Ok(0)
}

/// `ramsift artifact`
pub(crate) async fn artifact(config: &Config, args: ArtifactArgs) -> Result<u8> {
    let objects = setup::existing_store(config).await?;
    let wanted = args.sha256.to_ascii_lowercase();
    if wanted.len() < 4 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!(
            "{:?} is no SHA-256: give at least its first 4 hex digits",
            args.sha256
        );
    }
    let jobs = match &args.job {
        Some(j) => vec![setup::pick_job(objects.as_ref(), Some(j)).await?],
        None => objects.list_folders("jobs/").await?,
    };
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    t.register_jobs(&jobs).await?;
    // A copy before one that needs its capture.
    let sql = format!(
        "SELECT DISTINCT ON (a.sha256) a.kind, c.job, {} FROM artifacts a JOIN captures c ON a.capture = c.capture \
         WHERE starts_with(a.sha256, '{wanted}') ORDER BY a.sha256, a.object LIMIT 2",
        COLUMNS.replace(", ", ", a.").replace("sha256", "a.sha256")
    );
    let found = rows_of_query(&t, &sql).await?;
    let Some((kind, job, row)) = found
        .first()
        .and_then(|r| Some((r.first()?, r.get(1)?, r.get(2..)?)))
    else {
        bail!("no artifact has a SHA-256 that begins with {wanted}");
    };
    if found.len() > 1 {
        bail!("more than one artifact has a SHA-256 that begins with {wanted}: give more digits");
    }
    let stored = Stored::of(row)?;
    let sha = row[0].clone();
    let moved = args.evidence.as_deref();
    let data = Opened::new(config, objects, job, moved)
        .content(&stored)
        .await?;
    let to = args
        .to
        .unwrap_or_else(|| format!("{}.{kind}", &sha[..16]).into());
    if to.as_os_str() == "-" {
        let mut out = crate::terminal::content();
        out.write_all(&data)?;
        out.flush()?;
    } else {
        std::fs::write(&to, &data).with_context(|| format!("file {}", to.display()))?;
        say!("{}", to.display());
    }
    Ok(0)
}
