//! Which rules are slow: what a scan does when its rules run out of time.
//!
//! ```text
//! all rules together, but those known to be slow --too slow--> halves --too slow--> halves ... --> one
//!                            those known to be slow, apart --too slow--> halves ...         --> one
//! ```
//!
//! Limits are on the processor time of the thread that scans, so that a rule isn't slow because its
//! node is busy. yara-x knows the time of day only, in whole seconds of a timer that all scans
//! share; so an attempt that ended before its rules had their time is made again with more. Rules
//! that the whole scan has no time left for are unfinished, but not called slow.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::ScanLimits;

/// How much longer than its limit a scan may take by the time of day.
const PATIENCE: u32 = 4;
/// Attempts of the same rules on a busy node.
const ATTEMPTS: u32 = 5;
/// After so many time-outs a rule isn't run any more on data as long as that.
const STRIKES: u32 = 3;
/// yara-x's timer ticks once a second, and the first tick may come at once.
const TICK: Duration = Duration::from_secs(1);

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moment {
    /// Processor time of this thread.
    pub(super) cpu: Duration,
    /// Time of day, from some point on.
    pub(super) wall: Duration,
}

impl Moment {
    fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            wall: self.wall.saturating_sub(before.wall),
        }
    }
}

/// Tells the time of one scan.
#[derive(Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Moment {
        let mut t = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a timespec on this stack, and the clock id is valid.
        let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
        let wall = self.0.elapsed();
        let cpu = match (done, u64::try_from(t.tv_sec), u32::try_from(t.tv_nsec)) {
            (0, Ok(s), Ok(n)) => Duration::new(s, n),
            _ => wall,
        };
        Moment { cpu, wall }
    }
}

/// The rules of one run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    /// All that aren't known to be slow, as compiled once.
    Usual,
    /// These alone.
    Only(&'a [u32]),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// The rules are finished; the trial has what they found.
    Done,
    /// The time was up.
    OutOfTime,
    /// They can't be run apart from others, or not at all.
    Impossible,
}

/// One scan of one piece of data, which can be run with some of its rules.
pub(super) trait Trial {
    /// Runs rules to their end, or for `wall` by the time of day.
    fn run(&mut self, which: Which<'_>, wall: Duration) -> Ran;

    /// The time.
    fn now(&self) -> Moment;
}

/// The time-out to set for yara-x so that a scan has at least `wall`.
pub(super) fn time_out(wall: Duration) -> Duration {
    wall.saturating_add(TICK)
}

/// The time for one scan.
#[derive(Debug)]
pub(super) struct Budget {
    start: Moment,
    all: Duration,
    per_rule: Duration,
}

impl Budget {
    pub(super) fn new(limits: &ScanLimits, start: Moment) -> Self {
        Self {
            start,
            all: limits.per_chunk,
            per_rule: limits.per_rule,
        }
    }

    /// A quarter for all together: the rest is for finding out which rule it is.
    fn together(&self) -> Duration {
        (self.all / 4).max(self.per_rule)
    }

    /// What is left, unless that is nothing.
    fn left(&self, now: Moment) -> Option<Moment> {
        let spent = now.since(self.start);
        let left = Moment {
            cpu: self.all.saturating_sub(spent.cpu),
            wall: self.all.saturating_mul(PATIENCE).saturating_sub(spent.wall),
        };
        (!left.cpu.is_zero() && !left.wall.is_zero()).then_some(left)
    }
}

/// Rules that ran out of time on earlier data.
#[derive(Debug, Default)]
pub(super) struct SlowRules(BTreeMap<u32, Slow>);

/// Time-outs of one rule or set.
#[derive(Debug, Default)]
pub(super) struct Slow {
    times: u32,
    shortest: usize,
}

impl Slow {
    pub(super) fn note(&mut self, len: usize) {
        self.shortest = match self.times {
            0 => len,
            _ => self.shortest.min(len),
        };
        self.times = self.times.saturating_add(1);
    }

    /// Whether it isn't worth another try on data of this length.
    pub(super) fn hopeless(&self, len: usize) -> bool {
        self.times >= STRIKES && len >= self.shortest
    }
}

impl SlowRules {
    pub(super) fn contains(&self, rule: u32) -> bool {
        self.0.contains_key(&rule)
    }

    fn note(&mut self, rule: u32, len: usize) {
        self.0.entry(rule).or_default().note(len);
    }

    fn hopeless(&self, rule: u32, len: usize) -> bool {
        self.0.get(&rule).is_some_and(|s| s.hopeless(len))
    }
}

/// What became of the rules of a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Rules that weren't finished.
    pub(super) unfinished: Vec<u32>,
    /// The usual rules are too slow together.
    pub(super) too_slow: bool,
    /// More rules than before are known to be slow.
    pub(super) learned: bool,
    /// Some rules can't be run apart.
    pub(super) indivisible: bool,
}

/// Runs all of a set's `rules` on data of `len` bytes, and finds out which are slow if need be.
pub(super) fn run_set(
    trial: &mut impl Trial,
    rules: &[u32],
    len: usize,
    slow: &mut SlowRules,
    budget: &Budget,
) -> Report {
    let mut report = Report::default();
    let (apart, usual): (Vec<u32>, Vec<u32>) = rules.iter().partition(|r| slow.contains(**r));
    let (hopeless, apart): (Vec<u32>, Vec<u32>) =
        apart.into_iter().partition(|r| slow.hopeless(*r, len));
    report.unfinished.extend(hopeless);
    let mut named = Vec::new();
    let mut groups = VecDeque::new();
    match attempt(trial, Which::Usual, budget.together(), budget) {
        Attempt::Done => {}
        Attempt::NoTime => report.unfinished.extend(&usual),
        Attempt::Impossible => {
            report.unfinished.extend(&usual);
            report.indivisible = true;
        }
        Attempt::TooSlow => {
            report.too_slow = true;
            divide(&usual, &mut groups, &mut named);
        }
    }
    if !apart.is_empty() {
        groups.push_back(apart);
    }
    // By level, so that all but the slow rules are soon done.
    while let Some(group) = groups.pop_front() {
        match attempt(trial, Which::Only(&group), budget.per_rule, budget) {
            Attempt::Done => {}
            Attempt::TooSlow => divide(&group, &mut groups, &mut named),
            Attempt::NoTime => report.unfinished.extend(group),
            Attempt::Impossible => {
                report.unfinished.extend(group);
                report.indivisible = true;
            }
        }
    }
    for rule in named {
        tracing::debug!(rule, "rule ran out of time");
        report.learned |= !slow.contains(rule);
        slow.note(rule, len);
        report.unfinished.push(rule);
    }
    report.unfinished.sort_unstable();
    report
}

/// What is to be done with rules that are too slow together. One alone is too slow itself.
fn divide(rules: &[u32], groups: &mut VecDeque<Vec<u32>>, named: &mut Vec<u32>) {
    if let [rule] = rules {
        return named.push(*rule);
    }
    let (left, right) = rules.split_at(rules.len() / 2);
    for half in [left, right] {
        if !half.is_empty() {
            groups.push_back(half.to_vec());
        }
    }
}

enum Attempt {
    Done,
    /// They had the time that they were given.
    TooSlow,
    /// They had not, and there is no more.
    NoTime,
    Impossible,
}

/// Runs rules until they are done or have had `limit` of processor time.
fn attempt(trial: &mut impl Trial, which: Which<'_>, limit: Duration, budget: &Budget) -> Attempt {
    let mut wall = limit;
    for _ in 0..ATTEMPTS {
        let before = trial.now();
        let Some(left) = budget.left(before) else {
            return Attempt::NoTime;
        };
        match trial.run(which, wall.min(left.wall)) {
            Ran::Done => return Attempt::Done,
            Ran::Impossible => return Attempt::Impossible,
            Ran::OutOfTime => {}
        }
        let had = trial.now().since(before).cpu;
        // Some processor time always goes elsewhere.
        if had >= limit - limit / 10 {
            return Attempt::TooSlow;
        }
        if had >= left.cpu {
            return Attempt::NoTime;
        }
        // Others had the processor. It isn't known how much longer it takes, but not less than this.
        let share = limit.as_secs_f64() / had.as_secs_f64().max(1e-3);
        let more = wall.as_secs_f64() * share.clamp(1.5, 4.0);
        wall = Duration::try_from_secs_f64(more).unwrap_or(Duration::MAX);
    }
    Attempt::NoTime
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A machine with a clock of its own: rules take what they are said to take, and `load` times
    /// as long by the time of day.
    struct Machine {
        costs: BTreeMap<u32, Duration>,
        usual: Vec<u32>,
        load: f64,
        divisible: bool,
        now: Moment,
        done: BTreeSet<u32>,
        runs: Vec<Vec<u32>>,
    }

    impl Machine {
        fn new(seconds: impl IntoIterator<Item = (u32, f64)>) -> Self {
            let costs = seconds.into_iter();
            let costs = costs.map(|(r, s)| (r, Duration::from_secs_f64(s)));
            let costs: BTreeMap<_, _> = costs.collect();
            Self {
                usual: costs.keys().copied().collect(),
                costs,
                load: 1.0,
                divisible: true,
                now: Moment {
                    cpu: Duration::from_secs(77),
                    wall: Duration::ZERO,
                },
                done: BTreeSet::new(),
                runs: Vec::new(),
            }
        }

        fn scan(&mut self, len: usize, slow: &mut SlowRules) -> Report {
            let rules: Vec<u32> = self.costs.keys().copied().collect();
            self.done.clear();
            self.runs.clear();
            self.usual = rules.clone();
            self.usual.retain(|r| !slow.contains(*r));
            let limits = ScanLimits {
                per_chunk: Duration::from_secs(120),
                per_rule: Duration::from_secs(5),
                ..ScanLimits::default()
            };
            let budget = Budget::new(&limits, self.now);
            run_set(self, &rules, len, slow, &budget)
        }
    }

    impl Trial for Machine {
        fn run(&mut self, which: Which<'_>, wall: Duration) -> Ran {
            let rules = match which {
                Which::Usual => self.usual.clone(),
                Which::Only(_) if !self.divisible => return Ran::Impossible,
                Which::Only(rules) => rules.to_vec(),
            };
            let cost: Duration = rules.iter().map(|r| self.costs[r]).sum();
            self.runs.push(rules.clone());
            let most = wall.div_f64(self.load);
            self.now.cpu += cost.min(most);
            self.now.wall += cost.min(most).mul_f64(self.load);
            if cost > most {
                return Ran::OutOfTime;
            }
            self.done.extend(rules);
            Ran::Done
        }

        fn now(&self) -> Moment {
            self.now
        }
    }

    fn quick(n: u32) -> impl Iterator<Item = (u32, f64)> {
        (0..n).map(|r| (r, 0.001))
    }

    #[test]
    fn one_slow_rule_of_many_is_named_and_the_others_finish() {
        let mut machine = Machine::new(quick(1000).chain([(500, 1e6)]));
        let mut slow = SlowRules::default();
        let report = machine.scan(1, &mut slow);
        assert_eq!(report.unfinished, [500]);
        assert!(report.too_slow && report.learned);
        assert_eq!(machine.done.len(), 999);
        // The next time it runs apart, and nothing is learned.
        let report = machine.scan(1, &mut slow);
        assert_eq!(report.unfinished, [500]);
        assert!(!report.too_slow && !report.learned);
        assert_eq!(machine.runs.len(), 2);
        assert_eq!(machine.done.len(), 999);
    }

    #[test]
    fn a_busy_node_makes_no_rule_slow() {
        let mut machine = Machine::new(quick(100).chain([(7, 4.0), (8, 1e6)]));
        machine.load = 2.5;
        let mut slow = SlowRules::default();
        assert_eq!(machine.scan(1, &mut slow).unfinished, [8]);
        assert!(machine.done.contains(&7));
        // So busy that nothing can be found out: then nothing is named.
        machine.load = 1e6;
        let mut slow = SlowRules::default();
        let report = machine.scan(1, &mut slow);
        assert_eq!(report.unfinished.len(), 100);
        assert!(!report.learned && (0..100).all(|r| !slow.contains(r)));
        // And when the others are gone, all is as it should be.
        machine.load = 1.0;
        assert_eq!(machine.scan(1, &mut slow).unfinished, [8]);
    }

    #[test]
    fn rules_that_are_slow_only_together_all_finish() {
        let mut machine = Machine::new((0..12).map(|r| (r, 3.0)));
        let report = machine.scan(1, &mut SlowRules::default());
        assert_eq!((report.unfinished, report.learned), (vec![], false));
        assert_eq!(machine.done.len(), 12);
    }

    #[test]
    fn what_there_is_no_time_for_is_unfinished_but_not_slow() {
        let mut machine = Machine::new((0..100).map(|r| (r, 1e6)));
        let mut slow = SlowRules::default();
        let report = machine.scan(1, &mut slow);
        assert_eq!(report.unfinished.len(), 100);
        let named = (0..100).filter(|r| slow.contains(*r)).count();
        assert!(named < 20, "{named}");
        // Scan by scan, more is known.
        machine.scan(1, &mut slow);
        assert!((0..100).filter(|r| slow.contains(*r)).count() >= named);
    }

    #[test]
    fn a_rule_that_was_slow_thrice_is_run_on_shorter_data_only() {
        let mut machine = Machine::new(quick(10).chain([(3, 1e6)]));
        let mut slow = SlowRules::default();
        for len in [1000, 500, 2000] {
            assert_eq!(machine.scan(len, &mut slow).unfinished, [3]);
            assert!(machine.runs.contains(&vec![3]));
        }
        assert_eq!(machine.scan(500, &mut slow).unfinished, [3]);
        assert!(!machine.runs.concat().contains(&3));
        machine.costs.insert(3, Duration::from_millis(1));
        assert!(machine.scan(499, &mut slow).unfinished.is_empty());
        assert!(machine.done.contains(&3));
    }

    #[test]
    fn a_set_that_can_not_be_divided_is_reported_whole() {
        let mut machine = Machine::new(quick(10).chain([(3, 1e6)]));
        machine.divisible = false;
        let mut slow = SlowRules::default();
        let report = machine.scan(1, &mut slow);
        assert_eq!(report.unfinished, (0..10).collect::<Vec<_>>());
        assert!(report.too_slow && report.indivisible && !report.learned);
    }

    #[test]
    fn the_clock_goes_forward() {
        let clock = Clock::start();
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now.cpu >= last.cpu && now.wall >= last.wall);
            last = now;
        }
    }

    proptest! {
        #[test]
        fn every_rule_is_done_or_told_and_no_quick_one_is_named(
            costs in proptest::collection::vec(0.0..12.0_f64, 1..60),
            load in 1.0..20.0_f64,
        ) {
            let mut machine = Machine::new((0..).zip(costs.iter().copied()));
            machine.load = load;
            let mut slow = SlowRules::default();
            let report = machine.scan(1, &mut slow);
            for (rule, cost) in (0..).zip(costs) {
                let told = report.unfinished.iter().filter(|r| **r == rule).count();
                prop_assert_eq!(usize::from(!machine.done.contains(&rule)), told);
                prop_assert!(!slow.contains(rule) || cost > 4.4, "{} takes {} s", rule, cost);
            }
            // All of the budget at most, and what the last attempt has over.
            prop_assert!(machine.now.wall <= Duration::from_secs(4 * 120 + 1));
        }
    }
}
