//! `linux/pagecache_files`: every cached inode, its times, and how much of its file is in memory.
//!
//! Paths come from the inode's dentries and from where its file system is mounted: in the first
//! mount namespace if it is there, else in another.
//!
//! Sources: Linux `include/linux/fs.h`, `include/linux/dcache.h`, `fs/mount.h`; Volatility 3
//! `plugins/linux/pagecache.py` for the name.

use crate::linux::inode::{Inode, Inodes, Pages};
use crate::linux::lsof::{device, file_type};
use crate::linux::mountinfo::{mounts, namespaces};
use crate::linux::path::Paths;
use crate::linux::{Kernel, LinuxError, LinuxView, Recovered};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

/// `linux/pagecache_files`.
pub(in crate::linux) const PAGECACHE_FILES: LinuxView = LinuxView {
    name: "linux/pagecache_files",
    meaning: "cached inodes of all file systems, with times and pages in memory",
    columns: FILES,
    build: pagecache_files,
    recover: Some(recover),
    on_request: false,
};

/// Columns of `linux/pagecache_files`.
const FILES: &[Column] = &[
    column(
        "path",
        Kind::Text,
        "from the root of the mount namespace; null without a name in memory",
    ),
    column(
        "other_paths",
        Kind::Text,
        "further names (hard links), one a line; null mostly",
    ),
    column(
        "target",
        Kind::Text,
        "of a symbolic link, where it is cached",
    ),
    column(
        "type",
        Kind::Text,
        "REG, DIR, CHR, BLK, FIFO, SOCK, LNK, ANON",
    ),
    column(
        "deleted",
        Kind::Flag,
        "whether its last name is gone (memfd files have none either)",
    ),
    column("filesystem", Kind::Text, "kind of its file system"),
    column("device", Kind::Text, "major:minor of its file system"),
    column("inode_number", Kind::Number, "its number"),
    column("mode", Kind::Hex, "type and permissions"),
    column("uid", Kind::Number, "owner"),
    column("gid", Kind::Number, "group"),
    column("links", Kind::Number, "hard links"),
    column("size", Kind::Number, "bytes"),
    column("pages", Kind::Number, "pages of 4096 bytes in the cache"),
    column(
        "pages_needed",
        Kind::Number,
        "pages that the whole file has",
    ),
    column("accessed", Kind::Time, "last access"),
    column("modified", Kind::Time, "last change of the content"),
    column("changed", Kind::Time, "last change of the inode"),
    column("inode", Kind::Hex, "virtual address of the inode"),
    column(
        "super_block",
        Kind::Hex,
        "virtual address of its super_block",
    ),
    column("physical", Kind::Hex, "physical address of the inode"),
];

/// File systems whose times say nothing of files.
const SYNTHETIC: &[&str] = &[
    "anon_inodefs",
    "autofs",
    "bdev",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "devtmpfs",
    "drm",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "pidfs",
    "pipefs",
    "proc",
    "pstore",
    "resctrl",
    "securityfs",
    "selinuxfs",
    "sockfs",
    "sysfs",
    "tracefs",
];

/// A super block and where it is mounted.
#[derive(Debug, Default)]
pub(in crate::linux) struct Place {
    kind: String,
    device: u64,
    /// Path inside the file system and where that is mounted; the best first.
    mounts: Vec<(String, String)>,
}

/// All super blocks; where the kernel doesn't name their list, those that are mounted.
fn super_blocks(
    kernel: &Kernel<'_>,
    inodes: &Inodes<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    if kernel.address("super_blocks").is_ok() {
        let walk = inodes.super_blocks()?;
        doubts.extend(walk.broken);
        return Ok(walk.items);
    }
    let mut found = HashSet::new();
    for (ns, _) in namespaces(kernel, doubts)? {
        for m in mounts(kernel, ns, doubts)? {
            found.insert(kernel.object("mount", m).number("mnt.mnt_sb")?);
        }
    }
    Ok(found.into_iter().collect())
}

/// Called for each inode, with its file system and the doubts so far.
pub(in crate::linux) type Visit<'v> =
    dyn FnMut(&Inode, &Place, &mut Vec<String>) -> ControlFlow<()> + 'v;

/// Names the files of all super blocks.
pub(in crate::linux) struct Namer<'k> {
    paths: Paths<'k>,
    inodes: Inodes<'k>,
    places: HashMap<u64, Place>,
}

impl<'k> Namer<'k> {
    pub(in crate::linux) fn new(
        kernel: &'k Kernel<'k>,
        doubts: &mut Vec<String>,
    ) -> Result<Self, LinuxError> {
        let mut n = Self {
            paths: Paths::new(kernel)?,
            inodes: Inodes::new(kernel)?,
            places: HashMap::new(),
        };
        for sb in super_blocks(kernel, &n.inodes, doubts)? {
            let object = kernel.object("super_block", sb);
            let kind = object
                .follow("s_type", "file_system_type")
                .and_then(|t| t.map_or(Ok(0), |t| t.number("name")))
                .and_then(|name| kernel.text_at(name));
            let place = object.number("s_dev").and_then(|device| {
                Ok(Place {
                    kind: kind?,
                    device: device & 0xffff_ffff,
                    mounts: Vec::new(),
                })
            });
            match place {
                Ok(p) => {
                    n.places.insert(sb, p);
                }
                Err(e) => doubts.push(format!("super_block at {sb:#x}: {e}")),
            }
        }
        for (ns, _) in namespaces(kernel, doubts)? {
            let all = mounts(kernel, ns, doubts)?;
            for m in all {
                if let Err(e) = n.mounted(kernel, m) {
                    doubts.push(format!("struct mount at {m:#x}: {e}"));
                }
            }
        }
        Ok(n)
    }

    fn mounted(&mut self, kernel: &Kernel<'_>, mount: u64) -> Result<(), LinuxError> {
        let m = kernel.object("mount", mount);
        let sb = m.number("mnt.mnt_sb")?;
        let inside = self.paths.inside(m.number("mnt.mnt_root")?)?;
        let at = self.paths.mountpoint(mount)?;
        let Some(place) = self.places.get_mut(&sb) else {
            return Ok(());
        };
        // Whole file systems come before directories of them; earlier namespaces before later ones.
        let whole = place.mounts.iter().take_while(|(i, _)| i == "/").count();
        if inside == "/" {
            place.mounts.insert(whole, (inside, at));
        } else {
            place.mounts.push((inside, at));
        }
        Ok(())
    }

    /// The path of a dentry.
    fn path(&self, super_block: u64, dentry: u64) -> Result<String, LinuxError> {
        let inside = self.paths.path(0, dentry)?;
        let Some(place) = self.places.get(&super_block) else {
            return Ok(inside);
        };
        let below = |root: &str| match root {
            "/" => inside.starts_with('/').then_some(inside.as_str()),
            r => inside
                .strip_prefix(r)
                .filter(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let best = place
            .mounts
            .iter()
            .find_map(|(root, at)| Some((below(root)?, at)));
        Ok(match best {
            Some(("/" | "", at)) => at.clone(),
            Some((rest, at)) if at == "/" => rest.to_owned(),
            Some((rest, at)) => format!("{at}{rest}"),
            None => inside,
        })
    }

    /// The paths of an inode and whether they are gone; those last.
    pub(in crate::linux) fn paths(
        &self,
        inode: &Inode,
        doubts: &mut Vec<String>,
    ) -> Vec<(String, bool)> {
        let walk = match self.inodes.dentries(inode.va) {
            Ok(w) => w,
            Err(e) => {
                doubts.push(format!("inode at {:#x}: {e}", inode.va));
                return Vec::new();
            }
        };
        doubts.extend(walk.broken);
        let mut out = Vec::new();
        for dentry in walk.items {
            let path = self.path(inode.super_block, dentry);
            match path.and_then(|p| Ok((p, self.paths.is_deleted(dentry)?))) {
                Ok(p) => out.push(p),
                Err(e) => doubts.push(format!("dentry at {dentry:#x}: {e}")),
            }
        }
        out.sort_by_key(|p| p.1);
        out
    }

    /// Visits every cached inode until the visitor breaks off.
    pub(in crate::linux) fn each(&self, doubts: &mut Vec<String>, visit: &mut Visit<'_>) {
        let mut order: Vec<_> = self.places.iter().collect();
        order.sort_by_key(|(sb, p)| (p.device, **sb));
        // An inode that is met in two lists is in a torn one.
        let mut seen = HashSet::new();
        for (sb, place) in order {
            let walk = match self.inodes.of(*sb) {
                Ok(w) => w,
                Err(e) => {
                    doubts.push(format!("super_block at {sb:#x}: {e}"));
                    continue;
                }
            };
            if let Some(b) = walk.broken {
                doubts.push(format!("inodes of the super_block at {sb:#x}: {b}"));
            }
            for va in walk.items {
                if !seen.insert(va) {
                    continue;
                }
                match self.inodes.read(va) {
                    Ok(i) => {
                        if visit(&i, place, doubts).is_break() {
                            return;
                        }
                    }
                    Err(e) => doubts.push(format!("inode at {va:#x}: {e}")),
                }
            }
        }
    }
}

fn pagecache_files(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(FILES);
    let mut doubts = Vec::new();
    let namer = Namer::new(kernel, &mut doubts)?;
    namer.each(&mut doubts, &mut |i, place, doubts| {
        let mut paths = namer.paths(i, doubts).into_iter();
        let path = paths.next();
        let others: Vec<String> = paths.map(|p| p.0).collect();
        out.push(row(kernel, &namer, i, place, path.as_ref(), &others));
        if let Some((path, _)) = &path {
            events(&mut out, i, place, path);
        }
        ControlFlow::Continue(())
    });
    out.doubts = doubts;
    Ok(out)
}

fn row(
    kernel: &Kernel<'_>,
    namer: &Namer<'_>,
    i: &Inode,
    place: &Place,
    path: Option<&(String, bool)>,
    others: &[String],
) -> Vec<Value> {
    // Without a name in memory the count of links tells.
    let deleted = path.map_or(i.is_regular() && i.links == 0, |p| p.1);
    vec![
        path.map(|p| p.0.as_str()).into(),
        (!others.is_empty()).then(|| others.join("\n")).into(),
        namer.inodes.target(i).into(),
        file_type(i.mode).into(),
        deleted.into(),
        place.kind.as_str().into(),
        device(place.device).into(),
        i.number.into(),
        i.mode.into(),
        i.uid.into(),
        i.gid.into(),
        i.links.into(),
        i.size.into(),
        i.pages.into(),
        i.pages_needed().into(),
        i.accessed.into(),
        i.modified.into(),
        i.changed.into(),
        i.va.into(),
        i.super_block.into(),
        kernel.object("inode", i.va).physical().into(),
    ]
}

/// Puts the times of a file on the timeline, where they are those of a file.
fn events(out: &mut Table, i: &Inode, place: &Place, path: &str) {
    let file = i.is_regular() || i.is_directory() || i.is_symlink();
    if !file || SYNTHETIC.contains(&place.kind.as_str()) {
        return;
    }
    for (time, kind) in [
        (i.modified, "file modified"),
        (i.changed, "file changed"),
        (i.accessed, "file accessed"),
    ] {
        // Files out of an archive may have none.
        if time != 0 {
            let message = format!("{path} (inode {}, {} bytes)", i.number, i.size);
            out.event(time, kind, message);
        }
    }
}

/// The cached content of every regular file that has any.
fn recover(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), LinuxError> {
    let pages = Pages::new(kernel)?;
    let namer = Namer::new(kernel, doubts)?;
    namer.each(doubts, &mut |i, place, doubts| {
        // Pages of hugetlbfs are counted in units of their own.
        if !i.is_regular() || i.pages == 0 || place.kind == "hugetlbfs" {
            return ControlFlow::Continue(());
        }
        match pages.content(i, doubts) {
            Ok(content) => {
                let name = namer.paths(i, doubts).into_iter().next();
                let unnamed = || format!("{} inode {}", device(place.device), i.number);
                visit(Recovered {
                    kind: "cached_file",
                    name: name.map_or_else(unnamed, |n| n.0),
                    object: i.va,
                    content,
                })
            }
            Err(e) => {
                doubts.push(format!("inode at {:#x}: {e}", i.va));
                ControlFlow::Continue(())
            }
        }
    });
    Ok(())
}
