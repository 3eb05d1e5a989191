//! `ramsift inspect`: what captures are, against what their makers say of them.

use crate::distributed::upload;
use ramsift_tests::dumps::{avml_capture, dumps};
use ramsift_tests::fixtures::{capture, planted};
use ramsift_tests::program::{Cluster, Run, command, run};
use serde_json::Value;
use std::path::Path;

/// The rows of a run in JSON, by the last part of the capture's name.
fn rows(r: &Run) -> Vec<(String, Value)> {
    let one = |l: &str| {
        let v: Value = serde_json::from_str(l).expect("JSON");
        let name = v["capture"].as_str().expect("a name");
        (name.rsplit('/').next().unwrap_or(name).to_owned(), v)
    };
    r.out.lines().map(one).collect()
}

fn row<'a>(rows: &'a [(String, Value)], name: &str) -> &'a Value {
    let found = rows.iter().find(|(n, _)| n == name);
    &found
        .unwrap_or_else(|| panic!("no row of {name}: {rows:#?}"))
        .1
}

fn link(dir: &Path, name: &str, to: &Path) {
    // A hard link or a copy: links to elsewhere are not followed in folders.
    let at = dir.join(name);
    std::fs::hard_link(to, &at)
        .or_else(|_| std::fs::copy(to, &at).map(|_| ()))
        .expect("a copy");
}

#[test]
fn one_capture_is_told_on_a_page() {
    let c = capture();
    let release = c.truth["uname"][2].as_str().expect("a release");
    let r = run(command()
        .arg("inspect")
        .arg(c.image.with_file_name("memory.lime")));
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    let line = |name: &str| {
        let of = r.out.lines().find_map(|l| l.strip_prefix(name));
        of.unwrap_or_else(|| panic!("no line {name}: {}", r.out))
            .trim()
            .to_owned()
    };
    assert_eq!(line("status"), "ok");
    assert_eq!(line("format"), "lime, 1");
    assert_eq!(line("system"), "linux");
    assert_eq!(line("kernel"), release);
    assert!(line("structured").starts_with("possible"));
    // The ranges are those of /proc/iomem.
    let ram = c.info["system_ram"].as_array().expect("ranges");
    let end = ram.last().expect("one")[1].as_u64().expect("an address") + 1;
    let first = ram[0][0].as_u64().expect("an address");
    let runs = format!("{}, physical {first:#x} to ", ram.len());
    assert!(line("runs").starts_with(&runs), "{}", line("runs"));
    assert!(
        line("runs").contains(&format!("{:#x}", end / 4096 * 4096)),
        "{}",
        line("runs")
    );
}

#[test]
fn a_folder_gives_a_line_for_each_and_goes_on_after_what_cannot_be_read() {
    let c = capture();
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| dir.path().join(n);
    link(dir.path(), "a.raw", &c.image);
    link(dir.path(), "b.avml", avml_capture());
    link(dir.path(), "c.elf", &c.image.with_file_name("memory.elf"));
    link(
        dir.path(),
        "d.kdump",
        &dumps().join("makedumpfile-lzo.kdump"),
    );
    link(dir.path(), "e.mem", &planted().image);
    std::fs::write(at("notes.txt"), "notes").expect("write");
    let inspect = |more: &[&str]| {
        let mut c = command();
        c.arg("inspect")
            .arg(dir.path())
            .args(["--format", "jsonl"])
            .args(more);
        run(&mut c)
    };
    let r = inspect(&[]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    let all = rows(&r);
    assert_eq!(all.len(), 6);
    let release = &c.truth["uname"][2];
    for (name, format) in [
        ("a.raw", "raw"),
        ("b.avml", "avml"),
        ("c.elf", "elf_core"),
        ("d.kdump", "kdump"),
    ] {
        let v = row(&all, name);
        assert_eq!(
            (&v["status"], &v["format"]),
            (&"ok".into(), &format.into()),
            "{v}"
        );
        assert_eq!(
            (&v["system"], &v["kernel"]),
            (&"linux".into(), release),
            "{v}"
        );
        assert_eq!(v["structured"], "possible: processes can be listed");
        assert_eq!(v["missing_bytes"], 0);
    }
    assert_eq!(row(&all, "a.raw")["image_size"], 256 << 20);
    assert_eq!(row(&all, "d.kdump")["architecture"], "x86_64");
    let made = row(&all, "e.mem");
    assert_eq!(made["system"], Value::Null, "{made}");
    assert_eq!(row(&all, "notes.txt")["status"], "no capture");
    // What is cut has gaps; what can't be read is a line, too.
    let whole = std::fs::read(c.image.with_file_name("memory.lime")).expect("lime");
    std::fs::write(at("cut.lime"), &whole[..whole.len() / 2]).expect("write");
    let r = inspect(&[]);
    assert_eq!(r.code, 3, "{}", r.err);
    let all = rows(&r);
    let v = row(&all, "cut.lime");
    assert_eq!(v["status"], "gaps");
    let missing = v["missing_bytes"].as_u64().expect("a number");
    assert_eq!(missing, (whole.len() - whole.len() / 2) as u64);
    let mut disk = b"QFI\xfb\0\0\0\x03".to_vec();
    disk.resize(1 << 20, 0);
    std::fs::write(at("disk.raw"), &disk).expect("write");
    let r = inspect(&[]);
    assert_eq!(r.code, 2, "{}", r.err);
    let all = rows(&r);
    let v = row(&all, "disk.raw");
    assert_eq!(v["status"], "unreadable");
    assert!(
        v["problem"].as_str().is_some_and(|p| p.contains("qcow2")),
        "{v}"
    );
    assert_eq!(row(&all, "b.avml")["status"], "ok");
    // For people: the same in columns.
    let r = run(command().arg("inspect").arg(dir.path()));
    assert!(r.out.starts_with("capture"), "{}", r.out);
    assert_eq!(r.out.lines().count(), 9, "{}", r.out);
    let r = run(command().args(["inspect", "/no/such/capture.mem"]));
    assert_eq!(r.code, 2);
    assert!(r.out.contains("no such file"), "{}", r.out);
}

/// A prefix in a store is looked at with small reads.
#[test]
fn objects_are_looked_at_with_little() {
    let c = Cluster::start(&[]);
    let of = capture();
    upload(&c, "set/memory.raw", &of.image);
    upload(
        &c,
        "set/memory.lime",
        &of.image.with_file_name("memory.lime"),
    );
    upload(&c, "set/memory.avml", avml_capture());
    upload(
        &c,
        "set/zlib.kdump",
        &dumps().join("makedumpfile-zlib.kdump"),
    );
    let inspect = |more: &[&str]| {
        let r = run(c
            .command()
            .args(["inspect", "s3://evidence/set/", "--format", "jsonl"])
            .args(more));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        rows(&r)
    };
    let all = inspect(&[]);
    let release = &of.truth["uname"][2];
    for name in ["memory.raw", "memory.lime"] {
        let v = row(&all, name);
        assert_eq!(
            (&v["system"], &v["kernel"]),
            (&"linux".into(), release),
            "{v}"
        );
        assert!(
            v["structured"]
                .as_str()
                .is_some_and(|s| s.contains("--deep")),
            "{v}"
        );
        assert!(v["bytes_read"].as_u64().is_some_and(|n| n < 4 << 20), "{v}");
    }
    for (name, v) in &all {
        println!("{name}: {} bytes, {} ms", v["bytes_read"], v["millis"]);
    }
    // The names in a kdump's header are its kernel's.
    let v = row(&all, "zlib.kdump");
    assert_eq!(
        (&v["system"], &v["kernel"]),
        (&"linux".into(), release),
        "{v}"
    );
    for name in ["memory.avml", "zlib.kdump"] {
        let v = row(&all, name);
        assert!(v["bytes_read"].as_u64().is_some_and(|n| n < 1 << 20), "{v}");
        assert!(
            v["structured"]
                .as_str()
                .is_some_and(|s| s.contains("--deep")),
            "{v}"
        );
    }
    // Of a kdump the bitmap says how much memory was dumped.
    let dumped = row(&all, "zlib.kdump")["image_size"]
        .as_u64()
        .expect("counted");
    assert!((250 << 20..256 << 20).contains(&dumped), "{dumped}");
    let deep = inspect(&["--deep"]);
    for (name, v) in &deep {
        assert_eq!(
            (&v["kernel"], &v["structured"]),
            (release, &"possible: processes can be listed".into()),
            "{name}"
        );
    }
}

/// A prefix with many captures is told before anything is queued: a row for each, little read of any, and a line on all of them.
#[test]
fn three_hundred_captures_of_a_prefix() {
    let c = Cluster::start(&[]);
    let dir = tempfile::tempdir().expect("tempdir");
    let at = dir.path().join("capture");
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(&at, bytes).expect("write");
        upload(&c, &format!("many/{name}"), &at);
    };
    let lime = |n: u64| {
        let mut f = b"EMiL\x01\0\0\0".to_vec();
        for v in [n << 20, (n << 20) + 0xffff, 0] {
            f.extend(v.to_le_bytes());
        }
        f.resize(32 + 0x1_0000, 0x11);
        f
    };
    for n in 0..297 {
        put(&format!("host-{n:03}.lime"), &lime(n));
    }
    put("cut.lime", &lime(300)[..0x8000]);
    let mut disk = b"QFI\xfb\0\0\0\x03".to_vec();
    disk.resize(1 << 20, 0);
    put("disk.raw", &disk);
    put("notes.txt", b"notes");
    let inspect = |more: &[&str]| {
        let mut r = c.command();
        r.args(["inspect", "s3://evidence/many/", "--rate", "1"]);
        run(r.args(more))
    };
    let r = inspect(&["--format", "jsonl"]);
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    let all = rows(&r);
    assert_eq!(all.len(), 300);
    let with = |status: &str| all.iter().filter(|(_, v)| v["status"] == status).count();
    let counts = ["ok", "gaps", "unreadable", "no capture"].map(with);
    assert_eq!(counts, [297, 1, 1, 1]);
    let one = row(&all, "host-042.lime");
    assert_eq!(
        (&one["lowest_address"], &one["chunks"]),
        (&"0x2a00000".into(), &1.into())
    );
    assert_eq!(one["estimated_seconds"], 1);
    assert!(
        all.iter()
            .all(|(_, v)| v["bytes_read"].as_u64() <= Some(256 << 10))
    );
    let r = inspect(&[]);
    let line = r.err.lines().last().expect("a line on all of them");
    for part in [
        "298 captures, 1 with gaps, 1 files that can't be read, 1 files passed over",
        "298 chunks",
        "1 MB per second",
    ] {
        assert!(line.contains(part), "{line}");
    }
}
