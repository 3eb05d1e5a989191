//! Records of logins: `struct utmp` and `struct lastlog` of the C library.
//!
//! ```text
//!            x86-64   arm64
//! ut_type      0        0     2 bytes, then 2 of padding
//! ut_pid       4        4     4 bytes
//! ut_line      8        8     32, padded with NULs
//! ut_id       40       40     4
//! ut_user     44       44     32
//! ut_host     76       76     256
//! ut_exit    332      332     4
//! ut_session 336      336     4; arm64: 8
//! ut_tv      340      344     seconds and microseconds of 4 bytes; arm64: of 8
//! ut_addr_v6 348      360     16 bytes in the order of the net; IPv4 has the first 4
//! unused     364      376     20
//! size       384      400
//!
//! lastlog    ll_time 4 (arm64: 8), ll_line 32, ll_host 256: 292 or 296 bytes; the user's id is its place
//! ```
//!
//! Which layout a file has is told by the records themselves. What is none is stepped over byte by byte until
//! one that is surely one follows, so that a file that lost bytes gives the records behind them.
//!
//! Sources: glibc `bits/types/struct_utmp.h`, `sysdeps/x86/bits/utmp.h` and `sysdeps/aarch64` (what
//! `__WORDSIZE_TIME64_COMPAT32` says), `login/utmp_file.c`; utmp(5); Linux-PAM `pam_lastlog.c`.

use crate::linux::cached::Piece;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A layout of `struct utmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Layout {
    size: usize,
    time: usize,
    wide: bool,
}

const NARROW: Layout = Layout {
    size: 384,
    time: 340,
    wide: false,
};
const WIDE: Layout = Layout {
    size: 400,
    time: 344,
    wide: true,
};

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Record {
    /// Its place in the file.
    pub(in crate::linux) offset: u64,
    pub(in crate::linux) kind: u16,
    pub(in crate::linux) pid: i32,
    pub(in crate::linux) line: String,
    pub(in crate::linux) id: String,
    pub(in crate::linux) user: String,
    pub(in crate::linux) host: String,
    pub(in crate::linux) session: i64,
    /// Microseconds since 1970.
    pub(in crate::linux) time: i64,
    pub(in crate::linux) address: Option<IpAddr>,
}

/// The records of a file, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Records {
    pub(in crate::linux) all: Vec<Record>,
    /// Bytes that are no record.
    pub(in crate::linux) damaged: u64,
    /// Records of zeros.
    pub(in crate::linux) zeros: u64,
}

pub(in crate::linux) const RUN_LEVEL: u16 = 1;
pub(in crate::linux) const BOOT: u16 = 2;
pub(in crate::linux) const NEW_TIME: u16 = 3;
pub(in crate::linux) const OLD_TIME: u16 = 4;
pub(in crate::linux) const INIT: u16 = 5;
pub(in crate::linux) const LOGIN: u16 = 6;
pub(in crate::linux) const USER: u16 = 7;
pub(in crate::linux) const DEAD: u16 = 8;
const ACCOUNTING: u16 = 9;

/// Process ids are below this (`PID_MAX_LIMIT`).
const MAX_PID: u32 = 1 << 22;
/// Records of a file at most.
const MAX_RECORDS: usize = 1 << 20;

fn word(bytes: &[u8], at: usize) -> u32 {
    let raw = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    raw.map_or(0, |w| u32::from_le_bytes(*w))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let raw = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
    raw.map_or(0, |w| u64::from_le_bytes(*w))
}

fn field(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    bytes.get(at..at + len).unwrap_or_default()
}

/// A field of text: up to its NUL, or all of it.
fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let raw = field(bytes, at, len);
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    String::from_utf8_lossy(raw.get(..end).unwrap_or_default()).into_owned()
}

/// Whether a field holds text and nothing behind it: no control characters.
fn is_text(raw: &[u8]) -> bool {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    let (text, rest) = raw.split_at(end);
    text.iter().all(|b| *b >= 0x20 && *b != 0x7f) && rest.iter().all(|b| *b == 0)
}

impl Layout {
    /// Seconds and microseconds.
    fn time(self, r: &[u8]) -> (u64, u64) {
        if self.wide {
            (long(r, self.time), long(r, self.time + 8))
        } else {
            // Without a sign they reach to 2106.
            (word(r, self.time).into(), word(r, self.time + 4).into())
        }
    }

    fn address(self, r: &[u8]) -> Option<IpAddr> {
        let at = if self.wide {
            self.time + 16
        } else {
            self.time + 8
        };
        let raw: [u8; 16] = field(r, at, 16).try_into().ok()?;
        let [a, b, c, d, rest @ ..] = raw;
        if raw == [0; 16] {
            None
        } else if rest == [0; 12] {
            Some(Ipv4Addr::new(a, b, c, d).into())
        } else {
            Some(Ipv6Addr::from(raw).to_canonical())
        }
    }

    /// Whether bytes can be a record: what every writer of one keeps to. `surely` is for bytes that nobody
    /// said to be one: nothing may be in it that a record has no use for.
    fn accepts(self, r: &[u8], surely: bool) -> bool {
        let kind = word(r, 0);
        if r.len() < self.size || !(1..=u32::from(ACCOUNTING)).contains(&(kind & 0xffff)) {
            return false;
        }
        let (seconds, micros) = self.time(r);
        let texts = [(8, 32), (40, 4), (44, 32), (76, 256)];
        let plain = texts
            .iter()
            .filter(|(at, len)| is_text(field(r, *at, *len)));
        let clean = plain.count() == texts.len();
        // The year 2200.
        let timed = micros < 1_000_000 && (1..7_258_118_400).contains(&seconds);
        let pid = word(r, 4) <= MAX_PID;
        let behind = if self.wide {
            self.time + 32
        } else {
            self.time + 24
        };
        let unused = field(r, behind, 20).iter().all(|b| *b == 0);
        if surely {
            return kind >> 16 == 0 && timed && pid && clean && unused;
        }
        timed && pid && is_line(field(r, 8, 32))
    }

    /// Whether what nearly is a record stands where one should: another follows, or nothing does.
    fn fits(self, r: &[u8], behind: &[u8], goes_on: bool) -> bool {
        let last = behind.is_empty() || (goes_on && behind.len() < self.size);
        let follows = last || self.accepts(behind, true) || self.is_empty(behind);
        follows && self.accepts(r, false)
    }

    /// Whether it is a slot that nobody uses.
    fn is_empty(self, r: &[u8]) -> bool {
        let long = r.len() >= self.size;
        long && word(r, 0) & 0xffff == 0 && [8, 44].iter().all(|at| is_line(field(r, *at, 32)))
    }

    fn record(self, r: &[u8], offset: u64) -> Record {
        let (seconds, micros) = self.time(r);
        let micros = seconds.saturating_mul(1_000_000).saturating_add(micros);
        Record {
            offset,
            kind: (word(r, 0) & 0xffff) as u16,
            pid: word(r, 4).cast_signed(),
            line: text(r, 8, 32),
            id: text(r, 40, 4),
            user: text(r, 44, 32),
            host: text(r, 76, 256),
            session: if self.wide {
                long(r, 336).cast_signed()
            } else {
                word(r, 336).cast_signed().into()
            },
            time: i64::try_from(micros).unwrap_or(i64::MAX),
            address: self.address(r),
        }
    }

    /// The records of a piece. `first`: bytes of it before the first record.
    fn read(self, piece: &Piece, first: usize, out: &mut Records) {
        let (mut at, mut aligned) = (first, true);
        while let Some(r) = piece.bytes.get(at..at + self.size) {
            if out.all.len() == MAX_RECORDS {
                break;
            }
            let behind = piece.bytes.get(at + self.size..).unwrap_or_default();
            if self.accepts(r, true) || (aligned && self.fits(r, behind, piece.goes_on)) {
                out.all.push(self.record(r, piece.offset + at as u64));
                at += self.size;
                aligned = true;
            } else if aligned && self.is_empty(r) {
                out.zeros += u64::from(r.iter().all(|b| *b == 0));
                at += self.size;
            } else {
                // The next place may be right again.
                if aligned && self.accepts(behind, true) {
                    out.damaged += self.size as u64;
                    at += self.size;
                    continue;
                }
                aligned = false;
                out.damaged += 1;
                at += 1;
            }
        }
        let rest = piece.bytes.get(at..).unwrap_or_default();
        // At a gap one is cut by what is not in memory, not by damage.
        if !piece.goes_on && rest.iter().any(|b| *b != 0) {
            out.damaged += rest.len() as u64;
        }
    }
}

/// A terminal's name, `~` or `ssh:notty`: no control characters up to its NUL.
fn is_line(raw: &[u8]) -> bool {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    raw.get(..end)
        .unwrap_or_default()
        .iter()
        .all(|b| *b >= 0x20)
}

/// The records of a file, by the layout that more of its bytes agree with.
pub(in crate::linux) fn records(pieces: &[Piece]) -> Records {
    let read = |layout: Layout| {
        let mut out = Records::default();
        for p in pieces {
            // Records stand at multiples of their size.
            let size = layout.size as u64;
            let first = usize::try_from(p.offset.next_multiple_of(size) - p.offset).unwrap_or(0);
            layout.read(p, first, &mut out);
        }
        out
    };
    let (narrow, wide) = (read(NARROW), read(WIDE));
    let better = |a: &Records, b: &Records| {
        (a.all.len(), std::cmp::Reverse(a.damaged)) >= (b.all.len(), std::cmp::Reverse(b.damaged))
    };
    if better(&narrow, &wide) { narrow } else { wide }
}

/// A user's last login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct LastLogin {
    pub(in crate::linux) offset: u64,
    pub(in crate::linux) uid: u64,
    pub(in crate::linux) time: i64,
    pub(in crate::linux) line: String,
    pub(in crate::linux) host: String,
}

/// The entries of a lastlog that are not empty, by the layout that more of them agree with, and how many are
/// none.
pub(in crate::linux) fn last_logins(pieces: &[Piece]) -> (Vec<LastLogin>, u64) {
    let read = |time: usize| {
        let size = time + 288;
        let (mut out, mut damaged) = (Vec::new(), 0);
        for p in pieces {
            let uid = p.offset.div_ceil(size as u64);
            let first = uid * size as u64 - p.offset;
            let bytes = usize::try_from(first).ok().and_then(|f| p.bytes.get(f..));
            let all = bytes.unwrap_or_default().chunks_exact(size).enumerate();
            for (i, r) in all.filter(|(_, r)| r.iter().any(|b| *b != 0)) {
                let seconds = if time == 8 {
                    long(r, 0)
                } else {
                    word(r, 0).into()
                };
                let texts = [field(r, time, 32), field(r, time + 32, 256)];
                // pam_lastlog leaves older bytes behind a NUL.
                if !(1..7_258_118_400).contains(&seconds) || !texts.iter().all(|t| is_line(t)) {
                    damaged += 1;
                    continue;
                }
                out.push(LastLogin {
                    offset: p.offset + first + (i * size) as u64,
                    uid: uid + i as u64,
                    time: i64::try_from(seconds * 1_000_000).unwrap_or(i64::MAX),
                    line: text(r, time, 32),
                    host: text(r, time + 32, 256),
                });
            }
        }
        out.truncate(MAX_RECORDS);
        (out, damaged)
    };
    let (narrow, wide) = (read(4), read(8));
    // Read in the other layout, the line begins with a NUL.
    let fits = |r: &(Vec<LastLogin>, u64)| {
        let named = r.0.iter().filter(|l| !l.line.is_empty()).count();
        (r.0.len() + named) as i64 - r.1.min(1 << 40).cast_signed()
    };
    if fits(&narrow) >= fits(&wide) {
        narrow
    } else {
        wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct utmp` as the C library of an architecture lays it out: kind, pid, line, user, host, seconds,
    /// address.
    type Login<'t> = (u16, i32, &'t str, &'t str, &'t str, u32, [u8; 16]);

    const V4: [u8; 16] = [203, 0, 113, 66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn utmp((kind, pid, line, user, host, time, address): &Login<'_>, wide: bool) -> Vec<u8> {
        let mut r = vec![0; if wide { 400 } else { 384 }];
        let mut put = |at: usize, b: &[u8]| r[at..at + b.len()].copy_from_slice(b);
        put(0, &kind.to_le_bytes());
        put(4, &pid.to_le_bytes());
        put(8, line.as_bytes());
        put(40, b"ts/0");
        put(44, user.as_bytes());
        put(76, host.as_bytes());
        put(336, &7u32.to_le_bytes());
        let at = if wide { 344 } else { 340 };
        put(at, &time.to_le_bytes());
        put(if wide { 352 } else { 344 }, &250_000u32.to_le_bytes());
        put(if wide { 360 } else { 348 }, address);
        r
    }

    fn three() -> [Login<'static>; 3] {
        [
            (
                BOOT,
                0,
                "~",
                "reboot",
                "6.1.0-42-cloud-amd64",
                1_767_340_800,
                [0; 16],
            ),
            (
                USER,
                812,
                "pts/0",
                "alice",
                "203.0.113.66",
                1_767_341_000,
                V4,
            ),
            (DEAD, 812, "pts/0", "", "", 3_000_000_000, [0; 16]),
        ]
    }

    fn file(wide: bool) -> Vec<u8> {
        three().iter().flat_map(|l| utmp(l, wide)).collect()
    }

    fn whole(bytes: Vec<u8>) -> [Piece; 1] {
        let goes_on = false;
        [Piece {
            offset: 0,
            bytes,
            goes_on,
        }]
    }

    fn users(r: &Records) -> Vec<(u64, &str)> {
        r.all.iter().map(|r| (r.offset, r.user.as_str())).collect()
    }

    #[test]
    fn both_layouts_are_told_by_their_records() {
        for (wide, size) in [(false, 384), (true, 400)] {
            let got = records(&whole(file(wide)));
            assert_eq!((got.damaged, got.zeros), (0, 0));
            assert_eq!(
                users(&got),
                [(0, "reboot"), (size, "alice"), (2 * size, "")]
            );
            let want = Record {
                offset: size,
                kind: USER,
                pid: 812,
                line: "pts/0".into(),
                id: "ts/0".into(),
                user: "alice".into(),
                host: "203.0.113.66".into(),
                session: 7,
                time: 1_767_341_000_250_000,
                address: Some(Ipv4Addr::new(203, 0, 113, 66).into()),
            };
            assert_eq!(got.all[1], want);
            // After 2038.
            assert_eq!(got.all[2].time, 3_000_000_000_250_000);
            // One alone is enough.
            let one = records(&whole(utmp(&three()[1], wide)));
            assert_eq!(one.all, [Record { offset: 0, ..want }]);
        }
    }

    #[test]
    fn addresses_are_of_both_families() {
        let mut six = [0; 16];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        six[15] = 1;
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        for (raw, address) in [(six, "2001:db8::1"), (mapped, "192.0.2.1")] {
            let got = records(&whole(utmp(
                &(USER, 1, "pts/1", "a", "h", 1_767_341_000, raw),
                false,
            )));
            assert_eq!(
                got.all[0].address.map(|a| a.to_string()).as_deref(),
                Some(address)
            );
        }
    }

    #[test]
    fn damage_costs_the_record_it_hits() {
        for wide in [false, true] {
            let (size, all) = (file(wide).len() / 3, file(wide));
            // Another type and time.
            let mut bad = all.clone();
            bad[size..size + 8].fill(0xee);
            let got = records(&whole(bad));
            assert_eq!(users(&got), [(0, "reboot"), (2 * size as u64, "")]);
            assert_eq!(got.damaged, size as u64);
            // Bytes that were lost, and a cut end.
            let mut short = all.clone();
            short.drain(size + 100..size + 111);
            let got = records(&whole(short));
            assert_eq!(users(&got), [(0, "reboot"), (2 * size as u64 - 11, "")]);
            let got = records(&whole(all[..2 * size + 9].to_vec()));
            assert_eq!((users(&got).len(), got.damaged), (2, 9));
            // One that was wiped.
            let mut wiped = all.clone();
            wiped[size..2 * size].fill(0);
            let got = records(&whole(wiped));
            assert_eq!((users(&got).len(), got.damaged, got.zeros), (2, 0, 1));
        }
        let noise: Vec<u8> = (0u32..40_000)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        assert_eq!(records(&whole(noise)).all, []);
    }

    #[test]
    fn a_piece_from_the_middle_begins_with_a_cut_record() {
        let all: Vec<u8> = (0..30u32)
            .flat_map(|i| {
                utmp(
                    &(USER, 9, "pts/3", "bob", "h", 1_767_341_000 + i, [0; 16]),
                    false,
                )
            })
            .collect();
        let piece = Piece {
            offset: 4096,
            bytes: all[4096..8192].to_vec(),
            goes_on: true,
        };
        let got = records(&[piece]);
        assert_eq!(got.damaged, 0);
        let places: Vec<u64> = got.all.iter().map(|r| r.offset).collect();
        let want: Vec<u64> = (11..21).map(|i| i * 384).collect();
        assert_eq!(places, want);
    }

    #[test]
    fn last_logins_are_by_user() {
        for (time, size) in [(4, 292), (8, 296)] {
            let mut bytes = vec![0; size * 1001];
            for (uid, line) in [(0, "tty1"), (33, "pts/7"), (1000, "pts/0")] {
                let at = uid * size;
                bytes[at..at + 4].copy_from_slice(&1_767_341_000u32.to_le_bytes());
                bytes[at + time..at + time + line.len()].copy_from_slice(line.as_bytes());
                bytes[at + time + 32..at + time + 37].copy_from_slice(b"lab.x");
            }
            let (got, damaged) = last_logins(&whole(bytes));
            assert_eq!(damaged, 0);
            let got: Vec<_> = got
                .iter()
                .map(|l| (l.uid, l.line.as_str(), l.host.as_str()))
                .collect();
            assert_eq!(
                got,
                [
                    (0, "tty1", "lab.x"),
                    (33, "pts/7", "lab.x"),
                    (1000, "pts/0", "lab.x")
                ]
            );
        }
    }
}
