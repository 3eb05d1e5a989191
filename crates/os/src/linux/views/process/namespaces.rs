//! `linux/namespaces`: what each process sees of the machine, its control groups, and the container
//! that those name.
//!
//! ```text
//! task.nsproxy    -> nsproxy { uts_ns, ipc_ns, mnt_ns, net_ns, cgroup_ns, time_ns } -> ns.inum
//! task.real_cred  -> cred.user_ns
//! task.thread_pid -> pid { level, numbers[level + 1] { nr, ns } }      the last one is its own
//! task.cgroups    -> css_set { dfl_cgrp -> cgroup.kn, cgrp_links -> cgrp_cset_link.cgrp }
//!                    kernfs_node { name, parent or __parent }
//! ```
//!
//! Names of control groups are a convention of the engines: `docker-<id>.scope`,
//! `kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`, `libpod-<id>.scope`. Of other
//! groups 64 hexadecimal digits are taken for a container's id, of an engine that isn't known.
//!
//! Sources: Linux `include/linux/nsproxy.h`, `include/linux/pid.h`, `include/linux/cgroup-defs.h`,
//! `kernel/cgroup/cgroup-internal.h`, `include/linux/kernfs.h`.

use crate::linux::credentials::inum;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Anomaly, Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{BTreeMap, HashMap, HashSet};

/// `linux/namespaces`.
pub(in crate::linux) const NAMESPACES: LinuxView = LinuxView {
    name: "linux/namespaces",
    meaning: "namespaces, control groups and containers of processes",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/namespaces`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id in the first pid namespace"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "pids",
        Kind::Text,
        "its process id in each pid namespace, the first one's first",
    ),
    column(
        "pid_ns",
        Kind::Number,
        "inode number of its own pid namespace",
    ),
    column("mnt_ns", Kind::Number, "of its mount namespace"),
    column("net_ns", Kind::Number, "of its network namespace"),
    column("uts_ns", Kind::Number, "of its UTS namespace"),
    column("ipc_ns", Kind::Number, "of its IPC namespace"),
    column("user_ns", Kind::Number, "of its user namespace"),
    column("cgroup_ns", Kind::Number, "of its cgroup namespace"),
    column("time_ns", Kind::Number, "of its time namespace"),
    column(
        "hostname",
        Kind::Text,
        "the machine's name in its UTS namespace",
    ),
    column(
        "cgroup",
        Kind::Text,
        "its control groups as /proc/<pid>/cgroup has them: hierarchy, controllers, path; one a line",
    ),
    column("container", Kind::Text, "id or name of its container"),
    column(
        "runtime",
        Kind::Text,
        "what runs that: docker, containerd, cri-o, podman, lxc, systemd-nspawn; null: not told",
    ),
    column("pod", Kind::Text, "uid of its pod of Kubernetes"),
    column(
        "nsproxy",
        Kind::Hex,
        "virtual address of its struct nsproxy",
    ),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// Pid namespaces inside each other at most (`MAX_PID_NS_LEVEL`).
const MAX_LEVEL: u64 = 32;
/// Control groups inside each other at most.
const MAX_DEPTH: usize = 256;
/// Processes above one at most that are looked at.
const MAX_PARENTS: usize = 64;
/// Controllers at most.
const MAX_CONTROLLERS: u64 = 32;

/// Members of nsproxy and the types that they lead to, in the order of the columns.
const KINDS: [(&str, &str); 6] = [
    ("mnt_ns", "mnt_namespace"),
    ("net_ns", "net"),
    ("uts_ns", "uts_namespace"),
    ("ipc_ns", "ipc_namespace"),
    ("cgroup_ns", "cgroup_namespace"),
    ("time_ns", "time_namespace"),
];

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut groups = HashMap::new();
    for task in kernel.processes(&mut out.doubts)? {
        match row(&task, &mut groups, &mut out.doubts) {
            Ok(row) => out.push(row),
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    judge(kernel, &mut out);
    Ok(out)
}

/// Programs that put others into namespaces: engines of containers, sandboxes, browsers, builders of packages.
const MAKERS: [&str; 34] = [
    "containerd",
    "dockerd",
    "runc",
    "crun",
    "podman",
    "conmon",
    "crio",
    "buildah",
    "buildkitd",
    "kubelet",
    "lxc-start",
    "lxd",
    "lxc",
    "incusd",
    "systemd-nspawn",
    "bwrap",
    "flatpak",
    "firejail",
    "snap-confine",
    "chrome",
    "chromium",
    "firefox",
    "firefox-bin",
    "electron",
    "code",
    "slack",
    "WebKitWebProces",
    "nix-daemon",
    "sbuild",
    "mock",
    "mmdebstrap",
    "pbuilder",
    "singularity",
    "apptainer",
];

/// Flags the first process of each pid namespace that has a mount namespace of its own as well, and that no known
/// program made: no control group names a container, and none of its parents is an engine or a sandbox.
fn judge(kernel: &Kernel<'_>, out: &mut Table) {
    let number = |out: &Table, row, name| match out.cell(row, name) {
        Some(Value::Number(n)) => Some(*n),
        _ => None,
    };
    let first = (0..out.rows.len()).find(|r| number(out, *r, "pid") == Some(1));
    let Some(first) = first else { return };
    let machine = ["pid_ns", "mnt_ns"].map(|n| number(out, first, n));
    if machine.contains(&None) {
        return;
    }
    let mut found: BTreeMap<i128, Vec<usize>> = BTreeMap::new();
    let mut known = HashSet::new();
    for row in 0..out.rows.len() {
        let own = ["pid_ns", "mnt_ns"].map(|n| number(out, row, n));
        let ([Some(pids), Some(_)], Some(task)) = (own, number(out, row, "task")) else {
            continue;
        };
        if own.iter().zip(&machine).any(|(a, b)| a == b) {
            continue;
        }
        let contained = matches!(out.cell(row, "container"), Some(Value::Text(_)));
        let made = || {
            parents(kernel, u64::try_from(task).unwrap_or(0))
                .iter()
                .any(|p| is_maker(p))
        };
        if contained || made() {
            known.insert(pids);
        }
        found.entry(pids).or_default().push(row);
    }
    for (pids, rows) in found.into_iter().filter(|(pids, _)| !known.contains(pids)) {
        let Some(row) = rows.first().copied() else {
            continue;
        };
        let text = |name| match out.cell(row, name) {
            Some(Value::Text(t)) => t.as_str(),
            _ => "?",
        };
        let reason = format!(
            "{} (pid {}, task_struct at {:#x}) and {} more processes have the pid namespace {pids} and mounts of their own, \
             and no container engine or sandbox that is known made them (hostname {:?}). unshare, builders of packages \
             and sandboxes of programs do that too",
            text("comm"),
            number(out, row, "pid").unwrap_or(0),
            number(out, row, "task").unwrap_or(0),
            rows.len() - 1,
            text("hostname"),
        );
        out.anomalies.push(Anomaly {
            row,
            rule: "namespaces_without_container",
            severity: Severity::Low,
            reason,
        });
    }
}

fn is_maker(comm: &str) -> bool {
    let long = |m: &str| m.len() > 6 && comm.starts_with(m);
    let maker = MAKERS.iter().any(|m| comm == *m || long(m));
    maker || comm.starts_with("lxc-")
}

/// Names of a process and of those above it.
fn parents(kernel: &Kernel<'_>, mut task: u64) -> Vec<String> {
    let mut out = Vec::new();
    while task != 0 && out.len() < MAX_PARENTS {
        let object = kernel.object("task_struct", task);
        let (Ok(comm), Ok(parent)) = (object.text("comm"), object.number("real_parent")) else {
            break;
        };
        out.push(comm);
        if parent == task {
            break;
        }
        task = parent;
    }
    out
}

fn row(
    task: &Object<'_>,
    groups: &mut HashMap<u64, String>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Value>, LinuxError> {
    let kernel = task.kernel();
    let (pids, pid_ns) = pids(task)?;
    // What has ended has left its namespaces.
    let proxy = task.follow("nsproxy", "nsproxy")?;
    let (mut inums, mut hostname) = ([const { Value::Null }; 6], Value::Null);
    if let Some(p) = &proxy {
        for (slot, (member, ty)) in inums.iter_mut().zip(KINDS) {
            let ns = if p.has(member) { p.number(member)? } else { 0 };
            if ns != 0 {
                *slot = inum(kernel, ty, ns)?.into();
            }
        }
        if let Some(uts) = p.follow("uts_ns", "uts_namespace")? {
            hostname = uts.text("name.nodename")?.into();
        }
    }
    let user = match task.follow("real_cred", "cred")? {
        Some(c) => Some(inum(kernel, "user_namespace", c.number("user_ns")?)?),
        None => None,
    };
    let set = task.number("cgroups")?;
    let group = match groups.get(&set) {
        Some(known) => known.clone(),
        None => {
            let lines = control_groups(kernel, set, doubts)?;
            groups.insert(set, lines.clone());
            lines
        }
    };
    let place = group
        .lines()
        .map(container)
        .find(|c| *c != Container::default());
    let place = place.unwrap_or_default();
    let [mnt, net, uts, ipc, cgroup, time] = inums;
    Ok(vec![
        task.int("tgid")?.into(),
        task.text("comm")?.into(),
        pids.into(),
        pid_ns.into(),
        mnt,
        net,
        uts,
        ipc,
        user.into(),
        cgroup,
        time,
        hostname,
        group.into(),
        place.id.into(),
        place.runtime.into(),
        place.pod.into(),
        proxy.map(|p| p.va).into(),
        task.va.into(),
        task.physical().into(),
    ])
}

/// The numbers of a task in each pid namespace, and the inode number of the last.
fn pids(task: &Object<'_>) -> Result<(String, Option<u64>), LinuxError> {
    let kernel = task.kernel();
    let Some(pid) = task.follow("thread_pid", "pid")? else {
        return Ok((String::new(), None));
    };
    let level = (pid.number("level")? & 0xffff_ffff).min(MAX_LEVEL);
    let (first, size) = (pid.at("numbers")?, kernel.symbols.types().size_of("upid")?);
    let (mut all, mut ns) = (Vec::new(), 0);
    for i in 0..=level {
        let upid = kernel.object("upid", first.wrapping_add(i * size));
        all.push(upid.int("nr")?.to_string());
        ns = upid.number("ns")?;
    }
    let ns = (ns != 0).then(|| inum(kernel, "pid_namespace", ns));
    Ok((all.join(" "), ns.transpose()?))
}

/// The lines of /proc/<pid>/cgroup for a set of groups.
fn control_groups(
    kernel: &Kernel<'_>,
    set: u64,
    doubts: &mut Vec<String>,
) -> Result<String, LinuxError> {
    if set == 0 {
        return Ok(String::new());
    }
    let set = kernel.object("css_set", set);
    let mut lines = Vec::new();
    let walk = kernel.list(set.at("cgrp_links")?, "cgrp_cset_link", "cgrp_link")?;
    doubts.extend(walk.broken);
    for link in walk.items {
        let link = kernel.object("cgrp_cset_link", link);
        let Some(group) = link.follow("cgrp", "cgroup")? else {
            continue;
        };
        let Some(root) = group.follow("root", "cgroup_root")? else {
            continue;
        };
        let id = root.int("hierarchy_id")?;
        // The hierarchy of version 2 has number 0 and comes last.
        if id != 0 {
            let name = controllers(kernel, &root)?;
            lines.push((id, format!("{id}:{name}:{}", path(&group)?)));
        }
    }
    lines.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    let mut lines: Vec<String> = lines.into_iter().map(|(_, l)| l).collect();
    if let Some(group) = set.follow("dfl_cgrp", "cgroup")? {
        lines.push(format!("0::{}", path(&group)?));
    }
    Ok(lines.join("\n"))
}

/// The controllers of a hierarchy of version 1, and its name if it has one.
fn controllers(kernel: &Kernel<'_>, root: &Object<'_>) -> Result<String, LinuxError> {
    let mask = root.number("subsys_mask")?;
    let mut all = Vec::new();
    if let Ok(names) = kernel.address("cgroup_subsys_name") {
        for i in (0..MAX_CONTROLLERS).filter(|i| mask >> i & 1 != 0) {
            let name = kernel.space.u64(names.wrapping_add(i * 8))?;
            all.push(kernel.string(name)?);
        }
    }
    let name = root.text("name")?;
    if !name.is_empty() {
        all.push(format!("name={name}"));
    }
    Ok(all.join(","))
}

/// The path of a control group below its hierarchy's root.
fn path(group: &Object<'_>) -> Result<String, LinuxError> {
    let kernel = group.kernel();
    let mut names = Vec::new();
    let mut at = group.number("kn")?;
    while at != 0 && names.len() < MAX_DEPTH {
        let node = kernel.object("kernfs_node", at);
        let up = if node.has("parent") {
            "parent"
        } else {
            "__parent"
        };
        let parent = node.number(up)?;
        if parent == 0 {
            break;
        }
        names.push(kernel.text_at(node.number("name")?)?);
        at = parent;
    }
    names.reverse();
    Ok(format!("/{}", names.join("/")))
}

/// What a control group says of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Container {
    id: Option<String>,
    runtime: Option<&'static str>,
    pod: Option<String>,
}

/// Beginnings of the names of groups, by engine.
const PREFIXES: [(&str, &str); 7] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("crio-conmon-", "cri-o"),
    ("crio-", "cri-o"),
    ("libpod-conmon-", "podman"),
    ("libpod-", "podman"),
    ("nerdctl-", "containerd"),
];

/// Takes a line of /proc/<pid>/cgroup apart.
fn container(line: &str) -> Container {
    let path = line.splitn(3, ':').nth(2).unwrap_or_default();
    let mut out = Container::default();
    let mut above = "";
    for part in path.split('/') {
        if let Some(uid) = pod(part) {
            out.pod = Some(uid);
        }
        let bare = part.strip_suffix(".scope").unwrap_or(part);
        if let Some(name) = part.strip_prefix("systemd-nspawn@") {
            let name = name.strip_suffix(".service").unwrap_or(name);
            (out.id, out.runtime) = (Some(name.to_owned()), Some("systemd-nspawn"));
        } else if let Some(name) = part.strip_prefix("lxc.payload.") {
            (out.id, out.runtime) = (Some(name.to_owned()), Some("lxc"));
        } else if above == "lxc" && !part.is_empty() {
            (out.id, out.runtime) = (Some(part.to_owned()), Some("lxc"));
        } else if let Some(id) = id(bare) {
            let by_name = PREFIXES.iter().find(|(p, _)| bare.starts_with(p));
            let by_place = (above == "docker").then_some("docker");
            out.runtime = by_name.map(|(_, r)| *r).or(by_place);
            out.id = Some(id.to_owned());
        }
        above = part;
    }
    out
}

/// Bytes of a container's id in hexadecimal digits.
const ID: usize = 64;

/// The 64 hexadecimal digits in a name that stand alone.
fn id(name: &str) -> Option<&str> {
    name.split(['-', ':', '.', '_'])
        .find(|p| p.len() == ID && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The pod's uid of a group of Kubernetes: `pod<uid>`, or
/// `kubepods-<class>-pod<uid with underscores>.slice`.
fn pod(part: &str) -> Option<String> {
    let bare = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match bare.strip_prefix("kubepods-") {
        Some(rest) => rest.rsplit_once("pod").map(|(_, uid)| uid)?,
        None => bare.strip_prefix("pod")?,
    };
    let digit = |b: u8| b.is_ascii_hexdigit() || b == b'-' || b == b'_';
    let whole = uid.len() >= 32 && uid.bytes().all(digit);
    whole.then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::{Container, container};

    const ID: &str = "13ec72d6eb6e71534d06260f999c29c25878634c6e6cc3c73a5aa53b7a04e5a6";
    const POD: &str = "8f3b1c6e-52c1-4d0e-9d0a-0123456789ab";

    fn check(path: &str, id: Option<&str>, runtime: Option<&'static str>, pod: Option<&str>) {
        let want = Container {
            id: id.map(str::to_owned),
            runtime,
            pod: pod.map(str::to_owned),
        };
        assert_eq!(container(&format!("0::{path}")), want, "{path}");
    }

    #[test]
    fn engines_are_told_by_the_names_of_groups() {
        let all = [
            (format!("/system.slice/docker-{ID}.scope"), Some("docker")),
            (format!("/docker/{ID}"), Some("docker")),
            (
                format!("/user.slice/libpod-{ID}.scope/container"),
                Some("podman"),
            ),
            (format!("/lab.slice/ctr-{ID}.scope"), None),
        ];
        for (path, runtime) in all {
            check(&path, Some(ID), runtime, None);
        }
        let slice = POD.replace('-', "_");
        let below = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod";
        let path = format!("{below}{slice}.slice/cri-containerd-{ID}.scope");
        check(&path, Some(ID), Some("containerd"), Some(POD));
        let path = format!("{below}{slice}.slice/crio-{ID}.scope");
        check(&path, Some(ID), Some("cri-o"), Some(POD));
        let path = format!("/kubepods/besteffort/pod{POD}/{ID}");
        check(&path, Some(ID), None, Some(POD));
        check(
            "/lxc.payload.web/init.scope",
            Some("web"),
            Some("lxc"),
            None,
        );
        check("/lxc/web", Some("web"), Some("lxc"), None);
        let path = "/machine.slice/systemd-nspawn@deb.service/payload";
        check(path, Some("deb"), Some("systemd-nspawn"), None);
    }

    #[test]
    fn other_groups_are_no_containers() {
        for path in [
            "/",
            "/system.slice/ssh.service",
            "/user.slice/podman.service",
            "",
        ] {
            assert_eq!(
                container(&format!("0::{path}")),
                Container::default(),
                "{path}"
            );
        }
    }
}
