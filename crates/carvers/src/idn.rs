//! Runs of what names are made of, in any script, and the readings of them.
//!
//! ```text
//! b ü c h e r . example [.] com          a maximal run: it begins and ends where the text does
//!   -> xn--bcher-kva.example.com         RFC 5891 and UTS 46, by the crate `idna`
//! ```
//!
//! In UTF-8 a letter beyond ASCII vouches for itself. In UTF-16 every second pair of random bytes
//! is a letter of some script: what lies at U+0700 and above counts only in stretches of one
//! script between text and text.

use crate::chars::{ALNUM, Chars, HOST, is};

/// Longest name (RFC 1035 section 2.3.4, less the length bytes), and a dot on either side.
const LONGEST: usize = 255;
/// Longest stretch of letters from U+0700 on.
const STRETCH: usize = 64;
/// Where scripts begin that UTF-16 must show in stretches.
const FAR: char = '\u{700}';

/// A maximal run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// It has letters beyond ASCII.
    pub(crate) beyond: bool,
    /// It has dots in brackets.
    pub(crate) defanged: bool,
}

/// True for the letters, digits and marks beyond ASCII that a name may have.
pub(crate) fn is_name_char(c: char) -> bool {
    match c {
        '\0'..='\u{7f}' => false,
        // Most letters by far, told without a search.
        '\u{c0}'..='\u{2af}' => !matches!(c, '×' | '÷'),
        '\u{400}'..='\u{481}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' => true,
        '\u{d7a4}'..='\u{d7af}' | '\u{e000}'..='\u{f8ff}' => false,
        // Marks that are no letters: accents that combine, signs of Indic scripts and of Thai.
        '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{483}'..='\u{487}' | '\u{591}'..='\u{5bd}' => true,
        '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{93c}' | '\u{94d}' => true,
        '\u{9bc}' | '\u{9cd}' | '\u{a3c}' | '\u{a4d}' | '\u{abc}' | '\u{acd}' => true,
        '\u{b3c}' | '\u{b4d}' | '\u{bcd}' | '\u{c4d}' | '\u{cbc}' | '\u{ccd}' => true,
        '\u{d4d}' | '\u{dca}' | '\u{e3a}' | '\u{e47}'..='\u{e4e}' => true,
        '\u{eb8}'..='\u{ebc}' | '\u{ec8}'..='\u{ecd}' | '\u{1037}' | '\u{1039}' => true,
        '\u{103a}' | '\u{17d2}' | '\u{200c}' | '\u{200d}' | '\u{3099}' | '\u{309a}' => true,
        '\u{30fb}' => true,
        // Modifier letters and superscripts, halves of forms, what no name has.
        '\u{fb50}'..='\u{fdff}' | '\u{fe70}'..='\u{feff}' => false,
        c => c.is_alphanumeric(),
    }
}

/// True for what a browser leaves out of a name, and for hyphens that look like the plain one: between
/// letters a name goes on there (UTS 46, IdnaMappingTable: ignored).
fn joins(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{200b}' | '\u{2010}' | '\u{2011}' | '\u{2060}'
    )
}

/// True for the full stops of other scripts, which UTS 46 maps to a dot.
pub(crate) fn is_stop(c: char) -> bool {
    matches!(c, '\u{3002}' | '\u{ff0e}' | '\u{ff61}')
}

/// A name whose dots are plain ones.
pub(crate) fn dotted(name: &str) -> String {
    name.replace(is_stop, ".")
}

/// The bytes of the character at byte `i`, if it is no letter and a name goes on behind it all the same: what joins
/// letters, or a full stop of another script. Where that script has no spaces, the stop ends a sentence.
fn bridge<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> Option<usize> {
    let (c, n) = chars.char_at(i)?;
    let stop = is_stop(c);
    if !stop && !joins(c) {
        return None;
    }
    let fits = |c: Option<(char, usize)>| {
        c.is_some_and(|(c, _)| {
            (c.is_ascii_alphanumeric() || is_name_char(c)) && !(stop && is_spaceless(c))
        })
    };
    (fits(chars.char_before(i)) && fits(chars.char_at(i + n))).then_some(n)
}

/// True for scripts that are written without spaces: a name may begin or end beside them.
pub(crate) fn is_spaceless(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3005}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// The scripts that may stand beside each other in a stretch.
fn group(c: char) -> u32 {
    match c {
        '\u{1100}'..='\u{11ff}' | '\u{ac00}'..='\u{d7a3}' => 1,
        c if is_spaceless(c) && c >= '\u{3000}' => 0,
        c => u32::from(c) >> 8,
    }
}

/// The bytes of the letter beyond ASCII at byte `i`, if there is one.
pub(crate) fn letter_at<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> Option<usize> {
    let (c, n) = chars.char_at(i)?;
    (is_name_char(c) && (STEP == 1 || c < FAR || settled(chars, i, c))).then_some(n)
}

/// The bytes of the letter beyond ASCII that ends at byte `i`, if there is one.
pub(crate) fn letter_before<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> Option<usize> {
    let n = chars.char_before(i)?.1;
    letter_at(chars, i - n)
}

/// True when the far letters around byte `i` are of one script, and text or nothing is on either
/// side of them.
fn settled<const STEP: usize>(chars: Chars<'_, STEP>, i: usize, first: char) -> bool {
    let of = |x: &(char, usize)| x.0 >= FAR && is_name_char(x.0);
    let (mut p, mut q, mut same) = (i, i, true);
    for _ in 0..STRETCH {
        let Some((c, n)) = chars.char_before(p).filter(of) else {
            break;
        };
        (p, same) = (p - n, same && group(c) == group(first));
    }
    for _ in 0..STRETCH {
        let Some((c, n)) = chars.char_at(q).filter(of) else {
            break;
        };
        (q, same) = (q + n, same && group(c) == group(first));
    }
    let fine = |c: Option<(char, usize)>| {
        c.is_none_or(|(c, _)| {
            matches!(c, '\0' | '\t' | '\n' | '\r' | ' '..='~' | '\u{3000}'..='\u{303f}'
                | '\u{ff00}'..='\u{ff65}' | '\u{2010}'..='\u{2027}')
                || (c < FAR && c.is_alphanumeric())
        })
    };
    same && (q - p) / 2 < STRETCH && fine(chars.char_before(p)) && fine(chars.char_at(q))
}

/// The bytes of a dot in brackets at byte `i`: `[.]`, `(.)`, `{.}`, and the same with `dot`.
pub(crate) fn dot_at<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> Option<usize> {
    bracketed(chars, i, b".").or_else(|| bracketed(chars, i, b"dot"))
}

/// The bytes of `word` in brackets at byte `i`.
pub(crate) fn bracketed<const STEP: usize>(
    chars: Chars<'_, STEP>,
    i: usize,
    word: &[u8],
) -> Option<usize> {
    let close = match chars.at(i) {
        b'[' => b']',
        b'(' => b')',
        b'{' => b'}',
        _ => return None,
    };
    let mut p = i + STEP;
    for w in word {
        if chars.at(p).to_ascii_lowercase() != *w {
            return None;
        }
        p += STEP;
    }
    (chars.at(p) == close).then_some(p + STEP - i)
}

/// The bytes of a dot in brackets that ends at byte `i`.
fn dot_before<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> Option<usize> {
    [3, 5]
        .into_iter()
        .map(|n| n * STEP)
        .find(|&n| i.checked_sub(n).and_then(|p| dot_at(chars, p)) == Some(n))
}

/// True when a letter or digit, of any script, is at byte `i`.
fn named_at<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> bool {
    is(chars.at(i), ALNUM) || (chars.beyond(i) && letter_at(chars, i).is_some())
}

/// True when a letter or digit, of any script, ends at byte `i`.
pub(crate) fn named_before<const STEP: usize>(chars: Chars<'_, STEP>, i: usize) -> bool {
    is(chars.before(i), ALNUM) || (chars.beyond_before(i) && letter_before(chars, i).is_some())
}

/// The run around byte `at`, which is in it. `Err` with where it would end, when it is longer than
/// any name.
pub(crate) fn run<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Result<Run, usize> {
    let mut r = Run {
        from: at,
        to: at,
        ..Run::default()
    };
    let mut n = 0;
    loop {
        let plain = chars.forward(r.to, HOST, LONGEST + 1 - n);
        n += (plain - r.to) / STEP;
        r.to = plain;
        if n > LONGEST {
            return Err(r.to);
        }
        let Some(len) = forth(chars, &mut r) else {
            break;
        };
        r.to += len;
        n += 1;
    }
    while n <= LONGEST {
        let Some(plain) = chars.back(r.from, HOST, LONGEST - n) else {
            break;
        };
        n += (r.from - plain) / STEP;
        r.from = plain;
        let Some(len) = back(chars, &mut r) else {
            return Ok(r);
        };
        r.from -= len;
        n += 1;
    }
    Err(r.to)
}

/// The bytes of what is behind the run and belongs to it, and is no plain character.
#[inline]
fn forth<const STEP: usize>(chars: Chars<'_, STEP>, r: &mut Run) -> Option<usize> {
    if chars.beyond(r.to) {
        let len = letter_at(chars, r.to).or_else(|| bridge(chars, r.to))?;
        r.beyond = true;
        return Some(len);
    }
    if !matches!(chars.at(r.to), b'[' | b'(' | b'{') {
        return None;
    }
    let len = dot_at(chars, r.to).filter(|l| named_at(chars, r.to + l))?;
    r.defanged = true;
    Some(len)
}

/// The bytes of what is before the run and belongs to it, and is no plain character.
fn back<const STEP: usize>(chars: Chars<'_, STEP>, r: &mut Run) -> Option<usize> {
    if chars.beyond_before(r.from) {
        let letter = letter_before(chars, r.from);
        let len = letter.or_else(|| {
            let n = chars.char_before(r.from)?.1;
            bridge(chars, r.from - n)
        })?;
        r.beyond = true;
        return Some(len);
    }
    if !matches!(chars.before(r.from), b']' | b')' | b'}') {
        return None;
    }
    let len = dot_before(chars, r.from)?;
    let word = r.from - len;
    let named = named_before(chars, word);
    r.defanged |= named;
    named.then_some(len)
}

/// The bytes that a text takes in the image.
pub(crate) fn bytes<const STEP: usize>(text: &str) -> usize {
    if STEP == 1 {
        text.len()
    } else {
        text.encode_utf16().count() * STEP
    }
}

/// A name as it is meant: dots in brackets are dots.
pub(crate) fn refang(text: &str) -> String {
    if !text.contains(['[', '(', '{']) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let chars = Chars::<1>(text.as_bytes());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match dot_at(chars, text.len() - rest.len()) {
            Some(n) => {
                out.push('.');
                rest = &rest[n..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// A name with letters beyond ASCII as the name system has it; `None` when the standards don't
/// allow it.
pub(crate) fn ascii(name: &str) -> Option<String> {
    let ascii = idna::domain_to_ascii(name).ok()?;
    // Letters that fold to nothing or to a dot would make another name of it.
    let labels = |s: &str| s.split('.').count();
    (labels(&ascii) == labels(name) && !ascii.starts_with('.')).then_some(ascii)
}

/// Where a name ends whose last label goes on in a script without spaces behind a top-level
/// domain, or behind a full stop of such a script.
pub(crate) fn cut(name: &str) -> Option<usize> {
    let stop = name.find(is_stop);
    let (head, after) = match stop {
        Some(n) => (&name[..n], true),
        None => (name, false),
    };
    let known = |t: &str| t.contains('.') && crate::tld::known(t);
    let last = head.rfind('.').map_or(0, |n| n + 1);
    let ascii = head[last..]
        .find(|c: char| !c.is_ascii_alphanumeric())
        .map_or(head.len(), |n| last + n);
    let spaceless = head[ascii..].chars().next().is_some_and(is_spaceless);
    let ends = (ascii == head.len() && after) || spaceless;
    (ends && known(&refang(&head[..ascii]))).then_some(ascii)
}

/// What an `xn--` name reads as, where it is a valid one.
pub(crate) fn unicode(name: &str) -> Option<String> {
    memchr::memchr(b'-', name.as_bytes())?;
    let has = |l: &str| l.get(..4).is_some_and(|p| p.eq_ignore_ascii_case("xn--"));
    if !name.split('.').any(has) {
        return None;
    }
    let (text, sound) = idna::domain_to_unicode(name);
    (sound.is_ok() && !text.is_ascii()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(text: &str, at: usize) -> Result<Run, usize> {
        run(Chars::<1>(text.as_bytes()), at)
    }

    #[test]
    fn runs_begin_and_end_where_the_text_does() {
        for (text, want) in [
            ("bücher.example.com", "bücher.example.com"),
            ("“example.com”", "example.com"),
            ("пример.рф, ", "пример.рф"),
            ("(bad[.]example(dot)com)", "bad[.]example(dot)com"),
            ("उदाहरण.परीक्षा।", "उदाहरण.परीक्षा"),
            ("a\u{308}.example.org", "a\u{308}.example.org"),
            ("bad\u{ad}host.com", "bad\u{ad}host.com"),
            ("evil\u{2011}host.com", "evil\u{2011}host.com"),
            ("münchen。example.com", "münchen。example.com"),
            ("谢谢。example.com。再见", "example.com"),
            ("\u{200b}example.com\u{200b}", "example.com"),
        ] {
            let dot = text.find('.').unwrap();
            let dot = if text.as_bytes()[dot - 1] == b'[' {
                dot - 1
            } else {
                dot
            };
            let r = around(text, dot).unwrap();
            assert_eq!(&text[r.from..r.to], want);
        }
    }

    #[test]
    fn letters_told_by_ranges_are_those_of_the_tables() {
        let ranges = [
            '\u{c0}'..='\u{2af}',
            '\u{400}'..='\u{481}',
            '\u{4e00}'..='\u{9fff}',
            '\u{ac00}'..='\u{d7af}',
            '\u{e000}'..='\u{f8ff}',
        ];
        for c in ranges.into_iter().flatten() {
            assert_eq!(is_name_char(c), c.is_alphanumeric(), "{c:?}");
        }
    }

    #[test]
    fn both_encodings_have_the_same_runs() {
        for name in ["bücher.example.com", "例子.例え.jp", "한국.kr", "пример.рф"] {
            let wide: Vec<u8> = format!("\0{name}\0")
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
            let chars = Chars::<2>(&wide);
            let dot = wide.chunks(2).position(|c| c == [b'.', 0]).unwrap() * 2;
            let r = run(chars, dot).unwrap();
            assert_eq!(chars.string(r.from, r.to), name);
        }
    }

    #[test]
    fn bytes_beside_a_wide_name_are_no_letters_of_it() {
        // U+4E3A is a letter, U+E123 is for private use, U+6BFF and U+AC42 are of two scripts.
        for tail in [&[0x4e3au16, 0xe123][..], &[0x6bff, 0xac42, 0][..]] {
            let units: Vec<u16> = "\0a.example.com".encode_utf16().collect();
            let wide: Vec<u8> = units
                .iter()
                .chain(tail)
                .flat_map(|u| u.to_le_bytes())
                .collect();
            let chars = Chars::<2>(&wide);
            let r = run(chars, 4).unwrap();
            assert_eq!(chars.string(r.from, r.to), "a.example.com");
        }
    }

    #[test]
    fn names_are_read_as_the_standards_say() {
        // RFC 3492's and the registries' own examples.
        assert_eq!(
            ascii("bücher.example").as_deref(),
            Some("xn--bcher-kva.example")
        );
        assert_eq!(
            ascii("BÜCHER.example").as_deref(),
            Some("xn--bcher-kva.example")
        );
        assert_eq!(ascii("пример.рф").as_deref(), Some("xn--e1afmkfd.xn--p1ai"));
        assert_eq!(
            unicode("XN--BCHER-KVA.example").as_deref(),
            Some("bücher.example")
        );
        assert_eq!(unicode("xn--.example"), None);
        assert_eq!(unicode("plain.example"), None);
    }
}
