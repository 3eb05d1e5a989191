//! `linux/kallsyms`: all names of the kernel and its modules, as /proc/kallsyms has them.
//!
//! Sources: Linux `kernel/kallsyms.c`, `kernel/module/kallsyms.c`, `kernel/trace/ftrace.c`
//! (`ftrace_mod_get_kallsym`).

use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, ftrace, module};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_symbols::Symbol;
use std::collections::BTreeSet;

/// `linux/kallsyms`.
pub(in crate::linux) const KALLSYMS: LinuxView = LinuxView {
    name: "linux/kallsyms",
    meaning: "names of the kernel, of its modules and of eBPF programs, with their addresses",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/kallsyms`.
const COLUMNS: &[Column] = &[
    column(
        "va",
        Kind::Hex,
        "its address; of per-CPU symbols of older kernels, the offset in each CPU's area",
    ),
    column("kind", Kind::Text, "the letter that nm gives it"),
    column("name", Kind::Text, "the name"),
    column(
        "module",
        Kind::Text,
        "whose it is: a module; `bpf`, `__builtin__ftrace`, `__builtin__kprobes` for generated code; null: the kernel's own",
    ),
    column(
        "size",
        Kind::Number,
        "bytes; of the kernel's own up to the next symbol",
    ),
    column(
        "hidden",
        Kind::Flag,
        "whether the module is missing from the list of modules",
    ),
    column(
        "physical",
        Kind::Hex,
        "its physical address; null where nothing is mapped, and of code that was freed",
    ),
];

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut doubts = Vec::new();
    let code = CodeMap::new(kernel, &mut doubts)?;
    let physical = |va: u64| Value::from(kernel.space.translate(va).ok().map(|p| p.0));
    let letter = |kind: u8| Value::from(char::from(kind).to_string());
    let mut ends = kernel.symbols.iter().map(|s| s.address.0).peekable();
    // What the table lacks is not in /proc/kallsyms either.
    let own = |s: &Symbol<'_>| s.module.is_none() && !kernel.found.contains(s.name);
    for s in kernel.symbols.iter().filter(own) {
        let va = s.address.0;
        while ends.next_if(|e| *e <= va).is_some() {}
        out.push(vec![
            va.into(),
            letter(s.kind),
            s.name.into(),
            Value::Null,
            ends.peek().map(|e| e - va).into(),
            false.into(),
            physical(va),
        ]);
    }
    let listed = kernel.modules(&mut doubts)?;
    let places: BTreeSet<u64> = listed.iter().map(|m| m.va).collect();
    let freed = ftrace::freed(kernel, &mut doubts).unwrap_or_else(|e| {
        doubts.push(format!("ftrace_mod_maps: {e}"));
        Vec::new()
    });
    let hidden = code.hidden().iter().map(|h| (h.va, true));
    for (va, hidden) in listed.iter().map(|m| (m.va, false)).chain(hidden) {
        let m = kernel.object("module", va);
        let (name, symbols) = match (m.text("name"), module::symbols(&m)) {
            (Ok(n), Ok(s)) => (n, s),
            (Err(e), _) | (_, Err(e)) => {
                doubts.push(format!("symbols of the struct module at {va:#x}: {e}"));
                continue;
            }
        };
        for s in symbols {
            out.push(vec![
                s.address.into(),
                letter(s.kind),
                s.name.into(),
                name.as_str().into(),
                s.size.into(),
                hidden.into(),
                physical(s.address),
            ]);
        }
    }
    // Nothing is mapped there any more, or something else.
    for f in freed {
        match kernel.object("module", f.module).text("name") {
            Ok(name) => out.push(vec![
                f.address.into(),
                letter(b'T'),
                f.name.into(),
                name.into(),
                f.size.into(),
                (!places.contains(&f.module)).into(),
                Value::Null,
            ]),
            Err(e) => doubts.push(format!("struct module at {:#x}: {e}", f.module)),
        }
    }
    for g in code.generated() {
        out.push(vec![
            g.start.into(),
            letter(b't'),
            g.name.as_str().into(),
            g.of.into(),
            g.end.wrapping_sub(g.start).into(),
            false.into(),
            physical(g.start),
        ]);
    }
    out.doubts = doubts;
    Ok(out)
}
