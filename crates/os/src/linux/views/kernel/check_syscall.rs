//! `linux/check_syscall`: the tables of system calls.
//!
//! ```text
//! sys_call_table[n] -> __x64_sys_…     ia32_sys_call_table, x32_sys_call_table, compat_sys_call_table
//! ```
//!
//! An entry leads to the start of a function of the kernel; nothing legitimate changes that. Kernels
//! that have `x64_sys_call` dispatch through its code and only keep the table for tracing: there a
//! changed entry is a trace of somebody, but is not called.
//!
//! Sources: Linux `arch/x86/entry/syscall_64.c`, `arch/arm64/kernel/sys.c`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Owner};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::{Severity, VirtAddr};

/// `linux/check_syscall`.
pub(in crate::linux) const CHECK_SYSCALL: LinuxView = LinuxView {
    name: "linux/check_syscall",
    meaning: "the tables of system calls and what their entries lead to",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/check_syscall`.
const COLUMNS: &[Column] = &[
    column("table", Kind::Text, "the table's symbol"),
    column("index", Kind::Number, "number of the system call"),
    column("handler", Kind::Hex, "what the entry leads to"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column(
        "called",
        Kind::Flag,
        "whether the kernel dispatches through the table",
    ),
    column("va", Kind::Hex, "virtual address of the entry"),
    column("physical", Kind::Hex, "physical address of the entry"),
];

/// The tables that there are, whichever the kernel was built with.
const TABLES: [&str; 4] = [
    "sys_call_table",
    "ia32_sys_call_table",
    "x32_sys_call_table",
    "compat_sys_call_table",
];
/// Entries of a table at most.
const MAX: u64 = 4096;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    kernel.address(TABLES[0])?;
    for name in TABLES {
        if let Some(at) = kernel.symbols.address(name)
            && let Err(e) = entries(kernel, &code, name, at.0, &mut out)
        {
            out.doubts.push(format!("{name} at {:#x}: {e}", at.0));
        }
    }
    Ok(out)
}

fn entries(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    name: &'static str,
    at: u64,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let next = kernel.symbols.next_address(VirtAddr(at));
    let told = kernel.ends.get(&at).copied();
    let end = told.or(next.map(|e| e.0)).unwrap_or(at);
    let count = (end.wrapping_sub(at) / 8).min(MAX);
    let mut raw = vec![0; usize::try_from(count * 8).unwrap_or(0)];
    kernel.space.read(at, &mut raw)?;
    let all: Vec<u64> = raw
        .as_chunks::<8>()
        .0
        .iter()
        .map(|e| u64::from_le_bytes(*e))
        .collect();
    // Up to the next symbol there may be zeros; they are no entries.
    let used = all.iter().rposition(|e| *e != 0).map_or(0, |i| i + 1);
    let dispatcher = match name {
        "sys_call_table" => "x64_sys_call",
        "ia32_sys_call_table" => "ia32_sys_call",
        _ => "x32_sys_call",
    };
    let called = name.starts_with("compat") || kernel.symbols.find(dispatcher).is_none();
    for (i, handler) in all[..used].iter().enumerate() {
        let va = at.wrapping_add(i as u64 * 8);
        let owner = code.owner(*handler);
        out.push(vec![
            name.into(),
            i.into(),
            (*handler).into(),
            owner.to_string().into(),
            owner.module().into(),
            called.into(),
            va.into(),
            kernel.space.translate(va).ok().map(|p| p.0).into(),
        ]);
        let what = format!("entry {i} of {name} at {va:#x}");
        let what = if called {
            what
        } else {
            format!("{what} (not called: the kernel dispatches through {dispatcher})")
        };
        if let Owner::Kernel { offset: 1.., .. } = owner {
            let reason =
                format!("{what} leads into the middle of a function: {handler:#x}, {owner}");
            out.flag("syscall_hook", Severity::High, reason);
        } else {
            judge(out, code, "syscall_hook", &what, *handler);
            // A module's handler is known code, and still not what belongs there.
            if owner.is_known() && !matches!(owner, Owner::Kernel { .. }) {
                let reason = format!("{what} leads out of the kernel: {handler:#x}, {owner}");
                out.flag("syscall_hook", Severity::High, reason);
            }
        }
    }
    Ok(())
}
