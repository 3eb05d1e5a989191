//! The token table: 256 NUL-terminated strings, and the 256 `u16` offsets into it.
//!
//! A byte of a compressed name stands for a token. Bytes that names use as themselves stay: token
//! 0x30 is `0`, 0x31 is `1`, and so on, which is what makes the table easy to find.
//!
//! Source: Linux, `scripts/kallsyms.c` (writes it), `kernel/kallsyms.c` (reads it).

use super::error::{KallsymsError, malformed, read};
use crate::phys::{exact, u16_at, window};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::PhysRead;

/// The bytes to look for in an image: the tokens of the ten digits, which follow each other.
pub const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Token number of `0`.
const DIGIT_0: usize = 0x30;
/// Characters of a token at most. They come from names, and names have 512 at most.
const MAX_TOKEN: usize = 512;
/// Bytes of a table at most: `u16` offsets reach no further, plus the last token.
const MAX_TABLE: usize = (1 << 16) + MAX_TOKEN;
/// Bytes of the index.
pub(super) const INDEX_BYTES: usize = 512;

/// A decoded token table.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    text: Vec<u8>,
    spans: Vec<(u32, u32)>,
    /// First byte of the table.
    pub(super) table: PhysAddr,
    /// First byte of the index.
    pub(super) index: PhysAddr,
}

impl Tokens {
    /// The characters of a token.
    pub(super) fn get(&self, byte: u8) -> &[u8] {
        let (a, b) = self.spans[usize::from(byte)];
        &self.text[a as usize..b as usize]
    }

    /// Reads a table and its index whose places are known.
    pub(super) fn at(
        mem: &dyn PhysRead,
        table: PhysAddr,
        index: PhysAddr,
    ) -> Result<Self, KallsymsError> {
        let len = usize::try_from(index.since(table)).unwrap_or(usize::MAX);
        if !(256..=MAX_TABLE + 8).contains(&len) {
            return Err(malformed(
                "token_index",
                index,
                format!("256 to {MAX_TABLE} bytes behind the token table at {table}"),
                format!("{len} bytes"),
            ));
        }
        let text = exact(mem, table, len).map_err(read("token_table"))?;
        let idx = exact(mem, index, INDEX_BYTES).map_err(read("token_index"))?;
        let (spans, _) = strings(&text, 0, table)?;
        for (i, span) in spans.iter().enumerate() {
            let want = u16_at(&idx, 2 * i).map(u32::from);
            if want != Some(span.0) {
                return Err(malformed(
                    "token_index",
                    index.saturating_add(2 * i as u64),
                    format!("offset {} of token {i}", span.0),
                    format!("{want:?}"),
                ));
            }
        }
        printable(&text, &spans, table)?;
        Ok(Self {
            text,
            spans,
            table,
            index,
        })
    }

    /// Reads a table and its index of which bytes may be overwritten. A token that is not whole is empty, which no
    /// token of a kernel is. Where the index is torn the strings themselves tell where they begin.
    pub(super) fn damaged(
        mem: &dyn PhysRead,
        table: PhysAddr,
        index: PhysAddr,
    ) -> Result<Self, KallsymsError> {
        if let Ok(sound) = Self::at(mem, table, index) {
            return Ok(sound);
        }
        let len = usize::try_from(index.since(table)).unwrap_or(usize::MAX);
        if !(256..=MAX_TABLE + 8).contains(&len) {
            let expected = format!("256 to {MAX_TABLE} bytes behind the token table at {table}");
            return Err(malformed("token_index", index, expected, len));
        }
        let text = window(mem, table, len);
        let idx = window(mem, index, INDEX_BYTES);
        let starts: Vec<usize> = (0..256)
            .map(|i| usize::from(u16_at(&idx, 2 * i).unwrap_or(0)))
            .collect();
        let rises = starts.first() == Some(&0) && starts.windows(2).all(|w| w[0] < w[1]);
        let mut spans: Spans = if rises {
            let ends = starts.iter().skip(1).copied();
            let last = starts.last().copied().unwrap_or(0);
            let rest = text.get(last..).unwrap_or_default();
            let end = last + rest.iter().position(|b| *b == 0).unwrap_or(0) + 1;
            let both = starts.iter().zip(ends.chain([end]));
            both.map(|(a, b)| {
                (
                    u32::try_from(*a).unwrap_or(0),
                    u32::try_from(b - 1).unwrap_or(0),
                )
            })
            .collect()
        } else {
            let (spans, _) = strings(&text, 0, table)?;
            printable(&text, &spans, table)?;
            spans
        };
        for span in &mut spans {
            let whole = text.get(span.0 as usize..span.1 as usize);
            let is = whole.is_some_and(|t| t.iter().all(|c| (0x21..0x7f).contains(c)));
            if !is || text.get(span.1 as usize) != Some(&0) {
                *span = (0, 0);
            }
        }
        let lost = spans.iter().filter(|s| s.0 == s.1).count();
        if lost > 192 {
            let expected = "64 tokens at least";
            return Err(malformed("token table", table, expected, 256 - lost));
        }
        Ok(Self {
            text,
            spans,
            table,
            index,
        })
    }

    /// Finds the table around a hit of [`DIGITS`]. The index, which must repeat the offsets of all
    /// 256 strings, proves it and says where the first one begins.
    pub(super) fn around(mem: &dyn PhysRead, digits: PhysAddr) -> Result<Self, KallsymsError> {
        let back = MAX_TABLE.min(usize::try_from(digits.0).unwrap_or(MAX_TABLE));
        let from = digits.saturating_sub(back as u64);
        let text = window(mem, from, back + MAX_TABLE + INDEX_BYTES + 8);
        if text.get(back..back + DIGITS.len()) != Some(DIGITS) {
            let found = text.get(back..back + 8).unwrap_or_default();
            let found = found.escape_ascii().to_string();
            return Err(malformed(
                "token table",
                digits,
                "0\\0 1\\0 ... 9\\0",
                found,
            ));
        }
        // The terminators before `0`: that of token 0x2f is at `back - 1`, that of token 0 is the
        // 48th. Token 1 begins behind that.
        let mut ends = text[..back].iter().rposition(|b| *b == 0);
        for _ in 1..DIGIT_0 {
            ends = ends.and_then(|e| text[..e].iter().rposition(|b| *b == 0));
        }
        let Some(first_end) = ends else {
            return Err(malformed(
                "token table",
                digits,
                "48 strings before",
                "fewer",
            ));
        };
        // Where token 0 begins can't be told from the strings: what lies before it need not end
        // in NUL. So take the strings from token 1 on, and let the index tell.
        let token_1 = first_end + 1;
        let mut at = token_1;
        for i in 1..256 {
            let end = text[at..]
                .iter()
                .take(MAX_TOKEN + 1)
                .position(|b| *b == 0)
                .ok_or_else(|| long(i, from, at))?;
            at += end + 1;
        }
        for align in [8, 4, 2] {
            let pa = (from.0 + at as u64).next_multiple_of(align);
            let idx = usize::try_from(pa - from.0).unwrap_or(usize::MAX);
            let (Some(0), Some(one)) = (u16_at(&text, idx), u16_at(&text, idx.saturating_add(2)))
            else {
                continue;
            };
            let Some(start) = token_1.checked_sub(usize::from(one)) else {
                continue;
            };
            let table = from.saturating_add(start as u64);
            if one > 0
                && let Ok(found) = Self::at(mem, table, PhysAddr(pa))
            {
                return Ok(found);
            }
        }
        Err(malformed(
            "token_index",
            from.saturating_add(at as u64),
            "the offsets of the 256 strings before",
            "something else",
        ))
    }
}

type Spans = Vec<(u32, u32)>;

/// The 256 strings from `at` on, and where the last one's terminator ends.
fn strings(text: &[u8], mut at: usize, pa: PhysAddr) -> Result<(Spans, usize), KallsymsError> {
    let mut spans = Vec::with_capacity(256);
    for i in 0..256 {
        let rest = text.get(at..).unwrap_or_default();
        let end = rest
            .iter()
            .take(MAX_TOKEN + 1)
            .position(|b| *b == 0)
            .ok_or_else(|| long(i, pa, at))?;
        let (a, b) = (u32::try_from(at), u32::try_from(at + end));
        let (Ok(a), Ok(b)) = (a, b) else {
            return Err(long(i, pa, at));
        };
        spans.push((a, b));
        at += end + 1;
    }
    Ok((spans, at))
}

fn long(i: usize, from: PhysAddr, at: usize) -> KallsymsError {
    malformed(
        "token",
        from.saturating_add(at as u64),
        format!("token {i}, of {MAX_TOKEN} characters at most"),
        "no NUL",
    )
}

/// Symbol names are printable ASCII (other languages' compilers mangle theirs to it), and so every
/// concatenation of tokens is text.
fn printable(text: &[u8], spans: &Spans, table: PhysAddr) -> Result<(), KallsymsError> {
    for (a, b) in spans {
        let token = &text[*a as usize..*b as usize];
        if !token.iter().all(|c| (0x20..0x7f).contains(c)) {
            return Err(malformed(
                "token",
                table.saturating_add(u64::from(*a)),
                "printable ASCII",
                token.escape_ascii(),
            ));
        }
    }
    Ok(())
}
