//! `windows/pstree`: the processes as a tree of creators and created.
//!
//! Each process comes after its creator, with its descendants before its next sibling. A creator is one that was there
//! before: numbers are used again.

use crate::table::{Column, Kind, Table, column};
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use std::collections::BTreeMap;

/// `windows/pstree`.
pub(in crate::windows) const PSTREE: WindowsView = WindowsView {
    name: "windows/pstree",
    meaning: "processes as a tree of creators and created",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("depth", Kind::Number, "ancestors in the list"),
    column("pid", Kind::Number, "process id"),
    column("ppid", Kind::Number, "process id of the creator"),
    column("comm", Kind::Text, "name of the program"),
    column(
        "path",
        Kind::Text,
        "names and ids from the first ancestor on: `winlogon.exe[600]/cmd.exe[812]`; the nearest ones where there are many",
    ),
    column(
        "children",
        Kind::Number,
        "processes that it created and that are in the list",
    ),
    column("start", Kind::Time, "when it was created"),
    column("eprocess", Kind::Hex, "virtual address of its _EPROCESS"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

/// Ancestors in a path at most.
const MAX_PATH: usize = 32;

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let all = k.processes(&mut out.doubts)?;
    let created = |p: &Process<'_>| p.object.number("CreateTime").unwrap_or(0);
    let mut by_pid = BTreeMap::new();
    for (i, p) in all.iter().enumerate() {
        by_pid.entry(p.pid).or_insert(i);
    }
    let parent_of = |p: &Process<'_>| {
        let pid = p.object.number("InheritedFromUniqueProcessId").ok()?;
        let at = *by_pid.get(&pid.cast_signed())?;
        let parent = &all[at];
        (parent.pid != p.pid && created(parent) <= created(p)).then_some(at)
    };
    let parents: Vec<Option<usize>> = all.iter().map(parent_of).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); all.len()];
    for (i, p) in parents.iter().enumerate() {
        if let Some(p) = p {
            children[*p].push(i);
        }
    }
    let mut seen = vec![false; all.len()];
    // Each tree from its top; what is left leads in circles, which equal times allow.
    let tops = (0..all.len()).filter(|i| parents[*i].is_none());
    for top in tops.chain(0..all.len()) {
        let mut todo = vec![(top, 0usize)];
        while let Some((i, depth)) = todo.pop() {
            if std::mem::replace(&mut seen[i], true) {
                continue;
            }
            let p = &all[i];
            let mut path = vec![p.label()];
            let mut at = i;
            while let Some(up) = parents[at].filter(|_| path.len() < MAX_PATH) {
                path.push(all[up].label());
                at = up;
            }
            path.reverse();
            let parent = p.object.number("InheritedFromUniqueProcessId").ok();
            out.push(vec![
                depth.into(),
                p.pid.into(),
                parent.map(u64::cast_signed).into(),
                p.name().into(),
                path.join("/").into(),
                children[i].len().into(),
                time(created(p)).into(),
                p.object.va.into(),
                p.object.physical().into(),
            ]);
            todo.extend(children[i].iter().rev().map(|c| (*c, depth + 1)));
        }
    }
    Ok(out)
}
