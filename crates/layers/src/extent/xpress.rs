//! Xpress, the compression of Windows: plain LZ77, and LZ77 with Huffman codes.
//!
//! ```text
//! plain     32 flags (u32, from the highest bit on): 0 a byte as it is, 1 a match of two bytes: distance - 1 in 13 bits, length
//!           - 3 in the lower 3; 7: a half byte follows, of a byte that the next such match shares; 15: a byte; 255: u16; 0: u32
//! Huffman   blocks of 64 KiB: 512 lengths of codes, four bits each; words of 16 bits, codes from the highest bit on.
//!           Symbols: 0 to 255 a byte; from 256 on a match: bits of the distance in 4 bits, length - 3 in 4 bits; 15: a byte, and so on
//! ```
//!
//! Source: MS-XCA, "Xpress Compression Algorithm", 2.1 to 2.4.

type Wrong = &'static str;

const CUT: Wrong = "it ends in the middle of an instruction";
const LONG: Wrong = "it holds more than it should";
const FAR: Wrong = "a match reaches back before the beginning";
const CODES: Wrong = "its Huffman codes contradict each other";
const CODE: Wrong = "it has a code that is none of its own";
const LENGTH: Wrong = "a match has an impossible length";

/// Symbols of the Huffman code.
const SYMBOLS: usize = 512;
/// Bits of a code at most.
const BITS: u32 = 15;
/// Bytes that one set of codes stands for.
const BLOCK: usize = 64 << 10;
/// Bytes of the lengths of the codes.
const LENGTHS: usize = SYMBOLS / 2;
/// Words behind the end that a decoder looks at without need of them.
const AHEAD: u32 = 2;

/// Where bytes come from.
struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<usize, Wrong> {
        let b = self.data.get(self.at).ok_or(CUT)?;
        self.at += 1;
        Ok(usize::from(*b))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let b = self.data.get(self.at..).and_then(<[u8]>::first_chunk);
        self.at += N;
        b.copied().ok_or(CUT)
    }

    /// A length of 16 bits, or of 32 where these are 0; `least` is what smaller forms could have said.
    fn long(&mut self, least: usize) -> Result<usize, Wrong> {
        let n = match u16::from_le_bytes(self.take()?) {
            0 => usize::try_from(u32::from_le_bytes(self.take()?)).map_err(|_| LENGTH)?,
            n => usize::from(n),
        };
        n.checked_sub(least).map(|n| n + least).ok_or(LENGTH)
    }
}

/// Copies a match to `out[to..to + len]`.
fn copy(out: &mut [u8], to: usize, distance: usize, len: usize) -> Result<usize, Wrong> {
    let from = to.checked_sub(distance).ok_or(FAR)?;
    let end = to.checked_add(len).filter(|e| *e <= out.len());
    let end = end.ok_or(LONG)?;
    if distance >= len {
        out.copy_within(from..from + len, to);
    } else {
        for i in to..end {
            out[i] = out[i - distance];
        }
    }
    Ok(end)
}

/// Fills `out` from plain LZ77.
pub(super) fn plain(data: &[u8], out: &mut [u8]) -> Result<(), Wrong> {
    let mut s = Input { data, at: 0 };
    let (mut flags, mut left) = (0u32, 0u32);
    // The byte whose upper half is the length of the next match that needs one.
    let mut half: Option<usize> = None;
    let mut done = 0;
    while done < out.len() {
        if left == 0 {
            flags = u32::from_le_bytes(s.take()?);
            left = 32;
        }
        left -= 1;
        if flags >> left & 1 == 0 {
            out[done] = s.byte()? as u8;
            done += 1;
            continue;
        }
        let word = usize::from(u16::from_le_bytes(s.take()?));
        let mut len = word & 7;
        if len == 7 {
            let more = match half.take() {
                Some(b) => b >> 4,
                None => {
                    let b = s.byte()?;
                    half = Some(b);
                    b & 15
                }
            };
            len += more;
            if more == 15 {
                len = match s.byte()? {
                    255 => s.long(15 + 7)?,
                    n => n + 15 + 7,
                };
            }
        }
        done = copy(out, done, (word >> 3) + 1, len + 3)?;
    }
    Ok(())
}

/// Unpacks LZ77 with Huffman codes; keeps the memory for its table.
#[derive(Debug, Default)]
pub(super) struct Huffman {
    /// For each value of the next 15 bits: the symbol, and the bits of its code above it; 0 where there is none.
    table: Vec<u16>,
}

/// The next bits: 16 at least, 32 at most.
struct Bits<'a> {
    input: Input<'a>,
    next: u32,
    extra: u32,
    behind: u32,
}

impl<'a> Bits<'a> {
    fn new(input: Input<'a>) -> Result<Self, Wrong> {
        let mut s = Self {
            input,
            next: 0,
            extra: 16,
            behind: 0,
        };
        s.next = s.word()? << 16 | s.word()?;
        Ok(s)
    }

    /// Words behind the end are zeros as far as they are looked at without need.
    fn word(&mut self) -> Result<u32, Wrong> {
        match self.input.take::<2>() {
            Ok(b) => Ok(u32::from(u16::from_le_bytes(b))),
            Err(e) => {
                self.behind += 1;
                if self.behind > AHEAD { Err(e) } else { Ok(0) }
            }
        }
    }

    fn skip(&mut self, n: u32) -> Result<(), Wrong> {
        // At most 15 at a time.
        self.next <<= n;
        match self.extra.checked_sub(n) {
            Some(e) => self.extra = e,
            None => {
                let by = n - self.extra;
                self.next |= self.word()? << by;
                self.extra = 16 - by;
            }
        }
        Ok(())
    }

    fn take(&mut self, n: u32) -> Result<usize, Wrong> {
        let v = if n == 0 { 0 } else { self.next >> (32 - n) };
        self.skip(n)?;
        Ok(v as usize)
    }
}

impl Huffman {
    /// Lays out the codes: shorter ones first, of equal ones the lesser symbol first.
    fn codes(&mut self, lengths: &[u8]) -> Result<(), Wrong> {
        self.table.clear();
        let room = 1usize << BITS;
        for len in 1..=BITS {
            for symbol in 0..SYMBOLS {
                let of = u32::from(lengths[symbol / 2] >> (symbol % 2 * 4) & 15);
                if of == len {
                    let end = self.table.len() + (1 << (BITS - len));
                    if end > room {
                        return Err(CODES);
                    }
                    // Nine bits of the symbol and four of the length.
                    self.table.resize(end, symbol as u16 | (len as u16) << 9);
                }
            }
        }
        self.table.resize(room, 0);
        Ok(())
    }

    /// Fills `out`.
    pub(super) fn unpack(&mut self, data: &[u8], out: &mut [u8]) -> Result<(), Wrong> {
        let mut at = 0;
        let mut done = 0;
        while done < out.len() {
            let lengths = data.get(at..at + LENGTHS).ok_or(CUT)?;
            self.codes(lengths)?;
            let mut s = Bits::new(Input {
                data,
                at: at + LENGTHS,
            })?;
            let end = (done + BLOCK).min(out.len());
            while done < end {
                let code = self.table[(s.next >> (32 - BITS)) as usize];
                if code == 0 {
                    return Err(CODE);
                }
                s.skip(u32::from(code >> 9))?;
                let symbol = usize::from(code) & (SYMBOLS - 1);
                let Some(matched) = symbol.checked_sub(256) else {
                    out[done] = symbol as u8;
                    done += 1;
                    continue;
                };
                let mut len = matched & 15;
                if len == 15 {
                    len = match s.input.byte()? {
                        255 => s.input.long(15)?,
                        n => n + 15,
                    };
                }
                let bits = (matched >> 4) as u32;
                let distance = (1 << bits) + s.take(bits)?;
                done = copy(out, done, distance, len + 3)?;
            }
            at = s.input.at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).expect("hex"), 16);
        digits
            .chunks_exact(2)
            .map(|d| byte(d).expect("hex"))
            .collect()
    }

    /// The lengths of these symbols, all others 0.
    fn lengths(of: &[(usize, u8)]) -> Vec<u8> {
        let mut out = vec![0; LENGTHS];
        for (symbol, len) in of {
            out[symbol / 2] |= len << (symbol % 2 * 4);
        }
        out
    }

    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

    /// The examples of MS-XCA 3.1.
    #[test]
    fn plain_examples_of_the_specification() {
        let mut out = [0; 26];
        let packed = [&hex("3f000000")[..], ALPHABET].concat();
        assert_eq!(plain(&packed, &mut out), Ok(()));
        assert_eq!(out, ALPHABET);
        let mut out = [0; 300];
        let packed = hex("ffffff1f61626317000fff2601");
        assert_eq!(plain(&packed, &mut out), Ok(()));
        assert_eq!(out[..], b"abc".repeat(100));
        for cut in 0..packed.len() {
            assert_eq!(plain(&packed[..cut], &mut out), Err(CUT), "{cut}");
        }
        assert_eq!(plain(&packed, &mut [0; 299]), Err(LONG));
        assert_eq!(plain(&hex("ffffff1f6162631800"), &mut out), Err(FAR));
    }

    /// The examples of MS-XCA 3.2.
    #[test]
    fn huffman_examples_of_the_specification() {
        // Codes of five and four bits for the letters, of four for the end.
        let mut packed = vec![0; 48];
        packed.extend(hex("50 5555 5555 5555 5555 5555 45 44 04"));
        packed.resize(128, 0);
        packed.push(4);
        packed.resize(LENGTHS, 0);
        packed.extend(hex("d8523ed794115be9195ff9d67cdf8d0400000000"));
        let mut h = Huffman::default();
        let mut out = [0; 26];
        assert_eq!(h.unpack(&packed, &mut out), Ok(()));
        assert_eq!(out, ALPHABET);
        for cut in 0..LENGTHS + 14 {
            assert!(h.unpack(&packed[..cut], &mut out).is_err(), "{cut}");
        }
        // The three letters, the end, and a match of 15 + 3 bytes or more at a distance of two bits.
        let codes = [(97, 3), (98, 3), (99, 2), (256, 2), (287, 2)];
        let mut packed = lengths(&codes);
        packed.extend(hex("a8dc0000ff2601"));
        let mut out = [0; 300];
        assert_eq!(h.unpack(&packed, &mut out), Ok(()));
        assert_eq!(out[..], b"abc".repeat(100));
        assert_eq!(h.unpack(&packed, &mut [0; 299]), Err(LONG));
        // Two codes of one bit and a third; a code that nothing has.
        let three = lengths(&[(1, 1), (2, 1), (3, 1)]);
        assert_eq!(h.unpack(&three, &mut out), Err(CODES));
        let mut one = lengths(&[(1, 1)]);
        one.extend([0xff; 8]);
        assert_eq!(h.unpack(&one, &mut out), Err(CODE));
    }
}
