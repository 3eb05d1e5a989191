//! What a view gives: rows of typed columns, whatever prints or stores them.

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

/// The rows of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Columns, in order.
    pub columns: &'static [Column],
    /// Rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<Value>>,
    /// What was skipped or is doubtful, in words.
    pub doubts: Vec<String>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            ..Self::default()
        }
    }

    /// The cell of a row by the name of its column.
    pub fn cell(&self, row: usize, column: &str) -> Option<&Value> {
        let i = self.columns.iter().position(|c| c.name == column)?;
        self.rows.get(row)?.get(i)
    }
}
