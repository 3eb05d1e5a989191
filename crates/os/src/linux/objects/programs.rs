//! Which program each process runs, for views that judge what it has open.

use crate::linux::command_lines::base;
use crate::linux::path::{DELETED, Paths};
use crate::linux::{Kernel, LinuxError, Object};
use std::collections::HashMap;

/// The program of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Program {
    /// Path of its executable, as /proc/<pid>/exe shows it.
    pub(in crate::linux) path: String,
    /// What it is: the executable's name, or the process's where the executable is many programs.
    pub(in crate::linux) name: String,
    /// Whether it has the machine's root, and not that of a container.
    pub(in crate::linux) here: bool,
}

/// Folders that packages fill, or that stand for such.
const PACKAGED: [&str; 12] = [
    "/usr/",
    "/bin/",
    "/sbin/",
    "/lib/",
    "/lib32/",
    "/lib64/",
    "/libx32/",
    "/opt/",
    "/snap/",
    "/nix/store/",
    "/gnu/store/",
    "/var/lib/flatpak/",
];
/// Folders that anybody may write to, or that are in memory alone.
const TEMPORARY: [&str; 5] = ["/tmp/", "/var/tmp/", "/dev/", "/run/", "/memfd:"];

impl Program {
    /// Whether its file lies where packages put theirs.
    pub(in crate::linux) fn is_packaged(&self) -> bool {
        PACKAGED.iter().any(|p| self.path.starts_with(p))
    }

    /// Whether it lies where nothing that stays is kept.
    pub(in crate::linux) fn is_temporary(&self) -> bool {
        TEMPORARY.iter().any(|p| self.path.starts_with(p))
    }
}

/// The programs of processes that have memory of their own, by pid. What can't be read is left out: linux/exe
/// tells it.
pub(in crate::linux) fn programs(kernel: &Kernel<'_>) -> Result<HashMap<i64, Program>, LinuxError> {
    let paths = Paths::new(kernel)?;
    let tasks = kernel.processes(&mut Vec::new())?;
    let root = |t: &Object<'_>| {
        t.follow("fs", "fs_struct")
            .ok()??
            .number("root.dentry")
            .ok()
    };
    let first = tasks.iter().find(|t| t.int("tgid").is_ok_and(|p| p == 1));
    let machines = first.and_then(root);
    let mut out = HashMap::new();
    for task in &tasks {
        if let Ok(Some((pid, path, comm))) = program(&paths, task) {
            let name = base(path.strip_suffix(DELETED).unwrap_or(&path));
            let name = if matches!(name, "busybox" | "toybox") {
                comm
            } else {
                name.to_owned()
            };
            let here = machines.is_some() && root(task) == machines;
            out.insert(pid, Program { path, name, here });
        }
    }
    Ok(out)
}

fn program(
    paths: &Paths<'_>,
    task: &Object<'_>,
) -> Result<Option<(i64, String, String)>, LinuxError> {
    let Some(mm) = task.follow("mm", "mm_struct")? else {
        return Ok(None);
    };
    let Some(file) = mm.follow("exe_file", "file")? else {
        return Ok(None);
    };
    let path = paths.path(file.number("f_path.mnt")?, file.number("f_path.dentry")?)?;
    Ok(Some((task.int("tgid")?, path, task.text("comm")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_packages_are_known() {
        let at = |path: &str| {
            let p = Program {
                path: path.to_owned(),
                ..Program::default()
            };
            (p.is_packaged(), p.is_temporary())
        };
        assert_eq!(at("/usr/sbin/sshd (deleted)"), (true, false));
        assert_eq!(at("/home/alice/server"), (false, false));
        assert_eq!(at("/usrlocal/x"), (false, false));
        assert_eq!(at("/dev/shm/x"), (false, true));
        assert_eq!(at("/memfd:x (deleted)"), (false, true));
    }
}
