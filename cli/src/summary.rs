//! What a person wants to know when a scan is over.

use anyhow::Result;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, UInt8Type, UInt64Type};
use indicatif::{HumanBytes, HumanCount};
use ramsift_layers::Severity;
use ramsift_store::job::read;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::{Keys, Manifest, Objects};
use std::sync::Arc;

/// Counts of one column.
async fn counts(t: &Tables, sql: &str) -> Result<Vec<(String, u64)>> {
    let mut out = Vec::new();
    for b in t.collect(sql).await? {
        let name = b.column(0).as_string::<i32>();
        let n = b.column(1).as_primitive::<Int64Type>();
        out.extend((0..b.num_rows()).map(|i| {
            (
                name.value(i).to_owned(),
                u64::try_from(n.value(i)).unwrap_or(0),
            )
        }));
    }
    Ok(out)
}

/// Groups of findings with a severity above info, loudest first.
const LOUD: &str = "WITH agree AS (SELECT image_offset, count(DISTINCT detector) AS detectors \
    FROM findings WHERE severity_rank > 0 GROUP BY image_offset) \
    SELECT f.severity, f.detector, f.value, count(*) AS n, min(f.image_offset) AS first, \
    max(f.severity_rank) AS rank, max(a.detectors) AS agree \
    FROM findings f JOIN agree a ON f.image_offset = a.image_offset \
    WHERE f.severity_rank > 0 \
    GROUP BY f.severity, f.detector, f.value ORDER BY rank DESC, agree DESC, n, first LIMIT 10";

/// Prints the summary of a finished job. Returns its loudest severity.
pub(crate) async fn print(
    objects: &Arc<dyn Objects>,
    job: &str,
    store: &str,
) -> Result<Option<Severity>> {
    let keys = Keys::new(job);
    let (m, _): (Manifest, _) = read(objects.as_ref(), &keys.manifest()).await?;
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    t.register_jobs(&[job.to_owned()]).await?;
    let seconds = (m.finished_micros - m.started_micros).max(0) as f64 / 1e6;
    println!(
        "{}  {} {}, {seconds:.1} s",
        m.evidence,
        HumanBytes(m.image_bytes),
        m.format
    );
    if let Some(h) = &m.evidence_blake3 {
        println!("  blake3    {h}");
    }
    println!("  analyses  {}", m.analyses);
    println!("  coverage  {}", m.verdict);
    for (engine, c) in &m.coverage {
        let mut parts = vec![
            format!("{} scanned", HumanBytes(c.scanned)),
            format!("{} sparse", HumanBytes(c.sparse)),
        ];
        for (n, what) in [
            (c.partial, "partial"),
            (c.failed, "failed"),
            (c.missing, "missing"),
        ] {
            if n > 0 {
                parts.push(format!("{} {what}", HumanBytes(n)));
            }
        }
        println!("            {engine}: {}", parts.join(", "));
    }
    for g in m.gaps.iter().take(5) {
        println!("            gap: {g}");
    }
    if m.gaps.len() > 5 {
        println!(
            "            and {} more gaps, in the coverage table",
            m.gaps.len() - 5
        );
    }
    let by_kind = |table: &str, column: &str| {
        format!("SELECT {column}, count(*) FROM {table} GROUP BY {column} ORDER BY 2 DESC, 1")
    };
    for (title, table, column) in [
        ("findings", "findings", "kind"),
        ("events", "events", "source"),
        ("artifacts", "artifacts", "kind"),
    ] {
        let c = counts(&t, &by_kind(table, column)).await?;
        let shown: Vec<_> = c
            .iter()
            .map(|(k, n)| format!("{k} {}", HumanCount(*n)))
            .collect();
        println!(
            "  {title:<9} {}",
            if shown.is_empty() {
                "none".into()
            } else {
                shown.join(", ")
            }
        );
    }
    loudest(&t).await?;
    println!("  results   {store} (job {job})");
    println!("            ramsift --store {store} results {job}");
    let mut top = None;
    for b in t.collect("SELECT max(severity_rank) FROM findings").await? {
        let rank = b.column(0).as_primitive::<UInt8Type>();
        top = (0..b.num_rows())
            .filter(|i| rank.is_valid(*i))
            .find_map(|i| Severity::ALL.get(usize::from(rank.value(i))).copied());
    }
    Ok(top)
}

async fn loudest(t: &Tables) -> Result<()> {
    let mut first = true;
    for b in t.collect(LOUD).await? {
        let text = |i: usize| b.column(i).as_string::<i32>();
        let n = b.column(3).as_primitive::<Int64Type>();
        let at = b.column(4).as_primitive::<UInt64Type>();
        for i in 0..b.num_rows() {
            let title = if std::mem::take(&mut first) {
                "loudest"
            } else {
                ""
            };
            let at = if at.is_valid(i) { at.value(i) } else { 0 };
            println!(
                "  {title:<9} {:<8} {} {} ({}x, first at {at:#x})",
                text(0).value(i),
                text(1).value(i),
                text(2).value(i),
                n.value(i)
            );
        }
    }
    Ok(())
}
