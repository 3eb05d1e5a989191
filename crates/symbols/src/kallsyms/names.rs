//! The compressed names: for each symbol a length and that many tokens; the first character of the
//! text is the kind of symbol, as `nm` has it.
//!
//! ```text
//! < 6.1   u8 length, tokens
//! 6.1     length below 0x80: u8; else (first & 0x7f) | second << 7
//! ```
//!
//! Source: Linux, `scripts/kallsyms.c`, `kernel/kallsyms.c`.

use super::error::{KallsymsError, malformed};
use super::tokens::Tokens;
use ramsift_layers::PhysAddr;

/// Symbols of a kernel at most; the largest builds have about half a million.
pub(super) const MAX_SYMBOLS: usize = 4_000_000;
/// Characters of a name at most: the kernel's limit is 512, kind and terminator included.
const MAX_NAME: usize = 1024;
/// Characters of all names at most. Real ones have 2 to 5 million.
const MAX_TEXT: usize = 64 << 20;

/// How a name's length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameLength {
    /// One byte.
    Byte,
    /// One byte, or two when the first has its high bit set (6.1 and later).
    Uleb128,
}

impl NameLength {
    /// Bytes of the length, and tokens that follow.
    pub(super) fn read(self, b: &[u8], at: usize) -> Option<(usize, usize)> {
        let first = *b.get(at)?;
        if self == Self::Uleb128 && first & 0x80 != 0 {
            let second = *b.get(at + 1)?;
            return Some((2, usize::from(first & 0x7f) | usize::from(second) << 7));
        }
        Some((1, usize::from(first)))
    }

    /// Where the `n` names from `at` on end. `None` if one leaves the slice or is empty.
    pub(super) fn skip(self, b: &[u8], mut at: usize, n: usize) -> Option<usize> {
        for _ in 0..n {
            let (head, tokens) = self.read(b, at)?;
            if tokens == 0 {
                return None;
            }
            at = at.checked_add(head + tokens)?;
        }
        (at <= b.len()).then_some(at)
    }
}

/// One name in [`Names::text`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) at: u32,
    pub(super) len: u16,
    pub(super) kind: u8,
}

/// All names, decoded.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) text: String,
    pub(super) entries: Vec<Name>,
}

impl Names {
    /// Decodes `count` names from the front of `b`, which lies at `pa`.
    pub(super) fn decode(
        b: &[u8],
        pa: PhysAddr,
        count: usize,
        tokens: &Tokens,
        how: NameLength,
    ) -> Result<Self, KallsymsError> {
        let mut text: Vec<u8> = Vec::with_capacity(count.saturating_mul(26).min(8 << 20));
        let mut entries = Vec::with_capacity(count.min(b.len() / 2));
        let mut at = 0;
        for i in 0..count {
            let here = || pa.saturating_add(at as u64);
            let (head, len) = how.read(b, at).unwrap_or((0, 0));
            let body = b.get(at + head..at + head + len).unwrap_or_default();
            let Some((first, rest)) = body.split_first() else {
                let found = format!("{len} tokens and {} bytes", b.len().saturating_sub(at));
                return Err(malformed("name", here(), format!("name {i}"), found));
            };
            let kind = tokens.get(*first);
            let start = text.len();
            let Some((kind, tail)) = kind.split_first() else {
                return Err(malformed("name", here(), "a kind", "an empty token"));
            };
            if !kind.is_ascii_alphabetic() && *kind != b'?' {
                let found = char::from(*kind);
                return Err(malformed("name", here(), "a letter as kind", found));
            }
            text.extend_from_slice(tail);
            for t in rest {
                text.extend_from_slice(tokens.get(*t));
                if text.len() - start > MAX_NAME {
                    let most = format!("{MAX_NAME} characters at most");
                    return Err(malformed("name", here(), most, "more"));
                }
            }
            let (Ok(name_at), Ok(name_len)) =
                (u32::try_from(start), u16::try_from(text.len() - start))
            else {
                return Err(malformed("name", here(), "a sane length", text.len()));
            };
            if text.len() > MAX_TEXT {
                let most = format!("{MAX_TEXT} characters of names at most");
                return Err(malformed("names", here(), most, "more"));
            }
            entries.push(Name {
                at: name_at,
                len: name_len,
                kind: *kind,
            });
            at += head + len;
        }
        let text = String::from_utf8(text)
            .map_err(|e| malformed("names", pa, "ASCII", e.utf8_error().to_string()))?;
        Ok(Self { text, entries })
    }
}
