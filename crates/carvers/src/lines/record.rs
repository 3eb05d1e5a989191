//! What a parser makes of a line, and the small readers that all of them use.

use crate::api::Field;
use crate::zone::{Civil, Zone};
use crate::zones;

/// When, as the line says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stamp {
    /// A date and time.
    Civil(Civil),
    /// Microseconds since 1970 UTC.
    Micros(i64),
}

/// Fields that a line may have.
const FIELDS: usize = 24;

/// The extra fields of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    items: [(&'static str, Field<'a>); FIELDS],
    len: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn new() -> Self {
        Self {
            items: [("", Field::Int(0)); FIELDS],
            len: 0,
        }
    }

    fn push(&mut self, name: &'static str, value: Field<'a>) {
        if let Some(slot) = self.items.get_mut(self.len) {
            *slot = (name, value);
            self.len += 1;
        }
    }

    /// Adds text; none when it is empty or `-`, which stands for nothing in most formats.
    pub(crate) fn str(&mut self, name: &'static str, value: &'a str) {
        if !value.is_empty() && value != "-" {
            self.push(name, Field::Str(value));
        }
    }

    /// Adds a number.
    pub(crate) fn int(&mut self, name: &'static str, value: impl Into<i64>) {
        self.push(name, Field::Int(value.into()));
    }

    /// Adds a number if the text is one.
    pub(crate) fn number(&mut self, name: &'static str, value: &str) {
        if let Ok(n) = value.parse::<i64>() {
            self.int(name, n);
        }
    }

    pub(crate) fn as_slice(&self) -> &[(&'static str, Field<'a>)] {
        &self.items[..self.len]
    }
}

/// A parsed line.
#[derive(Clone, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: &'static str,
    pub(crate) stamp: Stamp,
    pub(crate) raw_time: &'a str,
    pub(crate) host: Option<&'a str>,
    pub(crate) program: Option<&'a str>,
    pub(crate) pid: Option<u32>,
    pub(crate) message: &'a str,
    pub(crate) fields: Fields<'a>,
}

/// Where a parser leaves its record: true comes back when there was one.
pub(crate) type Emit<'e> = dyn FnMut(&Record<'_>) + 'e;

/// Two digits at byte `i`.
pub(crate) fn two(b: &[u8], i: usize) -> Option<u8> {
    match *b.get(i..i + 2)? {
        [x @ b'0'..=b'9', y @ b'0'..=b'9'] => Some((x - b'0') * 10 + (y - b'0')),
        _ => None,
    }
}

/// Four digits at byte `i`.
pub(crate) fn four(b: &[u8], i: usize) -> Option<i32> {
    Some(i32::from(two(b, i)?) * 100 + i32::from(two(b, i + 2)?))
}

/// The month whose English abbreviation stands at byte `i`.
pub(crate) fn month(b: &[u8], i: usize) -> Option<u8> {
    const NAMES: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let name = b.get(i..i + 3)?;
    NAMES
        .chunks_exact(3)
        .position(|n| n == name)
        .map(|m| m as u8 + 1)
}

/// True when the English abbreviation of a day of the week stands at byte `i`.
pub(crate) fn weekday(b: &[u8], i: usize) -> bool {
    const DAYS: &[u8; 21] = b"SunMonTueWedThuFriSat";
    let name = b.get(i..i + 3);
    DAYS.chunks_exact(3).any(|d| Some(d) == name)
}

/// `HH:MM:SS` at byte `i`, into `civil`.
pub(crate) fn clock(b: &[u8], i: usize, civil: &mut Civil) -> Option<()> {
    civil.hour = two(b, i)?;
    civil.minute = two(b, i + 3)?;
    civil.second = two(b, i + 6)?;
    (b[i + 2] == b':' && b[i + 5] == b':').then_some(())
}

/// A fraction at byte `i`, if one of `.` and `,` and digits follow; where it ends.
pub(crate) fn fraction(b: &[u8], i: usize, civil: &mut Civil) -> usize {
    let digits = |n: &usize| b.get(*n).is_some_and(u8::is_ascii_digit);
    if !matches!(b.get(i), Some(b'.' | b',')) || !digits(&(i + 1)) {
        return i;
    }
    let end = (i + 1..b.len()).find(|n| !digits(n)).unwrap_or(b.len());
    let six = (i + 1..i + 7).map(|n| if n < end { u32::from(b[n] - b'0') } else { 0 });
    civil.micros = six.fold(0, |m, d| m * 10 + d);
    end
}

/// A zone at byte `i`: `Z`, `+hh:mm`, `+hhmm`, `+hh`, ` UTC`, ` UTC+2`, ` CEST`, `EST`, ` (CEST)`, ` Europe/Berlin`; where
/// it ends.
pub(crate) fn zone(b: &[u8], i: usize, civil: &mut Civil) -> usize {
    let ends = |i: usize| b.get(i).is_none_or(|c| !c.is_ascii_alphanumeric());
    match b.get(i) {
        Some(b'Z' | b'z') if ends(i + 1) => {
            civil.zone = Zone::East(0);
            i + 1
        }
        Some(b'+' | b'-') => offset(b, i, civil),
        // As in `2024-01-02 03:04:05 +0000`.
        Some(b' ') if matches!(b.get(i + 1), Some(b'+' | b'-')) => {
            let end = offset(b, i + 1, civil);
            if end > i + 1 { end } else { i }
        }
        Some(b' ') if matches!(b.get(i + 1), Some(b'Z' | b'z')) && ends(i + 2) => {
            civil.zone = Zone::East(0);
            i + 2
        }
        Some(b' ') => spaced(b, i + 1, civil).unwrap_or(i),
        Some(b'A'..=b'Z') => named(b, i, civil).unwrap_or(i),
        Some(b'(' | b'[') => spaced(b, i, civil).unwrap_or(i),
        _ => i,
    }
}

/// A zone behind a space: its name, the name in brackets, or a place of the time zone database.
fn spaced(b: &[u8], i: usize, civil: &mut Civil) -> Option<usize> {
    let close = match b.get(i)? {
        b'(' => b')',
        b'[' => b']',
        b'A'..=b'Z' => return named(b, i, civil).or_else(|| place(b, i, civil)),
        _ => return None,
    };
    let mut inner = *civil;
    let end = named(b, i + 1, &mut inner).or_else(|| place(b, i + 1, &mut inner))?;
    (b.get(end) == Some(&close)).then(|| {
        *civil = inner;
        end + 1
    })
}

/// The first words of the database's names.
const AREAS: &[&[u8]] = &[
    b"Africa",
    b"America",
    b"Antarctica",
    b"Arctic",
    b"Asia",
    b"Atlantic",
    b"Australia",
    b"Etc",
    b"Europe",
    b"Indian",
    b"Pacific",
];

/// `Europe/Berlin` at byte `i`, by the offset that is in force there on the record's day; where it ends. Of the hour that
/// a change to winter repeats the first is meant.
fn place(b: &[u8], i: usize, civil: &mut Civil) -> Option<usize> {
    let slash = i + b.get(i..)?.iter().take(12).position(|c| *c == b'/')?;
    if !AREAS.contains(&&b[i..slash]) {
        return None;
    }
    let named = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'_' | b'-' | b'+');
    let n = b[i..].iter().take(40).take_while(|c| named(c)).count();
    let name = std::str::from_utf8(&b[i..i + n]).ok()?;
    let zone = jiff::tz::TimeZone::get(name).ok()?;
    let at = jiff::civil::DateTime::new(
        i16::try_from(civil.year?).ok()?,
        i8::try_from(civil.month).ok()?,
        i8::try_from(civil.day).ok()?,
        i8::try_from(civil.hour).ok()?,
        i8::try_from(civil.minute).ok()?,
        i8::try_from(civil.second).ok()?.min(59),
        0,
    );
    let time = zone.to_timestamp(at.ok()?).ok()?;
    civil.zone = Zone::East(zone.to_offset_info(time).offset().seconds());
    Some(i + n)
}

/// An offset at byte `i`; `i` again when there is none.
fn offset(b: &[u8], i: usize, civil: &mut Civil) -> usize {
    let Some(hours) = two(b, i + 1) else { return i };
    let colon = usize::from(b.get(i + 3) == Some(&b':'));
    let minutes = two(b, i + 3 + colon);
    let east = i32::from(hours) * 3600 + i32::from(minutes.unwrap_or(0)) * 60;
    let end = match minutes {
        Some(_) => i + 5 + colon,
        None => i + 3,
    };
    let more = b.get(end).is_some_and(u8::is_ascii_digit);
    if hours > 15 || minutes.is_some_and(|m| m > 59) || more {
        return i;
    }
    civil.zone = Zone::East(if b[i] == b'-' { -east } else { east });
    end
}

/// The name of a zone at byte `i`, alone or with an offset from it.
fn named(b: &[u8], i: usize, civil: &mut Civil) -> Option<usize> {
    let n = b
        .get(i..)?
        .iter()
        .take(6)
        .take_while(|c| c.is_ascii_uppercase())
        .count();
    let word = &b[i..i + n];
    let end = i + n;
    if b.get(end).is_some_and(u8::is_ascii_alphanumeric) {
        return None;
    }
    let name = zones::find(word)?;
    if let Some(&sign @ (b'+' | b'-')) = b.get(end) {
        if !matches!(word, b"UTC" | b"GMT" | b"UT") {
            return None;
        }
        // `GMT+0200`, `UTC+2`.
        let far = offset(b, end, civil);
        if far > end {
            return Some(far);
        }
        let hours = b.get(end + 1).filter(|d| d.is_ascii_digit())?;
        let fits = b.get(end + 2).is_none_or(|c| !c.is_ascii_digit());
        let east = i32::from(hours - b'0') * 3600;
        civil.zone = Zone::East(if sign == b'-' { -east } else { east });
        return fits.then_some(end + 2);
    }
    civil.zone = Zone::Named(name);
    Some(end)
}

/// An ISO 8601 date and time at byte `i`, zone and fraction if any; where it ends.
pub(crate) fn iso(b: &[u8], i: usize) -> Option<(Civil, usize)> {
    let mut c = Civil {
        year: Some(four(b, i)?),
        ..Civil::default()
    };
    (c.month, c.day) = (two(b, i + 5)?, two(b, i + 8)?);
    let between = matches!(b.get(i + 10), Some(b'T' | b't' | b' '));
    if b[i + 4] != b'-' || b[i + 7] != b'-' || !between {
        return None;
    }
    clock(b, i + 11, &mut c)?;
    let end = fraction(b, i + 19, &mut c);
    let end = zone(b, end, &mut c);
    c.is_valid().then_some((c, end))
}

/// `Tue, 06 Feb 2024 15:16:31 GMT` (RFC 9110 section 5.6.7, RFC 5322) at byte `i`; where it ends.
pub(crate) fn mail_date(b: &[u8], i: usize) -> Option<(Civil, usize)> {
    if !weekday(b, i) || b.get(i + 3..i + 5)? != b", " {
        return None;
    }
    let mut c = Civil {
        day: two(b, i + 5)?,
        month: month(b, i + 8)?,
        year: Some(four(b, i + 12)?),
        ..Civil::default()
    };
    clock(b, i + 17, &mut c)?;
    let end = zone(b, i + 25, &mut c);
    c.is_valid().then_some((c, end))
}

/// `dd/Mon/yyyy:hh:mm:ss +zzzz` at byte `i`, as web servers write it, with a space before the hour as Python's do;
/// where it ends.
pub(crate) fn common(b: &[u8], i: usize) -> Option<(Civil, usize)> {
    let mut c = Civil {
        day: two(b, i)?,
        month: month(b, i + 3)?,
        year: Some(four(b, i + 7)?),
        ..Civil::default()
    };
    if b[i + 2] != b'/' || b[i + 6] != b'/' || !matches!(b.get(i + 11), Some(b':' | b' ')) {
        return None;
    }
    clock(b, i + 12, &mut c)?;
    let end = fraction(b, i + 20, &mut c);
    let end = zone(b, end, &mut c);
    c.is_valid().then_some((c, end))
}

/// True for a word that says how bad it is.
pub(crate) fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word))
}

const LEVELS: &[&str] = &[
    "TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "WARNING", "ERROR", "ERR", "CRITICAL", "CRIT",
    "FATAL", "SEVERE", "ALERT", "EMERG", "PANIC",
];

/// The text up to `until` and what follows it.
pub(crate) fn cut<'a>(text: &'a str, until: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(until)
}

/// True for what a host name or a program's name may look like in a log.
pub(crate) fn wordlike(s: &str, longest: usize) -> bool {
    !s.is_empty() && s.len() <= longest && s.bytes().all(|b| b > b' ' && b != 0x7f)
}

/// Reads `prog[pid]: rest`, `prog: rest`; the program may have a `(...)` part.
pub(crate) fn tag(text: &str) -> Option<(&str, Option<u32>, &str)> {
    let end = text
        .bytes()
        .take(128)
        .position(|b| matches!(b, b':' | b'[' | b' '))?;
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    if let Some(inner) = rest.strip_prefix('[') {
        let (pid, rest) = cut(inner, "]")?;
        let rest = rest.strip_prefix(':')?;
        return Some((
            name,
            pid.parse().ok(),
            rest.strip_prefix(' ').unwrap_or(rest),
        ));
    }
    let rest = rest.strip_prefix(':')?;
    Some((name, None, rest.strip_prefix(' ')?))
}
