//! The memory of processes: their areas with what `/proc/<pid>/maps` says of them, and the pages that the
//! page tables map into them.
//!
//! ```text
//! task.mm -> areas (vmas.rs) -> file -> inode, path
//!         -> pgd -> every mapped page, by address  -> the area that it lies in
//! ```
//!
//! A page that a private mapping changed is a copy of its own and marked dirty in its entry; pages of
//! the page cache that such a mapping only reads never are.
//!
//! Sources: Linux `fs/proc/task_mmu.c`, `arch/x86/include/asm/pgtable_types.h` (`_PAGE_BIT_DIRTY`,
//! `_PAGE_BIT_SAVED_DIRTY`, `_PAGE_BIT_DEVMAP`), `arch/arm64/include/asm/pgtable-prot.h` (`PTE_DIRTY`, `PTE_DBM`).

use crate::linux::space::task_memory;
use crate::linux::{
    AddressSpace, Content, Extent, Fields, Inode, InodePages, Inodes, Kernel, LinuxError, Object,
    Paths, ReadError, VM_MAYSHARE, Vma,
};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{Mapped, Shape, TranslateError, mappings};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Pages of tables that one view reads at most: 2 TiB of memory in pages of 4 KiB.
const TABLES: usize = 1 << 20;
/// Stretches of physical memory in one recovered content at most.
const EXTENTS: usize = 4 << 20;

/// The file behind an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct AreaFile {
    /// Address of its inode.
    pub(in crate::linux) inode: u64,
    /// Number of that.
    pub(in crate::linux) number: u64,
    /// Device of its file system.
    pub(in crate::linux) device: u64,
    /// Whether its name is gone, or never was one.
    pub(in crate::linux) deleted: bool,
    /// Address of the inode whose pages are mapped: another one in layered file systems.
    pages: u64,
}

/// An area of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Area {
    pub(in crate::linux) vma: Vma,
    /// As `/proc/<pid>/maps` shows it.
    pub(in crate::linux) name: Option<String>,
    /// Whether the kernel itself put its pages there: `[vdso]`, `[vvar]`.
    pub(in crate::linux) special: bool,
    /// Nothing for anonymous memory.
    pub(in crate::linux) file: Option<AreaFile>,
}

impl Area {
    pub(in crate::linux) fn has(&self, flag: u64) -> bool {
        self.vma.flags & flag != 0
    }

    /// Its name, or that it has none.
    pub(in crate::linux) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("anonymous memory")
    }

    /// Bytes.
    pub(in crate::linux) fn len(&self) -> u64 {
        self.vma.end - self.vma.start
    }

    /// Whether its pages are nobody else's file: anonymous, or shared anonymous memory, which the
    /// kernel keeps as a file without a name.
    pub(in crate::linux) fn is_anonymous(&self) -> bool {
        let shared = |n: &str| n.starts_with("/dev/zero") || n.starts_with("/SYSV");
        match self.file {
            None => true,
            Some(f) => f.deleted && self.name.as_deref().is_some_and(shared),
        }
    }
}

/// A page that is mapped, or the part of a large one that lies in an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Page {
    pub(in crate::linux) va: u64,
    pub(in crate::linux) pa: PhysAddr,
    pub(in crate::linux) len: u64,
    /// Its entry in the table.
    entry: u64,
}

/// The memory of one process.
pub(in crate::linux) struct ProcessMemory<'k> {
    pub(in crate::linux) task: Object<'k>,
    pub(in crate::linux) mm: Object<'k>,
    pub(in crate::linux) space: AddressSpace<'k>,
    pub(in crate::linux) pid: i64,
    pub(in crate::linux) comm: String,
    pub(in crate::linux) areas: Vec<Area>,
    /// Whether bit 58 of x86-64's entries says that a page was dirty: kernels with shadow stacks (6.6).
    /// On others that bit marks pages of file systems that are memory themselves.
    saves_dirty: bool,
    cache: Option<Rc<FileCache<'k>>>,
}

/// The page cache of mapped files: what a process would read from pages that it didn't touch yet.
struct FileCache<'k> {
    inodes: Inodes<'k>,
    pages: InodePages<'k>,
    known: RefCell<HashMap<u64, Rc<Content>>>,
}

impl<'k> FileCache<'k> {
    /// Nothing where the array of pages is not known.
    fn new(kernel: &'k Kernel<'k>) -> Option<Rc<Self>> {
        Some(Rc::new(Self {
            inodes: Inodes::new(kernel).ok()?,
            pages: InodePages::new(kernel).ok()?,
            known: RefCell::default(),
        }))
    }

    /// The cached pages of an inode. What is doubtful in them is told by the view of the page cache.
    fn content(&self, inode: u64) -> Rc<Content> {
        if let Some(c) = self.known.borrow().get(&inode) {
            return Rc::clone(c);
        }
        let read = self.inodes.read(inode).ok();
        let read = read.filter(Inode::is_regular);
        let content = read.and_then(|i| self.pages.content(&i, &mut Vec::new()).ok());
        let content = Rc::new(content.unwrap_or_default());
        self.known.borrow_mut().insert(inode, Rc::clone(&content));
        content
    }
}

/// Whether nothing was ever mapped at an address: a page that is swapped out has an entry.
fn is_untouched(e: &ReadError) -> bool {
    matches!(
        e,
        ReadError::Translate(TranslateError::NotPresent { entry: 0, .. })
    )
}

/// Addresses of programs below a table of this shape.
pub(in crate::linux) fn user_addresses(shape: &Shape) -> Range<u64> {
    // arm64 has a table of its own for them, x86-64 the lower half of one.
    let half = u32::from(shape.name.starts_with("x86"));
    0..1u64 << (shape.va_bits() - half)
}

/// Whether the processor is x86-64.
pub(in crate::linux) fn is_x86(kernel: &Kernel<'_>) -> bool {
    kernel.space.shape().name.starts_with("x86")
}

impl ProcessMemory<'_> {
    /// Visits the pages in areas, by address, with the number of the area.
    pub(in crate::linux) fn pages(
        &self,
        budget: &mut usize,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(usize, Page),
    ) {
        let shape = *self.space.shape();
        let range = user_addresses(&shape);
        let mut area = 0;
        let mut each = |m| {
            let Mapped::Page { va, pa, len, entry } = m else {
                return;
            };
            let end = va + len;
            while self.areas.get(area).is_some_and(|a| a.vma.end <= va) {
                area += 1;
            }
            let mut i = area;
            // A large page may lie in more than one area.
            while let Some(v) = self.areas.get(i).map(|a| a.vma).filter(|v| v.start < end) {
                let (from, to) = (va.max(v.start), end.min(v.end));
                if from < to {
                    let page = Page {
                        va: from,
                        pa: pa.saturating_add(from - va),
                        len: to - from,
                        entry,
                    };
                    visit(i, page);
                }
                i += 1;
            }
        };
        let (memory, dtb) = (self.space.memory(), self.space.dtb());
        let unread = mappings(memory, &shape, dtb, range, budget, &mut each);
        let name = self.name();
        if unread > 0 {
            doubts.push(format!(
                "{name}: {unread} of its page tables are not in the image"
            ));
        }
        if *budget == 0 {
            doubts.push(format!(
                "{name}: its page tables, or those before, have no end"
            ));
        }
    }

    /// Where the bytes at an address lie: in a page that the process has, else in one of the page cache
    /// that it would get.
    pub(in crate::linux) fn translate(&self, va: u64) -> Option<PhysAddr> {
        match self.space.translate(va) {
            Ok(pa) => Some(pa),
            Err(e) if is_untouched(&e) => self.cached(va),
            Err(_) => None,
        }
    }

    fn cached(&self, va: u64) -> Option<PhysAddr> {
        let i = self.areas.partition_point(|a| a.vma.end <= va);
        let a = self.areas.get(i).filter(|a| a.vma.start <= va)?;
        let content = self.cache.as_ref()?.content(a.file?.pages);
        let offset = a.vma.pgoff.checked_mul(4096)?;
        content.at(offset.checked_add(va - a.vma.start)?)
    }

    /// The inode whose pages an area maps, and what of it is cached; `None` of anonymous memory and of
    /// files without a page cache, such as devices.
    pub(in crate::linux) fn file_pages(&self, a: &Area) -> Option<(u64, Rc<Content>)> {
        let inode = a.file?.pages;
        let content = self.cache.as_ref()?.content(inode);
        (!content.extents().is_empty()).then_some((inode, content))
    }

    /// Pages of an area that only the page cache has, by address.
    pub(in crate::linux) fn untouched(&self, a: &Area) -> Vec<(u64, PhysAddr)> {
        let mut out = Vec::new();
        let (Some(cache), Some(file)) = (self.cache.as_ref(), a.file) else {
            return out;
        };
        let content = cache.content(file.pages);
        let from = a.vma.pgoff.saturating_mul(4096);
        let to = from.saturating_add(a.len());
        let behind = content
            .extents()
            .partition_point(|e| e.offset + e.len <= from);
        for e in content.extents().iter().skip(behind) {
            let end = (e.offset + e.len).min(to);
            let mut at = e.offset.max(from);
            while at < end {
                let va = a.vma.start + (at - from);
                if self.space.translate(va).is_err_and(|e| is_untouched(&e)) {
                    out.push((va, e.pa.saturating_add(at - e.offset)));
                }
                at += 4096;
            }
        }
        out
    }

    /// Reads its memory, all of `buf` or nothing that counts.
    pub(in crate::linux) fn read(&self, va: u64, buf: &mut [u8]) -> Option<()> {
        let mut at = va;
        let mut rest = buf;
        while !rest.is_empty() {
            let n = usize::try_from(4096 - at % 4096).ok()?.min(rest.len());
            let (piece, behind) = rest.split_at_mut(n);
            let pa = self.translate(at)?;
            self.space.memory().read_phys(pa, piece).ok()?;
            at = at.checked_add(n as u64)?;
            rest = behind;
        }
        Some(())
    }

    /// A word of its memory.
    pub(in crate::linux) fn u64(&self, va: u64) -> Option<u64> {
        let mut raw = [0; 8];
        self.read(va, &mut raw)?;
        Some(u64::from_le_bytes(raw))
    }

    /// Whether a private mapping changed a page.
    pub(in crate::linux) fn is_changed(&self, area: &Area, page: &Page) -> bool {
        let bit = |n: u32| page.entry >> n & 1 != 0;
        let dirty = if self.space.shape().name.starts_with("x86") {
            bit(6) || (self.saves_dirty && bit(58))
        } else {
            bit(55) || (bit(51) && !bit(7))
        };
        dirty && !area.has(VM_MAYSHARE)
    }

    /// `sshd[812]`.
    pub(in crate::linux) fn name(&self) -> String {
        format!("{}[{}]", self.comm, self.pid)
    }

    /// Adds what is resident of an address range to a content, from `offset` on. `wanted` says which
    /// areas count. Gives whether all fitted.
    pub(in crate::linux) fn fill(
        content: &mut Content,
        pages: &[(usize, Page)],
        range: Range<u64>,
        offset: u64,
        wanted: &dyn Fn(usize) -> bool,
    ) -> bool {
        let from = pages.partition_point(|(_, p)| p.va + p.len <= range.start);
        for (area, p) in pages.iter().skip(from) {
            if p.va >= range.end {
                break;
            }
            if content.extents().len() >= EXTENTS {
                return false;
            }
            let at = p.va.max(range.start);
            let len = (p.va + p.len).min(range.end).saturating_sub(at);
            if wanted(*area) {
                content.push(Extent {
                    offset: offset.saturating_add(at - range.start),
                    pa: p.pa.saturating_add(at - p.va),
                    len,
                });
            }
        }
        true
    }

    /// All its pages, by address; neighbours in both spaces are one if they are both changed or both not.
    pub(in crate::linux) fn stretches(
        &self,
        budget: &mut usize,
        doubts: &mut Vec<String>,
    ) -> Vec<(usize, Page)> {
        let mut out: Vec<(usize, Page)> = Vec::new();
        let mut full = false;
        self.pages(budget, doubts, &mut |area, page| {
            let of = self.areas.get(area);
            let changed = |page: &Page| of.is_some_and(|a| self.is_changed(a, page));
            let room = out.len() < EXTENTS;
            match out.last_mut() {
                Some((a, l))
                    if *a == area
                        && l.va + l.len == page.va
                        && l.pa.0.checked_add(l.len) == Some(page.pa.0)
                        && changed(l) == changed(&page) =>
                {
                    l.len += page.len;
                }
                _ if room => out.push((area, page)),
                _ => full = true,
            }
        });
        if full {
            doubts.push(format!(
                "{}: its memory lies in more than {EXTENTS} pieces; the rest is left out",
                self.name()
            ));
        }
        out
    }
}

/// Reads the memory of processes, one at a time.
pub(in crate::linux) struct Memories<'k> {
    kernel: &'k Kernel<'k>,
    paths: Paths<'k>,
    names: HashMap<u64, String>,
    files: HashMap<u64, Option<AreaFile>>,
    inode: Fields<2>,
    super_block: Fields<1>,
    saves_dirty: bool,
    cache: Option<Rc<FileCache<'k>>>,
    /// Pages of tables that may still be read.
    pub(in crate::linux) budget: usize,
}

impl<'k> Memories<'k> {
    pub(in crate::linux) fn new(kernel: &'k Kernel<'k>) -> Result<Self, LinuxError> {
        Ok(Self {
            kernel,
            paths: Paths::new(kernel)?,
            names: HashMap::new(),
            files: HashMap::new(),
            inode: kernel.fields("inode", ["i_ino", "i_sb"])?,
            super_block: kernel.fields("super_block", ["s_dev"])?,
            saves_dirty: kernel.symbols.types().has_type("thread_shstk"),
            cache: FileCache::new(kernel),
            budget: TABLES,
        })
    }

    /// The memory of a task's process; `None` of a kernel thread, and with a doubt of what can't be read.
    pub(in crate::linux) fn of(
        &mut self,
        task: Object<'k>,
        doubts: &mut Vec<String>,
    ) -> Option<ProcessMemory<'k>> {
        self.read(task, doubts).unwrap_or_else(|e| {
            doubts.push(format!("task_struct at {:#x}: {e}", task.va));
            None
        })
    }

    fn read(
        &mut self,
        task: Object<'k>,
        doubts: &mut Vec<String>,
    ) -> Result<Option<ProcessMemory<'k>>, LinuxError> {
        let Some((mm, space)) = task_memory(self.kernel, &task)? else {
            return Ok(None);
        };
        let vmas = self.kernel.vmas(&mm, doubts)?;
        let mut areas = Vec::with_capacity(vmas.len());
        for vma in vmas {
            areas.push(Area {
                vma,
                name: self
                    .kernel
                    .maps_name(&mm, &vma, &self.paths, &mut self.names),
                special: self.kernel.special_name(&vma).is_some(),
                file: self.file(vma.file, doubts),
            });
        }
        Ok(Some(ProcessMemory {
            pid: task.int("tgid")?,
            comm: task.text("comm")?,
            task,
            mm,
            space,
            areas,
            saves_dirty: self.saves_dirty,
            cache: self.cache.clone(),
        }))
    }

    fn file(&mut self, va: u64, doubts: &mut Vec<String>) -> Option<AreaFile> {
        if va == 0 {
            return None;
        }
        if let Some(f) = self.files.get(&va) {
            return *f;
        }
        let read = || -> Result<AreaFile, LinuxError> {
            let (_, dentry) = self.kernel.file_path(va)?;
            let own = self.kernel.object("file", va);
            // What a layered file system shows is the file that the process opened.
            let inode = match own.number("f_path.dentry")? == dentry {
                true => own.number("f_inode")?,
                false => self.paths.dentry(dentry)?.inode,
            };
            let [number, sb] = self.inode.read(self.kernel, inode)?;
            let [device] = self.super_block.read(self.kernel, sb)?;
            Ok(AreaFile {
                inode,
                number,
                device,
                deleted: self.paths.is_deleted(dentry)?,
                pages: own.number("f_inode")?,
            })
        };
        let f = match read() {
            Ok(f) => Some(f),
            Err(e) => {
                doubts.push(format!("struct file at {va:#x}: {e}"));
                None
            }
        };
        self.files.insert(va, f);
        f
    }
}
