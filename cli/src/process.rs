//! `ramsift process`: everything of one process on one page.

use crate::args::ProcessArgs;
use crate::config::Config;
use crate::evidence::{self, Named};
use crate::overview::{section, texts};
use crate::results::session;
use crate::symbols;
use crate::terminal::{Shown, say, tell};
use crate::view::DOUBTFUL;
use anyhow::{Result, bail};
use ramsift_os::page::joined;
use ramsift_os::system::System;
use ramsift_os::table::Table;
use ramsift_os::view::Purpose;
use ramsift_os::{Machine, SYSTEMS, View, by_name};
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_structured_worker::{batch, table_name, with_machine};

/// Builds the views of the page of a capture in one go.
async fn built(
    config: &Config,
    args: &ProcessArgs,
    named: Named,
) -> Result<(Tables, &'static dyn System, Vec<String>)> {
    let moved = args.place.evidence.as_deref();
    let e = match named {
        Named::Capture(path) => evidence::open(config, &path, moved).await?,
        Named::Job(j) => j.open(config, moved).await?,
    };
    let record = e.record(config).await;
    let means = symbols::means(config).await?;
    let ask = move |machine: &dyn Machine, _: &ramsift_layers::run::RunMap| {
        let mut out: Vec<(&'static View, Result<Table, String>)> = Vec::new();
        let system = machine.system();
        for v in system.process_page().iter().filter_map(|s| by_name(s.view)) {
            if !out.iter().any(|(o, _)| o.name == v.name) {
                // A view that can't be built costs its section alone.
                out.push((v, machine.build(v).map_err(|e| e.to_string())));
            }
        }
        Ok((system, out))
    };
    let got = with_machine(&e.image, &e.plan, record.as_ref(), means, ask).await?;
    e.keep(config, got.found.as_ref()).await;
    let nothing = std::sync::Arc::new(ramsift_store::LocalObjects::open_existing(
        &std::env::temp_dir(),
    )?);
    let tables = Tables::new(nothing, &QueryLimits::default())?;
    let mut doubts = Vec::new();
    let (system, views) = got.answer;
    for (v, t) in views {
        let t = t.unwrap_or_else(|why| {
            doubts.push(format!("{}: {why}", v.name));
            Table::new(v.columns)
        });
        tables.register_batch(&table_name(v.name), batch(&t)?)?;
    }
    Ok((tables, system, doubts))
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: ProcessArgs) -> Result<u8> {
    let named = evidence::named(config, &args.image).await?;
    let mut doubts = Vec::new();
    let mut job = None;
    let (tables, system) = match named {
        Named::Job(j) if args.place.evidence.is_none() => {
            let (t, there) = session(j.objects.clone(), std::slice::from_ref(&j.job)).await?;
            let lists = |s: &&&dyn System| {
                let view = s.view_for(Purpose::Processes);
                view.is_some_and(|v| there.contains(&table_name(v.name)))
            };
            let Some(system) = SYSTEMS.iter().find(lists) else {
                bail!(
                    "job {} has no list of processes: no kernel was opened in its capture, or it is not finished",
                    j.job
                );
            };
            job = Some(j.job);
            (t, *system)
        }
        named => {
            let (t, system, d) = built(config, &args, named).await?;
            doubts = d;
            (t, system)
        }
    };
    let pid = args.pid;
    let of = async |purpose: Purpose, columns: &str| {
        let Some(view) = system.view_for(purpose) else {
            return Vec::new();
        };
        let table = table_name(view.name);
        texts(
            &tables,
            &format!("SELECT {columns} FROM {table} WHERE pid = {pid}"),
        )
        .await
    };
    let known = of(Purpose::Processes, "comm").await;
    let scanned = of(Purpose::CrossView, "comm, ended").await;
    match (known.first(), scanned.first()) {
        (Some(r), _) => say!("{}[{pid}]", Shown(&r[0])),
        (None, Some(r)) => say!("{}[{pid}], not in the list of processes", Shown(&r[0])),
        (None, None) => {
            bail!("no process {pid} is in the list or in any other place; see ramsift view psxview")
        }
    }
    if job.is_some() {
        findings(&tables, pid).await;
    }
    for s in system.process_page() {
        let own = if s.filter.contains("{pid}") {
            s.filter.replace("{pid}", &pid.to_string())
        } else {
            format!("pid = {pid} AND ({})", s.filter)
        };
        let sql = format!(
            "SELECT {} FROM {} WHERE {own} ORDER BY {}",
            s.columns,
            table_name(s.view),
            s.order
        );
        let rows = texts(&tables, &sql).await;
        let more = format!("ramsift view {} {} --pid {pid}", s.view, Shown(&args.image));
        section(s.title, &rows, joined, s.most, &more);
    }
    for d in &doubts {
        tell!("doubtful: {}", Shown(d));
    }
    Ok(if doubts.is_empty() { 0 } else { DOUBTFUL })
}

/// What was found in the memory of the process, and what is wrong with it.
async fn findings(t: &Tables, pid: u32) {
    let mark = format!("[{pid}]");
    let anomalies = format!(
        "SELECT severity, detector, value FROM findings WHERE kind = 'anomaly' AND strpos(value, '{mark}') > 0 \
         ORDER BY severity_rank DESC, image_offset"
    );
    section(
        "WRONG",
        &texts(t, &anomalies).await,
        |r| format!("{:<8} {} {}", r[0], r[1], r[2]),
        10,
        "ramsift results --kind anomaly",
    );
    let loud = format!(
        "SELECT severity, detector, value, count(*) FROM findings WHERE kind IN ('yara', 'av') AND \
         (strpos(owner, '{mark}') > 0 OR strpos(path, '{mark}') > 0) GROUP BY severity, severity_rank, detector, value ORDER BY severity_rank DESC, 4"
    );
    section(
        "matched",
        &texts(t, &loud).await,
        |r| format!("{:<8} {} {} ({}x)", r[0], r[1], r[2], r[3]),
        10,
        "ramsift results",
    );
    let features = format!(
        "SELECT kind, value, count(*) FROM findings WHERE kind IN ('url', 'domain', 'ipv4', 'ipv6', 'email') AND strpos(owner, '{mark}') > 0 \
         AND page_state = 'process' GROUP BY kind, value ORDER BY 3, 2"
    );
    section(
        "holds",
        &texts(t, &features).await,
        |r| format!("{:<7} {}", r[0], r[1]),
        15,
        "ramsift query",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_names_a_view() {
        for s in SYSTEMS.iter().flat_map(|s| s.process_page()) {
            assert!(by_name(s.view).is_some(), "{}", s.view);
        }
    }
}
