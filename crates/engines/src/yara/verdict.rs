//! Verdicts: each memory-safe rule's condition, decided once over the matches of a whole scope.
//!
//! A memory-safe condition asks for nothing but where its patterns match, so no byte is read again:
//! the matches that the chunks reported are all it takes. Where some may be missing, the answer is
//! `Unknown` unless it is the same with and without them.

use std::collections::{BTreeMap, BTreeSet};

use ramsift_layers::Severity;
use serde::{Deserialize, Serialize};

use super::{
    RuleInfo, RuleSet, Unfinished, UnfinishedReason,
    eval::{PatternHits, decide},
    scan::PatternMatch,
    tightest::{Cluster, tightest},
    value::Truth,
};

/// Matches of one group, about; a group of one rule may have more.
const GROUP_MATCHES: u64 = 200_000;
/// Matches of one pattern listed with a verdict.
const LISTED: usize = 16;
/// A verdict over an image whose matches lie further apart says little.
const DISPERSED_SPAN: u64 = 1 << 20;

/// Rules decided together; small enough for one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictGroup {
    /// Rules to decide. Private rules are not among them.
    pub rules: Vec<u32>,
    /// Rules whose matches that takes: those above, those they refer to, and the global rules of
    /// their namespace. Empty when none of them has a match.
    pub needs: Vec<u32>,
    /// Number of those matches.
    pub matches: u64,
}

/// What the chunk pass could not finish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// Some range of the scope was not searched at all.
    pub failed_ranges: bool,
    /// Every [`Unfinished`] of every chunk.
    pub unfinished: Vec<Unfinished>,
}

/// One match listed with a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictMatch {
    /// Position in [`RuleInfo::patterns`].
    pub pattern: u32,
    /// The pattern's name.
    pub name: String,
    /// First byte, in the scope's address space.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A rule's outcome over the scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The condition holds.
    Fired {
        /// The first matches of each pattern, by pattern and offset. Of a presence-only rule the
        /// chunks list the first of each pattern.
        matches: Vec<VerdictMatch>,
        /// Matches of each pattern, by position in [`RuleInfo::patterns`]; a lower bound where a
        /// cap was hit.
        counts: Vec<u64>,
        /// First byte of the tightest set of matches that suffices, or of the first match where that is not known;
        /// `None` when it fired without one.
        first: Option<u64>,
        /// Distance between the first bytes of the first and the last match of that set, or of all.
        span: u64,
    },
    /// The condition doesn't hold.
    NotFired,
    /// It depends on what wasn't searched.
    Unknown {
        /// What is missing.
        reason: String,
    },
}

/// A rule and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Rule id.
    pub rule: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// Batches the memory-safe rules that can be reported: those that have a match, or refer to a rule
/// that has one, into groups of bounded size; all others into one group.
///
/// `matched` names each rule with a match and how many match records it has.
pub fn plan_verdicts(rules: &RuleSet, matched: &[(u32, u64)]) -> Vec<VerdictGroup> {
    let mut counts = BTreeMap::<u32, u64>::new();
    for (rule, n) in matched {
        *counts.entry(*rule).or_default() += n;
    }
    let empty = || VerdictGroup {
        rules: Vec::new(),
        needs: Vec::new(),
        matches: 0,
    };
    let (mut groups, mut open, mut silent) = (Vec::new(), empty(), empty());
    let mut needs = BTreeSet::new();
    for rule in rules
        .rules()
        .iter()
        .filter(|r| r.class.is_memory_safe() && !r.private)
    {
        let wanted = rules.dependencies(rule.id);
        let n: u64 = wanted.iter().filter_map(|r| counts.get(r)).sum();
        if n == 0 {
            silent.rules.push(rule.id);
            continue;
        }
        if !open.rules.is_empty() && open.matches + n > GROUP_MATCHES {
            open.needs = std::mem::take(&mut needs).into_iter().collect();
            groups.push(std::mem::replace(&mut open, empty()));
        }
        open.rules.push(rule.id);
        for r in wanted {
            if needs.insert(r) {
                open.matches += counts.get(&r).copied().unwrap_or(0);
            }
        }
    }
    open.needs = needs.into_iter().collect();
    groups.extend([open, silent].into_iter().filter(|g| !g.rules.is_empty()));
    groups
}

/// Decides the rules of a group over the scope.
///
/// `matches` are those of the rules in [`VerdictGroup::needs`] in all chunks, in any order; others
/// are ignored. Windows aren't looked at and may be empty.
pub fn evaluate(
    rules: &RuleSet,
    group: &VerdictGroup,
    matches: &[PatternMatch],
    incomplete: &Incomplete,
) -> Vec<Verdict> {
    let mut wanted = BTreeSet::new();
    for rule in &group.rules {
        wanted.extend(rules.dependencies(*rule));
    }
    let mut table = Table::new(rules, &wanted, matches, incomplete);
    // References point to earlier rules, so ascending order has every answer before its question.
    let mut truths = BTreeMap::<u32, (Truth, bool)>::new();
    for id in wanted {
        let (Some(info), Some(cond)) = (rules.rules().get(id as usize), rules.condition(id)) else {
            truths.insert(id, (Truth::Unknown, false));
            continue;
        };
        let references = known(&truths, info);
        let hits = table.hits.get(&id).map_or(&[][..], Vec::as_slice);
        truths.insert(id, decide(cond, hits, &references));
    }
    let cluster = |rule: &u32| {
        let (info, cond) = (rules.rules().get(*rule as usize)?, rules.condition(*rule)?);
        let hits = table.hits.get(rule)?;
        tightest(cond, &known(&truths, info), hits, DISPERSED_SPAN)
    };
    // A rule without patterns of its own lies where those lie that it refers to and that fired. One whose patterns did not
    // match lies nowhere: that they are missing is what it is about.
    let borrowed = |rule: &u32| {
        if !table.hits.get(rule)?.is_empty() {
            return None;
        }
        let fired = rules
            .dependencies(*rule)
            .into_iter()
            .filter(|r| r != rule && truths.get(r).is_some_and(|t| t.0 == Truth::Yes));
        let places = fired.filter_map(|r| {
            let hits = table.hits.get(&r)?;
            let first = hits
                .iter()
                .filter_map(|h| h.list.first())
                .map(|m| m.0)
                .min()?;
            let last = table.last.get(&r).copied().unwrap_or(first);
            Some(cluster(&r).unwrap_or(Cluster { first, last }))
        });
        // Of several the tightest: more of them never make it quieter.
        places.min_by_key(|c| c.span())
    };
    let verdict = |rule: &u32| {
        let globals = rules.globals_of(*rule);
        let all = globals.iter().chain([rule]);
        let mut truth = Truth::Yes;
        for r in all.clone() {
            match truths.get(r).map_or(Truth::Unknown, |t| t.0) {
                Truth::Yes => {}
                Truth::No | Truth::Undefined => truth = Truth::No,
                Truth::Unknown if truth == Truth::Yes => truth = Truth::Unknown,
                Truth::Unknown => {}
            }
        }
        let outcome = match truth {
            Truth::Yes => table.fired(rules, *rule, cluster(rule).or_else(|| borrowed(rule))),
            Truth::No | Truth::Undefined => Outcome::NotFired,
            Truth::Unknown => {
                let slow = all.clone().any(|r| truths.get(r).is_some_and(|t| t.1));
                Outcome::Unknown {
                    reason: unknown_reason(rules, *rule, incomplete, slow),
                }
            }
        };
        Verdict {
            rule: *rule,
            outcome,
        }
    };
    let verdicts = group.rules.iter().map(verdict).collect();
    table.hits.clear();
    verdicts
}

/// What became of the rules that one refers to.
fn known(truths: &BTreeMap<u32, (Truth, bool)>, info: &RuleInfo) -> Vec<Truth> {
    let of = |r: &u32| truths.get(r).map_or(Truth::Unknown, |t| t.0);
    info.references.iter().map(of).collect()
}

fn unknown_reason(rules: &RuleSet, rule: u32, incomplete: &Incomplete, slow: bool) -> String {
    if slow {
        return "its condition takes too long to decide over this many matches".to_owned();
    }
    let wanted = rules.dependencies(rule);
    let mut reasons = BTreeSet::new();
    for u in incomplete
        .unfinished
        .iter()
        .filter(|u| wanted.contains(&u.rule))
    {
        let name = rules
            .rules()
            .get(u.rule as usize)
            .map_or("?", |r| r.identifier.as_str());
        reasons.insert(match u.reason {
            UnfinishedReason::TimeLimit => format!("{name} ran out of time in some chunk"),
            UnfinishedReason::MatchCap => format!("{name} has more matches than are kept"),
        });
    }
    if incomplete.failed_ranges {
        reasons.insert("some ranges were not scanned".to_owned());
    }
    if reasons.is_empty() {
        reasons.insert("its condition can't be decided from matches".to_owned());
    }
    reasons.into_iter().collect::<Vec<_>>().join("; ")
}

/// The matches of a group by rule and pattern.
struct Table {
    hits: BTreeMap<u32, Vec<PatternHits>>,
    /// First byte of the last match of a rule.
    last: BTreeMap<u32, u64>,
}

impl Table {
    fn new(
        rules: &RuleSet,
        wanted: &BTreeSet<u32>,
        matches: &[PatternMatch],
        incomplete: &Incomplete,
    ) -> Self {
        let mut hits = BTreeMap::new();
        for id in wanted {
            let patterns = rules
                .rules()
                .get(*id as usize)
                .map_or(0, |r| r.patterns.len());
            let partial = incomplete.failed_ranges;
            hits.insert(
                *id,
                vec![
                    PatternHits {
                        partial,
                        ..Default::default()
                    };
                    patterns
                ],
            );
        }
        for u in &incomplete.unfinished {
            let Some(patterns) = hits.get_mut(&u.rule) else {
                continue;
            };
            match u.pattern {
                None => patterns.iter_mut().for_each(|p| p.partial = true),
                Some(p) => {
                    if let Some(p) = patterns.get_mut(p as usize) {
                        p.partial = true;
                    }
                }
            }
        }
        let mut last = BTreeMap::<u32, u64>::new();
        for m in matches {
            let pattern = hits
                .get_mut(&m.rule)
                .and_then(|p| p.get_mut(m.pattern as usize));
            let Some(pattern) = pattern else { continue };
            pattern.list.push((m.offset.0, m.len));
            pattern.count += 1 + m.more;
            let end = last.entry(m.rule).or_default();
            *end = (*end).max(m.offset.0).max(m.last.0);
        }
        for pattern in hits.values_mut().flatten() {
            pattern.list.sort_unstable();
        }
        Self { hits, last }
    }

    /// What is told of a rule that fired. `cluster`: the tightest of its matches that suffice.
    fn fired(&self, rules: &RuleSet, rule: u32, cluster: Option<Cluster>) -> Outcome {
        let hits = self.hits.get(&rule).map_or(&[][..], Vec::as_slice);
        let names = rules
            .rules()
            .get(rule as usize)
            .map_or(&[][..], |r| r.patterns.as_slice());
        let mut matches = Vec::new();
        for ((i, hits), name) in (0_u32..).zip(hits).zip(names) {
            // The first ones, and those of the cluster.
            let inside = |at: u64| cluster.is_some_and(|c| (c.first..=c.last).contains(&at));
            let head = hits.list.iter().take(LISTED);
            let rest = hits.list.iter().skip(LISTED).filter(|m| inside(m.0));
            matches.extend(
                head.chain(rest.take(LISTED))
                    .map(|&(offset, len)| VerdictMatch {
                        pattern: i,
                        name: name.clone(),
                        offset,
                        len,
                    }),
            );
        }
        let first = hits
            .iter()
            .filter_map(|h| h.list.first())
            .map(|m| m.0)
            .min();
        let last = self.last.get(&rule).copied();
        Outcome::Fired {
            matches,
            counts: hits.iter().map(|h| h.count).collect(),
            first: cluster.map(|c| c.first).or(first),
            span: cluster.map_or_else(
                || {
                    first
                        .zip(last)
                        .map_or(0, |(first, last)| last.saturating_sub(first))
                },
                Cluster::span,
            ),
        }
    }
}

/// How loud a verdict over a whole image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeSeverity {
    /// The grade of the finding.
    pub severity: Severity,
    /// Where it comes from.
    pub reason: String,
    /// No matches that suffice lie within 1 MiB.
    pub dispersed: bool,
}

/// The severity of a verdict whose scope is a whole image: the rule's own, capped at low when no matches that suffice
/// lie within 1 MiB. Three common strings somewhere in 64 GiB are noise.
pub fn scope_severity(rule: &RuleInfo, verdict: &Verdict) -> ScopeSeverity {
    let span = match &verdict.outcome {
        Outcome::Fired { span, .. } => *span,
        _ => 0,
    };
    let dispersed = span > DISPERSED_SPAN;
    let severity = if dispersed {
        rule.severity.min(Severity::Low)
    } else {
        rule.severity
    };
    let reason = if dispersed {
        format!(
            "{}; dispersed over {} MiB of the image",
            rule.severity_reason,
            span >> 20
        )
    } else {
        rule.severity_reason.clone()
    };
    ScopeSeverity {
        severity,
        reason,
        dispersed,
    }
}
