//! Raw images of which the hole below 4 GiB was left out.
//!
//! ```text
//! machine  0 ........ hole start          4 GiB ........ end
//! file     0 ........ hole start .......................... end - (4 GiB - hole start)
//! ```
//!
//! A hypervisor's own file of its memory (the `.vmem` of VMware, a file behind QEMU's RAM) has what lies above the hole
//! directly behind what lies below. Nothing in the file says so. The kernel's page tables do, and only they are believed:
//!
//! * tables that lie above 4 GiB are tables with the one size of the hole, and something else with any other;
//! * Linux maps all of its memory in one stretch of addresses: it maps the last page that there is then and none behind it, and
//!   nothing in the hole.
//!
//! The tables are reached from low memory: from the page table that Linux starts its processors with, whose last entry leads to
//! tables that lie some pages behind the kernel's own top table, and from CR3 in the page that Windows starts them from or
//! a low top table that maps itself. Where they prove nothing, the image stays as it is.
//!
//! Where hypervisors let the hole begin: QEMU `hw/i386/pc_q35.c`, `pc_piix.c`; VirtualBox `RamHoleSize`; Firecracker
//! `arch/x86_64/layout.rs`; Xen `hvm_info_table.h`; VMware and Hyper-V by the memory maps that guests of theirs print.
//! Linux: `arch/x86/realmode/init.c`, `arch/x86/kernel/head_64.S`, `arch/x86/mm/init.c`. Tables: Intel SDM volume 3, 4.5.

use crate::run::{Run, RunMap};
use crate::source::{ByteSource, SourceError};
use crate::{FileOffset, ImageOffset, PhysAddr};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Where every hole ends.
const END: u64 = 4 * GIB;
/// Where holes begin.
const STARTS: [u64; 8] = [
    0xc000_0000,
    0x8000_0000,
    0xe000_0000,
    0xd000_0000,
    0xf800_0000,
    0xf000_0000,
    0xb000_0000,
    0xa000_0000,
];
/// Parts of low memory in which what processors start from lies, in the order in which they are looked at.
const LOW: [Range<u64>; 4] = [
    0x8_0000..0xa_0000,
    0..0x2_0000,
    0x1a_0000..0x1b_0000,
    0x7_0000..0x8_0000,
];
/// Pages before the tables of the kernel's image among which its top table is.
const BEFORE: u64 = 6;
/// Top tables that are looked at.
const MOST_TOPS: usize = 4;
/// Tables that are looked at below one top table.
const MOST_TABLES: usize = 32;
/// Tables above 4 GiB that prove a hole.
const PROOF: usize = 4;
/// Pages that are read in all, those of low memory aside.
const MOST_PAGES: usize = 64;
/// Memory at the ends of what the machine has that firmware may keep for itself, so that the kernel does not map it.
const FIRMWARE: u64 = 64 << 20;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Addresses that processors with page tables of this kind have at most, by far: 64 TiB.
const MAX_ADDRESS: u64 = 1 << 46;

/// The table of entries in a page.
type Table = Arc<[u64; 512]>;

/// The runs of an image without its hole, where the page tables prove one.
pub(super) async fn left_out(source: &dyn ByteSource) -> Result<Option<RunMap>, SourceError> {
    let len = source.len();
    if !STARTS.iter().any(|s| *s < len) || !len.is_multiple_of(PAGE) {
        return Ok(None);
    }
    let mut pages = Pages {
        source,
        read: BTreeMap::new(),
        left: MOST_PAGES,
    };
    let flat = Memory {
        hole: END,
        runs: RunMap::raw(len),
    };
    let holes: Vec<Memory> = STARTS.iter().filter_map(|s| Memory::of(len, *s)).collect();
    for part in LOW {
        for top in tops(source, part).await? {
            // What holds together as it is has no hole to look for.
            if flat.is_proved(&mut pages, top).await? {
                return Ok(None);
            }
            let mut proved = Vec::new();
            for m in &holes {
                if m.is_proved(&mut pages, top).await? {
                    proved.push(m);
                }
            }
            match proved.as_slice() {
                [] => {}
                [one] => return Ok(Some(one.runs.clone())),
                _ => return Ok(None),
            }
        }
    }
    Ok(None)
}

/// What leads to a kernel's top table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Top {
    /// It lies there.
    At(u64),
    /// It lies some pages before this table of the kernel's image, to which its last entry leads.
    Before(u64),
}

/// What leads to a top table in a part of low memory.
async fn tops(source: &dyn ByteSource, part: Range<u64>) -> Result<Vec<Top>, SourceError> {
    let n = usize::try_from(part.end - part.start).unwrap_or(0);
    let read = source.read_vec(FileOffset(part.start), n).await;
    let low = super::content::readable(read)?;
    let mut out = Vec::new();
    for (i, raw) in low.chunks_exact(4096).enumerate() {
        let page = part.start + i as u64 * PAGE;
        let t = table(raw);
        let last = t[511];
        if is_windows_stub(&t) {
            out.push(Top::At(t[0xa0 / 8] & ADDRESS));
        } else if maps_itself(&t, page) {
            out.push(Top::At(page));
        } else if last & PRESENT != 0
            && last & LARGE == 0
            && (1..MAX_ADDRESS).contains(&(last & ADDRESS))
            && last & 0x7ff0_0000_0000_0000 == 0
        {
            out.push(Top::Before(last & ADDRESS));
        }
    }
    out.truncate(MOST_TOPS);
    Ok(out)
}

/// The page that Windows starts processors from: a jump and a length at 0, an address in the kernel at 0x70, CR3 at 0xA0.
fn is_windows_stub(t: &[u64; 512]) -> bool {
    let (target, dtb) = (t[0x70 / 8], t[0xa0 / 8]);
    t[0] & 0xffff_ffff_ffff_00ff == 0x0000_0001_0006_00e9
        && target >> 47 == 0x1_ffff
        && (PAGE..MAX_ADDRESS).contains(&dtb)
}

/// Whether one entry of the upper half leads to the page itself.
fn maps_itself(t: &[u64; 512], page: u64) -> bool {
    let own = |e: &&u64| *e & (PRESENT | LARGE) == PRESENT && *e & ADDRESS == page;
    page > 0 && t[256..].iter().filter(own).count() == 1
}

fn table(raw: &[u8]) -> [u64; 512] {
    let mut out = [0; 512];
    for (o, b) in out.iter_mut().zip(raw.as_chunks::<8>().0) {
        *o = u64::from_le_bytes(*b);
    }
    out
}

/// Pages of the file, each read once, so many at most.
struct Pages<'a> {
    source: &'a dyn ByteSource,
    read: BTreeMap<u64, Table>,
    left: usize,
}

impl Pages<'_> {
    /// Reads what is not there of these pages, several at a time. What is more than may be read is left out.
    async fn fetch(&mut self, at: impl Iterator<Item = u64>) -> Result<(), SourceError> {
        let wanted: BTreeSet<u64> = at.filter(|a| !self.read.contains_key(a)).collect();
        let wanted: Vec<u64> = wanted.into_iter().take(self.left).collect();
        self.left -= wanted.len();
        let source = self.source;
        let reads = wanted.into_iter().map(|at| async move {
            let page = super::content::readable(source.read_vec(FileOffset(at), 4096).await)?;
            Ok::<_, SourceError>((at, Arc::new(table(&page))))
        });
        let read: Vec<_> = stream::iter(reads).buffered(8).try_collect().await?;
        self.read.extend(read);
        Ok(())
    }
}

/// A machine's memory, as it would lie in the file.
#[derive(Debug)]
struct Memory {
    /// Where the hole begins; 4 GiB: there is none.
    hole: u64,
    runs: RunMap,
}

impl Memory {
    /// The memory of a machine with a hole; `None` where all of it lies below.
    fn of(len: u64, hole: u64) -> Option<Self> {
        let above = len.checked_sub(hole).filter(|n| *n > 0)?;
        let run = |pa, len, file| Run {
            pa,
            len,
            file,
            stored: len,
        };
        let runs = RunMap::new(vec![run(0, hole, 0), run(END, above, hole)]).ok()?;
        Some(Self { hole, runs })
    }

    /// The address behind the last page.
    fn end(&self) -> u64 {
        self.runs.runs().last().map_or(0, |r| r.pa + r.len)
    }

    fn place(&self, pa: u64) -> Option<u64> {
        let image = self.runs.from_phys(PhysAddr(pa))?;
        self.runs.to_file(ImageOffset(image.0)).map(|f| f.0)
    }

    async fn table(&self, pages: &mut Pages<'_>, pa: u64) -> Result<Option<Table>, SourceError> {
        let Some(at) = self.place(pa) else {
            return Ok(None);
        };
        pages.fetch([at].into_iter()).await?;
        Ok(pages.read.get(&at).cloned())
    }

    /// Whether the tables below a top table prove that memory lies so.
    async fn is_proved(&self, pages: &mut Pages<'_>, top: Top) -> Result<bool, SourceError> {
        let Some(top) = self.top(pages, top).await? else {
            return Ok(false);
        };
        if self.holds_all_memory(pages, top).await? {
            return Ok(true);
        }
        let high = self.high_tables(pages, top).await?;
        Ok(high.is_some_and(|n| n >= PROOF))
    }

    /// Where the kernel's own top table lies.
    async fn top(&self, pages: &mut Pages<'_>, top: Top) -> Result<Option<u64>, SourceError> {
        let first = match top {
            Top::At(pa) => return Ok(Some(pa)),
            Top::Before(first) => first,
        };
        // Most layouts end here: one page tells.
        let own = self.table(pages, first).await?;
        let alone = |t: &Table| t[511] & PRESENT != 0 && t[..509].iter().all(|e| *e == 0);
        if !own.is_some_and(|t| alone(&t)) {
            return Ok(None);
        }
        let before = (1..=BEFORE).filter_map(|i| first.checked_sub(i * PAGE));
        let before: Vec<u64> = before.filter(|pa| self.place(*pa).is_some()).collect();
        let at = before.iter().filter_map(|pa| self.place(*pa));
        pages.fetch(at.collect::<Vec<_>>().into_iter()).await?;
        for pa in before {
            let t = self.place(pa).and_then(|at| pages.read.get(&at));
            // One that has nothing else is the table of another level.
            let is = |t: &&Table| {
                t[511] & PRESENT != 0
                    && t[511] & ADDRESS == first
                    && t[256..511].iter().any(|e| e & PRESENT != 0)
            };
            if t.filter(is).is_some() {
                return Ok(Some(pa));
            }
        }
        Ok(None)
    }

    /// Counts the tables above 4 GiB that the upper half of a top table leads to; `None` where one of all tables is none. Tables that
    /// lie behind the end of the image, which may be cut, say nothing.
    async fn high_tables(
        &self,
        pages: &mut Pages<'_>,
        top: u64,
    ) -> Result<Option<usize>, SourceError> {
        let (mut high, mut visited) = (0, BTreeSet::from([top]));
        let mut level = vec![top];
        for depth in 0..4 {
            let mut next = BTreeSet::new();
            for pa in level {
                let Some(t) = self.table(pages, pa).await? else {
                    continue;
                };
                if !self.may_be_table(&t, depth) {
                    return Ok(None);
                }
                // Kernels keep tables for what they may map one day: a page of zeros is as good as one.
                let is_empty = t.iter().all(|e| *e & PRESENT == 0);
                high += usize::from(pa >= END && !is_empty);
                let from = if depth == 0 { 256 } else { 0 };
                let below = t[from..].iter().filter(|e| {
                    **e & PRESENT != 0 && (**e & LARGE == 0 || depth == 0) && depth < 3
                });
                next.extend(below.map(|e| e & ADDRESS));
            }
            let mut next: Vec<u64> = next
                .into_iter()
                .filter(|pa| !visited.contains(pa) && self.place(*pa).is_some())
                .collect();
            // Those that prove something come first.
            next.sort_by_key(|pa| *pa < END);
            next.truncate(MOST_TABLES.saturating_sub(visited.len()));
            visited.extend(&next);
            let at: Vec<u64> = next.iter().filter_map(|pa| self.place(*pa)).collect();
            pages.fetch(at.into_iter()).await?;
            level = next;
        }
        Ok(Some(high))
    }

    /// Whether a page may be a table: no entry leads where nothing can be.
    fn may_be_table(&self, t: &[u64; 512], depth: usize) -> bool {
        t.iter().filter(|e| **e & PRESENT != 0).all(|e| {
            let pa = e & ADDRESS;
            // Tables lie in memory; pages may be those of devices.
            let page = depth >= 3 || (depth > 0 && e & LARGE != 0);
            pa < MAX_ADDRESS && (page || !(self.hole..END).contains(&pa))
        })
    }

    /// Whether the first thing that a top table of Linux maps in its upper half is all of this memory, and nothing else.
    async fn holds_all_memory(&self, pages: &mut Pages<'_>, top: u64) -> Result<bool, SourceError> {
        for levels in [4, 5] {
            if let Some(base) = self.first_mapped(pages, top, levels).await?
                && self.is_all_from(pages, top, (base, levels)).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether what begins at a virtual address, in tables of so many levels, is all of this memory.
    async fn is_all_from(
        &self,
        pages: &mut Pages<'_>,
        top: u64,
        base: (u64, u32),
    ) -> Result<bool, SourceError> {
        let end = self.end();
        // Nothing in the hole and behind the end, and something close to both.
        let absent = [(self.hole < END).then_some(self.hole), Some(end)];
        for pa in absent.into_iter().flatten() {
            if self.maps(pages, top, base, pa).await? {
                return Ok(false);
            }
        }
        let edges = [(self.hole < END.min(end)).then_some(self.hole), Some(end)];
        for edge in edges.into_iter().flatten() {
            if !self.maps_below(pages, top, base, edge).await? {
                return Ok(false);
            }
        }
        Ok(end <= END || self.maps(pages, top, base, END).await?)
    }

    /// The virtual address (of 48 or 57 bits) that stands for physical 0, if the first thing that is mapped in the upper half is
    /// memory from its beginning on.
    async fn first_mapped(
        &self,
        pages: &mut Pages<'_>,
        top: u64,
        levels: u32,
    ) -> Result<Option<u64>, SourceError> {
        let (mut pa, mut va) = (top, 0u64);
        for below in (0..levels).rev() {
            let Some(t) = self.table(pages, pa).await? else {
                break;
            };
            let from = if pa == top { 256 } else { 0 };
            let Some(i) = (from..512usize).find(|i| t[*i] & PRESENT != 0) else {
                break;
            };
            let shift = 12 + 9 * below;
            va += (i as u64) << shift;
            pa = t[i] & ADDRESS;
            if below == 0 || (below <= 2 && t[i] & LARGE != 0) {
                let first = pa & !((1 << shift) - 1);
                let base = va.checked_sub(first);
                return Ok(base.filter(|b| b.is_multiple_of(GIB) && first < GIB));
            }
        }
        Ok(None)
    }

    /// Whether an address is mapped there to itself.
    async fn maps(
        &self,
        pages: &mut Pages<'_>,
        top: u64,
        (base, levels): (u64, u32),
        pa: u64,
    ) -> Result<bool, SourceError> {
        let Some(va) = base.checked_add(pa) else {
            return Ok(false);
        };
        let mut at = top;
        for below in (0..levels).rev() {
            let Some(t) = self.table(pages, at).await? else {
                return Ok(false);
            };
            let shift = 12 + 9 * below;
            let e = t.get((va >> shift & 511) as usize).copied().unwrap_or(0);
            if e & PRESENT == 0 {
                return Ok(false);
            }
            let size = 1u64 << shift;
            if below == 0 || (below <= 2 && e & LARGE != 0) {
                let first = e & ADDRESS & !(size - 1);
                return Ok(first == pa & !(size - 1));
            }
            at = e & ADDRESS;
        }
        Ok(false)
    }

    /// Whether memory close below an address is mapped: not all of it need be, since firmware keeps some.
    async fn maps_below(
        &self,
        pages: &mut Pages<'_>,
        top: u64,
        base: (u64, u32),
        edge: u64,
    ) -> Result<bool, SourceError> {
        let mut back = PAGE;
        while back <= FIRMWARE && back <= edge {
            if self.maps(pages, top, base, edge - back).await? {
                return Ok(true);
            }
            back *= 2;
        }
        Ok(false)
    }
}
