//! `linux/psxview`: every process by every place that knows of it.
//!
//! | column | from |
//! | --- | --- |
//! | list | the task list, `init_task.tasks` |
//! | pid_table | `pid_namespace.idr` of the first pid namespace: what /proc and signals look in |
//! | parent | the `children` lists of all known tasks |
//! | cgroup | the tasks of the sets of control groups that known tasks have |
//! | scan | a scan of memory, `linux/psscan` |
//!
//! A process that runs is in all of them but `cgroup`, which it may leave as it ends; the kernel
//! enters and removes it everywhere under one lock. One that is just being made is in none.
//!
//! Sources: Linux `kernel/fork.c` (`copy_process`), `kernel/exit.c` (`__unhash_process`),
//! `include/linux/pid.h`, `include/linux/cgroup-defs.h`; Volatility 3 `plugins/linux/psxview`.

use crate::linux::psscan::{ended, scan};
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Severity;
use std::collections::{BTreeSet, HashSet};

/// `linux/psxview`.
pub(in crate::linux) const PSXVIEW: LinuxView = LinuxView {
    name: "linux/psxview",
    meaning: "processes by every place that knows of them; hidden ones are flagged",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/psxview`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "list",
        Kind::Flag,
        "whether the task list has it; null where the list breaks off before it",
    ),
    column(
        "pid_table",
        Kind::Flag,
        "whether its process id leads to it; null where that table can't be read",
    ),
    column(
        "parent",
        Kind::Flag,
        "whether it is among a parent's children; null where such a list breaks off",
    ),
    column("cgroup", Kind::Flag, "whether a control group has it"),
    column("scan", Kind::Flag, "whether a scan of memory found it"),
    column(
        "ended",
        Kind::Flag,
        "whether it is gone or on its last step",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// `TASK_NEW` of `include/linux/sched.h`: being made.
const TASK_NEW: u64 = 0x800;

/// Members of lists of children and control groups at most: lists that lead into each other would
/// never end else.
const MAX_STEPS: usize = 1 << 22;

/// Tasks by place, threads included.
#[derive(Debug, Default)]
struct Seen {
    list: HashSet<u64>,
    /// Whether the task list breaks off, and whether lists of children, or the table of process ids, do: then nobody
    /// can say that they lack a process.
    list_broken: bool,
    parent_broken: bool,
    table_broken: bool,
    pid_table: Option<HashSet<u64>>,
    parent: HashSet<u64>,
    cgroup: HashSet<u64>,
    scan: HashSet<u64>,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let (seen, all) = gather(kernel, &mut out.doubts)?;
    for va in all {
        let task = kernel.object("task_struct", va);
        if let Err(e) = row(&task, &seen, &mut out) {
            out.doubts.push(format!("task_struct at {va:#x}: {e}"));
        }
    }
    Ok(out)
}

/// Asks every place. Gives all tasks that any of them has.
fn gather(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<(Seen, BTreeSet<u64>), LinuxError> {
    let init = kernel.object("task_struct", kernel.address("init_task")?);
    let mut seen = Seen::default();
    let mut all = BTreeSet::from([init.va]);
    let list = kernel.task_list()?;
    seen.list_broken = list.broken.is_some();
    seen.list = list.items.into_iter().collect();
    for process in kernel.processes(doubts)? {
        let threads = kernel.threads(&process, doubts)?;
        all.extend(threads.iter().map(|t| t.va));
    }
    let before = doubts.len();
    seen.pid_table = pid_table(kernel, &init, doubts)?;
    seen.table_broken = doubts.len() > before;
    all.extend(seen.pid_table.iter().flatten());
    for va in scan(kernel, doubts)? {
        // What has ended leads nowhere.
        if !ended(&kernel.object("task_struct", va)).unwrap_or(true) {
            seen.scan.insert(va);
            all.insert(va);
        }
    }
    let mut sets = BTreeSet::new();
    let mut todo: Vec<u64> = all.iter().copied().collect();
    // What these lists lead to may have children itself.
    let mut steps = 0usize;
    while let Some(va) = todo.pop() {
        if steps > MAX_STEPS {
            doubts.push(format!("tasks lead to more than {MAX_STEPS} others"));
            break;
        }
        let task = kernel.object("task_struct", va);
        match related(&task, &mut sets, &mut seen, doubts) {
            Ok(more) => {
                steps = steps.saturating_add(more.len());
                todo.extend(more.into_iter().filter(|m| all.insert(*m)));
            }
            Err(e) => doubts.push(format!("task_struct at {va:#x}: {e}")),
        }
    }
    Ok((seen, all))
}

/// The tasks that the process ids lead to; `None` where this kernel keeps them otherwise.
pub(in crate::linux) fn pid_table(
    kernel: &Kernel<'_>,
    init: &Object<'_>,
    doubts: &mut Vec<String>,
) -> Result<Option<HashSet<u64>>, LinuxError> {
    let types = kernel.symbols.types();
    let ns = match init.follow("nsproxy", "nsproxy")? {
        Some(p) => p.follow("pid_ns_for_children", "pid_namespace")?,
        None => None,
    };
    let Some(ns) = ns.filter(|ns| ns.has("idr")) else {
        return Ok(None);
    };
    // The first of each: PIDTYPE_PID.
    let tasks = types.field("pid", "tasks")?.offset;
    let link = types.field("task_struct", "pid_links")?.offset;
    let mut out = HashSet::new();
    for (_, pid) in kernel.idr(ns.at("idr")?, doubts)? {
        match kernel.space.u64(pid.wrapping_add(tasks)) {
            // Nobody has it any more, but for a group or session.
            Ok(0) => {}
            Ok(node) => {
                out.insert(node.wrapping_sub(link));
            }
            Err(e) => doubts.push(format!("struct pid at {pid:#x}: {e}")),
        }
    }
    Ok(Some(out))
}

/// The tasks that a task leads to.
fn related(
    task: &Object<'_>,
    sets: &mut BTreeSet<u64>,
    seen: &mut Seen,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    let kernel = task.kernel();
    let children = kernel.list(task.at("children")?, "task_struct", "sibling")?;
    seen.parent_broken |= children.broken.is_some();
    doubts.extend(children.broken);
    seen.parent.extend(&children.items);
    let mut out = children.items;
    let set = task.number("cgroups")?;
    if set != 0 && sets.insert(set) {
        let set = kernel.object("css_set", set);
        for member in ["tasks", "mg_tasks", "dying_tasks"] {
            if set.has(member) {
                let walk = kernel.list(set.at(member)?, "task_struct", "cg_list")?;
                doubts.extend(walk.broken);
                seen.cgroup.extend(&walk.items);
                out.extend(walk.items);
            }
        }
    }
    Ok(out)
}

fn row(task: &Object<'_>, seen: &Seen, out: &mut Table) -> Result<(), LinuxError> {
    let (pid, va) = (task.int("tgid")?, task.va);
    // Idle tasks are in no list, and threads are their process's.
    if pid == 0 || task.number("group_leader")? != va {
        return Ok(());
    }
    let comm = task.text("comm")?;
    let known = |is: bool, broken: bool| (is || !broken).then_some(is);
    let list = known(seen.list.contains(&va), seen.list_broken);
    let parent = known(seen.parent.contains(&va), seen.parent_broken);
    let pids = seen.pid_table.as_ref().map(|t| t.contains(&va));
    let pids = pids.and_then(|is| known(is, seen.table_broken));
    let (cgroup, scanned) = (seen.cgroup.contains(&va), seen.scan.contains(&va));
    let gone = ended(task)?;
    out.push(vec![
        pid.into(),
        comm.as_str().into(),
        list.into(),
        pids.into(),
        parent.into(),
        cgroup.into(),
        scanned.into(),
        gone.into(),
        va.into(),
        task.physical().into(),
    ]);
    let running = if task.has("__state") {
        "__state"
    } else {
        "state"
    };
    let made = task.number(running)? & TASK_NEW != 0;
    let places = [
        ("the task list", list != Some(false)),
        (
            "the table of process ids, so that /proc does not show it",
            pids != Some(false),
        ),
        ("its parent's children", parent != Some(false)),
    ];
    let missing: Vec<&str> = places.iter().filter(|p| !p.1).map(|p| p.0).collect();
    if missing.is_empty() || gone || made {
        return Ok(());
    }
    let found = [
        ("the task list", list == Some(true)),
        ("the table of process ids", pids == Some(true)),
        ("its parent's children", parent == Some(true)),
        ("its control group", cgroup),
        ("a scan of memory", scanned),
    ];
    let found: Vec<&str> = found.iter().filter(|p| p.1).map(|p| p.0).collect();
    let reason = format!(
        "{comm}[{pid}] (task_struct at {va:#x}) is missing from {}; found by: {}",
        missing.join(" and from "),
        found.join(", ")
    );
    out.flag("hidden_process", Severity::Critical, reason);
    Ok(())
}
