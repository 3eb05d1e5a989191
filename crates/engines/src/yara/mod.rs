//! YARA rules over captures that are scanned piece by piece.
//!
//! ```text
//! load_rules --> RuleSet --+--> ChunkScanner: matches per chunk --> plan_verdicts --> evaluate
//!                          +--> FileScanner:  verdicts on a whole recovered file
//! ```
//!
//! A rule that needs nothing but its patterns and where they lie is *memory-safe*: chunks are
//! searched for its patterns, and its condition is decided once, over all matches of the image.
//! Every other rule is *file-oriented* and runs on whole files only. `docs/yara.md` tells more.

mod bounds;
mod cache;
mod compile;
mod cond;
mod eval;
mod externals;
mod file;
mod info;
mod load;
mod lower;
mod probe;
mod rules;
mod scan;
mod severity;
mod slow;
mod tightest;
mod value;
mod verdict;

pub use cache::load_rules_cached;
pub use externals::{External, FileFacts, parse_define};
pub use file::{FileHit, FileMatch, FileScan, FileScanner};
pub use info::{ConditionKind, MetaValue, RuleClass, RuleError, RuleInfo, RulesError};
pub use rules::{RuleSet, load_rules};
pub use scan::{
    BLOCK, ChunkMatches, ChunkScanner, LOOK_BEHIND, PatternMatch, ScanLimits, Unfinished,
    UnfinishedReason,
};
pub use verdict::{
    Incomplete, Outcome, ScopeSeverity, Verdict, VerdictGroup, VerdictMatch, evaluate,
    plan_verdicts, scope_severity,
};
