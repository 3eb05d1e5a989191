//! `windows/threads`: the threads of each process.
//!
//! Source: the public type `_ETHREAD`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::{Kernel, WindowsError, WindowsView, lists, time};

/// `windows/threads`.
pub(in crate::windows) const THREADS: WindowsView = WindowsView {
    name: "windows/threads",
    meaning: "threads of processes",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("tid", Kind::Number, "thread id"),
    column("start_address", Kind::Hex, "where it began"),
    column(
        "win32_start",
        Kind::Hex,
        "where its program's own code began",
    ),
    column("state", Kind::Text, "what it does"),
    column("start", Kind::Time, "when it was created"),
    column("exit", Kind::Time, "when it ended"),
    column("teb", Kind::Hex, "virtual address of its environment block"),
    column("ethread", Kind::Hex, "virtual address of its _ETHREAD"),
    column("physical", Kind::Hex, "physical address of its _ETHREAD"),
];

/// States of threads (`_KTHREAD_STATE`).
const STATES: [&str; 9] = [
    "initialized",
    "ready",
    "running",
    "standby",
    "terminated",
    "waiting",
    "transition",
    "deferred ready",
    "gate wait",
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    for p in k.processes(&mut out.doubts)? {
        let walk = p
            .object
            .at("ThreadListHead")
            .and_then(|head| lists::list(k, head, "_ETHREAD", "ThreadListEntry"));
        let walk = match walk {
            Ok(w) => w,
            Err(e) => {
                out.doubts
                    .push(format!("the threads of {} can't be read: {e}", p.label()));
                continue;
            }
        };
        if let Some(why) = walk.broken.filter(|_| !p.has_ended()) {
            out.doubts.push(format!("threads of {}: {why}", p.label()));
        }
        for va in walk.items {
            let t = k.object("_ETHREAD", va);
            let number = |path: &str| t.number(path).ok();
            let state = number("Tcb.State").and_then(|s| STATES.get(usize::try_from(s).ok()?));
            // Before it ends the field holds something else.
            let exit = number("ExitTime").filter(|_| state == Some(&"terminated"));
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                number("Cid.UniqueThread").into(),
                number("StartAddress").into(),
                number("Win32StartAddress").into(),
                state.copied().into(),
                number("CreateTime").and_then(time).into(),
                exit.and_then(time).into(),
                number("Tcb.Teb").filter(|va| *va != 0).into(),
                va.into(),
                t.physical().into(),
            ]);
        }
    }
    Ok(out)
}
