//! `linux/kprobes`: probes set into the kernel's code.
//!
//! ```text
//! kprobe_table[64] -> kprobe { hlist, list, addr, symbol_name, pre_handler, post_handler, flags }
//! several on one place: pre_handler is aggr_pre_handler, list leads to them
//! return probe: pre_handler is pre_handler_kretprobe, and the kprobe is the first part of a kretprobe
//! ```
//!
//! Those of tracefs and perf have handlers in the kernel's text.
//!
//! Sources: Linux `include/linux/kprobes.h`, `kernel/kprobes.c`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::BTreeSet;

/// `linux/kprobes`.
pub(in crate::linux) const KPROBES: LinuxView = LinuxView {
    name: "linux/kprobes",
    meaning: "probes set into the kernel's code and their handlers",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/kprobes`.
const COLUMNS: &[Column] = &[
    column("address", Kind::Hex, "the instruction that is probed"),
    column("place", Kind::Text, "whose code that is"),
    column(
        "kind",
        Kind::Text,
        "`entry`, or `return` for a return probe",
    ),
    column(
        "handler",
        Kind::Hex,
        "what is called before it, or on return; null: nothing",
    ),
    column("symbol", Kind::Text, "whose code that is"),
    column(
        "post_handler",
        Kind::Hex,
        "what is called after it, or on entry; null: nothing",
    ),
    column("post_symbol", Kind::Text, "whose code that is"),
    column(
        "flags",
        Kind::Hex,
        "1 gone, 2 disabled, 4 optimised, 8 through ftrace",
    ),
    column("missed", Kind::Number, "times that it was passed over"),
    column("va", Kind::Hex, "virtual address of its struct kprobe"),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Buckets of the table.
const BUCKETS: u64 = 64;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let table = kernel.address("kprobe_table")?;
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let node = kernel.symbols.types().field("kprobe", "hlist")?.offset;
    for i in 0..BUCKETS {
        let first = kernel.space.u64(table.wrapping_add(i * 8))?;
        let walk = kernel.chain(first, 0);
        out.doubts.extend(walk.broken);
        for n in walk.items {
            let probe = kernel.object("kprobe", n.wrapping_sub(node));
            if let Err(e) = place(kernel, &code, &probe, &mut out) {
                out.doubts.push(format!("kprobe at {:#x}: {e}", probe.va));
            }
        }
    }
    Ok(out)
}

fn is(kernel: &Kernel<'_>, va: u64, name: &str) -> bool {
    va != 0 && kernel.symbols.address(name).is_some_and(|a| a.0 == va)
}

/// The probes of one place.
fn place(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    probe: &Object<'_>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    if !is(kernel, probe.number("pre_handler")?, "aggr_pre_handler") {
        return row(kernel, code, probe, out);
    }
    let walk = kernel.list(probe.at("list")?, "kprobe", "list")?;
    out.doubts.extend(walk.broken);
    for va in walk.items {
        row(kernel, code, &kernel.object("kprobe", va), out)?;
    }
    Ok(())
}

fn row(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    probe: &Object<'_>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let (mut before, mut after) = (probe.number("pre_handler")?, probe.number("post_handler")?);
    let back = is(kernel, before, "pre_handler_kretprobe");
    if back {
        let back = kernel.object("kretprobe", probe.va);
        (before, after) = (back.number("handler")?, back.number("entry_handler")?);
    }
    let symbol = |va: u64| match va {
        0 => Value::Null,
        _ => code.owner(va).to_string().into(),
    };
    let address = probe.number("addr")?;
    let at = code.owner(address);
    out.push(vec![
        address.into(),
        at.to_string().into(),
        if back { "return" } else { "entry" }.into(),
        (before != 0).then_some(before).into(),
        symbol(before),
        (after != 0).then_some(after).into(),
        symbol(after),
        (probe.number("flags")? & 0xffff_ffff).into(),
        probe.number("nmissed")?.into(),
        probe.va.into(),
        probe.physical().into(),
    ]);
    let mut known = true;
    for handler in [before, after].into_iter().filter(|h| *h != 0) {
        let what = format!("the kprobe at {:#x} on {at}", probe.va);
        known &= judge(out, code, "kprobe_hook", &what, handler).is_known();
    }
    if known {
        let reason = format!(
            "a kprobe (struct kprobe at {:#x}) is set on {at}: somebody traces the kernel there. perf, bpftrace and \
             programs that watch a machine do that",
            probe.va
        );
        out.flag("kprobe_in_use", Severity::Low, reason);
    }
    Ok(())
}

/// The addresses that are probed.
pub(in crate::linux) fn addresses(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<BTreeSet<u64>, LinuxError> {
    let table = kernel.address("kprobe_table")?;
    let types = kernel.symbols.types();
    let node = types.field("kprobe", "hlist")?.offset;
    let addr = types.field("kprobe", "addr")?.offset;
    let mut out = BTreeSet::new();
    for i in 0..BUCKETS {
        let first = kernel.space.u64(table.wrapping_add(i * 8))?;
        let walk = kernel.chain(first, 0);
        doubts.extend(walk.broken);
        for n in walk.items {
            out.insert(kernel.space.u64(n.wrapping_sub(node).wrapping_add(addr))?);
        }
    }
    Ok(out)
}
