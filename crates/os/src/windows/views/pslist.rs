//! `windows/pslist`: the processes of the kernel's list.
//!
//! Source: the public type `_EPROCESS`.

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::objects;
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView, time};

/// `windows/pslist`.
pub(in crate::windows) const PSLIST: WindowsView = WindowsView {
    name: "windows/pslist",
    meaning: "processes of the kernel's list",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("ppid", Kind::Number, "process id of the creator"),
    column(
        "comm",
        Kind::Text,
        "name of the program, up to 15 characters",
    ),
    column(
        "path",
        Kind::Text,
        "full path of the program, as noted for audits",
    ),
    column("threads", Kind::Number, "threads that run"),
    column("handles", Kind::Number, "handles that are open"),
    column("session", Kind::Number, "number of the session"),
    column("wow64", Kind::Flag, "whether it is a 32-bit program"),
    column("start", Kind::Time, "when it was created"),
    column("exit", Kind::Time, "when it ended"),
    column("dtb", Kind::Hex, "physical address of its top page table"),
    column("eprocess", Kind::Hex, "virtual address of its _EPROCESS"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    for p in k.processes(&mut out.doubts)? {
        let row = row(k, &p);
        let (start, exit) = (row[8].clone(), row[9].clone());
        out.push(row);
        for (at, kind) in [(start, "process started"), (exit, "process ended")] {
            if let Value::Number(at) = at
                && let Ok(at) = i64::try_from(at)
            {
                let what = kind.trim_start_matches("process ");
                out.event(at, kind, format!("{} {what}", p.label()));
            }
        }
    }
    Ok(out)
}

/// What is known of a process; what can't be read is null.
fn row(k: &Kernel<'_>, p: &Process<'_>) -> Vec<Value> {
    let o = &p.object;
    let number = |path: &str| o.number(path).ok();
    let parent = number("InheritedFromUniqueProcessId");
    let table = number("ObjectTable").filter(|va| *va != 0);
    // Newer builds keep no count.
    let handles = table.and_then(|va| {
        let t = k.object("_HANDLE_TABLE", va);
        t.number("HandleCount").ok().or_else(|| {
            let mut n = 0;
            objects::handles(k, va, &mut |_| n += 1).ok()?;
            Some(n)
        })
    });
    vec![
        p.pid.into(),
        parent.map(u64::cast_signed).into(),
        p.name().into(),
        p.path(k).into(),
        number("ActiveThreads").into(),
        handles.into(),
        p.session(k).into(),
        p.is_wow64().into(),
        number("CreateTime").and_then(time).into(),
        number("ExitTime").and_then(time).into(),
        number("Pcb.DirectoryTableBase").into(),
        o.va.into(),
        o.physical().into(),
    ]
}
