//! What a page about a machine or about one process shows, told by each system: titles, and statements over the tables of
//! its views (`linux_pslist` is the table of `linux/pslist`).

/// A section of the page about one process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessSection {
    /// Its title.
    pub title: &'static str,
    /// The view whose rows it shows.
    pub view: &'static str,
    /// What of a row, as the columns of a SELECT.
    pub columns: &'static str,
    /// Which rows: a condition; `{pid}` in it stands for the process's number, and without it only rows of that number
    /// count.
    pub filter: &'static str,
    /// Order of the rows.
    pub order: &'static str,
    /// Rows at most.
    pub most: usize,
}

impl ProcessSection {
    /// All rows of the process, in their order.
    pub const fn new(
        title: &'static str,
        view: &'static str,
        columns: &'static str,
        most: usize,
    ) -> Self {
        Self {
            title,
            view,
            columns,
            filter: "true",
            order: "row",
            most,
        }
    }
}

/// A section of the page about a machine.
#[derive(Clone, Copy, Debug)]
pub struct OverviewSection {
    /// Its title.
    pub title: &'static str,
    /// A statement over tables of a job.
    pub sql: &'static str,
    /// A row in words, of the texts of its cells; null is empty.
    pub shape: fn(&[String]) -> String,
    /// Rows at most.
    pub most: usize,
    /// What shows all of them: a command and its first arguments, which the job is put behind.
    pub command: &'static str,
}

/// The cells that are not empty, side by side.
pub fn joined(row: &[String]) -> String {
    let cells = row.iter().filter(|c| !c.is_empty());
    cells.map(String::as_str).collect::<Vec<_>>().join("  ")
}
