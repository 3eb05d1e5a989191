//! Windows event logs ("Windows XML Event Log (EVTX)", J. Metz, libevtx; MS-EVEN6 2.2.12).
//!
//! ```text
//! "ElfFile\0" header, 4 KiB | chunk | chunk | ...
//! "ElfChnk\0" header, 512 bytes: record numbers and ids, header size 128 at 40, end of the last
//!             record at 44, free space at 48, CRC-32s | { 2A 2A 00 00, size, id, time, BinXML, size }
//! ```
//!
//! A chunk is 64 KiB and stands alone: its names and templates lie inside, at places that count from
//! its first byte. Records are found on their own, since memory holds halves of chunks, chunks
//! without a header, and old records behind what a header calls the end. Where a record's chunk
//! begins is told by a definition or a name that stands inline in it, by a chunk's header before it,
//! or by the records that it lies in a row with; it counts only if every template that the record
//! uses stands where it should. A template that is lost is looked for in the chunks close by. What
//! can't be read so is a row with its values.
//!
//! Each record becomes an event at its own offset. A chunk is an artifact, complete when its
//! checksums are right and every record up to its end could be read. A file is its header and the
//! chunks that follow it; what Windows allocated behind the last chunk is not part of it.

mod event;
mod record;
mod render;
mod values;

pub(crate) use render::Memory;

use crate::carver::{Carver, Extent, Hit};
use crate::crc::crc32;
use crate::source::Item;
use record::u32_at;
use render::Place;

pub(crate) struct EvtxChunk;
pub(crate) struct EvtxFile;

const CHUNK: usize = 64 << 10;
const HEADER: usize = 512;
const FILE_HEADER: usize = 4096;
/// Chunks in a row of a file that may be lost before others.
const HOLE: usize = 4;
const MAGIC: &[u8] = b"ElfChnk\0";
const RECORD: &[u8] = b"**\0\0";

/// What a chunk's header says.
#[derive(Clone, Copy, Debug)]
struct ChunkHeader {
    /// Where its records end.
    free: usize,
    /// It carries no checksums.
    unchecked: bool,
    /// Its own checksum is right.
    fits: bool,
}

/// `None`: no chunk begins here.
fn header(chunk: &[u8]) -> Option<ChunkHeader> {
    if !chunk.starts_with(MAGIC) || u32_at(chunk, 40)? != 128 {
        return None;
    }
    let (last, free) = (u32_at(chunk, 44)? as usize, u32_at(chunk, 48)? as usize);
    if !(HEADER..=CHUNK).contains(&free) || last >= free.max(HEADER + 1) {
        return None;
    }
    let unchecked = u32_at(chunk, 120)? & 4 != 0;
    let sum = crc32(&[chunk.get(..120)?, chunk.get(128..HEADER)?]);
    let fits = unchecked || u32_at(chunk, 124)? == sum;
    let first = chunk.get(HEADER..free).map(|r| r.starts_with(RECORD));
    let sound = fits || free == HEADER || first == Some(true);
    sound.then_some(ChunkHeader {
        free,
        unchecked,
        fits,
    })
}

/// What is wrong with a chunk by its header.
fn damage(chunk: &[u8], h: &ChunkHeader) -> Option<&'static str> {
    match chunk.get(HEADER..h.free) {
        None => Some("the image ends inside"),
        Some(_) if !h.fits => Some("the checksum of its header is wrong"),
        Some(r) if !h.unchecked && u32_at(chunk, 52) != Some(crc32(&[r])) => {
            Some("the checksum of its records is wrong")
        }
        Some(_) if chunk.len() < CHUNK => Some("the image ends inside"),
        Some(_) => None,
    }
}

impl Carver for EvtxChunk {
    fn name(&self) -> &'static str {
        "evtx_chunk"
    }

    fn version(&self) -> u32 {
        3
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[MAGIC, RECORD]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        if !hit.owns(at) {
            return;
        }
        let mut seen = std::mem::take(hit.seen);
        if hit.source.data[at..].starts_with(RECORD) {
            record_at(at, hit, &mut seen.evtx);
        } else {
            chunk_at(at, hit, &mut seen.evtx);
        }
        *hit.seen = seen;
    }
}

/// Pays for work on what begins at `at`; what can't be paid for is reported.
fn pay(hit: &mut Hit<'_, '_>, at: usize, len: usize, work: usize) -> bool {
    let why = if (hit.stop)() {
        "out of time"
    } else if !hit.source.charge(work) {
        "the work limit for following artifacts was reached"
    } else {
        return true;
    };
    let from = hit.source.base + at as u64;
    hit.partial
        .push((hit.carver, from, len as u64, why.to_owned()));
    false
}

/// Reports the record at `at`, if one is there.
fn record_at(at: usize, hit: &mut Hit<'_, '_>, memory: &mut Memory) {
    let data = hit.source.data;
    let Some(head) = record::read(data, at) else {
        return;
    };
    if !pay(hit, at, head.size, 2 * head.size + 4096) {
        return;
    }
    let content = record::content(data, at, &head);
    let Some(place) = Place::find(hit.source, at, &head, &content) else {
        pay(hit, at, head.size, usize::MAX);
        return;
    };
    let extra = event::Extra {
        stale: place.base.is_some_and(|b| is_stale(data, b, at)),
        ..event::Extra::default()
    };
    if let (Some(base), true) = (place.base, place.fits) {
        if !memory.holds(hit.source, base) && !pay(hit, at, head.size, 8 * CHUNK) {
            return;
        }
        if let Some(r) = memory.chunk(hit.source, base).get(at as i64 - base) {
            event::rendered(r, at, head.size, &extra, hit);
            return;
        }
    } else if let Some((r, from)) = render::elsewhere(hit, at, &head, &content) {
        let template_from = Some(hit.source.base + from as u64);
        let extra = event::Extra {
            template_from,
            ..extra
        };
        event::rendered(&r, at, head.size, &extra, hit);
        return;
    }
    let why = match (place.base, place.fits) {
        (None, _) => "where its chunk begins is not known",
        (_, false) => "a template or a name that it uses is not where it should be",
        (_, true) => "its binary XML could not be read",
    };
    let content = record::values(data, at, &head);
    event::raw(&head, &content, at, why, &extra, hit);
}

/// True when a record lies behind what its chunk's header calls the end.
fn is_stale(data: &[u8], base: i64, at: usize) -> bool {
    let chunk = usize::try_from(base).ok().and_then(|b| data.get(b..));
    let header = chunk.and_then(header).filter(|h| h.fits);
    header.is_some_and(|h| at as i64 - base >= h.free as i64)
}

/// Reports the chunk at `at`, if one is there.
fn chunk_at(at: usize, hit: &mut Hit<'_, '_>, memory: &mut Memory) {
    // AHEAD is more than a chunk: no reading on is needed.
    let data = hit.source.data;
    let chunk = &data[at..data.len().min(at + CHUNK)];
    let Some(h) = header(chunk) else { return };
    if !pay(hit, at, CHUNK, 8 * CHUNK) {
        return;
    }
    let mut extent = Extent {
        kind: "evtx_chunk",
        len: chunk.len(),
        ..Extent::default()
    };
    if let Some(why) = damage(chunk, &h) {
        extent.lacks(why);
    } else {
        let rendered = memory.chunk(hit.source, at as i64);
        // Torn content was looked at in full: it is a fact on the artifact, no gap in the scan.
        if let Some(why) = unread(chunk, h.free, rendered) {
            extent.lacks(&why);
        }
        if h.unchecked {
            extent.doubt("it carries no checksums");
        }
    }
    let stale = memchr::memmem::find_iter(chunk, RECORD)
        .filter(|&n| n >= h.free && record::read(chunk, n).is_some())
        .count();
    if stale > 0 && h.fits {
        extent.fields.push(("stale_records", (stale as i64).into()));
    }
    hit.follow(at, |_| Some(extent));
}

/// Why not every record up to the chunk's end could be read.
fn unread(chunk: &[u8], free: usize, rendered: &render::Chunk) -> Option<String> {
    let mut at = HEADER;
    while at < free {
        let Some(head) = record::read(chunk, at).filter(|h| at + h.size <= free) else {
            return Some(format!("no record where one should be, at {at:#x}"));
        };
        let content = record::content(chunk, at, &head);
        if !render::fits(chunk, 0, &content) || rendered.get(at as i64).is_none() {
            return Some(format!("record {} could not be read", head.id));
        }
        at += head.size;
    }
    None
}

impl Carver for EvtxFile {
    fn name(&self) -> &'static str {
        "evtx"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"ElfFile\0"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, file);
    }
}

/// The file's header and its chunks.
fn file(item: &mut Item<'_, '_>) -> Option<Extent> {
    let head: [u8; 128] = item.array(0)?;
    let sound = u32_at(&head, 32)? == 128
        && head[40..42] == [0, 16]
        && u32_at(&head, 124)? == crc32(&[&head[..120]]);
    if !sound {
        return None;
    }
    let count = usize::from(u16::from_le_bytes([head[42], head[43]]));
    // A chunk whose first page is lost may have others behind it.
    let (mut chunks, mut there, mut broken) = (0, 0, None);
    let mut n = 0;
    while (n < count || n == chunks) && n < chunks + HOLE && item.charge(64) {
        let at = FILE_HEADER + n * CHUNK;
        n += 1;
        if at >= item.room() {
            break;
        }
        let begins = item.peek(at, MAGIC.len()).is_some_and(|b| b == MAGIC);
        if !begins || item.get(at, CHUNK).is_none() || !item.charge(CHUNK / 8) {
            continue;
        }
        let chunk = item.get(at, CHUNK).unwrap_or_default();
        let why = match header(chunk) {
            Some(h) => damage(chunk, &h),
            None => Some("its header is broken"),
        };
        if let Some(why) = why {
            broken.get_or_insert_with(|| format!("chunk {n}: {why}"));
        }
        (chunks, there) = (n, there + 1);
    }
    if chunks == 0 {
        return None;
    }
    let mut extent = Extent {
        kind: "evtx",
        len: FILE_HEADER + chunks * CHUNK,
        fields: vec![("chunks", (there as i64).into())],
        ..Extent::default()
    };
    if there < count || there < chunks {
        let all = count.max(chunks);
        extent.lacks(&format!("{there} of {all} chunks lie behind its header"));
    }
    if let Some(why) = broken {
        extent.lacks(&why);
    }
    // While a log is written to, its header is behind.
    if u32_at(&head, 120)? & 1 != 0 {
        extent.doubt("its header is out of date by its own word");
    }
    Some(extent)
}
