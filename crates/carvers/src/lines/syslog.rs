//! Syslog: RFC 3164 (`<PRI>Mmm dd hh:mm:ss host tag[pid]: message`) and RFC 5424
//! (`<PRI>1 time host app procid msgid [data] message`), and what OpenSSH and sudo say in it
//! (auth.c and packet.c of OpenSSH, logging.c of sudo).

use super::record::{
    Emit, Fields, Record, Stamp, clock, cut, fraction, iso, month, tag, wordlike, zone,
};
use crate::zone::Civil;

/// Takes `<PRI>` off.
fn priority<'a>(line: &'a str, fields: &mut Fields<'a>) -> Option<&'a str> {
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
    let b = line.as_bytes();
    let mut c = Civil {
        month: month(b, 0)?,
        ..Civil::default()
    };
    let day = |x: u8| {
        if x == b' ' {
            Some(0)
        } else {
            x.is_ascii_digit().then(|| x - b'0')
        }
    };
    c.day = day(*b.get(4)?)? * 10 + b.get(5).filter(|x| x.is_ascii_digit())? - b'0';
    clock(b, 7, &mut c)?;
    // Some write a fraction, some a year or a zone after the time; the RFC has none of them.
    let end = fraction(b, 15, &mut c);
    let end = if b.get(end) == Some(&b' ') {
        end
    } else {
        zone(b, end, &mut c)
    };
    if !c.is_valid() {
        return None;
    }
    let rest = line[end..].strip_prefix(' ')?;
    let (host, rest) = match rest.split_once(' ') {
        Some((h, r)) if wordlike(h, 255) && !h.ends_with(':') => (Some(h), r),
        _ => (None, rest),
    };
    let (program, pid, message) = match tag(rest) {
        Some((p, pid, m)) => (Some(p), pid, m),
        None => (None, None, rest),
    };
    // A date with one word behind it is no log line.
    if host.is_none() && program.is_none() {
        return None;
    }
    let stamp = Stamp::Civil(c);
    let raw_time = &line[..end];
    let mut r = Record {
        kind: "syslog",
        stamp,
        raw_time,
        host,
        program,
        pid,
        message,
        fields,
    };
    refine(&mut r);
    Some(r)
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
    if let Some((who, from)) = rest
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
