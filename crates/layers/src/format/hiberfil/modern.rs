//! Windows 8 and later: sets of packed pages, one behind the other, in two sections.
//!
//! ```text
//! header   length 0xC, bytes of a page 0x18, pages of the first section 0x58, where it begins 0x68 (in pages), where the second
//!          begins 0x70; the pages of the second, and the highest page of the machine, at places that differ between versions
//! set      u32: ranges (8 bits), bytes (22), method (2: 0, 1 Xpress; 2, 3 Xpress with Huffman codes)
//!          for each range 8 bytes (4 on 32-bit machines): pages - 1 (4 bits), number of the first page
//!          the bytes; as many as the pages have: they are not packed
//! ```

use super::super::ahead::Ahead;
use super::super::bytes::{le32, le64};
use super::super::{FormatError, gap, note};
use super::{Found, MAX_PAGE, PAGE, Piece, Set};
use crate::extent::{Codec, MAX_EXTENT, MAX_STORED};
use crate::source::ByteSource;

/// Where a version has its fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) wide: bool,
    /// Where the two sections begin.
    loader: usize,
    kernel: usize,
    /// The highest page; of a version that is not known nobody knows where that is.
    highest: Option<usize>,
    /// Whether it is that of a fast startup.
    fast: Option<usize>,
    /// From the file.
    loader_total: u64,
    loader_at: u64,
    kernel_total: Option<u64>,
    kernel_at: u64,
}

/// Length of the header, pages of the second section, highest page, fast startup.
const WIDE: [(u32, usize, usize, Option<usize>); 6] = [
    (0x4d8, 0x238, 0x498, None),
    (0x448, 0x230, 0x400, None),
    (0x3e0, 0x230, 0x398, Some(0x364)),
    (0x3d8, 0x230, 0x398, Some(0x364)),
    (0x3c8, 0x220, 0x388, None),
    (0x3b0, 0x218, 0x380, None),
];
/// Windows 8 and 8.1.
const WIDE_8: (u32, usize, usize, Option<usize>) = (0x360, 0x1c8, 0x330, Some(0x2fc));
const NARROW: [(u32, usize, usize, Option<usize>); 5] = [
    (0x340, 0x210, 0x310, None),
    (0x338, 0x210, 0x310, None),
    (0x328, 0x200, 0x300, None),
    (0x310, 0x1f8, 0x2f8, None),
    (0x2c8, 0x1b0, 0x2b0, None),
];

/// The header of such a file, by its length and the bytes of a page.
pub(super) fn header(head: &[u8]) -> Option<Header> {
    let len = le32(head, 0xc)?;
    let pages = |at| le32(head, at) == Some(4096);
    let of = |table: &[(u32, usize, usize, Option<usize>)]| {
        table.iter().find(|(l, ..)| *l == len).copied()
    };
    // Later versions are longer; the fields before the performance counters have stayed where they are.
    let (wide, places) = if pages(0x18) && len >= WIDE_8.0 {
        (true, of(&[WIDE_8]).or_else(|| of(&WIDE)))
    } else if pages(0x14) && len >= 0x2c8 {
        (false, of(&NARROW))
    } else {
        return None;
    };
    if len > 4096 {
        return None;
    }
    let (loader_pages, loader, kernel) = match (wide, len) {
        (true, 0x360) => (0x58, 0x60, 0x68),
        (true, _) => (0x58, 0x68, 0x70),
        (false, _) => (0x48, 0x50, 0x54),
    };
    let word = |at| {
        if wide {
            le64(head, at)
        } else {
            le32(head, at).map(u64::from)
        }
    };
    let kernel_pages = places.map(|p| p.1);
    Some(Header {
        wide,
        loader,
        kernel,
        highest: places.map(|p| p.2),
        fast: places.and_then(|p| p.3),
        loader_total: le64(head, loader_pages)?,
        loader_at: word(loader)?,
        kernel_total: match kernel_pages {
            Some(at) => Some(le64(head, at)?),
            None => None,
        },
        kernel_at: word(kernel)?,
    })
}

impl Header {
    /// Pages in both sections, where the header tells.
    pub(super) fn pages(&self) -> Option<u64> {
        self.loader_total.checked_add(self.kernel_total?)
    }

    /// Where the number of the highest page is, and the number.
    pub(super) fn highest_page(&self, head: &[u8]) -> Option<(u64, u64)> {
        let at = self.highest?;
        let page = if self.wide {
            le64(head, at)
        } else {
            le32(head, at).map(u64::from)
        };
        page.filter(|p| *p < MAX_PAGE).map(|p| (at as u64, p))
    }

    /// What else the header says.
    pub(super) fn tell(&self, head: &[u8], found: &mut Found) {
        if let Some(at) = self.fast
            && head.get(at).is_some_and(|b| *b != 0)
        {
            gap(&mut found.gaps, at as u64..at as u64 + 1, || {
                "this is the file of a fast startup: users were logged off before it was written, and of processes there is what runs \
                 without a user"
                    .to_owned()
            });
        }
        if self.kernel_total.is_none() {
            note(&mut found.notes, || {
                "a version that is not known: how many pages the second section has is not said, so it was read as far as it goes".to_owned()
            });
        }
        // Since Windows 10: pages of the secure kernel, encrypted.
        if self.wide && self.loader == 0x68 && le64(head, 0x60).is_some_and(|p| p != 0) {
            note(&mut found.notes, || {
                "pages of the secure kernel are encrypted and are not read".to_owned()
            });
        }
    }

    /// Reads both sections.
    pub(super) async fn walk(
        &self,
        source: &dyn ByteSource,
        found: &mut Found,
    ) -> Result<(), FormatError> {
        let mut ahead = Ahead::new(source);
        let sections = [
            (
                "first",
                self.loader,
                self.loader_at,
                Some(self.loader_total),
            ),
            ("second", self.kernel, self.kernel_at, self.kernel_total),
        ];
        for (name, field, at, total) in sections {
            if total == Some(0) {
                continue;
            }
            let place = at.checked_mul(PAGE).filter(|p| *p > 0 && *p < source.len());
            let Some(place) = place else {
                found.lost(field as u64, field as u64 + 8, || {
                    let pages = total.map_or(String::new(), |n| format!(" of {n} pages"));
                    format!(
                        "the {name} section{pages} begins at page {at:#x}, where the file of {} bytes has nothing",
                        source.len()
                    )
                });
                continue;
            };
            self.section(&mut ahead, source.len(), name, place, total, found)
                .await?;
        }
        Ok(())
    }

    async fn section(
        &self,
        ahead: &mut Ahead<'_>,
        end: u64,
        name: &str,
        mut at: u64,
        total: Option<u64>,
        found: &mut Found,
    ) -> Result<(), FormatError> {
        let mut done = 0u64;
        while total.is_none_or(|t| done < t) {
            let step = self.set(ahead, end, at, found).await?;
            match step {
                Ok((pages, next)) => {
                    done = done.saturating_add(pages);
                    at = next;
                    if at <= end {
                        continue;
                    }
                    let left = total.map_or(0, |t| t.saturating_sub(done));
                    found.lost(end, end, || {
                        format!(
                            "the {name} section is cut short in a set of {pages} pages; {left} more are behind the end of the file"
                        )
                    });
                    return Ok(());
                }
                Err(_) if total.is_none() && done > 0 => return Ok(()),
                Err(what) => {
                    let left = total.map_or(String::new(), |t| {
                        format!("; {} of {t} pages are lost", t.saturating_sub(done))
                    });
                    found.lost(at, end, || {
                        format!("in the {name} section at {at:#x}: expected a set of packed pages, found {what}{left}")
                    });
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads the head of a set; gives its pages and where the next one begins, or what is there instead.
    async fn set(
        &self,
        ahead: &mut Ahead<'_>,
        end: u64,
        at: u64,
        found: &mut Found,
    ) -> Result<Result<(u64, u64), String>, FormatError> {
        let Some(word) = le32(ahead.get(at, 4).await?, 0) else {
            return Ok(Err("the end of the file".into()));
        };
        let (ranges, len, method) = (word & 0xff, u64::from(word >> 8 & 0x3f_ffff), word >> 30);
        if ranges == 0 || len == 0 {
            return Ok(Err(format!("{word:#010x}")));
        }
        let each = if self.wide { 8 } else { 4 };
        let need = each * ranges as usize;
        let bytes = ahead.get(at + 4, need).await?;
        if bytes.len() < need {
            return Ok(Err("the end of the file".into()));
        }
        let mut all = Vec::with_capacity(ranges as usize);
        for b in bytes.chunks_exact(each) {
            let n = if self.wide {
                le64(b, 0)
            } else {
                le32(b, 0).map(u64::from)
            };
            let n = n.unwrap_or(0);
            let (pages, page) = ((n & 15) + 1, n >> 4);
            if page + pages > MAX_PAGE {
                return Ok(Err(format!("a range from page {page:#x} on")));
            }
            all.push((page, pages));
        }
        let pages: u64 = all.iter().map(|(_, n)| n).sum();
        let whole = pages * PAGE;
        if len > whole || whole > MAX_EXTENT || (len != whole && len > MAX_STORED) {
            return Ok(Err(format!("{len} bytes for {pages} pages")));
        }
        let data = at + 4 + need as u64;
        let codec = match method {
            _ if len == whole => Codec::Raw,
            0 | 1 => Codec::Xpress,
            _ => Codec::XpressHuffman,
        };
        let set = found.set(Set {
            at: data,
            len,
            pages,
            codec,
            lost: data + len > end,
        })?;
        let mut first = 0;
        for (page, pages) in all {
            let p = Piece {
                page,
                pages,
                set,
                first,
            };
            found.piece(p, at)?;
            first += pages;
        }
        Ok(Ok((pages, data + len)))
    }
}
