//! YARA over chunks against another front end of YARA-X that scans the whole file at once.

use ramsift_tests::fixtures::planted;
use ramsift_tests::program::{command, run, scan};
use ramsift_tests::servers::tools;
use std::collections::BTreeMap;
use std::process::Command;

/// Conditions of every shape over strings that lie in the planted image, near and far.
const RULES: &str = r##"
rule both { strings: $a = "YARAMARK-" $b = "wp-login.php" condition: $a and $b }
rule either { strings: $a = "no such text 11" $b = "YARAMARK-" condition: $a or $b }
rule neither { strings: $a = "no such text 11" condition: not $a }
rule one_only { strings: $a = "no such text 22" condition: $a }
rule many { strings: $a = "YARAMARK-" condition: #a > 3 }
rule exactly_none { strings: $a = "no such text 33" condition: #a == 0 }
rule far { strings: $a = "YARAMARK-" condition: #a > 1 and @a[2] - @a[1] > 1000 }
rule near { strings: $a = "username=admin" $b = "password=" condition: for any i in (1..#a) : ( $b in (@a[i]..@a[i]+64) ) }
rule whole_word { strings: $a = "payload" fullword ascii wide condition: $a }
rule no_case { strings: $a = "MOZILLA/5.0" nocase condition: $a }
rule regexp { strings: $a = /YARAMARK-zq[a-z2-7]{12}/ condition: $a }
rule hex { strings: $a = { 5b 81 eb ?? ?? ?? ?? 8d b3 [4-12] ff e6 c3 de ad c0 de } condition: $a }
rule lengths { strings: $a = /zq[a-z2-7]{12}[a-z=]*/ condition: !a[1] >= 14 }
private rule helper { strings: $a = "YARAMARK-" condition: $a }
rule refers { strings: $b = "c2-example.org" condition: helper and $b }
rule refers_not { condition: not helper }
rule some_of { strings: $a = "YARAMARK-" $b = "no such text 44" $c = "wp-login.php" condition: 2 of them }
rule xored { strings: $a = "YARAMARK-" xor(1-255) condition: $a }
rule b64 { strings: $a = "YARAMARK-" base64 condition: $a }
"##;

const ORACLE: &str = "
import sys, json, yara_x
c = yara_x.Compiler()
for f in sys.argv[2:]:
    c.add_source(open(f).read())
s = yara_x.Scanner(c.build())
s.max_matches_per_pattern(10_000_000)
out = {}
for r in s.scan(open(sys.argv[1], 'rb').read()).matching_rules:
    out[r.identifier] = {p.identifier: sorted(m.offset for m in p.matches) for p in r.patterns}
print(json.dumps(out))
";

/// What a scan of the whole file says: rule, pattern, offsets.
fn oracle(
    image: &std::path::Path,
    rules: &[&std::path::Path],
) -> BTreeMap<String, BTreeMap<String, Vec<u64>>> {
    let out = Command::new(tools().join("venv/bin/python"))
        .args(["-c", ORACLE])
        .arg(image)
        .args(rules)
        .output()
        .expect("python starts; tests/run installs it");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("JSON")
}

#[test]
fn chunks_and_whole_file_agree_on_rules_counts_and_places() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let mine = dir.path().join("shapes.yar");
    std::fs::write(&mine, RULES).expect("write");
    let want = oracle(&p.image, &[&mine, &p.rules]);
    assert!(want.len() > 15, "{:?}", want.keys());
    for size in ["65536", "1048576", "67108864"] {
        let out = dir.path().join(size);
        let (a, b) = (mine.display().to_string(), p.rules.display().to_string());
        let set = format!("scan.chunk_size={size}");
        let r = scan(
            &p.image,
            &out,
            &[
                "--rules",
                &a,
                "--rules",
                &b,
                "--set",
                &set,
                "--set",
                "scan.overlap=16384",
                "--carvers",
                "anchors",
            ],
        );
        assert_eq!(r.code, 0, "{}", r.err);
        let sql = "SELECT value, fields FROM findings WHERE kind = 'yara' AND scope = 'image'";
        let rows = run(command()
            .arg("--store")
            .arg(&out)
            .args(["query", sql, "--format", "jsonl"]));
        let mut found = BTreeMap::new();
        for l in rows.out.lines() {
            let row: serde_json::Value = serde_json::from_str(l).expect("JSON");
            let fields: serde_json::Value =
                serde_json::from_str(row["fields"].as_str().expect("fields")).expect("JSON");
            found.insert(row["value"].as_str().expect("rule").to_owned(), fields);
        }
        let (got, wanted): (Vec<_>, Vec<_>) = (found.keys().collect(), want.keys().collect());
        assert_eq!(got, wanted, "chunks of {size}");
        for (rule, patterns) in &want {
            let fields = &found[rule];
            let counts: u64 = fields["counts"]
                .as_array()
                .expect("counts")
                .iter()
                .filter_map(serde_json::Value::as_u64)
                .sum();
            let all: u64 = patterns.values().map(|v| v.len() as u64).sum();
            assert_eq!(counts, all, "{rule}, chunks of {size}");
            for m in fields["matches"].as_array().expect("matches") {
                let name = m["pattern"].as_str().expect("pattern");
                let at = m["offset"].as_u64().expect("offset");
                assert!(
                    patterns[name].contains(&at),
                    "{rule} {name} at {at}, chunks of {size}"
                );
            }
        }
    }
}

/// Patterns that lie there hundreds of times, and more often than they are counted.
const DENSE: &str = r##"
rule dense { strings: $a = "e" $b = "YARAMARK-" condition: $a and $b }
rule pair { strings: $a = { 41 42 } condition: $a }
rule pairs { strings: $a = { 41 42 } condition: #a > 20 }
rule counted { strings: $a = "e" condition: #a > 5 }
rule exact { strings: $a = "e" condition: #a == 7 }
rule too_many_to_count { strings: $a = "e" condition: #a > 100000 }
rule dispersed { strings: $a = { 41 42 } $b = "wp-login.php" condition: all of them }
"##;

#[test]
fn no_column_of_a_finding_depends_on_the_chunk_size() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let rules = dir.path().join("dense.yar");
    std::fs::write(&rules, DENSE).expect("write");
    let rules = rules.display().to_string();
    let tables = |size: &str, matches: &str| {
        let out = dir.path().join(format!("{size}-{matches}"));
        let set = format!("scan.chunk_size={size}");
        let more = ["--rules", &rules, "--set", &set, "--matches", matches];
        let r = scan(
            &p.image,
            &out,
            &[&more[..], &["--carvers", "anchors"]].concat(),
        );
        // What can't be counted to its end is a gap.
        assert_eq!(r.code, 3, "{}{}", r.out, r.err);
        let rows = |sql: &str| {
            let q = ["query", sql, "--format", "jsonl"];
            let r = run(command().arg("--store").arg(&out).args(q));
            assert_eq!(r.code, 0, "{}", r.err);
            r.out
        };
        let mut all =
            rows("SELECT * EXCLUDE (capture) FROM findings WHERE kind = 'yara' ORDER BY id");
        assert!(all.contains("counts_at_least"), "{all}");
        all += &rows(
            "SELECT * EXCLUDE (capture) FROM coverage WHERE engine = 'yara verdicts' ORDER BY reason",
        );
        assert!(all.contains("too_many_to_count"), "{all}");
        if matches == "all" {
            all += &rows("SELECT * EXCLUDE (capture) FROM yara_matches ORDER BY id");
        }
        all
    };
    for matches in ["listed", "all"] {
        let whole = tables("67108864", matches);
        for size in ["1048576", "8388608", "16777216"] {
            let is = tables(size, matches);
            let differ = is.lines().zip(whole.lines()).find(|(a, b)| a != b);
            assert!(is == whole, "chunks of {size}, {matches}: {differ:?}");
        }
    }
}
