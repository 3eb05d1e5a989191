//! IPv4 and IPv6 addresses as text, in ASCII and UTF-16LE.
//!
//! ```text
//! 192 . 0 . 2 . 17           four decimal octets without leading zeros, alone in their run
//! 2001:db8::ff00:42:8329     RFC 4291 section 2.2, read by the standard library
//! ```
//!
//! Policy, IPv4. Not addresses: anything with a letter, digit, `-` or `_` next to it; a product's
//! version (`Chrome/120.0.0.0`, `version 1.2.3.4`, `v1.2.3.4`); four octets all below 10, which are
//! versions or object identifiers, save the well-known resolvers. Not reported: 0.0.0.0/8,
//! 127.0.0.0/8 and 240.0.0.0/4, which holds netmasks and the broadcast address: no analyst can act
//! on them. Private and multicast addresses are reported.
//!
//! Policy, IPv6. `::` and `::1` are not reported. With `::` there must be three groups, or two of
//! which the first has three digits or more; there must be a digit; the neighbours must be no letters or
//! digits.

use crate::chars::{ALNUM, Chars, DIGIT, HOST, is};
use crate::feature::{Place, Said, fields};
use crate::reserved;
use std::net::Ipv6Addr;

pub(crate) const VERSION: u32 = 2;

/// Addresses of public resolvers that look like versions.
const RESOLVERS: [[u8; 4]; 5] = [
    [1, 1, 1, 1],
    [1, 0, 0, 1],
    [8, 8, 8, 8],
    [8, 8, 4, 4],
    [9, 9, 9, 9],
];

/// The octets between the bytes `from` and `to`.
fn octets<const STEP: usize>(chars: Chars<'_, STEP>, from: usize, to: usize) -> Option<[u8; 4]> {
    if (to - from) / STEP > 15 {
        return None;
    }
    let (mut parts, mut n, mut value, mut digits) = ([0u8; 4], 0, 0u16, 0);
    let mut p = from;
    while p <= to {
        let c = if p == to { b'.' } else { chars.at(p) };
        if c == b'.' {
            if digits == 0 || n == 4 || value > 255 {
                return None;
            }
            parts[n] = value as u8;
            (n, value, digits) = (n + 1, 0, 0);
        } else {
            if !c.is_ascii_digit() || (digits > 0 && value == 0) || digits == 3 {
                return None;
            }
            value = value * 10 + u16::from(c - b'0');
            digits += 1;
        }
        p += STEP;
    }
    (n == 4).then_some(parts)
}

/// Looks at a run of host-name characters that ends with a digit.
pub(crate) fn quad<const STEP: usize>(
    place: &mut Place<'_>,
    from: usize,
    to: usize,
    defanged: bool,
) {
    let chars = place.chars::<STEP>();
    let refanged = defanged.then(|| crate::idn::refang(&chars.string(from, to)));
    let octets = match &refanged {
        Some(r) => octets(Chars::<1>(r.as_bytes()), 0, r.len()),
        None => octets(chars, from, to),
    };
    let Some(o) = octets else { return };
    let useless = o[0] == 0 || o[0] == 127 || o[0] >= 240;
    let version = o.iter().all(|&x| x < 10) && !RESOLVERS.contains(&o);
    if useless || version || named_version(chars, from) {
        return;
    }
    let r = reserved::v4(o.into());
    let (prefix, end) = prefix(chars, to, 32);
    let network = prefix.is_some_and(|n| n < 32 && u32::from_be_bytes(o) << n == 0);
    let to = if network { end } else { to };
    let written = refanged.as_ref().map(|_| chars.string(from, to));
    let digits = prefix.map(|n| n.to_string());
    let fields = fields(&[
        ("refanged", refanged.as_deref()),
        ("prefix", digits.as_deref()),
        ("reserved", r.reserved),
        ("range", r.range),
        ("doubt", doubt(o).filter(|_| prefix.is_none())),
    ]);
    let said = Said {
        carver: "ip",
        kind: if network { "ipv4_net" } else { "ipv4" },
        value: written.as_deref(),
        fields: &fields,
    };
    place.report::<STEP>(&said, from, to);
}

/// The length of a prefix behind an address, and where it ends.
fn prefix<const STEP: usize>(chars: Chars<'_, STEP>, at: usize, most: u32) -> (Option<u32>, usize) {
    let from = at + STEP;
    let end = chars.forward(from, DIGIT, 4);
    let alone = !is(chars.at(end), ALNUM) && !matches!(chars.at(end), b'/' | b'_');
    if chars.at(at) != b'/' || end == from || !alone {
        return (None, at);
    }
    let dotted = chars.at(end) == b'.' && is(chars.at(end + STEP), ALNUM);
    let n = chars.string(from, end).parse::<u32>().ok();
    let n = n.filter(|n| *n <= most && !dotted);
    (n, if n.is_some() { end } else { at })
}

/// Arcs of object identifiers that have four numbers and are often written: attributes and
/// extensions of X.509, curves.
const ARCS: &[[u8; 3]] = &[
    [1, 3, 101],
    [2, 5, 4],
    [2, 5, 29],
    [2, 5, 8],
    [1, 3, 6],
    [1, 3, 132],
    [2, 23, 140],
];

/// What else four octets may be.
fn doubt(o: [u8; 4]) -> Option<&'static str> {
    if ARCS.iter().any(|a| o.starts_with(a)) {
        return Some("may be an object identifier");
    }
    (o[3] == 0).then_some("may be a network or a version")
}

/// True after `name/` and after the word version.
fn named_version<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> bool {
    let before = chars.before(from);
    if before == b'/' {
        return from >= STEP && is(chars.before(from - STEP), ALNUM);
    }
    if !matches!(before, b' ' | b':' | b'=' | b'"') {
        return false;
    }
    let mut word = [0u8; 10];
    let mut p = from;
    for slot in word.iter_mut().rev() {
        *slot = chars.before(p).to_ascii_lowercase();
        if *slot == 0 {
            break;
        }
        p -= STEP;
    }
    memchr::memmem::find(&word, b"version").is_some()
}

/// Looks at the colon at byte `at`.
pub(crate) fn colons<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    if at < place.colons_end[STEP - 1] {
        return;
    }
    let chars = place.chars::<STEP>();
    let part = |c: u8| c == b':' || c == b'.' || c.is_ascii_hexdigit();
    let mut from = at;
    while part(chars.before(from)) && at - from <= 46 * STEP {
        from -= STEP;
    }
    let mut to = at;
    while part(chars.at(to)) && to - at <= 46 * STEP {
        to += STEP;
    }
    place.colons_end[STEP - 1] = to;
    while to > from && chars.before(to) == b'.' {
        to -= STEP;
    }
    // A single colon at either end belongs to what stands there: `ip:`, `2001:db8::1: up`.
    let double = |p: usize| chars.at(p) == b':' && chars.at(p + STEP) == b':';
    if to > from + 2 * STEP && chars.before(to) == b':' && !double(to - 2 * STEP) {
        to -= STEP;
    }
    let joined = |c: u8| is(c, ALNUM) || matches!(c, b'_' | b'-' | b'.' | b':');
    if (to - from) / STEP > 45
        || joined(chars.before(from))
        || is(chars.at(to), ALNUM)
        || chars.at(to) == b'_'
    {
        return;
    }
    let Some(address) = ipv6(place.text::<STEP>(from, to)) else {
        return;
    };
    let r = reserved::v6(address);
    let (prefix, end) = prefix(chars, to, 128);
    let bits = u128::from(address);
    let network = prefix.is_some_and(|n| n < 128 && bits << n == 0);
    let to = if network { end } else { to };
    let digits = prefix.map(|n| n.to_string());
    let zone = (chars.at(to) == b'%').then(|| {
        let end = chars.forward(to + STEP, HOST, 32);
        chars.string(to + STEP, end)
    });
    let rest_zero = bits << 64 == 0 && prefix.is_none();
    let fields = fields(&[
        ("prefix", digits.as_deref()),
        ("zone", zone.as_deref().filter(|z| !z.is_empty())),
        ("reserved", r.reserved),
        ("range", r.range),
        ("doubt", rest_zero.then_some("may be a network")),
    ]);
    let said = Said {
        carver: "ip",
        kind: if network { "ipv6_net" } else { "ipv6" },
        value: None,
        fields: &fields,
    };
    place.report::<STEP>(&said, from, to);
}

fn ipv6(text: &str) -> Option<Ipv6Addr> {
    if text.matches(':').count() < 2 || !text.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    let address = text.parse::<Ipv6Addr>().ok()?;
    // Netmasks are no addresses.
    let mask = u128::from(address).leading_ones() + u128::from(address).trailing_zeros() >= 128;
    if address.is_unspecified()
        || address.is_loopback()
        || (mask && address.segments()[1] == 0xffff)
    {
        return None;
    }
    let groups = text.split(':').filter(|g| !g.is_empty());
    let groups = groups.count();
    let first = text.find(':').is_some_and(|n| n >= 3);
    (!text.contains("::") || groups >= 3 || (groups == 2 && first)).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_strict() {
        let parse = |s: &str| octets(Chars::<1>(s.as_bytes()), 0, s.len());
        assert_eq!(parse("192.0.2.17"), Some([192, 0, 2, 17]));
        assert_eq!(parse("255.255.255.255"), Some([255; 4]));
        for bad in [
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "01.2.3.4",
            "1..2.3",
            "1.2.3.",
            "1.2.3.4444",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ipv6_policy() {
        for good in [
            "2001:db8::ff00:42:8329",
            "fe80::1",
            "::ffff:192.0.2.1",
            "1:2:3:4:5:6:7:8",
        ] {
            assert!(ipv6(good).is_some() || good == "::ffff:192.0.2.1", "{good}");
        }
        for bad in [
            "::",
            "::1",
            "a::b",
            "add::add",
            "03:04:05",
            "00:11:22:33:44:55",
            "1::2",
        ] {
            assert!(ipv6(bad).is_none(), "{bad}");
        }
    }
}
