//! The directory tree as the captured machine saw it: names that are in memory, through the mounts
//! of a mount namespace.
//!
//! ```text
//! root mount -> dentry -> children: d_subdirs/d_child, from 6.8 d_children/d_sib
//!                      -> a mount on it: (mount, dentry) -> the root dentry of that mount
//! ```
//!
//! What the kernel has not looked up lately is not in it, and a name can be there whose inode is
//! not (a name that was looked for in vain). A node takes about 100 bytes and its name. A dentry
//! takes 192 bytes of the image, and one that is mounted twice gives two nodes, so the nodes are
//! limited to [`MAX`].
//!
//! Sources: Linux `include/linux/dcache.h`, `fs/mount.h`.

use crate::linux::mountinfo::mounts;
use crate::linux::path::{DELETED, Paths};
use crate::linux::{Kernel, LinuxError, Object};
use std::collections::{HashMap, HashSet, VecDeque};

/// Nodes at most.
const MAX: usize = 4 << 20;
/// Mounts on top of each other at most.
const MAX_STACKED: usize = 256;

/// A name in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// Its name; empty at the root.
    pub name: String,
    /// The node of its directory; its own at the root.
    pub parent: u32,
    /// The virtual address of its dentry: where something is mounted, of the root of that.
    pub dentry: u64,
    /// The virtual address of its inode; 0 where the name leads nowhere.
    pub inode: u64,
    /// Whether the name was removed while something holds it open.
    pub deleted: bool,
    children: Vec<u32>,
}

/// The tree.
#[derive(Clone, Debug, Default)]
pub struct FileTree {
    nodes: Vec<FileNode>,
    /// What could not be read.
    pub doubts: Vec<String>,
}

/// How children hang on a dentry.
enum Children {
    /// `list_head`.
    List,
    /// `hlist_head` at this offset, nodes at that.
    Chain(u64, u64),
}

struct Builder<'k> {
    kernel: &'k Kernel<'k>,
    paths: Paths<'k>,
    children: Children,
    /// What is mounted on a dentry of a mount.
    on: HashMap<(u64, u64), (u64, u64)>,
    seen: HashSet<(u64, u64)>,
    tree: FileTree,
}

impl FileTree {
    /// The tree of the first process: that of the machine.
    pub fn new(kernel: &Kernel<'_>) -> Result<Self, LinuxError> {
        let mut doubts = Vec::new();
        let tasks = kernel.processes(&mut doubts)?;
        let mut tree = match tasks.first() {
            Some(first) => Self::of(kernel, first)?,
            None => Self::default(),
        };
        tree.doubts.splice(0..0, doubts);
        Ok(tree)
    }

    /// The tree below the root of a task, with the mounts of its namespace: that of its container.
    pub fn of(kernel: &Kernel<'_>, task: &Object<'_>) -> Result<Self, LinuxError> {
        let types = kernel.symbols.types();
        let children = match types.field("dentry", "d_children") {
            Ok(f) => Children::Chain(f.offset, types.field("dentry", "d_sib")?.offset),
            Err(_) => Children::List,
        };
        let mut b = Builder {
            kernel,
            paths: Paths::new(kernel)?,
            children,
            on: HashMap::new(),
            seen: HashSet::new(),
            tree: Self::default(),
        };
        let proxy = task.follow("nsproxy", "nsproxy")?;
        b.mounts(proxy.map_or(Ok(0), |p| p.number("mnt_ns"))?)?;
        if let Some(fs) = task.follow("fs", "fs_struct")? {
            let mount = b.paths.mount_of(fs.number("root.mnt")?);
            b.build(mount, fs.number("root.dentry")?);
        }
        Ok(b.tree)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node by its number; 0 is the root.
    pub fn node(&self, id: u32) -> Option<&FileNode> {
        self.nodes.get(id as usize)
    }

    /// The names in a directory, in the kernel's order: the youngest first.
    pub fn children(&self, id: u32) -> impl Iterator<Item = (u32, &FileNode)> {
        let all = self.node(id).map(|n| n.children.as_slice());
        let all = all.unwrap_or_default().iter();
        all.filter_map(|c| Some((*c, self.node(*c)?)))
    }

    /// The node of a path. Of several of a name, one that leads somewhere and was not removed.
    /// Symbolic links are not followed.
    pub fn find(&self, path: &str) -> Option<u32> {
        self.node(0)?;
        path.split('/')
            .filter(|p| !p.is_empty())
            .try_fold(0, |at, part| {
                self.children(at)
                    .filter(|(_, n)| n.name == part)
                    .min_by_key(|(_, n)| (n.deleted, n.inode == 0))
                    .map(|(id, _)| id)
            })
    }

    /// The path of a node; ` (deleted)` behind it if its name was removed.
    pub fn path(&self, id: u32) -> String {
        let mut names = Vec::new();
        let mut at = id;
        // A parent has a lower number than its children, so this ends.
        while let Some(n) = self.node(at)
            && n.parent < at
        {
            names.push(n.name.as_str());
            at = n.parent;
        }
        names.reverse();
        let deleted = self.node(id).is_some_and(|n| n.deleted);
        format!("/{}{}", names.join("/"), if deleted { DELETED } else { "" })
    }
}

/// The dentries in a directory, in the kernel's order.
pub(in crate::linux) fn children(
    kernel: &Kernel<'_>,
    dentry: u64,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    let types = kernel.symbols.types();
    let walk = match types.field("dentry", "d_children") {
        Ok(head) => {
            let node = types.field("dentry", "d_sib")?.offset;
            kernel.hlist(dentry.wrapping_add(head.offset), node)?
        }
        Err(_) => {
            let head = kernel.object("dentry", dentry).at("d_subdirs")?;
            kernel.list(head, "dentry", "d_child")?
        }
    };
    doubts.extend(walk.broken);
    Ok(walk.items)
}

impl Builder<'_> {
    fn mounts(&mut self, ns: u64) -> Result<(), LinuxError> {
        if ns == 0 {
            return Ok(());
        }
        let f = self
            .kernel
            .fields("mount", ["mnt_parent", "mnt_mountpoint", "mnt.mnt_root"])?;
        for m in mounts(self.kernel, ns, &mut self.tree.doubts)? {
            match f.read(self.kernel, m) {
                Ok([parent, at, root]) if parent != m => {
                    self.on.insert((parent, at), (m, root));
                }
                Ok(_) => {}
                Err(e) => self
                    .tree
                    .doubts
                    .push(format!("struct mount at {m:#x}: {e}")),
            }
        }
        Ok(())
    }

    /// What one comes to at a dentry: the root of what is mounted there last.
    fn top(&self, mut at: (u64, u64)) -> (u64, u64) {
        for _ in 0..MAX_STACKED {
            match self.on.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        at
    }

    fn build(&mut self, mount: u64, dentry: u64) {
        let start = self.top((mount, dentry));
        let mut queue = VecDeque::new();
        if let Some(id) = self.enter(0, start, String::new(), false) {
            queue.push_back((id, start));
        }
        while let Some((parent, (mount, dentry))) = queue.pop_front() {
            let all = match self.below(dentry) {
                Ok(all) => all,
                Err(e) => {
                    let doubt = format!("dentry at {dentry:#x}: {e}");
                    self.tree.doubts.push(doubt);
                    continue;
                }
            };
            for child in all {
                let d = match self.paths.dentry(child) {
                    Ok(d) => d,
                    Err(e) => {
                        let doubt = format!("dentry at {child:#x}: {e}");
                        self.tree.doubts.push(doubt);
                        continue;
                    }
                };
                // The marks of processes that are reading a directory have no name of their own.
                if d.parent != dentry || d.name == "/" || d.name.is_empty() {
                    continue;
                }
                let place = self.top((mount, child));
                if let Some(id) = self.enter(parent, place, d.name.clone(), d.unhashed) {
                    queue.push_back((id, place));
                }
            }
        }
    }

    /// The dentries in a directory.
    fn below(&mut self, dentry: u64) -> Result<Vec<u64>, LinuxError> {
        let walk = match self.children {
            Children::List => {
                let head = self.kernel.object("dentry", dentry).at("d_subdirs")?;
                self.kernel.list(head, "dentry", "d_child")?
            }
            Children::Chain(head, node) => self.kernel.hlist(dentry.wrapping_add(head), node)?,
        };
        self.tree.doubts.extend(walk.broken);
        Ok(walk.items)
    }

    fn enter(&mut self, parent: u32, at: (u64, u64), name: String, deleted: bool) -> Option<u32> {
        if self.tree.nodes.len() >= MAX || !self.seen.insert(at) {
            let doubt = format!("dentry at {:#x}: met again, or one too many", at.1);
            self.tree.doubts.push(doubt);
            return None;
        }
        let inode = match self.paths.dentry(at.1) {
            Ok(d) => d.inode,
            Err(e) => {
                let doubt = format!("dentry at {:#x}: {e}", at.1);
                self.tree.doubts.push(doubt);
                return None;
            }
        };
        let id = u32::try_from(self.tree.nodes.len()).ok()?;
        self.tree.nodes.push(FileNode {
            name,
            parent,
            dentry: at.1,
            inode,
            deleted,
            children: Vec::new(),
        });
        if id != 0
            && let Some(p) = self.tree.nodes.get_mut(parent as usize)
        {
            p.children.push(id);
        }
        Some(id)
    }
}
