//! Recovered content: files, modules and memory as lists of the places where their bytes lie.
//!
//! Nothing is copied until somebody wants the bytes, so a file of gigabytes costs 24 bytes for each
//! stretch of neighbouring pages. Formats that need a header of their own have it in front, as bytes.

use ramsift_layers::PhysAddr;
use ramsift_layers::translate::PhysRead;
use std::io::{self, Write};
use std::ops::Range;

/// A stretch of content and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its place in the content, in bytes.
    pub offset: u64,
    /// Its physical address.
    pub pa: PhysAddr,
    /// Bytes.
    pub len: u64,
}

/// Content with holes where the image has nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    size: u64,
    /// Bytes that are not in the image: its first ones.
    head: Vec<u8>,
    extents: Vec<Extent>,
}

/// Bytes that are copied at a time.
const STEP: usize = 64 << 10;
const PAGE: usize = 4096;

impl Content {
    /// Empty content of this many bytes: one hole.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// The same with its first bytes given. To be called before anything is pushed; what is longer than
    /// the content is cut.
    pub fn with_head(mut self, mut head: Vec<u8>) -> Self {
        head.truncate(usize::try_from(self.size).unwrap_or(usize::MAX));
        self.head = head;
        self
    }

    /// Its first bytes, which are not in the image.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Where the last that there is ends.
    fn end(&self) -> u64 {
        let last = self.extents.last().map(|l| l.offset + l.len);
        last.unwrap_or(self.head.len() as u64)
    }

    /// Adds a stretch behind all others; neighbours in both spaces become one. What reaches over the
    /// end is cut, what begins before the last one's end is left out.
    pub fn push(&mut self, e: Extent) {
        let end = self.end();
        let len = e.len.min(self.size.saturating_sub(e.offset));
        if e.offset < end || len == 0 {
            return;
        }
        match self.extents.last_mut() {
            Some(l) if l.offset + l.len == e.offset && l.pa.0 + l.len == e.pa.0 => l.len += len,
            _ => self.extents.push(Extent { len, ..e }),
        }
    }

    /// Bytes, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What of it lies in the image, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The physical address of a byte of it that lies in the image.
    pub fn at(&self, offset: u64) -> Option<PhysAddr> {
        let i = self.extents.partition_point(|e| e.offset + e.len <= offset);
        let e = self.extents.get(i).filter(|e| e.offset <= offset)?;
        Some(e.pa.saturating_add(offset - e.offset))
    }

    /// Bytes from one of its own on that lie side by side in physical memory; `None` where the image has nothing.
    pub fn run_at(&self, offset: u64) -> Option<u64> {
        let i = self.extents.partition_point(|e| e.offset + e.len <= offset);
        let e = self.extents.get(i).filter(|e| e.offset <= offset)?;
        Some(e.offset + e.len - offset)
    }

    /// Bytes that there are.
    pub fn present(&self) -> u64 {
        let image: u64 = self.extents.iter().map(|e| e.len).sum();
        image + self.head.len() as u64
    }

    /// What is missing, in order.
    pub fn holes(&self) -> Vec<Range<u64>> {
        let (mut at, mut out) = (self.head.len() as u64, Vec::new());
        for e in &self.extents {
            if e.offset > at {
                out.push(at..e.offset);
            }
            at = e.offset + e.len;
        }
        if self.size > at {
            out.push(at..self.size);
        }
        out
    }

    /// Hands over what there is, with its place in the content. Gives the ranges for which there are no
    /// bytes, those that the image claims and can't give included. Fails only if `out` does.
    pub fn pieces(
        &self,
        memory: &dyn PhysRead,
        out: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut lost: Vec<Range<u64>> = Vec::new();
        let mut lose = |r: Range<u64>| match lost.last_mut() {
            Some(l) if l.end == r.start => l.end = r.end,
            _ if r.start < r.end => lost.push(r),
            _ => {}
        };
        let mut buf = vec![0; STEP];
        for (i, piece) in self.head.chunks(STEP).enumerate() {
            out((i * STEP) as u64, piece)?;
        }
        let mut end = self.head.len() as u64;
        for e in &self.extents {
            lose(end..e.offset);
            end = e.offset + e.len;
            let mut at = e.offset;
            while at < end {
                let n = (end - at).min(STEP as u64);
                let piece = &mut buf[..usize::try_from(n).unwrap_or(STEP)];
                let pa = e.pa.saturating_add(at - e.offset);
                if memory.read_phys(pa, piece).is_ok() {
                    out(at, piece)?;
                } else {
                    for (i, page) in piece.chunks_mut(PAGE).enumerate() {
                        let inside = (i * PAGE) as u64;
                        if memory.read_phys(pa.saturating_add(inside), page).is_ok() {
                            out(at + inside, page)?;
                        } else {
                            lose(at + inside..at + inside + page.len() as u64);
                        }
                    }
                }
                at += n;
            }
        }
        lose(end..self.size);
        Ok(lost)
    }

    /// Writes it, holes as zeros. Gives the ranges that were zeros for want of bytes, as
    /// [`pieces`](Self::pieces) does.
    pub fn write(&self, memory: &dyn PhysRead, out: &mut dyn Write) -> io::Result<Vec<Range<u64>>> {
        let mut done = 0;
        let lost = self.pieces(memory, &mut |at, piece| {
            zeros(out, at - done)?;
            done = at + piece.len() as u64;
            out.write_all(piece)
        })?;
        zeros(out, self.size - done)?;
        Ok(lost)
    }
}

fn zeros(out: &mut dyn Write, mut n: u64) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while n > 0 {
        let k = n.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..usize::try_from(k).unwrap_or(ZEROS.len())])?;
        n -= k;
    }
    Ok(())
}

/// Something that can be written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What it is: `cached_file`, `module`, `process_elf`, `process_core`.
    pub kind: &'static str,
    /// Its path or name.
    pub name: String,
    /// Address of the kernel's object that it belongs to: that of a file, a module, a process.
    pub object: u64,
    /// Its bytes.
    pub content: Content,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::translate::PhysError;

    /// Pages 1, 2 and 7, each filled with its number.
    struct Pages;

    impl PhysRead for Pages {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            let page = pa.0 / 4096;
            if ![1, 2, 7].contains(&page) || pa.0 % 4096 + buf.len() as u64 > 4096 {
                return Err(PhysError::NotInImage { pa });
            }
            buf.fill(page as u8);
            Ok(())
        }
    }

    #[test]
    fn holes_are_zeros_and_are_told() {
        let mut c = Content::new(5 * 4096 + 10);
        let extent = |offset, page: u64, len| Extent {
            offset,
            pa: PhysAddr(page * 4096),
            len,
        };
        c.push(extent(4096, 1, 4096));
        c.push(extent(8192, 2, 4096));
        c.push(extent(8192, 7, 4096));
        c.push(extent(3 * 4096, 9, 4096));
        c.push(extent(5 * 4096, 7, 4096));
        assert_eq!(c.extents().len(), 3, "neighbours are one");
        assert_eq!(c.present(), 3 * 4096 + 10);
        assert_eq!(c.at(8192 + 5), Some(PhysAddr(8192 + 5)));
        assert_eq!(c.at(5 * 4096), Some(PhysAddr(7 * 4096)));
        assert_eq!(
            (c.at(5), c.at(4 * 4096), c.at(6 * 4096)),
            (None, None, None)
        );
        assert_eq!(c.holes(), vec![0..4096, 4 * 4096..5 * 4096]);
        let mut out = Vec::new();
        let lost = c.write(&Pages, &mut out).expect("a Vec takes all");
        assert_eq!(lost, vec![0..4096, 3 * 4096..5 * 4096]);
        assert_eq!(out.len() as u64, c.size());
        let firsts: Vec<u8> = out.iter().step_by(4096).copied().collect();
        assert_eq!(firsts, [0, 1, 2, 0, 0, 7]);
    }

    #[test]
    fn a_head_stands_before_what_the_image_has() {
        let extent = |offset, page: u64| Extent {
            offset,
            pa: PhysAddr(page * 4096),
            len: 4096,
        };
        let mut c = Content::new(3 * 4096).with_head(vec![0xaa; 4000]);
        // What would lie under the head is left out.
        c.push(extent(0, 1));
        c.push(extent(4096, 2));
        assert_eq!((c.head().len(), c.extents().len()), (4000, 1));
        assert_eq!(c.present(), 4000 + 4096);
        assert_eq!(c.holes(), vec![4000..4096, 8192..3 * 4096]);
        let mut out = Vec::new();
        let lost = c.write(&Pages, &mut out).expect("a Vec takes all");
        assert_eq!(lost, c.holes());
        assert_eq!(out.len() as u64, c.size());
        assert!(out[..4000].iter().all(|b| *b == 0xaa));
        assert!(out[4000..4096].iter().all(|b| *b == 0));
        assert!(out[4096..8192].iter().all(|b| *b == 2));
        // One that is longer than the content is cut; one of more than a step comes in pieces.
        assert_eq!(Content::new(10).with_head(vec![1; 20]).present(), 10);
        let long: Vec<u8> = (0..STEP + 5).map(|i| (i % 251) as u8).collect();
        let c = Content::new(long.len() as u64).with_head(long.clone());
        let mut out = Vec::new();
        assert_eq!(c.write(&Pages, &mut out).expect("a Vec"), vec![]);
        assert_eq!(out, long);
    }
}
