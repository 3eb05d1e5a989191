//! Lines that are one JSON object with a time, and such objects in arrays and in other objects
//! (RFC 8259; keys as Docker, Kubernetes, CloudTrail, Elastic Common Schema, zap, logrus, bunyan,
//! nginx, MongoDB and journald name them).
//!
//! The object's own members are read, and those of objects in it where the key says so with a dot
//! (`host.name`). It must be whole: a line that ends before its last brace is not claimed. An
//! object that does not begin a line must have a message or a level too.

use super::record::{Emit, Fields, Record, Stamp, common, iso, mail_date};
use crate::zone::Zone;
use std::borrow::Cow;

/// A member's value as it stands: quoted text without the quotes, or anything else.
#[derive(Clone, Copy, Default)]
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

    /// True for an object or an array.
    fn nested(&self) -> bool {
        !self.text && self.raw.starts_with(['{', '['])
    }
}

/// What the keys mean; the earliest of a list wins.
const TIME: &[&str] = &[
    "@timestamp",
    "timestamp",
    "requestReceivedTimestamp",
    "stageTimestamp",
    "eventTime",
    "time",
    "ts",
    "datetime",
    "date",
    "@t",
    "event_time",
    "timeMillis",
    "asctime",
    "time_iso8601",
    "time_local",
    "msec",
    "created_at",
    "_time",
    "__REALTIME_TIMESTAMP",
    "_SOURCE_REALTIME_TIMESTAMP",
    "Timestamp",
    "Time",
    "t",
    "TimeCreated",
    "event.created",
    "timeStamp",
    "TIMESTAMP",
    "TIME",
    "dateTime",
    "DateTime",
    "createdAt",
    "CreationTime",
    "TimeGenerated",
    "EventTime",
    "eventTimestamp",
    "startTime",
    "start_time",
];
const MESSAGE: &[&str] = &[
    "message",
    "msg",
    "log",
    "MESSAGE",
    "request",
    "eventName",
    "event",
    "body",
    "text",
    "@m",
    "@mt",
    "Message",
    "MSG",
    "Msg",
    "textPayload",
    "Operation",
    "operationName",
];
const HOST: &[&str] = &[
    "host",
    "hostname",
    "_HOSTNAME",
    "host.name",
    "host.hostname",
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
    "_COMM",
    "eventSource",
    "logger",
    "logger_name",
    "component",
    "process",
    "service.name",
    "process.name",
];
const PID: &[&str] = &["pid", "process_id", "_PID", "PID", "process.pid"];
const LEVEL: &[&str] = &[
    "level",
    "severity",
    "lvl",
    "log.level",
    "@l",
    "PRIORITY",
    "s",
    "Level",
    "LEVEL",
    "levelname",
    "log_level",
];
const OTHERS: &[(&str, &[&str])] = &[
    ("level", LEVEL),
    (
        "src_ip",
        &[
            "sourceIPAddress",
            "sourceIPs",
            "remote_addr",
            "client_ip",
            "src_ip",
            "clientIp",
            "source.ip",
            "client.ip",
        ],
    ),
    (
        "agent",
        &[
            "userAgent",
            "user_agent",
            "http_user_agent",
            "user_agent.original",
        ],
    ),
    (
        "user",
        &[
            "user",
            "username",
            "userName",
            "user_name",
            "remote_user",
            "user.username",
            "user.name",
            "userIdentity.userName",
            "userIdentity.arn",
        ],
    ),
    ("path", &["path", "uri", "requestURI", "url", "url.path"]),
    (
        "status",
        &[
            "status",
            "responseStatus.code",
            "responseStatus",
            "status_code",
        ],
    ),
    (
        "error",
        &["error", "err", "errorCode", "exception", "error.message"],
    ),
    ("stream", &["stream"]),
    ("verb", &["verb"]),
    ("stage", &["stage"]),
    ("audit_id", &["auditID"]),
    ("namespace", &["objectRef.namespace"]),
    ("resource", &["objectRef.resource"]),
    ("object", &["objectRef.name"]),
    (
        "forwarded_for",
        &["http_x_forwarded_for", "x_forwarded_for"],
    ),
];
/// Members looked at; log records have a few dozen at most.
const MEMBERS: usize = 64;
/// Objects and arrays in one another, for an object that does not begin a line.
const DEPTH: usize = 8;

/// The members of an object, and the bytes that it takes.
struct Object<'a> {
    members: [(&'a str, Value<'a>); MEMBERS],
    n: usize,
    len: usize,
    /// The signs of the keys that there are: most of those asked for are not.
    signs: [u64; 4],
}

/// A key in few bits: a word of [`Object::signs`], and the bit in it.
fn sign(key: &[u8]) -> (usize, u64) {
    let ends = key.first().zip(key.last());
    let ends = ends.map_or(0, |(a, b)| (u32::from(*a) * 7) ^ (u32::from(*b) * 43));
    let sign = ends ^ (key.len() as u32 * 29);
    (sign as usize >> 6 & 3, 1 << (sign & 63))
}

impl<'a> Object<'a> {
    fn push(&mut self, key: &'a str, value: Value<'a>) {
        let Some(slot) = self.members.get_mut(self.n) else {
            return;
        };
        *slot = (key, value);
        self.n += 1;
        let (word, bit) = sign(key.as_bytes());
        self.signs[word] |= bit;
    }

    /// The value of the first member with this key.
    fn own(&self, key: &str) -> Option<Value<'a>> {
        let (word, bit) = sign(key.as_bytes());
        if self.signs[word] & bit == 0 {
            return None;
        }
        let members = self.members.get(..self.n)?;
        members.iter().find(|m| m.0 == key).map(|m| m.1)
    }

    /// A member by its key, or by the key of an object and that of one in it.
    fn get(&self, key: &str) -> Option<Value<'a>> {
        if let Some(v) = self.own(key) {
            return Some(v);
        }
        let dot = key.bytes().position(|b| b == b'.')?;
        let value = self.own(&key[..dot])?;
        if value.text || !value.raw.starts_with('{') {
            return None;
        }
        object(value.raw.as_bytes(), DEPTH)?.get(&key[dot + 1..])
    }

    /// The first of the keys with a value of its own.
    fn find(&self, keys: &[&str]) -> Option<Value<'a>> {
        keys.iter()
            .filter_map(|k| self.get(k))
            .find(|v| !v.nested() && v.raw != "null" && !v.raw.is_empty())
    }

    /// The text of the first of the keys; of an array of texts its first.
    fn first(&self, keys: &[&str]) -> Option<Cow<'a, str>> {
        let value = keys.iter().filter_map(|k| self.get(k)).find_map(|v| {
            if !v.nested() {
                return (v.raw != "null" && !v.raw.is_empty()).then_some(v);
            }
            let inner = v.raw.strip_prefix('[')?;
            let at = inner.find('"')?;
            inner[..at].trim().is_empty().then_some(())?;
            string(inner.as_bytes(), at).map(|s| s.0)
        });
        value.map(|v| v.string())
    }
}

/// Reads the object that `line` begins with; how many bytes it takes, if it is a record. `alone`:
/// it begins a line, and nothing but what parts the elements of an array may follow.
pub(super) fn parse(
    line: &[u8],
    alone: bool,
    emit: &mut dyn FnMut(&Record<'_>, usize),
) -> Option<usize> {
    let depth = if alone { usize::MAX } else { DEPTH };
    let object = object(line, depth)?;
    let rest = line.get(object.len..)?;
    // Behind one that is alone stands nothing but what parts the elements of an array.
    let parts = |b: &u8| matches!(b, b',' | b']' | b'}' | b' ' | b'\t');
    let alone = alone && rest.iter().all(parts);
    let text = std::str::from_utf8(line.get(..object.len)?).ok()?;
    let plain = |c: char| c == '\t' || !c.is_control();
    let log_like = || object.find(MESSAGE).or(object.find(LEVEL)).is_some();
    if !text.chars().all(plain) || !(alone || log_like()) {
        return None;
    }
    record(text, &object, &mut |r| emit(r, object.len))?;
    Some(object.len)
}

fn record(line: &str, object: &Object<'_>, emit: &mut Emit<'_>) -> Option<()> {
    let stamped = |nested: bool| {
        TIME.iter().find_map(|k| {
            let value = object.get(k).filter(|v| v.nested() == nested)?;
            Some((value, stamp(&value)?))
        })
    };
    // A plain time is surer than an object with numbers.
    let (raw, stamp) = stamped(false).or_else(|| stamped(true))?;
    let text = |keys| object.find(keys).map(|v| v.string());
    let (host, program) = (text(HOST), text(PROGRAM));
    let mut message = text(MESSAGE);
    let others: [Option<Cow<'_, str>>; OTHERS.len()] =
        std::array::from_fn(|i| object.first(OTHERS[i].1));
    let other = |name: &str| {
        let i = OTHERS.iter().position(|o| o.0 == name)?;
        others[i].as_deref()
    };
    // Events in a list have no version of their own.
    let audit = object
        .get("apiVersion")
        .is_some_and(|v| v.raw.starts_with("audit.k8s.io"))
        || ["auditID", "stage", "verb"]
            .iter()
            .all(|k| object.own(k).is_some());
    let journal = object.get("__REALTIME_TIMESTAMP").is_some();
    let kind = match (audit, journal) {
        (true, _) => "kubernetes_audit",
        (_, true) => "journal",
        _ => "json",
    };
    if journal && message.is_none() {
        // What is no text is written as an array of bytes.
        message = object
            .own("MESSAGE")
            .and_then(|v| bytes(&v))
            .map(Cow::Owned);
    }
    if audit {
        let words = [other("verb"), other("path")].map(Option::unwrap_or_default);
        message = Some(Cow::Owned(words.join(" ")));
    }
    let mut fields = Fields::new();
    // Members that no column is for must not be lost.
    fields.str("raw", line);
    for ((name, _), value) in OTHERS.iter().zip(&others) {
        if let Some(v) = value {
            fields.str(name, v);
        }
    }
    let message = message.as_deref().unwrap_or(line);
    emit(&Record {
        kind,
        stamp,
        raw_time: raw.raw,
        host: host.as_deref(),
        program: program.as_deref(),
        pid: object.find(PID).and_then(|v| v.raw.parse().ok()),
        message: message.trim_end_matches('\n'),
        fields,
    });
    Some(())
}

/// The text that an array of bytes is (systemd, "Journal Export Formats", JSON).
fn bytes(value: &Value<'_>) -> Option<String> {
    let inner = value.raw.strip_prefix('[')?.strip_suffix(']')?;
    let numbers = inner.split(',').map(|n| n.trim().parse::<u8>());
    let bytes = numbers.collect::<Result<Vec<u8>, _>>().ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A time in a member: ISO 8601, as web servers write it, a number whose size tells its unit, or an
/// object that has one of these or seconds.
fn stamp(value: &Value<'_>) -> Option<Stamp> {
    if value.nested() {
        let inner = object(value.raw.as_bytes(), DEPTH)?;
        let keys = ["$date", "seconds", "epochSecond", "secs", "iso", "time"];
        let plain = keys.iter().find_map(|k| inner.get(k))?;
        if plain.nested() {
            let inner = object(plain.raw.as_bytes(), DEPTH)?;
            return number(inner.get("$numberLong")?.raw);
        }
        let nanos = ["nanos", "nanoOfSecond", "nanoseconds", "nsec"];
        let nanos = nanos.iter().find_map(|k| inner.get(k));
        return match (stamp(&plain)?, nanos) {
            (Stamp::Micros(t), Some(n)) => {
                let n = n.raw.parse::<u32>().ok().filter(|n| *n < 1_000_000_000)?;
                Some(Stamp::Micros(t + i64::from(n / 1_000)))
            }
            (s, _) => Some(s),
        };
    }
    let text = value.string();
    let b = text.as_bytes();
    if let Some((civil, end)) = iso(b, 0)
        .or_else(|| common(b, 0))
        .or_else(|| mail_date(b, 0))
    {
        // What stands behind the time may be a zone of a kind that is not known.
        let rest = text[end..].trim();
        let open = civil.zone == Zone::None;
        return (rest.is_empty() || !open || !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
            .then_some(Stamp::Civil(civil));
    }
    number(&text)
}

/// A number as a time: with a fraction, with an exponent.
fn number(text: &str) -> Option<Stamp> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.strip_prefix('+').unwrap_or(e).parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() + part.len() > 40 || !digits(whole) || !digits(part) {
        return None;
    }
    if exponent == 0 {
        return micros(whole, part);
    }
    // The point moves: digits before it, zeros where there are none.
    let at = i32::try_from(whole.len()).ok()? + exponent;
    let at = usize::try_from(at).ok().filter(|a| (1..=19).contains(a))?;
    let mut all = format!("{whole}{part}");
    while all.len() < at {
        all.push('0');
    }
    let (whole, part) = all.split_at(at);
    micros(whole, part)
}

fn micros(whole: &str, part: &str) -> Option<Stamp> {
    if whole.len() > 19 {
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

/// Reads the members of the object that the bytes begin with, which must be whole.
fn object(b: &[u8], depth: usize) -> Option<Object<'_>> {
    let mut out = Object {
        members: [("", Value::default()); MEMBERS],
        n: 0,
        len: 0,
        signs: [0; 4],
    };
    let mut i = space(b, 1);
    loop {
        let (key, next) = string(b, i)?;
        i = space(b, next);
        if b.get(i) != Some(&b':') {
            return None;
        }
        let (value, next) = value(b, space(b, i + 1), depth)?;
        out.push(key.raw, value);
        i = space(b, next);
        match b.get(i)? {
            // A comma before the last brace is written by hand.
            b',' if b.get(space(b, i + 1)) == Some(&b'}') => i = space(b, i + 1),
            b',' => {
                i = space(b, i + 1);
                continue;
            }
            b'}' => {}
            _ => return None,
        }
        out.len = i + 1;
        return Some(out);
    }
}

fn space(b: &[u8], mut i: usize) -> usize {
    while matches!(b.get(i), Some(b' ' | b'\t')) {
        i += 1;
    }
    i
}

fn string(b: &[u8], at: usize) -> Option<(Value<'_>, usize)> {
    if b.get(at) != Some(&b'"') {
        return None;
    }
    let (mut i, mut escaped) = (at + 1, false);
    loop {
        i += memchr::memchr2(b'"', b'\\', b.get(i..)?)?;
        if b[i] == b'"' {
            let raw = std::str::from_utf8(&b[at + 1..i]).ok()?;
            let text = true;
            return Some((Value { raw, text, escaped }, i + 1));
        }
        escaped = true;
        i += 2;
    }
}

fn value(b: &[u8], at: usize, most: usize) -> Option<(Value<'_>, usize)> {
    let plain = |to: usize| {
        let raw = std::str::from_utf8(b.get(at..to)?).ok()?;
        Some(Value {
            raw,
            ..Value::default()
        })
    };
    match b.get(at)? {
        b'"' => string(b, at),
        b'{' | b'[' => {
            let (mut depth, mut i) = (0usize, at);
            loop {
                match b.get(i)? {
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    b'"' => {
                        i = string(b, i)?.1;
                        continue;
                    }
                    0..0x20 => return None,
                    _ => {}
                }
                i += 1;
                if depth == 0 {
                    return Some((plain(i)?, i));
                }
                if depth > most {
                    return None;
                }
            }
        }
        c if c.is_ascii_alphanumeric() || *c == b'-' => {
            let more = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'+' | b'.');
            let n = b[at..]
                .iter()
                .position(|c| !more(c))
                .unwrap_or(b.len() - at);
            Some((plain(at + n)?, at + n))
        }
        _ => None,
    }
}
