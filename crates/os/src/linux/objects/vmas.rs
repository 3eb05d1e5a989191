//! Memory areas of a process (VMAs).
//!
//! ```text
//! until 6.0   mm_struct.mmap -> vm_area_struct -> vm_next -> ...
//! from 6.1    mm_struct.mm_mt.ma_root -> maple tree, its leaves are vm_area_structs
//!
//! maple node (256 bytes)   a pointer's low byte: bit 1 "a node", bits 6..3 the type
//!   leaf_64, range_64      parent, pivot[15], slot[16]
//!   arange_64              parent, pivot[9], slot[10], gap[10]
//! ```
//!
//! Slot `i` covers what lies above pivot `i - 1` up to pivot `i`; the last ends where the node's
//! parent says. A pivot of 0 behind the first means that the node is used no further.
//!
//! Sources: Linux `include/linux/mm_types.h`, `include/linux/maple_tree.h`, `lib/maple_tree.c`,
//! `include/linux/mm.h` (`VM_*`), `fs/proc/task_mmu.c` (names), `mm/mmap.c` (`special_mapping_name`),
//! `include/linux/mm_inline.h` (`anon_vma_name`), `fs/file_table.c` (`backing_file`).

use crate::linux::{Fields, Kernel, LinuxError, Object, Paths};
use ramsift_layers::VirtAddr;
use std::collections::{HashMap, HashSet};

/// `VM_READ`.
pub const VM_READ: u64 = 1;
/// `VM_WRITE`.
pub const VM_WRITE: u64 = 2;
/// `VM_EXEC`.
pub const VM_EXEC: u64 = 4;
/// `VM_MAYSHARE`: a shared mapping. `VM_SHARED` is not set where its file can't be written.
pub const VM_MAYSHARE: u64 = 0x80;

/// Areas of one process at most; the kernel's own limit is 65,530 unless it was raised.
const MAX: usize = 1 << 20;

/// One area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Past the last.
    pub end: u64,
    /// `VM_*` flags.
    pub flags: u64,
    /// Offset in the file, in pages.
    pub pgoff: u64,
    /// Address of its `struct file`; 0 of anonymous memory.
    pub file: u64,
    /// Address of its `vm_area_struct`.
    pub va: u64,
    /// Address of its `vm_operations_struct`; 0 of ordinary anonymous memory.
    ops: u64,
    /// `vm_private_data`: of the kernel's own pages their `vm_special_mapping`.
    private: u64,
    /// Address of its `anon_vma_name`; 0 where nothing was given.
    label: u64,
}

impl Vma {
    /// As `/proc/<pid>/maps` shows it: `rw-p`.
    pub fn permissions(&self) -> String {
        let letter = |bit, yes, no| if self.flags & bit != 0 { yes } else { no };
        [
            letter(VM_READ, 'r', '-'),
            letter(VM_WRITE, 'w', '-'),
            letter(VM_EXEC, 'x', '-'),
            letter(VM_MAYSHARE, 's', 'p'),
        ]
        .iter()
        .collect()
    }
}

impl Kernel<'_> {
    /// The areas of an `mm_struct`, by address. What can't be read is a doubt; the others go on.
    pub fn vmas(&self, mm: &Object<'_>, doubts: &mut Vec<String>) -> Result<Vec<Vma>, LinuxError> {
        let all = if mm.has("mm_mt") {
            maple(self, mm.number("mm_mt.ma_root")?, doubts)?
        } else {
            chain(self, mm, doubts)?
        };
        let reader = Reader::new(self)?;
        let mut out = Vec::with_capacity(all.len());
        for va in all {
            match reader.read(self, va) {
                Ok(v) if v.start < v.end => out.push(v),
                Ok(v) => doubts.push(format!(
                    "vm_area_struct at {va:#x}: it ends at {:#x}, before its start {:#x}",
                    v.end, v.start
                )),
                Err(e) => doubts.push(format!("vm_area_struct at {va:#x}: {e}")),
            }
        }
        out.sort_by_key(|v| (v.start, v.va));
        out.dedup();
        Ok(out)
    }

    /// What an area is, as `/proc/<pid>/maps` names it; `[anonymous]` where that says nothing. `files`
    /// keeps the paths of files already seen.
    pub fn area_name(
        &self,
        mm: &Object<'_>,
        v: &Vma,
        paths: &Paths<'_>,
        files: &mut HashMap<u64, String>,
    ) -> String {
        let name = self.maps_name(mm, v, paths, files);
        name.unwrap_or_else(|| "[anonymous]".to_owned())
    }

    /// What `/proc/<pid>/maps` shows as an area's name: a path, `[heap]`, `[stack]`, `[vdso]`, `[anon:…]`.
    pub(crate) fn maps_name(
        &self,
        mm: &Object<'_>,
        v: &Vma,
        paths: &Paths<'_>,
        files: &mut HashMap<u64, String>,
    ) -> Option<String> {
        if v.file != 0 {
            if v.label != 0 {
                return Some(format!("[anon_shmem:{}]", self.label(v.label)?));
            }
            let path = || {
                let (mnt, dentry) = self.file_path(v.file).ok()?;
                paths.path(mnt, dentry).ok()
            };
            let path = || path().unwrap_or_else(|| format!("file at {:#x}", v.file));
            return Some(files.entry(v.file).or_insert_with(path).clone());
        }
        if let Some(name) = self.special_name(v) {
            return Some(name);
        }
        let number = |field: &str| mm.number(field).unwrap_or(0);
        let stack = number("start_stack");
        // Until 6.5 the kernel also calls the heap what only touches it.
        if v.start < number("brk") && v.end > number("start_brk") {
            return Some("[heap]".to_owned());
        }
        if v.start <= stack && stack <= v.end {
            return Some("[stack]".to_owned());
        }
        let label = (v.label != 0).then(|| self.label(v.label)).flatten()?;
        Some(format!("[anon:{label}]"))
    }

    /// The name of pages that the kernel itself puts into each process: `[vdso]`, `[vvar]`.
    pub(crate) fn special_name(&self, v: &Vma) -> Option<String> {
        if v.ops == 0 || v.file != 0 {
            return None;
        }
        let ops = self.object("vm_operations_struct", v.ops);
        let f = ops.number("name").ok().filter(|f| *f != 0)?;
        let (maker, _) = self.symbols.nearest(VirtAddr(f))?;
        if maker.name != "special_mapping_name" {
            return None;
        }
        let mapping = self.object("vm_special_mapping", v.private);
        self.text(mapping.number("name").ok()?, 256).ok()
    }

    /// Mount and dentry of a file as a process sees it. Files of layered file systems have two; from
    /// 6.8 on the one that the process opened stands behind the struct file.
    pub(crate) fn file_path(&self, file: u64) -> Result<(u64, u64), LinuxError> {
        // The bit that tells such files has moved, and others have had both: what stands there must be a
        // path.
        const FMODE_BACKING: u64 = 3 << 24;
        let own = self.object("file", file);
        let backing = self.object("backing_file", file);
        if backing.has("user_path") && own.number("f_mode")? & FMODE_BACKING != 0 {
            let (mnt, dentry) = (
                backing.number("user_path.mnt")?,
                backing.number("user_path.dentry")?,
            );
            let of = self.object("vfsmount", mnt).number("mnt_sb").ok();
            let at = self.object("dentry", dentry).number("d_sb").ok();
            if of.is_some_and(|sb| sb != 0) && of == at {
                return Ok((mnt, dentry));
            }
        }
        Ok((own.number("f_path.mnt")?, own.number("f_path.dentry")?))
    }

    /// A name that a program gave its memory (`PR_SET_VMA_ANON_NAME`).
    fn label(&self, va: u64) -> Option<String> {
        // At most 80 bytes.
        let name = self.object("anon_vma_name", va).at("name").ok()?;
        self.text(name, 80).ok()
    }
}

/// Where areas keep what.
struct Reader {
    fields: Fields<8>,
    /// Whether the name lies where areas of files have something else (5.17 to 6.1).
    shared: bool,
}

impl Reader {
    fn new(kernel: &Kernel<'_>) -> Result<Self, LinuxError> {
        let fields = kernel.fields(
            "vm_area_struct",
            [
                "vm_start",
                "vm_end",
                "vm_flags",
                "vm_pgoff",
                "vm_file",
                "vm_ops",
                "vm_private_data",
                "?anon_name",
            ],
        )?;
        let at = |f: &str| kernel.symbols.types().field("vm_area_struct", f).ok();
        let shared = match (at("anon_name"), at("shared")) {
            (Some(name), Some(s)) => (s.offset..s.offset + s.size).contains(&name.offset),
            _ => false,
        };
        Ok(Self { fields, shared })
    }

    fn read(&self, kernel: &Kernel<'_>, va: u64) -> Result<Vma, LinuxError> {
        let [start, end, flags, pgoff, file, ops, private, label] = self.fields.read(kernel, va)?;
        Ok(Vma {
            start,
            end,
            flags,
            pgoff,
            file,
            va,
            ops,
            private,
            label: if self.shared && file != 0 { 0 } else { label },
        })
    }
}

/// The list of kernels without the tree.
fn chain(
    kernel: &Kernel<'_>,
    mm: &Object<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    let mut at = mm.number("mmap")?;
    let (mut seen, mut out) = (HashSet::new(), Vec::new());
    while at != 0 {
        if !seen.insert(at) || out.len() == MAX {
            doubts.push(format!("the list of areas runs into itself at {at:#x}"));
            break;
        }
        out.push(at);
        match kernel.object("vm_area_struct", at).number("vm_next") {
            Ok(next) => at = next,
            Err(e) => {
                doubts.push(format!("the list of areas breaks off after {at:#x}: {e}"));
                break;
            }
        }
    }
    Ok(out)
}

/// What a node's type says of its layout.
struct Node {
    size: usize,
    pivots: (usize, usize),
    slots: (usize, usize),
    leaf: bool,
}

const LEAF: u64 = 1;
const RANGE: u64 = 2;
const ARANGE: u64 = 3;

fn node(kernel: &Kernel<'_>, kind: u64) -> Result<Option<Node>, LinuxError> {
    let ty = match kind {
        LEAF | RANGE => "maple_range_64",
        ARANGE => "maple_arange_64",
        _ => return Ok(None),
    };
    let types = kernel.symbols.types();
    let array = |name| -> Result<(usize, usize), LinuxError> {
        let f = types.field(ty, name)?;
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok((number(f.offset), number(f.size) / 8))
    };
    let (pivots, slots) = (array("pivot")?, array("slot")?);
    Ok(Some(Node {
        size: (slots.0 + slots.1 * 8).max(pivots.0 + pivots.1 * 8),
        pivots,
        slots,
        leaf: kind == LEAF,
    }))
}

/// Entries of a tree whose ranges are in order, by address.
fn maple(kernel: &Kernel<'_>, root: u64, doubts: &mut Vec<String>) -> Result<Vec<u64>, LinuxError> {
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    // Nodes to visit, the lowest last, with the greatest index of each.
    let mut todo = vec![(root, u64::MAX)];
    if root & 2 == 0 {
        // A tree of one entry is that entry.
        return Ok(if root == 0 { out } else { vec![root] });
    }
    while let Some((encoded, max)) = todo.pop() {
        let (at, kind) = (encoded & !0xff, encoded >> 3 & 0xf);
        if !seen.insert(at) || seen.len() > MAX {
            doubts.push(format!("the tree of areas runs into itself at {at:#x}"));
            continue;
        }
        let Some(n) = node(kernel, kind)? else {
            doubts.push(format!(
                "the tree of areas has a node of type {kind} at {at:#x}"
            ));
            continue;
        };
        let mut raw = vec![0; n.size];
        if let Err(e) = kernel.space.read(at, &mut raw) {
            doubts.push(format!("the tree of areas breaks off at {at:#x}: {e}"));
            continue;
        }
        let word = |at: usize| -> u64 {
            let b = raw.get(at..at + 8).and_then(|b| b.first_chunk());
            b.map_or(0, |b| u64::from_le_bytes(*b))
        };
        let mut below = Vec::new();
        for i in 0..n.slots.1 {
            let pivot = if i < n.pivots.1 {
                word(n.pivots.0 + i * 8)
            } else {
                max
            };
            let last = pivot >= max || (pivot == 0 && i > 0);
            let end = if last { max } else { pivot };
            let entry = word(n.slots.0 + i * 8);
            // Small values are marks of the tree's own.
            match entry {
                0..4096 => {}
                _ if n.leaf => out.push(entry),
                _ => below.push((entry, end)),
            }
            if last {
                break;
            }
        }
        todo.extend(below.into_iter().rev());
        if out.len() > MAX {
            doubts.push(format!("a process has more than {MAX} areas"));
            break;
        }
    }
    Ok(out)
}
