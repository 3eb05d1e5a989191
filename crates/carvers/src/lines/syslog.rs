//! Syslog: RFC 3164 (`<PRI>Mmm dd hh:mm:ss host tag[pid]: message`) and RFC 5424
//! (`<PRI>1 time host app procid msgid [data] message`), and what OpenSSH and sudo say in it
//! (auth.c and packet.c of OpenSSH, logging.c of sudo).

use super::record::{
    Emit, Fields, Record, Stamp, clock, cut, four, fraction, is_level, iso, month, tag, weekday,
    wordlike, zone,
};
use crate::zone::Civil;

/// Takes `<PRI>` off.
pub(super) fn priority<'a>(line: &'a str, fields: &mut Fields<'a>) -> Option<&'a str> {
    let Some(inner) = line.strip_prefix('<') else {
        return Some(line);
    };
    let (digits, rest) = cut(inner, ">")?;
    let n: u8 = digits.parse().ok()?;
    if n > 191 {
        return None;
    }
    fields.int("facility", n / 8);
    fields.int("severity", n % 8);
    Some(rest)
}

pub(super) fn rfc3164(line: &str, emit: &mut Emit<'_>) -> bool {
    parse3164(line).map(|r| emit(&r)).is_some()
}

fn parse3164(line: &str) -> Option<Record<'_>> {
    let mut fields = Fields::new();
    let line = priority(line, &mut fields)?;
    let line = line.strip_prefix(' ').unwrap_or(line);
    let b = line.as_bytes();
    let mut c = Civil::default();
    let (begin, end) = date(b, &mut c)?;
    if !c.is_valid() {
        return None;
    }
    let rest = &line[end..];
    // Routers write `: ` here.
    let rest = rest.strip_prefix(':').unwrap_or(rest).strip_prefix(' ')?;
    let rest = rest.trim_start_matches(' ');
    let mut header = header(rest, &mut fields);
    // `Tue Feb  6 15:16:31 2024`, as ctime writes it, is the whole of what vsftpd, OpenVPN and others put in front.
    let whole = weekday(b, 0) && c.year.is_some() && header.program.is_none();
    if whole {
        (header.host, header.message) = (None, rest);
        if rest.trim().is_empty() {
            return None;
        }
    }
    // A date with one word behind it is no log line.
    if !whole && header.host.is_none() && header.program.is_none() && !header.sure {
        return None;
    }
    let mut r = Record {
        kind: "syslog",
        stamp: Stamp::Civil(c),
        raw_time: &line[begin..end],
        host: header.host,
        program: header.program,
        pid: header.pid,
        message: header.message,
        fields,
    };
    refine(&mut r);
    Some(r)
}

/// Reads `Mmm dd hh:mm:ss`, with one or two characters for the day, and with what systems add to
/// it: a year or a weekday in front, a year behind the day or behind the time, a fraction, a zone.
/// Where the time begins and where it ends.
fn date(b: &[u8], c: &mut Civil) -> Option<(usize, usize)> {
    let begin = usize::from(matches!(b.first(), Some(b'*' | b'.')));
    let mut i = begin;
    if b.get(i + 4) == Some(&b' ') && four(b, i).is_some() {
        c.year = four(b, i);
        i += 5;
    } else if weekday(b, i) {
        i += 3 + usize::from(b.get(i + 3) == Some(&b','));
        i += 1;
    }
    c.month = month(b, i)?;
    i += 3;
    if b.get(i) != Some(&b' ') {
        return None;
    }
    i += 1 + usize::from(b.get(i + 1) == Some(&b' '));
    let first = b.get(i).filter(|x| x.is_ascii_digit())? - b'0';
    c.day = first;
    i += 1;
    if let Some(second) = b.get(i).filter(|x| x.is_ascii_digit()) {
        c.day = first * 10 + second - b'0';
        i += 1;
    }
    if b.get(i + 5) == Some(&b' ') && four(b, i + 1).is_some() && c.year.is_none() {
        c.year = four(b, i + 1);
        i += 5;
    }
    if b.get(i) != Some(&b' ') {
        return None;
    }
    clock(b, i + 1, c)?;
    i = fraction(b, i + 9, c);
    i = zone(b, i, c);
    let ends = b.get(i + 5).is_none_or(|x| matches!(x, b' ' | b':'));
    if b.get(i) == Some(&b' ')
        && ends
        && c.year.is_none()
        && let Some(year) = four(b, i + 1).filter(|y| (1970..=2200).contains(y))
    {
        c.year = Some(year);
        i += 5;
    }
    Some((begin, i))
}

/// What stands between the time and the message.
#[derive(Default)]
pub(super) struct Header<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) program: Option<&'a str>,
    pub(super) pid: Option<u32>,
    pub(super) message: &'a str,
    /// What stands there is a log line's without a host and a program: a level, or how often another was written.
    sure: bool,
}

/// Reads `[<facility.level>] [host] [level] [program[pid]:] message`.
pub(super) fn header<'a>(rest: &'a str, fields: &mut Fields<'a>) -> Header<'a> {
    let mut rest = rest;
    if let Some((inner, after)) = rest.strip_prefix('<').and_then(|r| cut(r, "> "))
        && graded(inner, fields)
    {
        rest = after;
    }
    if rest.starts_with("last message repeated ") || rest.starts_with("message repeated ") {
        return Header {
            message: rest,
            sure: true,
            ..Header::default()
        };
    }
    let mut h = Header {
        message: rest,
        ..Header::default()
    };
    if let Some((word, after)) = rest.split_once(' ') {
        let odd = word.contains(":[")
            || is_level(word)
            || word.ends_with("]:")
            || word.contains('=')
            || (word.contains(':') && word.parse::<std::net::Ipv6Addr>().is_err());
        if wordlike(word, 255)
            && !word.ends_with(':')
            && !odd
            && !word.starts_with(['[', '<', '%', '('])
        {
            (h.host, h.message) = (Some(word), after.trim_start_matches(' '));
        }
    }
    if let Some((word, after)) = h.message.split_once(' ') {
        // A level in front of the program, as some templates and BusyBox write it.
        let bare = word.trim_matches(['[', ']', '<', '>', '(', ')']);
        if tag(after).is_some() && !word.ends_with(':') && graded(bare, fields) {
            h.message = after;
        }
    }
    if let Some((program, pid, message)) = tag(h.message) {
        h.message = message;
        if pid.is_none() && is_level(program) {
            fields.str("level", program);
            h.sure = true;
        } else {
            (h.program, h.pid) = (Some(program), pid);
        }
    }
    // A number alone is no host: `2 messages`.
    if h.program.is_none()
        && !h.sure
        && h.host
            .is_some_and(|w| w.bytes().all(|b| b.is_ascii_digit()))
    {
        (h.host, h.message) = (None, rest);
    }
    h
}

/// Takes a level, or a facility and a level, into the fields; false when the word is none.
fn graded<'a>(word: &'a str, fields: &mut Fields<'a>) -> bool {
    const FACILITIES: &[&str] = &[
        "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
        "authpriv", "ftp", "security", "console", "ntp", "local0", "local1", "local2", "local3",
        "local4", "local5", "local6", "local7",
    ];
    if is_level(word) {
        fields.str("level", word);
        return true;
    }
    let Some((facility, level)) = word.split_once('.') else {
        return false;
    };
    if !FACILITIES.contains(&facility) || !is_level(level) {
        return false;
    }
    fields.str("facility_name", facility);
    fields.str("level", level);
    true
}

pub(super) fn rfc5424(line: &str, emit: &mut Emit<'_>) -> bool {
    parse5424(line).map(|r| emit(&r)).is_some()
}

fn parse5424(line: &str) -> Option<Record<'_>> {
    let mut fields = Fields::new();
    let rest = priority(line, &mut fields)?.strip_prefix("1 ")?;
    let (c, end) = iso(rest.as_bytes(), 0)?;
    let raw_time = &rest[..end];
    let mut parts = rest[end..].strip_prefix(' ')?.splitn(5, ' ');
    let (host, app, proc_id, msg_id) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let tail = parts.next().unwrap_or("-");
    let (data, message) = structured(tail)?;
    fields.str("msgid", msg_id);
    fields.str("structured_data", data);
    let some = |s| Some(s).filter(|s| *s != "-");
    let mut r = Record {
        kind: "syslog5424",
        stamp: Stamp::Civil(c),
        raw_time,
        host: some(host),
        program: some(app),
        pid: proc_id.parse().ok(),
        message: message.strip_prefix('\u{feff}').unwrap_or(message),
        fields,
    };
    refine(&mut r);
    Some(r)
}

/// Splits structured data from the message.
fn structured(tail: &str) -> Option<(&str, &str)> {
    if let Some(rest) = tail.strip_prefix('-') {
        return Some(("-", rest.strip_prefix(' ').unwrap_or(rest)));
    }
    let b = tail.as_bytes();
    let (mut quoted, mut i) = (false, 0);
    if b.first() != Some(&b'[') {
        return None;
    }
    while i < b.len() {
        match b[i] {
            b'\\' if quoted => i += 1,
            b'"' => quoted = !quoted,
            b']' if !quoted && b.get(i + 1) != Some(&b'[') => {
                let (data, rest) = tail.split_at(i + 1);
                return Some((data, rest.strip_prefix(' ').unwrap_or(rest)));
            }
            _ => {}
        }
        i += 1;
    }
    None
}

/// Reads what the programs whose words are known say.
pub(super) fn refine(r: &mut Record<'_>) {
    match r.program {
        Some("sshd" | "sshd-session" | "sshd-auth") => {
            r.kind = "sshd";
            sshd(r.message, &mut r.fields);
        }
        Some("sudo") => {
            r.kind = "sudo";
            sudo(r.message, &mut r.fields);
        }
        _ => {}
    }
}

fn sshd<'a>(message: &'a str, f: &mut Fields<'a>) {
    let (head, rest) = message.split_once(' ').unwrap_or((message, ""));
    let action = match head {
        "Accepted" => "accepted",
        "Failed" => "failed",
        "Invalid" | "Illegal" => "invalid_user",
        "Disconnected" | "Received" | "Disconnecting" => "disconnected",
        "Connection" if rest.starts_with("closed") => "closed",
        "Connection" if rest.starts_with("reset") => "reset",
        "Connection" => "connected",
        "pam_unix(sshd:session):" if rest.contains("session opened") => "session_opened",
        "pam_unix(sshd:session):" if rest.contains("session closed") => "session_closed",
        "pam_unix(sshd:auth):" if rest.contains("authentication failure") => "failed",
        _ => return,
    };
    f.str("action", action);
    let tried = action == "accepted" || action == "failed";
    if let Some((method, _)) = rest.split_once(" for ").filter(|_| tried) {
        f.str("method", method);
    }
    if let Some(from) = rest.strip_prefix("from ") {
        peer(from, true, f);
    } else if let Some((who, from)) = rest
        .rsplit_once(" from ")
        .or_else(|| rest.split_once(" by "))
    {
        let user = who.rsplit_once(" for ").map_or(who, |x| x.1);
        let user = user.trim_start_matches("invalid user ");
        let user = user.trim_start_matches("user ");
        let named = matches!(action, "accepted" | "failed" | "invalid_user");
        if named && !user.contains(' ') {
            f.str("user", user);
        }
        let from = from.trim_start_matches("authenticating user ");
        let from = from
            .trim_start_matches("invalid user ")
            .trim_start_matches("user ");
        peer(from, named, f);
    } else if let Some((_, user)) = rest.split_once("for user ") {
        f.str("user", user.split([' ', '(']).next().unwrap_or_default());
    }
}

/// Reads `[user] address port number`.
fn peer<'a>(text: &'a str, named: bool, f: &mut Fields<'a>) {
    let mut words = text.split(' ');
    let Some(mut address) = words.next() else {
        return;
    };
    let mut next = words.next();
    if !named && next.is_some_and(|w| w != "port") {
        f.str("user", address);
        address = next.unwrap_or_default();
        next = words.next();
    }
    if address.parse::<std::net::IpAddr>().is_ok() {
        f.str("src_ip", address);
    }
    if next == Some("port") {
        let digits = words.next().unwrap_or_default();
        f.number(
            "src_port",
            digits.trim_end_matches(|c: char| !c.is_ascii_digit()),
        );
        let number = digits.split(':').next().unwrap_or_default();
        if number != digits {
            f.number("src_port", number);
        }
    }
}

fn sudo<'a>(message: &'a str, f: &mut Fields<'a>) {
    let Some((user, rest)) = message.trim_start().split_once(" : ") else {
        return;
    };
    if !wordlike(user, 64) {
        return;
    }
    f.str("user", user);
    // The command is last and may hold anything.
    let (settings, command) = rest.split_once("COMMAND=").unwrap_or((rest, ""));
    for part in settings.split(" ; ") {
        match part.trim().trim_end_matches(" ;").split_once('=') {
            Some(("TTY", v)) => f.str("tty", v),
            Some(("PWD", v)) => f.str("pwd", v),
            Some(("USER", v)) => f.str("target_user", v),
            None if !part.trim().is_empty() => f.str("action", part.trim()),
            _ => {}
        }
    }
    f.str("command", command);
}
