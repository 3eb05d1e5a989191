//! AVML: ranges of memory, packed each as a snappy frame; plain LiME ranges may lie between them.
//!
//! ```text
//! 0   u32  magic 0x4C4D5641 ("AVML" in the file)
//! 4   u32  version 2
//! 8   u64  first physical address
//! 16  u64  last physical address, inclusive
//! 24  u64  0
//! 32  ...  a snappy frame: chunks of 4 bytes (kind, length) and a body that stands for 64 KiB at most
//!     u64  bytes of the frame
//! ```
//!
//! How long a frame is stands behind it, so the file is walked from chunk to chunk, which reads their heads alone where a read is
//! cheap, and all of it once where it lies in an object store. Each chunk is an extent, so any page costs the unpacking of 64 KiB.
//!
//! Versions since 2020 write ranges of at most 16 MiB and leave out those that are all zeros: a hole of whole 16 MiB behind a whole
//! range of 16 MiB is taken for zeros. Older ones write a range as the kernel lists it.
//!
//! Sources: AVML `src/image.rs`, `src/io/snappy.rs`; the snappy framing format; LiME `src/lime.h`.

use super::ahead::Ahead;
use super::{ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, gap, note};
use crate::extent::{Codec, ImageBuilder, MAX_STORED, Stored};
use crate::source::ByteSource;
use async_trait::async_trait;

pub(super) const AVML: &[u8] = b"AVML\x02\0\0\0";
const LIME: &[u8] = b"EMiL\x01\0\0\0";
const HEADER: u64 = 32;
/// Bytes that a chunk of a frame stands for at most.
const CHUNK: u64 = 64 << 10;
/// Bytes of a range that was written whole, where ranges of zeros are left out.
const BLOCK: u64 = 16 << 20;
/// Zeros that may have been left out between two ranges.
const MAX_ZEROS: u64 = 1 << 40;

/// AVML captures.
#[derive(Clone, Copy, Debug)]
pub struct Avml;

/// A range of memory and its pieces, in order.
#[derive(Debug)]
struct Block {
    /// Where its header lies.
    at: u64,
    first: u64,
    len: u64,
    pieces: Vec<(u64, Stored)>,
    plain: bool,
}

impl Block {
    fn has(&self) -> u64 {
        self.pieces.iter().map(|(n, _)| n).sum()
    }
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) plain: bool,
    pub(super) first: u64,
    pub(super) len: u64,
}

/// Reads a header; the error says what is there instead.
pub(super) fn header(b: &[u8]) -> Result<Header, String> {
    if b.len() < 32 {
        return Err(format!("{} bytes", b.len()));
    }
    let plain = match &b[..8] {
        m if m == AVML => false,
        m if m == LIME => true,
        m => return Err(format!("{m:02x?}")),
    };
    let u64_at = |o: usize| b.get(o..o + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (first, last) = (u64_at(8).unwrap_or(0), u64_at(16).unwrap_or(0));
    // An empty range ends below where it begins.
    let len = last.checked_add(1).and_then(|end| end.checked_sub(first));
    match len {
        Some(len) => Ok(Header { plain, first, len }),
        None => Err(format!("a range from {first:#x} to {last:#x}")),
    }
}

/// One chunk of a frame.
enum Chunk {
    /// Bytes of memory.
    Data(u64, Stored),
    /// Padding, or the frame's identifier.
    Nothing,
    /// Not a chunk, or one that the file lacks the end of.
    Not(String),
}

fn chunk(b: &[u8], at: u64, end: u64) -> (Chunk, u64) {
    let Some((head, body)) = b.split_first_chunk::<4>() else {
        return (Chunk::Not("the end of the file".into()), 0);
    };
    let len = u64::from(u32::from_le_bytes([head[1], head[2], head[3], 0]));
    let next = at + 4 + len;
    let not = |why: String| (Chunk::Not(why), 0);
    if next > end {
        return not(format!(
            "a chunk of {len} bytes of which the file has {}",
            end.saturating_sub(at + 4)
        ));
    }
    let stored = |codec| Stored {
        source: at + 4,
        len,
        rest: None,
        codec,
    };
    match head[0] {
        0x00 if len > 4 && len <= MAX_STORED => {
            // Behind the checksum stands how much it is, as a number of variable length.
            match snap::raw::decompress_len(body.get(4..).unwrap_or_default()) {
                Ok(n) if (1..=CHUNK).contains(&(n as u64)) => {
                    (Chunk::Data(n as u64, stored(Codec::SnappyFrame)), next)
                }
                Ok(n) => not(format!("a chunk that stands for {n} bytes")),
                Err(e) => not(e.to_string()),
            }
        }
        0x01 if len > 4 && len - 4 <= CHUNK => {
            (Chunk::Data(len - 4, stored(Codec::PlainFrame)), next)
        }
        0xff if len == 6 && body.starts_with(b"sNaPpY") => (Chunk::Nothing, next),
        0x80..=0xfe => (Chunk::Nothing, next),
        kind => not(format!("a chunk of kind {kind:#04x} with {len} bytes")),
    }
}

/// Reads the pieces of a packed range; gives where they end, or what is wrong there.
async fn frame(
    ahead: &mut Ahead<'_>,
    mut at: u64,
    end: u64,
    block: &mut Block,
) -> Result<Result<u64, (u64, String)>, FormatError> {
    let (mut have, frame) = (0, at);
    while have < block.len {
        // Kind, length, checksum, and as much as a length takes.
        let b = ahead.get(at, 13).await?;
        match chunk(b, at, end) {
            (Chunk::Data(n, s), next) if have + n <= block.len => {
                block.pieces.push((n, s));
                have += n;
                at = next;
            }
            (Chunk::Data(n, _), _) => {
                let left = block.len - have;
                let why = format!("a chunk of {n} bytes where {left} are left of the range");
                return Ok(Err((at, why)));
            }
            (Chunk::Nothing, next) => at = next,
            (Chunk::Not(why), _) => return Ok(Err((at, why))),
        }
    }
    let trailer = ahead.get(at, 8).await?;
    let said = trailer.try_into().map(u64::from_le_bytes);
    Ok(match said {
        Ok(n) if n == at - frame => Ok(at + 8),
        Ok(n) => Err((at, format!("{n}"))),
        Err(_) => Err((at, "the end of the file".into())),
    })
}

#[async_trait]
impl ImageFormat for Avml {
    fn name(&self) -> &'static str {
        "avml"
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        // A file may begin with a plain range; one that has no others is LiME.
        head.starts_with(AVML)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let (mut notes, mut gaps) = (Vec::new(), Vec::new());
        let blocks = walk(source, &mut notes, &mut gaps).await?;
        lay_out(source, blocks, notes, gaps)
    }
}

/// Goes over the file from range to range.
async fn walk(
    source: &dyn ByteSource,
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) -> Result<Vec<Block>, FormatError> {
    let end = source.len();
    let mut ahead = Ahead::new(source);
    let (mut blocks, mut at) = (Vec::new(), 0u64);
    while at < end {
        let h = match header(ahead.get(at, 32).await?) {
            Ok(h) => h,
            Err(found) => {
                gap(gaps, at..end, || {
                    format!(
                        "expected the header of a range (AVML version 2 or LiME version 1), found {found}: {} bytes are not read",
                        end - at
                    )
                });
                break;
            }
        };
        let mut block = Block {
            at,
            first: h.first,
            len: h.len,
            pieces: Vec::new(),
            plain: h.plain,
        };
        at += HEADER;
        if h.plain {
            let there = h.len.min(end - at);
            if there > 0 {
                let s = Stored {
                    source: at,
                    len: there,
                    rest: None,
                    codec: Codec::Raw,
                };
                block.pieces.push((there, s));
            }
            at = at.saturating_add(h.len);
        } else {
            match frame(&mut ahead, at, end, &mut block).await? {
                Ok(next) => at = next,
                Err((place, found)) => {
                    let whole = block.has() == block.len;
                    let expected = if whole {
                        format!("its length, {}", place - at)
                    } else {
                        "a chunk of a snappy frame".to_owned()
                    };
                    gap(gaps, place..end, || {
                        format!(
                            "in the range at physical {:#x}: expected {expected}, found {found}: {} bytes are not read",
                            h.first,
                            end - place
                        )
                    });
                    at = end;
                }
            }
        }
        let has = block.has();
        if has < block.len {
            note(notes, || {
                format!(
                    "the range at physical {:#x} is cut short: {has} of {} bytes are there",
                    block.first, block.len
                )
            });
        }
        if block.len > 0 {
            blocks.push(block);
        }
        if blocks.len() > MAX_RUNS {
            return Err(FormatError::Header {
                format: "avml",
                offset: at,
                expected: format!("at most {MAX_RUNS} ranges"),
                found: "more".into(),
            });
        }
    }
    Ok(blocks)
}

/// Lays the ranges out in physical order.
fn lay_out(
    source: &dyn ByteSource,
    mut blocks: Vec<Block>,
    mut notes: Vec<String>,
    mut gaps: Vec<ContainerGap>,
) -> Result<Opened, FormatError> {
    blocks.sort_by_key(|b| (b.first, b.at));
    let mut image = ImageBuilder::default();
    let (mut zeros, mut before) = (0u64, None);
    for b in &blocks {
        let (file, end) = (b.at..source.len(), b.first.checked_add(b.len));
        let taken = image.end().is_some_and(|e| e > b.first);
        if taken || end.is_none() {
            let why = if taken {
                "are there twice; the first range was taken"
            } else {
                "leave the address space"
            };
            let file_end = b
                .pieces
                .last()
                .map_or(b.at + HEADER, |(_, s)| s.source + s.len);
            gap(&mut gaps, file.start..file_end, || {
                format!("{:#x} bytes at physical {:#x} {why}", b.len, b.first)
            });
            continue;
        }
        let built = (|| {
            if let Some((last_end, whole)) = before {
                let hole: u64 = b.first - last_end;
                if whole && hole > 0 && hole.is_multiple_of(BLOCK) && hole <= MAX_ZEROS {
                    image.zeros(last_end, hole)?;
                    zeros += hole;
                }
            }
            let mut pa = b.first;
            for (len, s) in &b.pieces {
                image.stored(pa, *len, *s)?;
                pa += len;
            }
            image.missing_if_any(pa, b.first + b.len)
        })();
        built.map_err(|e| FormatError::built("avml", e))?;
        before = Some((b.first + b.len, b.len == BLOCK && b.has() == b.len));
    }
    if zeros > 0 {
        note(&mut notes, || {
            format!("{zeros} bytes of zeros that AVML left out are part of the image")
        });
    }
    if image.image_len() == 0 {
        return Err(FormatError::NoMemory { format: "avml" });
    }
    let plain = blocks.iter().filter(|b| b.plain).count();
    if plain > 0 {
        note(&mut notes, || {
            format!("{plain} of {} ranges are plain LiME ranges", blocks.len())
        });
    }
    let (runs, table) = image.finish().map_err(|e| FormatError::built("avml", e))?;
    Ok(Opened {
        layout: Layout {
            format: "avml".into(),
            version: Some("2".into()),
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
