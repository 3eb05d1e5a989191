//! Whole files.
use std::marker::PhantomData;
use super::{RuleSet, RulesError, ScanLimits, Unfinished};

/// One match in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMatch { /// Index in `RuleInfo::patterns`.
 pub pattern: u32, /// In the file.
 pub offset: u64, /// Bytes.
 pub len: u64, /// Key of an `xor` pattern.
 pub xor_key: Option<u8> }

/// A rule that fired on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHit { /// Rule id.
 pub rule: u32, /// First matches of each pattern.
 pub matches: Vec<FileMatch>, /// Number of matches per pattern.
 pub counts: Vec<u64> }

/// A file's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileScan { /// Fired, not private.
 pub hits: Vec<FileHit>, /// Not decided.
 pub unfinished: Vec<Unfinished> }

/// Runs rules on whole files. One per thread.
#[derive(Debug)]
pub struct FileScanner<'r> { _p: PhantomData<&'r ()> }
impl<'r> FileScanner<'r> {
    /// All rules.
    pub fn new(_rules: &'r RuleSet, _limits: ScanLimits) -> Result<Self, RulesError> { unimplemented!() }
    /// Report only file-oriented rules (default: all rules).
    #[must_use]
    pub fn file_oriented_only(self, _yes: bool) -> Self { self }
    /// Scans.
    pub fn scan(&mut self, _data: &[u8]) -> FileScan { unimplemented!() }
}
