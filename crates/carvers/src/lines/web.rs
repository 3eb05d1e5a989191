//! Web server logs: Apache's common and combined access logs (mod_log_config; nginx's `combined`
//! is the same, and `vhost_combined` has the server before it), Apache's error log
//! (`ErrorLogFormat`'s default since 2.4, and 2.2's), nginx's error log (`ngx_log.c`), and what
//! else begins with `yyyy/mm/dd hh:mm:ss`, Go's `log` package above all.

use super::record::{
    Emit, Fields, Record, Stamp, clock, common, cut, four, fraction, iso, month, two, weekday, zone,
};
use crate::zone::Civil;
use std::net::{IpAddr, Ipv4Addr};

pub(super) fn access(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_access(line).map(|r| emit(&r)).is_some()
}

fn parse_access(line: &str) -> Option<Record<'_>> {
    let b = line.as_bytes();
    let opens = memchr::memchr_iter(b'[', b).take(16);
    let (open, civil, end) = opens
        .filter_map(|i| {
            let time = common(b, i + 1).or_else(|| iso(b, i + 1));
            time.map(|(c, end)| (i, c, end))
        })
        .find(|t| b.get(t.2) == Some(&b']'))?;
    if open > 0 && !matches!(b[open - 1], b' ' | b'\t') {
        return None;
    }
    let mut f = Fields::new();
    let host = who(line[..open].trim(), &mut f)?;
    let tail = line[end + 1..].strip_prefix([' ', '\t'])?.trim_start();
    let (between, tail) = tail.split_once('"')?;
    // The server's name or port, a cookie, a time: a few words that have no name.
    if between.len() > 128 || between.split_whitespace().count() > 4 {
        return None;
    }
    f.str("between", between.trim());
    let (request, status, tail) = requested(tail)?;
    let (method, rest) = request.split_once(' ').unwrap_or((request, ""));
    let (path, protocol) = match rest.rsplit_once(' ') {
        Some((path, protocol)) if protocol.starts_with("HTTP/") => (path, protocol),
        _ => (rest, ""),
    };
    f.str("method", method);
    f.str("path", path);
    f.str("protocol", protocol);
    f.number("status", status);
    let mut rest = tail;
    let (bytes, tail) = word(rest);
    if bytes == "-" || bytes.parse::<u64>().is_ok() {
        f.number("bytes", bytes);
        rest = tail;
    }
    for name in ["referrer", "agent"] {
        let inner = rest.trim_start().strip_prefix('"');
        let Some((value, tail)) = inner.and_then(quoted) else {
            break;
        };
        f.str(name, value);
        rest = tail;
    }
    behind(rest.trim(), &mut f);
    Some(Record {
        kind: "access",
        stamp: Stamp::Civil(civil),
        raw_time: &line[open + 1..end],
        host,
        program: None,
        pid: None,
        message: request,
        fields: f,
    })
}

/// The request, the status behind it, and what follows. A quote ends the request that no backslash is before, or, where
/// the server writes quotes as they are, the first that a status is behind.
fn requested(text: &str) -> Option<(&str, &str, &str)> {
    let is_status = |s: &str| s == "-" || (s.len() == 3 && s.parse::<u16>().is_ok());
    let (first, tail) = quoted(text)?;
    let (status, rest) = word(tail);
    if is_status(status) {
        return Some((first, status, rest));
    }
    let mut quotes = memchr::memchr_iter(b'"', text.as_bytes()).take(64);
    quotes.find_map(|at| {
        let tail = text[at + 1..].strip_prefix([' ', '\t'])?;
        let (status, rest) = word(tail);
        (status != "-" && is_status(status)).then(|| (&text[..at], status, rest))
    })
}

/// The first word of a text, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once([' ', '\t']).unwrap_or((text, ""))
}

/// The address that a word is, or the first of a list without spaces: with or without port, brackets, zone, and a
/// comma behind it.
fn address(word: &str) -> Option<IpAddr> {
    let word = word.trim_end_matches(',');
    if word.contains(',') {
        return addresses(word)
            .then(|| word.split(',').find_map(address))
            .flatten();
    }
    let word = word
        .strip_prefix('(')
        .and_then(|w| w.strip_suffix(')'))
        .unwrap_or(word);
    let plain = word.trim_start_matches('[').split(']').next()?;
    let plain = plain.split('%').next()?;
    if let Ok(a) = plain.parse() {
        return Some(a);
    }
    let (host, port) = plain.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    host.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

/// True for what stands in a list for an address that is not known.
fn unknown(word: &str) -> bool {
    matches!(word.trim_end_matches(','), "unknown" | "-")
        && (word.ends_with(',') || word == "unknown")
}

/// True for one or more addresses, `unknown` and `-` among them, with commas between.
fn addresses(list: &str) -> bool {
    let mut items = list.split(',').map(str::trim);
    items.clone().any(|i| address(i).is_some())
        && items.all(|i| address(i).is_some() || matches!(i, "unknown" | "-"))
}

/// Reads what stands before the time: `[server] [forwarded for] client identity user`. The server
/// comes back.
///
/// Of addresses that are parted by commas the first is the client, who came through the others;
/// of two that are not, the first is what a proxy said, and the second who connected.
fn who<'a>(head: &'a str, f: &mut Fields<'a>) -> Option<Option<&'a str>> {
    let mut host = None;
    let mut rest = head;
    if rest.is_empty() {
        return Some(None);
    }
    if let Some((list, tail)) = rest.strip_prefix('"').and_then(quoted) {
        // A quoted list of addresses is what proxies said.
        if !addresses(list) && list != "-" {
            return None;
        }
        f.str("forwarded_for", list);
        rest = tail.trim_start();
    } else {
        let (first, tail) = word(rest);
        let ported = first.contains(':') && first.parse::<IpAddr>().is_err();
        let listed = first.contains(',') || matches!(first, "unknown" | "-");
        let leads = (address(first).is_none() && !unknown(first))
            || (ported && !listed && address(first).is_none_or(|_| !first.starts_with('[')));
        if first == "unknown" && address(word(tail).0).is_some() {
            f.str("forwarded_for", first);
            rest = tail.trim_start();
        } else if first == "-" && address(word(tail).0).is_some() {
            rest = tail.trim_start();
        } else if leads && address(word(tail).0).is_some() {
            host = Some(first);
            rest = tail.trim_start();
        }
    }
    let from = rest;
    let (mut client, mut tail) = word(rest);
    let (mut commas, mut list) = (client.contains(','), "");
    while address(client).is_some() || (commas && unknown(client)) {
        let (next, after) = word(tail);
        let more = address(next).is_some() || (client.ends_with(',') && unknown(next));
        if !more {
            break;
        }
        if !client.ends_with(',') {
            // What was read until here is the list; the peer follows.
            list = from[..next.as_ptr() as usize - from.as_ptr() as usize].trim();
        }
        commas |= next.contains(',');
        (client, tail) = (next, after);
    }
    if commas && list.is_empty() {
        // Nothing but a list: its first address is who asked.
        let end = client.as_ptr() as usize - from.as_ptr() as usize + client.len();
        list = from[..end].trim();
        let mut items = list.split(',').map(str::trim);
        client = items.find(|i| address(i).is_some()).unwrap_or_default();
    }
    f.str("forwarded_for", list);
    let client = client.trim_end_matches(',').trim_matches(['(', ')']);
    let fine = |x: u8| {
        x.is_ascii_alphanumeric() || matches!(x, b'.' | b':' | b'-' | b'_' | b'%' | b'[' | b']')
    };
    if client.is_empty() || !client.bytes().all(fine) {
        return None;
    }
    f.str("client", client);
    let (identity, user) = word(tail);
    if identity.is_empty() {
        return None;
    }
    // A user's name may hold spaces.
    let user = user.trim();
    f.str("ident", identity);
    f.str("user", user);
    Some(host)
}

/// Reads what stands behind the agent: addresses that proxies said, and anything else.
fn behind<'a>(rest: &'a str, f: &mut Fields<'a>) {
    let mut tail = rest;
    while let Some(at) = tail.find('"') {
        let Some((value, after)) = quoted(&tail[at + 1..]) else {
            break;
        };
        if addresses(value) {
            f.str("forwarded_for", value);
            break;
        }
        tail = after;
    }
    if tail == rest && addresses(rest) {
        f.str("forwarded_for", rest);
    }
    f.str("extra", rest);
}

/// Text up to a quote that no backslash is before, and what follows the quote.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let b = text.as_bytes();
    let mut i = 0;
    while i < b.len() {
        match b[i] {
            b'\\' => i += 1,
            b'"' => return Some((&text[..i], &text[i + 1..])),
            _ => {}
        }
        i += 1;
    }
    None
}

pub(super) fn apache_error(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_apache_error(line).map(|r| emit(&r)).is_some()
}

fn parse_apache_error(line: &str) -> Option<Record<'_>> {
    let b = line.as_bytes();
    let mut c = Civil {
        month: month(b, 5)?,
        day: two(b, 9)?,
        ..Civil::default()
    };
    if !weekday(b, 1) {
        return None;
    }
    clock(b, 12, &mut c)?;
    let end = fraction(b, 20, &mut c);
    c.year = Some(four(b, end + 1)?);
    if b[end] != b' ' || b.get(end + 5) != Some(&b']') || !c.is_valid() {
        return None;
    }
    let raw_time = &line[1..end + 5];
    let mut rest = line[end + 6..].trim_start();
    let (mut f, mut pid) = (Fields::new(), None);
    while let Some((item, tail)) = rest.strip_prefix('[').and_then(|r| cut(r, "]")) {
        if let Some(p) = item.strip_prefix("pid ") {
            pid = p.split(':').next().and_then(|p| p.parse().ok());
        } else if let Some(client) = item.strip_prefix("client ") {
            let port = client
                .rsplit_once(':')
                .filter(|(a, _)| a.contains('.') || a.contains(']'));
            f.str("client", port.map_or(client, |x| x.0));
            f.number("client_port", port.map_or("", |x| x.1));
        } else if let Some((module, level)) = item.split_once(':').filter(|x| !x.1.contains(' ')) {
            f.str("module", module);
            f.str("level", level);
        } else if !item.contains(' ') && !item.is_empty() {
            f.str("level", item);
        } else {
            break;
        }
        rest = tail.trim_start();
    }
    Some(Record {
        kind: "apache_error",
        stamp: Stamp::Civil(c),
        raw_time,
        host: None,
        program: None,
        pid,
        message: rest,
        fields: f,
    })
}

pub(super) fn slashed(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_slashed(line).map(|r| emit(&r)).is_some()
}

fn parse_slashed(line: &str) -> Option<Record<'_>> {
    let b = line.as_bytes();
    let mut c = Civil {
        year: Some(four(b, 0)?),
        ..Civil::default()
    };
    (c.month, c.day) = (two(b, 5)?, two(b, 8)?);
    clock(b, 11, &mut c)?;
    let end = fraction(b, 19, &mut c);
    let end = zone(b, end, &mut c);
    let rest = line[end..].strip_prefix(' ')?;
    if !c.is_valid() {
        return None;
    }
    let (stamp, raw_time) = (Stamp::Civil(c), &line[..end]);
    let mut r = Record {
        kind: "iso",
        stamp,
        raw_time,
        host: None,
        program: None,
        pid: None,
        message: rest,
        fields: Fields::new(),
    };
    if let Some((level, pid, message)) = nginx(rest) {
        (r.kind, r.pid, r.message, r.program) = ("nginx_error", Some(pid), message, Some("nginx"));
        r.fields.str("level", level);
        for (name, key) in [
            ("client", ", client: "),
            ("server", ", server: "),
            ("request", ", request: \""),
        ] {
            if let Some((_, value)) = cut(message, key) {
                let until = if name == "request" { '"' } else { ',' };
                r.fields
                    .str(name, value.split(until).next().unwrap_or_default());
            }
        }
    }
    Some(r)
}

/// Reads `[level] pid#tid: message`.
fn nginx(rest: &str) -> Option<(&str, u32, &str)> {
    let (level, rest) = cut(rest.strip_prefix('[')?, "] ")?;
    let (pid, rest) = cut(rest, "#")?;
    let (tid, message) = cut(rest, ": ")?;
    tid.parse::<u32>().ok()?;
    Some((level, pid.parse().ok()?, message))
}
