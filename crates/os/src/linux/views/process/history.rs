//! `linux/history`: what was typed into shells and clients: the commands in bash's memory, and the history
//! files of all users as the page cache has them.
//!
//! A file counts by its name ([`program`]), or because a process was started with it as its `HISTFILE`. Its
//! lines have a time only where the file gives one.

use crate::linux::arguments::environments;
use crate::linux::bash::bash;
use crate::linux::cached::{CachedFile, PASSWD, Users, cached_files};
use crate::linux::command_lines::commands;
use crate::linux::history_files::{Entry, Format, entries, program};
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::linux::{secrets, suspicious};
use crate::table::{Anomaly, Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::HashSet;

/// `linux/history`.
pub(in crate::linux) const HISTORY: LinuxView = LinuxView {
    name: "linux/history",
    meaning: "what was typed into shells and clients, from memory and cached history files",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/history`.
const COLUMNS: &[Column] = &[
    column("time", Kind::Time, "when it was typed; null: not told"),
    column(
        "user",
        Kind::Text,
        "whose shell or home it is; null: not known",
    ),
    column(
        "uid",
        Kind::Number,
        "user id of the process, or of the file's owner",
    ),
    column(
        "program",
        Kind::Text,
        "what it was typed into: bash, zsh, fish, mysql, vim, …",
    ),
    column("pid", Kind::Number, "process; null of a file"),
    column("command", Kind::Text, "the line, or lines"),
    column("source", Kind::Text, "`memory`, or the path of the file"),
    column(
        "index",
        Kind::Number,
        "place in the history, from 1, the oldest first; null: not known",
    ),
    column(
        "cut",
        Kind::Flag,
        "whether part of it lies in a page that is not in memory",
    ),
    column(
        "offset",
        Kind::Number,
        "place in the file; null of a process",
    ),
    column(
        "object",
        Kind::Hex,
        "virtual address of the task_struct or of the file's inode",
    ),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// Commands of a file at most.
const MAX_ENTRIES: usize = 1 << 20;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let named = history_variables(kernel);
    let wanted = |path: &str| path == PASSWD || program(path).is_some() || named.contains(path);
    let files = match cached_files(kernel, &mut out.doubts, &wanted) {
        Ok(files) => files,
        Err(e) => {
            out.doubts.push(format!("history files: {e}"));
            Vec::new()
        }
    };
    let users = Users::of(&files);
    let known = match memory(kernel, &users, &mut out) {
        Ok(known) => known,
        Err(e) => {
            out.doubts.push(format!("history in memory: {e}"));
            HashSet::new()
        }
    };
    // A command counts once, wherever else it was kept.
    let mut judged = HashSet::new();
    for row in 0..out.rows.len() {
        judge(row, &mut judged, &mut out);
    }
    for f in files.iter().filter(|f| f.path != PASSWD) {
        let first = out.rows.len();
        let (program, format) = program(f.name()).unwrap_or_else(|| sniffed(f));
        file(f, program, format, &users, &known, &mut out);
        let shell = matches!(
            format,
            Format::Stamped | Format::Shell | Format::Korn | Format::Zsh | Format::Fish
        );
        for row in (first..out.rows.len()).filter(|_| shell) {
            judge(row, &mut judged, &mut out);
        }
    }
    Ok(out)
}

/// Says what is wrong with a command.
fn judge(row: usize, judged: &mut HashSet<(String, String)>, out: &mut Table) {
    let text = |name| match out.cell(row, name) {
        Some(Value::Text(t)) => t.clone(),
        _ => String::new(),
    };
    let (user, command, source) = (text("user"), text("command"), text("source"));
    let found = suspicious::typed(&command);
    let secret = commands(&command)
        .iter()
        .find_map(|c| secrets::in_words(&c.words));
    if (found.is_none() && secret.is_none()) || !judged.insert((user.clone(), command)) {
        return;
    }
    let who = if user.is_empty() { "?" } else { user.as_str() };
    let place = match out.cell(row, "physical") {
        Some(Value::Number(n)) => format!("{source}, physical address {n:#x}"),
        _ => source,
    };
    let mut flag = |rule, severity, reason| {
        out.anomalies.push(Anomaly {
            row,
            rule,
            severity,
            reason,
        })
    };
    if let Some(s) = found {
        flag(
            s.rule,
            s.severity,
            format!("a command that {who} typed ({place}) {}", s.what),
        );
    }
    if let Some(s) = secret {
        let reason = format!(
            "a command that {who} typed ({place}) has a secret: {} {}",
            s.name, s.masked
        );
        flag("secret_on_command_line", Severity::Low, reason);
    }
}

/// Files that processes were told to keep their history in, less those that keep nothing.
fn history_variables(kernel: &Kernel<'_>) -> HashSet<String> {
    // What can't be read is told by linux/envars.
    let tasks = kernel.processes(&mut Vec::new()).unwrap_or_default();
    let all = tasks
        .iter()
        .flat_map(|t| environments(kernel, t, &mut Vec::new()));
    all.filter(|v| v.key == "HISTFILE" && v.value.starts_with('/') && v.value != "/dev/null")
        .map(|v| v.value)
        .collect()
}

/// How a file is written whose name says nothing.
fn sniffed(f: &CachedFile) -> (&'static str, Format) {
    let first = f.pieces.first().map(|p| p.bytes.as_slice());
    let zsh =
        first.is_some_and(|b| b.starts_with(b": ") && b.get(2).is_some_and(u8::is_ascii_digit));
    if zsh {
        ("zsh", Format::Zsh)
    } else {
        ("bash", Format::Stamped)
    }
}

/// The rows of linux/bash. Gives what is on the timeline by them: times and commands.
fn memory(
    kernel: &Kernel<'_>,
    users: &Users,
    out: &mut Table,
) -> Result<HashSet<(i64, String)>, LinuxError> {
    let commands = bash(kernel)?;
    out.doubts.extend(commands.doubts.iter().cloned());
    let first = kernel.processes(&mut Vec::new())?;
    let own = first
        .iter()
        .find(|t| t.int("tgid").is_ok_and(|p| p == 1))
        .and_then(mount_namespace);
    let mut known = HashSet::new();
    for row in 0..commands.rows.len() {
        let cell = |name| commands.cell(row, name).cloned().unwrap_or_default();
        let number = |name| match cell(name) {
            Value::Number(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let task = number("task").map(|va| kernel.object("task_struct", va));
        // Ids of a container are of a list of its own.
        let here = own.is_some() && task.as_ref().and_then(mount_namespace) == own;
        let user = number("uid").filter(|_| here).and_then(|u| users.name(u));
        out.push(vec![
            cell("time"),
            user.into(),
            cell("uid"),
            "bash".into(),
            cell("pid"),
            cell("command"),
            "memory".into(),
            cell("index"),
            false.into(),
            Value::Null,
            cell("task"),
            cell("physical"),
        ]);
        if let (Value::Number(time), Value::Text(text)) = (cell("time"), cell("command")) {
            known.insert((i64::try_from(time).unwrap_or(0), text));
        }
    }
    Ok(known)
}

/// The mount namespace of a process.
fn mount_namespace(task: &Object<'_>) -> Option<u64> {
    let proxy = task.follow("nsproxy", "nsproxy").ok()??;
    proxy.number("mnt_ns").ok()
}

fn file(
    f: &CachedFile,
    program: &'static str,
    format: Format,
    users: &Users,
    known: &HashSet<(i64, String)>,
    out: &mut Table,
) {
    let owner = users.owner(f.name());
    // A file of another list of users has its owner's number only.
    let user = owner.or_else(|| users.name(f.inode.uid));
    let whole = matches!(f.pieces.as_slice(), [p] if p.offset == 0 && !p.goes_on);
    if !whole {
        let present: usize = f.pieces.iter().map(|p| p.bytes.len()).sum();
        let (path, size) = (&f.path, f.inode.size);
        out.doubts
            .push(format!("{path}: {present} of {size} bytes are in memory"));
    }
    let mut rows: Vec<(Option<usize>, Entry)> = Vec::new();
    for piece in &f.pieces {
        let found = entries(format, piece);
        let count = found.len();
        // From the newest back, places are known only if all of it is there.
        let newest_first = matches!(format, Format::Vim | Format::NewestFirst);
        let place = |i: usize| match newest_first {
            true => whole.then(|| count - i),
            false => (piece.offset == 0).then_some(i + 1),
        };
        rows.extend(found.into_iter().enumerate().map(|(i, e)| (place(i), e)));
    }
    if rows.len() > MAX_ENTRIES {
        let path = &f.path;
        out.doubts
            .push(format!("{path}: only {MAX_ENTRIES} of its lines are shown"));
        rows.truncate(MAX_ENTRIES);
    }
    for (index, e) in rows {
        let time = e.time.map(|t| t.saturating_mul(1_000_000));
        out.push(vec![
            time.into(),
            user.into(),
            f.inode.uid.into(),
            program.into(),
            Value::Null,
            e.text.as_str().into(),
            f.path.as_str().into(),
            index.into(),
            e.cut.into(),
            e.offset.into(),
            f.inode.va.into(),
            f.physical(e.offset).into(),
        ]);
        // What a shell has in memory too is on the timeline by linux/bash.
        if let Some(time) = time
            && !known.contains(&(time, e.text.clone()))
        {
            let (user, path) = (user.unwrap_or("?"), &f.path);
            let message = format!("{program} ({user}, {path}): {}", e.text);
            out.event(time, "shell command", message);
        }
    }
}
