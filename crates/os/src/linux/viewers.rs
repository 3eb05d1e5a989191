//! The files as a process, a mount namespace or a container sees them.

use super::views::process::namespaces;
use super::{FileTree, InodePages, Inodes, Kernel, LinuxError, Object};
use crate::content::Content;
use crate::files::{Files, FilesError, Metadata, Viewer};
use crate::machine::ViewError;
use crate::table::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Mount namespaces that are searched for a path that the first process does not see.
const NAMESPACES: usize = 64;

struct Seen<'k> {
    kernel: &'k Kernel<'k>,
    tree: FileTree,
    inodes: Inodes<'k>,
}

impl Files for Seen<'_> {
    fn doubts(&self) -> &[String] {
        &self.tree.doubts
    }

    fn find(&self, path: &str) -> Option<u32> {
        self.tree.find(path)
    }

    fn path(&self, node: u32) -> String {
        self.tree.path(node)
    }

    fn name(&self, node: u32) -> (String, bool) {
        let n = self.tree.node(node);
        n.map_or((String::new(), false), |n| (n.name.clone(), n.deleted))
    }

    fn children(&self, node: u32) -> Vec<u32> {
        self.tree.children(node).map(|(id, _)| id).collect()
    }

    fn metadata(&self, node: u32) -> Option<Metadata> {
        let inode = self.tree.node(node)?.inode;
        let i = self.inodes.read(inode).ok().filter(|_| inode != 0)?;
        Some(Metadata {
            mode: i.mode,
            uid: i.uid,
            gid: i.gid,
            size: u64::try_from(i.size).unwrap_or(0),
            pages: i.pages,
            pages_needed: i.pages_needed(),
            modified: i.modified,
            target: self.inodes.target(&i),
        })
    }

    fn content(&self, node: u32, doubts: &mut Vec<String>) -> Result<Content, ViewError> {
        let inode = self.tree.node(node).map_or(0, |n| n.inode);
        let inode = self.inodes.read(inode).map_err(LinuxError::from)?;
        Ok(InodePages::new(self.kernel)?.content(&inode, doubts)?)
    }
}

/// The files that a viewer sees.
pub(super) fn files<'k>(
    kernel: &'k Kernel<'k>,
    viewer: &Viewer,
) -> Result<Box<dyn Files + 'k>, FilesError> {
    let mut doubts = Vec::new();
    let tasks = kernel.processes(&mut doubts).map_err(ViewError::from)?;
    let of = |pid: i64| tasks.iter().find(|t| t.int("tgid").is_ok_and(|p| p == pid));
    let found = match viewer {
        Viewer::Machine => None,
        Viewer::Process(pid) => Some(of(i64::from(*pid)).ok_or(FilesError::NoProcess(*pid))?),
        Viewer::Namespace(ns) => {
            let lives = |t: &&Object<'_>| mount_namespace(t).is_ok_and(|n| n == Some(*ns));
            let task = tasks.iter().find(lives);
            Some(task.ok_or(FilesError::NoNamespace(*ns))?)
        }
        Viewer::Container(name) => {
            let pid = container(kernel, name)?;
            Some(of(pid).ok_or_else(|| FilesError::NoContainer {
                wanted: name.clone(),
                there: Vec::new(),
            })?)
        }
    };
    let tree = match found {
        Some(task) => FileTree::of(kernel, task),
        None => FileTree::new(kernel),
    };
    let mut tree = tree.map_err(ViewError::from)?;
    tree.doubts.splice(0..0, doubts);
    let inodes = Inodes::new(kernel).map_err(ViewError::from)?;
    Ok(Box::new(Seen {
        kernel,
        tree,
        inodes,
    }))
}

/// The inode number of a task's mount namespace.
fn mount_namespace(task: &Object<'_>) -> Result<Option<u64>, LinuxError> {
    let proxy = task.follow("nsproxy", "nsproxy")?;
    let ns = proxy
        .map(|p| p.follow("mnt_ns", "mnt_namespace"))
        .transpose()?
        .flatten();
    let number = ns.map(|n| n.number("ns.inum")).transpose()?;
    Ok(number.map(|n| n & 0xffff_ffff))
}

/// A process of the container with this name, or an id that begins so.
fn container(kernel: &Kernel<'_>, name: &str) -> Result<i64, FilesError> {
    let t = (namespaces::NAMESPACES.build)(kernel).map_err(ViewError::from)?;
    let mut names = BTreeSet::new();
    for row in 0..t.rows.len() {
        let text = |c: &str| match t.cell(row, c) {
            Some(Value::Text(s)) => Some(s.as_str()),
            _ => None,
        };
        let Some(id) = text("container") else {
            continue;
        };
        let hit = id.starts_with(name)
            || text("hostname") == Some(name)
            || text("pod").is_some_and(|p| p.starts_with(name));
        if hit
            && let Some(Value::Number(pid)) = t.cell(row, "pid")
            && let Ok(pid) = i64::try_from(*pid)
        {
            return Ok(pid);
        }
        names.insert(id.to_owned());
        names.extend(text("hostname").map(str::to_owned));
    }
    Err(FilesError::NoContainer {
        wanted: name.to_owned(),
        there: names.into_iter().collect(),
    })
}

/// Mount namespaces, other than the first process's, in which something is at a path, and how to ask for them.
pub(super) fn elsewhere(kernel: &Kernel<'_>, path: &str) -> Vec<String> {
    let mut seen = BTreeMap::new();
    for task in kernel.processes(&mut Vec::new()).unwrap_or_default() {
        if let Ok(Some(ns)) = mount_namespace(&task)
            && seen.len() < NAMESPACES
        {
            seen.entry(ns).or_insert(task);
        }
    }
    let mut out = Vec::new();
    for (ns, task) in seen {
        let there = FileTree::of(kernel, &task).is_ok_and(|t| t.find(path).is_some());
        if there && let (Ok(pid), Ok(comm)) = (task.int("tgid"), task.text("comm")) {
            out.push(format!("{ns} of {comm}[{pid}] (--pid {pid})"));
        }
    }
    out
}
