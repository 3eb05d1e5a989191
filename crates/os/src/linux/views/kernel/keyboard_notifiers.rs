//! `linux/keyboard_notifiers`: functions that are told of every key.
//!
//! ```text
//! keyboard_notifier_list: atomic_notifier_head { lock, head } -> notifier_block { notifier_call, next, priority }
//! ```
//!
//! Drivers for speech and braille register here, and so do key loggers.
//!
//! Sources: Linux `include/linux/notifier.h`, `drivers/tty/vt/keyboard.c`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, column};

/// `linux/keyboard_notifiers`.
pub(in crate::linux) const KEYBOARD_NOTIFIERS: LinuxView = LinuxView {
    name: "linux/keyboard_notifiers",
    meaning: "functions that are told of every key",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/keyboard_notifiers`.
const COLUMNS: &[Column] = &[
    column("handler", Kind::Hex, "the function"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column("priority", Kind::Number, "what the order of calls follows"),
    column(
        "va",
        Kind::Hex,
        "virtual address of its struct notifier_block",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let head = kernel.object(
        "atomic_notifier_head",
        kernel.address("keyboard_notifier_list")?,
    );
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let next = kernel
        .symbols
        .types()
        .field("notifier_block", "next")?
        .offset;
    let walk = kernel.chain_until(head.number("head")?, next, 0);
    out.doubts.extend(walk.broken);
    for va in walk.items {
        let block = kernel.object("notifier_block", va);
        let handler = block.number("notifier_call")?;
        let owner = code.owner(handler);
        out.push(vec![
            handler.into(),
            owner.to_string().into(),
            owner.module().into(),
            block.int("priority")?.into(),
            va.into(),
            block.physical().into(),
        ]);
        let what = format!("the keyboard notifier at {va:#x}");
        judge(&mut out, &code, "keyboard_hook", &what, handler);
    }
    Ok(out)
}
