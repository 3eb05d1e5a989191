//! `linux/exe`: the file that each process runs, whether it is still there, and its hash.
//!
//! ```text
//! task.mm -> mm_struct.exe_file -> file { f_path, f_inode -> inode.i_mapping -> pages }
//! ```
//!
//! The hash is that of the file as the page cache has it, given only where all of it is cached. A
//! file that was replaced by an upgrade runs on under its old, deleted name.
//!
//! Sources: Linux `include/linux/mm_types.h`, `fs/proc/base.c` (`proc_exe_link`), `mm/memfd.c`.

use crate::linux::inode::{Inodes, Pages};
use crate::linux::path::Paths;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write;

/// `linux/exe`.
pub(in crate::linux) const EXE: LinuxView = LinuxView {
    name: "linux/exe",
    meaning: "the files that processes run, with hashes of those that are whole in memory",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/exe`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "path",
        Kind::Text,
        "path of the file, as /proc/<pid>/exe shows it; null where the process has closed it",
    ),
    column("deleted", Kind::Flag, "whether its name is gone"),
    column(
        "memfd",
        Kind::Flag,
        "whether it never had one: a memfd file",
    ),
    column("inode_number", Kind::Number, "number of the inode"),
    column("size", Kind::Number, "bytes of the file"),
    column("cached", Kind::Number, "bytes of it in the page cache"),
    column(
        "sha256",
        Kind::Text,
        "hash of the file, where all of it is in the page cache",
    ),
    column("inode", Kind::Hex, "virtual address of the inode"),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// Bytes of a file that is hashed at most.
const MAX: u64 = 1 << 30;

/// Bytes in the page cache and hash of a file.
#[derive(Clone, Debug, Default)]
struct Cached {
    bytes: Option<u64>,
    sha256: Option<String>,
}

struct Reader<'k> {
    kernel: &'k Kernel<'k>,
    paths: Paths<'k>,
    inodes: Inodes<'k>,
    pages: Option<Pages<'k>>,
    known: HashMap<u64, Cached>,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut reader = Reader {
        kernel,
        paths: Paths::new(kernel)?,
        inodes: Inodes::new(kernel)?,
        // Without the array of page descriptors nothing is said of the content.
        pages: Pages::new(kernel).ok(),
        known: HashMap::new(),
    };
    for task in kernel.processes(&mut out.doubts)? {
        if let Err(e) = reader.process(&task, &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

impl Reader<'_> {
    fn process(&mut self, task: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
        let Some(mm) = task.follow("mm", "mm_struct")? else {
            return Ok(());
        };
        let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
        let Some(file) = mm.follow("exe_file", "file")? else {
            let mut row = vec![Value::Null; COLUMNS.len()];
            row.splice(0..2, [pid.into(), comm.into()]);
            row.truncate(COLUMNS.len() - 2);
            row.extend([task.va.into(), task.physical().into()]);
            out.push(row);
            return Ok(());
        };
        let dentry = file.number("f_path.dentry")?;
        let path = self.paths.path(file.number("f_path.mnt")?, dentry)?;
        let gone = self.paths.is_deleted(dentry)?;
        let memfd = gone && path.starts_with("/memfd:");
        let inode = self.inodes.read(file.number("f_inode")?)?;
        let cached = self.content(inode.va, &mut out.doubts)?;
        out.push(vec![
            pid.into(),
            comm.as_str().into(),
            path.as_str().into(),
            gone.into(),
            memfd.into(),
            inode.number.into(),
            inode.size.into(),
            cached.bytes.into(),
            cached.sha256.into(),
            inode.va.into(),
            task.va.into(),
            task.physical().into(),
        ]);
        let at = task.va;
        if memfd {
            let reason = format!(
                "{comm}[{pid}] (task_struct at {at:#x}) runs {path}: a program that was in memory only, in no directory. \
                 runc and snap run themselves like that for a moment"
            );
            out.flag("memfd_executable", Severity::High, reason);
        } else if gone {
            let reason = format!(
                "{comm}[{pid}] (task_struct at {at:#x}) runs {path}: its file was removed while it ran. \
                 An upgrade of its package does that too"
            );
            out.flag("deleted_executable", Severity::High, reason);
        }
        Ok(())
    }

    /// What the page cache has of a file.
    fn content(&mut self, va: u64, doubts: &mut Vec<String>) -> Result<Cached, LinuxError> {
        if let Some(known) = self.known.get(&va) {
            return Ok(known.clone());
        }
        let mut cached = Cached::default();
        if let Some(pages) = &self.pages {
            let content = pages.content(&self.inodes.read(va)?, doubts)?;
            cached.bytes = Some(content.present());
            if content.present() == content.size() && (1..=MAX).contains(&content.size()) {
                let mut hash = Sha256::new();
                let lost = content.pieces(self.kernel.space.memory(), &mut |_, piece| {
                    hash.update(piece);
                    Ok(())
                });
                if lost.is_ok_and(|l| l.is_empty()) {
                    cached.sha256 = Some(hex(&hash.finalize()));
                }
            }
        }
        self.known.insert(va, cached.clone());
        Ok(cached)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        // Writing to a String can't fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}
