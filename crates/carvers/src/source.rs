//! The bytes of a window and, where an artifact is longer, those after it.

use crate::api::{LOOK_BEHIND, MoreError, ReadMore, Window};
use std::ops::Range;

/// Bytes that a window needs after its core: longest line and text region in UTF-16, and to spare.
pub(crate) const AHEAD: usize = 192 << 10;

/// Bytes that are read on either side of what is looked at far away.
const AROUND: u64 = 32 << 10;
/// Bytes that are read ahead of a search far away.
const STRETCH: u64 = 4 << 20;
/// Bytes past the window that a search keeps: what ends there is not read again.
const SHORT: u64 = 1 << 20;

/// Why bytes are looked at that may lie far away.
#[derive(Clone, Copy)]
pub(crate) enum Peek {
    /// Something must stand there.
    Place,
    /// What is searched for may be anywhere from there on.
    Search,
}

/// A window that surely has [`AHEAD`] bytes after its core, or ends where the image ends.
pub(crate) struct Source<'w> {
    pub(crate) data: &'w [u8],
    pub(crate) base: u64,
    pub(crate) core: Range<usize>,
    pub(crate) image_len: u64,
    pub(crate) max_artifact: usize,
    more: &'w mut dyn ReadMore,
    scratch: &'w mut Scratch,
}

/// Kept from one part of a scan to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    /// What an artifact consists of, to past the window's end.
    held: Stretch,
    /// What was looked at far past the window's end.
    place: Stretch,
    search: Stretch,
    /// Work left for following artifacts, in bytes looked at.
    pub(crate) work: u64,
}

/// Image bytes from `at` on.
#[derive(Default)]
struct Stretch {
    bytes: Vec<u8>,
    at: u64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn holds(&self, r: &Range<u64>) -> bool {
        self.at <= r.start && r.end <= self.end()
    }

    /// `len` bytes from `from` on, or as many as there are.
    fn part(&self, from: u64, len: usize) -> &[u8] {
        let skip = (from.saturating_sub(self.at) as usize).min(self.bytes.len());
        let stop = skip.saturating_add(len).min(self.bytes.len());
        &self.bytes[skip..stop]
    }

    /// Holds this range alone; nothing after an error.
    fn read(&mut self, more: &mut dyn ReadMore, r: Range<u64>) -> Result<(), MoreError> {
        self.bytes.clear();
        self.at = r.start;
        let len = usize::try_from(r.end.saturating_sub(r.start)).unwrap_or(usize::MAX);
        let got = more.read_more(r.start.into(), len, &mut self.bytes);
        if got.is_err() {
            self.bytes.clear();
        }
        got
    }
}

impl<'w> Source<'w> {
    pub(crate) fn new(
        window: &Window<'w>,
        max_artifact: usize,
        more: &'w mut dyn ReadMore,
        scratch: &'w mut Scratch,
    ) -> Self {
        Self {
            data: window.data,
            base: window.base.0,
            core: window.core_start..window.core_end,
            image_len: window.image_len,
            max_artifact,
            more,
            scratch,
        }
    }

    /// Takes `n` from the work that is left; false when nothing is left.
    pub(crate) fn charge(&mut self, n: usize) -> bool {
        let left = self.scratch.work.checked_sub(n as u64);
        self.scratch.work = left.unwrap_or(0);
        left.is_some()
    }

    /// True when the window ends where the image ends.
    fn is_last(&self) -> bool {
        self.base + self.data.len() as u64 >= self.image_len
    }

    /// Bytes from `at` on: `len` of them, or as many as the image has.
    pub(crate) fn bytes(&mut self, at: usize, len: usize) -> Result<&[u8], MoreError> {
        let end = at.saturating_add(len);
        if end <= self.data.len() || self.is_last() {
            return Ok(&self.data[at.min(self.data.len())..end.min(self.data.len())]);
        }
        let from = self.base + at as u64;
        let window_end = self.base + self.data.len() as u64;
        let s = &mut self.scratch.held;
        if !(s.at..s.end()).contains(&from) || s.end() < window_end {
            s.bytes.clear();
            s.at = from;
            s.bytes
                .extend_from_slice(&self.data[at.min(self.data.len())..]);
        }
        let want = (from + len as u64).min(self.image_len);
        let have = s.end();
        if want > have {
            // Geometric, so that a walk of small steps reads each byte once.
            let grow = (want - have).max(s.bytes.len() as u64 / 2).max(64 << 10);
            let cap = (from + self.max_artifact as u64)
                .max(want)
                .min(self.image_len);
            let grow = grow.min(cap - have);
            let before = s.bytes.len();
            let mut got = self
                .more
                .read_more(have.into(), grow as usize, &mut s.bytes);
            if got.is_err() && grow > want - have {
                // What is left of the budget may be enough for what is needed now.
                s.bytes.truncate(before);
                got = self
                    .more
                    .read_more(have.into(), (want - have) as usize, &mut s.bytes);
            }
            if let Err(e) = got {
                s.bytes.truncate(before);
                return Err(e);
            }
        }
        Ok(s.part(from, len))
    }

    /// `len` bytes at `off` from `at`, or as many as the image has, without those before: what is read on the way
    /// to them is not kept.
    pub(crate) fn peek(
        &mut self,
        at: usize,
        off: usize,
        len: usize,
        how: Peek,
    ) -> Result<&[u8], MoreError> {
        let from = self.base + (at as u64).saturating_add(off as u64);
        let end = from.saturating_add(len as u64).min(self.image_len);
        let near = self.base + self.data.len() as u64;
        let whole = match how {
            Peek::Place => near,
            Peek::Search => near + SHORT,
        };
        if from < whole || self.scratch.held.holds(&(from..end)) {
            return self.bytes(at, off.saturating_add(len)).map(|b| {
                let (from, to) = (off.min(b.len()), off.saturating_add(len).min(b.len()));
                &b[from..to]
            });
        }
        let wide = match how {
            // What is looked at next mostly lies close by.
            Peek::Place => from.saturating_sub(AROUND).max(near)..end + AROUND,
            Peek::Search => from..end.max(from + STRETCH),
        };
        let wide = wide.start..wide.end.min(self.image_len);
        let s = &mut *self.scratch;
        let glance = match how {
            Peek::Place => &mut s.place,
            Peek::Search => &mut s.search,
        };
        if !glance.holds(&(from..end)) {
            // What lies around it may be bad, or more than the budget allows.
            let read = glance.read(self.more, wide);
            read.or_else(|_| glance.read(self.more, from..end))?;
        }
        Ok(glance.part(from, len))
    }

    /// As [`Self::bytes`], but what there is and why when there isn't all.
    pub(crate) fn upto(&mut self, at: usize, len: usize) -> (&[u8], Option<String>) {
        match self.bytes(at, len).map(<[u8]>::len) {
            Ok(_) => (self.bytes(at, len).unwrap_or_default(), None),
            Err(e) => {
                let why = e.to_string();
                let from = self.base + at as u64;
                let s = &self.scratch.held;
                // What an earlier read of this walk brought, else the window's.
                if (s.at..s.end()).contains(&from) {
                    return (s.part(from, len), Some(why));
                }
                let end = at.saturating_add(len).min(self.data.len());
                (&self.data[at.min(end)..end], Some(why))
            }
        }
    }

    /// Bytes just before `at`: `len` of them, fewer at the image's start.
    pub(crate) fn behind(&self, at: usize, len: usize) -> &'w [u8] {
        debug_assert!(len <= LOOK_BEHIND);
        &self.data[at.saturating_sub(len)..at]
    }
}

/// An artifact that is being followed; positions count from its first byte.
pub(crate) struct Item<'s, 'w> {
    source: &'s mut Source<'w>,
    at: usize,
    starved: Option<String>,
    tired: bool,
}

impl<'s, 'w> Item<'s, 'w> {
    pub(crate) fn new(source: &'s mut Source<'w>, at: usize) -> Self {
        Self {
            source,
            at,
            starved: None,
            tired: false,
        }
    }

    /// Where in the image it begins.
    pub(crate) fn offset(&self) -> u64 {
        self.source.base + self.at as u64
    }

    /// Bytes that an artifact here may have: up to the limit and the image's end.
    pub(crate) fn room(&self) -> usize {
        let left = self.source.image_len.saturating_sub(self.offset());
        usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(self.source.max_artifact)
    }

    /// Why bytes could not be had, when they could not.
    pub(crate) fn starved(&self) -> Option<String> {
        self.starved.clone()
    }

    /// True when the work limit was hit.
    pub(crate) fn tired(&self) -> bool {
        self.tired
    }

    /// Pays for `n` bytes of work.
    pub(crate) fn charge(&mut self, n: usize) -> bool {
        let ok = self.source.charge(n);
        self.tired |= !ok;
        ok
    }

    /// `len` bytes at `off`; `None` past the limit, the image's end, or what the budget allows.
    pub(crate) fn get(&mut self, off: usize, len: usize) -> Option<&[u8]> {
        let end = off.checked_add(len)?;
        if end > self.room() {
            return None;
        }
        match self.source.bytes(self.at, end) {
            Ok(b) => b.get(off..end),
            Err(e) => {
                self.starved = Some(e.to_string());
                None
            }
        }
    }

    /// As [`Self::get`], but what lies before `off` is not read for it.
    pub(crate) fn peek(&mut self, off: usize, len: usize) -> Option<&[u8]> {
        let end = off.checked_add(len)?;
        if end > self.room() {
            return None;
        }
        let b = self.look(off, len, Peek::Place);
        (b.len() == len).then_some(b)
    }

    /// As [`Self::some`], for a search: what lies before `off` is not kept for it.
    pub(crate) fn search(&mut self, off: usize, len: usize) -> &[u8] {
        let end = off.saturating_add(len).min(self.room());
        match end.checked_sub(off) {
            Some(n) => self.look(off, n, Peek::Search),
            None => &[],
        }
    }

    /// Nothing where it can't be had.
    fn look(&mut self, off: usize, len: usize, how: Peek) -> &[u8] {
        match self.source.peek(self.at, off, len, how) {
            Ok(b) => b,
            Err(e) => {
                self.starved = Some(e.to_string());
                &[]
            }
        }
    }

    /// From `off` at most `len` bytes, fewer at the limit or the image's end.
    pub(crate) fn some(&mut self, off: usize, len: usize) -> &[u8] {
        let end = off.saturating_add(len).min(self.room());
        match end.checked_sub(off) {
            Some(n) => self.get(off, n).unwrap_or_default(),
            None => &[],
        }
    }

    /// True when bytes that are not zero follow `end` in its last page, for an item that begins
    /// with a page as cached files do: behind a file's end its last page is zero.
    pub(crate) fn goes_on(&mut self, end: usize) -> bool {
        const PAGE: usize = crate::page::PAGE;
        if !self.offset().is_multiple_of(PAGE as u64) {
            return false;
        }
        let rest = end.next_multiple_of(PAGE) - end;
        let left = self.room().saturating_sub(end).min(rest);
        self.peek(end, left)
            .is_some_and(|b| b.iter().any(|&b| b != 0))
    }

    /// Bytes just before the item.
    pub(crate) fn behind(&self, len: usize) -> &'w [u8] {
        self.source.behind(self.at, len)
    }

    pub(crate) fn array<const N: usize>(&mut self, off: usize) -> Option<[u8; N]> {
        self.get(off, N)?.try_into().ok()
    }

    pub(crate) fn u16le(&mut self, off: usize) -> Option<u16> {
        self.array(off).map(u16::from_le_bytes)
    }

    pub(crate) fn u32le(&mut self, off: usize) -> Option<u32> {
        self.array(off).map(u32::from_le_bytes)
    }
}
