//! EnCase images (E01), in one file or in segments: raw memory in chunks, each packed by itself.
//!
//! ```text
//! 0    "EVF\t\r\n\xff\0", 1, number of the segment u16, 0 u16
//! 13   sections: type[16], where the next begins u64, bytes u64, 40 bytes, Adler-32 of these 72 bytes; then its content
//! volume   chunks u32 at 4, sectors of a chunk u32, bytes of a sector u32, sectors u64; identifier of the set at 64, 16 bytes
//! data     the same in later segments
//! sectors  the chunks: a zlib stream, or as it is with its Adler-32 behind it
//! table    entries u32, 4 bytes, base u64, 4 bytes, Adler-32; for each chunk its place from the base on, top bit: packed; Adler-32
//! next, done   the end of a segment, of the last one
//! ```
//!
//! A chunk ends where the next one begins, the last one of a table with the section `sectors` before it.
//!
//! Source: libewf, "Expert Witness Compression Format specification".

use super::bytes::{le32, le64, text};
use super::known;
use super::{Beside, ContainerGap, FormatError, ImageFormat, Layout, Opened, Told, gap, note};
use crate::FileOffset;
use crate::extent::{Codec, Decoder, ImageBuilder, MAX_STORED, Stored};
use crate::source::{ByteSource, JoinedSource};
use async_trait::async_trait;
use std::sync::Arc;

const NAME: &str = "ewf";
const MAGIC: &[u8] = b"EVF\x09\x0d\x0a\xff\0";
const FIRST: u64 = 13;
const SECTION: u64 = 76;
/// Bytes of a chunk: 32 KiB as a rule, up to 16 MiB in newer programs.
const CHUNKS: std::ops::RangeInclusive<u64> = 512..=16 << 20;
/// Sections of a segment; a table has at most 65,534 entries or so.
const MAX_SECTIONS: usize = 1 << 20;
/// Bytes of a table that are read: larger ones are hostile.
const MAX_TABLE: u64 = 64 << 20;
/// Bytes of memory at most.
const MAX_MEMORY: u64 = 1 << 50;
const PACKED: u32 = 1 << 31;

/// EnCase images.
#[derive(Clone, Copy, Debug)]
pub struct Ewf;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

/// Adler-32 (RFC 1950).
fn adler(b: &[u8]) -> u32 {
    let (mut a, mut s) = (1u32, 0u32);
    for part in b.chunks(5552) {
        for x in part {
            a += u32::from(*x);
            s += a;
        }
        a %= 65_521;
        s %= 65_521;
    }
    s << 16 | a
}

/// The number of a segment; `None` where it is none.
fn segment(head: &[u8]) -> Option<u16> {
    let number = head.get(9..11)?.try_into().ok().map(u16::from_le_bytes)?;
    head.starts_with(MAGIC).then_some(number)
}

/// What the section `volume` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Volume {
    chunk: u64,
    /// Bytes of memory.
    len: u64,
    /// The same in all segments of an image; zeros in those of the old form.
    set: [u8; 16],
}

fn volume(b: &[u8], at: u64) -> Result<Volume, FormatError> {
    let field = |o: usize| le32(b, o).map(u64::from).unwrap_or(0);
    let chunk = field(8).saturating_mul(field(12));
    if !CHUNKS.contains(&chunk) {
        return Err(bad(
            at + 8,
            "chunks of 512 bytes to 16 MiB",
            format!("{} sectors of {}", field(8), field(12)),
        ));
    }
    // The old form is shorter and has a number of 32 bits.
    let sectors = if b.len() >= 1052 {
        le64(b, 16).unwrap_or(0)
    } else {
        field(16)
    };
    let len = sectors.saturating_mul(field(12));
    // A whole number of chunks, the last of which may be short.
    let most = field(4).saturating_mul(chunk);
    if len == 0 || len > most || len > MAX_MEMORY {
        return Err(bad(
            at + 16,
            format!("at most {most} bytes in {} chunks", field(4)),
            len.to_string(),
        ));
    }
    let set = b.get(64..80).filter(|_| b.len() >= 1052);
    let set = set.and_then(|s| s.try_into().ok()).unwrap_or_default();
    Ok(Volume { chunk, len, set })
}

/// What was found of the chunks.
#[derive(Default)]
struct Walk {
    volume: Option<Volume>,
    image: ImageBuilder,
    gaps: Vec<ContainerGap>,
    /// The last segment has its end.
    done: bool,
    first: Option<Stored>,
}

impl Walk {
    /// Goes over the sections of a segment that begins at `base` among the others.
    async fn segment(&mut self, f: &dyn ByteSource, base: u64) -> Result<(), FormatError> {
        let (mut at, end) = (FIRST, f.len());
        let mut sectors: Option<(u64, u64)> = None;
        for _ in 0..MAX_SECTIONS {
            let head = match at.checked_add(SECTION) {
                Some(to) if to <= end => f.read_vec(FileOffset(at), 76).await?,
                _ => {
                    self.cut(
                        base + at.min(end.saturating_sub(1)),
                        base + end,
                        "a section",
                        "the end of the file",
                    );
                    return Ok(());
                }
            };
            let (Some(next), Some(size), Some(sum)) =
                (le64(&head, 16), le64(&head, 24), le32(&head, 72))
            else {
                return Ok(());
            };
            if adler(&head[..72]) != sum {
                self.cut(
                    base + at,
                    base + end,
                    "a section",
                    "one whose checksum is wrong",
                );
                return Ok(());
            }
            let content = at + SECTION;
            match text(&head[..16]) {
                b"volume" | b"disk" | b"data" => {
                    let n =
                        usize::try_from(size.saturating_sub(SECTION).min(1052).min(end - content))
                            .unwrap_or(0);
                    let b = f.read_vec(FileOffset(content), n).await?;
                    let own = volume(&b, base + content)?;
                    let first = *self.volume.get_or_insert(own);
                    // The second copy may be of the old form.
                    let sets = [own.set, first.set];
                    let other_set = sets[0] != sets[1] && !sets.contains(&[0; 16]);
                    if other_set || (own.chunk, own.len) != (first.chunk, first.len) {
                        return Err(bad(
                            base + content,
                            format!("a segment of the image {:02x?}", first.set),
                            format!("one of another, {:02x?}: move it away", own.set),
                        ));
                    }
                }
                b"sectors" => sectors = Some((content, at.saturating_add(size).min(end))),
                b"table" => {
                    let table = (content, at.saturating_add(size));
                    self.table(f, base, table, sectors.take()).await?;
                }
                b"done" => {
                    self.done = true;
                    return Ok(());
                }
                b"next" => return Ok(()),
                _ => {}
            }
            if next <= at {
                self.cut(
                    base + at,
                    base + end,
                    "a section that comes later",
                    format!("one at {next:#x}"),
                );
                return Ok(());
            }
            at = next;
        }
        Err(bad(
            base + at,
            format!("at most {MAX_SECTIONS} sections"),
            "more",
        ))
    }

    fn cut(&mut self, at: u64, end: u64, expected: &str, found: impl Into<String>) {
        let found = found.into();
        gap(&mut self.gaps, at..end, || {
            format!(
                "expected {expected}, found {found}: {} bytes are not read",
                end - at
            )
        });
    }

    /// Takes the chunks of a table, whose bytes lie in the section before it.
    async fn table(
        &mut self,
        f: &dyn ByteSource,
        base: u64,
        (at, end): (u64, u64),
        sectors: Option<(u64, u64)>,
    ) -> Result<(), FormatError> {
        let Some(v) = self.volume else {
            return Err(bad(
                base + at,
                "a section volume before the first table",
                "none",
            ));
        };
        let there = end.min(f.len()).saturating_sub(at).min(MAX_TABLE);
        let n = usize::try_from(there).unwrap_or(0);
        let b = f.read_vec(FileOffset(at), n).await?;
        let count = le32(&b, 0).unwrap_or(0) as usize;
        let place = le64(&b, 8).unwrap_or(0);
        let entries = b.get(24..24usize.saturating_add(count.saturating_mul(4)));
        let Some(entries) = entries.filter(|_| le32(&b, 20) == Some(adler(&b[..20]))) else {
            self.cut(
                base + at,
                base + f.len(),
                "a table of chunks",
                "one that is damaged or cut",
            );
            return Ok(());
        };
        let offset = |i: usize| {
            let e = le32(entries, 4 * i)?;
            Some((place.checked_add(u64::from(e & !PACKED))?, e & PACKED != 0))
        };
        let last = sectors.map_or(f.len(), |(_, end)| end);
        for i in 0..count {
            let done = self.image.image_len();
            let len = v.chunk.min(v.len.saturating_sub(done));
            if len == 0 {
                break;
            }
            let Some((from, packed)) = offset(i) else {
                break;
            };
            let to = offset(i + 1).map_or(last, |(o, _)| o);
            let stored = to.saturating_sub(from);
            let fits = match packed {
                true => stored > 0 && stored <= MAX_STORED,
                false => stored >= len,
            };
            let built = if fits && from >= FIRST && to <= f.len() {
                let s = Stored {
                    source: base + from,
                    len: if packed { stored } else { len },
                    rest: None,
                    codec: if packed { Codec::Zlib } else { Codec::Raw },
                };
                self.first.get_or_insert(s);
                self.image.stored(done, len, s)
            } else {
                let entry = base + at + 24 + 4 * i as u64;
                gap(&mut self.gaps, entry..entry + 4, || {
                    format!("the chunk at {done:#x} of memory has no place: {from:#x} to {to:#x}")
                });
                self.image.missing(done, len)
            };
            built.map_err(|e| FormatError::built(NAME, e))?;
        }
        Ok(())
    }
}

#[async_trait]
impl ImageFormat for Ewf {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        segment(head).is_some()
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let mut w = Walk::default();
        let files: Vec<&dyn ByteSource> = match source.parts() {
            [] => vec![source],
            parts => parts.iter().map(AsRef::as_ref).collect(),
        };
        let mut base = 0u64;
        for (i, f) in files.iter().enumerate() {
            let number = segment(&f.head(16).await?);
            if number != u16::try_from(i + 1).ok() {
                let found = number.map_or("none".to_owned(), |n| n.to_string());
                return Err(bad(
                    base + 9,
                    format!(
                        "segment {}; name the first one, with the others beside it",
                        i + 1
                    ),
                    found,
                ));
            }
            w.segment(*f, base).await?;
            base = base.saturating_add(f.len());
        }
        let v = w
            .volume
            .ok_or_else(|| bad(FIRST, "a section volume", "none"))?;
        let mut notes = Vec::new();
        if files.len() > 1 {
            note(&mut notes, || format!("{} segments", files.len()));
        }
        let done = w.image.image_len();
        if done < v.len {
            let why = if w.done {
                "no table names them"
            } else {
                "in segments that are not there, or cut off"
            };
            note(&mut notes, || {
                format!(
                    "{} of {} bytes of memory are missing: {why}",
                    v.len - done,
                    v.len
                )
            });
            let built = w.image.missing(done, v.len - done);
            built.map_err(|e| FormatError::built(NAME, e))?;
        }
        let mut gaps = w.gaps;
        if let Some(s) = w.first {
            judge(source, s, v.chunk.min(v.len), &mut gaps).await?;
        }
        let (runs, table) = w.image.finish().map_err(|e| FormatError::built(NAME, e))?;
        Ok(Opened {
            layout: Layout {
                format: NAME.into(),
                version: Some("E01".into()),
                runs,
                arch: None,
                dtb_hints: Vec::new(),
                notes,
                gaps,
                extents: Some(table.info.clone()),
                page_files: Vec::new(),
                told: Told::default(),
            },
            table: Some(table),
        })
    }
}

/// Looks whether the first chunk begins as memory may: most EnCase images are of disks.
async fn judge(
    source: &dyn ByteSource,
    s: Stored,
    chunk: u64,
    gaps: &mut Vec<ContainerGap>,
) -> Result<(), FormatError> {
    let size = |n: u64| usize::try_from(n).unwrap_or(0);
    let data = source.read_vec(FileOffset(s.source), size(s.len)).await?;
    let mut head = vec![0; size(chunk)];
    if Decoder::default()
        .decode(s.codec, &data, &mut head)
        .is_err()
    {
        return Ok(());
    }
    if let Some(inside) = super::named(&head) {
        return Err(FormatError::Inside {
            what: "an EnCase image (E01)",
            inside: format!("a capture of the format {inside}"),
            hint: "export it: ewfexport -f raw",
        });
    }
    if let Some(what) = known::stream(&head, &[]) {
        let len = source.len();
        gap(gaps, 0..len, || {
            format!("does not look like physical memory: it begins as {what} does")
        });
    }
    Ok(())
}

/// All segments of the image that a file is one of, as far as they lie beside it.
pub(super) async fn joined(
    source: &Arc<dyn ByteSource>,
    beside: &dyn Beside,
) -> Result<Option<Arc<dyn ByteSource>>, FormatError> {
    let Some(own) = segment(&source.head(16).await?) else {
        return Ok(None);
    };
    let mut all = vec![(own, source.clone())];
    for other in beside.numbered().await? {
        let number = segment(&other.head(16).await?);
        all.extend(number.map(|n| (n, other)));
    }
    all.sort_by_key(|(n, _)| *n);
    // One after the other from the first on: what comes behind a hole can't be placed.
    let whole = all
        .iter()
        .enumerate()
        .take_while(|(i, (n, _))| usize::from(*n) == i + 1);
    let parts: Vec<_> = whole.map(|(_, (_, s))| s.clone()).collect();
    Ok((parts.len() > 1).then(|| Arc::new(JoinedSource::new(parts)) as Arc<dyn ByteSource>))
}

/// Whether a file is a segment and not the first one.
pub(super) fn is_later_segment(head: &[u8]) -> bool {
    segment(head).is_some_and(|n| n > 1)
}
