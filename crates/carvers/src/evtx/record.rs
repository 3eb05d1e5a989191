//! A record on its own, read without its chunk: what it says of itself, and where its chunk begins.
//!
//! ```text
//! 2A 2A 00 00 | size u32 | id u64 | FILETIME | 0F 01 01 00 | instance or element ... | size u32
//! instance    0C 01 | template id u32 | definition's place u32 | [definition] | values
//! definition  next u32 | GUID, which begins with the id | size u32 | 0F 01 01 00 ...
//! values      count u32 | { size u16, type u8, 0 } ... | their bytes
//! element     01 or 41 | size u32 | name's place u32 | [next u32, hash u16, length u16, UTF-16, 0]
//! ```
//!
//! Places count from the chunk's first byte. A definition or a name stands inline where it is first
//! used, so that its place tells where the chunk begins.

use super::values;

/// Bytes before a record's binary XML.
pub(super) const HEAD: usize = 24;
const MAGIC: &[u8] = b"**\0\0";
const FRAGMENT: &[u8] = &[0x0f, 1, 1, 0];
/// Smallest record: head, fragment header, end, copy of the size.
const SMALLEST: usize = HEAD + 4 + 1 + 4;
const LARGEST: usize = super::CHUNK - super::HEADER;
/// 1970-01-01 and 2200-01-01.
const TIMES: std::ops::Range<u64> = 116_444_736_000_000_000..189_027_648_000_000_000;
/// Depth of binary XML in values.
const DEPTH: usize = 4;

/// A record's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) size: usize,
    pub(super) id: u64,
    /// When it was written, as FILETIME.
    pub(super) written: u64,
}

pub(super) fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn bare(data: &[u8], at: usize) -> Option<Head> {
    let b = data.get(at..at + HEAD + FRAGMENT.len() + 1)?;
    let head = Head {
        size: u32_at(b, 4)? as usize,
        id: u64_at(b, 8)?,
        written: u64_at(b, 16)?,
    };
    let sound = b.starts_with(MAGIC)
        && (SMALLEST..=LARGEST).contains(&head.size)
        && TIMES.contains(&head.written)
        && b[HEAD..].starts_with(FRAGMENT)
        && matches!(b[HEAD + 4], 0x0c | 0x01 | 0x41);
    sound.then_some(head)
}

/// A whole record: it ends with the copy of its size, or the next one follows.
pub(super) fn read(data: &[u8], at: usize) -> Option<Head> {
    let head = bare(data, at)?;
    let end = at + head.size;
    let copy = u32_at(data, end - 4)? as usize == head.size;
    let next = || bare(data, end).is_some_and(|n| n.id == head.id.wrapping_add(1));
    (copy || next()).then_some(head)
}

/// What a record's binary XML tells without its chunk.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Where the chunk begins, when the record tells: an index that may lie before the data.
    pub(super) base: Option<i64>,
    /// Template instances: id, the definition's place in the chunk, where that is told, inline.
    pub(super) instances: Vec<Instance>,
    /// The place of its first element's name, when that isn't inline.
    pub(super) name: Option<u32>,
    /// Values are wanted: only of a record that can't be rendered.
    with_values: bool,
    /// The values, as text.
    pub(super) values: Vec<String>,
    /// The GUID of the outer template, when its definition is inline.
    pub(super) guid: Option<[u8; 16]>,
}

/// A template that is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instance {
    pub(super) id: u32,
    /// The definition's place.
    pub(super) place: u32,
    /// Where in the data the place is written.
    pub(super) told_at: usize,
    pub(super) inline: bool,
}

/// Reads the binary XML of the record at `at`, without its values.
pub(super) fn content(data: &[u8], at: usize, head: &Head) -> Content {
    read_content(data, at, head, false)
}

/// As [`content`], with the values.
pub(super) fn values(data: &[u8], at: usize, head: &Head) -> Content {
    read_content(data, at, head, true)
}

fn read_content(data: &[u8], at: usize, head: &Head, with_values: bool) -> Content {
    let mut c = Content {
        with_values,
        ..Content::default()
    };
    let end = (at + head.size - 4).min(data.len());
    fragment(&data[..end], at + HEAD, &mut c, 0);
    c
}

/// The size of the definition of template `id` that begins at `at`.
pub(super) fn definition(data: &[u8], at: usize, id: u32) -> Option<usize> {
    let size = u32_at(data, at + 20)? as usize;
    let fits = u32_at(data, at + 4)? == id
        && (5..LARGEST).contains(&size)
        && data.get(at + 24..at + 28)? == FRAGMENT;
    fits.then_some(24 + size)
}

/// The length of the name that begins at `at`, with its end: its hash must be right.
pub(super) fn name(data: &[u8], at: usize) -> Option<usize> {
    let (hash, n) = (u16_at(data, at + 4)?, usize::from(u16_at(data, at + 6)?));
    let text = data.get(at + 8..at + 8 + 2 * n)?;
    let (units, _) = text.as_chunks::<2>();
    let sum = units.iter().fold(0u32, |h, u| {
        h.wrapping_mul(65599)
            .wrapping_add(u16::from_le_bytes(*u).into())
    });
    let fits = n > 0 && sum as u16 == hash && u16_at(data, at + 8 + 2 * n)? == 0;
    fits.then_some(10 + 2 * n)
}

/// Where the chunk begins when what stands at `at` says that it stands at `place`.
fn base(at: usize, place: u32) -> Option<i64> {
    let base = at as i64 - i64::from(place);
    (place as usize >= super::HEADER && (place as usize) < super::CHUNK).then_some(base)
}

/// Reads a fragment; `data` ends where the record does.
fn fragment(data: &[u8], mut at: usize, c: &mut Content, depth: usize) {
    if data.get(at..at + 4) == Some(FRAGMENT) {
        at += 4;
    }
    match data.get(at) {
        Some(0x0c) => {
            instance(data, at, c, depth);
        }
        Some(0x01 | 0x41) => elements(data, at, c),
        _ => {}
    }
}

/// Reads a template's instance and its values.
fn instance(data: &[u8], at: usize, c: &mut Content, depth: usize) -> Option<()> {
    let (id, place) = (u32_at(data, at + 2)?, u32_at(data, at + 6)?);
    let mut next = at + 10;
    let inline = definition(data, next, id);
    c.instances.push(Instance {
        id,
        place,
        told_at: at + 6,
        inline: inline.is_some(),
    });
    if let Some(len) = inline {
        c.base = c.base.or_else(|| base(next, place));
        if depth == 0 {
            c.guid = data.get(next + 4..next + 20)?.try_into().ok();
        }
        next += len;
    }
    let count = u32_at(data, next)? as usize;
    let table = next + 4;
    let mut value = table.checked_add(count.checked_mul(4)?)?;
    for i in 0..count {
        let size = usize::from(u16_at(data, table + 4 * i)?);
        let kind = *data.get(table + 4 * i + 2)?;
        let bytes = data.get(value..value + size)?;
        if kind == values::BINARY_XML && depth < DEPTH {
            fragment(&data[..value + size], value, c, depth + 1);
        } else if c.with_values {
            c.values.push(values::text(kind, bytes));
        }
        value += size;
    }
    Some(())
}

/// Reads elements without a template: values stand between names.
fn elements(data: &[u8], mut at: usize, c: &mut Content) {
    let mut first = true;
    while let Some(&token) = data.get(at) {
        let step = match token {
            0x01 | 0x41 => {
                let told = named(data, at + 5, first, c);
                told.map(|n| 5 + n + if token == 0x41 { 4 } else { 0 })
            }
            0x06 | 0x46 => named(data, at + 1, false, c).map(|n| 1 + n),
            0x02..=0x04 => Some(1),
            0x05 | 0x45 if data.get(at + 1) == Some(&1) => u16_at(data, at + 2).and_then(|n| {
                let n = 2 * usize::from(n);
                let text = data.get(at + 4..at + 4 + n)?;
                if c.with_values {
                    c.values.push(values::text(1, text));
                }
                Some(4 + n)
            }),
            0x0f => Some(4),
            _ => None,
        };
        first = false;
        match step {
            Some(n) => at += n,
            None => break,
        }
    }
}

/// The length of a name's place, and of the name where it stands inline.
fn named(data: &[u8], at: usize, first: bool, c: &mut Content) -> Option<usize> {
    let place = u32_at(data, at)?;
    match name(data, at + 4) {
        Some(len) => {
            c.base = c.base.or_else(|| base(at + 4, place));
            Some(4 + len)
        }
        None => {
            if first {
                c.name = Some(place);
            }
            Some(4)
        }
    }
}
