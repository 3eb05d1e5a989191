//! Lines that begin with an ISO 8601 time, with or without brackets around it (ISO 8601:2004,
//! RFC 3339), and what the programs that write them are known by:
//!
//! ```text
//! time host program[pid]: message              syslog: rsyslog's file format, `journalctl -o short-iso`
//! time stdout F message                        cri: the log format of container runtimes
//! time zone [pid] user@database LEVEL:  text   postgresql: log_line_prefix, and two spaces
//! ```

use super::record::{Emit, Fields, Record, Stamp, cut, is_level, iso, tag, weekday, wordlike};
use super::syslog;

/// What PostgreSQL calls its messages (elog.c).
const POSTGRES: &[&str] = &[
    "LOG",
    "ERROR",
    "FATAL",
    "PANIC",
    "WARNING",
    "NOTICE",
    "INFO",
    "STATEMENT",
    "DETAIL",
    "HINT",
    "QUERY",
    "CONTEXT",
    "LOCATION",
    "DEBUG",
    "DEBUG1",
    "DEBUG2",
    "DEBUG3",
    "DEBUG4",
    "DEBUG5",
];

pub(super) fn parse(line: &str, emit: &mut Emit<'_>) -> bool {
    parse_line(line).map(|r| emit(&r)).is_some()
}

fn parse_line(line: &str) -> Option<Record<'_>> {
    let mut fields = Fields::new();
    let line = syslog::priority(line, &mut fields)?;
    // `journalctl -o short-full` begins with the day of the week.
    let line = match line.get(4..) {
        Some(rest) if weekday(line.as_bytes(), 0) && line.as_bytes()[3] == b' ' => rest,
        _ => line,
    };
    let open = usize::from(line.starts_with('['));
    let (civil, end) = iso(line.as_bytes(), open)?;
    let (raw_time, mut rest) = (&line[open..end], &line[end..]);
    if open == 1 {
        // `[2024-01-02T03:04:05Z INFO  module] message` is env_logger's.
        if !rest.starts_with([']', ' ']) {
            return None;
        }
        rest = rest.strip_prefix(']').unwrap_or(rest);
    } else if !rest.is_empty() && !rest.starts_with([' ', '\t', ':', ',', '|', '[', ';', '-', '>'])
    {
        return None;
    }
    let rest = rest.trim_start();
    // What parts the time from the rest is no part of the message.
    let apart = rest.strip_prefix([':', ',', ';', '|']);
    let rest = apart
        .filter(|r| r.starts_with(' '))
        .map_or(rest, str::trim_start);
    // A time alone is a value in a table, not a line of a log.
    if rest
        .trim_matches([' ', '\t', ',', ';', '|', '-', ':', ']', '[', '>'])
        .is_empty()
    {
        return None;
    }
    let mut r = Record {
        kind: "iso",
        stamp: Stamp::Civil(civil),
        raw_time,
        host: None,
        program: None,
        pid: None,
        message: rest,
        fields,
    };
    if open == 0 && (cri(&mut r) || postgres(&mut r) || header(&mut r)) {
        return Some(r);
    }
    if let Some(level) = level(rest) {
        r.fields.str("level", level);
    }
    Some(r)
}

/// `stdout F message`: `P` where the line goes on in the next record.
fn cri(r: &mut Record<'_>) -> bool {
    let Some((stream @ ("stdout" | "stderr"), rest)) = r.message.split_once(' ') else {
        return false;
    };
    let (tags, message) = rest.split_once(' ').unwrap_or((rest, ""));
    if !matches!(tags.split(':').next(), Some("F" | "P")) {
        return false;
    }
    (r.kind, r.message) = ("cri", message);
    r.fields.str("stream", stream);
    r.fields.str("tag", tags);
    true
}

/// `[pid] user@database LOG:  message`, with any prefix between.
fn postgres(r: &mut Record<'_>) -> bool {
    let mut head = r.message.len().min(200);
    while !r.message.is_char_boundary(head) {
        head -= 1;
    }
    let Some(at) = r.message[..head].find(":  ") else {
        return false;
    };
    let before = &r.message[..at];
    let (prefix, level) = before.rsplit_once(' ').unwrap_or(("", before));
    if !POSTGRES.contains(&level) {
        return false;
    }
    let mut prefix = prefix.trim();
    let named = prefix.strip_prefix('[').and_then(|p| cut(p, "]"));
    if let Some((pid, rest)) = named {
        r.pid = pid.split('-').next().and_then(|p| p.parse().ok());
        prefix = rest.trim();
    } else if !prefix.is_empty() && !prefix.contains(['@', '[', '=']) {
        return false;
    }
    match prefix
        .split_once('@')
        .filter(|_| !prefix.contains([' ', '=']))
    {
        Some((user, database)) => {
            r.fields.str("user", user);
            r.fields.str("database", database);
        }
        None => {
            // `user=ann,db=shop,app=psql,client=192.0.2.7`, as pgBadger asks for.
            let words = prefix.split([',', ' ']).filter_map(|w| w.split_once('='));
            for (key, value) in words {
                match key {
                    "user" => r.fields.str("user", value),
                    "db" | "database" => r.fields.str("database", value),
                    "client" | "host" => r.fields.str("client", value),
                    _ => {}
                }
            }
            r.fields.str("prefix", prefix);
        }
    }
    r.fields.str("level", level);
    (r.kind, r.program) = ("postgresql", Some("postgres"));
    r.message = r.message[at + 3..].trim_start();
    true
}

/// `host program[pid]: message`; without a host where a process id vouches for the program.
fn header(r: &mut Record<'_>) -> bool {
    let Some((host, _)) = r.message.split_once(' ') else {
        return false;
    };
    let known = wordlike(host, 255) && !host.ends_with([':', ']', ',']) && !is_level(host);
    let mut fields = r.fields;
    let h = syslog::header(r.message, &mut fields);
    let bare = tag(r.message).is_some_and(|t| t.1.is_some());
    if h.program.is_none() || !(bare || (known && h.host.is_some())) {
        return false;
    }
    r.kind = "syslog";
    (r.host, r.program, r.pid, r.message, r.fields) = (h.host, h.program, h.pid, h.message, fields);
    syslog::refine(r);
    true
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
