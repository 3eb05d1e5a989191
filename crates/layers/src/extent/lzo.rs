//! LZO1X decompression.
//!
//! ```text
//! 0..15     after no literals: a run of literals; after 1..3: 2 bytes from 1 KiB; after 4 and more: 3 bytes from 2-3 KiB
//! 16..31    a match from 16-48 KiB; distance 0 ends the stream
//! 32..63    a match from 16 KiB
//! 64..255   3 to 8 bytes from 2 KiB
//! ```
//!
//! The two lowest bits of a match say how many literals follow it. Lengths that don't fit go on in bytes of which zeros count
//! 255 each.
//!
//! Source: Linux `Documentation/staging/lzo.rst`.

/// Why a stream can't be unpacked.
pub(super) type Wrong = &'static str;

struct Stream<'a> {
    src: &'a [u8],
    at: usize,
    out: &'a mut [u8],
    len: usize,
}

const CUT: Wrong = "the stream is cut";
const LONG: Wrong = "the stream holds more than it should";

impl Stream<'_> {
    fn byte(&mut self) -> Result<usize, Wrong> {
        let b = self.src.get(self.at).ok_or(CUT)?;
        self.at += 1;
        Ok(usize::from(*b))
    }

    fn half(&mut self) -> Result<usize, Wrong> {
        let low = self.byte()?;
        Ok(low | self.byte()? << 8)
    }

    /// A length of which `short` bits lie in the instruction and were `n`.
    fn length(&mut self, n: usize, most: usize) -> Result<usize, Wrong> {
        if n > 0 {
            return Ok(n);
        }
        let mut len = most;
        loop {
            let b = self.byte()?;
            if b > 0 {
                return Ok(len + b);
            }
            len += 255;
            if len > self.out.len() {
                return Err(LONG);
            }
        }
    }

    fn literals(&mut self, n: usize) -> Result<(), Wrong> {
        let from = self.src.get(self.at..self.at + n).ok_or(CUT)?;
        let to = self.out.get_mut(self.len..self.len + n).ok_or(LONG)?;
        to.copy_from_slice(from);
        self.at += n;
        self.len += n;
        Ok(())
    }

    fn matched(&mut self, distance: usize, n: usize) -> Result<(), Wrong> {
        let from = self
            .len
            .checked_sub(distance)
            .ok_or("a match begins before the stream")?;
        let end = self.len + n;
        if end > self.out.len() {
            return Err(LONG);
        }
        if distance >= n {
            self.out.copy_within(from..from + n, self.len);
        } else {
            // What was just written is copied again.
            for i in 0..n {
                self.out[self.len + i] = self.out[from + i];
            }
        }
        self.len = end;
        Ok(())
    }
}

/// Unpacks a stream; gives the bytes of `out` that it filled.
pub(super) fn decompress(src: &[u8], out: &mut [u8]) -> Result<usize, Wrong> {
    let mut s = Stream {
        src,
        at: 0,
        out,
        len: 0,
    };
    // Literals copied last; 4 stands for more.
    let mut before = 0;
    let first = usize::from(*src.first().ok_or(CUT)?);
    if first > 17 {
        s.at = 1;
        s.literals(first - 17)?;
        before = (first - 17).min(4);
    }
    loop {
        let op = s.byte()?;
        let (distance, len, next) = match op {
            0..=15 if before == 0 => {
                let n = s.length(op, 15)? + 3;
                s.literals(n)?;
                before = 4;
                continue;
            }
            0..=15 => {
                let d = (s.byte()? << 2) + (op >> 2);
                if before == 4 {
                    (d + 2049, 3, op & 3)
                } else {
                    (d + 1, 2, op & 3)
                }
            }
            16..=31 => {
                let len = s.length(op & 7, 7)? + 2;
                let d = s.half()?;
                let distance = ((op & 8) << 11) + (d >> 2);
                if distance == 0 {
                    return Ok(s.len);
                }
                (distance + 16384, len, d & 3)
            }
            32..=63 => {
                let len = s.length(op & 31, 31)? + 2;
                let d = s.half()?;
                ((d >> 2) + 1, len, d & 3)
            }
            _ => {
                let d = (s.byte()? << 3) + ((op >> 2) & 7);
                (d + 1, (op >> 5) + 1, op & 3)
            }
        };
        s.matched(distance, len)?;
        s.literals(next)?;
        before = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(src: &[u8], len: usize) -> Result<Vec<u8>, Wrong> {
        let mut out = vec![0; len];
        let n = decompress(src, &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    /// Streams put together by hand from the description.
    #[test]
    fn instructions_mean_what_the_description_says() {
        // Four literals by the first byte, then the end.
        assert_eq!(
            unpacked(&[21, 1, 2, 3, 4, 17, 0, 0], 9),
            Ok(vec![1, 2, 3, 4])
        );
        // A run of 3 + 1 literals, a match of 3 bytes at distance 4 with one literal behind, the end.
        assert_eq!(
            unpacked(&[1, 9, 8, 7, 6, 0x4c | 1, 0, 5, 17, 0, 0], 9),
            Ok(vec![9, 8, 7, 6, 9, 8, 7, 5])
        );
        // A page of one byte: a literal run and a long match that copies itself.
        let mut zeros = vec![18, 0, 32];
        zeros.extend([0; 15]);
        // 4095 = 2 + 31 + 15 * 255 + 237
        zeros.extend([237, 0, 0, 17, 0, 0]);
        assert_eq!(unpacked(&zeros, 4096), Ok(vec![0; 4096]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(unpacked(&[], 4), Err(CUT));
        assert_eq!(unpacked(&[21, 1, 2], 4), Err(CUT));
        assert_eq!(unpacked(&[21, 1, 2, 3, 4, 17, 0, 0], 3), Err(LONG));
        assert!(unpacked(&[18, 1, 0x5c, 9, 17, 0, 0], 9).is_err());
    }
}
