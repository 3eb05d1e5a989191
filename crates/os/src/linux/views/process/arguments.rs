//! `linux/psaux` and `linux/envars`: what processes were started with, from their own memory.
//!
//! Sources: Linux `fs/proc/base.c` (`get_mm_cmdline`, `environ_read`), `include/linux/mm_types.h`.

use crate::linux::pslist::PF_KTHREAD;
use crate::linux::space::task_memory;
use crate::linux::{AddressSpace, Kernel, LinuxError, LinuxView, Object};
use crate::linux::{secrets, suspicious};
use crate::table::{Anomaly, Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{BTreeSet, HashMap};

/// `linux/psaux`.
pub(in crate::linux) const PSAUX: LinuxView = LinuxView {
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
pub(in crate::linux) const ENVARS: LinuxView = LinuxView {
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
    let tasks = kernel.processes(&mut out.doubts)?;
    let mut own = BTreeSet::new();
    for task in &tasks {
        // What can't be read is told with its row.
        if task.number("flags").is_ok_and(|f| f & PF_KTHREAD != 0)
            && let Ok(comm) = task.text("comm")
        {
            own.insert(comm);
        }
    }
    for task in tasks {
        match command(kernel, &task) {
            Ok((row, words)) => {
                out.push(row);
                let first = words.first().map(String::as_str);
                if let Some(reason) = poses(&task, first, &own) {
                    out.flag("fake_kernel_thread", Severity::High, reason);
                }
                judge(&task, &words, &mut out);
            }
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    Ok(out)
}

/// Says what is wrong with the command line of a process.
fn judge(task: &Object<'_>, words: &[String], out: &mut Table) {
    let (Ok(pid), Ok(comm)) = (task.int("tgid"), task.text("comm")) else {
        return;
    };
    let who = format!("{comm}[{pid}] (task_struct at {:#x})", task.va);
    if let Some(s) = suspicious::arguments(words) {
        out.flag(
            s.rule,
            s.severity,
            format!("the command line of {who} {}", s.what),
        );
    }
    if let Some(s) = secrets::in_words(words) {
        let reason = format!(
            "the command line of {who}, which every user can read, has a secret: {} {}",
            s.name, s.masked
        );
        out.flag("secret_on_command_line", Severity::Low, reason);
    }
}

/// Why a process with memory of its own poses as a thread of the kernel, if it does: `ps` puts the
/// names of those in brackets, and nobody else has one of theirs.
fn poses(task: &Object<'_>, first: Option<&str>, own: &BTreeSet<String>) -> Option<String> {
    let first = first?;
    let (pid, comm) = (task.int("tgid").ok()?, task.text("comm").ok()?);
    let who = format!(
        "{comm}[{pid}] (task_struct at {:#x}) has memory of its own, which no thread of the kernel has",
        task.va
    );
    if in_brackets(first) {
        Some(format!("{who}, and calls itself {first}"))
    } else if own.contains(&comm) || comm.starts_with("kworker/") {
        Some(format!("{who}, and the name of one"))
    } else {
        None
    }
}

/// `[name]` as one word. (The test utility `[` is a word of its own.)
fn in_brackets(word: &str) -> bool {
    let inner = word
        .trim()
        .strip_prefix('[')
        .and_then(|w| w.strip_suffix(']'));
    inner.is_some_and(|n| !n.is_empty() && !n.contains(char::is_whitespace))
}

/// A row, and the arguments.
fn command(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
) -> Result<(Vec<Value>, Vec<String>), LinuxError> {
    let (mut args, mut missing, mut all) = (Value::Null, 0, Vec::new());
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
        all = words.into_iter().map(|w| w.into_owned()).collect();
        missing = absent;
    }
    let row = vec![
        task.int("tgid")?.into(),
        task.text("comm")?.into(),
        args,
        missing.into(),
        task.va.into(),
        task.physical().into(),
    ];
    Ok((row, all))
}

/// The environments of all processes, as they were when each program was started.
fn envars(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ENVIRONMENT);
    // Children inherit: each secret is told once, with how many have it.
    let mut known: HashMap<(String, String), (usize, u64)> = HashMap::new();
    let mut secrets: Vec<(usize, u64, String)> = Vec::new();
    for task in kernel.processes(&mut out.doubts)? {
        let (pid, comm) = match (task.int("tgid"), task.text("comm")) {
            (Ok(pid), Ok(comm)) => (pid, comm),
            (Err(e), _) | (_, Err(e)) => {
                out.doubts
                    .push(format!("task_struct at {:#x}: {e}", task.va));
                continue;
            }
        };
        for v in environments(kernel, &task, &mut out.doubts) {
            if let Some(s) = secrets::in_variable(&v.key, &v.value) {
                let next = (secrets.len(), 0);
                let seen = known
                    .entry((v.key.clone(), v.value.clone()))
                    .or_insert(next);
                if seen.0 == secrets.len() {
                    let who = format!("{comm}[{pid}] (task_struct at {:#x})", task.va);
                    let what = format!(
                        "{who} was started with a secret in its environment: {}={}",
                        s.name, s.masked
                    );
                    secrets.push((out.rows.len(), 0, what));
                } else if seen.1 != task.va
                    && let Some(s) = secrets.get_mut(seen.0)
                {
                    s.1 += 1;
                }
                seen.1 = task.va;
            }
            out.push(vec![
                pid.into(),
                comm.as_str().into(),
                v.key.into(),
                v.value.into(),
                v.va.into(),
                task.va.into(),
            ]);
        }
    }
    for (row, more, what) in secrets {
        let reason = match more {
            0 => what,
            n => format!("{what}, as {n} more were"),
        };
        out.anomalies.push(Anomaly {
            row,
            rule: "secret_in_environment",
            severity: Severity::Low,
            reason,
        });
    }
    Ok(out)
}

/// A variable of a process's environment.
pub(in crate::linux) struct Variable {
    pub(in crate::linux) key: String,
    pub(in crate::linux) value: String,
    /// Its virtual address in the process.
    pub(in crate::linux) va: u64,
}

/// The environment of a process as its program was started; none of a thread of the kernel.
pub(in crate::linux) fn environments(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
    doubts: &mut Vec<String>,
) -> Vec<Variable> {
    let mut out = Vec::new();
    match environment(kernel, task, &mut out) {
        Ok(0) => {}
        Ok(missing) => doubts.push(format!(
            "task_struct at {:#x}: {missing} bytes of the environment are not in the image",
            task.va
        )),
        Err(e) => doubts.push(format!("task_struct at {:#x}: {e}", task.va)),
    }
    out
}

fn environment(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
    out: &mut Vec<Variable>,
) -> Result<u64, LinuxError> {
    let Some((mm, space)) = task_memory(kernel, task)? else {
        return Ok(0);
    };
    let start = mm.number("env_start")?;
    let (raw, missing) = bytes(&space, start, mm.number("env_end")?);
    let mut at = start;
    for entry in raw.split(|b| *b == 0) {
        let va = at;
        at += entry.len() as u64 + 1;
        let Some(eq) = entry.iter().position(|b| *b == b'=') else {
            continue;
        };
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        out.push(Variable {
            key: text(&entry[..eq]),
            value: text(&entry[eq + 1..]),
            va,
        });
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::in_brackets;

    #[test]
    fn names_in_brackets_are_one_word() {
        assert!(in_brackets("[kworker/0:1-events]"));
        assert!(in_brackets("[x] "));
        for other in ["[", "[]", "[ -f x ]", "kworkerd", "a[1]"] {
            assert!(!in_brackets(other), "{other}");
        }
    }
}
