//! Property: scanning in chunks and deciding once gives what yara-x gives on the whole buffer.
//!
//! Rules, data and chunk borders are generated; the oracle is a plain `yara_x::Scanner`.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ramsift_engines::yara::{
    ChunkScanner, Incomplete, LOOK_BEHIND, Outcome, PatternMatch, RuleSet, ScanLimits, evaluate,
    plan_verdicts,
};
use ramsift_layers::ImageOffset;

/// Longer than any match of the generated patterns.
const OVERLAP: usize = 1024;

/// A rule's name, and for each pattern its matches as (offset, length).
type Fired = BTreeMap<String, Vec<Vec<(u64, u64)>>>;

/// What yara-x says of the whole buffer.
fn whole(source: &str, data: &[u8]) -> Fired {
    let mut compiler = yara_x::Compiler::new();
    compiler.add_source(source).ok();
    // Without a rule that asks for a search, matches of rules that fire without one aren't looked
    // for.
    compiler.new_namespace("asking");
    compiler
        .add_source(r#"rule ask { strings: $a = "ask me!" condition: #a >= 0 }"#)
        .unwrap();
    let rules = compiler.build();
    let mut scanner = yara_x::Scanner::new(&rules);
    let results = scanner.scan(data).unwrap();
    let mut fired = Fired::new();
    for rule in results
        .matching_rules()
        .filter(|r| r.namespace() != "asking")
    {
        let matches = |p: yara_x::Pattern<'_, '_>| {
            p.matches()
                .map(|m| (m.range().start as u64, m.range().len() as u64))
                .collect()
        };
        let patterns = rule.patterns().include_private(true).map(matches).collect();
        fired.insert(rule.identifier().to_owned(), patterns);
    }
    fired
}

/// All matches that chunks of `core` bytes report.
fn chunked(rules: &RuleSet, data: &[u8], core: usize) -> Vec<PatternMatch> {
    let mut scanner = ChunkScanner::new(rules, ScanLimits::default());
    // Every long run of zeros, to the byte: nothing but the scanner's own margin is left around it.
    let mut sparse = Vec::new();
    let mut at = 0;
    for run in data.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
        if run[0] == 0 && run.len() > 1024 {
            sparse.push(at as u64..(at + run.len()) as u64);
        }
        at += run.len();
    }
    let mut all = Vec::new();
    for start in (0..data.len()).step_by(core) {
        let end = (start + core).min(data.len());
        let from = start.saturating_sub(LOOK_BEHIND);
        let to = (end + OVERLAP).min(data.len());
        let found = scanner.scan(
            &data[from..to],
            ImageOffset(from as u64),
            start - from..end - from,
            &sparse,
        );
        assert!(found.complete, "{:?}", found.unfinished);
        for m in &found.matches {
            assert!((start as u64..end as u64).contains(&m.offset.0));
            let at = (m.offset.0 - m.window_base.0) as usize;
            let window = found.window(m);
            let shown = (m.len as usize).min(window.len().saturating_sub(at));
            let real = &data[m.offset.0 as usize..][..shown];
            assert!(window.is_empty() || &window[at..at + shown] == real);
        }
        all.extend(found.matches);
    }
    all
}

fn check(source: &str, data: &[u8], core: usize) {
    let loaded = RuleSet::from_source("rules.yar", source).unwrap();
    let rules = RuleSet::from_bytes(&loaded.to_bytes()).unwrap();
    assert_eq!(rules.rules(), loaded.rules());
    let matches = chunked(&rules, data, core);
    let mut matched = BTreeMap::<u32, u64>::new();
    for m in &matches {
        *matched.entry(m.rule).or_default() += 1;
    }
    let matched: Vec<_> = matched.into_iter().collect();
    let oracle = whole(source, data);
    let mut decided = 0;
    for group in plan_verdicts(&rules, &matched) {
        let own: Vec<_> = matches
            .iter()
            .filter(|m| group.needs.contains(&m.rule))
            .cloned()
            .collect();
        for verdict in evaluate(&rules, &group, &own, &Incomplete::default()) {
            let info = &rules.rules()[verdict.rule as usize];
            decided += 1;
            let expected = oracle.get(&info.identifier);
            let Outcome::Fired {
                matches,
                counts,
                first,
                span,
            } = &verdict.outcome
            else {
                assert_eq!(
                    verdict.outcome,
                    Outcome::NotFired,
                    "{}\n{source}",
                    info.identifier
                );
                assert!(
                    expected.is_none(),
                    "{} should fire\n{source}",
                    info.identifier
                );
                continue;
            };
            let Some(expected) = expected else {
                panic!("{} should not fire\n{source}", info.identifier)
            };
            let expected_counts: Vec<u64> = expected.iter().map(|p| p.len() as u64).collect();
            assert_eq!(counts, &expected_counts, "{}\n{source}", info.identifier);
            for (i, pattern) in expected.iter().enumerate() {
                let listed = matches.iter().filter(|m| m.pattern as usize == i);
                let listed: Vec<_> = listed.map(|m| (m.offset, m.len)).collect();
                if info.class.is_positional() {
                    // The first ones, and behind them those of the tightest set.
                    let head = pattern.len().min(16);
                    assert!(listed.len() >= head, "{source}");
                    assert_eq!(listed[..head], pattern[..head], "{source}");
                    assert!(listed.iter().all(|m| pattern.contains(m)), "{source}");
                } else {
                    assert!(listed.iter().all(|m| pattern.contains(m)), "{source}");
                    assert_eq!(listed.is_empty(), pattern.is_empty());
                }
            }
            let offsets = || expected.iter().flatten().map(|m| m.0);
            // Of the tightest matches that suffice, which are some of all.
            let (low, high) = (offsets().min(), offsets().max());
            assert_eq!(first.is_some(), low.is_some(), "{source}");
            if let Some(f) = *first {
                let all: BTreeSet<u64> = offsets().collect();
                assert!(all.contains(&f) && all.contains(&(f + span)), "{source}");
                assert!(high.is_some_and(|h| f + span <= h), "{source}");
            }
        }
    }
    let public = rules
        .rules()
        .iter()
        .filter(|r| r.class.is_memory_safe() && !r.private)
        .count();
    assert_eq!(decided, public);
}

const PATTERNS: [&str; 26] = [
    r#""foo""#,
    r#""foo" fullword"#,
    r#""bar" nocase"#,
    r#""foobar" wide"#,
    r#""ab" ascii wide fullword"#,
    r#""bar" nocase wide ascii"#,
    r#""foo" xor"#,
    r#""bar" xor(1-3) private"#,
    r#""foobar" base64"#,
    r#""barfoo" base64wide"#,
    r#""aaa""#,
    r#""a""#,
    "{ 66 6f ?? 62 }",
    "{ 66 6F [0-6] 62 61 }",
    "{ 62 ( 61 | 6F ) [2-4] ~00 }",
    "{ 66 6f 6f [0-300] 62 61 72 }",
    "{ 61 62 [10-250] 66 6f } private",
    "{ 00 00 00 00 61 }",
    "{ 6? 6F 6f }",
    "/fo{1,3}[ab]/",
    "/ba[^r]{0,4}r/i",
    r"/\bfoo\b/",
    "/a.{0,5}b/",
    "/(foo|bar)+/ fullword",
    "/foo.{0,8}bar/s wide",
    "/^foo/",
];

/// Conditions over three patterns; `PREV` stands for an earlier rule.
const CONDITIONS: [&str; 39] = [
    "$_a",
    "$_b",
    "not $_c",
    "any of them",
    "all of them",
    "none of them",
    "2 of them",
    "60% of them",
    "1 of ($_a, $_b)",
    "any of ($_*)",
    "for any of them : ($)",
    "for all of them : (# > 1)",
    "for 2 of them : (# < 5)",
    "#_a == 2",
    "#_a > #_b",
    "#_c >= 3",
    "#_a % 2 == 1",
    "@_a < @_b",
    "@_a[2] > @_c[1] + 100",
    "defined @_b[3]",
    "not defined !_a[2]",
    "!_a == 3",
    "!_b[1] > !_c[2]",
    "$_a at @_b + 3",
    "$_a in (@_b..@_b + 40)",
    "#_a in (@_c - 10..@_c + 200) > 1",
    "any of them in (@_a + 1..@_a + 30)",
    "for any i in (1..#_a) : (@_a[i] + !_a[i] == @_b)",
    "for all i in (1..#_b) : (@_b[i] > @_a)",
    "for 2 i in (1, 2, 3) : (!_c[i] > 2)",
    "with x = @_a : (x > 10 and $_b in (x..x + 100))",
    "(@_b - @_a) * 2 < 500",
    "any of (#_a > 2, @_b > 100, $_c)",
    "not any of (#_a > 2, @_b[2] > 100, $_c)",
    "none of (@_c[4] > 3, $_a)",
    "not @_b[9] > 1",
    "not (for all i in (1..#_a + 1) : (@_a[i] > 5))",
    "#_a - #_b < 0 or -@_c > 3 or @_a \\ (#_b - 1) > 7",
    "PREV",
];

prop_compose! {
    fn pattern_names()(i in 0..PATTERNS.len(), j in 0..PATTERNS.len(), k in 0..PATTERNS.len())
        -> [usize; 3] {
        [i, j, k]
    }
}

fn condition() -> impl Strategy<Value = String> {
    let leaf = (0..CONDITIONS.len()).prop_map(|i| CONDITIONS[i].to_owned());
    leaf.prop_recursive(3, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) or ({b})")),
            inner.prop_map(|a| format!("not ({a})")),
        ]
    })
}

fn rule_set() -> impl Strategy<Value = String> {
    let flags = prop_oneof![
        12 => Just(""), 2 => Just("private "), 1 => Just("global "), 1 => Just("private global ")
    ];
    prop::collection::vec((flags, pattern_names(), condition()), 1..8).prop_map(|rules| {
        let mut source = String::new();
        for (i, (flags, [a, b, c], condition)) in rules.iter().enumerate() {
            // A global rule may only refer to global ones, and the first has none before it.
            let plain = i > 0 && !flags.contains("global");
            let before = rules[..i].iter().rposition(|r| !r.0.contains("global"));
            let earlier = before.filter(|_| plain);
            let earlier = earlier.map_or("$_a".to_owned(), |i| format!("r{i}"));
            let condition = condition.replace("PREV", &earlier);
            source += &format!(
                "{flags}rule r{i} {{\n strings:\n  $_a = {}\n  $_b = {}\n  $_c = {}\n \
                 condition:\n  {condition}\n}}\n",
                PATTERNS[*a], PATTERNS[*b], PATTERNS[*c]
            );
        }
        source
    })
}

fn token() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("foo"),
        Just("bar"),
        Just("ab"),
        Just("foobar"),
        Just("barfoo"),
        Just("BaR"),
        Just("aaaa"),
        Just(" "),
        Just("\n"),
        Just("fo"),
        Just("r"),
        Just(".")
    ];
    let wide = |w: &str| w.bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>();
    prop_oneof![
        12 => word.clone().prop_map(|w| w.as_bytes().to_vec()),
        3 => word.clone().prop_map(wide),
        2 => (word, 1_u8..5).prop_map(|(w, k)| w.bytes().map(|b| b ^ k).collect()),
        // "foobar" and "barfoo" in base64.
        1 => Just(b"Zm9vYmFy".to_vec()),
        1 => Just(wide("YmFyZm9v")),
        4 => prop::collection::vec(any::<u8>(), 1..60),
        3 => (1_usize..300).prop_map(|n| vec![0; n]),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(token(), 1..250).prop_map(|t| t.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn chunks_agree_with_the_whole(source in rule_set(), data in data(), core in 1_usize..4000) {
        let core = core.max(data.len() / 40);
        check(&source, &data, core);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Long stretches of zeros, so that some are skipped.
    #[test]
    fn zeros_are_skipped_without_a_trace(
        source in rule_set(),
        parts in prop::collection::vec((data(), 50_000_usize..150_000), 1..4),
        core in 20_000_usize..200_000,
    ) {
        let mut all = Vec::new();
        for (data, zeros) in parts {
            all.extend(data);
            all.resize(all.len() + zeros, 0);
        }
        all.extend(b"foo");
        check(&source, &all, core);
    }
}

/// Conditions that more matches never undo, over three texts.
const GROWING: [&str; 12] = [
    "$_a",
    "any of them",
    "all of them",
    "2 of them",
    "$_a and $_b",
    "$_a or ($_b and $_c)",
    "#_a >= 2",
    "#_b > 2 or #_c > 1",
    "#_a + #_b + #_c >= 4",
    "for all of them : (# >= 2)",
    "for any of them : (# >= 3)",
    "$_c and not #_a < 2",
];

/// Three texts, none of which is a part of another or of what lies between.
const TEXTS: [&str; 3] = ["alpha", "bravo", "delta"];

/// The narrowest ranges whose texts alone make the rule fire, by trying every range: `(span, first bytes)`.
fn narrowest(rules: &yara_x::Rules, texts: &[(u64, usize)], len: usize) -> (u64, BTreeSet<u64>) {
    let mut scanner = yara_x::Scanner::new(rules);
    let (mut span, mut first) = (u64::MAX, BTreeSet::new());
    for (i, low) in texts.iter().enumerate() {
        for high in &texts[i..] {
            let mut data = vec![b'.'; len];
            for (at, text) in texts {
                if (low.0..=high.0).contains(at) {
                    let text = TEXTS[*text].as_bytes();
                    data[*at as usize..][..text.len()].copy_from_slice(text);
                }
            }
            let fires = scanner.scan(&data).unwrap().matching_rules().len() > 0;
            if fires && high.0 - low.0 <= span {
                if high.0 - low.0 < span {
                    first.clear();
                }
                span = high.0 - low.0;
                first.insert(low.0);
            }
        }
    }
    (span, first)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A verdict lies where the fewest bytes hold matches that suffice.
    #[test]
    fn a_verdict_lies_at_its_tightest_matches(
        condition in 0..GROWING.len(),
        texts in prop::collection::vec((0_usize..3, 8_u64..400), 1..14),
        core in 64_usize..3000,
    ) {
        let source = format!(
            "rule r {{ strings: $_a = \"{}\" $_b = \"{}\" $_c = \"{}\" condition: {} }}",
            TEXTS[0], TEXTS[1], TEXTS[2], GROWING[condition]
        );
        let mut at = 0;
        let texts: Vec<(u64, usize)> = texts
            .into_iter()
            .map(|(text, gap)| {
                at += gap;
                (at, text)
            })
            .collect();
        let len = at as usize + 16;
        let mut data = vec![b'.'; len];
        for (at, text) in &texts {
            let text = TEXTS[*text].as_bytes();
            data[*at as usize..][..text.len()].copy_from_slice(text);
        }
        let (span, firsts) = narrowest(&yara_x::compile(source.as_str()).unwrap(), &texts, len);
        let rules = RuleSet::from_source("r.yar", &source).unwrap();
        let matches = chunked(&rules, &data, core);
        let groups = plan_verdicts(&rules, &[(0, matches.len() as u64)]);
        for verdict in groups.iter().flat_map(|g| {
            evaluate(&rules, g, &matches, &Incomplete::default())
        }) {
            match verdict.outcome {
                Outcome::Fired { first, span: told, .. } => {
                    prop_assert_eq!(told, span, "{}", source);
                    prop_assert!(first.is_some_and(|f| firsts.contains(&f)), "{}", source);
                }
                other => prop_assert!(firsts.is_empty(), "{:?} of {}", other, source),
            }
        }
    }
}

#[test]
fn realistic_rules_agree_on_realistic_data() {
    let mut data = support::memory(4 << 20, 11);
    let source = support::rules(300, 12);
    // Texts of some rules, so that some fire: quoted strings as they stand.
    let texts: Vec<&str> = source.split('"').skip(1).step_by(2).collect();
    let mut random = support::Random(13);
    for text in texts.iter().step_by(2) {
        let at = random.below(data.len() - 64);
        data[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    assert!(!whole(&source, &data).is_empty());
    check(&source, &data, 1 << 20);
}

#[test]
fn every_condition_and_pattern_is_understood() {
    for condition in CONDITIONS.iter().map(|c| c.replace("PREV", "$_a")) {
        let source = format!(
            "rule r {{ strings: $_a = \"foo\" $_b = \"bar\" $_c = \"ab\" condition: {condition} }}"
        );
        let rules = RuleSet::from_source("r.yar", &source).unwrap();
        assert!(rules.errors().is_empty(), "{}", rules.errors()[0]);
        let info = &rules.rules()[0];
        assert!(
            info.class.is_memory_safe(),
            "{condition}: {:?}",
            info.reasons
        );
    }
    for pattern in PATTERNS {
        let source = format!("rule r {{ strings: $_a = {pattern} condition: $_a }}");
        let rules = RuleSet::from_source("r.yar", &source).unwrap();
        assert!(
            rules.errors().is_empty(),
            "{pattern}: {}",
            rules.errors()[0]
        );
    }
}

#[test]
fn matches_that_reach_into_skipped_zeros_are_found() {
    let source = "rule before { strings: $a = { 61 00 00 00 00 00 00 } condition: #a > 0 }
                  rule after { strings: $a = { 00 00 00 00 00 00 62 } condition: #a > 0 }
                  rule zeros { strings: $a = { 00 00 00 00 00 00 00 ff } $b = { 00 00 00 01 }
                               condition: none of them }";
    let mut data = vec![0; 400_000];
    data[100_000] = b'a';
    data[300_000] = b'b';
    check(source, &data, 150_000);
    check(source, &data, 400_000);
}

#[test]
fn a_rule_over_two_far_places_fires() {
    let source = r#"rule both { strings: $a = "here it is" $b = "and there" condition: all of them }
                    rule twice { strings: $a = "here it is" condition: #a == 2 }
                    rule absent { strings: $a = "nowhere" condition: not $a }"#;
    let mut data = vec![b'.'; 3 << 20];
    data[100..110].copy_from_slice(b"here it is");
    data[(3 << 20) - 20..(3 << 20) - 11].copy_from_slice(b"and there");
    // On a chunk border.
    data[(1 << 20) - 5..(1 << 20) + 5].copy_from_slice(b"here it is");
    check(source, &data, 1 << 20);
}
