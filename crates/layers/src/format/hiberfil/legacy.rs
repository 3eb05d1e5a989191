//! Windows 7: tables of ranges, each followed by the packed blocks of its pages.
//!
//! ```text
//! header   length 0xC, page of the first table at 0x60 (64-bit) or 0x4C
//! table    a page: page of the next table u64, ranges u32 (32-bit: two u32); from 16 (8) on first page and page behind the last of
//!          each range, u64 (u32)
//! blocks   from the next page on, each for 16 pages (the last one for what is left): "\x81\x81xpress", u32: pages - 1 (10 bits),
//!          bytes - 1 (22); at 32 the bytes, Xpress or as they are; then up to the next 8 bytes
//! ```

use super::super::FormatError;
use super::super::ahead::Ahead;
use super::super::bytes::{le32, le64};
use super::{Found, MAX_PAGE, PAGE, Piece, Set};
use crate::extent::Codec;
use crate::source::ByteSource;

/// What a block begins with.
pub(super) const MAGIC: &[u8] = b"\x81\x81xpress";
/// Bytes of a block's header.
const HEADER: u64 = 32;
/// Pages of a block.
const BLOCK: u64 = 16;
/// Lengths of the header.
const WIDE: u32 = 0x128;
const NARROW: u32 = 0xe0;
/// Numbers of ranges of a full table, behind which there may be another.
const FULL: [usize; 5] = [0x7f, 0xfe, 0xff, 0x1fe, 0x1ff];

/// Whether it is a 64-bit machine's, and the page of the first table.
pub(super) fn first_table(head: &[u8]) -> Option<(bool, u64)> {
    let len = le32(head, 0xc)?;
    let page = |at| le32(head, at) == Some(4096);
    match len {
        WIDE if page(0x18) => Some((true, le64(head, 0x60)?)),
        NARROW if page(0x14) => Some((false, u64::from(le32(head, 0x4c)?))),
        _ => None,
    }
}

/// A table of ranges.
struct Table {
    next: u64,
    ranges: Vec<(u64, u64)>,
}

/// Reads a table; the error is what is there instead.
fn table(b: &[u8], wide: bool) -> Result<Table, String> {
    let cut = || "the end of the file".to_owned();
    let word = |at: usize| {
        let n = if wide {
            le64(b, at)
        } else {
            le32(b, at).map(u64::from)
        };
        n.ok_or_else(cut)
    };
    let size = if wide { 8 } else { 4 };
    let count = le32(b, size).ok_or_else(cut)?;
    let most = (4096 - 2 * size) / (2 * size);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 || count > most {
        return Err(format!("{count} ranges"));
    }
    let mut ranges = Vec::with_capacity(count);
    for i in 0..count {
        let at = 2 * size * (i + 1);
        let (first, behind) = (word(at)?, word(at + size)?);
        if first >= behind || behind > MAX_PAGE {
            return Err(format!("a range from page {first:#x} to {behind:#x}"));
        }
        ranges.push((first, behind));
    }
    let next = word(0)?;
    Ok(Table { next, ranges })
}

/// Of which machines a table is: 64-bit ones, or 32-bit ones; `None`: it is none.
pub(super) fn width(page: &[u8], file: u64) -> Option<bool> {
    [true, false].into_iter().find(|wide| {
        table(page, *wide).is_ok_and(|t| t.next.checked_mul(PAGE).is_some_and(|at| at < file))
    })
}

/// Reads all tables and the heads of their blocks.
pub(super) async fn walk(
    source: &dyn ByteSource,
    wide: bool,
    first: u64,
    found: &mut Found,
) -> Result<(), FormatError> {
    let end = source.len();
    let mut ahead = Ahead::new(source);
    let mut page = first;
    loop {
        let at = page.saturating_mul(PAGE);
        if page == 0 || at >= end {
            found.lost(at, end, || {
                format!("a table of ranges should be at page {page:#x}, where the file of {end} bytes has nothing: what it names is lost")
            });
            return Ok(());
        }
        let t = match table(ahead.get(at, 4096).await?, wide) {
            Ok(t) => t,
            Err(what) => {
                found.lost(at, end, || {
                    format!("at {at:#x}: expected a table of ranges, found {what}: what it and later ones name is lost")
                });
                return Ok(());
            }
        };
        blocks(&mut ahead, end, at + PAGE, &t.ranges, found).await?;
        if t.next == 0 || !FULL.contains(&t.ranges.len()) {
            return Ok(());
        }
        // Tables follow each other.
        if t.next <= page {
            found.lost(at, at + 8, || {
                format!(
                    "the table at {at:#x} names one before it as the next, page {:#x}: what later ones name is lost",
                    t.next
                )
            });
            return Ok(());
        }
        page = t.next;
    }
}

/// Reads the heads of the blocks of a table.
async fn blocks(
    ahead: &mut Ahead<'_>,
    end: u64,
    mut at: u64,
    ranges: &[(u64, u64)],
    found: &mut Found,
) -> Result<(), FormatError> {
    let mut left: u64 = ranges.iter().map(|(a, b)| b - a).sum();
    let mut of = ranges.iter().copied();
    let mut range = of.next();
    while left > 0 {
        let pages = left.min(BLOCK);
        let (set, mut need) = match head(ahead.get(at, 32).await?, pages) {
            Ok((len, codec)) => {
                let data = at + HEADER;
                let lost = data + len > end;
                if lost {
                    found.lost(end, end, || {
                        format!("the block at {at:#x} is cut short: its {pages} pages are lost")
                    });
                }
                at = data + len.next_multiple_of(8);
                let set = Set {
                    at: data,
                    len,
                    pages,
                    codec,
                    lost,
                };
                (set, pages)
            }
            Err(what) => {
                found.lost(at, end, || {
                    format!(
                        "at {at:#x}: expected a block of {pages} packed pages, found {what}: {left} pages of its table are lost"
                    )
                });
                let set = Set {
                    at,
                    len: 0,
                    pages: left,
                    codec: Codec::Raw,
                    lost: true,
                };
                (set, left)
            }
        };
        left -= need;
        let set = found.set(set)?;
        let mut first = 0;
        while need > 0 {
            let Some((page, behind)) = range else {
                break;
            };
            let pages = (behind - page).min(need);
            let p = Piece {
                page,
                pages,
                set,
                first,
            };
            found.piece(p, at)?;
            (need, first) = (need - pages, first + pages);
            range = if page + pages < behind {
                Some((page + pages, behind))
            } else {
                of.next()
            };
        }
    }
    Ok(())
}

/// Bytes of a block and how they are packed; the error is what is there instead.
fn head(b: &[u8], pages: u64) -> Result<(u64, Codec), String> {
    let Some(word) = le32(b, 8).filter(|_| b.len() == 32) else {
        return Err("the end of the file".into());
    };
    if !b.starts_with(MAGIC) {
        return Err(format!("{:02x?}", &b[..8]));
    }
    let (len, whole) = (u64::from(word >> 10) + 1, pages * PAGE);
    match len {
        n if n == whole => Ok((n, Codec::Raw)),
        n if n < whole => Ok((n, Codec::Xpress)),
        n => Err(format!("a block of {n} bytes")),
    }
}
