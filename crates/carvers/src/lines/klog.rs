//! klog, as Kubernetes, etcd's and Google's programs write it (`klog.go`, `glog`):
//!
//! ```text
//! I1114 22:13:20.123456    1234 server.go:123] message        Lmmdd hh:mm:ss.uuuuuu threadid file:line]
//! I20231114 22:13:20.123456 1234 server.cc:123] message       glog since 0.6
//! ```
//!
//! And logfmt, `key=value` pairs with a time among them (`go-logfmt`, logrus, Go's `slog`).

use super::record::{Emit, Fields, Record, Stamp, clock, cut, four, fraction, iso, two};
use crate::zone::Civil;

pub(super) fn klog(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_klog(line).map(|r| emit(&r)).is_some()
}

fn parse_klog(line: &str) -> Option<Record<'_>> {
    let b = line.as_bytes();
    let level = match b.first()? {
        b'I' => "INFO",
        b'W' => "WARNING",
        b'E' => "ERROR",
        b'F' => "FATAL",
        _ => return None,
    };
    // Of late glog writes the year.
    let year = (b.get(5) != Some(&b' ')).then(|| four(b, 1)).flatten();
    let day = if year.is_some() { 5 } else { 1 };
    let mut c = Civil {
        year,
        month: two(b, day)?,
        day: two(b, day + 2)?,
        ..Civil::default()
    };
    clock(b, day + 5, &mut c)?;
    let end = fraction(b, day + 13, &mut c);
    if b[day + 4] != b' ' || !c.is_valid() || end == day + 13 {
        return None;
    }
    let (thread, rest) = cut(line[end..].trim_start(), " ")?;
    let pid: u32 = thread.parse().ok()?;
    let (place, message) = cut(rest.trim_start(), "]")?;
    let (file, number) = place.rsplit_once(':')?;
    if file.is_empty() || file.contains(' ') {
        return None;
    }
    let mut fields = Fields::new();
    fields.str("level", level);
    fields.str("file", file);
    fields.number("line", number);
    Some(Record {
        kind: "klog",
        stamp: Stamp::Civil(c),
        raw_time: &line[1..end],
        host: None,
        program: None,
        pid: Some(pid),
        message: message.strip_prefix(' ').unwrap_or(message),
        fields,
    })
}

/// What the keys of logfmt mean.
const TIME: &[&str] = &[
    "time",
    "ts",
    "timestamp",
    "t",
    "@timestamp",
    "date",
    "datetime",
];
const MESSAGE: &[&str] = &["msg", "message", "event"];
const LEVEL: &[&str] = &["level", "lvl", "severity"];
const HOST: &[&str] = &["host", "hostname"];
const PROGRAM: &[&str] = &["app", "service", "logger", "component", "program", "source"];
const OTHERS: &[(&str, &[&str])] = &[
    ("error", &["err", "error"]),
    (
        "src_ip",
        &["src_ip", "client_ip", "remote_ip", "remote_addr", "srcip"],
    ),
    ("user", &["user", "username"]),
    ("method", &["method"]),
    ("path", &["path", "uri"]),
    ("status", &["status", "status_code"]),
    ("caller", &["caller"]),
];
/// Pairs that are looked at.
const PAIRS: usize = 48;

pub(super) fn logfmt(line: &str, emit: &mut Emit<'_>) -> bool {
    let pairs = pairs(line);
    let find = |keys: &[&str]| {
        keys.iter()
            .find_map(|k| pairs.iter().find(|p| p.0 == *k))
            .map(|p| p.1)
            .filter(|v| !v.is_empty())
    };
    let stamped = TIME.iter().find_map(|k| {
        let raw = pairs.iter().find(|p| p.0 == *k)?.1;
        let (civil, end) = iso(raw.as_bytes(), 0)?;
        (end == raw.len()).then_some((raw, civil))
    });
    let Some((raw_time, civil)) = stamped else {
        return false;
    };
    let (message, level) = (find(MESSAGE), find(LEVEL));
    if message.is_none() && level.is_none() {
        return false;
    }
    let message = message.map(unescape);
    let mut fields = Fields::new();
    fields.str("raw", line);
    fields.str("level", level.unwrap_or_default());
    for (name, keys) in OTHERS {
        fields.str(name, find(keys).unwrap_or_default());
    }
    emit(&Record {
        kind: "logfmt",
        stamp: Stamp::Civil(civil),
        raw_time,
        host: find(HOST),
        program: find(PROGRAM),
        pid: find(&["pid"]).and_then(|p| p.parse().ok()),
        message: message.as_deref().unwrap_or(line),
        fields,
    });
    true
}

/// Quotes inside a quoted value.
fn unescape(value: &str) -> String {
    if !value.contains('\\') {
        return value.to_owned();
    }
    serde_json::from_str(&format!("\"{value}\"")).unwrap_or_else(|_| value.to_owned())
}

/// The `key=value` and `key="value"` pairs of a line; none when it is something else.
fn pairs(line: &str) -> Vec<(&str, &str)> {
    let mut out = Vec::new();
    let mut rest = line.trim_end();
    while !rest.is_empty() && out.len() < PAIRS {
        let Some((key, after)) = rest.split_once('=') else {
            break;
        };
        // A word without a value, or what is no pair at all.
        let key = key.rsplit(' ').next().unwrap_or(key);
        let odd =
            |c: u8| !c.is_ascii_alphanumeric() && !matches!(c, b'_' | b'.' | b'-' | b'@' | b'/');
        if key.is_empty() || key.len() > 64 || key.bytes().any(odd) {
            break;
        }
        let (value, next) = match after.strip_prefix('"') {
            Some(inner) => {
                let Some(end) = quote(inner.as_bytes()) else {
                    break;
                };
                (&inner[..end], &inner[end + 1..])
            }
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        out.push((key, value));
        rest = next.trim_start();
    }
    out
}

/// The place of the first quote that no backslash is before.
fn quote(b: &[u8]) -> Option<usize> {
    let mut i = 0;
    while let Some(c) = b.get(i) {
        match c {
            b'"' => return Some(i),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    None
}
