//! Settings of a set of carvers.

use crate::zone::Clock;

/// Settings of a set of carvers.
#[derive(Clone, Debug)]
pub struct CarverOptions {
    /// Zone for lines without one. `None`: such lines get no `time`, and an `inferred_time` as
    /// if they were UTC, with words that say so.
    pub timezone: Option<jiff::tz::TimeZone>,
    /// When the capture was taken (microseconds UTC) and what says so ("the capture file's
    /// modification time"): the bound for a missing year.
    pub reference_time: Option<(i64, String)>,
    /// Largest artifact followed, in bytes.
    pub max_artifact: usize,
    /// Names of the carvers to run; `None` means all.
    pub only: Option<Vec<String>>,
}

impl Default for CarverOptions {
    fn default() -> Self {
        Self {
            timezone: None,
            reference_time: None,
            max_artifact: 64 << 20,
            only: None,
        }
    }
}

impl CarverOptions {
    pub(crate) fn clock(&self) -> Clock {
        Clock::new(self.timezone.clone(), self.reference_time.clone())
    }
}

/// What can be wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarverError {
    /// No carver has this name.
    #[error("no carver is called {name:?}; there are: {known}")]
    UnknownCarver {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// The literal searcher could not be built.
    #[error("the searcher for {0} literals could not be built")]
    Searcher(usize),
}
