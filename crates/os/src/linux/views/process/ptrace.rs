//! `linux/ptrace`: who traces whom.
//!
//! ```text
//! task.ptrace: 1 traced, 0x10000 seized, options above bit 3;  traced: task.parent is the tracer
//! ```
//!
//! Sources: Linux `include/linux/ptrace.h`, `kernel/ptrace.c` (`__ptrace_link`).

use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Severity;

/// `linux/ptrace`.
pub(in crate::linux) const PTRACE: LinuxView = LinuxView {
    name: "linux/ptrace",
    meaning: "threads that are traced, and by whom",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ptrace`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process that is traced"),
    column("tid", Kind::Number, "its thread"),
    column("comm", Kind::Text, "name of that thread"),
    column("tracer_pid", Kind::Number, "process that traces it"),
    column("tracer_tid", Kind::Number, "the thread that does"),
    column("tracer_comm", Kind::Text, "name of that thread"),
    column(
        "seized",
        Kind::Flag,
        "whether it was seized, so that it was not stopped at first",
    ),
    column("flags", Kind::Hex, "its ptrace flags"),
    column(
        "tracer",
        Kind::Hex,
        "virtual address of the tracer's task_struct",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// `PT_SEIZED` of `include/linux/ptrace.h`.
const SEIZED: u64 = 0x1_0000;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    for process in kernel.processes(&mut out.doubts)? {
        let all = kernel.threads(&process, &mut out.doubts);
        let all = all.and_then(|all| all.iter().try_for_each(|t| thread(t, &mut out)));
        if let Err(e) = all {
            out.doubts
                .push(format!("threads of task_struct at {:#x}: {e}", process.va));
        }
    }
    Ok(out)
}

fn thread(task: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
    let flags = task.number("ptrace")? & 0xffff_ffff;
    if flags == 0 {
        return Ok(());
    }
    let Some(tracer) = task.follow("parent", "task_struct")? else {
        return Ok(());
    };
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let (by, name) = (tracer.int("tgid")?, tracer.text("comm")?);
    out.push(vec![
        pid.into(),
        task.int("pid")?.into(),
        comm.as_str().into(),
        by.into(),
        tracer.int("pid")?.into(),
        name.as_str().into(),
        (flags & SEIZED != 0).into(),
        flags.into(),
        tracer.va.into(),
        task.va.into(),
        task.physical().into(),
    ]);
    let reason = format!(
        "{comm}[{pid}] (task_struct at {:#x}) is traced by {name}[{by}] (task_struct at {:#x}), which can read and \
         change its memory. Debuggers, strace and some sandboxes do that",
        task.va, tracer.va
    );
    out.flag("traced", Severity::Medium, reason);
    Ok(())
}
