//! `linux/lsmod`: the modules of the kernel's list.
//!
//! Sources: Linux `include/linux/module.h` (`struct module`; `core_layout` until 6.3, `mem[]`
//! from 6.4).

use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};

/// `linux/lsmod`.
pub(in crate::linux) const LSMOD: LinuxView = LinuxView {
    name: "linux/lsmod",
    meaning: "modules of the kernel's list",
    columns: MODULES,
    build: lsmod,
    recover: None,
    on_request: false,
};

/// Columns of `linux/lsmod`.
const MODULES: &[Column] = &[
    column("name", Kind::Text, "its name"),
    column("base", Kind::Hex, "virtual address of its text"),
    column(
        "size",
        Kind::Number,
        "bytes of its core, as /proc/modules shows",
    ),
    column("taints", Kind::Hex, "taint flags"),
    column("module", Kind::Hex, "virtual address of its struct module"),
    column(
        "physical",
        Kind::Hex,
        "physical address of its struct module",
    ),
];

/// The modules, in the order of the list.
fn lsmod(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let walk = kernel.list(kernel.address("modules")?, "module", "list")?;
    let mut out = Table::new(MODULES);
    out.doubts.extend(walk.broken);
    out.doubts.extend(kernel.untyped.iter().cloned());
    for va in walk.items {
        let module = kernel.object("module", va);
        match row(&module) {
            Ok(r) => out.rows.push(r),
            Err(e) => out.doubts.push(format!("struct module at {va:#x}: {e}")),
        }
    }
    Ok(out)
}

fn row(m: &Object<'_>) -> Result<Vec<Value>, LinuxError> {
    let (base, size) = if m.has("core_layout") {
        (m.number("core_layout.base")?, m.number("core_layout.size")?)
    } else {
        // Kinds of memory until MOD_INIT_TEXT are the core: text, data, rodata, ro after init.
        let mut size = 0u64;
        for kind in 0..4 {
            size = size.saturating_add(m.number(&format!("mem[{kind}].size"))?);
        }
        (m.number("mem[0].base")?, size)
    };
    Ok(vec![
        m.text("name")?.into(),
        base.into(),
        size.into(),
        m.number("taints")?.into(),
        m.va.into(),
        m.physical().into(),
    ])
}
