//! `windows/driverscan`: driver objects wherever they lie in physical memory.
//!
//! Source: the public type `_DRIVER_OBJECT`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::Modules;
use crate::windows::object::{number_in, unicode_in};
use crate::windows::scan::scanned;
use crate::windows::{Kernel, WindowsError, WindowsView};
use ramsift_layers::Severity;

/// `windows/driverscan`.
pub(in crate::windows) const DRIVERSCAN: WindowsView = WindowsView {
    name: "windows/driverscan",
    meaning: "driver objects found by a scan of all memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "name of the object"),
    column("start", Kind::Hex, "where the driver's image begins"),
    column("size", Kind::Number, "bytes of it"),
    column("init", Kind::Hex, "its first function"),
    column(
        "listed",
        Kind::Flag,
        "whether a module of the kernel's list holds it",
    ),
    column("freed", Kind::Flag, "whether its memory was given back"),
    column("physical", Kind::Hex, "physical address of the object"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    // Of a broken list nobody can say that it lacks a module.
    let modules = Modules::new(k, &mut out.doubts)?;
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    for d in &found.drivers {
        let ty = "_DRIVER_OBJECT";
        let number = |path: &str| number_in(k, ty, path, &d.bytes);
        let name = unicode_in(k, ty, "DriverName", &d.bytes)?;
        let start = number("DriverStart")?.unwrap_or(0);
        let listed = modules.of(start).is_some();
        // Parts of the kernel and of memory that was used again have no image, or no name.
        let hidden = !d.freed && modules.lack(start);
        let who = name.clone().filter(|n| !n.is_empty());
        out.push(vec![
            name.into(),
            start.into(),
            number("DriverSize")?.into(),
            number("DriverInit")?.into(),
            listed.into(),
            d.freed.into(),
            d.physical.into(),
        ]);
        if let Some(who) = who.filter(|_| hidden) {
            out.flag(
                "hidden_driver",
                Severity::Critical,
                format!("the image of {who} at {start:#x} is in no module of the kernel's list"),
            );
        }
    }
    Ok(out)
}
