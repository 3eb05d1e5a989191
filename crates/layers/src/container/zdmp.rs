//! Compressed captures of DumpIt: a Windows crash dump in blocks, packed each by itself.
//!
//! ```text
//! 0      "ZDMP", version u32 (0x100), bytes of the dump u64, bytes of a block u32, kind u16 (1: packed, 2: encrypted), method u16 (2: LZNT1)
//! 4096   blocks, one behind the other: "ZBLK", bytes u32, CRC-32 of them, and they; as many as a block has: not packed
//! ```
//!
//! LZNT1: chunks of 4 KiB; u16: bytes - 3 with these two (12 bits), 3 (3 bits), packed (1 bit). In a packed one a byte of flags, from the lowest on,
//! comes before eight items: 0 a byte, 1 a match of two bytes: length - 3 in the lower bits, distance - 1 in the upper ones, which are as
//! many as the place in the chunk needs, four at least.
//!
//! Sources: Z2Dmp (`ZDMP_FILE_HEADER`, `ZDMP_BLOCK_HEADER`); MS-XCA 2.5.

use std::io::{self, Read};

/// What the files begin with.
pub(super) const MAGIC: &[u8] = b"ZDMP\0\x01\0\0";
/// Where the first block begins.
const FIRST: usize = 4096;
/// Bytes of a block.
const BLOCKS: std::ops::RangeInclusive<usize> = 4096..=64 << 20;
/// Bytes that a chunk stands for.
const CHUNK: usize = 4096;

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn word(b: &[u8], at: usize) -> u32 {
    let b = b.get(at..).and_then(<[u8]>::first_chunk);
    b.map_or(0, |b| u32::from_le_bytes(*b))
}

/// Reads the dump.
#[derive(Debug)]
pub(super) struct ZdmpReader<R> {
    inner: R,
    /// Bytes of a block; 0: the header was not read yet.
    block: usize,
    /// Bytes of the dump that are still to come.
    left: u64,
    packed: Vec<u8>,
    out: Vec<u8>,
    given: usize,
}

impl<R: Read> ZdmpReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            block: 0,
            left: 0,
            packed: Vec::new(),
            out: Vec::new(),
            given: 0,
        }
    }

    fn header(&mut self) -> io::Result<()> {
        let mut head = [0; FIRST];
        self.inner.read_exact(&mut head)?;
        let size = head.get(8..).and_then(<[u8]>::first_chunk);
        self.left = size.map_or(0, |b| u64::from_le_bytes(*b));
        let block = usize::try_from(word(&head, 16)).unwrap_or(usize::MAX);
        if !BLOCKS.contains(&block) {
            return Err(bad(format!("blocks of {block} bytes")));
        }
        match word(&head, 20) {
            0x0002_0001 => {}
            kind if kind & 0xffff == 2 => {
                return Err(bad(
                    "it is encrypted; decrypt it with the Comae toolkit first",
                ));
            }
            kind => {
                return Err(bad(format!(
                    "kind {} packed by method {}, and LZNT1 (1, 2) alone is known",
                    kind & 0xffff,
                    kind >> 16
                )));
            }
        }
        self.block = block;
        Ok(())
    }

    fn next_block(&mut self) -> io::Result<()> {
        let mut head = [0; 12];
        self.inner.read_exact(&mut head)?;
        let len = usize::try_from(word(&head, 4)).unwrap_or(usize::MAX);
        if &head[..4] != b"ZBLK" || len == 0 || len > self.block {
            return Err(bad(format!("expected a block, found {head:02x?}")));
        }
        self.packed.resize(len, 0);
        self.inner.read_exact(&mut self.packed)?;
        let said = word(&head, 8);
        // 32 bits of it are used.
        let is = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &self.packed) as u32;
        if is != said {
            return Err(bad(format!(
                "a block's checksum is {is:#010x} and should be {said:#010x}"
            )));
        }
        self.given = 0;
        self.out.clear();
        if len == self.block {
            self.out.extend_from_slice(&self.packed);
        } else {
            lznt1(&self.packed, self.block, &mut self.out).map_err(bad)?;
        }
        // The last block may be short, or hold more than there is of the dump.
        let want = self.left.min(self.block as u64);
        let have = self.out.len() as u64;
        if have < want {
            self.left = 0;
            return Err(bad(format!("a block holds {have} bytes instead of {want}")));
        }
        self.out
            .truncate(usize::try_from(want).unwrap_or(usize::MAX));
        self.left -= want;
        Ok(())
    }
}

impl<R: Read> Read for ZdmpReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.block == 0 {
            self.header()?;
        }
        if self.given == self.out.len() {
            if self.left == 0 {
                return Ok(0);
            }
            self.next_block()?;
        }
        let rest = self.out.get(self.given..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.given += n;
        Ok(n)
    }
}

/// Unpacks LZNT1 into `out`, `most` bytes at most.
fn lznt1(mut data: &[u8], most: usize, out: &mut Vec<u8>) -> Result<(), &'static str> {
    const CUT: &str = "a packed block ends in the middle of a chunk";
    while let Some((head, rest)) = data.split_first_chunk::<2>() {
        let head = u16::from_le_bytes(*head);
        if head == 0 {
            break;
        }
        // A chunk that stands for less than it could is followed by zeros, where another follows it.
        let start = out.len().next_multiple_of(CHUNK);
        out.resize(start, 0);
        let len = usize::from(head & 0xfff) + 1;
        let chunk = rest.get(..len).ok_or(CUT)?;
        data = &rest[len..];
        if head & 0x8000 == 0 {
            out.extend_from_slice(chunk);
        } else {
            packed_chunk(chunk, start, out)?;
        }
        if out.len() > most {
            return Err("a packed block holds more than it should");
        }
    }
    Ok(())
}

fn packed_chunk(chunk: &[u8], start: usize, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut at = 0;
    while let Some(flags) = chunk.get(at) {
        at += 1;
        for bit in 0..8 {
            let Some(b) = chunk.get(at) else {
                return Ok(());
            };
            if flags >> bit & 1 == 0 {
                out.push(*b);
                at += 1;
            } else {
                let pair = chunk.get(at..).and_then(<[u8]>::first_chunk);
                let pair = usize::from(u16::from_le_bytes(*pair.ok_or("a match is cut")?));
                at += 2;
                let place = out.len() - start;
                let bits = (usize::BITS - place.saturating_sub(1).leading_zeros()).max(4);
                let length = (pair & (0xffff >> bits)) + 3;
                let distance = (pair >> (16 - bits)) + 1;
                if distance > place || place + length > CHUNK {
                    return Err("a match leaves its chunk");
                }
                for _ in 0..length {
                    out.push(out[out.len() - distance]);
                }
            }
            if out.len() - start > CHUNK {
                return Err("a chunk holds more than 4 KiB");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of MS-XCA 3.3.
    #[test]
    fn the_example_of_the_specification() {
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2,
            0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let want = b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let mut out = Vec::new();
        assert_eq!(lznt1(&packed, 4096, &mut out), Ok(()));
        assert_eq!(out, want);
        for cut in 1..packed.len() {
            let _ = lznt1(&packed[..cut], 4096, &mut Vec::new());
        }
        assert!(lznt1(&packed, 100, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut head = MAGIC.to_vec();
        head.resize(FIRST, 0);
        head[8] = 1;
        let read = |head: &[u8]| {
            let mut out = Vec::new();
            let read = ZdmpReader::new(head).read_to_end(&mut out);
            read.expect_err("refused").to_string()
        };
        assert!(read(&head).contains("blocks of 0 bytes"));
        head[17] = 0x10;
        head[20] = 2;
        assert!(read(&head).contains("encrypted"));
        head[20] = 1;
        head[22] = 9;
        assert!(read(&head).contains("method 9"));
        head[22] = 2;
        assert!(!read(&head).is_empty());
    }
}
