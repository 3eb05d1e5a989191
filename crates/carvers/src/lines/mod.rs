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
//! {"time":"2024-01-02T03:04:05Z","msg":...          json
//!             ^^^^^^^^ all but JSON are found by this shape
//! ```
//!
//! A line begins after a line end or a byte that is no text, and ends before one, or after 16 Ki
//! characters. All but JSON have a time of day, `dd:dd:dd`, which random bytes hardly ever show:
//! from there the parsers look back to where their line must begin.

mod iso;
mod json;
mod record;
mod syslog;
mod web;

use crate::api::{Encoding, Event, Sink};
use crate::chars::{Chars, LINE, is, printable_len};
use crate::zone::{Clock, When};
use ramsift_layers::ImageOffset;
use record::{Record, Stamp};
use std::ops::Range;

pub(crate) const VERSION: u32 = 1;
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
    Json,
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
    pub(crate) fn time_of_day<const STEP: usize>(&mut self, at: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let Some(hour) = at.checked_sub(2 * STEP) else {
            return;
        };
        let back = |n: usize| hour.checked_sub(n * STEP);
        let char_back = |n: usize| back(n).map_or(0, |p| chars.at(p));
        match char_back(1) {
            b' ' | b'T' if char_back(4) == b'-' && char_back(7) == b'-' => {
                let Some(date) = back(11) else { return };
                match chars.before(date) {
                    b'[' => self.line::<STEP>(date - STEP, Format::Iso, sink),
                    b' ' => self.priority::<STEP>(date, sink),
                    _ => self.line::<STEP>(date, Format::Iso, sink),
                }
            }
            b' ' if char_back(4) == b'/' && char_back(7) == b'/' => {
                let Some(date) = back(11) else { return };
                self.line::<STEP>(date, Format::Slashed, sink);
            }
            b' ' if char_back(12) == b'[' && char_back(8) == b' ' => {
                let Some(bracket) = back(12) else { return };
                self.line::<STEP>(bracket, Format::ApacheError, sink);
            }
            b' ' if char_back(4) == b' ' => {
                let Some(month) = back(7) else { return };
                let start = if chars.before(month) == b'>' {
                    self.angle::<STEP>(month - STEP)
                } else {
                    Some(month)
                };
                if let Some(start) = start {
                    self.line::<STEP>(start, Format::Syslog, sink);
                }
            }
            b':' if char_back(13) == b'[' && char_back(10) == b'/' => {
                let Some(bracket) = back(13) else { return };
                if let Some(start) = chars.back(bracket, LINE, PREFIX) {
                    self.line::<STEP>(start, Format::Access, sink);
                }
            }
            _ => {}
        }
    }

    /// Looks at the `{` at byte `at`.
    pub(crate) fn brace<const STEP: usize>(&mut self, at: usize, sink: &mut dyn Sink) {
        let chars = Chars::<STEP>(self.data);
        let next = chars.at(at + STEP);
        if next == b'"' || (next == b' ' && chars.at(at + 2 * STEP) == b'"') {
            self.line::<STEP>(at, Format::Json, sink);
        }
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
        if self.claims.last().is_some_and(|c| c.contains(&start)) {
            return;
        }
        let end = line_end::<STEP>(self.data, start);
        let mut buf = std::mem::take(&mut self.buf);
        let line = if STEP == 1 {
            std::str::from_utf8(&self.data[start..end]).unwrap_or_default()
        } else {
            decode(&self.data[start..end], &mut buf);
            &buf
        };
        let (core, clock, base) = (self.core.clone(), self.clock, self.base);
        let encoding = if STEP == 2 {
            Encoding::Utf16Le
        } else {
            Encoding::Utf8
        };
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
            Format::Json => json::parse(line, &mut emit),
        };
        self.buf = buf;
        if found {
            self.claims.push(start..end);
        }
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
        time_kind: "logged",
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
        Some(_) => (2..=4)
            .filter_map(|n| at.checked_sub(n))
            .all(|p| utf8(&data[p..at]) != at - p),
    }
}

/// Length of the UTF-8 sequence, two bytes or more, at the start of `bytes`; 0 when there is none.
pub(crate) fn utf8(bytes: &[u8]) -> usize {
    let n = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return 0,
    };
    bytes
        .get(..n)
        .map_or(0, |s| if std::str::from_utf8(s).is_ok() { n } else { 0 })
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
