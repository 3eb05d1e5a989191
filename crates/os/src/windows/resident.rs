//! What processes have in memory, each byte once: for scans that take a process as a whole.
//!
//! ```text
//! unit of a process   its own pages, by address: private memory, and pages of sections that it changed
//! unit of a section   a part of a section's pages in memory that processes map unchanged; its addresses are places in it
//! ```
//!
//! Pages of a section that a process did not touch yet count as its own too: it would get them without a read from the disk. A
//! page of private memory that several processes have is that of the first.
//!
//! Source: as in `cached.rs` and `memory.rs`.

use super::cached::{Budget, Section};
use super::memory::{Place, places};
use super::objects::ObjectTypes;
use super::process::Process;
use super::views::vads::{self, Area};
use super::{Kernel, WindowsError};
use crate::content::Extent;
use crate::resident::{File, Resident, Unit, Use, file_units};
use ramsift_layers::{PhysAddr, page_file};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

const PAGE: u64 = 4096;
/// Addresses that processes have for themselves.
const USER: Range<u64> = 0..1 << 47;
/// Pages of tables of one process that are read at most.
const TABLES: usize = 1 << 20;

/// Which pages were seen: a bit for each of the image, and the addresses of those of page files.
struct Seen(Vec<u64>, HashSet<u64>);

impl Seen {
    fn new(k: &Kernel<'_>) -> Self {
        let words = k.runs().image_len() / PAGE / 64 + 1;
        Self(vec![0; usize::try_from(words).unwrap_or(0)], HashSet::new())
    }

    /// Whether a page is in the image, or in a page file at hand, and was not seen yet; it is from now on.
    fn is_new(&mut self, k: &Kernel<'_>, pa: u64) -> bool {
        let Some(at) = k.runs().from_phys(PhysAddr(pa)) else {
            return page_file::place_of(pa).is_some() && self.1.insert(pa);
        };
        let page = at.0 / PAGE;
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|w| self.0.get_mut(w));
        let Some(word) = word else { return false };
        let bit = 1 << (page % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Sections that processes map, by their control areas.
struct Sections {
    known: HashMap<u64, Option<Rc<Section>>>,
    budget: Budget,
    left_out: usize,
}

impl Sections {
    fn of(&mut self, k: &Kernel<'_>, a: &Area) -> Option<(Rc<Section>, u64)> {
        if a.control == 0 {
            return None;
        }
        let budget = &mut self.budget;
        let (left_out, new) = (&mut self.left_out, || {
            Section::new(k, a.control, budget).map(Rc::new)
        });
        let found = self.known.entry(a.control).or_insert_with(new).clone();
        if found.is_none() {
            *left_out += 1;
        }
        let section = found?;
        let start = section.place(a.prototypes)?;
        Some((section, start))
    }
}

/// Visits all units until the visitor breaks off, and gives the processes that have them.
pub(super) fn resident(
    k: &Kernel<'_>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
) -> Result<Vec<Resident>, WindowsError> {
    let types = ObjectTypes::new(k).ok();
    let mut seen = Seen::new(k);
    let mut sections = Sections {
        known: HashMap::new(),
        budget: Budget::new(k),
        left_out: 0,
    };
    let mut files: BTreeMap<u64, File> = BTreeMap::new();
    let (mut out, mut number) = (Vec::new(), 0u32);
    for p in k.processes(doubts)? {
        if p.object.number("Peb").is_ok_and(|peb| peb == 0) && p.pid == 4 {
            continue;
        }
        let areas = types.as_ref().and_then(|t| vads::of(k, t, &p, doubts).ok());
        let own = own_pages(
            k,
            &p,
            &areas.unwrap_or_default(),
            out.len(),
            (&mut sections, &mut files),
            doubts,
        );
        let mut r = Resident {
            pid: p.pid,
            comm: p.name(),
            object: p.object.va,
            started: p
                .object
                .number("CreateTime")
                .ok()
                .map(|t| t.saturating_mul(100)),
            units: Vec::new(),
        };
        let mut extents: Vec<Extent> = Vec::new();
        for (va, pa) in own.into_iter().filter(|(_, pa)| seen.is_new(k, *pa)) {
            match extents.last_mut() {
                Some(l) if l.offset + l.len == va && l.pa.0 + l.len == pa => l.len += PAGE,
                _ => extents.push(Extent {
                    offset: va,
                    pa: PhysAddr(pa),
                    len: PAGE,
                }),
            }
        }
        if !extents.is_empty() {
            r.units.push((number, 0));
            let unit = Unit {
                number,
                file: None,
                process: Some(p.label()),
                extents,
            };
            number = number.saturating_add(1);
            if visit(unit).is_break() {
                out.push(r);
                return Ok(out);
            }
        }
        out.push(r);
    }
    if sections.left_out > 0 {
        doubts.push(format!(
            "{} areas of mapped files are searched as memory of the processes alone: their sections can't be read",
            sections.left_out
        ));
    }
    for f in files.into_values() {
        if file_units(f, &mut number, &mut out, doubts, visit).is_break() {
            break;
        }
    }
    out.retain(|r| !r.units.is_empty());
    Ok(out)
}

/// The pages that are a process's own, by address; those of sections are noted with their files.
fn own_pages(
    k: &Kernel<'_>,
    p: &Process<'_>,
    areas: &[Area],
    process: usize,
    (sections, files): (&mut Sections, &mut BTreeMap<u64, File>),
    doubts: &mut Vec<String>,
) -> Vec<(u64, u64)> {
    let Ok(space) = p.space(k) else {
        return Vec::new();
    };
    let mapped: Vec<Option<(Rc<Section>, u64)>> = areas.iter().map(|a| sections.of(k, a)).collect();
    let mut changed: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); areas.len()];
    let (mut own, mut budget) = (Vec::new(), TABLES);
    // No more pages than the image has can be somebody's own.
    let most = k.pages();
    let unread = places(&space, &USER, &mut budget, &mut |m| {
        let Place::Page { va, pa, len } = m else {
            return true;
        };
        for (va, pa) in (0..len / PAGE).map(|i| (va + i * PAGE, pa + i * PAGE)) {
            let at = areas.partition_point(|a| a.end < va);
            let area = areas.get(at).filter(|a| a.start <= va);
            if let Some(a) = area
                && let Some(Some((section, start))) = mapped.get(at)
            {
                let place = start + (va - a.start);
                if section.content.at(place).is_some_and(|own| own.0 == pa) {
                    continue;
                }
                if let Some(c) = changed.get_mut(at) {
                    c.insert(va);
                }
            }
            own.push((va, pa));
        }
        own.len() <= most
    });
    if unread > 0 && !p.has_ended() {
        doubts.push(format!(
            "{unread} pages of the page tables of {} could not be read",
            p.label()
        ));
    }
    for ((a, changed), mapped) in areas.iter().zip(&changed).zip(&mapped) {
        let Some((section, start)) = mapped else {
            continue;
        };
        let f = files.entry(a.control).or_insert_with(|| File {
            path: a
                .file
                .clone()
                .unwrap_or_else(|| format!("section of the control area at {:#x}", a.control)),
            content: Rc::new(section.content.clone()),
            bounds: BTreeSet::new(),
            uses: Vec::new(),
        });
        // What lies between changed pages is the section's.
        let mut from = a.start;
        for stop in changed.iter().copied().chain([a.end + 1]) {
            if from < stop {
                let range = start + (from - a.start)..start + (stop - a.start);
                f.bounds.extend([range.start, range.end]);
                f.uses.push(Use {
                    process,
                    shift: a.start.wrapping_sub(*start),
                    range,
                });
            }
            from = stop + PAGE;
        }
    }
    own
}
