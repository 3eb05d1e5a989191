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
use ramsift_os::linux::{LinuxView, by_name};
use ramsift_os::table::Table;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_structured_worker::{batch, table_name, with_kernel};

/// A section of the page: title, view, columns, condition besides the process's number, order, rows at most.
struct Section {
    title: &'static str,
    view: &'static str,
    columns: &'static str,
    filter: &'static str,
    order: &'static str,
    most: usize,
}

const fn of(
    title: &'static str,
    view: &'static str,
    columns: &'static str,
    most: usize,
) -> Section {
    Section {
        title,
        view,
        columns,
        filter: "true",
        order: "row",
        most,
    }
}

const SECTIONS: &[Section] = &[
    of(
        "process",
        "linux/pslist",
        "comm, state, concat('uid ', uid), concat('parent ', ppid)",
        1,
    ),
    of("started", "linux/pstree", "start", 1),
    of("command", "linux/psaux", "args", 1),
    of(
        "program",
        "linux/exe",
        "path, CASE WHEN deleted THEN 'DELETED' END, CASE WHEN memfd THEN 'MEMFD' END, sha256",
        1,
    ),
    Section {
        filter: "ppid = {pid}",
        ..of("children", "linux/pslist", "pid, comm, state", 10)
    },
    of(
        "identity",
        "linux/creds",
        "concat('uid ', uid), concat('euid ', euid), concat('groups ', groups), seccomp",
        1,
    ),
    of("rights", "linux/capabilities", "effective_names", 1),
    of(
        "lives in",
        "linux/namespaces",
        "container, runtime, hostname, concat('mount namespace ', mnt_ns), concat('net ', net_ns)",
        1,
    ),
    Section {
        filter: "list <> scan OR NOT pid_table",
        ..of(
            "cross view",
            "linux/psxview",
            "comm, concat('list ', list), concat('pid table ', pid_table), concat('scan ', scan)",
            3,
        )
    },
    of("traced by", "linux/ptrace", "tracer_comm, tracer_pid", 3),
    of(
        "sockets",
        "linux/sockstat",
        "protocol, state, concat(local, ':', local_port), concat(remote, ':', remote_port)",
        20,
    ),
    of(
        "files",
        "linux/lsof",
        "fd, type, path, CASE WHEN deleted THEN '(deleted)' END",
        25,
    ),
    of("typed", "linux/bash", "time, command", 20),
    of(
        "suspicious",
        "linux/malfind",
        "concat('0x', to_hex(start)), permissions, path, reason",
        10,
    ),
    of(
        "libraries",
        "linux/library_list",
        "path, CASE WHEN deleted THEN '(deleted)' END",
        12,
    ),
    of("environment", "linux/envars", "concat(key, '=', value)", 15),
    Section {
        filter: "path IS NULL OR path = ''",
        ..of(
            "own memory",
            "linux/maps",
            "concat('0x', to_hex(start)), permissions, concat(resident, ' pages')",
            6,
        )
    },
];

/// Builds the views of the page of a capture in one go.
async fn built(config: &Config, args: &ProcessArgs, named: Named) -> Result<(Tables, Vec<String>)> {
    let moved = args.place.evidence.as_deref();
    let e = match named {
        Named::Capture(path) => evidence::open(config, &path, moved).await?,
        Named::Job(j) => j.open(config, moved).await?,
    };
    let record = e.record(config).await;
    let means = symbols::means(config).await?;
    let mut views: Vec<&'static LinuxView> =
        SECTIONS.iter().filter_map(|s| by_name(s.view)).collect();
    views.dedup_by_key(|v| v.name);
    let ask = move |kernel: &ramsift_os::linux::Kernel<'_>, _: &ramsift_layers::run::RunMap| {
        let mut out = Vec::new();
        for v in views {
            // A view that can't be built costs its section alone.
            let t = (v.build)(kernel).map_err(|e| e.to_string());
            out.push((v, t));
        }
        Ok(out)
    };
    let got = with_kernel(&e.image, &e.plan, record.as_ref(), means, ask).await?;
    e.keep(config, got.found.as_ref()).await;
    let nothing = std::sync::Arc::new(ramsift_store::LocalObjects::open_existing(
        &std::env::temp_dir(),
    )?);
    let tables = Tables::new(nothing, &QueryLimits::default())?;
    let mut doubts = Vec::new();
    let mut there = std::collections::BTreeSet::new();
    for (v, t) in got.answer {
        if !there.insert(v.name) {
            continue;
        }
        let t = t.unwrap_or_else(|why| {
            doubts.push(format!("{}: {why}", v.name));
            Table::new(v.columns)
        });
        tables.register_batch(&table_name(v.name), batch(&t)?)?;
    }
    Ok((tables, doubts))
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: ProcessArgs) -> Result<u8> {
    let named = evidence::named(config, &args.image).await?;
    let mut doubts = Vec::new();
    let mut job = None;
    let tables = match named {
        Named::Job(j) if args.place.evidence.is_none() => {
            let (t, there) = session(j.objects.clone(), std::slice::from_ref(&j.job)).await?;
            if !there.contains(&table_name("linux/pslist")) {
                bail!(
                    "job {} has no list of processes: no kernel was opened in its capture, or it is not finished",
                    j.job
                );
            }
            job = Some(j.job);
            t
        }
        named => {
            let (t, d) = built(config, &args, named).await?;
            doubts = d;
            t
        }
    };
    let pid = args.pid;
    let known = texts(
        &tables,
        &format!("SELECT comm FROM linux_pslist WHERE pid = {pid}"),
    )
    .await;
    let scanned = texts(
        &tables,
        &format!("SELECT comm, ended FROM linux_psxview WHERE pid = {pid}"),
    )
    .await;
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
    for s in SECTIONS {
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
        let shape = |r: &[String]| {
            r.iter()
                .filter(|c| !c.is_empty())
                .cloned()
                .collect::<Vec<_>>()
                .join("  ")
        };
        let more = format!("ramsift view {} {} --pid {pid}", s.view, Shown(&args.image));
        section(s.title, &rows, shape, s.most, &more);
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
        for s in SECTIONS {
            assert!(by_name(s.view).is_some(), "{}", s.view);
        }
    }
}
