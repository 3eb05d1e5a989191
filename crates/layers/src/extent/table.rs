//! The table of extents: written once when a job is planned, read in slices by every worker.
//!
//! ```text
//! block 0     up to 4,096 extents in the order of the image: numbers of variable length, packed with zstd
//! block 1     ...
//! directory   80 bytes for each block: first image offset, image offset behind the last, least and greatest source offset,
//!             where the block lies, its bytes, its extents, the first 16 bytes of its BLAKE3
//! ```
//!
//! The plan holds where the directory begins and its BLAKE3 ([`TableInfo`]), so damage anywhere is found. Numbers are LEB128;
//! offsets are differences: image offsets to the end of the extent before, source offsets to the end of its bytes, with the sign
//! in the lowest bit.

use super::{Codec, Extent, MAX_EXTENT};
use crate::source::{ByteSource, SourceError};
use crate::{FileOffset, ImageOffset};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Extents in a block at most.
const PER_BLOCK: usize = 4096;
/// Bytes of an unpacked block at most: a codec and eight numbers of at most ten bytes for each extent.
const MAX_BLOCK: usize = PER_BLOCK * 81;
/// Bytes of an entry of the directory.
const ENTRY: usize = 80;
/// Bytes of a directory at most: a thousand million extents.
const MAX_DIRECTORY: u64 = 20 << 20;
/// Unpacked blocks that are kept.
const KEPT: usize = 32;
/// Set in the number of a codec where an extent has a second part.
const HAS_REST: u8 = 0x80;
/// Set where an extent is a part of what is stored.
const IS_PART: u8 = 0x40;

/// What a plan says of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableInfo {
    /// Extents in it.
    pub extents: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Where its directory begins.
    pub directory: u64,
    /// BLAKE3 of the directory, hex.
    pub blake3: String,
}

/// A finished table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What the plan is to say of it.
    pub info: TableInfo,
    /// Its bytes.
    pub data: Arc<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Entry {
    image: Range<u64>,
    source: Range<u64>,
    at: u64,
    len: u64,
    count: usize,
    hash: [u8; 16],
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let count = self.count as u64;
        for n in [
            self.image.start,
            self.image.end,
            self.source.start,
            self.source.end,
            self.at,
            self.len,
            count,
            0,
        ] {
            out.extend(n.to_le_bytes());
        }
        out.extend(self.hash);
    }

    fn read(b: &[u8]) -> Option<Self> {
        let n = |i: usize| {
            Some(u64::from_le_bytes(
                b.get(8 * i..8 * i + 8)?.try_into().ok()?,
            ))
        };
        Some(Self {
            image: n(0)?..n(1)?,
            source: n(2)?..n(3)?,
            at: n(4)?,
            len: n(5)?,
            count: usize::try_from(n(6)?).ok()?,
            hash: b.get(64..ENTRY)?.try_into().ok()?,
        })
    }
}

fn short_hash(data: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
    out
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A number with the sign in the lowest bit: the difference of two offsets.
fn put_difference(out: &mut Vec<u8>, from: u64, to: u64) {
    let d = to.wrapping_sub(from).cast_signed();
    put(out, ((d << 1) ^ (d >> 63)) as u64);
}

struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (b, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*b)
    }

    fn number(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn difference(&mut self, from: u64) -> Option<u64> {
        let n = self.number()?;
        Some(from.wrapping_add((n >> 1) ^ (n & 1).wrapping_neg()))
    }
}

/// Writes a table; extents come in the order of the image.
#[derive(Debug, Default)]
pub(super) struct Writer {
    data: Vec<u8>,
    directory: Vec<u8>,
    block: Vec<Extent>,
    extents: u64,
}

impl Writer {
    pub(super) fn push(&mut self, e: Extent) -> Result<(), String> {
        self.block.push(e);
        if self.block.len() == PER_BLOCK {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        let (Some(first), Some(last)) = (self.block.first(), self.block.last()) else {
            return Ok(());
        };
        let image = first.image..last.end();
        let mut bytes = Vec::new();
        let (mut image_end, mut source_end) = (image.start, 0);
        let (mut least, mut greatest) = (u64::MAX, 0);
        for e in &self.block {
            (least, greatest) = (least.min(e.source), greatest.max(e.source));
            let rest = if e.rest.is_some() { HAS_REST } else { 0 };
            let part = if e.part.is_some() { IS_PART } else { 0 };
            bytes.push(e.codec.number() | rest | part);
            put(&mut bytes, e.image - image_end);
            put(&mut bytes, e.len);
            put_difference(&mut bytes, source_end, e.source);
            put(&mut bytes, e.stored);
            image_end = e.end();
            source_end = e.source + e.stored;
            if let Some((at, n)) = e.rest {
                put_difference(&mut bytes, source_end, at);
                put(&mut bytes, n);
                source_end = at + n;
            }
            if let Some((before, whole)) = e.part {
                put(&mut bytes, before);
                put(&mut bytes, whole);
            }
        }
        let packed = zstd::bulk::compress(&bytes, 1).map_err(|e| e.to_string())?;
        let entry = Entry {
            image,
            source: least..greatest,
            at: self.data.len() as u64,
            len: packed.len() as u64,
            count: self.block.len(),
            hash: short_hash(&packed),
        };
        entry.write(&mut self.directory);
        self.data.extend(packed);
        self.extents += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Table, String> {
        self.flush()?;
        let directory = self.data.len() as u64;
        if self.directory.len() as u64 > MAX_DIRECTORY {
            return Err(format!("{} extents are too many", self.extents));
        }
        let blake3 = blake3::hash(&self.directory).to_hex().to_string();
        self.data.append(&mut self.directory);
        let info = TableInfo {
            extents: self.extents,
            bytes: self.data.len() as u64,
            directory,
            blake3,
        };
        Ok(Table {
            info,
            data: Arc::new(self.data),
        })
    }
}

/// The extents of an image, read from their table as they are needed.
#[derive(Debug)]
pub struct Extents {
    table: Arc<dyn ByteSource>,
    /// Bytes of the source that the extents lie in.
    source_len: u64,
    directory: Vec<Entry>,
    kept: Mutex<VecDeque<(usize, Arc<Vec<Extent>>)>>,
}

impl Extents {
    /// Opens a table that `info` describes, for a source of `source_len` bytes. Reads its directory.
    pub async fn open(
        table: Arc<dyn ByteSource>,
        info: &TableInfo,
        source_len: u64,
    ) -> Result<Self, SourceError> {
        let damaged = |detail: &str| damaged(table.as_ref(), info.directory, detail);
        let len = info.bytes.checked_sub(info.directory);
        let len = len.filter(|n| *n <= MAX_DIRECTORY && n.is_multiple_of(ENTRY as u64));
        let len = len.ok_or_else(|| damaged("the plan's description of it is damaged"))?;
        if table.len() != info.bytes {
            return Err(damaged("its length is not that in the plan"));
        }
        let n = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = table.read_vec(FileOffset(info.directory), n).await?;
        if blake3::hash(&bytes).to_hex().as_str() != info.blake3 {
            return Err(damaged("its directory is damaged"));
        }
        let directory: Option<Vec<Entry>> = bytes.chunks_exact(ENTRY).map(Entry::read).collect();
        let directory = directory.ok_or_else(|| damaged("its directory is damaged"))?;
        let sound = |e: &Entry| {
            let end = e.at.checked_add(e.len);
            e.image.start < e.image.end
                && (1..=PER_BLOCK).contains(&e.count)
                && end.is_some_and(|end| end <= info.directory)
        };
        let ordered = directory
            .windows(2)
            .all(|w| w[0].image.end <= w[1].image.start);
        if !ordered || !directory.iter().all(sound) {
            return Err(damaged("its directory contradicts itself"));
        }
        Ok(Self {
            table,
            source_len,
            directory,
            kept: Mutex::default(),
        })
    }

    /// The image offset behind the last extent.
    pub fn image_end(&self) -> u64 {
        self.directory.last().map_or(0, |e| e.image.end)
    }

    /// Reads one block.
    async fn block(&self, number: usize) -> Result<Arc<Vec<Extent>>, SourceError> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, b)) = lock().iter().find(|(n, _)| *n == number) {
            return Ok(b.clone());
        }
        let Some(e) = self.directory.get(number) else {
            return Ok(Arc::default());
        };
        let len = usize::try_from(e.len).unwrap_or(usize::MAX);
        let packed = self.table.read_vec(FileOffset(e.at), len).await?;
        let parsed = if short_hash(&packed) == e.hash {
            parse(e, &packed, self.source_len)
        } else {
            None
        };
        let damaged = || damaged(self.table.as_ref(), e.at, "a block of extents is damaged");
        let block = Arc::new(parsed.ok_or_else(damaged)?);
        let mut kept = lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((number, block.clone()));
        Ok(block)
    }

    /// The extents that hold any of an image range, in its order.
    pub async fn in_image(&self, image: Range<u64>) -> Result<Vec<Extent>, SourceError> {
        let first = self
            .directory
            .partition_point(|e| e.image.end <= image.start);
        let mut out = Vec::new();
        for (i, e) in self.directory.iter().enumerate().skip(first) {
            if e.image.start >= image.end {
                break;
            }
            let block = self.block(i).await?;
            let from = block.partition_point(|e| e.end() <= image.start);
            let behind = block.partition_point(|e| e.image < image.end);
            out.extend_from_slice(block.get(from..behind).unwrap_or_default());
        }
        Ok(out)
    }

    /// The image ranges of the extents that belong to a range of the source, in the order of the image, neighbours joined.
    /// Each tells whether all of it is zeros that are stored nowhere.
    pub async fn in_source(
        &self,
        source: Range<u64>,
    ) -> Result<Vec<(Range<u64>, bool)>, SourceError> {
        let mut out: Vec<(Range<u64>, bool)> = Vec::new();
        for (i, e) in self.directory.iter().enumerate() {
            if e.source.end < source.start || e.source.start >= source.end {
                continue;
            }
            for x in self.block(i).await?.iter() {
                if !source.contains(&x.source) {
                    continue;
                }
                let zero = x.codec == Codec::Zero;
                match out.last_mut() {
                    Some((last, z)) if last.end == x.image && *z == zero => last.end = x.end(),
                    _ => out.push((x.image..x.end(), zero)),
                }
            }
        }
        Ok(out)
    }

    /// The extent at an image offset, if bytes are stored there.
    pub async fn at(&self, image: ImageOffset) -> Result<Option<Extent>, SourceError> {
        let found = self.in_image(image.0..image.0.saturating_add(1)).await?;
        Ok(found.first().copied())
    }
}

fn damaged(table: &dyn ByteSource, offset: u64, detail: &str) -> SourceError {
    SourceError::Medium {
        what: table.pin().to_string(),
        offset,
        len: 0,
        detail: format!("{detail}; plan the job again"),
    }
}

/// The extents of a block; `None` where they are not what the directory says, or none that could be.
fn parse(e: &Entry, packed: &[u8], source_len: u64) -> Option<Vec<Extent>> {
    let bytes = zstd::bulk::decompress(packed, MAX_BLOCK).ok()?;
    let mut n = Numbers(&bytes);
    let (mut image_end, mut source_end) = (e.image.start, 0);
    let mut out = Vec::with_capacity(e.count);
    for _ in 0..e.count {
        let kind = n.byte()?;
        let image = image_end.checked_add(n.number()?)?;
        let len = n.number()?;
        let source = n.difference(source_end)?;
        let stored = n.number()?;
        source_end = source.checked_add(stored)?;
        let mut rest = None;
        if kind & HAS_REST != 0 {
            let at = n.difference(source_end)?;
            let more = n.number()?;
            source_end = at.checked_add(more)?;
            rest = Some((at, more));
        }
        let mut part = None;
        if kind & IS_PART != 0 {
            part = Some((n.number()?, n.number()?));
        }
        let x = Extent {
            image,
            len,
            source,
            stored,
            rest,
            codec: Codec::of(kind & !(HAS_REST | IS_PART))?,
            part,
        };
        if !x.is_sound(source_len) || x.end() > e.image.end {
            return None;
        }
        debug_assert!(x.len <= MAX_EXTENT);
        image_end = x.end();
        out.push(x);
    }
    (image_end == e.image.end && n.0.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    const SOURCE: u64 = 1 << 40;

    fn extents(n: u64) -> Vec<Extent> {
        (0..n)
            .map(|i| Extent {
                image: i * 4096,
                len: 4096,
                // Every third has no bytes of its own; every hundredth is in two parts.
                source: 5000 + i / 3 * 3 * 700,
                stored: if i % 3 == 0 { 600 } else { 0 },
                rest: (i % 300 == 0).then_some((i * 700 + 9000, 5)),
                codec: if i % 3 == 0 { Codec::Zlib } else { Codec::Zero },
                part: (i % 6 == 0).then_some((4096, 16384)),
            })
            .collect()
    }

    fn table(all: &[Extent]) -> Table {
        let mut w = Writer::default();
        for e in all {
            w.push(*e).expect("packs");
        }
        w.finish().expect("packs")
    }

    async fn open(t: &Table) -> Result<Extents, SourceError> {
        let source = Arc::new(RamSource::new("table", t.data.to_vec()));
        Extents::open(source, &t.info, SOURCE).await
    }

    #[tokio::test]
    async fn slices_hold_what_was_written() {
        let all = extents(10_000);
        let t = table(&all);
        assert!(t.data.len() < 10_000 * 8, "{}", t.data.len());
        let x = open(&t).await.expect("sound");
        assert_eq!(x.in_image(0..u64::MAX).await.expect("read"), all);
        let some = x
            .in_image(4095 * 4096 + 1..4098 * 4096)
            .await
            .expect("read");
        assert_eq!(some, all[4095..4098]);
        assert_eq!(x.in_image(u64::MAX - 5..u64::MAX).await.expect("read"), []);
        let of = x.in_source(5000..5000 + 3 * 700).await.expect("read");
        assert_eq!(of, [(0..4096, false), (4096..3 * 4096, true)]);
        // Between them the ranges of a source own each extent once.
        let mut owned = 0;
        for from in (0..10_000_000u64).step_by(1 << 20) {
            for (r, _) in x.in_source(from..from + (1 << 20)).await.expect("read") {
                owned += r.end - r.start;
            }
        }
        assert_eq!(owned, 10_000 * 4096);
    }

    #[tokio::test]
    async fn damage_anywhere_is_an_error() {
        let t = table(&extents(9_000));
        for at in (0..t.data.len()).step_by(97).chain([t.data.len() - 1]) {
            let mut data = t.data.to_vec();
            data[at] ^= 0x10;
            let t = Table {
                data: Arc::new(data),
                ..t.clone()
            };
            let read = async {
                let x = open(&t).await?;
                x.in_image(0..u64::MAX).await
            };
            let e = read.await.expect_err("damage is found");
            assert!(e.is_content() && e.to_string().contains("damaged"), "{e}");
        }
        for info in [
            TableInfo {
                directory: t.info.directory + 1,
                ..t.info.clone()
            },
            TableInfo {
                directory: u64::MAX,
                ..t.info.clone()
            },
            TableInfo {
                bytes: 0,
                ..t.info.clone()
            },
            TableInfo {
                bytes: u64::MAX,
                ..t.info.clone()
            },
        ] {
            let t = Table { info, ..t.clone() };
            assert!(open(&t).await.is_err());
        }
    }

    /// A table that is whole and says what can't be is damaged too.
    #[tokio::test]
    async fn extents_outside_the_source_are_refused() {
        let mut all = extents(5);
        all[3].source = SOURCE - 10;
        let x = open(&table(&all)).await.expect("directory");
        assert!(x.in_image(0..u64::MAX).await.is_err());
    }
}
