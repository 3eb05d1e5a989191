//! The frame map: who owns each page of physical memory.
//!
//! ```text
//! page tables of processes       -> process and file, virtual address   \
//! sections and views of files    -> file and offset                      \  one owner text, state
//! tables of processes, the kernel -> page table                          /  and address per stretch
//! modules, large pool memory,    -> kernel                              /
//! the rest that the kernel maps
//! page frame database            -> free, in use
//! ```
//!
//! Sources: as in `memory.rs` and `cached.rs`; the public types `_MMPFN`, `_MMPFNENTRY`, and `_MMLISTS` for the lists that a page
//! is in (0 zeroed, 1 free, 2 standby, 3 and 4 modified, 5 bad, 6 active, 7 transition).

use super::cached::{Budget, streams};
use super::devices::Drives;
use super::kernel_modules::Modules;
use super::memory::{Place, places};
use super::objects::ObjectTypes;
use super::views::bigpools;
use super::views::vads::{self, Area};
use super::{Kernel, Space, WindowsError};
use crate::claims::{self, Claim, Window};
use crate::frames::{Frame, PageState};
use ramsift_layers::run::RunMap;
use ramsift_symbols::Field;
use std::ops::Range;

const PAGE: u64 = 4096;
/// Addresses that processes have for themselves, and the kernel's.
const USER: Range<u64> = 0..1 << 47;
const KERNEL: Range<u64> = 0xffff_8000_0000_0000..u64::MAX;
/// Pages of tables that are read at most for a window.
const TABLES: usize = 1 << 20;
/// Large pool memory that is noted at most, and pages of it.
const POOLS: usize = 1 << 18;
const POOL_PAGES: u64 = 8 << 20;
/// Entries of the page frame database that are read together.
const BATCH: u64 = 512;

/// A process whose tables are visited.
struct Owner<'k> {
    name: String,
    space: Space<'k>,
    areas: Vec<Area>,
}

/// The page frame database: an `_MMPFN` for each page.
struct Database<'k> {
    k: &'k Kernel<'k>,
    base: u64,
    size: u64,
    location: Field,
}

impl<'k> Database<'k> {
    fn new(k: &'k Kernel<'k>) -> Result<Self, WindowsError> {
        let types = k.symbols.types();
        Ok(Self {
            k,
            base: k.global("MmPfnDatabase")?,
            size: types.size_of("_MMPFN")?.max(1),
            location: types.field("_MMPFN", "u3.e1.PageLocation")?,
        })
    }

    /// The states of pages from a physical address on.
    fn states(&self, from: u64, count: u64) -> Vec<PageState> {
        let mut out = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut buf = Vec::new();
        for first in (0..count).step_by(512) {
            let n = BATCH.min(count - first);
            let va = self
                .base
                .wrapping_add((from / PAGE + first).wrapping_mul(self.size));
            buf.clear();
            buf.resize(usize::try_from(n).unwrap_or(0) * size, 0);
            if self.k.space.read(va, &mut buf).is_ok() {
                out.extend(buf.chunks(size).map(|e| self.state(e)));
                continue;
            }
            // A hole takes those entries alone that lie in it.
            for i in 0..n {
                let mut one = vec![0; size];
                let at = va.wrapping_add(i * self.size);
                let read = self.k.space.read(at, &mut one);
                out.push(read.map_or(PageState::Unknown, |()| self.state(&one)));
            }
        }
        out
    }

    fn state(&self, entry: &[u8]) -> PageState {
        let from = usize::try_from(self.location.offset).unwrap_or(usize::MAX);
        let list = entry.get(from..).and_then(|b| self.location.value(b));
        match list {
            // Entries of pages that are no RAM are all zeros, as are those of zeroed pages apart from their links.
            Some(0) if entry.iter().all(|b| *b == 0) => PageState::Unknown,
            Some(0 | 1) => PageState::Free,
            Some(2..=4 | 6 | 7) => PageState::Used,
            _ => PageState::Unknown,
        }
    }
}

/// Makes the map of all memory in the image and hands over its stretches in physical order. What can't be read is a doubt.
pub(super) fn frames(
    k: &Kernel<'_>,
    runs: &RunMap,
    doubts: &mut Vec<String>,
    out: &mut dyn FnMut(Frame),
) -> Result<(), WindowsError> {
    let types = ObjectTypes::new(k).ok();
    let mut owners = Vec::new();
    for p in k.processes(doubts)? {
        // System has the kernel's tables.
        let Some(space) = p.space(k).ok().filter(|s| s.dtb() != k.space.dtb()) else {
            continue;
        };
        let areas = types.as_ref().and_then(|t| vads::of(k, t, &p, doubts).ok());
        owners.push(Owner {
            name: p.label(),
            space,
            areas: areas.unwrap_or_default(),
        });
    }
    let modules = Modules::new(k, doubts)?;
    let drives = Drives::new(k, doubts);
    let mut pools: Vec<(Range<u64>, String)> = Vec::new();
    let known = bigpools::each(k, &mut |p| {
        let Some(bytes) = p.bytes.filter(|_| !p.freed && pools.len() < POOLS) else {
            return;
        };
        let tag: String = p.tag.iter().map(|b| char::from(*b)).collect();
        pools.push((p.va..p.va.saturating_add(bytes), format!("pool {tag}")));
    });
    if let Err(e) = known {
        doubts.push(format!("large pool memory is not told apart: {e}"));
    }
    pools.sort_by_key(|p| p.0.start);
    let pages = Database::new(k)
        .inspect_err(|e| doubts.push(format!("the state of pages is not known: {e}")))
        .ok();
    // Each is told once, however many windows there are.
    let mut files_told = false;
    let mut claims = |w: &mut Window, doubts: &mut Vec<String>| {
        kernel(k, &modules, &pools, w);
        of_processes(&owners, w);
        let mut own = Vec::new();
        if let Err(e) = of_files(k, &drives, w, &mut own) {
            own.push(format!("files in memory can't be listed: {e}"));
        }
        if !std::mem::replace(&mut files_told, true) {
            doubts.append(&mut own);
        }
    };
    let states = |from, count| pages.as_ref().map(|p| p.states(from, count));
    claims::make(runs, doubts, &mut claims, &states, out);
    Ok(())
}

/// What the kernel maps for itself: modules, large pool memory, its tables, and the rest.
fn kernel(k: &Kernel<'_>, modules: &Modules, pools: &[(Range<u64>, String)], w: &mut Window) {
    let (table, rest) = (
        w.names.number("the kernel"),
        w.names.number("kernel memory"),
    );
    let (mut budget, mut left) = (TABLES, POOL_PAGES);
    places(&k.space, &KERNEL, &mut budget, &mut |m| {
        match m {
            Place::Table { pa } => w.claim(Claim::Table, pa, PAGE, table, 0),
            Place::Page { va, pa, len } if len > PAGE => {
                // A large page can hold parts of several modules.
                let mut done = 0;
                while done < len {
                    let owner = owner(modules, pools, va + done);
                    let number = owner.map_or(rest, |o| w.names.number(&o));
                    w.claim(Claim::Kernel, pa + done, PAGE, number, va + done);
                    done += PAGE;
                }
            }
            Place::Page { va, pa, len } => {
                let owner = owner(modules, pools, va).filter(|_| left > 0);
                left = left.saturating_sub(u64::from(owner.is_some()));
                let number = owner.map_or(rest, |o| w.names.number(&o));
                w.claim(Claim::Kernel, pa, len, number, va);
            }
        }
        !w.full
    });
}

/// The module or the large pool memory at an address of the kernel's.
fn owner(modules: &Modules, pools: &[(Range<u64>, String)], va: u64) -> Option<String> {
    if let Some(m) = modules.of(va) {
        return Some(format!("module {}", m.name));
    }
    let at = pools.partition_point(|p| p.0.start <= va);
    let (range, tag) = pools.get(at.checked_sub(1)?)?;
    range.contains(&va).then(|| tag.clone())
}

fn of_processes(owners: &[Owner<'_>], w: &mut Window) {
    // Tables of sane processes take less than this share of memory.
    let mut budget = TABLES;
    for p in owners {
        let table = w.names.number(&p.name);
        let mut last = (usize::MAX, table);
        places(&p.space, &USER, &mut budget, &mut |m| {
            match m {
                Place::Table { pa } => w.claim(Claim::Table, pa, PAGE, table, 0),
                Place::Page { va, pa, len } => {
                    let at = p.areas.partition_point(|a| a.end < va);
                    let area = p.areas.get(at).filter(|a| a.start <= va);
                    let index = area.map_or(usize::MAX - 1, |_| at);
                    if last.0 != index {
                        let file = area.and_then(|a| a.file.as_deref()).unwrap_or_default();
                        let text = format!("{} {file}", p.name);
                        last = (index, w.names.number(text.trim_end()));
                    }
                    w.claim(Claim::Process, pa, len, last.1, va);
                }
            }
            !w.full
        });
        if w.full {
            return;
        }
    }
}

/// Pages of files: of data and of programs.
fn of_files(
    k: &Kernel<'_>,
    drives: &Drives,
    w: &mut Window,
    doubts: &mut Vec<String>,
) -> Result<(), WindowsError> {
    let mut budget = Budget::new(k);
    for s in streams(k, doubts)? {
        let owner = w.names.number(&s.place(drives));
        let found = [s.content(k, &mut budget, doubts), s.program(k, &mut budget)];
        for e in found.iter().flatten().flat_map(|c| c.extents()) {
            w.claim(Claim::File, e.pa.0, e.len, owner, e.offset);
        }
        if w.full {
            break;
        }
    }
    Ok(())
}
