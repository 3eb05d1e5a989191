//! One command, one process: captures in, findings out, exit codes, bad input.

use ramsift_store::query::{QueryLimits, local};
use ramsift_store::{Keys, Manifest};
use ramsift_tests::block_on;
use ramsift_tests::fixtures::{image, lime, planted};
use ramsift_tests::program::{Run, command, run, scan};
use ramsift_tests::servers::{CLAM_NEEDLE, Clamd};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Rows of a query over a results folder, as JSON objects.
pub(crate) fn query(store: &Path, sql: &str) -> Vec<serde_json::Value> {
    let r = run(command()
        .arg("--store")
        .arg(store)
        .args(["query", sql, "--format", "jsonl"]));
    assert_eq!(r.code, 0, "{sql}: {}", r.err);
    r.out
        .lines()
        .map(|l| serde_json::from_str(l).expect("a JSON line"))
        .collect()
}

fn number(store: &Path, sql: &str) -> i64 {
    query(store, sql)[0]["n"].as_i64().expect("a number")
}

fn the_job(store: &Path) -> String {
    let mut all = std::fs::read_dir(store.join("jobs")).expect("jobs");
    let job = all.next().expect("a job").expect("entry").file_name();
    job.to_string_lossy().into_owned()
}

pub(crate) fn manifest(store: &Path) -> Manifest {
    let path = store.join(Keys::new(&the_job(store)).manifest());
    serde_json::from_slice(&std::fs::read(path).expect("manifest")).expect("JSON")
}

pub(crate) fn ok(r: &Run) {
    assert_eq!(r.code, 0, "out: {}\nerr: {}", r.out, r.err);
}

#[test]
fn planted_items_are_found_exactly_once_at_any_chunk_size() {
    let p = planted();
    // What each kind is found as, by its unique needle.
    let sets = ["scan.chunk_size=1048576", "scan.overlap=65536"];
    let dir = tempfile::tempdir().expect("tempdir");
    let (small, whole) = (dir.path().join("small"), dir.path().join("whole"));
    ok(&scan(
        &p.image,
        &small,
        &["--set", sets[0], "--set", sets[1]],
    ));
    ok(&scan(&p.image, &whole, &[]));
    // Chunked findings are those of one whole scan, row for row.
    for (table, order) in [("findings", "id"), ("events", "id"), ("artifacts", "id")] {
        let sql = format!("SELECT * EXCLUDE (capture) FROM {table} ORDER BY {order}");
        let sql = if table == "artifacts" {
            "SELECT id, sha256, detector, kind, size, image_offset, complete, gap FROM artifacts ORDER BY id".to_owned()
        } else {
            sql
        };
        let (a, b) = (query(&small, &sql), query(&whole, &sql));
        assert!(!a.is_empty(), "{table}");
        assert_eq!(a.len(), b.len(), "{table}");
        assert!(a == b, "{table} differ between chunk sizes");
    }
    let bytes = std::fs::read(&p.image).expect("image");
    recall(&p.truth, &bytes, &whole);
}

/// Whether bytes end in a character of a line: printable ASCII, a tab, or UTF-8 of several bytes.
fn ends_in_text(before: &[u8]) -> bool {
    let of_many = |n: &usize| {
        let tail = before.len().checked_sub(*n).map(|from| &before[from..]);
        tail.is_some_and(|t| t[0] >= 0xc0 && std::str::from_utf8(t).is_ok())
    };
    matches!(before.last(), Some(b' '..=b'~' | b'\t')) || (2..=4).any(|n| of_many(&n))
}

/// Every needle of the kinds that have carvers is found once. The first line of a plant that was
/// laid over the middle of other text is part of that text's line, and no line of its own.
fn recall(truth: &serde_json::Value, image: &[u8], store: &Path) {
    let mut events: BTreeMap<String, usize> = BTreeMap::new();
    for e in query(store, "SELECT message, fields FROM events") {
        let text = format!(
            "{} {}",
            e["message"].as_str().unwrap_or(""),
            e["fields"].as_str().unwrap_or("")
        );
        for t in needles_in(&text) {
            *events.entry(t).or_default() += 1;
        }
    }
    let mut features: BTreeMap<(String, String), usize> = BTreeMap::new();
    for f in query(store, "SELECT kind, value FROM findings") {
        for t in needles_in(f["value"].as_str().unwrap_or("")) {
            *features
                .entry((f["kind"].as_str().unwrap_or("").to_owned(), t))
                .or_default() += 1;
        }
    }
    let mut missed = Vec::new();
    for p in truth["plants"].as_array().expect("plants") {
        let kind = p["kind"].as_str().expect("kind");
        let at = usize::try_from(p["offset"].as_u64().unwrap_or(0)).expect("fits");
        let glued = kind.starts_with("log_") && ends_in_text(&image[..at]);
        let needles = p["needles"]
            .as_array()
            .expect("needles")
            .iter()
            .filter_map(|n| n.as_str());
        let needles = needles.skip(usize::from(glued));
        for n in needles {
            let found = match kind {
                "log_syslog" | "log_syslog5424" | "log_auth" | "log_access"
                | "log_apache_error" | "log_iso_app" | "log_json" | "log_cloudtrail" => {
                    events.get(n).copied().unwrap_or(0)
                }
                "ioc_url" | "ioc_url_utf16" => features
                    .get(&("url".to_owned(), n.to_owned()))
                    .copied()
                    .unwrap_or(0),
                "ioc_email" | "ioc_email_utf16" => features
                    .get(&("email".to_owned(), n.to_owned()))
                    .copied()
                    .unwrap_or(0),
                "ioc_domain" => features
                    .get(&("domain".to_owned(), n.to_owned()))
                    .copied()
                    .unwrap_or(0),
                _ => continue,
            };
            if found != 1 {
                missed.push(format!("{kind} {n}: {found} times, at {}", p["offset"]));
            }
        }
    }
    assert!(
        missed.is_empty(),
        "{} needles: {:#?}",
        missed.len(),
        &missed[..missed.len().min(20)]
    );
}

fn needles_in(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let b = s.as_bytes();
    let mut i = 0;
    while i + 14 <= b.len() {
        let t = &b[i..i + 14];
        let is = t.starts_with(b"zq")
            && t[2..]
                .iter()
                .all(|c| c.is_ascii_lowercase() || (b'2'..=b'7').contains(c));
        if is {
            out.push(String::from_utf8_lossy(t).into_owned());
            i += 14;
        } else {
            i += 1;
        }
    }
    out.sort();
    out.dedup();
    out
}

#[test]
fn files_are_recovered_with_their_true_extent() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    ok(&scan(&p.image, dir.path(), &[]));
    let found: std::collections::BTreeSet<String> =
        query(dir.path(), "SELECT DISTINCT sha256 FROM artifacts")
            .iter()
            .filter_map(|r| r["sha256"].as_str().map(str::to_owned))
            .collect();
    let mut missed = Vec::new();
    let mut wanted = 0;
    for p in truth_files(&p.truth) {
        wanted += 1;
        if !found.contains(p["sha256"].as_str().expect("sha256")) {
            missed.push(format!("{} at {}", p["kind"], p["offset"]));
        }
    }
    assert!(wanted > 20, "{wanted}");
    assert!(
        missed.is_empty(),
        "{} of {wanted}: {missed:#?}",
        missed.len()
    );
}

fn truth_files(truth: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let kinds = [
        "file_png",
        "file_pdf",
        "file_zip",
        "file_docx",
        "file_sqlite",
        "file_jpeg",
    ];
    truth["plants"]
        .as_array()
        .expect("plants")
        .iter()
        .filter(move |p| {
            let k = p["kind"].as_str().expect("kind");
            kinds.contains(&k) && !p["offset"].is_null()
        })
}

const RULES: &str = r#"
rule far_apart { strings: $a = "needle-alpha-11" $b = "needle-omega-22" condition: $a and $b }
rule counted { strings: $a = "needle-alpha-11" condition: #a == 2 }
rule absent { strings: $a = "needle-that-is-not-there" condition: not $a }
rule loud { meta: severity = "critical" strings: $a = "needle-omega-22" condition: $a }
rule on_files { condition: uint16(0) == 0x4b50 }
"#;

#[test]
fn conditions_hold_over_the_whole_image() {
    let dir = tempfile::tempdir().expect("tempdir");
    let rules = dir.path().join("r.yar");
    std::fs::write(
        &rules,
        format!("{RULES}\nrule broken {{ condition: nonsense }}\n"),
    )
    .expect("write");
    let path = dir.path().join("a.mem");
    let bytes = image(
        8 << 20,
        &[
            (100, b"needle-alpha-11"),
            ((3 << 20) - 7, b"needle-alpha-11"),
            (7 << 20, b"needle-omega-22"),
        ],
    );
    std::fs::write(&path, bytes).expect("write");
    let out = dir.path().join("out");
    let rules = rules.display().to_string();
    let args = [
        "--rules",
        &rules,
        "--set",
        "scan.chunk_size=1048576",
        "--set",
        "scan.overlap=4096",
    ];
    let r = scan(&path, &out, &args);
    ok(&r);
    assert!(
        r.err.contains("broken") && r.err.contains("r.yar"),
        "{}",
        r.err
    );
    let mut fired: Vec<_> = query(
        &out,
        "SELECT value, severity, fields FROM findings WHERE kind = 'yara'",
    )
    .iter()
    .map(|f| {
        (
            f["value"].as_str().unwrap_or("").to_owned(),
            f["severity"].as_str().unwrap_or("").to_owned(),
        )
    })
    .collect();
    fired.sort();
    let names: Vec<&str> = fired.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(names, ["absent", "counted", "far_apart", "loud"]);
    // Spread over more than 1 MiB: capped at low. The rule's own grade counts where it isn't.
    assert_eq!(fired[2].1, "low");
    assert_eq!(fired[3].1, "critical");
    let loud = scan(
        &path,
        &out,
        &["--rules", &rules, "--fresh", "--fail-on", "critical"],
    );
    assert_eq!(loud.code, 1, "{}", loud.err);
}

#[test]
fn evidence_is_hashed_and_results_verify() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let bytes = image(
        (5 << 20) + 12_345,
        &[(5000, b"\0https://verify.example.net/x\0")],
    );
    std::fs::write(&path, &bytes).expect("write");
    let out = dir.path().join("out");
    ok(&scan(
        &path,
        &out,
        &[
            "--set",
            "scan.chunk_size=1048576",
            "--case",
            "C-1",
            "--label",
            "k=v",
        ],
    ));
    let m = manifest(&out);
    assert_eq!(
        m.evidence_blake3.as_deref(),
        Some(blake3::hash(&bytes).to_hex().as_str())
    );
    assert_eq!(
        (m.spec.case_name.as_str(), m.verdict.as_str()),
        ("C-1", "complete")
    );
    for c in m.coverage.values() {
        assert_eq!(c.total(), bytes.len() as u64);
        assert!(c.sparse > 0);
    }
    let verify = || {
        run(command()
            .arg("verify")
            .arg(&out)
            .arg("--evidence")
            .arg(&path))
    };
    ok(&verify());
    // One changed byte of a table, and of the evidence.
    let table = out.join(Keys::new(&the_job(&out)).table("findings"));
    let mut data = std::fs::read(&table).expect("table");
    let n = data.len() / 2;
    data[n] ^= 1;
    std::fs::write(&table, &data).expect("write");
    let r = verify();
    assert_eq!(r.code, 1);
    assert!(r.out.contains("findings.parquet"), "{}", r.out);
    data[n] ^= 1;
    std::fs::write(&table, &data).expect("write");
    let mut changed = bytes;
    changed[77] ^= 1;
    std::fs::write(&path, &changed).expect("write");
    assert_eq!(verify().code, 1);
}

#[test]
fn results_exports_and_artifacts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let line = b"\n2026-01-02T03:04:05Z app started by tester\n";
    let zip = include_bytes!("../../fixtures/hello.zip");
    let bytes = image(
        2 << 20,
        &[
            (0x3000, line),
            (0x6000, zip),
            (0x9000, b"\0x@export-example.com\0"),
        ],
    );
    std::fs::write(&path, bytes).expect("write");
    let out = dir.path().join("out");
    ok(&scan(&path, &out, &[]));
    let results = |more: &[&str]| {
        let r = run(command().arg("--store").arg(&out).arg("results").args(more));
        ok(&r);
        r.out
    };
    assert!(results(&["--kind", "email"]).contains("x@export-example.com"));
    assert!(!results(&["--kind", "url"]).contains("x@export-example.com"));
    assert!(
        results(&["--since", "2026-01-01", "--until", "2026-01-03"]).contains("started by tester")
    );
    assert!(!results(&["--since", "2026-01-03"]).contains("started by tester"));
    let to = dir.path().join("export");
    for format in ["jsonl", "csv", "parquet", "timesketch"] {
        let mut c = command();
        ok(&run(c
            .arg("--store")
            .arg(&out)
            .args(["export", "--format", format, "--to"])
            .arg(&to)));
    }
    let sketch = std::fs::read_to_string(to.join("events.timesketch.jsonl")).expect("export");
    let event: serde_json::Value =
        serde_json::from_str(sketch.lines().next().expect("a line")).expect("JSON");
    assert_eq!(event["datetime"], "2026-01-02T03:04:05.000000+00:00");
    assert!(
        event["message"]
            .as_str()
            .is_some_and(|m| m.contains("started by tester"))
    );
    assert!(event["timestamp_desc"].is_string());
    let row = &query(&out, "SELECT sha256 FROM artifacts WHERE kind = 'zip'")[0];
    let sha = row["sha256"].as_str().expect("sha256");
    let file = dir.path().join("got.zip");
    let mut c = command();
    ok(&run(c
        .arg("--store")
        .arg(&out)
        .args(["artifact", &sha[..12], "--to"])
        .arg(&file)));
    assert_eq!(std::fs::read(file).expect("file"), zip);
}

#[test]
fn an_interrupted_scan_goes_on_where_it_stopped() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let args = [
        "--set",
        "scan.chunk_size=262144",
        "--set",
        "scan.overlap=65536",
        "--set",
        "worker.slots=1",
    ];
    let mut child = command()
        .arg("scan")
        .arg(&p.image)
        .arg("--out")
        .arg(&out)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let commits = |out: &Path| {
        let jobs = std::fs::read_dir(out.join("jobs")).ok()?;
        let job = jobs.flatten().next()?;
        Some(std::fs::read_dir(job.path().join("commits")).ok()?.count()).filter(|n| *n > 0)
    };
    let before = ramsift_tests::wait_for("a commit", Duration::from_secs(60), || commits(&out));
    let pid = i32::try_from(child.id()).expect("pid");
    // SAFETY: kill takes two integers; the child has not been waited for.
    unsafe { libc::kill(pid, libc::SIGINT) };
    let code = child.wait().expect("wait").code();
    if code == Some(2) {
        assert!(!out.join(Keys::new(&the_job(&out)).manifest()).exists());
    }
    ok(&scan(&p.image, &out, &args));
    assert_eq!(
        std::fs::read_dir(out.join("jobs")).expect("jobs").count(),
        1
    );
    assert!(commits(&out).is_some_and(|n| n >= before));
    let undisturbed = dir.path().join("undisturbed");
    ok(&scan(&p.image, &undisturbed, &args));
    let sql = "SELECT * FROM events ORDER BY id";
    assert!(query(&out, sql) == query(&undisturbed, sql));
}

#[test]
fn carved_files_go_to_clamd_and_its_limit_is_no_clean_bill() {
    let clamd = Clamd::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    // A PNG whose text chunk holds what the signature is for.
    let png = png_with_text(CLAM_NEEDLE);
    std::fs::write(&path, image(2 << 20, &[(0x5000, &png)])).expect("write");
    let out = dir.path().join("out");
    ok(&scan(
        &path,
        &out,
        &["--clamd", &clamd.address(), "--av", "files"],
    ));
    let rows = query(
        &out,
        "SELECT value, severity, artifact FROM findings WHERE kind = 'av'",
    );
    assert_eq!(rows.len(), 1);
    assert!(
        rows[0]["value"]
            .as_str()
            .is_some_and(|v| v.contains("Ramsift.Test.Needle"))
    );
    assert_eq!(rows[0]["severity"], "high");
    let address = clamd.address();
    drop(clamd);
    let r = scan(&path, &dir.path().join("none"), &["--clamd", &address]);
    assert_eq!(r.code, 2);
    assert!(
        r.err.contains(&address) && r.err.contains("clamd"),
        "{}",
        r.err
    );
}

pub(crate) fn png_with_text(text: &[u8]) -> Vec<u8> {
    let crc = |b: &[u8]| {
        let mut c = !0u32;
        for x in b {
            c ^= u32::from(*x);
            for _ in 0..8 {
                c = if c & 1 == 1 {
                    c >> 1 ^ 0xedb8_8320
                } else {
                    c >> 1
                };
            }
        }
        !c
    };
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        out.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        let body = [kind, data].concat();
        out.extend_from_slice(&body);
        out.extend(crc(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 6, 0, 0, 0]);
    chunk(b"tEXt", &[b"Comment\0", text].concat());
    // One transparent pixel: a stored deflate block of five zero bytes, with its Adler-32.
    chunk(
        b"IDAT",
        &[0x78, 1, 1, 5, 0, 0xfa, 0xff, 0, 0, 0, 0, 0, 0, 5, 0, 1],
    );
    chunk(b"IEND", b"");
    out
}

#[test]
fn bad_input_gives_one_clear_sentence() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |n: &str, b: &[u8]| {
        let p = dir.path().join(n);
        std::fs::write(&p, b).expect("write");
        p
    };
    let out = dir.path().join("out");
    let cases: Vec<(std::path::PathBuf, &str)> = vec![
        (dir.path().join("missing.mem"), "no such file"),
        (write("empty.mem", b""), "is empty"),
        (
            write(
                "packed.mem",
                &[b"\x1f\x8b\x08\0".as_slice(), &[0; 5000]].concat(),
            ),
            "gzip",
        ),
        (
            write(
                "core.elf",
                &[
                    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0".as_slice(),
                    &[0xff; 100],
                ]
                .concat(),
            ),
            "elf_core",
        ),
    ];
    for (path, say) in cases {
        let r = scan(&path, &out, &[]);
        assert_eq!(r.code, 2, "{}: {}", path.display(), r.err);
        let name = path
            .file_name()
            .expect("name")
            .to_string_lossy()
            .into_owned();
        assert!(
            r.err.contains(say) && r.err.contains(&name),
            "{name}: {}",
            r.err
        );
        assert!(!r.err.contains("panicked"), "{}", r.err);
    }
    // A bad capture does not keep a good one from its results.
    let good = write(
        "good.mem",
        &image(1 << 20, &[(64, b"\0http://good.example.org/\0")]),
    );
    let both = dir.path().join("both");
    let mut c = command();
    let r = run(c
        .arg("scan")
        .arg(dir.path().join("missing.mem"))
        .arg(&good)
        .arg("--out")
        .arg(&both));
    assert_eq!(r.code, 2);
    assert_eq!(
        number(
            &both,
            "SELECT count(*) AS n FROM findings WHERE kind = 'url'"
        ),
        1
    );
    let r = run(command().args(["scan", "x", "--set", "scan.nothing=1"]));
    assert_eq!(r.code, 2);
    assert!(r.err.contains("scan.nothing"));
}

#[test]
fn a_cut_capture_is_complete_with_gaps() {
    let dir = tempfile::tempdir().expect("tempdir");
    let bytes = image(1 << 20, &[(0x2000, b"\0http://cut.example.org/\0")]);
    let mut file = lime(&[(0x1000, &bytes), (0x20_0000, &bytes)]);
    file.truncate(file.len() - 300_000);
    let path = dir.path().join("cut.lime");
    std::fs::write(&path, &file).expect("write");
    let out = dir.path().join("out");
    let r = scan(
        &path,
        &out,
        &[
            "--set",
            "scan.chunk_size=262144",
            "--set",
            "scan.overlap=4096",
        ],
    );
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    let m = manifest(&out);
    let c = &m.coverage["carvers"];
    assert_eq!((c.missing, c.total()), (300_000, 2 << 20));
    let rows = query(
        &out,
        "SELECT physical_address FROM findings WHERE kind = 'url' ORDER BY 1",
    );
    let places: Vec<_> = rows
        .iter()
        .filter_map(|r| r["physical_address"].as_str())
        .collect();
    assert_eq!(places, ["0x3001", "0x202001"]);
    assert_eq!(
        m.evidence_blake3.as_deref(),
        Some(blake3::hash(&file).to_hex().as_str())
    );
}

#[test]
fn evidence_that_changes_fails_the_job() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let copy = dir.path().join("live.mem");
    std::fs::copy(&p.image, &copy).expect("copy");
    let out = dir.path().join("out");
    let child = command()
        .arg("scan")
        .arg(&copy)
        .arg("--out")
        .arg(&out)
        .args([
            "--set",
            "scan.chunk_size=65536",
            "--set",
            "scan.overlap=65536",
            "--set",
            "worker.slots=1",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    ramsift_tests::wait_for("the plan", Duration::from_secs(60), || {
        let job = std::fs::read_dir(out.join("jobs")).ok()?.flatten().next()?;
        job.path().join("plan.json").exists().then_some(())
    });
    use std::os::unix::fs::FileExt;
    let f = std::fs::File::options()
        .write(true)
        .open(&copy)
        .expect("open");
    f.write_all_at(b"changed", 60 << 20).expect("write");
    let r: Run = child.wait_with_output().expect("wait").into();
    assert_eq!(r.code, 2, "{}", r.err);
    assert!(r.err.contains("evidence changed"), "{}", r.err);
}

#[test]
fn results_are_read_without_the_program() {
    // Any reader of Parquet can open the tables: here, the library on its own.
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    std::fs::write(
        &path,
        image(1 << 20, &[(64, b"\0http://plain.example.org/\0")]),
    )
    .expect("write");
    let out = dir.path().join("out");
    ok(&scan(&path, &out, &[]));
    block_on(async {
        let t = local(&out, &QueryLimits::default()).expect("open");
        let key = Keys::new(&the_job(&out)).table("findings");
        t.register("f", &[key], None).await.expect("register");
        let rows = t
            .collect("SELECT value FROM f WHERE kind = 'url'")
            .await
            .expect("rows");
        assert_eq!(
            rows.iter()
                .map(arrow::array::RecordBatch::num_rows)
                .sum::<usize>(),
            1
        );
    });
}
