//! E-mail addresses, in UTF-8 and UTF-16LE.
//!
//! ```text
//! first.last+tag @ mail.example.com       RFC 5321 section 4.1.2, as people use it: no quoted
//! jörg           @ bücher.example.com     local parts, no address literals; RFC 6531
//! user          [@] example[.]com         defanged
//! <- 1..64 characters  <- a name with a TLD
//! ```
//!
//! The runs on both sides of the `@` are taken whole; a local part of more than 64 characters is
//! not an address.

use crate::chars::{ALNUM, Chars, LOCAL, is};
use crate::feature::{Place, Said, fields};
use crate::{domain, idn, reserved, tld};

pub(crate) const VERSION: u32 = 2;

/// Longest local part (RFC 5321 section 4.5.3.1.1).
const LOCAL_PART: usize = 64;

/// Looks at the `@` at byte `at`, or at the bracket before one.
#[inline(never)]
pub(crate) fn visit<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    let chars = place.chars::<STEP>();
    let marked = chars.at(at) != b'@';
    let mark = if marked {
        let words = [&b"@"[..], b"at"];
        let len = words.iter().find_map(|w| idn::bracketed(chars, at, w));
        let Some(len) = len else { return };
        len
    } else {
        STEP
    };
    let host = at + mark;
    let Some(domain) = domain_part(place, chars, host) else {
        return;
    };
    let Some(mut from) = local(chars, at) else {
        return;
    };
    let odd = |p: usize| !is(chars.at(p), ALNUM) && chars.at(p) != b'_' && !chars.beyond(p);
    while from < at && odd(from) {
        from += STEP;
    }
    if from == at || chars.before(at) == b'.' {
        return;
    }
    let user = chars.string(from, at);
    let value = chars.string(from, domain.to);
    let written = chars.string(host, domain.to);
    let refanged = (marked || domain.defanged).then(|| format!("{user}@{}", idn::refang(&written)));
    let foreign = domain.beyond.then(|| format!("{user}@{}", domain.ascii));
    let fields = fields(&[
        ("ascii", foreign.as_deref()),
        ("refanged", refanged.as_deref()),
        ("reserved", reserved::name(&domain.ascii)),
    ]);
    let said = Said {
        carver: "email",
        kind: "email",
        value: Some(value.as_str()),
        fields: &fields,
    };
    place.report::<STEP>(&said, from, domain.to);
}

/// The part behind the `@`.
struct Domain {
    to: usize,
    ascii: String,
    beyond: bool,
    defanged: bool,
}

/// Reads a name under a real top-level domain at byte `host`.
fn domain_part<const STEP: usize>(
    place: &mut Place<'_>,
    chars: Chars<'_, STEP>,
    host: usize,
) -> Option<Domain> {
    let run = idn::run(chars, host).ok().filter(|r| r.from == host)?;
    let (beyond, defanged) = (run.beyond, run.defanged);
    let mut to = run.to;
    while to > host && matches!(chars.before(to), b'.' | b'-' | b'_') {
        to -= STEP;
    }
    let ascii = if beyond || defanged {
        let mut name = chars.string(host, to);
        if !name.contains('.') && !defanged {
            return None;
        }
        let read = |n: &str| {
            let meant = idn::refang(n);
            if meant.is_ascii() {
                Some(meant)
            } else {
                idn::ascii(&meant)
            }
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.is_ascii() && !last.contains([']', ')', '}']) && !tld::known(last) {
            return None;
        }
        let whole = read(&name).filter(|a| tld::known(a));
        if let Some(a) = whole {
            a
        } else {
            name.truncate(idn::cut(&name)?);
            to = host + idn::bytes::<STEP>(&name);
            read(&name)?
        }
    } else {
        let name = place.text::<STEP>(host, to);
        if !domain::is_name(name) || !tld::known(name) {
            return None;
        }
        name.to_owned()
    };
    (domain::is_name(&ascii) && tld::known(&ascii)).then_some(Domain {
        to,
        ascii,
        beyond,
        defanged,
    })
}

/// The first byte of the local part that ends at byte `at`.
fn local<const STEP: usize>(chars: Chars<'_, STEP>, at: usize) -> Option<usize> {
    let mut p = at;
    for _ in 0..=LOCAL_PART {
        if is(chars.before(p), LOCAL) {
            p -= STEP;
        } else if chars.beyond_before(p) {
            let Some(n) = idn::letter_before(chars, p) else {
                return Some(p);
            };
            p -= n;
        } else {
            return Some(p);
        }
    }
    None
}
