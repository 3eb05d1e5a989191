//! A made machine with Windows through the whole pipeline, against what was put into it.

use crate::distributed::{manifest, objects, submit, tables, upload};
use crate::embedded::{self, ok, query};
use ramsift_layers::page_file::place_of;
use ramsift_store::LocalObjects;
use ramsift_tests::fixtures::{make_windows, windows_machine};
use ramsift_tests::program::{Cluster, command, run, scan};
use ramsift_tests::{block_on, wait_for};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

#[path = "../../../crates/layers/tests/common/hiber.rs"]
mod hiber;
#[path = "../../../crates/layers/tests/common/hyperv.rs"]
mod hyperv;

/// A field of each process that runs and is in the list.
fn running(field: &str) -> BTreeSet<String> {
    let all = windows_machine().truth["processes"]
        .as_array()
        .expect("processes");
    let running = all.iter().filter(|p| p["in_active_list"] == true);
    running
        .map(|p| p[field].to_string().trim_matches('"').to_owned())
        .collect()
}

#[test]
fn a_scan_shows_what_the_intruder_left() {
    let m = windows_machine();
    let dir = tempfile::tempdir().expect("tempdir");
    let (out, rules) = (dir.path().join("out"), dir.path().join("secret.yar"));
    let story = &m.truth["story"];
    let secret = story["secret"]["text"].as_str().expect("text");
    // What a process wrote into the page file is its memory too.
    let paged = &story["paged"]["table"];
    let text = paged["text"].as_str().expect("text");
    let rule = format!(
        "rule secret : critical {{ strings: $a = \"{secret}\" condition: $a }}\n\
         rule paged : critical {{ strings: $a = \"{text}\" condition: $a }}"
    );
    std::fs::write(&rules, rule).expect("rule");
    let r = scan(&m.image, &out, &["--rules", &rules.display().to_string()]);
    assert_eq!(r.code, 0, "{}\n{}", r.out, r.err);
    let sealed = embedded::manifest(&out);
    assert_eq!(sealed.verdict.to_string(), "complete", "{:?}", sealed.gaps);
    let rows = query(
        &out,
        "SELECT os, status, found_by, build_id, page_files FROM system",
    );
    let named = m.page_file.display().to_string();
    let files = rows[0]["page_files"].as_str().expect("page files");
    assert!(files.contains(&named), "{files}");
    assert_eq!(rows[0]["os"], "windows");
    assert_eq!(rows[0]["found_by"], "a low top table that maps itself");
    let guid = m.truth["pdb"]["guid"].as_str().expect("guid");
    assert_eq!(rows[0]["build_id"], format!("{guid}-1"));
    let rows = query(&out, "SELECT pid FROM windows_pslist");
    let pids: BTreeSet<String> = rows.iter().map(|r| r["pid"].to_string()).collect();
    assert_eq!(pids, running("pid"));
    // Every view was built without a doubt.
    let rows = query(
        &out,
        "SELECT view, status, detail FROM views WHERE status <> 'built' OR doubtful > 0",
    );
    assert!(rows.is_empty(), "{rows:?}");
    let rows = query(
        &out,
        "SELECT DISTINCT path FROM findings WHERE kind = 'anomaly'",
    );
    let found: BTreeSet<String> = rows
        .iter()
        .map(|r| {
            r["path"]
                .as_str()
                .expect("path")
                .split('/')
                .next()
                .expect("table")
                .to_owned()
        })
        .collect();
    // The intruder's marks, a view each; crates/os compares every one with what the generator says it made, and finds none on
    // a machine without an intruder.
    let want = [
        "windows_callbacks",
        "windows_driverirp",
        "windows_driverscan",
        "windows_getsids",
        "windows_hollowprocesses",
        "windows_inline_hooks",
        "windows_ldrmodules",
        "windows_malfind",
        "windows_modscan",
        "windows_modules",
        "windows_netscan",
        "windows_pedump",
        "windows_privileges",
        "windows_psxview",
        "windows_services",
        "windows_ssdt",
        "windows_suspicious_threads",
        "windows_svcscan",
    ];
    assert_eq!(found, want.map(str::to_owned).into());
    // The rule fires in the process that has the text, at the address that it was put to.
    let pid = story["secret"]["pid"].as_i64().expect("pid");
    let rows = query(
        &out,
        "SELECT value, physical_address, fields FROM findings WHERE kind = 'yara' AND scope = 'process' ORDER BY value DESC",
    );
    assert_eq!(rows.len(), 2, "{rows:?}");
    let fields = rows[0]["fields"].as_str().expect("fields");
    assert!(fields.contains(&format!("\"pid\":{pid}")), "{fields}");
    let fields = rows[1]["fields"].as_str().expect("fields");
    for want in [
        format!("\"pid\":{}", paged["pid"]),
        format!("\"virtual_address\":{}", paged["va"]),
    ] {
        assert!(fields.contains(&want), "{want} {fields}");
    }
    let at = rows[1]["physical_address"].as_str().expect("address");
    let at = u64::from_str_radix(at.trim_start_matches("0x"), 16).expect("hexadecimal");
    assert_eq!(place_of(at).expect("in a page file").0, 0);
    let rows = query(
        &out,
        "SELECT number, trust, missing FROM windows_pagefiles WHERE file IS NOT NULL",
    );
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(
        (&rows[0]["trust"], &rows[0]["missing"]),
        (&"own".into(), &0.into())
    );
    // The pages for people.
    let job = sealed.job.clone();
    let store = out.display().to_string();
    let r = run(command().args(["--store", &store, "overview", &job]));
    ok(&r);
    assert!(r.out.contains("windows  10.0.19041  x86_64"), "{}", r.out);
    let image = m.image.display().to_string();
    let r = run(command().args(["process", &image, &pid.to_string()]));
    ok(&r);
    assert!(r.out.contains("notepad.exe"), "{}", r.out);
    // A short name means the captured system's view.
    let r = run(command().args(["view", "pslist", &image, "--format", "jsonl"]));
    ok(&r);
    assert_eq!(r.out.lines().count(), running("pid").len());
    let r = run(command().args(["view", "linux/pslist", &image]));
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("a capture of windows"), "{}", r.err);
}

#[test]
fn page_files_that_are_named_are_read_in_place_of_those_beside() {
    let m = windows_machine();
    let dir = tempfile::tempdir().expect("tempdir");
    let paged = &m.truth["story"]["paged"]["table"];
    let (text, pid) = (
        paged["text"].as_str().expect("text"),
        paged["pid"].to_string(),
    );
    let image = dir.path().join("moved.raw");
    std::fs::copy(&m.image, &image).expect("copied");
    let image = image.display().to_string();
    let grep = |more: &[&str]| {
        run(command()
            .args(["grep", text, &image, "--pid", &pid])
            .args(more))
    };
    let r = grep(&[]);
    assert!(!r.out.contains("PAGED-TABLE"), "{}", r.out);
    let own = m.page_file.display().to_string();
    let r = grep(&["--pagefile", &own]);
    ok(&r);
    assert!(r.out.contains("PAGED-TABLE"), "{}{}", r.out, r.err);
    // Beside the capture it is found by its name.
    std::fs::copy(&m.page_file, dir.path().join("pagefile.sys")).expect("copied");
    let r = grep(&[]);
    ok(&r);
    assert!(r.out.contains("PAGED-TABLE"), "{}{}", r.out, r.err);
    // One of another machine gives nothing.
    let other = dir.path().join("other.sys");
    std::fs::write(&other, vec![0x5a; 2 << 20]).expect("written");
    let other = other.display().to_string();
    let r = grep(&["--pagefile", &other]);
    assert!(!r.out.contains("PAGED-TABLE"), "{}", r.out);
    let r = run(command().args([
        "view",
        "pagefiles",
        &image,
        "--format",
        "jsonl",
        "--pagefile",
        &other,
    ]));
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    assert!(
        r.out.contains("\"foreign\"") && r.err.contains("another machine's"),
        "{}{}",
        r.out,
        r.err
    );
    for (name, why) in [
        ("/no/such.sys", "does not exist"),
        ("17=x.sys", "names no page file"),
    ] {
        let r = run(command().args(["view", "pslist", &image, "--pagefile", name]));
        assert_eq!(r.code, 2, "{}{}", r.out, r.err);
        assert!(r.err.contains(why), "{}", r.err);
    }
    // A folder's page file is no capture of its own.
    let out = dir.path().join("out");
    let r = scan(dir.path(), &out, &["--only", "structured"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    assert!(r.err.contains("a page file"), "{}", r.err);
}

#[test]
fn a_kernel_that_only_a_pass_leads_to_is_found_by_the_chunks() {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = ["--no-low-stub", "--high-table", "--decoys"];
    let m = make_windows(&dir.path().join("high"), &options);
    let out = dir.path().join("out");
    let r = scan(&m.image, &out, &[]);
    assert_eq!(r.code, 0, "{}\n{}", r.out, r.err);
    assert_eq!(embedded::manifest(&out).verdict.to_string(), "complete");
    let rows = query(&out, "SELECT os, found_by FROM system");
    assert_eq!(rows[0]["found_by"], "the anchors that chunks reported");
    let rows = query(
        &out,
        "SELECT pid FROM windows_pslist WHERE \"exit\" IS NULL",
    );
    let all = m.truth["processes"].as_array().expect("processes");
    let running = all
        .iter()
        .filter(|p| p["in_active_list"] == true && p["exit_time"].is_null());
    assert_eq!(rows.len(), running.count());
    // What waited for the chunks is what a view alone finds in a pass of its own.
    let image = m.image.display().to_string();
    for view in ["psscan", "filescan"] {
        let r = run(command().args(["view", view, &image, "--format", "jsonl"]));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        let sql = format!("SELECT count(*) AS n FROM windows_{view}");
        assert_eq!(query(&out, &sql)[0]["n"], r.out.lines().count(), "{view}");
    }
    // Views that scanned read the places that the chunks told of, not the image again.
    let store = LocalObjects::open_existing(&out).expect("store");
    let keys = ramsift_store::Keys::new(&embedded::manifest(&out).job);
    let commits = block_on(ramsift_store::commits::all(&store, &keys)).expect("commits");
    let scans = commits
        .iter()
        .flat_map(|c| &c.reports)
        .find(|r| r.task == "view-late-scans");
    let read = scans.expect("its report").bytes_read;
    let size = std::fs::metadata(&m.image).expect("image").len();
    assert!(read < size / 2, "{read} of {size}");
}

#[test]
fn the_demo_is_a_machine_after_an_intrusion() {
    let dir = tempfile::tempdir().expect("tempdir");
    let r = run(command().args(["demo", "--out", &dir.path().display().to_string()]));
    assert_eq!(r.code, 0, "{}\n{}", r.out, r.err);
    let out = dir.path().join("results");
    let sealed = embedded::manifest(&out);
    assert_eq!(sealed.verdict.to_string(), "complete", "{:?}", sealed.gaps);
    let rows = query(
        &out,
        "SELECT view, detail FROM views WHERE status <> 'built' OR doubtful > 0",
    );
    assert!(rows.is_empty(), "{rows:?}");
    // What the machine shows, and what was planted beside.
    for sql in [
        "SELECT * FROM findings WHERE kind = 'anomaly' AND path LIKE 'windows_psxview/%'",
        "SELECT * FROM findings WHERE kind = 'anomaly' AND path LIKE 'windows_malfind/%'",
        "SELECT * FROM findings WHERE kind = 'yara' AND value = 'demo_implant'",
        "SELECT * FROM windows_netstat WHERE state = 'ESTABLISHED'",
        "SELECT * FROM windows_dumpfiles WHERE path LIKE '%stage.ps1'",
        "SELECT * FROM windows_run_keys WHERE name = 'Updater'",
        "SELECT * FROM events WHERE source = 'sshd'",
    ] {
        assert!(!query(&out, sql).is_empty(), "{sql}");
    }
}

#[test]
fn a_cluster_reads_a_crash_dump_as_a_laptop_does() {
    let m = windows_machine();
    let dir = tempfile::tempdir().expect("tempdir");
    let out = dir.path().join("out");
    let r = scan(&m.dump, &out, &[]);
    assert_eq!(r.code, 0, "{}\n{}", r.out, r.err);
    let laptop = embedded::manifest(&out);
    let c = Cluster::start(&[]);
    upload(&c, "machine.dmp", &m.dump);
    let services = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ];
    let services: Vec<_> = services.iter().map(|s| c.service(s)).collect();
    services[0].await_ready();
    let job = submit(&c, &["s3://evidence/machine.dmp"]);
    wait_for("the job's end", Duration::from_secs(120), || {
        let results = objects(&c, "results", "r");
        let keys = ramsift_store::Keys::new(&job);
        use ramsift_store::Objects as _;
        block_on(results.head(&keys.manifest())).ok()
    });
    let sealed = manifest(&c, &job);
    assert_eq!(
        (sealed.verdict, sealed.format.as_str()),
        (laptop.verdict, "crash_dump"),
        "{:?}",
        sealed.gaps
    );
    let names = [
        "windows_pslist",
        "windows_psxview",
        "windows_netscan",
        "windows_handles",
        "windows_malfind",
        "frames",
    ];
    let here = Arc::new(LocalObjects::open_existing(&out).expect("store"));
    let there = Arc::new(objects(&c, "results", "r"));
    let strip = |all: Vec<(String, Vec<String>)>| {
        // What names the run: the capture's number and its pass.
        let plain = |row: String| {
            let mut v: serde_json::Value = serde_json::from_str(&row).expect("JSON");
            if let Some(o) = v.as_object_mut() {
                o.remove("capture");
                o.remove("pass");
            }
            v.to_string()
        };
        all.into_iter()
            .map(|(t, rows)| (t, rows.into_iter().map(plain).collect::<BTreeSet<_>>()))
            .collect::<Vec<_>>()
    };
    let a = strip(tables(here, &laptop.job, &names));
    let b = strip(tables(there, &job, &names));
    for (x, y) in a.iter().zip(&b) {
        assert!(x.1.len() > 1, "{}", x.0);
        assert_eq!(x, y);
    }
}

/// The machine as it hibernates: pages of zeros are left out, as Windows leaves out free ones.
#[test]
fn a_hibernated_machine_is_scanned() {
    let m = windows_machine();
    let dir = tempfile::tempdir().expect("tempdir");
    let image = std::fs::read(&m.image).expect("raw");
    let used: Vec<(u64, Vec<u8>)> = (0..)
        .step_by(4096)
        .zip(image.chunks_exact(4096))
        .filter(|(_, p)| p.iter().any(|b| *b != 0))
        .map(|(pa, p)| (pa, p.to_vec()))
        .collect();
    let file = dir.path().join("hiberfil.sys");
    let highest = image.len() as u64 / 4096 - 1;
    let h = hiber::Hiber {
        cr3: m.truth["dtb"].as_u64().expect("dtb"),
        highest: Some(highest),
        ..hiber::Hiber::of(0x3e0)
    };
    std::fs::write(&file, hiber::modern(&used, h)).expect("write");
    // Physical memory, page by page.
    let raw = dir.path().join("converted.raw");
    let r = run(command()
        .arg("convert")
        .arg(&file)
        .args(["--to", "raw", "-o"])
        .arg(&raw));
    assert_eq!(r.code, 3, "{}\n{}", r.out, r.err);
    let converted = std::fs::read(&raw).expect("raw");
    let whole = image.len().min(converted.len());
    assert!(converted[..whole] == image[..whole]);
    assert!(image[whole..].iter().all(|b| *b == 0));
    // What Windows left out is not there, so the scan is not complete; its views are those of the whole machine.
    let out = dir.path().join("out");
    let r = scan(&file, &out, &["--set", "scan.chunk_size=4194304"]);
    assert_eq!(r.code, 3, "{}\n{}", r.out, r.err);
    let sealed = embedded::manifest(&out);
    assert_eq!(sealed.format, "hiberfil");
    assert_ne!(sealed.verdict.to_string(), "complete");
    let lacks = format!(
        "{} of {} pages",
        highest + 1 - used.len() as u64,
        highest + 1
    );
    assert!(
        sealed
            .gaps
            .iter()
            .any(|g| format!("{g:?}").contains(&lacks)),
        "{:?}",
        sealed.gaps
    );
    let rows = query(&out, "SELECT os FROM system");
    assert_eq!(rows[0]["os"], "windows");
    let rows = query(&out, "SELECT pid FROM windows_pslist");
    let pids: BTreeSet<String> = rows.iter().map(|r| r["pid"].to_string()).collect();
    assert_eq!(pids, running("pid"));
}

/// The machine as Hyper-V saves it.
#[test]
fn a_machine_that_hyper_v_saved_is_scanned() {
    let m = windows_machine();
    let dir = tempfile::tempdir().expect("tempdir");
    let image = std::fs::read(&m.image).expect("raw");
    let (low, high) = image.split_at(48 << 20);
    let memory = [(0, low.to_vec()), (48 << 20, high.to_vec())];
    let state = hyperv::State {
        packed: true,
        objects: 100,
        log: 0,
    };
    let file = dir.path().join("machine.vmrs");
    let dtb = m.truth["dtb"].as_u64().expect("dtb");
    std::fs::write(&file, hyperv::vmrs(&memory, state, dtb)).expect("write");
    let raw = dir.path().join("converted.raw");
    ok(&run(command()
        .arg("convert")
        .arg(&file)
        .args(["--to", "raw", "-o"])
        .arg(&raw)));
    assert!(std::fs::read(&raw).expect("raw") == image);
    let out = dir.path().join("out");
    ok(&scan(&file, &out, &["--set", "scan.chunk_size=1048576"]));
    let sealed = embedded::manifest(&out);
    assert_eq!(
        (sealed.format.as_str(), sealed.verdict.as_str()),
        ("hyperv", "complete")
    );
    let rows = query(&out, "SELECT pid FROM windows_pslist");
    let pids: BTreeSet<String> = rows.iter().map(|r| r["pid"].to_string()).collect();
    assert_eq!(pids, running("pid"));
    // A file that was copied while it was written is not all there.
    let state = hyperv::State { log: 2, ..state };
    std::fs::write(&file, hyperv::vmrs(&memory, state, dtb)).expect("write");
    let r = run(command().arg("inspect").arg(&file));
    assert!(
        r.code == 3 && r.out.contains("2 changes"),
        "{}{}",
        r.out,
        r.err
    );
}
