//! `linux/maps` (Volatility's `linux.proc.Maps`): the memory areas of every process.
//!
//! Sources: Linux `fs/proc/task_mmu.c`, `include/linux/mm_types.h`.

use crate::linux::lsof::device;
use crate::linux::memory::{Area, Memories, ProcessMemory};
use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, column};

/// `linux/maps`.
pub(in crate::linux) const MAPS: LinuxView = LinuxView {
    name: "linux/maps",
    meaning: "memory areas of processes, as /proc/<pid>/maps shows them",
    columns: AREAS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/maps`.
const AREAS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("start", Kind::Hex, "first address"),
    column("end", Kind::Hex, "past the last address"),
    column(
        "permissions",
        Kind::Text,
        "read, write, execute; shared or private: `r-xp`",
    ),
    column(
        "offset",
        Kind::Hex,
        "where it begins in its file; 0 of anonymous memory",
    ),
    column(
        "device",
        Kind::Text,
        "device of the file's file system, major:minor; null of anonymous memory",
    ),
    column(
        "inode_number",
        Kind::Number,
        "number of the file's inode; null of anonymous memory",
    ),
    column(
        "path",
        Kind::Text,
        "the file, or what /proc says it is: [heap], [stack], [vdso], [anon:name]; null where it says nothing",
    ),
    column(
        "deleted",
        Kind::Flag,
        "whether the file's name is gone or never was one; null of anonymous memory",
    ),
    column(
        "resident",
        Kind::Number,
        "pages of 4 KiB that its page table maps",
    ),
    column(
        "changed",
        Kind::Number,
        "those of them that a private mapping changed",
    ),
    column("area", Kind::Hex, "virtual address of its vm_area_struct"),
    column("physical", Kind::Hex, "physical address of that"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

/// Pages of an area: mapped, and changed by a private mapping.
type Counts = (u64, u64);

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(AREAS);
    let mut memories = Memories::new(kernel)?;
    for task in kernel.processes(&mut out.doubts)? {
        let Some(p) = memories.of(task, &mut out.doubts) else {
            continue;
        };
        let mut counts: Vec<Counts> = vec![(0, 0); p.areas.len()];
        let budget = &mut memories.budget;
        p.pages(budget, &mut out.doubts, &mut |i, page| {
            if let (Some(c), Some(a)) = (counts.get_mut(i), p.areas.get(i)) {
                let n = page.len / 4096;
                c.0 += n;
                c.1 += if p.is_changed(a, &page) { n } else { 0 };
            }
        });
        for (area, counts) in p.areas.iter().zip(counts) {
            row(kernel, &p, area, counts, &mut out);
        }
    }
    Ok(out)
}

fn row(kernel: &Kernel<'_>, p: &ProcessMemory<'_>, a: &Area, counts: Counts, out: &mut Table) {
    let v = &a.vma;
    let offset = if v.file == 0 {
        0
    } else {
        v.pgoff.wrapping_mul(4096)
    };
    out.push(vec![
        p.pid.into(),
        p.comm.as_str().into(),
        v.start.into(),
        v.end.into(),
        v.permissions().into(),
        offset.into(),
        a.file.map(|f| device(f.device)).into(),
        a.file.map(|f| f.number).into(),
        a.name.as_deref().into(),
        a.file.map(|f| f.deleted).into(),
        counts.0.into(),
        counts.1.into(),
        v.va.into(),
        kernel.object("vm_area_struct", v.va).physical().into(),
        p.task.va.into(),
    ]);
}
