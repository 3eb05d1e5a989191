//! `linux/check_idt`: gates of the interrupt descriptor table.
//!
//! ```text
//! gate_desc { offset_low: 16, segment: 16, ist: 3, zero: 5, type: 5, dpl: 2, p: 1,
//!             offset_middle: 16, offset_high: 32, reserved: 32 }
//! ```
//!
//! All CPUs load one table, `idt_table`, through a read-only mapping of its page at the start of
//! the CPU entry area. Handlers are the kernel's own: modules get interrupts through its dispatcher.
//!
//! Sources: Linux `arch/x86/include/asm/desc_defs.h`, `arch/x86/kernel/idt.c`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Owner};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::{Severity, VirtAddr};

/// `linux/check_idt`.
pub(in crate::linux) const CHECK_IDT: LinuxView = LinuxView {
    name: "linux/check_idt",
    meaning: "gates of the interrupt descriptor table and their handlers (x86-64)",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/check_idt`.
const COLUMNS: &[Column] = &[
    column("index", Kind::Number, "interrupt vector"),
    column("handler", Kind::Hex, "what the gate leads to"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column("segment", Kind::Hex, "code segment selector"),
    column("type", Kind::Hex, "kind of gate: 0xe interrupt, 0xf trap"),
    column(
        "dpl",
        Kind::Number,
        "least privilege that may raise it by an instruction",
    ),
    column(
        "ist",
        Kind::Number,
        "number of the interrupt stack; 0: none",
    ),
    column("va", Kind::Hex, "virtual address of the gate"),
    column("physical", Kind::Hex, "physical address of the gate"),
];

/// Vectors of the processor's own exceptions. Those that it doesn't raise may keep the gates that
/// they had while the machine started, though the code behind them is gone.
const EXCEPTIONS: usize = 32;
const GATES: u64 = 256;
const GATE: usize = 16;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let at = kernel.address("idt_table")?;
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let mut raw = vec![0; GATE * usize::try_from(GATES).unwrap_or(0)];
    kernel.space.read(at, &mut raw)?;
    for (i, g) in raw.as_chunks::<GATE>().0.iter().enumerate() {
        let word = |n: usize| u64::from(u16::from_le_bytes([g[n], g[n + 1]]));
        let flags = word(4);
        if flags >> 15 == 0 {
            continue;
        }
        let handler = word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48;
        let va = at.wrapping_add((i * GATE) as u64);
        let mut owner = code.owner(handler);
        if owner == Owner::Unknown && i < EXCEPTIONS {
            owner = early(kernel, handler).unwrap_or(owner);
        }
        out.push(vec![
            i.into(),
            handler.into(),
            owner.to_string().into(),
            owner.module().into(),
            word(2).into(),
            (flags >> 8 & 0x1f).into(),
            (flags >> 13 & 3).into(),
            (flags & 7).into(),
            va.into(),
            kernel.space.translate(va).ok().map(|p| p.0).into(),
        ]);
        let what = format!("the gate of interrupt vector {i} at {va:#x}");
        if !owner.is_known() {
            judge(&mut out, &code, "idt_hook", &what, handler);
        } else if !matches!(owner, Owner::Kernel { .. }) {
            let reason = format!("{what} leads out of the kernel: {handler:#x}, {owner}");
            out.flag("idt_hook", Severity::High, reason);
        }
    }
    Ok(out)
}

/// The handler of exceptions while the machine starts, if it is that.
fn early(kernel: &Kernel<'_>, handler: u64) -> Option<Owner> {
    let (near, offset) = kernel.symbols.nearest(VirtAddr(handler))?;
    (near.name == "early_idt_handler_array").then(|| Owner::Kernel {
        symbol: near.name.to_owned(),
        offset,
    })
}
