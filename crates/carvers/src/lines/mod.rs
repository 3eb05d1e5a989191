//! Log lines of known formats, in UTF-8 and UTF-16LE.
//!
//! ```text
//! <34>Oct 11 22:14:15 mymachine su[7]: ...          syslog (RFC 3164), sshd, sudo
//! <165>1 2003-10-11T22:14:15.003Z host app 7 ...    syslog5424 (RFC 5424)
//! 2003-10-11T22:14:15.003Z host app[7]: ...         syslog, as rsyslog and journald write it
//! 2024-01-02 03:04:05,678 rest / [2024-01-02T...    iso
//! 192.0.2.1 - - [02/Jan/2024:03:04:05 +0000] "...   access (Apache common and combined, nginx)
//! [Tue Jan 02 03:04:05.678 2024] [core:error] ...   apache_error
//! 2024/01/02 03:04:05 [error] 7#8: *9 ...           nginx_error
//! I0102 03:04:05.678901 7 file.go:8] ...            klog
//! time=2024-01-02T03:04:05Z level=info msg=...      logfmt
//!             ^^^^^^^^ these are found by this shape
//! {"time":"2024-01-02T03:04:05Z","msg":...          json, kubernetes_audit, journal: by `{`
//! type=LOGIN msg=audit(1704164645.678:9): ...       auditd: by `.ddd:d`
//! #1704164645 / : 1704164645:0;ls                   shell_history: by ten digits before an end
//! __REALTIME_TIMESTAMP=1704164645678901             journal
//! ```
//!
//! A line begins after a line end or a byte that is no text, and ends before one, or after 16 Ki
//! characters. Most have a time of day, `dd:dd:dd`, which random bytes hardly ever show: from there
//! the parsers look back to where their line must begin.

mod audit;
mod history;
mod iso;
mod json;
mod klog;
mod record;
mod syslog;
mod web;

use crate::api::{Encoding, Event, Sink};
use crate::chars::{ALNUM, ALPHA, Chars, LINE, is, printable_len, utf8_char};
use crate::zone::{Clock, When};
use ramsift_layers::ImageOffset;
use record::{Record, Stamp};
use std::ops::Range;

pub(crate) const VERSION: u32 = 2;
/// Longest line, in characters.
pub(crate) const LONGEST: usize = 16 << 10;
/// How far back from its time an access log's line may begin.
const PREFIX: usize = 512;

/// Which parser a trigger is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Syslog,
    Syslog5424,
    Iso,
    Access,
    ApacheError,
    Slashed,
    Klog,
    Logfmt,
    Audit,
}

/// Finds log lines in a part of the image.
pub(crate) struct Lines<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) base: u64,
    pub(crate) core: Range<usize>,
    pub(crate) clock: &'a Clock,
    /// What the parsers claimed, in the order found.
    pub(crate) claims: Vec<Range<usize>>,
    /// Lines stored as UTF-16 are decoded into this.
    buf: String,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(
        data: &'a [u8],
        base: u64,
        core: Range<usize>,
        clock: &'a Clock,
        claims: Vec<Range<usize>>,
    ) -> Self {
        Self {
            data,
            base,
            core,
            clock,
            claims,
            buf: String::new(),
        }
    }

    /// Looks at the first colon of a time of day, at byte `at`.
    #[inline(never)]
    pub(crate) fn time_of_day<const STEP: usize>(&mut self, at: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let Some(hour) = at.checked_sub(2 * STEP) else {
            return;
        };
        let back = |n: usize| hour.checked_sub(n * STEP);
        let char_back = |n: usize| back(n).map_or(0, |p| chars.at(p));
        match char_back(1) {
            b' ' | b'T' | b't' if char_back(4) == b'-' && char_back(7) == b'-' => {
                if let Some(date) = back(11) {
                    self.iso::<STEP>(date, sink);
                }
            }
            b' ' if char_back(4) == b'/' && char_back(7) == b'/' => {
                let Some(date) = back(11) else { return };
                self.line::<STEP>(date, Format::Slashed, sink);
            }
            b' ' if char_back(13) == b'[' && char_back(10) == b'/' => {
                let Some(bracket) = back(13) else { return };
                if let Some(start) = chars.back(bracket, LINE, PREFIX) {
                    self.line::<STEP>(start, Format::Access, sink);
                }
            }
            b' ' if char_back(12) == b'[' && char_back(8) == b' ' => {
                let Some(bracket) = back(12) else { return };
                self.line::<STEP>(bracket, Format::ApacheError, sink);
            }
            b' ' => self.day::<STEP>(hour, sink),
            b':' if char_back(13) == b'[' && char_back(10) == b'/' => {
                let Some(bracket) = back(13) else { return };
                if let Some(start) = chars.back(bracket, LINE, PREFIX) {
                    self.line::<STEP>(start, Format::Access, sink);
                }
            }
            _ => {}
        }
    }

    /// An ISO date at byte `date`: what is before it tells the format.
    fn iso<const STEP: usize>(&mut self, date: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        match chars.before(date) {
            b'[' if begins::<STEP>(self.data, date - STEP) => {
                self.line::<STEP>(date - STEP, Format::Iso, sink)
            }
            b'[' => {
                if let Some(start) = chars.back(date, LINE, PREFIX) {
                    self.line::<STEP>(start, Format::Access, sink);
                }
            }
            b' ' => {
                let day = date
                    .checked_sub(4 * STEP)
                    .filter(|d| is(chars.at(*d), ALPHA));
                match day.filter(|d| begins::<STEP>(self.data, *d)) {
                    Some(day) => self.line::<STEP>(day, Format::Iso, sink),
                    None => self.priority::<STEP>(date, sink),
                }
            }
            b'>' => {
                if let Some(start) = self.angle::<STEP>(date - STEP) {
                    self.line::<STEP>(start, Format::Iso, sink);
                }
            }
            b'=' | b'"' => {
                let equals = chars.before(date) == b'=' || chars.before(date - STEP) == b'=';
                // In an object the pairs are a member's text, and the object is the record.
                let start = chars.back(date, LINE, PREFIX).filter(|_| equals);
                if let Some(start) = start.filter(|s| chars.at(*s) != b'{') {
                    self.line::<STEP>(start, Format::Logfmt, sink);
                }
            }
            _ => self.line::<STEP>(date, Format::Iso, sink),
        }
    }

    /// A time of day after a space, with its hour at byte `hour`: a month and a day before it, or
    /// a year behind these; or klog's level, month and day.
    fn day<const STEP: usize>(&mut self, hour: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let digits = |mut p: usize| {
            let mut n = 0;
            while n < 9 && chars.before(p).is_ascii_digit() {
                (p, n) = (p - STEP, n + 1);
            }
            (p, n)
        };
        let (mut p, mut n) = digits(hour - STEP);
        if matches!(n, 4 | 8) && matches!(chars.before(p), b'I' | b'W' | b'E' | b'F') {
            self.line::<STEP>(p - STEP, Format::Klog, sink);
            return;
        }
        if n == 4 && chars.before(p) == b' ' {
            (p, n) = digits(p - STEP);
        }
        if !(1..=2).contains(&n) || chars.before(p) != b' ' {
            return;
        }
        p -= STEP;
        if n == 1 && chars.before(p) == b' ' {
            p -= STEP;
        }
        let Some(month) = p.checked_sub(3 * STEP).filter(|m| is(chars.at(*m), ALPHA)) else {
            return;
        };
        let start = match chars.before(month) {
            b'>' => self.angle::<STEP>(month - STEP),
            b'*' | b'.' => Some(month - STEP),
            b' ' => {
                // A weekday or a year, and what may be before that.
                let word = chars.back(month - STEP, ALNUM, 4);
                let comma = chars.before(month - STEP) == b',';
                let word = if comma {
                    chars.back(month - 2 * STEP, ALNUM, 4)
                } else {
                    word
                };
                match word.map(|w| (w, chars.before(w))) {
                    Some((w, b'>')) => self.angle::<STEP>(w - STEP),
                    Some((w, _)) => Some(w),
                    None => None,
                }
            }
            _ => Some(month),
        };
        if let Some(start) = start {
            self.line::<STEP>(start, Format::Syslog, sink);
        }
    }

    /// Looks at the `{` at byte `at`: an object alone on its line, or one of others.
    #[inline(never)]
    pub(crate) fn brace<const STEP: usize>(&mut self, at: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let mut next = at + STEP;
        while matches!(chars.at(next), b' ' | b'\t') && next < at + 4 * STEP {
            next += STEP;
        }
        if chars.at(next) != b'"' || self.claimed(at) {
            return;
        }
        let alone = begins::<STEP>(self.data, at);
        let end = if alone {
            line_end::<STEP>(self.data, at)
        } else if STEP == 1 && matches!(chars.before(at), b'[' | b',' | b':' | b' ' | b'}') {
            self.data.len().min(at + LONGEST)
        } else {
            return;
        };
        let mut buf = std::mem::take(&mut self.buf);
        let line = if STEP == 1 {
            &self.data[at..end]
        } else {
            decode(&self.data[at..end], &mut buf);
            buf.as_bytes()
        };
        let (core, clock, base) = (self.core.clone(), self.clock, self.base);
        let bytes = |len: usize| {
            if STEP == 1 {
                return len;
            }
            let text = std::str::from_utf8(line.get(..len).unwrap_or_default());
            text.unwrap_or_default().encode_utf16().count() * STEP
        };
        let found = json::parse(line, alone, &mut |r, len| {
            if core.contains(&at) {
                let place = base + at as u64..base + (at + bytes(len)) as u64;
                report(r, place, encoding::<STEP>(), clock, sink);
            }
        });
        let found = found.map(|len| at..at + bytes(len));
        self.buf = buf;
        self.claims.extend(found);
    }

    /// Looks at the colon of `audit(1700000000.123:456)` at byte `at`.
    #[inline(never)]
    pub(crate) fn audit(&mut self, at: usize, sink: &mut dyn Sink) {
        let mut p = at.saturating_sub(4);
        while p > 0 && self.data[p - 1].is_ascii_digit() && at - p < 16 {
            p -= 1;
        }
        if !self.data[..p].ends_with(b"audit(") {
            return;
        }
        if let Some(start) = Chars::<1>(self.data).back(p, LINE, PREFIX) {
            self.line::<1>(start, Format::Audit, sink);
        }
    }

    /// Looks at the line end or colon at byte `at`, which ten digits are before.
    #[inline(never)]
    pub(crate) fn stamped(&mut self, at: usize, sink: &mut dyn Sink) {
        if self.claimed(at) {
            return;
        }
        let (core, clock, base) = (self.core.clone(), self.clock, self.base);
        let mut claim = None;
        let last = self.claims.last().cloned().unwrap_or_default();
        let mut emit = |start: usize, end: usize, r: &Record<'_>| {
            if last.contains(&start) {
                return;
            }
            claim = Some(start..end);
            if core.contains(&start) {
                let place = base + start as u64..base + end as u64;
                report(r, place, Encoding::Utf8, clock, sink);
            }
        };
        if self.data.get(at) == Some(&b':') {
            history::zsh(self.data, at, &mut emit);
        } else {
            history::before_end(self.data, at, &mut emit);
        }
        self.claims.extend(claim);
    }

    /// True when what begins at byte `at` is part of the last claim.
    fn claimed(&self, at: usize) -> bool {
        self.claims.last().is_some_and(|c| c.contains(&at))
    }

    /// A date after a space: RFC 5424's follows `<PRI>1`.
    fn priority<const STEP: usize>(&mut self, date: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let Some(close) = date.checked_sub(3 * STEP) else {
            return;
        };
        let version = chars.at(close) == b'>' && chars.at(close + STEP) == b'1';
        if let Some(start) = self.angle::<STEP>(close).filter(|_| version) {
            self.line::<STEP>(start, Format::Syslog5424, sink);
        }
    }

    /// The `<` of a priority whose `>` is at byte `close`.
    fn angle<const STEP: usize>(&self, close: usize) -> Option<usize> {
        let chars = Chars::<STEP>(self.data);
        let start = (2..=4).filter_map(|n| close.checked_sub(n * STEP));
        start.into_iter().find(|&p| chars.at(p) == b'<')
    }

    fn line<const STEP: usize>(&mut self, start: usize, format: Format, sink: &mut dyn Sink) {
        if !begins::<STEP>(self.data, start) {
            return;
        }
        // A second time in a line that has an owner.
        if self.claimed(start) {
            return;
        }
        let mut end = line_end::<STEP>(self.data, start);
        if format == Format::Audit && self.data.get(end) == Some(&0x1d) {
            // auditd parts what it adds for people by this.
            end = line_end::<STEP>(self.data, end + 1);
        }
        let mut buf = std::mem::take(&mut self.buf);
        let line = if STEP == 1 {
            std::str::from_utf8(&self.data[start..end]).unwrap_or_default()
        } else {
            decode(&self.data[start..end], &mut buf);
            &buf
        };
        let (core, clock, base) = (self.core.clone(), self.clock, self.base);
        let encoding = encoding::<STEP>();
        let mut emit = |r: &Record<'_>| {
            if core.contains(&start) {
                let at = base + start as u64..base + end as u64;
                report(r, at, encoding, clock, sink);
            }
        };
        let found = match format {
            Format::Syslog => syslog::rfc3164(line, &mut emit),
            Format::Syslog5424 => syslog::rfc5424(line, &mut emit),
            Format::Iso => iso::parse(line, &mut emit),
            Format::Access => web::access(line, &mut emit),
            Format::ApacheError => web::apache_error(line, &mut emit),
            Format::Slashed => web::slashed(line, &mut emit),
            Format::Klog => klog::klog(line, &mut emit),
            Format::Logfmt => klog::logfmt(line, &mut emit),
            Format::Audit => audit::parse(line, &mut emit),
        };
        self.buf = buf;
        if found {
            self.claims.push(start..end);
        }
    }
}

fn encoding<const STEP: usize>() -> Encoding {
    if STEP == 2 {
        Encoding::Utf16Le
    } else {
        Encoding::Utf8
    }
}

fn report(r: &Record<'_>, at: Range<u64>, encoding: Encoding, clock: &Clock, sink: &mut dyn Sink) {
    let when = match r.stamp {
        Stamp::Civil(c) => clock.when(&c),
        Stamp::Micros(t) => When {
            time: Some(t),
            ..When::default()
        },
    };
    sink.event(&Event {
        carver: "log",
        kind: r.kind,
        offset: ImageOffset(at.start),
        len: at.end - at.start,
        time: when.time,
        inferred_time: when.inferred,
        inferred_from: when.from,
        raw_time: r.raw_time,
        time_kind: if r.kind == "shell_history" {
            "shell command"
        } else {
            "logged"
        },
        host: r.host,
        program: r.program,
        pid: r.pid,
        message: r.message,
        encoding,
        fields: r.fields.as_slice(),
    });
}

/// True when a line may begin at byte `at`: what is before it is no text.
fn begins<const STEP: usize>(data: &[u8], at: usize) -> bool {
    if STEP == 2 {
        let Some(p) = at.checked_sub(2) else {
            return true;
        };
        return !is_wide(data[p], data[p + 1]);
    }
    match at.checked_sub(1).map(|p| data[p]) {
        None => true,
        Some(b) if b < 0x80 => !is(b, LINE),
        // A byte order mark is no text.
        Some(_) if data[..at].ends_with(b"\xef\xbb\xbf") => true,
        Some(_) => (2..=4)
            .filter_map(|n| at.checked_sub(n))
            .all(|p| utf8(&data[p..at]) != at - p),
    }
}

/// Length of the UTF-8 sequence, two bytes or more, at the start of `bytes`; 0 when there is none.
pub(crate) fn utf8(bytes: &[u8]) -> usize {
    match utf8_char(bytes) {
        Some((_, n)) if n > 1 => n,
        _ => 0,
    }
}

/// True for a UTF-16 code unit that text is made of: printable ASCII, the tab, and what lies
/// between Latin-1 and Arabic.
pub(crate) fn is_wide(low: u8, high: u8) -> bool {
    match high {
        0 => is(low, LINE) || low >= 0xa0,
        1..=6 => true,
        _ => false,
    }
}

/// The end of the line that begins at byte `start`.
fn line_end<const STEP: usize>(data: &[u8], start: usize) -> usize {
    if STEP == 2 {
        let limit = data.len().min(start + 2 * LONGEST);
        let (units, _) = data[start..limit].as_chunks::<2>();
        let n = units
            .iter()
            .position(|u| !is_wide(u[0], u[1]))
            .unwrap_or(units.len());
        return start + 2 * n;
    }
    let limit = data.len().min(start + LONGEST);
    let mut p = start;
    loop {
        p += printable_len::<false>(&data[p..limit]);
        let n = if p < limit { utf8(&data[p..limit]) } else { 0 };
        if n == 0 {
            return p;
        }
        p += n;
    }
}

/// Decodes code units that [`is_wide`] takes.
fn decode(bytes: &[u8], out: &mut String) {
    out.clear();
    let (units, _) = bytes.as_chunks::<2>();
    out.extend(
        units
            .iter()
            .filter_map(|u| char::from_u32(u16::from_le_bytes(*u).into())),
    );
}
