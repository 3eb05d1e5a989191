//! Layouts of a kernel that nobody knows exactly: those of the nearest kernel that fit what is in memory, and globals found
//! in its image.
//!
//! ```text
//! exports                  PsInitialSystemProcess, PsLoadedModuleList, PsProcessType, NtBuildNumber, KeNumberProcessors
//! the System process       number 4, its name, the kernel's own page table; its link backwards is the head of the list
//! its header               the type's number, mixed with a cookie: the cookie
//! the image's data         the table of types, by the process type at its number
//! ```
//!
//! Kernels of one family have the same structs. A layout is taken only if the System process, its threads, its handle table
//! and the next process in the list all make sense by it; what can't be found (a global that is not exported and has no shape
//! of its own) is missing, and the views that need it say so.
//!
//! Sources: "PE Format" (Microsoft), export directory; the public types `_EPROCESS`, `_OBJECT_TYPE`.

use super::{Kernel, Space, lists, time};
use ramsift_symbols::layouts::Layouts;
use ramsift_symbols::{NewSymbol, Source, SymbolTable};
use std::collections::BTreeMap;

/// Names that an export directory has at most.
const MAX_EXPORTS: u32 = 1 << 16;
/// Bytes of an image's data that are searched at most.
const MAX_DATA: usize = 6 << 20;
/// Exports that are globals.
const EXPORTED: [&str; 6] = [
    "PsInitialSystemProcess",
    "PsLoadedModuleList",
    "PsProcessType",
    "PsThreadType",
    "NtBuildNumber",
    "KeNumberProcessors",
];

/// Visits what an image exports by name, with its address, until the visitor has enough. What is another image's (a forwarded
/// export) is left out. `None` if there is no such directory.
pub(super) fn each_export(
    space: &Space<'_>,
    base: u64,
    visit: &mut dyn FnMut(&[u8], u64) -> bool,
) -> Option<()> {
    let at = |rva: u32| base + u64::from(rva);
    let pe = base + u64::from(space.u32(base + 0x3c).ok()?);
    // The first directory of the optional header, which begins at 112 there.
    let directory = at(space.u32(pe + 24 + 112).ok()?);
    let bytes = u64::from(space.u32(pe + 24 + 116).ok()?);
    let word = |n: u64| space.u32(directory + n).ok();
    let (names, functions, numbers) = (at(word(32)?), at(word(28)?), at(word(36)?));
    for i in 0..u64::from(word(24)?.min(MAX_EXPORTS)) {
        let Ok(rva) = space.u32(names + i * 4) else {
            continue;
        };
        let mut raw = [0; 64];
        let (name, mut number) = (at(rva), [0; 2]);
        let read = space.read(name, &mut raw);
        // The directory may end with the image.
        if read.or_else(|_| space.read(name, &mut raw[..32])).is_err()
            || space.read(numbers + i * 2, &mut number).is_err()
        {
            continue;
        }
        let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
        let function = functions + u64::from(u16::from_le_bytes(number)) * 4;
        let Ok(function) = space.u32(function) else {
            continue;
        };
        let forwarded = (directory..directory + bytes).contains(&at(function));
        if !forwarded && !visit(&raw[..end], at(function)) {
            break;
        }
    }
    Some(())
}

/// Globals that an image exports, by their addresses.
fn exports(space: &Space<'_>, base: u64) -> Option<BTreeMap<&'static str, u64>> {
    let mut out = BTreeMap::new();
    each_export(space, base, &mut |own, va| {
        if let Some(name) = EXPORTED.iter().find(|n| n.as_bytes() == own) {
            out.insert(*name, va);
        }
        out.len() < EXPORTED.len()
    })?;
    Some(out)
}

/// A part of an image's data: where it lies, and its bytes.
struct Data {
    va: u64,
    bytes: Vec<u8>,
}

/// Sections of an image that hold no code. What can't be read is zeros.
fn data(space: &Space<'_>, base: u64) -> Option<Vec<Data>> {
    let pe = base + u64::from(space.u32(base + 0x3c).ok()?);
    let count = space.u32(pe + 4).ok()? >> 16;
    let optional = space.u32(pe + 20).ok()? & 0xffff;
    let first = pe + 24 + u64::from(optional);
    let (mut out, mut left) = (Vec::new(), MAX_DATA);
    for i in 0..u64::from(count.min(96)) {
        let s = first + i * 40;
        let (size, rva) = (space.u32(s + 8).ok()?, space.u32(s + 12).ok()?);
        let flags = space.u32(s + 36).ok()?;
        // Code, and what is thrown away after the start (`IMAGE_SCN_*`).
        if flags & 0x2200_0020 != 0 {
            continue;
        }
        let n = usize::try_from(size).unwrap_or(0).min(left);
        left -= n;
        let va = base + u64::from(rva);
        let mut bytes = vec![0; n];
        for (page, part) in bytes.chunks_mut(4096).enumerate() {
            if space.read(va + page as u64 * 4096, part).is_err() {
                part.fill(0);
            }
        }
        out.push(Data { va, bytes });
    }
    Some(out)
}

/// The table of the nearest kernel that fits the one at `base`, whose symbol file is `exact`. `make` opens a kernel with a
/// table, so that it can be asked.
pub(super) fn find<'a>(
    layouts: &Layouts,
    exact: &str,
    space: &Space<'_>,
    base: u64,
    make: &dyn Fn(SymbolTable) -> Kernel<'a>,
) -> Option<SymbolTable> {
    let exported = exports(space, base)?;
    let system = space.u64(*exported.get("PsInitialSystemProcess")?).ok()?;
    let mut best: Option<(usize, String)> = None;
    for guid in layouts.families() {
        let Some(Ok(types)) = layouts.kernel(guid, base) else {
            continue;
        };
        let k = make(types);
        let rank = fits(&k, system, base).unwrap_or(0);
        if rank > best.as_ref().map_or(0, |b| b.0) {
            best = Some((rank, guid.to_owned()));
        }
    }
    let (_, guid) = best?;
    let types = layouts.kernel(&guid, base)?.ok()?;
    let k = make(types);
    let found = globals(&k, &exported, system)?;
    let symbols = found.iter().map(|(name, address)| NewSymbol {
        name,
        address: *address,
        kind: b'?',
        ty: None,
    });
    let from = Source::Nearest {
        of: guid,
        exact: exact.to_owned(),
    };
    Some(k.symbols.with_symbols(symbols, from))
}

/// How much of what must be there a layout leads to; `None` if something contradicts it.
fn fits(k: &Kernel<'_>, system: u64, base: u64) -> Option<usize> {
    let p = k.object("_EPROCESS", system);
    let is = |good: bool| good.then_some(());
    is(p.text("ImageFileName").ok()? == "System")?;
    is(p.number("UniqueProcessId").ok()? == 4)?;
    // What led to the kernel may be the table of any process; the kernel's own maps the same image.
    let dtb = p.number("Pcb.DirectoryTableBase").ok()? & !0xfff;
    if dtb != k.space.dtb().0 {
        let own = k.space.with_table(dtb).translate(base).ok()?;
        is(k.space.translate(base).ok()? == own)?;
    }
    is(time(p.number("CreateTime").ok()?).is_some())?;
    is(p.number("Peb").ok()? == 0)?;
    // The System process is the first of the list.
    let links = p.at("ActiveProcessLinks").ok()?;
    let head = k.space.u64(links + 8).ok()?;
    is((base..base + k.size).contains(&head))?;
    is(k.space.u64(head).ok()? == links)?;
    let mut rank = 1;
    let next = k.space.u64(links).ok()?.wrapping_sub(links - system);
    let other = k.object("_EPROCESS", next);
    let pid = other.number("UniqueProcessId").ok()?;
    is(pid.is_multiple_of(4) && pid < 1 << 26)?;
    // Handles and threads of a process name it.
    let table = p.number("ObjectTable").ok().filter(|va| *va != 0);
    let owner = table.and_then(|va| k.object("_HANDLE_TABLE", va).number("UniqueProcessId").ok());
    rank += usize::from(owner.is_some_and(|o| o == 4));
    let threads = p.at("ThreadListHead").ok()?;
    if let Ok(walk) = lists::list(k, threads, "_ETHREAD", "ThreadListEntry") {
        let own = |va: &u64| {
            let t = k.object("_ETHREAD", *va);
            t.number("Cid.UniqueProcess").is_ok_and(|p| p == 4)
                && t.number("Tcb.Process").is_ok_and(|p| p == system)
        };
        rank += usize::from(walk.items.first().is_some_and(own));
    }
    // Builds of one family may differ behind the fields above.
    rank += usize::from(p.number("ExitTime").is_ok_and(|t| t == 0));
    let is_pointer = |va: u64| va == 0 || va >> 47 == 0x1_ffff;
    rank += usize::from(
        other
            .first_of(&["VadRoot.Root", "VadRoot.BalancedRoot.RightChild"])
            .is_ok_and(is_pointer),
    );
    let token = other.number("Token").ok()? & !0xf;
    let count = k.object("_TOKEN", token).number("UserAndGroupCount");
    rank += usize::from(count.is_ok_and(|n| (1..4096).contains(&n)));
    let parameters = other.number("Peb").ok();
    rank += usize::from(parameters.is_some_and(|p| p >> 47 == 0));
    Some(rank)
}

/// Globals of a kernel, by what they hold.
fn globals(
    k: &Kernel<'_>,
    exported: &BTreeMap<&'static str, u64>,
    system: u64,
) -> Option<Vec<(&'static str, u64)>> {
    let mut out: Vec<(&'static str, u64)> = exported.iter().map(|(n, a)| (*n, *a)).collect();
    let links = k
        .object("_EPROCESS", system)
        .at("ActiveProcessLinks")
        .ok()?;
    out.push(("PsActiveProcessHead", k.space.u64(links + 8).ok()?));
    let parts = data(&k.space, k.base).unwrap_or_default();
    let words = |d: &Data| -> Vec<u64> {
        let all = d.bytes.as_chunks::<8>().0.iter();
        all.map(|w| u64::from_le_bytes(*w)).collect()
    };
    if let Some(process) = exported.get("PsProcessType")
        && let Ok(process) = k.space.u64(*process)
    {
        let number = k.object("_OBJECT_TYPE", process).number("Index").ok();
        let number = number.and_then(|n| usize::try_from(n).ok());
        for d in &parts {
            let all = words(d);
            let hits = all.iter().enumerate().filter(|(_, w)| **w == process);
            let table = hits
                .filter_map(|(i, _)| i.checked_sub(number?))
                .find(|first| {
                    // The first two are none; the third is the type of types.
                    all.get(*first) == Some(&0)
                        && all.get(first + 2).is_some_and(|t| {
                            let name = k.object("_OBJECT_TYPE", *t).unicode("Name");
                            name.is_ok_and(|n| n == "Type")
                        })
                });
            if let Some(first) = table {
                out.push(("ObTypeIndexTable", d.va + first as u64 * 8));
                break;
            }
        }
    }
    Some(out)
}
