//! The container: a file of blocks, in which streams lie in any order.
//!
//! ```text
//! superblock  magic (32), block size, free map, blocks, bytes of the directory, 0, block that lists the directory's
//! directory   number of streams, bytes of each (all ones: none), then the blocks of each
//! ```

use super::{MAGIC, PdbError, malformed};
use std::borrow::Cow;

/// Streams of a file at most.
const MOST_STREAMS: usize = 1 << 16;

/// Numbers in bytes.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        let b = self.0.get(at..at.checked_add(2)?)?.first_chunk()?;
        Some(u16::from_le_bytes(*b))
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        let b = self.0.get(at..at.checked_add(4)?)?.first_chunk()?;
        Some(u32::from_le_bytes(*b))
    }

    pub(super) fn size(&self, at: usize) -> Option<usize> {
        usize::try_from(self.u32(at)?).ok()
    }

    /// Text up to its NUL.
    pub(super) fn text(&self, at: usize) -> Option<String> {
        let text = self.0.get(at..self.behind(at)? - 1)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// What follows the NUL of the text at a place.
    pub(super) fn behind(&self, at: usize) -> Option<usize> {
        let end = self.0.get(at..)?.iter().position(|b| *b == 0)?;
        Some(at + end + 1)
    }
}

/// An opened container.
pub(super) struct Msf<'a> {
    file: &'a [u8],
    block: usize,
    /// Bytes of each stream, and where its blocks are listed in the directory.
    streams: Vec<(usize, usize)>,
    directory: Vec<u8>,
}

impl<'a> Msf<'a> {
    pub(super) fn open(file: &'a [u8]) -> Result<Self, PdbError> {
        let bad = |expected| malformed("the superblock", expected);
        if !file.starts_with(MAGIC) {
            return Err(bad("the mark of a PDB of version 7"));
        }
        let head = Bytes(file);
        let block = head
            .size(32)
            .filter(|b| b.is_power_of_two() && (512..=1 << 16).contains(b));
        let block = block.ok_or_else(|| bad("a power of two for the size of blocks"))?;
        let bytes = head.size(44).filter(|n| *n <= file.len());
        let bytes = bytes.ok_or_else(|| bad("a directory that the file can hold"))?;
        let list = head
            .size(52)
            .ok_or_else(|| bad("the block that lists the directory's"))?;
        let mut out = Self {
            file,
            block,
            streams: Vec::new(),
            directory: Vec::new(),
        };
        let numbers = list
            .checked_mul(block)
            .and_then(|at| file.get(at..))
            .ok_or_else(|| bad("the block that lists the directory's"))?;
        let directory = out.gather(numbers, bytes)?;
        let of = Bytes(&directory);
        let bad = |expected| malformed("the directory of streams", expected);
        let count = of.size(0).filter(|n| *n <= MOST_STREAMS);
        let count = count.ok_or_else(|| bad("the number of streams"))?;
        let mut at = 4 + 4 * count;
        for i in 0..count {
            let size = of
                .u32(4 + 4 * i)
                .ok_or_else(|| bad("the size of each stream"))?;
            // One that was deleted.
            let size = if size == u32::MAX { 0 } else { size };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > file.len() {
                return Err(bad("streams that the file can hold"));
            }
            out.streams.push((size, at));
            at += 4 * size.div_ceil(block);
        }
        out.directory = directory;
        Ok(out)
    }

    /// The bytes of these blocks, one behind the other.
    fn gather(&self, numbers: &[u8], bytes: usize) -> Result<Vec<u8>, PdbError> {
        let mut out = Vec::with_capacity(bytes);
        for i in 0..bytes.div_ceil(self.block) {
            let part = Bytes(numbers)
                .size(4 * i)
                .and_then(|n| n.checked_mul(self.block))
                .and_then(|at| {
                    let n = self.block.min(bytes - i * self.block);
                    self.file.get(at..at.checked_add(n)?)
                });
            let part = part.ok_or_else(|| malformed("a stream", "blocks inside the file"))?;
            out.extend_from_slice(part);
        }
        Ok(out)
    }

    /// The bytes of a stream.
    pub(super) fn stream(&self, number: usize) -> Result<Cow<'a, [u8]>, PdbError> {
        let none = || malformed(format!("stream {number}"), "a stream of this number");
        let (size, at) = *self.streams.get(number).ok_or_else(none)?;
        let numbers = self.directory.get(at..).ok_or_else(none)?;
        self.gather(numbers, size).map(Cow::Owned)
    }
}
