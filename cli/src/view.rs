//! `ramsift view`: one OS-aware view of a capture, without a job.

use crate::args::{Rows, ViewArgs};
use crate::config::Config;
use crate::evidence;
use crate::symbols;
use anyhow::{Result, anyhow, bail};
use ramsift_os::linux::{LinuxView, VIEWS};
use ramsift_os::table::{Kind, Table, Value};
use ramsift_structured_worker::view_alone;
use std::fmt::Write as _;

/// Lists the views, or builds one and prints its rows. What is doubtful goes to standard error;
/// the exit code is 3 then.
pub(crate) async fn run(config: &Config, args: ViewArgs) -> Result<u8> {
    if args.list {
        print!("{}", list());
        return Ok(0);
    }
    let (Some(name), Some(image)) = (args.name, args.image) else {
        bail!("name a view and a capture, or use --list");
    };
    let view = VIEWS.iter().find(|v| v.name == name).ok_or_else(|| {
        let all: Vec<_> = VIEWS.iter().map(|v| v.name).collect();
        anyhow!("there is no view {name}; there are: {}", all.join(", "))
    })?;
    let e = evidence::open(config, &image).await?;
    let record = e.record(config).await;
    let got = view_alone(
        e.source.clone(),
        &e.plan,
        record.as_ref(),
        view,
        symbols::means(config).await?,
    )
    .await?;
    e.keep(config, got.found.as_ref()).await;
    print!("{}", text(&got.answer, args.format)?);
    for d in &got.answer.doubts {
        eprintln!("doubtful: {d}");
    }
    Ok(if got.answer.doubts.is_empty() { 0 } else { 3 })
}

fn list() -> String {
    let mut out = String::new();
    for v in VIEWS {
        let columns: Vec<_> = v.columns.iter().map(|c| c.name).collect();
        let LinuxView { name, meaning, .. } = v;
        let _ = writeln!(
            out,
            "{name:<16} {meaning}\n{:<16} {}",
            "",
            columns.join(", ")
        );
    }
    out
}

/// A cell for people and for CSV.
fn cell(v: &Value, kind: Kind) -> String {
    match v {
        Value::Null => String::new(),
        Value::Number(n) if kind == Kind::Hex => format!("{n:#x}"),
        Value::Number(n) if kind == Kind::Time => i64::try_from(*n)
            .ok()
            .and_then(|n| jiff::Timestamp::from_microsecond(n).ok())
            .map_or_else(|| n.to_string(), |t| t.to_string()),
        Value::Number(n) => n.to_string(),
        Value::Text(s) => s.chars().flat_map(visible).collect(),
        Value::Flag(b) => if *b { "yes" } else { "no" }.to_owned(),
    }
}

/// A character of hostile text, without what could drive a terminal.
fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control();
    let plain = (!escaped).then_some(c);
    let code = escaped.then(|| c.escape_default());
    plain.into_iter().chain(code.into_iter().flatten())
}

fn text(t: &Table, format: Rows) -> Result<String> {
    let mut out = String::new();
    match format {
        Rows::Table => {
            let cells: Vec<Vec<String>> = t
                .rows
                .iter()
                .map(|r| {
                    r.iter()
                        .zip(t.columns)
                        .map(|(v, c)| cell(v, c.kind))
                        .collect()
                })
                .collect();
            let width = |i: usize| {
                let of_rows = cells.iter().map(|r: &Vec<String>| r[i].chars().count());
                of_rows.chain([t.columns[i].name.len()]).max().unwrap_or(0)
            };
            let widths: Vec<usize> = (0..t.columns.len()).map(width).collect();
            let mut line = |row: &mut dyn Iterator<Item = &str>| {
                let mut l = String::new();
                for (s, w) in row.zip(&widths) {
                    let _ = write!(l, "{s:<w$}  ");
                }
                out.push_str(l.trim_end());
                out.push('\n');
            };
            line(&mut t.columns.iter().map(|c| c.name));
            for r in &cells {
                line(&mut r.iter().map(String::as_str));
            }
        }
        Rows::Jsonl => {
            for r in &t.rows {
                let row: serde_json::Map<String, serde_json::Value> = r
                    .iter()
                    .zip(t.columns)
                    .map(|(v, c)| (c.name.to_owned(), json(v, c.kind)))
                    .collect();
                out.push_str(&serde_json::to_string(&row)?);
                out.push('\n');
            }
        }
        Rows::Csv => {
            let names: Vec<_> = t.columns.iter().map(|c| quoted(c.name)).collect();
            let _ = writeln!(out, "{}", names.join(","));
            for r in &t.rows {
                let cells = r.iter().zip(t.columns);
                let cells: Vec<_> = cells.map(|(v, c)| quoted(&cell(v, c.kind))).collect();
                let _ = writeln!(out, "{}", cells.join(","));
            }
        }
    }
    Ok(out)
}

fn json(v: &Value, kind: Kind) -> serde_json::Value {
    match v {
        Value::Null => serde_json::Value::Null,
        Value::Number(_) if kind == Kind::Time => cell(v, kind).into(),
        Value::Number(n) => u64::try_from(*n)
            .map(serde_json::Value::from)
            .or_else(|_| i64::try_from(*n).map(serde_json::Value::from))
            .unwrap_or_else(|_| n.to_string().into()),
        Value::Text(s) => s.as_str().into(),
        Value::Flag(b) => (*b).into(),
    }
}

/// A field as RFC 4180 has it.
fn quoted(s: &str) -> String {
    if s.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", s.replace('"', "\"\""))
    } else {
        s.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_os::table::Column;

    const COLUMNS: &[Column] = &[
        Column {
            name: "name",
            kind: Kind::Text,
            meaning: "a name",
        },
        Column {
            name: "at",
            kind: Kind::Hex,
            meaning: "an address",
        },
    ];

    #[test]
    fn rows_in_every_format() {
        let mut t = Table::new(COLUMNS);
        t.rows
            .push(vec!["a,\"b\"\u{1b}[2J".into(), u64::MAX.into()]);
        t.rows.push(vec!["c".into(), Value::Null]);
        let table = text(&t, Rows::Table).expect("text");
        assert!(table.contains("\\u{1b}[2J") && table.contains("0xffffffffffffffff"));
        let jsonl = text(&t, Rows::Jsonl).expect("text");
        let first: serde_json::Value =
            serde_json::from_str(jsonl.lines().next().expect("a row")).expect("JSON");
        assert_eq!(first["at"], u64::MAX);
        let csv = text(&t, Rows::Csv).expect("text");
        assert!(csv.starts_with("name,at\n\"a,\"\"b\"\""), "{csv}");
    }
}
