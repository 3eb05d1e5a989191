//! `windows/dlllist`, `windows/ldrmodules`: libraries by the loader's lists, and images that are mapped and in none of them.
//!
//! Sources: the public types `_PEB_LDR_DATA`, `_LDR_DATA_TABLE_ENTRY`. The 32-bit lists of a 32-bit program have the same
//! fields with pointers of four bytes: list heads at 0x0C, 0x14, 0x1C of the loader's data, which the PEB names at 0x0C;
//! base, size and names at 0x18, 0x20, 0x24 and 0x2C of a record.

use crate::table::{Column, Kind, Table, column};
use crate::windows::objects::ObjectTypes;
use crate::windows::process::{Process, User};
use crate::windows::views::vads;
use crate::windows::{Kernel, WindowsError, WindowsView, lists, time};
use ramsift_layers::Severity;
use std::collections::HashSet;

/// `windows/dlllist`.
pub(in crate::windows) const DLLLIST: WindowsView = WindowsView {
    name: "windows/dlllist",
    meaning: "libraries that processes have loaded",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("base", Kind::Hex, "where it begins"),
    column("size", Kind::Number, "bytes"),
    column("name", Kind::Text, "file name"),
    column("path", Kind::Text, "path of the file"),
    column(
        "bits",
        Kind::Number,
        "64, or 32 in the lists of a 32-bit program",
    ),
    column("loaded", Kind::Time, "when it was loaded"),
    column("physical", Kind::Hex, "physical address of its record"),
];

/// `windows/ldrmodules`.
pub(in crate::windows) const LDRMODULES: WindowsView = WindowsView {
    name: "windows/ldrmodules",
    meaning: "mapped images, and whether the loader's lists have them",
    columns: MAPPED,
    build: mapped,
    recover: None,
};

const MAPPED: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("base", Kind::Hex, "where it begins"),
    column(
        "in_load",
        Kind::Flag,
        "whether the list by load order has it",
    ),
    column(
        "in_memory",
        Kind::Flag,
        "whether the list by memory order has it",
    ),
    column(
        "in_init",
        Kind::Flag,
        "whether the list by initialization order has it",
    ),
    column("path", Kind::Text, "the file that is mapped"),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// A library.
pub(super) struct Library {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) name: String,
    pub(super) path: String,
    bits: u64,
    loaded: Option<i64>,
    physical: Option<u64>,
}

/// The three lists of the loader: head in its data, links in a record.
const LISTS: [(&str, &str); 3] = [
    ("InLoadOrderModuleList", "InLoadOrderLinks"),
    ("InMemoryOrderModuleList", "InMemoryOrderLinks"),
    (
        "InInitializationOrderModuleList",
        "InInitializationOrderLinks",
    ),
];

/// Records of one of the 64-bit lists.
fn records(
    k: &Kernel<'_>,
    user: &User<'_>,
    list: (&str, &str),
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, WindowsError> {
    let peb = user.object(k, "_PEB", user.peb);
    let Some(data) = peb.follow("Ldr", "_PEB_LDR_DATA")? else {
        return Ok(Vec::new());
    };
    let ty = "_LDR_DATA_TABLE_ENTRY";
    let walk = lists::list_in(k, &user.space, data.at(list.0)?, ty, list.1)?;
    doubts.extend(walk.broken);
    Ok(walk.items)
}

/// The libraries of a process by load order, 64-bit ones first.
pub(super) fn libraries(
    k: &Kernel<'_>,
    p: &Process<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Library>, WindowsError> {
    let Some(user) = p.user(k)? else {
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    for va in records(k, &user, LISTS[0], doubts)? {
        let m = user.object(k, "_LDR_DATA_TABLE_ENTRY", va);
        let loaded = m.number("LoadTime").ok();
        out.push(Library {
            base: m.number("DllBase")?,
            size: m.number("SizeOfImage")?,
            name: m.unicode("BaseDllName").unwrap_or_default(),
            path: m.unicode("FullDllName").unwrap_or_default(),
            bits: 64,
            loaded: loaded.and_then(time),
            physical: m.physical(),
        });
    }
    if let Some(peb) = peb32(k, p) {
        narrow(&user, peb, doubts, &mut out);
    }
    Ok(out)
}

/// The 32-bit PEB of a 32-bit program.
fn peb32(k: &Kernel<'_>, p: &Process<'_>) -> Option<u64> {
    let at = p.object.first_of(&["WoW64Process", "Wow64Process"]);
    let at = at.ok().filter(|va| *va != 0)?;
    // Before Windows 10 the field is the PEB itself.
    if k.symbols.types().has_type("_EWOW64PROCESS") {
        return k.object("_EWOW64PROCESS", at).number("Peb").ok();
    }
    Some(at)
}

/// Records of a list at most.
const MOST: usize = 4096;

/// Adds the libraries of the 32-bit list by load order.
fn narrow(user: &User<'_>, peb: u64, doubts: &mut Vec<String>, out: &mut Vec<Library>) {
    let number = |va: u64| user.space.u32(va).map(u64::from);
    let text = |va: u64| {
        let len = number(va).ok()? & 0xffff;
        let at = number(va + 4).ok()?;
        user.space.utf16(at, usize::try_from(len).ok()?).ok()
    };
    let walk = || {
        let head = number(peb + 0xc)? + 0xc;
        let (mut at, mut seen) = (number(head)?, HashSet::new());
        let mut all = Vec::new();
        while at != head && seen.insert(at) && seen.len() < MOST {
            all.push(Library {
                base: number(at + 0x18)?,
                size: number(at + 0x20)?,
                name: text(at + 0x2c).unwrap_or_default(),
                path: text(at + 0x24).unwrap_or_default(),
                bits: 32,
                loaded: None,
                physical: user.space.translate(at).ok().map(|p| p.0),
            });
            at = number(at)?;
        }
        Ok::<_, crate::windows::PageError>(all)
    };
    match walk() {
        Ok(all) => out.extend(all),
        Err(e) => doubts.push(format!("the 32-bit list of libraries can't be read: {e}")),
    }
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    for p in k.processes(&mut out.doubts)? {
        let mut doubts = Vec::new();
        let all = match libraries(k, &p, &mut doubts) {
            Ok(all) => all,
            Err(_) if p.has_ended() => continue,
            Err(e) => {
                doubts.push(format!("they can't be listed: {e}"));
                Vec::new()
            }
        };
        let who = p.label();
        let told = doubts
            .into_iter()
            .map(|d| format!("libraries of {who}: {d}"));
        out.doubts.extend(told.filter(|_| !p.has_ended()));
        for l in all {
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                l.base.into(),
                l.size.into(),
                l.name.into(),
                l.path.into(),
                l.bits.into(),
                l.loaded.into(),
                l.physical.into(),
            ]);
        }
    }
    Ok(out)
}

fn mapped(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(MAPPED);
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let Ok(Some(user)) = p.user(k) else { continue };
        let bases = |list| {
            let records = records(k, &user, list, &mut Vec::new())?;
            let base = |va: u64| {
                user.object(k, "_LDR_DATA_TABLE_ENTRY", va)
                    .number("DllBase")
            };
            Ok::<HashSet<u64>, WindowsError>(
                records.into_iter().filter_map(|va| base(va).ok()).collect(),
            )
        };
        let lists = LISTS.map(bases);
        let [Ok(load), Ok(memory), Ok(init)] = &lists else {
            if !p.has_ended() {
                out.doubts
                    .push(format!("the loader's lists of {} can't be read", p.label()));
            }
            continue;
        };
        let mut narrow_ones = Vec::new();
        if let Some(peb) = peb32(k, &p) {
            narrow(&user, peb, &mut Vec::new(), &mut narrow_ones);
        }
        let narrow: HashSet<u64> = narrow_ones.iter().map(|l| l.base).collect();
        for a in vads::of(k, &types, &p, &mut Vec::new())? {
            let Some(path) = a.file.filter(|_| a.image) else {
                continue;
            };
            let known = load.contains(&a.start) || narrow.contains(&a.start);
            let in_init = init.contains(&a.start) || narrow.contains(&a.start);
            let in_memory = memory.contains(&a.start) || narrow.contains(&a.start);
            let none = !known && !in_memory && !in_init;
            let text = format!(
                "{path}, mapped at {:#x} in {}, is in none of the loader's lists",
                a.start,
                p.label()
            );
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                a.start.into(),
                known.into(),
                in_memory.into(),
                in_init.into(),
                path.into(),
                user.space.translate(a.start).ok().map(|p| p.0).into(),
            ]);
            if none {
                out.flag("unlinked_library", Severity::High, text);
            }
        }
    }
    Ok(out)
}
