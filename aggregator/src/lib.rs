//! The aggregator: takes reports, makes them durable in groups, and seals jobs.
//!
//! ```text
//! report -> group (64 MiB or 2 s a job) -> segments -> commit record -> ledger -> ok
//! finalise: freeze the records -> one attempt per task -> sorted tables -> coverage -> manifest
//! ```
//!
//! A report counts when the commit record that names it exists, and not before: the record is
//! created with `If-None-Match: *`, after its segments are stored.

mod commit;
mod finalise;
mod metrics;
mod server;

pub use commit::{Aggregator, CommitLimits, Held};
pub use finalise::{Committed, FinaliseError, FinaliseInfo, SoFar, finalise, so_far};
pub use server::serve;
