//! `windows/procdump`: the memory of each process, and its recovery as a minidump.
//!
//! Pages of sections that a process did not touch yet are in it where they are in memory: it would have got them.
//!
//! Sources: as in `minidump.rs` and `memory.rs`.

use super::dlllist;
use super::vads;
use crate::content::{Content, Recovered};
use crate::table::{Column, Kind, Table, column};
use crate::windows::cached::{Budget, Section};
use crate::windows::memory::{Place, places};
use crate::windows::minidump::{self, Module, Process as Dumped, Region, RegionKind};
use crate::windows::objects::ObjectTypes;
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView, lists, time};
use std::ops::ControlFlow;

/// `windows/procdump`.
pub(in crate::windows) const PROCDUMP: WindowsView = WindowsView {
    name: "windows/procdump",
    meaning: "memory of processes; can be recovered as minidumps",
    columns: COLUMNS,
    build,
    recover: Some(recover),
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("areas", Kind::Number, "reserved memory areas"),
    column("virtual_bytes", Kind::Number, "bytes that they span"),
    column(
        "resident_bytes",
        Kind::Number,
        "bytes of the process in memory",
    ),
    column("dump_bytes", Kind::Number, "size of the minidump"),
    column("eprocess", Kind::Hex, "virtual address of its _EPROCESS"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

const PAGE: u64 = 4096;
/// Pages of tables of one process that are read at most.
const TABLES: usize = 1 << 20;
/// Threads of a process at most.
const MOST: usize = 1 << 16;

/// A process as it goes into a dump, and how many bytes it has reserved.
fn dumped(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    p: &Process<'_>,
    budget: &mut Budget,
    doubts: &mut Vec<String>,
) -> Result<Option<(Dumped, u64)>, WindowsError> {
    let Some(user) = p.user(k)? else {
        return Ok(None);
    };
    let shared = k.object("_KUSER_SHARED_DATA", 0xffff_f780_0000_0000);
    let number = |path: &str| shared.number(path).ok().and_then(|n| u32::try_from(n).ok());
    let seconds = |t: Option<u64>| {
        let at = t.and_then(time).map(|t| t / 1_000_000);
        at.and_then(|t| u32::try_from(t).ok()).unwrap_or(0)
    };
    let mut out = Dumped {
        version: (
            number("NtMajorVersion").unwrap_or(0),
            number("NtMinorVersion").unwrap_or(0),
            k.build_number().unwrap_or(0),
        ),
        processors: 1,
        pid: u32::try_from(p.pid).unwrap_or(0),
        created: seconds(p.object.number("CreateTime").ok()),
        captured: seconds(shared.number("SystemTime").ok()),
        ..Dumped::default()
    };
    let walk = p
        .object
        .at("ThreadListHead")
        .and_then(|head| lists::list(k, head, "_ETHREAD", "ThreadListEntry"))?;
    for va in walk.items.into_iter().take(MOST) {
        let t = k.object("_ETHREAD", va);
        let tid = t
            .number("Cid.UniqueThread")
            .ok()
            .and_then(|n| u32::try_from(n).ok());
        if let Some(tid) = tid {
            out.threads.push((tid, t.number("Tcb.Teb").unwrap_or(0)));
        }
    }
    // What can't be read of the loader's lists is a doubt of windows/dlllist.
    let libraries = dlllist::libraries(k, p, &mut Vec::new()).unwrap_or_default();
    out.modules = libraries
        .into_iter()
        .map(|l| Module {
            base: l.base,
            size: l.size,
            path: if l.path.is_empty() { l.name } else { l.path },
        })
        .collect();
    let areas = vads::of(k, types, p, doubts)?;
    let most = k.pages();
    let mut tables = TABLES;
    let unread = places(&user.space, &(0..1 << 47), &mut tables, &mut |m| {
        if let Place::Page { va, pa, len } = m {
            out.pages
                .extend((0..len / PAGE).map(|i| (va + i * PAGE, pa + i * PAGE)));
        }
        out.pages.len() <= most
    });
    if unread > 0 {
        doubts.push(format!(
            "{unread} pages of the page tables of {} could not be read",
            p.label()
        ));
    }
    let mut span = 0u64;
    for a in &areas {
        let len = (a.end - a.start).saturating_add(1);
        span = span.saturating_add(len);
        out.regions.push(Region {
            start: a.start,
            len,
            protection: a.protection & 0xff,
            kind: match (a.private, a.image) {
                (true, _) => RegionKind::Private,
                (_, true) => RegionKind::Image,
                _ => RegionKind::Mapped,
            },
        });
        let Some(section) = Some(a.control)
            .filter(|c| *c != 0)
            .and_then(|c| Section::new(k, c, budget))
        else {
            continue;
        };
        let Some(start) = section.place(a.prototypes) else {
            continue;
        };
        for e in section.content.extents() {
            for i in 0..e.len / PAGE {
                let Some(inside) = (e.offset + i * PAGE)
                    .checked_sub(start)
                    .filter(|n| *n < len)
                else {
                    continue;
                };
                let pa = e.pa.0 + i * PAGE;
                out.pages.entry(a.start + inside).or_insert(pa);
            }
        }
    }
    Ok(Some((out, span)))
}

/// Visits all processes with memory of their own, the bytes that they have reserved, and their dumps.
fn each(
    k: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(&Process<'_>, &Dumped, u64, Content) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    let types = ObjectTypes::new(k)?;
    let mut budget = Budget::of_images(k);
    for p in k.processes(doubts)? {
        if p.has_ended() || pid.is_some_and(|pid| pid != p.pid) {
            continue;
        }
        match dumped(k, &types, &p, &mut budget, doubts) {
            Ok(Some((d, span))) => {
                let made = minidump::content(&d);
                if visit(&p, &d, span, made).is_break() {
                    break;
                }
            }
            Ok(None) => {}
            Err(e) => doubts.push(format!("{} can't be dumped: {e}", p.label())),
        }
    }
    Ok(())
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let (mut doubts, mut rows) = (Vec::new(), Vec::new());
    each(k, None, &mut doubts, &mut |p, d, span, made| {
        rows.push(vec![
            p.pid.into(),
            p.name().into(),
            d.regions.len().into(),
            span.into(),
            (d.pages.len() as u64 * PAGE).into(),
            made.size().into(),
            p.object.va.into(),
            p.object.physical().into(),
        ]);
        ControlFlow::Continue(())
    })?;
    rows.into_iter().for_each(|r| out.push(r));
    out.doubts = doubts;
    Ok(out)
}

fn recover(
    k: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    each(k, pid, doubts, &mut |p, _, _, content| {
        visit(Recovered {
            kind: "process_minidump",
            name: format!("{}.{}.dmp", p.pid, p.name()),
            object: p.object.va,
            content,
        })
    })
}
