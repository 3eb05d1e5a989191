//! Characters as a text means them: what JSON, JavaScript, property files and HTML write for them.
//!
//! ```text
//! \/  \u002f  \x2f  &#47;  &#x2F;  &sol;     all of them a slash
//! ```
//!
//! Sources: RFC 8259 section 7; ECMA-262 section 12.9.4; `java.util.Properties`; HTML section 13.5.

use crate::chars::Chars;

/// How a character is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// As it is.
    Plain,
    /// With a backslash, or as a number or name that is not `&amp;`.
    Escaped,
    /// As `&amp;`.
    Ampersand,
}

/// A character and how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) c: char,
    /// Bytes in the image.
    pub(crate) len: usize,
    pub(crate) how: How,
}

/// The names that stand in URLs or end them.
const NAMES: &[(&str, char)] = &[
    ("amp", '&'),
    ("quot", '"'),
    ("apos", '\''),
    ("lt", '<'),
    ("gt", '>'),
    ("nbsp", '\u{a0}'),
    ("sol", '/'),
    ("equals", '='),
    ("num", '#'),
    ("quest", '?'),
    ("colon", ':'),
    ("period", '.'),
    ("lowbar", '_'),
    ("percnt", '%'),
    ("plus", '+'),
    ("commat", '@'),
    ("comma", ','),
    ("semi", ';'),
    ("excl", '!'),
    ("ast", '*'),
    ("lpar", '('),
    ("rpar", ')'),
    ("lsqb", '['),
    ("rsqb", ']'),
    ("lbrace", '{'),
    ("rbrace", '}'),
    ("verbar", '|'),
    ("grave", '`'),
    ("bsol", '\\'),
    ("Tab", '\t'),
    ("NewLine", '\n'),
    ("laquo", '«'),
    ("raquo", '»'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("hellip", '…'),
    ("mdash", '—'),
    ("ndash", '—'),
    ("shy", '\u{ad}'),
    ("zwnj", '\u{200b}'),
    ("zwj", '\u{200b}'),
    ("ensp", '\u{2002}'),
    ("emsp", '\u{2003}'),
    ("thinsp", '\u{2009}'),
    ("bull", '•'),
    ("middot", '\u{a0}'),
    ("copy", '\u{a0}'),
    ("reg", '\u{a0}'),
];

/// Names that end without a semicolon too (HTML section 13.2.5.73), of those that end URLs.
const OLDEST: &[(&[u8], char)] = &[(b"quot", '"'), (b"lt", '<'), (b"gt", '>')];

/// The names of the letters of Latin-1, from U+00C0 on (HTML section 13.5).
const LATIN: [&str; 64] = [
    "Agrave", "Aacute", "Acirc", "Atilde", "Auml", "Aring", "AElig", "Ccedil", "Egrave", "Eacute",
    "Ecirc", "Euml", "Igrave", "Iacute", "Icirc", "Iuml", "ETH", "Ntilde", "Ograve", "Oacute",
    "Ocirc", "Otilde", "Ouml", "times", "Oslash", "Ugrave", "Uacute", "Ucirc", "Uuml", "Yacute",
    "THORN", "szlig", "agrave", "aacute", "acirc", "atilde", "auml", "aring", "aelig", "ccedil",
    "egrave", "eacute", "ecirc", "euml", "igrave", "iacute", "icirc", "iuml", "eth", "ntilde",
    "ograve", "oacute", "ocirc", "otilde", "ouml", "divide", "oslash", "ugrave", "uacute", "ucirc",
    "uuml", "yacute", "thorn", "yuml",
];

/// The character that stands at byte `p`.
pub(crate) fn token<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<Token> {
    match chars.at(p) {
        b'\\' => backslash(chars, p),
        b'&' => Some(ampersand(chars, p)),
        0 | 0x80.. => {
            let (c, len) = chars.char_at(p).filter(|c| !c.0.is_ascii())?;
            let how = How::Plain;
            Some(Token { c, len, how })
        }
        c => Some(Token {
            c: char::from(c),
            len: STEP,
            how: How::Plain,
        }),
    }
}

/// Reads what follows one backslash, or several where a text was quoted more than once.
fn backslash<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<Token> {
    let mut q = p + STEP;
    while chars.at(q) == b'\\' && q - p < 8 * STEP {
        q += STEP;
    }
    let (c, q) = match chars.at(q) {
        c @ (b'/' | b'_' | b'%' | b'&' | b'#' | b'=' | b'.' | b'-' | b'?' | b'+' | b'~' | b':'
        | b'!' | b'@') => (char::from(c), q + STEP),
        b'u' => {
            let first = hex(chars, q + STEP, 4)?;
            let q = q + 5 * STEP;
            match char::from_u32(first) {
                Some(c) => (c, q),
                None => {
                    // Two of them are one character.
                    let escaped = chars.at(q) == b'\\' && chars.at(q + STEP) == b'u';
                    let second = hex(chars, q + 2 * STEP, 4).filter(|_| escaped)?;
                    let pair = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
                    (char::decode_utf16(pair).next()?.ok()?, q + 6 * STEP)
                }
            }
        }
        b'x' => {
            let c = hex(chars, q + STEP, 2).filter(|c| *c < 0x80)?;
            (char::from_u32(c)?, q + 3 * STEP)
        }
        _ => return None,
    };
    if c == '&'
        && let Some((c, end)) = reference(chars, q)
    {
        // A text for a page in a text for a program: `\u0026quot;`.
        let how = if c == '&' {
            How::Ampersand
        } else {
            How::Escaped
        };
        let len = end - p;
        return Some(Token { c, len, how });
    }
    let how = How::Escaped;
    let len = q - p;
    Some(Token { c, len, how })
}

/// `n` hexadecimal digits at byte `p`.
fn hex<const STEP: usize>(chars: Chars<'_, STEP>, p: usize, n: usize) -> Option<u32> {
    (0..n).try_fold(0, |x, i| {
        let d = char::from(chars.at(p + i * STEP)).to_digit(16)?;
        Some(x * 16 + d)
    })
}

/// Reads the `&` at byte `p`: alone, or a reference to a character.
fn ampersand<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Token {
    let plain = Token {
        c: '&',
        len: STEP,
        how: How::Plain,
    };
    let Some((c, q)) = reference(chars, p + STEP) else {
        return plain;
    };
    let len = q - p;
    if c != '&' || chars.at(p + STEP) == b'#' {
        let how = How::Escaped;
        return Token { c, len, how };
    }
    // `&amp;quot;` was escaped twice.
    match reference(chars, q) {
        Some((c, end)) if c != '&' => Token {
            c,
            len: end - p,
            how: How::Escaped,
        },
        _ => Token {
            c,
            len,
            how: How::Ampersand,
        },
    }
}

/// The reference whose `&` is just before byte `p`, and where it ends.
fn reference<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<(char, usize)> {
    let mut word = [0u8; 9];
    let mut n = 0;
    let mut q = p;
    loop {
        let c = chars.at(q);
        q += STEP;
        if c == b';' {
            break;
        }
        let fits = c.is_ascii_alphanumeric() || (c == b'#' && n == 0);
        if !fits {
            // HTML takes the oldest names without their end, where no value follows.
            let c = OLDEST.iter().find(|e| word.get(..n) == Some(e.0))?.1;
            return (chars.at(q - STEP) != b'=').then_some((c, q - STEP));
        }
        *word.get_mut(n)? = c;
        n += 1;
    }
    let word = std::str::from_utf8(word.get(..n)?).ok()?;
    let c = match word.strip_prefix('#') {
        Some(x) if x.starts_with(['x', 'X']) => {
            char::from_u32(u32::from_str_radix(&x[1..], 16).ok()?)?
        }
        Some(d) => char::from_u32(d.parse().ok()?)?,
        None => match NAMES.iter().find(|e| e.0 == word || named(e.0, word)) {
            Some(e) => e.1,
            None => {
                let n = LATIN.iter().position(|l| *l == word)?;
                char::from_u32(0xc0 + u32::try_from(n).ok()?)?
            }
        },
    };
    Some((c, q))
}

/// The five that HTML also knows in upper case.
fn named(name: &str, word: &str) -> bool {
    matches!(name, "amp" | "quot" | "lt" | "gt") && name.to_ascii_uppercase() == word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_character_in_many_forms() {
        for (text, c) in [
            (r"\/", '/'),
            (r"\\/", '/'),
            (r"\u002F", '/'),
            (r"\x2f", '/'),
            ("&#47;", '/'),
            ("&#x2F;", '/'),
            ("&sol;", '/'),
            (r"\u0026", '&'),
            ("&#38;", '&'),
            ("&quot;", '"'),
            ("&amp;quot;", '"'),
            ("&amp;#39;", '\''),
            (r"\u0026quot;", '"'),
            (r"\x26lt;", '<'),
            (r"\u0026amp;", '&'),
            ("&quot", '"'),
            ("&eacute;", 'é'),
            ("&Ouml;", 'Ö'),
            ("&yuml;", 'ÿ'),
            (r"\ud83d\ude00", '😀'),
            (r"\u00e9", 'é'),
            ("é", 'é'),
        ] {
            let t = token(Chars::<1>(text.as_bytes()), 0).unwrap();
            assert_eq!((t.c, t.len), (c, text.len()), "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in [r"\n", r"\u12", r"\ud800x", r"\", r#"\""#, r"\x8f"] {
            assert_eq!(token(Chars::<1>(text.as_bytes()), 0), None, "{text}");
        }
        for text in ["&", "&b=2", "&copyright;", "&#;", "&#xd800;", "&#99999999;"] {
            let t = token(Chars::<1>(text.as_bytes()), 0).unwrap();
            assert_eq!((t.c, t.len, t.how), ('&', 1, How::Plain), "{text}");
        }
    }
}
