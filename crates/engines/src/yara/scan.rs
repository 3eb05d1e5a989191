//! The chunk pass.
use std::{marker::PhantomData, ops::Range, time::Duration};
use ramsift_layers::ImageOffset;
use super::RuleSet;

/// Bounds on what a scan may cost.
#[derive(Clone, Debug)]
pub struct ScanLimits {
    /// Time for all rules over one chunk or file.
    pub per_chunk: Duration,
    /// Time for one slow rule over one chunk or file.
    pub per_rule: Duration,
    /// Matches of one pattern in one chunk or file after which the rest isn't looked for.
    pub max_matches_per_pattern: usize,
    /// Bytes of context kept before a reported match.
    pub window_before: usize,
    /// Bytes of context kept after the start of a reported match.
    pub window_after: usize,
}
impl Default for ScanLimits {
    fn default() -> Self {
        Self { per_chunk: Duration::from_secs(120), per_rule: Duration::from_secs(5), max_matches_per_pattern: 10_000, window_before: 64, window_after: 192 }
    }
}

/// Why matches of a rule may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum UnfinishedReason { /// time
 TimeLimit, /// cap
 MatchCap }

/// A rule (or one of its patterns) that wasn't searched for to the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Unfinished { /// rule id
 pub rule: u32, /// all patterns when `None`
 pub pattern: Option<u32>, /// why
 pub reason: UnfinishedReason }

/// One reported match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternMatch {
    /// Rule id.
    pub rule: u32,
    /// Index in `RuleInfo::patterns`.
    pub pattern: u32,
    /// First byte.
    pub offset: ImageOffset,
    /// Bytes.
    pub len: u64,
    /// Key of an `xor` pattern.
    pub xor_key: Option<u8>,
    /// Further matches of this pattern in this chunk that aren't listed.
    pub more: u64,
    /// First byte of the last of them; equals `offset` when there are none.
    pub last: ImageOffset,
    /// Image offset of the window's first byte.
    pub window_base: ImageOffset,
    /// Where the window lies in [`ChunkMatches::arena`]; empty in records made for a verdict.
    pub window: Range<u32>,
}

/// What a chunk scan found.
#[derive(Clone, Debug, Default)]
pub struct ChunkMatches {
    /// Matches that start in the core, by rule, pattern and offset.
    pub matches: Vec<PatternMatch>,
    /// The windows' bytes.
    pub arena: Vec<u8>,
    /// What is missing.
    pub unfinished: Vec<Unfinished>,
    /// Nothing is missing.
    pub complete: bool,
}
impl ChunkMatches {
    /// The bytes around a match.
    pub fn window(&self, m: &PatternMatch) -> &[u8] {
        self.arena.get(m.window.start as usize..m.window.end as usize).unwrap_or_default()
    }
}

/// Searches chunks for the patterns of the memory-safe rules. One per thread.
#[derive(Debug)]
pub struct ChunkScanner<'r> { _p: PhantomData<&'r ()> }
impl<'r> ChunkScanner<'r> {
    /// A scanner.
    pub fn new(_rules: &'r RuleSet, _limits: ScanLimits) -> Self { unimplemented!() }
    /// `data[0]` at image offset `base`; `core` in data is owned; `sparse`: zero ranges in data.
    pub fn scan(&mut self, _data: &[u8], _base: ImageOffset, _core: Range<usize>, _sparse: &[Range<u64>]) -> ChunkMatches { unimplemented!() }
}
