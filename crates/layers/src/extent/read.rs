//! What stands between the source and everything that reads an image.
//!
//! The runs of a layout say where image bytes lie in [`ImageReader::bytes`]. Of a container that holds memory as it is, that is the
//! source itself, with its mappings and its speed. Of others it is a view of the source in which every image offset is an
//! offset, and which unpacks what is asked for.

use super::{Codec, Decoder, Extent, Extents};
use crate::FileOffset;
use crate::page_file;
use crate::source::{ByteSource, SourceError, SourcePin};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of the source that one read gets at most.
const READ: u64 = 8 << 20;
/// Reads at a time.
const READS: usize = 4;

/// The bytes of a capture: as they are stored, and as the image that they stand for.
#[derive(Clone, Debug)]
pub struct ImageReader {
    stored: Arc<dyn ByteSource>,
    extents: Option<Arc<Extents>>,
    page_files: Vec<Arc<dyn ByteSource>>,
}

impl ImageReader {
    /// A capture that holds memory as it is.
    pub fn plain(stored: Arc<dyn ByteSource>) -> Self {
        Self {
            stored,
            extents: None,
            page_files: Vec::new(),
        }
    }

    /// A capture whose memory lies in these extents.
    pub fn coded(stored: Arc<dyn ByteSource>, extents: Arc<Extents>) -> Self {
        Self {
            stored,
            extents: Some(extents),
            page_files: Vec::new(),
        }
    }

    /// The same capture, whose bytes are read through another source: one that keeps them near.
    pub fn over(&self, stored: Arc<dyn ByteSource>) -> Self {
        Self {
            stored,
            extents: self.extents.clone(),
            page_files: self.page_files.clone(),
        }
    }

    /// The same capture with these page files, in the order of its layout.
    pub fn with_page_files(mut self, files: Vec<Arc<dyn ByteSource>>) -> Self {
        self.page_files = files;
        self
    }

    /// Its page files.
    pub fn page_files(&self) -> &[Arc<dyn ByteSource>] {
        &self.page_files
    }

    /// What [`bytes`](Self::bytes) gives, with the page files behind it: what [`Layout::paged_runs`] counts in.
    ///
    /// [`Layout::paged_runs`]: crate::format::Layout::paged_runs
    pub fn paged_bytes(&self) -> Arc<dyn ByteSource> {
        page_file::behind(self.bytes(), &self.page_files)
    }

    /// Fails when the capture, or a page file, is no longer the pinned version.
    pub async fn check_pin(&self) -> Result<(), SourceError> {
        self.stored.check_pin().await?;
        for f in &self.page_files {
            f.check_pin().await?;
        }
        Ok(())
    }

    /// The file or object as it is.
    pub fn stored(&self) -> &Arc<dyn ByteSource> {
        &self.stored
    }

    /// Where memory lies, if not as it is.
    pub fn extents(&self) -> Option<&Arc<Extents>> {
        self.extents.as_ref()
    }

    /// What the runs of the layout count in.
    pub fn bytes(&self) -> Arc<dyn ByteSource> {
        match &self.extents {
            None => self.stored.clone(),
            Some(extents) => Arc::new(Decoded {
                stored: self.stored.clone(),
                extents: extents.clone(),
            }),
        }
    }
}

/// Bytes of the source that are at hand.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a> {
    /// Where they begin in the source.
    pub start: u64,
    /// The bytes.
    pub bytes: &'a [u8],
    /// Parts of the source among them that could not be read.
    pub bad: &'a [(Range<u64>, String)],
}

impl<'a> Near<'a> {
    fn get(&self, source: Range<u64>) -> Option<&'a [u8]> {
        let a = usize::try_from(source.start.checked_sub(self.start)?).ok()?;
        let b = usize::try_from(source.end.checked_sub(self.start)?).ok()?;
        let is_bad = |(r, _): &(Range<u64>, String)| r.start < source.end && source.start < r.end;
        if self.bad.iter().any(is_bad) {
            return None;
        }
        self.bytes.get(a..b)
    }
}

/// A source whose offsets are image offsets.
#[derive(Debug)]
struct Decoded {
    stored: Arc<dyn ByteSource>,
    extents: Arc<Extents>,
}

#[async_trait]
impl ByteSource for Decoded {
    fn pin(&self) -> &SourcePin {
        self.stored.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        read(&self.extents, self.stored.as_ref(), None, offset.0, buf).await
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        self.stored.check_pin().await
    }

    fn coalesce_distance(&self) -> u64 {
        self.stored.coalesce_distance()
    }

    fn len(&self) -> u64 {
        self.extents.image_end()
    }
}

/// The same over bytes that are at hand, for as long as they are.
#[derive(Debug)]
pub struct DecodedNear<'a> {
    /// What is asked for bytes that are not at hand.
    pub image: &'a ImageReader,
    /// Bytes at hand.
    pub near: Near<'a>,
}

#[async_trait]
impl ByteSource for DecodedNear<'_> {
    fn pin(&self) -> &SourcePin {
        self.image.stored.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        let stored = self.image.stored.as_ref();
        match &self.image.extents {
            None => stored.read_at(offset, buf).await,
            Some(x) => read(x, stored, Some(self.near), offset.0, buf).await,
        }
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        self.image.stored.check_pin().await
    }

    fn len(&self) -> u64 {
        let stored = || self.image.stored.len();
        self.image
            .extents
            .as_ref()
            .map_or_else(stored, |x| x.image_end())
    }
}

/// A part of the source that is needed: of the extent with this number, its first or its second.
struct Part {
    source: u64,
    len: u64,
    extent: usize,
    second: bool,
}

/// Fills `buf` from an image offset: all of it, or an error that names the place in the source.
async fn read(
    extents: &Extents,
    stored: &dyn ByteSource,
    near: Option<Near<'_>>,
    image: u64,
    buf: &mut [u8],
) -> Result<(), SourceError> {
    let past = || SourceError::PastEnd {
        what: stored.pin().to_string(),
        offset: image,
        len: buf.len() as u64,
        size: extents.image_end(),
    };
    let end = image.checked_add(buf.len() as u64).ok_or_else(past)?;
    let list = extents.in_image(image..end).await?;
    let mut at = image;
    for e in &list {
        if e.image > at {
            return Err(past());
        }
        at = e.end();
    }
    if at < end {
        return Err(past());
    }
    let mut out = Output {
        decoder: Decoder::default(),
        scratch: Vec::new(),
        held: None,
        what: stored,
        image,
        buf,
    };
    let mut far: Vec<Part> = Vec::new();
    // First parts of extents in two parts, which wait for their second.
    let mut joined: Vec<(usize, Vec<u8>)> = Vec::new();
    for (i, e) in list.iter().enumerate() {
        let source = e.source..e.source + e.stored;
        let bytes = match near.as_ref().and_then(|n| n.get(source)) {
            _ if e.codec == Codec::Zero => Some(&[][..]),
            Some(b) => Some(b),
            None => None,
        };
        match bytes.filter(|_| e.rest.is_none()) {
            Some(b) => out.put(e, b)?,
            None => {
                let part = |source, len, second| Part {
                    source,
                    len,
                    extent: i,
                    second,
                };
                far.push(part(e.source, e.stored, false));
                if let Some((at, n)) = e.rest {
                    far.push(part(at, n, true));
                    joined.push((i, Vec::new()));
                }
            }
        }
    }
    if far.is_empty() {
        return Ok(());
    }
    far.sort_unstable_by_key(|p| (p.source, p.second));
    let groups = group(&far, stored.coalesce_distance());
    let reads: Vec<_> = groups
        .iter()
        .map(|g| {
            let first = g.first().map_or(0, |p| p.source);
            let end = g.iter().map(|p| p.source + p.len).max().unwrap_or(first);
            let len = usize::try_from(end - first).unwrap_or(usize::MAX);
            stored.read_vec(FileOffset(first), len).boxed()
        })
        .collect();
    let mut reads = stream::iter(reads).buffered(READS);
    for g in groups {
        let Some(bytes) = reads.try_next().await? else {
            break;
        };
        let first = g.first().map_or(0, |p| p.source);
        for p in g {
            let from = usize::try_from(p.source - first).unwrap_or(usize::MAX);
            let to = from.saturating_add(usize::try_from(p.len).unwrap_or(usize::MAX));
            let data = bytes.get(from..to).unwrap_or_default();
            let Some(e) = list.get(p.extent) else {
                continue;
            };
            if e.rest.is_none() {
                out.put(e, data)?;
            } else if let Some((_, whole)) = joined.iter_mut().find(|(i, _)| *i == p.extent) {
                // The parts may come in either order.
                if p.second {
                    whole.extend_from_slice(data);
                } else {
                    whole.splice(0..0, data.iter().copied());
                }
                let is = whole.len() as u64;
                if is == e.stored + e.rest.map_or(0, |(_, n)| n) {
                    out.put(e, whole)?;
                }
            }
        }
    }
    Ok(())
}

/// Neighbours that one read gets.
fn group(all: &[Part], distance: u64) -> Vec<&[Part]> {
    let mut out = Vec::new();
    let (mut from, mut end) = (0, 0u64);
    for (i, p) in all.iter().enumerate() {
        let first = all.get(from).map_or(0, |p| p.source);
        let cut = p.source > end.saturating_add(distance) || p.source + p.len > first + READ;
        if i > from && cut {
            out.push(&all[from..i]);
            from = i;
            end = 0;
        }
        end = end.max(p.source + p.len);
    }
    if from < all.len() {
        out.push(&all[from..]);
    }
    out
}

/// Where unpacked bytes go.
struct Output<'a> {
    decoder: Decoder,
    scratch: Vec<u8>,
    /// Where what is unpacked in `scratch` begins in the source: the next extent may be another part of it.
    held: Option<u64>,
    what: &'a dyn ByteSource,
    image: u64,
    buf: &'a mut [u8],
}

impl Output<'_> {
    /// Unpacks what of an extent is wanted.
    fn put(&mut self, e: &Extent, data: &[u8]) -> Result<(), SourceError> {
        let end = self.image + self.buf.len() as u64;
        let (a, b) = (e.image.max(self.image), e.end().min(end));
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let to = index(a - self.image)..index(b - self.image);
        let inside = index(a - e.image)..index(b - e.image);
        let Some(to) = self.buf.get_mut(to) else {
            return Ok(());
        };
        let whole = inside.len() as u64 == e.len;
        let done = match e.codec {
            Codec::Raw => match data.get(inside) {
                Some(from) => {
                    to.copy_from_slice(from);
                    Ok(())
                }
                None => Err("its bytes are not all there".to_owned()),
            },
            Codec::Zero => {
                to.fill(0);
                Ok(())
            }
            _ if whole && e.part.is_none() => self.decoder.decode(e.codec, data, to),
            _ => {
                let (before, all) = e.part.unwrap_or((0, e.len));
                let held = self.held.take() == Some(e.source) && e.part.is_some();
                let mut done = Ok(());
                if !held || self.scratch.len() as u64 != all {
                    self.scratch.clear();
                    self.scratch.resize(index(all), 0);
                    done = self.decoder.decode(e.codec, data, &mut self.scratch);
                }
                let inside = inside.start + index(before)..inside.end + index(before);
                done.map(|()| {
                    self.held = Some(e.source);
                    to.copy_from_slice(&self.scratch[inside]);
                })
            }
        };
        done.map_err(|why| SourceError::Medium {
            what: self.what.pin().to_string(),
            offset: e.source,
            len: e.stored,
            detail: format!(
                "the {} data of image offset {:#x} can't be unpacked: {why}",
                e.codec.name(),
                e.image
            ),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ImageOffset;
    use crate::extent::windows::ZEROS_ALONE;
    use crate::extent::{ImageBuilder, Stored};
    use crate::run::RunMap;
    use crate::source::RamSource;

    /// An image of 64 pages, packed in turn by different codecs, some in two parts, out of order in the source.
    pub(in crate::extent) fn packed() -> (Vec<u8>, Vec<u8>, RunMap, crate::extent::Table) {
        let page = |i: u64| -> Vec<u8> { (0..4096).map(|b| (b / 7 + i * 31) as u8).collect() };
        let mut source = vec![0xee; 512];
        let mut image = Vec::new();
        let mut pieces = Vec::new();
        for i in (0..64u64).rev() {
            let p = page(i);
            let (codec, data) = match i % 4 {
                0 => (Codec::Zstd, zstd::bulk::compress(&p, 1).expect("zstd")),
                1 => (
                    Codec::Zlib,
                    miniz_oxide::deflate::compress_to_vec_zlib(&p, 3),
                ),
                2 => (Codec::Raw, p.clone()),
                _ => (Codec::Zero, Vec::new()),
            };
            let at = source.len() as u64;
            let (first, second) = data.split_at(if i % 5 == 0 {
                data.len() / 3
            } else {
                data.len()
            });
            source.extend(first);
            source.extend([0xee; 24]);
            let rest = (!second.is_empty()).then_some((source.len() as u64, second.len() as u64));
            source.extend(second);
            let len = first.len() as u64;
            pieces.push((
                i,
                Stored {
                    source: at,
                    len,
                    rest,
                    codec,
                },
            ));
        }
        pieces.reverse();
        let mut b = ImageBuilder::default();
        for (i, s) in pieces {
            // A hole in the middle of physical memory.
            let pa = i * 4096 + if i >= 32 { 1 << 30 } else { 0 };
            if s.codec == Codec::Zero {
                image.extend([0; 4096]);
                b.zeros(pa, 4096).expect("room");
            } else {
                image.extend(page(i));
                b.stored(pa, 4096, s).expect("room");
            }
        }
        image.resize(image.len() + (ZEROS_ALONE as usize), 0);
        b.zeros(64 * 4096 + (1 << 30), ZEROS_ALONE).expect("room");
        let (runs, table) = b.finish().expect("sound");
        (source, image, runs, table)
    }

    pub(in crate::extent) async fn reader(
        source: Vec<u8>,
        table: &crate::extent::Table,
    ) -> ImageReader {
        let len = source.len() as u64;
        let t = Arc::new(RamSource::new("table", table.data.to_vec()));
        let x = Extents::open(t, &table.info, len).await.expect("sound");
        ImageReader::coded(Arc::new(RamSource::new("x", source)), Arc::new(x))
    }

    #[tokio::test]
    async fn any_range_reads_as_it_was() {
        let (source, image, _, table) = packed();
        let r = reader(source.clone(), &table).await;
        let bytes = r.bytes();
        assert_eq!(bytes.len(), image.len() as u64);
        let near = Near {
            start: 300,
            bytes: &source[300..9000],
            bad: &[],
        };
        let at_hand = DecodedNear { image: &r, near };
        for (from, to) in [
            (0, image.len()),
            (1, 2),
            (4095, 4097),
            (5 * 4096 + 7, 31 * 4096),
            (200_000, 262_144),
        ] {
            for s in [bytes.as_ref(), &at_hand] {
                let got = s
                    .read_vec(FileOffset(from as u64), to - from)
                    .await
                    .expect("read");
                assert!(got == image[from..to], "{from}..{to}");
            }
        }
        let past = bytes.read_vec(FileOffset(image.len() as u64 - 4), 5).await;
        assert!(past.expect_err("past").is_content());
    }

    #[tokio::test]
    async fn damage_is_told_with_its_place_and_costs_its_extent() {
        let (mut source, image, _, table) = packed();
        let x = reader(source.clone(), &table).await;
        let e = x
            .extents()
            .expect("coded")
            .at(ImageOffset(5 * 4096))
            .await
            .expect("read")
            .expect("stored");
        assert_eq!(e.codec, Codec::Zlib);
        source[e.source as usize + 3] ^= 0xff;
        let bytes = reader(source, &table).await.bytes();
        let wrong = bytes
            .read_vec(FileOffset(5 * 4096), 10)
            .await
            .expect_err("damaged");
        assert!(
            wrong.is_content() && wrong.to_string().contains("zlib"),
            "{wrong}"
        );
        assert!(
            wrong.to_string().contains(&format!("{:#x}", e.source)),
            "{wrong}"
        );
        let next = bytes
            .read_vec(FileOffset(6 * 4096), 10)
            .await
            .expect("its neighbour");
        assert_eq!(next, image[6 * 4096..6 * 4096 + 10]);
    }
}
