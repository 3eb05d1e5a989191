//! Names, addresses of people and URLs as other texts write them: with characters that IDNA leaves out, as forms encode
//! them, in chats, wikis and pages of pages. What is expected comes from UTS 46 and RFC 5891 (names), RFC 5322, 5321 and
//! 6531 (addresses), RFC 3986, HTML and RFC 8259 (URLs), RFC 2782 and 8552 (services).

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Rows, all, whole};
use serde_json::Value;

fn scan(text: &str) -> Rows {
    let mut image = vec![0x81, 0];
    image.extend_from_slice(text.as_bytes());
    image.extend_from_slice(&[0, 0, 0x81]);
    image.resize(4096, 0x81);
    whole(&all(), &image)
}

fn scan_wide(text: &str) -> Rows {
    let mut image = vec![0x81, 0];
    image.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    image.extend_from_slice(&[0, 0, 0x81]);
    image.resize(4096, 0x81);
    whole(&all(), &image)
}

fn values(rows: &Rows, kind: &str) -> Vec<String> {
    let of = rows.of("finding").filter(|f| f["kind"] == kind);
    of.map(|f| f["value"].as_str().unwrap().to_owned())
        .collect()
}

fn field(text: &str, kind: &str, name: &str) -> Value {
    let rows = scan(text);
    let row = rows.of("finding").find(|f| f["kind"] == kind);
    row.map_or(Value::Null, |r| r["fields"][name].clone())
}

#[test]
fn a_name_goes_on_over_what_idna_leaves_out() {
    for (text, want) in [
        ("bad\u{ad}host.com", &["bad\u{ad}host.com"][..]),
        ("bad\u{200b}host.com", &["bad\u{200b}host.com"]),
        ("evil\u{2011}host.com", &["evil\u{2011}host.com"]),
        ("evil.co\u{ad}m", &["evil.co\u{ad}m"]),
        ("bad-host.com\u{200b}next", &[]),
        ("\u{200b}bad-host.com\u{200b}", &["bad-host.com"]),
        ("münchen。example.com", &["münchen。example.com"]),
        ("谢谢。bad-host.com。再见", &["bad-host.com"]),
    ] {
        assert_eq!(values(&scan(text), "domain"), want, "{text:?}");
        assert_eq!(values(&scan_wide(text), "domain"), want, "{text:?}");
    }
    let ascii = |text| field(text, "domain", "ascii");
    assert_eq!(ascii("bad\u{ad}host.com"), "badhost.com");
    assert_eq!(ascii("münchen。example.com"), "xn--mnchen-3ya.example.com");
}

#[test]
fn hosts_of_services_forms_and_unknown_schemes() {
    for (text, want) in [
        ("_dmarc.bad-host.net", &["_dmarc.bad-host.net"][..]),
        (
            "_ldap._tcp.dc._msdcs.corp.bad-host.net",
            &["_ldap._tcp.dc._msdcs.corp.bad-host.net"],
        ),
        (
            "s1._domainkey.bad-host.net",
            &["s1._domainkey.bad-host.net"],
        ),
        ("_self.bad-host.net", &[]),
        ("u=https%3A%2F%2Fc2.bad-host.net%2Fx", &["c2.bad-host.net"]),
        ("h%3Dbad-host.net", &["bad-host.net"]),
        ("100%bad-host.net", &[]),
        ("foo://bad-host.net/x", &["bad-host.net"]),
        ("http://bad-host.net/x", &[]),
        ("src=\"//cdn.bad-host.net/x.js\"", &["cdn.bad-host.net"]),
        ("/srv/bad-host.net", &[]),
        ("ann@-bad-host.net", &[]),
        ("/-bad-host.net", &[]),
    ] {
        assert_eq!(values(&scan(text), "domain"), want, "{text}");
    }
    assert_eq!(values(&scan("ip%3D203.0.113.9"), "ipv4"), ["203.0.113.9"]);
}

#[test]
fn addresses_are_whole() {
    for (text, want) in [
        ("o'brien@bad-host.net", &["o'brien@bad-host.net"][..]),
        ("mail=d'angelo@bad-host.net", &["d'angelo@bad-host.net"]),
        ("'ann@bad-host.net'", &["ann@bad-host.net"]),
        ("b'ann@bad-host.net'", &["ann@bad-host.net"]),
        ("N'ann@bad-host.net', 1", &["ann@bad-host.net"]),
        ("<a/b=c!d@bad-host.net>", &["a/b=c!d@bad-host.net"]),
        ("user=ann@bad-host.net&x", &["ann@bad-host.net"]),
        (
            "bounce+7=ann=example.com@bad-host.net",
            &["bounce+7=ann=example.com@bad-host.net"],
        ),
        (
            "prvs=0123456789=ann@bad-host.net",
            &["prvs=0123456789=ann@bad-host.net"],
        ),
        ("q=a+b&to=ann@bad-host.net", &["ann@bad-host.net"]),
        ("user@host@bad-host.net", &[]),
        ("http://user:pw@bad-host.net/", &[]),
        ("redis://:pw@bad-host.net:6379/0", &[]),
        ("ssh://git@bad-host.net/x", &[]),
        ("foo://user:pw@bad-host.net/", &[]),
        ("mailto:ann@bad-host.net?x", &["ann@bad-host.net"]),
        ("sip://ann@bad-host.net", &["ann@bad-host.net"]),
        (
            "http://a.example.net/?m=ann@bad-host.net",
            &["ann@bad-host.net"],
        ),
        ("email=ann%40bad-host.net&pass=x", &["ann@bad-host.net"]),
        ("to%3Dbob%2Btag%40bad-host.net", &["bob+tag@bad-host.net"]),
        ("q=%20ann%40bad-host.net", &["ann@bad-host.net"]),
        ("ann{at}bad-host.net", &["ann{at}bad-host.net"]),
    ] {
        assert_eq!(values(&scan(text), "email"), want, "{text}");
    }
    assert_eq!(
        field("to%3Dbob%2Btag%40bad-host.net", "email", "raw"),
        "bob%2Btag%40bad-host.net"
    );
}

#[test]
fn urls_end_where_the_text_that_quotes_them_says() {
    for (text, want) in [
        ("<http://a.bad-host.net/a|words>", "http://a.bad-host.net/a"),
        (
            "[[http://a.bad-host.net/a|words]]",
            "http://a.bad-host.net/a",
        ),
        (
            r"https://a.bad-host.net/x\u0026quot;",
            "https://a.bad-host.net/x",
        ),
        (
            r"https://a.bad-host.net/x\x26lt;b",
            "https://a.bad-host.net/x",
        ),
        (
            r"https://a.bad-host.net/?a=1\u0026amp;b=2",
            "https://a.bad-host.net/?a=1&amp;b=2",
        ),
        ("http://a.bad-host.net/x&quot", "http://a.bad-host.net/x"),
        (
            "http://a.bad-host.net/?a&quot=1",
            "http://a.bad-host.net/?a&quot=1",
        ),
        (
            "http://a.bad-host.net/caf&eacute;",
            "http://a.bad-host.net/café",
        ),
        ("http://a.bad-host.net/x&ndash;y", "http://a.bad-host.net/x"),
        (
            "http://a.bad-host.net[:]8080[/]x",
            "http://a.bad-host.net[:]8080[/]x",
        ),
        (
            r"http\://a.bad-host.net\:8080/x",
            "http://a.bad-host.net:8080/x",
        ),
        (
            "stratum+tcp://pool.bad-host.net:3333",
            "stratum+tcp://pool.bad-host.net:3333",
        ),
        (
            "git+ssh://git@a.bad-host.net/x",
            "git+ssh://git@a.bad-host.net/x",
        ),
        (
            "mongodb+srv://u:p@a.bad-host.net/x",
            "mongodb+srv://u:p@a.bad-host.net/x",
        ),
        ("words+http://a.bad-host.net/", "http://a.bad-host.net/"),
    ] {
        assert_eq!(values(&scan(text), "url"), [want], "{text}");
        assert_eq!(values(&scan_wide(text), "url"), [want], "{text} in UTF-16");
    }
    let refanged = field("http://a.bad-host.net[:]8080[/]x[?]y", "url", "refanged");
    assert_eq!(refanged, "http://a.bad-host.net:8080/x?y");
    let two = scan("https://a.bad-host.nethttps://b.bad-host.net/y");
    assert_eq!(
        values(&two, "url"),
        ["https://a.bad-host.net", "https://b.bad-host.net/y"]
    );
}
