//! `linux/procdump`: the memory of each process, and its recovery as an ELF core file.
//!
//! ```text
//! ELF header          ET_CORE
//! program headers     PT_NOTE, a PT_LOAD for each area
//! notes               NT_PRSTATUS: registers of each thread; NT_PRPSINFO: pid and name; NT_AUXV;
//!                     NT_FILE: which file each area has
//! (to a page's end)
//! areas               whole, with holes where no page is mapped; those without any page take no place
//! ```
//!
//! Debuggers read it as they read the kernel's own dumps. Floating point registers are not in it.
//!
//! Sources: System V ABI, chapter 5; Linux `fs/binfmt_elf.c` (`fill_files_note`, `PN_XNUM`),
//! `include/uapi/linux/elfcore.h` (`elf_prpsinfo`).

use crate::linux::memory::{Area, Memories, Page, ProcessMemory, is_x86};
use crate::linux::registers::statuses;
use crate::linux::{Content, Kernel, LinuxError, LinuxView, Recovered, VM_EXEC, VM_READ, VM_WRITE};
use crate::table::{Column, Kind, Table, column};
use std::ops::ControlFlow;

/// `linux/procdump`.
pub(in crate::linux) const PROCDUMP: LinuxView = LinuxView {
    name: "linux/procdump",
    meaning: "memory of processes; can be recovered as ELF core files",
    columns: COLUMNS,
    build,
    recover: Some(recover),
    on_request: true,
};

/// Columns of `linux/procdump`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("areas", Kind::Number, "its memory areas"),
    column("virtual_bytes", Kind::Number, "bytes that they span"),
    column(
        "resident_bytes",
        Kind::Number,
        "bytes of them that its page table maps",
    ),
    column(
        "core_bytes",
        Kind::Number,
        "size of the core file, holes included",
    ),
    column("mm", Kind::Hex, "virtual address of its mm_struct"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

const PAGE: u64 = 4096;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// More program headers than this are counted elsewhere.
const PN_XNUM: u64 = 0xffff;
/// Bytes of the note on files at most.
const MAX_FILES: usize = 16 << 20;

const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;

/// Visits all processes with memory and their core files.
fn each(
    kernel: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(&ProcessMemory<'_>, Content) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    let mut memories = Memories::new(kernel)?;
    for task in kernel.processes(doubts)? {
        if pid.is_some_and(|pid| task.int("tgid").is_ok_and(|own| own != pid)) {
            continue;
        }
        let Some(p) = memories.of(task, doubts) else {
            continue;
        };
        let pages = p.stretches(&mut memories.budget, doubts);
        let core = core(kernel, &p, &pages, doubts);
        if visit(&p, core).is_break() {
            break;
        }
    }
    Ok(())
}

/// An area in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    flags: u32,
    start: u64,
    /// Bytes in the file: all or none.
    stored: u64,
    len: u64,
}

fn core(
    kernel: &Kernel<'_>,
    p: &ProcessMemory<'_>,
    pages: &[(usize, Page)],
    doubts: &mut Vec<String>,
) -> Content {
    let mut used = vec![false; p.areas.len()];
    for (i, _) in pages {
        if let Some(u) = used.get_mut(*i) {
            *u = true;
        }
    }
    let loads: Vec<Load> = p
        .areas
        .iter()
        .zip(used)
        .map(|(a, used)| Load {
            flags: flags(a),
            start: a.vma.start,
            stored: if used { a.len() } else { 0 },
            len: a.len(),
        })
        .collect();
    let machine = if is_x86(kernel) { 62 } else { 183 };
    let (head, at) = head(machine, &notes(kernel, p, doubts), &loads);
    let size = loads.iter().fold(at, |n, l| n.saturating_add(l.stored));
    let mut content = Content::new(size).with_head(head);
    let mut offset = at;
    for (i, l) in loads.iter().enumerate().filter(|(_, l)| l.stored > 0) {
        let range = l.start..l.start.saturating_add(l.len);
        let own = |area| area == i;
        if !ProcessMemory::fill(&mut content, pages, range, offset, &own) {
            let name = p.name();
            doubts.push(format!("{name}: it lies in too many pieces and is cut"));
            break;
        }
        offset = offset.saturating_add(l.stored);
    }
    content
}

/// `PF_*` of an area.
fn flags(a: &Area) -> u32 {
    let bit = |vm, pf| if a.has(vm) { pf } else { 0 };
    bit(VM_EXEC, 1) | bit(VM_WRITE, 2) | bit(VM_READ, 4)
}

/// Everything before the areas, and where the first of them stands.
fn head(machine: u16, notes: &[u8], loads: &[Load]) -> (Vec<u8>, u64) {
    let count = loads.len() as u64 + 1;
    let many = count >= PN_XNUM;
    let tables = HEADER + count * PROGRAM_HEADER + if many { 64 } else { 0 };
    let first = (tables + notes.len() as u64).next_multiple_of(PAGE);
    let mut out = Vec::with_capacity(usize::try_from(first).unwrap_or(0));
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend(4u16.to_le_bytes());
    out.extend(machine.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    let sections = if many {
        HEADER + count * PROGRAM_HEADER
    } else {
        0
    };
    for word in [0, HEADER, sections] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    let listed = count.min(PN_XNUM) as u16;
    let (size, number) = if many { (64, 1) } else { (0, 0) };
    for half in [64, 56, listed, size, number, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, words: [u64; 6]| {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    };
    // Offset, address, physical address, bytes in the file, in memory, alignment.
    header(4, 0, [tables, 0, 0, notes.len() as u64, 0, 4]);
    let mut at = first;
    for l in loads {
        header(1, l.flags, [at, l.start, 0, l.stored, l.len, PAGE]);
        at = at.saturating_add(l.stored);
    }
    if many {
        // The only section says how many program headers there are.
        let mut section = [0; 64];
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        section[44..48].copy_from_slice(&count.to_le_bytes());
        out.extend(section);
    }
    out.extend(notes);
    out.resize(usize::try_from(first).unwrap_or(out.len()), 0);
    (out, first)
}

/// A note of the kernel's kind.
fn note(kind: u32, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 24);
    out.extend(5u32.to_le_bytes());
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(b"CORE\0\0\0\0");
    out.extend(text);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn notes(kernel: &Kernel<'_>, p: &ProcessMemory<'_>, doubts: &mut Vec<String>) -> Vec<u8> {
    let mut threads = statuses(kernel, p).into_iter();
    // The kernel's order: the main thread, the process, the other threads.
    let main = threads.next();
    let mut out: Vec<u8> = main.map_or(Vec::new(), |s| note(NT_PRSTATUS, &s));
    out.extend(note(NT_PRPSINFO, &process_info(p)));
    let types = kernel.symbols.types();
    if let Ok(f) = types.field("mm_struct", "saved_auxv") {
        let mut raw = vec![0; usize::try_from(f.size).unwrap_or(0).min(4096)];
        let at = p.mm.va.wrapping_add(f.offset);
        if kernel.space.read(at, &mut raw).is_ok() {
            out.extend(note(NT_AUXV, &raw));
        }
    }
    let (files, whole) = files(p);
    if !whole {
        let name = p.name();
        doubts.push(format!(
            "{name}: its core file does not name all files that are mapped"
        ));
    }
    out.extend(note(NT_FILE, &files));
    out.extend(threads.flat_map(|s| note(NT_PRSTATUS, &s)));
    out
}

/// `elf_prpsinfo`: pid and name.
fn process_info(p: &ProcessMemory<'_>) -> [u8; 136] {
    let mut out = [0; 136];
    out[24..28].copy_from_slice(&(p.pid as i32).to_le_bytes());
    let name = p.comm.as_bytes();
    let name = &name[..name.len().min(15)];
    out[40..40 + name.len()].copy_from_slice(name);
    out[56..56 + name.len()].copy_from_slice(name);
    out
}

/// Which file each area has, and whether all are named.
fn files(p: &ProcessMemory<'_>) -> (Vec<u8>, bool) {
    let (mut words, mut names, mut count) = (Vec::new(), Vec::new(), 0u64);
    let mut whole = true;
    for a in p.areas.iter().filter(|a| a.file.is_some()) {
        let name = a.label().as_bytes();
        if words.len() + names.len() + name.len() + 25 > MAX_FILES {
            whole = false;
            break;
        }
        for word in [a.vma.start, a.vma.end, a.vma.pgoff] {
            words.extend(word.to_le_bytes());
        }
        names.extend(name);
        names.push(0);
        count += 1;
    }
    let mut out = Vec::with_capacity(16 + words.len() + names.len());
    out.extend(count.to_le_bytes());
    out.extend(PAGE.to_le_bytes());
    out.extend(words);
    out.extend(names);
    (out, whole)
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut doubts = Vec::new();
    each(kernel, None, &mut doubts, &mut |p, core| {
        let len = |n: u64, a: &Area| n.saturating_add(a.len());
        out.push(vec![
            p.pid.into(),
            p.comm.as_str().into(),
            p.areas.len().into(),
            p.areas.iter().fold(0, len).into(),
            (core.present() - core.head().len() as u64).into(),
            core.size().into(),
            p.mm.va.into(),
            p.task.va.into(),
            p.task.physical().into(),
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
    each(kernel, pid, doubts, &mut |p, content| {
        visit(Recovered {
            kind: "process_core",
            name: format!("{}.{}.core", p.pid, p.comm.replace('/', "_")),
            object: p.task.va,
            content,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_where_areas_stand() {
        let load = |start, stored, len| Load {
            flags: 5,
            start,
            stored,
            len,
        };
        let loads = [load(0x1000, 0x2000, 0x2000), load(0x9000, 0, 0x1000)];
        let notes = note(NT_AUXV, b"abcde");
        let (out, first) = head(62, &notes, &loads);
        assert_eq!(first, 4096);
        assert_eq!(out.len(), 4096);
        let word = |at: usize| u64::from_le_bytes(*out[at..].first_chunk().expect("eight"));
        assert_eq!(u16::from_le_bytes([out[56], out[57]]), 3, "program headers");
        assert_eq!(word(64 + 8), 64 + 3 * 56, "notes follow the headers");
        assert_eq!(&out[64 + 3 * 56..][..notes.len()], notes);
        assert_eq!(notes.len() % 4, 0);
        assert_eq!((word(64 + 56 + 8), word(64 + 56 + 16)), (first, 0x1000));
        assert_eq!(word(64 + 112 + 8), first + 0x2000);
        assert_eq!((word(64 + 112 + 32), word(64 + 112 + 40)), (0, 0x1000));
    }

    #[test]
    fn more_areas_than_the_header_counts() {
        let one = Load {
            flags: 4,
            start: 0,
            stored: 0,
            len: 4096,
        };
        let (out, first) = head(62, &[], &vec![one; 70_000]);
        assert_eq!(first % 4096, 0);
        assert_eq!(u16::from_le_bytes([out[56], out[57]]), 0xffff);
        let at = u64::from_le_bytes(*out[40..].first_chunk().expect("eight"));
        let section = &out[usize::try_from(at).expect("small")..];
        assert_eq!(section[44..48], 70_001u32.to_le_bytes());
    }
}
