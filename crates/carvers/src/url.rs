//! URLs, in ASCII and UTF-16LE.
//!
//! ```text
//! scheme :// [user@] host [:port] [/path?query#fragment]         RFC 3986
//! ```
//!
//! Only known schemes, since `://` alone is everywhere in templates. A scheme need not begin a
//! word: strings in memory often follow another without a gap. A URL ends at the first character
//! that no URL has, after 2,048 characters, or before `,`, `;`, `|` or `(` and the next scheme;
//! full stops and unbalanced brackets at its end are not part of it. A URL inside another, as a
//! parameter, is part of that one and not reported again.

use crate::chars::{ALNUM, ALPHA, Chars, DIGIT, HOST, URL, is};
use crate::feature::Place;

pub(crate) const VERSION: u32 = 1;

/// Longest URL, in characters.
const LONGEST: usize = 2048;

/// The schemes that are looked for.
const SCHEMES: &[&str] = &[
    "http",
    "https",
    "hxxp",
    "hxxps",
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

/// The first byte of the known scheme that ends before the colon at byte `at`.
fn scheme<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<usize> {
    let mut word = [0u8; 10];
    let mut p = at;
    let mut best = None;
    for i in (0..word.len()).rev() {
        let c = chars.before(p);
        if !is(c, ALNUM) {
            break;
        }
        p -= STEP;
        word[i] = c.to_ascii_lowercase();
        if SCHEMES.iter().any(|s| s.as_bytes() == &word[i..]) {
            best = Some(p);
        }
    }
    best
}

/// Looks at the colon of `://` at byte `at`.
pub(crate) fn visit<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    let chars = place.chars::<STEP>();
    let Some(from) = scheme(chars, at) else {
        return;
    };
    if !place.core.contains(&from) || inside(chars, from) {
        return;
    }
    let end = trim(chars, at + 3 * STEP, body_end(chars, from, at));
    if host(chars, at + 3 * STEP, end) {
        place.report::<STEP>("url", "url", from, end);
    }
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
        if !is(c, URL) {
            return false;
        }
        p -= STEP;
        let is_start = c == b':' && chars.at(p + STEP) == b'/' && chars.at(p + 2 * STEP) == b'/';
        if is_start && p + 2 * STEP < from && scheme(chars, p).is_some() {
            return true;
        }
    }
    false
}

/// Where the characters of the URL end.
fn body_end<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, at: usize) -> usize {
    let mut p = at + 3 * STEP;
    let limit = from + LONGEST * STEP;
    while p < limit {
        let c = chars.at(p);
        if !is(c, URL) {
            break;
        }
        let start = c == b':' && chars.at(p + STEP) == b'/' && chars.at(p + 2 * STEP) == b'/';
        let next = if start { scheme(chars, p) } else { None };
        if let Some(next) = next.filter(|&n| splits(chars.before(n))) {
            return next - STEP;
        }
        p += STEP;
    }
    p
}

/// Takes off what ends a sentence or closes a bracket that the URL did not open.
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
    while p > from {
        match chars.before(p) {
            b'.' | b',' | b';' | b':' | b'!' | b'?' | b'*' | b'(' | b'[' => {}
            b')' if balance[0] < 0 => balance[0] += 1,
            b']' if balance[1] < 0 => balance[1] += 1,
            _ => break,
        }
        p -= STEP;
    }
    p
}

/// True when a host stands between the bytes `from` and `end`, with or without user and port.
fn host<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, end: usize) -> bool {
    let mut start = from;
    let mut stop = from;
    // The authority ends at the first of these; user names and passwords end at its last '@'.
    while stop < end && !matches!(chars.at(stop), b'/' | b'?' | b'#') {
        if chars.at(stop) == b'@' {
            start = stop + STEP;
        }
        stop += STEP;
    }
    if chars.at(start) == b'[' {
        let close = chars.forward(start + STEP, crate::chars::HEX, 4);
        return chars.at(close) == b':';
    }
    let name = chars.forward(start, HOST, 254).min(stop);
    let letter = is(chars.at(start), ALNUM) && is(chars.before(name), ALNUM | ALPHA);
    let port = chars.at(name) == b':' && name < stop;
    let digits = if port {
        chars.forward(name + STEP, DIGIT, 5)
    } else {
        name
    };
    // One letter is a drive or a variable.
    letter && name - start > STEP && digits == stop
}
