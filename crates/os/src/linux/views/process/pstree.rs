//! `linux/pstree`: the processes as a tree of parents and children.
//!
//! Each process comes after its parent, with its descendants before its next sibling. One whose
//! parents lead in a circle begins a tree of its own, which is a doubt.
//!
//! Source: Linux `include/linux/sched.h` (`real_parent`).

use crate::linux::threads::start_ns;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, column};
use std::collections::{BTreeMap, BTreeSet};

/// `linux/pstree`.
pub(in crate::linux) const PSTREE: LinuxView = LinuxView {
    name: "linux/pstree",
    meaning: "processes as a tree of parents and children",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/pstree`.
const COLUMNS: &[Column] = &[
    column("depth", Kind::Number, "ancestors in the list"),
    column("pid", Kind::Number, "process id (thread group)"),
    column("ppid", Kind::Number, "process id of the parent"),
    column("comm", Kind::Text, "name of the main thread"),
    column(
        "path",
        Kind::Text,
        "names and ids from the first ancestor on: `init[1]/bash[20]`; the nearest ones where there are many",
    ),
    column(
        "children",
        Kind::Number,
        "processes below it, not further down",
    ),
    column("uid", Kind::Number, "real user id"),
    column("start", Kind::Time, "when it was started"),
    column("task", Kind::Hex, "virtual address of its task_struct"),
    column("physical", Kind::Hex, "physical address of its task_struct"),
];

/// Ancestors in a path at most.
const MAX_PATH: usize = 32;

/// A process of the tree.
struct Process<'k> {
    task: Object<'k>,
    pid: i64,
    parent: i64,
    comm: String,
    uid: Option<u64>,
    start: u64,
}

fn read<'k>(task: &Object<'k>) -> Result<Process<'k>, LinuxError> {
    let parent = task.follow("real_parent", "task_struct")?;
    let cred = task.follow("cred", "cred")?;
    Ok(Process {
        task: *task,
        pid: task.int("tgid")?,
        parent: parent.map_or(Ok(0), |p| p.int("tgid"))?,
        comm: task.text("comm")?,
        uid: cred.map(|c| c.number("uid.val")).transpose()?,
        start: start_ns(task)?,
    })
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let mut all = Vec::new();
    for task in kernel.processes(&mut out.doubts)? {
        match read(&task) {
            Ok(p) => all.push(p),
            Err(e) => out
                .doubts
                .push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    let parents: Vec<(i64, i64)> = all.iter().map(|p| (p.pid, p.parent)).collect();
    let (order, circles) = preorder(&parents);
    for i in circles {
        if let Some(p) = all.get(i) {
            out.doubts.push(format!(
                "the parents of {}[{}], task_struct at {:#x}, lead in a circle",
                p.comm, p.pid, p.task.va
            ));
        }
    }
    let mut below: BTreeMap<i64, usize> = BTreeMap::new();
    for p in all.iter().filter(|p| p.parent != p.pid) {
        *below.entry(p.parent).or_default() += 1;
    }
    let clock = kernel.clock();
    let mut line: Vec<String> = Vec::new();
    for (i, depth) in order {
        let Some(p) = all.get(i) else { continue };
        line.truncate(depth);
        line.push(format!("{}[{}]", p.comm, p.pid));
        let from = line.len().saturating_sub(MAX_PATH);
        out.push(vec![
            depth.into(),
            p.pid.into(),
            p.parent.into(),
            p.comm.as_str().into(),
            line.get(from..).unwrap_or_default().join("/").into(),
            below.get(&p.pid).copied().unwrap_or(0).into(),
            p.uid.into(),
            clock.as_ref().and_then(|c| c.utc(p.start)).into(),
            p.task.va.into(),
            p.task.physical().into(),
        ]);
    }
    Ok(out)
}

/// Places and depths of (id, parent's id) so that parents come before their children, and the places
/// where circles were cut.
fn preorder(all: &[(i64, i64)]) -> (Vec<(usize, usize)>, Vec<usize>) {
    let known: BTreeSet<i64> = all.iter().map(|(id, _)| *id).collect();
    let mut children: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    let mut roots = Vec::new();
    for (i, (id, parent)) in all.iter().enumerate() {
        if parent == id || !known.contains(parent) {
            roots.push(i);
        } else {
            children.entry(*parent).or_default().push(i);
        }
    }
    let (mut order, mut circles) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    let mut visit = |root: usize| {
        let mut todo = vec![(root, 0)];
        while let Some((i, depth)) = todo.pop() {
            if !seen.insert(i) {
                continue;
            }
            order.push((i, depth));
            let below = all.get(i).and_then(|(id, _)| children.get(id));
            todo.extend(below.into_iter().flatten().rev().map(|c| (*c, depth + 1)));
        }
        seen.len()
    };
    for r in &roots {
        visit(*r);
    }
    // What no root leads to.
    let mut before = visit(usize::MAX);
    for i in 0..all.len() {
        let after = visit(i);
        if after > before {
            circles.push(i);
        }
        before = after;
    }
    order.retain(|(i, _)| *i != usize::MAX);
    (order, circles)
}

#[cfg(test)]
mod tests {
    use super::preorder;

    #[test]
    fn parents_come_first_and_circles_are_cut() {
        let (order, circles) = preorder(&[(1, 0), (2, 0), (5, 1), (6, 1), (7, 5)]);
        assert_eq!(order, [(0, 0), (2, 1), (4, 2), (3, 1), (1, 0)]);
        assert!(circles.is_empty());
        let (order, circles) = preorder(&[(1, 0), (8, 9), (9, 8), (9, 1), (3, 3)]);
        assert_eq!(order.len(), 5);
        assert!(circles.is_empty(), "9 is also below 1: {order:?}");
        let (order, circles) = preorder(&[(1, 0), (8, 9), (9, 8)]);
        assert_eq!(order, [(0, 0), (1, 0), (2, 1)]);
        assert_eq!(circles, [1]);
    }
}
