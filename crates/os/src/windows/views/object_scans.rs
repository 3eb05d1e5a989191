//! `windows/mutantscan`, `windows/symlinkscan`, `windows/thrdscan`: objects wherever they lie in physical memory.
//!
//! Sources: the public types `_KMUTANT`, `_OBJECT_SYMBOLIC_LINK`, `_ETHREAD`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::object::{number_in, unicode_in};
use crate::windows::scan::{Body, scanned};
use crate::windows::{Kernel, WindowsError, WindowsView, lists, time};
use std::collections::HashSet;

/// `windows/mutantscan`.
pub(in crate::windows) const MUTANTSCAN: WindowsView = WindowsView {
    name: "windows/mutantscan",
    meaning: "mutexes found by a scan of all memory",
    columns: MUTANTS,
    build: mutants,
    recover: None,
};

const MUTANTS: &[Column] = &[
    column("name", Kind::Text, "name in its directory"),
    column("pid", Kind::Number, "process of the thread that holds it"),
    column("tid", Kind::Number, "thread that holds it"),
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// `windows/symlinkscan`.
pub(in crate::windows) const SYMLINKSCAN: WindowsView = WindowsView {
    name: "windows/symlinkscan",
    meaning: "symbolic links of the object manager found by a scan of all memory",
    columns: LINKS,
    build: links,
    recover: None,
};

const LINKS: &[Column] = &[
    column("created", Kind::Time, "when it was made"),
    column("name", Kind::Text, "name in its directory"),
    column("target", Kind::Text, "what it leads to"),
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// `windows/thrdscan`.
pub(in crate::windows) const THRDSCAN: WindowsView = WindowsView {
    name: "windows/thrdscan",
    meaning: "thread objects found by a scan of all memory",
    columns: THREADS,
    build: threads,
    recover: None,
};

const THREADS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("tid", Kind::Number, "thread id"),
    column("start_address", Kind::Hex, "where it began"),
    column(
        "win32_start",
        Kind::Hex,
        "where its program's own code began",
    ),
    column("start", Kind::Time, "when it was created"),
    column("exit", Kind::Time, "when it ended"),
    column(
        "listed",
        Kind::Flag,
        "whether a process of the kernel's list has it in its own",
    ),
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// What an object is called.
fn name(k: &Kernel<'_>, b: &Body) -> Option<String> {
    let own = b.name?;
    let text = k.space.utf16(own.buffer, usize::from(own.length)).ok()?;
    Some(text).filter(|t| !t.is_empty())
}

fn mutants(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(MUTANTS);
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    for m in &found.mutants {
        let owner = number_in(k, "_KMUTANT", "OwnerThread", &m.bytes)?;
        let owner = owner
            .filter(|va| *va != 0)
            .map(|va| k.object("_ETHREAD", va));
        let number = |path: &str| owner.as_ref().and_then(|o| o.number(path).ok());
        out.push(vec![
            name(k, m).into(),
            number("Cid.UniqueProcess").into(),
            number("Cid.UniqueThread").into(),
            m.freed.into(),
            m.physical.into(),
        ]);
    }
    Ok(out)
}

fn links(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(LINKS);
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let ty = "_OBJECT_SYMBOLIC_LINK";
    for l in &found.links {
        let created = number_in(k, ty, "CreationTime", &l.bytes)?.and_then(time);
        out.push(vec![
            created.into(),
            name(k, l).into(),
            unicode_in(k, ty, "LinkTarget", &l.bytes)?.into(),
            l.freed.into(),
            l.physical.into(),
        ]);
    }
    Ok(out)
}

fn threads(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(THREADS);
    let mut listed = HashSet::new();
    for p in k.processes(&mut out.doubts)? {
        let Ok(head) = p.object.at("ThreadListHead") else {
            continue;
        };
        let Ok(walk) = lists::list(k, head, "_ETHREAD", "ThreadListEntry") else {
            continue;
        };
        listed.extend(
            walk.items
                .iter()
                .filter_map(|va| k.physical(*va))
                .map(|p| p.0),
        );
    }
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    for t in &found.threads {
        let number = |path: &str| number_in(k, "_ETHREAD", path, &t.bytes);
        // Before it ends the field holds something else; 4 is `Terminated` of `_KTHREAD_STATE`.
        let ended = number("Tcb.State")? == Some(4);
        let exit = number("ExitTime")?.filter(|_| ended);
        out.push(vec![
            number("Cid.UniqueProcess")?.into(),
            number("Cid.UniqueThread")?.into(),
            number("StartAddress")?.into(),
            number("Win32StartAddress")?.into(),
            number("CreateTime")?.and_then(time).into(),
            exit.and_then(time).into(),
            listed.contains(&t.physical).into(),
            t.freed.into(),
            t.physical.into(),
        ]);
    }
    Ok(out)
}
