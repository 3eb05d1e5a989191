//! `linux/psscan`: task structs found by their shape, in the lists or not, ended ones included.
//!
//! ```text
//! physical memory of the map of all memory, once, 8 bytes at a time:
//! a pointer to a scheduling class at task_struct.sched_class -> the struct around it -> checks
//! ```
//!
//! The classes are those of the listed tasks and the first one, and the kernel's symbols for them. A struct
//! counts if its lists of children and of traced tasks begin at their own address in the map (or
//! lead into the kernel), and its name, ids, priority, stack and pointers can be a task's. What
//! has ended is found until its memory is used again or zeroed (`init_on_free=1`). The first
//! CPU's idle task lies in the kernel's image and isn't looked for.
//!
//! Sources: Linux `include/linux/sched.h`, `kernel/sched/sched.h`, `kernel/fork.c`; Volatility 3
//! `plugins/linux/psscan.py` for the name.

use crate::linux::pslist::{PF_KTHREAD, state};
use crate::linux::threads::start_ns;
use crate::linux::{Clock, Fields, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{Mapped, mappings};
use std::collections::BTreeSet;
use std::ops::Range;

/// `linux/psscan`.
pub(in crate::linux) const PSSCAN: LinuxView = LinuxView {
    name: "linux/psscan",
    meaning: "tasks found by a scan of memory, those that have ended included",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/psscan`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("tid", Kind::Number, "thread id; 0 of a CPU's idle task"),
    column("comm", Kind::Text, "name of the thread"),
    column("state", Kind::Text, "as /proc would show it"),
    column(
        "ended",
        Kind::Flag,
        "whether it is gone and only its memory is left",
    ),
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
    column("exit_code", Kind::Hex, "how it ended"),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// Bytes read at a time.
const STEP: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Pages of tables that are read to find what is mapped: enough for 512 GiB in pages of 4 KiB.
const TABLES: usize = 1 << 18;
/// Tasks at most.
const MAX: usize = 1 << 20;
/// The highest process id (`PID_MAX_LIMIT`).
const MAX_PID: u64 = 1 << 22;
/// The lower half is the processes'.
const KERNEL_HALF: u64 = 1 << 63;
/// `EXIT_DEAD`, `EXIT_ZOMBIE` and `TASK_DEAD` of `include/linux/sched.h`.
const EXIT_DEAD: u64 = 0x10;
const EXIT_ZOMBIE: u64 = 0x20;
const TASK_DEAD: u64 = 0x80;

/// Names of the scheduling classes.
const CLASSES: [&str; 6] = [
    "fair_sched_class",
    "rt_sched_class",
    "dl_sched_class",
    "idle_sched_class",
    "stop_sched_class",
    "ext_sched_class",
];

/// Whether a task is gone: no list has it any more.
pub(in crate::linux) fn ended(task: &Object<'_>) -> Result<bool, LinuxError> {
    let running = if task.has("__state") {
        "__state"
    } else {
        "state"
    };
    let (exit, running) = (task.number("exit_state")?, task.number(running)?);
    let usage = task.number("usage")? & 0xffff_ffff;
    // A zombie is dead too, but in the lists until its parent asks.
    let dead = running & TASK_DEAD != 0 && exit & EXIT_ZOMBIE == 0;
    Ok(exit & EXIT_DEAD != 0 || dead || usage == 0)
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let clock = kernel.clock();
    for va in scan(kernel, &mut out.doubts)? {
        match row(&kernel.object("task_struct", va), clock.as_ref()) {
            Ok(row) => out.push(row),
            Err(e) => out.doubts.push(format!("task_struct at {va:#x}: {e}")),
        }
    }
    Ok(out)
}

fn row(task: &Object<'_>, clock: Option<&Clock>) -> Result<Vec<Value>, LinuxError> {
    let start = start_ns(task)?;
    Ok(vec![
        task.int("tgid")?.into(),
        task.int("pid")?.into(),
        task.text("comm")?.into(),
        state(task)?.into(),
        ended(task)?.into(),
        (task.number("flags")? & PF_KTHREAD != 0).into(),
        clock.and_then(|c| c.utc(start)).into(),
        start.into(),
        (task.number("exit_code")? & 0xffff_ffff).into(),
        task.va.into(),
        task.physical().into(),
    ])
}

/// What listed tasks tell of all others.
struct Shape {
    /// Virtual minus physical address in the map of all memory.
    delta: u64,
    classes: BTreeSet<u64>,
    /// Task structs begin at multiples of this.
    align: u64,
    /// Where `sched_class` is in the struct.
    class: u64,
    fields: Fields<16>,
}

const FIELDS: [&str; 16] = [
    "stack",
    "pid",
    "tgid",
    "prio",
    "real_parent",
    "parent",
    "group_leader",
    "signal",
    "sighand",
    "real_cred",
    "children.next",
    "children.prev",
    "ptraced.next",
    "ptraced.prev",
    "comm",
    "mm",
];

fn shape(kernel: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Option<Shape>, LinuxError> {
    let types = kernel.symbols.types();
    let class = types.field("task_struct", "sched_class")?.offset;
    let symbols = CLASSES.iter().filter_map(|n| kernel.symbols.address(n));
    let mut classes: BTreeSet<u64> = symbols.map(|a| a.0).collect();
    let (mut delta, mut bits) = (None, 6);
    // The first CPU's idle task, whose class no listed one has.
    let init = kernel.address("init_task")?;
    classes.insert(kernel.space.u64(init.wrapping_add(class))?);
    for process in kernel.processes(doubts)? {
        for task in kernel.threads(&process, doubts)? {
            bits = bits.min(task.va.trailing_zeros());
            if let Ok(c) = kernel.space.u64(task.va.wrapping_add(class))
                && c >= KERNEL_HALF
            {
                classes.insert(c);
            }
            if delta.is_none() {
                delta = task.physical().map(|pa| task.va.wrapping_sub(pa));
            }
        }
    }
    let fields = kernel.fields("task_struct", FIELDS)?;
    Ok(delta.map(|delta| Shape {
        delta,
        classes,
        align: 1 << bits,
        class,
        fields,
    }))
}

/// Virtual addresses of task structs in the map of all memory, and what is doubtful.
pub(in crate::linux) type Scanned = Result<(Vec<u64>, Vec<String>), LinuxError>;

/// Virtual addresses of task structs in the map of all memory, which is gone through once, whoever asks.
pub(in crate::linux) fn scan(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    let scanned = kernel.scanned.get_or_init(|| {
        let mut doubts = Vec::new();
        let found = go_through(kernel, &mut doubts)?;
        Ok((found, doubts))
    });
    let (found, more) = scanned.as_ref().map_err(Clone::clone)?;
    doubts.extend(more.iter().cloned());
    Ok(found.clone())
}

fn go_through(kernel: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Vec<u64>, LinuxError> {
    let Some(shape) = shape(kernel, doubts)? else {
        doubts.push("no listed task tells where the map of all memory is".into());
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    for range in memory(kernel, shape.delta) {
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(STEP);
            let mut buf = vec![0; usize::try_from(n).unwrap_or(0)];
            if kernel
                .space
                .memory()
                .read_phys(PhysAddr(at), &mut buf)
                .is_ok()
            {
                search(kernel, &shape, at, &buf, &mut out);
            } else {
                for page in (at..at + n).step_by(PAGE as usize) {
                    let mut buf = vec![0; PAGE as usize];
                    // What the image doesn't have holds no tasks.
                    let read = kernel.space.memory().read_phys(PhysAddr(page), &mut buf);
                    if read.is_ok() {
                        search(kernel, &shape, page, &buf, &mut out);
                    }
                }
            }
            at += n;
        }
    }
    if out.len() >= MAX {
        doubts.push(format!("more than {MAX} tasks were found"));
    }
    Ok(out)
}

/// The physical memory that the map of all memory shows.
fn memory(kernel: &Kernel<'_>, delta: u64) -> Vec<Range<u64>> {
    let shape = kernel.space.shape();
    let bits = shape.va_bits().min(63);
    let mask = (1u64 << bits) - 1;
    let (mut budget, mut found) = (TABLES, Vec::<Range<u64>>::new());
    let (memory, dtb) = (kernel.space.memory(), kernel.space.dtb());
    mappings(memory, shape, dtb, 0..1 << bits, &mut budget, &mut |m| {
        let Mapped::Page { va, pa, len, .. } = m else {
            return;
        };
        if va & mask != pa.0.wrapping_add(delta) & mask {
            return;
        }
        let end = pa.0.saturating_add(len);
        match found.last_mut() {
            Some(l) if l.end == pa.0 => l.end = end,
            _ => found.push(pa.0..end),
        }
    });
    found
}

/// Tasks whose pointer to a scheduling class is in these bytes.
fn search(kernel: &Kernel<'_>, shape: &Shape, pa: u64, bytes: &[u8], out: &mut Vec<u64>) {
    let (Some(low), Some(high)) = (shape.classes.first(), shape.classes.last()) else {
        return;
    };
    for (i, w) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*w);
        if !(*low..=*high).contains(&word) || !shape.classes.contains(&word) {
            continue;
        }
        let at = pa.wrapping_add(i as u64 * 8).wrapping_add(shape.delta);
        let va = at.wrapping_sub(shape.class);
        if va.is_multiple_of(shape.align) && out.len() < MAX && is_task(kernel, shape, va) {
            out.push(va);
        }
    }
}

fn is_task(kernel: &Kernel<'_>, shape: &Shape, va: u64) -> bool {
    let Ok(
        [
            stack,
            pid,
            tgid,
            prio,
            real_parent,
            parent,
            leader,
            signal,
            sighand,
            cred,
            children,
            children_end,
            traced,
            traced_end,
            _,
            mm,
        ],
    ) = shape.fields.read(kernel, va)
    else {
        return false;
    };
    let pointer = |p: u64| p >= KERNEL_HALF && p.is_multiple_of(8);
    let optional = |p: u64| p == 0 || pointer(p);
    // Both ends at itself, or neither.
    let list = |i: usize, next: u64, prev: u64| {
        let own = shape.fields.address(va, i);
        pointer(next) && pointer(prev) && (next == own) == (prev == own)
    };
    let childless = children == shape.fields.address(va, 10);
    let tracing = traced != shape.fields.address(va, 12);
    // Deadlines have priority -1.
    let prio = (prio & 0xffff_ffff) as u32 as i32;
    optional(stack)
        && stack.is_multiple_of(PAGE)
        && pid <= MAX_PID
        && tgid <= MAX_PID
        && (tgid != 0) == (pid != 0)
        && (-1..=140).contains(&prio)
        && [real_parent, parent, leader].into_iter().all(pointer)
        && [signal, sighand, cred, mm].into_iter().all(optional)
        && list(10, children, children_end)
        && list(12, traced, traced_end)
        && (childless || !tracing)
        && is_name(kernel, shape.fields.address(va, 14))
}

/// Whether 16 bytes can be a task's name: text up to a NUL.
fn is_name(kernel: &Kernel<'_>, va: u64) -> bool {
    let mut raw = [0; 16];
    if kernel.space.read(va, &mut raw).is_err() {
        return false;
    }
    let end = raw.iter().position(|b| *b == 0);
    end.is_some_and(|n| n > 0 && raw[..n].iter().all(|b| *b >= 0x20 && *b != 0x7f))
}
