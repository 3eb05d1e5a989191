//! What shells and the journal write in several lines, found by digits before a line's end:
//!
//! ```text
//! #1700000000              bash's history with HISTTIMEFORMAT
//! curl http://...
//! : 1700000000:0;curl ...  zsh's, with EXTENDED_HISTORY
//! - cmd: curl ...          fish's
//!   when: 1700000000
//! __CURSOR=...             `journalctl -o export`: systemd's Journal Export Format
//! __REALTIME_TIMESTAMP=1700000000123456
//! ```

use super::record::{Fields, Record, Stamp};
use super::{begins, line_end};
use std::borrow::Cow;

/// Most of a journal's record.
const LONGEST: usize = 16 << 10;
/// Times from 1990 to 2100, in seconds: other numbers are no times of a shell's history.
const SECONDS: std::ops::Range<i64> = 631_152_000..4_102_444_800;

/// Looks at the line end at byte `at`, before which ten digits or more stand. What is there, and
/// where that ends.
pub(super) fn before_end(
    data: &[u8],
    at: usize,
    emit: &mut dyn FnMut(usize, usize, &Record<'_>),
) -> bool {
    let mut from = at;
    while from > 0 && data[from - 1].is_ascii_digit() && at - from < 17 {
        from -= 1;
    }
    match at - from {
        10 if from > 0 && data[from - 1] == b'#' => bash(data, from - 1, at, emit),
        10 if data[..from].ends_with(b"  when: ") => fish(data, from, at, emit),
        15..=16 if data[..from].ends_with(b"__REALTIME_TIMESTAMP=") => journal(data, from, emit),
        _ => false,
    }
}

fn seconds(digits: &[u8]) -> Option<i64> {
    let n = std::str::from_utf8(digits).ok()?.parse().ok()?;
    SECONDS.contains(&n).then_some(n)
}

fn command<'a>(raw_time: &'a str, time: i64, command: &'a str, shell: &'static str) -> Record<'a> {
    let mut fields = Fields::new();
    fields.str("shell", shell);
    Record {
        kind: "shell_history",
        stamp: Stamp::Micros(time * 1_000_000),
        raw_time,
        host: None,
        program: None,
        pid: None,
        message: command,
        fields,
    }
}

fn bash(
    data: &[u8],
    start: usize,
    end: usize,
    emit: &mut dyn FnMut(usize, usize, &Record<'_>),
) -> bool {
    let digits = &data[start + 1..end];
    let Some(time) = seconds(digits).filter(|_| begins::<1>(data, start)) else {
        return false;
    };
    if data.get(end) != Some(&b'\n') {
        return false;
    }
    let stop = line_end::<1>(data, end + 1);
    let line = text(&data[end + 1..stop]);
    let stamp = line
        .strip_prefix('#')
        .is_some_and(|d| d.len() == 10 && seconds(d.as_bytes()).is_some());
    if line.trim().is_empty() || stamp {
        return false;
    }
    emit(start, stop, &command(text(digits), time, line, "bash"));
    true
}

/// `- cmd: ...` is on the line before.
fn fish(
    data: &[u8],
    digits: usize,
    end: usize,
    emit: &mut dyn FnMut(usize, usize, &Record<'_>),
) -> bool {
    let Some(time) = seconds(&data[digits..end]) else {
        return false;
    };
    let line = digits - b"  when: ".len();
    let Some(break_at) = line.checked_sub(1).filter(|p| data[*p] == b'\n') else {
        return false;
    };
    let low = break_at.saturating_sub(LONGEST / 4);
    let control = |b: &u8| *b < b' ' && *b != b'\t';
    let before = data[low..break_at].iter().rposition(control);
    let start = before.map_or(low, |n| low + n + 1);
    let line = text(&data[start..break_at]);
    let Some(cmd) = line
        .strip_prefix("- cmd: ")
        .filter(|_| start > low || low == 0)
    else {
        return false;
    };
    let cmd = unescaped(cmd);
    emit(
        start,
        end,
        &command(text(&data[digits..end]), time, &cmd, "fish"),
    );
    true
}

/// A command as fish was given it: its file writes a line end as `\n` and a backslash twice (`history/file.rs`).
fn unescaped(line: &str) -> Cow<'_, str> {
    if !line.contains('\\') {
        return Cow::Borrowed(line);
    }
    let (mut out, mut chars) = (String::with_capacity(line.len()), line.chars());
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('\\')) => out.push('\\'),
            _ => {
                out.push(c);
                continue;
            }
        }
        chars.next();
    }
    Cow::Owned(out)
}

/// Looks at the colon at byte `at`, before which ten digits stand.
pub(super) fn zsh(data: &[u8], at: usize, emit: &mut dyn FnMut(usize, usize, &Record<'_>)) -> bool {
    let Some(start) = at.checked_sub(12).filter(|s| begins::<1>(data, *s)) else {
        return false;
    };
    let digits = &data[start + 2..at];
    let Some(time) = seconds(digits).filter(|_| data[start..].starts_with(b": ")) else {
        return false;
    };
    let mut stop = line_end::<1>(data, start);
    let line = text(&data[(at + 1).min(stop)..stop]);
    let Some((elapsed, first)) = line.split_once(';') else {
        return false;
    };
    // A command of several lines has a backslash before each line's end but the last.
    let mut cmd = Cow::Borrowed(first);
    while goes_on(&cmd) && data.get(stop) == Some(&b'\n') && stop - start < LONGEST {
        let end = line_end::<1>(data, stop + 1);
        let more = text(&data[stop + 1..end]);
        if more.starts_with(": ") && more.get(12..13) == Some(":") {
            break;
        }
        let kept = cmd.len() - 1;
        let whole = cmd.to_mut();
        whole.truncate(kept);
        whole.push('\n');
        whole.push_str(more);
        stop = end;
    }
    if elapsed.is_empty()
        || elapsed.len() > 9
        || !elapsed.bytes().all(|b| b.is_ascii_digit())
        || cmd.is_empty()
    {
        return false;
    }
    let mut r = command(text(digits), time, &cmd, "zsh");
    r.fields.number("elapsed", elapsed);
    emit(start, stop, &r);
    true
}

/// True for a text that ends with a backslash that none other is before.
fn goes_on(line: &str) -> bool {
    (line.len() - line.trim_end_matches('\\').len()) % 2 == 1
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Fields of a journal's record that have a column or a field of their own.
#[derive(Default)]
struct Entry<'a> {
    time: Option<i64>,
    raw_time: &'a str,
    host: Option<&'a str>,
    identifier: Option<&'a str>,
    comm: Option<&'a str>,
    pid: Option<&'a str>,
    message: Option<Cow<'a, str>>,
    others: [Option<&'a str>; OTHERS.len()],
}

const OTHERS: &[(&str, &str)] = &[
    ("PRIORITY", "severity"),
    ("_UID", "uid"),
    ("_SYSTEMD_UNIT", "unit"),
    ("_EXE", "exe"),
    ("_CMDLINE", "command"),
    ("_TRANSPORT", "transport"),
    ("_BOOT_ID", "boot_id"),
    ("_MACHINE_ID", "machine_id"),
];

/// A record of the export format around the time whose digits begin at `digits`.
fn journal(data: &[u8], digits: usize, emit: &mut dyn FnMut(usize, usize, &Record<'_>)) -> bool {
    let mut start = digits - b"__REALTIME_TIMESTAMP=".len();
    let low = start.saturating_sub(LONGEST / 4);
    // Fields may come in any order: back to the first line that is one. Where that is too far off
    // it is not known where the record begins.
    while start > 0 && data[start - 1] == b'\n' {
        let control = |b: &u8| *b < b' ' && *b != b'\t';
        let before = data[low..start - 1].iter().rposition(control);
        let Some(from) = before.map(|n| low + n + 1).or((low == 0).then_some(0)) else {
            return false;
        };
        if key(&data[from..start - 1]).is_none() {
            break;
        }
        start = from;
    }
    if start > 0 && data[start - 1] != b'\n' && !begins::<1>(data, start) {
        return false;
    }
    let mut e = Entry::default();
    let end = read(data, start, &mut e);
    let Some(time) = e.time else { return false };
    let mut fields = Fields::new();
    fields.str("raw", text(&data[start..end]));
    for ((_, name), value) in OTHERS.iter().zip(e.others) {
        let value = value.unwrap_or_default();
        if matches!(*name, "severity" | "uid") {
            fields.number(name, value);
        } else {
            fields.str(name, value);
        }
    }
    let r = Record {
        kind: "journal",
        stamp: Stamp::Micros(time),
        raw_time: e.raw_time,
        host: e.host,
        program: e.identifier.or(e.comm),
        pid: e.pid.and_then(|p| p.parse().ok()),
        message: e.message.as_deref().unwrap_or_default(),
        fields,
    };
    emit(start, end, &r);
    true
}

/// The length of the name that begins a line of the export format.
fn key(line: &[u8]) -> Option<usize> {
    let n = line
        .iter()
        .take(65)
        .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || **b == b'_');
    let n = n.count();
    (n > 1 && n <= 64 && line.get(n) == Some(&b'=')).then_some(n)
}

/// Reads fields from byte `at` until an empty line; where they end.
fn read<'a>(data: &'a [u8], at: usize, e: &mut Entry<'a>) -> usize {
    let mut p = at;
    let limit = data.len().min(at + LONGEST);
    while p < limit {
        let end = line_end::<1>(&data[..limit], p);
        let line = &data[p..end];
        let next = (end + 1).min(limit);
        let done = data.get(end) != Some(&b'\n');
        if let Some(n) = key(line) {
            field(
                e,
                text(&line[..n]),
                Cow::Borrowed(text(&line[n + 1..])),
                text(&line[n + 1..]),
            );
        } else if let Some((value, after)) = binary(data, p, end, limit) {
            // A value of several lines has its length before it.
            let value = String::from_utf8_lossy(value);
            field(e, text(line), value, "");
            p = after;
            continue;
        } else {
            return p.saturating_sub(1).max(at);
        }
        p = next;
        if done {
            return end;
        }
    }
    p
}

/// The value whose name alone stands from byte `p` to `end`: eight bytes of length, and that many.
fn binary(data: &[u8], p: usize, end: usize, limit: usize) -> Option<(&[u8], usize)> {
    let name = &data[p..end];
    let upper = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_';
    if name.len() < 2 || !name.iter().all(upper) || data.get(end) != Some(&b'\n') {
        return None;
    }
    let from = end + 9;
    let len = data
        .get(end + 1..from)?
        .try_into()
        .map(u64::from_le_bytes)
        .ok()?;
    let to = from
        .checked_add(usize::try_from(len).ok()?)
        .filter(|t| *t < limit)?;
    (data.get(to) == Some(&b'\n')).then_some((&data[from..to], to + 1))
}

fn field<'a>(e: &mut Entry<'a>, name: &str, value: Cow<'a, str>, plain: &'a str) {
    match name {
        "__REALTIME_TIMESTAMP" => {
            e.time = plain.parse().ok();
            e.raw_time = plain;
        }
        "_HOSTNAME" => e.host = Some(plain),
        "SYSLOG_IDENTIFIER" => e.identifier = Some(plain),
        "_COMM" => e.comm = Some(plain),
        "_PID" => e.pid = Some(plain),
        "MESSAGE" => e.message = Some(value),
        _ => {
            if let Some(i) = OTHERS.iter().position(|o| o.0 == name) {
                e.others[i] = Some(plain);
            }
        }
    }
}
