//! `linux/library_list`: the ELF files in each process, by the kernel's areas and by the list that the
//! dynamic linker keeps.
//!
//! What only the kernel knows was not loaded by the linker; what only the linker knows was unmapped or
//! is memory without a file. Lists that the linker was just changing, or that can't be read to their
//! end, tell nothing about what is missing in them.
//!
//! Sources: as in `elf.rs` and `link_map.rs`; Volatility 3 `plugins/linux/library_list.py`.

use crate::linux::elf::{Image, images};
use crate::linux::link_map::{LinkMap, Loaded, link_map};
use crate::linux::memory::{Area, Memories, ProcessMemory};
use crate::linux::{Kernel, LinuxError, LinuxView, VM_EXEC};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::HashMap;

/// `linux/library_list`.
pub(in crate::linux) const LIBRARY_LIST: LinuxView = LinuxView {
    name: "linux/library_list",
    meaning: "ELF files in processes, by their areas and by the dynamic linker's list",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/library_list`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "path",
        Kind::Text,
        "the mapped file, as in linux/maps; null where no area has it",
    ),
    column("base", Kind::Hex, "where it begins in memory"),
    column("size", Kind::Number, "bytes that its segments span"),
    column(
        "soname",
        Kind::Text,
        "the name that it gives itself; null: it has none or it is not in memory",
    ),
    column(
        "deleted",
        Kind::Flag,
        "whether the file's name is gone or never was one",
    ),
    column(
        "executable",
        Kind::Flag,
        "whether any of it can be executed",
    ),
    column("in_areas", Kind::Flag, "whether areas of the kernel map it"),
    column(
        "in_link_map",
        Kind::Flag,
        "whether the linker's list has it; null: there is none or it can't be read to its end",
    ),
    column(
        "link_name",
        Kind::Text,
        "what the linker calls it; empty for the program itself",
    ),
    column(
        "link_map",
        Kind::Hex,
        "virtual address of its link_map, in the process",
    ),
    column("area", Kind::Hex, "virtual address of its vm_area_struct"),
    column("physical", Kind::Hex, "physical address of that"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

/// Images before an address that are asked whether it is theirs.
const NEAR: usize = 64;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut memories = Memories::new(kernel)?;
    for task in kernel.processes(&mut out.doubts)? {
        let Some(p) = memories.of(task, &mut out.doubts) else {
            continue;
        };
        process(kernel, &p, &mut out);
    }
    Ok(out)
}

fn process(kernel: &Kernel<'_>, p: &ProcessMemory<'_>, out: &mut Table) {
    let (images, list) = (images(p), link_map(kernel, p));
    let area = |l: &Loaded| {
        let i = p.areas.partition_point(|a| a.vma.end <= l.ld);
        p.areas.get(i).filter(|a| a.vma.start <= l.ld)
    };
    // Images are in order; others may lie in the gaps of one.
    let image = |l: &Loaded| {
        let (own, behind) = (area(l)?, images.partition_point(|i| i.base <= l.ld));
        let near = images.iter().enumerate().take(behind).rev().take(NEAR);
        near.into_iter()
            .find(|(_, i)| i.owns(p, own))
            .map(|(n, _)| n)
    };
    let mut linked: HashMap<usize, &Loaded> = HashMap::new();
    let mut lost = Vec::new();
    for l in list.iter().flat_map(|m| &m.all) {
        match image(l) {
            Some(n) => drop(linked.entry(n).or_insert(l)),
            // The kernel's own image is in the list too, and has no file.
            None if area(l).is_some_and(|a| a.special) => {}
            None => lost.push(l),
        }
    }
    for (n, i) in images.iter().enumerate() {
        if p.areas.get(i.first).is_some_and(|a| a.file.is_some()) {
            let linked = linked.get(&n).copied();
            mapped(kernel, p, i, linked, list.as_ref(), out);
        }
    }
    for l in lost {
        unmapped(p, l, out);
    }
}

fn mapped(
    kernel: &Kernel<'_>,
    p: &ProcessMemory<'_>,
    i: &Image,
    linked: Option<&Loaded>,
    list: Option<&LinkMap>,
    out: &mut Table,
) {
    let Some(area) = p.areas.get(i.first) else {
        return;
    };
    let inode = |a: &Area| a.file.map(|f| f.inode);
    let own = |a: &&Area| inode(a) == inode(area) && i.owns(p, a);
    let areas = p.areas.iter().skip(i.first);
    let mut areas = areas.take_while(|a| a.vma.start < i.end).filter(own);
    let executable = areas.any(|a| a.has(VM_EXEC));
    let in_link_map = match (linked, list) {
        (Some(_), _) => Some(true),
        (None, Some(m)) if m.whole => Some(false),
        _ => None,
    };
    out.push(vec![
        p.pid.into(),
        p.comm.as_str().into(),
        area.name.as_deref().into(),
        i.base.into(),
        (i.end - i.base).into(),
        i.soname(p).into(),
        area.file.map(|f| f.deleted).into(),
        executable.into(),
        true.into(),
        in_link_map.into(),
        linked.map(|l| l.name.as_str()).into(),
        linked.map(|l| l.va).into(),
        area.vma.va.into(),
        kernel
            .object("vm_area_struct", area.vma.va)
            .physical()
            .into(),
        p.task.va.into(),
    ]);
    if executable && in_link_map == Some(false) {
        out.flag(
            "library_not_in_link_map",
            Severity::Medium,
            format!(
                "{}: {} is mapped at {:#x} with executable pages, and the dynamic linker's list lacks it",
                p.name(),
                area.label(),
                i.base
            ),
        );
    }
}

/// What only the linker knows.
fn unmapped(p: &ProcessMemory<'_>, l: &Loaded, out: &mut Table) {
    let name = l.name.as_str();
    out.push(vec![
        p.pid.into(),
        p.comm.as_str().into(),
        Value::Null,
        l.addr.into(),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        false.into(),
        true.into(),
        name.into(),
        l.va.into(),
        Value::Null,
        p.translate(l.va).map(|p| p.0).into(),
        p.task.va.into(),
    ]);
    out.flag(
        "library_without_mapping",
        Severity::Medium,
        format!(
            "{}: the dynamic linker's list has {name:?} at {:#x}, where no ELF file is mapped",
            p.name(),
            l.addr
        ),
    );
}
