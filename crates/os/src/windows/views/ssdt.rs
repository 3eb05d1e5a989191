//! `windows/ssdt`: the kernel's tables of services, and where their entries lead.
//!
//! ```text
//! KiServiceTable: KiServiceLimit entries of 32 bits: place of the function, from the table on, and 4 bits of arguments
//! KeServiceDescriptorTableShadow: two descriptors of 32 bytes: table, counters, how many; the second is that of win32k
//! ```
//!
//! The table of win32k may lie in memory that only processes of a session have.
//!
//! Sources: the globals named above; the form of entries on x86-64 as published in "Windows Internals".

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::kernel_modules::{Modules, is_kernel};
use crate::windows::{Kernel, Space, WindowsError, WindowsView};
use ramsift_layers::{Severity, VirtAddr};

/// `windows/ssdt`.
pub(in crate::windows) const SSDT: WindowsView = WindowsView {
    name: "windows/ssdt",
    meaning: "functions of the tables of system calls",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("table", Kind::Number, "0 of the kernel, 1 of win32k"),
    column("index", Kind::Number, "number of the entry"),
    column("address", Kind::Hex, "where the function begins"),
    column("module", Kind::Text, "module that holds it"),
    column(
        "symbol",
        Kind::Text,
        "name of the service, where it is known",
    ),
    column(
        "arguments",
        Kind::Number,
        "arguments on the stack, beside four in registers",
    ),
    column("physical", Kind::Hex, "physical address of the entry"),
];

/// Entries of a table at most.
const MOST: u64 = 4096;

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let own = k.address("KiServiceTable")?;
    let count = u64::from(k.space.u32(k.address("KiServiceLimit")?)?);
    if count > MOST {
        out.doubts.push(format!(
            "the kernel's table claims {count} entries; {MOST} are shown"
        ));
    }
    rows(k, &k.space, &modules, (0, own, count.min(MOST)), &mut out);
    match win32k(k) {
        Ok(Some((table, count))) => {
            let session = k.processes(&mut Vec::new())?;
            let spaces = session.iter().filter(|p| p.session(k).is_some());
            // Session memory is not in the kernel's own space.
            let space = spaces
                .filter_map(|p| p.space(k).ok())
                .find(|s| s.translate(table).is_ok());
            match &space {
                Some(s) => rows(k, s, &modules, (1, table, count), &mut out),
                None => out.doubts.push(format!(
                    "the table of win32k at {table:#x} is in the memory of no process"
                )),
            }
        }
        Ok(None) => out.doubts.push("there is no table of win32k".into()),
        Err(e) => out
            .doubts
            .push(format!("the table of win32k is not found: {e}")),
    }
    Ok(out)
}

/// Where the entries of the kernel's own table lead, as far as they can be read.
pub(super) fn functions(k: &Kernel<'_>) -> Result<Vec<u64>, WindowsError> {
    let table = k.address("KiServiceTable")?;
    let count = u64::from(k.space.u32(k.address("KiServiceLimit")?)?).min(MOST);
    let entry = |i: u64| {
        let entry = k.space.u32(table.wrapping_add(i * 4)).ok()?;
        let place = i64::from(entry.cast_signed() >> 4);
        Some(table.wrapping_add(place.cast_unsigned()))
    };
    Ok((0..count).filter_map(entry).collect())
}

/// Address and entries of the second table.
fn win32k(k: &Kernel<'_>) -> Result<Option<(u64, u64)>, WindowsError> {
    let second = k
        .address("KeServiceDescriptorTableShadow")?
        .wrapping_add(32);
    let table = k.space.u64(second)?;
    let count = u64::from(k.space.u32(second.wrapping_add(16))?);
    Ok((is_kernel(table) && count <= MOST).then_some((table, count)))
}

/// Adds the entries of a table: its number, address and length.
fn rows(
    k: &Kernel<'_>,
    space: &Space<'_>,
    modules: &Modules,
    (number, table, count): (u64, u64, u64),
    out: &mut Table,
) {
    let mut unread = 0;
    for i in 0..count {
        let at = table.wrapping_add(i * 4);
        let Ok(entry) = space.u32(at) else {
            unread += 1;
            continue;
        };
        let place = i64::from(entry.cast_signed() >> 4);
        let va = table.wrapping_add(place.cast_unsigned());
        let module = modules.name(va);
        let known = k
            .symbols
            .nearest(VirtAddr(va))
            .filter(|(_, above)| *above == 0);
        let name = known.map(|(s, _)| s.name).filter(|n| n.starts_with("Nt"));
        out.push(vec![
            number.into(),
            i.into(),
            va.into(),
            module.into(),
            name.into(),
            u64::from(entry & 0xf).into(),
            Value::from(space.translate(at).ok().map(|p| p.0)),
        ]);
        let low = module.map(str::to_ascii_lowercase);
        let foreign = match (&low, number) {
            (None, _) => modules.lack(va),
            // The kernel goes by several file names; its image holds the table itself.
            (Some(_), 0) => modules.of(va) != modules.of(table),
            (Some(m), _) => !m.starts_with("win32k"),
        };
        if foreign {
            let whose = if number == 0 { "the kernel" } else { "win32k" };
            let to = module.map_or("no module".to_owned(), str::to_owned);
            out.flag(
                "hooked_system_call",
                Severity::Critical,
                format!(
                    "entry {i} of the system calls of {whose} leads to {va:#x}, which is in {to}"
                ),
            );
        }
    }
    if unread > 0 {
        out.doubts.push(format!(
            "{unread} entries of table {number} could not be read"
        ));
    }
}
