//! Login records of Linux: wtmp, btmp and utmp, of which each record is found on its own.
//!
//! ```text
//!   0 type   2 pad   4 pid   8 line[32]   40 id[4]   44 user[32]   76 host[256]
//! 332 exit (two i16)   336 session   340 seconds   344 microseconds   348 address[16]   364 zeros[20]
//! ```
//!
//! That is `struct utmp` of glibc (utmp(5)) where the times have 32 bits each: x86-64, and the
//! 32-bit systems. There is no magic: a terminal's name must stand in `line`, what is behind the
//! end of each text and behind the address must be zero, and every number be one that is written
//! there. A record without a user (a logout) counts only beside another record.
//!
//! lastlog has neither a magic nor zeros that must be there (292 bytes of a time, a line and a
//! host), so its records can't be told from other bytes.

use crate::api::{Encoding, Event, Field};
use crate::carver::{Carver, Hit};
use ramsift_layers::ImageOffset;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) struct Utmp;

/// Bytes of a record.
const SIZE: usize = 384;
/// Where the line begins in it, and its bytes.
const LINE: usize = 8;
const LINE_LEN: usize = 32;
/// Where the user begins.
const USER: usize = 44;
/// What the lines of terminals have in them. Boots and runlevels have `~` there, and are found by
/// their users: a search for one letter and zeros stops too often.
const LITERALS: &[&[u8]] = &[
    b"pts/",
    b"tty",
    b"hvc",
    b"console\0",
    b":0\0\0\0\0\0\0",
    b"reboot\0\0",
    b"runlevel\0",
    b"shutdown\0",
];
/// How many of them are of lines.
const LINES: usize = 5;
/// From 1995 to 2100: Linux is hardly older than that.
const SECONDS: std::ops::Range<u32> = 788_918_400..4_102_444_800;
/// The largest process id that Linux gives on 64-bit systems (`PID_MAX_LIMIT`).
const LAST_PID: u32 = 4 << 20;
/// The types, by their number (utmp.h).
const TYPES: [&str; 10] = [
    "EMPTY",
    "RUN_LVL",
    "BOOT_TIME",
    "NEW_TIME",
    "OLD_TIME",
    "INIT_PROCESS",
    "LOGIN_PROCESS",
    "USER_PROCESS",
    "DEAD_PROCESS",
    "ACCOUNTING",
];

impl Carver for Utmp {
    fn name(&self) -> &'static str {
        "utmp"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        LITERALS
    }

    fn reach(&self) -> usize {
        USER
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let data = hit.source.data;
        let Some(start) = start(data, at).filter(|s| hit.owns(*s)) else {
            return;
        };
        if let Some(r) = record_at(data, start)
            && (!r.user.is_empty() || in_a_row(data, start))
        {
            r.report(start, hit);
        }
    }
}

/// Where the record begins that the literal at `at` is in, by what stands around it.
fn start(data: &[u8], at: usize) -> Option<usize> {
    let (of_lines, of_users) = LITERALS.split_at(LINES);
    if of_users.iter().any(|l| data[at..].starts_with(l)) {
        let start = at.checked_sub(USER)?;
        return data[start + LINE..].starts_with(b"~\0").then_some(start);
    }
    // The line may begin before the literal (`ssh:notty`); the top byte of the process id before
    // it is zero.
    let low = at.saturating_sub(LINE_LEN);
    let named = |b: &&u8| (0x21..0x7f).contains(*b);
    let line = at - data[low..at].iter().rev().take_while(named).count();
    let start = line.checked_sub(LINE)?;
    let head = &data[start..line];
    let known = (1..=9).contains(&head[0]) && head[1..4] == [0; 3] && head[7] == 0;
    // Of several literals in a line the first tells.
    let earlier = |l: &&[u8]| memchr::memmem::find(&data[line..at], l).is_some();
    (known && !of_lines.iter().any(earlier)).then_some(start)
}

/// A record.
struct Record<'a> {
    kind: &'static str,
    pid: u32,
    line: &'a str,
    user: &'a str,
    host: &'a str,
    id: &'a str,
    exit: [u16; 2],
    session: u32,
    seconds: u32,
    micros: u32,
    address: [u8; 16],
}

/// True when a record is right before or behind the one at `start`.
fn in_a_row(data: &[u8], start: usize) -> bool {
    let before = start.checked_sub(SIZE);
    before.is_some_and(|p| record_at(data, p).is_some()) || record_at(data, start + SIZE).is_some()
}

/// The record at `start`, if it is one by all that it holds.
fn record_at(data: &[u8], start: usize) -> Option<Record<'_>> {
    let b: &[u8; SIZE] = data.get(start..)?.first_chunk()?;
    let number = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let kind = *TYPES.get(usize::try_from(number(0)).ok()?)?;
    let r = Record {
        kind,
        pid: number(4),
        line: text(&b[LINE..40])?,
        id: text(&b[40..44])?,
        user: text(&b[44..76])?,
        host: text(&b[76..332])?,
        exit: [half(332), half(334)],
        session: number(336),
        seconds: number(340),
        micros: number(344),
        address: *b[348..364].first_chunk()?,
    };
    let sound = r.pid <= LAST_PID
        && r.session <= LAST_PID
        && r.exit.iter().all(|e| *e <= 255)
        && SECONDS.contains(&r.seconds)
        && r.micros < 1_000_000
        && b[364..] == [0; 20];
    (sound && r.fits()).then_some(r)
}

impl Record<'_> {
    /// True when the texts are those that records of this type have.
    fn fits(&self) -> bool {
        let terminal = self.line != "~" && !self.line.is_empty();
        match self.kind {
            "BOOT_TIME" => self.line == "~" && self.user == "reboot",
            "RUN_LVL" => self.line == "~" && matches!(self.user, "runlevel" | "shutdown"),
            "USER_PROCESS" | "LOGIN_PROCESS" => terminal && !self.user.is_empty(),
            "INIT_PROCESS" | "DEAD_PROCESS" => terminal && self.pid != 0,
            _ => false,
        }
    }

    fn report(&self, start: usize, hit: &mut Hit<'_, '_>) {
        let address = self.address();
        let mut message = self.kind.to_owned();
        let mut fields = vec![("type", Field::Str(self.kind))];
        for (name, value) in [
            ("user", self.user),
            ("line", self.line),
            ("host", self.host),
            ("addr", address.as_str()),
            ("id", self.id),
        ] {
            if value.is_empty() {
                continue;
            }
            fields.push((name, Field::Str(value)));
            // An address without a name is also the host.
            if name != "id" && (name != "addr" || value != self.host) {
                message.push(' ');
                message.push_str(value);
            }
        }
        if self.session != 0 {
            fields.push(("session", Field::Int(self.session.into())));
        }
        if self.exit != [0; 2] {
            fields.push(("termination", Field::Int(self.exit[0].into())));
            fields.push(("exit", Field::Int(self.exit[1].into())));
        }
        let raw = format!("{}.{:06}", self.seconds, self.micros);
        let time = i64::from(self.seconds) * 1_000_000 + i64::from(self.micros);
        hit.event(&Event {
            carver: "utmp",
            kind: "utmp",
            offset: ImageOffset(hit.source.base + start as u64),
            len: SIZE as u64,
            time: Some(time),
            inferred_time: None,
            inferred_from: None,
            raw_time: &raw,
            time_kind: "logged",
            host: None,
            program: None,
            pid: Some(self.pid).filter(|p| *p != 0),
            message: &message,
            encoding: Encoding::Utf8,
            fields: &fields,
        });
    }

    /// The address: of IPv4 the first four bytes alone.
    fn address(&self) -> String {
        let (v4, rest) = self.address.split_at(4);
        if self.address == [0; 16] {
            return String::new();
        }
        match (<[u8; 4]>::try_from(v4), rest.iter().all(|b| *b == 0)) {
            (Ok(v4), true) => Ipv4Addr::from(v4).to_string(),
            _ => Ipv6Addr::from(self.address).to_string(),
        }
    }
}

/// The text that `field` begins with, behind which all must be zero.
fn text(field: &[u8]) -> Option<&str> {
    let end = memchr::memchr(0, field).unwrap_or(field.len());
    let (text, rest) = field.split_at(end);
    let text = std::str::from_utf8(text).ok()?;
    let fine = rest.iter().all(|b| *b == 0) && !text.chars().any(char::is_control);
    fine.then_some(text)
}
