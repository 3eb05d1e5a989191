//! LZ4 frames, one after the other, that end where they say.
//!
//! ```text
//! magic 0x184D2204, FLG, BD, [content size u64], [dictionary u32], header checksum
//! blocks: length u32 (the top bit: as it is), bytes, [checksum u32]
//! length 0, [checksum of the content u32]
//! ```
//!
//! The decoder takes the end of its input between two blocks for the end of the frame, so what it reads is watched.
//!
//! Source: the LZ4 frame format description, 1.6.

use std::io::{self, Read};

const MAGIC: u32 = 0x184d_2204;

/// Where in a frame the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between frames.
    Outside,
    /// In the rest of the header, whose flags are known.
    Flags,
    Header,
    /// A length of a block.
    Length,
    /// In what is passed over: then comes a length, or the end of the frame.
    Block,
    Trailer,
    /// In what is no frame: the decoder will say so.
    Lost,
}

/// Passes a stream on and follows its frames.
#[derive(Debug)]
struct Watch<R> {
    inner: R,
    place: Place,
    /// Bytes until the place is known.
    need: u64,
    number: u32,
    have: u32,
    flags: u8,
    ended: bool,
}

impl<R> Watch<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            place: Place::Outside,
            need: 0,
            number: 0,
            have: 0,
            flags: 0,
            ended: false,
        }
    }

    /// Collects a number of four bytes.
    fn number(&mut self, b: u8) -> Option<u32> {
        self.number |= u32::from(b) << (8 * self.have);
        self.have += 1;
        (self.have == 4).then(|| {
            self.have = 0;
            std::mem::take(&mut self.number)
        })
    }

    fn follow(&mut self, mut b: &[u8]) {
        while let Some((first, rest)) = b.split_first() {
            if matches!(self.place, Place::Header | Place::Block | Place::Trailer) && self.need > 0
            {
                let n = self.need.min(b.len() as u64);
                self.need -= n;
                b = &b[usize::try_from(n).unwrap_or(b.len())..];
                if self.need == 0 {
                    self.place = if self.place == Place::Trailer {
                        Place::Outside
                    } else {
                        Place::Length
                    };
                }
                continue;
            }
            b = rest;
            match self.place {
                Place::Outside => {
                    if let Some(n) = self.number(*first) {
                        self.place = if n == MAGIC {
                            Place::Flags
                        } else {
                            Place::Lost
                        };
                    }
                }
                Place::Flags => {
                    self.flags = *first;
                    // BD, size, dictionary, checksum.
                    let bit = |n: u8| u64::from(self.flags >> n & 1);
                    self.need = 1 + 8 * bit(3) + 4 * bit(0) + 1;
                    self.place = Place::Header;
                }
                Place::Length => {
                    if let Some(n) = self.number(*first) {
                        let bit = |n: u8| u64::from(self.flags >> n & 1);
                        (self.place, self.need) = match n {
                            0 if bit(2) == 0 => (Place::Outside, 0),
                            0 => (Place::Trailer, 4),
                            0x8000_0000 if bit(4) == 0 => (Place::Length, 0),
                            n => (Place::Block, u64::from(n & 0x7fff_ffff) + 4 * bit(4)),
                        };
                    }
                }
                Place::Header | Place::Block | Place::Trailer | Place::Lost => {}
            }
        }
    }

    /// Whether the stream ended behind a frame.
    fn is_whole(&self) -> bool {
        self.place == Place::Outside && self.have == 0
    }
}

impl<R: Read> Read for Watch<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.ended |= n == 0 && !buf.is_empty();
        self.follow(&buf[..n]);
        Ok(n)
    }
}

/// Unpacks frames up to the end of a stream.
pub(super) struct Lz4Reader<R: Read>(lz4_flex::frame::FrameDecoder<Watch<R>>);

impl<R: Read> Lz4Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self(lz4_flex::frame::FrameDecoder::new(Watch::new(inner)))
    }
}

impl<R: Read> Read for Lz4Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.0.read(buf)?;
            let watch = self.0.get_ref();
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            // The end of a frame; another may follow.
            if watch.ended {
                return match watch.is_whole() {
                    true => Ok(0),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};
    use std::io::Write;

    fn frame(data: &[u8], info: FrameInfo) -> Vec<u8> {
        let mut w = FrameEncoder::with_frame_info(info, Vec::new());
        w.write_all(data).expect("into memory");
        w.finish().expect("into memory")
    }

    #[test]
    fn frames_end_where_they_say() {
        // Blocks that end in zeros, as pages do.
        let data: Vec<u8> = (0..300_000u32)
            .map(|i| {
                if i % 4096 < 200 {
                    (i * 7 % 251) as u8
                } else {
                    0
                }
            })
            .collect();
        let infos = [
            FrameInfo::new(),
            FrameInfo::new()
                .content_checksum(true)
                .block_checksums(true),
            FrameInfo::new()
                .block_mode(BlockMode::Linked)
                .content_size(Some(data.len() as u64)),
        ];
        let frames: Vec<Vec<u8>> = infos.into_iter().map(|i| frame(&data, i)).collect();
        let all = frames.concat();
        let mut out = Vec::new();
        Lz4Reader::new(&all[..])
            .read_to_end(&mut out)
            .expect("whole");
        assert!(out == data.repeat(3));
        let ends: Vec<usize> = (1..=3).map(|n| frames[..n].concat().len()).collect();
        for cut in
            (0..all.len()).filter(|n| n % 97 == 0 || ends.iter().any(|e| e.abs_diff(*n) < 12))
        {
            let read = Lz4Reader::new(&all[..cut]).read_to_end(&mut Vec::new());
            assert_eq!(read.is_ok(), cut == 0 || ends.contains(&cut), "{cut}");
        }
    }
}
