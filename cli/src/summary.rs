//! What a person wants to know when a scan is over.

use crate::terminal::{Shown, say};
use anyhow::Result;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, UInt8Type};
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

/// Groups of findings above info, and the places worth a look below that.
const LOUD: &str = "SELECT severity, detector, value, count, first_offset, place, agrees FROM groups \
    WHERE severity_rank > 0 ORDER BY position LIMIT 10";
const WORTH: &str = "SELECT severity, kind, value, count, first_offset, place, agrees FROM groups \
    WHERE severity_rank = 0 AND reserved IS NULL AND agrees IS NOT NULL ORDER BY position LIMIT 5";

/// What a person compares captures by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) capture: String,
    pub(crate) system: String,
    pub(crate) verdict: String,
    pub(crate) loudest: Option<Severity>,
    pub(crate) says: String,
    pub(crate) gaps: usize,
    pub(crate) job: String,
}

/// Prints the summary of a finished job: what matters most first. Returns it in a line.
pub(crate) async fn print(objects: &Arc<dyn Objects>, job: &str, store: &str) -> Result<Line> {
    let keys = Keys::new(job);
    let (m, _): (Manifest, _) = read(objects.as_ref(), &keys.manifest()).await?;
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    t.register_jobs(&[job.to_owned()]).await?;
    let seconds = (m.finished_micros - m.started_micros).max(0) as f64 / 1e6;
    say!(
        "{}  {} {}, {seconds:.1} s",
        Shown(m.evidence.to_string()),
        HumanBytes(m.image_bytes),
        m.format
    );
    let loud = lines(&t, LOUD, "loudest").await?;
    say!("  analyses  {}", Shown(&m.analyses));
    say!("  coverage  {}", m.verdict);
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
        say!("            {engine}: {}", parts.join(", "));
    }
    for g in m.gaps.iter().take(5) {
        say!("            gap: {}", Shown(g));
    }
    if m.gaps.len() > 5 {
        say!(
            "            and {} more gaps, in the coverage table",
            m.gaps.len() - 5
        );
    }
    for r in crate::overview::texts(&t, "SELECT notes FROM captures WHERE notes <> ''").await {
        say!("            note: {}", Shown(&r[0]));
    }
    let by_kind = |table: &str, column: &str| {
        format!("SELECT {column}, count(*) FROM {table} GROUP BY {column} ORDER BY 2 DESC, 1")
    };
    for (title, table, column) in [
        ("findings", "findings", "kind"),
        ("events", "events", "source"),
    ] {
        let c = counts(&t, &by_kind(table, column)).await?;
        let shown: Vec<_> = c
            .iter()
            .map(|(k, n)| format!("{k} {}", HumanCount(*n)))
            .collect();
        say!(
            "  {title:<9} {}",
            if shown.is_empty() {
                "none".into()
            } else {
                Shown(shown.join(", ")).to_string()
            }
        );
    }
    artifacts(&t).await?;
    lines(&t, WORTH, "look at").await?;
    if let Some(h) = &m.evidence_blake3 {
        say!("  blake3    {h}");
    }
    say!("  results   {} (job {job})", Shown(store));
    say!(
        "            ramsift --store {} overview {job}",
        Shown(store)
    );
    let referred = "SELECT id FROM artifacts WHERE object IS NULL LIMIT 1";
    if !crate::overview::rows_of_query(&t, referred)
        .await?
        .is_empty()
    {
        say!(
            "            artifacts are read from the capture: keep it, or scan with --copy-artifacts all"
        );
    }
    let mut top = None;
    for b in t.collect("SELECT max(severity_rank) FROM findings").await? {
        let rank = b.column(0).as_primitive::<UInt8Type>();
        top = (0..b.num_rows())
            .filter(|i| rank.is_valid(*i))
            .find_map(|i| Severity::ALL.get(usize::from(rank.value(i))).copied());
    }
    let release = "SELECT concat_ws(' ', os, release) FROM system WHERE status = 'recognised'";
    let system = crate::overview::cell(&t, release).await;
    Ok(Line {
        capture: m.evidence.name().to_owned(),
        system: system
            .filter(|s| !s.is_empty())
            .unwrap_or_else(|| "not recognised".to_owned()),
        verdict: m.verdict.clone(),
        loudest: top,
        says: loud.first().cloned().unwrap_or_default(),
        gaps: m.gaps.len(),
        job: job.to_owned(),
    })
}

/// Artifacts by kind. What a carver found within a cached file is that file once more, and counted apart.
const KINDS: &str = "SELECT kind, count(*) FILTER (WHERE NOT inside), count(*) FILTER (WHERE inside) FROM (SELECT kind, \
    coalesce(page_state = 'file' AND strpos(detector, '/') = 0, false) AS inside FROM artifacts) \
    GROUP BY kind ORDER BY count(*) DESC, kind";

async fn artifacts(t: &Tables) -> Result<()> {
    let number = |s: &str| HumanCount(s.parse().unwrap_or_default()).to_string();
    let rows = crate::overview::rows_of_query(t, KINDS).await?;
    let shown: Vec<String> = rows
        .iter()
        .map(|r| match (r[1].as_str(), r[2].as_str()) {
            (n, "0") => format!("{} {}", r[0], number(n)),
            ("0", n) => format!("{} {} in cached files", r[0], number(n)),
            (n, inside) => format!(
                "{} {} (+{} in cached files)",
                r[0],
                number(n),
                number(inside)
            ),
        })
        .collect();
    let shown = match shown.is_empty() {
        true => "none".to_owned(),
        false => shown.join(", "),
    };
    say!("  artifacts {}", Shown(shown));
    Ok(())
}

/// Prints groups under a title; gives them in words.
async fn lines(t: &Tables, sql: &str, title: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for r in crate::overview::texts(t, sql).await {
        let title = if out.is_empty() { title } else { "" };
        let at = r[4].parse::<u64>().unwrap_or(0);
        let agrees = if r[6].is_empty() {
            String::new()
        } else {
            format!(", also {}", r[6])
        };
        let what = format!("{} {}", r[1], r[2]);
        say!(
            "  {title:<9} {:<8} {} ({}x, {}{agrees}, first at {at:#x})",
            r[0],
            Shown(&what),
            r[3],
            r[5]
        );
        out.push(what);
    }
    Ok(out)
}

/// One table over many captures: the loudest first.
pub(crate) fn many(mut all: Vec<Line>) {
    if all.len() < 2 {
        return;
    }
    all.sort_by(|a, b| {
        b.loudest
            .cmp(&a.loudest)
            .then(b.gaps.cmp(&a.gaps))
            .then(a.capture.cmp(&b.capture))
    });
    let gaps = all.iter().filter(|l| l.verdict != "complete").count();
    let loud = all
        .iter()
        .filter(|l| l.loudest >= Some(Severity::High))
        .count();
    say!();
    say!(
        "{} captures: {loud} with findings of high or critical severity, {gaps} not complete",
        all.len()
    );
    // As they are printed: controls in a name take more room there.
    let columns = |width: &dyn Fn(&str) -> usize| {
        let of = |f: &dyn Fn(&Line) -> String, most: usize| {
            let widths = all.iter().map(|l| width(&f(l)));
            widths.max().unwrap_or(0).clamp(7, most)
        };
        (
            of(&|l| Shown(&l.capture).to_string(), 40),
            of(&|l| Shown(&l.system).to_string(), 32),
        )
    };
    let (c, s) = columns(&unicode_width::UnicodeWidthStr::width);
    say!(
        "{:<c$}  {:<s$}  {:<18}  {:<8}  {:>4}  loudest (job)",
        "capture",
        "system",
        "verdict",
        "severity",
        "gaps"
    );
    for l in &all {
        let severity = l.loudest.map_or("-", |s| s.as_str());
        say!(
            "{:<c$}  {:<s$}  {:<18}  {severity:<8}  {:>4}  {} ({})",
            Shown(&l.capture).to_string(),
            Shown(&l.system).to_string(),
            l.verdict,
            l.gaps,
            Shown(&l.says),
            l.job
        );
    }
}
