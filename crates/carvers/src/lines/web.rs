//! Web server logs: Apache's common and combined access logs (mod_log_config; nginx's `combined`
//! is the same, and `vhost_combined` has the server before it), Apache's error log
//! (`ErrorLogFormat`'s default since 2.4, and 2.2's), nginx's error log (`ngx_log.c`), and what
//! else begins with `yyyy/mm/dd hh:mm:ss`, Go's `log` package above all.

use super::record::{Emit, Fields, Record, Stamp, clock, cut, four, fraction, month, two, zone};
use crate::zone::Civil;

pub(super) fn access(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_access(line).map(|r| emit(&r)).is_some()
}

fn parse_access(line: &str) -> Option<Record<'_>> {
    let (head, rest) = cut(line, " [")?;
    let b = rest.as_bytes();
    let mut c = Civil {
        day: two(b, 0)?,
        month: month(b, 3)?,
        ..Civil::default()
    };
    c.year = Some(four(b, 7)?);
    clock(b, 12, &mut c)?;
    let end = zone(b, if b.get(20) == Some(&b' ') { 21 } else { 20 }, &mut c);
    if b.get(end) != Some(&b']') || b[2] != b'/' || b[6] != b'/' || !c.is_valid() {
        return None;
    }
    // A user's name may hold spaces: the first two words are client and identity.
    let mut words = head.splitn(4, ' ');
    let (first, second) = (words.next()?, words.next()?);
    let (host, client, user) = match (words.next()?, words.next()) {
        (third, Some(user)) if third == "-" && second.contains(['.', ':']) => {
            (Some(first), second, user)
        }
        (user, _) => {
            let skip = first.len() + second.len() + 2;
            (
                None,
                first,
                if user.is_empty() { "-" } else { &head[skip..] },
            )
        }
    };
    let client_like = |x: u8| x.is_ascii_alphanumeric() || matches!(x, b'.' | b':' | b'-' | b'_');
    if client.is_empty() || !client.bytes().all(client_like) {
        return None;
    }
    let mut f = Fields::new();
    f.str("client", client);
    f.str("user", user);
    let tail = rest[end + 1..].strip_prefix(" \"")?;
    let (request, tail) = quoted(tail)?;
    let mut parts = request.split(' ');
    f.str("method", parts.next().unwrap_or_default());
    f.str("path", parts.next().unwrap_or_default());
    let mut numbers = tail.trim_start().splitn(3, ' ');
    let status = numbers.next()?;
    if status.len() != 3 || status.parse::<u16>().is_err() {
        return None;
    }
    f.number("status", status);
    f.number("bytes", numbers.next().unwrap_or_default());
    if let Some((referrer, tail)) = numbers.next().and_then(|t| quoted(t.strip_prefix('"')?)) {
        f.str("referrer", referrer);
        if let Some((agent, _)) = tail.strip_prefix(" \"").and_then(quoted) {
            f.str("agent", agent);
        }
    }
    let (stamp, raw_time) = (Stamp::Civil(c), &rest[..end]);
    let program = None;
    Some(Record {
        kind: "access",
        stamp,
        raw_time,
        host,
        program,
        pid: None,
        message: request,
        fields: f,
    })
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
    const DAYS: &[u8; 21] = b"SunMonTueWedThuFriSat";
    let b = line.as_bytes();
    let mut c = Civil {
        month: month(b, 5)?,
        day: two(b, 9)?,
        ..Civil::default()
    };
    if !DAYS.chunks_exact(3).any(|d| Some(d) == b.get(1..4)) {
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
