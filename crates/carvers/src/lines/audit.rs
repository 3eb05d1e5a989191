//! Records of the Linux audit system (`audit_logging.c`, `auditd.conf`'s `log_format`):
//!
//! ```text
//! node=web01 type=SYSCALL msg=audit(1700000000.123:456): arch=c000003e ... comm="sh"\x1dARCH=x86_64
//! [   12.345678] audit: type=1400 audit(1700000000.123:7): apparmor="DENIED" ...
//! ```
//!
//! `time` is to the millisecond; the number behind it is the event that several records make.
//! Strings with spaces are written in hexadecimal: those of commands are read.

use super::record::{Emit, Fields, Record, Stamp, cut};

pub(super) fn parse(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_line(line, emit).is_some()
}

fn parse_line(line: &str, emit: &mut Emit<'_>) -> Option<()> {
    let (head, rest) = cut(line, "audit(")?;
    let (stamp, body) = cut(rest, ")")?;
    let (time, serial) = cut(stamp, ":")?;
    let (seconds, milli) = cut(time, ".")?;
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if milli.len() != 3 || !(9..=10).contains(&seconds.len()) || !digits(seconds) || !digits(milli)
    {
        return None;
    }
    let micros = seconds.parse::<i64>().ok()? * 1_000_000 + milli.parse::<i64>().ok()? * 1_000;
    let message = body.strip_prefix(':')?.trim_start();
    let before = Words::read(head);
    let kind = before.get("type").unwrap_or_default();
    let known = head.is_empty() || !kind.is_empty() || head.ends_with("audit: ");
    if !known {
        return None;
    }
    // What auditd adds for people stands behind a separator, and user space says its part in quotes.
    let (record, translated) = message.split_once('\u{1d}').unwrap_or((message, ""));
    let mut fields = Fields::new();
    fields.str("type", kind);
    fields.number("serial", serial);
    let words = Words::read(record);
    let texts = Texts::read(&words);
    texts.add_to(&mut fields, &words);
    fields.str("translated", translated);
    let program = texts.exe.as_deref().or(texts.comm.as_deref());
    let pid = words.get("pid").and_then(|p| p.parse().ok());
    emit(&Record {
        kind: "auditd",
        stamp: Stamp::Micros(micros),
        raw_time: time,
        host: before.get("node"),
        program,
        pid,
        message,
        fields,
    });
    Some(())
}

/// Values that may be written in hexadecimal.
#[derive(Default)]
struct Texts {
    comm: Option<String>,
    exe: Option<String>,
    name: Option<String>,
    command: Option<String>,
    account: Option<String>,
}

impl Texts {
    fn read(words: &Words<'_>) -> Self {
        let text = |key| words.get(key).map(decoded);
        let arguments = arguments(words);
        Self {
            comm: text("comm"),
            exe: text("exe"),
            name: text("name"),
            command: arguments
                .or_else(|| text("proctitle").map(|t| t.replace('\0', " ")))
                .or_else(|| text("cmd")),
            account: text("acct"),
        }
    }

    fn add_to<'a>(&'a self, fields: &mut Fields<'a>, words: &Words<'a>) {
        fields.str("comm", self.comm.as_deref().unwrap_or_default());
        fields.str("exe", self.exe.as_deref().unwrap_or_default());
        fields.str("name", self.name.as_deref().unwrap_or_default());
        fields.str("command", self.command.as_deref().unwrap_or_default());
        fields.str("user", self.account.as_deref().unwrap_or_default());
        for (name, key) in [
            ("uid", "uid"),
            ("auid", "auid"),
            ("ppid", "ppid"),
            ("session", "ses"),
            ("syscall", "syscall"),
        ] {
            fields.number(name, words.get(key).unwrap_or_default());
        }
        for (name, key) in [
            ("op", "op"),
            ("key", "key"),
            ("success", "success"),
            ("result", "res"),
            ("terminal", "terminal"),
        ] {
            fields.str(
                name,
                words.get(key).unwrap_or_default().trim_matches(['"', '\'']),
            );
        }
        let address = words
            .get("addr")
            .filter(|a| a.parse::<std::net::IpAddr>().is_ok());
        fields.str("src_ip", address.unwrap_or_default());
    }
}

/// The words of a record that have a value, in their order: keys, and what stands behind `=`.
struct Words<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Words<'a> {
    /// A word begins the text or is behind a space, a quote, a bracket or a comma, in a quoted
    /// value too.
    fn read(text: &'a str) -> Self {
        let b = text.as_bytes();
        let parts = |c: u8| matches!(c, b' ' | b'\'' | b'(' | b',');
        let (mut words, mut at) = (Vec::with_capacity(32), 0);
        while at < b.len() {
            let named = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
            let n = b[at..].iter().position(|c| !named(c));
            let Some(end) = n.map(|n| at + n) else { break };
            let mut end = end;
            if b[end] == b'[' && end > at {
                // A part of a long argument: `a1[0]=`.
                let digits = b[end + 1..]
                    .iter()
                    .take_while(|c| c.is_ascii_digit())
                    .count();
                let close = end + 1 + digits;
                if digits > 0 && b.get(close) == Some(&b']') && b.get(close + 1) == Some(&b'=') {
                    end = close + 1;
                }
            }
            if b[end] == b'=' && end > at {
                words.push((&text[at..end], &text[end + 1..]));
            }
            let Some(n) = b[end..].iter().position(|c| parts(*c)) else {
                break;
            };
            at = end + n + 1;
        }
        Self(words)
    }

    /// The value of the first word with this key; with its quotes.
    fn get(&self, key: &str) -> Option<&'a str> {
        let rest = self.0.iter().find(|w| w.0 == key)?.1;
        let end = match rest.strip_prefix('"') {
            Some(inner) => memchr::memchr(b'"', inner.as_bytes()).map(|n| n + 2),
            None => memchr::memchr2(b' ', b'\'', rest.as_bytes()),
        };
        Some(&rest[..end.unwrap_or(rest.len())])
    }
}

/// A value without its quotes; one without any may be hexadecimal.
fn decoded(value: &str) -> String {
    if let Some(quoted) = value.strip_prefix('"') {
        return quoted.trim_end_matches('"').to_owned();
    }
    let hex = value.len() >= 2 && value.len().is_multiple_of(2);
    let bytes: Option<Vec<u8>> = value
        .as_bytes()
        .chunks(2)
        .map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok())
        .collect();
    let upper = !value.bytes().any(|b| b.is_ascii_lowercase());
    bytes
        .filter(|_| hex && upper)
        .and_then(|b| String::from_utf8(b).ok())
        .unwrap_or_else(|| value.to_owned())
}

/// Most parts of one argument.
const PARTS: usize = 64;

/// The arguments of an EXECVE record as one line.
fn arguments(words: &Words<'_>) -> Option<String> {
    let count = words.get("argc")?.parse::<usize>().ok()?.min(64);
    let mut out = Vec::new();
    for i in 0..count {
        if let Some(a) = words.get(&format!("a{i}")) {
            out.push(decoded(a));
            continue;
        }
        // A long one is written in parts, of which a record may have some.
        let parts = (0..PARTS).map_while(|n| words.get(&format!("a{i}[{n}]")));
        let parts: Vec<&str> = parts.collect();
        let Some(first) = parts.first() else { break };
        let plain = first.starts_with('"');
        let whole: String = parts.iter().map(|p| p.trim_matches('"')).collect();
        out.push(if plain { whole } else { decoded(&whole) });
    }
    (!out.is_empty()).then(|| out.join(" "))
}
