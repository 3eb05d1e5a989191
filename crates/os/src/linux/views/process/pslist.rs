//! `linux/pslist`: the processes of the kernel's task list.
//!
//! Sources: Linux `include/linux/sched.h` (`task_struct`, `TASK_REPORT`), `fs/proc/array.c`
//! (`task_state_array`), `include/linux/cred.h`.

use crate::linux::threads::start_ns;
use crate::linux::{Clock, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};

/// `linux/pslist`.
pub(in crate::linux) const PSLIST: LinuxView = LinuxView {
    name: "linux/pslist",
    meaning: "processes of the kernel's task list",
    columns: PROCESSES,
    build: pslist,
    recover: None,
    on_request: false,
};

/// Columns of `linux/pslist`.
const PROCESSES: &[Column] = &[
    column(
        "pid",
        Kind::Number,
        "process id (thread group), in the first pid namespace",
    ),
    column("ppid", Kind::Number, "process id of the parent"),
    column(
        "comm",
        Kind::Text,
        "name of the main thread, up to 15 bytes",
    ),
    column(
        "state",
        Kind::Text,
        "as /proc shows it: R, S, D, T, t, X, Z, P, I",
    ),
    column("uid", Kind::Number, "real user id"),
    column("gid", Kind::Number, "real group id"),
    column("euid", Kind::Number, "effective user id"),
    column("egid", Kind::Number, "effective group id"),
    column(
        "kernel_thread",
        Kind::Flag,
        "whether it is a thread of the kernel",
    ),
    column("start", Kind::Time, "when it was started"),
    column(
        "start_ns",
        Kind::Number,
        "the same in nanoseconds after boot",
    ),
    column("dtb", Kind::Hex, "physical address of its top page table"),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// `PF_KTHREAD` of `include/linux/sched.h`.
pub(in crate::linux) const PF_KTHREAD: u64 = 0x0020_0000;

/// The processes, in the order of the list. Rows of what can't be read hold what could be.
fn pslist(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(PROCESSES);
    let clock = kernel.clock();
    for task in kernel.processes(&mut out.doubts)? {
        match row(kernel, &task, clock.as_ref(), &mut out.doubts) {
            Ok((r, start, name)) => {
                out.push(r);
                if let Some(at) = start {
                    out.event(at, "process started", format!("{name} started"));
                }
            }
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    Ok(out)
}

/// A row, when its process was started, and its name for people.
type Row = (Vec<Value>, Option<i64>, String);

fn row(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
    clock: Option<&Clock>,
    doubts: &mut Vec<String>,
) -> Result<Row, LinuxError> {
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let name = format!("{comm}[{pid}]");
    // What other objects tell is null where those can't be read.
    let mut cells = Told {
        task: task.va,
        name: &name,
        doubts,
    };
    let parent = cells.of((|| {
        let parent = task.follow("real_parent", "task_struct")?;
        parent.map(|p| p.int("tgid")).transpose()
    })());
    let ids = cells.of((|| {
        let Some(cred) = task.follow("cred", "cred")? else {
            return Ok(None);
        };
        let id = |path| cred.number(path);
        let all = [
            id("uid.val")?,
            id("gid.val")?,
            id("euid.val")?,
            id("egid.val")?,
        ];
        Ok(Some(all))
    })());
    let dtb = cells.of((|| {
        let Some(mm) = task.follow("mm", "mm_struct")? else {
            return Ok(None);
        };
        let pgd = mm.number("pgd")?;
        Ok(kernel.space.translate(pgd).ok().map(|p| p.0))
    })());
    let state = cells.of(state(task).map(Some));
    let flags = cells.of(task.number("flags").map(Some));
    let start = cells.of(start_ns(task).map(Some));
    let at = clock.zip(start).and_then(|(c, s)| c.utc(s));
    let id = |i: usize| Value::from(ids.and_then(|all| all.get(i).copied()));
    let row = vec![
        pid.into(),
        parent.into(),
        comm.into(),
        state.into(),
        id(0),
        id(1),
        id(2),
        id(3),
        flags.map(|f| f & PF_KTHREAD != 0).into(),
        at.into(),
        start.into(),
        dtb.into(),
        task.va.into(),
        task.physical().into(),
    ];
    Ok((row, at, name))
}

/// Takes what could be read of a task, and tells what could not.
struct Told<'a> {
    task: u64,
    name: &'a str,
    doubts: &'a mut Vec<String>,
}

impl Told<'_> {
    fn of<T>(&mut self, read: Result<Option<T>, LinuxError>) -> Option<T> {
        read.unwrap_or_else(|e| {
            let Self { task, name, .. } = self;
            self.doubts
                .push(format!("{name} (task_struct at {task:#x}): {e}"));
            None
        })
    }
}

/// The letter that /proc shows: the lowest bit of what is reported of `__state` and `exit_state`.
pub(in crate::linux) fn state(task: &Object<'_>) -> Result<&'static str, LinuxError> {
    const LETTERS: [&str; 9] = ["R", "S", "D", "T", "t", "X", "Z", "P", "I"];
    const IDLE: u64 = 0x402;
    const REPORT: u64 = 0x7f;
    let running = if task.has("__state") {
        task.number("__state")? & 0xffff_ffff
    } else {
        task.number("state")?
    };
    let exit = task.number("exit_state")? & 0xffff_ffff;
    if running & IDLE == IDLE {
        return Ok(LETTERS[8]);
    }
    let shown = (running | exit) & REPORT;
    let i = (u64::BITS - shown.leading_zeros()) as usize;
    Ok(LETTERS.get(i).copied().unwrap_or("?"))
}
