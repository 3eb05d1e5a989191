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
use crate::ends::Ends;
use crate::source::Item;
use memchr::memmem;

pub(crate) struct Pdf;

/// How far an end is searched for.
const SEARCH: usize = 16 << 20;
/// What may stand in front of the header (ISO 32000-1, annex H, 3.4.1).
const FRONT: usize = 1024;
/// Ends looked at for one header.
const TRIES: usize = 4096;
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
        hit.follow_back(at, |item| walk(item, &mut seen.pdf));
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

/// An end whose `startxref` is right.
#[derive(Clone, Copy)]
struct End {
    /// Where it points, counted from the header: before it when the file begins before it.
    to: usize,
    /// What stands in front of the header.
    front: usize,
    end: usize,
}

fn walk(item: &mut Item<'_, '_>, marks: &mut Ends) -> Option<Extent> {
    let begin = header(item.some(0, 64))?;
    let mut last: Option<End> = None;
    let (mut broken, mut from) = (0, begin);
    let mut used: Vec<usize> = Vec::new();
    for _ in 0..TRIES {
        let whole = last.map_or(0, |l| l.end);
        if !item.charge(256) {
            break;
        }
        let Some(mark) = marks.next(item, from, whole + SEARCH) else {
            break;
        };
        from = mark + 5;
        let end = line_end(item, from);
        let Some(told) = startxref(item, mark) else {
            continue;
        };
        let front = match last {
            Some(l) => Some(l.front).filter(|&f| told >= f && is_table(item, told - f)),
            None => front(item, told, mark),
        };
        match front {
            // An update lies behind what it updates; what points where an end before did is a copy.
            Some(f) if whole == 0 || (told - f >= whole && !used.contains(&told)) => {
                used.push(told);
                last = Some(End {
                    to: told - f,
                    front: f,
                    end,
                });
            }
            Some(_) => {}
            None if whole == 0 && broken == 0 && alone(item, begin, mark) => broken = end,
            None => {}
        }
    }
    let mut extent = Extent {
        kind: "pdf",
        ..Extent::default()
    };
    match last {
        Some(l) => {
            extent.len = l.end + l.front;
            extent.back = l.front;
            objects(item, l, &mut extent);
        }
        None => {
            extent.len = broken;
            extent.lacks("its cross-references are not where they should be");
        }
    }
    (extent.len > 0).then_some(extent)
}

/// True when no other header stands before this end.
fn alone(item: &mut Item<'_, '_>, from: usize, end: usize) -> bool {
    let mut at = from;
    while at < end {
        let len = (end - at).min(64 << 10);
        if !item.charge(len / 8) {
            return false;
        }
        let part = item.search(at, len + HEADER.len());
        if part.is_empty()
            || memmem::find(part, b"%PDF-").is_some_and(|n| header(&part[n..]).is_some())
        {
            return false;
        }
        at += len;
    }
    true
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

/// How many bytes before the header offsets count from, when cross-references stand there.
fn front(item: &mut Item<'_, '_>, told: usize, mark: usize) -> Option<usize> {
    if told < mark && is_table(item, told) {
        return Some(0);
    }
    let from = told.saturating_sub(FRONT);
    let behind = item.behind(FRONT).len();
    if told >= mark + FRONT || from >= mark {
        return None;
    }
    let room = item.room().saturating_sub(from).min(told - from);
    let near = item.peek(from, room)?.to_vec();
    let places = memmem::rfind_iter(&near, b"xref").filter(|&n| n == 0 || near[n - 1] != b't');
    places
        .map(|n| from + n)
        .chain(stream(&near).map(|n| from + n))
        .filter(|&p| told - p <= behind)
        .find(|&p| confirmed(item, p, told - p))
        .map(|p| told - p)
}

/// The first object's header in a line of its own, which may be a stream of cross-references.
fn stream(near: &[u8]) -> Option<usize> {
    let n = memmem::rfind(near, b" obj")?;
    let line = near[..n].iter().rposition(|b| matches!(b, b'\r' | b'\n'))?;
    Some(line + 1)
}

/// True when a table at `at` has an entry that is right if offsets count from `front` before.
fn confirmed(item: &mut Item<'_, '_>, at: usize, front: usize) -> bool {
    if item.peek(at, 4).is_some_and(|b| b == b"xref") {
        return entries(item, at, 8)
            .iter()
            .any(|&(n, to)| to >= front && is_object(item, to - front, n));
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
fn objects(item: &mut Item<'_, '_>, end: End, extent: &mut Extent) {
    for (n, to) in entries(item, end.to, OBJECTS) {
        let there = to
            .checked_sub(end.front)
            .is_some_and(|at| item.charge(64) && is_object(item, at, n));
        // Some writers count free objects as used ones at 0.
        if to > 0 && !there {
            extent.doubt("an object is not where its cross-references say");
            return;
        }
    }
}
