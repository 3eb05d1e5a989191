//! Rules on whole files: carved, cached, or recovered from a process.
//!
//! Here every rule means what its author meant, file-oriented or not: modules see the file,
//! `filesize` is its size, offsets count from its start.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use yara_x::{ScanResults, Scanner};

use super::{RuleSet, RulesError, ScanLimits, Unfinished, UnfinishedReason};

/// Matches of a pattern that are listed; all are counted, up to the cap.
const LISTED: usize = 16;

/// A match in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMatch {
    /// Position in [`RuleInfo::patterns`](super::RuleInfo::patterns).
    pub pattern: u32,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Key of a pattern with `xor`.
    pub xor_key: Option<u8>,
}

/// A rule that fired on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHit {
    /// Rule id.
    pub rule: u32,
    /// The first matches of each pattern.
    pub matches: Vec<FileMatch>,
    /// Matches of each pattern, by position in [`RuleInfo::patterns`](super::RuleInfo::patterns).
    pub counts: Vec<u64>,
}

/// What the rules say of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileScan {
    /// Rules that fired, private ones apart, by id.
    pub hits: Vec<FileHit>,
    /// Rules that weren't decided, or not on all of their matches.
    pub unfinished: Vec<Unfinished>,
}

/// Runs a set on whole files. One per thread.
pub struct FileScanner<'r> {
    rules: &'r RuleSet,
    limits: ScanLimits,
    only_file_oriented: bool,
    sets: Vec<(Scanner<'r>, Ids<'r>)>,
}

/// The ids of a set's rules by namespace and name.
type Ids<'r> = BTreeMap<(&'r str, &'r str), u32>;

impl std::fmt::Debug for FileScanner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileScanner")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl<'r> FileScanner<'r> {
    /// A scanner for all rules of a set. The first one of a set that came from bytes has to generate
    /// code, about a second for 10,000 rules.
    pub fn new(rules: &'r RuleSet, limits: ScanLimits) -> Result<Self, RulesError> {
        let mut sets = Vec::new();
        for (first, compiled) in rules.full()? {
            let mut ids = BTreeMap::new();
            for (id, rule) in (first..).zip(compiled.iter()) {
                ids.insert((rule.namespace(), rule.identifier()), id);
            }
            let mut scanner = Scanner::new(compiled);
            scanner.max_matches_per_pattern(limits.max_matches_per_pattern.max(1));
            // A quarter for all together: the rest is for finding out which rule is slow.
            scanner.set_timeout(first_attempt(&limits));
            sets.push((scanner, ids));
        }
        Ok(Self {
            rules,
            limits,
            only_file_oriented: false,
            sets,
        })
    }

    /// Whether to report file-oriented rules only; by default all are reported, since a
    /// memory-safe rule that fires within one file says more than over an image.
    #[must_use]
    pub fn file_oriented_only(mut self, yes: bool) -> Self {
        self.only_file_oriented = yes;
        self
    }

    /// Scans a whole file.
    pub fn scan(&mut self, data: &[u8]) -> FileScan {
        let mut out = FileScan::default();
        let deadline = Instant::now() + self.limits.per_chunk;
        let mut sets = std::mem::take(&mut self.sets);
        for (scanner, ids) in &mut sets {
            match scanner.scan(data) {
                Ok(results) => self.collect(&results, ids, |_| true, &mut out),
                Err(_) => {
                    let wanted = ids.values().copied().filter(|id| self.wanted(*id));
                    self.bisect(&wanted.collect::<Vec<_>>(), ids, data, deadline, &mut out);
                }
            }
        }
        self.sets = sets;
        out.hits.sort_by_key(|h| h.rule);
        out.unfinished.sort();
        out
    }

    fn wanted(&self, id: u32) -> bool {
        let info = self.rules.rules().get(id as usize);
        info.is_some_and(|i| !self.only_file_oriented || !i.class.is_memory_safe())
    }

    /// Runs `rules` apart from others, in halves where they run out of time together.
    fn bisect(
        &self,
        rules: &[u32],
        ids: &Ids<'_>,
        data: &[u8],
        deadline: Instant,
        out: &mut FileScan,
    ) {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(self.limits.per_rule);
        let compiled = if left.is_zero() {
            None
        } else {
            self.rules.subset(rules)
        };
        if let Some(compiled) = &compiled {
            let mut scanner = Scanner::new(compiled);
            scanner.max_matches_per_pattern(self.limits.max_matches_per_pattern.max(1));
            scanner.set_timeout(left);
            if let Ok(results) = scanner.scan(data) {
                // What they depend on is in the set as well, and reported with its own part.
                return self.collect(&results, ids, |id| rules.contains(&id), out);
            }
        }
        if rules.len() <= 1 || compiled.is_none() {
            let reason = UnfinishedReason::TimeLimit;
            let late = |rule: &u32| Unfinished {
                rule: *rule,
                pattern: None,
                reason,
            };
            out.unfinished.extend(rules.iter().map(late));
            return;
        }
        let (left, right) = rules.split_at(rules.len() / 2);
        self.bisect(left, ids, data, deadline, out);
        self.bisect(right, ids, data, deadline, out);
    }

    fn collect(
        &self,
        results: &ScanResults<'_, '_>,
        ids: &Ids<'_>,
        asked: impl Fn(u32) -> bool,
        out: &mut FileScan,
    ) {
        let cap = self.limits.max_matches_per_pattern.max(1);
        for rule in results.matching_rules() {
            let id = ids.get(&(rule.namespace(), rule.identifier())).copied();
            let Some(id) = id.filter(|id| asked(*id) && self.wanted(*id)) else {
                continue;
            };
            let mut hit = FileHit {
                rule: id,
                matches: Vec::new(),
                counts: Vec::new(),
            };
            for (number, pattern) in (0..).zip(rule.patterns().include_private(true)) {
                let matches = pattern.matches();
                hit.counts.push(matches.len() as u64);
                if matches.len() >= cap {
                    out.unfinished.push(Unfinished {
                        rule: id,
                        pattern: Some(number),
                        reason: UnfinishedReason::MatchCap,
                    });
                }
                hit.matches.extend(matches.take(LISTED).map(|m| FileMatch {
                    pattern: number,
                    offset: m.range().start as u64,
                    len: m.range().len() as u64,
                    xor_key: m.xor_key(),
                }));
            }
            out.hits.push(hit);
        }
    }
}

fn first_attempt(limits: &ScanLimits) -> Duration {
    (limits.per_chunk / 4).max(limits.per_rule)
}
