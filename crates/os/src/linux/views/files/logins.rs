//! `linux/logins`: who logged in, who tried, and when the machine was started, from the files of utmp(5) in the
//! page cache.
//!
//! ```text
//! utmp       sessions as they are        wtmp    all that were
//! btmp       logins that failed          lastlog the last one of each user
//! ```
//!
//! Files count by their names, rotated ones (`wtmp.1`, `btmp-20260101`) included; compressed ones don't.

use crate::linux::cached::{CachedFile, PASSWD, Users, cached_files};
use crate::linux::login_records::{
    BOOT, DEAD, INIT, LOGIN, LastLogin, NEW_TIME, OLD_TIME, RUN_LEVEL, Record, USER, last_logins,
    records,
};
use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Anomaly, Column, Event, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{BTreeSet, HashMap, HashSet};

/// `linux/logins`.
pub(in crate::linux) const LOGINS: LinuxView = LinuxView {
    name: "linux/logins",
    meaning: "logins, failed ones, sessions and starts of the machine, from cached utmp, wtmp, btmp, lastlog",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/logins`.
const COLUMNS: &[Column] = &[
    column("time", Kind::Time, "when"),
    column(
        "kind",
        Kind::Text,
        "login, logout, failed, session (of utmp), last_login (of lastlog), boot, shutdown, run_level, waiting \
         (for a login), clock_before, clock_after",
    ),
    column("user", Kind::Text, "name, as it was given; null: none"),
    column("uid", Kind::Number, "user id, of lastlog only"),
    column("line", Kind::Text, "terminal: `pts/0`, `tty1`, `ssh:notty`"),
    column(
        "host",
        Kind::Text,
        "where from; of a start the kernel's version",
    ),
    column("address", Kind::Text, "its address, where there is one"),
    column("pid", Kind::Number, "process that logged in"),
    column("session", Kind::Number, "session; null: none told"),
    column("id", Kind::Text, "the line's id in utmp"),
    column("source", Kind::Text, "path of the file"),
    column("offset", Kind::Number, "place of the record in it"),
    column("inode", Kind::Hex, "virtual address of the file's inode"),
    column("physical", Kind::Hex, "physical address of the record"),
];

/// A file of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Utmp,
    Wtmp,
    Btmp,
    LastLog,
}

/// What a path's file is, of this view.
fn source(path: &str) -> Option<Source> {
    let name = path.rsplit('/').next()?;
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let (stem, rest) = name.split_at(name.find(['.', '-']).unwrap_or(name.len()));
    let rotated = rest
        .get(1..)
        .is_none_or(|r| digits(r) || matches!(r, "old" | "bak"));
    let kind = match stem {
        "utmp" | "utmpx" => Source::Utmp,
        "wtmp" | "wtmpx" => Source::Wtmp,
        "btmp" => Source::Btmp,
        "lastlog" => Source::LastLog,
        _ => return None,
    };
    rotated.then_some(kind)
}

/// A record of a file.
struct Login<'f> {
    row: usize,
    kind: &'static str,
    record: Record,
    file: &'f CachedFile,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let wanted = |path: &str| path == PASSWD || source(path).is_some();
    let files = cached_files(kernel, &mut out.doubts, &wanted)?;
    let users = Users::of(&files);
    let mut all = Vec::new();
    // What was is told before what is, so that a session is on the timeline once.
    for wanted in [Source::Wtmp, Source::Btmp, Source::Utmp] {
        for f in files.iter().filter(|f| source(f.name()) == Some(wanted)) {
            file(f, wanted, &mut all, &mut out);
        }
    }
    timeline(&all, &mut out);
    let mut seen = HashSet::new();
    for l in all.iter().filter(|l| is_success(l)) {
        seen.insert((l.record.time / SECOND, l.record.user.clone()));
    }
    for f in files
        .iter()
        .filter(|f| source(f.name()) == Some(Source::LastLog))
    {
        last(f, &users, &seen, &mut out);
    }
    guessed(&all, &mut out);
    Ok(out)
}

const SECOND: i64 = 1_000_000;

fn is_success(l: &Login<'_>) -> bool {
    matches!(l.kind, "login" | "session")
}

/// What a record of a file means.
fn kind(source: Source, r: &Record) -> &'static str {
    match (r.kind, source) {
        (_, Source::Btmp) => "failed",
        (RUN_LEVEL, _) if r.user == "shutdown" => "shutdown",
        (RUN_LEVEL, _) => "run_level",
        (BOOT, _) => "boot",
        (OLD_TIME, _) => "clock_before",
        (NEW_TIME, _) => "clock_after",
        (INIT | LOGIN, _) => "waiting",
        (USER, Source::Utmp) => "session",
        (USER, _) => "login",
        (DEAD, _) => "logout",
        _ => "other",
    }
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn file<'f>(f: &'f CachedFile, source: Source, all: &mut Vec<Login<'f>>, out: &mut Table) {
    let found = records(&f.pieces);
    let path = &f.path;
    if found.damaged > 0 {
        let doubt = format!("{path}: {} bytes are no records", found.damaged);
        out.doubts.push(doubt);
    }
    if found.zeros > 0 && source != Source::Utmp {
        let doubt = format!(
            "{path}: {} records are zeros: programs that remove logins from it leave such",
            found.zeros
        );
        out.doubts.push(doubt);
    }
    gaps(f, out);
    for r in found.all {
        let kind = kind(source, &r);
        out.push(vec![
            r.time.into(),
            kind.into(),
            some(&r.user).into(),
            Value::Null,
            some(&r.line).into(),
            some(&r.host).into(),
            r.address.map(|a| a.to_string()).into(),
            (r.pid != 0).then_some(i64::from(r.pid)).into(),
            (r.session != 0).then_some(r.session).into(),
            some(&r.id).into(),
            path.as_str().into(),
            r.offset.into(),
            f.inode.va.into(),
            f.physical(r.offset).into(),
        ]);
        all.push(Login {
            row: out.rows.len() - 1,
            kind,
            record: r,
            file: f,
        });
    }
}

/// Says what of a file is not in memory.
fn gaps(f: &CachedFile, out: &mut Table) {
    let present: u64 = f.pieces.iter().map(|p| p.bytes.len() as u64).sum();
    let size = u64::try_from(f.inode.size).unwrap_or(0);
    if present < size {
        let path = &f.path;
        out.doubts
            .push(format!("{path}: {present} of {size} bytes are in memory"));
    }
}

/// The users' last logins.
fn last(f: &CachedFile, users: &Users, seen: &HashSet<(i64, String)>, out: &mut Table) {
    let (found, damaged) = last_logins(&f.pieces);
    let path = &f.path;
    if damaged > 0 {
        let doubt = format!("{path}: {damaged} entries are none");
        out.doubts.push(doubt);
    }
    // It has a place for every user id there could be: mostly holes that no page is for.
    for LastLogin {
        offset,
        uid,
        time,
        line,
        host,
    } in found
    {
        let user = users.name(uid).filter(|_| is_the_machines(path));
        out.push(vec![
            time.into(),
            "last_login".into(),
            user.into(),
            uid.into(),
            some(&line).into(),
            some(&host).into(),
            some(&host)
                .filter(|h| h.parse::<std::net::IpAddr>().is_ok())
                .into(),
            Value::Null,
            Value::Null,
            Value::Null,
            path.as_str().into(),
            offset.into(),
            f.inode.va.into(),
            f.physical(offset).into(),
        ]);
        let name = user.map_or_else(|| format!("uid {uid}"), str::to_owned);
        if !seen.contains(&(time / SECOND, name.clone())) {
            let message = format!("last login of {name} on {line}{} ({path})", from(&host));
            out.event(time, "login", message);
        }
    }
}

/// Whether a file is the machine's own and not a container's, which has users of its own.
fn is_the_machines(path: &str) -> bool {
    path.starts_with("/var/log/") || path.starts_with("/run/") && path.matches('/').count() == 2
}

fn from(host: &str) -> String {
    match host {
        "" => String::new(),
        h => format!(" from {h}"),
    }
}

fn timeline(all: &[Login<'_>], out: &mut Table) {
    let mut told = HashSet::new();
    for l in all {
        let r = &l.record;
        if !told.insert((r.time, r.kind, &r.user, &r.line, l.kind == "failed")) {
            continue;
        }
        let who = some(&r.user).unwrap_or("?");
        let place = format!("{}{} ({})", r.line, from(&r.host), l.file.path);
        let (kind, message) = match l.kind {
            "login" | "session" => ("login", format!("{who} logged in on {place}")),
            "logout" => ("logout", format!("the session on {place} ended")),
            "failed" => ("failed login", format!("{who} failed to log in on {place}")),
            "boot" => (
                "boot",
                format!("the machine was started: {} ({})", r.host, l.file.path),
            ),
            "shutdown" => (
                "shutdown",
                format!("the machine was shut down ({})", l.file.path),
            ),
            "clock_after" => (
                "clock set",
                format!("the clock was set to this ({})", l.file.path),
            ),
            _ => continue,
        };
        out.events.push(Event {
            row: l.row,
            time: r.time,
            kind,
            message,
        });
    }
}

/// Failed logins before one that succeeds count for so long.
const WINDOW: i64 = 24 * 3600 * SECOND;
/// So many of them are more than a slip; of several names fewer are.
const MANY: usize = 5;
const SEVERAL: usize = 3;

/// Failed ones before a login that are looked at, at most.
const LOOKED_AT: usize = 1000;

/// What makes logins comparable: where they come from, or, on the machine itself, whose they are.
fn origins(r: &Record) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    out.extend(some(&r.host).map(str::to_lowercase));
    out.extend(r.address.map(|a| a.to_string()));
    if out.is_empty() {
        out.insert(format!("\0{}", r.user));
    }
    out
}

/// Flags logins that follow failed ones from the same place, or, on the machine itself, of the same user.
fn guessed(all: &[Login<'_>], out: &mut Table) {
    let mut failed: HashMap<String, Vec<(i64, &str)>> = HashMap::new();
    for l in all.iter().filter(|l| l.kind == "failed") {
        for origin in origins(&l.record) {
            let of = failed.entry(origin).or_default();
            of.push((l.record.time, l.record.user.as_str()));
        }
    }
    failed.values_mut().for_each(|f| f.sort_unstable());
    let mut told = HashSet::new();
    for l in all.iter().filter(|l| is_success(l)) {
        let r = &l.record;
        if !told.insert((r.time, &r.user, &r.line)) {
            continue;
        }
        let since = r.time.saturating_sub(WINDOW);
        let before = |origin: &String| -> Vec<(i64, &str)> {
            let all = failed.get(origin).map(Vec::as_slice).unwrap_or_default();
            let all = all.get(..all.partition_point(|f| f.0 <= r.time));
            let last = all.unwrap_or_default().iter().rev().take(LOOKED_AT);
            last.take_while(|f| f.0 >= since).copied().collect()
        };
        let all = origins(r).iter().map(before).max_by_key(Vec::len);
        let before = all.unwrap_or_default();
        let names: BTreeSet<&str> = before.iter().map(|f| f.1).collect();
        let several = names.len() > 1 && before.len() >= SEVERAL;
        if before.len() < MANY && !several {
            continue;
        }
        let reason = format!(
            "{} logged in on {}{} ({}, record at {}) after {} logins of {} that failed in the day before. \
             Somebody who has forgotten a password does that too",
            some(&r.user).unwrap_or("?"),
            some(&r.line).unwrap_or("?"),
            from(&r.host),
            l.file.path,
            r.offset,
            before.len(),
            match names.len() {
                1 => "one name".to_owned(),
                n => format!("{n} names"),
            },
        );
        out.anomalies.push(Anomaly {
            row: l.row,
            rule: "login_after_failures",
            severity: Severity::Medium,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names() {
        for (path, want) in [
            ("/run/utmp", Some(Source::Utmp)),
            ("/var/log/wtmp", Some(Source::Wtmp)),
            ("/var/log/wtmp.1", Some(Source::Wtmp)),
            ("/var/log/btmp-20260101", Some(Source::Btmp)),
            ("/var/log/lastlog", Some(Source::LastLog)),
            (
                "/var/lib/docker/overlay2/1f/diff/var/log/wtmp",
                Some(Source::Wtmp),
            ),
            ("/var/log/wtmp.1.gz", None),
            ("/var/log/wtmp.db", None),
            ("/usr/bin/lastlog2", None),
            ("/usr/bin/utmpdump", None),
        ] {
            assert_eq!(source(path), want, "{path}");
        }
    }
}
