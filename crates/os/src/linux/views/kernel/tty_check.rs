//! `linux/tty_check`: functions of terminals: of their drivers and of their line disciplines.
//!
//! ```text
//! tty_drivers -> tty_driver { name, ops, num, ttys[] } -> tty_struct { name, ops, ldisc -> tty_ldisc { ops } }
//! ```
//!
//! A key logger replaces `receive_buf` of a terminal's line discipline. Pseudo terminals (`pts/…`)
//! are not in their driver's array.
//!
//! Sources: Linux `include/linux/tty_driver.h`, `include/linux/tty_ldisc.h`, `drivers/tty/tty_io.c`.

use crate::linux::hooks::{functions, judge, pointers};
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, column};
use ramsift_symbols::Field;
use std::collections::BTreeSet;

/// `linux/tty_check`.
pub(in crate::linux) const TTY_CHECK: LinuxView = LinuxView {
    name: "linux/tty_check",
    meaning: "functions of terminals' drivers and line disciplines",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/tty_check`.
const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "name of the driver or terminal"),
    column(
        "kind",
        Kind::Text,
        "`driver`, `terminal` (own functions that are not its driver's) or `discipline`",
    ),
    column(
        "member",
        Kind::Text,
        "what the function does: `receive_buf`, `write`, …",
    ),
    column("handler", Kind::Hex, "the function"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column(
        "ops",
        Kind::Hex,
        "virtual address of the struct of functions",
    ),
    column(
        "va",
        Kind::Hex,
        "virtual address of the tty_driver or tty_struct",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Terminals of a driver that are looked at.
const MAX: u64 = 4096;

struct Check<'k, 'o> {
    kernel: &'k Kernel<'k>,
    code: &'o CodeMap<'k>,
    out: &'o mut Table,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let head = kernel.address("tty_drivers")?;
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let walk = kernel.list(head, "tty_driver", "tty_drivers")?;
    out.doubts.extend(walk.broken);
    let (driver, ldisc) = (
        functions(kernel, "tty_operations"),
        functions(kernel, "tty_ldisc_ops"),
    );
    let mut check = Check {
        kernel,
        code: &code,
        out: &mut out,
    };
    for va in walk.items {
        if let Err(e) = check.driver(va, &driver, &ldisc) {
            check.out.doubts.push(format!("tty_driver at {va:#x}: {e}"));
        }
    }
    Ok(out)
}

impl Check<'_, '_> {
    fn driver(
        &mut self,
        va: u64,
        functions: &[(&str, Field)],
        ldisc: &[(&str, Field)],
    ) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let driver = kernel.object("tty_driver", va);
        let name = kernel.text(driver.number("name")?, 64)?;
        let ops = driver.number("ops")?;
        self.rows(&name, "driver", ops, va, functions)?;
        let (ttys, count) = (driver.number("ttys")?, driver.number("num")? & 0xffff_ffff);
        if ttys == 0 {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        for i in 0..count.min(MAX) {
            let tty = kernel.space.u64(ttys.wrapping_add(i * 8))?;
            // Several minors may be one terminal.
            if tty == 0 || !seen.insert(tty) {
                continue;
            }
            let tty = kernel.object("tty_struct", tty);
            let name = tty.text("name")?;
            let own = tty.number("ops")?;
            if own != ops {
                self.rows(&name, "terminal", own, tty.va, functions)?;
            }
            if let Some(d) = tty.follow("ldisc", "tty_ldisc")? {
                self.rows(&name, "discipline", d.number("ops")?, tty.va, ldisc)?;
            }
        }
        Ok(())
    }

    fn rows(
        &mut self,
        name: &str,
        kind: &'static str,
        ops: u64,
        va: u64,
        functions: &[(&str, Field)],
    ) -> Result<(), LinuxError> {
        if ops == 0 {
            return Ok(());
        }
        for (member, handler) in pointers(self.kernel, functions, ops)? {
            let owner = self.code.owner(handler);
            self.out.push(vec![
                name.into(),
                kind.into(),
                member.into(),
                handler.into(),
                owner.to_string().into(),
                owner.module().into(),
                ops.into(),
                va.into(),
                self.kernel.space.translate(va).ok().map(|p| p.0).into(),
            ]);
            let what = format!("{member} of {kind} {name} (functions at {ops:#x})");
            judge(self.out, self.code, "tty_hook", &what, handler);
        }
        Ok(())
    }
}
