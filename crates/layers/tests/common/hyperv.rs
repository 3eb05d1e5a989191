//! A writer of saved states of Hyper-V, after OpenVMM's description of the format. It shares nothing with the reader.
#![allow(dead_code)]

use super::hiber::xpress;

/// Memory of a machine: physical address and bytes of each range.
pub(crate) type Memory = [(u64, Vec<u8>)];

const BLOCK: usize = 1 << 20;

/// CRC-32 by its definition, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| {
        if crc & 1 == 1 {
            crc >> 1 ^ 0xedb8_8320
        } else {
            crc >> 1
        }
    };
    !bytes
        .iter()
        .fold(u32::MAX, |crc, b| (0..8).fold(crc ^ u32::from(*b), step))
}

/// Writes the checksum of `out[from..]` at `at` in it, which counts as zeros.
fn seal(out: &mut [u8], from: usize, at: usize) {
    let sum = crc(&out[from..]);
    out[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// What a state is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// Blocks are packed; else as they are.
    pub(crate) packed: bool,
    /// Entries of a table of objects.
    pub(crate) objects: usize,
    /// Changes in the log.
    pub(crate) log: u32,
}

/// A block, page by page.
pub(crate) fn packed(block: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut pages = block.chunks_exact(4096).peekable();
    while let Some(page) = pages.next() {
        if page.chunks_exact(8).all(|w| w == &page[..8]) {
            let mut n = 1u32;
            while pages.next_if(|p| *p == page).is_some() {
                n += 1;
            }
            let mark = if n == 1 { 0xffff_fffeu32 } else { 0xffff_fffd };
            out.extend(mark.to_le_bytes());
            out.extend(&page[..8]);
            if n > 1 {
                out.extend(n.to_le_bytes());
            }
            continue;
        }
        let short = xpress(page);
        let bytes = if short.len() < 4096 { &short[..] } else { page };
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    }
    out.extend([0xff; 4]);
    out
}

/// The state of two processors, the second of which was never started, among pieces of other kinds.
fn processors(cr3: u64) -> Vec<u8> {
    let mut out = vec![0; 16];
    out[8..16].copy_from_slice(&32u64.to_le_bytes());
    out.resize(48, 0x77);
    let mut piece = |kind: u32, words: &[u64]| {
        out.extend(kind.to_le_bytes());
        out.extend((8 * words.len() as u32).to_le_bytes());
        out.extend([0; 8]);
        words.iter().for_each(|w| out.extend(w.to_le_bytes()));
    };
    piece(0x2000_1000, &[0x1040_a000_0585]);
    piece(0x3000_5000, &[7; 18]);
    piece(
        0x3000_7000,
        &[0x8005_0033, 0x7fff_0000, cr3 | 2, 0x6f8, 0, 0xd01],
    );
    piece(0x3000_7000, &[0x10, 0, 0, 0, 0, 0]);
    // So long that it lies in an object of its own.
    piece(0x3000_6000, &[9; 300]);
    out
}

/// A state; the last part of a range is filled up to a block with zeros.
pub(crate) fn vmrs(m: &Memory, s: State, cr3: u64) -> Vec<u8> {
    let mut values: Vec<(String, Vec<u8>)> = vec![("partition_state".into(), processors(cr3))];
    let mut blocks = 0u64;
    for (i, (pa, bytes)) in m.iter().enumerate() {
        let mut range = 3u32.to_le_bytes().to_vec();
        range.extend([0; 4]);
        for n in [bytes.len() as u64 / 4096, blocks * 256, pa / 4096, 0, 0] {
            range.extend(n.to_le_bytes());
        }
        values.push((format!("RamMemoryBlock{i}"), range));
        for part in bytes.chunks(BLOCK) {
            let mut block = part.to_vec();
            block.resize(BLOCK, 0);
            let value = if s.packed { packed(&block) } else { block };
            values.push((format!("RamBlock{blocks}"), value));
            blocks += 1;
        }
    }
    // Header, header, the first table of objects.
    let objects_len = (8 + 18 * s.objects).next_multiple_of(4096);
    let mut out = vec![0; 8192 + objects_len];
    // Kind, place and length of each object.
    let mut objects: Vec<(u8, u64, u32)> = Vec::new();
    let (mut table, mut tables) = (vec![0u8; 10], 0u16);
    let flush = |table: &mut Vec<u8>, tables: &mut u16, out: &mut Vec<u8>| {
        *tables += 1;
        // What is left is a free entry.
        let free = 4096 - table.len();
        table.extend([1, 0]);
        table.extend((free as u32).to_le_bytes());
        table.resize(4096, 0);
        table[..2].copy_from_slice(&[2, 0]);
        table[2..4].copy_from_slice(&tables.to_le_bytes());
        table[4..6].copy_from_slice(&[1, 0]);
        let sum = crc(&table[..10]);
        table[6..10].copy_from_slice(&sum.to_le_bytes());
        let at = out.len() as u64;
        out.extend(&table[..]);
        table.clear();
        table.resize(10, 0);
        (2, at, 4096)
    };
    // A node above them all, and a number, which is not an array.
    let mut entries: Vec<(u8, String, Vec<u8>)> = vec![
        (9, "savedstate".into(), vec![0; 12]),
        (3, "VmVersion".into(), 0xa00u64.to_le_bytes().to_vec()),
    ];
    for (name, value) in values {
        let mut data = (value.len() as u32).to_le_bytes().to_vec();
        let kind = if value.len() >= 2048 {
            let at = out.len() as u64;
            out.extend(&value);
            out.resize(out.len().next_multiple_of(4096), 0);
            objects.push((3, at, (out.len() as u64 - at) as u32));
            data.extend(at.to_le_bytes());
            0x107
        } else {
            data.extend(value);
            7
        };
        // Kinds above 255 have the flag.
        let (kind, elsewhere) = (kind as u8, kind > 255);
        entries.push((if elsewhere { kind | 0x80 } else { kind }, name, data));
    }
    for (kind, name, data) in entries {
        let len = 21 + name.len() + 1 + data.len();
        if table.len() + len + 22 > 4096 {
            objects.push(flush(&mut table, &mut tables, &mut out));
        }
        let from = table.len();
        table.extend([kind & 0x7f, kind >> 7]);
        table.extend((len as u32).to_le_bytes());
        let parent = if kind == 9 {
            [0; 6]
        } else {
            [1, 0, 10, 0, 0, 0]
        };
        table.extend(parent);
        table.extend([0; 4]);
        table.extend(1u32.to_le_bytes());
        table.push(name.len() as u8 + 1);
        table.extend(name.as_bytes());
        table.push(0);
        table.extend(data);
        seal(&mut table, from, from + 12);
    }
    objects.push(flush(&mut table, &mut tables, &mut out));
    // The log, with as many entries as there are to be.
    let log = out.len();
    out.resize(log + 4096, 0);
    out[log..log + 4].copy_from_slice(&0x0111_0003u32.to_le_bytes());
    out[log + 8..log + 12].copy_from_slice(&s.log.to_le_bytes());
    out[log + 13..log + 17].copy_from_slice(&100u32.to_le_bytes());
    let sum = crc(&out[log..log + 34]);
    out[log + 4..log + 8].copy_from_slice(&sum.to_le_bytes());
    objects.push((6, log as u64, 4096));
    // Tables of objects: the last entry of each is the next table.
    let mut left = &objects[..];
    let mut at = 8192;
    loop {
        let (own, rest) = left.split_at(left.len().min(s.objects - 1));
        left = rest;
        let next = (!left.is_empty()).then(|| {
            let next = out.len();
            out.resize(next + objects_len, 0);
            next
        });
        out[at..at + 4].copy_from_slice(&0x0111_0001u32.to_le_bytes());
        out[at + 4..at + 8].copy_from_slice(&(s.objects as u32).to_le_bytes());
        let last = next.map(|n| (1, n as u64, objects_len as u32));
        let empty = std::iter::repeat_n((0, 0, 0), s.objects - 1 - own.len());
        let all = own.iter().copied().chain(empty).chain(last);
        for (i, (kind, place, len)) in all.enumerate() {
            let mut e = vec![kind];
            e.extend([0; 4]);
            e.extend(place.to_le_bytes());
            e.extend(len.to_le_bytes());
            e.push(u8::from(kind != 0));
            seal(&mut e, 0, 1);
            out[at + 8 + 18 * i..at + 26 + 18 * i].copy_from_slice(&e);
        }
        match next {
            Some(n) => at = n,
            None => break,
        }
    }
    for (place, sequence) in [(0, 7u16), (4096, 8)] {
        let mut h = 0x0128_2014u32.to_le_bytes().to_vec();
        h.extend([0; 4]);
        h.extend(sequence.to_le_bytes());
        h.extend(0x400u32.to_le_bytes());
        h.extend([0; 8]);
        h.extend(4096u32.to_le_bytes());
        h.extend((log as u64).to_le_bytes());
        h.extend(4096u64.to_le_bytes());
        h.extend(4096u32.to_le_bytes());
        seal(&mut h, 0, 4);
        out[place..place + 46].copy_from_slice(&h);
    }
    out
}
