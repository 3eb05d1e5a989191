//! ZIP archives and what is made of them: OOXML documents, JARs, ... (APPNOTE.TXT 6.3.10, PKWARE).
//!
//! ```text
//! { PK 3 4 | name | extra | data | [PK 7 8 descriptor] } ... { PK 1 2 | name ... } ... PK 5 6 | comment
//! ^ start                                                 ^ start + offset, size bytes  ^ end record
//! ```
//!
//! Entries all look alike; what begins an archive is the local header that an end record counts
//! from: `end record - directory size - directory offset`. So sizes in local headers, which may be
//! 0 with a descriptor behind the data, are not needed; but where they are told, entries must lie
//! back to back up to the directory, or nothing is searched for. Without an end record a run of two
//! or more such entries is partial, from the first that none lies right before.
//! Multi-disk archives are not followed; ZIP64's sizes are, where the directory itself stays
//! below 4 GiB.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;
use memchr::memmem;

pub(crate) struct Zip;

/// The end record's length without its comment.
const END: usize = 22;
/// End records tried for one archive: archives stored in it have their own.
const TRIES: usize = 16;
/// Entries of a run without an end record.
const RUN: usize = 1024;
/// How far back an entry may begin that ends where a run begins.
const BACK: usize = 32 << 10;
/// How far behind the last entry whose size is told an end record is searched for.
const SEARCH: usize = 16 << 20;
/// Steps of the search for end records.
const STEP: usize = 64 << 10;

/// End records seen, so that many local headers before one cost one search.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Image offsets, ascending, of all end records in `from..to`.
    ends: Vec<u64>,
    from: u64,
    to: u64,
}

impl Carver for Zip {
    fn name(&self) -> &'static str {
        "zip"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"PK\x03\x04"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let mut memory = std::mem::take(hit.zip);
        hit.follow(at, |item| walk(item, &mut memory));
        *hit.zip = memory;
    }
}

/// A local header's length with name and extra field, and its data's length if it tells.
fn local(b: &[u8]) -> Option<(usize, Option<usize>)> {
    let n = |i: usize| {
        Some(usize::from(u16::from_le_bytes([
            *b.get(i)?,
            *b.get(i + 1)?,
        ])))
    };
    let (version, flags, method, name, extra) = (n(4)?, n(6)?, n(8)?, n(26)?, n(28)?);
    let known = matches!(method, 0 | 1 | 6 | 8 | 9 | 12 | 14 | 93 | 95 | 98 | 99);
    if !b.starts_with(b"PK\x03\x04") || version & 0xff > 63 || !known || !(1..=1024).contains(&name)
    {
        return None;
    }
    let size = u32::from_le_bytes([b[18], b[19], b[20], b[21]]);
    let told = flags & 8 == 0 && size != u32::MAX;
    Some((30 + name + extra, told.then_some(size as usize)))
}

fn walk(item: &mut Item<'_, '_>, memory: &mut Memory) -> Option<Extent> {
    let (first, told) = local(item.get(0, 30)?)?;
    let name_len = usize::from(item.u16le(26)?);
    let named = item.get(30, name_len)?.iter().all(|&b| b >= 0x20);
    // Cheap tests first: most of what is in memory is a page of an archive, without the next one.
    let alone = told.is_some_and(|n| !item.some(first + n, 2).starts_with(b"PK"));
    if !named || alone || preceded(item) {
        return None;
    }
    let run = run(item);
    // In an archive that is whole the run ends at its directory, or where sizes are not told.
    if run.next != Next::Broken {
        let mut from = run.len;
        for _ in 0..TRIES {
            if !item.charge(128) {
                break;
            }
            let Some(end) = next_end(item, memory, from, run.len + SEARCH) else {
                break;
            };
            if let Some(extent) = whole(item, end) {
                return Some(extent);
            }
            from = end + 4;
        }
    }
    if run.entries < 2 {
        return None;
    }
    let mut extent = Extent {
        kind: "zip",
        len: run.len,
        ..Extent::default()
    };
    extent.partial = Some("its directory was not found".to_owned());
    extent.fields = vec![("entries", run.entries as i64)];
    Some(extent)
}

/// The next end record at or after `from`.
fn next_end(
    item: &mut Item<'_, '_>,
    memory: &mut Memory,
    from: usize,
    limit: usize,
) -> Option<usize> {
    let limit = limit.min(item.room());
    let base = item.offset();
    let want = base + from as u64;
    if want < memory.from || want > memory.to {
        *memory = Memory {
            ends: Vec::new(),
            from: want,
            to: want,
        };
    }
    loop {
        let i = memory.ends.partition_point(|&e| e < want);
        if let Some(&e) = memory.ends.get(i) {
            let at = (e - base) as usize;
            return (at < limit).then_some(at);
        }
        let at = (memory.to - base) as usize;
        if at >= limit || !item.charge(STEP / 8) {
            return None;
        }
        let part = item.search(at, STEP + 3);
        if part.len() < 4 {
            return None;
        }
        let ends = memmem::find_iter(part, b"PK\x05\x06").map(|n| memory.to + n as u64);
        memory.ends.extend(ends);
        let step = part.len() - 3;
        memory.to += step as u64;
    }
}

/// The archive, if the end record at `end` counts from this item's first byte.
fn whole(item: &mut Item<'_, '_>, end: usize) -> Option<Extent> {
    let record: [u8; END] = item.array(end)?;
    let n16 = |i: usize| usize::from(u16::from_le_bytes([record[i], record[i + 1]]));
    let n32 =
        |i: usize| u32::from_le_bytes([record[i], record[i + 1], record[i + 2], record[i + 3]]);
    let (disk, entries, comment) = (n16(4), n16(10), n16(20));
    let (size, offset) = (n32(12) as usize, n32(16) as usize);
    if disk != 0 || entries == 0 || size < 46 * entries.min(0xfffe) {
        return None;
    }
    // ZIP64's records lie between directory and end record.
    let directory = offset;
    let gap = end.checked_sub(offset.checked_add(size)?)?;
    if gap != 0 && gap != 76 {
        return None;
    }
    let first = item.peek(directory, 46)?;
    if !first.starts_with(b"PK\x01\x02") || first[42..] != [0; 4] {
        return None;
    }
    let len = end + END + comment;
    let kind = kind(item, directory, size, entries);
    let mut extent = Extent {
        kind,
        len,
        ..Extent::default()
    };
    extent.fields = vec![("entries", entries as i64)];
    if item.get(0, len).is_none() {
        extent.len = end + END;
        extent.partial = Some("its comment reaches past the image".to_owned());
    }
    Some(extent)
}

/// What the names in the directory make it.
fn kind(item: &mut Item<'_, '_>, mut at: usize, size: usize, entries: usize) -> &'static str {
    let stop = at + size;
    for _ in 0..entries.min(256) {
        let Some(h) = item.get(at, 46).filter(|h| h.starts_with(b"PK\x01\x02")) else {
            break;
        };
        let n = |i: usize| usize::from(u16::from_le_bytes([h[i], h[i + 1]]));
        let (name, rest) = (n(28), n(30) + n(32));
        let name_bytes = item.get(at + 46, name).unwrap_or_default();
        for (prefix, kind) in [
            (&b"word/"[..], "docx"),
            (b"xl/", "xlsx"),
            (b"ppt/", "pptx"),
            (b"META-INF/MANIFEST.MF", "jar"),
        ] {
            if name_bytes.starts_with(prefix) {
                return kind;
            }
        }
        at += 46 + name + rest;
        if at >= stop {
            break;
        }
    }
    "zip"
}

/// What follows the last entry of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The directory, or no telling: the last entry's size is not in its header.
    Open,
    /// Nothing that belongs to an archive.
    Broken,
}

/// Entries back to back.
struct Run {
    entries: usize,
    len: usize,
    next: Next,
}

/// Entries from the item's first byte on.
fn run(item: &mut Item<'_, '_>) -> Run {
    let mut run = Run {
        entries: 0,
        len: 0,
        next: Next::Open,
    };
    while run.entries < RUN && item.charge(32) {
        let head = item.some(run.len, 30);
        let Some((head, told)) = local(head) else {
            let known = [&b"PK\x01\x02"[..], b"PK\x06\x08"]
                .iter()
                .any(|m| head.starts_with(m));
            run.next = if known { Next::Open } else { Next::Broken };
            break;
        };
        let next = run.len + head + told.unwrap_or(0);
        if next > item.room() {
            run.next = Next::Broken;
            break;
        }
        run.len = next;
        run.entries += 1;
        if told.is_none() {
            break;
        }
    }
    run
}

/// True when an entry ends where this one begins.
fn preceded(item: &mut Item<'_, '_>) -> bool {
    let before = item.behind(BACK);
    if !item.charge(before.len()) {
        return true;
    }
    let ends_here = |n: usize| match local(&before[n..]) {
        Some((head, Some(data))) => n + head + data == before.len(),
        _ => false,
    };
    memmem::rfind_iter(before, b"PK\x03\x04").any(ends_here)
}
