//! PDF documents (ISO 32000-1, 7.5).
//!
//! ```text
//! %PDF-1.x | objects | xref table or stream | trailer | startxref N | %%EOF | update ... %%EOF
//!                      ^ N bytes from the header on
//! ```
//!
//! The document ends at the last `%%EOF` whose `startxref` points at a cross-reference table or
//! stream of this document; incremental updates add more of them. The search ends at the next
//! header and at [`SEARCH`] bytes after the last end that was right. A linearised document's first
//! `%%EOF` has `startxref 0`: it counts for nothing. Without any right end, the document is
//! reported up to an `%%EOF` of its own, as partial, else not at all.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;
use memchr::memmem;

pub(crate) struct Pdf;

/// How far an end is searched for.
const SEARCH: usize = 16 << 20;
/// The search goes on in steps of this size.
const STEP: usize = 64 << 10;

impl Carver for Pdf {
    fn name(&self) -> &'static str {
        "pdf"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"%PDF-1.", b"%PDF-2."]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, walk);
    }
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let head = item.get(0, 9)?;
    if !head[7].is_ascii_digit() || !matches!(head[8], b'\r' | b'\n' | b' ' | b'\t' | b'%') {
        return None;
    }
    let (mut whole, mut broken) = (0, 0);
    let mut at = 8;
    while at < whole + SEARCH && item.charge(STEP / 8) {
        let part = item.search(at, STEP + 16);
        if part.len() < 8 {
            break;
        }
        let header = memmem::find(part, b"%PDF-").filter(|&n| is_header(&part[n..]));
        let part = &part[..header.unwrap_or(part.len())];
        let last = part.len() < STEP + 16;
        let limit = part.len().min(STEP);
        let ends: Vec<usize> = memmem::find_iter(part, b"%%EOF")
            .filter(|&n| n < limit || last)
            .collect();
        for n in ends {
            let end = line_end(item, at + n + 5);
            match startxref(item, at + n) {
                Some(true) => whole = end,
                Some(false) => broken = end,
                None => {}
            }
        }
        if last {
            break;
        }
        at += STEP;
    }
    let mut extent = Extent {
        kind: "pdf",
        len: whole,
        ..Extent::default()
    };
    if whole == 0 {
        extent.len = broken;
        extent.partial = Some("its cross-references are not where they should be".to_owned());
    }
    (extent.len > 0).then_some(extent)
}

/// A header of another document, and not text about one.
fn is_header(b: &[u8]) -> bool {
    matches!(
        b,
        [
            b'%',
            b'P',
            b'D',
            b'F',
            b'-',
            b'1' | b'2',
            b'.',
            b'0'..=b'9',
            ..
        ]
    )
}

/// The end of line after `%%EOF` belongs to the document.
fn line_end(item: &mut Item<'_, '_>, at: usize) -> usize {
    match item.search(at, 2) {
        [b'\r', b'\n'] => at + 2,
        [b'\r' | b'\n', ..] => at + 1,
        _ => at,
    }
}

/// What `startxref` before the `%%EOF` at `at` points at: `None` when there is none or it is 0.
fn startxref(item: &mut Item<'_, '_>, at: usize) -> Option<bool> {
    let from = at.saturating_sub(64);
    let tail = item.search(from, at - from);
    let n = memmem::rfind(tail, b"startxref")?;
    let digits = tail[n + 9..].trim_ascii();
    let digits = std::str::from_utf8(digits).ok()?;
    let to: usize = digits.parse().ok()?;
    if to == 0 {
        return None;
    }
    if to >= at {
        return Some(false);
    }
    let room = item.room().saturating_sub(to);
    let target = item.peek(to, room.min(24)).unwrap_or_default();
    let target = target.trim_ascii_start();
    let stream = || {
        let n = target.iter().position(|b| !b.is_ascii_digit()).unwrap_or(0);
        n > 0 && target[n..].starts_with(b" ") && memmem::find(target, b" obj").is_some()
    };
    Some(target.starts_with(b"xref") || stream())
}
