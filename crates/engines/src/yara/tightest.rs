//! The tightest set of matches that satisfies a condition: what says how far apart the matches of a verdict lie.
//!
//! A rule that fires over an image of 64 GiB may have its strings anywhere; only if some of them that suffice lie together
//! is that evidence. More matches elsewhere change nothing about those.

use super::cond::Cond;
use super::eval::{PatternHits, decide};
use super::value::Truth;

/// Matches from which on a window is only halved, and not searched end by end.
const CROWD: usize = 1024;
/// Matches of one pattern around which windows are looked at.
const ANCHORS: usize = 256;
/// Matches that may be copied into windows for one rule.
const BUDGET: usize = 4 << 20;
/// Conditions that may be decided for one rule.
const DECISIONS: usize = 20_000;

/// First bytes of the first and the last match of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Cluster {
    pub(super) fn span(self) -> u64 {
        self.last - self.first
    }
}

struct Search<'a> {
    cond: &'a Cond,
    references: &'a [Truth],
    hits: &'a [PatternHits],
    copied: usize,
    decided: usize,
}

impl Search<'_> {
    fn exhausted(&self) -> bool {
        self.copied > BUDGET || self.decided > DECISIONS
    }

    /// Whether the condition holds with the matches that begin in a range alone.
    fn holds(&mut self, low: u64, high: u64) -> bool {
        let mut some = 0;
        let part: Vec<PatternHits> = self
            .hits
            .iter()
            .map(|h| {
                let from = h.list.partition_point(|m| m.0 < low);
                let to = h.list.partition_point(|m| m.0 <= high);
                let list = h.list.get(from..to).unwrap_or_default().to_vec();
                some += list.len();
                let count = list.len() as u64;
                PatternHits {
                    list,
                    count,
                    partial: false,
                }
            })
            .collect();
        self.copied += some;
        self.decided += 1;
        decide(self.cond, &part, self.references).0 == Truth::Yes
    }

    /// How many matches begin in a range.
    fn count(&self, low: u64, high: u64) -> usize {
        let of = |h: &PatternHits| {
            let from = h.list.partition_point(|m| m.0 < low);
            h.list.partition_point(|m| m.0 <= high) - from
        };
        self.hits.iter().map(of).sum()
    }

    /// The tightest cluster around a match, of at most `most` bytes. Where matches crowd, the half that suffices is
    /// taken until they don't, or no half does.
    fn around(&mut self, at: u64, most: u64) -> Option<Cluster> {
        let (mut low, mut high) = (at.saturating_sub(most), at.saturating_add(most));
        if !self.holds(low, high) {
            return None;
        }
        let mut half = most / 2;
        while self.count(low, high) > CROWD && !self.exhausted() {
            let halves = [
                (at.saturating_sub(half), at.saturating_add(half)),
                (at, at.saturating_add(2 * half)),
                (at.saturating_sub(2 * half), at),
            ];
            let Some(h) = halves
                .into_iter()
                .find(|h| *h != (low, high) && self.holds(h.0, h.1))
            else {
                break;
            };
            (low, high) = h;
            half /= 2;
        }
        if self.count(low, high) <= CROWD {
            return self.shrink(low, high);
        }
        let all = self.offsets(low, high);
        Some(Cluster {
            first: *all.first()?,
            last: *all.last()?,
        })
    }

    /// All first bytes in a range, sorted.
    fn offsets(&self, low: u64, high: u64) -> Vec<u64> {
        let mut out: Vec<u64> = self
            .hits
            .iter()
            .flat_map(|h| {
                let from = h.list.partition_point(|m| m.0 < low);
                let to = h.list.partition_point(|m| m.0 <= high);
                h.list.get(from..to).unwrap_or_default().iter().map(|m| m.0)
            })
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The tightest cluster in a range in which the condition holds: for each end the last start that suffices.
    fn shrink(&mut self, low: u64, high: u64) -> Option<Cluster> {
        let all = self.offsets(low, high);
        let mut best: Option<Cluster> = None;
        let mut from = 0;
        for (to, last) in all.iter().enumerate() {
            while from <= to && !self.exhausted() && self.holds(all[from], *last) {
                let c = Cluster {
                    first: all[from],
                    last: *last,
                };
                if best.is_none_or(|b| c.span() < b.span()) {
                    best = Some(c);
                }
                from += 1;
            }
            if self.exhausted() || best.is_some_and(|b| b.span() == 0) {
                break;
            }
        }
        best
    }
}

/// The tightest cluster of matches, none of whose first bytes lie further apart than `most`, that satisfies a condition;
/// `None` where there is none, or too many had to be tried.
pub(super) fn tightest(
    cond: &Cond,
    references: &[Truth],
    hits: &[PatternHits],
    most: u64,
) -> Option<Cluster> {
    let mut s = Search {
        cond,
        references,
        hits,
        copied: 0,
        decided: 0,
    };
    let mut by_count: Vec<&PatternHits> = hits.iter().filter(|h| !h.list.is_empty()).collect();
    // The rarest pattern has the fewest places that can be part of the answer.
    by_count.sort_by_key(|h| h.list.len());
    let mut best: Option<Cluster> = None;
    for h in by_count {
        for (at, _) in h.list.iter().take(ANCHORS) {
            if s.exhausted() || best.is_some_and(|b| b.span() == 0) {
                return best;
            }
            let found = s.around(*at, most).filter(|c| c.span() <= most);
            if let Some(c) = found
                && best.is_none_or(|b| c.span() < b.span())
            {
                best = Some(c);
            }
        }
        if best.is_some() {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use crate::yara::{
        Incomplete, Outcome, PatternMatch, RuleSet, evaluate, plan_verdicts, scope_severity,
    };
    use ramsift_layers::{ImageOffset, Severity};

    /// Severity and first byte of a rule of two patterns with matches at these places.
    fn grade(condition: &str, a: &[u64], b: &[u64]) -> (Severity, Option<u64>, bool) {
        // A pattern that no condition names is refused, unless its name begins with a line.
        let text = format!(
            "rule r {{ meta: severity = \"critical\" strings: $a = \"aaaa\" $_b = \"bbbb\" condition: {condition} }}"
        );
        let set = RuleSet::from_source("t", &text).unwrap();
        assert!(set.errors().is_empty(), "{:?}", set.errors());
        let hit = |pattern: u32, at: &u64| PatternMatch {
            rule: 0,
            pattern,
            offset: ImageOffset(*at),
            len: 4,
            xor_key: None,
            more: 0,
            last: ImageOffset(*at),
            window_base: ImageOffset(*at),
            window: 0..0,
        };
        let all: Vec<PatternMatch> = a
            .iter()
            .map(|x| hit(0, x))
            .chain(b.iter().map(|x| hit(1, x)))
            .collect();
        let group = plan_verdicts(&set, &[(0, all.len() as u64)]).remove(0);
        let v = evaluate(&set, &group, &all, &Incomplete::default()).remove(0);
        let first = match &v.outcome {
            Outcome::Fired { first, .. } => *first,
            other => panic!("{condition}: {other:?}"),
        };
        let s = scope_severity(&set.rules()[0], &v);
        (s.severity, first, s.dispersed)
    }

    const M: u64 = 1 << 20;

    #[test]
    fn more_matches_never_make_it_quieter() {
        assert_eq!(
            grade("any of them", &[5], &[]),
            (Severity::Critical, Some(5), false)
        );
        // Each of them suffices; that of the rarest pattern is told.
        assert_eq!(
            grade("any of them", &[5, 5 + 3 * M], &[900 * M]),
            (Severity::Critical, Some(900 * M), false)
        );
        // Two that suffice lie together, whatever lies elsewhere.
        assert_eq!(
            grade("all of them", &[0, 700 * M], &[700 * M + 9]),
            (Severity::Critical, Some(700 * M), false)
        );
        assert_eq!(grade("$a and $_b", &[0], &[3 * M]).0, Severity::Low);
        assert_eq!(
            grade("#a >= 3", &[0, 9 * M, 9 * M + 5, 9 * M + 8], &[]),
            (Severity::Critical, Some(9 * M), false)
        );
        assert!(grade("#a >= 3", &[0, 9 * M, 18 * M], &[]).2);
    }

    /// A rule that only refers to others lies where they do.
    #[test]
    fn a_rule_without_patterns_has_the_place_of_those_that_it_refers_to() {
        let text = "private rule one { strings: $a = \"aaaa\" condition: $a } \
            private rule far { strings: $a = \"bbbb\" $b = \"cccc\" condition: all of them } \
            rule both { meta: severity = \"critical\" condition: one and far } \
            rule only_far { meta: severity = \"critical\" condition: far }";
        let set = RuleSet::from_source("t", text).unwrap();
        assert!(set.errors().is_empty(), "{:?}", set.errors());
        let id = |name: &str| {
            let at = set.rules().iter().position(|r| r.identifier == name);
            u32::try_from(at.unwrap()).unwrap()
        };
        let hit = |rule: &str, pattern: u32, at: u64| PatternMatch {
            rule: id(rule),
            pattern,
            offset: ImageOffset(at),
            len: 4,
            xor_key: None,
            more: 0,
            last: ImageOffset(at),
            window_base: ImageOffset(at),
            window: 0..0,
        };
        let all = [
            hit("one", 0, 77),
            hit("far", 0, 5 * M),
            hit("far", 1, 9 * M),
        ];
        let counts = [(id("one"), 1), (id("far"), 2)];
        let mut seen = 0;
        for group in plan_verdicts(&set, &counts) {
            for v in evaluate(&set, &group, &all, &Incomplete::default()) {
                let rule = &set.rules()[v.rule as usize];
                let Outcome::Fired { first, .. } = &v.outcome else {
                    continue;
                };
                let s = scope_severity(rule, &v);
                match rule.identifier.as_str() {
                    "both" => assert_eq!((*first, s.severity), (Some(77), Severity::Critical)),
                    "only_far" => assert_eq!((*first, s.dispersed), (Some(5 * M), true)),
                    _ => continue,
                }
                seen += 1;
            }
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_crowd_costs_bounded_work() {
        let many: Vec<u64> = (0..200_000).map(|i| i * 64).collect();
        assert_eq!(
            grade("$a and $_b", &many, &[many[150_000] + 9]).0,
            Severity::Critical
        );
        assert!(grade("$a and $_b", &many, &[900 * M]).2);
        // So many that no half has enough.
        assert_eq!(grade("#a > 10000", &many, &[]).0, Severity::Critical);
    }
}
