//! `linux/boottime`: when the machine was started and when it was captured, for each time namespace.
//!
//! Sources: Linux `include/linux/time_namespace.h`, `kernel/time/timekeeping.c` (`getboottime64`).

use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::BTreeMap;

/// `linux/boottime`.
pub(in crate::linux) const BOOTTIME: LinuxView = LinuxView {
    name: "linux/boottime",
    meaning: "when the machine was started and captured, by time namespace",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/boottime`.
const COLUMNS: &[Column] = &[
    column(
        "time_ns",
        Kind::Number,
        "inode number of the time namespace; null where the kernel has none",
    ),
    column(
        "boot",
        Kind::Time,
        "when the machine was started, as the namespace sees it",
    ),
    column(
        "captured",
        Kind::Time,
        "its clock at the last tick before the capture, in whole seconds",
    ),
    column(
        "uptime_s",
        Kind::Number,
        "seconds from the one to the other",
    ),
    column("slept_ns", Kind::Number, "nanoseconds that it slept since"),
    column("processes", Kind::Number, "processes in the namespace"),
    column(
        "va",
        Kind::Hex,
        "virtual address of its struct time_namespace; null where there is none",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let Some(clock) = kernel.clock() else {
        return Err(LinuxError::Symbol("tk_core"));
    };
    let mut spaces: BTreeMap<u64, u64> = BTreeMap::new();
    if kernel.symbols.types().has_field("nsproxy", "time_ns") {
        for task in kernel.processes(&mut out.doubts)? {
            let ns = task.follow("nsproxy", "nsproxy");
            match ns.and_then(|n| n.map(|n| n.number("time_ns")).transpose()) {
                Ok(Some(va)) => *spaces.entry(va).or_default() += 1,
                // A zombie has none.
                Ok(None) => {}
                Err(e) => out
                    .doubts
                    .push(format!("task_struct at {:#x}: {e}", task.va)),
            }
        }
    }
    if spaces.is_empty() {
        spaces.insert(0, 0);
    }
    for (va, processes) in spaces {
        let (mut inode, mut shift, mut physical) = (Value::Null, 0i64, None);
        if va != 0 {
            let ns = kernel.object("time_namespace", va);
            physical = ns.physical();
            match (ns.number("ns.inum"), ns.number("offsets.boottime.tv_sec")) {
                (Ok(n), Ok(s)) => (inode, shift) = (n.into(), s as i64),
                (Err(e), _) | (_, Err(e)) => {
                    out.doubts.push(format!("time_namespace at {va:#x}: {e}"));
                }
            }
        }
        let boot = clock
            .boot()
            .and_then(|b| b.checked_sub(shift.checked_mul(1_000_000)?));
        let captured = i64::try_from(clock.seconds)
            .ok()
            .and_then(|s| s.checked_mul(1_000_000));
        let up = boot
            .zip(captured)
            .map(|(b, c)| c.saturating_sub(b) / 1_000_000);
        out.push(vec![
            inode,
            boot.into(),
            captured.into(),
            up.into(),
            clock.offs_boot.into(),
            if va == 0 {
                Value::Null
            } else {
                processes.into()
            },
            (va != 0).then_some(va).into(),
            physical.into(),
        ]);
        if let Some(t) = boot.filter(|_| shift == 0) {
            out.event(t, "machine started", "the machine was started");
        }
        if let Some(t) = captured.filter(|_| shift == 0) {
            out.event(
                t,
                "machine captured",
                "the machine's clock when it was captured",
            );
        }
    }
    Ok(out)
}
