//! Lines that are one JSON object with a time (RFC 8259; keys as Docker, Kubernetes, CloudTrail,
//! Elastic Common Schema, zap, logrus, bunyan and journald name them).
//!
//! The object's own members are read, not those of objects in it. It must be whole: a line that
//! ends before its last brace is not claimed.

use super::record::{Emit, Fields, Record, Stamp, iso};
use std::borrow::Cow;

/// A member's value as it stands: quoted text without the quotes, or anything else.
#[derive(Clone, Copy)]
struct Value<'a> {
    raw: &'a str,
    text: bool,
    escaped: bool,
}

impl<'a> Value<'a> {
    /// The text, escapes resolved; that of a number or a nested value is itself.
    fn string(&self) -> Cow<'a, str> {
        if !self.escaped || !self.text {
            return Cow::Borrowed(self.raw);
        }
        let quoted = format!("\"{}\"", self.raw);
        serde_json::from_str(&quoted).map_or(Cow::Borrowed(self.raw), Cow::Owned)
    }
}

/// What the keys mean; the earliest of a list wins.
const TIME: &[&str] = &[
    "@timestamp",
    "timestamp",
    "eventTime",
    "time",
    "ts",
    "datetime",
    "date",
    "@t",
    "event_time",
    "timeMillis",
    "asctime",
    "created_at",
    "_time",
    "__REALTIME_TIMESTAMP",
    "Timestamp",
    "Time",
    "t",
];
const MESSAGE: &[&str] = &[
    "message",
    "msg",
    "log",
    "MESSAGE",
    "eventName",
    "event",
    "body",
    "text",
    "@m",
    "@mt",
    "Message",
];
const HOST: &[&str] = &[
    "host",
    "hostname",
    "_HOSTNAME",
    "host.name",
    "computer",
    "Computer",
    "node",
    "nodename",
];
const PROGRAM: &[&str] = &[
    "program",
    "app",
    "application",
    "service",
    "SYSLOG_IDENTIFIER",
    "eventSource",
    "logger",
    "logger_name",
    "component",
    "process",
    "service.name",
];
const PID: &[&str] = &["pid", "process_id", "_PID", "PID", "process.pid"];
const OTHERS: &[(&str, &[&str])] = &[
    (
        "level",
        &["level", "severity", "lvl", "log.level", "@l", "PRIORITY"],
    ),
    (
        "src_ip",
        &[
            "sourceIPAddress",
            "remote_addr",
            "client_ip",
            "src_ip",
            "clientIp",
        ],
    ),
    ("agent", &["userAgent", "user_agent", "http_user_agent"]),
    ("user", &["user", "username", "userName", "user_name"]),
    ("path", &["path", "uri", "requestURI", "url"]),
    ("status", &["status", "responseStatus", "status_code"]),
    ("error", &["error", "err", "errorCode", "exception"]),
    ("stream", &["stream"]),
];
/// Members looked at; log records have a few dozen at most.
const MEMBERS: usize = 64;

pub(super) fn parse(line: &str, emit: &mut Emit<'_>) -> bool {
    let mut members: [(&str, Value<'_>); MEMBERS] = [(
        "",
        Value {
            raw: "",
            text: false,
            escaped: false,
        },
    ); MEMBERS];
    let Some(n) = object(line, &mut members) else {
        return false;
    };
    let members = &members[..n];
    let find = |keys: &[&str]| {
        keys.iter()
            .find_map(|k| members.iter().find(|m| m.0 == *k))
            .map(|m| m.1)
    };
    let stamped = TIME.iter().find_map(|k| {
        let value = members.iter().find(|m| m.0 == *k)?.1;
        Some((value, stamp(&value)?))
    });
    let Some((raw, stamp)) = stamped else {
        return false;
    };
    let text = |keys| find(keys).map(|v| v.string()).filter(|s| !s.is_empty());
    let (host, program) = (text(HOST), text(PROGRAM));
    let message = text(MESSAGE).unwrap_or(Cow::Borrowed(line));
    let others: [Option<Cow<'_, str>>; OTHERS.len()] = std::array::from_fn(|i| text(OTHERS[i].1));
    let mut fields = Fields::new();
    // Members that no column is for must not be lost.
    fields.str("raw", line);
    for ((name, _), value) in OTHERS.iter().zip(&others) {
        if let Some(v) = value {
            fields.str(name, v);
        }
    }
    emit(&Record {
        kind: "json",
        stamp,
        raw_time: raw.raw,
        host: host.as_deref(),
        program: program.as_deref(),
        pid: find(PID).and_then(|v| v.raw.parse().ok()),
        message: message.trim_end_matches('\n'),
        fields,
    });
    true
}

/// A time in a member: ISO 8601, or a number whose size tells its unit.
fn stamp(value: &Value<'_>) -> Option<Stamp> {
    if let Some((civil, _)) = iso(value.raw.as_bytes(), 0) {
        return Some(Stamp::Civil(civil));
    }
    let (whole, part) = value.raw.split_once('.').unwrap_or((value.raw, ""));
    if whole.len() > 19
        || !whole
            .bytes()
            .chain(part.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let n: i64 = whole.parse().ok()?;
    // Between 1990 and 2100, in each unit: the ranges do not meet.
    const FIRST: i64 = 631_152_000;
    const LAST: i64 = 4_102_444_800;
    let within = |unit: i64| (FIRST * unit..LAST.saturating_mul(unit)).contains(&n);
    if within(1) {
        let micros = part.bytes().chain(std::iter::repeat(b'0')).take(6);
        let micros = micros.fold(0, |m, d| m * 10 + i64::from(d - b'0'));
        return Some(Stamp::Micros(n * 1_000_000 + micros));
    }
    let micros = [(1_000, 1_000), (1_000_000, 1)].into_iter();
    let found = micros
        .filter(|(unit, _)| within(*unit))
        .map(|(_, by)| n * by)
        .next();
    found
        .or_else(|| within(1_000_000_000).then_some(n / 1_000))
        .map(Stamp::Micros)
}

/// Reads the members of the object that `line` is; how many, if it is one from first to last byte.
fn object<'a>(line: &'a str, out: &mut [(&'a str, Value<'a>); MEMBERS]) -> Option<usize> {
    let b = line.as_bytes();
    let mut i = space(b, 1);
    let mut n = 0;
    loop {
        let (key, next) = string(line, i)?;
        i = space(b, next);
        if b.get(i) != Some(&b':') {
            return None;
        }
        let (value, next) = value(line, space(b, i + 1))?;
        if let Some(slot) = out.get_mut(n) {
            *slot = (key.raw, value);
            n += 1;
        }
        i = space(b, next);
        match b.get(i)? {
            b',' => i = space(b, i + 1),
            b'}' => {
                let whole = space(b, i + 1) == b.len();
                return whole.then_some(n);
            }
            _ => return None,
        }
    }
}

fn space(b: &[u8], mut i: usize) -> usize {
    while matches!(b.get(i), Some(b' ' | b'\t')) {
        i += 1;
    }
    i
}

fn string(line: &str, at: usize) -> Option<(Value<'_>, usize)> {
    let b = line.as_bytes();
    if b.get(at) != Some(&b'"') {
        return None;
    }
    let (mut i, mut escaped) = (at + 1, false);
    loop {
        i += memchr::memchr2(b'"', b'\\', b.get(i..)?)?;
        if b[i] == b'"' {
            return Some((
                Value {
                    raw: &line[at + 1..i],
                    text: true,
                    escaped,
                },
                i + 1,
            ));
        }
        escaped = true;
        i += 2;
    }
}

fn value(line: &str, at: usize) -> Option<(Value<'_>, usize)> {
    let b = line.as_bytes();
    let plain = |to: usize| Value {
        raw: &line[at..to],
        text: false,
        escaped: false,
    };
    match b.get(at)? {
        b'"' => string(line, at),
        b'{' | b'[' => {
            let (mut depth, mut i) = (0usize, at);
            loop {
                match b.get(i)? {
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    b'"' => {
                        i = string(line, i)?.1;
                        continue;
                    }
                    _ => {}
                }
                i += 1;
                if depth == 0 {
                    return Some((plain(i), i));
                }
            }
        }
        c if c.is_ascii_alphanumeric() || *c == b'-' => {
            let more = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'+' | b'.');
            let n = b[at..]
                .iter()
                .position(|c| !more(c))
                .unwrap_or(b.len() - at);
            Some((plain(at + n), at + n))
        }
        _ => None,
    }
}
