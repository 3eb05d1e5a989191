//! BTF of which pages are missing or overwritten.
//!
//! ```text
//! types     |sound records ...|damage|sound records ...|damage|...
//!            numbers 1..n       ?      n + k + 1 ...
//! ```
//!
//! A record has no number of its own: it is counted from the first. Behind damage the records are found again by their
//! shape, and how many were lost (`k`) by what refers to them: a function refers to a prototype, a section to variables,
//! a member fits its struct. The number under which all that holds is the right one, if no other comes near; else the
//! stretch is left out. A torn page of strings costs the names that lie in it.
//!
//! Source of what may refer to what: Linux, `Documentation/bpf/btf.rst`, `kernel/bpf/btf.c`.

use super::find::{EVERY_KERNEL, KERNEL_TYPES};
use super::{Btf, BtfError, HEADER, Header, Kind, RawType};
use crate::phys::{u32_at, window};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::PhysRead;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const PAGE: usize = 4096;
/// Records that must follow each other for a stretch to be believed.
const RUN: usize = 24;
/// References of a stretch that are looked at for each number that it may begin with.
const SAMPLE: usize = 6000;
/// References that must be checked for a number to be believed.
const CHECKED: usize = 24;
/// Numbers that are tried for one stretch.
const SHIFTS: usize = 16 << 10;
/// References that are checked in all: bounds the work on hostile bytes.
const BUDGET: usize = 1 << 30;
/// Where a type is not known: no record lies there.
const LOST: u32 = u32::MAX;

/// Reads the blob at an address although pages of it are damaged. `total` is how long it is, where that is known.
///
/// Fails with [`BtfError`] when less than half of it is sound.
pub fn read_damaged(
    mem: &dyn PhysRead,
    pa: PhysAddr,
    total: Option<usize>,
) -> Result<Btf, BtfError> {
    let header = match super::candidate(mem, pa) {
        Ok(h) if total.is_none_or(|t| t == h.total()) => h,
        other => match total.and_then(|t| header_by_strings(mem, pa, t)) {
            Some(h) => h,
            None => other?,
        },
    };
    if header.types_len < KERNEL_TYPES {
        return Err(BtfError::NotAKernel {
            types: 0,
            missing: EVERY_KERNEL,
        });
    }
    let mut data = window(mem, pa, header.total());
    let mut pages = Pages::of_strings(&data, &header, pa);
    pages.blank(&mut data, &header);
    let strange = Damaged::new(&data, header, &pages, false).strange_names();
    pages.torn.extend(strange);
    pages.blank(&mut data, &header);
    let damaged = Damaged::new(&data, header, &pages, true);
    let stretches = damaged.stretches();
    let (at, exact) = damaged.number(&stretches);
    let lost_members = damaged.lost_members(&at);
    let known = at.iter().filter(|a| **a != LOST).count();
    let bytes: usize = stretches.iter().map(|s| s.end - s.start).sum();
    if known == 0 || bytes * 2 < header.types_len {
        return Err(BtfError::Type {
            id: 0,
            at: header.types,
            expected: "types, half of which are sound",
            found: format!("{bytes:#x} of {:#x} bytes", header.types_len),
        });
    }
    for member in lost_members {
        if let Some(m) = data.get_mut(member..member + 12) {
            m.fill(0);
        }
    }
    Ok(Btf {
        lost: at.len() - known,
        open_end: !exact,
        data: data.into(),
        header,
        at,
        first_id: 1,
        first_string: 0,
        base: None,
    })
}

/// The first string of every kernel's types that GCC or Clang made: that of the first type.
const FIRST_STRINGS: [&[u8]; 2] = [b"\0long unsigned int\0", b"\0unsigned long\0"];

/// The parts of a blob whose header is lost: its strings begin with the first type's name.
fn header_by_strings(mem: &dyn PhysRead, pa: PhysAddr, total: usize) -> Option<Header> {
    if !(KERNEL_TYPES..=2 * super::MAX_SECTION as usize).contains(&total) {
        return None;
    }
    let data = window(mem, pa, total);
    let begins = |first: &[u8]| {
        (HEADER..total - first.len())
            .step_by(4)
            .find(|at| data.get(*at..at + first.len()) == Some(first))
    };
    let strings = FIRST_STRINGS.iter().find_map(|f| begins(f))?;
    Some(Header {
        header_len: HEADER,
        types: HEADER,
        types_len: strings - HEADER,
        strings,
        strings_len: total - strings,
    })
}

/// The pages of physical memory that a blob lies in.
struct Pages {
    /// Bytes of the first page before the blob.
    skew: usize,
    /// Pages of strings that are damaged.
    torn: BTreeSet<usize>,
}

impl Pages {
    fn page(&self, at: usize) -> usize {
        (at + self.skew) / PAGE
    }

    /// The part of a page that lies in the strings.
    fn strings(&self, page: usize, header: &Header) -> Range<usize> {
        let from = (page * PAGE).saturating_sub(self.skew).max(header.strings);
        from..((page + 1) * PAGE)
            .saturating_sub(self.skew)
            .min(header.total())
            .max(from)
    }

    /// Pages of strings that are none by what stands in them: identifiers are short and of one alphabet, so eight zeros
    /// in a row, or a byte that is no text, are damage.
    fn of_strings(data: &[u8], header: &Header, pa: PhysAddr) -> Self {
        let mut out = Self {
            skew: usize::try_from(pa.0 % PAGE as u64).unwrap_or(0),
            torn: BTreeSet::new(),
        };
        let text = |b: &u8| *b == 0 || (0x20..0x7f).contains(b);
        for page in out.page(header.strings)..=out.page(header.total().saturating_sub(1)) {
            let bytes = data.get(out.strings(page, header)).unwrap_or_default();
            if !bytes.iter().all(text) || bytes.windows(8).any(|w| w == [0; 8]) {
                out.torn.insert(page);
            }
        }
        out
    }

    fn is_torn(&self, at: usize) -> bool {
        self.torn.contains(&self.page(at))
    }

    /// Overwrites damaged pages of strings, and the strings at their edges, with NULs.
    fn blank(&self, data: &mut [u8], header: &Header) {
        for page in &self.torn {
            let Range {
                start: mut from,
                end: mut to,
            } = self.strings(*page, header);
            let is = |data: &[u8], at: usize| data.get(at).is_some_and(|b| *b != 0);
            while from > header.strings && is(data, from - 1) {
                from -= 1;
            }
            while to < header.total() && is(data, to) {
                to += 1;
            }
            if let Some(b) = data.get_mut(from..to) {
                b.fill(0);
            }
        }
    }
}

/// Records that follow each other.
struct Stretch {
    start: usize,
    end: usize,
    /// Where each begins. One that reaches into damage is counted and not believed.
    at: Vec<u32>,
}

struct Damaged<'a> {
    data: &'a [u8],
    header: Header,
    pages: &'a Pages,
    /// More types than this can't be.
    limit: u32,
    /// Whether a name must begin where a string does.
    strict: bool,
}

/// References to names of a page from which on their share says something.
const NAMES: u32 = 8;

impl<'a> Damaged<'a> {
    fn new(data: &'a [u8], header: Header, pages: &'a Pages, strict: bool) -> Self {
        Self {
            data,
            header,
            pages,
            limit: u32::try_from(header.types_len / 12).unwrap_or(u32::MAX),
            strict,
        }
    }

    /// Pages of strings of which a third of the names begin in the middle of a string: other text lies there than did.
    fn strange_names(&self) -> Vec<usize> {
        let mut count: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        let starts = self.stretches().into_iter().flat_map(|s| s.at);
        for t in starts.filter_map(|at| self.raw(at as usize)) {
            let stride = match t.kind {
                Kind::Struct | Kind::Union | Kind::Enum64 => 3,
                Kind::Enum | Kind::FuncProto => 2,
                _ => 0,
            };
            let members = (0..t.count)
                .filter(|_| stride > 0)
                .map(|i| t.word(stride * i));
            for name in members.chain([t.name]).filter(|n| *n != 0) {
                let at = self.header.strings + name as usize;
                if !self.pages.is_torn(at) && !self.pages.is_torn(at - 1) {
                    let c = count.entry(self.pages.page(at)).or_default();
                    c.0 += 1;
                    c.1 += u32::from(self.data.get(at - 1) != Some(&0));
                }
            }
        }
        let strange = |c: &(u32, u32)| c.0 >= NAMES && c.1 * 3 > c.0;
        let pages = count.into_iter().filter(|(_, c)| strange(c));
        pages.map(|(page, _)| page).collect()
    }

    fn raw(&self, at: usize) -> Option<RawType<'a>> {
        let types = self.data.get(..self.header.types + self.header.types_len)?;
        super::raw_at(types, 0, at)
    }

    /// Whether a name begins at an offset in the strings, as far as its page is sound.
    fn named(&self, name: u32) -> bool {
        if name == 0 || name as usize >= self.header.strings_len {
            return name == 0;
        }
        let at = self.header.strings + name as usize;
        !self.strict
            || self.pages.is_torn(at)
            || self.pages.is_torn(at - 1)
            || self.data.get(at - 1) == Some(&0)
    }

    /// Whether bytes are a record, as far as they tell by themselves.
    fn plausible(&self, t: &RawType<'_>, info: u32) -> bool {
        use Kind::*;
        // Bits that the format leaves empty.
        if info & 0x60ff_0000 != 0 || !self.named(t.name) {
            return false;
        }
        let id = |n: u32| n < self.limit;
        let some = |n: u32| n != 0 && id(n);
        let many = matches!(
            t.kind,
            Struct | Union | Enum | FuncProto | Datasec | Enum64 | Func
        );
        if !many && t.count != 0 {
            return false;
        }
        let nameless = matches!(
            t.kind,
            Ptr | Array | Volatile | Const | Restrict | FuncProto
        );
        let must = matches!(t.kind, Int | Float | Typedef | Func | Var | Datasec | Fwd);
        if (nameless && t.name != 0) || (must && t.name == 0) {
            return false;
        }
        let own = match t.kind {
            Int => {
                matches!(t.size_or_type, 1 | 2 | 4 | 8 | 16)
                    && t.word(0) & 0xff <= 8 * t.size_or_type
                    && t.word(0) >> 28 == 0
            }
            Float => matches!(t.size_or_type, 2 | 4 | 8 | 12 | 16),
            Enum | Enum64 => matches!(t.size_or_type, 1 | 2 | 4 | 8),
            Struct | Union => t.size_or_type < 1 << 24,
            Ptr | Const | Volatile | FuncProto | Typedef | Restrict => id(t.size_or_type),
            Func | Var | DeclTag | TypeTag => some(t.size_or_type),
            Array => some(t.word(0)) && some(t.word(1)),
            Fwd => t.size_or_type == 0,
            Datasec => true,
        };
        own && (0..t.count).all(|i| self.part(t, i))
    }

    /// Whether a member, value or parameter is one.
    fn part(&self, t: &RawType<'_>, i: usize) -> bool {
        use Kind::*;
        let some = |n: u32| n != 0 && n < self.limit;
        match t.kind {
            Struct | Union => {
                let bit = t.word(3 * i + 2) & if t.kind_flag { 0xff_ffff } else { u32::MAX };
                self.named(t.word(3 * i))
                    && some(t.word(3 * i + 1))
                    && u64::from(bit) <= 8 * u64::from(t.size_or_type)
            }
            // The last parameter may stand for `...`.
            FuncProto => {
                self.named(t.word(2 * i))
                    && (some(t.word(2 * i + 1)) || (i + 1 == t.count && t.word(2 * i + 1) == 0))
            }
            Datasec => some(t.word(3 * i)),
            Enum => t.word(2 * i) != 0 && self.named(t.word(2 * i)),
            Enum64 => t.word(3 * i) != 0 && self.named(t.word(3 * i)),
            _ => true,
        }
    }

    /// The end of a struct, or of another of parts of 12 bytes, which begins in a sound page and some of whose parts
    /// lie in a damaged one. `goes_on`: whether records must follow behind it.
    fn torn_record(&self, at: usize, goes_on: bool) -> Option<usize> {
        let t = self.raw(at)?;
        let info = u32_at(self.data, at + 4)?;
        let alone = RawType { count: 0, ..t };
        let end = at + 12 + t.extra.len();
        let composite = matches!(t.kind, Kind::Struct | Kind::Union);
        if !composite || t.count < 2 || !self.plausible(&alone, info & !0xffff) {
            return None;
        }
        // Damage is of whole pages: what is wrong lies in others than the head, and the first member is sound.
        let head = self.pages.page(at + 11);
        let wrong = |i: &usize| !self.part(&t, *i);
        let first = (0..t.count).find(wrong)?;
        let sound = first > 0
            && (0..t.count)
                .filter(wrong)
                .all(|i| self.pages.page(at + 23 + 12 * i) != head);
        let mut next = end;
        for _ in 0..if goes_on { RUN } else { 0 } {
            if next == self.header.types + self.header.types_len {
                break;
            }
            next = self.record(next)?;
        }
        sound.then_some(end)
    }

    /// Places of members that lie in damaged pages, of structs the rest of which is sound.
    fn lost_members(&self, at: &[u32]) -> Vec<usize> {
        let mut out = Vec::new();
        for at in at.iter().filter(|a| **a != LOST) {
            let at = *at as usize;
            let Some(t) = self.raw(at) else { continue };
            if !matches!(t.kind, Kind::Struct | Kind::Union) {
                continue;
            }
            let page =
                |i: usize| self.pages.page(at + 12 + 12 * i)..=self.pages.page(at + 23 + 12 * i);
            let wrong: BTreeSet<usize> = (0..t.count)
                .filter(|i| !self.part(&t, *i))
                .flat_map(page)
                .collect();
            // What happens to look sound in such a page is not believed either.
            let lost = (0..t.count).filter(|i| page(*i).any(|p| wrong.contains(&p)));
            out.extend(lost.map(|i| at + 12 + 12 * i));
        }
        out
    }

    /// The end of a record, if there is one.
    fn record(&self, at: usize) -> Option<usize> {
        let info = u32_at(self.data, at + 4)?;
        let t = self.raw(at)?;
        self.plausible(&t, info).then_some(at + 12 + t.extra.len())
    }

    /// All stretches of records, in order.
    fn stretches(&self) -> Vec<Stretch> {
        let (mut at, end) = (self.header.types, self.header.types + self.header.types_len);
        let mut out: Vec<Stretch> = Vec::new();
        while at < end {
            let mut s = Stretch {
                start: at,
                end: at,
                at: Vec::new(),
            };
            while s.end < end
                && let Some(next) = self.record(s.end).or_else(|| {
                    // The first of a stretch must be whole.
                    (!s.at.is_empty())
                        .then(|| self.torn_record(s.end, true))
                        .flatten()
                })
            {
                s.at.push(u32::try_from(s.end).unwrap_or(LOST));
                s.end = next;
            }
            if s.at.len() >= RUN || (s.end == end && !s.at.is_empty()) {
                self.close(&mut s, end);
                at = s.end;
                out.push(s);
            } else {
                at += 4;
            }
        }
        out
    }

    /// Ends a stretch at damage: a struct whose head is sound is its last record, and what reaches into the damaged
    /// page without being one can't be believed.
    fn close(&self, s: &mut Stretch, end: usize) {
        if s.end >= end {
            return;
        }
        if let Some(next) = self.torn_record(s.end, false) {
            s.at.push(u32::try_from(s.end).unwrap_or(LOST));
            s.end = next.min(end);
        } else if let Some(last) = s.at.last_mut()
            && self.pages.page(*last as usize) < self.pages.page(s.end.saturating_sub(1))
            && !self
                .raw(*last as usize)
                .is_some_and(|t| matches!(t.kind, Kind::Struct | Kind::Union))
        {
            *last = LOST;
        }
    }

    /// The place of each type by its number, and whether the last one is the last of the blob.
    fn number(&self, stretches: &[Stretch]) -> (Vec<u32>, bool) {
        let mut at: Vec<u32> = Vec::new();
        let mut exact = false;
        let mut budget = BUDGET;
        // Up to where numbers are given.
        let mut placed = self.header.types;
        for s in stretches {
            let gap = s.start - placed;
            let lost = if gap == 0 {
                Some(0)
            } else {
                self.lost_before(s, at.len(), gap, &mut budget)
            };
            let Some(lost) = lost else { continue };
            at.resize(at.len() + lost, LOST);
            at.extend_from_slice(&s.at);
            placed = s.end;
            exact = s.end == self.header.types + self.header.types_len;
        }
        (at, exact)
    }

    /// How many types were lost in the `gap` bytes before a stretch, `known` being numbered before them: the number
    /// with which the stretch's references fit best, if it is the only one.
    fn lost_before(
        &self,
        s: &Stretch,
        known: usize,
        gap: usize,
        budget: &mut usize,
    ) -> Option<usize> {
        let kinds: Vec<Option<RawType<'_>>> =
            s.at.iter().map(|at| self.raw(*at as usize)).collect();
        let (low, high) = (known + 1, known + gap / 12 + s.at.len() + 1);
        let mut references = Vec::new();
        // Those that a number in question can't reach say nothing. Functions and sections say most.
        for t in kinds.iter().flatten() {
            visit(t, &mut |r: Reference| {
                if (low..high).contains(&(r.target as usize)) {
                    references.push(r);
                }
            });
        }
        let strict = |r: &Reference| matches!(r.from, Kind::Func | Kind::Datasec);
        references.sort_by_key(|r| !strict(r));
        let step = (references.len() / SAMPLE).max(1);
        let sample: Vec<&Reference> = references.iter().step_by(step).collect();
        *budget = budget.checked_sub(sample.len().saturating_mul((gap / 12).min(SHIFTS)))?;
        let mut best: Option<(f64, usize)> = None;
        let mut second = f64::INFINITY;
        for lost in 1..=(gap / 12).min(SHIFTS) {
            let (mut wrong, mut checked) = (0_u32, 0_u32);
            for r in &sample {
                let Some(own) = (r.target as usize).checked_sub(known + lost + 1) else {
                    continue;
                };
                let Some(Some(t)) = kinds.get(own) else {
                    continue;
                };
                checked += 1;
                wrong += u32::from(!fits(r, t));
            }
            if (checked as usize) < CHECKED.min(sample.len()) || checked == 0 {
                continue;
            }
            let share = f64::from(wrong) / f64::from(checked);
            match best {
                Some((b, _)) if b <= share => second = second.min(share),
                _ => {
                    second = best.map_or(f64::INFINITY, |(b, _)| b);
                    best = Some((share, lost));
                }
            }
        }
        // Real references all fit; a few point at records that damage has changed.
        let (share, lost) = best?;
        (share <= 0.01 && second >= 0.03_f64.max(4.0 * share)).then_some(lost)
    }
}

/// One type that refers to another.
struct Reference {
    from: Kind,
    /// The number of the other.
    target: u32,
    /// What it is for.
    part: Part,
}

enum Part {
    Whole,
    Index,
    /// A member, and the bytes that are there for it.
    Member(u64),
    Parameter,
}

/// The references of a record.
fn visit(t: &RawType<'_>, out: &mut impl FnMut(Reference)) {
    use Kind::*;
    let mut refer = |target, part| {
        out(Reference {
            from: t.kind,
            target,
            part,
        });
    };
    match t.kind {
        Ptr | Typedef | Volatile | Const | Restrict | Func | Var | DeclTag | TypeTag => {
            refer(t.size_or_type, Part::Whole);
        }
        Array => {
            refer(t.word(0), Part::Whole);
            refer(t.word(1), Part::Index);
        }
        Struct | Union => {
            for i in 0..t.count {
                let raw = t.word(3 * i + 2);
                let (bit, bits) = if t.kind_flag {
                    (raw & 0xff_ffff, raw >> 24)
                } else {
                    (raw, 0)
                };
                // A bit-field's type may be wider than the room that is left.
                let room = match bits {
                    0 => u64::from(t.size_or_type).saturating_sub(u64::from(bit) / 8),
                    _ => u64::MAX,
                };
                refer(t.word(3 * i + 1), Part::Member(room));
            }
        }
        FuncProto => {
            refer(t.size_or_type, Part::Parameter);
            for i in 0..t.count {
                refer(t.word(2 * i + 1), Part::Parameter);
            }
        }
        Datasec => (0..t.count).for_each(|i| refer(t.word(3 * i), Part::Whole)),
        Int | Enum | Enum64 | Fwd | Float => {}
    }
}

/// Whether a type may be what refers to it takes it for.
fn fits(r: &Reference, t: &RawType<'_>) -> bool {
    use Kind::*;
    let value = !matches!(t.kind, Func | FuncProto | Var | Datasec | DeclTag | Fwd);
    match (&r.part, r.from) {
        (Part::Index, _) => t.kind == Int,
        (Part::Parameter, _) => value,
        (Part::Member(room), _) => {
            let size = match t.kind {
                Int | Struct | Union | Enum | Enum64 | Float => u64::from(t.size_or_type),
                Ptr => 8,
                _ => 0,
            };
            value && size <= *room
        }
        (Part::Whole, Func) => t.kind == FuncProto,
        (Part::Whole, Datasec) => t.kind == Var,
        (Part::Whole, Array | Var) => value,
        (Part::Whole, DeclTag) => matches!(t.kind, Func | Struct | Union | Typedef | Var),
        (Part::Whole, _) => !matches!(t.kind, Func | Var | Datasec | DeclTag),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test says where")]
    use super::*;
    use ramsift_layers::translate::PhysError;

    struct Bytes(Vec<u8>);

    impl PhysRead for Bytes {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            let from = usize::try_from(pa.0)
                .ok()
                .and_then(|at| self.0.get(at..at + buf.len()));
            buf.copy_from_slice(from.ok_or(PhysError::NotInImage { pa })?);
            Ok(())
        }
    }

    /// Types of a kernel of so many structs: an integer, and for each struct a pointer to it, a prototype that takes
    /// the pointer, a function of that prototype, and now and then types in between, so that no two stretches are alike.
    /// Gives the number of each struct too.
    fn kernel(structs: u32) -> (Vec<u8>, Vec<u32>) {
        let (mut types, mut strings) = (Vec::new(), b"\0long unsigned int\0".to_vec());
        let mut word = |all: &[u32]| all.iter().for_each(|w| types.extend(w.to_le_bytes()));
        let kind = |kind: Kind, count: u32| (kind as u32) << 24 | count;
        word(&[1, kind(Kind::Int, 0), 8, 64]);
        let (mut next, mut numbers) = (2, Vec::new());
        for i in 0..structs {
            for _ in 0..i.wrapping_mul(2_654_435_761) >> 30 {
                word(&[0, kind(Kind::Const, 0), 1]);
                next += 1;
            }
            let own = next;
            numbers.push(own);
            let name = u32::try_from(strings.len()).unwrap();
            strings.extend(format!("struct_number_{i:05}\0").as_bytes());
            word(&[name, kind(Kind::Struct, 3), 24]);
            word(&[name, 1, 0, name, own + 1, 64, name, 1, 128]);
            word(&[0, kind(Kind::Ptr, 0), own]);
            word(&[0, kind(Kind::FuncProto, 1), 1, name, own + 1]);
            word(&[name, kind(Kind::Func, 0), own + 2]);
            next += 4;
        }
        let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
        let head = [0x0001_eb9f, 24, 0, types_len, types_len, strings_len];
        let mut out: Vec<u8> = head.iter().flat_map(|w| w.to_le_bytes()).collect();
        out.extend(types);
        out.extend(strings);
        (out, numbers)
    }

    const STRUCTS: u32 = 6000;

    /// How many structs are known by their names; panics at one under another's number.
    fn known(b: &Btf, numbers: &[u32]) -> usize {
        let structs = b.iter().filter(|t| t.kind == Kind::Struct);
        let mut known = 0;
        for t in structs {
            let name = b.string(t.name).unwrap();
            if !name.is_empty() {
                let i: usize = name
                    .strip_prefix("struct_number_")
                    .unwrap()
                    .parse()
                    .unwrap();
                assert_eq!(t.id, numbers[i], "{name}");
                known += 1;
            }
        }
        known
    }

    #[test]
    fn what_lies_behind_damage_keeps_its_numbers() {
        let (whole, numbers) = kernel(STRUCTS);
        let types = Header::parse(&whole).unwrap().types_len;
        for (from, with) in [(types / 2, 0), (8192, 0xaa), (types - 4096 * 4, 0xff)] {
            let mut torn = whole.clone();
            let page = from / 4096 * 4096;
            torn[page..page + 4096].fill(with);
            let b = read_damaged(&Bytes(torn), PhysAddr(0), None).unwrap();
            // A page holds some 205 of them.
            assert!((150..260).contains(&b.lost()), "{}", b.lost());
            let known = known(&b, &numbers);
            assert!(
                known > STRUCTS as usize - 60,
                "{known} with damage at {from:#x}"
            );
            assert!(b.has_end());
        }
    }

    #[test]
    fn a_torn_page_of_strings_costs_their_names_alone() {
        let (mut torn, numbers) = kernel(STRUCTS);
        let page = (torn.len() - 40_000) / 4096 * 4096;
        torn[page..page + 4096].fill(0);
        let b = read_damaged(&Bytes(torn), PhysAddr(0), None).unwrap();
        assert_eq!(b.lost(), 0);
        assert!((STRUCTS as usize - 250..STRUCTS as usize).contains(&known(&b, &numbers)));
    }

    #[test]
    fn a_lost_header_is_told_by_the_end_of_the_blob() {
        let (mut torn, numbers) = kernel(STRUCTS);
        torn[..4096].fill(0);
        let len = torn.len();
        let b = read_damaged(&Bytes(torn), PhysAddr(0), Some(len)).unwrap();
        assert!(known(&b, &numbers) > STRUCTS as usize - 60);
    }

    #[test]
    fn noise_behind_a_header_is_no_kernel() {
        let (mut noise, _) = kernel(STRUCTS);
        let mut x = 1_u64;
        for b in noise.iter_mut().skip(HEADER) {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *b = (x >> 56) as u8;
        }
        assert!(read_damaged(&Bytes(noise), PhysAddr(0), None).is_err());
        assert!(read_damaged(&Bytes(vec![0; 4096]), PhysAddr(0), None).is_err());
    }
}
