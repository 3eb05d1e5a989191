//! What chunks found across the borders of pages, judged when it is known whose pages these are.
//!
//! A chunk reads RAM as it lies. What it finds across a border of two pages was written so only where the second page is
//! also the next one in its file or process.
//!
//! * Pages that were looked at in the order of a file or process ([`Order`]): what touches the end of physically adjacent
//!   bytes was told from there, with the page that really follows. The chunk's row is dropped.
//! * Other pages: where the frame map shows that both belong together, the row stands. Where it doesn't, or there is no map,
//!   it is marked `spliced`: it may be made of two halves that have nothing to do with each other.

use crate::tables::{OrderedRow, name};
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::UInt64Type;

const PAGE: u64 = 4096;

/// One bit for each page of the image.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, page: u64) {
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        if word >= self.0.len() && word < usize::MAX {
            self.0.resize(word + 1, 0);
        }
        if let Some(w) = self.0.get_mut(word) {
            *w |= 1 << (page % 64);
        }
    }

    fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|w| self.0.get(w));
        word.is_some_and(|w| w >> (page % 64) & 1 == 1)
    }
}

/// Which pages were looked at in their order, and where that order leaves the image's: three bits a page.
#[derive(Debug, Default)]
pub struct Order {
    owned: Bits,
    starts: Bits,
    ends: Bits,
    image_len: u64,
}

impl Order {
    /// No page yet, of an image of this many bytes.
    pub fn new(image_len: u64) -> Self {
        Self {
            image_len,
            ..Self::default()
        }
    }

    /// Notes bytes that were looked at in their order. What lies outside of the image is passed over.
    pub fn add(&mut self, r: &OrderedRow) {
        let end = r.image_offset.saturating_add(r.length);
        if r.length == 0 || end > self.image_len {
            return;
        }
        let (first, last) = (r.image_offset / PAGE, (end - 1) / PAGE);
        (first..=last).for_each(|p| self.owned.set(p));
        if r.starts && r.image_offset.is_multiple_of(PAGE) {
            self.starts.set(first);
        }
        if r.ends && end.is_multiple_of(PAGE) {
            self.ends.set(last);
        }
    }

    /// Whether what a chunk found here was told from its order.
    fn tells(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len.max(1));
        let (first, last) = (start / PAGE, (end - 1) / PAGE);
        if !self.owned.has(first) {
            return false;
        }
        let begins = start.is_multiple_of(PAGE) && self.starts.has(first);
        // Up to the page that it ends in, if it fills that to its end.
        let full = if end.is_multiple_of(PAGE) {
            last + 1
        } else {
            last
        };
        begins || (first..full).any(|p| self.ends.has(p))
    }
}

/// Columns that say which rows a judgement is about.
pub(crate) fn columns(table: &str) -> Option<&'static [&'static str]> {
    match table {
        name::FINDINGS => Some(&["image_offset", "length", "detector", "scope"]),
        name::EVENTS => Some(&["image_offset", "length", "row", "source"]),
        _ => None,
    }
}

/// Whether rows of a table are judged.
pub(crate) fn is_judged(table: &str) -> bool {
    columns(table).is_some()
}

/// Which rows are a chunk's: found in the image as it lies.
fn of_chunks(b: &RecordBatch) -> Vec<bool> {
    let text = |name: &str| {
        b.column_by_name(name)
            .and_then(|c| c.as_string_opt::<i32>())
    };
    if let (Some(detector), Some(scope)) = (text("detector"), text("scope")) {
        let is = |i: usize| {
            (detector.value(i).starts_with("carver:") || detector.value(i).starts_with("weblog:"))
                && scope.value(i) == "image"
        };
        return (0..b.num_rows()).map(is).collect();
    }
    // Rows of views and of pages in their order name what they come from.
    let row = text("row");
    (0..b.num_rows())
        .map(|i| row.is_some_and(|r| r.is_null(i)))
        .collect()
}

/// Rows that are dropped, `None` where none is; and for each row the bytes that it spans, if it is one that a border of
/// pages may have made.
pub(crate) struct Judged {
    pub(crate) keep: Option<BooleanArray>,
    /// First byte and length of rows that cross a border.
    pub(crate) crossing: Vec<(usize, u64, u64)>,
}

/// Judges rows by the columns that [`columns`] names.
pub(crate) fn judge(b: &RecordBatch, order: Option<&Order>) -> Judged {
    let number = |name: &str| {
        b.column_by_name(name)
            .and_then(|c| c.as_primitive_opt::<UInt64Type>())
    };
    let (Some(at), Some(len)) = (number("image_offset"), number("length")) else {
        return Judged {
            keep: None,
            crossing: Vec::new(),
        };
    };
    let (mut dropped, mut crossing) = (false, Vec::new());
    let mut keep = vec![true; b.num_rows()];
    for (i, chunk) in of_chunks(b).into_iter().enumerate() {
        let (start, len) = (at.value(i), len.value(i));
        if !chunk || len == 0 {
            continue;
        }
        if order.is_some_and(|o| o.tells(start, len)) {
            keep[i] = false;
            dropped = true;
        } else if start / PAGE != (start + len - 1) / PAGE {
            crossing.push((i, start, len));
        }
    }
    Judged {
        keep: dropped.then(|| BooleanArray::from(keep)),
        crossing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(image_offset: u64, length: u64, starts: bool, ends: bool) -> OrderedRow {
        OrderedRow {
            image_offset,
            length,
            starts,
            ends,
        }
    }

    #[test]
    fn what_touches_a_border_of_pages_in_order_is_told_from_there() {
        let mut o = Order::new(0x10000);
        // Two pages of a file that lie side by side; the file goes on elsewhere, and begins elsewhere.
        o.add(&row(0x2000, 0x2000, true, true));
        for (start, len, told) in [
            (0x2010, 0x20, false),  // within a page
            (0x2ff0, 0x20, false),  // across the border of pages that belong together
            (0x3ff0, 0x20, true),   // into a stranger's page
            (0x3ff0, 0x10, true),   // up to the end: it may go on elsewhere
            (0x2000, 0x10, true),   // from the start: it may begin elsewhere
            (0x2f00, 0x1200, true), // across both
            (0x1ff0, 0x20, false),  // begins in a page of nobody
            (0x4000, 0x10, false),  // beyond
        ] {
            assert_eq!(o.tells(start, len), told, "{start:#x} {len:#x}");
        }
    }

    #[test]
    fn a_list_that_was_cut_leaves_no_border() {
        let mut o = Order::new(0x10000);
        o.add(&row(0x2000, 0x1000, true, false));
        o.add(&row(0x3000, 0x1000, false, true));
        assert!(!o.tells(0x2ff0, 0x20));
        assert!(o.tells(0x3ff0, 0x20));
        // What claims to lie outside of the image costs nothing.
        o.add(&row(u64::MAX - 4096, 4096, true, true));
        assert!(!o.owned.has(u64::MAX / PAGE - 1));
    }
}
