//! `linux/uname` and `linux/cmdline`: how the machine calls itself and what it was started with.
//!
//! Sources: Linux `include/linux/utsname.h`, `init/main.c` (`saved_command_line`).

use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::BTreeMap;

/// `linux/uname`.
pub(in crate::linux) const UNAME: LinuxView = LinuxView {
    name: "linux/uname",
    meaning: "names of the system, by UTS namespace",
    columns: NAMES,
    build: uname,
    recover: None,
    on_request: false,
};

/// Columns of `linux/uname`.
const NAMES: &[Column] = &[
    column("uts_ns", Kind::Number, "inode number of the UTS namespace"),
    column("sysname", Kind::Text, "the system"),
    column("nodename", Kind::Text, "the host's name"),
    column("release", Kind::Text, "the kernel's release"),
    column("version", Kind::Text, "the kernel's build"),
    column("machine", Kind::Text, "the processor"),
    column("domainname", Kind::Text, "the NIS domain"),
    column("processes", Kind::Number, "processes in the namespace"),
    column(
        "va",
        Kind::Hex,
        "virtual address of its struct uts_namespace",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

/// `linux/cmdline`.
pub(in crate::linux) const CMDLINE: LinuxView = LinuxView {
    name: "linux/cmdline",
    meaning: "the kernel's command line",
    columns: COMMAND,
    build: cmdline,
    recover: None,
    on_request: false,
};

/// Columns of `linux/cmdline`.
const COMMAND: &[Column] = &[
    column("command_line", Kind::Text, "what /proc/cmdline shows"),
    column("va", Kind::Hex, "virtual address of the text"),
    column("physical", Kind::Hex, "physical address of the text"),
];

/// Bytes of a command line at most.
const MAX: usize = 64 << 10;

fn uname(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(NAMES);
    let mut spaces: BTreeMap<u64, u64> = BTreeMap::new();
    if let Some(init) = kernel.symbols.address("init_uts_ns") {
        spaces.insert(init.0, 0);
    }
    for task in kernel.processes(&mut out.doubts)? {
        let ns = task.follow("nsproxy", "nsproxy");
        match ns.and_then(|n| n.map(|n| n.number("uts_ns")).transpose()) {
            Ok(Some(va)) => *spaces.entry(va).or_default() += 1,
            // A zombie has none.
            Ok(None) => {}
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    for (va, processes) in spaces {
        let ns = kernel.object("uts_namespace", va);
        let names = || -> Result<Vec<Value>, LinuxError> {
            let mut row = vec![ns.number("ns.inum")?.into()];
            for field in [
                "sysname",
                "nodename",
                "release",
                "version",
                "machine",
                "domainname",
            ] {
                row.push(ns.text(&format!("name.{field}"))?.into());
            }
            row.extend([processes.into(), va.into(), ns.physical().into()]);
            Ok(row)
        };
        match names() {
            Ok(row) => out.push(row),
            Err(e) => out.doubts.push(format!("uts_namespace at {va:#x}: {e}")),
        }
    }
    Ok(out)
}

fn cmdline(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COMMAND);
    let va = kernel.u64_at("saved_command_line")?;
    out.push(vec![
        kernel.text(va, MAX)?.into(),
        va.into(),
        kernel.space.translate(va).ok().map(|p| p.0).into(),
    ]);
    Ok(out)
}
