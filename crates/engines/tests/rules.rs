//! Loading and sorting rules, files that are wrong in part, and limits.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, time::Duration};

use ramsift_engines::yara::{
    BLOCK, ChunkScanner, ConditionKind, FileScanner, Incomplete, Outcome, RuleClass, RuleSet,
    ScanLimits, Unfinished, UnfinishedReason, Verdict, evaluate, load_rules, plan_verdicts,
    scope_severity,
};
use ramsift_layers::{ImageOffset, Severity};

const PRESENCE: RuleClass = RuleClass::MemorySafe {
    condition: ConditionKind::Presence,
};
const POSITIONAL: RuleClass = RuleClass::MemorySafe {
    condition: ConditionKind::Positional,
};

fn set(source: &str) -> RuleSet {
    let rules = RuleSet::from_source("test.yar", source).unwrap();
    assert!(rules.errors().is_empty(), "{}", rules.errors()[0]);
    rules
}

/// The class of a rule with the patterns `$a` and `$b` and this condition, and why.
fn class(condition: &str) -> (RuleClass, String) {
    let source = format!(
        "import \"pe\" import \"math\" import \"hash\" import \"console\" import \"time\" \
         import \"string\" rule r {{ strings: $_a = \"aaaa\" $_b = \"bbbb\" condition: {condition} }}"
    );
    let rules = set(&source);
    (rules.rules()[0].class, rules.rules()[0].reasons.join("; "))
}

#[test]
fn conditions_are_sorted_by_what_they_need() {
    for condition in [
        "$_a",
        "not $_a",
        "any of them",
        "50% of them",
        "for any of them : ($)",
        "true",
        "$_a and console.log(\"hit\")",
        "$_a and time.now() > 5",
        "$_a and string.length(\"ab\") == 2",
        "$_a and math.abs(-3) == 3",
    ] {
        assert_eq!(
            class(condition).0,
            PRESENCE,
            "{condition}: {}",
            class(condition).1
        );
    }
    for condition in [
        "#_a > 2",
        "@_a < @_b",
        "!_a == 4",
        "$_a at @_b + 4",
        "$_a in (@_b..@_b + 9)",
        "for any i in (1..#_a) : (@_a[i] > @_b)",
        "any of them in (@_a..@_a + 100)",
        "for any i in (1..#_a) : ($_b in (@_a[i]..@_a[i] + 10))",
        "with x = @_a + 1 : ($_b at x)",
        "math.abs(@_a - @_b) < 50",
    ] {
        assert_eq!(
            class(condition).0,
            POSITIONAL,
            "{condition}: {}",
            class(condition).1
        );
    }
    for (condition, word) in [
        ("filesize < 10 and $_a", "filesize"),
        ("uint16(0) == 0x5A4D and $_a", "uint16"),
        ("uint32(@_a) == 1", "uint32"),
        ("$_a at 0", "fixed offset"),
        ("$_a in (0..1024)", "fixed offset"),
        ("#_a in (0..1024) > 1", "fixed offset"),
        ("for any i in (1..3) : ($_a at i * 100)", "fixed offset"),
        ("pe.is_pe and $_a", "pe"),
        ("any of them at 5", "fixed offset"),
        ("math.entropy(0, 100) > 5.0", "math.entropy"),
        ("hash.md5(0, 10) == \"x\"", "hash.md5"),
        ("pe.number_of_sections > 2", "pe"),
        ("for any s in pe.sections : (s.name == \".text\")", "pe"),
    ] {
        let (class, why) = class(condition);
        assert_eq!(class, RuleClass::FileOriented, "{condition}");
        assert!(why.contains(word), "{condition}: {why}");
    }
}

#[test]
fn file_orientation_is_handed_on() {
    let rules = set(
        r#"rule base { strings: $a = "x1x1" condition: $a and filesize < 9 }
           rule middle { condition: base }
           rule top { strings: $a = "y1y1" condition: $a and middle }
           rule apart { strings: $a = "z1z1" condition: $a }"#,
    );
    let classes: Vec<_> = rules.rules().iter().map(|r| r.class).collect();
    let file = RuleClass::FileOriented;
    assert_eq!(classes, [file, file, file, PRESENCE]);
    assert_eq!(rules.rules()[2].references, [1]);
    assert!(rules.rules()[2].reasons[0].contains("middle"));

    let rules = set(r#"global rule small { condition: filesize < 9 }
           rule every { strings: $a = "z1z1" condition: $a }"#);
    assert_eq!(rules.rules()[1].class, file);
    assert!(rules.rules()[1].reasons[0].contains("small"));
}

#[test]
fn unbounded_patterns_are_told() {
    let rules =
        set("rule r { strings: $a = { 01 02 [4-] 03 04 } $b = \"abc\" condition: all of them }");
    assert!(
        rules.rules()[0]
            .reasons
            .iter()
            .any(|r| r.contains("$a is unbounded"))
    );
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn one_bad_rule_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "mixed.yar",
        "rule good { strings: $a = \"one\" condition: $a }\n\n\
         rule bad {\n condition: no_such_thing\n}\n\
         rule also_good { condition: good }\n\
         rule follows { condition: bad }\n",
    );
    write(
        dir.path(),
        "syntax.yar",
        "rule a { condition: true }\nrule b { condition: ) }\nrule c { condition: true }",
    );
    let rules = load_rules(&[dir.path().to_owned()], Vec::new()).unwrap();
    let names: Vec<_> = rules
        .rules()
        .iter()
        .map(|r| r.identifier.as_str())
        .collect();
    assert_eq!(names, ["good", "also_good", "a", "c"]);
    let bad = &rules.errors()[0];
    assert_eq!((bad.line, bad.rule.as_deref()), (4, Some("bad")));
    assert!(
        bad.file.ends_with("mixed.yar") && bad.reason.contains("no_such_thing"),
        "{bad}"
    );
    assert!(
        rules
            .errors()
            .iter()
            .any(|e| e.rule.as_deref() == Some("follows"))
    );
    assert!(
        rules
            .errors()
            .iter()
            .any(|e| e.file.ends_with("syntax.yar") && e.line == 2)
    );
    assert_eq!(rules.rules()[1].line, 6);
    // What stands next to a bad rule is classified as ever.
    assert!(
        rules.rules().iter().all(|r| r.class == PRESENCE),
        "{:?}",
        rules.rules()
    );
    let syntax = rules
        .errors()
        .iter()
        .find(|e| e.file.ends_with("syntax.yar"))
        .unwrap();
    assert_eq!(syntax.rule.as_deref(), Some("b"));
}

#[test]
fn folders_are_walked_and_includes_resolved() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "b.yar",
        "include \"lib/base.yar\"\nrule second { condition: base }",
    );
    write(
        dir.path(),
        "a.yara",
        "rule first { strings: $a = \"one\" condition: $a }",
    );
    write(
        dir.path(),
        "lib/base.yar",
        "import \"pe\"\nrule base { condition: pe.is_pe }",
    );
    write(
        dir.path(),
        "lib/loop.yar",
        "include \"loop.yar\"\nrule looped { condition: true }",
    );
    write(
        dir.path(),
        "gone.yar",
        "\n  include \"nowhere.yar\"\nrule stays { condition: true }",
    );
    write(dir.path(), "notes.txt", "not a rule");
    let compiled = yara_x::compile("rule boxed { strings: $a = \"two\" condition: $a }").unwrap();
    fs::write(dir.path().join("c.yarc"), compiled.serialize().unwrap()).unwrap();
    let rules = load_rules(&[dir.path().to_owned()], Vec::new()).unwrap();
    let names: Vec<_> = rules
        .rules()
        .iter()
        .map(|r| r.identifier.as_str())
        .collect();
    // Sources first, by file name; a compiled set after them.
    assert_eq!(names, ["first", "base", "second", "stays", "boxed"]);
    let base = &rules.rules()[1];
    assert!(base.file.ends_with("base.yar") && base.namespace.ends_with("b.yar"));
    let errors: Vec<_> = rules.errors().iter().map(ToString::to_string).collect();
    assert!(
        errors
            .iter()
            .any(|e| e.contains("gone.yar:2:3") && e.contains("nowhere")),
        "{errors:?}"
    );
    assert_eq!(rules.rules()[4].class, RuleClass::FileOriented);
    let again = RuleSet::from_bytes(&rules.to_bytes()).unwrap();
    assert_eq!(
        (again.digest(), again.rules()),
        (rules.digest(), rules.rules())
    );
    let mut scanner = FileScanner::new(&again, ScanLimits::default()).unwrap();
    let hits: Vec<_> = scanner
        .scan(b"one two")
        .hits
        .iter()
        .map(|h| h.rule)
        .collect();
    assert_eq!(hits, [0, 3, 4]);
    assert!(load_rules(&[dir.path().join("missing")], Vec::new()).is_err());
}

#[test]
fn a_digest_follows_the_rules() {
    let digest = |s: &str| RuleSet::from_source("a.yar", s).unwrap().digest();
    let one = digest("rule r { condition: true }");
    assert_eq!(one, digest("rule r { condition: true }"));
    assert_ne!(one, digest("rule r { condition: false }"));
    assert!(RuleSet::from_bytes(b"junk").is_err());
    let bytes = RuleSet::from_source("a.yar", "rule r { condition: true }")
        .unwrap()
        .to_bytes();
    for cut in 0..bytes.len() {
        assert!(RuleSet::from_bytes(&bytes[..cut]).is_err());
    }
}

/// Scans `data` as one chunk and decides.
fn verdicts(rules: &RuleSet, limits: ScanLimits, data: &[u8], failed: bool) -> Vec<Verdict> {
    let found = ChunkScanner::new(rules, limits).scan(data, ImageOffset(0), 0..data.len(), &[]);
    let incomplete = Incomplete {
        failed_ranges: failed,
        unfinished: found.unfinished.clone(),
    };
    let matched: Vec<_> = found.matches.iter().map(|m| (m.rule, 1)).collect();
    let mut all = Vec::new();
    for group in plan_verdicts(rules, &matched) {
        all.extend(evaluate(rules, &group, &found.matches, &incomplete));
    }
    all.sort_by_key(|v| v.rule);
    all
}

#[test]
fn what_is_missing_makes_a_verdict_unknown_only_where_it_matters() {
    let rules = set(r#"rule present { strings: $a = "here" condition: $a }
           rule absent { strings: $a = "gone" condition: $a }
           rule denied { strings: $a = "here" condition: not $a }
           rule nothing { strings: $a = "gone" condition: not $a }
           rule many { strings: $a = "here" condition: #a >= 2 }
           rule exact { strings: $a = "here" condition: #a == 2 }
           rule few { strings: $a = "here" condition: #a < 2 }"#);
    let all = verdicts(&rules, ScanLimits::default(), b"here here", true);
    let words: Vec<_> = all
        .iter()
        .map(|v| match &v.outcome {
            Outcome::Fired { .. } => "fired",
            Outcome::NotFired => "not",
            Outcome::Unknown { .. } => "unknown",
        })
        .collect();
    assert_eq!(
        words,
        [
            "fired", "unknown", "not", "unknown", "fired", "unknown", "not"
        ]
    );
}

#[test]
fn a_flood_of_matches_is_capped_and_told() {
    let rules = set(r#"rule flood { strings: $a = "a" condition: #a == 3 }
           rule lots { strings: $a = "a" condition: #a > 50 }
           rule once { strings: $a = "a" condition: $a }"#);
    let data = vec![b'a'; 4 << 20];
    let limits = ScanLimits {
        max_matches_per_pattern: 100,
        ..ScanLimits::default()
    };
    let found =
        ChunkScanner::new(&rules, limits.clone()).scan(&data, ImageOffset(0), 0..data.len(), &[]);
    // Of a rule that asks for presence alone a chunk lists 64.
    assert_eq!(found.matches.len(), 100 + 100 + 64);
    let capped = |rule| Unfinished {
        rule,
        pattern: Some(0),
        reason: UnfinishedReason::MatchCap,
    };
    assert_eq!(found.unfinished, [capped(0), capped(1)]);
    let all = verdicts(&rules, limits, &data, false);
    // More than three were seen, so the count can't be three; and more than fifty is certain.
    assert_eq!(all[0].outcome, Outcome::NotFired);
    assert!(matches!(all[1].outcome, Outcome::Fired { .. }));
    assert!(matches!(all[2].outcome, Outcome::Fired { .. }));
}

#[test]
fn a_block_full_of_matches_takes_none_of_the_next_ones() {
    let rules = set(r#"rule once { strings: $a = "a" condition: $a }
           rule few { strings: $a = "a" condition: #a > 1 }"#);
    const MIB: usize = 1 << 20;
    // The border of two blocks lies in the middle.
    let base = BLOCK - MIB as u64;
    let mut data = vec![b'a'; MIB];
    data.resize(2 * MIB, b'.');
    let behind = [MIB + 5, MIB + 77, 2 * MIB - 1];
    for at in behind {
        data[at] = b'a';
    }
    let limits = ScanLimits {
        max_matches_per_pattern: 100,
        ..ScanLimits::default()
    };
    let found = ChunkScanner::new(&rules, limits).scan(&data, ImageOffset(base), 0..2 * MIB, &[]);
    for (rule, listed) in [(0, 64), (1, 100)] {
        let of_rule = found.matches.iter().filter(|m| m.rule == rule);
        let (first, second): (Vec<_>, Vec<_>) = of_rule.partition(|m| m.offset.0 < BLOCK);
        assert_eq!(first.len(), listed);
        // One more than the cap: there are more.
        assert_eq!(first.iter().map(|m| 1 + m.more).sum::<u64>(), 101);
        let places: Vec<u64> = second.iter().map(|m| m.offset.0).collect();
        assert_eq!(places, behind.map(|at| base + at as u64));
        assert!(second.iter().all(|m| m.more == 0));
    }
}

/// Hours of work for a pattern that tries everything, on any machine.
fn hours_of_work() -> Vec<u8> {
    let mut data = vec![b'a'; 24 << 20];
    data.extend(b"needle");
    data
}

/// Seconds of it.
fn short_limits() -> ScanLimits {
    ScanLimits {
        per_chunk: Duration::from_secs(8),
        per_rule: Duration::from_secs(1),
        ..ScanLimits::default()
    }
}

fn out_of_time(rule: u32) -> Unfinished {
    Unfinished {
        rule,
        pattern: None,
        reason: UnfinishedReason::TimeLimit,
    }
}

// How slow rules are found out is tested with a clock that tests turn: see `yara/slow.rs`. How much
// a real machine gets done in a second is not for these to say, only that nothing gets lost.

#[test]
fn a_slow_rule_is_singled_out() {
    let rules = set(r#"rule other { strings: $a = "text" condition: $a }
                 rule slow { strings: $a = /aa.{0,1500}aa.{0,1500}b/ condition: $a }
                 rule quick { strings: $a = "needle" condition: #a == 1 }"#);
    let data = hours_of_work();
    let mut scanner = ChunkScanner::new(&rules, short_limits());
    for _ in 0..2 {
        let found = scanner.scan(&data, ImageOffset(0), 0..data.len(), &[]);
        assert!(found.unfinished.contains(&out_of_time(1)));
        assert!(!found.complete);
        // Each rule is finished or told.
        let needles = found.matches.iter().filter(|m| m.rule == 2).count();
        let told = found.unfinished.contains(&out_of_time(2));
        assert_eq!(needles, usize::from(!told), "{found:?}");
    }
    // The next chunk isn't held up by what is known to be slow, nor is the slow rule given up.
    let small = b"a needle, aaaa, b";
    let found = scanner.scan(small, ImageOffset(0), 0..small.len(), &[]);
    assert!(found.complete, "{:?}", found.unfinished);
    let matched: Vec<_> = found.matches.iter().map(|m| m.rule).collect();
    assert_eq!(matched, [1, 2]);
}

#[test]
fn dispersed_matches_are_quiet() {
    let rules = set(
        r#"rule r { meta: severity = "high" strings: $a = "one here" $b = "two there"
           condition: all of them }"#,
    );
    let mut data = vec![b'.'; 3 << 20];
    data[..8].copy_from_slice(b"one here");
    data[1000..1009].copy_from_slice(b"two there");
    let close = verdicts(&rules, ScanLimits::default(), &data, false);
    let severity = scope_severity(&rules.rules()[0], &close[0]);
    assert_eq!(
        (severity.severity, severity.dispersed),
        (Severity::High, false)
    );
    data[1000..1009].fill(b'.');
    data[2 << 20..][..9].copy_from_slice(b"two there");
    let far = verdicts(&rules, ScanLimits::default(), &data, false);
    let severity = scope_severity(&rules.rules()[0], &far[0]);
    assert_eq!(
        (severity.severity, severity.dispersed),
        (Severity::Low, true)
    );
}

#[test]
fn files_are_scanned_with_their_modules() {
    let rules = set(r#"import "elf"
           rule is_elf { condition: elf.type == elf.ET_DYN or elf.type == elf.ET_EXEC }
           rule magic { strings: $a = "\x7fELF" condition: $a at 0 }
           private rule hidden { strings: $a = "\x7fELF" condition: $a }
           rule anywhere { strings: $a = "\x7fELF" condition: $a and hidden }"#);
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut scanner = FileScanner::new(&rules, ScanLimits::default()).unwrap();
    let hits: Vec<_> = scanner.scan(&program).hits.iter().map(|h| h.rule).collect();
    assert_eq!(hits, [0, 1, 3]);
    let mut scanner = scanner.file_oriented_only(true);
    let hits: Vec<_> = scanner.scan(&program).hits.iter().map(|h| h.rule).collect();
    assert_eq!(hits, [0, 1]);
    assert!(scanner.scan(b"").hits.is_empty());
}

#[test]
fn a_slow_rule_is_singled_out_in_a_file_too() {
    let rules = set(r#"import "math"
           private rule large { condition: filesize > 10 /* } */ }
           rule slow { strings: $a = /aa.{0,1500}aa.{0,1500}b/ condition: ($a and (large)) // }
           }
           rule quick { strings: $a = "needle" condition: ((#a == 1) and large) }
           rule third { condition: math.entropy(0, 8) < 0.1 }"#);
    let data = hours_of_work();
    let mut scanner = FileScanner::new(&rules, short_limits()).unwrap();
    for _ in 0..2 {
        let scan = scanner.scan(&data);
        assert!(scan.unfinished.contains(&out_of_time(1)));
        for rule in [2, 3] {
            let hits = scan.hits.iter().filter(|h| h.rule == rule).count();
            let told = scan.unfinished.contains(&out_of_time(rule));
            assert_eq!(hits, usize::from(!told), "{scan:?}");
        }
    }
    // It isn't given up: a small file is decided by all rules.
    let scan = scanner.scan(b"aaaaaaaa b, needle");
    let hits: Vec<_> = scan.hits.iter().map(|h| h.rule).collect();
    assert_eq!((hits, scan.unfinished), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_compiled_set_that_is_slow_is_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = r#"rule slow { strings: $a = /aa.{0,1500}aa.{0,1500}b/ condition: $a }
                    rule quick { strings: $a = "needle" condition: $a }"#;
    let compiled = yara_x::compile(source).unwrap().serialize().unwrap();
    fs::write(dir.path().join("x.yarc"), compiled).unwrap();
    let rules = load_rules(&[dir.path().to_owned()], Vec::new()).unwrap();
    let data = hours_of_work();
    let mut scanner = FileScanner::new(&rules, short_limits()).unwrap();
    let scan = scanner.scan(&data);
    assert_eq!(scan.unfinished, [out_of_time(0), out_of_time(1)]);
    let scan = scanner.scan(b"aaaa b needle");
    assert_eq!((scan.hits.len(), scan.unfinished), (2, vec![]));
}

#[test]
fn deep_and_odd_rules_do_no_harm() {
    let deep = format!(
        "rule d {{ condition: {}true{} }}",
        "not (".repeat(3000),
        ")".repeat(3000)
    );
    RuleSet::from_source("d.yar", &deep).unwrap();
    for odd in [
        "",
        "rule",
        "rule r {",
        "\u{feff}rule r { condition: true }",
        "include \"x\"",
        "}}",
    ] {
        RuleSet::from_source("o.yar", odd).unwrap();
    }
    let chain: String = (1..3000)
        .map(|i| format!("rule c{i} {{ condition: c{} }}\n", i - 1))
        .collect();
    let source = format!("rule c0 {{ strings: $a = \"abcd\" condition: $a }}\n{chain}");
    let rules = set(&source);
    let all = verdicts(&rules, ScanLimits::default(), b"abcd", false);
    assert!(
        all.iter()
            .all(|v| matches!(v.outcome, Outcome::Fired { .. }))
    );
}
