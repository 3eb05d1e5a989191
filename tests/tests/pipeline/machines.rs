//! Saved states of machines, by writers of their own and by QEMU: the same memory, the same processes.

use crate::distributed::{manifest as sealed, submit, upload};
use crate::embedded::{manifest, ok, query};
use ramsift_tests::dumps::dumps;
use ramsift_tests::fixtures::capture;
use ramsift_tests::program::{Cluster, command, run, scan};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The everyday capture as `machines.py` writes it, with a page table of its processor where the format has one.
fn machines() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("tempdir");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/machines.py");
        let r = run(Command::new("python3")
            .arg(script)
            .arg(&capture().image)
            .arg(dir.path())
            .args([
                "--ranges",
                "0x1000-0x9f000,0x100000-0x10000000",
                "--cr3",
                &cr3(),
            ]));
        ok(&r);
        dir
    })
    .path()
}

/// CR3 of the capture's first processor, as QEMU said it.
fn cr3() -> String {
    let digits = &capture().info["registers"]["CR3"][0];
    format!("0x{}", digits.as_str().expect("a number"))
}

fn inspect(path: &Path) -> Value {
    let r = run(command()
        .arg("inspect")
        .arg(path)
        .args(["--format", "jsonl"]));
    ok(&r);
    serde_json::from_str(&r.out).expect("JSON")
}

fn processes(dir: &Path, path: &Path) -> String {
    let mut c = command();
    c.env("XDG_CACHE_HOME", dir).args(["view", "linux/pslist"]);
    let r = run(c
        .arg(path)
        .args(["--format", "jsonl", "--columns", "pid,comm,uid"]));
    ok(&r);
    r.out
}

/// Physical memory as raw, by the program itself.
fn raw(dir: &Path, of: &Path) -> Vec<u8> {
    let to = dir.join("converted.raw");
    let _ = std::fs::remove_file(&to);
    ok(&run(command()
        .arg("convert")
        .arg(of)
        .args(["--to", "raw", "-o"])
        .arg(&to)));
    std::fs::read(to).expect("raw")
}

#[test]
fn states_of_machines_hold_the_same_memory() {
    let dir = tempfile::tempdir().expect("tempdir");
    let c = capture();
    let want = processes(dir.path(), &c.image);
    let image = std::fs::read(&c.image).expect("raw");
    for (name, format) in [
        ("swapped.vmem", "vmware"),
        ("inside.vmsn", "vmware"),
        ("xen.core", "xen_core"),
        ("memory.macho", "macho"),
    ] {
        let path = machines().join(name);
        let v = inspect(&path);
        assert_eq!(
            (&v["format"], &v["status"]),
            (&format.into(), &"ok".into()),
            "{v}"
        );
        assert_eq!(v["kernel"], c.truth["uname"][2], "{v}");
        if format == "vmware" {
            assert!(
                v["place"]
                    .as_str()
                    .is_some_and(|p| p.contains("container recorded")),
                "{v}"
            );
        }
        assert_eq!(processes(dir.path(), &path), want, "{name}");
        let made = raw(dir.path(), &path);
        if format == "macho" {
            assert!(made[0x10_0000..] == image[0x10_0000..], "{name}");
        } else {
            assert!(made == image, "{name}");
        }
    }
    // In a folder the state is read with its memory.
    let r = run(command()
        .arg("inspect")
        .arg(machines())
        .args(["--format", "jsonl"]));
    ok(&r);
    let state = r
        .out
        .lines()
        .find(|l| l.contains("swapped.vmss\",\"status\""))
        .expect("a line");
    assert!(
        state.contains("no capture") && state.contains(".vmem"),
        "{state}"
    );
}

/// QEMU's own stream of a machine that has the capture as its memory, against QEMU's own core of the same machine.
#[test]
fn a_migrated_machine_holds_what_its_core_does() {
    let dir = tempfile::tempdir().expect("tempdir");
    let stream = dumps().join("qemu.qevm");
    let v = inspect(&stream);
    assert_eq!(
        (&v["format"], &v["status"]),
        (&"qemu_savevm".into(), &"ok".into()),
        "{v}"
    );
    assert_eq!(v["image_size"], 256 << 20);
    assert_eq!(v["kernel"], capture().truth["uname"][2]);
    let core = raw(dir.path(), &dumps().join("qemu.elf"));
    let made = raw(dir.path(), &stream);
    assert_eq!(made.len(), 256 << 20);
    // What the firmware's ROMs and the screen's memory lie over is theirs in the core.
    let window = 0xa_0000..0x10_0000;
    assert!(made[..window.start] == core[..window.start]);
    assert!(made[window.end..] == core[window.end..made.len()]);
    let out = dir.path().join("out");
    ok(&scan(&stream, &out, &["--set", "scan.chunk_size=8388608"]));
    let m = manifest(&out);
    assert_eq!(
        (m.verdict.as_str(), m.analyses.as_str()),
        ("complete", "structured + unstructured")
    );
    let n = query(&out, "SELECT count(*) AS n FROM linux_pslist");
    let rows = processes(dir.path(), &stream).lines().count();
    assert_eq!(n[0]["n"], rows);
    // Cut, it is what is there, and not all of it.
    let whole = std::fs::read(&stream).expect("the stream");
    let cut: PathBuf = dir.path().join("cut.qevm");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("write");
    let r = scan(&cut, &dir.path().join("cut"), &[]);
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
}

#[test]
fn a_cluster_reads_memory_with_its_state() {
    let c = Cluster::start(&[]);
    upload(&c, "vm/swapped.vmem", &machines().join("swapped.vmem"));
    upload(&c, "vm/swapped.vmss", &machines().join("swapped.vmss"));
    let (coordinator, _aggregator) = (c.service("coordinator"), c.service("aggregator"));
    let _workers = [c.service("chunk-worker"), c.service("structured-worker")];
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/vm/", "--only", "structured"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let m = sealed(&c, &job);
    assert_eq!(
        (m.verdict.as_str(), m.format.as_str()),
        ("complete", "vmware")
    );
}
