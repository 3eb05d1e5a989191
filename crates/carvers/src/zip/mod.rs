//! ZIP archives and what is made of them: OOXML documents, JARs, ... (APPNOTE.TXT 6.3.10, PKWARE).
//!
//! ```text
//! [PK 7 8] { PK 3 4 | name | extra | data | [PK 7 8 descriptor] } ... [signing block]
//! ^ start   { PK 1 2 | name ... } ... [PK 6 6 ... PK 6 7 ...] PK 5 6 | comment
//!           ^ start + offset, size bytes  ^ ZIP64's records   ^ end record
//! ```
//!
//! Entries all look alike; what begins an archive is what an end record counts from: the directory
//! ends where the end record (or ZIP64's before it) begins, and its own offset leads back to the
//! start. So sizes in local headers, which may be 0 with a descriptor behind the data, are not
//! needed; but where they are told, entries must lie back to back up to the directory, or nothing
//! is searched for. Every entry must be where the directory says, and have the checksum that it says. Without an end record a run of
//! two or more such entries is partial, from the first that none lies right before. Of a split
//! archive each part is partial. Where offsets count from a program in front, the archive is what
//! lies behind it, and whether it is whole isn't known.
//!
//! A shell script whose page the first entry is in is in front of it in the same file: the archive
//! that unpacks itself is reported too, from the script's first byte.

mod proof;

use crate::carver::{Carver, Extent, Hit, Whole};
use crate::ends::Ends;
use crate::page::PAGE;

use crate::source::Item;
use memchr::memmem;
use proof::Entry;

pub(crate) struct Zip;

/// The end record's length without its comment.
const END: usize = 22;
/// ZIP64's locator, and its end record without what may be added to it.
const LOCATOR: usize = 20;
const END64: usize = 56;
/// End records tried for one archive: archives stored in it have their own.
const TRIES: usize = 64;
/// Entries of a run without an end record.
const RUN: usize = 16 << 10;
/// How far back an entry may begin that ends where a run begins.
const BACK: usize = 32 << 10;
/// How far behind the last entry whose size is told an end record is searched for.
const SEARCH: usize = 16 << 20;
/// Zeros between two entries, for their alignment.
const PADDING: usize = 4096;
/// Longest first line of a script (`BINPRM_BUF_SIZE` of Linux).
const SHEBANG: usize = 256;
/// Largest directory that is walked.
const DIRECTORY: usize = 16 << 20;
/// Names that are looked at for what an archive is.
const NAMES: usize = 256;
/// What ends the block of signatures before an APK's directory, with its size before that.
const SIGNED: &[u8] = b"APK Sig Block 42";
/// What a split archive begins with: the second when it became one part after all.
const MARKERS: [&[u8]; 2] = [b"PK\x07\x08", b"PK00"];
/// Bytes of one archive that are inflated to compute checksums.
const INFLATED: usize = 256 << 20;
const ELSEWHERE: &str = "an entry is not where its directory says";
const LOCAL: &[u8] = b"PK\x03\x04";
const ENTRY: &[u8] = b"PK\x01\x02";

impl Carver for Zip {
    fn name(&self) -> &'static str {
        "zip"
    }

    fn version(&self) -> u32 {
        3
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[LOCAL]
    }

    fn reach(&self) -> usize {
        PAGE
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let before = hit.source.behind(at, MARKERS[0].len());
        let marker = if MARKERS.contains(&before) {
            before.len()
        } else {
            0
        };
        let mut seen = std::mem::take(hit.seen);
        hit.follow(at - marker, |item| walk(item, marker, &mut seen.zip));
        let script = script(hit.source.data, hit.source.base, at);
        if let Some(front) = script.filter(|n| marker == 0 && hit.owns(at - n)) {
            let walk = |item: &mut Item<'_, '_>| unpacks_itself(item, front, &mut seen.zip);
            hit.follow_back(at, walk);
        }
        *hit.seen = seen;
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?)).ok()
}

/// A local header.
struct Local {
    /// Its length with name and extra field.
    len: usize,
    /// Its data's length, if it tells.
    data: Option<usize>,
}

/// The local header that `b` begins with; of a size in ZIP64's extra field `b` may have too little.
fn local(b: &[u8]) -> Option<Local> {
    let (version, flags, method) = (u16_at(b, 4)?, u16_at(b, 6)?, u16_at(b, 8)?);
    let (name, extra) = (u16_at(b, 26)?, u16_at(b, 28)?);
    let known = matches!(method, 0..=10 | 12 | 14 | 16 | 18..=20 | 93..=99);
    if !b.starts_with(LOCAL) || version & 0xff > 63 || !known || !(1..=1024).contains(&name) {
        return None;
    }
    let data = match u32_at(b, 18)? {
        _ if flags & 8 != 0 => None,
        u32::MAX => {
            let extra = b.get(30 + name..30 + name + extra);
            extra.and_then(|e| wide_size(e, u32_at(b, 22) == Some(u32::MAX)))
        }
        n => Some(n as usize),
    };
    Some(Local {
        len: 30 + name + extra,
        data,
    })
}

/// The size of an entry's data in ZIP64's extra field, behind the unpacked size if that is there.
fn wide_size(mut extra: &[u8], second: bool) -> Option<usize> {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let body = extra.get(4..4 + len)?;
        if id == 1 {
            return u64_at(body, if second { 8 } else { 0 });
        }
        extra = &extra[4 + len..];
    }
    None
}

fn walk(item: &mut Item<'_, '_>, marker: usize, ends: &mut Ends) -> Option<Extent> {
    let first = local(item.some(marker, 30 + 1024))?;
    let name_len = usize::from(item.u16le(marker + 26)?);
    // Any byte may be in a name but the one that ends it for most programs.
    let named = item.get(marker + 30, name_len)?.iter().all(|&b| b != 0);
    // Cheap tests first: most of what is in memory is a page of an archive, without the next one.
    let told = first.data.and_then(|d| (marker + first.len).checked_add(d));
    let alone = told.is_some_and(|next| follows(item, next).is_none());
    if !named || (marker == 0 && (alone || preceded(item))) {
        return None;
    }
    let run = run(item, marker);
    // In an archive that is whole the run ends at its directory, or where sizes are not told; of a
    // longer run an entry may be lost.
    if run.next != Next::Broken || run.entries > 1 {
        let mut from = run.len;
        for _ in 0..TRIES {
            if !item.charge(128) {
                break;
            }
            let Some(end) = ends.next(item, from, run.len + SEARCH) else {
                break;
            };
            if let Some(extent) = whole(item, end) {
                return Some(extent);
            }
            from = end + 4;
        }
    }
    if run.entries < 2 && marker == 0 {
        return None;
    }
    let mut extent = Extent {
        kind: "zip",
        len: run.len,
        ..Extent::default()
    };
    extent.lacks(if marker > 0 {
        "it is the first part of a split archive"
    } else {
        "its directory was not found"
    });
    extent.fields = vec![("entries", (run.entries as i64).into())];
    Some(extent)
}

/// How many bytes before an entry at `at` a script begins that its page begins with: `#!`, a path.
fn script(data: &[u8], base: u64, at: usize) -> Option<usize> {
    let front = ((base + at as u64) % PAGE as u64) as usize;
    let head = data.get(at.checked_sub(front)?..at)?;
    let line = head.strip_prefix(b"#!")?;
    let end = memchr::memchr(b'\n', line).filter(|n| *n < SHEBANG)?;
    let text = line[..end].iter().all(|b| (0x20..0x7f).contains(b));
    let path = line[..end].trim_ascii_start().starts_with(b"/");
    (text && path).then_some(front)
}

/// An archive behind a script of `front` bytes, if it is one in whole.
fn unpacks_itself(item: &mut Item<'_, '_>, front: usize, ends: &mut Ends) -> Option<Extent> {
    let mut extent = walk(item, 0, ends)?;
    let counted = extent.fields.iter().find(|f| f.0 == "prefix").map(|f| f.1);
    extent.whole = match (&extent.whole, counted) {
        (Whole::No(_), _) => return None,
        // Offsets count from the script: the directory vouches for it.
        (_, Some(n)) if n == (front as i64).into() => Whole::Yes,
        (_, Some(_)) => return None,
        _ => Whole::Unknown("nothing but its page tells that the script is its own".to_owned()),
    };
    extent.fields.retain(|f| f.0 != "prefix");
    extent.fields.push(("script", (front as i64).into()));
    extent.len += front;
    extent.back = front;
    Some(extent)
}

/// What an end record says.
struct End {
    /// Where the directory ends.
    directory_end: usize,
    /// The directory's size, and its place counted from the archive's start.
    size: usize,
    offset: usize,
    entries: usize,
    /// One part of many, and which.
    split: bool,
    disk: usize,
    /// Its offset is all ones without ZIP64's record, as streams are ended that were forced to ZIP64.
    unsaid: bool,
    /// The end of its comment.
    len: usize,
}

/// The end record at `end`, with what ZIP64's before it says instead of ones.
fn end_record(item: &mut Item<'_, '_>, end: usize) -> Option<End> {
    let r: [u8; END] = item.peek(end, END)?.try_into().ok()?;
    let (disk, first_disk) = (u16_at(&r, 4)?, u16_at(&r, 6)?);
    let (entries, comment) = (u16_at(&r, 10)?, u16_at(&r, 20)?);
    let (size, offset) = (u32_at(&r, 12)?, u32_at(&r, 16)?);
    let mut e = End {
        directory_end: end,
        size: size as usize,
        offset: offset as usize,
        entries,
        disk,
        unsaid: false,
        split: matches!(disk, 1..=0xfffe) || matches!(first_disk, 1..=0xfffe),
        len: end + END + comment,
    };
    if let Some((at, wide)) = end_record64(item, end) {
        e.directory_end = at;
        if entries == 0xffff {
            e.entries = u64_at(&wide, 32)?;
        }
        if size == u32::MAX {
            e.size = u64_at(&wide, 40)?;
        }
        if offset == u32::MAX {
            e.offset = u64_at(&wide, 48)?;
        }
        e.split |= u32_at(&wide, 16)? != 0 || u32_at(&wide, 20)? != 0;
        if disk == 0xffff {
            e.disk = u32_at(&wide, 16)? as usize;
        }
    }
    if offset == u32::MAX && e.directory_end == end {
        e.unsaid = true;
        e.offset = end.checked_sub(e.size)?;
    }
    let fits = e.entries > 0 && e.size >= 46 * e.entries.min(0xfffe) && e.size <= e.directory_end;
    fits.then_some(e)
}

/// ZIP64's end record, and where it stands.
fn end_record64(item: &mut Item<'_, '_>, end: usize) -> Option<(usize, [u8; END64])> {
    let at = end.checked_sub(LOCATOR)?;
    let locator: [u8; LOCATOR] = item.peek(at, LOCATOR)?.try_into().ok()?;
    if !locator.starts_with(b"PK\x06\x07") {
        return None;
    }
    // Right before, mostly; where it says, when more was added to the record.
    let places = [at.checked_sub(END64), u64_at(&locator, 8)];
    for place in places.into_iter().flatten().filter(|&p| p < at) {
        let record = item.peek(place, END64).and_then(|b| b.try_into().ok());
        let fits = |r: &[u8; END64]| {
            r.starts_with(b"PK\x06\x06")
                && u64_at(r, 4).is_some_and(|n| n.checked_add(place + 12) == Some(at))
        };
        if let Some(r) = record.filter(fits) {
            return Some((place, r));
        }
    }
    None
}

/// The archive, if the end record at `end` counts from this item's first byte, or from something in
/// front of its first entry.
fn whole(item: &mut Item<'_, '_>, end: usize) -> Option<Extent> {
    let e = end_record(item, end)?;
    let at = e.directory_end.checked_sub(e.size)?;
    let prefix = e.offset.checked_sub(at)?;
    let d = directory(item, at, &e, prefix)?;
    if e.unsaid && (d.first != Some(0) || d.wrong.is_some()) {
        return None;
    }
    // The first entry is deleted, or the last part begins with what belongs to another.
    if prefix > 0 && d.first != Some(prefix) {
        return None;
    }
    let mut extent = Extent {
        kind: d.kind,
        len: e.len,
        ..Extent::default()
    };
    extent.fields = vec![("entries", (e.entries as i64).into())];
    if e.split {
        extent.lacks("it is one part of a split archive");
    }
    if let Some(why) = d.wrong {
        extent.lacks(why);
    }
    if d.entries != e.entries && d.entries & 0xffff != e.entries {
        extent.doubt("its directory and its end do not agree on how many entries there are");
    }
    if prefix > 0 {
        extent.fields.push(("prefix", (prefix as i64).into()));
        extent.doubt("its offsets count from something in front of its first entry");
    }
    if e.len > item.room() {
        extent.len = end + END;
        extent.lacks("its comment reaches past the image");
    }
    Some(extent)
}

/// What a directory tells.
struct Directory {
    entries: usize,
    kind: &'static str,
    /// Where the first entry begins, counted as the directory does.
    first: Option<usize>,
    wrong: Option<&'static str>,
}

/// Walks the directory at `at`; `None`: there is none.
fn directory(item: &mut Item<'_, '_>, at: usize, e: &End, prefix: usize) -> Option<Directory> {
    if !item.peek(at, 46)?.starts_with(ENTRY) || !item.charge(e.size.min(DIRECTORY) / 8) {
        return None;
    }
    let mut d = Directory {
        entries: 0,
        kind: "zip",
        first: None,
        wrong: None,
    };
    let bytes = item.peek(at, e.size.min(DIRECTORY))?.to_vec();
    let mut entries = Vec::new();
    let mut next = 0;
    while let Some(h) = bytes.get(next..next + 46).filter(|h| h.starts_with(ENTRY)) {
        let (name, extra, comment) = (u16_at(h, 28)?, u16_at(h, 30)?, u16_at(h, 32)?);
        let name_bytes = bytes.get(next + 46..next + 46 + name).unwrap_or_default();
        if d.entries < NAMES && d.kind == "zip" {
            d.kind = kind(name_bytes);
        }
        // What lies in another part is not here.
        if u16_at(h, 34)? == e.disk && u32_at(h, 42)? != u32::MAX {
            entries.push(Entry::of(h)?);
        }
        d.entries += 1;
        next += 46 + name + extra + comment;
    }
    // What may follow the entries is a signature.
    let rest = bytes.get(next..).unwrap_or_default();
    let ends = next == e.size || e.size > DIRECTORY || rest.starts_with(b"PK\x05\x05");
    if !ends {
        d.wrong = Some("its directory is broken");
    }
    d.first = entries.iter().map(|e| e.place).min();
    if prefix > 0 && d.first != Some(prefix) {
        return Some(d);
    }
    // What is inflated for checksums is bounded.
    let mut left = INFLATED;
    for entry in entries {
        let place = entry.place.checked_sub(prefix);
        d.wrong = place.map_or(Some(ELSEWHERE), |p| {
            proof::check(item, p, &entry, &mut left)
        });
        if d.wrong.is_some() {
            break;
        }
    }
    Some(d)
}

/// What a name in the directory makes the archive.
fn kind(name: &[u8]) -> &'static str {
    for (prefix, kind) in [
        (&b"word/"[..], "docx"),
        (b"xl/", "xlsx"),
        (b"ppt/", "pptx"),
        (b"META-INF/MANIFEST.MF", "jar"),
    ] {
        if name.starts_with(prefix) {
            return kind;
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

/// Entries from `at` on.
fn run(item: &mut Item<'_, '_>, at: usize) -> Run {
    let mut run = Run {
        entries: 0,
        len: at,
        next: Next::Open,
    };
    while run.entries < RUN && item.charge(32) {
        let head = item.some(run.len, 30);
        let wide = head.len() == 30 && u32_at(head, 18) == Some(u32::MAX);
        let head = if wide {
            item.some(run.len, 30 + 1024 + 64)
        } else {
            head
        };
        let Some(l) = local(head) else {
            match follows(item, run.len) {
                Some(0) => break,
                Some(n) if run.entries > 0 => run.len += n,
                _ => {
                    run.next = Next::Broken;
                    break;
                }
            }
            continue;
        };
        let next = run
            .len
            .saturating_add(l.len)
            .saturating_add(l.data.unwrap_or(0));
        if next > item.room() {
            run.next = Next::Broken;
            break;
        }
        run.len = next;
        run.entries += 1;
        if l.data.is_none() {
            break;
        }
    }
    run
}

/// True when a block of signatures stands here, as in an APK before its directory.
fn signing_block(item: &mut Item<'_, '_>, at: usize) -> bool {
    let size = item.peek(at, 8).and_then(|b| u64_at(b, 0));
    let Some(size) = size.filter(|n| (24..=SEARCH).contains(n)) else {
        return false;
    };
    let end = at + 8 + size;
    item.peek(end - SIGNED.len(), SIGNED.len())
        .is_some_and(|b| b == SIGNED)
}

/// How many zeros stand here before what may follow an entry; `None` when nothing such does.
fn follows(item: &mut Item<'_, '_>, at: usize) -> Option<usize> {
    let known = |b: &[u8]| {
        let marks = [LOCAL, ENTRY, b"PK\x06\x08"];
        marks.iter().any(|m| b.starts_with(m))
    };
    let near = at.saturating_add(8) <= item.room();
    if near && known(item.peek(at, 4).unwrap_or_default()) || signing_block(item, at) {
        return Some(0);
    }
    let rest = item.room().saturating_sub(at).min(PADDING);
    let b = item.peek(at, rest)?;
    let n = b.iter().position(|&b| b != 0).filter(|&n| n > 0)?;
    known(&b[n..]).then_some(n)
}

/// True when an entry ends where this one begins.
fn preceded(item: &mut Item<'_, '_>) -> bool {
    let before = item.behind(BACK);
    let mut from = before.len();
    // The nearest decides mostly.
    while let Some(n) = memmem::rfind(&before[..from], LOCAL) {
        if !item.charge(64 + (from - n) / 8) {
            return true;
        }
        if let Some(Local { len, data: Some(d) }) = local(&before[n..])
            && n + len + d == before.len()
        {
            return true;
        }
        from = n;
    }
    !item.charge(64 + from / 8)
}
