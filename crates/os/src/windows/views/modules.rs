//! `windows/modules`: drivers and libraries of the kernel, from the loader's list.
//!
//! Source: the public type `_KLDR_DATA_TABLE_ENTRY`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::{Kernel, WindowsError, WindowsView, lists};
use ramsift_layers::Severity;

/// `windows/modules`.
pub(in crate::windows) const MODULES: WindowsView = WindowsView {
    name: "windows/modules",
    meaning: "modules of the kernel's list",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "file name"),
    column("path", Kind::Text, "path of the file"),
    column("base", Kind::Hex, "where it begins"),
    column("size", Kind::Number, "bytes"),
    column("entry", Kind::Hex, "its entry point"),
    column("record", Kind::Hex, "virtual address of its record"),
    column("physical", Kind::Hex, "physical address of its record"),
];

/// Signed drivers that intruders bring along, since they give programs the kernel's memory; by the file names under which
/// they were published as abused.
const ABUSED: [&str; 16] = [
    "aswarpot.sys",
    "capcom.sys",
    "cpuz141.sys",
    "dbutil_2_3.sys",
    "dbutildrv2.sys",
    "eneio64.sys",
    "gdrv.sys",
    "gmer64.sys",
    "iqvw64e.sys",
    "kprocesshacker.sys",
    "mhyprot2.sys",
    "mhyprot3.sys",
    "procexp152.sys",
    "rtcore64.sys",
    "winio64.sys",
    "zamguard64.sys",
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let ty = k.module_type();
    let head = k.address("PsLoadedModuleList")?;
    let walk = lists::list(k, head, ty, "InLoadOrderLinks")?;
    out.doubts.extend(walk.broken);
    for va in walk.items {
        let m = k.object(ty, va);
        let (name, path) = (m.unicode("BaseDllName"), m.unicode("FullDllName"));
        let name = name.unwrap_or_default();
        let path = path.unwrap_or_default();
        out.push(vec![
            name.as_str().into(),
            path.as_str().into(),
            m.number("DllBase").ok().into(),
            m.number("SizeOfImage").ok().into(),
            m.number("EntryPoint").ok().into(),
            va.into(),
            m.physical().into(),
        ]);
        if ABUSED.contains(&name.to_ascii_lowercase().as_str()) {
            out.flag(
                "abused_driver",
                Severity::High,
                format!("{path} is a driver that intruders are known to bring along"),
            );
        }
    }
    Ok(out)
}
