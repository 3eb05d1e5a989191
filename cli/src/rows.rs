//! Rows for people and for programs: aligned tables, JSON lines, CSV.
//!
//! Addresses are hexadecimal in every form, `0x…` strings in JSON; offsets in the image only in tables for people, since
//! programs count with them.

use crate::args::{Format, Rows};
use crate::terminal::{self, Out, Shown, shown_json, tell};
use anyhow::{Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use std::io::Write;
use std::sync::Arc;

/// Columns of core tables that are offsets.
const OFFSETS: &[&str] = &[
    "image_offset",
    "first_offset",
    "object_offset",
    "banner_offset",
    "start",
    "end",
    "offset",
];
/// Columns of unsigned numbers that are counts or sizes; the others of views are addresses and flags.
const COUNTS: &[&str] = &[
    "row",
    "length",
    "size",
    "rows",
    "count",
    "bytes",
    "doubtful",
    "anomalies",
    "micros",
    "file_size",
    "image_size",
];
/// Columns of core tables that are addresses.
const ADDRESSES: &[&str] = &[
    "physical_address",
    "virtual_address",
    "physical_base",
    "address",
];

/// How a column is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Plain,
    Offset,
    Address,
}

/// What a column of this name and type is: views have addresses and flags in unsigned numbers, and nothing else.
fn base(f: &Field, view: bool) -> Base {
    let name = f.name().as_str();
    match f.data_type() {
        DataType::UInt64 if ADDRESSES.contains(&name) => Base::Address,
        DataType::UInt64 if view && !COUNTS.contains(&name) => Base::Address,
        DataType::UInt64 if crate::view::is_address(name) => Base::Address,
        DataType::UInt64 if OFFSETS.contains(&name) => Base::Offset,
        _ => Base::Plain,
    }
}

/// A batch in which addresses, and for people offsets, are hexadecimal text.
fn with_hex(b: &RecordBatch, view: bool, people: bool) -> Result<RecordBatch> {
    let schema = b.schema();
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (f, c) in schema.fields().iter().zip(b.columns()) {
        let hex = match base(f, view) {
            Base::Address => true,
            Base::Offset => people,
            Base::Plain => false,
        };
        if hex {
            let numbers = c.as_primitive::<UInt64Type>();
            let text: StringArray = numbers
                .iter()
                .map(|n| n.map(|n| format!("{n:#x}")))
                .collect();
            fields.push(Arc::new(Field::new(f.name(), DataType::Utf8, true)));
            columns.push(Arc::new(text));
        } else {
            fields.push(f.clone());
            columns.push(c.clone());
        }
    }
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns,
    )?)
}

/// Leaves only the named columns, in that order.
fn only(schema: &SchemaRef, wanted: &[String]) -> Result<Option<Vec<usize>>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let mut out = Vec::new();
    for w in wanted {
        match names.iter().position(|n| n.eq_ignore_ascii_case(w)) {
            Some(i) => out.push(i),
            None => bail!(crate::suggest::unknown("column", w, &names)),
        }
    }
    Ok(Some(out))
}

/// Prints rows as they come; returns how many. `view`: they are of a view.
pub(crate) async fn print(
    mut rows: SendableRecordBatchStream,
    how: &Format,
    view: bool,
) -> Result<u64> {
    let columns = only(&rows.schema(), &how.columns)?;
    let picked = |b: RecordBatch| match &columns {
        Some(c) => b.project(c),
        None => Ok(b),
    };
    let mut out = Out::new();
    let mut n = 0;
    let mut table = TableWriter::new(how);
    let mut first = true;
    let schema = rows.schema();
    while let Some(b) = rows.next().await {
        let b = picked(b?)?;
        n += b.num_rows() as u64;
        match how.format {
            Rows::Table => table.take(&with_hex(&b, view, true)?, &mut out)?,
            Rows::Jsonl => write_json(&mut out, &b, view)?,
            Rows::Csv => write_csv(&mut out, &b, view, std::mem::take(&mut first), how.raw_csv)?,
        }
        if terminal::closed() {
            return Ok(n);
        }
    }
    if how.format == Rows::Table {
        if n == 0 {
            table.take(
                &with_hex(&picked(RecordBatch::new_empty(schema))?, view, true)?,
                &mut out,
            )?;
        }
        table.end(&mut out)?;
    } else if how.format == Rows::Csv && first {
        write_csv(
            &mut out,
            &picked(RecordBatch::new_empty(schema))?,
            view,
            true,
            how.raw_csv,
        )?;
    }
    out.flush()?;
    Ok(n)
}

/// Says that there is more than was printed.
pub(crate) fn cut(shown: u64, all: u64, what: &str) {
    if shown < all {
        tell!(
            "{} of {} {what}; --limit 0 for all",
            terminal::count(shown),
            terminal::count(all)
        );
    }
}

/// One JSON object a line: bytes as hex, addresses as hex strings, nulls with their keys.
pub(crate) fn write_json(out: &mut dyn Write, b: &RecordBatch, view: bool) -> Result<()> {
    let mut lines = Vec::new();
    let mut w = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut lines);
    w.write(&with_hex(b, view, false)?)?;
    w.finish()?;
    drop(w);
    if lines.is_ascii() {
        out.write_all(&lines)?;
    } else {
        out.write_all(shown_json(&String::from_utf8_lossy(&lines)).as_bytes())?;
    }
    Ok(())
}

/// Comma-separated, as RFC 4180 has it. Unless it is to be raw, text is made harmless: controls are escaped, and a cell
/// that a spreadsheet would run is led in by an apostrophe.
pub(crate) fn write_csv(
    out: &mut dyn Write,
    b: &RecordBatch,
    view: bool,
    header: bool,
    raw: bool,
) -> Result<()> {
    let b = with_hex(b, view, false)?;
    let options = FormatOptions::default();
    let schema = b.schema();
    if header {
        // A statement may name its columns as it likes.
        let names = schema.fields().iter().map(|f| match raw {
            true => quoted(f.name()),
            false => quoted(&harmless(f.name())),
        });
        let names: Vec<String> = names.collect();
        out.write_all(format!("{}\n", names.join(",")).as_bytes())?;
    }
    let columns = b
        .columns()
        .iter()
        .map(|c| ArrayFormatter::try_new(c.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut line = String::new();
    for i in 0..b.num_rows() {
        line.clear();
        for (k, c) in columns.iter().enumerate() {
            if k > 0 {
                line.push(',');
            }
            let cell = c.value(i).to_string();
            let text = matches!(b.column(k).data_type(), DataType::Utf8);
            line.push_str(&match (raw, text) {
                (true, _) => quoted(&cell),
                (false, true) => quoted(&harmless(&cell)),
                (false, false) => quoted(&Shown(&cell).to_string()),
            });
        }
        line.push('\n');
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// A cell that no spreadsheet runs and no terminal obeys. Source: OWASP, "CSV Injection".
fn harmless(cell: &str) -> String {
    if cell.starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(cell).is_ok() {
        // Else whoever reads the cell finds no JSON there.
        return shown_json(cell);
    }
    let shown = Shown(cell).to_string();
    // A number with a sign is none, but text that only begins like one is.
    let runs = cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
        && cell.parse::<f64>().is_err()
        && cell != "-";
    if runs { format!("'{shown}") } else { shown }
}

/// A field as RFC 4180 has it.
fn quoted(s: &str) -> String {
    if s.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", s.replace('"', "\"\""))
    } else {
        s.to_owned()
    }
}

/// Rows whose cells decide the widths of columns; later ones are cut or pushed aside.
const MEASURED: usize = 1000;
/// Widest column where no terminal says how wide it is.
const WIDEST: usize = 70;
/// Narrowest column that says anything.
const NARROWEST: usize = 6;

/// Writes aligned columns that fit the terminal.
struct TableWriter {
    terminal: Option<usize>,
    header: Vec<String>,
    waiting: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
}

fn long(s: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(s)
}

impl TableWriter {
    fn new(how: &Format) -> Self {
        Self {
            terminal: terminal::width().filter(|_| !how.wide),
            header: Vec::new(),
            waiting: Vec::new(),
            widths: None,
        }
    }

    fn take(&mut self, b: &RecordBatch, out: &mut dyn Write) -> Result<()> {
        if self.header.is_empty() {
            self.header = b
                .schema()
                .fields()
                .iter()
                .map(|f| Shown(f.name()).to_string())
                .collect();
        }
        let options = FormatOptions::default()
            .with_null("-")
            .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"));
        let columns = b
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()?;
        for i in 0..b.num_rows() {
            let row = columns
                .iter()
                .map(|c| Shown(c.value(i).to_string()).to_string());
            self.waiting.push(row.collect());
            if self.widths.is_some() || self.waiting.len() >= MEASURED {
                self.flush(out)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<()> {
        self.flush(out)
    }

    fn flush(&mut self, out: &mut dyn Write) -> Result<()> {
        if self.widths.is_none() {
            let natural: Vec<usize> = (0..self.header.len())
                .map(|c| {
                    let cells = self.waiting.iter().map(|r| long(&r[c]));
                    cells.chain([long(&self.header[c])]).max().unwrap_or(0)
                })
                .collect();
            let widths = fit(&natural, self.terminal);
            if widths.len() < natural.len() {
                let left: Vec<&str> = self.header[widths.len()..]
                    .iter()
                    .map(String::as_str)
                    .collect();
                tell!(
                    "columns that don't fit: {} (--wide, or --columns with those you want)",
                    left.join(", ")
                );
            }
            self.widths = Some(widths);
            let header = self.header.clone();
            self.line(&header, out)?;
        }
        for row in std::mem::take(&mut self.waiting) {
            self.line(&row, out)?;
        }
        Ok(())
    }

    fn line(&self, cells: &[String], out: &mut dyn Write) -> Result<()> {
        let widths = self.widths.as_deref().unwrap_or_default();
        let mut line = String::new();
        for (i, (cell, w)) in cells.iter().zip(widths).enumerate() {
            let last = i + 1 == widths.len();
            let n = long(cell);
            if n > *w && self.terminal.is_some() {
                line.push_str(&shortened(cell, *w));
            } else {
                line.push_str(cell);
            }
            if !last {
                line.extend(std::iter::repeat_n(' ', w.saturating_sub(n) + 2));
            }
        }
        writeln!(out, "{}", line.trim_end())?;
        Ok(())
    }
}

/// The beginning of a cell, as wide as `w` with the sign that it was cut.
fn shortened(cell: &str, w: usize) -> String {
    let mut out = String::new();
    let mut n = 0;
    for c in cell.chars() {
        let wide = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if n + wide + 1 > w {
            break;
        }
        n += wide;
        out.push(c);
    }
    out.push('…');
    out.extend(std::iter::repeat_n(' ', w.saturating_sub(n + 1)));
    out
}

/// Widths of columns that fit: the widest give way first. Columns that can't be shown at all are left out, from the
/// last.
fn fit(natural: &[usize], terminal: Option<usize>) -> Vec<usize> {
    let Some(room) = terminal else {
        return natural.iter().map(|n| (*n).min(WIDEST)).collect();
    };
    let mut widths = natural.to_vec();
    let needed = |w: &[usize]| w.iter().sum::<usize>() + 2 * w.len().saturating_sub(1);
    while widths.len() > 1 {
        let least: Vec<usize> = widths.iter().map(|n| (*n).min(NARROWEST)).collect();
        if needed(&least) <= room {
            break;
        }
        widths.pop();
    }
    while needed(&widths) > room {
        let over = needed(&widths) - room;
        let Some(most) = widths
            .iter()
            .copied()
            .max()
            .filter(|m| *m > NARROWEST.min(room))
        else {
            break;
        };
        // Down to the next widest, or as far as needed.
        let next = widths
            .iter()
            .copied()
            .filter(|w| *w < most)
            .max()
            .unwrap_or(0)
            .max(NARROWEST.min(room));
        let widest = widths.iter().filter(|w| **w == most).count();
        let by = (most - next).max(1).min(over.div_ceil(widest));
        for w in widths.iter_mut().filter(|w| **w == most) {
            *w -= by;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_the_terminal() {
        assert_eq!(fit(&[5, 100, 10], None), [5, 70, 10]);
        assert_eq!(fit(&[5, 10], Some(80)), [5, 10]);
        let w = fit(&[5, 100, 60, 10], Some(80));
        assert!((78..=80).contains(&(w.iter().sum::<usize>() + 6)), "{w:?}");
        assert_eq!((w[0], w[3]), (5, 10));
        let many = fit(&[20; 40], Some(80));
        assert!(many.len() < 40 && many.iter().sum::<usize>() + 2 * (many.len() - 1) <= 80);
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("日本語", 4), "日… ");
    }

    #[test]
    fn cells_that_a_spreadsheet_would_run_are_not() {
        assert_eq!(harmless("=HYPERLINK(\"x\")"), "'=HYPERLINK(\"x\")");
        assert_eq!(harmless("@SUM(1)"), "'@SUM(1)");
        assert_eq!(harmless("-5"), "-5");
        assert_eq!(harmless("-x"), "'-x");
        assert_eq!(harmless("a\0b"), "a\\u{0}b");
        // A cell that is JSON stays JSON.
        assert_eq!(harmless("{\"a\":\"\u{202e}\"}"), "{\"a\":\"\\u202e\"}");
        assert_eq!(harmless("{\u{202e}"), "{\\u{202e}");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }

    #[test]
    fn addresses_are_hexadecimal_everywhere_and_nulls_keep_their_keys() {
        let schema = Schema::new(vec![
            Field::new("physical_address", DataType::UInt64, true),
            Field::new("image_offset", DataType::UInt64, false),
            Field::new("value", DataType::Utf8, true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(arrow::array::UInt64Array::from(vec![
                Some(0xffff_8880_0000_1000),
                None,
            ])),
            Arc::new(arrow::array::UInt64Array::from(vec![4096, 8192])),
            Arc::new(StringArray::from(vec![Some("a\u{9b}"), None])),
        ];
        let b = RecordBatch::try_new(Arc::new(schema), columns).expect("batch");
        let mut out = Vec::new();
        write_json(&mut out, &b, false).expect("written");
        let text = String::from_utf8(out).expect("ASCII");
        assert_eq!(
            text,
            "{\"physical_address\":\"0xffff888000001000\",\"image_offset\":4096,\"value\":\"a\\u009b\"}\n\
             {\"physical_address\":null,\"image_offset\":8192,\"value\":null}\n"
        );
        let mut out = Vec::new();
        write_csv(&mut out, &b, false, true, false).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(
            text.lines().nth(1),
            Some("0xffff888000001000,4096,a\\u{9b}")
        );
    }
}
