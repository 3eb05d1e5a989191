//! `linux/malfind`: memory that can be executed and that no file of its own accounts for.
//!
//! ```text
//! rwx                  writable and executable at once
//! anonymous            executable, and no file behind it
//! deleted, memfd       executable, and the file's name is gone or never was one
//! changed              executable, private mapping of a file, pages that differ from the file's
//! ```
//!
//! The kernel's own pages in processes (vdso) don't count. Changed pages are told by the page table
//! (`memory.rs`), whatever the area's permissions are now.
//!
//! Sources: Linux `include/linux/mm.h` (`VM_*`), `mm/memfd.c` (`memfd:`); Volatility 3
//! `plugins/linux/malfind.py` for the idea.

use crate::disassembly::disassemble;
use crate::linux::memory::{Area, Memories, Page, ProcessMemory, is_x86};
use crate::linux::{Kernel, LinuxError, LinuxView, VM_EXEC, VM_WRITE};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Severity;
use std::fmt::Write as _;

/// `linux/malfind`.
pub(in crate::linux) const MALFIND: LinuxView = LinuxView {
    name: "linux/malfind",
    meaning: "executable memory of processes that no file accounts for, or that differs from its file",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/malfind`.
const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the main thread"),
    column("start", Kind::Hex, "first address of the area"),
    column("end", Kind::Hex, "past the last address"),
    column("permissions", Kind::Text, "as in linux/maps"),
    column("path", Kind::Text, "as in linux/maps"),
    column("reason", Kind::Text, "all that is noteworthy about it"),
    column("resident", Kind::Number, "pages of it in memory"),
    column(
        "changed",
        Kind::Number,
        "pages that a private mapping changed",
    ),
    column(
        "hex",
        Kind::Text,
        "first 64 bytes of the first page in memory, of a changed one where there is such; null: none is",
    ),
    column(
        "disasm",
        Kind::Text,
        "the same as x86 instructions, up to the first that is none; null on other processors",
    ),
    column("va", Kind::Hex, "virtual address of these bytes"),
    column("va_physical", Kind::Hex, "physical address of these bytes"),
    column("area", Kind::Hex, "virtual address of its vm_area_struct"),
    column("physical", Kind::Hex, "physical address of that"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

/// Bytes of a preview.
const PREVIEW: usize = 64;

/// What the page table says of an area.
#[derive(Clone, Copy, Default)]
struct Seen {
    resident: u64,
    changed: u64,
    first: Option<Page>,
    first_changed: Option<Page>,
}

/// Why an area is noteworthy.
struct Finding {
    rule: &'static str,
    severity: Severity,
    /// Everything that applies.
    reasons: Vec<&'static str>,
}

/// Judges an area; the most severe rule counts.
fn judge(a: &Area, changed: u64) -> Option<Finding> {
    if !a.has(VM_EXEC) || a.special {
        return None;
    }
    let (anonymous, writable) = (a.is_anonymous(), a.has(VM_WRITE));
    let deleted = !anonymous && a.file.is_some_and(|f| f.deleted);
    let memfd = deleted && a.label().starts_with("/memfd:");
    // Text relocations and breakpoints need the page only; a writable area says it all already.
    let changed = !anonymous && !writable && changed > 0;
    let all = [
        (
            deleted,
            "deleted_executable_mapping",
            Severity::High,
            if memfd {
                "executable mapping of a memfd, a file without a name"
            } else {
                "executable mapping of a file whose name is gone"
            },
        ),
        (
            writable,
            "rwx_memory",
            Severity::High,
            "writable and executable at once",
        ),
        (
            changed,
            "modified_code",
            Severity::High,
            "executable pages differ from the file",
        ),
        (
            anonymous,
            "anonymous_executable",
            Severity::Medium,
            "executable without a file",
        ),
    ];
    let of = || all.iter().filter(|r| r.0);
    let (_, rule, severity, _) = *of().next()?;
    Some(Finding {
        rule,
        severity,
        reasons: of().map(|r| r.3).collect(),
    })
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut memories = Memories::new(kernel)?;
    for task in kernel.processes(&mut out.doubts)? {
        let Some(p) = memories.of(task, &mut out.doubts) else {
            continue;
        };
        let mut seen = vec![Seen::default(); p.areas.len()];
        let budget = &mut memories.budget;
        p.pages(budget, &mut out.doubts, &mut |i, page| {
            let (Some(s), Some(a)) = (seen.get_mut(i), p.areas.get(i)) else {
                return;
            };
            s.resident += page.len / 4096;
            s.first = s.first.or(Some(page));
            if a.has(VM_EXEC) && p.is_changed(a, &page) {
                s.changed += page.len / 4096;
                s.first_changed = s.first_changed.or(Some(page));
            }
        });
        for (area, seen) in p.areas.iter().zip(seen) {
            if let Some(finding) = judge(area, seen.changed) {
                row(kernel, &p, area, seen, &finding, &mut out);
            }
        }
    }
    Ok(out)
}

fn row(
    kernel: &Kernel<'_>,
    p: &ProcessMemory<'_>,
    a: &Area,
    seen: Seen,
    f: &Finding,
    out: &mut Table,
) {
    let v = &a.vma;
    let page = seen.first_changed.or(seen.first);
    let mut raw = [0; PREVIEW];
    let bytes = page.filter(|page| {
        let memory = p.space.memory();
        memory.read_phys(page.pa, &mut raw).is_ok()
    });
    let mut reasons = f.reasons.join("; ");
    if bytes.is_some() && raw.starts_with(b"\x7fELF") && a.file.is_none() {
        reasons.push_str("; begins with the header of an ELF file");
    }
    let code = bytes.filter(|_| is_x86(kernel)).map(|page| {
        // No 64-bit program has its stack below 4 GiB.
        let small = p.mm.number("start_stack").is_ok_and(|s| s >> 32 == 0);
        disassemble(&raw, page.va, if small { 32 } else { 64 })
    });
    out.push(vec![
        p.pid.into(),
        p.comm.as_str().into(),
        v.start.into(),
        v.end.into(),
        v.permissions().into(),
        a.name.as_deref().into(),
        reasons.as_str().into(),
        seen.resident.into(),
        seen.changed.into(),
        bytes.map(|_| hex(&raw)).into(),
        code.into(),
        page.map(|p| p.va).into(),
        page.map(|p| p.pa.0).into(),
        v.va.into(),
        kernel.object("vm_area_struct", v.va).physical().into(),
        p.task.va.into(),
    ]);
    let mut begin = String::new();
    if bytes.is_some() {
        let _ = write!(begin, ", begins with {}", hex(&raw[..8]));
    }
    out.flag(
        f.rule,
        f.severity,
        format!(
            "{}: {} at {:#x}-{:#x} ({}, {} pages in memory, {} changed{begin}): {reasons}",
            p.name(),
            a.label(),
            v.start,
            v.end,
            v.permissions(),
            seen.resident,
            seen.changed,
        ),
    );
}

fn hex(bytes: &[u8]) -> String {
    let all: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_up_to_the_first_that_is_none() {
        // push rbp; mov rbp, rsp; syscall; int3; an undefined opcode.
        let code = [0x55, 0x48, 0x89, 0xe5, 0x0f, 0x05, 0xcc, 0x0f, 0xff, 0x90];
        let text = disassemble(&code, 0x1000, 64);
        assert!(
            text.starts_with("push rbp; mov rbp,rsp; syscall; int3"),
            "{text}"
        );
        // A jump that is cut in the middle is not shown; a target is an address.
        assert_eq!(
            disassemble(&[0xeb, 0x02, 0xe9, 0x00], 0x1000, 64),
            "jmp short 0x1004"
        );
        // The same byte is another instruction for a 32-bit program.
        assert_eq!(disassemble(&[0x40], 0, 32), "inc eax");
    }
}
