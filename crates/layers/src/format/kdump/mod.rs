//! kdump-compressed dumps: of makedumpfile, of QEMU's `dump-guest-memory -z -l -s`, whole or flattened.
//!
//! ```text
//! block 0    "KDUMP   ", version, names of the system, time, status, size of a block, of the sub header and of the bitmaps
//! block 1    sub header: phys_base, dump level, first and last page of a part, VMCOREINFO, notes, number of pages
//! then       a bitmap of the pages that are memory, and one of those that were dumped: bit n of the second stands for page n
//! then       a descriptor for each dumped page: offset u64, size u32, flags u32, page flags u64
//! then       the pages, each packed by itself; pages of zeros share one
//! ```
//!
//! `flags` tells the codec: 1 zlib, 2 LZO1X, 4 snappy, 0x20 zstd, none of them: as it is. Fields have the sizes and the alignment of
//! the captured machine's C compiler: 64-bit little-endian machines and i386 are read. The descriptors are read once, when a job is planned: 24 bytes for each dumped page.
//!
//! Dumped with level 1 (`-d 1`), pages that were left out are those of zeros; of other levels they are not known and are holes.
//! A descriptor whose offset is 0 is of a page that was not written any more (the disk was full).
//!
//! Sources: makedumpfile `IMPLEMENTATION`, "The kdump-compressed format" and "The incomplete DUMPFILE"; QEMU
//! `include/sysemu/dump.h` (`DiskDumpHeader64`, `KdumpSubHeader64`, `PageDescriptor`).

mod header;
mod parts;

use super::flat::{Dump, MAGIC as FLAT};
use super::{ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, gap, note};
use crate::extent::{Codec, Decoder, ImageBuilder, MAX_STORED, Stored};
use crate::source::ByteSource;
use async_trait::async_trait;
pub(super) use header::Header;
use header::{bad, cut, u32_at, u64_at};
pub(super) use parts::{is_later_part, joined};
use std::collections::BTreeMap;

pub(super) const MAGIC: &[u8] = b"KDUMP   ";
/// Bytes of a page descriptor.
const DESCRIPTOR: u64 = 24;
/// Bytes of descriptors, and of a bitmap, that are read at once; and both where a read is a request over the network, of which
/// several are under way together then.
const STEP: u64 = 6 << 20;
const BITMAP_STEP: u64 = 256 << 10;
const FAR_STEP: u64 = 48 << 20;
/// Notes are a few KiB for each processor.
const MAX_NOTES: u64 = 4 << 20;
/// Places that several descriptors name and that are looked at whether they hold zeros.
const MAX_SHARED: usize = 64;
/// `status` of a dump that its disk was too small for.
const INCOMPLETE: u32 = 8;

/// kdump-compressed dumps.
#[derive(Clone, Copy, Debug)]
pub struct Kdump;

/// Goes over a bitmap from bit to bit, which it reads as it goes.
struct Bits<'a> {
    dump: &'a Dump<'a>,
    at: u64,
    end: u64,
    bytes: Vec<u8>,
    /// Number of the first bit of `bytes`.
    first: u64,
}

impl<'a> Bits<'a> {
    fn new(dump: &'a Dump<'a>, at: u64, len: u64) -> Self {
        Self {
            dump,
            at,
            end: at.saturating_add(len),
            bytes: Vec::new(),
            first: 0,
        }
    }

    /// The byte of a bit. Bits are asked for in order.
    async fn byte(&mut self, bit: u64) -> Result<u8, FormatError> {
        let have = self.first..self.first + 8 * self.bytes.len() as u64;
        if !have.contains(&bit) {
            let at = self.at.saturating_add(bit / 8);
            let n = step(self.dump, BITMAP_STEP).min(self.end.saturating_sub(at));
            self.bytes = self.dump.read_some(at, n).await?;
            // One bit that is lost would give every page behind it another's bytes.
            if self.bytes.is_empty() || !self.dump.is_known(at, n) {
                return Err(cut("the bitmaps", at));
            }
            self.first = bit / 8 * 8;
        }
        let i = usize::try_from((bit - self.first) / 8).unwrap_or(usize::MAX);
        Ok(self.bytes.get(i).copied().unwrap_or(0))
    }
}

/// Bytes to read at once.
fn step(dump: &Dump<'_>, near: u64) -> u64 {
    if dump.is_far() { FAR_STEP } else { near }
}

/// Descriptors in their order.
struct Descriptors<'a> {
    dump: &'a Dump<'a>,
    at: u64,
    bytes: Vec<u8>,
    used: usize,
}

/// A page descriptor.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    at: u64,
    offset: u64,
    size: u64,
    flags: u32,
}

impl Descriptors<'_> {
    async fn next(&mut self) -> Result<Option<Descriptor>, FormatError> {
        const N: usize = DESCRIPTOR as usize;
        if self.used + N > self.bytes.len() {
            let n = step(self.dump, STEP);
            self.bytes = self.dump.read_some(self.at, n).await?;
            self.used = 0;
        }
        let Some(b) = self.bytes.get(self.used..self.used + N) else {
            return Ok(None);
        };
        let d = Descriptor {
            at: self.at,
            offset: u64_at(b, 0),
            size: u64::from(u32_at(b, 8)),
            flags: u32_at(b, 12),
        };
        self.used += N;
        self.at += DESCRIPTOR;
        Ok(Some(d))
    }
}

/// The codec of a page; `None` where flags name one that is not known.
fn codec(flags: u32) -> Option<Codec> {
    match flags & 0x27 {
        0 => Some(Codec::Raw),
        1 => Some(Codec::Zlib),
        2 => Some(Codec::Lzo),
        4 => Some(Codec::Snappy),
        0x20 => Some(Codec::Zstd),
        _ => None,
    }
}

/// What becomes of a page.
enum Page {
    Stored(Stored),
    Zero,
    Missing,
}

struct Pages<'a> {
    dump: &'a Dump<'a>,
    block: u64,
    /// The greatest offset of a page so far, and the least.
    last: u64,
    least: u64,
    /// Descriptors so far.
    count: u64,
    /// Places that came again, and whether zeros lie there.
    shared: BTreeMap<u64, bool>,
    decoder: Decoder,
    /// Pages that the file lacks, and those whose descriptors can't be.
    cut: u64,
    gaps: Vec<ContainerGap>,
    file_len: u64,
}

impl Pages<'_> {
    async fn page(&mut self, pa: u64, d: Descriptor) -> Result<Page, FormatError> {
        self.count += 1;
        if d.offset == 0 {
            self.cut += 1;
            return Ok(Page::Missing);
        }
        let kind = codec(d.flags);
        let most = if kind == Some(Codec::Raw) {
            self.block
        } else {
            MAX_STORED
        };
        let sound =
            d.size > 0 && d.size <= most && (kind != Some(Codec::Raw) || d.size == self.block);
        let Some(codec) = kind.filter(|_| sound) else {
            let place = self
                .dump
                .pieces(d.at, DESCRIPTOR, 1)
                .and_then(|p| p.first().copied());
            let (at, n) = place.unwrap_or((0, self.file_len.min(DESCRIPTOR)));
            gap(&mut self.gaps, at..at + n, || {
                format!(
                    "the descriptor of the page at physical {pa:#x} has size {} and flags {:#x}: the page is not read",
                    d.size, d.flags
                )
            });
            return Ok(Page::Missing);
        };
        let Some(pieces) = self.dump.pieces(d.offset, d.size, usize::MAX) else {
            self.cut += 1;
            return Ok(Page::Missing);
        };
        if pieces.len() > 2 {
            let (at, n) = pieces.first().copied().unwrap_or_default();
            gap(&mut self.gaps, at..at + n, || {
                format!(
                    "the page at physical {pa:#x} lies in {} parts of the flattened dump; rearrange it with makedumpfile -R",
                    pieces.len()
                )
            });
            return Ok(Page::Missing);
        }
        self.least = self.least.min(d.offset);
        if d.offset <= self.last && self.is_zero(d, codec).await? {
            return Ok(Page::Zero);
        }
        self.last = self.last.max(d.offset);
        let mut pieces = pieces.into_iter();
        let (source, len) = pieces.next().unwrap_or_default();
        Ok(Page::Stored(Stored {
            source,
            len,
            rest: pieces.next(),
            codec,
        }))
    }

    /// Says where the bitmap names another number of pages than there are descriptors: pages begin behind the last of these.
    fn agree(&mut self, h: &Header) {
        let room = self.least.saturating_sub(h.descriptors) / DESCRIPTOR;
        if h.part || self.least == u64::MAX || room == self.count {
            return;
        }
        let place = self.dump.pieces(h.dumped.0, h.dumped.1, usize::MAX);
        let (at, n) = place.and_then(|p| p.first().copied()).unwrap_or_default();
        let count = self.count;
        gap(&mut self.gaps, at..at + n, || {
            format!(
                "the bitmap names {count} pages and there is room for {room} descriptors: the bitmap is damaged, and pages may have the content of others"
            )
        });
    }

    /// Whether a page that several descriptors name is one of zeros.
    async fn is_zero(&mut self, d: Descriptor, codec: Codec) -> Result<bool, FormatError> {
        if let Some(zero) = self.shared.get(&d.offset) {
            return Ok(*zero);
        }
        if self.shared.len() >= MAX_SHARED {
            return Ok(false);
        }
        let size = usize::try_from(d.size).unwrap_or(0);
        let data = self.dump.read(d.offset, size).await?.unwrap_or_default();
        let mut page = vec![1; usize::try_from(self.block).unwrap_or(0)];
        let unpacked = self.decoder.decode(codec, &data, &mut page).is_ok();
        let zero = unpacked && page.iter().all(|b| *b == 0);
        self.shared.insert(d.offset, zero);
        Ok(zero)
    }
}

#[async_trait]
impl ImageFormat for Kdump {
    fn name(&self) -> &'static str {
        "kdump"
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC) || head.starts_with(FLAT)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        match source.parts() {
            [] => open_all(&[source]).await,
            parts => {
                let parts: Vec<&dyn ByteSource> = parts.iter().map(AsRef::as_ref).collect();
                open_all(&parts).await
            }
        }
    }
}

/// Reads a dump that is in these files, one after the other.
async fn open_all(files: &[&dyn ByteSource]) -> Result<Opened, FormatError> {
    let (mut notes, mut gaps) = (Vec::new(), Vec::new());
    let parts = parts::read(files, &mut notes, &mut gaps).await?;
    let Some((first, h)) = parts.first() else {
        return Err(FormatError::NoMemory { format: "kdump" });
    };
    let dtb_hints = h.page_tables(first).await?;
    let of_machine = h.told(first).await;
    let file_len = files.iter().map(|f| f.len()).sum();
    let mut image = ImageBuilder::default();
    let mut told = Counts::default();
    let mut at = 0;
    for (dump, h) in &parts {
        let mut pages = Pages {
            dump,
            block: h.block,
            last: 0,
            least: u64::MAX,
            count: 0,
            shared: BTreeMap::new(),
            decoder: Decoder::default(),
            cut: 0,
            gaps,
            file_len,
        };
        if h.pages.start > at {
            let range = at..h.pages.start;
            told.elsewhere += lay_out(dump, h, range, None, &mut image).await?.missing;
        }
        let left = h.pages.start.max(at)..h.pages.end;
        if h.pages.start < at && !left.is_empty() {
            return Err(bad(
                0,
                format!("a file of the dump that begins at page {at:#x} or behind"),
                format!(
                    "one that begins at {:#x}: files of two dumps lie side by side",
                    h.pages.start
                ),
            ));
        }
        told.left_out += lay_out(dump, h, left, Some(&mut pages), &mut image)
            .await?
            .left_out;
        pages.agree(h);
        told.cut += pages.cut;
        gaps = pages.gaps;
        at = at.max(h.pages.end);
    }
    if at < h.total {
        let range = at..h.total;
        told.elsewhere += lay_out(first, h, range, None, &mut image).await?.missing;
    }
    if image.image_len() == 0 {
        return Err(FormatError::NoMemory { format: "kdump" });
    }
    told.files = parts.len();
    say(h, &told, &mut notes);
    let (runs, table) = image.finish().map_err(|e| FormatError::built("kdump", e))?;
    Ok(Opened {
        layout: Layout {
            format: "kdump".into(),
            version: Some(h.version.to_string()),
            runs,
            arch: h.arch.map(str::to_owned),
            dtb_hints,
            notes,
            gaps,
            page_files: Vec::new(),
            told: of_machine,
            extents: Some(table.info.clone()),
        },
        table: Some(table),
    })
}

/// What was met on the way.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    files: usize,
    /// Pages of memory that were left out when the dump was made.
    left_out: u64,
    /// Pages that the files lack.
    cut: u64,
    /// Pages that are in other files of a dump that was split.
    elsewhere: u64,
}

/// Pages of a range that are not stored.
#[derive(Clone, Copy, Debug, Default)]
struct Without {
    left_out: u64,
    missing: u64,
}

/// Goes over the bitmaps and the descriptors of a range of pages; without `pages` over the bitmaps alone: the pages are missing.
async fn lay_out(
    dump: &Dump<'_>,
    h: &Header,
    range: std::ops::Range<u64>,
    mut pages: Option<&mut Pages<'_>>,
    image: &mut ImageBuilder,
) -> Result<Without, FormatError> {
    let mut dumped = Bits::new(dump, h.dumped.0, h.dumped.1);
    let mut memory = Bits::new(dump, h.memory, h.dumped.1);
    let mut descriptors = Descriptors {
        dump,
        at: h.descriptors,
        bytes: Vec::new(),
        used: 0,
    };
    let zeros_left_out = h.dump_level == 1;
    let mut out = Without::default();
    let built = |e| FormatError::built("kdump", e);
    let mut pfn = range.start;
    while pfn < range.end {
        let (d, m) = (dumped.byte(pfn).await?, memory.byte(pfn).await?);
        if d | m == 0 {
            pfn = (pfn / 8 + 1) * 8;
            continue;
        }
        let bit = 1 << (pfn % 8);
        let pa = pfn
            .checked_mul(h.block)
            .ok_or_else(|| bad(h.dumped.0, "pages below 2^64", format!("page {pfn:#x}")))?;
        pfn += 1;
        if d & bit == 0 {
            if m & bit != 0 {
                out.left_out += 1;
                if zeros_left_out {
                    image.zeros(pa, h.block).map_err(built)?;
                }
            }
            continue;
        }
        let page = match &mut pages {
            None => {
                out.missing += 1;
                Page::Missing
            }
            Some(pages) => match descriptors.next().await? {
                Some(d) => pages.page(pa, d).await?,
                None => {
                    pages.cut += 1;
                    Page::Missing
                }
            },
        };
        match page {
            Page::Stored(s) => image.stored(pa, h.block, s),
            Page::Zero => image.zeros(pa, h.block),
            Page::Missing => image.missing(pa, h.block),
        }
        .map_err(built)?;
        if image.runs() > MAX_RUNS {
            return Err(bad(
                descriptors.at,
                format!("at most {MAX_RUNS} ranges of pages"),
                "more; leave out fewer kinds of pages (makedumpfile -d 1)",
            ));
        }
    }
    Ok(out)
}

/// What the user is to know of the dump.
fn say(h: &Header, told: &Counts, notes: &mut Vec<String>) {
    let left_out = told.left_out;
    if left_out > 0 && h.dump_level == 1 {
        note(notes, || {
            format!(
                "{left_out} pages of zeros that the dump left out are part of the image (dump level 1)"
            )
        });
    } else if left_out > 0 {
        note(notes, || {
            format!(
                "{left_out} pages of memory were left out when the dump was made (dump level {}): what was in them is not known",
                h.dump_level
            )
        });
    }
    if told.files > 1 {
        note(notes, || {
            format!("a dump that was split in {} files", told.files)
        });
    } else if h.part {
        note(notes, || {
            format!(
                "one file of a dump that was split: it holds physical {:#x} to {:#x}",
                h.pages.start.saturating_mul(h.block),
                h.pages.end.saturating_mul(h.block)
            )
        });
    }
    if told.elsewhere > 0 {
        note(notes, || {
            format!(
                "{} pages are in other files of the dump, which are not beside it under the next numbers",
                told.elsewhere
            )
        });
    }
    if told.cut > 0 {
        let why = if h.status & INCOMPLETE != 0 {
            "the dump was not finished, as it says itself"
        } else {
            "the dump is cut short"
        };
        note(notes, || format!("{why}: {} pages are missing", told.cut));
    }
}
