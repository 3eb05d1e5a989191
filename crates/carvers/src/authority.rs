//! The part of a URL between the slashes: who, which host, which port.
//!
//! ```text
//! user:password@bücher.example[.]com:8080          RFC 3986 section 3.2
//! [fe80::1%25eth0]:8080                            RFC 6874
//! ```
//!
//! A host is letters, digits, `-`, `_` and dots, in any script that the standards for names allow,
//! or an IPv6 address in brackets. What comes behind it decides whether it is whole: `$`, `{` and
//! most of `%` mean that a template goes on.

use crate::chars::{ALNUM, Chars, DIGIT, HOST, URL, is};
use crate::escape::{How, token};
use crate::{idn, tld, url};
use std::net::Ipv6Addr;
use std::ops::Range;

/// Bytes looked at for the end of a user's name and password.
const USER: usize = 512;
/// Longest host name, in characters.
const LONGEST: usize = 254;

/// An authority.
#[derive(Debug, Default)]
pub(crate) struct Authority {
    /// The host's bytes in the image.
    pub(crate) host: Range<usize>,
    /// Where it ends, port and all.
    pub(crate) end: usize,
    /// A path, query or fragment follows.
    pub(crate) more: bool,
    /// The name as the name system has it, where it has letters beyond ASCII.
    pub(crate) ascii: Option<String>,
    /// It has dots in brackets or with a backslash.
    pub(crate) defanged: bool,
}

/// Reads the authority at byte `at`.
pub(crate) fn authority<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<Authority> {
    let from = user_end(chars, at);
    let mut a = if chars.at(from) == b'[' {
        literal(chars, from)?
    } else {
        name(chars, from)?
    };
    port(chars, &mut a)?;
    Some(a)
}

/// Where the host begins: behind the last `@` before the authority's end.
fn user_end<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> usize {
    let (mut p, mut from) = (at, at);
    while p < at + USER * STEP {
        let Some(t) = token(chars, p) else { break };
        let fits = match t.c {
            '/' | '?' | '#' => false,
            c if c.is_ascii() => u8::try_from(c).is_ok_and(|b| is(b, URL)),
            c => url::in_path(c),
        };
        if !fits {
            break;
        }
        p += t.len;
        if t.c == '@' {
            from = p;
        }
    }
    from
}

/// An IPv6 address in brackets, with or without a zone.
fn literal<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> Option<Authority> {
    let mut p = from + STEP;
    let inner = |c: u8| is(c, HOST) || matches!(c, b':' | b'%' | b'~');
    while inner(chars.at(p)) && p - from < 80 * STEP {
        p += STEP;
    }
    if chars.at(p) != b']' {
        return None;
    }
    let text = chars.string(from + STEP, p);
    let (address, zone) = text.split_once('%').unwrap_or((&text, "-"));
    address.parse::<Ipv6Addr>().ok()?;
    let end = p + STEP;
    (!zone.is_empty()).then(|| Authority {
        host: from..end,
        end,
        ..Authority::default()
    })
}

/// A host's name, or an IPv4 address.
fn name<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> Option<Authority> {
    let (mut p, mut beyond, mut defanged, mut n) = (from, false, false, 0);
    while n <= LONGEST {
        let next = if is(chars.at(p), HOST) {
            STEP
        } else if let Some(len) = letter(chars, p) {
            beyond = true;
            len
        } else if let Some(len) = dot(chars, p) {
            defanged |= !chars.beyond(p);
            beyond |= chars.beyond(p);
            len
        } else {
            break;
        };
        p += next;
        n += 1;
    }
    // Another URL follows without a gap: `http://a.example.nethttp://b.example.net`.
    if chars.at(p) == b':'
        && let Some(next) = url::scheme_before(chars, p).filter(|s| *s > from)
    {
        p = next;
    }
    if n > LONGEST || !(is(chars.at(from), ALNUM) || chars.beyond(from)) {
        return None;
    }
    let mut a = Authority {
        host: from..p,
        end: p,
        defanged,
        ..Authority::default()
    };
    if beyond {
        international(chars, &mut a)?;
    }
    // What follows a path keeps the dot of a full name; a sentence's is no part of it.
    let goes_on = matches!(chars.at(a.end), b'/' | b':' | b'?' | b'#');
    while !goes_on && matches!(chars.before(a.end), b'.' | b'-' | b'_') {
        a.end -= STEP;
    }
    let mut last = a.end;
    while chars.before(last) == b'.' && last > from {
        last -= STEP;
    }
    let whole = is(chars.before(last), ALNUM) || chars.beyond_before(last);
    a.host = from..a.end;
    // One letter is a drive or a variable.
    (whole && (last - from > STEP)).then_some(a)
}

fn letter<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<usize> {
    if chars.beyond(p) {
        idn::letter_at(chars, p)
    } else {
        None
    }
}

/// The bytes of a dot that is not written as one, where a name goes on behind it.
fn dot<const STEP: usize>(chars: Chars<'_, STEP>, p: usize) -> Option<usize> {
    let len = match chars.at(p) {
        b'[' | b'(' | b'{' => idn::dot_at(chars, p)?,
        b'\\' if chars.at(p + STEP) == b'.' => 2 * STEP,
        _ if chars.beyond(p) => {
            let (c, n) = chars.char_at(p)?;
            idn::is_stop(c).then_some(n)?
        }
        _ => return None,
    };
    let named = is(chars.at(p + len), ALNUM) || letter(chars, p + len).is_some();
    named.then_some(len)
}

/// Reads a host with letters beyond ASCII, and cuts off words of scripts without spaces.
fn international<const STEP: usize>(chars: Chars<'_, STEP>, a: &mut Authority) -> Option<()> {
    let text = chars.string(a.host.start, a.host.end);
    let meant = |t: &str| idn::dotted(&idn::refang(&t.replace('\\', "")));
    let trimmed = text.trim_end_matches(['.', '-', '_']);
    let whole = idn::ascii(&meant(trimmed));
    if whole.as_deref().is_some_and(tld::known) {
        a.ascii = whole;
        return Some(());
    }
    if let Some(n) = idn::cut(&text) {
        let kept = &text[..n];
        a.host.end = a.host.start + idn::bytes::<STEP>(kept);
        a.end = a.host.end;
        if !kept.is_ascii() {
            a.ascii = Some(idn::ascii(&meant(kept))?);
        }
        return Some(());
    }
    a.ascii = Some(whole?);
    Some(())
}

/// Reads the port and looks at what follows; `None` where the host can't be whole.
fn port<const STEP: usize>(chars: Chars<'_, STEP>, a: &mut Authority) -> Option<()> {
    let escaped = || {
        let t = token(chars, a.end).filter(|t| t.c == ':' && t.how == How::Escaped)?;
        is(chars.at(a.end + t.len), DIGIT).then_some(t.len)
    };
    let colon = if chars.at(a.end) == b':' {
        Some(STEP)
    } else if let Some(len) = idn::bracketed(chars, a.end, b":") {
        a.defanged = true;
        Some(len)
    } else {
        escaped()
    };
    if let Some(len) = colon {
        let from = a.end + len;
        let to = chars.forward(from, DIGIT, 6);
        let next = chars.at(to);
        let digits = chars.string(from, to);
        if to > from {
            if digits.parse::<u16>().is_err() || is(next, ALNUM) {
                return None;
            }
            a.end = to;
        } else if matches!(next, b'/' | b'?' | b'#') {
            a.end = to;
        } else {
            // A name before a password is no host.
            let dotted = chars.string(a.host.start, a.host.end).contains(['.', ':']);
            return (dotted || !is(next, ALNUM)).then_some(());
        }
    }
    let slash = [b"/", b"?", b"#"]
        .iter()
        .any(|w| idn::bracketed(chars, a.end, *w).is_some());
    a.defanged |= slash;
    let next = token(chars, a.end).map_or('\0', |t| t.c);
    a.more = slash || matches!(next, '/' | '?' | '#');
    let quoted = |h: &[u8]| {
        chars.at(a.end + STEP) == h[0] && chars.at(a.end + 2 * STEP).eq_ignore_ascii_case(&h[1])
    };
    match next {
        '$' | '{' => None,
        // A percent sign ends a host only where it stands for what ends one.
        '%' => [
            b"2F", b"3F", b"23", b"22", b"27", b"3C", b"3E", b"20", b"26", b"0A", b"0D",
        ]
        .iter()
        .any(|h| quoted(*h))
        .then_some(()),
        _ => Some(()),
    }
}
