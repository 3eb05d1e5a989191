//! `windows/suspicious_threads`: threads that begin outside every image: of their process, or of the kernel.
//!
//! ```text
//! a process's    where its own code began is in no reserved memory, or in memory that no image is mapped in
//! the kernel's   where it began is in no module of the kernel's list
//! ```
//!
//! Sources: the public types `_ETHREAD`, `_MMVAD`; Volatility 3 `plugins/windows/suspicious_threads.py` for the name.

use super::vads::{self, words};
use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::kernel_modules::{Modules, is_kernel};
use crate::windows::objects::ObjectTypes;
use crate::windows::{Kernel, WindowsError, WindowsView, lists};
use ramsift_layers::Severity;

/// `windows/suspicious_threads`.
pub(in crate::windows) const SUSPICIOUS_THREADS: WindowsView = WindowsView {
    name: "windows/suspicious_threads",
    meaning: "threads that begin outside every image",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("tid", Kind::Number, "thread id"),
    column("address", Kind::Hex, "where it began"),
    column("reason", Kind::Text, "what is odd about that"),
    column("protection", Kind::Text, "protection of the memory there"),
    column("file", Kind::Text, "file that is mapped there"),
    column("ethread", Kind::Hex, "virtual address of its _ETHREAD"),
    column("physical", Kind::Hex, "physical address of its _ETHREAD"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let types = ObjectTypes::new(k)?;
    let modules = Modules::new(k, &mut out.doubts)?;
    for p in k.processes(&mut out.doubts)? {
        if p.has_ended() {
            continue;
        }
        // Doubts about descriptors and about threads are those of other views.
        let mut doubts = Vec::new();
        let areas = vads::of(k, &types, &p, &mut doubts).unwrap_or_default();
        let whole = doubts.is_empty();
        let head = p.object.at("ThreadListHead")?;
        let Ok(walk) = lists::list(k, head, "_ETHREAD", "ThreadListEntry") else {
            continue;
        };
        for va in walk.items {
            let t = k.object("_ETHREAD", va);
            // What was never set is 0; ended ones have lost their memory.
            let address = |field: &str| t.number(field).ok().filter(|a| *a != 0);
            let Some(start) = address("StartAddress") else {
                continue;
            };
            if t.number("Tcb.State").is_ok_and(|s| s == 4) {
                continue;
            }
            let (at, reason, area) = if is_kernel(start) {
                if !modules.lack(start) {
                    continue;
                }
                (start, "in no module of the kernel", None)
            } else {
                if !whole {
                    continue;
                }
                let at = address("Win32StartAddress")
                    .filter(|a| a >> 47 == 0)
                    .unwrap_or(start);
                let area = areas.iter().find(|a| (a.start..=a.end).contains(&at));
                match area {
                    Some(a) if a.image => continue,
                    Some(a) if a.private => (at, "in private memory", area),
                    Some(_) => (at, "in mapped memory that is no image", area),
                    None => (at, "in no reserved memory", None),
                }
            };
            let tid = t.number("Cid.UniqueThread").ok();
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                tid.into(),
                at.into(),
                reason.into(),
                area.map(|a| words(a.protection)).into(),
                Value::from(area.and_then(|a| a.file.clone())),
                va.into(),
                t.physical().into(),
            ]);
            let severity = if area.is_none() && !is_kernel(at) {
                // The memory may have been given back since.
                Severity::Medium
            } else {
                Severity::High
            };
            let text = format!(
                "thread {} of {} begins at {at:#x}, {reason}",
                tid.unwrap_or(0),
                p.label()
            );
            out.flag("thread_outside_images", severity, text);
        }
    }
    Ok(out)
}
