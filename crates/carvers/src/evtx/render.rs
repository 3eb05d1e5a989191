//! Where a record's chunk begins, and its records as the crate `evtx` reads them.

use super::record::{self, Content, Head};
use super::{CHUNK, HEADER, MAGIC, RECORD, header};
use crate::api::LOOK_BEHIND;
use crate::carver::Hit;
use crate::source::Source;
use evtx::{EvtxChunkData, ParserSettings, SerializedEvtxRecord};
use memchr::memmem;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(super) type Rendered = SerializedEvtxRecord<Value>;

/// How far behind a record a template is looked for that it uses.
const NEAR: usize = 128 << 10;
/// Chunks tried that have the template.
const DONORS: usize = 4;
/// Headers looked at before a record.
const HEADERS: usize = 4;

/// Where a record's chunk begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// An index into the window, before it when the image begins inside the chunk.
    pub(super) base: Option<i64>,
    /// All templates that the record uses are where they should be.
    pub(super) fits: bool,
}

impl Place {
    /// The first of: what the record tells, a header before it, what its neighbours tell, that has
    /// all that the record uses; else the first.
    /// `None`: there is no work left for it.
    pub(super) fn find(
        source: &mut Source<'_>,
        at: usize,
        head: &Head,
        c: &Content,
    ) -> Option<Self> {
        let data = source.data;
        let holds = |b: &i64| {
            let from = at as i64 - b;
            from >= HEADER as i64 && from + head.size as i64 <= CHUNK as i64
        };
        let mut first = None;
        let mut good = |b: i64| {
            first.get_or_insert(b);
            fits(data, b, c)
        };
        let found = match c.base.filter(&holds) {
            Some(b) => good(b).then_some(b),
            None => {
                let mut near = headers(data, at).into_iter().filter(&holds);
                match near.find(|&b| good(b)) {
                    Some(b) => Some(b),
                    None => neighbours(source, at, head)?
                        .filter(&holds)
                        .filter(|&b| good(b)),
                }
            }
        };
        Some(Self {
            base: found.or(first),
            fits: found.is_some(),
        })
    }
}

/// True when all that a record refers to stands where it should in the chunk at `base`.
pub(super) fn fits(data: &[u8], base: i64, c: &Content) -> bool {
    let place = |p: u32| usize::try_from(base + i64::from(p)).ok();
    inside(c)
        && c.instances.iter().all(|i| {
            i.inline || place(i.place).is_some_and(|p| record::definition(data, p, i.id).is_some())
        })
        && c.name
            .is_none_or(|n| place(n).is_some_and(|p| record::name(data, p).is_some()))
}

/// No place lies outside a chunk.
fn inside(c: &Content) -> bool {
    let own = |p: u32| (HEADER..CHUNK).contains(&(p as usize));
    c.instances.iter().all(|i| own(i.place)) && c.name.is_none_or(own)
}

/// Where chunks' headers stand before a record, nearest first.
fn headers(data: &[u8], at: usize) -> Vec<i64> {
    let from = at.saturating_sub(CHUNK);
    // Forwards, which is many times as fast as backwards.
    let all: Vec<_> = memmem::find_iter(&data[from..at], MAGIC)
        .map(|n| from + n)
        .collect();
    all.into_iter()
        .rev()
        .take(HEADERS)
        .filter(|&n| header(&data[n..data.len().min(n + CHUNK)]).is_some())
        .map(|n| n as i64)
        .collect()
}

/// What the records in a row with this one tell; `None`: there is no work left for it.
fn neighbours(source: &mut Source<'_>, at: usize, head: &Head) -> Option<Option<i64>> {
    let data = source.data;
    let mut next = at + head.size;
    while next < at + CHUNK
        && let Some(h) = record::read(data, next)
    {
        source.charge(h.size / 2 + 64).then_some(())?;
        if let Some(b) = record::content(data, next, &h).base {
            return Some(Some(b));
        }
        next += h.size;
    }
    let first = at.saturating_sub(CHUNK);
    let mut end = at;
    while let Some(size) = end.checked_sub(4).and_then(|e| record::u32_at(data, e)) {
        let Some(prev) = end.checked_sub(size as usize).filter(|&p| p >= first) else {
            break;
        };
        let Some(h) = record::read(data, prev).filter(|h| h.size == size as usize) else {
            break;
        };
        source.charge(h.size / 2 + 64).then_some(())?;
        if let Some(b) = record::content(data, prev, &h).base {
            return Some(Some(b));
        }
        end = prev;
    }
    Some(None)
}

/// The records of a chunk, by their places in it.
#[derive(Debug, Default)]
pub(super) struct Chunk(BTreeMap<usize, Rendered>);

impl Chunk {
    pub(super) fn get(&self, place: i64) -> Option<&Rendered> {
        self.0.get(&usize::try_from(place).ok()?)
    }
}

/// Chunks that were read last: all records of one are read at once.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    held: Vec<(i64, Chunk)>,
}

impl Memory {
    /// True when the chunk is held already.
    pub(super) fn holds(&self, source: &Source<'_>, base: i64) -> bool {
        let offset = source.base as i64 + base;
        self.held.iter().any(|h| h.0 == offset)
    }

    /// The records of the chunk at index `base`.
    pub(super) fn chunk(&mut self, source: &Source<'_>, base: i64) -> &Chunk {
        let offset = source.base as i64 + base;
        let i = match self.held.iter().position(|h| h.0 == offset) {
            Some(i) => i,
            None => {
                if self.held.len() > 1 {
                    self.held.remove(0);
                }
                let bytes = mended(bytes(source.data, base, i64::MIN));
                self.held.push((offset, read(bytes)));
                self.held.len() - 1
            }
        };
        &self.held[i].1
    }
}

/// A chunk's bytes from index `base` on, zeros where the image or what may be looked at ends.
fn bytes(data: &[u8], base: i64, first: i64) -> Vec<u8> {
    let mut out = vec![0; CHUNK];
    let from = base.max(0).max(first);
    let to = (base + CHUNK as i64).min(data.len() as i64);
    if from < to {
        let part = &data[from as usize..to as usize];
        let at = (from - base) as usize;
        out[at..at + part.len()].copy_from_slice(part);
    }
    out
}

/// Gives each record that is known by the one behind it the copy of its size.
fn mended(mut chunk: Vec<u8>) -> Vec<u8> {
    let mut at = HEADER;
    while let Some(n) = memmem::find(&chunk[at.min(CHUNK)..], RECORD) {
        at += n;
        match record::read(&chunk, at) {
            Some(h) => {
                let size = (h.size as u32).to_le_bytes();
                chunk[at + h.size - 4..at + h.size].copy_from_slice(&size);
                at += h.size;
            }
            None => at += 1,
        }
    }
    chunk
}

/// All records that can be read in a chunk, and what was added behind it.
fn read(mut chunk: Vec<u8>) -> Chunk {
    // The header may be lost, out of date or of another chunk: all records are looked for behind
    // one that tells of none. The table of names is only a short cut to them.
    chunk[..HEADER].fill(0);
    chunk[..8].copy_from_slice(MAGIC);
    chunk[40] = 128;
    chunk[48..52].copy_from_slice(&(HEADER as u32).to_le_bytes());
    // The parser keeps to its bounds, but it is not ours and the bytes are hostile.
    catch_unwind(AssertUnwindSafe(|| all(chunk).unwrap_or_default())).unwrap_or_default()
}

fn all(chunk: Vec<u8>) -> Option<Chunk> {
    let settings = Arc::new(ParserSettings::new().recover_records(true));
    let mut data = EvtxChunkData::new(chunk, false).ok()?;
    let mut chunk = data.parse(settings).ok()?;
    let mut out = BTreeMap::new();
    for record in chunk.iter().flatten() {
        let place = (record.binxml_offset as usize).saturating_sub(record::HEAD);
        if let Ok(value) = record.into_json_value() {
            out.insert(place, value);
        }
    }
    Some(Chunk(out))
}

/// The record, read with templates of another chunk close by, and where the first lies.
pub(super) fn elsewhere(
    hit: &mut Hit<'_, '_>,
    at: usize,
    head: &Head,
    c: &Content,
) -> Option<(Rendered, usize)> {
    let outer = c.instances.first()?;
    // What stands inline counts from the record's own chunk.
    if c.instances.iter().any(|i| i.inline) {
        return None;
    }
    if !hit.source.charge(NEAR / 16) {
        return None;
    }
    let data = hit.source.data;
    let from = at.saturating_sub(LOOK_BEHIND);
    let to = data.len().min(at + NEAR);
    let id = outer.id.to_le_bytes();
    let found = memmem::find_iter(&data[from..to], &id)
        .filter_map(|n| donor(data, from, from + n, outer.id));
    for (definition, base) in found.take(DONORS) {
        if !hit.source.charge(2 * CHUNK) {
            break;
        }
        let mut chunk = bytes(data, base, from as i64);
        // Only the record is to be read.
        let places: Vec<_> = memmem::find_iter(&chunk, RECORD).collect();
        for p in places {
            chunk[p] = 0;
        }
        let mut own = data[at..at + head.size].to_vec();
        let size = (head.size as u32).to_le_bytes();
        own[head.size - 4..].copy_from_slice(&size);
        let known = c.instances.iter().all(|i| {
            let place = defined(&chunk, i.id);
            if let Some(p) = place {
                let told = i.told_at - at;
                own[told..told + 4].copy_from_slice(&(p as u32).to_le_bytes());
            }
            place.is_some()
        });
        if !known {
            continue;
        }
        chunk.extend_from_slice(&own);
        if let Some(r) = read(chunk).0.remove(&CHUNK) {
            return Some((r, definition));
        }
    }
    None
}

/// A definition whose id stands at `id_at`, inline where it is first used, and its chunk's base.
fn donor(data: &[u8], first: usize, id_at: usize, id: u32) -> Option<(usize, i64)> {
    let at = id_at.checked_sub(4)?;
    record::definition(data, at, id)?;
    let told = at.checked_sub(10).filter(|&t| t >= first)?;
    let place = record::u32_at(data, told + 6)?;
    let fits = data[told] == 0x0c
        && record::u32_at(data, told + 2)? == id
        && (HEADER..CHUNK).contains(&(place as usize));
    fits.then_some((at, at as i64 - i64::from(place)))
}

/// Where a chunk has the definition of a template.
fn defined(chunk: &[u8], id: u32) -> Option<usize> {
    memmem::find_iter(chunk, &id.to_le_bytes())
        .filter_map(|n| n.checked_sub(4))
        .find(|&n| n >= HEADER && record::definition(chunk, n, id).is_some())
}
