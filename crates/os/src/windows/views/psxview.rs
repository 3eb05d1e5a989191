//! `windows/psxview`: which of the places that know of processes know of each.
//!
//! A process that hides takes itself off the kernel's list; the table of process and thread numbers, the handles of CSRSS and
//! its object in memory know it all the same.
//!
//! Sources: the globals PsActiveProcessHead and PspCidTable; `_HANDLE_TABLE`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::objects::{ObjectTypes, handles};
use crate::windows::scan;
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::Severity;
use std::collections::{BTreeMap, BTreeSet};

/// `windows/psxview`.
pub(in crate::windows) const PSXVIEW: WindowsView = WindowsView {
    name: "windows/psxview",
    meaning: "which places know of each process",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column(
        "list",
        Kind::Flag,
        "whether it is in the kernel's list; null where a broken list does not tell",
    ),
    column(
        "cid_table",
        Kind::Flag,
        "whether the table of numbers leads to it",
    ),
    column("csrss", Kind::Flag, "whether a CSRSS has a handle of it"),
    column("scan", Kind::Flag, "whether its object was found in memory"),
    column("start", Kind::Time, "when it was created"),
    column("ended", Kind::Time, "when it ended"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

/// Addresses of the processes that the table of numbers leads to.
pub(in crate::windows) fn numbered(k: &Kernel<'_>) -> Vec<u64> {
    let mut out = Vec::new();
    if let (Ok(types), Ok(table)) = (ObjectTypes::new(k), k.global("PspCidTable")) {
        let _ = handles(k, table, &mut |h| {
            if types
                .of(&types.header(k, h.object))
                .is_ok_and(|t| t == "Process")
            {
                out.push(h.object);
            }
        });
    }
    out
}

#[derive(Default)]
struct Known {
    pid: i64,
    name: String,
    list: bool,
    table: bool,
    csrss: bool,
    scan: bool,
    freed: bool,
    created: u64,
    exited: u64,
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let mut all: BTreeMap<u64, Known> = BTreeMap::new();
    let mut servers = BTreeSet::new();
    let read = |va: u64| {
        let o = k.object("_EPROCESS", va);
        let known = Known {
            pid: o.number("UniqueProcessId").ok()?.cast_signed(),
            name: o.text("ImageFileName").ok()?,
            created: o.number("CreateTime").ok()?,
            exited: o.number("ExitTime").ok()?,
            ..Known::default()
        };
        Some((o.physical()?, known))
    };
    for p in k.processes(&mut out.doubts)? {
        if let Some((at, known)) = read(p.object.va) {
            if known.name.eq_ignore_ascii_case("csrss.exe") {
                servers.insert(p.object.va);
            }
            all.insert(
                at,
                Known {
                    list: true,
                    ..known
                },
            );
        }
    }
    // Nobody can say that a broken list lacks a process.
    let torn = !out.doubts.is_empty();
    let types = ObjectTypes::new(k);
    let unknown = |e: &WindowsError| format!("the table of process numbers can't be read: {e}");
    match (&types, k.global("PspCidTable")) {
        (Ok(types), Ok(table)) => {
            let unread = handles(k, table, &mut |h| {
                // Here an entry leads to the object itself.
                let header = types.header(k, h.object);
                if types.of(&header).is_ok_and(|t| t == "Process")
                    && let Some((at, known)) = read(h.object)
                {
                    all.entry(at).or_insert(known).table = true;
                }
            })?;
            if unread > 0 {
                out.doubts.push(format!(
                    "{unread} pages of the table of process numbers could not be read"
                ));
            }
        }
        (Err(e), _) => out.doubts.push(unknown(e)),
        (_, Err(e)) => out.doubts.push(unknown(&e)),
    }
    if let Ok(types) = &types {
        for server in servers {
            let table = k.object("_EPROCESS", server).number("ObjectTable");
            let Ok(table) = table else { continue };
            let _ = handles(k, table, &mut |h| {
                let header = k.object("_OBJECT_HEADER", h.object);
                if types.of(&header).is_ok_and(|t| t == "Process")
                    && let Some((at, known)) = read(types.body(h.object))
                {
                    all.entry(at).or_insert(known).csrss = true;
                }
            });
        }
    }
    let found = scan::scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    for f in &found.processes {
        let known = all.entry(f.physical).or_insert_with(|| Known {
            pid: f.pid,
            name: f.name.clone(),
            created: f.created,
            exited: f.exited,
            ..Known::default()
        });
        known.scan = true;
        known.freed = f.freed;
    }
    let mut rows: Vec<(u64, Known)> = all.into_iter().collect();
    rows.sort_by_key(|(at, p)| (p.pid, *at));
    for (at, p) in rows {
        let Known { pid, name, .. } = &p;
        let hidden = !torn && !p.list && p.exited == 0 && !p.freed && p.table;
        let reason = format!("{name}[{pid}] runs and is not in the kernel's list of processes");
        out.push(vec![
            p.pid.into(),
            name.as_str().into(),
            Some(p.list).filter(|l| *l || !torn).into(),
            p.table.into(),
            p.csrss.into(),
            p.scan.into(),
            time(p.created).into(),
            time(p.exited).into(),
            at.into(),
        ]);
        if hidden {
            out.flag("hidden_process", Severity::Critical, reason);
        }
    }
    Ok(out)
}
