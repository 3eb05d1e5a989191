//! From the rows of views to rows of tables: the view's own table, findings and events.

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::error::ArrowError;
use ramsift_layers::PhysAddr;
use ramsift_layers::run::RunMap;
use ramsift_os::table::{Column, Kind, Table, Value};
use ramsift_store::tables::{
    EventRow, EventsBuilder, FindingRow, FindingsBuilder, detector_key, row_id,
};
use std::sync::Arc;

/// Version of what views do: part of the ids of their rows.
pub(crate) const VERSION: &[u8] = &[1];

/// The table of a view: `linux/pslist` is `linux_pslist`.
pub fn table_name(view: &str) -> String {
    view.replace(['/', '-'], "_").to_ascii_lowercase()
}

/// A view's rows as a batch, with their number in front.
pub fn batch(t: &Table) -> Result<RecordBatch, ArrowError> {
    let mut fields = vec![Field::new("row", DataType::UInt64, false)];
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from_iter_values(
        0..t.rows.len() as u64,
    ))];
    for (i, c) in t.columns.iter().enumerate() {
        let (kind, array) = column(t, i, c);
        fields.push(Field::new(c.name, kind, true));
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn column(t: &Table, i: usize, c: &Column) -> (DataType, ArrayRef) {
    let cells = || t.rows.iter().map(|r| r.get(i).unwrap_or(&Value::Null));
    let number = |v: &Value| match v {
        Value::Number(n) => Some(*n),
        _ => None,
    };
    match c.kind {
        Kind::Hex => {
            let all: UInt64Array = cells()
                .map(|v| number(v).map(|n| u64::try_from(n).unwrap_or(n as u64)))
                .collect();
            (DataType::UInt64, Arc::new(all))
        }
        Kind::Number => {
            // What doesn't fit is kept apart from what isn't known by its greatest value.
            let all: Int64Array = cells()
                .map(|v| number(v).map(|n| i64::try_from(n).unwrap_or(i64::MAX)))
                .collect();
            (DataType::Int64, Arc::new(all))
        }
        Kind::Time => {
            let all: TimestampMicrosecondArray = cells()
                .map(|v| number(v).and_then(|n| i64::try_from(n).ok()))
                .collect();
            let zone = Some("UTC".into());
            (
                DataType::Timestamp(TimeUnit::Microsecond, zone),
                Arc::new(all.with_timezone("UTC")),
            )
        }
        Kind::Text => {
            let all: StringArray = cells()
                .map(|v| match v {
                    Value::Text(s) => Some(s.as_str()),
                    _ => None,
                })
                .collect();
            (DataType::Utf8, Arc::new(all))
        }
        Kind::Flag => {
            let all: BooleanArray = cells()
                .map(|v| match v {
                    Value::Flag(b) => Some(*b),
                    _ => None,
                })
                .collect();
            (DataType::Boolean, Arc::new(all))
        }
    }
}

/// Where a row's object lies: its physical address, and that as an image offset.
struct Place {
    physical: Option<u64>,
    image: u64,
}

fn place(t: &Table, row: usize, runs: &RunMap) -> Place {
    let physical = match t.cell(row, "physical") {
        Some(Value::Number(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    let image = physical.and_then(|p| runs.from_phys(PhysAddr(p)));
    Place {
        physical: physical.filter(|_| image.is_some()),
        image: image.map_or(0, |i| i.0),
    }
}

/// What is wrong with rows, as findings.
pub(crate) fn findings(view: &str, t: &Table, runs: &RunMap, out: &mut FindingsBuilder) {
    let table = table_name(view);
    for a in &t.anomalies {
        let detector = format!("{view}:{}", a.rule);
        let at = place(t, a.row, runs);
        let link = format!("{table}/{}", a.row);
        let fields = serde_json::json!({"view": view, "rule": a.rule, "row": a.row});
        out.push(&FindingRow {
            id: row_id(
                detector_key(&detector, VERSION),
                "view",
                &format!("{link}:{}", a.reason),
                at.image,
                0,
            ),
            detector: &detector,
            kind: "anomaly",
            severity: a.severity,
            severity_reason: a.rule,
            scope: "system",
            image_offset: at.image,
            physical_address: at.physical,
            length: 0,
            value: &a.reason,
            encoding: None,
            context: None,
            fields: Some(&fields.to_string()),
            path: Some(&link),
            artifact: None,
            rule: None,
        });
    }
}

/// What rows say of times, as events.
pub(crate) fn events(view: &str, t: &Table, runs: &RunMap, out: &mut EventsBuilder) {
    let table = table_name(view);
    for (n, e) in t.events.iter().enumerate() {
        let at = place(t, e.row, runs);
        let link = format!("{table}/{}", e.row);
        let text = |name: &str| match t.cell(e.row, name) {
            Some(Value::Text(s)) => Some(s.as_str()),
            _ => None,
        };
        let pid = match t.cell(e.row, "pid") {
            Some(Value::Number(n)) => u32::try_from(*n).ok(),
            _ => None,
        };
        out.push(&EventRow {
            id: row_id(
                detector_key(view, VERSION),
                "view",
                &format!("{link}:{}:{n}", e.kind),
                at.image,
                0,
            ),
            time: Some(e.time),
            inferred_time: None,
            inferred_from: None,
            raw_time: "",
            time_kind: e.kind,
            source: view,
            host: None,
            program: text("comm"),
            pid,
            message: &e.message,
            fields: None,
            encoding: "utf-8",
            image_offset: at.image,
            physical_address: at.physical,
            length: 0,
            row: Some(&link),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::UInt64Type;
    use ramsift_layers::Severity;
    use ramsift_os::table::column;

    const COLUMNS: &[Column] = &[
        column("pid", Kind::Number, "process id"),
        column("comm", Kind::Text, "name"),
        column("task", Kind::Hex, "address"),
        column("physical", Kind::Hex, "address"),
    ];

    fn table() -> Table {
        let mut t = Table::new(COLUMNS);
        t.push(vec![
            1u64.into(),
            "init".into(),
            u64::MAX.into(),
            0x2000u64.into(),
        ]);
        t.push(vec![
            2u64.into(),
            "x".into(),
            0xffff_8880_0000_3000u64.into(),
            0x3000u64.into(),
        ]);
        t.flag("odd", Severity::High, "x[2] is odd");
        t.event(5, "process started", "x[2] started");
        t
    }

    #[test]
    fn findings_and_events_lead_back_to_their_row() {
        let runs = RunMap::raw(0x4000);
        let (mut f, mut e) = (FindingsBuilder::default(), EventsBuilder::default());
        findings("linux/pslist", &table(), &runs, &mut f);
        events("linux/pslist", &table(), &runs, &mut e);
        let f = f.finish().expect("valid").expect("one");
        let text = |name: &str| {
            let c = f.column_by_name(name).expect("column");
            c.as_string::<i32>().value(0).to_owned()
        };
        assert_eq!(text("value"), "x[2] is odd");
        assert_eq!(text("path"), "linux_pslist/1");
        let at = f.column_by_name("image_offset").expect("column");
        assert_eq!(at.as_primitive::<UInt64Type>().value(0), 0x3000);
        let e = e.finish().expect("valid").expect("one");
        let row = e.column_by_name("row").expect("column");
        assert_eq!(row.as_string::<i32>().value(0), "linux_pslist/1");
    }

    #[test]
    fn a_batch_has_the_views_columns_and_numbers() {
        let b = batch(&table()).expect("valid");
        let schema = b.schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["row", "pid", "comm", "task", "physical"]);
        assert_eq!(b.column(3).as_primitive::<UInt64Type>().value(0), u64::MAX);
        // A view without rows has its columns all the same.
        let empty = batch(&Table::new(COLUMNS)).expect("valid");
        assert_eq!((empty.num_rows(), empty.schema()), (0, schema));
        assert_eq!(table_name("linux/check_syscall"), "linux_check_syscall");
    }

    #[test]
    fn the_store_takes_the_tables_of_every_system() {
        let known = ramsift_proto::view::SYSTEMS;
        for s in ramsift_os::SYSTEMS {
            assert!(known.contains(&s.name()), "{}", s.name());
        }
        for v in ramsift_os::views() {
            let table = table_name(v.name);
            assert!(ramsift_store::tables::is_view(&table), "{table}");
        }
    }
}
