//! Writers of packed captures, after the formats' descriptions and with the codecs' own encoders. They share nothing with the readers.
#![allow(dead_code)]

use std::io::Write;

/// Memory of a machine: physical address and bytes of each range.
pub(crate) type Memory = Vec<(u64, Vec<u8>)>;

/// A page that is like no other: text in part, noise in part.
pub(crate) fn page(n: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    while out.len() < 2048 {
        write!(out, "page {n} of a machine, byte {}; ", out.len()).expect("written");
    }
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < 4096 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend(seed.to_le_bytes());
    }
    out.truncate(4096);
    out
}

/// Ranges with a hole between them; every fourth page is zeros.
pub(crate) fn memory() -> Memory {
    let pages = |first: u64, n: u64| -> (u64, Vec<u8>) {
        let one = |i: u64| {
            if i % 4 == 3 {
                vec![0; 4096]
            } else {
                page(first + i)
            }
        };
        (first * 4096, (0..n).flat_map(one).collect())
    };
    vec![pages(1, 40), pages(0x100, 24), pages(0x10_0000, 9)]
}

fn lime_header(magic: &[u8; 8], first: u64, len: u64) -> Vec<u8> {
    let mut h = magic.to_vec();
    for v in [first, first + len - 1, 0] {
        h.extend(v.to_le_bytes());
    }
    h
}

/// A plain LiME range.
pub(crate) fn lime_range(pa: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = lime_header(b"EMiL\x01\0\0\0", pa, bytes.len() as u64);
    out.extend(bytes);
    out
}

/// A range as AVML packs it.
pub(crate) fn avml_range(pa: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = lime_header(b"AVML\x02\0\0\0", pa, bytes.len() as u64);
    let mut w = snap::write::FrameEncoder::new(Vec::new());
    w.write_all(bytes).expect("written");
    let frame = w.into_inner().expect("flushed");
    let len = frame.len() as u64;
    out.extend(frame);
    out.extend(len.to_le_bytes());
    out
}

pub(crate) fn avml(m: &Memory) -> Vec<u8> {
    m.iter().flat_map(|(pa, b)| avml_range(*pa, b)).collect()
}

/// How pages of a kdump are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    Plain,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

pub(crate) const CODECS: [Packed; 5] = [
    Packed::Plain,
    Packed::Zlib,
    Packed::Lzo,
    Packed::Snappy,
    Packed::Zstd,
];

impl Packed {
    fn flag(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Zlib => 1,
            Self::Lzo => 2,
            Self::Snappy => 4,
            Self::Zstd => 0x20,
        }
    }

    fn pack(self, page: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => page.to_vec(),
            Self::Zlib => miniz_oxide::deflate::compress_to_vec_zlib(page, 1),
            // One run of literals: 18 + 255 * 15 + 253 = 4096.
            Self::Lzo => [&[0; 16][..], &[253], page, &[17, 0, 0]].concat(),
            Self::Snappy => snap::raw::Encoder::new()
                .compress_vec(page)
                .expect("snappy"),
            Self::Zstd => zstd::bulk::compress(page, 1).expect("zstd"),
        }
    }
}

/// What a kdump is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) packed: Packed,
    /// Leave pages of zeros out, and say so.
    pub(crate) without_zeros: bool,
    /// Fields as on i386.
    pub(crate) narrow: bool,
    pub(crate) vmcoreinfo: Vec<u8>,
    /// One file of several: the pages that it has, by number.
    pub(crate) part: Option<std::ops::Range<u64>>,
}

impl Kind {
    pub(crate) fn of(packed: Packed) -> Self {
        Self {
            packed,
            without_zeros: false,
            narrow: false,
            vmcoreinfo: Vec::new(),
            part: None,
        }
    }
}

fn set(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A kdump-compressed dump with blocks of 4 KiB.
pub(crate) fn kdump(m: &Memory, kind: &Kind) -> Vec<u8> {
    let max = m
        .iter()
        .map(|(pa, b)| (pa + b.len() as u64) / 4096)
        .max()
        .unwrap_or(0);
    let bitmap_blocks = max.div_ceil(8).div_ceil(4096);
    let mut head = vec![0; 4096];
    set(&mut head, 0, b"KDUMP   ");
    set(&mut head, 8, &6u32.to_le_bytes());
    set(&mut head, 12, b"Linux");
    let machine: &[u8] = if kind.narrow { b"i686" } else { b"x86_64" };
    set(&mut head, 12 + 4 * 65, machine);
    let status = if kind.narrow { 412 } else { 424 };
    let fields = [
        0,
        4096,
        1,
        2 * bitmap_blocks as u32,
        max as u32,
        0,
        0,
        0,
        0,
        1,
    ];
    for (i, v) in fields.iter().enumerate() {
        set(&mut head, status + 4 * i, &v.to_le_bytes());
    }
    let mut sub = vec![0; 4096];
    let level = u32::from(kind.without_zeros);
    set(
        &mut sub,
        if kind.narrow { 4 } else { 8 },
        &level.to_le_bytes(),
    );
    set(
        &mut sub,
        if kind.narrow { 72 } else { 96 },
        &max.to_le_bytes(),
    );
    if let Some(r) = kind.part.as_ref().filter(|_| !kind.narrow) {
        set(&mut sub, 12, &1u32.to_le_bytes());
        // In header versions before 6, and from that on.
        for at in [16, 80] {
            set(&mut sub, at, &r.start.to_le_bytes());
            set(&mut sub, at + 8, &r.end.to_le_bytes());
        }
    }
    let mut memory = vec![0u8; bitmap_blocks as usize * 4096];
    let mut dumped = memory.clone();
    let mut pages = Vec::new();
    for (pa, bytes) in m {
        for (i, p) in bytes.chunks_exact(4096).enumerate() {
            let n = pa / 4096 + i as u64;
            memory[n as usize / 8] |= 1 << (n % 8);
            if kind.without_zeros && p.iter().all(|b| *b == 0) {
                continue;
            }
            dumped[n as usize / 8] |= 1 << (n % 8);
            if kind.part.as_ref().is_none_or(|r| r.contains(&n)) {
                pages.push(p);
            }
        }
    }
    let mut at = (2 * 4096 + 2 * memory.len() + 24 * pages.len()) as u64;
    let (mut descriptors, mut data) = (Vec::new(), Vec::new());
    let mut zero: Option<(u64, usize)> = None;
    for p in pages {
        let (place, len): (u64, usize) = match zero.filter(|_| p.iter().all(|b| *b == 0)) {
            Some(z) => z,
            None => {
                let packed = kind.packed.pack(p);
                let place = (at, packed.len());
                at += packed.len() as u64;
                data.extend(packed);
                if p.iter().all(|b| *b == 0) {
                    zero = Some(place);
                }
                place
            }
        };
        descriptors.extend(place.to_le_bytes());
        descriptors.extend((len as u32).to_le_bytes());
        descriptors.extend(kind.packed.flag().to_le_bytes());
        descriptors.extend([0; 8]);
    }
    if !kind.vmcoreinfo.is_empty() {
        let (a, b) = if kind.narrow { (20, 28) } else { (32, 40) };
        set(&mut sub, a, &at.to_le_bytes());
        set(&mut sub, b, &(kind.vmcoreinfo.len() as u32).to_le_bytes());
    }
    [
        head,
        sub,
        memory,
        dumped,
        descriptors,
        data,
        kind.vmcoreinfo.clone(),
    ]
    .concat()
}

/// The same, flattened: in parts of a length that cuts pages in two, the header again at the end, as makedumpfile writes it.
pub(crate) fn flattened(dump: &[u8], part: usize) -> Vec<u8> {
    let mut out = b"makedumpfile\0\0\0\0".to_vec();
    out.extend(1i64.to_be_bytes());
    out.extend(1i64.to_be_bytes());
    out.resize(4096, 0);
    let mut put = |at: usize, bytes: &[u8]| {
        out.extend((at as i64).to_be_bytes());
        out.extend((bytes.len() as i64).to_be_bytes());
        out.extend(bytes);
    };
    // The first header is still without what is known at the end.
    put(0, &vec![0xee; 4096]);
    let mut parts: Vec<(usize, &[u8])> = dump
        .chunks(part)
        .enumerate()
        .map(|(i, c)| (i * part, c))
        .collect();
    // Descriptors and pages are written in turn.
    let n = parts.len();
    parts.rotate_left(n / 3);
    for (at, c) in parts {
        put(at, c);
    }
    put(0, &dump[..4096]);
    out.extend([0xff; 16]);
    out
}
