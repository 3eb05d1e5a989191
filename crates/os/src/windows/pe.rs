//! PE images as they are mapped, and back to the order of their files.
//!
//! ```text
//! DOS header, at 0x3C the place of: "PE\0\0" | file header, 20 bytes | optional header | sections, 40 bytes each
//! section: name, bytes in memory, place in memory, bytes in the file, place in the file, flags at 36
//! ```
//!
//! Headers are of hostile memory: an image whose sections don't lie one behind the other in the file is given as it lies in
//! memory.
//!
//! Source: "PE Format" (Microsoft).

use super::Space;
use crate::content::{Content, Extent};
use ramsift_layers::PhysAddr;

const PAGE: u64 = 4096;
/// Bytes of an image at most.
const LARGEST: u64 = 1 << 30;
/// Sections of an image at most (the loader's own limit).
const MOST_SECTIONS: usize = 96;
/// Bytes of headers that are read at most.
const HEAD: usize = 2 * 4096;
/// `IMAGE_SCN_MEM_EXECUTE`.
const EXECUTE: u32 = 0x2000_0000;

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    /// Place in the image, and bytes of it.
    pub(super) rva: u64,
    pub(super) size: u64,
    /// Place in the file, and bytes there.
    raw: u64,
    raw_size: u64,
    flags: u32,
}

impl Section {
    /// Whether it holds code.
    pub(super) fn is_code(&self) -> bool {
        self.flags & EXECUTE != 0
    }
}

/// The headers of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pe {
    /// Bytes of it in memory.
    pub(super) size: u64,
    /// Bytes of its headers.
    headers: u64,
    /// 64, or 32.
    pub(super) bits: u64,
    /// Place of its first function.
    pub(super) entry: u64,
    /// Where it was linked to, or relocated to.
    pub(super) sections: Vec<Section>,
    /// Places and bytes of the data directories.
    pub(super) directories: Vec<(u64, u64)>,
}

/// Reads what there is of `len` bytes, zeros for the rest; `None` if not even the first page is there.
fn head(space: &Space<'_>, base: u64) -> Option<Vec<u8>> {
    let mut raw = vec![0; HEAD];
    let (first, rest) = raw.split_at_mut(4096);
    space.read(base, first).ok()?;
    if !first.starts_with(b"MZ") || space.read(base.wrapping_add(PAGE), rest).is_err() {
        rest.fill(0);
    }
    Some(raw)
}

/// The headers of the image that begins at an address, if one does.
pub(super) fn read(space: &Space<'_>, base: u64) -> Option<Pe> {
    parse(&head(space, base)?)
}

fn parse(raw: &[u8]) -> Option<Pe> {
    let word = |at: usize| {
        raw.get(at..at.checked_add(4)?)?
            .first_chunk()
            .map(|b| u32::from_le_bytes(*b))
    };
    let half = |at: usize| {
        raw.get(at..at.checked_add(2)?)?
            .first_chunk()
            .map(|b| u16::from_le_bytes(*b))
    };
    raw.starts_with(b"MZ").then_some(())?;
    let pe = usize::try_from(word(0x3c)?).ok()?;
    (word(pe)? == 0x4550).then_some(())?;
    let (count, optional) = (usize::from(half(pe + 6)?), pe + 24);
    let (bits, directories) = match half(optional)? {
        0x20b => (64, optional + 112),
        0x10b => (32, optional + 96),
        _ => return None,
    };
    let size = u64::from(word(optional + 56)?);
    ((512..=LARGEST).contains(&size) && count <= MOST_SECTIONS).then_some(())?;
    let table = optional + usize::from(half(pe + 20)?);
    let section = |i: usize| {
        let at = table + i * 40;
        let name = raw.get(at..at + 8)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(8);
        Some(Section {
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            size: word(at + 8)?.into(),
            rva: word(at + 12)?.into(),
            raw_size: word(at + 16)?.into(),
            raw: word(at + 20)?.into(),
            flags: word(at + 36)?,
        })
    };
    let number = usize::try_from(word(directories - 4)?).unwrap_or(0).min(16);
    let directory = |i: usize| {
        let at = directories + i * 8;
        Some((u64::from(word(at)?), u64::from(word(at + 4)?)))
    };
    Some(Pe {
        size,
        headers: word(optional + 60)?.into(),
        bits,
        entry: word(optional + 16)?.into(),
        sections: (0..count).map_while(section).collect(),
        directories: (0..number).map_while(directory).collect(),
    })
}

impl Pe {
    /// Parts of the file in order: place in the file, place in memory, bytes. `None` where they overlap.
    fn file(&self) -> Option<Vec<(u64, u64, u64)>> {
        let mut out = vec![(0, 0, self.headers.min(self.size))];
        let mut all: Vec<&Section> = self.sections.iter().collect();
        all.sort_by_key(|s| s.raw);
        for s in all {
            // What lies in the file only counts up to the page where the section ends in memory.
            let mapped = if s.size == 0 { s.raw_size } else { s.size };
            let len = s.raw_size.min(mapped.next_multiple_of(PAGE));
            if len == 0 {
                continue;
            }
            let end = out.last().map_or(0, |l| l.0 + l.2);
            if s.raw < end
                || s.raw + len > LARGEST
                || s.rva + len > self.size.next_multiple_of(PAGE)
            {
                return None;
            }
            out.push((s.raw, s.rva, len));
        }
        Some(out)
    }

    /// The image's content in the order of its file; `page` gives the physical page of a place in the image. The flag says
    /// whether it is in that order, and not as it lies in memory.
    pub(super) fn content(&self, page: &mut dyn FnMut(u64) -> Option<u64>) -> (Content, bool) {
        let file = self.file();
        let in_order = file.is_some();
        let parts = file.unwrap_or_else(|| vec![(0, 0, self.size)]);
        let size = parts.iter().map(|p| p.0 + p.2).max().unwrap_or(0);
        let mut out = Content::new(size);
        for (raw, rva, len) in parts {
            let mut done = 0;
            while done < len {
                let at = rva + done;
                let n = (PAGE - at % PAGE).min(len - done);
                if let Some(pa) = page(at - at % PAGE) {
                    out.push(Extent {
                        offset: raw + done,
                        pa: PhysAddr(pa + at % PAGE),
                        len: n,
                    });
                }
                done += n;
            }
        }
        (out, in_order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with these sections: place in memory, bytes, place in the file, bytes there.
    fn image(sections: &[[u32; 4]]) -> Vec<u8> {
        let mut b = vec![0; 4096];
        let put =
            |b: &mut Vec<u8>, at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        b[..2].copy_from_slice(b"MZ");
        put(&mut b, 0x3c, 0x80);
        put(&mut b, 0x80, 0x4550);
        put(&mut b, 0x84, 0x8664 | (sections.len() as u32) << 16);
        put(&mut b, 0x94, 0xf0);
        put(&mut b, 0x98, 0x20b);
        put(&mut b, 0x98 + 16, 0x1000);
        put(&mut b, 0x98 + 56, 0x5000);
        put(&mut b, 0x98 + 60, 0x400);
        put(&mut b, 0x98 + 108, 16);
        for (i, [rva, size, raw, raw_size]) in sections.iter().enumerate() {
            let at = 0x98 + 0xf0 + i * 40;
            for (n, v) in [(8, *size), (12, *rva), (16, *raw_size), (20, *raw)] {
                put(&mut b, at + n, v);
            }
        }
        b
    }

    #[test]
    fn an_image_goes_back_to_the_order_of_its_file() {
        // Two sections of 0x1200 and 0x300 bytes; in the file behind each other.
        let pe = parse(&image(&[
            [0x1000, 0x1200, 0x400, 0x1200],
            [0x3000, 0x2fe, 0x1600, 0x400],
        ]));
        let pe = pe.expect("an image");
        assert_eq!((pe.size, pe.entry, pe.bits), (0x5000, 0x1000, 64));
        let mut asked = Vec::new();
        let (c, in_order) = pe.content(&mut |rva| {
            asked.push(rva);
            (rva != 0x2000).then_some(0x10_0000 + rva * 2)
        });
        assert!(in_order);
        assert_eq!(c.size(), 0x1a00);
        let got: Vec<_> = c
            .extents()
            .iter()
            .map(|e| (e.offset, e.pa.0, e.len))
            .collect();
        assert_eq!(
            got,
            [
                (0, 0x10_0000, 0x400),
                (0x400, 0x10_2000, 0x1000),
                (0x1600, 0x10_6000, 0x400)
            ]
        );
        let holes: Vec<_> = c.holes().iter().map(|h| (h.start, h.end)).collect();
        assert_eq!(holes, [(0x1400, 0x1600)]);
        assert_eq!(asked, [0, 0x1000, 0x2000, 0x3000]);
    }

    #[test]
    fn an_image_whose_sections_overlap_stays_as_it_lies() {
        let pe = parse(&image(&[
            [0x1000, 0x800, 0x400, 0x800],
            [0x2000, 0x800, 0x600, 0x800],
        ]));
        let (c, in_order) = pe.expect("an image").content(&mut |rva| Some(rva + 0x7000));
        assert!(!in_order);
        assert_eq!(c.size(), 0x5000);
        assert_eq!(c.extents().len(), 1);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"MZ"), None);
        let mut b = image(&[]);
        b[0x3c..0x40].fill(0xff);
        assert_eq!(parse(&b), None);
        let mut b = image(&[]);
        b[0x98 + 56..0x98 + 60].fill(0xff);
        assert_eq!(parse(&b), None, "an image of 4 GiB");
    }
}
