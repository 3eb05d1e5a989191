//! `linux/psaux` and `linux/envars`: what processes were started with, from their own memory.
//!
//! Sources: Linux `fs/proc/base.c` (`get_mm_cmdline`, `environ_read`), `include/linux/mm_types.h`.

use super::space::task_memory;
use super::{AddressSpace, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};

/// `linux/psaux`.
pub(super) const PSAUX: LinuxView = LinuxView {
    name: "linux/psaux",
    meaning: "full command lines of processes",
    columns: ARGUMENTS,
    build: psaux,
    recover: None,
    on_request: false,
};

/// Columns of `linux/psaux`.
const ARGUMENTS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "args",
        Kind::Text,
        "the arguments, with spaces between; null of a kernel thread",
    ),
    column(
        "missing",
        Kind::Number,
        "bytes of them that the image does not hold",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// `linux/envars`.
pub(super) const ENVARS: LinuxView = LinuxView {
    name: "linux/envars",
    meaning: "environment variables of processes, as they were started",
    columns: ENVIRONMENT,
    build: envars,
    recover: None,
    on_request: false,
};

/// Columns of `linux/envars`.
const ENVIRONMENT: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("key", Kind::Text, "name of the variable"),
    column("value", Kind::Text, "its value"),
    column("va", Kind::Hex, "virtual address in the process"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

/// Bytes of arguments or environment at most.
const MAX: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Bytes of a process, with those that are absent as NULs, and how many those are.
fn bytes(space: &AddressSpace<'_>, from: u64, to: u64) -> (Vec<u8>, u64) {
    let to = to.min(from.saturating_add(MAX));
    let (mut out, mut missing, mut at) = (Vec::new(), 0, from);
    while at < to {
        let n = (PAGE - at % PAGE).min(to - at);
        let start = out.len();
        out.resize(start + usize::try_from(n).unwrap_or(0), 0);
        if space.read(at, &mut out[start..]).is_err() {
            out[start..].fill(0);
            missing += n;
        }
        at += n;
    }
    (out, missing)
}

/// The command lines of all processes.
fn psaux(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ARGUMENTS);
    for task in kernel.processes(&mut out.doubts)? {
        match command(kernel, &task) {
            Ok(row) => out.rows.push(row),
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    Ok(out)
}

fn command(kernel: &Kernel<'_>, task: &Object<'_>) -> Result<Vec<Value>, LinuxError> {
    let (mut args, mut missing) = (Value::Null, 0);
    if let Some((mm, space)) = task_memory(kernel, task)? {
        let (start, end) = (mm.number("arg_start")?, mm.number("arg_end")?);
        let (mut raw, mut absent) = bytes(&space, start, end);
        // A program that wrote over its last NUL made one long string, which may reach into the
        // place of its environment.
        if absent == 0 && raw.last().is_some_and(|b| *b != 0) {
            (raw, absent) = bytes(&space, start, mm.number("env_end")?.max(end));
            let len = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
            raw.truncate(len);
        }
        let text = raw.strip_suffix(&[0]).unwrap_or(&raw);
        let words: Vec<_> = text
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        args = words.join(" ").into();
        missing = absent;
    }
    Ok(vec![
        task.int("tgid")?.into(),
        task.text("comm")?.into(),
        args,
        missing.into(),
        task.va.into(),
        task.physical().into(),
    ])
}

/// The environments of all processes, as they were when each program was started.
fn envars(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ENVIRONMENT);
    for task in kernel.processes(&mut out.doubts)? {
        let mut rows = Vec::new();
        match environment(kernel, &task, &mut rows) {
            Ok(0) => {}
            Ok(missing) => out.doubts.push(format!(
                "task_struct at {:#x}: {missing} bytes of the environment are not in the image",
                task.va
            )),
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
        out.rows.append(&mut rows);
    }
    Ok(out)
}

fn environment(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
    rows: &mut Vec<Vec<Value>>,
) -> Result<u64, LinuxError> {
    let Some((mm, space)) = task_memory(kernel, task)? else {
        return Ok(0);
    };
    let start = mm.number("env_start")?;
    let (raw, missing) = bytes(&space, start, mm.number("env_end")?);
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let mut at = start;
    for entry in raw.split(|b| *b == 0) {
        let va = at;
        at += entry.len() as u64 + 1;
        let Some(eq) = entry.iter().position(|b| *b == b'=') else {
            continue;
        };
        let text = |b: &[u8]| Value::Text(String::from_utf8_lossy(b).into_owned());
        rows.push(vec![
            pid.into(),
            comm.as_str().into(),
            text(&entry[..eq]),
            text(&entry[eq + 1..]),
            va.into(),
            task.va.into(),
        ]);
    }
    Ok(missing)
}
