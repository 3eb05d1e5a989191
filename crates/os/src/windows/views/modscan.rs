//! `windows/modscan`, `windows/unloadedmodules`: records of modules wherever they lie in memory, and those of modules that were
//! unloaded.
//!
//! ```text
//! MmUnloadedDrivers -> 50 records of 40 bytes: name, first and last address at 16 and 24, time at 32
//! ```
//!
//! Sources: the public type `_KLDR_DATA_TABLE_ENTRY`; the record of unloaded drivers as published with Volatility 3 (facts
//! alone).

use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::{Modules, is_kernel};
use crate::windows::object::{number_in, unicode_in};
use crate::windows::scan::scanned;
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::Severity;

/// `windows/modscan`.
pub(in crate::windows) const MODSCAN: WindowsView = WindowsView {
    name: "windows/modscan",
    meaning: "records of modules found by a scan of all memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "file name"),
    column("path", Kind::Text, "path of the file"),
    column("base", Kind::Hex, "where it begins"),
    column("size", Kind::Number, "bytes"),
    column(
        "listed",
        Kind::Flag,
        "whether a module of the kernel's list begins there",
    ),
    column(
        "freed",
        Kind::Flag,
        "whether the record's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the record"),
];

/// `windows/unloadedmodules`.
pub(in crate::windows) const UNLOADEDMODULES: WindowsView = WindowsView {
    name: "windows/unloadedmodules",
    meaning: "modules that were unloaded",
    columns: UNLOADED,
    build: unloaded,
    recover: None,
};

const UNLOADED: &[Column] = &[
    column("name", Kind::Text, "file name"),
    column("start", Kind::Hex, "where it began"),
    column("end", Kind::Hex, "past its last byte"),
    column("unloaded", Kind::Time, "when it was unloaded"),
    column("record", Kind::Hex, "virtual address of the record"),
    column("physical", Kind::Hex, "physical address of the record"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let ty = k.module_type();
    for m in &found.modules {
        let base = number_in(k, ty, "DllBase", &m.bytes)?.unwrap_or(0);
        let name = unicode_in(k, ty, "BaseDllName", &m.bytes)?;
        let path = unicode_in(k, ty, "FullDllName", &m.bytes)?;
        let listed = modules.of(base).is_some_and(|own| own.base == base);
        // A record that nobody gave back, of an image that is there.
        let mut head = [0; 2];
        let mut there = || k.space.read(base, &mut head).is_ok() && head == *b"MZ";
        let hidden = !listed && !m.freed && modules.lack(base) && there();
        let text = format!(
            "{} at {base:#x} is loaded and in no module of the kernel's list",
            path.as_deref()
                .or(name.as_deref())
                .unwrap_or("a module without a name")
        );
        out.push(vec![
            name.into(),
            path.into(),
            base.into(),
            number_in(k, ty, "SizeOfImage", &m.bytes)?.into(),
            listed.into(),
            m.freed.into(),
            m.physical.into(),
        ]);
        if hidden {
            out.flag("hidden_module", Severity::Critical, text);
        }
    }
    Ok(out)
}

/// Records that the kernel keeps.
const KEPT: u64 = 50;
/// Bytes of a record.
const RECORD: u64 = 40;

fn unloaded(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(UNLOADED);
    // Before the first one is unloaded there is no array.
    let first = k.global("MmUnloadedDrivers")?;
    for i in 0..if is_kernel(first) { KEPT } else { 0 } {
        let at = first.wrapping_add(i * RECORD);
        let word = |n: u64| k.space.u64(at.wrapping_add(n));
        let (Ok(len), Ok(text), Ok(start), Ok(end), Ok(when)) =
            (word(0), word(8), word(16), word(24), word(32))
        else {
            out.doubts.push(format!(
                "the record at {at:#x} and those behind it can't be read"
            ));
            break;
        };
        if !is_kernel(start) {
            continue;
        }
        let len = usize::try_from(len & 0xffff).unwrap_or(0);
        let name = k.space.utf16(text, len).ok().filter(|n| !n.is_empty());
        let when = time(when);
        out.push(vec![
            name.clone().into(),
            start.into(),
            end.into(),
            when.into(),
            at.into(),
            k.physical(at).map(|p| p.0).into(),
        ]);
        if let Some(when) = when {
            let name = name.unwrap_or_else(|| format!("a module at {start:#x}"));
            out.event(when, "module unloaded", format!("{name} was unloaded"));
        }
    }
    Ok(out)
}
