//! What a view gives: rows of typed columns, whatever prints or stores them, and what is wrong or
//! timed in them.

use ramsift_layers::Severity;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// A number that is an address or a set of flags: shown in hexadecimal.
    Hex,
    /// Text.
    Text,
    /// Microseconds since 1970-01-01 UTC.
    Time,
    /// Yes or no.
    Flag,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it means, for the documentation and `--list`.
    pub meaning: &'static str,
}

/// A column, for the constants of views.
pub const fn column(name: &'static str, kind: Kind, meaning: &'static str) -> Column {
    Column {
        name,
        kind,
        meaning,
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Value {
    /// Nothing, or not known.
    #[default]
    Null,
    /// A number, of [`Kind::Number`], [`Kind::Hex`] or [`Kind::Time`].
    Number(i128),
    /// Text.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Number(n.into())
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Number(n.into())
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Self::Number(n.into())
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Number(n as i128)
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Self::Text(s)
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::Text(s.to_owned())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Flag(b)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Self {
        v.map_or(Self::Null, Into::into)
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// Which row.
    pub row: usize,
    /// Name of the rule, the same for all rows that it applies to: `deleted_executable`.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Why, in words that stand alone.
    pub reason: String,
}

/// Something with a time, for the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The row that it comes from.
    pub row: usize,
    /// Microseconds since 1970-01-01 UTC.
    pub time: i64,
    /// What happened then: `process started`, `file modified`.
    pub kind: &'static str,
    /// What happened, in words that stand alone.
    pub message: String,
}

/// The rows of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Columns, in order.
    pub columns: &'static [Column],
    /// Rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<Value>>,
    /// What was skipped or is doubtful, in words.
    pub doubts: Vec<String>,
    /// What is wrong with rows.
    pub anomalies: Vec<Anomaly>,
    /// What rows say of times.
    pub events: Vec<Event>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            ..Self::default()
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// Says that something is wrong with the row that was added last.
    pub fn flag(&mut self, rule: &'static str, severity: Severity, reason: impl Into<String>) {
        self.anomalies.push(Anomaly {
            row: self.rows.len().saturating_sub(1),
            rule,
            severity,
            reason: reason.into(),
        });
    }

    /// Puts something on the timeline for the row that was added last.
    pub fn event(&mut self, time: i64, kind: &'static str, message: impl Into<String>) {
        self.events.push(Event {
            row: self.rows.len().saturating_sub(1),
            time,
            kind,
            message: message.into(),
        });
    }

    /// The cell of a row by the name of its column.
    pub fn cell(&self, row: usize, column: &str) -> Option<&Value> {
        let i = self.columns.iter().position(|c| c.name == column)?;
        self.rows.get(row)?.get(i)
    }
}
