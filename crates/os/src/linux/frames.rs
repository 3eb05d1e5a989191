//! The frame map: who owns each page of physical memory.
//!
//! ```text
//! page tables of processes   -> process, area and virtual address      \
//! page cache                 -> file and offset                         \  one owner text, state
//! pages of the tables        -> page table of a process                 /  and address per stretch
//! kernel image               -> kernel, by its symbols' sections       /
//! areas of vmalloc           -> kernel: modules, stacks, who asked     /
//! struct page                -> free (buddy), slab, in use
//! ```
//!
//! The map is made window by window, so that its memory is bounded whatever the machine had: a
//! window with more owners than fit is halved and made again.
//!
//! Sources: Linux `include/linux/page-flags.h` (`PG_slab`, page types), `include/linux/mm_types.h`
//! (`struct page`), `kernel/crash_core.c` (`PAGE_BUDDY_MAPCOUNT_VALUE`, `SIZE(page)`).

use super::areas::{Area, areas};
use super::memory::user_addresses;
use super::pages::{PageState, PageStates};
use super::space::task_memory;
use super::{Kernel, LinuxError, Paths, Vma, module, pagecache};
use crate::frames::Frame;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::{Mapped, mappings};
use ramsift_layers::{Dtb, PhysAddr, VirtAddr};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

const PAGE: u64 = 4096;
/// Bytes of physical memory that are looked at together at most.
const WINDOW: u64 = 16 << 30;
/// Owners of pages in one window at most: 24 bytes each.
const ENTRIES: usize = 4 << 20;
/// Processes that an owner's text names.
const NAMED: usize = 4;

/// What claims a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    File,
    Process,
    Table,
    Kernel,
}

/// One claim on one page.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Number of the page in the window.
    page: u32,
    claim: Claim,
    /// Number of the owner's text.
    owner: u32,
    /// Virtual address or offset in the file.
    at: u64,
}

/// Texts of owners, each once.
#[derive(Default)]
struct Names {
    all: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(n) = self.numbers.get(name) {
            return *n;
        }
        let n = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.all.push(name.clone());
        self.numbers.insert(name, n);
        n
    }

    fn get(&self, n: u32) -> &str {
        self.all.get(n as usize).map_or("", |s| s)
    }
}

/// A process whose tables are visited.
struct Process {
    name: String,
    dtb: u64,
    areas: Vec<Vma>,
    labels: Vec<String>,
}

/// More claims than a window may have.
struct TooMany;

struct Window {
    range: Range<u64>,
    entries: Vec<Entry>,
    names: Names,
    full: bool,
}

impl Window {
    fn new(range: Range<u64>) -> Self {
        Self {
            range,
            entries: Vec::new(),
            names: Names::default(),
            full: false,
        }
    }

    /// Claims the pages of a physical stretch that lie in the window.
    fn claim(&mut self, claim: Claim, pa: u64, len: u64, owner: u32, at: u64) {
        let from = pa.max(self.range.start);
        let to = pa.saturating_add(len).min(self.range.end);
        let mut page = from & !(PAGE - 1);
        while page < to && !self.full {
            if self.entries.len() == ENTRIES {
                self.full = true;
                return;
            }
            self.entries.push(Entry {
                page: u32::try_from((page - self.range.start) / PAGE).unwrap_or(u32::MAX),
                claim,
                owner,
                at: at.wrapping_add(page.wrapping_sub(pa)),
            });
            page += PAGE;
        }
    }
}

/// Makes the map of all memory in the image and hands over its stretches in physical order. What can't be
/// read is a doubt.
pub fn frames(
    kernel: &Kernel<'_>,
    runs: &RunMap,
    doubts: &mut Vec<String>,
    out: &mut dyn FnMut(Frame),
) -> Result<(), LinuxError> {
    let processes = processes(kernel, doubts)?;
    let areas = kernel_areas(kernel, doubts)?;
    let pages = PageStates::new(kernel)
        .inspect_err(|e| doubts.push(format!("the state of pages is not known: {e}")))
        .ok();
    let mut todo: Vec<Range<u64>> = Vec::new();
    for r in runs.runs() {
        let (mut at, end) = (r.pa, r.pa + r.len);
        while at < end {
            let to = (at + WINDOW).min(end);
            todo.push(at..to);
            at = to;
        }
    }
    todo.reverse();
    let mut last: Option<Frame> = None;
    while let Some(range) = todo.pop() {
        match window(kernel, &processes, &areas, range.clone(), doubts) {
            Ok(w) => emit(w, pages.as_ref(), &mut last, out),
            Err(TooMany) => {
                let mid = (range.start + (range.end - range.start) / 2).next_multiple_of(PAGE);
                if mid >= range.end {
                    doubts.push(format!(
                        "the page at {:#x} has more owners than fit; it is left out",
                        range.start
                    ));
                    continue;
                }
                todo.push(mid..range.end);
                todo.push(range.start..mid);
            }
        }
    }
    if let Some(f) = last {
        out(f);
    }
    Ok(())
}

fn processes(kernel: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Vec<Process>, LinuxError> {
    let mut out: Vec<Process> = Vec::new();
    let mut files: HashMap<u64, String> = HashMap::new();
    let paths = Paths::new(kernel)?;
    for task in kernel.processes(doubts)? {
        let made = (|| -> Result<Option<Process>, LinuxError> {
            let Some((mm, space)) = task_memory(kernel, &task)? else {
                return Ok(None);
            };
            let areas = kernel.vmas(&mm, doubts)?;
            let labels = areas
                .iter()
                .map(|v| kernel.area_name(&mm, v, &paths, &mut files))
                .collect();
            Ok(Some(Process {
                name: format!("{}[{}]", task.text("comm")?, task.int("tgid")?),
                dtb: space.dtb().0,
                areas,
                labels,
            }))
        })();
        match made {
            // Processes made by vfork share all their memory; the first stands for all.
            Ok(Some(p)) if out.iter().any(|o| o.dtb == p.dtb) => {}
            Ok(Some(p)) => out.push(p),
            Ok(None) => {}
            Err(e) => doubts.push(format!("task_struct at {:#x}: {e}", task.va)),
        }
    }
    Ok(out)
}

/// All claims on the pages of a window.
fn window(
    kernel: &Kernel<'_>,
    processes: &[Process],
    areas: &[KernelArea],
    range: Range<u64>,
    doubts: &mut Vec<String>,
) -> Result<Window, TooMany> {
    let mut w = Window::new(range);
    kernel_image(kernel, &mut w);
    claim_areas(kernel, areas, &mut w);
    let shape = *kernel.space.shape();
    let user = user_addresses(&shape);
    // Tables of sane processes take less than this share of memory.
    let mut budget = 1 << 20;
    for p in processes {
        let table = w.names.number(&p.name);
        let mut area = 0;
        let mut owner = (usize::MAX, 0);
        let mut visit = |m| match m {
            Mapped::Table { pa, .. } => w.claim(Claim::Table, pa.0, PAGE, table, 0),
            Mapped::Page { va, pa, len, .. } => {
                while p.areas.get(area).is_some_and(|a| a.end <= va) {
                    area += 1;
                }
                let inside = p.areas.get(area).is_some_and(|a| a.start < va + len);
                let index = if inside { area } else { usize::MAX - 1 };
                if owner.0 != index {
                    let label = p.labels.get(index).map_or("", String::as_str);
                    let text = format!("{} {label}", p.name);
                    owner = (index, w.names.number(text.trim_end()));
                }
                w.claim(Claim::Process, pa.0, len, owner.1, va);
            }
        };
        mappings(
            kernel.space.memory(),
            &shape,
            Dtb(p.dtb),
            user.clone(),
            &mut budget,
            &mut visit,
        );
    }
    cached_files(kernel, &mut w, doubts);
    if w.full { Err(TooMany) } else { Ok(w) }
}

/// Memory of the kernel's that lies page by page.
struct KernelArea {
    range: Range<u64>,
    owner: String,
}

/// Pages of such areas that are looked up at most: a forged one may claim any length.
const AREA_PAGES: u64 = 8 << 20;

/// Modules, then stacks of processes in the kernel and what else the kernel has given out, by who asked.
fn kernel_areas(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<KernelArea>, LinuxError> {
    let mut stacks: BTreeMap<u64, String> = BTreeMap::new();
    let mut out = Vec::new();
    for m in kernel.modules(doubts).unwrap_or_default() {
        let Ok(name) = m.text("name") else { continue };
        for p in module::parts(&m).unwrap_or_default() {
            out.push(KernelArea {
                range: p.base..p.base.saturating_add(p.size),
                owner: format!("module {name}"),
            });
        }
    }
    for task in kernel.processes(doubts)? {
        let Ok(stack) = task.number("stack") else {
            continue;
        };
        let who = format!("{}[{}]", task.text("comm")?, task.int("tgid")?);
        stacks.insert(stack, format!("kernel stack of {who}"));
    }
    let Some(all) = areas(kernel, &(0..u64::MAX), doubts).ok().flatten() else {
        return Ok(out);
    };
    let owner = |a: &Area| {
        if let Some(name) = stacks.range(a.start..a.end).next() {
            return name.1.clone();
        }
        let asked = kernel.symbols.nearest(VirtAddr(a.caller));
        asked.map_or_else(
            || "vmalloc".to_owned(),
            |(s, _)| format!("vmalloc by {}", s.name),
        )
    };
    out.extend(all.iter().map(|a| KernelArea {
        range: a.start..a.end,
        owner: owner(a),
    }));
    Ok(out)
}

fn claim_areas(kernel: &Kernel<'_>, areas: &[KernelArea], w: &mut Window) {
    let mut left = AREA_PAGES;
    // What modules share an area, their parts tell best (since 6.13).
    let mut of_modules = HashSet::new();
    for a in areas {
        let owner = w.names.number(&a.owner);
        let module = a.owner.starts_with("module ");
        let mut va = a.range.start & !(PAGE - 1);
        while va < a.range.end && left > 0 {
            left -= 1;
            let first = if module {
                of_modules.insert(va);
                true
            } else {
                !of_modules.contains(&va)
            };
            if let Ok(pa) = kernel.space.translate(va)
                && first
            {
                w.claim(Claim::Kernel, pa.0, PAGE, owner, va);
            }
            va += PAGE;
        }
    }
}

/// The kernel's own image, by what its linker's symbols tell.
fn kernel_image(kernel: &Kernel<'_>, w: &mut Window) {
    const PARTS: [(&str, &str, &str); 5] = [
        ("_text", "_etext", "kernel text"),
        ("__start_rodata", "__end_rodata", "kernel rodata"),
        ("_sdata", "_edata", "kernel data"),
        ("__init_begin", "__init_end", "kernel init"),
        ("__bss_start", "__bss_stop", "kernel bss"),
    ];
    for (from, to, name) in PARTS {
        let (Some(a), Some(b)) = (kernel.symbols.address(from), kernel.symbols.address(to)) else {
            continue;
        };
        // The image lies in one piece.
        let (Ok(pa), Some(len)) = (kernel.space.translate(a.0), b.0.checked_sub(a.0)) else {
            continue;
        };
        let owner = w.names.number(name);
        // Init memory is freed once the kernel runs, and used by others.
        if name != "kernel init" && len < 1 << 30 {
            w.claim(Claim::Kernel, pa.0, len, owner, a.0);
        }
    }
}

/// PageStates of files, where the view of the page cache can give them.
fn cached_files(kernel: &Kernel<'_>, w: &mut Window, doubts: &mut Vec<String>) {
    let Some(recover) = pagecache::PAGECACHE_FILES.recover else {
        return;
    };
    let visited = recover(kernel, doubts, &mut |r| {
        let owner = w.names.number(&r.name);
        for e in r.content.extents() {
            w.claim(Claim::File, e.pa.0, e.len, owner, e.offset);
        }
        if w.full {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if let Err(e) = visited {
        doubts.push(format!("the page cache can't be read: {e}"));
    }
}

/// Turns claims into stretches; `last` may still grow.
fn emit(
    mut w: Window,
    pages: Option<&PageStates<'_>>,
    last: &mut Option<Frame>,
    out: &mut dyn FnMut(Frame),
) {
    w.entries.sort_by_key(|e| (e.page, e.claim, e.owner, e.at));
    let total = (w.range.end - w.range.start).div_ceil(PAGE);
    let states = pages.map(|p| p.states(w.range.start, total));
    let mut texts: HashMap<Vec<u32>, Arc<str>> = HashMap::new();
    let mut at = 0;
    for page in 0..total {
        let from = at;
        while w.entries.get(at).is_some_and(|e| u64::from(e.page) == page) {
            at += 1;
        }
        let claims = &w.entries[from..at];
        let start = w.range.start + page * PAGE;
        let len = PAGE.min(w.range.end - start);
        let state = states.as_ref().and_then(|s| s.get(page as usize).copied());
        let f = frame(start, len, claims, state, &w.names, &mut texts);
        match last {
            Some(l) if continues(l, &f) => l.len += f.len,
            _ => {
                if let Some(l) = last.replace(f) {
                    out(l);
                }
            }
        }
    }
}

fn continues(l: &Frame, f: &Frame) -> bool {
    let follows = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.wrapping_add(l.len) == b,
        _ => false,
    };
    l.start.0 + l.len == f.start.0
        && l.state == f.state
        && l.owner == f.owner
        && follows(l.va, f.va)
        && follows(l.file_offset, f.file_offset)
}

fn frame(
    start: u64,
    len: u64,
    claims: &[Entry],
    state: Option<PageState>,
    names: &Names,
    texts: &mut HashMap<Vec<u32>, Arc<str>>,
) -> Frame {
    let first = |c: Claim| claims.iter().find(|e| e.claim == c);
    let (file, process) = (first(Claim::File), first(Claim::Process));
    let (table, image) = (first(Claim::Table), first(Claim::Kernel));
    let name = match (file, process, table, image, state) {
        // What the allocator calls free is free, whatever a stale table says.
        (None, None, ..) if state == Some(PageState::Free) => "free",
        (Some(_), ..) => "file",
        (None, Some(_), ..) => "process",
        (None, None, Some(_), ..) => "page table",
        (None, None, None, Some(_), _) => "kernel",
        (.., Some(PageState::Slab)) => "slab",
        (.., Some(PageState::Used)) => "in use",
        _ => "unknown",
    };
    let owner = (!claims.is_empty() && name != "free").then(|| {
        let mut key: Vec<u32> = vec![name.len() as u32];
        key.extend(claims.iter().map(|e| e.owner));
        texts
            .entry(key)
            .or_insert_with(|| owner_text(claims, names).into())
            .clone()
    });
    Frame {
        start: PhysAddr(start),
        len,
        state: name,
        owner,
        va: process.or(image).map(|e| e.at).filter(|_| name != "free"),
        file_offset: file.map(|e| e.at),
    }
}

fn owner_text(claims: &[Entry], names: &Names) -> String {
    let of = |c: Claim| {
        let mut all: Vec<u32> = claims
            .iter()
            .filter(|e| e.claim == c)
            .map(|e| e.owner)
            .collect();
        all.dedup();
        all
    };
    let listed = |all: &[u32]| {
        let mut text = all
            .iter()
            .take(NAMED)
            .map(|n| names.get(*n))
            .collect::<Vec<_>>()
            .join(", ");
        if all.len() > NAMED {
            text.push_str(&format!(" and {} more", all.len() - NAMED));
        }
        text
    };
    let (files, processes) = (of(Claim::File), of(Claim::Process));
    match (files.is_empty(), processes.is_empty()) {
        (false, true) => listed(&files),
        (false, false) => {
            // The area's name is the file's own: the process says it all.
            let short: Vec<String> = processes
                .iter()
                .take(NAMED)
                .map(|n| {
                    let name = names.get(*n);
                    let end = name.find("] ").map_or(name.len(), |i| i + 1);
                    name[..end].to_owned()
                })
                .collect();
            let more = processes.len().saturating_sub(NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("{}, mapped by {}{more}", listed(&files), short.join(", "))
        }
        (true, false) => listed(&processes),
        (true, true) => {
            let (tables, image) = (of(Claim::Table), of(Claim::Kernel));
            if tables.is_empty() {
                listed(&image)
            } else {
                format!("page table of {}", listed(&tables))
            }
        }
    }
}
