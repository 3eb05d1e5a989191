//! Byte classes, and characters that are one byte or two bytes (UTF-16LE) apart.

/// Letters and digits.
pub(crate) const ALNUM: u8 = 1;
/// Hexadecimal digits.
pub(crate) const HEX: u8 = 2;
/// What host names are made of, and `_`, which tells that something is no host name.
pub(crate) const HOST: u8 = 4;
/// What the part of an e-mail address before the `@` is made of.
pub(crate) const LOCAL: u8 = 8;
/// What URLs are made of, less `'`, which ends strings far more often than it is part of a URL.
pub(crate) const URL: u8 = 16;
/// Printable ASCII and the tab.
pub(crate) const LINE: u8 = 32;
/// Digits.
pub(crate) const DIGIT: u8 = 64;
/// Letters.
pub(crate) const ALPHA: u8 = 128;

/// The classes of each byte.
pub(crate) static CLASS: [u8; 256] = build();

const fn build() -> [u8; 256] {
    let mut t = [0u8; 256];
    let mut i = 0;
    while i < 128 {
        let b = i as u8;
        let mut c = 0;
        if b.is_ascii_alphanumeric() {
            c |= ALNUM | HOST | LOCAL | URL;
        }
        if b.is_ascii_digit() {
            c |= DIGIT;
        }
        if b.is_ascii_alphabetic() {
            c |= ALPHA;
        }
        if b.is_ascii_hexdigit() {
            c |= HEX;
        }
        if matches!(b, b'.' | b'-' | b'_') {
            c |= HOST | LOCAL | URL;
        }
        if matches!(b, b'%' | b'+') {
            c |= LOCAL;
        }
        if matches!(
            b,
            b'~' | b':'
                | b'/'
                | b'?'
                | b'#'
                | b'['
                | b']'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b'%'
        ) {
            c |= URL;
        }
        if (b >= 0x20 && b < 0x7f) || b == b'\t' {
            c |= LINE;
        }
        t[i] = c;
        i += 1;
    }
    t
}

/// Length of the printable ASCII and tabs, with `ENDS` line ends too, at the start of `bytes`.
pub(crate) fn printable_len<const ENDS: bool>(bytes: &[u8]) -> usize {
    let odd = |b: u8| {
        let printable = b.wrapping_sub(0x20) < 0x5f;
        !(printable | (b == b'\t') | (ENDS & ((b == b'\n') | (b == b'\r'))))
    };
    // Whole chunks first, without a branch for each byte, so that it becomes vector code.
    let (chunks, _) = bytes.as_chunks::<32>();
    let whole = chunks
        .iter()
        .take_while(|c| !c.iter().fold(false, |a, &b| a | odd(b)))
        .count();
    let at = whole * 32;
    at + bytes[at..]
        .iter()
        .position(|&b| odd(b))
        .unwrap_or(bytes.len() - at)
}

/// The character that UTF-8 begins with, and its bytes (RFC 3629 section 4).
#[inline]
pub(crate) fn utf8_char(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    let more = |i: usize| {
        let b = *bytes.get(i)?;
        (b & 0xc0 == 0x80).then_some(u32::from(b & 0x3f))
    };
    let (n, least, code) = match first {
        0..0x80 => return Some((char::from(first), 1)),
        0xc2..0xe0 => (2, 0x80, u32::from(first & 0x1f) << 6 | more(1)?),
        0xe0..0xf0 => (
            3,
            0x800,
            u32::from(first & 0xf) << 12 | more(1)? << 6 | more(2)?,
        ),
        0xf0..0xf5 => (
            4,
            0x1_0000,
            u32::from(first & 7) << 18 | more(1)? << 12 | more(2)? << 6 | more(3)?,
        ),
        _ => return None,
    };
    // Nor the halves of UTF-16, nor what is beyond the last one.
    char::from_u32(code)
        .filter(|_| code >= least)
        .map(|c| (c, n))
}

/// True when `b` is in one of the classes.
#[inline(always)]
pub(crate) fn is(b: u8, class: u8) -> bool {
    CLASS[b as usize] & class != 0
}

/// Bytes as characters that are `STEP` bytes apart: 1, or 2 for UTF-16LE.
#[derive(Clone, Copy)]
pub(crate) struct Chars<'a, const STEP: usize>(pub(crate) &'a [u8]);

impl<const STEP: usize> Chars<'_, STEP> {
    /// The character at byte `i`; 0 where there is none or it is not ASCII.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> u8 {
        if STEP == 2 && self.0.get(i + 1) != Some(&0) {
            return 0;
        }
        self.0.get(i).copied().unwrap_or(0)
    }

    /// The character before byte `i`.
    #[inline(always)]
    pub(crate) fn before(&self, i: usize) -> u8 {
        i.checked_sub(STEP).map_or(0, |j| self.at(j))
    }

    /// The first byte of the run of `class` that reaches back from `i`, which need not be in it.
    /// `None` when the run is longer than `max` characters.
    #[inline(always)]
    pub(crate) fn back(&self, i: usize, class: u8, max: usize) -> Option<usize> {
        if STEP == 1 {
            let end = i.min(self.0.len());
            if end < i {
                return Some(i);
            }
            let run = self.0[end.saturating_sub(max + 1)..end].iter().rev();
            let n = run.take_while(|&&b| is(b, class)).count();
            return (n <= max).then_some(i - n);
        }
        let mut p = i;
        for _ in 0..=max {
            if !is(self.before(p), class) {
                return Some(p);
            }
            p -= STEP;
        }
        None
    }

    /// The end of the run of `class` that begins at `i`; at most `max` characters are looked at.
    #[inline(always)]
    pub(crate) fn forward(&self, i: usize, class: u8, max: usize) -> usize {
        if STEP == 1 {
            let rest = self.0.get(i..).unwrap_or_default().iter().take(max);
            return i + rest.take_while(|&&b| is(b, class)).count();
        }
        let mut p = i;
        for _ in 0..max {
            if !is(self.at(p), class) {
                break;
            }
            p += STEP;
        }
        p
    }

    /// The character at byte `i` and the bytes that it takes, whatever its script.
    pub(crate) fn char_at(&self, i: usize) -> Option<(char, usize)> {
        if STEP == 1 {
            return utf8_char(self.0.get(i..)?);
        }
        let unit = |p: usize| Some(u16::from_le_bytes([*self.0.get(p)?, *self.0.get(p + 1)?]));
        let first = unit(i)?;
        if !(0xd800..0xe000).contains(&first) {
            return char::from_u32(first.into()).map(|c| (c, 2));
        }
        let c = char::decode_utf16([first, unit(i + 2)?]).next()?.ok()?;
        Some((c, 4))
    }

    /// The character that ends at byte `i`, and the bytes that it takes.
    pub(crate) fn char_before(&self, i: usize) -> Option<(char, usize)> {
        if STEP == 1 {
            let mut n = 1;
            while n < 4 && self.0.get(i.checked_sub(n)?)? & 0xc0 == 0x80 {
                n += 1;
            }
            return self.char_at(i.checked_sub(n)?).filter(|c| c.1 == n);
        }
        [2, 4]
            .iter()
            .find_map(|n| self.char_at(i.checked_sub(*n)?).filter(|c| c.1 == *n))
    }

    /// True when what is before byte `i` is beyond ASCII.
    #[inline(always)]
    pub(crate) fn beyond_before(&self, i: usize) -> bool {
        i.checked_sub(STEP).is_some_and(|p| self.beyond(p))
    }

    /// True when what is at byte `i` is beyond ASCII.
    #[inline(always)]
    pub(crate) fn beyond(&self, i: usize) -> bool {
        let high = |b: Option<&u8>| b.is_some_and(|b| *b >= 0x80);
        let second = STEP == 2 && self.0.get(i + 1).is_some_and(|b| *b != 0);
        high(self.0.get(i)) || second
    }

    /// The characters from byte `from` to byte `to`, whatever their script.
    pub(crate) fn string(&self, from: usize, to: usize) -> String {
        if STEP == 1
            && let Some(Ok(text)) = self.0.get(from..to).map(std::str::from_utf8)
        {
            return text.to_owned();
        }
        let mut out = String::with_capacity(to.saturating_sub(from) / STEP);
        let mut p = from;
        while p < to {
            let Some((c, n)) = self.char_at(p) else { break };
            out.push(c);
            p += n;
        }
        out
    }

    /// The characters from byte `from` to byte `to`, all of them ASCII.
    pub(crate) fn text<'b>(&self, from: usize, to: usize, buf: &'b mut Vec<u8>) -> &'b str {
        buf.clear();
        let bytes = self.0.get(from..to).unwrap_or_default();
        buf.extend(bytes.iter().step_by(STEP).copied());
        std::str::from_utf8(buf).unwrap_or_default()
    }
}
