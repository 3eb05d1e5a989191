//! `ramsift convert`: what is written holds the same memory for readers that are not ours.

use crate::distributed::upload;
use crate::embedded::ok;
use ramsift_tests::dumps::{avml_capture, dumps};
use ramsift_tests::fixtures::capture;
use ramsift_tests::program::{Cluster, Run, command, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Reads LiME, ELF and raw files after their descriptions, and prints each range with the SHA-256 of its bytes.
const READER: &str = r#"
import hashlib, struct, sys
kind, path = sys.argv[1:3]
f = open(path, "rb")
def out(pa, at, n):
    h = hashlib.sha256()
    f.seek(at)
    while n > 0:
        b = f.read(min(n, 1 << 20))
        assert b, "the file is short"
        h.update(b); n -= len(b)
    print(hex(pa), h.hexdigest())
if kind == "lime":
    at = 0
    while True:
        f.seek(at)
        head = f.read(32)
        if not head: break
        magic, version, first, last, zero = struct.unpack("<IIQQQ", head)
        assert (magic, version, zero) == (0x4C694D45, 1, 0)
        out(first, at + 32, last - first + 1)
        at += 32 + last - first + 1
else:
    head = f.read(64)
    assert head[:7] == b"\x7fELF\2\1\1"
    kind, machine, version, entry, phoff = struct.unpack_from("<HHIQQ", head, 16)
    size, count = struct.unpack_from("<HH", head, 54)
    assert (kind, version, size) == (4, 1, 56)
    f.seek(phoff)
    table = f.read(size * count)
    for i in range(count):
        t, flags, off, va, pa, filesz, memsz, align = struct.unpack_from("<IIQQQQQQ", table, 56 * i)
        if t == 1:
            assert filesz == memsz and off % align == pa % align
            out(pa, off, filesz)
"#;

fn convert(image: &Path, to: &str, out: &Path) -> Run {
    run(command()
        .arg("convert")
        .arg(image)
        .args(["--to", to, "-o"])
        .arg(out))
}

fn read_by_python(kind: &str, path: &Path) -> String {
    let r = run(Command::new("python3").args(["-c", READER, kind]).arg(path));
    ok(&r);
    r.out
}

/// Ranges of the capture with the SHA-256 of their bytes, from the raw image and /proc/iomem's list.
fn expected() -> String {
    r#"import hashlib,sys
for a in sys.argv[2:]:
    first,end=map(int,a.split("-"))
    f=open(sys.argv[1],"rb"); f.seek(first)
    print(hex(first), hashlib.sha256(f.read(end-first)).hexdigest())"#
        .to_owned()
}

fn ranges() -> Vec<(u64, u64)> {
    let lime = std::fs::read(capture().image.with_file_name("memory.lime")).expect("lime");
    let number = |at: usize| u64::from_le_bytes(lime[at..at + 8].try_into().expect("eight"));
    let (mut at, mut out) = (0, Vec::new());
    while at < lime.len() {
        let (first, end) = (number(at + 8), number(at + 16) + 1);
        out.push((first, end));
        at += 32 + usize::try_from(end - first).expect("small");
    }
    out
}

#[test]
fn every_format_holds_the_memory_for_other_readers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| dir.path().join(n);
    let c = capture();
    let mut args: Vec<String> = vec![c.image.display().to_string()];
    args.extend(ranges().iter().map(|(a, b)| format!("{a}-{b}")));
    let want = run(Command::new("python3")
        .arg("-c")
        .arg(expected())
        .args(&args));
    ok(&want);
    // From a packed capture, into all the others.
    let lime = at("memory.lime");
    let r = convert(avml_capture(), "lime", &lime);
    ok(&r);
    assert_eq!(read_by_python("lime", &lime), want.out);
    let core = at("memory.elf");
    ok(&convert(&lime, "elf-core", &core));
    assert_eq!(read_by_python("elf", &core), want.out);
    let raw = at("memory.raw");
    ok(&convert(&core, "raw", &raw));
    let (made, of) = (
        std::fs::read(&raw).expect("raw"),
        std::fs::read(&c.image).expect("raw"),
    );
    for (a, b) in ranges() {
        let r = usize::try_from(a).expect("small")..usize::try_from(b).expect("small");
        assert!(made[r.clone()] == of[r], "{a:#x}");
    }
    let first = usize::try_from(ranges()[0].0).expect("small");
    assert!(made[..first].iter().all(|b| *b == 0), "holes are zeros");
    // Snappy frames by the crate that AVML uses.
    let avml = at("memory.avml");
    ok(&convert(&core, "avml", &avml));
    let (mut rest, mut bytes) = (&std::fs::read(&avml).expect("avml")[..], 0);
    while !rest.is_empty() {
        assert!(rest.starts_with(b"AVML\x02\0\0\0"));
        let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight"));
        let (first, last) = (number(8), number(16));
        let len = usize::try_from(last - first + 1).expect("small");
        let mut block = vec![0; len];
        let mut from = Counted(&rest[32..], 0);
        std::io::Read::read_exact(&mut snap::read::FrameDecoder::new(&mut from), &mut block)
            .expect("a frame");
        let start = usize::try_from(first).expect("small");
        assert!(block == of[start..start + len], "{first:#x}");
        bytes += len;
        let frame = from.1;
        let at = 32 + frame;
        assert_eq!(number(at), frame as u64, "the length behind the frame");
        rest = &rest[at + 8..];
    }
    let all: u64 = ranges().iter().map(|(a, b)| b - a).sum();
    assert_eq!(bytes as u64, all);
    // What exists is not written over.
    let r = convert(&core, "avml", &avml);
    assert_eq!(r.code, 2, "{}", r.err);
    assert!(r.err.contains("exists"), "{}", r.err);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("folder").collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

/// A reader that counts what is read of it: a frame decoder reads chunk by chunk.
struct Counted<'a>(&'a [u8], usize);

impl std::io::Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = std::io::Read::read(&mut self.0, buf)?;
        self.1 += n;
        Ok(n)
    }
}

/// makedumpfile reads the kernel's log out of a kdump that ramsift wrote, and packs it again.
#[test]
fn makedumpfile_reads_what_was_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| dir.path().join(n);
    let of = dumps().join("vmcore.elf");
    let log = |dump: &Path, name: &str| -> Vec<u8> {
        let to = at(name);
        let r = run(Command::new("makedumpfile")
            .arg("--dump-dmesg")
            .arg(dump)
            .arg(&to));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        std::fs::read(to).expect("a log")
    };
    let want = log(&of, "want");
    assert!(want.len() > 10_000);
    let kdump = at("written.kdump");
    ok(&convert(&of, "kdump", &kdump));
    assert!(log(&kdump, "got") == want);
    let again = at("again.kdump");
    let r = run(Command::new("makedumpfile")
        .args(["-l", "-d", "0"])
        .args([&kdump, &again]));
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    // makedumpfile's own dump of it, read back: the memory is what it was.
    let [a, b] = [(&of, "a.raw"), (&again, "b.raw")].map(|(f, n)| {
        let to = at(n);
        ok(&convert(f, "raw", &to));
        blake3::hash(&std::fs::read(to).expect("raw"))
    });
    assert_eq!(a, b);
    // The kernel is found by what the dump says of it.
    let r = run(command()
        .arg("inspect")
        .arg(&kdump)
        .args(["--format", "jsonl"]));
    ok(&r);
    let v: serde_json::Value = serde_json::from_str(&r.out).expect("JSON");
    assert!(
        v["place"]
            .as_str()
            .is_some_and(|p| p.contains("container recorded")),
        "{v}"
    );
}

#[test]
fn what_is_missing_stays_missing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| -> PathBuf { dir.path().join(n) };
    let mut packed = std::fs::read(avml_capture()).expect("avml");
    let half = packed.len() / 2;
    packed[half] ^= 0xff;
    std::fs::write(at("damaged.avml"), &packed).expect("write");
    for to in ["lime", "elf-core", "kdump", "avml"] {
        let out = at(&format!("from-damaged.{to}"));
        let r = convert(&at("damaged.avml"), to, &out);
        assert_eq!(r.code, 3, "{to}: {}", r.err);
        assert!(r.err.contains("can't be read"), "{}", r.err);
        let r = run(command()
            .arg("inspect")
            .arg(&out)
            .args(["--format", "jsonl"]));
        let v: serde_json::Value = serde_json::from_str(&r.out).expect("JSON");
        let all: u64 = ranges().iter().map(|(a, b)| b - a).sum();
        let there = v["image_size"].as_u64().expect("a number")
            - v["missing_bytes"].as_u64().expect("a number");
        assert!(
            there < all && all - there <= 2 * 65_536,
            "{to}: {there} of {all}"
        );
    }
    // A range far up is refused as raw.
    let mut far = b"EMiL\x01\0\0\0".to_vec();
    for v in [1u64 << 45, (1 << 45) + 4095, 0] {
        far.extend(v.to_le_bytes());
    }
    far.resize(32 + 4096, 7);
    std::fs::write(at("far.lime"), &far).expect("write");
    let r = convert(&at("far.lime"), "raw", &at("far.raw"));
    assert_eq!(r.code, 2, "{}", r.err);
    assert!(
        r.err.contains("zeros") && !at("far.raw").exists(),
        "{}",
        r.err
    );
    ok(&convert(&at("far.lime"), "elf-core", &at("far.elf")));
}

#[test]
fn objects_are_converted_to_objects() {
    let c = Cluster::start(&[]);
    let dir = tempfile::tempdir().expect("tempdir");
    upload(&c, "memory.avml", avml_capture());
    let convert = |from: &str, to: &str, out: &str| {
        run(c.command().args(["convert", from, "--to", to, "-o", out]))
    };
    ok(&convert(
        "s3://evidence/memory.avml",
        "lime",
        "s3://evidence/made/memory.lime",
    ));
    let back = dir.path().join("back.lime");
    ok(&convert(
        "s3://evidence/made/memory.lime",
        "lime",
        &back.display().to_string(),
    ));
    let want = std::fs::read(capture().image.with_file_name("memory.lime")).expect("lime");
    assert!(std::fs::read(&back).expect("lime") == want);
    let r = convert(
        "s3://evidence/memory.avml",
        "lime",
        "s3://evidence/made/memory.lime",
    );
    assert_eq!(r.code, 2, "{}", r.err);
    assert!(r.err.contains("exists"), "{}", r.err);
}
