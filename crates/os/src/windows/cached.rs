//! Content of files that is in memory: sections and cached views of file objects.
//!
//! ```text
//! _FILE_OBJECT.SectionObjectPointer
//!   DataSectionObject   _CONTROL_AREA, _SUBSECTIONs behind it: prototype entries, a page of the file each
//!   ImageSectionObject  the same of a program: a subsection for each section of the file, as it is mapped
//!   SharedCacheMap      views of 256 KiB in the kernel's space, by an array of _VACBs
//! ```
//!
//! Subsections of data count the file in pages, those of images in sectors of 512 bytes. Up to 1 MiB the views stand in the
//! map itself, up to 32 MiB in one array, above in arrays of 128 below each other. All of it is of hostile memory: a struct
//! counts only if what it leads to leads back, and pages of entries are read within a budget.
//!
//! Sources: the public types `_SECTION_OBJECT_POINTERS`, `_CONTROL_AREA`, `_SEGMENT`, `_SUBSECTION`, `_SHARED_CACHE_MAP`,
//! `_VACB`; the arrangement of views as published in "Windows Internals", chapter on the cache manager.

use super::devices::Drives;
use super::object::{number_in, unicode_in};
use super::objects::{ObjectTypes, name, path};
use super::scan::scanned;
use super::{Kernel, Object, WindowsError};
use crate::content::{Content, Extent};
use ramsift_layers::PhysAddr;
use ramsift_layers::page_file::place_of;
use std::collections::{BTreeMap, HashMap, HashSet};

const PAGE: u64 = 4096;
/// Bytes of a view of the cache.
const VIEW: u64 = 256 << 10;
/// Pages of a view.
const VIEW_PAGES: u64 = VIEW / PAGE;
/// Entries of an array of views, where there are several below each other.
const BRANCH: u64 = 128;
/// Bytes of a file at most: what claims more is none.
const LONGEST: u64 = 1 << 40;
/// Subsections of a control area at most.
const MOST_PARTS: usize = 4096;
/// Views of a file at most.
const MOST_VIEWS: usize = 1 << 18;
/// Stretches of one content at most.
const MOST_EXTENTS: usize = 1 << 22;
/// What a shared cache map says it is (`CACHE_NTC_SHARED_CACHE_MAP`).
const CACHE_MAP: u64 = 0x2ff;
/// Entries that are looked at together: those of one page.
const STEP: u64 = 512;

/// A file object that was found, and what leads to its content.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    /// Device and path; `None` of one without both.
    pub(super) path: Option<String>,
    /// Address of the `_SECTION_OBJECT_POINTERS`, the same for all who have the file open; 0 where it has none.
    pub(super) stream: u64,
    pub(super) delete_pending: bool,
    pub(super) freed: bool,
    /// Physical address of the object.
    pub(super) physical: u64,
}

/// A file's content in memory: what its section pointers lead to.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) file: OpenFile,
    /// Control area of the file as data; 0 where it has none.
    pub(super) data: u64,
    /// Control area of the file as a program.
    pub(super) image: u64,
    /// Shared cache map.
    pub(super) cache: u64,
}

/// Pages of tables that may still be read: no more than the machine has pages, as each can hold one.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn new(k: &Kernel<'_>) -> Self {
        Self(k.runs().runs().iter().map(|r| r.len / PAGE).sum::<u64>() + 4096)
    }

    /// That for pages of images: sixteen times the machine's, since processes share them and tables can lead in circles.
    pub(super) fn of_images(k: &Kernel<'_>) -> Self {
        Self(Self::new(k).0.saturating_mul(16))
    }

    /// Whether nothing is left.
    pub(super) fn is_spent(&self) -> bool {
        self.0 == 0
    }

    pub(super) fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

/// Device and path of a file object by its bytes; `devices` keeps the names of devices that were asked for.
pub(super) fn path_of(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    bytes: &[u8],
    devices: &mut HashMap<u64, Option<String>>,
) -> Result<Option<String>, WindowsError> {
    let ty = "_FILE_OBJECT";
    let own = unicode_in(k, ty, "FileName", bytes)?;
    let device = number_in(k, ty, "DeviceObject", bytes)?.filter(|d| *d != 0);
    let device = device.and_then(|d| {
        let known = devices.entry(d).or_insert_with(|| {
            path(k, types, d).or_else(|| {
                let own = name(k, &types.header(k, d)).ok()??;
                Some(format!("\\Device\\{own}"))
            })
        });
        known.clone()
    });
    Ok(match (device, own) {
        (None, None) => None,
        (d, o) => Some(format!(
            "{}{}",
            d.unwrap_or_default(),
            o.unwrap_or_default()
        )),
    })
}

/// The file objects of the scan, by their paths as the object manager has them.
pub(super) fn open_files(
    k: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<OpenFile>, WindowsError> {
    let types = ObjectTypes::new(k)?;
    let found = scanned(k)?;
    doubts.extend(found.doubts.iter().cloned());
    let mut devices = HashMap::new();
    let mut out = Vec::with_capacity(found.files.len());
    for f in &found.files {
        let ty = "_FILE_OBJECT";
        out.push(OpenFile {
            path: path_of(k, &types, &f.bytes, &mut devices)?,
            stream: number_in(k, ty, "SectionObjectPointer", &f.bytes)?.unwrap_or(0),
            delete_pending: number_in(k, ty, "DeletePending", &f.bytes)? == Some(1),
            freed: f.freed,
            physical: f.physical,
        });
    }
    Ok(out)
}

/// Files that have content in memory, each once, in the order in which their objects lie in memory.
pub(super) fn streams(
    k: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Stream>, WindowsError> {
    let mut out: Vec<Stream> = Vec::new();
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for file in open_files(k, doubts)? {
        if let Some(at) = seen.get(&file.stream) {
            // An object that is in use and has a name tells more than one that has not.
            let known = &mut out[*at].file;
            let rank = |f: &OpenFile| (f.path.is_some(), !f.freed);
            if rank(&file) > rank(known) {
                *known = file;
            }
            continue;
        }
        let Some(s) = stream(k, &file) else { continue };
        seen.insert(file.stream, out.len());
        out.push(s);
    }
    Ok(out)
}

/// What a file object's section pointers lead to, as far as it makes sense; `None` where nothing does.
pub(super) fn stream(k: &Kernel<'_>, file: &OpenFile) -> Option<Stream> {
    if file.stream >> 47 != 0x1_ffff {
        return None;
    }
    let s = k.object("_SECTION_OBJECT_POINTERS", file.stream);
    let area = |field: &str| {
        let va = s.number(field).ok().filter(|va| *va != 0)?;
        control_area(k, va).map(|_| va)
    };
    let cache = || {
        let va = s.number("SharedCacheMap").ok().filter(|va| *va != 0)?;
        let is_map = k.object("_SHARED_CACHE_MAP", va).number("NodeTypeCode");
        (is_map.ok()? == CACHE_MAP).then_some(va)
    };
    let found = Stream {
        data: area("DataSectionObject").unwrap_or(0),
        image: area("ImageSectionObject").unwrap_or(0),
        cache: cache().unwrap_or(0),
        file: file.clone(),
    };
    (found.data != 0 || found.image != 0 || found.cache != 0).then_some(found)
}

/// The control area at an address, if its segment leads back to it.
pub(super) fn control_area<'k>(k: &'k Kernel<'_>, va: u64) -> Option<Object<'k>> {
    let area = k.object("_CONTROL_AREA", va);
    let segment = area.follow("Segment", "_SEGMENT").ok()??;
    (segment.number("ControlArea").ok()? == va).then_some(area)
}

/// Prototype entries of a stretch of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Address of the first entry; 0 where there are none yet.
    pub(super) entries: u64,
    pub(super) count: u64,
    /// First byte in the file, and how many.
    start: u64,
    len: u64,
}

/// The subsections of a control area, in the order in which they are mapped.
pub(super) fn parts(k: &Kernel<'_>, area: u64, is_image: bool) -> Vec<Part> {
    let Ok(size) = k.symbols.types().size_of("_CONTROL_AREA") else {
        return Vec::new();
    };
    let unit = if is_image { 512 } else { PAGE };
    let (mut at, mut seen, mut out) = (area.wrapping_add(size), HashSet::new(), Vec::new());
    while at != 0 && out.len() < MOST_PARTS && seen.insert(at) {
        let s = k.object("_SUBSECTION", at);
        let part = || {
            let number = |path: &str| s.number(path).ok();
            (number("ControlArea")? == area).then_some(())?;
            let more = number("u.SubsectionFlags.StartingSector4132").unwrap_or(0);
            let rest = number("u.SubsectionFlags.SectorEndOffset").unwrap_or(0);
            let start = (number("StartingSector")? | more << 32).checked_mul(unit)?;
            let len = number("NumberOfFullSectors")?.checked_mul(unit)?;
            Some(Part {
                entries: number("SubsectionBase")?,
                count: number("PtesInSubsection")?,
                start,
                len: len.checked_add(rest.min(unit))?,
            })
        };
        let Some(part) = part() else { break };
        if part.start < LONGEST && part.len < LONGEST {
            out.push(part);
        }
        at = s.number("NextSubsection").unwrap_or(0);
    }
    out
}

/// The pages of a section that are in memory, as they are mapped: prototype entry by prototype entry. The second part tells
/// where in it an entry stands.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) content: Content,
    /// First entry, how many, and their place in the section, in bytes.
    runs: Vec<(u64, u64, u64)>,
}

impl Section {
    /// The section of a control area.
    pub(super) fn new(k: &Kernel<'_>, area: u64, budget: &mut Budget) -> Option<Self> {
        let area = control_area(k, area)?;
        let is_image = area.number("u.Flags.Image").is_ok_and(|i| i != 0);
        let (mut runs, mut size) = (Vec::new(), 0u64);
        for p in parts(k, area.va, is_image) {
            let len = p.count.checked_mul(PAGE)?;
            runs.push((p.entries, p.count, size));
            size = size.checked_add(len).filter(|s| *s <= LONGEST)?;
        }
        let mut content = Content::new(size);
        for (entries, count, start) in &runs {
            for first in (0..*count).step_by(512).take_while(|_| *entries != 0) {
                let found = pages(k, entries.wrapping_add(first * 8), count - first, budget);
                for (i, pa) in found.into_iter().enumerate() {
                    let Some(pa) = pa else { continue };
                    content.push(Extent {
                        offset: start + (first + i as u64) * PAGE,
                        pa: PhysAddr(pa),
                        len: PAGE,
                    });
                }
                if budget.is_spent() || content.extents().len() > MOST_EXTENTS {
                    return None;
                }
            }
        }
        Some(Self { content, runs })
    }

    /// The place of an entry in the section, in bytes.
    pub(super) fn place(&self, entry: u64) -> Option<u64> {
        self.runs.iter().find_map(|(first, count, start)| {
            let inside = entry.checked_sub(*first)?;
            (inside < count.saturating_mul(8)).then_some(start + inside / 8 * PAGE)
        })
    }
}

/// The pages that `count` prototype entries from `va` on lead to; what can't be read leads nowhere.
fn pages(k: &Kernel<'_>, va: u64, count: u64, budget: &mut Budget) -> Vec<Option<u64>> {
    let count = usize::try_from(count.min(STEP)).unwrap_or(0);
    let mut raw = vec![0; count * 8];
    let mut done = 0;
    while done < raw.len() {
        let at = va.wrapping_add(done as u64);
        let left = usize::try_from(PAGE - at % PAGE).unwrap_or(4096);
        let n = left.min(raw.len() - done);
        if budget.take().is_none() || k.space.read(at, &mut raw[done..done + n]).is_err() {
            raw[done..done + n].fill(0);
        }
        done += n;
    }
    let entries = raw.as_chunks::<8>().0.iter();
    entries
        .map(|e| k.prototype(u64::from_le_bytes(*e)))
        .collect()
}

impl Kernel<'_> {
    /// The physical page of a prototype entry: it is in use, or on its way out and still there, or in a page file at hand.
    pub(super) fn prototype(&self, entry: u64) -> Option<u64> {
        let pa = self.space.resident(entry)?;
        let there = self.runs().from_phys(PhysAddr(pa)).is_some() || place_of(pa).is_some();
        there.then_some(pa)
    }
}

/// Where the cache has parts of a file mapped: number of a view in the file, and its address.
type Views = BTreeMap<u64, u64>;

/// The views of a shared cache map.
fn views(k: &Kernel<'_>, map: u64, budget: &mut Budget) -> Views {
    let mut out = Views::new();
    let m = k.object("_SHARED_CACHE_MAP", map);
    let (Ok(size), Ok(array)) = (m.number("SectionSize"), m.number("Vacbs")) else {
        return out;
    };
    let count = size.div_ceil(VIEW);
    if array == 0 || size > LONGEST {
        return out;
    }
    // Views that an entry of the uppermost array covers.
    let mut covers = 1;
    while count > BRANCH * covers {
        covers *= BRANCH;
    }
    let entries = if covers > 1 { BRANCH } else { count };
    level(k, map, (array, entries), (0, covers), budget, &mut out);
    out
}

/// One array of views, or of arrays: its address and length; the number of its first view and how many an entry covers.
fn level(
    k: &Kernel<'_>,
    map: u64,
    (array, entries): (u64, u64),
    (first, covers): (u64, u64),
    budget: &mut Budget,
    out: &mut Views,
) {
    let mut raw = vec![0; usize::try_from(entries.min(BRANCH)).unwrap_or(0) * 8];
    if budget.take().is_none() || k.space.read(array, &mut raw).is_err() {
        return;
    }
    for (i, entry) in raw.as_chunks::<8>().0.iter().enumerate() {
        let (entry, at) = (u64::from_le_bytes(*entry), first + i as u64 * covers);
        if entry == 0 || out.len() >= MOST_VIEWS {
            continue;
        }
        if covers > 1 {
            level(k, map, (entry, BRANCH), (at, covers / BRANCH), budget, out);
            continue;
        }
        let v = k.object("_VACB", entry);
        let base = v.number("BaseAddress").unwrap_or(0);
        let own = v.number("SharedCacheMap").is_ok_and(|m| m == map);
        if own && base.is_multiple_of(VIEW) && base >> 47 == 0x1_ffff {
            out.insert(at, base);
        }
    }
}

impl Stream {
    /// Bytes of the file as data: as the cache has it, else as its section has it.
    pub(super) fn size(&self, k: &Kernel<'_>) -> Option<u64> {
        let cached = (self.cache != 0).then(|| {
            let m = k.object("_SHARED_CACHE_MAP", self.cache);
            m.number("FileSize").ok()
        });
        let cached = cached.flatten().filter(|n| *n <= LONGEST);
        cached.or_else(|| {
            let all = (self.data != 0).then(|| parts(k, self.data, false));
            let ends = all?.into_iter().map(|p| p.start.saturating_add(p.len));
            ends.max().filter(|n| *n <= LONGEST)
        })
    }

    /// The file as data, with holes; `None` where it has neither a section nor a cache map. What is left out is a doubt.
    pub(super) fn content(
        &self,
        k: &Kernel<'_>,
        budget: &mut Budget,
        doubts: &mut Vec<String>,
    ) -> Option<Content> {
        if self.data == 0 && self.cache == 0 {
            return None;
        }
        let size = self.size(k)?;
        let own = if self.data == 0 {
            Vec::new()
        } else {
            parts(k, self.data, false)
        };
        let cached = if self.cache == 0 {
            Views::new()
        } else {
            views(k, self.cache, budget)
        };
        let mut out = Content::new(size);
        for first in (0..size.div_ceil(PAGE)).step_by(512) {
            let mut all = vec![None; 512];
            for p in &own {
                // Its pages in the file, those of this step.
                let (start, end) = (p.start / PAGE, (p.start / PAGE).saturating_add(p.count));
                let (from, to) = (start.max(first), end.min(first + STEP));
                if p.entries == 0 || from >= to {
                    continue;
                }
                let va = p.entries.wrapping_add((from - start) * 8);
                let found = pages(k, va, to - from, budget);
                let places = all
                    .iter_mut()
                    .skip(usize::try_from(from - first).unwrap_or(0));
                for (place, pa) in places.zip(found) {
                    *place = place.or(pa);
                }
            }
            for (view, base) in
                cached.range(first / VIEW_PAGES..(first + STEP).div_ceil(VIEW_PAGES))
            {
                for i in 0..VIEW_PAGES {
                    let inside = (view * VIEW_PAGES + i).checked_sub(first);
                    let place = inside.and_then(|n| all.get_mut(usize::try_from(n).ok()?));
                    if let Some(place) = place.filter(|p| p.is_none()) {
                        *place = k.physical(base + i * PAGE).map(|p| p.0);
                    }
                }
            }
            for (i, pa) in all.into_iter().enumerate() {
                let Some(pa) = pa else { continue };
                out.push(Extent {
                    offset: (first + i as u64) * PAGE,
                    pa: PhysAddr(pa),
                    len: PAGE,
                });
            }
            if out.extents().len() > MOST_EXTENTS || budget.is_spent() {
                doubts.push(format!(
                    "{} is left out from byte {:#x} on: its tables lead to more than memory can hold",
                    self.label(),
                    first * PAGE
                ));
                break;
            }
        }
        Some(out)
    }

    /// The file as a program, in the order of the file: pages as they are mapped, which may have been relocated.
    pub(super) fn program(&self, k: &Kernel<'_>, budget: &mut Budget) -> Option<Content> {
        if self.image == 0 {
            return None;
        }
        let mut all = parts(k, self.image, true);
        // What is in no file, as zeros at the end of a section, has no place there.
        all.sort_by_key(|p| p.start);
        let ends = all.iter().map(|p| p.start.saturating_add(p.len));
        let size = ends.max().filter(|n| *n <= 1 << 32)?;
        let mut out = Content::new(size);
        for p in all.iter().filter(|p| p.entries != 0) {
            let needed = p.len.div_ceil(PAGE).min(p.count);
            for first in (0..needed).step_by(512) {
                let va = p.entries.wrapping_add(first * 8);
                let found = pages(k, va, needed - first, budget);
                for (i, pa) in found.into_iter().enumerate() {
                    let inside = (first + i as u64) * PAGE;
                    if let Some(pa) = pa.filter(|_| inside < p.len) {
                        out.push(Extent {
                            offset: p.start + inside,
                            pa: PhysAddr(pa),
                            len: PAGE.min(p.len - inside),
                        });
                    }
                }
            }
        }
        Some(out)
    }

    /// What it is called where somebody is told of it.
    pub(super) fn label(&self) -> String {
        let unnamed = || format!("the file of the object at {:#x}", self.file.physical);
        self.file.path.clone().unwrap_or_else(unnamed)
    }

    /// Its path with slashes, below the letter of its drive where that is known.
    pub(super) fn place(&self, drives: &Drives) -> String {
        match &self.file.path {
            Some(p) => drives.place(p),
            None => format!("unnamed/{:x}", self.file.physical),
        }
    }
}
