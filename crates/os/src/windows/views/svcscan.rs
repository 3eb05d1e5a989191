//! `windows/svcscan`: services as the service control manager has them in its own memory.
//!
//! ```text
//! "serH" at a multiple of 8, at 16 the address of a record | records lead back, each to the one before it
//! record: names and display names are addresses of texts; running ones lead to path and process, drivers to their name
//! ```
//!
//! The records are in no public symbol file. Their places by build are those that published tools use; a record counts only if
//! its state, start and name are such.
//!
//! Sources: layouts as published with Volatility 3 (facts alone); numbers of states of the public header `winsvc.h`.

use super::services::{STARTS, kind};
use crate::table::{Column, Kind, Table, column};
use crate::windows::memory::{Place, places};
use crate::windows::process::Process;
use crate::windows::registry::{hives, registry_space};
use crate::windows::{Kernel, Space, WindowsError, WindowsView};
use memchr::memmem;
use ramsift_layers::{PhysAddr, Severity};
use std::collections::{BTreeMap, HashSet};

/// `windows/svcscan`.
pub(in crate::windows) const SVCSCAN: WindowsView = WindowsView {
    name: "windows/svcscan",
    meaning: "services as the service control manager has them in memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("order", Kind::Number, "its number among the services"),
    column("name", Kind::Text, "name of the service"),
    column("display_name", Kind::Text, "name for people"),
    column(
        "kind",
        Kind::Text,
        "kernel driver, own process, shared process, …",
    ),
    column(
        "start",
        Kind::Text,
        "boot, system, automatic, manual, disabled",
    ),
    column("state", Kind::Text, "what it does"),
    column("pid", Kind::Number, "process that it runs in"),
    column(
        "binary",
        Kind::Text,
        "its program, or the name of its driver object",
    ),
    column(
        "registered",
        Kind::Flag,
        "whether the registry has it; null where that is not in memory",
    ),
    column("record", Kind::Hex, "address of its record in the manager"),
    column("physical", Kind::Hex, "physical address of its record"),
];

/// Where a record has its fields.
#[derive(Clone, Copy)]
struct Layout {
    previous: usize,
    name: usize,
    display: usize,
    order: usize,
    kind: usize,
    state: usize,
    start: usize,
    /// Of a service that runs in a process: what it runs in.
    process: usize,
    /// Of a driver: its name.
    driver: usize,
    /// Path and number in what it runs in.
    path: u64,
    pid: u64,
}

/// Builds from 15063 on differ in few places.
const fn newer(process: usize, pid: u64) -> Layout {
    Layout {
        previous: 16,
        name: 56,
        display: 64,
        order: 32,
        kind: 72,
        state: 76,
        start: 36,
        process,
        driver: process,
        path: 24,
        pid,
    }
}

/// By the first build that has them, the newest first.
const LAYOUTS: [(u32, Layout); 7] = [
    (
        25398,
        Layout {
            kind: 80,
            state: 84,
            driver: 296,
            ..newer(336, 40)
        },
    ),
    (19041, newer(296, 40)),
    (18362, newer(240, 40)),
    (16299, newer(232, 40)),
    (15063, newer(232, 32)),
    (
        9200,
        Layout {
            previous: 8,
            name: 16,
            display: 24,
            order: 32,
            kind: 64,
            state: 68,
            start: 92,
            process: 56,
            driver: 56,
            path: 24,
            pid: 32,
        },
    ),
    (
        6000,
        Layout {
            previous: 0,
            name: 8,
            display: 16,
            order: 24,
            kind: 48,
            state: 52,
            start: 76,
            process: 40,
            driver: 40,
            path: 16,
            pid: 24,
        },
    ),
];

/// States of services, from number 1 on.
const STATES: [&str; 7] = [
    "stopped",
    "starting",
    "stopping",
    "running",
    "continuing",
    "pausing",
    "paused",
];

/// The mark of a header.
const MARK: &[u8] = b"serH";
/// Services at most.
const MOST: usize = 1 << 16;
/// Bytes of a record that are read: its fields lie within.
const RECORD: usize = 0x160;
/// Characters of a text at most.
const TEXT: usize = 512;
/// Pages of tables that are read at most.
const TABLES: usize = 1 << 18;

struct Service {
    order: u32,
    name: String,
    display: Option<String>,
    kind: u32,
    start: &'static str,
    state: &'static str,
    pid: Option<u64>,
    binary: Option<String>,
}

/// Text up to its NUL, page by page: nobody says how long it is.
fn text(space: &Space<'_>, va: u64) -> Option<String> {
    if va == 0 || va >> 47 != 0 {
        return None;
    }
    let mut units: Vec<u16> = Vec::new();
    let mut at = va;
    while units.len() < TEXT {
        let n = usize::try_from(4096 - at % 4096)
            .ok()?
            .min((TEXT - units.len()) * 2);
        let mut raw = vec![0; n & !1];
        if raw.is_empty() || space.read(at, &mut raw).is_err() {
            break;
        }
        let more = raw
            .as_chunks::<2>()
            .0
            .iter()
            .map(|u| u16::from_le_bytes(*u));
        let before = units.len();
        units.extend(more.take_while(|u| *u != 0));
        if units.len() - before < raw.len() / 2 {
            break;
        }
        at = at.wrapping_add(raw.len() as u64);
    }
    let out = String::from_utf16(&units).ok()?;
    (!out.is_empty() && !out.chars().any(char::is_control)).then_some(out)
}

/// The record at an address and the one before it, if it is one.
fn record(space: &Space<'_>, l: &Layout, va: u64) -> Option<(Service, u64)> {
    let mut raw = [0; RECORD];
    // The end of the last record may lie in a page that was never written.
    let mut done = 0;
    while done < RECORD {
        let at = va.checked_add(done as u64).filter(|a| a >> 47 == 0)?;
        let n = usize::try_from(4096 - at % 4096).ok()?.min(RECORD - done);
        let read = space.read(at, &mut raw[done..done + n]);
        if read.is_err() && done == 0 {
            return None;
        }
        done += n;
    }
    let word = |at: usize| {
        raw.get(at..at + 4)?
            .first_chunk()
            .map(|b| u32::from_le_bytes(*b))
    };
    let long = |at: usize| {
        raw.get(at..at + 8)?
            .first_chunk()
            .map(|b| u64::from_le_bytes(*b))
    };
    let state = usize::try_from(word(l.state)?).ok()?.checked_sub(1)?;
    let (state, start) = (
        *STATES.get(state)?,
        *STARTS.get(usize::try_from(word(l.start)?).ok()?)?,
    );
    let order = word(l.order).filter(|o| *o < 0x1_0000)?;
    let name = text(space, long(l.name)?)?;
    let bits = word(l.kind).filter(|k| *k != 0 && *k < 0x1000)?;
    let is_driver = bits & 0xf != 0;
    let behind = long(if is_driver { l.driver } else { l.process }).filter(|va| *va != 0);
    let runs = behind.filter(|_| !is_driver && state != "stopped");
    let pointer = |at: u64| space.u64(at).ok();
    Some((
        Service {
            order,
            display: text(space, long(l.display)?),
            name,
            kind: bits,
            start,
            state,
            pid: runs
                .and_then(|r| space.u32(r.wrapping_add(l.pid)).ok())
                .map(u64::from),
            binary: match runs {
                Some(r) => pointer(r.wrapping_add(l.path)).and_then(|va| text(space, va)),
                None => behind.filter(|_| is_driver).and_then(|va| text(space, va)),
            },
        },
        long(l.previous)?,
    ))
}

/// The services of a manager, by the addresses of their records.
fn services(
    k: &Kernel<'_>,
    p: &Process<'_>,
    l: &Layout,
) -> Result<BTreeMap<u64, Service>, WindowsError> {
    let space = p.space(k)?;
    let finder = memmem::Finder::new(MARK);
    let mut heads = Vec::new();
    let mut budget = TABLES;
    places(&space, &(0..1 << 47), &mut budget, &mut |m| {
        let Place::Page { pa, len: 4096, .. } = m else {
            return true;
        };
        let mut page = [0; 4096];
        if k.memory().read_phys(PhysAddr(pa), &mut page).is_ok() {
            for at in finder.find_iter(&page).filter(|at| at.is_multiple_of(8)) {
                let head = page.get(at + 16..at + 24).and_then(|b| b.first_chunk());
                heads.extend(head.map(|b| u64::from_le_bytes(*b)));
            }
        }
        heads.len() < MOST
    });
    let (mut out, mut seen) = (BTreeMap::new(), HashSet::new());
    for head in heads {
        let mut at = head;
        // Records before one that was seen were seen.
        while at != 0 && out.len() < MOST && seen.insert(at) {
            let Some((service, previous)) = record(&space, l, at) else {
                break;
            };
            out.insert(at, service);
            at = previous;
        }
    }
    Ok(out)
}

/// Names of the services of the registry, in lower case; `None` where they can't be read.
fn registered(k: &Kernel<'_>) -> Option<HashSet<String>> {
    let mut doubts = Vec::new();
    let registry = registry_space(k, &mut doubts).ok()?;
    let all = hives(k, registry.as_ref(), &mut doubts).ok()?;
    let system = all.iter().find(|h| h.is("SYSTEM"))?;
    let set = system.open("Select")?.number("Current")?;
    let keys = system.whole_below(&format!("ControlSet{set:03}\\Services"))?;
    Some(keys.iter().map(|key| key.leaf().to_lowercase()).collect())
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let number = k.build_number();
    let found = LAYOUTS
        .iter()
        .find(|(first, _)| number.is_some_and(|b| b >= *first));
    let Some((_, layout)) = found else {
        out.doubts
            .push("the build's records of services are not known".into());
        return Ok(out);
    };
    let known = registered(k);
    let mut managers = 0;
    for p in k.processes(&mut out.doubts)? {
        if !p.name().eq_ignore_ascii_case("services.exe") || p.has_ended() {
            continue;
        }
        managers += 1;
        let space = p.space(k)?;
        let mut all: Vec<(u64, Service)> = services(k, &p, layout)?.into_iter().collect();
        if all.is_empty() {
            out.doubts.push(format!(
                "{} has no records of services in memory",
                p.label()
            ));
        }
        all.sort_by_key(|(_, s)| s.order);
        for (va, s) in all {
            let registered = known.as_ref().map(|k| k.contains(&s.name.to_lowercase()));
            let text = format!(
                "{} knows the service {}, which has no key in the registry",
                p.label(),
                s.name
            );
            out.push(vec![
                s.order.into(),
                s.name.into(),
                s.display.into(),
                kind(s.kind).into(),
                s.start.into(),
                s.state.into(),
                s.pid.into(),
                s.binary.into(),
                registered.into(),
                va.into(),
                space.translate(va).ok().map(|p| p.0).into(),
            ]);
            if registered == Some(false) {
                out.flag("hidden_service", Severity::High, text);
            }
        }
    }
    if managers == 0 {
        out.doubts
            .push("there is no service control manager in the list of processes".into());
    }
    Ok(out)
}
