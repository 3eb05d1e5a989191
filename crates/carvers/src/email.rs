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
//! not an address. Of the signs that RFC 5322 allows besides (`!#$&'*/=?^`{|}~`) most part words in
//! texts: they belong to it between angle brackets, and where what is before shows it: `o'brien`,
//! `bounce+17=ann=example.com` (VERP), `prvs=...` (BATV), `SRS0=...`. A user of a URL is no address.

use crate::chars::{ALNUM, Chars, LOCAL, URL, is};
use crate::feature::{Place, Said, fields};
use crate::{domain, idn, reserved, tld, url};

pub(crate) const VERSION: u32 = 2;

/// Longest local part (RFC 5321 section 4.5.3.1.1).
const LOCAL_PART: usize = 64;

/// Looks at the `@` at byte `at`, or at the bracket before one.
#[inline(never)]
pub(crate) fn visit<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    let chars = place.chars::<STEP>();
    let marked = chars.at(at) != b'@';
    let percent =
        chars.at(at) == b'%' && chars.at(at + STEP) == b'4' && chars.at(at + 2 * STEP) == b'0';
    let mark = if marked {
        let words = [&b"@"[..], b"at"];
        let len = words.iter().find_map(|w| idn::bracketed(chars, at, w));
        let Some(len) = len.or(percent.then_some(3 * STEP)) else {
            return;
        };
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
    // `user@host@gateway`: nobody's address.
    if chars.before(from) == b'@' || chars.at(domain.to) == b'@' || is_user(chars, from) {
        return;
    }
    let (user, raw);
    if percent {
        // The first sign may be an encoded one.
        if chars.before(from) == b'%' {
            from -= STEP;
        }
        let (skipped, name) = unescaped(&chars.string(from, at));
        user = name;
        from += skipped * STEP;
        raw = Some(chars.string(from, domain.to));
        if user.is_empty() {
            return;
        }
    } else {
        from = whole_local(chars, from, domain.to);
        user = chars.string(from, at);
        raw = None;
    }
    let value = match &raw {
        Some(_) => format!("{user}@{}", chars.string(host, domain.to)),
        None => chars.string(from, domain.to),
    };
    let written = chars.string(host, domain.to);
    let refanged = ((marked && !percent) || domain.defanged)
        .then(|| format!("{user}@{}", idn::refang(&written)));
    let foreign = domain.beyond.then(|| format!("{user}@{}", domain.ascii));
    let fields = fields(&[
        ("ascii", foreign.as_deref()),
        ("refanged", refanged.as_deref()),
        ("raw", raw.as_deref()),
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

/// The local part that ends a text in which signs are percent-encoded: the characters before it, and what it means. An
/// encoded sign that no local part has parts it from what is before.
fn unescaped(text: &str) -> (usize, String) {
    let signs = [("%2B", "+"), ("%2D", "-"), ("%2E", "."), ("%5F", "_")];
    let mut from = 0;
    for (at, _) in text.match_indices('%') {
        let code = text.get(at..at + 3).unwrap_or_default();
        if !signs.iter().any(|s| s.0.eq_ignore_ascii_case(code)) {
            from = (at + code.len().max(1)).min(text.len());
        }
    }
    let mut user = text.get(from..).unwrap_or_default().to_owned();
    for (code, sign) in signs {
        user = user
            .replace(code, sign)
            .replace(&code.to_ascii_lowercase(), sign);
    }
    (text.get(..from).map_or(0, |t| t.chars().count()), user)
}

/// The first byte of a local part with signs that part words elsewhere: `from` is where it would begin without them.
fn whole_local<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, end: usize) -> usize {
    let atom = |c: u8| {
        is(c, LOCAL)
            || matches!(c, b'!' | b'#'..=b'\'' | b'*' | b'/' | b'=' | b'?' | b'^' | b'`' | b'{'..=b'~')
    };
    let before = chars.before(from);
    if is(before, LOCAL) || !atom(before) {
        return from;
    }
    let mut p = from;
    for _ in 0..LOCAL_PART {
        if !atom(chars.before(p)) {
            break;
        }
        p -= STEP;
    }
    if chars.before(p) == b'<' && chars.at(end) == b'>' {
        return p;
    }
    let text = chars.string(p, from);
    if before == b'\'' {
        // A name, and no string: that would end behind the address, or have a letter for its kind before it.
        let name = text.strip_suffix('\'').unwrap_or_default();
        let letters = name.len()
            - name
                .trim_end_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let kind = letters == 1 && name.ends_with(['b', 'B', 'u', 'U', 'r', 'R', 'f', 'F', 'N']);
        let named = letters > 0 && !kind && chars.at(end) != b'\'';
        return if named {
            from - (letters + 1) * STEP
        } else {
            from
        };
    }
    let lower = text.to_ascii_lowercase();
    let tagged = ["prvs=", "srs0=", "srs1=", "srs0+", "btv1="];
    let verp = text.split('=').next().is_some_and(|l| l.contains('+'));
    let plain = !text.contains(['&', '?', '/', '{', '|']);
    let whole = before == b'=' && plain && (verp || tagged.iter().any(|t| lower.starts_with(t)));
    if whole { p } else { from }
}

/// Bytes of a URL's user and password that are looked at.
const USER: usize = 256;

/// True where byte `from` is in the user's part of a URL: what is before `@` there is a name or a password.
fn is_user<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> bool {
    let mut p = from;
    let mut secret = false;
    for _ in 0..USER {
        match chars.before(p) {
            b'/' => break,
            b':' => secret = true,
            c if is(c, URL) && !matches!(c, b'?' | b'#') => {}
            _ => return false,
        }
        p -= STEP;
    }
    let Some(colon) = p.checked_sub(3 * STEP) else {
        return false;
    };
    if chars.before(p) != b'/' || chars.at(colon + STEP) != b'/' || chars.at(colon) != b':' {
        return false;
    }
    let word = chars
        .back(colon, ALNUM, 8)
        .map_or_else(String::new, |w| chars.string(w, colon));
    let people = ["mailto", "sip", "sips", "xmpp", "acct", "im"];
    !people.iter().any(|s| word.eq_ignore_ascii_case(s)) && (secret || url::begins(chars, colon))
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
    // Behind `%40` the two digits are of the run.
    let fits = |r: &idn::Run| {
        r.from == host || (r.from + 2 * STEP == host && chars.before(r.from) == b'%')
    };
    let run = idn::run(chars, host).ok().filter(fits)?;
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
            let meant = idn::dotted(&idn::refang(n));
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
