//! `windows/pedump`: programs and libraries in the memory of processes, and their recovery.
//!
//! An image is given in the order of its file. Pages that the process didn't touch are those of the section, which is what it
//! would have got. An image that is the same in many processes is recovered once, from the first; again only from processes
//! that changed its code. What private memory holds is recovered from each.
//!
//! Sources: as in `pe.rs`; the public type `_MMVAD`; Volatility 3 `plugins/windows/pedump.py` for the name.

use crate::content::Recovered;
use crate::table::{Column, Kind, Table, column};
use crate::windows::cached::Budget;
use crate::windows::objects::ObjectTypes;
use crate::windows::pe::{self, Pe};
use crate::windows::process::Process;
use crate::windows::views::vads::{self, Area};
use crate::windows::{Kernel, Space, WindowsError, WindowsView};
use ramsift_layers::Severity;
use ramsift_layers::translate::Mapped;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// `windows/pedump`.
pub(in crate::windows) const PEDUMP: WindowsView = WindowsView {
    name: "windows/pedump",
    meaning: "programs and libraries in the memory of processes; can be recovered",
    columns: COLUMNS,
    build,
    recover: Some(recover),
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("base", Kind::Hex, "where it begins"),
    column("size", Kind::Number, "bytes of it in memory"),
    column(
        "kind",
        Kind::Text,
        "program, library, or private of one that is in memory of the process's own",
    ),
    column("bits", Kind::Number, "64 or 32"),
    column("entry", Kind::Hex, "virtual address of its first function"),
    column("path", Kind::Text, "the file that is mapped"),
    column(
        "changed",
        Kind::Number,
        "pages of code that differ from the file's; null of private memory",
    ),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

const PAGE: u64 = 4096;

/// An image in a process.
struct Image {
    area: Area,
    pe: Pe,
    kind: &'static str,
    /// Pages of code that differ from those of the section.
    changed: Option<u64>,
}

/// The images of a process.
fn images(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    p: &Process<'_>,
    space: &Space<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Image>, WindowsError> {
    let program = p.object.number("SectionBaseAddress").unwrap_or(0);
    let mut out = Vec::new();
    for area in vads::of(k, types, p, doubts)? {
        if !area.image && !area.private {
            continue;
        }
        let Some(pe) = pe::read(space, area.start) else {
            continue;
        };
        let kind = match area.private {
            true => "private",
            false if area.start == program => "program",
            false => "library",
        };
        let changed = area.image.then_some(0);
        out.push(Image {
            area,
            pe,
            kind,
            changed,
        });
    }
    // Pages that are present in the process are few beside those that could be.
    k.own_pages(p, &mut Vec::new(), &mut |m| {
        let Mapped::Page { va, pa, len, .. } = m else {
            return;
        };
        for (va, pa) in (0..len / PAGE).map(|i| (va + i * PAGE, pa.0 + i * PAGE)) {
            let at = out.partition_point(|i| i.area.end < va);
            let Some(i) = out.get_mut(at).filter(|i| i.area.start <= va) else {
                continue;
            };
            let rva = va - i.area.start;
            let code = |s: &pe::Section| s.is_code() && (s.rva..s.rva + s.size).contains(&rva);
            if i.changed.is_some()
                && i.pe.sections.iter().any(code)
                && prototype(k, &i.area, rva).is_some_and(|own| own != pa)
            {
                i.changed = i.changed.map(|n| n + 1);
            }
        }
    });
    Ok(out)
}

/// The physical page that the section has at a place in an image.
fn prototype(k: &Kernel<'_>, area: &Area, rva: u64) -> Option<u64> {
    let first = Some(area.prototypes).filter(|va| *va != 0)?;
    let entry = k.space.u64(first.wrapping_add(rva / PAGE * 8)).ok()?;
    k.prototype(entry)
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let Ok(space) = p.space(k) else { continue };
        let all = match images(k, &types, &p, &space, &mut out.doubts) {
            Ok(all) => all,
            Err(_) if p.has_ended() => continue,
            Err(e) => {
                let who = p.label();
                out.doubts
                    .push(format!("the images of {who} can't be listed: {e}"));
                continue;
            }
        };
        for i in all {
            let start = i.area.start;
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                start.into(),
                i.pe.size.into(),
                i.kind.into(),
                i.pe.bits.into(),
                Some(i.pe.entry)
                    .filter(|e| *e != 0)
                    .map(|e| start.wrapping_add(e))
                    .into(),
                i.area.file.clone().into(),
                i.changed.into(),
                space.translate(start).ok().map(|p| p.0).into(),
            ]);
            if let Some(n) = i.changed.filter(|n| *n > 0) {
                let file = i.area.file.unwrap_or_default();
                let text = format!(
                    "{n} pages of the code of {file} at {start:#x} in {} are not those of the file",
                    p.label()
                );
                out.flag("changed_code", Severity::Medium, text);
            }
        }
    }
    Ok(out)
}

fn recover(
    k: &Kernel<'_>,
    pid: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    let types = ObjectTypes::new(k)?;
    let mut seen = HashSet::new();
    // Images lie in the memory of many processes; all of it together is no more than this.
    let mut budget = Budget::of_images(k);
    for p in k.processes(doubts)? {
        if pid.is_some_and(|wanted| wanted != p.pid) {
            continue;
        }
        let Ok(space) = p.space(k) else { continue };
        let Ok(all) = images(k, &types, &p, &space, doubts) else {
            continue;
        };
        for i in all {
            let own = i.changed.is_none_or(|n| n > 0);
            if !own && !seen.insert(i.area.control) {
                continue;
            }
            let start = i.area.start;
            let (content, in_order) = i.pe.content(&mut |rva| {
                budget.take()?;
                let pa = space.translate(start.wrapping_add(rva)).ok().map(|p| p.0);
                pa.or_else(|| prototype(k, &i.area, rva))
            });
            let file = i.area.file.as_deref().and_then(|f| f.rsplit('\\').next());
            let name = format!(
                "{}.{}.{start:x}.{}",
                p.pid,
                p.name(),
                file.unwrap_or("private")
            );
            if !in_order {
                doubts.push(format!(
                    "{name}: its sections overlap in the file, so it is given as it lies in memory"
                ));
            }
            if budget.is_spent() {
                doubts.push(format!(
                    "{name} and what follows is left out: images claim more than memory can hold"
                ));
                return Ok(());
            }
            let found = Recovered {
                kind: "pe_image",
                name,
                object: p.object.va,
                content,
            };
            if found.content.present() > 0 && visit(found).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
