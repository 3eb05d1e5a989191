//! Class bitmaps: 64 bytes in, one `u64` for each class out.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;
/// Blocks of a page, and one on either side.
pub(crate) const BLOCKS: usize = crate::page::PAGE / BLOCK + 2;

/// The classes of 64 bytes: bit n tells of byte n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    /// Letters, digits.
    pub(crate) alnum: u64,
    /// Digits.
    pub(crate) digit: u64,
    /// Letters, digits, `-` and `_`.
    pub(crate) named: u64,
    pub(crate) dot: u64,
    pub(crate) at: u64,
    pub(crate) colon: u64,
    pub(crate) slash: u64,
    pub(crate) brace: u64,
    pub(crate) zero: u64,
    /// Printable ASCII, tab, line ends, and whatever has the high bit.
    pub(crate) text: u64,
    /// Line feeds and carriage returns.
    pub(crate) end: u64,
}

/// Fills `out` with the classes of a page and of the blocks before and after it.
pub(crate) fn classify(bytes: &[u8; BLOCKS * BLOCK], out: &mut [Masks; BLOCKS]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as was just asked.
        unsafe { avx2::classify(bytes, out) };
        return;
    }
    portable(bytes, out);
}

fn portable(bytes: &[u8; BLOCKS * BLOCK], out: &mut [Masks; BLOCKS]) {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    for (m, b) in out.iter_mut().zip(blocks) {
        *m = Masks {
            alnum: mask(b, |x| {
                (x | 0x20).wrapping_sub(b'a') < 26 || x.wrapping_sub(b'0') < 10
            }),
            digit: mask(b, |x| x.wrapping_sub(b'0') < 10),
            named: mask(b, |x| x.is_ascii_alphanumeric() || x == b'-' || x == b'_'),
            dot: mask(b, |x| x == b'.'),
            at: mask(b, |x| x == b'@'),
            colon: mask(b, |x| x == b':'),
            slash: mask(b, |x| x == b'/'),
            brace: mask(b, |x| x == b'{'),
            zero: mask(b, |x| x == 0),
            text: mask(b, |x| {
                (x >= 0x20 && x != 0x7f) || x == b'\t' || x == b'\n' || x == b'\r'
            }),
            end: mask(b, |x| x == b'\n' || x == b'\r'),
        };
    }
}

/// One bit for each byte, eight at a time: the multiplication gathers the low bits of 8 bytes.
fn mask(block: &[u8; BLOCK], is: impl Fn(u8) -> bool) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    words.iter().rev().fold(0, |m, w| {
        let bits = u64::from_le_bytes(w.map(|b| u8::from(is(b))));
        m << 8 | bits.wrapping_mul(0x0102_0408_1020_4080) >> 56
    })
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, BLOCKS, Masks};
    use std::arch::x86_64::*;

    /// As [`super::portable`], several times as fast: every page that is not constant goes
    /// through here.
    #[target_feature(enable = "avx2")]
    pub(super) fn classify(bytes: &[u8; BLOCKS * BLOCK], out: &mut [Masks; BLOCKS]) {
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        for (m, b) in out.iter_mut().zip(blocks) {
            let (halves, _) = b.as_chunks::<32>();
            let (lo, hi) = (load(&halves[0]), load(&halves[1]));
            let (low, high) = (classes(lo), classes(hi));
            macro_rules! both {
                ($is:ident $(, $arg:expr)*) => {
                    bits($is(lo $(, $arg)*), $is(hi $(, $arg)*))
                };
            }
            *m = Masks {
                alnum: bits(from(low, 0x20), from(high, 0x20)),
                digit: bits(low, high),
                named: bits(from(low, 8), from(high, 8)),
                dot: both!(equal, b'.'),
                at: both!(equal, b'@'),
                colon: both!(equal, b':'),
                slash: both!(equal, b'/'),
                brace: both!(equal, b'{'),
                zero: both!(equal, 0),
                // What has the high bit is text, and of no class.
                text: bits(from(up::<5>(low), 0x20), from(up::<5>(high), 0x20)) | bits(lo, hi),
                end: both!(either, b'\n', b'\r'),
            };
        }
    }

    /// Classes of bytes below 0x80, each a set of high halves and one of low halves, so that a bit
    /// of a group of neighbours tells of a class:
    ///
    /// ```text
    /// 128 3x 0..9   64 4x 6x 1..f   32 5x 7x 0..a     digits; with them letters
    ///  16 5x f       8 2x d                           `_` and `-`
    ///   4 2x..6x     2 7x 0..e       1 0x 9 a d       text
    /// ```
    const HIGH: [u8; 16] = [
        1,
        0,
        8 | 4,
        128 | 4,
        64 | 4,
        32 | 16 | 4,
        64 | 4,
        32 | 2,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    const LOW: [u8; 16] = {
        let mut t = [4u8; 16];
        let mut i = 0;
        while i < 16 {
            if i < 10 {
                t[i] |= 128;
            }
            if i > 0 {
                t[i] |= 64;
            }
            if i < 11 {
                t[i] |= 32;
            }
            t[i] |= if i == 15 { 16 } else { 2 };
            if i == 13 {
                t[i] |= 8;
            }
            if i == 9 || i == 10 || i == 13 {
                t[i] |= 1;
            }
            i += 1;
        }
        t
    };

    /// The classes of each byte: nothing for those with the high bit.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn classes(v: __m256i) -> __m256i {
        let table = |t: &[u8; 16]| {
            let half = _mm_set_epi64x(
                i64::from_le_bytes([t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]]),
                i64::from_le_bytes([t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]]),
            );
            _mm256_broadcastsi128_si256(half)
        };
        let top = _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15));
        _mm256_and_si256(
            _mm256_shuffle_epi8(table(&LOW), v),
            _mm256_shuffle_epi8(table(&HIGH), top),
        )
    }

    /// Moves bits up; what comes from the neighbour lies below bit `N`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn up<const N: i32>(v: __m256i) -> __m256i {
        _mm256_slli_epi16::<N>(v)
    }

    /// Sets the high bit of bytes from `least` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn from(v: __m256i, least: u8) -> __m256i {
        _mm256_adds_epu8(v, _mm256_set1_epi8((128 - least) as i8))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(b: &[u8; 32]) -> __m256i {
        let (w, _) = b.as_chunks::<8>();
        let w: [i64; 4] = std::array::from_fn(|i| i64::from_le_bytes(w[i]));
        _mm256_set_epi64x(w[3], w[2], w[1], w[0])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits(lo: __m256i, hi: __m256i) -> u64 {
        let low = |v| u64::from(_mm256_movemask_epi8(v) as u32);
        low(lo) | low(hi) << 32
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn equal(v: __m256i, b: u8) -> __m256i {
        _mm256_cmpeq_epi8(v, _mm256_set1_epi8(b as i8))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn either(v: __m256i, a: u8, b: u8) -> __m256i {
        _mm256_or_si256(equal(v, a), equal(v, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_on_every_byte() {
        let bytes: [u8; BLOCKS * BLOCK] = std::array::from_fn(|i| ((i * 167) >> 3) as u8 ^ i as u8);
        assert!((0..=255u8).all(|b| bytes.contains(&b)));
        let (mut a, mut b) = ([Masks::default(); BLOCKS], [Masks::default(); BLOCKS]);
        classify(&bytes, &mut a);
        portable(&bytes, &mut b);
        assert_eq!(a, b);
        for (i, &x) in bytes.iter().enumerate() {
            let (m, bit) = (&a[i / BLOCK], 1 << (i % BLOCK));
            assert_eq!(m.alnum & bit != 0, x.is_ascii_alphanumeric(), "{x}");
            let named = x.is_ascii_alphanumeric() || x == b'-' || x == b'_';
            assert_eq!(m.named & bit != 0, named, "{x}");
            assert_eq!(m.digit & bit != 0, x.is_ascii_digit(), "{x}");
            let text = matches!(x, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
            assert_eq!(m.text & bit != 0, text, "{x}");
        }
    }
}
