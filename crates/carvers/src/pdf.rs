//! PDF documents (ISO 32000-1, 7.5; ISO 32000-2).
//!
//! ```text
//! %PDF-1.x | objects | xref table or stream | trailer | startxref N | %%EOF | update ... %%EOF
//!                      ^ N bytes from the header on
//! ```
//!
//! The document ends at the last `%%EOF` whose `startxref` points, counted from this header, at a
//! cross-reference table or stream; incremental updates add more of them, each behind the end
//! before it. Documents that are stored in one, or lie behind it, count from their own headers. The
//! search ends [`SEARCH`] bytes after the last end that was right. A linearised document's first
//! `%%EOF` has `startxref 0`: it counts for nothing. Where offsets count from something in front of
//! the header (at most [`FRONT`] bytes), the file begins there. Without any right end, the document
//! is reported up to an `%%EOF` before the next header, as partial, else not at all. A table's
//! entries must point at objects.

use crate::carver::{Carver, Extent, Hit};
use crate::ends::Seen;
use crate::page::lost_page;
use crate::source::Item;
use memchr::memmem;
use std::collections::VecDeque;

pub(crate) struct Pdf;

/// How far an end is searched for.
const SEARCH: usize = 16 << 20;
/// What may stand in front of the header (ISO 32000-1, annex H, 3.4.1).
const FRONT: usize = 1024;
/// Ends looked at for one header.
const TRIES: usize = 1024;
/// Other documents that an end may be of.
const OTHERS: usize = 16;
/// Objects looked for where a table says that they are.
const OBJECTS: usize = 256;
const HEADER: &[u8] = b"%PDF-";
/// A header of old, and what it goes on with: `%!PS-Adobe-3.0 PDF-1.4`.
const POSTSCRIPT: &[u8] = b"%!PS-Adobe-";
const AS_PDF: &[u8] = b" PDF-";

impl Carver for Pdf {
    fn name(&self) -> &'static str {
        "pdf"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"%PDF-1.", b"%PDF-2.", POSTSCRIPT]
    }

    fn reach(&self) -> usize {
        FRONT
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let mut seen = std::mem::take(hit.seen);
        hit.follow_back(at, |item| walk(item, &mut seen));
        *hit.seen = seen;
    }
}

/// The length of a header that `b` begins with.
fn header(b: &[u8]) -> Option<usize> {
    let version = match b.strip_prefix(POSTSCRIPT) {
        Some(rest) => {
            let n = memmem::find(&rest[..rest.len().min(16)], AS_PDF)?;
            POSTSCRIPT.len() + n + AS_PDF.len()
        }
        None => b.starts_with(HEADER).then_some(HEADER.len())?,
    };
    match b.get(version..version + 4)? {
        [b'1' | b'2', b'.', b'0'..=b'9', next] if !next.is_ascii_alphanumeric() => {
            Some(version + 3)
        }
        _ => None,
    }
}

/// A document that begins at `at`, as far as it is known.
struct Document {
    at: usize,
    /// What stands in front of its header and belongs to it.
    front: usize,
    /// Where its last end's cross-references are, and where it ends: 0 without any.
    to: usize,
    end: usize,
    /// What its ends said.
    used: Vec<usize>,
}

impl Document {
    fn new(at: usize) -> Self {
        Self {
            at,
            front: 0,
            to: 0,
            end: 0,
            used: Vec::new(),
        }
    }

    /// Takes the end at `mark` if its `startxref` points into this document.
    fn take(&mut self, item: &mut Item<'_, '_>, told: usize, mark: usize, end: usize) -> bool {
        let there = |item: &mut Item<'_, '_>, front: usize| {
            let to = (self.at + told).checked_sub(front)?;
            (to < mark && to > self.at && is_table(item, to)).then_some((front, to))
        };
        let found = match self.end {
            0 => there(item, 0).or_else(|| {
                let front = front(item, self.at, told, mark)?;
                there(item, front)
            }),
            _ => there(item, self.front),
        };
        // An update lies behind what it updates; what points where an end before did is a copy's.
        let Some((front, to)) = found.filter(|f| self.end == 0 || f.1 >= self.end) else {
            return false;
        };
        if self.used.contains(&told) {
            return false;
        }
        self.used.push(told);
        (self.front, self.to, self.end) = (front, to, end);
        true
    }
}

fn walk(item: &mut Item<'_, '_>, seen: &mut Seen) -> Option<Extent> {
    let begin = header(item.some(0, 64))?;
    let mut own = Document::new(0);
    // Documents in this one, or behind it: the nearest first.
    let mut others: VecDeque<Document> = VecDeque::new();
    let (mut broken, mut from, mut looked) = (0, begin, begin);
    for _ in 0..TRIES {
        if !item.charge(256) {
            break;
        }
        let Some(mark) = seen.pdf.next(item, from, own.end + SEARCH) else {
            break;
        };
        from = mark + 5;
        while let Some(n) = seen.pdf_headers.next(item, looked, mark) {
            looked = n + HEADER.len();
            if header(item.peek(n, 16).unwrap_or_default()).is_some() {
                others.push_front(Document::new(n));
                others.truncate(OTHERS);
            }
        }
        let end = line_end(item, from);
        let Some(told) = startxref(item, mark) else {
            continue;
        };
        if !item.charge(64 * others.len()) {
            break;
        }
        let taken = others.iter_mut().any(|o| o.take(item, told, mark, end));
        if !taken && !own.take(item, told, mark, end) && broken == 0 && others.is_empty() {
            broken = end;
        }
    }
    let mut extent = Extent {
        kind: "pdf",
        ..Extent::default()
    };
    if own.end > 0 {
        extent.len = own.end + own.front;
        extent.back = own.front;
        objects(item, &own, &mut extent);
        lost(item, &own, &mut extent);
    } else {
        extent.len = broken;
        extent.lacks("its cross-references are not where they should be");
    }
    (extent.len > 0).then_some(extent)
}

/// The end of line after `%%EOF` belongs to the document.
fn line_end(item: &mut Item<'_, '_>, at: usize) -> usize {
    let room = item.room().saturating_sub(at);
    match item.peek(at, room.min(2)).unwrap_or_default() {
        [b'\r', b'\n'] => at + 2,
        [b'\r' | b'\n', ..] => at + 1,
        _ => at,
    }
}

/// What `startxref` before the `%%EOF` at `at` says: `None` when there is none or it is 0.
fn startxref(item: &mut Item<'_, '_>, at: usize) -> Option<usize> {
    let from = at.saturating_sub(64);
    let tail = item.peek(from, at - from)?;
    let n = memmem::rfind(tail, b"startxref")?;
    let digits = std::str::from_utf8(tail[n + 9..].trim_ascii()).ok()?;
    digits.parse().ok().filter(|&to| to > 0)
}

/// How many bytes before the header at `at` offsets count from, when cross-references stand there.
fn front(item: &mut Item<'_, '_>, at: usize, told: usize, mark: usize) -> Option<usize> {
    let to = at + told;
    let from = to.saturating_sub(FRONT).max(at);
    let behind = item.behind(FRONT).len() + at;
    if to >= mark + FRONT || from >= mark {
        return None;
    }
    let near = item.peek(from, to.min(mark) - from)?.to_vec();
    let places = memmem::rfind_iter(&near, b"xref").filter(|&n| n == 0 || near[n - 1] != b't');
    places
        .map(|n| from + n)
        .chain(stream(&near).map(|n| from + n))
        .filter(|&p| to - p <= behind.min(FRONT))
        .find(|&p| confirmed(item, at, p, to - p))
        .map(|p| to - p)
}

/// The first object's header in a line of its own, which may be a stream of cross-references.
fn stream(near: &[u8]) -> Option<usize> {
    let n = memmem::rfind(near, b" obj")?;
    let line = near[..n].iter().rposition(|b| matches!(b, b'\r' | b'\n'))?;
    Some(line + 1)
}

/// True when a table at `at` has an entry that is right if offsets count from `front` before.
fn confirmed(item: &mut Item<'_, '_>, begin: usize, at: usize, front: usize) -> bool {
    if item.peek(at, 4).is_some_and(|b| b == b"xref") {
        return entries(item, at, 8)
            .iter()
            .any(|&(n, to)| to >= front && is_object(item, begin + to - front, n));
    }
    // A stream's own offset is among those that it holds, packed: its kind must do.
    let b = item.some(at, 256);
    memmem::find(b, b"/XRef").is_some() && is_table(item, at)
}

/// True when cross-references stand here, as a table or a stream.
fn is_table(item: &mut Item<'_, '_>, to: usize) -> bool {
    let room = item.room().saturating_sub(to);
    let target = item.peek(to, room.min(32)).unwrap_or_default();
    let target = target.trim_ascii_start();
    let stream = || {
        let n = target.iter().position(|b| !b.is_ascii_digit()).unwrap_or(0);
        n > 0 && target[n..].starts_with(b" ") && memmem::find(target, b" obj").is_some()
    };
    target.starts_with(b"xref") || stream()
}

/// Numbers and places of up to `most` objects that a table tells of.
fn entries(item: &mut Item<'_, '_>, at: usize, most: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let room = item.room().saturating_sub(at);
    let table = item.peek(at, room.min(16 << 10)).unwrap_or_default();
    let trimmed = table.trim_ascii_start();
    let mut rest = trimmed.strip_prefix(b"xref").unwrap_or_default();
    while all.len() < most {
        // "first count", then lines of 20 bytes: offset, generation, kind.
        let mut words = rest
            .trim_ascii_start()
            .splitn(3, |b| b.is_ascii_whitespace());
        let mut number = || {
            std::str::from_utf8(words.next()?)
                .ok()?
                .parse::<usize>()
                .ok()
        };
        let (Some(first), Some(count)) = (number(), number()) else {
            break;
        };
        let Some(lines) = words.next().map(<[u8]>::trim_ascii_start) else {
            break;
        };
        for (i, line) in lines.chunks_exact(20).take(count).enumerate() {
            let place = std::str::from_utf8(&line[..10]).ok();
            match (place.and_then(|p| p.parse().ok()), line[17]) {
                (Some(to), b'n') => all.push((first + i, to)),
                (Some(_), b'f') => {}
                _ => return all,
            }
        }
        rest = count
            .checked_mul(20)
            .and_then(|n| lines.get(n..))
            .unwrap_or_default();
    }
    all.truncate(most);
    all
}

/// True when object `n` begins here.
fn is_object(item: &mut Item<'_, '_>, at: usize, n: usize) -> bool {
    let room = item.room().saturating_sub(at);
    let b = item.peek(at, room.min(32)).unwrap_or_default();
    let b = b.trim_ascii_start();
    let digits = b.iter().position(|b| !b.is_ascii_digit()).unwrap_or(0);
    let own = std::str::from_utf8(&b[..digits])
        .ok()
        .and_then(|d| d.parse().ok());
    own == Some(n)
}

/// The last table's entries must point at objects, or pages of the document are not its own.
fn objects(item: &mut Item<'_, '_>, own: &Document, extent: &mut Extent) {
    for (n, to) in entries(item, own.to, OBJECTS) {
        let there = to
            .checked_sub(own.front)
            .is_some_and(|at| item.charge(64) && is_object(item, at, n));
        // Some writers count free objects as used ones at 0.
        if to > 0 && !there {
            extent.doubt("an object is not where its cross-references say");
            return;
        }
    }
}

/// What is packed has no page of one byte.
fn lost(item: &mut Item<'_, '_>, own: &Document, extent: &mut Extent) {
    let offset = item.offset();
    let bytes = if item.charge(own.end / 64) {
        item.get(0, own.end)
    } else {
        None
    };
    if bytes.is_some_and(|b| lost_page(b, 0..b.len(), offset)) {
        extent.doubt("a page of it is one byte repeated, and may be lost");
    }
}
