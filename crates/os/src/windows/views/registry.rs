//! `windows/hivelist`, `windows/registry`: hives, and all keys and values in them. Hives can be recovered as files.
//!
//! Source: "Windows NT Registry File (REGF) format specification" (J. Metz); types of values of `winnt.h`.

use crate::content::{Content, Extent, Recovered};
use crate::table::{Column, Kind, Table, Value as Cell, column};
use crate::windows::registry::{Hive, Value, hives, registry_space};
use crate::windows::space::wide;
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use std::ops::ControlFlow;

/// `windows/hivelist`.
pub(in crate::windows) const HIVELIST: WindowsView = WindowsView {
    name: "windows/hivelist",
    meaning: "hives of the registry; can be recovered as files",
    columns: HIVES,
    build: list,
    recover: Some(recover),
};

const HIVES: &[Column] = &[
    column("root", Kind::Text, "where it hangs in the registry"),
    column("file", Kind::Text, "path of its file"),
    column(
        "bytes",
        Kind::Number,
        "bytes of its stable part, header aside",
    ),
    column("present", Kind::Number, "of these in memory"),
    column("hive", Kind::Hex, "virtual address of its _CMHIVE"),
    column("physical", Kind::Hex, "physical address of its _CMHIVE"),
];

/// `windows/registry`.
pub(in crate::windows) const REGISTRY: WindowsView = WindowsView {
    name: "windows/registry",
    meaning: "keys and values of the registry",
    columns: VALUES,
    build: values,
    recover: None,
};

const VALUES: &[Column] = &[
    column("key", Kind::Text, "the key, from the root of the registry"),
    column("changed", Kind::Time, "when the key was changed last"),
    column(
        "name",
        Kind::Text,
        "name of the value; empty of the default one; null of a key without values",
    ),
    column("type", Kind::Text, "kind of the value"),
    column(
        "data",
        Kind::Text,
        "the value: text, a number, or bytes in hexadecimal",
    ),
    column("bytes", Kind::Number, "bytes of the value"),
    column("physical", Kind::Hex, "physical address of the key"),
];

const PAGE: u64 = 4096;
/// Rows at most: larger registries are for the recovered hives.
const MOST: usize = 1 << 20;
/// Characters of a value that are shown.
const SHOWN: usize = 512;

/// Kinds of values, by number.
const KINDS: [&str; 12] = [
    "REG_NONE",
    "REG_SZ",
    "REG_EXPAND_SZ",
    "REG_BINARY",
    "REG_DWORD",
    "REG_DWORD_BIG_ENDIAN",
    "REG_LINK",
    "REG_MULTI_SZ",
    "REG_RESOURCE_LIST",
    "REG_FULL_RESOURCE_DESCRIPTOR",
    "REG_RESOURCE_REQUIREMENTS_LIST",
    "REG_QWORD",
];

/// The places of a hive's file in memory: base block, then its bins.
fn content(h: &Hive<'_>) -> Result<Content, WindowsError> {
    let length = h.length()?.min(1 << 31);
    let mut out = Content::new(PAGE + length);
    let base = h.base_block()?;
    let mut push = |offset: u64, va: u64| {
        if let Ok(pa) = h.space(va).translate(va) {
            out.push(Extent {
                offset,
                pa,
                len: PAGE,
            });
        }
    };
    push(0, base);
    for block in (0..length).step_by(4096) {
        let cell = u32::try_from(block).unwrap_or(u32::MAX);
        if let Some(va) = h.address(cell) {
            push(PAGE + block, va);
        }
    }
    Ok(out)
}

fn list(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(HIVES);
    let registry = registry_space(k, &mut out.doubts)?;
    for h in hives(k, registry.as_ref(), &mut out.doubts)? {
        let length = h.length().ok();
        let present = content(&h).ok().map(|c| c.present().saturating_sub(PAGE));
        out.push(vec![
            h.root().into(),
            h.file().into(),
            length.into(),
            present.into(),
            h.object.va.into(),
            h.object.physical().into(),
        ]);
    }
    Ok(out)
}

fn recover(
    k: &Kernel<'_>,
    _: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    let registry = registry_space(k, doubts)?;
    for h in hives(k, registry.as_ref(), doubts)? {
        let name = Some(h.file())
            .filter(|f| !f.is_empty())
            .unwrap_or_else(|| h.root());
        match content(&h) {
            Ok(content) if content.present() > PAGE => {
                let found = Recovered {
                    kind: "registry_hive",
                    name: name.replace('\\', "/"),
                    object: h.object.va,
                    content,
                };
                if visit(found).is_break() {
                    return Ok(());
                }
            }
            // That of the registry's own root has no file.
            Ok(_) => {}
            Err(e) => doubts.push(format!("the hive {name} can't be read: {e}")),
        }
    }
    Ok(())
}

/// A value for people.
fn text(v: &Value) -> Option<String> {
    let data = v.data.as_deref()?;
    let number = |n: usize| {
        let mut raw = [0; 8];
        raw[..n].copy_from_slice(data.get(..n)?);
        Some(u64::from_le_bytes(raw).to_string())
    };
    let own = match v.kind {
        1 | 2 | 6 => Some(wide(data)),
        4 if data.len() == 4 => number(4),
        5 if data.len() == 4 => {
            let b = data.first_chunk().map(|b| u32::from_be_bytes(*b));
            b.map(|n| n.to_string())
        }
        11 if data.len() == 8 => number(8),
        7 => {
            let units: Vec<u16> = data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|u| u16::from_le_bytes(*u))
                .collect();
            let parts = units.split(|u| *u == 0).filter(|p| !p.is_empty());
            let parts: Vec<String> = parts.map(String::from_utf16_lossy).collect();
            Some(parts.join(" | "))
        }
        _ => None,
    };
    let own = own.unwrap_or_else(|| {
        data.iter()
            .take(SHOWN)
            .map(|b| format!("{b:02x}"))
            .collect()
    });
    Some(match own.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &own[..at]),
        None => own,
    })
}

fn values(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(VALUES);
    let registry = registry_space(k, &mut out.doubts)?;
    for h in hives(k, registry.as_ref(), &mut out.doubts)? {
        let root = h.root();
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        let room = MOST.saturating_sub(out.rows.len());
        let lost = h.keys(&mut |key| {
            let path = if key.path.is_empty() {
                root.clone()
            } else {
                format!("{root}\\{}", key.path)
            };
            let physical = h.space(key.va).translate(key.va).ok().map(|p| p.0);
            let head = |name: Cell, kind: Cell, data: Cell, bytes: Cell| {
                vec![
                    path.as_str().into(),
                    time(key.changed).into(),
                    name,
                    kind,
                    data,
                    bytes,
                    physical.into(),
                ]
            };
            if key.values.is_empty() {
                rows.push(head(Cell::Null, Cell::Null, Cell::Null, Cell::Null));
            }
            for v in &key.values {
                let kind = usize::try_from(v.kind).ok().and_then(|n| KINDS.get(n));
                let kind = kind.map_or_else(|| v.kind.to_string(), |k| (*k).to_owned());
                rows.push(head(
                    v.name.as_str().into(),
                    kind.into(),
                    text(v).into(),
                    v.data.as_ref().map(Vec::len).into(),
                ));
            }
            rows.len() < room
        });
        match lost {
            Ok(0) => {}
            Ok(n) => out.doubts.push(format!(
                "{n} keys of {root} could not be read, or only in part"
            )),
            Err(e) => out
                .doubts
                .push(format!("the keys of {root} can't be read: {e}")),
        }
        rows.truncate(room);
        if rows.len() == room {
            out.doubts.push(format!(
                "only {MOST} rows are shown; recover the hives for the rest"
            ));
        }
        rows.into_iter().for_each(|r| out.push(r));
    }
    Ok(out)
}
