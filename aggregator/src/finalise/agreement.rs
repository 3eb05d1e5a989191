//! What views say of values that carvers found: peers of sockets, words of command lines and of shell histories.

use super::FinaliseError;
use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use ramsift_store::groups::Agreement;
use ramsift_store::merge::Segment;
use ramsift_store::tables::read_segment;
use ramsift_store::{Objects, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How the texts of a column name values.
#[derive(Clone, Copy)]
enum Names {
    /// Each is one value.
    Value,
    /// Each is a line of several words.
    Words,
}

/// Ending of a view's table, column, how it names values, what is said of them. Views of all systems have these names.
const SAYS: &[(&str, &str, Names, &str)] = &[
    ("_sockstat", "remote", Names::Value, "peer of a socket"),
    ("_netscan", "foreign_addr", Names::Value, "peer of a socket"),
    ("_netstat", "foreign_addr", Names::Value, "peer of a socket"),
    ("_bash", "command", Names::Words, "shell history"),
    ("_history", "command", Names::Words, "shell history"),
    ("_psaux", "args", Names::Words, "command line"),
    ("_cmdline", "args", Names::Words, "command line"),
    ("_logins", "host", Names::Value, "login"),
    ("_logins", "address", Names::Value, "login"),
];

/// Collects what the views of a job name.
pub(super) async fn of(
    objects: &Arc<dyn Objects>,
    segments: &BTreeMap<String, Vec<Segment>>,
) -> Result<Agreement, FinaliseError> {
    let mut out = Agreement::default();
    for (ending, column, names, whence) in SAYS {
        let tables = segments.iter().filter(|(t, _)| t.ends_with(ending));
        for segment in tables.flat_map(|(_, s)| s) {
            let (data, _) = objects.get(&segment.key).await.map_err(StoreError::from)?;
            let damaged = |source| StoreError::Segment {
                what: segment.key.clone(),
                source,
            };
            for b in read_segment(data).map_err(damaged)? {
                let texts = b.column_by_name(column);
                let Some(texts) = texts.filter(|c| c.data_type() == &DataType::Utf8) else {
                    continue;
                };
                for text in texts.as_string::<i32>().iter().flatten() {
                    match names {
                        Names::Value => out.add(text, whence),
                        Names::Words => out.add_words(text, whence),
                    }
                }
            }
        }
    }
    Ok(out)
}
