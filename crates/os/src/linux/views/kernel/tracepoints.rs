//! `linux/tracepoints`: tracepoints that somebody listens to, and the functions that are called.
//!
//! ```text
//! __tracepoints_ptrs[]                      of the kernel    -> tracepoint { name, funcs }
//! module.tracepoints_ptrs[num_tracepoints]  of each module       funcs[] -> { func, data, prio }, up to a null func
//! ```
//!
//! An entry of those arrays is 32 bits from its own place to the struct (`CONFIG_HAVE_ARCH_PREL32_RELOCATIONS`: x86-64 and
//! arm64 since 4.19), or a pointer. Functions of tracefs, perf and eBPF are in the kernel's text; a module's are what
//! rootkits register on `sys_enter` without touching the table of system calls.
//!
//! Sources: Linux `include/linux/tracepoint-defs.h`, `include/linux/tracepoint.h` (`tracepoint_ptr_deref`),
//! `kernel/tracepoint.c`; Volatility 3 `plugins/linux/tracing/tracepoints.py` for the name.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;

/// `linux/tracepoints`.
pub(in crate::linux) const TRACEPOINTS: LinuxView = LinuxView {
    name: "linux/tracepoints",
    meaning: "tracepoints that somebody listens to",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/tracepoints`.
const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "the tracepoint, such as `sys_enter`"),
    column(
        "module",
        Kind::Text,
        "the module that has it; null: the kernel",
    ),
    column("handler", Kind::Hex, "the function that is called"),
    column("symbol", Kind::Text, "whose code that is"),
    column("data", Kind::Hex, "what it is called with"),
    column("priority", Kind::Number, "what the order of calls follows"),
    column("va", Kind::Hex, "virtual address of its struct tracepoint"),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Functions that note the names of tasks while anything is traced: they say nothing more
/// (`kernel/trace/trace_sched_switch.c`).
const BOOKKEEPING: [&str; 2] = ["probe_sched_switch", "probe_sched_wakeup"];

/// Tracepoints of the kernel or of a module at most; kernels have 1,000 to 3,000.
const MAX: u64 = 1 << 16;
/// Functions of one tracepoint at most.
const MAX_FUNCTIONS: u64 = 1 << 10;
/// Kernel addresses begin here.
const KERNEL: u64 = 0xff00_0000_0000_0000;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let start = kernel.address("__start___tracepoints_ptrs")?;
    let stop = kernel.address("__stop___tracepoints_ptrs")?;
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let bytes = stop.saturating_sub(start);
    let width = width(kernel, start);
    array(kernel, &code, start, bytes / width, width, None, &mut out);
    for m in kernel.modules(&mut out.doubts)? {
        if !m.has("tracepoints_ptrs") {
            break;
        }
        match (
            m.number("tracepoints_ptrs"),
            m.number("num_tracepoints"),
            m.text("name"),
        ) {
            (Ok(at), Ok(n), Ok(name)) => {
                let n = n & 0xffff_ffff;
                array(kernel, &code, at, n, width, Some(&name), &mut out);
            }
            (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => {
                out.doubts
                    .push(format!("struct module at {:#x}: {e}", m.va));
            }
        }
    }
    Ok(out)
}

/// Bytes of an entry: pointers are kernel addresses, distances are not.
fn width(kernel: &Kernel<'_>, start: u64) -> u64 {
    match kernel.space.u64(start) {
        Ok(first) if first >= KERNEL && kernel.space.translate(first).is_ok() => 8,
        _ => 4,
    }
}

/// Goes through an array of tracepoints.
fn array(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    start: u64,
    count: u64,
    width: u64,
    module: Option<&str>,
    out: &mut Table,
) {
    if count > MAX {
        let whose = module.unwrap_or("the kernel");
        out.doubts.push(format!(
            "{whose} would have {count} tracepoints; {MAX} are looked at"
        ));
    }
    for i in 0..count.min(MAX) {
        let at = start.wrapping_add(i * width);
        let place = match width {
            8 => kernel.space.u64(at),
            _ => {
                let mut raw = [0; 4];
                let read = kernel.space.read(at, &mut raw);
                read.map(|()| at.wrapping_add(i64::from(i32::from_le_bytes(raw)).cast_unsigned()))
            }
        };
        let one = place.map_err(LinuxError::from).and_then(|va| {
            let point = kernel.object("tracepoint", va);
            listeners(kernel, code, &point, module, out)
        });
        if let Err(e) = one {
            out.doubts.push(format!("the tracepoint at {at:#x}: {e}"));
        }
    }
}

/// A row for each function that a tracepoint calls.
fn listeners(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    point: &Object<'_>,
    module: Option<&str>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let functions = point.number("funcs")?;
    if functions == 0 {
        return Ok(());
    }
    let name = kernel.text(point.number("name")?, 128)?;
    let size = kernel.symbols.types().size_of("tracepoint_func")?;
    for i in 0..MAX_FUNCTIONS {
        let f = kernel.object("tracepoint_func", functions.wrapping_add(i * size));
        let handler = f.number("func")?;
        if handler == 0 {
            return Ok(());
        }
        let owner = code.owner(handler);
        out.push(vec![
            name.as_str().into(),
            module.map_or(Value::Null, Value::from),
            handler.into(),
            owner.to_string().into(),
            f.number("data")?.into(),
            f.int("prio")?.into(),
            point.va.into(),
            point.physical().into(),
        ]);
        let what = format!("the tracepoint {name} at {:#x}", point.va);
        let known = judge(out, code, "tracepoint_hook", &what, handler).is_known();
        let notes = |name: &&str| kernel.symbols.address(name).is_some_and(|a| a.0 == handler);
        if known && !BOOKKEEPING.iter().any(notes) {
            let reason = format!(
                "{what} calls {owner}: somebody listens there. perf, ftrace, eBPF and programs that watch a machine do that"
            );
            let severity = match owner.module() {
                Some(_) => Severity::Medium,
                None => Severity::Low,
            };
            out.flag("tracepoint_in_use", severity, reason);
        }
    }
    out.doubts.push(format!(
        "the tracepoint {name} has more than {MAX_FUNCTIONS} functions"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{FREE, Machine, Type};

    const TYPES: &[Type<'_>] = &[
        (
            "tracepoint",
            24,
            &[("name", 0, "pointer"), ("funcs", 16, "pointer")],
        ),
        (
            "tracepoint_func",
            24,
            &[
                ("func", 0, "pointer"),
                ("data", 8, "pointer"),
                ("prio", 16, "byte"),
            ],
        ),
    ];

    #[test]
    fn distances_and_pointers_lead_to_the_same() {
        let (near, point, name, functions) = (FREE, FREE + 64, FREE + 128, FREE + 192);
        let mut m = Machine::new(0x5000);
        m.put(near, point - near);
        m.put(point, name);
        m.put(point + 16, functions);
        m.put(name, u64::from_le_bytes(*b"sys_ente"));
        m.put(name + 8, u64::from(b'r'));
        m.put(functions, 0x4000);
        m.put(functions + 8, 7);
        let k = m.kernel(TYPES);
        assert_eq!(width(&k, near), 4);
        let code = CodeMap::empty(&k);
        let mut out = Table::new(COLUMNS);
        array(&k, &code, near, 1, 4, None, &mut out);
        assert_eq!(out.rows.len(), 1, "{:?}", out.doubts);
        assert_eq!(out.cell(0, "name"), Some(&Value::from("sys_enter")));
        // 0x4000 is nobody's code.
        assert_eq!(out.anomalies[0].rule, "tracepoint_hook");
    }
}
