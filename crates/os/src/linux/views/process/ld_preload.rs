//! `linux/ld_preload`: libraries that programs are made to load before all others, by their
//! environment or by `/etc/ld.so.preload` of the root that processes have.
//!
//! Sources: glibc `elf/rtld.c` for what is read; Linux `include/linux/dcache.h`.

use crate::linux::arguments::environments;
use crate::linux::inode::{Inodes, Pages};
use crate::linux::path::Paths;
use crate::linux::tree::children;
use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::BTreeMap;

/// `linux/ld_preload`.
pub(in crate::linux) const LD_PRELOAD: LinuxView = LinuxView {
    name: "linux/ld_preload",
    meaning: "libraries that programs are made to load before all others",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ld_preload`.
const COLUMNS: &[Column] = &[
    column(
        "source",
        Kind::Text,
        "`environment`, or `/etc/ld.so.preload`",
    ),
    column(
        "pid",
        Kind::Number,
        "process; of the file, the first one whose root has it",
    ),
    column("comm", Kind::Text, "name of its main thread"),
    column(
        "libraries",
        Kind::Text,
        "what is to be loaded; null where the file's content is not in memory",
    ),
    column("inode", Kind::Hex, "virtual address of the file's inode"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
    column("physical", Kind::Hex, "physical address of the task_struct"),
];

/// Bytes of the file that are shown at most.
const MAX: usize = 4096;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut roots = BTreeMap::new();
    for task in kernel.processes(&mut out.doubts)? {
        let root = task.follow("fs", "fs_struct");
        let root = root.and_then(|f| f.map(|f| f.number("root.dentry")).transpose());
        match root {
            Ok(Some(dentry)) => {
                roots.entry(dentry).or_insert(task);
            }
            // What has ended has none.
            Ok(None) => {}
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
        // What can't be read of environments is told by linux/envars.
        for v in environments(kernel, &task, &mut Vec::new()) {
            if v.key != "LD_PRELOAD" {
                continue;
            }
            let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
            out.push(vec![
                "environment".into(),
                pid.into(),
                comm.as_str().into(),
                v.value.as_str().into(),
                Value::Null,
                task.va.into(),
                task.physical().into(),
            ]);
            if !v.value.trim().is_empty() {
                let reason = format!(
                    "{comm}[{pid}] (task_struct at {:#x}) was started with LD_PRELOAD={}. \
                     fakeroot, jemalloc and the like are used in this way",
                    task.va, v.value
                );
                out.flag("ld_preload", Severity::Medium, reason);
            }
        }
    }
    let paths = Paths::new(kernel)?;
    for (dentry, task) in roots {
        let found = descend(kernel, &paths, dentry, &["etc", "ld.so.preload"], &mut out);
        let row = match found {
            Ok(Some(inode)) => file(kernel, inode, &task, &mut out),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = row {
            let doubt = format!("/etc/ld.so.preload below the dentry at {dentry:#x}: {e}");
            out.doubts.push(doubt);
        }
    }
    Ok(out)
}

/// The inode of a path below a dentry; mounts on the way are not followed.
fn descend(
    kernel: &Kernel<'_>,
    paths: &Paths<'_>,
    mut at: u64,
    names: &[&str],
    out: &mut Table,
) -> Result<Option<u64>, LinuxError> {
    for name in names {
        let mut found = None;
        for child in children(kernel, at, &mut out.doubts)? {
            let d = paths.dentry(child)?;
            if d.name == *name && d.parent == at && !d.unhashed && d.inode != 0 {
                found = Some(child);
                break;
            }
        }
        match found {
            Some(child) => at = child,
            None => return Ok(None),
        }
    }
    Ok(Some(paths.dentry(at)?.inode))
}

fn file(
    kernel: &Kernel<'_>,
    va: u64,
    task: &crate::linux::Object<'_>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let inode = Inodes::new(kernel)?.read(va)?;
    let mut text = None;
    if let Ok(pages) = Pages::new(kernel) {
        let content = pages.content(&inode, &mut out.doubts)?;
        let mut bytes = Vec::new();
        let read = content.pieces(kernel.space.memory(), &mut |_, piece| {
            let room = MAX.saturating_sub(bytes.len());
            bytes.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            Ok(())
        });
        let whole = read.is_ok_and(|lost| lost.is_empty());
        text = whole.then(|| String::from_utf8_lossy(&bytes).trim().to_owned());
    }
    out.push(vec![
        "/etc/ld.so.preload".into(),
        task.int("tgid")?.into(),
        task.text("comm")?.into(),
        text.as_deref().into(),
        va.into(),
        task.va.into(),
        task.physical().into(),
    ]);
    if inode.size > 0 && text.as_deref() != Some("") {
        let what = text.as_deref().unwrap_or("what is not in memory");
        let reason = format!(
            "/etc/ld.so.preload (inode at {va:#x}, {} bytes) makes every program load {what}",
            inode.size
        );
        out.flag("ld_preload", Severity::Medium, reason);
    }
    Ok(())
}
