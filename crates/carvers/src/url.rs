//! URLs, in UTF-8 and UTF-16LE.
//!
//! ```text
//! scheme :// [user@] host [:port] [/path?query#fragment]         RFC 3986, RFC 3987
//! http\://  https:\/\/  http:&#x2F;&#x2F;                          as other texts quote them
//! hxxp://bad[.]example[.]com                                      defanged
//! ```
//!
//! Only known schemes, since `://` alone is everywhere in templates. A scheme need not begin a
//! word: strings in memory often follow another without a gap. A URL ends with its host where no
//! path, query or fragment follows; else at the first character that no URL has, after 2,048
//! bytes, or before `,`, `;`, `|` or `(` and the next scheme; full stops and unbalanced brackets
//! at its end are not part of it. A URL inside another, as a parameter, is part of that one and
//! not reported again.
//!
//! The value is the URL as the text means it, with escapes undone, save `&amp;` and the brackets
//! of defanged ones: `unescaped` and `refanged` are without these.

use crate::authority::{Authority, authority};
use crate::chars::{ALNUM, Chars, URL, is};
use crate::escape::{How, token};
use crate::feature::{Place, Said, fields};
use crate::{idn, reserved};
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const VERSION: u32 = 2;

/// Longest URL, in characters of ASCII.
const LONGEST: usize = 2048;

/// The schemes that are looked for.
const SCHEMES: &[&str] = &[
    "http",
    "https",
    "hxxp",
    "hxxps",
    "hxtp",
    "htxp",
    "fxp",
    "fxps",
    "ftp",
    "ftps",
    "sftp",
    "tftp",
    "ws",
    "wss",
    "ssh",
    "git",
    "svn",
    "ldap",
    "ldaps",
    "smb",
    "cifs",
    "nfs",
    "tcp",
    "udp",
    "tls",
    "ssl",
    "rtsp",
    "rtmp",
    "rtp",
    "irc",
    "ircs",
    "sip",
    "s3",
    "gs",
    "redis",
    "rediss",
    "mysql",
    "postgres",
    "postgresql",
    "mongodb",
    "amqp",
    "amqps",
    "mqtt",
    "telnet",
    "vnc",
    "rdp",
    "socks",
    "socks4",
    "socks5",
    "stratum",
    "magnet",
    "gopher",
    "dict",
    "imap",
    "imaps",
    "pop3",
    "smtp",
    "smtps",
    "xmpp",
    "docker",
    "unix",
    "jdbc",
    "ipfs",
    "kafka",
];

/// A word of up to 16 letters as a number, its last letter lowest.
const fn number(word: &[u8]) -> u128 {
    let (mut n, mut i) = (0, 0);
    while i < word.len() {
        n = n << 8 | word[i] as u128;
        i += 1;
    }
    n
}

/// Letters of the longest scheme.
const WORD: usize = 10;

/// The schemes as numbers, by their length: those of `n` letters are from `LENGTHS[n]` on.
const NUMBERS: ([u128; SCHEMES.len()], [usize; WORD + 2]) = {
    let (mut numbers, mut lengths) = ([0; SCHEMES.len()], [0; WORD + 2]);
    let (mut at, mut len) = (0, 0);
    while len <= WORD {
        lengths[len] = at;
        let mut i = 0;
        while i < SCHEMES.len() {
            if SCHEMES[i].len() == len {
                numbers[at] = number(SCHEMES[i].as_bytes());
                at += 1;
            }
            i += 1;
        }
        len += 1;
    }
    lengths[len] = at;
    assert!(at == SCHEMES.len());
    (numbers, lengths)
};
static SCHEME_NUMBERS: [u128; SCHEMES.len()] = NUMBERS.0;
static LENGTHS: [usize; WORD + 2] = NUMBERS.1;

/// The first byte of the scheme that ends before the colon at byte `at`: a known one, or two with a plus between, of
/// which one is known: `git+ssh`, `stratum+tcp`, `mongodb+srv`, `postgresql+psycopg2`.
fn scheme<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<usize> {
    let known = word(chars, at);
    let from = known.unwrap_or(at);
    let begin = match known {
        Some(p) => p,
        None => chars.back(from, ALNUM, WORD)?,
    };
    if chars.before(begin) != b'+' || begin == at {
        return known;
    }
    let plus = begin - STEP;
    let before = word(chars, plus).filter(|p| !is(chars.before(*p), ALNUM));
    before.or(known)
}

/// The first byte of the known scheme that ends before byte `at`.
fn word<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<usize> {
    let mut word = 0u128;
    let mut p = at;
    let mut best = None;
    for i in 0..WORD {
        let c = chars.before(p);
        if !is(c, ALNUM) {
            break;
        }
        p -= STEP;
        word |= u128::from(c.to_ascii_lowercase()) << (8 * i);
        let known = &SCHEME_NUMBERS[LENGTHS[i + 1]..LENGTHS[i + 2]];
        if known.contains(&word) {
            best = Some(p);
        }
    }
    best
}

/// The first byte of the scheme of the URL whose colon is at byte `at`, if one is.
pub(crate) fn scheme_before<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<usize> {
    start(chars, at).map(|s| s.from)
}

/// True when the colon at byte `at` is that of a URL.
pub(crate) fn begins<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> bool {
    start(chars, at).is_some()
}

/// Where a URL's scheme and its authority begin.
struct Start {
    from: usize,
    body: usize,
}

/// What the colon at byte `at` begins, if a known scheme is before it and two slashes behind.
fn start<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<Start> {
    let before = chars.before(at);
    let open = matches!(before, b'[' | b'(' | b'{');
    let word = if open || before == b'\\' {
        at - STEP
    } else {
        at
    };
    let from = scheme(chars, word)?;
    let close = |p: usize| open && matches!(chars.at(p), b']' | b')' | b'}');
    let mut p = at + STEP;
    p += if close(p) { STEP } else { 0 };
    for _ in 0..2 {
        p += token(chars, p).filter(|t| t.c == '/')?.len;
    }
    p += if close(p) { STEP } else { 0 };
    Some(Start { from, body: p })
}

/// Looks at the colon at byte `at`.
#[inline(never)]
pub(crate) fn visit<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    let chars = place.chars::<STEP>();
    let Some(start) = start(chars, at) else {
        return;
    };
    let from = start.from;
    if !place.core.contains(&from) || inside(chars, from) {
        return;
    }
    let Some(host) = authority(chars, start.body) else {
        return;
    };
    let end = if host.more {
        let Some(end) = body_end(chars, from, host.end, from + LONGEST * STEP) else {
            return;
        };
        trim(chars, host.end, end)
    } else {
        host.end
    };
    report(place, chars, &start, &host, end);
}

/// True where a URL may begin although another one runs up to it.
fn splits(before: u8) -> bool {
    matches!(before, b',' | b';' | b'|' | b'(')
}

/// True when the URL at `from` lies in another one. Decided by the nearest scheme before it, if
/// that is within the longest URL.
fn inside<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> bool {
    if splits(chars.before(from)) {
        return false;
    }
    let mut p = from;
    for _ in 0..LONGEST {
        let c = chars.before(p);
        let may_be = is(c, URL) || matches!(c, b'\'' | b'|' | b'{' | b'}' | b'\\');
        if !may_be && !chars.beyond_before(p) {
            return false;
        }
        p -= STEP;
        let outer = if c == b':' { start(chars, p) } else { None };
        if let Some(outer) = outer.filter(|o| o.body <= from) {
            let Some(host) = authority(chars, outer.body) else {
                return false;
            };
            let over = || body_end(chars, outer.from, host.end, from + 1);
            return host.end > from || (host.more && over().is_some_and(|e| e >= from));
        }
    }
    false
}

/// True when a known scheme and its colon stand at byte `p`.
fn scheme_at<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> bool {
    let end = chars.forward(p, ALNUM, 11);
    let colon = if chars.at(end) == b':' {
        end
    } else {
        end + STEP
    };
    end > p && start(chars, colon).is_some_and(|s| s.from == p)
}

/// Where the characters of a URL that begins at `from` end, from byte `at` on and before `limit`.
/// `None`: what stands there is no one URL.
fn body_end<const STEP: usize>(
    chars: Chars<'_, STEP>,
    from: usize,
    at: usize,
    limit: usize,
) -> Option<usize> {
    let before = chars.before(from);
    let (mut p, mut curly) = (at, 0);
    while p < limit {
        let Some(t) = token(chars, p) else { break };
        let next = p + t.len;
        match t.c {
            // As in `it's`; where a string began with one it ends there.
            '\'' if t.how != How::Plain || before == b'\'' || !is(chars.at(next), ALNUM) => break,
            '\'' => {}
            '{' => curly += 1,
            '}' if curly == 0 => break,
            '}' => curly -= 1,
            '|' => match pipe(chars, before, p) {
                Pipe::Part => {}
                Pipe::End => break,
                Pipe::Unclear => return None,
            },
            c if c.is_ascii() => {
                let class = u8::try_from(c).is_ok_and(|b| is(b, URL));
                if !class || (splits(c as u8) && scheme_at(chars, next)) {
                    break;
                }
            }
            c if !in_path(c) => break,
            _ => {}
        }
        p = next;
    }
    Some(p)
}

/// What a `|` is.
enum Pipe {
    Part,
    End,
    Unclear,
}

/// Browsers take a `|` in a URL, and texts part columns by it. It is part of the URL between
/// quotes, and ends it where the next column is empty, a URL or one of several.
fn pipe<const STEP: usize>(chars: Chars<'_, STEP>, before: u8, at: usize) -> Pipe {
    let close = match before {
        // Chats and wikis write `<address|words>` and `[address|words]`.
        b'|' | b'<' | b'[' => return Pipe::End,
        b'"' => b'"',
        b'\'' => b'\'',
        b'(' => b')',
        _ => 0,
    };
    if scheme_at(chars, at + STEP) {
        return Pipe::End;
    }
    let (mut p, mut pipes) = (at, 0);
    while is(chars.at(p), URL) || chars.at(p) == b'|' {
        if close != 0 && chars.at(p) == close {
            break;
        }
        pipes += usize::from(chars.at(p) == b'|');
        p += STEP;
        if p > at + LONGEST * STEP {
            return Pipe::End;
        }
    }
    if close != 0 && chars.at(p) == close {
        return Pipe::Part;
    }
    if pipes > 1 || !is(chars.at(at + STEP), ALNUM) {
        return Pipe::End;
    }
    Pipe::Unclear
}

/// True for characters beyond ASCII that a path may have as they are (RFC 3987 section 2.2, less
/// quotes, spaces and the punctuation of sentences).
pub(crate) fn in_path(c: char) -> bool {
    !matches!(c,
        '\u{80}'..='\u{a0}' | '«' | '»' | '\u{ad}' | '\u{2000}'..='\u{200b}' | '\u{200e}'..='\u{200f}'
        | '\u{2014}'..='\u{206f}' | '\u{3000}'..='\u{3004}' | '\u{3008}'..='\u{303f}'
        | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe6f}' | '\u{fef0}'..='\u{ff0f}'
        | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}' | '\u{ff5b}'..='\u{ff65}'
        | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..)
}

/// Takes off what ends a sentence or closes a bracket that the URL did not open, and what is left
/// of an HTML entity.
fn trim<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, end: usize) -> usize {
    let mut balance = [0i32; 2];
    let mut p = from;
    while p < end {
        match chars.at(p) {
            b'(' => balance[0] += 1,
            b')' => balance[0] -= 1,
            b'[' => balance[1] += 1,
            b']' => balance[1] -= 1,
            _ => {}
        }
        p += STEP;
    }
    p = end;
    while p > from {
        match chars.before(p) {
            b';' => {
                let reference = (3..=12).find_map(|n| {
                    let at = p.checked_sub(n * STEP).filter(|at| *at >= from)?;
                    let begins = matches!(chars.at(at), b'&' | b'\\');
                    let t = begins.then(|| token(chars, at)).flatten()?;
                    (t.len == n * STEP && t.how != How::Plain).then_some(t)
                });
                match reference {
                    // A letter ends no sentence.
                    Some(t) if t.c.is_alphanumeric() => break,
                    Some(t) => {
                        p -= t.len;
                        continue;
                    }
                    None => {}
                }
            }
            b'.' | b',' | b':' | b'!' | b'?' | b'*' | b'(' | b'[' | b'{' => {}
            b')' if balance[0] < 0 => balance[0] += 1,
            b']' if balance[1] < 0 => balance[1] += 1,
            _ => break,
        }
        p -= STEP;
    }
    p
}

/// A URL in the forms in which it is reported: the others where they differ from the value.
#[derive(Default)]
struct Forms {
    value: String,
    raw: Option<String>,
    unescaped: Option<String>,
}

fn forms<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, end: usize) -> Forms {
    let raw = chars.string(from, end);
    if memchr::memchr3(b'\\', b'&', 0, raw.as_bytes()).is_none() {
        // Nothing is escaped.
        return Forms {
            value: raw,
            ..Forms::default()
        };
    }
    let (mut value, mut unescaped) = (String::new(), String::new());
    let mut p = from;
    while p < end {
        let Some(t) = token(chars, p) else { break };
        unescaped.push(t.c);
        if t.how == How::Ampersand {
            value.push_str("&amp;");
        } else {
            value.push(t.c);
        }
        p += t.len;
    }
    Forms {
        raw: Some(raw).filter(|r| *r != value),
        unescaped: Some(unescaped).filter(|u| *u != value),
        value,
    }
}

/// Schemes that people write so that nobody follows them.
const FANGED: &[(&str, &str)] = &[
    ("hxxp", "http"),
    ("hxtp", "http"),
    ("htxp", "http"),
    ("hxxps", "https"),
    ("fxp", "ftp"),
    ("fxps", "ftps"),
];

/// A defanged URL as it was before; nothing where it was not.
fn refanged(value: &str, defanged_host: bool) -> Option<String> {
    let colon = value.find(':')?;
    let word = value[..colon].trim_end_matches(['[', '(', '{', '\\']);
    let scheme = FANGED
        .iter()
        .find(|f| f.0.eq_ignore_ascii_case(word))
        .map_or(word, |f| f.1);
    let bracketed = word.len() < colon;
    if scheme == word && !bracketed && !defanged_host {
        return None;
    }
    let rest = value[colon + 1..].trim_start_matches([']', ')', '}', '/']);
    let mut rest = idn::refang(rest);
    for (open, close) in [('[', ']'), ('(', ')')] {
        for mark in ["/", ":", "@", "?", "#"] {
            rest = rest.replace(&format!("{open}{mark}{close}"), mark);
        }
    }
    Some(format!("{scheme}://{rest}"))
}

fn report<const STEP: usize>(
    place: &mut Place<'_>,
    chars: Chars<'_, STEP>,
    start: &Start,
    host: &Authority,
    end: usize,
) {
    let from = start.from;
    let forms = forms(chars, from, end);
    let written = chars.string(host.host.start, host.host.end);
    let name = if written.contains('\\') {
        idn::refang(&written.replace('\\', ""))
    } else {
        idn::refang(&written)
    };
    let refanged = refanged(&forms.value, host.defanged);
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    let address = literal.split('%').next().unwrap_or_default();
    let digit = address
        .bytes()
        .next_back()
        .is_some_and(|b| b.is_ascii_digit());
    let range = if digit && let Ok(a) = address.parse::<Ipv4Addr>() {
        reserved::v4(a)
    } else if address.contains(':')
        && let Ok(a) = address.parse::<Ipv6Addr>()
    {
        reserved::v6(a)
    } else {
        reserved::Range {
            reserved: reserved::name(host.ascii.as_deref().unwrap_or(&name)),
            range: None,
        }
    };
    let unicode = idn::unicode(&name);
    let fields = fields(&[
        ("host", Some(name.as_str())),
        ("host_ascii", host.ascii.as_deref()),
        ("host_unicode", unicode.as_deref()),
        ("refanged", refanged.as_deref()),
        ("unescaped", forms.unescaped.as_deref()),
        ("raw", forms.raw.as_deref()),
        ("reserved", range.reserved),
        ("range", range.range),
    ]);
    let said = Said {
        carver: "url",
        kind: "url",
        value: Some(forms.value.as_str()),
        fields: &fields,
    };
    place.report::<STEP>(&said, from, end);
}
