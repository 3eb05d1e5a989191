//! `linux/lsof`: the open files of every process.
//!
//! Sources: Linux `include/linux/fs.h` (`struct file`, `struct inode`, `FMODE_READ`),
//! `include/linux/kdev_t.h`, `include/uapi/linux/stat.h`.

use crate::linux::fields::Fields;
use crate::linux::path::{DELETED, Paths};
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;

/// `linux/lsof`.
pub(in crate::linux) const LSOF: LinuxView = LinuxView {
    name: "linux/lsof",
    meaning: "open files of processes",
    columns: FILES,
    build: lsof,
    recover: None,
    on_request: false,
};

/// Columns of `linux/lsof`.
const FILES: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("fd", Kind::Number, "descriptor"),
    column(
        "path",
        Kind::Text,
        "as /proc/<pid>/fd shows it: through mounts; sockets, pipes and others by number",
    ),
    column(
        "type",
        Kind::Text,
        "REG, DIR, CHR, BLK, FIFO, SOCK, LNK; ANON of the kernel's anonymous inodes",
    ),
    column("deleted", Kind::Flag, "whether its name is gone"),
    column("inode_number", Kind::Number, "number of its inode"),
    column(
        "device",
        Kind::Text,
        "device of its file system, major:minor",
    ),
    column(
        "rdev",
        Kind::Text,
        "device that it stands for, major:minor; null of other files",
    ),
    column("size", Kind::Number, "bytes, as the inode says"),
    column("access", Kind::Text, "r, w, rw: what it was opened for"),
    column("flags", Kind::Hex, "flags of open()"),
    column("position", Kind::Number, "offset of the next read or write"),
    column("file", Kind::Hex, "virtual address of its struct file"),
    column("inode", Kind::Hex, "virtual address of its inode"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
    column("physical", Kind::Hex, "physical address of its struct file"),
];

/// What a mode says that a file is.
pub(in crate::linux) fn file_type(mode: u64) -> &'static str {
    match mode & 0o170_000 {
        0o100_000 => "REG",
        0o040_000 => "DIR",
        0o020_000 => "CHR",
        0o060_000 => "BLK",
        0o010_000 => "FIFO",
        0o140_000 => "SOCK",
        0o120_000 => "LNK",
        0 => "ANON",
        _ => "?",
    }
}

/// A kernel's device number as it is written.
pub(in crate::linux) fn device(dev: u64) -> String {
    let dev = dev & 0xffff_ffff;
    format!("{}:{}", dev >> 20, dev & 0xf_ffff)
}

/// Where a file and its inode keep what.
struct Reader<'k> {
    kernel: &'k Kernel<'k>,
    paths: Paths<'k>,
    file: Fields<6>,
    inode: Fields<5>,
    super_block: Fields<1>,
}

fn lsof(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let reader = Reader {
        kernel,
        paths: Paths::new(kernel)?,
        file: kernel.fields(
            "file",
            [
                "f_path.mnt",
                "f_path.dentry",
                "f_inode",
                "f_flags",
                "f_mode",
                "f_pos",
            ],
        )?,
        inode: kernel.fields("inode", ["i_mode", "i_ino", "i_size", "i_sb", "i_rdev"])?,
        super_block: kernel.fields("super_block", ["s_dev"])?,
    };
    let mut out = Table::new(FILES);
    for task in kernel.processes(&mut out.doubts)? {
        if let Err(e) = process(&reader, &task, &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

fn process(r: &Reader<'_>, task: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
    let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
    for open in r.kernel.open_files(task, &mut out.doubts)? {
        match file(r, open.file) {
            Ok((cells, found)) => {
                let mut row = vec![pid.into(), comm.as_str().into(), open.fd.into()];
                row.extend(cells);
                row.extend([
                    task.va.into(),
                    r.kernel.object("file", open.file).physical().into(),
                ]);
                out.push(row);
                if let Some(path) = found {
                    let reason = format!(
                        "{comm} (pid {pid}) holds the removed file {path} open (descriptor {}, struct file at {:#x}): its \
                         content is there as long as that lasts. Programs do that with files that nobody else shall see, \
                         and whose files were replaced",
                        open.fd, open.file
                    );
                    out.flag("deleted_open_file", Severity::Medium, reason);
                }
            }
            Err(e) => out.doubts.push(format!(
                "struct file at {:#x} (pid {pid}, descriptor {}): {e}",
                open.file, open.fd
            )),
        }
    }
    Ok(())
}

/// The cells from the path to the inode, and the path of a removed file that is worth a look.
fn file(r: &Reader<'_>, va: u64) -> Result<(Vec<Value>, Option<String>), LinuxError> {
    let [mnt, dentry, inode, flags, mode, position] = r.file.read(r.kernel, va)?;
    let path = r.paths.path(mnt, dentry)?;
    let [i_mode, number, size, sb, rdev] = r.inode.read(r.kernel, inode)?;
    let [dev] = r.super_block.read(r.kernel, sb)?;
    let special = matches!(file_type(i_mode), "CHR" | "BLK");
    let access = match mode & 3 {
        1 => "r",
        2 => "w",
        3 => "rw",
        _ => "",
    };
    let deleted = r.paths.is_deleted(dentry)?;
    let odd = deleted
        && file_type(i_mode) == "REG"
        && size as i64 > 0
        && !is_usual(&path, number, access);
    let cells = vec![
        path.as_str().into(),
        file_type(i_mode).into(),
        deleted.into(),
        number.into(),
        device(dev).into(),
        special.then(|| device(rdev)).into(),
        (size as i64).into(),
        access.into(),
        (flags & 0xffff_ffff).into(),
        (position as i64).into(),
        va.into(),
        inode.into(),
    ];
    Ok((cells, odd.then_some(path)))
}

/// Whether a removed file is one of those that programs hold open every day.
fn is_usual(path: &str, inode: u64, access: &str) -> bool {
    let path = path.strip_suffix(DELETED).unwrap_or(path);
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    // The kernel's own: memory that programs share, System V's segments, what drivers have.
    let kernels = [
        "/memfd:",
        "/SYSV",
        "/dev/zero",
        "/[aio]",
        "/i915",
        "/drm mm object",
        "/ttm",
        "anon_inode:",
    ];
    if kernels.iter().any(|k| path.starts_with(k)) {
        return true;
    }
    // O_TMPFILE never gives a name, and shows its number.
    if name
        .strip_prefix('#')
        .is_some_and(|n| n.parse() == Ok(inode))
    {
        return true;
    }
    // What a package or a cache had in a newer edition since.
    let replaced = [
        "/usr/",
        "/bin/",
        "/sbin/",
        "/lib",
        "/opt/",
        "/snap/",
        "/nix/",
        "/gnu/",
        "/etc/",
        "/var/cache/",
        "/var/lib/",
        "/boot/",
    ];
    if access == "r" && replaced.iter().any(|r| path.starts_with(r)) {
        return true;
    }
    let starts = |all: &[&str]| all.iter().any(|s| name.starts_with(s));
    // Databases' temporary files, shared memory of browsers and databases, shells' here documents.
    if starts(&[
        "#sql",
        "#innodb",
        "pgsql_tmp",
        "sh-thd",
        "tmpf",
        ".ZendSem",
        ".gl",
        ".org.chromium",
        ".com.google.Chrome",
        "org.mozilla",
        "wayland",
        "pulse-shm",
        "PostgreSQL.",
        "etilqs_",
        "sem.",
        "qtsingleapp",
        "dconf",
    ]) || (folder == "/tmp" && name.len() == 8 && name.starts_with("ib"))
    {
        return true;
    }
    // Logs that were turned over, and the journal's.
    let turned = name
        .rsplit(['.', '-'])
        .next()
        .is_some_and(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()));
    let log = folder.starts_with("/var/log") || folder.starts_with("/run/log");
    (log && (turned || name.contains(".journal")))
        || path.contains("gvfs-metadata/")
        || path.contains("/.cache/")
}

#[cfg(test)]
mod tests {
    use super::is_usual;

    #[test]
    fn everyday_files_are_usual() {
        for (path, access) in [
            ("/memfd:x (deleted)", "rw"),
            ("/SYSV00000000 (deleted)", "rw"),
            ("/tmp/#7 (deleted)", "rw"),
            ("/tmp/ibX2f9aK (deleted)", "rw"),
            ("/usr/lib/locale/locale-archive (deleted)", "r"),
            ("/var/log/syslog.1 (deleted)", "w"),
            ("/var/log/journal/1f/user-1000@2.journal (deleted)", "rw"),
            ("/dev/shm/.org.chromium.Chromium.x (deleted)", "rw"),
        ] {
            assert!(is_usual(path, 7, access), "{path}");
        }
        for (path, access) in [
            ("/tmp/exfil.dat (deleted)", "r"),
            ("/var/log/auth.log (deleted)", "w"),
            ("/usr/lib/x (deleted)", "rw"),
            ("/dev/shm/x (deleted)", "rw"),
            ("/tmp/#8 (deleted)", "rw"),
            ("/root/ibX2f9aK (deleted)", "rw"),
        ] {
            assert!(!is_usual(path, 7, access), "{path}");
        }
    }
}
