//! The result store: objects, tables, ledger, and the records that tie them together.
//!
//! ```text
//! leases/agreement.json                  what services of a cluster must have in common
//! jobs/<job>/spec.json                   what the user asked for
//! jobs/<job>/plan.json                   evidence pin, layout, chunk parameters: immutable
//! jobs/<job>/extents/<blake3>.extents    where the image's bytes lie in a container that packs them: read in slices
//! jobs/<job>/kernel.json                 where the kernel is, for views that are built later
//! jobs/<job>/verdicts.json               groups of rules to decide, once all chunks are settled
//! jobs/<job>/lists/<attempt>/<task>.json memory of processes, or recovered content, for one task
//! jobs/<job>/process_verdicts.json       groups of rules to decide for each process
//! jobs/<job>/splits/<task>.json          a task that was cut in two
//! jobs/<job>/state.json                  where the job stands, under the coordinator's epoch
//! jobs/<job>/segments/<attempt>-<n>.segments  rows of one report that are many
//! jobs/<job>/packs/<attempt>-<n>.pack    small artifacts, end to end
//! jobs/<job>/commits/<id>.commit         makes the attempts in it exist; holds their rows
//! jobs/<job>/frozen.json                 the commits that count, fixed when the job is sealed
//! jobs/<job>/tables/<table>.parquet      sorted results
//! jobs/<job>/manifest.json               hashes of evidence and results, versions, who and when
//! artifacts/<sha256>                     large artifacts
//! rules/<digest>.rules                   compiled rule sets
//! leases/coordinator.json                who is the active coordinator
//! ```

mod agreement;
pub mod commits;
mod external;
pub mod groups;
pub mod image;
pub mod job;
mod json;
pub mod kernel;
pub mod ledger;
pub mod lists;
pub mod merge;
pub mod objects;
mod owners;
pub mod packs;
pub mod placed;
pub mod query;
pub mod report;
pub mod splice;
mod sql;
pub mod tables;

pub use agreement::Agreement;
pub use job::{Coverage, Frozen, Keys, Manifest, Plan, SealedBy, StoreError, VerdictPlan};
pub use ledger::{Ledger, MemoryLedger, RedisLedger};
pub use objects::{LocalObjects, ObjectError, Objects, S3Objects};
pub use report::{Ack, RemoteReporter, Report, ReportError, Reporter};
