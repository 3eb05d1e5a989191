//! Writers of hibernation files, after the structures in the symbols of Windows and MS-XCA. They share nothing with the reader.
#![allow(dead_code)]

/// Memory of a machine: physical address and bytes of each range.
pub(crate) type Memory = [(u64, Vec<u8>)];

fn put(out: &mut [u8], at: usize, n: u64, bytes: usize) {
    out[at..at + bytes].copy_from_slice(&n.to_le_bytes()[..bytes]);
}

/// Matches of at least three bytes within `window` bytes: at each place a literal, or a distance and a length.
fn matches(data: &[u8], window: usize) -> Vec<(usize, usize)> {
    let mut heads = vec![usize::MAX; 1 << 12];
    let hash = |i: usize| {
        let n = u32::from_le_bytes([data[i], data[i + 1], data[i + 2], 0]);
        (n.wrapping_mul(0x9e37_79b1) >> 20) as usize
    };
    let (mut out, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let mut found = (0, 0);
        if at + 3 <= data.len() {
            let h = hash(at);
            let before = heads[h];
            if before != usize::MAX && at - before <= window {
                let len = data[at..]
                    .iter()
                    .zip(&data[before..])
                    .take_while(|(a, b)| a == b)
                    .count();
                if len >= 3 {
                    found = (at - before, len);
                }
            }
            heads[h] = at;
        }
        out.push(found);
        at += found.1.max(1);
    }
    out
}

/// MS-XCA 2.3: plain LZ77.
pub(crate) fn xpress(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    let (mut flags, mut count, mut flags_at) = (0u32, 0, 0);
    let mut half: Option<usize> = None;
    let mut at = 0;
    for (distance, len) in matches(data, 8192) {
        if len == 0 {
            out.push(data[at]);
            at += 1;
        } else {
            at += len;
            let len = len - 3;
            let word = (distance - 1) << 3 | len.min(7);
            out.extend((word as u16).to_le_bytes());
            if len >= 7 {
                let more = (len - 7).min(15) as u8;
                match half.take() {
                    None => {
                        half = Some(out.len());
                        out.push(more);
                    }
                    Some(place) => out[place] |= more << 4,
                }
                if len >= 22 {
                    out.push((len - 22).min(255) as u8);
                    if len - 22 >= 255 {
                        match u16::try_from(len) {
                            Ok(n) => out.extend(n.to_le_bytes()),
                            Err(_) => {
                                out.extend([0, 0]);
                                out.extend((len as u32).to_le_bytes());
                            }
                        }
                    }
                }
            }
        }
        flags = flags << 1 | u32::from(len > 0);
        count += 1;
        if count == 32 {
            put(&mut out, flags_at, u64::from(flags), 4);
            (flags, count, flags_at) = (0, 0, out.len());
            out.extend([0; 4]);
        }
    }
    // What is left of the flags is ones.
    let left = 32 - count;
    let flags = u64::from(flags) << left | ((1u64 << left) - 1);
    put(&mut out, flags_at, flags & 0xffff_ffff, 4);
    out
}

/// Words of 16 bits among bytes, as a reader that looks 32 bits ahead meets them.
struct Words {
    out: Vec<u8>,
    first: usize,
    second: usize,
    next: u32,
    free: u32,
}

impl Words {
    fn new(mut out: Vec<u8>) -> Self {
        let first = out.len();
        out.extend([0; 4]);
        Self {
            out,
            first,
            second: first + 2,
            next: 0,
            free: 16,
        }
    }

    fn bits(&mut self, n: u32, v: u32) {
        if self.free >= n {
            self.free -= n;
            self.next = self.next << n | v;
            return;
        }
        let over = n - self.free;
        let word = self.next << self.free | v >> over;
        put(&mut self.out, self.first, u64::from(word), 2);
        self.first = self.second;
        self.second = self.out.len();
        self.out.extend([0; 2]);
        self.free = 16 - over;
        self.next = v & ((1 << over) - 1);
    }

    fn finish(mut self) -> Vec<u8> {
        put(
            &mut self.out,
            self.first,
            u64::from(self.next << self.free),
            2,
        );
        self.out
    }
}

/// MS-XCA 2.1: LZ77 with Huffman codes, all of which have nine bits.
pub(crate) fn xpress_huffman(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // Matches end with their block.
    for block in data.chunks(65_536) {
        out.extend([0x99; 256]);
        let mut w = Words::new(out);
        let mut at = 0;
        for (distance, len) in matches(block, 65_535) {
            if len == 0 {
                w.bits(9, u32::from(block[at]));
                at += 1;
                continue;
            }
            at += len;
            let len = len - 3;
            let bits = distance.ilog2();
            w.bits(9, 256 + (bits << 4) + len.min(15) as u32);
            if len >= 15 {
                w.out.push((len - 15).min(255) as u8);
                if len - 15 >= 255 {
                    match u16::try_from(len) {
                        Ok(n) => w.out.extend(n.to_le_bytes()),
                        Err(_) => {
                            w.out.extend([0, 0]);
                            w.out.extend((len as u32).to_le_bytes());
                        }
                    }
                }
            }
            w.bits(bits, distance as u32 & ((1 << bits) - 1));
        }
        out = w.finish();
    }
    out
}

/// What a file is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hiber {
    /// Length of its header, by which versions differ.
    pub(crate) length: u32,
    /// Pages of a set lie anywhere in memory.
    pub(crate) mixed: bool,
    /// One way to pack all sets (0 to 3 as the format has them); else each set has another.
    pub(crate) method: Option<u32>,
    /// The highest page of the machine; the last one that is stored, where that is not said.
    pub(crate) highest: Option<u64>,
    pub(crate) cr3: u64,
}

/// 2024-02-29 12:34:56 UTC.
const TIME: u64 = (1_709_210_096 + 11_644_473_600) * 10_000_000;

impl Hiber {
    pub(crate) fn of(length: u32) -> Self {
        Self {
            length,
            mixed: false,
            method: None,
            highest: None,
            cr3: 0x1aa_a000,
        }
    }

    fn wide(self) -> bool {
        !matches!(self.length, 0x2c8 | 0x310 | 0x328 | 0x338 | 0x340 | 0xe0)
    }
}

/// All pages of a memory, by their numbers.
fn pages(m: &Memory) -> Vec<(u64, &[u8])> {
    m.iter()
        .flat_map(|(pa, b)| (pa / 4096..).zip(b.chunks_exact(4096)))
        .collect()
}

/// The header and the pages before memory, of which the second is the processor's state.
fn head(h: Hiber, pages: usize) -> Vec<u8> {
    let mut out = vec![0; pages * 4096];
    out[..4].copy_from_slice(b"HIBR");
    put(&mut out, 0xc, u64::from(h.length), 4);
    let (page_size, time) = if h.wide() { (0x18, 0x20) } else { (0x14, 0x18) };
    put(&mut out, page_size, 4096, 4);
    put(&mut out, time, TIME, 8);
    for (i, r) in [0x8005_0033u64, 0x7fff_0000, h.cr3, 0x6f8]
        .into_iter()
        .enumerate()
    {
        if h.wide() {
            put(&mut out, 4096 + 8 * i, r, 8);
        } else {
            put(&mut out, 4096 + 0x2cc + 4 * i, r, 4);
        }
    }
    out
}

/// Sets of at most 16 pages; each page of them a range of its own, or with its neighbours.
fn sets(all: &[(u64, &[u8])], h: Hiber, number: &mut u32, out: &mut Vec<u8>) {
    for set in all.chunks(16) {
        let data: Vec<u8> = set.iter().flat_map(|(_, b)| b.to_vec()).collect();
        let method = h.method.unwrap_or(*number % 5);
        *number += 1;
        let packed = match method {
            0 | 1 => xpress(&data),
            2 | 3 => xpress_huffman(&data),
            _ => data.clone(),
        };
        let packed = if packed.len() < data.len() {
            packed
        } else {
            data
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (page, _) in set {
            match ranges.last_mut() {
                Some((first, n)) if *first + *n == *page => *n += 1,
                _ => ranges.push((*page, 1)),
            }
        }
        let word = ranges.len() as u32 | (packed.len() as u32) << 8 | (method & 3) << 30;
        out.extend(word.to_le_bytes());
        for (page, n) in ranges {
            let v = page << 4 | (n - 1);
            let bytes = if h.wide() { 8 } else { 4 };
            out.extend(&v.to_le_bytes()[..bytes]);
        }
        out.extend(packed);
    }
}

/// A file of Windows 8 or later: a tenth of the pages in the first section.
pub(crate) fn modern(m: &Memory, h: Hiber) -> Vec<u8> {
    let mut all = pages(m);
    let highest = h.highest.unwrap_or(all.last().map_or(0, |p| p.0));
    if h.mixed {
        // In eight groups, backwards in each.
        all.sort_by_key(|(page, _)| {
            let group = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
            (group, u64::MAX - page)
        });
    }
    let (loader, kernel) = all.split_at(all.len() / 10);
    let mut out = head(h, 5);
    let mut number = 0;
    let loader_at = out.len() / 4096;
    sets(loader, h, &mut number, &mut out);
    out.resize(out.len().next_multiple_of(4096), 0);
    let kernel_at = out.len() / 4096;
    sets(kernel, h, &mut number, &mut out);
    out.resize(out.len().next_multiple_of(4096), 0);
    // Places of: pages of the first section, the two sections, pages of the second, the highest page.
    let at = match h.length {
        0x360 => [0x58, 0x60, 0x68, 0x1c8, 0x330],
        0x3b0 => [0x58, 0x68, 0x70, 0x218, 0x380],
        0x3c8 => [0x58, 0x68, 0x70, 0x220, 0x388],
        0x3d8 | 0x3e0 => [0x58, 0x68, 0x70, 0x230, 0x398],
        0x448 => [0x58, 0x68, 0x70, 0x230, 0x400],
        0x4d8 => [0x58, 0x68, 0x70, 0x238, 0x498],
        0x2c8 => [0x48, 0x50, 0x54, 0x1b0, 0x2b0],
        0x310 => [0x48, 0x50, 0x54, 0x1f8, 0x2f8],
        0x328 => [0x48, 0x50, 0x54, 0x200, 0x300],
        0x338 | 0x340 => [0x48, 0x50, 0x54, 0x210, 0x310],
        // Nobody knows where a later version has them.
        _ => [0x58, 0x68, 0x70, 0x700, 0x710],
    };
    let word = if h.wide() { 8 } else { 4 };
    put(&mut out, at[0], loader.len() as u64, 8);
    put(&mut out, at[1], loader_at as u64, word);
    put(&mut out, at[2], kernel_at as u64, word);
    put(&mut out, at[3], kernel.len() as u64, 8);
    put(&mut out, at[4], highest, word);
    out
}

/// A file of Windows 7: tables of ranges, each with its blocks behind it.
pub(crate) fn legacy(m: &Memory, h: Hiber) -> Vec<u8> {
    let word = if h.wide() { 8 } else { 4 };
    let most = (4096 - 2 * word) / (2 * word);
    let all = pages(m);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (page, _) in &all {
        match ranges.last_mut() {
            // Ranges of at most three pages, so that there are several tables.
            Some((first, n)) if *first + *n == *page && *n < 3 && !h.mixed => *n += 1,
            _ => ranges.push((*page, 1)),
        }
    }
    let mut out = head(h, 4);
    put(&mut out, if h.wide() { 0x60 } else { 0x4c }, 4, word);
    let (mut left, mut number) = (&all[..], 0);
    let mut tables = ranges.chunks(most).peekable();
    while let Some(of) = tables.next() {
        let table = out.len();
        out.resize(table + 4096, 0);
        put(&mut out, table + word, of.len() as u64, 4);
        for (i, (page, n)) in of.iter().enumerate() {
            put(&mut out, table + 2 * word * (i + 1), *page, word);
            put(&mut out, table + 2 * word * (i + 1) + word, page + n, word);
        }
        let (own, rest) = left.split_at(of.iter().map(|(_, n)| *n as usize).sum());
        left = rest;
        for block in own.chunks(16) {
            let data: Vec<u8> = block.iter().flat_map(|(_, b)| b.to_vec()).collect();
            let packed = xpress(&data);
            let plain = h.method == Some(4) || number % 5 == 4 || packed.len() >= data.len();
            number += 1;
            let packed = if plain { data } else { packed };
            out.extend(b"\x81\x81xpress");
            let v = (block.len() as u32 - 1) | (packed.len() as u32 - 1) << 10;
            out.extend(v.to_le_bytes());
            out.extend([0; 20]);
            out.extend(packed);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out.resize(out.len().next_multiple_of(4096), 0);
        if tables.peek().is_some() {
            let next = (out.len() / 4096) as u64;
            put(&mut out, table, next, word);
        }
    }
    out
}
