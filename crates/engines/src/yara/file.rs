//! Rules on whole files: carved, cached, or recovered from a process.
//!
//! Here every rule means what its author meant, file-oriented or not: modules see the file,
//! `filesize` is its size, offsets count from its start.

use std::{collections::BTreeMap, time::Duration};

use yara_x::{Rules, ScanResults, Scanner};

use super::{
    RuleSet, RulesError, ScanLimits, Unfinished, UnfinishedReason,
    externals::{FileFacts, NAMES, type_of},
    scan::ran,
    slow::{Budget, Clock, Moment, Ran, Slow, SlowRules, Trial, Which, run_set, time_out},
};

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

/// Runs a set on whole files. One per thread; it remembers which rules were slow.
///
/// A rule that ran out of time is run apart from the others from then on, and after a few times
/// only on shorter files than those.
pub struct FileScanner<'r> {
    rules: &'r RuleSet,
    limits: ScanLimits,
    only_file_oriented: bool,
    sets: Vec<Set<'r>>,
    slow: SlowRules,
    wants_md5: bool,
}

/// The ids of a set's rules by namespace and name.
type Ids<'r> = BTreeMap<(&'r str, &'r str), u32>;

/// A compiled set.
struct Set<'r> {
    scanner: Scanner<'r>,
    ids: Ids<'r>,
    /// The set without rules that are slow or not asked for, once it was too slow.
    trimmed: Option<Rules>,
    /// Time-outs of the whole, where it can't be divided.
    whole: Slow,
}

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
            sets.push(Set {
                scanner,
                ids,
                trimmed: None,
                whole: Slow::default(),
            });
        }
        Ok(Self {
            rules,
            limits,
            only_file_oriented: false,
            sets,
            slow: SlowRules::default(),
            wants_md5: rules.wants_md5(),
        })
    }

    /// Whether to report file-oriented rules only; by default all are reported, since a
    /// memory-safe rule that fires within one file says more than over an image.
    #[must_use]
    pub fn file_oriented_only(mut self, yes: bool) -> Self {
        self.only_file_oriented = yes;
        self
    }

    /// Scans a whole file of which nothing is known but its bytes.
    pub fn scan(&mut self, data: &[u8]) -> FileScan {
        self.scan_file(data, &FileFacts::default())
    }

    /// Whether rules ask for the MD5 of a file, which has to be computed for them.
    pub fn wants_md5(&self) -> bool {
        self.wants_md5
    }

    /// Scans a whole file.
    pub fn scan_file(&mut self, data: &[u8], facts: &FileFacts) -> FileScan {
        let mut out = FileScan::default();
        let clock = Clock::start();
        let budget = Budget::new(&self.limits, clock.now());
        let view = View {
            rules: self.rules,
            cap: self.limits.max_matches_per_pattern.max(1),
            only_file_oriented: self.only_file_oriented,
            clock: &clock,
            data,
            facts,
        };
        for set in &mut self.sets {
            let ids = set.ids.values().copied();
            let mut rules: Vec<u32> = ids.filter(|id| view.wanted(*id)).collect();
            rules.sort_unstable();
            let unfinished = if set.whole.hopeless(data.len()) {
                rules
            } else {
                view.scan_set(set, &rules, &mut self.slow, &budget, &mut out)
            };
            out.unfinished
                .extend(unfinished.into_iter().map(|rule| Unfinished {
                    rule,
                    pattern: None,
                    reason: UnfinishedReason::TimeLimit,
                }));
        }
        out.hits.sort_by_key(|h| h.rule);
        out.unfinished.sort();
        out
    }
}

/// A file being scanned.
#[derive(Clone, Copy)]
struct View<'a> {
    rules: &'a RuleSet,
    cap: usize,
    only_file_oriented: bool,
    clock: &'a Clock,
    data: &'a [u8],
    facts: &'a FileFacts,
}

impl View<'_> {
    /// Gives a scanner what is known of the file. A set that came compiled may lack a variable, or have it as another type.
    fn tell(&self, scanner: &mut Scanner<'_>) {
        for name in NAMES
            .iter()
            .filter(|n| self.rules.externals().is_of_files(n))
        {
            let value = match *name {
                "filetype" => type_of(self.data).or(Some(self.facts.filetype.as_str())),
                name => self.facts.get(name),
            };
            if let Some(value) = value
                && let Err(e) = scanner.set_global(name, value)
            {
                tracing::trace!(name, error = %e, "not told");
            }
        }
    }

    fn wanted(&self, id: u32) -> bool {
        let info = self.rules.rules().get(id as usize);
        info.is_some_and(|i| !self.only_file_oriented || i.is_for_files())
    }

    /// Runs one set; its rules that weren't finished.
    fn scan_set(
        &self,
        set: &mut Set<'_>,
        rules: &[u32],
        slow: &mut SlowRules,
        budget: &Budget,
        out: &mut FileScan,
    ) -> Vec<u32> {
        let mut usual = rules.to_vec();
        usual.retain(|r| !slow.contains(*r));
        let mut trial = FileTrial {
            view: *self,
            set,
            usual,
            out,
        };
        let report = run_set(&mut trial, rules, self.data.len(), slow, budget);
        if report.too_slow || report.learned {
            let mut rest = rules.to_vec();
            rest.retain(|r| !slow.contains(*r));
            set.trimmed = self.rules.subset(&rest);
            if report.indivisible {
                set.whole.note(self.data.len());
            }
        }
        report.unfinished
    }

    fn collect(
        &self,
        results: &ScanResults<'_, '_>,
        ids: &Ids<'_>,
        asked: &[u32],
        out: &mut FileScan,
    ) {
        for rule in results.matching_rules() {
            let id = ids.get(&(rule.namespace(), rule.identifier())).copied();
            // What they depend on is in the set as well, and reported with its own part.
            let Some(id) = id.filter(|id| asked.binary_search(id).is_ok()) else {
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
                if matches.len() >= self.cap {
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

/// A scan of one file with one set.
struct FileTrial<'a, 'r> {
    view: View<'a>,
    set: &'a mut Set<'r>,
    /// Rules that aren't known to be slow, ascending.
    usual: Vec<u32>,
    out: &'a mut FileScan,
}

impl Trial for FileTrial<'_, '_> {
    fn run(&mut self, which: Which<'_>, wall: Duration) -> Ran {
        let Self {
            view,
            set,
            usual,
            out,
        } = self;
        let (apart, asked) = match which {
            Which::Usual => (None, usual.as_slice()),
            Which::Only(rules) => match view.rules.subset(rules) {
                Some(compiled) => (Some(compiled), rules),
                None => return Ran::Impossible,
            },
        };
        let ids = &set.ids;
        let mut finish = |scanner: &mut Scanner<'_>| {
            scanner.set_timeout(time_out(wall));
            view.tell(scanner);
            match scanner.scan(view.data) {
                Ok(results) => {
                    view.collect(&results, ids, asked, out);
                    Ran::Done
                }
                Err(e) => ran(&e),
            }
        };
        match apart.as_ref().or(set.trimmed.as_ref()) {
            Some(compiled) => {
                let mut scanner = Scanner::new(compiled);
                scanner.max_matches_per_pattern(view.cap);
                finish(&mut scanner)
            }
            None => finish(&mut set.scanner),
        }
    }

    fn now(&self) -> Moment {
        self.view.clock.now()
    }
}
