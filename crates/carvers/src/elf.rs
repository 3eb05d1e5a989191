//! ELF files (System V ABI, chapter 4; gABI 4.1).
//!
//! ```text
//! 7F 'E' 'L' 'F' class data version ... | program headers | segments, sections | section headers
//!   e_phoff, e_phentsize, e_phnum --------^                                       ^      | signature
//!   e_shoff, e_shentsize, e_shnum, e_shstrndx ------------------------------------+
//! ```
//!
//! The extent is the furthest end of the headers' tables, of a segment's file part and of a
//! section that has bytes; behind a kernel module its signatures. Counts that don't fit their 16
//! bits stand in the first section header. Memory holds many ELF headers without the rest of their
//! file: unless the section table stands where the header says, with its names in a string table,
//! only the first 64 KiB at most are reported, as partial, with the size that the headers claim.
//! So the table is looked at first, without what lies between.
//! Little-endian only, as are the captured machines.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Elf;

/// What is kept of a file whose section table isn't there.
const HEAD: usize = 64 << 10;
const SHT_NULL: u64 = 0;
const SHT_SYMTAB: u64 = 2;
const SHT_STRTAB: u64 = 3;
const SHT_NOTE: u64 = 7;
const SHT_DYNSYM: u64 = 11;
const SHT_NOBITS: u64 = 8;
const PT_LOAD: u64 = 1;
const PT_INTERP: u64 = 3;
const PT_NOTE: u64 = 4;
const COMPRESSED: u64 = 0x800;
const ET_REL: u64 = 1;
const ET_CORE: u64 = 4;
/// `e_phnum` and `e_shstrndx` when the number is in the first section header.
const ELSEWHERE: u64 = 0xffff;
/// Headers looked at in one step.
const STEP: u64 = 1024;
/// What ends a signed kernel module (`scripts/sign-file.c`), with the lengths of its parts before.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE: usize = 12;
/// Longest signature looked for.
const SIGNATURES: usize = 32 << 10;
/// Sections whose content is looked at.
const LOOKED_AT: usize = 64;
/// No file is longer: what says so is no header.
const LONGEST: u64 = 1 << 48;

impl Carver for Elf {
    fn name(&self) -> &'static str {
        "elf"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x01\x01"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, walk);
    }
}

/// Widths and places of header fields in the two classes.
struct Layout {
    wide: bool,
}

impl Layout {
    /// A field as wide as an address.
    fn word(&self, b: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            return Some(u64::from_le_bytes(b.get(wide..wide + 8)?.try_into().ok()?));
        }
        Some(u32::from_le_bytes(b.get(narrow..narrow + 4)?.try_into().ok()?).into())
    }

    /// Sizes of a program header and of a section header.
    fn sizes(&self) -> (u64, u64) {
        if self.wide { (56, 64) } else { (32, 40) }
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?).into())
}

/// The file header, with the counts as they are meant.
struct Header {
    l: Layout,
    kind: u64,
    machine: u64,
    len: u64,
    phoff: u64,
    phnum: u64,
    shoff: u64,
    shnum: u64,
    names: u64,
    /// A count is in a section header that isn't there.
    torn: bool,
}

fn header(item: &mut Item<'_, '_>) -> Option<Header> {
    let head: [u8; 52] = item.array(0)?;
    let l = Layout { wide: head[4] == 2 };
    let len = if l.wide { 64 } else { 52 };
    let head = item.get(0, len)?.to_vec();
    let tail = len - 12;
    let phentsize = u16_at(&head, tail + 2)?;
    let shentsize = u16_at(&head, tail + 6)?;
    let sizes = l.sizes();
    let mut h = Header {
        kind: u16_at(&head, 16)?,
        machine: u16_at(&head, 18)?,
        len: len as u64,
        phoff: l.word(&head, 28, 32)?,
        phnum: u16_at(&head, tail + 4)?,
        shoff: l.word(&head, 32, 40)?,
        shnum: u16_at(&head, tail + 8)?,
        names: u16_at(&head, tail + 10)?,
        torn: false,
        l,
    };
    let sound = (1..=4).contains(&h.kind)
        && h.machine != 0
        && u32_at(&head, 20)? == 1
        && u16_at(&head, tail)? == h.len
        && (h.phnum == 0 || (phentsize == sizes.0 && h.phoff >= h.len))
        && (h.shnum == 0 || shentsize == sizes.1)
        && (h.phnum > 0 || h.shnum > 0 || (h.shoff >= h.len && shentsize == sizes.1));
    if !sound {
        return None;
    }
    let elsewhere = h.phnum == ELSEWHERE
        || h.names == ELSEWHERE
        || (h.shnum == 0 && h.shoff != 0 && shentsize == sizes.1);
    if elsewhere {
        let first = usize::try_from(h.shoff).ok()?;
        let first = item.peek(first, sizes.1 as usize).map(<[u8]>::to_vec);
        // Its type says that it is none, and it has no address.
        let first = first.filter(|s| h.shoff > 0 && s[..8].iter().all(|&b| b == 0));
        match first {
            Some(s) => {
                let (size, link, info) = if h.l.wide { (32, 40, 44) } else { (20, 24, 28) };
                if h.phnum == ELSEWHERE {
                    h.phnum = u32_at(&s, info)?;
                }
                if h.names == ELSEWHERE {
                    h.names = u32_at(&s, link)?;
                }
                if h.shnum == 0 {
                    h.shnum = h.l.word(&s, size, size)?;
                }
            }
            None => h.torn = true,
        }
    }
    Some(h)
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let h = header(item)?;
    let (phsize, shsize) = h.l.sizes();
    let mut extent = Extent {
        kind: "elf",
        ..Extent::default()
    };
    extent.fields = vec![
        ("type", (h.kind as i64).into()),
        ("machine", (h.machine as i64).into()),
    ];
    let table = |off: u64, n: u64, size: u64| n.checked_mul(size)?.checked_add(off);
    let mut end = table(h.phoff, h.phnum, phsize)?.max(h.len);
    let mut proof = Proof::None;
    if h.phnum > 0 {
        let (to, seen) = segments(item, &h)?;
        end = end.max(to);
        proof = seen;
    }
    let bare = h.shoff == 0 && h.shnum == 0;
    let sections = if bare || h.torn {
        None
    } else {
        sections(item, &h)
    };
    let claimed = if bare {
        end
    } else {
        end.max(table(h.shoff, h.shnum, shsize)?)
    };
    match sections {
        Some(sections) => {
            extent.len = usize::try_from(end.max(sections.end)).ok()?;
            if sections.odd {
                extent.doubt("a section does not hold what it should");
            }
            if extent.len <= item.room() {
                behind(item, &h, &mut extent);
            }
        }
        None if bare && proof != Proof::Refuted => {
            extent.len = usize::try_from(end).ok()?;
            if proof == Proof::None {
                extent.doubt("nothing proves that what follows its headers is its own");
            }
        }
        None if h.phnum == 0 => return None,
        None => {
            extent.len = usize::try_from(end).ok()?.min(HEAD);
            stub(&mut extent, claimed);
            extent.lacks(if bare {
                "its segments are not where they should be"
            } else {
                "its section table is not where it should be"
            });
        }
    }
    if extent.len > item.room() {
        extent.len = HEAD.min(item.room());
        stub(&mut extent, claimed);
        extent.lacks("it reaches past what could be followed");
    }
    Some(extent)
}

/// Only the beginning is kept: what size the headers tell helps to find the file that it is of.
fn stub(extent: &mut Extent, claimed: u64) {
    extent.fields.push(("stub", true.into()));
    let claimed = i64::try_from(claimed).unwrap_or(i64::MAX);
    extent.fields.push(("claimed_size", claimed.into()));
}

/// What the segments' content says about whether they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// There is nothing to tell by.
    None,
    /// All that can be told by is right.
    Seen,
    /// Something is not what it should be.
    Refuted,
}

/// The furthest end of a segment in the file; `None` when a program header makes no sense.
fn segments(item: &mut Item<'_, '_>, h: &Header) -> Option<(u64, Proof)> {
    let (size, _) = h.l.sizes();
    let (mut end, mut proof) = (0u64, Proof::None);
    let mut done = 0;
    while done < h.phnum {
        let n = (h.phnum - done).min(STEP);
        if !item.charge((n * size) as usize) {
            return None;
        }
        let at = usize::try_from(h.phoff.checked_add(done * size)?).ok()?;
        let Some(table) = item.peek(at, (n * size) as usize) else {
            // The headers themselves reach past what there is.
            return (done > 0).then_some((end, Proof::Refuted));
        };
        let table = table.to_vec();
        for p in table.chunks_exact(size as usize) {
            let (offset, filesz) = (h.l.word(p, 4, 8)?, h.l.word(p, 16, 32)?);
            let memsz = h.l.word(p, 20, 40)?;
            let kind = u32_at(p, 0)?;
            if kind == PT_LOAD && filesz > memsz {
                return None;
            }
            let to = offset.checked_add(filesz).filter(|&to| to < LONGEST)?;
            end = end.max(to);
            if matches!(kind, PT_INTERP | PT_NOTE) && filesz > 0 && proof != Proof::Refuted {
                proof = told_by(item, kind, offset, filesz);
            }
        }
        done += n;
    }
    Some((end, proof))
}

/// Whether an interpreter's name or a note stands where it should.
fn told_by(item: &mut Item<'_, '_>, kind: u64, offset: u64, size: u64) -> Proof {
    let seen = usize::try_from(offset)
        .ok()
        .and_then(|at| item.peek(at, (size as usize).min(32)).map(<[u8]>::to_vec))
        .is_some_and(|b| {
            if kind == PT_INTERP {
                return b[0] == b'/';
            }
            let n = |at: usize| u32_at(&b, at).unwrap_or(u64::MAX);
            let (name, desc) = (n(0), n(4));
            name <= 256 && desc <= size && name.saturating_add(desc).saturating_add(12) <= size
        });
    if seen { Proof::Seen } else { Proof::Refuted }
}

/// What the section table tells.
struct Sections {
    /// The furthest end of a section and of the table.
    end: u64,
    /// A section's content isn't of its kind: a page of the file is lost, most likely.
    odd: bool,
}

/// `None` when the table isn't there.
fn sections(item: &mut Item<'_, '_>, h: &Header) -> Option<Sections> {
    let (_, size) = h.l.sizes();
    // A core file of many segments has one section header, for their number.
    let nameless = h.names == 0 && h.kind == ET_CORE;
    if h.shnum == 0 || h.names >= h.shnum || h.shoff == 0 || (h.names == 0 && !nameless) {
        return None;
    }
    let mut end = h.shnum.checked_mul(size)?.checked_add(h.shoff)?;
    let mut names_at = None;
    let mut look = Vec::new();
    let mut done = 0;
    while done < h.shnum {
        let n = (h.shnum - done).min(STEP);
        if !item.charge((n * size) as usize) {
            return None;
        }
        let at = usize::try_from(h.shoff.checked_add(done * size)?).ok()?;
        let table = item.peek(at, (n * size) as usize)?;
        for (i, s) in table.chunks_exact(size as usize).enumerate() {
            let i = done + i as u64;
            let kind = u32_at(s, 4)?;
            // The first entry is all zeros, but for counts that are too large for the header.
            if i == 0 {
                let zero = if h.l.wide { 32 } else { 20 };
                if s[..zero].iter().any(|&b| b != 0) {
                    return None;
                }
                continue;
            }
            let (offset, bytes) = (h.l.word(s, 16, 24)?, h.l.word(s, 20, 32)?);
            let flags = h.l.word(s, 8, 8)?;
            let known = matches!(kind, SHT_SYMTAB | SHT_STRTAB | SHT_NOTE | SHT_DYNSYM);
            if known && flags & COMPRESSED == 0 && bytes > 0 && look.len() < LOOKED_AT {
                look.push((kind, offset, bytes));
            }
            if kind != SHT_NOBITS && kind != SHT_NULL {
                end = end.max(offset.checked_add(bytes)?);
            }
            if i == h.names {
                names_at = (kind == SHT_STRTAB && bytes > 1).then_some((offset, bytes));
            }
        }
        done += n;
    }
    if nameless {
        return Some(Sections { end, odd: false });
    }
    let (at, len) = names_at?;
    let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
    let ends = (
        item.peek(at, 1)?[0],
        item.peek(at.checked_add(len)? - 1, 1)?[0],
    );
    let odd = !look
        .into_iter()
        .all(|(kind, offset, bytes)| holds(item, &h.l, kind, offset, bytes));
    (ends == (0, 0)).then_some(Sections { end, odd })
}

/// Whether a section begins, and a table of strings ends, as its kind does.
fn holds(item: &mut Item<'_, '_>, l: &Layout, kind: u64, offset: u64, bytes: u64) -> bool {
    let zero = |item: &mut Item<'_, '_>, at: u64, n: usize| {
        let there = usize::try_from(at).ok().and_then(|at| item.peek(at, n));
        there.is_some_and(|b| b.iter().all(|&b| b == 0))
    };
    match kind {
        SHT_NOTE => told_by(item, PT_NOTE, offset, bytes) == Proof::Seen,
        SHT_STRTAB => {
            zero(item, offset, 1) && zero(item, offset.saturating_add(bytes).saturating_sub(1), 1)
        }
        // The first symbol is none.
        _ => zero(item, offset, if l.wide { 24 } else { 16 }),
    }
}

/// What follows all that the headers point to: a module's signatures, or something unknown.
fn behind(item: &mut Item<'_, '_>, h: &Header, extent: &mut Extent) {
    if h.kind == ET_REL {
        while let Some(len) = signature(item, extent.len) {
            extent.len += len;
            if !extent.fields.iter().any(|f| f.0 == "signed") {
                extent.fields.push(("signed", true.into()));
            }
        }
    }
    if item.goes_on(extent.len) {
        extent.doubt("data follows in its last page that its headers don't tell of");
    }
}

/// The length of a signature that begins here.
fn signature(item: &mut Item<'_, '_>, at: usize) -> Option<usize> {
    if !item.charge(64) {
        return None;
    }
    let left = item.room().saturating_sub(at).min(SIGNATURES);
    let b = item.peek(at, left)?;
    let n = memchr::memmem::find(b, SIGNED)?;
    // Algorithm, hash, kind, lengths of the signer's name and of the key's id, padding, and the
    // length of the signature, big-endian.
    let info = b.get(n.checked_sub(SIGNATURE)?..n)?;
    let len = u32::from_be_bytes([info[8], info[9], info[10], info[11]]) as usize;
    let parts = len + usize::from(info[3]) + usize::from(info[4]);
    (parts + SIGNATURE == n).then_some(n + SIGNED.len())
}
