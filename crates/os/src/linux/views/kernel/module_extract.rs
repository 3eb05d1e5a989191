//! `linux/module_extract`: the memory of modules, hidden ones included, and its recovery.
//!
//! Recovered is the core, one piece behind the other, each from a page's start: until 6.3 that is one
//! piece, and from 6.4 on text, data, rodata and what is read-only after the start.
//!
//! Source: Linux `include/linux/module.h`.

use crate::linux::module::{self, Part};
use crate::linux::{CodeMap, Content, Extent, Kernel, LinuxError, LinuxView, Recovered};
use crate::table::{Column, Kind, Table, column};
use std::ops::ControlFlow;

/// `linux/module_extract`.
pub(in crate::linux) const MODULE_EXTRACT: LinuxView = LinuxView {
    name: "linux/module_extract",
    meaning: "memory of modules, hidden ones included; can be recovered",
    columns: COLUMNS,
    build,
    recover: Some(recover),
    on_request: false,
};

/// Columns of `linux/module_extract`.
const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "the module"),
    column(
        "part",
        Kind::Text,
        "kind of memory: `core`; from 6.4 `text`, `data`, `rodata`, `ro_after_init`",
    ),
    column("base", Kind::Hex, "virtual address of its first byte"),
    column("size", Kind::Number, "its bytes"),
    column(
        "offset",
        Kind::Number,
        "where it stands in the recovered content",
    ),
    column("present", Kind::Number, "bytes of it that are mapped"),
    column(
        "hidden",
        Kind::Flag,
        "whether the module is missing from the list of modules",
    ),
    column("module", Kind::Hex, "virtual address of its struct module"),
    column("physical", Kind::Hex, "physical address of that"),
];

const PAGE: u64 = 4096;

/// A module whose memory is wanted.
struct Wanted {
    va: u64,
    name: String,
    hidden: bool,
    parts: Vec<Part>,
}

fn wanted(kernel: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Vec<Wanted>, LinuxError> {
    let code = CodeMap::new(kernel, doubts)?;
    let mut out = Vec::new();
    for m in kernel.modules(doubts)? {
        // What can't be read is a doubt of the map already.
        if let (Ok(name), Ok(parts)) = (m.text("name"), module::parts(&m)) {
            let (va, hidden) = (m.va, false);
            out.push(Wanted {
                va,
                name,
                hidden,
                parts,
            });
        }
    }
    out.extend(code.hidden().iter().map(|h| Wanted {
        va: h.va,
        name: h.name.clone(),
        hidden: true,
        parts: h.parts.clone(),
    }));
    for w in &mut out {
        w.parts.retain(|p| !p.init);
    }
    Ok(out)
}

/// Where each part stands in the content, and the content's size.
fn places(parts: &[Part]) -> (Vec<u64>, u64) {
    let (mut at, mut end, mut out) = (0u64, 0, Vec::new());
    for p in parts {
        out.push(at);
        end = at.saturating_add(p.size);
        at = end.div_ceil(PAGE).saturating_mul(PAGE);
    }
    (out, end)
}

/// Adds a part's pages to a content.
fn fill(kernel: &Kernel<'_>, part: &Part, offset: u64, content: &mut Content) {
    let mut done = 0;
    while done < part.size {
        let va = part.base.wrapping_add(done);
        let len = (PAGE - va % PAGE).min(part.size - done);
        if let Ok(pa) = kernel.space.translate(va) {
            let offset = offset + done;
            content.push(Extent { offset, pa, len });
        }
        done += len;
    }
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    for w in wanted(kernel, &mut out.doubts)? {
        let (offsets, _) = places(&w.parts);
        for (p, offset) in w.parts.iter().zip(offsets) {
            let mut content = Content::new(p.size);
            fill(kernel, p, 0, &mut content);
            out.push(vec![
                w.name.as_str().into(),
                p.kind.into(),
                p.base.into(),
                p.size.into(),
                offset.into(),
                content.present().into(),
                w.hidden.into(),
                w.va.into(),
                kernel.space.translate(w.va).ok().map(|p| p.0).into(),
            ]);
        }
    }
    Ok(out)
}

fn recover(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    for w in wanted(kernel, doubts)? {
        let (offsets, size) = places(&w.parts);
        let mut content = Content::new(size);
        for (p, offset) in w.parts.iter().zip(offsets) {
            fill(kernel, p, offset, &mut content);
        }
        let recovered = Recovered {
            kind: "module",
            name: w.name,
            object: w.va,
            content,
        };
        if visit(recovered).is_break() {
            break;
        }
    }
    Ok(())
}
