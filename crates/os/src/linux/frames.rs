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
//! Sources: Linux `include/linux/page-flags.h` (`PG_slab`, page types), `include/linux/mm_types.h`
//! (`struct page`), `kernel/crash_core.c` (`PAGE_BUDDY_MAPCOUNT_VALUE`, `SIZE(page)`).

use super::areas::{Area, areas};
use super::memory::user_addresses;
use super::pages::PageStates;
use super::space::task_memory;
use super::{Kernel, LinuxError, Paths, Vma, module, pagecache};
use crate::claims::{self, Claim, Window};
use crate::frames::Frame;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::{Mapped, mappings};
use ramsift_layers::{Dtb, VirtAddr};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{ControlFlow, Range};

const PAGE: u64 = 4096;

/// A process whose tables are visited.
struct Process {
    name: String,
    dtb: u64,
    areas: Vec<Vma>,
    labels: Vec<String>,
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
    let mut claims =
        |w: &mut Window, doubts: &mut Vec<String>| window(kernel, &processes, &areas, w, doubts);
    let states = |from, count| pages.as_ref().map(|p| p.states(from, count));
    claims::make(runs, doubts, &mut claims, &states, out);
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
    w: &mut Window,
    doubts: &mut Vec<String>,
) {
    kernel_image(kernel, w);
    claim_areas(kernel, areas, w);
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
    cached_files(kernel, w, doubts);
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
