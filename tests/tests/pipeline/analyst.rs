//! The command line as a person uses it: slips, pipes, copies, hostile names, many captures.

use crate::embedded::{manifest, ok, query};
use ramsift_proto::v1::SegmentRef;
use ramsift_store::commits::{self, CommitSegments};
use ramsift_store::{Keys, LocalObjects, Objects};
use ramsift_tests::block_on;
use ramsift_tests::fixtures::{capture, image, noise, planted};
use ramsift_tests::program::{Run, command, run, scan};
use ramsift_tests::servers::{CLAM_NEEDLE, Clamd};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;

fn ramsift(store: &Path, args: &[&str]) -> Run {
    run(command().arg("--store").arg(store).args(args))
}

fn job_of(store: &Path) -> String {
    manifest(store).job
}

/// Characters that command a terminal or hide in text, by ECMA-48 and UAX #9.
fn commands(text: &str) -> Vec<char> {
    let acts = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(*c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().filter(acts).collect()
}

const HOSTILE: &str = "\u{1b}[2J\u{9b}31m\u{202e}gpj.exe\u{7}";

#[test]
fn slips_get_a_suggestion_and_exit_code_2() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    ok(&scan(&p.image, &out, &[]));
    let job = job_of(&out);
    for (args, meant) in [
        (vec!["view", "pslits", "x.mem"], "linux/pslist"),
        (vec!["results", "--kind", "urls"], "url"),
        (vec!["query", "SELECT * FROM finding"], "findings"),
        (
            vec!["export", "--format", "csv", "--table", "event"],
            "events",
        ),
        (vec!["status", "plantd-64-1.img"], &job),
        (vec!["results", "--columns", "valu"], "value"),
    ] {
        let r = ramsift(&out, &args);
        assert_eq!(r.code, 2, "{args:?}: {}", r.err);
        assert!(
            r.err.contains(&format!("did you mean {meant}")),
            "{args:?}: {}",
            r.err
        );
    }
    let r = ramsift(&out, &["query", "SELECT nothing FROM findings"]);
    assert_eq!(r.code, 2);
    assert!(!r.err.contains("panicked"), "{}", r.err);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let dir = tempfile::tempdir().expect("tempdir");
    let p = planted();
    let out = dir.path().join("out");
    ok(&scan(&p.image, &out, &[]));
    let commands: [&[&str]; 4] = [
        &["view", "--list"],
        &["results", "--limit", "0"],
        &["query", "SELECT * FROM findings", "--format", "jsonl"],
        &["query", "SELECT * FROM findings", "--format", "csv"],
    ];
    for args in commands {
        let mut child = command()
            .arg("--store")
            .arg(&out)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut first = [0; 64];
        let mut pipe = child.stdout.take().expect("a pipe");
        pipe.read_exact(&mut first).expect("the first bytes");
        drop(pipe);
        let done: Run = child.wait_with_output().expect("it ends").into();
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn a_list_that_was_cut_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let p = planted();
    let out = dir.path().join("out");
    ok(&scan(&p.image, &out, &[]));
    let groups = query(
        &out,
        "SELECT count(*) AS n FROM (SELECT DISTINCT kind, detector, value FROM findings)",
    );
    let all = groups[0]["n"].as_i64().expect("a number");
    let r = ramsift(&out, &["results"]);
    ok(&r);
    assert_eq!(r.out.lines().count(), 51, "a header and fifty rows");
    let plain: String = r.err.chars().filter(char::is_ascii_digit).collect();
    assert!(plain.starts_with(&format!("50{all}")), "{} of {all}", r.err);
    assert!(r.err.contains("--limit 0 for all"));
    let r = ramsift(&out, &["results", "--limit", "0"]);
    assert_eq!(r.out.lines().count() as i64, all + 1);
    assert_eq!(r.err, "");
}

/// The table of groups against a grouping of the findings that another program's SQL could do.
#[test]
fn groups_count_what_the_findings_hold() {
    let dir = tempfile::tempdir().expect("tempdir");
    let p = planted();
    let out = dir.path().join("out");
    ok(&scan(
        &p.image,
        &out,
        &["--rules", &p.rules.display().to_string()],
    ));
    let key = |r: &serde_json::Value| {
        let text = |n: &str| r[n].as_str().unwrap_or("").to_owned();
        (text("kind"), text("detector"), text("value"))
    };
    let mut want: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for f in query(
        &out,
        "SELECT kind, detector, value, image_offset FROM findings",
    ) {
        let at = f["image_offset"].as_u64().expect("an offset");
        let g = want.entry(key(&f)).or_insert((0, u64::MAX));
        *g = (g.0 + 1, g.1.min(at));
    }
    let groups = query(&out, "SELECT * FROM groups ORDER BY position");
    let got: BTreeMap<_, _> = groups
        .iter()
        .map(|g| {
            (
                key(g),
                (
                    g["count"].as_u64().unwrap_or(0),
                    g["first_offset"].as_u64().unwrap_or(0),
                ),
            )
        })
        .collect();
    assert_eq!(got.len(), groups.len(), "each value once");
    assert_eq!(got, want);
    let ranks: Vec<_> = groups.iter().map(|g| g["severity_rank"].as_u64()).collect();
    assert!(ranks.is_sorted_by(|a, b| a >= b), "the loudest first");
}

#[test]
fn hostile_names_and_values_command_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let name = format!("a{HOSTILE}.mem");
    let path = dir.path().join(&name);
    let line = format!(
        "\nJan  2 03:04:05 web01 sshd[1]: Failed password for {HOSTILE} from 192.0.2.1 port 22 ssh2\n"
    );
    let json = format!(
        "\n{{\"time\":\"2026-01-02T03:04:05Z\",\"msg\":\"{}\"}}\n",
        "\\u001b[2J\\u202e\\u009b"
    );
    std::fs::write(
        &path,
        image(
            1 << 20,
            &[(0, line.as_bytes()), (5 * 4096, json.as_bytes())],
        ),
    )
    .expect("write");
    let rules = dir.path().join("r.yar");
    std::fs::write(&rules, "rule r { meta: description = \"\\x1b[2J\" strings: $a = \"web01\" condition: $a }\nrule broken { condition: \u{202e}x }\n").expect("write");
    let out = dir.path().join("out");
    let r = scan(&path, &out, &["--rules", &rules.display().to_string()]);
    assert_eq!(commands(&r.out), Vec::<char>::new(), "{:?}", r.out);
    assert_eq!(commands(&r.err), Vec::<char>::new(), "{:?}", r.err);
    let job = job_of(&out);
    let alias = format!("SELECT 1 AS \"a{HOSTILE}\"");
    let all: [&[&str]; 11] = [
        &["jobs"],
        &["status", &job],
        &["results", "--each", "--limit", "0"],
        &["results", "--since", "2000-01-01"],
        &["query", "SELECT * FROM events"],
        &["query", "SELECT * FROM events", "--format", "csv"],
        &["query", "SELECT * FROM events", "--format", "jsonl"],
        &["query", &alias],
        &["query", &alias, "--format", "csv"],
        &["overview"],
        &[
            "grep",
            "Failed",
            path.to_str().expect("UTF-8"),
            "--image-only",
        ],
    ];
    for args in all {
        let r = ramsift(&out, args);
        assert_eq!(
            commands(&r.out),
            Vec::<char>::new(),
            "{args:?}: {:?}",
            r.out
        );
        assert_eq!(
            commands(&r.err),
            Vec::<char>::new(),
            "{args:?}: {:?}",
            r.err
        );
        assert!(!r.out.is_empty(), "{args:?}: {}", r.err);
    }
    // Nothing is lost on the way: JSON has the same text.
    let messages = query(&out, "SELECT message FROM events WHERE source = 'json'");
    assert!(
        messages.iter().any(|m| m["message"]
            .as_str()
            .is_some_and(|s| s.contains('\u{202e}'))),
        "{messages:?}"
    );
}

#[test]
fn names_of_files_that_are_no_text_work() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("captures");
    std::fs::create_dir(&folder).expect("folder");
    let name = OsStr::from_bytes(b"caf\xe9-\xff.mem");
    let path = folder.join(name);
    std::fs::write(
        &path,
        image(1 << 20, &[(5000, b"\0https://name.example.net/x\0")]),
    )
    .expect("write");
    for what in [path.as_path(), folder.as_path()] {
        let out = dir.path().join("out");
        ok(&scan(what, &out, &["--fresh"]));
        let found = query(&out, "SELECT value FROM findings WHERE kind = 'url'");
        assert_eq!(found[0]["value"], "https://name.example.net/x");
    }
    let r = run(command()
        .arg("verify")
        .arg(dir.path().join("out"))
        .arg("--evidence")
        .arg(&path));
    ok(&r);
}

#[test]
fn cells_that_a_spreadsheet_would_run_are_escaped() {
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let path = dir.path().join("a.mem");
    std::fs::write(
        &path,
        image(
            1 << 20,
            &[(0, b"\n2026-01-02T03:04:05Z =cmd|' /C calc'!A0\n")],
        ),
    )
    .expect("write");
    ok(&scan(&path, &out, &[]));
    let select = "SELECT '=1+1' AS a, '@x' AS b, '-5' AS c, -5 AS d, 'plain' AS e";
    let csv = |more: &[&str]| {
        let args = [&["query", select, "--format", "csv"][..], more].concat();
        ramsift(&out, &args).out
    };
    assert_eq!(csv(&[]).lines().nth(1), Some("'=1+1,'@x,-5,-5,plain"));
    assert_eq!(
        csv(&["--raw-csv"]).lines().nth(1),
        Some("=1+1,@x,-5,-5,plain")
    );
}

#[test]
fn many_captures_end_with_one_table_and_can_be_asked_together() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("captures");
    std::fs::create_dir(&folder).expect("folder");
    for i in 0..12 {
        let own = format!("\0https://own{i}.example.net/x\0");
        let all = b"\0https://everywhere.example.net/x\0";
        let bytes = image(1 << 20, &[(5000, own.as_bytes()), (9000, all)]);
        std::fs::write(folder.join(format!("host{i:02}.mem")), bytes).expect("write");
    }
    let out = dir.path().join("out");
    let r = scan(&folder, &out, &[]);
    ok(&r);
    let at = r.out.find("12 captures:").expect("a table of all captures");
    let table: Vec<&str> = r.out[at..].lines().collect();
    assert_eq!(table.len(), 14, "{}", &r.out[at..]);
    let r = ramsift(&out, &["jobs"]);
    ok(&r);
    assert_eq!(
        r.out.lines().filter(|l| l.contains("complete")).count(),
        12,
        "{}",
        r.out
    );
    let r = ramsift(&out, &["results"]);
    assert_eq!(r.code, 2);
    assert!(
        r.err.contains("There are 12, among them") && r.err.contains("name one"),
        "{}",
        r.err
    );
    let r = ramsift(
        &out,
        &[
            "results", "--all", "--kind", "url", "--limit", "0", "--format", "jsonl",
        ],
    );
    ok(&r);
    let rows: Vec<serde_json::Value> = r
        .out
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 13);
    let of = |value: &str| {
        rows.iter()
            .position(|r| r["value"] == value)
            .expect("found")
    };
    assert_eq!(rows[of("https://everywhere.example.net/x")]["captures"], 12);
    assert_eq!(rows[of("https://own3.example.net/x")]["captures"], 1);
    assert_eq!(
        of("https://everywhere.example.net/x"),
        12,
        "the rarest first"
    );
}

#[test]
fn grep_finds_what_a_search_of_the_bytes_finds() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let wide: Vec<u8> = "Needle-7"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    // At the borders of the pieces that are searched, too.
    let places = [
        17usize,
        4096 - 3,
        (16 << 20) - 4,
        (16 << 20) + 4,
        (20 << 20) + 5,
    ];
    let mut bytes = image(24 << 20, &[]);
    for at in places {
        bytes[at..at + 8].copy_from_slice(b"Needle-7");
    }
    bytes[9 << 20..(9 << 20) + 16].copy_from_slice(&wide);
    std::fs::write(&path, &bytes).expect("write");
    let grep = |args: &[&str]| {
        let r = run(command().arg("grep").args(args).arg(&path).args([
            "--image-only",
            "--format",
            "jsonl",
        ]));
        assert!(r.code <= 1, "{}", r.err);
        let mut at: Vec<u64> = r
            .out
            .lines()
            .map(|l| {
                serde_json::from_str::<serde_json::Value>(l).expect("JSON")["image_offset"]
                    .as_u64()
                    .expect("offset")
            })
            .collect();
        at.sort_unstable();
        (r.code, at)
    };
    let mut want: Vec<u64> = places.iter().map(|p| *p as u64).chain([9 << 20]).collect();
    want.sort_unstable();
    assert_eq!(grep(&["Needle-7"]), (0, want.clone()));
    assert_eq!(grep(&["-i", "nEEDLE-7"]), (0, want.clone()));
    assert_eq!(grep(&["-e", "Needle-[0-9]"]), (0, want.clone()));
    want.retain(|at| *at != 9 << 20);
    assert_eq!(grep(&["Needle-7", "--no-utf16"]), (0, want.clone()));
    assert_eq!(grep(&["--hex", "4e6565646c652d37"]), (0, want));
    assert_eq!(grep(&["needle-8"]), (1, vec![]));
}

#[test]
fn sql_has_hex_json_and_every_table() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let line = b"\n{\"time\":\"2026-01-02T03:04:05Z\",\"level\":\"warn\",\"msg\":\"x\"}\n";
    std::fs::write(&path, image(1 << 20, &[(0x6000, line)])).expect("write");
    let out = dir.path().join("out");
    ok(&scan(&path, &out, &[]));
    let got = query(
        &out,
        "SELECT fields->>'level' AS level, physical_address, host FROM events WHERE physical_address >= 0x6000 AND source = 'json'",
    );
    assert_eq!(got[0]["level"], "warn");
    assert_eq!(got[0]["physical_address"], "0x6001");
    assert!(
        got[0].as_object().expect("an object").contains_key("host"),
        "null keys are kept"
    );
    assert_eq!(query(&out, "SELECT count(*) AS n FROM frames")[0]["n"], 0);
    let r = ramsift(&out, &["query", "SHOW TABLES", "--format", "jsonl"]);
    ok(&r);
    for table in [
        "findings",
        "events",
        "artifacts",
        "groups",
        "coverage",
        "captures",
        "system",
        "frames",
        "views",
    ] {
        assert!(
            r.out.contains(&format!("\"{table}\"")),
            "{table}: {}",
            r.out
        );
    }
}

/// Files that hold no memory, by what their formats' specifications begin with.
#[test]
fn what_is_no_memory_is_never_complete() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut wrong = Vec::new();
    let headers: Vec<(&str, Vec<u8>)> = vec![
        ("qcow2", b"QFI\xfb\0\0\0\x03".to_vec()),
        ("vmdk", b"KDMV\x01\0\0\0".to_vec()),
        ("vhdx", b"vhdxfile".to_vec()),
        ("ewf2", b"EVF2\r\n\x81\0".to_vec()),
        ("libvirt", b"LibvirtQemudSave\x02\0\0\0".to_vec()),
        ("virtualbox", b"\x7fVirtualBox SavedState V2.0\n\0".to_vec()),
        ("lime version 2", b"EMiL\x02\0\0\0".to_vec()),
        ("7z", b"7z\xbc\xaf\x27\x1c".to_vec()),
        ("encrypted", Vec::new()),
        ("tar", {
            let mut t = vec![0u8; 512];
            t[..11].copy_from_slice(b"memory.lime");
            t[124..136].copy_from_slice(b"00000040000\0");
            t[148..156].fill(b' ');
            let sum: u32 = t.iter().map(|b| u32::from(*b)).sum();
            t[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            t
        }),
    ];
    for (name, head) in headers {
        let path = dir.path().join(format!("{name}.mem"));
        let mut bytes = head;
        bytes.extend(noise(7, 1 << 20));
        std::fs::write(&path, &bytes).expect("write");
        let r = scan(&path, &dir.path().join("out"), &["--fresh"]);
        let said = format!("{}{}", r.out, r.err);
        let named =
            r.code == 2 || (r.code == 3 && said.contains("does not look like physical memory"));
        if !named || said.contains("coverage  complete\n") {
            wrong.push(format!("{name}: {} {said}", r.code));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_image_in_which_nothing_is_was_not_acquired() {
    let dir = tempfile::tempdir().expect("tempdir");
    for byte in [0, 0xff] {
        let path = dir.path().join("nothing.mem");
        std::fs::write(&path, vec![byte; 3 << 20]).expect("write");
        let r = scan(&path, &dir.path().join("out"), &["--fresh"]);
        let said = format!("{}{}", r.out, r.err);
        assert_eq!(r.code, 3, "{said}");
        assert!(said.contains("each of its 768 pages"), "{said}");
    }
}

/// A job whose capture has moved answers from its tables, and from the capture's new place once that was checked.
#[test]
fn a_job_outlives_the_place_of_its_capture() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let (first, second) = (dir.path().join("first.raw"), dir.path().join("second.raw"));
    std::fs::copy(&c.image, &first).expect("copy");
    let out = dir.path().join("out");
    // The hash is of all bytes, which the carvers' pass reads.
    let r = scan(&first, &out, &[]);
    assert!(r.code <= 3 && r.code != 2, "{}", r.err);
    std::fs::rename(&first, &second).expect("rename");
    let job = job_of(&out);
    let pids = |args: &[&str]| {
        let r = ramsift(
            &out,
            &[args, &["--format", "jsonl", "--columns", "pid,comm"]].concat(),
        );
        assert!(r.code == 0 || r.code == 3, "{args:?}: {}", r.err);
        r.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let of_table = pids(&["view", "pslist", &job]);
    let second = second.to_str().expect("UTF-8");
    assert_eq!(
        of_table,
        pids(&["view", "linux.pslist", &job, "--evidence", second])
    );
    assert_eq!(of_table, pids(&["view", "linux/pslist", second]));
    let some = pids(&[
        "view",
        "pslist",
        &job,
        "--pid",
        "1",
        "--where",
        "comm IS NOT NULL",
        "--sort",
        "-pid",
        "--limit",
        "1",
    ]);
    assert_eq!(some.len(), 1);
    // What sshd logged is told, whether or not a file of utmp(5) is cached.
    let logged = query(
        &out,
        "SELECT count(*) AS n FROM events WHERE source = 'sshd' AND (message LIKE 'Accepted % for %' OR message LIKE 'Failed % for %')",
    );
    let r = ramsift(&out, &["logins", &job, "--format", "jsonl", "--limit", "0"]);
    let told = r.out.lines().filter(|l| l.contains("log of sshd")).count() as u64;
    assert!(
        logged[0]["n"].as_u64() == Some(told) && told > 0,
        "{told} of {logged:?}: {}",
        r.err
    );
    let r = ramsift(&out, &["ls", &format!("{job}:/etc")]);
    ok(&r);
    assert!(
        r.out.contains("passwd") && r.err.contains("--evidence"),
        "{}{}",
        r.out,
        r.err
    );
    let r = ramsift(&out, &["cat", &format!("{job}:/etc/passwd")]);
    assert_eq!(r.code, 2);
    assert!(r.err.contains("--evidence"), "{}", r.err);
    let r = ramsift(
        &out,
        &["cat", &format!("{job}:/etc/passwd"), "--evidence", second],
    );
    assert!(r.code == 0 || r.code == 3, "{}", r.err);
    assert!(r.out.starts_with("root:"), "{}", r.out);
    // Something else is not taken for it.
    let other = dir.path().join("other.raw");
    let len = std::fs::metadata(second).expect("there").len();
    std::fs::File::create(&other)
        .and_then(|f| f.set_len(len))
        .expect("file");
    let r = ramsift(
        &out,
        &[
            "cat",
            &format!("{job}:/etc/passwd"),
            "--evidence",
            other.to_str().expect("UTF-8"),
        ],
    );
    assert_eq!(r.code, 2);
    assert!(r.err.contains("BLAKE3"), "{}", r.err);
    for page in [vec!["overview"], vec!["process", &job, "1"]] {
        let r = ramsift(&out, &page);
        ok(&r);
        assert!(r.out.lines().count() > 5, "{page:?}: {}", r.out);
    }
}

/// Signatures that lie in memory and in no file: each once, at its place, wherever chunks and pieces end.
#[test]
fn signatures_in_memory_are_found_once_each_at_their_places() {
    let clamd = Clamd::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let len = CLAM_NEEDLE.len();
    let mib = 1usize << 20;
    // Beside each other, across pages, chunks of 1 MiB, pieces of 15 MiB, at both ends of the image.
    let places = [
        0,
        4096 - 5,
        3 * mib - 7,
        5 * mib + 100,
        5 * mib + 100 + len,
        15 * mib - 3,
        16 * mib + 1,
        20 * mib - len,
    ];
    let mut bytes = image(20 * mib, &[]);
    for at in places {
        bytes[at..at + len].copy_from_slice(CLAM_NEEDLE);
    }
    std::fs::write(&path, &bytes).expect("write");
    let address = clamd.address();
    for more in [
        vec![],
        vec![
            "--set",
            "scan.chunk_size=1048576",
            "--set",
            "scan.overlap=524288",
        ],
    ] {
        let out = dir.path().join(format!("out{}", more.len()));
        let args = [&["--clamd", &address, "--av", "memory"][..], &more].concat();
        ok(&scan(&path, &out, &args));
        let found = query(
            &out,
            "SELECT image_offset, length, scope FROM findings WHERE kind = 'av' ORDER BY image_offset",
        );
        let got: Vec<(usize, usize)> = found
            .iter()
            .map(|f| {
                (
                    f["image_offset"].as_u64().unwrap_or(0) as usize,
                    f["length"].as_u64().unwrap_or(0) as usize,
                )
            })
            .collect();
        assert_eq!(got, places.map(|at| (at, len)));
        let looked = &manifest(&out).coverage["clamav memory"];
        assert_eq!(looked.scanned + looked.sparse, bytes.len() as u64);
    }
    let out = dir.path().join("files");
    ok(&scan(&path, &out, &["--clamd", &address, "--av", "files"]));
    assert_eq!(
        query(&out, "SELECT 1 FROM findings WHERE kind = 'av'").len(),
        0
    );
}

#[test]
fn all_matches_can_be_had() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let mut bytes = image(8 << 20, &[]);
    let places: Vec<usize> = (0..530).map(|i| 777 + i * 15_000).collect();
    for at in &places {
        bytes[*at..at + 12].copy_from_slice(b"needle-55-xy");
    }
    std::fs::write(&path, &bytes).expect("write");
    let rules = dir.path().join("r.yar");
    std::fs::write(
        &rules,
        "rule r { strings: $a = \"needle-55\" $b = \"never-there\" condition: any of them }",
    )
    .expect("write");
    let out = dir.path().join("out");
    ok(&scan(
        &path,
        &out,
        &["--rules", &rules.display().to_string(), "--matches", "all"],
    ));
    let rows = query(
        &out,
        "SELECT image_offset, pattern FROM yara_matches ORDER BY image_offset",
    );
    let got: Vec<u64> = rows
        .iter()
        .filter_map(|r| r["image_offset"].as_u64())
        .collect();
    assert_eq!(got, places.iter().map(|p| *p as u64).collect::<Vec<_>>());
    assert_eq!(rows[0]["pattern"], "$a");
}

#[test]
fn a_job_that_is_not_sealed_can_be_asked() {
    let p = planted();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let cut = ["--set", "scan.chunk_size=16777216"];
    ok(&scan(&p.image, &out, &cut));
    let job = job_of(&out);
    let counts = || {
        let sql = "SELECT count(*) AS n FROM findings";
        let n = query(&out, sql)[0]["n"].as_u64().expect("a number");
        let sql = "SELECT count(*) AS n FROM events";
        (n, query(&out, sql)[0]["n"].as_u64().expect("a number"))
    };
    let sealed = counts();
    assert!(sealed.0 > 0 && sealed.1 > 0);
    // As it was before its end: records and segments, no tables.
    let folder = out.join("jobs").join(&job);
    std::fs::remove_file(folder.join("manifest.json")).expect("a manifest");
    std::fs::remove_dir_all(folder.join("tables")).expect("tables");
    assert_eq!(counts(), sealed, "the segments hold what the tables held");
    let r = ramsift(&out, &["results", &job, "--kind", "url"]);
    assert_eq!(r.code, 0, "{}", r.err);
    assert!(r.err.contains("so far: 100 %"), "{}", r.err);
    assert!(r.out.contains("url"), "{}", r.out);
    // Without the report of one chunk of four its rows are gone, out of segments that hold others' too.
    let mut left = 0;
    let store = LocalObjects::open(&out).expect("the store");
    let keys = Keys::new(&job);
    for mut record in block_on(commits::all(&store, &keys)).expect("records") {
        record.reports.retain(|r| r.task != "chunk-0");
        let findings = |s: &&SegmentRef| s.table == "findings";
        for s in record.segments.iter().filter(findings) {
            let others = s.parts.iter().filter(|p| p.task != "chunk-0");
            left += others.map(|p| p.rows).sum::<u64>();
        }
        let own = record.reports.iter().flat_map(|r| &r.segments);
        left += own.filter(findings).map(|s| s.rows).sum::<u64>();
        // The rows stay where they are, in an object that is no commit any more.
        let key = keys.commit(&record.id);
        let (rows, _) = block_on(store.get(&key)).expect("a commit");
        let aside = key.replace("/commits/", "/aside/");
        block_on(store.put(&aside, rows)).expect("put");
        for s in &mut record.segments {
            s.key = s.key.replace("/commits/", "/aside/");
        }
        let data = commits::encode(record, CommitSegments::default()).expect("JSON");
        block_on(store.put(&key, data)).expect("put");
    }
    assert!(0 < left && left < sealed.0, "{left} of {}", sealed.0);
    assert_eq!(counts().0, left);
    let r = ramsift(&out, &["query", "SELECT count(*) FROM findings"]);
    assert_eq!(r.code, 0, "{}", r.err);
    assert!(r.err.contains("so far: 75 %"), "{}", r.err);
    // Nothing was written.
    assert!(!folder.join("tables").exists());
}
