//! Cached inodes and the pages of their files.
//!
//! ```text
//! super_blocks -> super_block.s_inodes -> inode { i_mapping -> address_space.i_pages }
//!                                                                index -> folio -> pfn
//! pfn = (address of struct page - vmemmap) / sizeof(struct page)
//! ```
//!
//! A page counts if its descriptor says that it belongs to this file at this place, so that a torn
//! capture gives holes and not the bytes of another file.
//!
//! Sources: Linux `include/linux/fs.h`, `include/linux/mm_types.h`, `include/linux/page-flags.h`,
//! `include/asm-generic/memory_model.h`, `mm/shmem.c`, `mm/filemap.c`.

use crate::linux::fields::Fields;
use crate::linux::{Content, Extent, Kernel, LinuxError, ReadError, Slot, Walk};
use ramsift_layers::PhysAddr;
use std::ops::ControlFlow;

/// A cached inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its virtual address.
    pub va: u64,
    /// Its super block.
    pub super_block: u64,
    /// Its number.
    pub number: u64,
    /// Type and permissions.
    pub mode: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Hard links; 0 of a deleted file.
    pub links: u64,
    /// Bytes of the file.
    pub size: i64,
    /// Device that a device file stands for.
    pub rdev: u64,
    /// Last access, microseconds since 1970.
    pub accessed: i64,
    /// Last change of the content.
    pub modified: i64,
    /// Last change of the inode.
    pub changed: i64,
    /// Its address_space.
    pub mapping: u64,
    /// Pages in the cache.
    pub pages: u64,
    /// Address of the target of a symbolic link, or of something else in other files.
    link: u64,
}

impl Inode {
    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }

    /// Pages that the whole file would need.
    pub fn pages_needed(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0).div_ceil(PAGE)
    }
}

const PAGE: u64 = 4096;
/// Bytes of a recovered file at most; what a file claims beyond is cut behind its last page.
const MAX_SIZE: u64 = 1 << 44;
/// Separate stretches of a file in memory at most: 100 MB of them.
const MAX_EXTENTS: usize = 4 << 20;
/// Pages of a large page at most: 1 GiB of them.
const MAX_FOLIO: u64 = 1 << 18;
/// Doubts about single pages of a file that are told one by one.
const TOLD: usize = 4;

/// Reads inodes.
#[derive(Clone, Debug)]
pub struct Inodes<'k> {
    kernel: &'k Kernel<'k>,
    inode: Fields<17>,
    mapping: Fields<1>,
}

impl<'k> Inodes<'k> {
    /// For this kernel.
    pub fn new(kernel: &'k Kernel<'k>) -> Result<Self, LinuxError> {
        let types = kernel.symbols.types();
        let has = |path: &str| types.has_field("inode", path);
        // One by one: 6.6 renamed i_ctime alone, 6.7 the others, 6.11 took them apart.
        let time = |parts: [[&'static str; 2]; 3]| {
            let known = parts.into_iter().find(|p| has(p[0]));
            known.unwrap_or(parts[0])
        };
        let a = time([
            ["i_atime_sec", "i_atime_nsec"],
            ["__i_atime.tv_sec", "__i_atime.tv_nsec"],
            ["i_atime.tv_sec", "i_atime.tv_nsec"],
        ]);
        let m = time([
            ["i_mtime_sec", "i_mtime_nsec"],
            ["__i_mtime.tv_sec", "__i_mtime.tv_nsec"],
            ["i_mtime.tv_sec", "i_mtime.tv_nsec"],
        ]);
        let c = time([
            ["i_ctime_sec", "i_ctime_nsec"],
            ["__i_ctime.tv_sec", "__i_ctime.tv_nsec"],
            ["i_ctime.tv_sec", "i_ctime.tv_nsec"],
        ]);
        let paths = [
            "i_sb",
            "i_ino",
            "i_mode",
            "i_uid.val",
            "i_gid.val",
            "i_nlink",
            "i_size",
            "i_rdev",
            a[0],
            a[1],
            m[0],
            m[1],
            c[0],
            c[1],
            "i_mapping",
            "i_link",
            "?i_dentry.first",
        ];
        Ok(Self {
            kernel,
            inode: kernel.fields("inode", paths)?,
            mapping: kernel.fields("address_space", ["nrpages"])?,
        })
    }

    /// The super blocks, in the order of the kernel's list.
    pub fn super_blocks(&self) -> Result<Walk, LinuxError> {
        let head = self.kernel.address("super_blocks")?;
        self.kernel.list(head, "super_block", "s_list")
    }

    /// The cached inodes of a super block.
    pub fn of(&self, super_block: u64) -> Result<Walk, LinuxError> {
        let sb = self.kernel.object("super_block", super_block);
        self.kernel.list(sb.at("s_inodes")?, "inode", "i_sb_list")
    }

    /// The inode at an address.
    pub fn read(&self, va: u64) -> Result<Inode, ReadError> {
        let [
            super_block,
            number,
            mode,
            uid,
            gid,
            links,
            size,
            rdev,
            a,
            an,
            m,
            mn,
            c,
            cn,
            mapping,
            link,
            _,
        ] = self.inode.read(self.kernel, va)?;
        let [pages] = match mapping {
            0 => [0],
            m => self.mapping.read(self.kernel, m)?,
        };
        Ok(Inode {
            va,
            super_block,
            number,
            mode,
            uid,
            gid,
            links,
            size: size as i64,
            rdev,
            accessed: micros(a, an),
            modified: micros(m, mn),
            changed: micros(c, cn),
            mapping,
            pages,
            link,
        })
    }

    /// The dentries of an inode: its names.
    pub fn dentries(&self, va: u64) -> Result<Walk, LinuxError> {
        let types = self.kernel.symbols.types();
        let path = ["d_u.d_alias", "d_alias"];
        let node = types
            .field("dentry", path[0])
            .or_else(|_| types.field("dentry", path[1]))?;
        let head = self.kernel.object("inode", va).at("i_dentry")?;
        Ok(self.kernel.hlist(head, node.offset)?)
    }

    /// The target of a symbolic link, where the inode has it.
    pub fn target(&self, i: &Inode) -> Option<String> {
        if !i.is_symlink() || i.link == 0 {
            return None;
        }
        self.kernel.text_at(i.link).ok()
    }
}

/// A time as microseconds. The highest bits of the nanoseconds of `i_ctime` are a mark (6.13).
fn micros(seconds: u64, nanoseconds: u64) -> i64 {
    let fraction = (nanoseconds & 0x3fff_ffff) / 1000;
    (seconds as i64)
        .saturating_mul(1_000_000)
        .saturating_add(fraction as i64)
}

/// Adds a stretch; neighbours in both spaces become one.
fn gather(found: &mut Vec<Extent>, e: Extent) {
    match found.last_mut() {
        Some(l)
            if l.offset.checked_add(l.len) == Some(e.offset)
                && l.pa.0.checked_add(l.len) == Some(e.pa.0) =>
        {
            l.len = l.len.saturating_add(e.len);
        }
        _ => found.push(e),
    }
}

/// Finds the memory of pages by their descriptors.
#[derive(Clone, Debug)]
pub struct Pages<'k> {
    kernel: &'k Kernel<'k>,
    vmemmap: u64,
    size: u64,
    /// mapping, index, flags, compound_head.
    page: Fields<4>,
    head_bit: u32,
}

impl<'k> Pages<'k> {
    /// For this kernel.
    pub fn new(kernel: &'k Kernel<'k>) -> Result<Self, LinuxError> {
        let types = kernel.symbols.types();
        let vmemmap = kernel.vmemmap()?;
        let first_of = |paths: [&'static str; 2]| {
            let [a, b] = paths;
            if types.has_field("page", a) { a } else { b }
        };
        let head_bit = types.constant("PG_head").unwrap_or(63);
        Ok(Self {
            kernel,
            vmemmap,
            size: types.size_of("page")?.max(1),
            page: kernel.fields(
                "page",
                [
                    "mapping",
                    first_of(["index", "__folio_index"]),
                    "flags",
                    first_of(["compound_head", "compound_info"]),
                ],
            )?,
            head_bit: u32::try_from(head_bit).unwrap_or(63),
        })
    }

    /// The physical address of the page that a `struct page` stands for.
    pub fn physical(&self, page: u64) -> Option<PhysAddr> {
        let inside = page.checked_sub(self.vmemmap)?;
        if !inside.is_multiple_of(self.size) {
            return None;
        }
        (inside / self.size).checked_mul(PAGE).map(PhysAddr)
    }

    /// What an entry of a page cache says about `count` pages from `index` on: their place in memory,
    /// or why there is none.
    fn place(&self, mapping: u64, index: u64, count: u64, entry: u64) -> Result<Extent, String> {
        let bad = |why: String| format!("struct page at {entry:#x}: {why}");
        let (Some(offset), 1..=MAX_FOLIO) = (index.checked_mul(PAGE), count) else {
            return Err(bad(format!("{count} pages of a file from {index} on")));
        };
        let [owner, at, flags, compound] = self
            .page
            .read(self.kernel, entry)
            .map_err(|e| bad(e.to_string()))?;
        let mut pa = self
            .physical(entry)
            .ok_or_else(|| bad("it is no page descriptor".into()))?;
        let len = count * PAGE;
        // Of the pages behind the first of a large one only the first says whose it is.
        if compound & 1 != 0 {
            return Ok(Extent { offset, pa, len });
        }
        if owner != mapping {
            return Err(bad(format!(
                "it belongs to {owner:#x}, not to {mapping:#x}"
            )));
        }
        let large = flags & 1u64.checked_shl(self.head_bit).unwrap_or(0) != 0;
        match index.checked_sub(at) {
            Some(0) => {}
            // Older kernels enter the first page of a large one in each slot.
            Some(n) if large && n < MAX_FOLIO => pa = PhysAddr(pa.0.saturating_add(n * PAGE)),
            _ => return Err(bad(format!("it is page {at} of the file, not {index}"))),
        }
        Ok(Extent { offset, pa, len })
    }

    /// The cached content of a file, holes where pages are not in memory.
    pub fn content(&self, i: &Inode, doubts: &mut Vec<String>) -> Result<Content, LinuxError> {
        let size = u64::try_from(i.size).unwrap_or(0);
        let mut found: Vec<Extent> = Vec::new();
        let (mut told, mut bad, mut swapped) = (Vec::new(), 0usize, 0u64);
        let tree = self.kernel.object("address_space", i.mapping);
        let root = if tree.has("i_pages") {
            tree.at("i_pages")?
        } else {
            tree.at("page_tree")?
        };
        let mut broken = Vec::new();
        let mut visit = |index: u64, count: u64, slot: Slot| {
            let Slot::Pointer(entry) = slot else {
                swapped = swapped.saturating_add(count);
                return ControlFlow::Continue(());
            };
            match self.place(i.mapping, index, count, entry) {
                Ok(e) => gather(&mut found, e),
                Err(e) => {
                    bad += 1;
                    if told.len() < TOLD {
                        told.push(e);
                    }
                }
            }
            match found.len() {
                ..MAX_EXTENTS => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        };
        self.kernel.xarray(root, &mut broken, &mut visit)?;
        let what = |d: &str| format!("inode {} at {:#x}: {d}", i.number, i.va);
        doubts.extend(broken.iter().map(|d| what(d)));
        doubts.extend(told.iter().map(|d| what(d)));
        if bad > TOLD {
            doubts.push(what(&format!("{} more such pages", bad - TOLD)));
        }
        if found.len() >= MAX_EXTENTS {
            doubts.push(what("it lies in too many pieces, the rest is left out"));
        }
        // In other file systems than tmpfs these remember when a page was dropped.
        if swapped > 0 && self.is_shmem(i) {
            doubts.push(what(&format!("{swapped} pages are swapped out")));
        }
        let end = found.last().map_or(0, |e| e.offset.saturating_add(e.len));
        let size = if size > MAX_SIZE {
            doubts.push(what(&format!("its size of {size} is cut to {end}")));
            end
        } else {
            size
        };
        let mut content = Content::new(size);
        for e in found {
            content.push(e);
        }
        Ok(content)
    }

    fn is_shmem(&self, i: &Inode) -> bool {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        let sb = self.kernel.object("super_block", i.super_block);
        sb.number("s_magic").is_ok_and(|m| m == TMPFS_MAGIC)
    }
}
