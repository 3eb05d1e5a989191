//! Saved states of Hyper-V (`.vmrs`): keys and values, of which blocks of 1 MiB are memory.
//!
//! ```text
//! 0, 4096  header, twice: 0x01282014, CRC-32 of 46 bytes, sequence u16, version u32 at 10, log at 26 (u64), its bytes at 34
//! 8192     table of objects: 0x01110001, entries u32; each: kind u8, CRC-32, place u64, bytes u32, flags; the last one may be another
//!          such table (kind 1); kind 2: a table of keys
//! keys     2 u16, number u16, sequence u16, CRC-32; entries: kind u8, flags u8 (1: the value lies elsewhere), bytes u32, ..., at 20
//!          bytes of the name u8, the name with a NUL, the value: bytes u32 and they themselves; or bytes u32, place u64
//! RamMemoryBlockN  a range: pages u64 at 8, number of the first page among the blocks u64 at 16, its address in pages u64 at 24
//! RamBlockN        1 MiB of memory, packed where it is shorter
//! partition_state  pieces from u64 at 8 (+ 16) on: kind u32, bytes u32, 8 bytes; kind 0x30007000: CR0, CR2, CR3, ...
//! ```
//!
//! A log that has entries has changes that are not yet in the tables; they are not applied, and a gap says so.
//!
//! Sources: OpenVMM, "HyperV Storage File Format" (`support/hvs_file/FORMAT.md`); dissect.hypervisor for the log; vmkatz and P. Beyer's
//! snapshot tools for what packed blocks and the state of processors are.

use super::bytes::{le32, le64};
use super::{ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, gap, note};
use crate::FileOffset;
use crate::extent::{BuildError, Codec, ImageBuilder, Stored};
use crate::source::ByteSource;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::collections::BTreeMap;

const NAME: &str = "hyperv";
const MAGIC: &[u8] = b"\x14\x20\x28\x01";
/// Where the copies of the header lie, and the first table of objects.
const HEADERS: [u64; 2] = [0, 4096];
const OBJECTS: u64 = 8192;
const HEADER: usize = 46;
const PAGE: u64 = 4096;
/// Tables of keys that are read at a time.
const READS: usize = 16;
/// Bytes of memory in a block.
const BLOCK: u64 = 1 << 20;
/// Entries of tables of objects at most, in all: 1 TiB of memory and its keys.
const MAX_OBJECTS: u64 = 1 << 22;
/// Bytes of a table of keys at most.
const MAX_KEYS: u64 = 1 << 20;
/// Bytes of the state of processors that are looked at.
const MAX_STATE: u64 = 16 << 20;
/// Pages that are numbered at most: addresses have 52 bits.
const MAX_PAGE: u64 = 1 << 40;
/// Ranges of memory, of which a machine has a few.
const MAX_RANGES: u64 = 4096;
/// The piece of the processors' state that has control registers.
const CONTROL: u32 = 0x3000_7000;

/// Saved states of Hyper-V.
#[derive(Clone, Copy, Debug)]
pub struct HyperV;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

/// CRC-32 of a structure whose own checksum, at `at`, counts as zeros.
fn crc(b: &[u8], at: usize) -> u32 {
    let mut b = b.to_vec();
    if let Some(own) = b.get_mut(at..at + 4) {
        own.fill(0);
    }
    // 32 bits of it are used.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &b) as u32
}

fn le16(b: &[u8], at: usize) -> Option<u16> {
    let b = b.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*b))
}

#[derive(Clone, Copy, Debug)]
struct Header {
    sequence: u16,
    version: u32,
    log: u64,
}

fn header(b: &[u8]) -> Option<Header> {
    let b = b.get(..HEADER)?;
    let sound = b.starts_with(MAGIC) && le32(b, 4)? == crc(b, 4);
    let h = Header {
        sequence: le16(b, 8)?,
        version: le32(b, 10)?,
        log: le64(b, 26)?,
    };
    sound.then_some(h)
}

/// Where a value lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    at: u64,
    len: u64,
}

/// A key that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Range(u64),
    Block(u64),
    State,
}

impl Key {
    fn of(name: &[u8]) -> Option<Self> {
        let number = |prefix: &[u8]| -> Option<u64> {
            let digits = name.strip_prefix(prefix)?;
            let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
            // Numbers of memory that no machine has would leave the address space.
            digits.parse().ok().filter(|n| *n < MAX_PAGE)
        };
        if name == b"partition_state" {
            return Some(Self::State);
        }
        let range = number(b"RamMemoryBlock").map(Self::Range);
        range.or_else(|| number(b"RamBlock").map(Self::Block))
    }
}

/// The keys that matter in a table of keys at `base`.
fn entries(b: &[u8], base: u64) -> Vec<(Key, Value)> {
    let (mut at, mut out) = (10, Vec::new());
    while let Some(e) = b.get(at..).filter(|e| e.len() > 21) {
        let len = le32(e, 2)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(0);
        if len < 21 || len > e.len() {
            break;
        }
        let (e, kind, elsewhere) = (&e[..len], e[0], e[1] & 1 != 0);
        let value = 21 + usize::from(e[20]);
        let name = e.get(21..value).map(|n| n.strip_suffix(b"\0").unwrap_or(n));
        // Arrays alone hold memory.
        if kind == 7
            && let Some(key) = name.and_then(Key::of)
            && let Some(n) = le32(e, value)
        {
            let place = if elsewhere {
                le64(e, value + 4)
            } else {
                Some(base + (at + value + 4) as u64)
            };
            // One beyond the address space lies behind the end of the file too.
            let at = place.unwrap_or(u64::MAX).min(u64::MAX >> 1);
            out.push((
                key,
                Value {
                    at,
                    len: u64::from(n),
                },
            ));
        }
        at += len;
    }
    out
}

/// What the keys name.
#[derive(Debug, Default)]
struct Keys {
    ranges: BTreeMap<u64, Value>,
    blocks: BTreeMap<u64, Value>,
    state: Option<Value>,
    gaps: Vec<ContainerGap>,
}

impl Keys {
    fn add(&mut self, key: Key, v: Value) {
        let kept = match key {
            Key::State => *self.state.get_or_insert(v),
            Key::Range(n) => *self.ranges.entry(n).or_insert(v),
            Key::Block(n) => *self.blocks.entry(n).or_insert(v),
        };
        if kept != v {
            gap(&mut self.gaps, OBJECTS..OBJECTS + 8, || {
                format!(
                    "{key:?} is there twice, at {:#x} and {:#x}; the first one was taken",
                    kept.at, v.at
                )
            });
        }
    }

    /// Reads all tables of keys: of those with the same number the newest counts.
    async fn read(
        &mut self,
        source: &dyn ByteSource,
        tables: Vec<(u64, u64)>,
    ) -> Result<(), FormatError> {
        let reads = tables.into_iter().map(|(at, len)| async move {
            let n = usize::try_from(len).unwrap_or(0);
            let bytes = source.read_vec(FileOffset(at), n).await;
            (at, bytes)
        });
        let mut reads = stream::iter(reads).buffered(READS);
        let mut newest: BTreeMap<u16, (u16, Vec<(Key, Value)>)> = BTreeMap::new();
        while let Some((at, bytes)) = reads.next().await {
            let b = bytes?;
            if le16(&b, 0) != Some(2) || b.len() < 10 || le32(&b, 6) != Some(crc(&b[..10], 6)) {
                gap(&mut self.gaps, at..at + b.len() as u64, || {
                    let found = b.get(..10).unwrap_or(&b);
                    format!(
                        "expected a table of keys at {at:#x}, found {found:02x?}: what it names is lost"
                    )
                });
                continue;
            }
            let (number, sequence) = (le16(&b, 2).unwrap_or(0), le16(&b, 4).unwrap_or(0));
            let older = newest
                .get(&number)
                .is_some_and(|(kept, _)| sequence.wrapping_sub(*kept) >= 0x8000);
            if !older {
                newest.insert(number, (sequence, entries(&b, at)));
            }
        }
        for (key, v) in newest.into_values().flat_map(|(_, all)| all) {
            self.add(key, v);
        }
        Ok(())
    }
}

#[async_trait]
impl ImageFormat for HyperV {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let h = newest(source).await?;
        let mut keys = Keys::default();
        log(source, h, &mut keys.gaps).await?;
        let tables = objects(source, &mut keys.gaps).await?;
        keys.read(source, tables).await?;
        let mut notes = Vec::new();
        let dtb_hints = match keys.state {
            Some(v) => page_tables(source, v).await?,
            None => Vec::new(),
        };
        if dtb_hints.is_empty() {
            note(&mut notes, || {
                "the registers of no processor were found".to_owned()
            });
        }
        let (runs, table) = memory(source, &mut keys).await?;
        let arch = (!dtb_hints.is_empty()).then(|| "x86_64".to_owned());
        Ok(Opened {
            layout: Layout {
                format: NAME.into(),
                version: Some(format!("{}.{}", h.version >> 8, h.version & 0xff)),
                runs,
                arch,
                dtb_hints,
                notes,
                page_files: Vec::new(),
                told: Told::default(),
                gaps: keys.gaps,
                extents: Some(table.info.clone()),
            },
            table: Some(table),
        })
    }
}

/// The header that was written last.
async fn newest(source: &dyn ByteSource) -> Result<Header, FormatError> {
    let mut found: Option<Header> = None;
    for at in HEADERS {
        if at + HEADER as u64 > source.len() {
            break;
        }
        let b = source.read_vec(FileOffset(at), HEADER).await?;
        if let Some(h) = header(&b) {
            // Numbers of 16 bits start again at 0.
            let newer = found.is_none_or(|f| h.sequence.wrapping_sub(f.sequence) < 0x8000);
            if newer {
                found = Some(h);
            }
        }
    }
    let h = found.ok_or_else(|| {
        bad(
            0,
            "a header whose checksum is right, at 0 or 4096",
            "none; the file was cut or is damaged, copy it again",
        )
    })?;
    if h.version < 0x101 {
        let version = format!("version {:#x}", h.version);
        return Err(bad(10, "version 1.1 or later", version));
    }
    Ok(h)
}

/// Tells of changes that are in the log alone.
async fn log(
    source: &dyn ByteSource,
    h: Header,
    gaps: &mut Vec<ContainerGap>,
) -> Result<(), FormatError> {
    let end = h.log.checked_add(12);
    if end.is_none_or(|e| e > source.len()) || h.log == 0 {
        let at = source.len().saturating_sub(1);
        gap(gaps, at..source.len(), || {
            format!(
                "the log should be at {:#x}, behind the end of the file: it was cut short",
                h.log
            )
        });
        return Ok(());
    }
    let b = source.read_vec(FileOffset(h.log), 12).await?;
    let (signature, entries) = (le32(&b, 0).unwrap_or(0), le32(&b, 8).unwrap_or(0));
    if signature != 0x0111_0003 {
        gap(gaps, h.log..h.log + 12, || {
            format!("expected the log at {:#x}, found {signature:#010x}", h.log)
        });
    } else if entries > 0 {
        gap(gaps, h.log..h.log + 12, || {
            format!(
                "{entries} changes are in the log and not yet in the file (it was copied while it was written): they are not applied"
            )
        });
    }
    Ok(())
}

/// Places and lengths of the tables of keys.
async fn objects(
    source: &dyn ByteSource,
    gaps: &mut Vec<ContainerGap>,
) -> Result<Vec<(u64, u64)>, FormatError> {
    let end = source.len();
    let (mut at, mut seen) = (OBJECTS, 0u64);
    let mut tables = Vec::new();
    loop {
        if at.checked_add(8).is_none_or(|e| e > end) {
            return Err(bad(at, "a table of objects", "the end of the file"));
        }
        let head = source.read_vec(FileOffset(at), 8).await?;
        let signature = le32(&head, 0).unwrap_or(0);
        if signature != 0x0111_0001 {
            return Err(bad(at, "a table of objects", format!("{signature:#010x}")));
        }
        let count = u64::from(le32(&head, 4).unwrap_or(0));
        seen = seen.saturating_add(count.max(1));
        let there = count.min((end - at - 8) / 18);
        if seen > MAX_OBJECTS {
            return Err(bad(
                at + 4,
                format!("at most {MAX_OBJECTS} objects"),
                "more",
            ));
        }
        if there < count {
            gap(gaps, at..end, || {
                format!(
                    "the table of objects at {at:#x} is cut short: {there} of {count} are there"
                )
            });
        }
        let n = usize::try_from(there * 18).unwrap_or(0);
        let entries = source.read_vec(FileOffset(at + 8), n).await?;
        let mut next = None;
        for e in entries.chunks_exact(18) {
            let (place, len) = (le64(e, 5).unwrap_or(0), u64::from(le32(e, 13).unwrap_or(0)));
            let inside = place.checked_add(len).is_some_and(|x| x <= end);
            match e[0] {
                1 if place > 0 => next = Some(place),
                2 if inside && (10..=MAX_KEYS).contains(&len) => tables.push((place, len)),
                2 => {
                    let from = place.min(end.saturating_sub(1));
                    gap(gaps, from..end, || {
                        format!(
                            "a table of keys of {len} bytes at {place:#x} is not in the file of {end} bytes: what it names is lost"
                        )
                    });
                }
                _ => {}
            }
        }
        match next {
            // Objects follow each other in the file.
            Some(n) if n > at => at = n,
            Some(n) => {
                gap(gaps, at..at + 8, || {
                    format!(
                        "the table of objects at {at:#x} names {n:#x} before it as the next: what follows is lost"
                    )
                });
                break;
            }
            None => break,
        }
    }
    Ok(tables)
}

/// CR3 of each processor.
async fn page_tables(source: &dyn ByteSource, v: Value) -> Result<Vec<u64>, FormatError> {
    let there = source.len().saturating_sub(v.at).min(v.len).min(MAX_STATE);
    let n = usize::try_from(there).unwrap_or(0);
    let b = source
        .read_vec(FileOffset(v.at.min(source.len())), n)
        .await?;
    let mut out = Vec::new();
    let first = le64(&b, 8).and_then(|n| usize::try_from(n).ok());
    let Some(mut at) = first.and_then(|n| n.checked_add(16)) else {
        return Ok(out);
    };
    while let (Some(kind), Some(len)) = (le32(&b, at), le32(&b, at + 4)) {
        let data = at + 16;
        if kind == CONTROL && len >= 24 {
            let (cr0, cr3) = (
                le64(&b, data).unwrap_or(0),
                le64(&b, data + 16).unwrap_or(0),
            );
            let cr3 = cr3 & 0x000f_ffff_ffff_f000;
            // A processor that has not been started has no paging.
            if cr0 & 0x8000_0001 == 0x8000_0001 && cr3 != 0 && !out.contains(&cr3) {
                out.push(cr3);
            }
        }
        match usize::try_from(len).ok().and_then(|n| data.checked_add(n)) {
            Some(next) if next < b.len() => at = next,
            _ => break,
        }
    }
    Ok(out)
}

/// A range of memory: its first page, its pages, and the number of its first page among the blocks.
struct Range {
    page: u64,
    pages: u64,
    first: u64,
}

async fn ranges(source: &dyn ByteSource, keys: &mut Keys) -> Result<Vec<Range>, FormatError> {
    let (mut out, mut counted) = (Vec::new(), 0u64);
    for (i, (n, v)) in std::mem::take(&mut keys.ranges).into_iter().enumerate() {
        let read = if v.len >= 32 && v.at + 32 <= source.len() {
            source.read_vec(FileOffset(v.at), 32).await?
        } else {
            Vec::new()
        };
        let word = |at| le64(&read, at);
        let (Some(pages), Some(first), Some(page)) = (word(8), word(16), word(24)) else {
            let at = v.at.min(source.len().saturating_sub(1));
            gap(&mut keys.gaps, at..source.len(), || {
                format!(
                    "range {n} of the memory is described in {} bytes at {:#x}, where there are none: it is lost",
                    v.len, v.at
                )
            });
            continue;
        };
        if i as u64 >= MAX_RANGES || page.saturating_add(pages) > MAX_PAGE {
            return Err(bad(
                v.at,
                format!("at most {MAX_RANGES} ranges of memory below 2^52"),
                format!("range {n} of {pages} pages from page {page:#x} on"),
            ));
        }
        if n != i as u64 || first != counted || first % 256 != 0 {
            gap(&mut keys.gaps, v.at..v.at + 32, || {
                format!(
                    "range {n} of the memory should be number {i} and begin at page {counted} of the blocks, and begins at {first}: \
                     addresses may be wrong"
                )
            });
        }
        counted = first.saturating_add(pages).next_multiple_of(256);
        out.push(Range { page, pages, first });
    }
    out.sort_by_key(|r| r.page);
    Ok(out)
}

/// Lays out the blocks of all ranges.
async fn memory(
    source: &dyn ByteSource,
    keys: &mut Keys,
) -> Result<(crate::run::RunMap, crate::extent::Table), FormatError> {
    let built = |e: BuildError| FormatError::built(NAME, e);
    let all = ranges(source, keys).await?;
    if all.is_empty() {
        return Err(bad(
            OBJECTS,
            "ranges of memory (RamMemoryBlock0)",
            "none: the machine was running or off and was not saved, this is a configuration (.vmcx), or it is of a version before 5.1",
        ));
    }
    let mut image = ImageBuilder::default();
    let mut lost = 0u64;
    for r in all {
        if image.end().is_some_and(|e| e > r.page * PAGE) {
            gap(&mut keys.gaps, OBJECTS..OBJECTS + 8, || {
                format!(
                    "{} pages from page {:#x} on are there twice; the first range was taken",
                    r.pages, r.page
                )
            });
            continue;
        }
        let (mut done, end) = (0, r.pages * PAGE);
        while done < end {
            let place = r.first * PAGE + done;
            let (block, before) = (place / BLOCK, place % BLOCK);
            let len = (BLOCK - before).min(end - done);
            let pa = r.page * PAGE + done;
            let v = keys.blocks.get(&block).copied();
            let v = v.filter(|v| (1..=BLOCK).contains(&v.len) && v.at + v.len <= source.len());
            let Some(v) = v else {
                // All that follows where nothing follows at all: a claim of petabytes ends here.
                let next = keys.blocks.range(block + 1..).next().map(|(n, _)| *n);
                let until =
                    next.map_or(end, |n| (n * BLOCK).saturating_sub(r.first * PAGE).min(end));
                let gone = until.max(done + len) - done;
                image.missing(pa, gone).map_err(built)?;
                lost += gone;
                done += gone;
                continue;
            };
            let at = Stored {
                source: v.at,
                len: v.len,
                rest: None,
                codec: Codec::VmCompress,
            };
            let raw = Stored {
                source: v.at + before,
                len,
                codec: Codec::Raw,
                ..at
            };
            let added = if v.len == BLOCK {
                image.stored(pa, len, raw)
            } else {
                image.packed(&[(pa, len)], at, before, BLOCK)
            };
            added.map_err(built)?;
            done += len;
        }
        if image.runs() > MAX_RUNS {
            return Err(bad(
                OBJECTS,
                format!("at most {MAX_RUNS} runs of memory"),
                "more",
            ));
        }
    }
    if lost > 0 {
        let end = source.len();
        gap(&mut keys.gaps, end.saturating_sub(1)..end, || {
            format!(
                "{lost} bytes of memory are in no block of the file: it was cut short, or the state was not saved whole"
            )
        });
    }
    image.finish().map_err(built)
}
