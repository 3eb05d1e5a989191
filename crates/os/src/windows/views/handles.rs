//! `windows/handles`: what processes have open.
//!
//! Sources: the public types `_HANDLE_TABLE_ENTRY`, `_FILE_OBJECT`, `_CM_KEY_BODY`, `_CM_KEY_CONTROL_BLOCK`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::objects::{Handle, ObjectTypes, handles, name, path};
use crate::windows::{Kernel, WindowsError, WindowsView};

/// `windows/handles`.
pub(in crate::windows) const HANDLES: WindowsView = WindowsView {
    name: "windows/handles",
    meaning: "open handles of processes",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("handle", Kind::Hex, "value of the handle"),
    column("type", Kind::Text, "kind of the object"),
    column("access", Kind::Hex, "rights that were granted"),
    column("name", Kind::Text, "name of the object"),
    column("object", Kind::Hex, "virtual address of the object"),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// Keys above a key at most.
const MAX_DEPTH: usize = 64;

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let Some(table) = p.object.number("ObjectTable").ok().filter(|t| *t != 0) else {
            continue;
        };
        let mut rows = Vec::new();
        let unread = handles(k, table, &mut |h: Handle| {
            let header = k.object("_OBJECT_HEADER", h.object);
            let kind = types.of(&header).unwrap_or("");
            let body = types.body(h.object);
            rows.push(vec![
                p.pid.into(),
                p.name().into(),
                h.value.into(),
                kind.into(),
                h.access.into(),
                named(k, &types, kind, body).into(),
                body.into(),
                k.physical(body).map(|p| p.0).into(),
            ]);
        });
        match unread {
            Ok(0) => {}
            Ok(n) => out.doubts.push(format!(
                "{n} pages of the handles of {} could not be read",
                p.label()
            )),
            Err(_) if p.has_ended() => {}
            Err(e) => out
                .doubts
                .push(format!("the handles of {} can't be read: {e}", p.label())),
        }
        rows.into_iter().for_each(|r| out.push(r));
    }
    Ok(out)
}

/// What an object is called.
fn named(k: &Kernel<'_>, types: &ObjectTypes, kind: &str, body: u64) -> Option<String> {
    match kind {
        "File" => file(k, types, body),
        "Process" => {
            let p = k.object("_EPROCESS", body);
            let pid = p.number("UniqueProcessId").ok()?;
            Some(format!("{}[{pid}]", p.text("ImageFileName").ok()?))
        }
        "Thread" => {
            let t = k.object("_ETHREAD", body);
            let (tid, pid) = (
                t.number("Cid.UniqueThread").ok()?,
                t.number("Cid.UniqueProcess").ok()?,
            );
            Some(format!("thread {tid} of process {pid}"))
        }
        "Key" => key(k, body),
        _ => name(k, &types.header(k, body)).ok().flatten(),
    }
}

/// The path of a file behind its device.
pub(in crate::windows) fn file(k: &Kernel<'_>, types: &ObjectTypes, body: u64) -> Option<String> {
    let f = k.object("_FILE_OBJECT", body);
    let own = f.unicode("FileName").ok()?;
    let device = f.number("DeviceObject").ok().filter(|d| *d != 0);
    let device = device.and_then(|d| {
        path(k, types, d).or_else(|| {
            let own = name(k, &types.header(k, d)).ok()??;
            Some(format!("\\Device\\{own}"))
        })
    });
    Some(format!("{}{own}", device.unwrap_or_default()))
}

/// The path of a registry key, from its control blocks.
fn key(k: &Kernel<'_>, body: u64) -> Option<String> {
    let mut at = k
        .object("_CM_KEY_BODY", body)
        .number("KeyControlBlock")
        .ok()?;
    let mut parts = Vec::new();
    while at != 0 && parts.len() < MAX_DEPTH {
        let block = k.object("_CM_KEY_CONTROL_BLOCK", at);
        let own = block.follow("NameBlock", "_CM_NAME_CONTROL_BLOCK").ok()??;
        let len = usize::try_from(own.number("NameLength").ok()?)
            .ok()?
            .min(512);
        let mut raw = vec![0; len];
        k.space.read(own.at("Name").ok()?, &mut raw).ok()?;
        let narrow = own.number("Compressed").unwrap_or(1) != 0;
        parts.push(if narrow {
            raw.iter().map(|b| char::from(*b)).collect()
        } else {
            crate::windows::space::wide(&raw)
        });
        at = block.number("ParentKcb").ok()?;
    }
    parts.reverse();
    (!parts.is_empty()).then(|| format!("\\{}", parts.join("\\")))
}
