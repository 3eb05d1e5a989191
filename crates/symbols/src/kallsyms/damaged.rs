//! Tables of which pages are missing or overwritten: what is sound is read, what is not is left out.
//!
//! ```text
//! names       256 a block; each block begins where its marker says, so a torn one costs itself alone
//! addresses   rise through the whole table; a page whose entries leave that order is left out
//! count       stands before the names; else it follows from the room of the addresses
//! base        stands behind the addresses; else it follows from addresses that are known
//! ```
//!
//! Names and addresses are torn apart from each other: a symbol counts when both of it are sound.

use super::address::{Encoding, KERNEL};
use super::error::{KallsymsError, malformed};
use super::names::{MAX_SYMBOLS, Name, NameLength};
use super::tokens::Tokens;
use super::{Hints, Kallsyms, Layout, MAX_NAMES, Places};
use crate::phys::{exact, u32_at, u64_at, window};
use ramsift_layers::translate::PhysRead;

/// Names between two markers.
const BLOCK: usize = 256;
const PAGE: u64 = 4096;
/// Of this many entries in a page of addresses at most one may lie below the one before it.
const FALLS: usize = 64;

/// Decodes tables whose places are known, some pages of which are damaged.
///
/// Fails with [`KallsymsError`] where nothing but the whole could be believed: the tokens are torn, or no address
/// agrees with what is known.
pub fn decode_damaged(
    mem: &dyn PhysRead,
    places: &Places,
    hints: &Hints<'_>,
) -> Result<Kallsyms, KallsymsError> {
    let tokens = Tokens::damaged(mem, places.token_table, places.token_index)?;
    let count = count(mem, places)?;
    let len = places.token_table.since(places.names);
    if len == 0 || len > MAX_NAMES {
        let expected = format!("names at most {MAX_NAMES} bytes before the tokens");
        let found = places.token_table;
        return Err(malformed("names", places.names, expected, found));
    }
    let raw = window(mem, places.names, usize::try_from(len).unwrap_or(0));
    let (markers, at) = markers(&raw, places.names.0, count).ok_or_else(|| {
        let expected = format!("markers of {count} names behind them");
        malformed("markers", places.names, expected, "nothing that rises")
    })?;
    let mut best: Option<(usize, Text, NameLength)> = None;
    for how in [NameLength::Uleb128, NameLength::Byte] {
        let text = Text::decode(&raw[..at], places.names.0, count, &markers, &tokens, how);
        let sound = text.names.iter().flatten().count();
        if best.as_ref().is_none_or(|b| sound > b.0) {
            best = Some((sound, text, how));
        }
    }
    let Some((sound, text, lengths)) = best else {
        return Err(malformed("names", places.names, "names", "none"));
    };
    let (encoding, base, addresses) =
        addresses(mem, places, &text, hints).ok_or_else(|| KallsymsError::NoAddresses {
            names: places.names,
            symbols: sound,
            tried: "no way to read them gives the addresses that are known".into(),
        })?;
    let both = text.names.iter().zip(&addresses);
    let (entries, addresses): (Vec<Name>, Vec<u64>) =
        both.filter_map(|(n, a)| Some(((*n)?, (*a)?))).unzip();
    Ok(Kallsyms {
        lost: count - entries.len(),
        text: text.text,
        entries,
        addresses,
        base,
        layout: Layout {
            encoding,
            lengths,
            addresses_last: places.addresses > places.token_index,
            marker_width: Some(4),
        },
        places: *places,
    })
}

/// How many symbols there are: as it says, if that fits the room of the addresses; else as many as there is room for.
fn count(mem: &dyn PhysRead, places: &Places) -> Result<usize, KallsymsError> {
    let told = exact(mem, places.num_syms, 4)
        .ok()
        .and_then(|b| u32_at(&b, 0))
        .map(|n| n as usize)
        .filter(|n| (1..=MAX_SYMBOLS).contains(n));
    // The base follows the addresses, at a multiple of 8.
    let room = places
        .relative_base
        .map(|base| usize::try_from(base.since(places.addresses) / 4).unwrap_or(usize::MAX))
        .filter(|n| (2..=MAX_SYMBOLS).contains(n));
    match (told, room) {
        (Some(told), Some(room)) if told == room || told + 1 == room => Ok(told),
        (_, Some(room)) => Ok(room),
        (Some(told), None) => Ok(told),
        (None, None) => Err(malformed(
            "num_syms",
            places.num_syms,
            format!("1 to {MAX_SYMBOLS} symbols"),
            "nothing that can be read",
        )),
    }
}

/// The markers of so many names before the tokens, each `None` where it does not rise from its neighbours, and where
/// they begin. Before the tokens there may be the sequence of names by hash, three bytes each (6.2).
fn markers(raw: &[u8], pa: u64, count: usize) -> Option<(Vec<Option<usize>>, usize)> {
    let blocks = count.div_ceil(BLOCK);
    let up = |n: usize| n.next_multiple_of(8);
    let places = [
        up(4 * blocks),
        up(4 * blocks) + up(3 * count),
        up(4 * blocks) + up(3 * count + 1),
    ];
    let mut best: Option<(usize, Vec<Option<usize>>, usize)> = None;
    for behind in places {
        let Some(at) = raw.len().checked_sub(behind) else {
            continue;
        };
        // Alignment is that of the address.
        for at in [at, at.saturating_sub(4), at + 4] {
            if !(pa + at as u64).is_multiple_of(4) {
                continue;
            }
            let all: Vec<usize> = (0..blocks)
                .map_while(|i| u32_at(raw, at + 4 * i).map(|m| m as usize))
                .collect();
            if all.len() < blocks {
                continue;
            }
            let kept = rising(&all, at);
            let sound = kept.iter().flatten().count();
            if sound * 2 >= blocks && best.as_ref().is_none_or(|b| sound > b.0) {
                best = Some((sound, kept, at));
            }
        }
    }
    best.map(|(_, m, at)| (m, at))
}

/// Bytes of a block of names at least and at most.
const STEPS: std::ops::RangeInclusive<usize> = 2 * BLOCK..=BLOCK << 8;

/// Markers that rise: each as far from the one before it as so many blocks can be, and before the end.
fn rising(all: &[usize], end: usize) -> Vec<Option<usize>> {
    let values: Vec<u64> = all.iter().map(|m| *m as u64).collect();
    let mut out = vec![None; all.len()];
    let mut before: Option<(usize, usize)> = None;
    for i in longest_rise(&values) {
        let fits = match before {
            None => i > 0 || all[i] == 0,
            Some((j, m)) => {
                let blocks = i - j;
                (STEPS.start() * blocks..=STEPS.end() * blocks).contains(&(all[i] - m))
            }
        };
        if fits && all[i] < end {
            out[i] = Some(all[i]);
            before = Some((i, all[i]));
        }
    }
    out
}

/// Names, as far as they are sound.
struct Text {
    text: String,
    names: Vec<Option<Name>>,
}

impl Text {
    fn decode(
        raw: &[u8],
        pa: u64,
        count: usize,
        markers: &[Option<usize>],
        tokens: &Tokens,
        how: NameLength,
    ) -> Self {
        let mut out = Self {
            text: String::new(),
            names: vec![None; count],
        };
        // Where the block before ended, if it was sound.
        let mut ended: Option<usize> = Some(0);
        let ends = |from: usize, b: usize| how.skip(raw, from, BLOCK.min(count - b * BLOCK));
        for b in 0..markers.len() {
            let next = markers.get(b + 1).copied().flatten();
            let starts = [markers[b], ended];
            let sound = |start: usize| {
                let end = ends(start, b)?;
                let agrees = match next {
                    Some(n) => n == end,
                    // The next marker is torn, or there is none: the block behind must agree with the one after.
                    None if b + 1 == markers.len() => raw.len() - end < 16,
                    None => {
                        let after = markers.get(b + 2).copied().flatten();
                        after.is_some() && ends(end, b + 1) == after
                    }
                };
                agrees.then_some(end)
            };
            let found = starts
                .into_iter()
                .flatten()
                .find_map(|s| Some((s, sound(s)?)));
            let n = BLOCK.min(count - b * BLOCK);
            match found {
                Some((start, end)) => {
                    out.take(raw, start, b * BLOCK, n, tokens, how, end);
                    ended = Some(end);
                }
                None => {
                    // The page that the sound block before it ends in is sound to its end.
                    if let Some(start) =
                        ended.filter(|e| *e > 0 && markers[b].is_none_or(|m| m == *e))
                    {
                        let page = (pa + start as u64 - 1) / PAGE * PAGE + PAGE;
                        let limit = usize::try_from(page - pa).unwrap_or(0).min(raw.len());
                        out.take(raw, start, b * BLOCK, n, tokens, how, limit);
                    }
                    ended = None;
                }
            }
        }
        out
    }

    /// Decodes names from `at` on that end before `limit`.
    #[allow(clippy::too_many_arguments)]
    fn take(
        &mut self,
        raw: &[u8],
        mut at: usize,
        first: usize,
        n: usize,
        tokens: &Tokens,
        how: NameLength,
        limit: usize,
    ) {
        for i in first..first + n {
            let Some(end) = how.skip(raw, at, 1).filter(|e| *e <= limit) else {
                return;
            };
            let name = self.name(raw.get(at..end).unwrap_or_default(), tokens, how);
            if let Some(slot) = self.names.get_mut(i) {
                *slot = name;
            }
            at = end;
        }
    }

    /// One name: a length and its tokens. `None` where a token is not known or it is no name.
    fn name(&mut self, raw: &[u8], tokens: &Tokens, how: NameLength) -> Option<Name> {
        let (head, _) = how.read(raw, 0)?;
        let start = self.text.len();
        let kind = self.spell(raw.get(head..)?, tokens);
        let len = u16::try_from(self.text.len() - start).ok();
        match (kind, len) {
            (Some(kind), Some(len)) if len > 0 => Some(Name {
                at: u32::try_from(start).ok()?,
                len,
                kind,
            }),
            _ => {
                self.text.truncate(start);
                None
            }
        }
    }

    /// Appends what the tokens spell without the kind, which is the first letter.
    fn spell(&mut self, body: &[u8], tokens: &Tokens) -> Option<u8> {
        let (first, rest) = body.split_first()?;
        let (kind, tail) = tokens.get(*first).split_first()?;
        if !kind.is_ascii_alphabetic() && *kind != b'?' {
            return None;
        }
        self.text.push_str(std::str::from_utf8(tail).ok()?);
        for t in rest {
            let token = std::str::from_utf8(tokens.get(*t)).ok()?;
            if token.is_empty() {
                return None;
            }
            self.text.push_str(token);
        }
        Some(*kind)
    }

    fn is(&self, i: usize, name: &str) -> bool {
        let Some(Some(n)) = self.names.get(i) else {
            return false;
        };
        self.text
            .get(n.at as usize..n.at as usize + usize::from(n.len))
            == Some(name)
    }
}

type Addresses = (Encoding, u64, Vec<Option<u64>>);

/// The addresses the way that most of what is known agrees with.
fn addresses(
    mem: &dyn PhysRead,
    places: &Places,
    text: &Text,
    hints: &Hints<'_>,
) -> Option<Addresses> {
    let count = text.names.len();
    let raw = window(mem, places.addresses, count * 4);
    let values: Vec<u32> = raw
        .chunks_exact(4)
        .map(|c| u32_at(c, 0).unwrap_or(0))
        .collect();
    let known: Vec<(usize, u64)> = hints
        .known
        .iter()
        .filter_map(|(name, va)| Some(((0..count).find(|i| text.is(*i, name))?, va.0)))
        .collect();
    let told = places
        .relative_base
        .and_then(|pa| exact(mem, pa, 8).ok())
        .and_then(|b| u64_at(&b, 0))
        .filter(|b| *b >= KERNEL);
    let mut best: Option<(usize, Addresses)> = None;
    let ways: &[Encoding] = match (places.relative_base, places.addresses_va) {
        (Some(_), _) => &[Encoding::AbsolutePerCpu, Encoding::Relative],
        (None, Some(_)) => &[Encoding::PcRelative],
        (None, None) => return None,
    };
    for encoding in ways {
        let from_known = known
            .iter()
            .filter_map(|(i, va)| Some(encoding.base_of(*values.get(*i)?, *i, *va)));
        let va = places.addresses_va.map(|va| va.0);
        let bases: Vec<u64> = match encoding {
            Encoding::PcRelative => va.into_iter().collect(),
            _ => told.into_iter().chain(from_known).collect(),
        };
        for base in bases {
            let all: Vec<u64> = values
                .iter()
                .enumerate()
                .map(|(i, v)| encoding.address(*v, i, base))
                .collect();
            let agree = known
                .iter()
                .filter(|(i, va)| all.get(*i) == Some(va))
                .count();
            let kept = in_order(&all, places.addresses.0);
            let sound = kept.iter().flatten().count();
            if agree == 0 || sound * 2 < count {
                continue;
            }
            if best.as_ref().is_none_or(|b| agree > b.0) {
                best = Some((agree, (*encoding, base, kept)));
            }
        }
    }
    best.map(|(_, a)| a)
}

/// The addresses without the pages that break their order.
fn in_order(all: &[u64], pa: u64) -> Vec<Option<u64>> {
    let first = usize::try_from((PAGE - pa % PAGE) % PAGE / 4).unwrap_or(0);
    let mut cuts = vec![0];
    cuts.extend((first..all.len()).step_by(1024).filter(|c| *c > 0));
    cuts.push(all.len());
    let pages: Vec<&[u64]> = cuts.windows(2).map(|w| &all[w[0]..w[1]]).collect();
    // In order inside, and not the same all over.
    let sound_inside = |p: &[u64]| {
        let falls = p.windows(2).filter(|w| w[0] > w[1]).count();
        let same = p.windows(2).filter(|w| w[0] == w[1]).count();
        falls * FALLS <= p.len() && (p.len() < 32 || same * 2 <= p.len())
    };
    let middle = |p: &[u64]| p.get(p.len() / 2).copied().unwrap_or(0);
    let candidates: Vec<usize> = (0..pages.len())
        .filter(|i| sound_inside(pages[*i]))
        .collect();
    let values: Vec<u64> = candidates.iter().map(|i| middle(pages[*i])).collect();
    let mut keep = vec![false; pages.len()];
    for at in longest_rise(&values) {
        keep[candidates[at]] = true;
    }
    pages
        .iter()
        .zip(keep)
        .flat_map(|(p, keep)| p.iter().map(move |a| keep.then_some(*a)))
        .collect()
}

/// Which values make up the longest sequence that never falls.
fn longest_rise(values: &[u64]) -> Vec<usize> {
    let mut tails: Vec<usize> = Vec::new();
    let mut before = vec![usize::MAX; values.len()];
    for (i, v) in values.iter().enumerate() {
        let at = tails.partition_point(|t| values[*t] <= *v);
        if at > 0 {
            before[i] = tails[at - 1];
        }
        if at == tails.len() {
            tails.push(i);
        } else {
            tails[at] = i;
        }
    }
    let mut out = Vec::with_capacity(tails.len());
    let mut at = tails.last().copied().unwrap_or(usize::MAX);
    while at != usize::MAX {
        out.push(at);
        at = before[at];
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rise_leaves_out_what_stands_wrong() {
        assert_eq!(longest_rise(&[1, 2, 9, 3, 4, 0, 5]), [0, 1, 3, 4, 6]);
        assert_eq!(longest_rise(&[]), [0; 0]);
        assert_eq!(longest_rise(&[7, 7, 7]), [0, 1, 2]);
    }

    #[test]
    fn a_page_out_of_order_is_left_out_and_no_other() {
        let mut all: Vec<u64> = (0..8192).map(|i| KERNEL + 16 * i).collect();
        all[1024..2048].fill(KERNEL);
        all.swap(3000, 3001);
        let kept = in_order(&all, 0x1000);
        assert!(kept[1024..2048].iter().all(Option::is_none));
        assert_eq!(kept.iter().flatten().count(), 8192 - 1024);
    }

    #[test]
    fn markers_that_do_not_rise_are_not_taken() {
        let all = [0, 3000, 6100, 5, 12_000, 15_000];
        let kept = rising(&all, 20_000);
        assert_eq!(
            kept,
            [
                Some(0),
                Some(3000),
                Some(6100),
                None,
                Some(12_000),
                Some(15_000)
            ]
        );
    }
}
