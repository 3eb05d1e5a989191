//! `windows/cmdline`, `windows/envars`: what processes were started with, from their own memory.
//!
//! Source: the public type `_RTL_USER_PROCESS_PARAMETERS`. The environment is a block of texts, each ended by a NUL, the last
//! by two.

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView};

/// `windows/cmdline`.
pub(in crate::windows) const CMDLINE: WindowsView = WindowsView {
    name: "windows/cmdline",
    meaning: "command lines of processes",
    columns: LINES,
    build: lines,
    recover: None,
};

const LINES: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("args", Kind::Text, "command line"),
    column(
        "image",
        Kind::Text,
        "path of the program, as the process has it",
    ),
    column("folder", Kind::Text, "current folder"),
    column("reason", Kind::Text, "why the command line is not there"),
    column("eprocess", Kind::Hex, "virtual address of its _EPROCESS"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

/// `windows/envars`.
pub(in crate::windows) const ENVARS: WindowsView = WindowsView {
    name: "windows/envars",
    meaning: "environment variables of processes",
    columns: VARIABLES,
    build: variables,
    recover: None,
};

const VARIABLES: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("key", Kind::Text, "name of the variable"),
    column("value", Kind::Text, "its value"),
    column(
        "physical",
        Kind::Hex,
        "physical address of the process's _EPROCESS",
    ),
];

fn lines(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(LINES);
    for p in k.processes(&mut out.doubts)? {
        let mut row = vec![p.pid.into(), p.name().into()];
        match line(k, &p) {
            Ok(Some(cells)) => {
                row.extend(cells.map(Value::from));
                row.push(Value::Null);
            }
            Ok(None) => {
                row.extend([Value::Null, Value::Null, Value::Null]);
                row.push("it has no memory of its own".into());
            }
            Err(e) => {
                row.extend([Value::Null, Value::Null, Value::Null]);
                row.push(e.to_string().into());
            }
        }
        row.push(p.object.va.into());
        row.push(p.object.physical().into());
        out.push(row);
    }
    Ok(out)
}

fn line(k: &Kernel<'_>, p: &Process<'_>) -> Result<Option<[String; 3]>, WindowsError> {
    let Some(user) = p.user(k)? else {
        return Ok(None);
    };
    let Some(own) = user.parameters(k)? else {
        return Ok(None);
    };
    Ok(Some([
        own.unicode("CommandLine")?,
        own.unicode("ImagePathName").unwrap_or_default(),
        own.unicode("CurrentDirectory.DosPath").unwrap_or_default(),
    ]))
}

/// Bytes of an environment at most.
const MAX_ENVIRONMENT: u64 = 1 << 20;

fn variables(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(VARIABLES);
    for p in k.processes(&mut out.doubts)? {
        match environment(k, &p) {
            Ok(all) => {
                for (key, value) in all {
                    out.push(vec![
                        p.pid.into(),
                        p.name().into(),
                        key.into(),
                        value.into(),
                        p.object.physical().into(),
                    ]);
                }
            }
            Err(_) if p.has_ended() => {}
            Err(e) => out.doubts.push(format!(
                "the environment of {} can't be read: {e}",
                p.label()
            )),
        }
    }
    Ok(out)
}

/// The environment of a process: names and values.
pub(super) fn environment(
    k: &Kernel<'_>,
    p: &Process<'_>,
) -> Result<Vec<(String, String)>, WindowsError> {
    let Some(user) = p.user(k)? else {
        return Ok(Vec::new());
    };
    let Some(own) = user.parameters(k)? else {
        return Ok(Vec::new());
    };
    let at = own.number("Environment")?;
    if at == 0 {
        return Ok(Vec::new());
    }
    let size = own.number("EnvironmentSize").ok().filter(|n| *n > 0);
    let most = size.unwrap_or(MAX_ENVIRONMENT).min(MAX_ENVIRONMENT);
    // Page by page: without a size it ends at two NULs.
    let mut units: Vec<u16> = Vec::new();
    let mut va = at;
    while va < at + most {
        let n = (4096 - va % 4096).min(at + most - va);
        let mut raw = vec![0; usize::try_from(n).unwrap_or(0) & !1];
        if raw.is_empty() {
            break;
        }
        match user.space.read(va, &mut raw) {
            Ok(()) => {}
            Err(e) if units.is_empty() => return Err(e.into()),
            Err(_) => break,
        }
        let from = units.len().saturating_sub(1);
        units.extend(
            raw.as_chunks::<2>()
                .0
                .iter()
                .map(|u| u16::from_le_bytes(*u)),
        );
        if units[from..].windows(2).any(|w| w == [0, 0]) {
            break;
        }
        va += n;
    }
    let texts = units
        .split(|u| *u == 0)
        .take_while(|t| !t.is_empty())
        .map(String::from_utf16_lossy);
    let pairs = texts.filter_map(|t| {
        // The name of a drive's folder begins with the sign itself: `=C:=C:\`.
        let split = t.char_indices().skip(1).find(|(_, c)| *c == '=')?.0;
        Some((t[..split].to_owned(), t[split + 1..].to_owned()))
    });
    Ok(pairs.collect())
}
