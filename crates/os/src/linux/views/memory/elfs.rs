//! `linux/elfs`: the ELF images in the memory of processes, and their recovery.
//!
//! Recovered is an image as it lies in memory: what is at the address `base + n` is at offset `n`. Pages
//! that the process didn't touch are taken from the page cache, which is what it would have got. An image of a file that is the same in many processes is recovered once, from the first; again only from
//! processes that changed its executable pages.
//!
//! Sources: as in `elf.rs`; Volatility 3 `plugins/linux/elfs.py`.

use crate::linux::elf::{Elf, Image, images};
use crate::linux::memory::{Area, Memories, Page, ProcessMemory};
use crate::linux::{Content, Extent, Kernel, LinuxError, LinuxView, Recovered, VM_EXEC};
use crate::table::{Column, Kind, Table, column};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// `linux/elfs`.
pub(in crate::linux) const ELFS: LinuxView = LinuxView {
    name: "linux/elfs",
    meaning: "ELF images in the memory of processes; can be recovered, each file once",
    columns: COLUMNS,
    build,
    recover: Some(recover),
    on_request: false,
};

/// Columns of `linux/elfs`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("start", Kind::Hex, "address of its header"),
    column("end", Kind::Hex, "past the last address that it spans"),
    column("path", Kind::Text, "as in linux/maps"),
    column(
        "type",
        Kind::Text,
        "EXEC, DYN, …; null: the header is damaged",
    ),
    column("machine", Kind::Text, "what it is for: x86-64, aarch64"),
    column(
        "entry",
        Kind::Hex,
        "address in the process at which it begins to run; null: it has none",
    ),
    column("resident", Kind::Number, "bytes of it in memory"),
    column(
        "changed",
        Kind::Number,
        "executable pages that the process changed",
    ),
    column("area", Kind::Hex, "virtual address of its vm_area_struct"),
    column("physical", Kind::Hex, "physical address of that"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

const PAGE: u64 = 4096;

/// An image with the pages that are in memory.
struct Found<'p, 'k> {
    process: &'p ProcessMemory<'k>,
    image: Image,
    content: Content,
    /// Executable pages that were changed.
    changed: u64,
}

/// Visits all images whose header is in the process or in the page cache.
fn each(
    kernel: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Found<'_, '_>) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    let mut memories = Memories::new(kernel)?;
    for task in kernel.processes(doubts)? {
        if pid.is_some_and(|pid| task.int("tgid").is_ok_and(|own| own != pid)) {
            continue;
        }
        let Some(p) = memories.of(task, doubts) else {
            continue;
        };
        let all = images(&p);
        let pages = p.stretches(&mut memories.budget, doubts);
        for image in all {
            let mut magic = [0; 4];
            if p.read(image.base, &mut magic).is_none() || &magic != b"\x7fELF" {
                continue;
            }
            let found = content(&p, image, &pages, doubts);
            if visit(found).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn content<'p, 'k>(
    p: &'p ProcessMemory<'k>,
    image: Image,
    pages: &[(usize, Page)],
    doubts: &mut Vec<String>,
) -> Found<'p, 'k> {
    let range = image.base..image.end;
    let own = |i: usize| p.areas.get(i).is_some_and(|a| image.owns(p, a));
    let mut content = Content::new(image.end - image.base);
    if !ProcessMemory::fill(&mut content, pages, range.clone(), 0, &own) {
        doubts.push(format!(
            "{}: the image at {:#x} lies in too many pieces and is cut",
            p.name(),
            image.base
        ));
    }
    let from = pages.partition_point(|(_, page)| page.va < range.start);
    let changed = pages
        .iter()
        .skip(from)
        .take_while(|(_, p)| p.va < range.end);
    let changed = changed.filter(|(i, page)| {
        let code = |a: &Area| a.has(VM_EXEC) && p.is_changed(a, page);
        own(*i) && p.areas.get(*i).is_some_and(code)
    });
    let changed = changed.map(|(_, page)| page.len / 4096).sum();
    Found {
        process: p,
        image,
        content,
        changed,
    }
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut doubts = Vec::new();
    each(kernel, None, &mut doubts, &mut |f| {
        let (p, i) = (f.process, &f.image);
        let Some(area) = p.areas.get(i.first) else {
            return ControlFlow::Continue(());
        };
        let elf = i.elf.as_ref();
        let entry = elf
            .filter(|e| e.entry != 0)
            .and_then(|e| Some(i.bias()?.wrapping_add(e.entry)));
        out.push(vec![
            p.pid.into(),
            p.comm.as_str().into(),
            i.base.into(),
            i.end.into(),
            area.name.as_deref().into(),
            elf.map(Elf::kind_name).into(),
            elf.map(Elf::machine_name).into(),
            entry.into(),
            f.content.present().into(),
            f.changed.into(),
            area.vma.va.into(),
            kernel
                .object("vm_area_struct", area.vma.va)
                .physical()
                .into(),
            p.task.va.into(),
        ]);
        ControlFlow::Continue(())
    })?;
    out.doubts = doubts;
    Ok(out)
}

fn recover(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    recover_of(kernel, None, doubts, visit)
}

/// What can be recovered of one process, or of all.
pub(in crate::linux) fn recover_of(
    kernel: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    let mut seen = HashSet::new();
    each(kernel, pid, doubts, &mut |f| {
        let p = f.process;
        let area = p.areas.get(f.image.first);
        // The kernel's own image is one for all processes as well.
        let key = match area {
            Some(a) if a.special => Some((0, f.content.extents().first().map_or(0, |e| e.pa.0))),
            Some(a) => a.file.map(|file| (1, file.inode)),
            None => None,
        };
        if f.changed == 0 && key.is_some_and(|k| !seen.insert(k)) {
            return ControlFlow::Continue(());
        }
        let content = whole(&f);
        visit(Recovered {
            kind: "process_elf",
            name: format!(
                "{}.{}.{:#x}.elf",
                p.pid,
                p.comm.replace('/', "_"),
                f.image.base
            ),
            object: p.task.va,
            content,
        })
    })
}

/// An image with the pages that only the page cache has.
fn whole(f: &Found<'_, '_>) -> Content {
    let (p, i) = (f.process, &f.image);
    let mut all = f.content.extents().to_vec();
    for a in p.areas.iter().filter(|a| i.owns(p, a)) {
        let pages = p.untouched(a);
        let inside = pages.iter().filter(|e| (i.base..i.end).contains(&e.0));
        all.extend(inside.map(|(va, pa)| Extent {
            offset: va - i.base,
            pa: *pa,
            len: PAGE,
        }));
    }
    all.sort_by_key(|e| e.offset);
    let mut out = Content::new(f.content.size());
    for e in all {
        out.push(e);
    }
    out
}
