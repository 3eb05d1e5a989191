//! Paths of files: names of dentries up to the root of a file system, then through mounts.
//!
//! ```text
//! file.f_path { mnt, dentry }    dentry.d_parent ... mnt.mnt_root -> mount.mnt_mountpoint in
//!                                mount.mnt_parent ... until a mount is its own parent
//! ```
//!
//! Files of kernel-internal file systems have no place; the kernel makes a name for them by the
//! function `d_dname` of their dentries (`pipe:[17]`, `anon_inode:[eventfd]`), which is told by its
//! symbol here.
//!
//! Sources: Linux `fs/d_path.c`, `include/linux/dcache.h`, `fs/mount.h`, `fs/pipe.c`,
//! `net/socket.c`, `fs/anon_inodes.c`, `fs/nsfs.c`, `fs/pidfs.c`.

use crate::linux::fields::Fields;
use crate::linux::{Kernel, LinuxError};
use ramsift_layers::VirtAddr;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Directories above each other, and mounts, at most.
const MAX_DEPTH: usize = 4096;
/// Bytes of a name at most; file systems allow 255, internal ones somewhat more.
const MAX_NAME: u64 = 4096;
/// Bytes of a path at most; whole directories may have been moved deeper than the 4096 that a
/// system call takes.
const MAX_PATH: usize = 64 << 10;
/// Dentries kept at a time; they are forgotten together.
const KEPT: usize = 64 << 10;

/// What paths need of a dentry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// Its virtual address.
    pub va: u64,
    /// Its name in its directory; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// Its directory; itself at the root of a file system.
    pub parent: u64,
    /// Its inode; 0 where the name leads nowhere (a negative dentry).
    pub inode: u64,
    /// Its super block.
    pub super_block: u64,
    /// Whether it can't be looked up any more: removed, or never in a directory.
    pub unhashed: bool,
    op: u64,
}

impl Dentry {
    /// Whether it is the root of its file system.
    pub fn is_root(&self) -> bool {
        self.parent == self.va
    }

    /// Whether its name was removed from its directory.
    pub fn deleted(&self) -> bool {
        self.unhashed && !self.is_root()
    }
}

/// What is appended to the path of a file whose name is gone.
pub(in crate::linux) const DELETED: &str = " (deleted)";

/// Makes paths.
#[derive(Debug)]
pub struct Paths<'k> {
    kernel: &'k Kernel<'k>,
    dentry: Fields<7>,
    mount: Fields<4>,
    known: RefCell<HashMap<u64, Rc<Dentry>>>,
}

impl<'k> Paths<'k> {
    /// For this kernel.
    pub fn new(kernel: &'k Kernel<'k>) -> Result<Self, LinuxError> {
        Ok(Self {
            kernel,
            dentry: kernel.fields(
                "dentry",
                [
                    "d_parent",
                    "d_inode",
                    "d_sb",
                    "d_hash.pprev",
                    "d_op",
                    "d_name.len",
                    "d_name.name",
                ],
            )?,
            mount: kernel.fields(
                "mount",
                ["mnt", "mnt.mnt_root", "mnt_parent", "mnt_mountpoint"],
            )?,
            known: RefCell::default(),
        })
    }

    /// The dentry at an address.
    pub fn dentry(&self, va: u64) -> Result<Rc<Dentry>, LinuxError> {
        if let Some(d) = self.known.borrow().get(&va) {
            return Ok(Rc::clone(d));
        }
        let [parent, inode, super_block, pprev, op, len, name] =
            self.dentry.read(self.kernel, va)?;
        let mut raw = vec![0; usize::try_from(len.min(MAX_NAME)).unwrap_or(0)];
        self.kernel.space.read(name, &mut raw)?;
        let d = Rc::new(Dentry {
            va,
            name: String::from_utf8_lossy(&raw).into_owned(),
            parent,
            inode,
            super_block,
            unhashed: pprev == 0,
            op,
        });
        let mut known = self.known.borrow_mut();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(va, Rc::clone(&d));
        Ok(d)
    }

    /// The struct mount around a `vfsmount`.
    pub fn mount_of(&self, vfsmount: u64) -> u64 {
        vfsmount.wrapping_sub(self.mount.address(0, 0))
    }

    /// The path of a dentry inside its file system.
    pub fn inside(&self, dentry: u64) -> Result<String, LinuxError> {
        let mut names = Vec::new();
        let d = self.up(dentry, 0, &mut names)?;
        let mut path = join(&names);
        if d.deleted() {
            path.push_str(DELETED);
        }
        Ok(path)
    }

    /// Collects names from a dentry up to `stop` or the root of its file system. Gives the dentry
    /// itself.
    fn up(
        &self,
        dentry: u64,
        stop: u64,
        names: &mut Vec<Rc<Dentry>>,
    ) -> Result<Rc<Dentry>, LinuxError> {
        let first = self.dentry(dentry)?;
        let mut d = Rc::clone(&first);
        for _ in 0..MAX_DEPTH {
            if d.va == stop || d.is_root() {
                break;
            }
            let parent = d.parent;
            names.push(d);
            d = self.dentry(parent)?;
        }
        Ok(first)
    }

    /// The path of what `vfsmount` and `dentry` say together, as `/proc/<pid>/fd` shows it to a
    /// process whose root is that of the mount namespace.
    pub fn path(&self, vfsmount: u64, dentry: u64) -> Result<String, LinuxError> {
        let d = self.dentry(dentry)?;
        if let Some(name) = self.made_up(&d)? {
            return Ok(name);
        }
        let mut names = Vec::new();
        self.through(vfsmount, dentry, &mut names)?;
        let mut path = join(&names);
        if d.deleted() {
            path.push_str(DELETED);
        }
        Ok(path)
    }

    /// Whether the name of a dentry is gone, or never was one in a directory. The path alone doesn't
    /// tell: a file may be called `x (deleted)`.
    pub fn is_deleted(&self, dentry: u64) -> Result<bool, LinuxError> {
        let d = self.dentry(dentry)?;
        let made_up = self.made_up(&d)?;
        Ok(match made_up {
            Some(name) => name.ends_with(DELETED),
            None => d.deleted(),
        })
    }

    /// Collects names up to the root of the mount namespace.
    fn through(
        &self,
        vfsmount: u64,
        dentry: u64,
        names: &mut Vec<Rc<Dentry>>,
    ) -> Result<(), LinuxError> {
        if vfsmount == 0 {
            self.up(dentry, 0, names)?;
            return Ok(());
        }
        let (mut mount, mut at) = (self.mount_of(vfsmount), dentry);
        for _ in 0..MAX_DEPTH {
            let [_, root, parent, mountpoint] = self.mount.read(self.kernel, mount)?;
            self.up(at, root, names)?;
            if parent == mount || parent == 0 || names.len() > MAX_DEPTH {
                break;
            }
            (mount, at) = (parent, mountpoint);
        }
        Ok(())
    }

    /// The path at which a `struct mount` is mounted in its namespace.
    pub fn mountpoint(&self, mount: u64) -> Result<String, LinuxError> {
        let [_, root, ..] = self.mount.read(self.kernel, mount)?;
        let mut names = Vec::new();
        self.through(self.mount.address(mount, 0), root, &mut names)?;
        Ok(join(&names))
    }

    /// The name of a file that has no place.
    fn made_up(&self, d: &Dentry) -> Result<Option<String>, LinuxError> {
        if d.op == 0 {
            return Ok(None);
        }
        let kernel = self.kernel;
        let f = kernel.object("dentry_operations", d.op).number("d_dname")?;
        if f == 0 {
            return Ok(None);
        }
        let number = || kernel.object("inode", d.inode).number("i_ino");
        let maker = kernel.symbols.nearest(VirtAddr(f));
        let name = &d.name;
        Ok(match maker.map(|(s, _)| s.name) {
            // The root of such a file system, mounted somewhere, is an ordinary directory.
            _ if d.is_root() && name == "/" => None,
            Some("pipefs_dname") => Some(format!("pipe:[{}]", number()?)),
            Some("sockfs_dname") => Some(format!("socket:[{}]", number()?)),
            Some("anon_inodefs_dname") => Some(format!("anon_inode:{name}")),
            Some("pidfs_dname") => Some("anon_inode:[pidfd]".into()),
            Some("ns_dname") => Some(format!("{}:[{}]", self.namespace(d)?, number()?)),
            Some("simple_dname") => Some(format!("/{name}{DELETED}")),
            _ => Some(format!("{}:{name}", self.kind(d)?)),
        })
    }

    /// What kind of namespace a dentry of nsfs is for.
    fn namespace(&self, d: &Dentry) -> Result<String, LinuxError> {
        let kernel = self.kernel;
        let inode = kernel.object("inode", d.inode);
        // Until 6.8 the dentry leads to the operations, later the inode to the namespace.
        let mut ops = kernel.object("dentry", d.va).number("d_fsdata")?;
        if ops == 0 {
            let ns = kernel.object("ns_common", inode.number("i_private")?);
            ops = ns.number("ops")?;
        }
        let name = kernel.object("proc_ns_operations", ops).number("name")?;
        kernel.text_at(name)
    }

    /// The name of a dentry's file system.
    fn kind(&self, d: &Dentry) -> Result<String, LinuxError> {
        let kernel = self.kernel;
        let sb = kernel.object("super_block", d.super_block);
        let Some(ty) = sb.follow("s_type", "file_system_type")? else {
            return Ok(String::new());
        };
        kernel.text_at(ty.number("name")?)
    }
}

/// Names, the last one first, as a path.
fn join(names: &[Rc<Dentry>]) -> String {
    let mut out = String::new();
    for d in names.iter().rev() {
        if out.len() + d.name.len() > MAX_PATH {
            break;
        }
        out.push('/');
        out.push_str(&d.name);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// Bytes of a text behind a pointer at most.
const MAX_TEXT: usize = 4096;

impl Kernel<'_> {
    /// The text at an address, up to its NUL; empty at 0.
    pub fn text_at(&self, va: u64) -> Result<String, LinuxError> {
        let mut out = Vec::new();
        let mut at = va;
        while va != 0 && out.len() < MAX_TEXT {
            // Up to the end of the page: what follows may not be mapped.
            let n = usize::try_from(4096 - at % 4096).unwrap_or(4096).min(256);
            let mut piece = vec![0; n];
            self.space.read(at, &mut piece)?;
            let end = piece.iter().position(|b| *b == 0);
            out.extend_from_slice(&piece[..end.unwrap_or(n)]);
            if end.is_some() {
                break;
            }
            at = at.wrapping_add(n as u64);
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}
