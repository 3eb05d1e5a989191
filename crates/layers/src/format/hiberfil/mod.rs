//! Hibernation files of Windows (`hiberfil.sys`): 8 to 11, and 7.
//!
//! ```text
//! 0      header: signature (HIBR; RSTR, WAKE once the machine was resumed), its length at 0xC, then what differs between versions
//! 4096   ... the state of the processor: CR0, CR2, CR3, CR4 first of it on 64-bit machines, at 0x2CC on 32-bit ones
//! then   memory: see `modern` (8 and later) and `legacy` (7)
//! ```
//!
//! Memory is packed in sets of 16 pages as a rule, which need not follow each other in memory: each set is unpacked as a whole, and an
//! extent is what of it comes in one piece in the order of the image. Windows leaves out what it need not restore, free
//! and cached pages, so the file is never all of memory.
//!
//! Sources: J. Sylve, V. Marziale, G. Richard: "Modern Windows hibernation file analysis" (2016); the structures `PO_MEMORY_IMAGE`,
//! `PO_MEMORY_RANGE_ARRAY` and `KSPECIAL_REGISTERS` in the debugging symbols of Windows; Hibr2Bin, LeechCore and Volatility for the
//! places in versions and the numbers of the methods.

mod legacy;
mod modern;

use super::bytes::{le32, le64};
use super::{
    ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Outline, Told, gap, note,
};
use crate::extent::{BuildError, Codec, ImageBuilder, Stored};
use crate::source::{ByteSource, SourceError};
use async_trait::async_trait;

const NAME: &str = "hiberfil";
const PAGE: u64 = 4096;
/// Pages that are numbered at most: addresses have 52 bits.
const MAX_PAGE: u64 = 1 << 40;
/// Pieces of memory, and packed sets, at most: 64 GiB in pages that touch nowhere.
const MAX_PIECES: usize = 1 << 24;
/// Pages at the beginning of the file of which one is the state of the processor.
const STATE_PAGES: u64 = 8;
/// Pages at the beginning of a file without a header in which the first packed block is looked for.
const SEARCHED: u64 = 16;

/// Hibernation files.
#[derive(Clone, Copy, Debug)]
pub struct Hiberfil;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

/// Pages that are packed together.
#[derive(Clone, Copy, Debug)]
struct Set {
    at: u64,
    len: u64,
    pages: u64,
    codec: Codec,
    /// The file does not have it.
    lost: bool,
}

/// A range of memory: `pages` of a set, from the one with the number `first` on.
#[derive(Clone, Copy, Debug)]
struct Piece {
    page: u64,
    pages: u64,
    set: u32,
    first: u64,
}

/// What was found in a file.
#[derive(Debug, Default)]
struct Found {
    sets: Vec<Set>,
    pieces: Vec<Piece>,
    notes: Vec<String>,
    gaps: Vec<ContainerGap>,
    told: Told,
}

impl Found {
    /// Adds a set; gives its number.
    fn set(&mut self, s: Set) -> Result<u32, FormatError> {
        let number = u32::try_from(self.sets.len()).ok();
        let number = number.filter(|_| self.sets.len() < MAX_PIECES);
        let number = number.ok_or_else(|| too_many(s.at, "packed sets"))?;
        self.sets.push(s);
        Ok(number)
    }

    /// Adds a range of memory, which may go on where the one before ends.
    fn piece(&mut self, p: Piece, at: u64) -> Result<(), FormatError> {
        if let Some(l) = self.pieces.last_mut()
            && (l.set, l.page + l.pages, l.first + l.pages) == (p.set, p.page, p.first)
        {
            l.pages += p.pages;
            return Ok(());
        }
        if self.pieces.len() >= MAX_PIECES {
            return Err(too_many(at, "ranges of memory"));
        }
        self.pieces.push(p);
        Ok(())
    }

    /// Tells of a part of the file, from `at` on, that is lost.
    fn lost(&mut self, at: u64, end: u64, say: impl FnOnce() -> String) {
        let at = at.min(end.saturating_sub(1));
        gap(&mut self.gaps, at..end, say);
    }
}

fn too_many(at: u64, what: &str) -> FormatError {
    bad(at, format!("at most {MAX_PIECES} {what}"), "more")
}

/// The versions by their headers.
enum Version {
    Modern(modern::Header),
    Legacy { wide: bool, table: u64 },
}

impl Version {
    fn wide(&self) -> bool {
        match self {
            Self::Modern(h) => h.wide,
            Self::Legacy { wide, .. } => *wide,
        }
    }

    /// Finds it in the first page.
    fn of(head: &[u8]) -> Option<Self> {
        if let Some(h) = modern::header(head) {
            return Some(Self::Modern(h));
        }
        let (wide, table) = legacy::first_table(head)?;
        Some(Self::Legacy { wide, table })
    }
}

fn has_signature(head: &[u8]) -> bool {
    [b"HIBR", b"RSTR", b"WAKE"].iter().any(|s| {
        head.get(..4).is_some_and(|h| {
            h.eq_ignore_ascii_case(*s) && h[0].is_ascii_uppercase() == h[3].is_ascii_uppercase()
        })
    })
}

#[async_trait]
impl ImageFormat for Hiberfil {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        has_signature(head) && Version::of(head).is_some()
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let n = usize::try_from(STATE_PAGES * PAGE).unwrap_or(usize::MAX);
        let head = source.head(n).await?;
        let mut found = Found::default();
        let Some(version) = Version::of(&head) else {
            return without_header(source).await;
        };
        let dtb = page_table(&head, version.wide());
        if !head[..4].eq_ignore_ascii_case(b"HIBR") {
            gap(&mut found.gaps, 0..4, || {
                "the machine was resumed from this file: Windows wipes what it restored, and goes on to use its memory".to_owned()
            });
        }
        let time = le64(&head, if version.wide() { 0x20 } else { 0x18 });
        found.told = told_by(time);
        if let Some(at) = time.and_then(written_at) {
            note(&mut found.notes, || format!("hibernated at {at}"));
        }
        let (name, highest) = match &version {
            Version::Modern(h) => {
                h.walk(source, &mut found).await?;
                h.tell(&head, &mut found);
                ("Windows 8 or later", h.highest_page(&head))
            }
            Version::Legacy { wide, table } => {
                legacy::walk(source, *wide, *table, &mut found).await?;
                ("Windows 7", None)
            }
        };
        // The state of another processor looks otherwise: files of ARM machines have the same header.
        let arch = match (version.wide(), dtb, &version) {
            (false, ..) => Some("x86"),
            (true, Some(_), _) | (true, None, Version::Legacy { .. }) => Some("x86_64"),
            (true, None, _) => None,
        };
        lay_out(found, name, arch, dtb, highest)
    }
}

/// A file whose first page was wiped, as Windows 7 does when it is resumed from one; what is packed is still in it.
async fn without_header(source: &dyn ByteSource) -> Result<Opened, FormatError> {
    let Some((wide, table)) = first_block(source).await? else {
        return Err(bad(0, "the header of a hibernation file", "another"));
    };
    let mut found = Found::default();
    gap(&mut found.gaps, 0..PAGE, || {
        "the header was wiped: the machine was resumed from this file, or started anew".to_owned()
    });
    legacy::walk(source, wide, table, &mut found).await?;
    let arch = if wide { "x86_64" } else { "x86" };
    lay_out(found, "Windows 7", Some(arch), None, None)
}

/// Whether a file that begins with zeros has the packed blocks of a hibernation file behind them.
pub(super) async fn is_wiped(source: &dyn ByteSource, head: &[u8]) -> Result<bool, SourceError> {
    if head.len() < 4096 || head.iter().any(|b| *b != 0) {
        return Ok(false);
    }
    match first_block(source).await {
        // A bad place is told when it is scanned.
        Err(SourceError::Medium { .. }) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

async fn first_block(source: &dyn ByteSource) -> Result<Option<(bool, u64)>, SourceError> {
    let n = usize::try_from(SEARCHED * PAGE).unwrap_or(usize::MAX);
    let head = source.head(n).await?;
    let pages: Vec<&[u8]> = head.chunks(4096).collect();
    let block = pages.iter().position(|p| p.starts_with(legacy::MAGIC));
    let table = block.and_then(|b| b.checked_sub(1));
    Ok(table.and_then(|t| {
        let wide = legacy::width(pages[t], source.len())?;
        Some((wide, t as u64))
    }))
}

/// CR3 of the processor, where a page looks like its state: paging is on, in protected mode, with extended addresses.
fn page_table(head: &[u8], wide: bool) -> Option<u64> {
    let mut states = head.chunks_exact(4096).skip(1);
    states.find_map(|p| {
        let at = |i: usize| {
            if wide {
                le64(p, 8 * i)
            } else {
                le32(p, 0x2cc + 4 * i).map(u64::from)
            }
        };
        let (cr0, cr3, cr4) = (at(0)?, at(2)?, at(3)?);
        let on = cr0 & 0x8000_0001 == 0x8000_0001 && cr0 >> 32 == 0 && cr4 >> 32 == 0;
        let extended = cr4 & 0x20 != 0;
        let fits = cr3 >> 52 == 0 && cr3 & !0xfff != 0;
        (on && extended && fits).then_some(cr3 & !if wide { 0xfff } else { 0x1f })
    })
}

/// What a header with this time says of its machine.
fn told_by(time: Option<u64>) -> Told {
    let mut out = Told {
        system: Some("windows".into()),
        ..Told::default()
    };
    out.take_windows_time(time.unwrap_or(0));
    out
}

/// A time of Windows (100 ns since 1601) in words.
fn written_at(ticks: u64) -> Option<String> {
    const FROM_1601: u64 = 11_644_473_600;
    let seconds = (ticks / 10_000_000).checked_sub(FROM_1601)?;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years in the proleptic Gregorian calendar, from March on.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, (mp + 2) % 12 + 1);
    let year = yoe + 400 * era + u64::from(month <= 2);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    (2000..2200)
        .contains(&year)
        .then(|| format!("{year}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC"))
}

/// Lays out what was found, in physical order.
fn lay_out(
    mut found: Found,
    version: &str,
    arch: Option<&str>,
    dtb: Option<u64>,
    highest: Option<(u64, u64)>,
) -> Result<Opened, FormatError> {
    found.pieces.sort_unstable_by_key(|p| (p.page, p.set));
    let mut image = ImageBuilder::default();
    let (mut next, mut twice, mut stored) = (0u64, 0u64, 0u64);
    let mut group: Option<(Piece, Vec<(u64, u64)>)> = None;
    for p in &found.pieces {
        let mut p = *p;
        let taken = next.saturating_sub(p.page).min(p.pages);
        twice += taken;
        p = Piece {
            page: p.page + taken,
            pages: p.pages - taken,
            first: p.first + taken,
            ..p
        };
        if p.pages == 0 {
            continue;
        }
        next = p.page + p.pages;
        let memory = (p.page * PAGE, p.pages * PAGE);
        match &mut group {
            Some((g, all)) if (g.set, g.first + g.pages) == (p.set, p.first) => {
                g.pages += p.pages;
                all.push(memory);
            }
            _ => {
                stored += flush(&mut image, &found.sets, group.replace((p, vec![memory])))?;
            }
        }
    }
    stored += flush(&mut image, &found.sets, group)?;
    if twice > 0 {
        gap(&mut found.gaps, 0..4, || {
            format!("{twice} pages are in the file twice; the first set that has one was taken")
        });
    }
    if stored == 0 {
        let why = "zeros or nothing that can be read: Windows wipes the file when the machine is resumed; take memory from the \
                   running machine, or the file while it is hibernated";
        return Err(bad(PAGE, "packed memory", why));
    }
    let why = "Windows leaves out free and cached memory";
    match highest {
        Some((at, page)) if page >= stored => gap(&mut found.gaps, at..at + 8, || {
            let lacks = page + 1 - stored;
            format!(
                "{why}: {lacks} of {} pages up to the highest are not in the file",
                page + 1
            )
        }),
        _ => gap(&mut found.gaps, 0..4, || {
            format!("{why}: what is in none of the file's ranges is not in it")
        }),
    }
    let built = |e| FormatError::built(NAME, e);
    let (runs, table) = image.finish().map_err(built)?;
    if runs.runs().len() > MAX_RUNS {
        let found = runs.runs().len().to_string();
        return Err(bad(
            0,
            format!("at most {MAX_RUNS} ranges of memory"),
            found,
        ));
    }
    Ok(Opened {
        layout: Layout {
            format: NAME.into(),
            version: Some(version.to_owned()),
            runs,
            arch: arch.map(str::to_owned),
            dtb_hints: dtb.into_iter().collect(),
            notes: found.notes,
            page_files: Vec::new(),
            told: found.told,
            gaps: found.gaps,
            extents: Some(table.info.clone()),
        },
        table: Some(table),
    })
}

/// Adds pages that follow each other in a set; gives how many of them can be read.
fn flush(
    image: &mut ImageBuilder,
    sets: &[Set],
    group: Option<(Piece, Vec<(u64, u64)>)>,
) -> Result<u64, FormatError> {
    let Some((p, memory)) = group else {
        return Ok(0);
    };
    let set = usize::try_from(p.set).ok().and_then(|i| sets.get(i));
    let Some(set) = set.filter(|s| !s.lost) else {
        for (pa, len) in memory {
            let missing = image.missing(pa, len);
            missing.map_err(|e: BuildError| FormatError::built(NAME, e))?;
        }
        return Ok(0);
    };
    let (before, len) = (p.first * PAGE, p.pages * PAGE);
    let at = |source, len| Stored {
        source,
        len,
        rest: None,
        codec: set.codec,
    };
    let added = match set.codec {
        Codec::Raw => image.packed(&memory, at(set.at + before, len), 0, len),
        _ => image.packed(&memory, at(set.at, set.len), before, set.pages * PAGE),
    };
    added.map_err(|e| FormatError::built(NAME, e))?;
    Ok(p.pages)
}

/// What the header alone tells.
pub(super) async fn outline(source: &dyn ByteSource) -> Result<Option<Outline>, FormatError> {
    let n = usize::try_from(STATE_PAGES * PAGE).unwrap_or(usize::MAX);
    let head = source.head(n).await?;
    let Some(version) = Some(&head)
        .filter(|h| has_signature(h))
        .and_then(|h| Version::of(h))
    else {
        return Ok(None);
    };
    let mut out = Outline {
        format: NAME,
        dtb_hints: page_table(&head, version.wide()).into_iter().collect(),
        told: told_by(le64(&head, if version.wide() { 0x20 } else { 0x18 })),
        ..Outline::default()
    };
    match &version {
        Version::Modern(h) => {
            out.version = Some("Windows 8 or later".into());
            out.memory = h.pages().and_then(|n| n.checked_mul(PAGE));
        }
        Version::Legacy { .. } => out.version = Some("Windows 7".into()),
    }
    if !version.wide() {
        out.arch = Some("x86".into());
    } else if !out.dtb_hints.is_empty() {
        out.arch = Some("x86_64".into());
    }
    let time = le64(&head, if version.wide() { 0x20 } else { 0x18 });
    out.notes.extend(
        time.and_then(written_at)
            .map(|t| format!("hibernated at {t}")),
    );
    if !head[..4].eq_ignore_ascii_case(b"HIBR") {
        out.damage =
            Some("the machine was resumed from this file: Windows wipes what it restored".into());
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `date -u -d @N`, which counts from 1970.
    #[test]
    fn times_of_windows_are_told() {
        let at = |unix: u64| written_at((unix + 11_644_473_600) * 10_000_000 + 9_999_999);
        assert_eq!(
            at(1_709_210_096).as_deref(),
            Some("2024-02-29 12:34:56 UTC")
        );
        assert_eq!(
            at(1_735_689_599).as_deref(),
            Some("2024-12-31 23:59:59 UTC")
        );
        assert_eq!(at(951_782_400).as_deref(), Some("2000-02-29 00:00:00 UTC"));
        assert_eq!(written_at(0), None);
        assert_eq!(written_at(u64::MAX), None);
    }

    #[test]
    fn only_a_state_with_paging_is_one() {
        let mut head = vec![0; 3 * 4096];
        let state = |head: &mut Vec<u8>, page: usize, regs: [u64; 4]| {
            for (i, r) in regs.iter().enumerate() {
                let at = page * 4096 + 8 * i;
                head[at..at + 8].copy_from_slice(&r.to_le_bytes());
            }
        };
        state(&mut head, 1, [0x11, 0, 0x1aa_0000, 0x6f0]);
        assert_eq!(page_table(&head, true), None);
        state(&mut head, 2, [0x8005_0033, 0, 0x1aa_0002, 0x6f8]);
        assert_eq!(page_table(&head, true), Some(0x1aa_0000));
        assert_eq!(page_table(&head, false), None);
    }
}
