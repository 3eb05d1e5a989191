//! Names and addresses that the standards set aside: for documentation, for tests, for use inside
//! a network. They are marked, not hidden: malware's authors read the same documents.
//!
//! Sources: RFC 2606 and 6761 (names); IANA's registries of special-purpose addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What sets a name aside.
pub(crate) fn name(host: &str) -> Option<&'static str> {
    let host = host.trim_end_matches('.');
    let mut labels = host.rsplit('.');
    let (last, second) = (labels.next()?, labels.next());
    let is = |l: &str, w: &str| l.eq_ignore_ascii_case(w);
    if ["com", "net", "org"].iter().any(|t| is(last, t)) {
        let example = second.is_some_and(|s| is(s, "example"));
        return example.then_some("documentation (RFC 2606)");
    }
    if ["test", "example", "invalid"].iter().any(|t| is(last, t)) {
        return Some("documentation and tests (RFC 2606)");
    }
    if is(last, "arpa") {
        return Some("infrastructure (RFC 3172)");
    }
    is(last, "localhost").then_some("loopback (RFC 6761)")
}

/// What sets an address aside for examples, and the range that it lies in if that is no public one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// For documentation or measuring only.
    pub(crate) reserved: Option<&'static str>,
    /// A range with a use of its own.
    pub(crate) range: Option<&'static str>,
}

/// A row of IANA's registries: first address, length of the prefix, what for, examples only.
type Row<T> = (T, u32, &'static str, bool);

const V4: &[Row<u32>] = &[
    (0xc000_0200, 24, "documentation (RFC 5737)", true),
    (0xc633_6400, 24, "documentation (RFC 5737)", true),
    (0xcb00_7100, 24, "documentation (RFC 5737)", true),
    (0xe9fc_0000, 24, "documentation (RFC 6676)", true),
    (0xc612_0000, 15, "benchmarking (RFC 2544)", true),
    (0x0a00_0000, 8, "private (RFC 1918)", false),
    (0xac10_0000, 12, "private (RFC 1918)", false),
    (0xc0a8_0000, 16, "private (RFC 1918)", false),
    (0x6440_0000, 10, "shared (RFC 6598)", false),
    (0xa9fe_0000, 16, "link-local (RFC 3927)", false),
    (0xc058_6300, 24, "6to4 relays (RFC 7526)", false),
    (0xc000_0000, 24, "protocol assignments (RFC 6890)", false),
    (0xe000_0000, 4, "multicast (RFC 5771)", false),
];

const V6: &[Row<u128>] = &[
    (0x2001_0db8 << 96, 32, "documentation (RFC 3849)", true),
    (0x3fff << 112, 20, "documentation (RFC 9637)", true),
    (0x2001_0002 << 96, 48, "benchmarking (RFC 5180)", true),
    (0x0100 << 112, 64, "discard-only (RFC 6666)", true),
    (0xfe80 << 112, 10, "link-local (RFC 4291)", false),
    (0xfc00 << 112, 7, "unique local (RFC 4193)", false),
    (0xff00 << 112, 8, "multicast (RFC 4291)", false),
    (0xffff << 32, 96, "IPv4-mapped (RFC 4291)", false),
    (
        0x0064_ff9b << 96,
        96,
        "IPv4/IPv6 translation (RFC 6052)",
        false,
    ),
    (0x2002 << 112, 16, "6to4 (RFC 3056)", false),
    (0x2001 << 112, 32, "Teredo (RFC 4380)", false),
];

/// Looks an IPv4 address up.
pub(crate) fn v4(address: Ipv4Addr) -> Range {
    let a = u32::from(address);
    V4.iter()
        .find(|r| (a ^ r.0) >> (32 - r.1) == 0)
        .map_or_else(Range::default, |r| Range::of(r.2, r.3))
}

/// Looks an IPv6 address up.
pub(crate) fn v6(address: Ipv6Addr) -> Range {
    let a = u128::from(address);
    V6.iter()
        .find(|r| (a ^ r.0) >> (128 - r.1) == 0)
        .map_or_else(Range::default, |r| Range::of(r.2, r.3))
}

impl Range {
    fn of(words: &'static str, examples: bool) -> Self {
        if examples {
            Self {
                reserved: Some(words),
                range: None,
            }
        } else {
            Self {
                reserved: None,
                range: Some(words),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_the_registries_say() {
        let four = |s: &str| v4(s.parse().unwrap());
        assert_eq!(
            four("192.0.2.255").reserved,
            Some("documentation (RFC 5737)")
        );
        assert_eq!(four("192.0.3.0"), Range::default());
        assert_eq!(
            four("198.19.255.255").reserved,
            Some("benchmarking (RFC 2544)")
        );
        assert_eq!(four("172.31.0.1").range, Some("private (RFC 1918)"));
        assert_eq!(four("172.32.0.1"), Range::default());
        assert_eq!(four("8.8.8.8"), Range::default());
        let six = |s: &str| v6(s.parse().unwrap());
        assert_eq!(
            six("2001:db8::1").reserved,
            Some("documentation (RFC 3849)")
        );
        assert_eq!(six("2001:db9::1"), Range::default());
        assert_eq!(
            six("3fff:fff::1").reserved,
            Some("documentation (RFC 9637)")
        );
        assert_eq!(six("fe80::1").range, Some("link-local (RFC 4291)"));
        assert_eq!(six("2001:0:1::1").range, Some("Teredo (RFC 4380)"));
        assert_eq!(six("2a00:1450::1"), Range::default());
    }

    #[test]
    fn names_set_aside() {
        assert_eq!(name("www.EXAMPLE.com"), Some("documentation (RFC 2606)"));
        assert_eq!(name("a.test"), Some("documentation and tests (RFC 2606)"));
        assert_eq!(name("localhost"), Some("loopback (RFC 6761)"));
        assert_eq!(name("myexample.com"), None);
        assert_eq!(name("example.de"), None);
    }
}
