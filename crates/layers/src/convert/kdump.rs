//! A kdump-compressed dump, version 6, pages packed by zlib: what makedumpfile and crash read.
//!
//! ```text
//! block 0  header    block 1  sub header, then VMCOREINFO
//! bitmaps  which pages are memory, which were dumped
//! descriptors of the dumped pages, then the pages; one page of zeros stands for all of them
//! ```
//!
//! A page that only partly lies in a range is filled up with zeros. One that can't be read is memory and was not dumped.
//!
//! Source: makedumpfile `IMPLEMENTATION`, "The kdump-compressed format".

use super::{ConvertError, Machine, Writer};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
const BYTES: usize = 4096;
const DESCRIPTOR: u64 = 24;
const ZLIB: u32 = 1;
/// Level of dumps that leave nothing out.
const ALL_PAGES: u32 = 0;
/// Numbers of pages at most: 64 TiB, whose bitmaps take 4 GiB.
const MAX_PAGES: u64 = 1 << 34;
/// Bytes that are written at once.
const STEP: usize = 4 << 20;
/// How well is packed: makedumpfile's own level.
const LEVEL: u8 = 1;

/// Writes kdump-compressed dumps.
pub(super) struct Kdump<'a> {
    file: &'a File,
    machine: &'a Machine,
    /// Number of pages up to the last one.
    pages: u64,
    ranges: Vec<Range<u64>>,
    /// Dumped pages, in runs of their numbers.
    dumped: Vec<Range<u64>>,
    /// A page of which a part came.
    part: Option<(u64, Vec<u8>)>,
    descriptors: u64,
    /// Descriptors and pages that are to be written, and where.
    heads: (u64, Vec<u8>),
    data: (u64, Vec<u8>),
    zero: Option<(u64, u32)>,
    filled: u64,
}

impl<'a> Kdump<'a> {
    pub(super) fn new(
        file: &'a File,
        ranges: &[Range<u64>],
        machine: &'a Machine,
    ) -> Result<Self, ConvertError> {
        let pages = ranges.last().map_or(0, |r| r.end.div_ceil(PAGE));
        if pages > MAX_PAGES {
            return Err(ConvertError::Refused {
                target: "kdump",
                why: format!(
                    "its last address is {:#x}, and its bitmaps would be too large; use lime or elf-core",
                    pages.saturating_mul(PAGE)
                ),
            });
        }
        let mut out = Self {
            file,
            machine,
            pages,
            ranges: numbers(ranges),
            dumped: Vec::new(),
            part: None,
            descriptors: 0,
            heads: (0, Vec::new()),
            data: (0, Vec::new()),
            zero: None,
            filled: 0,
        };
        let count: u64 = out.ranges.iter().map(|r| r.end - r.start).sum();
        out.descriptors = out.bitmaps_at() + 2 * out.bitmap_len();
        out.heads.0 = out.descriptors;
        out.data.0 = out.descriptors + count * DESCRIPTOR;
        Ok(out)
    }

    fn info(&self) -> &[u8] {
        self.machine.vmcoreinfo.as_deref().unwrap_or_default()
    }

    /// Blocks of the sub header with what follows it.
    fn sub_blocks(&self) -> u64 {
        1 + (self.info().len() as u64).div_ceil(PAGE)
    }

    fn bitmaps_at(&self) -> u64 {
        PAGE * (1 + self.sub_blocks())
    }

    fn bitmap_len(&self) -> u64 {
        self.pages.div_ceil(8).next_multiple_of(PAGE)
    }

    fn page(&mut self, number: u64, page: &[u8]) -> io::Result<()> {
        let zeros = page.iter().all(|b| *b == 0);
        let (offset, size, flags) = match self.zero.filter(|_| zeros) {
            Some((offset, size)) => (offset, size, ZLIB),
            None => {
                let packed = miniz_oxide::deflate::compress_to_vec_zlib(page, LEVEL);
                let (bytes, flags) = if packed.len() < BYTES {
                    (&packed[..], ZLIB)
                } else {
                    (page, 0)
                };
                let offset = self.data.0 + self.data.1.len() as u64;
                let size = u32::try_from(bytes.len()).unwrap_or(0);
                self.data.1.extend_from_slice(bytes);
                if zeros {
                    self.zero = Some((offset, size));
                }
                (offset, size, flags)
            }
        };
        let d = &mut self.heads.1;
        d.extend(offset.to_le_bytes());
        d.extend(size.to_le_bytes());
        d.extend(flags.to_le_bytes());
        d.extend([0; 8]);
        match self.dumped.last_mut() {
            Some(l) if l.end == number => l.end += 1,
            _ => self.dumped.push(number..number + 1),
        }
        for (at, bytes) in [&mut self.heads, &mut self.data] {
            if bytes.len() >= STEP {
                self.file.write_all_at(bytes, *at)?;
                *at += bytes.len() as u64;
                bytes.clear();
            }
        }
        Ok(())
    }

    /// Ends the page of which a part came.
    fn fill_up(&mut self) -> io::Result<()> {
        if let Some((number, mut page)) = self.part.take() {
            self.filled += (BYTES - page.len()) as u64;
            page.resize(BYTES, 0);
            self.page(number, &page)?;
        }
        Ok(())
    }
}

/// The numbers of the pages that ranges have any of, neighbours joined.
fn numbers(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for r in ranges {
        let (first, end) = (r.start / PAGE, r.end.div_ceil(PAGE));
        match out.last_mut() {
            Some(l) if l.end >= first => l.end = l.end.max(end),
            _ => out.push(first..end),
        }
    }
    out
}

/// Writes a bitmap, some of it at a time.
fn bitmap(file: &File, at: u64, len: u64, set: &[Range<u64>]) -> io::Result<()> {
    let mut done = 0;
    let mut left = set.iter().cloned().peekable();
    let mut now: Option<Range<u64>> = left.next();
    while done < len {
        let n = (STEP as u64).min(len - done);
        let mut bits = vec![0u8; usize::try_from(n).unwrap_or(0)];
        let (first, end) = (8 * done, 8 * (done + n));
        while let Some(r) = &mut now {
            let upto = r.end.min(end);
            for b in r.start..upto {
                let i = usize::try_from((b - first) / 8).unwrap_or(usize::MAX);
                if let Some(byte) = bits.get_mut(i) {
                    *byte |= 1 << (b % 8);
                }
            }
            r.start = r.start.max(upto);
            if r.start < r.end {
                break;
            }
            now = left.next();
        }
        file.write_all_at(&bits, at + done)?;
        done += n;
    }
    Ok(())
}

impl Writer for Kdump<'_> {
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut pa, mut bytes) = (pa, bytes);
        while !bytes.is_empty() {
            let (number, inside) = (pa / PAGE, usize::try_from(pa % PAGE).unwrap_or(0));
            if self.part.as_ref().is_some_and(|(n, _)| *n != number) {
                self.fill_up()?;
            }
            let n = bytes.len().min(BYTES - inside);
            let (now, rest) = bytes.split_at(n);
            match &mut self.part {
                None if n == BYTES => self.page(number, now)?,
                part => {
                    let (_, page) = part.get_or_insert_with(|| (number, Vec::new()));
                    if page.len() < inside {
                        self.filled += (inside - page.len()) as u64;
                        page.resize(inside, 0);
                    }
                    page.extend_from_slice(now);
                    if page.len() == BYTES {
                        self.fill_up()?;
                    }
                }
            }
            pa += n as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<Vec<String>> {
        self.fill_up()?;
        for (at, bytes) in [&self.heads, &self.data] {
            self.file.write_all_at(bytes, *at)?;
        }
        let (at, len) = (self.bitmaps_at(), self.bitmap_len());
        bitmap(self.file, at, len, &self.ranges)?;
        bitmap(self.file, at + len, len, &self.dumped)?;
        let word = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut head = vec![0u8; BYTES];
        let set = |b: &mut [u8], at: usize, v: &[u8]| {
            if let Some(to) = b.get_mut(at..at + v.len()) {
                to.copy_from_slice(v);
            }
        };
        set(&mut head, 0, b"KDUMP   ");
        set(&mut head, 8, &6u32.to_le_bytes());
        set(&mut head, 12, b"Linux");
        let arch = self.machine.arch.as_deref().unwrap_or("x86_64");
        set(&mut head, 12 + 4 * 65, arch.as_bytes());
        // Status 1: packed by zlib. The size of a block, and of what follows in blocks.
        let fields = [
            word(u64::from(ZLIB)),
            word(PAGE),
            word(self.sub_blocks()),
            word(2 * len / PAGE),
            word(self.pages),
            word(0),
            word(0),
            word(0),
            word(0),
            word(1),
        ];
        for (i, v) in fields.iter().enumerate() {
            set(&mut head, 424 + 4 * i, v);
        }
        self.file.write_all_at(&head, 0)?;
        let mut sub = vec![0u8; usize::try_from(self.sub_blocks() * PAGE).unwrap_or(BYTES)];
        set(&mut sub, 8, &ALL_PAGES.to_le_bytes());
        let info = self.info();
        if !info.is_empty() {
            set(&mut sub, 0, &phys_base(info).to_le_bytes());
            set(&mut sub, 32, &(2 * PAGE).to_le_bytes());
            set(&mut sub, 40, &(info.len() as u64).to_le_bytes());
            set(&mut sub, BYTES, info);
        }
        set(&mut sub, 96, &self.pages.to_le_bytes());
        self.file.write_all_at(&sub, PAGE)?;
        let end = self.data.0 + self.data.1.len() as u64;
        self.file.set_len(end.max(self.descriptors))?;
        Ok(match self.filled {
            0 => Vec::new(),
            n => vec![format!(
                "{n} bytes were filled up with zeros, since a kdump holds whole pages"
            )],
        })
    }
}

/// `phys_base` of a VMCOREINFO.
fn phys_base(info: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(info);
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix("NUMBER(phys_base)="));
    let number = found.and_then(|v| v.trim().parse::<i64>().ok());
    number.map_or(0, i64::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_ranges() {
        let file = tempfile::tempfile().expect("file");
        let set = [0..3, 7..9, 20..21, 4096 * 8 - 1..4096 * 8 + 1];
        bitmap(&file, 100, 8192, &set).expect("written");
        let mut bits = vec![0; 8192];
        file.read_exact_at(&mut bits, 100).expect("there");
        for n in 0..8192 * 8u64 {
            let is = bits[(n / 8) as usize] >> (n % 8) & 1 == 1;
            assert_eq!(is, set.iter().any(|r| r.contains(&n)), "{n}");
        }
        let of = numbers(&[0x1000..0x1800, 0x1900..0x2000, 0x5000..0x6001]);
        assert_eq!(of, [1..2, 5..7]);
    }
}
