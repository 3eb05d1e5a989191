//! Linux: an opened kernel, and views of it. One file per view.
//!
//! ```text
//! VMCOREINFO -> kallsyms, BTF -> SymbolTable     \
//! confirmed DTB -> AddressSpace                   > Kernel -> views
//! ```
//!
//! Which fields a struct has decides how it is read, never the kernel's version.

mod discover;
mod frames;
mod image;
mod linear;
mod machine;
mod objects;
mod open;
mod page;
mod resident;
mod space;
mod symbols;
#[cfg(test)]
mod testing;
mod viewers;
mod views;

pub use crate::frames::PageState;
pub use code::{CodeMap, Owner};
pub use fields::Fields;
pub use files::OpenFile;
pub use frames::frames;
pub use inode::{Inode, Inodes, Pages as InodePages};
pub use module::Part;
pub use object::Object;
pub use open::{OpenError, open};
pub use pages::PageStates;
pub use path::{Dentry, Paths};
pub use resident::resident;
pub use space::{AddressSpace, ReadError};
pub use time::Clock;
pub use tree::{FileNode, FileTree};
pub use vmas::{VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, Vma};
pub use walk::Walk;
pub use xarray::{Slot, Visit};

use crate::content::{Content, Extent, Recovered};
use crate::table::{Column, Table};
use crate::view::View;
use objects::{
    areas, cached, code, elf, fields, files, history_files, hooks, inode, link_map, login_records,
    memory, module, object, pages, path, programs, registers, sock, time, tree, vmas, walk, xarray,
};
use ramsift_symbols::{SymbolTable, TypeError, VmCoreInfo};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::LazyLock;
use symbols::{aarch64, fits, module_types, referred, unnamed};
use views::files::{logins, lsof, mountinfo, pagecache};
use views::kernel::{
    boottime, check_afinfo, check_fops, check_idt, check_syscall, ebpf, ftrace, hidden_modules,
    inline_hooks, kallsyms, keyboard_notifiers, kmsg, kprobes, lsmod, module_extract,
    module_parameters, tracepoints, tty_check, uname,
};
use views::memory::{elfs, malfind, maps};
use views::network::{neighbours, netdev, netfilter, routes, sockstat};
use views::process::{
    arguments, bash, command_lines, credentials, exe, history, ld_preload, library_list,
    namespaces, procdump, pslist, psscan, pstree, psxview, ptrace, secrets, suspicious, threads,
};

/// The system.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

/// How a view is built: its own part of [`View`], and the functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinuxView {
    /// See [`View::name`].
    pub(crate) name: &'static str,
    /// See [`View::meaning`].
    pub(crate) meaning: &'static str,
    /// See [`View::columns`].
    pub(crate) columns: &'static [Column],
    /// Builds it.
    pub(crate) build: fn(&Kernel<'_>) -> Result<Table, LinuxError>,
    /// Content that can be recovered from what it shows, where there is such.
    pub(crate) recover: Option<Recover>,
    /// See [`View::on_request`].
    pub(crate) on_request: bool,
}

/// Visits everything that a view can recover, one at a time, until the visitor breaks off. What is
/// skipped goes into the list of doubts.
pub(crate) type Recover = fn(
    &Kernel<'_>,
    &mut Vec<String>,
    &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), LinuxError>;

/// All views, in the order in which a job builds them.
const VIEWS: &[LinuxView] = &[
    pslist::PSLIST,
    psscan::PSSCAN,
    psxview::PSXVIEW,
    pstree::PSTREE,
    threads::THREADS,
    threads::KTHREADS,
    exe::EXE,
    credentials::CAPABILITIES,
    credentials::CREDS,
    namespaces::NAMESPACES,
    ptrace::PTRACE,
    ld_preload::LD_PRELOAD,
    arguments::PSAUX,
    arguments::ENVARS,
    lsmod::LSMOD,
    module_parameters::MODULE_PARAMETERS,
    boottime::BOOTTIME,
    uname::UNAME,
    uname::CMDLINE,
    kmsg::KMSG,
    kallsyms::KALLSYMS,
    ebpf::EBPF,
    module_extract::MODULE_EXTRACT,
    hidden_modules::HIDDEN_MODULES,
    check_syscall::CHECK_SYSCALL,
    check_idt::CHECK_IDT,
    check_afinfo::CHECK_AFINFO,
    check_fops::CHECK_FOPS,
    netfilter::NETFILTER,
    ftrace::FTRACE,
    kprobes::KPROBES,
    tracepoints::TRACEPOINTS,
    keyboard_notifiers::KEYBOARD_NOTIFIERS,
    tty_check::TTY_CHECK,
    inline_hooks::INLINE_HOOKS,
    lsof::LSOF,
    mountinfo::MOUNTINFO,
    pagecache::PAGECACHE_FILES,
    sockstat::SOCKSTAT,
    netdev::IP_ADDR,
    routes::IP_ROUTE,
    neighbours::NEIGHBOURS,
    bash::BASH,
    history::HISTORY,
    logins::LOGINS,
    maps::MAPS,
    malfind::MALFIND,
    library_list::LIBRARY_LIST,
    elfs::ELFS,
    procdump::PROCDUMP,
];

/// What responders ask first.
const FIRST: [&str; 4] = [
    "linux/pslist",
    "linux/pstree",
    "linux/psaux",
    "linux/sockstat",
];

/// Views whose content belongs to processes.
const BY_PROCESS: [&str; 2] = ["linux/procdump", "linux/elfs"];

/// The views as others know them.
static SHARED: LazyLock<Vec<View>> = LazyLock::new(|| {
    let shared = |v: &LinuxView| View {
        name: v.name,
        meaning: v.meaning,
        columns: v.columns,
        recovers: v.recover.is_some(),
        on_request: v.on_request,
        by_process: BY_PROCESS.contains(&v.name),
        first: FIRST.contains(&v.name),
        scans: false,
    };
    VIEWS.iter().map(shared).collect()
});

/// Processes at most: the largest number that one can have (`PID_MAX_LIMIT`).
const MAX_TASKS: usize = 1 << 22;

/// A kernel that can be read.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// The kernel's own address space.
    pub space: AddressSpace<'a>,
    /// Names, addresses and types.
    pub symbols: SymbolTable,
    /// What the kernel keeps for crash dumps.
    pub info: VmCoreInfo,
    /// What a scan of all memory for tasks gave: two views need it.
    scanned: OnceCell<psscan::Scanned>,
    /// Names that its symbol table lacks and that were found otherwise.
    found: BTreeSet<String>,
    /// Where tables end whose names are not in the kernel's symbol table, by their beginning.
    ends: BTreeMap<u64, u64>,
    /// Types of modules that could not be read; the view of modules tells them.
    untyped: Vec<String>,
}

/// Why a view can't be built.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// The kernel has no such symbol.
    #[error("the kernel has no symbol {0}")]
    Symbol(&'static str),
    /// A type lacks what the view reads.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// Memory that the view starts from.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Kernel<'_> {
    /// The object of a type at an address.
    pub fn object(&self, ty: &'static str, va: u64) -> Object<'_> {
        Object::new(self, ty, va)
    }

    /// The task list as it is.
    pub(crate) fn task_list(&self) -> Result<Walk, LinuxError> {
        let init = self.object("task_struct", self.address("init_task")?);
        self.list(init.at("tasks")?, "task_struct", "tasks")
    }

    /// The processes of the task list, in its order. What breaks the list off is a doubt; what lies behind the break
    /// is taken from the tasks' families and from the table of process ids.
    pub fn processes(&self, doubts: &mut Vec<String>) -> Result<Vec<Object<'_>>, LinuxError> {
        let mut walk = self.task_list()?;
        if walk.broken.is_some() {
            let init = self.object("task_struct", self.address("init_task")?);
            self.relatives(init.va, &mut walk.items);
            let seen: HashSet<u64> = walk.items.iter().copied().collect();
            let table = psxview::pid_table(self, &init, doubts).ok().flatten();
            let mut more: Vec<u64> = table.into_iter().flatten().collect();
            more.sort_unstable();
            let leads = |va: &u64| {
                let leader = self.object("task_struct", *va).number("group_leader");
                leader.is_ok_and(|l| l == *va)
            };
            walk.items.extend(
                more.into_iter()
                    .filter(|va| !seen.contains(va) && leads(va)),
            );
        }
        doubts.extend(walk.broken);
        let object = |va: &u64| self.object("task_struct", *va);
        Ok(walk.items.iter().map(object).collect())
    }

    /// Adds processes that a broken list no longer reaches and that parents, children and siblings still know.
    fn relatives(&self, init: u64, known: &mut Vec<u64>) {
        let types = self.symbols.types();
        let offset = |member| types.field("task_struct", member).ok().map(|f| f.offset);
        let (Some(tasks), Some(sibling), Some(children), Some(parent)) = (
            offset("tasks"),
            offset("sibling"),
            offset("children"),
            offset("real_parent"),
        ) else {
            return;
        };
        // The pointer, and what to take off for the task that it leads to.
        let ways = [
            (tasks, tasks),
            (tasks + 8, tasks),
            (sibling, sibling),
            (sibling + 8, sibling),
            (children, sibling),
            (children + 8, sibling),
            (parent, 0),
        ];
        let mut seen: HashSet<u64> = known.iter().copied().chain([init]).collect();
        let mut open: Vec<u64> = known.iter().copied().chain([init]).collect();
        while let Some(task) = open.pop() {
            for (pointer, back) in ways {
                let Ok(to) = self.space.u64(task.wrapping_add(pointer)) else {
                    continue;
                };
                let other = to.wrapping_sub(back);
                // What is no task has no neighbours that know it as one.
                if !seen.contains(&other)
                    && other.is_multiple_of(8)
                    && self.is_node(other.wrapping_add(tasks))
                    && known.len() < MAX_TASKS
                {
                    seen.insert(other);
                    known.push(other);
                    open.push(other);
                }
            }
        }
    }

    /// A string of the kernel's own, up to its NUL or 4 KiB.
    pub fn string(&self, va: u64) -> Result<String, LinuxError> {
        let (mut out, mut at) = (Vec::new(), va);
        while out.len() < 4096 {
            let mut piece = [0; 64];
            let n = usize::try_from(64 - at % 64).unwrap_or(64);
            self.space.read(at, &mut piece[..n])?;
            if let Some(end) = piece[..n].iter().position(|b| *b == 0) {
                out.extend_from_slice(&piece[..end]);
                break;
            }
            out.extend_from_slice(&piece[..n]);
            at = at.wrapping_add(n as u64);
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Where the array of all `struct page` begins: that of page number 0.
    ///
    /// x86-64 keeps it in `vmemmap_base`. arm64's lies at `VMEMMAP_START` for the page where memory
    /// begins (`arch/arm64/include/asm/pgtable.h`).
    pub(crate) fn vmemmap(&self) -> Result<u64, LinuxError> {
        let start = self.info.number("VMEMMAP_START");
        let first = self.info.number("PHYS_OFFSET");
        if let (Some(start), Some(first)) = (start, first) {
            let size = self.symbols.types().size_of("page")?;
            // PHYS_OFFSET may be below 0, as a signed number.
            let number = (first as i64) >> 12;
            return Ok(start.wrapping_sub((number as u64).wrapping_mul(size)));
        }
        Ok(self.space.u64(self.address("vmemmap_base")?)?)
    }

    /// The address of a symbol.
    pub fn address(&self, name: &'static str) -> Result<u64, LinuxError> {
        let va = self.symbols.address(name);
        va.map(|a| a.0).ok_or(LinuxError::Symbol(name))
    }
}
