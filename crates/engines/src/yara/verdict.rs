//! Verdicts.
use std::collections::BTreeMap;
use ramsift_layers::{ImageOffset, Severity};
use super::{RuleInfo, RuleSet, Unfinished, scan::PatternMatch};

/// A batch of rules decided together; small enough for one task.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VerdictGroup {
    /// Rules to decide.
    pub rules: Vec<u32>,
    /// Rules whose matches are needed for that (those above included); empty: none has a match.
    pub needs: Vec<u32>,
    /// Matches of `needs`, as counted by the caller.
    pub matches: u64,
}

/// What the chunk pass could not finish.
#[derive(Clone, Debug, Default)]
pub struct Incomplete {
    /// Some range of the image failed or is missing for every rule.
    pub failed_ranges: bool,
    /// `Unfinished` of all chunks.
    pub unfinished: Vec<Unfinished>,
}

/// One match listed with a verdict.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VerdictMatch { /// Index in `RuleInfo::patterns`.
 pub pattern: u32, /// Its name.
 pub name: String, /// First byte, image offset.
 pub offset: u64, /// Bytes.
 pub len: u64 }

/// A rule's outcome over the scope.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// The condition holds.
    Fired {
        /// First matches of each pattern.
        matches: Vec<VerdictMatch>,
        /// Number of matches per pattern (index as in `RuleInfo::patterns`); a lower bound where a cap was hit.
        counts: Vec<u64>,
        /// First match of all; `None` when the rule fired without one.
        first: Option<u64>,
        /// Distance from the first byte of the first match to that of the last.
        span: u64,
    },
    /// The condition does not hold.
    NotFired,
    /// It can't be told.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A rule and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict { /// Rule id.
 pub rule: u32, /// Outcome.
 pub outcome: Outcome }

/// Batches.
pub fn plan_verdicts(_rules: &RuleSet, _matched: &[(u32, u64)]) -> Vec<VerdictGroup> { unimplemented!() }

/// Decides a group. `matches`: of the rules in `group.needs`, all chunks, any order.
pub fn evaluate(_rules: &RuleSet, _group: &VerdictGroup, _matches: &[PatternMatch], _incomplete: &Incomplete) -> Vec<Verdict> { let _: BTreeMap<u8,u8>; unimplemented!() }

/// Severity of an image-scope verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeSeverity { /// Grade.
 pub severity: Severity, /// Why.
 pub reason: String, /// Spread over more than 1 MiB.
 pub dispersed: bool }

/// Severity of a verdict whose scope is the whole image.
pub fn scope_severity(_rule: &RuleInfo, _verdict: &Verdict) -> ScopeSeverity { let _: Option<ImageOffset>; unimplemented!() }
