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
    let kind = word(head, "type=").unwrap_or_default();
    let known = head.is_empty() || !kind.is_empty() || head.ends_with("audit: ");
    if !known {
        return None;
    }
    // What auditd adds for people stands behind a separator, and user space says its part in quotes.
    let (record, translated) = message.split_once('\u{1d}').unwrap_or((message, ""));
    let mut fields = Fields::new();
    fields.str("type", kind);
    fields.number("serial", serial);
    let texts = Texts::read(record);
    texts.add_to(&mut fields, record);
    fields.str("translated", translated);
    let program = texts.exe.as_deref().or(texts.comm.as_deref());
    let pid = word(record, "pid=").and_then(|p| p.parse().ok());
    emit(&Record {
        kind: "auditd",
        stamp: Stamp::Micros(micros),
        raw_time: time,
        host: word(head, "node="),
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
    fn read(record: &str) -> Self {
        let text = |key| word(record, key).map(decoded);
        let arguments = arguments(record);
        Self {
            comm: text("comm="),
            exe: text("exe="),
            name: text("name="),
            command: arguments
                .or_else(|| text("proctitle=").map(|t| t.replace('\0', " ")))
                .or_else(|| text("cmd=")),
            account: text("acct="),
        }
    }

    fn add_to<'a>(&'a self, fields: &mut Fields<'a>, record: &'a str) {
        fields.str("comm", self.comm.as_deref().unwrap_or_default());
        fields.str("exe", self.exe.as_deref().unwrap_or_default());
        fields.str("name", self.name.as_deref().unwrap_or_default());
        fields.str("command", self.command.as_deref().unwrap_or_default());
        fields.str("user", self.account.as_deref().unwrap_or_default());
        for (name, key) in [
            ("uid", "uid="),
            ("auid", "auid="),
            ("ppid", "ppid="),
            ("session", "ses="),
            ("syscall", "syscall="),
        ] {
            fields.number(name, word(record, key).unwrap_or_default());
        }
        for (name, key) in [
            ("op", "op="),
            ("key", "key="),
            ("success", "success="),
            ("result", "res="),
            ("terminal", "terminal="),
        ] {
            fields.str(
                name,
                word(record, key)
                    .unwrap_or_default()
                    .trim_matches(['"', '\'']),
            );
        }
        let address = word(record, "addr=").filter(|a| a.parse::<std::net::IpAddr>().is_ok());
        fields.str("src_ip", address.unwrap_or_default());
    }
}

/// The value behind `key`, which begins a word; with its quotes.
fn word<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find(key)?;
        let before = text[..at].chars().next_back();
        if before.is_none_or(|c| matches!(c, ' ' | '\'' | '(' | ',')) {
            let rest = &text[at + key.len()..];
            let end = match rest.strip_prefix('"') {
                Some(inner) => inner.find('"').map(|n| n + 2),
                None => rest.find([' ', '\'']),
            };
            return Some(&rest[..end.unwrap_or(rest.len())]);
        }
        from = at + key.len();
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

/// The arguments of an EXECVE record as one line.
fn arguments(record: &str) -> Option<String> {
    let count = word(record, "argc=")?.parse::<usize>().ok()?.min(64);
    let mut out = Vec::new();
    for i in 0..count {
        let Some(a) = word(record, &format!("a{i}=")) else {
            break;
        };
        out.push(decoded(a));
    }
    (!out.is_empty()).then(|| out.join(" "))
}
