//! `linux/mountinfo`: the mounts of every mount namespace, as `/proc/<pid>/mountinfo` shows them.
//!
//! ```text
//! task.nsproxy.mnt_ns -> mnt_namespace { list of mount.mnt_list | mounts: tree of mount.mnt_node }
//! ```
//!
//! Options of a file system itself (`size=`, `lowerdir=`) are printed by its own functions and
//! aren't read.
//!
//! Sources: Linux `fs/mount.h`, `fs/proc_namespace.c`, `include/linux/mount.h`,
//! `include/linux/rbtree.h`.

use crate::linux::lsof::device;
use crate::linux::path::Paths;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::{BTreeMap, HashSet};

/// `linux/mountinfo`.
pub(in crate::linux) const MOUNTINFO: LinuxView = LinuxView {
    name: "linux/mountinfo",
    meaning: "mounts of every mount namespace",
    columns: MOUNTS,
    build: mountinfo,
    recover: None,
    on_request: false,
};

/// Columns of `linux/mountinfo`.
const MOUNTS: &[Column] = &[
    column("namespace", Kind::Number, "number of the mount namespace"),
    column(
        "pids",
        Kind::Text,
        "processes in it, the first few in the order of the task list",
    ),
    column("id", Kind::Number, "id of the mount"),
    column(
        "parent",
        Kind::Number,
        "id of the mount that it is mounted on",
    ),
    column("device", Kind::Text, "major:minor of the file system"),
    column(
        "root",
        Kind::Text,
        "what of the file system is mounted: / or a directory of it",
    ),
    column("path", Kind::Text, "where, from the root of the namespace"),
    column("options", Kind::Text, "flags of the mount: rw,relatime"),
    column("propagation", Kind::Text, "shared:N, master:N, unbindable"),
    column("type", Kind::Text, "name of the file system"),
    column("source", Kind::Text, "device or other source"),
    column(
        "super_options",
        Kind::Text,
        "flags of the file system: ro, sync; those of its own kind are not read",
    ),
    column("mount", Kind::Hex, "virtual address of its struct mount"),
    column(
        "super_block",
        Kind::Hex,
        "virtual address of its super_block",
    ),
    column(
        "physical",
        Kind::Hex,
        "physical address of its struct mount",
    ),
];

/// Nodes of a tree at most; the kernel's own limit is 100,000 mounts in a namespace.
const MAX: usize = 1 << 20;
/// Processes that are named.
const NAMED: usize = 8;

/// The mount namespaces of all tasks, with the processes in them, in the order of the task list.
pub(in crate::linux) fn namespaces(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<(u64, Vec<i64>)>, LinuxError> {
    let mut found: Vec<(u64, Vec<i64>)> = Vec::new();
    let mut place = BTreeMap::new();
    let mut tasks = vec![kernel.object("task_struct", kernel.address("init_task")?)];
    tasks.extend(kernel.processes(doubts)?);
    for task in tasks {
        let ns = task
            .follow("nsproxy", "nsproxy")
            .and_then(|p| p.map_or(Ok(0), |p| p.number("mnt_ns")));
        match ns {
            // What has ended has none.
            Ok(0) => {}
            Ok(ns) => {
                let i = *place.entry(ns).or_insert(found.len());
                if i == found.len() {
                    found.push((ns, Vec::new()));
                }
                if let Some((_, pids)) = found.get_mut(i) {
                    pids.push(task.int("tgid")?);
                }
            }
            Err(e) => doubts.push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    Ok(found)
}

/// The struct mounts of a namespace.
pub(in crate::linux) fn mounts(
    kernel: &Kernel<'_>,
    ns: u64,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    let object = kernel.object("mnt_namespace", ns);
    if object.has("list") {
        let walk = kernel.list(object.at("list")?, "mount", "mnt_list")?;
        doubts.extend(walk.broken);
        return Ok(walk.items);
    }
    let root = object.number("mounts.rb_node")?;
    let offset = kernel.symbols.types().field("mount", "mnt_node")?.offset;
    let nodes = tree(kernel, root, doubts)?;
    Ok(nodes.iter().map(|n| n.wrapping_sub(offset)).collect())
}

/// The nodes of a red-black tree, in order, each once.
fn tree(kernel: &Kernel<'_>, root: u64, doubts: &mut Vec<String>) -> Result<Vec<u64>, LinuxError> {
    let f = kernel.fields("rb_node", ["rb_left", "rb_right"])?;
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    let (mut stack, mut at) = (Vec::new(), root);
    loop {
        while at != 0 {
            if seen.len() == MAX || !seen.insert(at) {
                doubts.push(format!("the tree runs into itself at {at:#x}"));
                break;
            }
            match f.read(kernel, at) {
                Ok([left, right]) => {
                    stack.push((at, right));
                    at = left;
                }
                Err(e) => {
                    doubts.push(format!("rb_node at {at:#x}: {e}"));
                    break;
                }
            }
        }
        let Some((node, right)) = stack.pop() else {
            return Ok(out);
        };
        out.push(node);
        at = right;
    }
}

fn mountinfo(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(MOUNTS);
    let paths = Paths::new(kernel)?;
    for (ns, pids) in namespaces(kernel, &mut out.doubts)? {
        let object = kernel.object("mnt_namespace", ns);
        let all = object
            .number("ns.inum")
            .and_then(|inum| Ok((inum, mounts(kernel, ns, &mut out.doubts)?)));
        let (inum, all) = match all {
            Ok(a) => a,
            Err(e) => {
                out.doubts.push(format!("mnt_namespace at {ns:#x}: {e}"));
                continue;
            }
        };
        let mut named: Vec<String> = pids.iter().take(NAMED).map(i64::to_string).collect();
        if pids.len() > NAMED {
            named.push(format!("and {} more", pids.len() - NAMED));
        }
        let named = named.join(" ");
        for va in all {
            let m = kernel.object("mount", va);
            match row(&paths, &m) {
                Ok(cells) => {
                    let mut row = vec![inum.into(), named.as_str().into()];
                    row.extend(cells);
                    out.push(row);
                }
                Err(e) => out.doubts.push(format!("struct mount at {va:#x}: {e}")),
            }
        }
    }
    Ok(out)
}

/// The cells from the id on.
fn row(paths: &Paths<'_>, m: &Object<'_>) -> Result<Vec<Value>, LinuxError> {
    let parent = m.follow("mnt_parent", "mount")?;
    let (mut dev, mut ty, mut flags, mut sub) = (0, String::new(), 0, String::new());
    let kernel = m.kernel();
    let sb = m.number("mnt.mnt_sb")?;
    if let Some(sb) = m.follow("mnt.mnt_sb", "super_block")? {
        (dev, flags) = (sb.number("s_dev")?, sb.number("s_flags")?);
        if let Some(t) = sb.follow("s_type", "file_system_type")? {
            ty = kernel.text_at(t.number("name")?)?;
        }
        sub = kernel.text_at(sb.number("s_subtype")?)?;
    }
    if !sub.is_empty() {
        ty = format!("{ty}.{sub}");
    }
    let source = match m.number("mnt_devname")? {
        0 => "none".into(),
        name => kernel.text_at(name)?,
    };
    Ok(vec![
        m.int("mnt_id")?.into(),
        parent.map(|p| p.int("mnt_id")).transpose()?.into(),
        device(dev).into(),
        paths.inside(m.number("mnt.mnt_root")?)?.into(),
        paths.mountpoint(m.va)?.into(),
        options(m.number("mnt.mnt_flags")? & 0xffff_ffff).into(),
        propagation(m)?.into(),
        ty.into(),
        source.into(),
        super_options(flags).into(),
        m.va.into(),
        sb.into(),
        m.physical().into(),
    ])
}

/// Flags of a mount, in the order of `show_mnt_opts`.
fn options(flags: u64) -> String {
    let mut out = vec![if flags & 0x40 != 0 { "ro" } else { "rw" }];
    let names = [
        (0x01, "nosuid"),
        (0x02, "nodev"),
        (0x04, "noexec"),
        (0x08, "noatime"),
        (0x10, "nodiratime"),
        (0x20, "relatime"),
        (0x80, "nosymfollow"),
    ];
    out.extend(names.iter().filter(|(f, _)| flags & f != 0).map(|n| n.1));
    out.join(",")
}

/// Flags of a file system.
fn super_options(flags: u64) -> String {
    let mut out = vec![if flags & 1 != 0 { "ro" } else { "rw" }];
    let names = [
        (1 << 4, "sync"),
        (1 << 7, "dirsync"),
        (1 << 6, "mand"),
        (1 << 25, "lazytime"),
    ];
    out.extend(names.iter().filter(|(f, _)| flags & f != 0).map(|n| n.1));
    out.join(",")
}

/// How mounts below it spread. `MNT_SHARED` and `MNT_UNBINDABLE` were flags until 6.16.
fn propagation(m: &Object<'_>) -> Result<String, LinuxError> {
    let shared_flag = if m.has("mnt_t_flags") {
        m.number("mnt_t_flags")? & 1 != 0
    } else {
        m.number("mnt.mnt_flags")? & 0x1000 != 0
    };
    let unbindable = if m.has("mnt_t_flags") {
        m.number("mnt_t_flags")? & 2 != 0
    } else {
        m.number("mnt.mnt_flags")? & 0x2000 != 0
    };
    let mut out = Vec::new();
    if shared_flag {
        out.push(format!("shared:{}", m.int("mnt_group_id")?));
    }
    if let Some(master) = m.follow("mnt_master", "mount")? {
        out.push(format!("master:{}", master.int("mnt_group_id")?));
    }
    if unbindable {
        out.push("unbindable".into());
    }
    Ok(out.join(" "))
}
