//! The pass: windows into parts, parts into pages, pages into candidates, candidates to carvers.

use crate::api::{LOOK_BEHIND, ReadMore, ScanStats, Sink, Window};
use crate::carver::Hit;
use crate::chars::{ALNUM, CLASS, Chars, LOCAL, is};
use crate::feature::Place;
use crate::lines::Lines;
use crate::masks::{BLOCK, BLOCKS, Masks, classify};
use crate::page::{PAGE, constant_page};
use crate::source::{AHEAD, Scratch, Source};
use crate::text::{Runs, Text};
use crate::{CarverSet, Scans, domain, email, idn, ip, url};
use ramsift_layers::ImageOffset;
use std::ops::Range;

/// The core is scanned in parts of this size, to bound what is kept between passes.
const PART: usize = 4 << 20;
/// Literals are searched for in pieces of this size, while they are still in the cache.
const PIECE: usize = 256 << 10;
/// Longest literal that a carver may anchor on.
pub(crate) const LONGEST_LITERAL: usize = 32;
/// Indicators that begin in the core are recognised at most this far after it.
const FEATURE_TAIL: usize = 4 << 10;
/// What a stretch that nothing was finished in is reported under.
const ALL: &str = "all";

/// What is kept from one part to the next.
#[derive(Default)]
struct Kept {
    scratch: Scratch,
    claims: Vec<Range<usize>>,
    holes: Vec<Range<usize>>,
    spans: Vec<Range<usize>>,
    runs: [Runs; 3],
    partial: Vec<(&'static str, u64, u64, String)>,
}

pub(crate) fn scan(
    set: &CarverSet,
    window: &Window<'_>,
    more: &mut dyn ReadMore,
    sink: &mut dyn Sink,
    stop: &dyn Fn() -> bool,
) -> ScanStats {
    let mut stats = ScanStats::default();
    let end = window.core_end.min(window.data.len());
    let start = window.core_start.min(end);
    let mut kept = Kept::default();
    kept.scratch.work = 16 * (end - start) as u64 + (1 << 30);
    // What has enough bytes after it is scanned in place, the rest in a longer copy.
    let window_end = window.base.0 + window.data.len() as u64;
    let last = window_end >= window.image_len;
    let enough = window.data.len().saturating_sub(AHEAD);
    let middle = if last {
        end
    } else {
        end.min(enough).max(start)
    };
    let in_place = Window {
        core_start: start,
        core_end: middle,
        ..*window
    };
    if !parts(set, &in_place, more, sink, stop, &mut kept, &mut stats) {
        let from = window.base.0 + start as u64;
        finish(&mut stats, kept.partial, from..window.base.0 + end as u64);
        return stats;
    }
    if middle < end {
        let from = middle.saturating_sub(LOOK_BEHIND);
        let mut data = window.data[from..].to_vec();
        let missing = (window.image_len - window_end).min(AHEAD as u64) as usize;
        let before = data.len();
        if let Err(e) = more.read_more(ImageOffset(window_end), missing, &mut data) {
            data.truncate(before);
            let from = window.base.0 + middle as u64;
            kept.partial
                .push((ALL, from, (end - middle) as u64, e.to_string()));
        }
        let tail = Window {
            data: &data,
            base: ImageOffset(window.base.0 + from as u64),
            core_start: middle - from,
            core_end: end - from,
            image_len: window.image_len,
        };
        parts(set, &tail, more, sink, stop, &mut kept, &mut stats);
    }
    let core = window.base.0 + start as u64..window.base.0 + end as u64;
    finish(&mut stats, kept.partial, core);
    stats
}

/// Clips what is partial to the core, and merges neighbours.
fn finish(stats: &mut ScanStats, partial: Vec<(&'static str, u64, u64, String)>, core: Range<u64>) {
    for (name, from, len, why) in partial {
        let from = from.clamp(core.start, core.end);
        let to = from.saturating_add(len).clamp(from, core.end);
        let near = |r: &Range<u64>| r.end + (PAGE as u64) >= from && r.start <= from;
        match stats.partial.last_mut() {
            Some((n, r, w)) if *n == name && *w == why && near(r) => r.end = r.end.max(to),
            _ => stats.partial.push((name, from..to, why)),
        }
    }
}

/// Scans the core of a window part by part; false when it was told to stop.
fn parts(
    set: &CarverSet,
    window: &Window<'_>,
    more: &mut dyn ReadMore,
    sink: &mut dyn Sink,
    stop: &dyn Fn() -> bool,
    kept: &mut Kept,
    stats: &mut ScanStats,
) -> bool {
    let mut at = window.core_start;
    while at < window.core_end {
        let end = window.core_end.min(at + PART);
        let core = at..end;
        let w = Window {
            core_start: at,
            core_end: end,
            ..*window
        };
        let mut part = Part {
            set,
            w,
            core,
            kept,
            stop,
        };
        if !part.pages(sink, stats) || !part.literals(more, sink) {
            let from = window.base.0 + at as u64;
            let len = (window.core_end - at) as u64;
            kept.partial
                .push((ALL, from, len, "out of time".to_owned()));
            return false;
        }
        part.text(sink);
        sink.checkpoint(ImageOffset(window.base.0 + end as u64));
        at = end;
    }
    true
}

/// A part of the core and what is found out about it on the way.
struct Part<'p, 'w> {
    set: &'p CarverSet,
    w: Window<'w>,
    core: Range<usize>,
    kept: &'p mut Kept,
    stop: &'p dyn Fn() -> bool,
}

impl Part<'_, '_> {
    /// The pages to look at: those of the core, those before it whose lines may reach into it, and
    /// those after it up to where its last text region must end.
    fn reach(&self) -> Range<usize> {
        let start = self.core.start.saturating_sub(LOOK_BEHIND);
        // The first whole page, save at the start of the image.
        let cut = (self.w.base.0 + start as u64) % PAGE as u64;
        let start = if cut == 0 {
            start
        } else {
            start + PAGE - cut as usize
        };
        let end = self.core.end + crate::text::CUT as usize + PAGE;
        let over = (self.w.base.0 + end as u64) % PAGE as u64;
        start.min(self.core.start)..(end - over as usize).min(self.w.data.len())
    }

    /// Looks at each page; false when told to stop.
    fn pages(&mut self, sink: &mut dyn Sink, stats: &mut ScanStats) -> bool {
        let Window { data, base, .. } = self.w;
        let reach = self.reach();
        let kept = &mut *self.kept;
        kept.holes.clear();
        kept.spans.clear();
        kept.runs.iter_mut().for_each(Runs::clear);
        let mut claims = std::mem::take(&mut kept.claims);
        claims.clear();
        let mut masks: [Masks; BLOCKS] = [Masks::default(); BLOCKS];
        let mut padded = [0u8; BLOCKS * BLOCK];
        let core = self.core.clone();
        let mut place = Place::new(data, base.0, core.clone(), sink);
        place.emails = self.set.scans.email;
        let mut lines = Lines::new(data, base.0, core, &self.set.clock, claims);
        let mut p = reach.start;
        while p < reach.end {
            let whole = PAGE - ((base.0 + p as u64) % PAGE as u64) as usize;
            let q = (p + whole).min(reach.end);
            if (base.0 + p as u64).is_multiple_of(1 << 20) && (self.stop)() {
                return false;
            }
            if constant_page(&data[p..q]).is_some() {
                kept.holes.push(p..q);
                sparse(stats, base.0, p.max(self.core.start)..q.min(self.core.end));
            } else {
                match kept.spans.last_mut() {
                    Some(s) if s.end == p => s.end = q,
                    _ => kept.spans.push(p..q),
                }
                let around = p
                    .checked_sub(BLOCK)
                    .and_then(|a| data.get(a..a + BLOCKS * BLOCK));
                let around = match around.and_then(|b| b.try_into().ok()) {
                    Some(b) if q - p == PAGE => b,
                    _ => {
                        pad(data, p, q, &mut padded);
                        &padded
                    }
                };
                classify(around, &mut masks);
                let near = p < self.core.end + FEATURE_TAIL && q > self.core.start;
                let scans = if near {
                    self.set.scans
                } else {
                    Scans {
                        log: self.set.scans.log,
                        text: self.set.scans.text,
                        ..Scans::default()
                    }
                };
                candidates(&masks, p, q, scans, &mut place, &mut lines, &mut kept.runs);
            }
            p = q;
        }
        kept.claims = lines.claims;
        true
    }

    /// Searches for the literals; false when told to stop.
    fn literals(&mut self, more: &mut dyn ReadMore, sink: &mut dyn Sink) -> bool {
        let Some(searcher) = &self.set.searcher else {
            return true;
        };
        let kept = &mut *self.kept;
        let data = self.w.data;
        let mut source = Source::new(
            &self.w,
            self.set.options.max_artifact,
            more,
            &mut kept.scratch,
        );
        let mut seen = crate::ends::Seen::default();
        // The first page may be cut by the window's start: it is no span, but may hold a literal.
        let first = self.core.start.saturating_sub(LOOK_BEHIND);
        let lead = kept
            .spans
            .first()
            .map_or(self.core.start, |s| s.start)
            .min(first + PAGE);
        let spans = std::iter::once(first..lead).chain(kept.spans.iter().cloned());
        let mut done = first;
        for span in spans {
            // A literal may begin in a page of one byte, or end in one; what two spans share is searched once.
            let from = span.start.saturating_sub(LONGEST_LITERAL).max(done);
            let end = (span.end + LONGEST_LITERAL).min(data.len());
            done = done.max(end);
            let mut at = from;
            while at < end {
                if (self.stop)() {
                    return false;
                }
                let piece = at..(at + PIECE).min(end);
                let to = (piece.end + LONGEST_LITERAL).min(data.len());
                let stretch = &data[at..to];
                let mut next = 0;
                // Each search goes on one byte further: of two literals that overlap both are found.
                while let Some(m) = searcher.find_in(stretch, (next..stretch.len()).into()) {
                    let found = at + m.start();
                    next = m.start() + 1;
                    if found >= piece.end {
                        break;
                    }
                    let carver = self.set.carvers[self.set.owners[m.pattern().as_usize()]];
                    let (reach, carry) = (carver.reach(), carver.carry());
                    if found + carry < self.core.start || found >= self.core.end + reach {
                        continue;
                    }
                    let mut hit = Hit {
                        source: &mut source,
                        sink: &mut *sink,
                        stop: self.stop,
                        partial: &mut kept.partial,
                        carver: carver.name(),
                        seen: &mut seen,
                    };
                    carver.visit(found, &mut hit);
                }
                at = piece.end;
            }
        }
        true
    }

    /// Cuts text regions out of what no line parser claimed.
    fn text(&mut self, sink: &mut dyn Sink) {
        if !self.set.scans.text {
            return;
        }
        self.kept.claims.sort_unstable_by_key(|c| (c.start, c.end));
        let text = Text {
            data: self.w.data,
            base: self.w.base.0,
            core: self.core.clone(),
            claims: &self.kept.claims,
            holes: &self.kept.holes,
        };
        text.report::<1>(&self.kept.runs[0], 0, sink);
        text.report::<2>(&self.kept.runs[1], 0, sink);
        text.report::<2>(&self.kept.runs[2], 1, sink);
    }
}

/// Adds a constant stretch, merged with the one before it.
fn sparse(stats: &mut ScanStats, base: u64, page: Range<usize>) {
    if page.start >= page.end {
        return;
    }
    let (from, to) = (base + page.start as u64, base + page.end as u64);
    match stats.sparse.last_mut() {
        Some(r) if r.end == from => r.end = to,
        _ => stats.sparse.push(from..to),
    }
}

/// Copies a page at an edge of the data, with zeros where the image has nothing.
fn pad(data: &[u8], p: usize, q: usize, out: &mut [u8; BLOCKS * BLOCK]) {
    out.fill(0);
    let before = p.min(BLOCK);
    out[BLOCK - before..BLOCK].copy_from_slice(&data[p - before..p]);
    let to = data.len().min(q + BLOCK).min(p + PAGE + BLOCK);
    out[BLOCK..BLOCK + to - p].copy_from_slice(&data[p..to]);
}

/// Bits `n` bytes after: those of `m` moved to where they are looked at from.
#[inline(always)]
fn after(m: u64, next: u64, n: u32) -> u64 {
    m >> n | next << (64 - n)
}

/// Bits `n` bytes before.
#[inline(always)]
fn before(m: u64, prev: u64, n: u32) -> u64 {
    m << n | prev >> (64 - n)
}

/// Calls `f` with the position of each bit.
#[inline(always)]
fn each(mut bits: u64, at: usize, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(at + bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

/// Goes through the blocks of a page and calls the scanners where their shapes begin.
fn candidates(
    masks: &[Masks; BLOCKS],
    p: usize,
    q: usize,
    scans: Scans,
    place: &mut Place<'_>,
    lines: &mut Lines<'_>,
    runs: &mut [Runs; 3],
) {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let features = scans.url || scans.domain || scans.email || scans.ip;
    for (i, w) in masks.windows(3).enumerate() {
        let (prev, m, next) = (&w[0], &w[1], &w[2]);
        let at = p + i * BLOCK;
        if at >= q {
            break;
        }
        if scans.text {
            if m.text == !0 {
                // Most are bytes that happen to be text. (In UTF-16 a region's other blocks may be
                // of other scripts.)
                runs[0].push::<{ crate::text::BLOCKS }>(at);
            } else if m.zero == !EVEN {
                // Every other byte is zero, and the others are text.
                if m.text == EVEN {
                    runs[1].push::<1>(at);
                }
            } else if m.zero == EVEN && m.text == !EVEN {
                runs[2].push::<1>(at);
            }
        }
        // One branch for both: they are rare, and in random bytes nothing foretells them.
        let mut timed = false;
        let stamps = (m.end | m.colon) & before(m.digit, prev.digit, 1);
        if scans.log && m.brace | stamps != 0 {
            let (objects, audits) = (braces(m, next), audit(prev, m, next));
            if objects | audits != 0 {
                // What a line ends with is part of that line, wherever the two fall in blocks.
                times(prev, m, next, at, lines, place.sink);
                timed = true;
            }
            each(objects, at, |p| match place.data.get(p + 1) {
                Some(0) => lines.brace::<2>(p, place.sink),
                Some(b'"' | b' ' | b'\t') => lines.brace::<1>(p, place.sink),
                _ => {}
            });
            each(ten_digits(prev, m), at, |p| lines.stamped(p, place.sink));
            each(audits, at, |p| lines.audit(p, place.sink));
        }
        if m.colon | m.dot | m.at == 0 {
            continue;
        }
        if scans.log && !timed {
            times(prev, m, next, at, lines, place.sink);
        }
        if features {
            shapes::<1>(prev, m, next, at, scans, place);
        }
        if features && (m.colon | m.dot | m.at) & after(m.zero, next.zero, 1) != 0 {
            shapes::<2>(prev, m, next, at, scans, place);
        }
    }
}

/// Times of day, in both encodings.
#[inline(always)]
fn times(
    prev: &Masks,
    m: &Masks,
    next: &Masks,
    at: usize,
    lines: &mut Lines<'_>,
    sink: &mut dyn Sink,
) {
    each(clock::<1>(prev, m, next), at, |p| {
        lines.time_of_day::<1>(p, sink);
    });
    if m.colon & after(m.zero, next.zero, 1) != 0 {
        each(clock::<2>(prev, m, next), at, |p| {
            lines.time_of_day::<2>(p, sink);
        });
    }
}

/// Braces before a quote or a space, in ASCII or in UTF-16, or what else is no letter.
#[inline(always)]
fn braces(m: &Masks, next: &Masks) -> u64 {
    let mark = after(m.text & !m.named, next.text & !next.named, 1);
    let zero = |n| after(m.zero, next.zero, n);
    m.brace & (mark | (zero(1) & !zero(2) & zero(3)))
}

/// Line ends and colons after ten digits.
#[inline(always)]
fn ten_digits(prev: &Masks, m: &Masks) -> u64 {
    // Bits behind one digit, behind two, four, eight and ten: no branch for each digit.
    let one = (u128::from(m.digit) << 64 | u128::from(prev.digit)) << 1;
    let two = one & one << 1;
    let four = two & two << 2;
    let ten = (four & four << 4) & two << 8;
    (m.end | m.colon) & (ten >> 64) as u64
}

/// The colons of `.ddd:d`.
#[inline(always)]
fn audit(prev: &Masks, m: &Masks, next: &Masks) -> u64 {
    let (d, dp) = (m.digit, prev.digit);
    let bits = m.colon & before(d, dp, 1) & before(d, dp, 2) & before(d, dp, 3);
    bits & before(m.dot, prev.dot, 4) & after(d, next.digit, 1)
}

/// First colons of `dd:dd:dd`.
#[inline(always)]
fn clock<const STEP: u32>(prev: &Masks, m: &Masks, next: &Masks) -> u64 {
    let colons = m.colon & after(m.colon, next.colon, 3 * STEP);
    if colons == 0 {
        return 0;
    }
    let (d, dp, dn) = (m.digit, prev.digit, next.digit);
    let mut bits = colons & before(d, dp, 2 * STEP) & before(d, dp, STEP);
    bits &= after(d, dn, STEP) & after(d, dn, 2 * STEP);
    bits &= after(d, dn, 4 * STEP) & after(d, dn, 5 * STEP);
    if STEP == 2 {
        bits & after(m.zero, next.zero, 1)
    } else {
        bits
    }
}

/// What a byte may be on the left and on the right of a dot or `@` that is not between plain
/// characters of names: both bytes must have a bit in common.
///
/// ```text
///   1 2 4  brackets of a kind     8 plain before a letter     16 a letter before either
/// ```
static SIDES: ([u8; 256], [u8; 256]) = {
    let (mut left, mut right) = ([0u8; 256], [0u8; 256]);
    let mut i = 0;
    while i < 256 {
        let class = CLASS[i];
        left[i] = match i as u8 {
            b'[' => 1,
            b'(' => 2,
            b'{' => 4,
            0x80..0xc0 => 16,
            _ if class & LOCAL != 0 => 8,
            _ => 0,
        };
        right[i] = match i as u8 {
            b']' => 1,
            b')' => 2,
            b'}' => 4,
            0xc2..0xf5 => 8 | 16,
            _ if class & ALNUM != 0 => 16,
            _ => 0,
        };
        i += 1;
    }
    (left, right)
};

/// False for what [`odd`] has no use for, as two bytes tell, or four beyond ASCII: most dots and `@`
/// are in no text.
#[inline(always)]
fn may_be_odd<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> bool {
    let b = chars.0;
    let at = |i: usize| b.get(i).copied().unwrap_or(0);
    let (x, y) = (at(p.wrapping_sub(STEP)), at(p + STEP));
    let fits = SIDES.0[usize::from(x)] & SIDES.1[usize::from(y)] != 0;
    if STEP == 2 {
        return fits | (at(p.wrapping_sub(1)) | at(p + 3) | ((x | y) & 0x80) != 0);
    }
    // In UTF-8 no byte beyond ASCII is alone: one that goes on is behind one of these, and one that
    // begins a character is before one.
    let (w, z) = (at(p.wrapping_sub(2)), at(p + 2));
    let left = (x < 0x80) | ((0x80..0xf5).contains(&w) & (w & 0xfe != 0xc0));
    let right = (y < 0x80) | (z & 0xc0 == 0x80);
    fits & left & right
}

/// Where a name may go on around the dot or `@` at byte `p`, which is not between plain characters
/// of names: at itself beside letters beyond ASCII, at the bracket before it where it is in a pair.
#[inline(never)]
fn odd<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<usize> {
    let before = p.checked_sub(STEP)?;
    let b = chars.0;
    let bracket = |x: u8, y: u8| matches!((x, y), (b'[', b']') | (b'(', b')') | (b'{', b'}'));
    // Most of these bytes are no text at all: what can be told from two of them is told first.
    if STEP == 1 {
        let (x, y, z) = (*b.get(before)?, *b.get(p + 1)?, *b.get(p + 2)?);
        if (x | y) < 0x80 {
            return bracket(x, y).then_some(before);
        }
        let right = if y < 0x80 {
            is(y, ALNUM)
        } else {
            (0xc2..0xf5).contains(&y) && z & 0xc0 == 0x80
        };
        let left = is(x, LOCAL) || (0x80..0xc0).contains(&x);
        return (right && left && lettered(chars, p)).then_some(p);
    }
    let unit = |p: usize| Some((*b.get(p)?, *b.get(p + 1)?));
    let (x, y) = (unit(before)?, unit(p + 2)?);
    if x.1 | y.1 == 0 && (x.0 | y.0) < 0x80 {
        return bracket(x.0, y.0).then_some(before);
    }
    let plain = |u: (u8, u8), class: u8| u.1 != 0 || is(u.0, class) || u.0 >= 0xc0;
    if !plain(x, LOCAL) || !plain(y, ALNUM) {
        return None;
    }
    // Far letters have a neighbour of their script.
    let near = |a: u8, b: u8| {
        a < 7
            || a == b
            || ((0x30..0xa0).contains(&a) && (0x30..0xa0).contains(&b))
            || ((0xac..0xd8).contains(&a) && (0xac..0xd8).contains(&b))
    };
    let right = near(y.1, unit(p + 4)?.1);
    let left = near(
        x.1,
        before.checked_sub(2).and_then(unit).unwrap_or_default().1,
    );
    (right && left && lettered(chars, p)).then_some(p)
}

/// True when letters or what names are made of stand on both sides of byte `p`.
fn lettered<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> bool {
    let fits = |c: Option<(char, usize)>, class: u8| {
        c.is_some_and(|(c, _)| match u8::try_from(c) {
            Ok(b) if b < 0x80 => is(b, class),
            _ => idn::is_name_char(c),
        })
    };
    fits(chars.char_at(p + STEP), ALNUM) && fits(chars.char_before(p), LOCAL)
}

/// What lies between text and text, of any script.
#[inline(always)]
fn between<const STEP: usize>(prev: &Masks, m: &Masks, next: &Masks) -> u64 {
    if STEP == 2 {
        let z = m.zero;
        let none_before = before(z, prev.zero, 1) & before(z, prev.zero, 2);
        let none_after = after(z, next.zero, 2) & after(z, next.zero, 3);
        return !(none_before | none_after);
    }
    // A letter beyond ASCII has two bytes at least, and so has the end of every name.
    let left = before(m.text, prev.text, 1) & before(m.text, prev.text, 2);
    left & after(m.text, next.text, 1) & after(m.text, next.text, 2)
}

/// The shapes of indicators.
#[inline(always)]
fn shapes<const STEP: usize>(
    prev: &Masks,
    m: &Masks,
    next: &Masks,
    at: usize,
    scans: Scans,
    place: &mut Place<'_>,
) {
    let n = STEP as u32;
    // In UTF-16 every character's second byte is zero.
    let wide = if STEP == 2 {
        after(m.zero, next.zero, 1)
    } else {
        !0
    };
    let name_before = before(m.named, prev.named, n);
    let letter_after = after(m.alnum, next.alnum, n);
    let inside = name_before & letter_after & wide;
    let chars = place.chars::<STEP>();
    let mut text = inside;
    let mut rest = (m.dot | m.at) & wide & !inside;
    if rest != 0 {
        // Between what is text at all: letters beyond ASCII and brackets are looked at one by one.
        rest &= between::<STEP>(prev, m, next);
        each(rest, at, |p| {
            text |= u64::from(may_be_odd(chars, p)) << (p - at);
        });
    }
    if scans.domain || scans.ip {
        each(m.dot & text, at, |p| {
            let plain = inside >> (p - at) & 1 == 1;
            let spot = if plain { Some(p) } else { odd(chars, p) };
            if let Some(p) = spot {
                domain::visit::<STEP>(place, p, scans.domain, scans.ip);
            }
        });
    }
    if scans.email {
        each(m.at & text, at, |p| {
            let plain = inside >> (p - at) & 1 == 1;
            let spot = if plain { Some(p) } else { odd(chars, p) };
            if let Some(p) = spot {
                email::visit::<STEP>(place, p);
            }
        });
    }
    let colon = m.colon & wide;
    if colon == 0 {
        return;
    }
    if scans.url {
        let slashes = after(m.slash, next.slash, n) & after(m.slash, next.slash, 2 * n);
        // Slashes that are quoted, and colons in brackets.
        let plain = m.alnum | m.zero | m.slash | m.colon;
        let plain = after(plain, next.alnum | next.zero | next.slash | next.colon, n);
        let word = before(m.alnum, prev.alnum, n) & after(m.text, next.text, n);
        let behind = after(m.slash, next.slash, 2 * n) & after(m.slash, next.slash, 3 * n);
        each(colon & (slashes | behind | (word & !plain)), at, |p| {
            let mark = || {
                matches!(
                    place.data.get(p + STEP),
                    Some(b'\\' | b'&' | b']' | b')' | b'}')
                )
            };
            if slashes >> (p - at) & 1 == 1 || mark() {
                url::visit::<STEP>(place, p);
            }
        });
    }
    if scans.ip {
        let c = |k: u32| after(m.colon, next.colon, k * n);
        // `::`, or four groups of up to four digits: two colons are a time of day.
        let third =
            c(4) | c(5) | c(6) | c(7) | c(8) | c(9) | c(10) | c(11) | c(12) | c(13) | c(14) | c(15);
        let groups = (c(2) | c(3) | c(4) | c(5)) & third & before(m.alnum, prev.alnum, n);
        each(colon & (c(1) | groups), at, |p| {
            ip::colons::<STEP>(place, p)
        });
    }
}
