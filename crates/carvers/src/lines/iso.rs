//! Lines that begin with an ISO 8601 time, with or without brackets around it (ISO 8601:2004,
//! RFC 3339). `host program[pid]: message` after it makes it a syslog line: that is how rsyslog's
//! `RSYSLOG_FileFormat` and `journalctl -o short-iso` write.

use super::record::{Emit, Fields, Record, Stamp, iso, tag, wordlike};
use super::syslog;

const LEVELS: &[&str] = &[
    "TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "WARNING", "ERROR", "ERR", "CRITICAL", "CRIT",
    "FATAL", "SEVERE", "ALERT", "EMERG", "PANIC",
];

pub(super) fn parse(line: &str, emit: &mut Emit<'_>) -> bool {
    let open = usize::from(line.starts_with('['));
    let Some((civil, end)) = iso(line.as_bytes(), open) else {
        return false;
    };
    let (raw_time, mut rest) = (&line[open..end], &line[end..]);
    if open == 1 {
        // `[2024-01-02T03:04:05Z INFO  module] message` is env_logger's.
        if !rest.starts_with([']', ' ']) {
            return false;
        }
        rest = rest.strip_prefix(']').unwrap_or(rest);
    } else if !rest.is_empty() && !rest.starts_with([' ', '\t', ':', ',', '|', '[', ';', '-', '>'])
    {
        return false;
    }
    let rest = rest.trim_start();
    let stamp = Stamp::Civil(civil);
    if let Some((host, after)) = rest.split_once(' ').filter(|_| open == 0) {
        let known = wordlike(host, 255) && !host.ends_with([':', ']', ',']) && !is_level(host);
        if let Some((program, pid, message)) = tag(after).filter(|_| known) {
            let (host, program) = (Some(host), Some(program));
            let fields = Fields::new();
            let kind = "syslog";
            let mut r = Record {
                kind,
                stamp,
                raw_time,
                host,
                program,
                pid,
                message,
                fields,
            };
            syslog::refine(&mut r);
            emit(&r);
            return true;
        }
    }
    let mut fields = Fields::new();
    if let Some(level) = level(rest) {
        fields.str("level", level);
    }
    let (program, pid) = (None, None);
    emit(&Record {
        kind: "iso",
        stamp,
        raw_time,
        host: None,
        program,
        pid,
        message: rest,
        fields,
    });
    true
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word))
}

/// A level among the first words.
fn level(rest: &str) -> Option<&str> {
    let mut head = rest.len().min(80);
    while !rest.is_char_boundary(head) {
        head -= 1;
    }
    let words = rest[..head]
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty());
    words.take(4).find(|w| is_level(w))
}
