//! `linux/threads` and `linux/kthreads`: every thread of every process; what the kernel's own run.
//!
//! ```text
//! task_struct.signal -> signal_struct.thread_head -> task_struct.thread_node
//! kernel thread: worker_private (5.17 and later), before that set_child_tid -> kthread { threadfn, data }
//! ```
//!
//! A thread of the kernel that runs code that nobody knows of is somebody's who does not want to be
//! seen. `kthreadd` has no function of that kind.
//!
//! Sources: Linux `include/linux/sched/signal.h`, `kernel/kthread.c` (`struct kthread`).

use crate::linux::hooks::judge;
use crate::linux::pslist::{PF_KTHREAD, state};
use crate::linux::{Clock, CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::VirtAddr;

/// `linux/threads`.
pub(in crate::linux) const THREADS: LinuxView = LinuxView {
    name: "linux/threads",
    meaning: "threads of all processes",
    columns: COLUMNS,
    build: threads,
    recover: None,
    on_request: false,
};

/// Columns of `linux/threads`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("tid", Kind::Number, "thread id, in the first pid namespace"),
    column("comm", Kind::Text, "name of the thread, up to 15 bytes"),
    column(
        "state",
        Kind::Text,
        "as /proc shows it: R, S, D, T, t, X, Z, P, I",
    ),
    column(
        "kernel_thread",
        Kind::Flag,
        "whether it is a thread of the kernel",
    ),
    column("cpu", Kind::Number, "the CPU that it ran on last"),
    column("start", Kind::Time, "when it was started"),
    column(
        "start_ns",
        Kind::Number,
        "the same in nanoseconds after boot",
    ),
    column(
        "stack",
        Kind::Hex,
        "virtual address of its kernel stack's lowest byte; null where it has ended",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// `linux/kthreads`.
pub(in crate::linux) const KTHREADS: LinuxView = LinuxView {
    name: "linux/kthreads",
    meaning: "threads of the kernel and the functions that they run",
    columns: KERNEL_THREADS,
    build: kthreads,
    recover: None,
    on_request: false,
};

/// Columns of `linux/kthreads`.
const KERNEL_THREADS: &[Column] = &[
    column("pid", Kind::Number, "its process id"),
    column("comm", Kind::Text, "its name, up to 15 bytes"),
    column(
        "full_name",
        Kind::Text,
        "its whole name, where that is longer and kept",
    ),
    column(
        "function",
        Kind::Hex,
        "the function that it runs; null of kthreadd",
    ),
    column("symbol", Kind::Text, "whose code that is"),
    column(
        "module",
        Kind::Text,
        "the module that has it; null of the kernel's own",
    ),
    column("data", Kind::Hex, "what it was given"),
    column(
        "kthread",
        Kind::Hex,
        "virtual address of its struct kthread",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

impl Kernel<'_> {
    /// The threads of a process, its first one included. What breaks their list off is a doubt.
    pub fn threads(
        &self,
        process: &Object<'_>,
        doubts: &mut Vec<String>,
    ) -> Result<Vec<Object<'_>>, LinuxError> {
        let Some(signal) = process.follow("signal", "signal_struct")? else {
            return Ok(vec![self.object("task_struct", process.va)]);
        };
        let walk = self.list(signal.at("thread_head")?, "task_struct", "thread_node")?;
        doubts.extend(walk.broken);
        let mut all: Vec<_> = walk
            .items
            .iter()
            .map(|va| self.object("task_struct", *va))
            .collect();
        if !walk.items.contains(&process.va) {
            all.insert(0, self.object("task_struct", process.va));
        }
        Ok(all)
    }
}

/// When a task was started, in nanoseconds after boot.
pub(in crate::linux) fn start_ns(task: &Object<'_>) -> Result<u64, LinuxError> {
    task.number(if task.has("start_boottime") {
        "start_boottime"
    } else {
        "real_start_time"
    })
}

/// The threads, process by process.
fn threads(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let clock = kernel.clock();
    for process in kernel.processes(&mut out.doubts)? {
        let all = match kernel.threads(&process, &mut out.doubts) {
            Ok(all) => all,
            Err(e) => {
                out.doubts
                    .push(format!("threads of task_struct at {:#x}: {e}", process.va));
                continue;
            }
        };
        for task in all {
            match thread(&task, clock.as_ref()) {
                Ok(row) => out.push(row),
                Err(e) => out
                    .doubts
                    .push(format!("task_struct at {:#x}: {e}", task.va)),
            }
        }
    }
    Ok(out)
}

fn thread(task: &Object<'_>, clock: Option<&Clock>) -> Result<Vec<Value>, LinuxError> {
    let cpu = ["cpu", "thread_info.cpu"].into_iter().find(|f| task.has(f));
    let start = start_ns(task)?;
    let stack = task.number("stack")?;
    Ok(vec![
        task.int("tgid")?.into(),
        task.int("pid")?.into(),
        task.text("comm")?.into(),
        state(task)?.into(),
        (task.number("flags")? & PF_KTHREAD != 0).into(),
        cpu.map(|f| task.int(f)).transpose()?.into(),
        clock.and_then(|c| c.utc(start)).into(),
        start.into(),
        (stack != 0).then_some(stack).into(),
        task.va.into(),
        task.physical().into(),
    ])
}

/// The kernel's threads.
fn kthreads(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(KERNEL_THREADS);
    // Kernels without data symbols have no list of modules to ask.
    let code = match CodeMap::new(kernel, &mut out.doubts) {
        Ok(code) => Some(code),
        Err(LinuxError::Symbol(_)) => None,
        Err(e) => return Err(e),
    };
    for task in kernel.processes(&mut out.doubts)? {
        if let Err(e) = kthread(kernel, &task, code.as_ref(), &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

/// The struct kthread of a thread of the kernel.
fn private<'k>(task: &Object<'k>) -> Result<Option<Object<'k>>, LinuxError> {
    let path = if task.has("worker_private") {
        "worker_private"
    } else {
        "set_child_tid"
    };
    task.follow(path, "kthread")
}

fn kthread(
    kernel: &Kernel<'_>,
    task: &Object<'_>,
    code: Option<&CodeMap<'_>>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    if task.number("flags")? & PF_KTHREAD == 0 {
        return Ok(());
    }
    let own = private(task)?;
    let (mut function, mut data, mut full) = (0, 0, Value::Null);
    if let Some(k) = &own {
        if k.has("threadfn") {
            function = k.number("threadfn")?;
        }
        data = k.number("data")?;
        if k.has("full_name") {
            let name = k.number("full_name")?;
            full = (name != 0).then(|| kernel.string(name)).transpose()?.into();
        }
    }
    let owner = code.filter(|_| function != 0).map(|c| c.owner(function));
    let symbol = match &owner {
        Some(o) => o.to_string().into(),
        None if function != 0 => nearest(kernel, function),
        None => Value::Null,
    };
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let what = format!("the function of kernel thread {comm}[{pid}]");
    out.push(vec![
        pid.into(),
        comm.into(),
        full,
        (function != 0).then_some(function).into(),
        symbol,
        owner.as_ref().and_then(|o| o.module()).into(),
        (data != 0).then_some(data).into(),
        own.map(|k| k.va).into(),
        task.va.into(),
        task.physical().into(),
    ]);
    if let Some(code) = code.filter(|_| function != 0) {
        judge(out, code, "kernel_thread_hook", &what, function);
    }
    Ok(())
}

/// The function that begins at an address; without a map of the code no more is said.
fn nearest(kernel: &Kernel<'_>, va: u64) -> Value {
    let found = kernel.symbols.nearest(VirtAddr(va));
    let exact = found.filter(|(_, offset)| *offset == 0);
    exact.map(|(s, _)| s.name).into()
}
