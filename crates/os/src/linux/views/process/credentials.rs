//! `linux/capabilities` and `linux/creds`: what processes may do, and as whom.
//!
//! ```text
//! task.real_cred -> cred { uid, euid, ..., cap_effective, ..., user_ns, group_info }
//! ```
//!
//! Threads of one process share their `struct cred`, and threads of the kernel share the first
//! one's. A fork copies it and so does exec, so two processes of users never have the same one: a
//! rootkit that gives a process the rights of another by copying its pointer makes that.
//!
//! Sources: Linux `include/linux/cred.h`, `kernel/cred.c` (`copy_creds`),
//! `include/uapi/linux/capability.h`, `include/linux/seccomp.h`, `include/linux/sched.h`.

use crate::linux::pslist::PF_KTHREAD;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::BTreeMap;

/// `linux/capabilities`.
pub(in crate::linux) const CAPABILITIES: LinuxView = LinuxView {
    name: "linux/capabilities",
    meaning: "capabilities of processes",
    columns: RIGHTS,
    build: capabilities,
    recover: None,
    on_request: false,
};

/// Columns of `linux/capabilities`.
const RIGHTS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("euid", Kind::Number, "effective user id"),
    column("effective", Kind::Hex, "capabilities that count"),
    column(
        "effective_names",
        Kind::Text,
        "their names; `all` where nothing is missing, else with spaces between",
    ),
    column("permitted", Kind::Hex, "those that it may take"),
    column("inheritable", Kind::Hex, "those that files may give on"),
    column("bounding", Kind::Hex, "those that it may ever get"),
    column(
        "ambient",
        Kind::Hex,
        "those that any program it starts gets",
    ),
    column(
        "user_ns",
        Kind::Number,
        "inode number of the user namespace in which they count",
    ),
    column("cred", Kind::Hex, "virtual address of the struct cred"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
    column("physical", Kind::Hex, "physical address of the task_struct"),
];

/// `linux/creds`.
pub(in crate::linux) const CREDS: LinuxView = LinuxView {
    name: "linux/creds",
    meaning: "user and group ids of processes, and what else limits them",
    columns: IDS,
    build: creds,
    recover: None,
    on_request: false,
};

/// Columns of `linux/creds`.
const IDS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("uid", Kind::Number, "real user id"),
    column("euid", Kind::Number, "effective user id"),
    column("suid", Kind::Number, "saved user id"),
    column("fsuid", Kind::Number, "user id towards file systems"),
    column("gid", Kind::Number, "real group id"),
    column("egid", Kind::Number, "effective group id"),
    column("sgid", Kind::Number, "saved group id"),
    column("fsgid", Kind::Number, "group id towards file systems"),
    column("groups", Kind::Text, "further groups, with spaces between"),
    column(
        "securebits",
        Kind::Hex,
        "which of root's privileges are off",
    ),
    column(
        "no_new_privs",
        Kind::Flag,
        "whether programs that it starts can't have more rights",
    ),
    column("seccomp", Kind::Number, "0 off, 1 strict, 2 filter"),
    column(
        "overridden",
        Kind::Flag,
        "whether it acts with another cred for the moment",
    ),
    column(
        "shared_with",
        Kind::Text,
        "processes that have the same struct cred, of threads of the kernel null",
    ),
    column("cred", Kind::Hex, "virtual address of the struct cred"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
    column("physical", Kind::Hex, "physical address of the task_struct"),
];

/// Names of the capabilities by number.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// Groups of a process at most (`NGROUPS_MAX`).
const MAX_GROUPS: u64 = 65_536;
/// Processes that are named in one place at most.
const TOLD: usize = 8;

/// The names of a set.
fn names(set: u64, all: u64) -> String {
    if set != 0 && set & all == all {
        return "all".into();
    }
    let name = |i: usize| NAMES.get(i).map_or_else(|| i.to_string(), |n| (*n).into());
    let bits = (0..64usize).filter(|i| set >> i & 1 != 0);
    bits.map(name).collect::<Vec<String>>().join(" ")
}

/// A set of capabilities: two halves or one word, of 8 bytes either way.
fn set(cred: &Object<'_>, path: &str) -> Result<u64, LinuxError> {
    Ok(cred.kernel().space.u64(cred.at(path)?)?)
}

/// The cred of a task itself; what it acts with for the moment is `cred`.
fn own<'k>(task: &Object<'k>) -> Result<Option<Object<'k>>, LinuxError> {
    task.follow("real_cred", "cred")
}

fn capabilities(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(RIGHTS);
    let init = kernel.object("task_struct", kernel.address("init_task")?);
    let (mut host, mut all) = (0, u64::MAX);
    if let Some(c) = own(&init)? {
        host = c.number("user_ns")?;
        all = set(&c, "cap_effective")?;
    }
    for task in kernel.processes(&mut out.doubts)? {
        if let Err(e) = rights(&task, host, all, &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

fn rights(task: &Object<'_>, host: u64, all: u64, out: &mut Table) -> Result<(), LinuxError> {
    let Some(cred) = own(task)? else {
        return Ok(());
    };
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let (euid, ns) = (cred.number("euid.val")?, cred.number("user_ns")?);
    let (effective, permitted) = (set(&cred, "cap_effective")?, set(&cred, "cap_permitted")?);
    let number = match ns {
        0 => Value::Null,
        ns => inum(cred.kernel(), "user_namespace", ns)?.into(),
    };
    out.push(vec![
        pid.into(),
        comm.as_str().into(),
        euid.into(),
        effective.into(),
        names(effective, all).into(),
        permitted.into(),
        set(&cred, "cap_inheritable")?.into(),
        set(&cred, "cap_bset")?.into(),
        set(&cred, "cap_ambient")?.into(),
        number,
        cred.va.into(),
        task.va.into(),
        task.physical().into(),
    ]);
    // Inside a user namespace of its own everybody may do everything.
    if euid != 0 && permitted != 0 && ns == host {
        let reason = format!(
            "{comm}[{pid}] (task_struct at {:#x}) of user {euid} has capabilities: {}",
            task.va,
            names(permitted, all)
        );
        out.flag("capable_without_root", Severity::Low, reason);
    }
    Ok(())
}

/// The inode number of a namespace.
pub(in crate::linux) fn inum(
    kernel: &Kernel<'_>,
    ty: &'static str,
    va: u64,
) -> Result<u64, LinuxError> {
    Ok(kernel.object(ty, va).number("ns.inum")? & 0xffff_ffff)
}

fn creds(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(IDS);
    let tasks = kernel.processes(&mut out.doubts)?;
    let mut users: BTreeMap<u64, Vec<(u64, bool, String)>> = BTreeMap::new();
    for task in &tasks {
        let name = || -> Result<_, LinuxError> {
            let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
            let kernels = task.number("flags")? & PF_KTHREAD != 0;
            Ok((task.number("real_cred")?, kernels, format!("{comm}[{pid}]")))
        };
        // What can't be read is told with its row.
        if let Ok((cred, kernels, name)) = name() {
            users
                .entry(cred)
                .or_default()
                .push((task.va, kernels, name));
        }
    }
    // The first task is in no list, and its cred is the one that is worth most.
    let init = kernel.object("task_struct", kernel.address("init_task")?);
    let first = (init.va, true, format!("{}[0]", init.text("comm")?));
    users
        .entry(init.number("real_cred")?)
        .or_default()
        .push(first);
    for task in &tasks {
        if let Err(e) = ids(task, &users, &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

/// Processes by the cred that they have: task, whether it is the kernel's, name.
type Users = BTreeMap<u64, Vec<(u64, bool, String)>>;

fn ids(task: &Object<'_>, users: &Users, out: &mut Table) -> Result<(), LinuxError> {
    let Some(cred) = own(task)? else {
        return Ok(());
    };
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    let kernels = task.number("flags")? & PF_KTHREAD != 0;
    let same = users.get(&cred.va).map(Vec::as_slice).unwrap_or_default();
    let others = same.iter().filter(|(va, ..)| *va != task.va && !kernels);
    let mut others: Vec<&str> = others.map(|(_, _, n)| n.as_str()).collect();
    let count = others.len();
    others.truncate(TOLD);
    let mut shared = others.join(" ");
    if count > TOLD {
        shared.push_str(&format!(" and {} more", count - TOLD));
    }
    let mut row: Vec<Value> = vec![pid.into(), comm.as_str().into()];
    for id in [
        "uid.val",
        "euid.val",
        "suid.val",
        "fsuid.val",
        "gid.val",
        "egid.val",
        "sgid.val",
        "fsgid.val",
    ] {
        row.push(cred.number(id)?.into());
    }
    row.extend([
        groups(&cred)?.into(),
        cred.number("securebits")?.into(),
        no_new_privs(task)?.into(),
        seccomp(task)?.into(),
        (task.number("cred")? != cred.va).into(),
        (count > 0).then_some(shared.as_str()).into(),
        cred.va.into(),
        task.va.into(),
        task.physical().into(),
    ]);
    out.push(row);
    if count > 0 {
        let reason = format!(
            "{comm}[{pid}] (task_struct at {:#x}) has the same struct cred at {:#x} as {shared}: \
             the kernel gives each process its own, so the pointer was copied",
            task.va, cred.va
        );
        out.flag("shared_credentials", Severity::High, reason);
    }
    Ok(())
}

/// The further groups of a cred.
fn groups(cred: &Object<'_>) -> Result<String, LinuxError> {
    let Some(info) = cred.follow("group_info", "group_info")? else {
        return Ok(String::new());
    };
    let count = (info.number("ngroups")? & 0xffff_ffff).min(MAX_GROUPS);
    let mut raw = vec![0; usize::try_from(count * 4).unwrap_or(0)];
    cred.kernel().space.read(info.at("gid")?, &mut raw)?;
    let ids = raw.as_chunks::<4>().0.iter();
    let ids: Vec<String> = ids.map(|b| u32::from_le_bytes(*b).to_string()).collect();
    Ok(ids.join(" "))
}

/// Bit 0 of the flags that are changed atomically (`PFA_NO_NEW_PRIVS`).
fn no_new_privs(task: &Object<'_>) -> Result<bool, LinuxError> {
    Ok(task.number("atomic_flags")? & 1 != 0)
}

fn seccomp(task: &Object<'_>) -> Result<Option<i64>, LinuxError> {
    let path = "seccomp.mode";
    task.has(path).then(|| task.int(path)).transpose()
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn sets_are_named() {
        let all = (1 << 41) - 1;
        assert_eq!(names(0, all), "");
        assert_eq!(names(all, all), "all");
        assert_eq!(names(1 << 13 | 1 << 21, all), "net_raw sys_admin");
        assert_eq!(names(1 << 40 | 1 << 50, all), "checkpoint_restore 50");
    }
}
