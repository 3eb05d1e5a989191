//! `ramsift results` and `ramsift query`: tables for people and for programs.

use crate::args::{QueryArgs, ResultsArgs, Rows};
use crate::config::Config;
use crate::glue;
use anyhow::{Result, bail};
use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use ramsift_store::query::{QueryLimits, Tables};
use std::io::Write;

/// A text as an SQL literal.
fn quote(s: &str) -> String {
    format!("'{}'", s.replace('\'', "''"))
}

/// `ramsift results`
pub(crate) async fn results(config: &Config, args: ResultsArgs) -> Result<u8> {
    let objects = glue::existing_store(config).await?;
    let job = glue::pick_job(objects.as_ref(), args.job.as_deref()).await?;
    let t = Tables::new(objects, &QueryLimits::default())?;
    if t.register_jobs(std::slice::from_ref(&job))
        .await?
        .is_empty()
    {
        bail!("job {job} has no results yet; see ramsift status {job}");
    }
    let sql = if args.since.is_some() || args.until.is_some() {
        timeline_sql(&args)
    } else if args.each {
        each_sql(&args)
    } else {
        groups_sql(&args)
    };
    print(t.stream(&sql).await?, args.format).await?;
    Ok(0)
}

/// The conditions that the flags ask for.
fn findings_where(a: &ResultsArgs) -> String {
    let mut all = vec!["true".to_owned()];
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
    all.join(" AND ")
}

fn limit(a: &ResultsArgs) -> String {
    if a.limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {}", a.limit)
    }
}

/// Groups by detector and value: loudest first, then by how many detectors agree on one place or
/// artifact, then the rarest.
fn groups_sql(a: &ResultsArgs) -> String {
    format!(
        "WITH f AS (SELECT *, coalesce(artifact, cast(image_offset AS varchar)) AS place \
         FROM findings WHERE {}), \
         agree AS (SELECT place, count(DISTINCT detector) AS detectors FROM f GROUP BY place) \
         SELECT severity, detector, kind, value, count(*) AS count, \
         max(agree.detectors) AS agree, min(image_offset) AS first_offset \
         FROM f JOIN agree ON f.place = agree.place \
         GROUP BY severity, severity_rank, detector, kind, value \
         ORDER BY severity_rank DESC, agree DESC, count, first_offset{}",
        findings_where(a),
        limit(a)
    )
}

fn each_sql(a: &ResultsArgs) -> String {
    format!(
        "SELECT severity, detector, kind, value, image_offset, physical_address, length, scope, \
         path, artifact, fields FROM findings WHERE {} \
         ORDER BY severity_rank DESC, image_offset{}",
        findings_where(a),
        limit(a)
    )
}

fn timeline_sql(a: &ResultsArgs) -> String {
    let at = "coalesce(time, inferred_time)";
    let mut all = vec![format!("{at} IS NOT NULL")];
    if let Some(s) = &a.since {
        all.push(format!(
            "{at} >= arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')",
            quote(s)
        ));
    }
    if let Some(u) = &a.until {
        all.push(format!(
            "{at} < arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')",
            quote(u)
        ));
    }
    if let Some(k) = &a.kind {
        all.push(format!("source = {}", quote(k)));
    }
    if let Some(text) = &a.text {
        all.push(format!("strpos(message, {}) > 0", quote(text)));
    }
    format!(
        "SELECT time, inferred_time, source, host, program, message, image_offset FROM events \
         WHERE {} ORDER BY {at}, image_offset{}",
        all.join(" AND "),
        limit(a)
    )
}

/// `ramsift query`
pub(crate) async fn query(config: &Config, args: QueryArgs) -> Result<u8> {
    let objects = glue::existing_store(config).await?;
    let mut jobs = Vec::new();
    for j in &args.job {
        jobs.push(glue::pick_job(objects.as_ref(), Some(j)).await?);
    }
    if jobs.is_empty() {
        jobs = objects.list_folders("jobs/").await?;
    }
    let t = Tables::new(objects, &QueryLimits::default())?;
    if t.register_jobs(&jobs).await?.is_empty() {
        bail!("there are no finished results in {}", config.store.url);
    }
    print(t.stream(&args.sql).await?, args.format).await?;
    Ok(0)
}

/// Prints rows as they come; a closed pipe ends it quietly.
async fn print(mut rows: SendableRecordBatchStream, format: Rows) -> Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let schema = rows.schema();
    let mut table = Vec::new();
    let mut first = true;
    while let Some(b) = rows.next().await {
        let b = b?;
        let done = match format {
            Rows::Table => {
                table.push(b);
                Ok(())
            }
            Rows::Jsonl => write_json(&mut out, &b),
            Rows::Csv => write_csv(&mut out, &b, std::mem::take(&mut first)),
        };
        match done {
            Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(is_closed) => return Ok(()),
            other => other?,
        }
    }
    if format == Rows::Table {
        if table.is_empty() {
            table.push(RecordBatch::new_empty(schema));
        }
        return match write_table(&mut out, &table) {
            Err(e) if is_closed(&e) => Ok(()),
            other => Ok(other?),
        };
    }
    out.flush()?;
    Ok(())
}

fn is_closed(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::BrokenPipe
}

/// One JSON object a line; bytes as hex.
pub(crate) fn write_json(out: &mut dyn Write, b: &RecordBatch) -> Result<()> {
    let mut w =
        arrow::json::WriterBuilder::new().build::<_, arrow::json::writer::LineDelimited>(&mut *out);
    w.write(b)?;
    w.finish()?;
    Ok(())
}

pub(crate) fn write_csv(out: &mut dyn Write, b: &RecordBatch, header: bool) -> Result<()> {
    let mut w = arrow::csv::WriterBuilder::new()
        .with_header(header)
        .build(&mut *out);
    w.write(b)?;
    Ok(())
}

/// Widest cell of a table.
const WIDEST: usize = 70;

/// Aligned columns; evidence can hold anything, so control characters never reach the terminal.
fn write_table(out: &mut dyn Write, batches: &[RecordBatch]) -> std::io::Result<()> {
    let other = |e: arrow::error::ArrowError| std::io::Error::other(e);
    let Some(first) = batches.first() else {
        return Ok(());
    };
    let schema = first.schema();
    let mut rows: Vec<Vec<String>> =
        vec![schema.fields().iter().map(|f| f.name().clone()).collect()];
    let options = FormatOptions::default().with_null("-");
    for b in batches {
        let columns = b
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options).map_err(other))
            .collect::<Result<Vec<_>, _>>()?;
        for i in 0..b.num_rows() {
            rows.push(
                columns
                    .iter()
                    .map(|c| clean(&c.value(i).to_string()))
                    .collect(),
            );
        }
    }
    let n = schema.fields().len();
    let widths: Vec<usize> = (0..n)
        .map(|c| {
            rows.iter()
                .map(|r| r[c].chars().count())
                .max()
                .unwrap_or(0)
                .min(WIDEST)
        })
        .collect();
    for r in &rows {
        let mut line = String::new();
        for (i, (cell, w)) in r.iter().zip(&widths).enumerate() {
            let last = i + 1 == n;
            let shown: String = if cell.chars().count() > *w && !last {
                cell.chars()
                    .take(w.saturating_sub(1))
                    .chain(['…'])
                    .collect()
            } else {
                cell.clone()
            };
            line.push_str(&shown);
            if !last {
                let pad = w.saturating_sub(shown.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

/// Text without control characters.
pub(crate) fn clean(s: &str) -> String {
    s.chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect()
}
