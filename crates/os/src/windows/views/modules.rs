//! `windows/modules`: drivers and libraries of the kernel, from the loader's list.
//!
//! Source: the public type `_KLDR_DATA_TABLE_ENTRY`.

use crate::content::Recovered;
use crate::table::{Column, Kind, Table, column};
use crate::windows::{Kernel, WindowsError, WindowsView, lists, pe};
use ramsift_layers::Severity;
use std::ops::ControlFlow;

/// `windows/modules`.
pub(in crate::windows) const MODULES: WindowsView = WindowsView {
    name: "windows/modules",
    meaning: "modules of the kernel's list; can be recovered",
    columns: COLUMNS,
    build,
    recover: Some(recover),
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

/// Images of the modules, in the order of their files. What a driver needed at its start only is gone.
fn recover(
    k: &Kernel<'_>,
    _: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    let ty = k.module_type();
    let walk = lists::list(k, k.address("PsLoadedModuleList")?, ty, "InLoadOrderLinks")?;
    doubts.extend(walk.broken);
    for va in walk.items {
        let m = k.object(ty, va);
        let name = m.unicode("BaseDllName").unwrap_or_default();
        let base = m.number("DllBase")?;
        let Some(image) = pe::read(&k.space, base) else {
            doubts.push(format!(
                "the headers of {name} at {base:#x} are not in memory"
            ));
            continue;
        };
        let (content, in_order) =
            image.content(&mut |rva| k.physical(base.wrapping_add(rva)).map(|p| p.0));
        if !in_order {
            doubts.push(format!(
                "{name}: its sections overlap in the file, so it is given as it lies in memory"
            ));
        }
        let found = Recovered {
            kind: "module",
            name: format!("{base:x}.{name}"),
            object: va,
            content,
        };
        if visit(found).is_break() {
            break;
        }
    }
    Ok(())
}
