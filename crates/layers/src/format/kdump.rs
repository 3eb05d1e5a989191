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

use super::flat::{Dump, MAGIC as FLAT};
use super::{
    ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, gap, note, notes as elf_notes,
};
use crate::extent::{Codec, Decoder, ImageBuilder, MAX_STORED, Stored};
use crate::source::ByteSource;
use async_trait::async_trait;
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"KDUMP   ";
/// Bytes of a page descriptor.
const DESCRIPTOR: u64 = 24;
/// Bytes of descriptors, and of a bitmap, that are read at once.
const STEP: u64 = 6 << 20;
const BITMAP_STEP: u64 = 256 << 10;
/// Notes are a few KiB for each processor.
const MAX_NOTES: u64 = 4 << 20;
/// Places that several descriptors name and that are looked at whether they hold zeros.
const MAX_SHARED: usize = 64;
/// `status` of a dump that its disk was too small for.
const INCOMPLETE: u32 = 8;

/// kdump-compressed dumps.
#[derive(Clone, Copy, Debug)]
pub struct Kdump;

/// What the headers say.
#[derive(Debug)]
struct Header {
    block: u64,
    arch: Option<&'static str>,
    status: u32,
    dump_level: u32,
    /// Where the second bitmap begins, and its bytes.
    dumped: (u64, u64),
    /// Where the first begins.
    memory: u64,
    descriptors: u64,
    /// Pages that this file has descriptors of, by number.
    pages: std::ops::Range<u64>,
    /// Whether it is one file of several.
    part: bool,
    vmcoreinfo: (u64, u64),
    notes: (u64, u64),
}

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: "kdump",
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

fn cut(what: &str, offset: u64) -> FormatError {
    bad(
        offset,
        format!("{what} inside the file"),
        "the end of the file; the dump was cut short, copy or take it again",
    )
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Names of processors in `utsname.machine`.
fn arch(machine: &[u8]) -> Option<&'static str> {
    let end = machine
        .iter()
        .position(|b| *b == 0)
        .unwrap_or(machine.len());
    match &machine[..end] {
        b"x86_64" => Some("x86_64"),
        b"aarch64" => Some("aarch64"),
        b"i386" | b"i486" | b"i586" | b"i686" => Some("x86"),
        b"ppc64le" => Some("ppc64"),
        b"riscv64" => Some("riscv"),
        b"loongarch64" => Some("loongarch"),
        _ => None,
    }
}

/// Sizes of a page that are possible.
fn is_block(n: u32) -> bool {
    n.is_power_of_two() && (4096..=64 << 10).contains(&n)
}

/// Offset of `status`: behind names of 6 * 65 bytes at 12 and a time of two words with their alignment.
const STATUS_64: usize = 424;
const STATUS_32: usize = 412;

impl Header {
    async fn read(dump: &Dump<'_>) -> Result<Self, FormatError> {
        let head = dump
            .read(0, 4096)
            .await?
            .ok_or_else(|| cut("the header", 0))?;
        if !head.starts_with(MAGIC) {
            return Err(bad(0, "KDUMP", format!("{:02x?}", &head[..8])));
        }
        let version = u32_at(&head, 8);
        let block_at = |status: usize| u32_at(&head, status + 4);
        let status = [STATUS_64, STATUS_32]
            .into_iter()
            .find(|s| is_block(block_at(*s)));
        let Some(s) = status else {
            let big = [STATUS_64, STATUS_32]
                .iter()
                .any(|s| is_block(block_at(*s).swap_bytes()));
            let found = if big {
                "a dump of a big-endian machine, which can't be read yet; convert it to ELF: makedumpfile -E".to_owned()
            } else {
                block_at(STATUS_64).to_string()
            };
            return Err(bad(
                STATUS_64 as u64 + 4,
                "a size of blocks of 4096 to 65536",
                found,
            ));
        };
        let wide = s == STATUS_64;
        let block = u64::from(block_at(s));
        let blocks = |at: usize| u64::from(u32_at(&head, s + at)) * block;
        let (sub_len, bitmaps) = (blocks(8), blocks(12));
        let sub_at = block;
        let want = usize::try_from(sub_len.min(block)).unwrap_or(0);
        let sub = dump
            .read(sub_at, want)
            .await?
            .ok_or_else(|| cut("the sub header", sub_at))?;
        let word = |at: usize| {
            if wide {
                u64_at(&sub, at)
            } else {
                u64::from(u32_at(&sub, at))
            }
        };
        let since = |v: u32, field: (u64, u64)| if version >= v { field } else { (0, 0) };
        let at = |wide_at: usize, narrow: usize| if wide { wide_at } else { narrow };
        let vmcoreinfo = (u64_at(&sub, at(32, 20)), word(at(40, 28)));
        let notes = (u64_at(&sub, at(48, 32)), word(at(56, 40)));
        let max_mapnr = match version {
            6.. => u64_at(&sub, at(96, 72)),
            _ => u64::from(u32_at(&head, s + 16)),
        };
        let part = version >= 2 && u32_at(&sub, at(12, 8)) != 0;
        let (first, last) = match version {
            6.. => (u64_at(&sub, at(80, 56)), u64_at(&sub, at(88, 64))),
            _ => (word(at(16, 12)), word(at(24, 16))),
        };
        let bitmap = bitmaps / 2;
        let memory = sub_at.saturating_add(sub_len);
        let count = max_mapnr.min(bitmap.saturating_mul(8));
        let header = Self {
            block,
            arch: arch(&head[12 + 4 * 65..12 + 5 * 65]),
            status: u32_at(&head, s),
            dump_level: if version >= 1 {
                u32_at(&sub, at(8, 4))
            } else {
                0
            },
            dumped: (memory.saturating_add(bitmap), bitmap),
            memory,
            descriptors: memory.saturating_add(bitmaps),
            pages: if part {
                first.min(count)..last.min(count)
            } else {
                0..count
            },
            part,
            vmcoreinfo: since(3, vmcoreinfo),
            notes: since(4, notes),
        };
        if header.descriptors >= dump.len() {
            return Err(cut("the bitmaps", memory));
        }
        if count == 0 {
            return Err(FormatError::NoMemory { format: "kdump" });
        }
        Ok(header)
    }

    /// Page tables that the dump's notes lead to.
    async fn page_tables(&self, dump: &Dump<'_>) -> Result<Vec<u64>, FormatError> {
        let mut out = Vec::new();
        let arch = self.arch;
        let (at, len) = self.notes;
        if len > 0 {
            let b = dump.read_some(at, len.min(MAX_NOTES)).await?;
            elf_notes::page_tables(&b, arch, &mut out);
        }
        let (at, len) = self.vmcoreinfo;
        if len > 0 {
            let b = dump.read_some(at, len.min(MAX_NOTES)).await?;
            let found = elf_notes::of_vmcoreinfo(&b, arch);
            out.extend(found.filter(|t| !out.contains(t)));
        }
        Ok(out)
    }
}

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
            let n = BITMAP_STEP.min(self.end.saturating_sub(at));
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
            self.bytes = self.dump.read_some(self.at, STEP).await?;
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
        let (mut notes, mut gaps) = (Vec::new(), Vec::new());
        let head = source.head(MAGIC.len()).await?;
        let dump = if head == MAGIC {
            Dump::plain(source)
        } else {
            note(&mut notes, || {
                "a flattened dump (makedumpfile -F)".to_owned()
            });
            Dump::flattened(source, &mut notes, &mut gaps).await?
        };
        if dump.read(0, 4).await?.is_some_and(|b| b == b"\x7fELF") {
            return Err(FormatError::Unsupported {
                what: "a flattened ELF core",
                hint: "rearrange it with makedumpfile -R",
            });
        }
        let h = Header::read(&dump).await?;
        let dtb_hints = h.page_tables(&dump).await?;
        let mut pages = Pages {
            dump: &dump,
            block: h.block,
            last: 0,
            least: u64::MAX,
            count: 0,
            shared: BTreeMap::new(),
            decoder: Decoder::default(),
            cut: 0,
            gaps,
            file_len: source.len(),
        };
        let (image, left_out) = lay_out(&dump, &h, &mut pages).await?;
        if image.image_len() == 0 {
            return Err(FormatError::NoMemory { format: "kdump" });
        }
        pages.agree(&h);
        say(&h, &pages, left_out, &mut notes);
        let (runs, table) = image.finish().map_err(|e| FormatError::built("kdump", e))?;
        Ok(Opened {
            layout: Layout {
                format: "kdump".into(),
                runs,
                arch: h.arch.map(str::to_owned),
                dtb_hints,
                notes,
                gaps: pages.gaps,
                extents: Some(table.info.clone()),
            },
            table: Some(table),
        })
    }
}

/// Goes over the bitmaps and the descriptors. Gives the image and the pages of memory that were left out of it.
async fn lay_out(
    dump: &Dump<'_>,
    h: &Header,
    pages: &mut Pages<'_>,
) -> Result<(ImageBuilder, u64), FormatError> {
    let mut dumped = Bits::new(dump, h.dumped.0, h.dumped.1);
    let mut memory = Bits::new(dump, h.memory, h.dumped.1);
    let mut descriptors = Descriptors {
        dump,
        at: h.descriptors,
        bytes: Vec::new(),
        used: 0,
    };
    let mut image = ImageBuilder::default();
    let zeros_left_out = h.dump_level == 1;
    let mut left_out = 0;
    let built = |e| FormatError::built("kdump", e);
    let mut pfn = h.pages.start;
    while pfn < h.pages.end {
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
                left_out += 1;
                if zeros_left_out {
                    image.zeros(pa, h.block).map_err(built)?;
                }
            }
            continue;
        }
        let page = match descriptors.next().await? {
            Some(d) => pages.page(pa, d).await?,
            None => {
                pages.cut += 1;
                Page::Missing
            }
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
    Ok((image, left_out))
}

/// What the user is to know of the dump.
fn say(h: &Header, pages: &Pages<'_>, left_out: u64, notes: &mut Vec<String>) {
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
    if h.part {
        note(notes, || {
            format!(
                "one file of a dump that was split: it holds physical {:#x} to {:#x}",
                h.pages.start.saturating_mul(h.block),
                h.pages.end.saturating_mul(h.block)
            )
        });
    }
    if pages.cut > 0 {
        let why = if h.status & INCOMPLETE != 0 {
            "the dump was not finished, as it says itself"
        } else {
            "the dump is cut short"
        };
        note(notes, || format!("{why}: {} pages are missing", pages.cut));
    }
}
