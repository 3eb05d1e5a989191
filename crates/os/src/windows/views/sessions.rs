//! `windows/sessions`: processes by session, with the user whom their environment names.
//!
//! Sources: the public type `_MM_SESSION_SPACE`; Volatility 3 `plugins/windows/sessions.py` for the name.

use super::command_lines::environment;
use crate::table::{Column, Kind, Table, column};
use crate::windows::{Kernel, WindowsError, WindowsView, time};

/// `windows/sessions`.
pub(in crate::windows) const SESSIONS: WindowsView = WindowsView {
    name: "windows/sessions",
    meaning: "sessions, their processes and users",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column(
        "session",
        Kind::Number,
        "number of the session; null of processes in none",
    ),
    column(
        "kind",
        Kind::Text,
        "Console, RDP-Tcp#0, as the environment has it",
    ),
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column(
        "user",
        Kind::Text,
        "domain and user, as the environment has them",
    ),
    column("start", Kind::Time, "when the process was created"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let mut all = Vec::new();
    for p in k.processes(&mut out.doubts)? {
        // What can't be read is a doubt of windows/envars.
        let own = environment(k, &p).unwrap_or_default();
        let of = |key: &str| {
            let found = own.iter().find(|(k, _)| k.eq_ignore_ascii_case(key));
            found.map(|(_, v)| v.clone()).filter(|v| !v.is_empty())
        };
        let user = of("USERNAME").map(|name| match of("USERDOMAIN") {
            Some(domain) => format!("{domain}\\{name}"),
            None => name,
        });
        let session = p.session(k);
        let start = p.object.number("CreateTime").ok().and_then(time);
        let row = vec![
            session.into(),
            of("SESSIONNAME").into(),
            p.pid.into(),
            p.name().into(),
            user.into(),
            start.into(),
            p.object.physical().into(),
        ];
        all.push((session, start, row));
    }
    all.sort_by_key(|(session, start, _)| (*session, *start));
    all.into_iter().for_each(|(_, _, row)| out.push(row));
    Ok(out)
}
