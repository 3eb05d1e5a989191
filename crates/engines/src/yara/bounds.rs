//! How long a match of a pattern can be.
//!
//! yara-x verifies a regular expression within 4 KiB either side of the atom it found, so only gaps
//! that take any byte, which it searches as chains, reach further: hex jumps, and `.` under `/s`.

use yara_x_parser::ast::{HexSubPattern, HexToken, Pattern, Regexp};

/// As far as yara-x follows a regular expression, both ways together.
const REGEXP_REACH: u64 = 2 * 4096;

/// The longest possible match in bytes, or `None` without a bound.
pub(super) fn longest_match(pattern: &Pattern<'_>) -> Option<u64> {
    let modifiers = pattern.modifiers();
    let width = if modifiers.wide().is_some() { 2 } else { 1 };
    match pattern {
        Pattern::Text(p) => {
            let len = p.text.value.len() as u64;
            // Base64 grows by a third, and is padded to groups of four.
            let base64 = (len + 2).saturating_mul(4) / 3 + 4;
            let longest = if modifiers.base64wide().is_some() {
                2 * base64 * width
            } else if modifiers.base64().is_some() {
                base64 * width
            } else {
                len * width
            };
            Some(longest)
        }
        Pattern::Hex(p) => hex(&p.sub_patterns),
        Pattern::Regexp(p) => Some(REGEXP_REACH.saturating_add(gaps(&p.regexp)?) * width),
    }
}

fn hex(tokens: &HexSubPattern) -> Option<u64> {
    let mut total = 0_u64;
    for token in tokens.iter() {
        total = total.saturating_add(match token {
            HexToken::Byte(_) | HexToken::NotByte(_) => 1,
            HexToken::Jump(j) => u64::from(j.end?),
            HexToken::Alternative(a) => {
                let lens: Option<Vec<u64>> = a.alternatives.iter().map(hex).collect();
                lens?.into_iter().max().unwrap_or(0)
            }
        });
    }
    Some(total)
}

/// The sum of the gaps in a regular expression that take any byte, each with the reach of the piece
/// after it; `None` when one has no bound.
fn gaps(re: &Regexp<'_>) -> Option<u64> {
    let src = re.src.as_bytes();
    let (mut i, mut total) = (0, 0_u64);
    while i < src.len() {
        let (any, next) = atom(src, i, re.dot_matches_new_line);
        i = next;
        let Some((most, next)) = repetition(src, i) else {
            continue;
        };
        i = next;
        if any {
            total = total.saturating_add(most?).saturating_add(REGEXP_REACH);
        }
    }
    Some(total)
}

/// Whether the atom at `i` takes any byte, and where it ends. A group counts as one that does: what
/// is in it is walked by its own, but it may be repeated as a whole.
fn atom(src: &[u8], i: usize, dot_all: bool) -> (bool, usize) {
    match src[i] {
        b'\\' => (false, i + 2),
        b'.' => (dot_all, i + 1),
        b'[' => {
            // A `]` that comes first stands for itself.
            let mut end = i + 1;
            if src.get(end) == Some(&b'^') {
                end += 1;
            }
            if src.get(end) == Some(&b']') {
                end += 1;
            }
            while end < src.len() && src[end] != b']' {
                end += if src[end] == b'\\' { 2 } else { 1 };
            }
            let class = src.get(i + 1..end.min(src.len())).unwrap_or_default();
            (takes_any(class), end + 1)
        }
        b')' => (
            dot_all || contains(src, b"[") || contains(src, b"\\n"),
            i + 1,
        ),
        _ => (false, i + 1),
    }
}

fn contains(src: &[u8], needle: &[u8]) -> bool {
    src.windows(needle.len()).any(|w| w == needle)
}

/// Classes made of a pair of opposites, such as `[\s\S]`, and the full range.
fn takes_any(class: &[u8]) -> bool {
    let pair = |a: &[u8], b: &[u8]| contains(class, a) && contains(class, b);
    pair(b"\\s", b"\\S")
        || pair(b"\\d", b"\\D")
        || pair(b"\\w", b"\\W")
        || contains(&class.to_ascii_lowercase(), b"\\x00-\\xff")
}

/// The repetition at `i`, if there is one: how often at most, and where it ends.
fn repetition(src: &[u8], i: usize) -> Option<(Option<u64>, usize)> {
    match src.get(i)? {
        b'*' | b'+' => Some((None, i + 1)),
        b'?' => Some((Some(1), i + 1)),
        b'{' => {
            let len = src[i..].iter().position(|b| *b == b'}')?;
            let body = std::str::from_utf8(&src[i + 1..i + len]).ok()?;
            let most = match body.split_once(',') {
                None => Some(body.trim().parse().ok()?),
                Some((_, "")) => None,
                Some((_, most)) => Some(most.trim().parse().ok()?),
            };
            Some((most, i + len + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use yara_x_parser::ast::AST;

    use super::*;

    fn longest(pattern: &str) -> Option<u64> {
        let src = format!("rule r {{ strings: $a = {pattern} condition: $a }}");
        let ast = AST::from(src.as_str());
        let rule = ast.rules().next().unwrap();
        longest_match(&rule.patterns.as_ref().unwrap()[0])
    }

    #[test]
    fn text_grows_with_its_modifiers() {
        assert_eq!(longest(r#""abcd""#), Some(4));
        assert_eq!(longest(r#""abcd" ascii wide"#), Some(8));
        assert!(longest(r#""abcd" base64"#) >= Some(8));
    }

    #[test]
    fn hex_adds_up_jumps_and_takes_the_longest_alternative() {
        assert_eq!(longest("{ 01 ?? [2-10] ( 02 | 03 04 05 ) }"), Some(15));
        assert_eq!(longest("{ 01 02 [4-] 03 04 }"), None);
        assert_eq!(longest("{ 01 02 [-] 03 04 }"), None);
    }

    #[test]
    fn only_gaps_over_any_byte_have_no_bound() {
        assert_eq!(longest("/ab.*cd/"), Some(REGEXP_REACH));
        assert_eq!(longest("/ab.*cd/s"), None);
        assert_eq!(longest(r"/ab[\s\S]+cd/"), None);
        assert_eq!(longest(r"/ab[\x00-\xff]*cd/"), None);
        assert_eq!(longest(r"/ab[^\]a]*cd/"), Some(REGEXP_REACH));
        assert_eq!(longest("/ab(c|.)*cd/s"), None);
        assert_eq!(longest("/ab.{0,3000}cd/s"), Some(2 * REGEXP_REACH + 3000));
    }
}
