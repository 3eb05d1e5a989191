//! Containers as Python's, the codecs' own and the system's programs write them: unpacked whole, cut anywhere, and made to hurt.

#[path = "common/dumps.rs"]
mod dumps;

use ramsift_layers::ByteSource;
use ramsift_layers::container::{ContainerError, Kind, Limits, PEEK_LEN, Unpacked, peek, unpack};
use ramsift_layers::format::looks_like_capture;
use ramsift_layers::source::FileSource;
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// A LiME capture: some text, noise, and many zeros.
fn capture() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut m: Vec<u8> = (0..24).flat_map(dumps::page).collect();
        m.resize(m.len() + (1 << 20), 0);
        m.extend(dumps::page(99));
        dumps::lime_range(0x1000, &m)
    })
}

/// Writes each form of a capture; by Python's own codecs, and the programs of gzip, xz, zstd, lz4 and tar.
const WRITER: &str = r#"
import bz2, gzip, io, lzma, os, struct, subprocess, sys, tarfile, zipfile, zlib
src, out = sys.argv[1:3]
data = open(src, "rb").read()
def put(name, b): open(os.path.join(out, name), "wb").write(b)
def tar(members, fmt=tarfile.PAX_FORMAT):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode="w", format=fmt) as t:
        for n, d in members:
            i = tarfile.TarInfo(n); i.size = len(d); t.addfile(i, io.BytesIO(d))
    return b.getvalue()
def zipped(members, how=zipfile.ZIP_DEFLATED):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", how) as z:
        for n, d in members: z.writestr(n, d)
    return b.getvalue()
def by(*cmd): return subprocess.run(cmd, input=data, stdout=subprocess.PIPE, check=True).stdout
half = len(data) // 2
put("memory.lime.gz", gzip.compress(data))
put("members.lime.gz", gzip.compress(data[:half]) + gzip.compress(data[half:]))
put("memory.lime.zz", zlib.compress(data))
put("memory.lime.xz", lzma.compress(data))
put("streams.lime.xz", lzma.compress(data[:half]) + lzma.compress(data[half:], check=lzma.CHECK_SHA256))
put("blocks.lime.xz", by("xz", "-c", "-T2", "--block-size=65536"))
put("memory.lime.zst", by("zstd", "-c", "-q"))
put("long.lime.zst", by("zstd", "-c", "-q", "--long=27", "-19"))
put("x-window.zst", by("zstd", "-c", "-q", "--long=31"))
put("memory.lime.lz4", by("lz4", "-c", "-q"))
put("linked.lime.lz4", by("lz4", "-c", "-q", "-B4", "-BD", "-9"))
# DumpIt's: blocks of 64 KiB, each in chunks of LZNT1 (MS-XCA 2.5).
def chunk(c):
    d, pos = b"", 0
    while pos < len(c):
        flags, group = 0, b""
        for bit in range(8):
            if pos >= len(c): break
            bits = 4
            while pos > 1 << bits: bits += 1
            n = min((1 << 16 - bits) + 2, len(c) - pos)
            while n >= 3:
                at = c.rfind(c[pos:pos + n], max(0, pos - (1 << bits)), pos + n - 1)
                if at >= 0: break
                n = n // 2 if n > 6 else n - 1
            if n >= 3:
                flags |= 1 << bit
                group += struct.pack("<H", (pos - at - 1) << 16 - bits | n - 3); pos += n
            else:
                group += c[pos:pos + 1]; pos += 1
        d += bytes([flags]) + group
    if len(d) >= len(c): return struct.pack("<H", 0x3000 | len(c) - 1) + c
    return struct.pack("<H", 0xb000 | len(d) - 1) + d
def zdmp(data, size=65536):
    out = struct.pack("<4sIQIHH", b"ZDMP", 0x100, len(data), size, 1, 2).ljust(4096, b"\0")
    for i in range(0, len(data), size):
        b = data[i:i + size]
        packed = b"".join(chunk(b[j:j + 4096]) for j in range(0, len(b), 4096))
        if len(packed) >= size: packed = b
        out += struct.pack("<4sII", b"ZBLK", len(packed), zlib.crc32(packed)) + packed
    return out
put("memory.zdmp", zdmp(data))
text = ("notes.txt", b"who took it, and when\n")
put("memory.tar", tar([text, ("case/memory.lime", data)]))
put("gnu.tar", tar([("d/" * 60 + "memory.lime", data)], tarfile.GNU_FORMAT))
put("memory.tar.gz", gzip.compress(tar([("memory.lime", data), text])))
put("memory.tgz", gzip.compress(tar([("memory.lime", data)], tarfile.USTAR_FORMAT)))
put("inside.tar", tar([text, ("memory.lime.xz", lzma.compress(data))]))
put("memory.zip", zipped([("case/", b""), ("case/memory.lime", data), text]))
put("stored.zip", zipped([("memory.lime", data)], zipfile.ZIP_STORED))
put("inside.zip", zipped([text, ("memory.lime.gz", gzip.compress(data))]))
raw = os.path.join(out, "memory.lime")
open(raw, "wb").write(data)
subprocess.run(["tar", "-C", out, "--zstd", "-cf", os.path.join(out, "program.tar.zst"), "memory.lime"], check=True)
subprocess.run(["tar", "-C", out, "--format=gnu", "--sparse", "-cf", os.path.join(out, "sparse.tar"), "memory.lime"], check=True)
os.unlink(raw)
put("x-two.tar", tar([("a.lime", data), ("b.lime", data)]))
put("x-two.zip", zipped([("a.lime", data), ("b.lime", data)]))
put("x-none.tar.gz", gzip.compress(tar([text])))
put("x-none.zip", zipped([text]))
put("x-disk.gz", gzip.compress(b"QFI\xfb\0\0\0\3" + bytes(1 << 20)))
deep = data
for _ in range(5): deep = gzip.compress(deep)
put("x-deep.gz", deep)
put("x-zip.gz", gzip.compress(zipped([("memory.lime", data)])))
put("x-bomb.gz", gzip.compress(b"A" * (1 << 28), 9))
"#;

/// All forms, by name.
fn forms() -> &'static BTreeMap<String, Vec<u8>> {
    static MADE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("tempdir");
        let src = dir.path().join("source");
        std::fs::write(&src, capture()).expect("write");
        let out = dir.path().join("out");
        std::fs::create_dir(&out).expect("folder");
        let done = Command::new("python3")
            .args(["-c", WRITER])
            .args([&src, &out])
            .status()
            .expect("python3");
        assert!(
            done.success(),
            "apt-get install python3 xz-utils zstd lz4 tar"
        );
        let read = |e: std::io::Result<std::fs::DirEntry>| {
            let e = e.expect("entry");
            let name = e.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(e.path()).expect("read"))
        };
        std::fs::read_dir(&out).expect("folder").map(read).collect()
    })
}

fn good() -> impl Iterator<Item = (&'static String, &'static Vec<u8>)> {
    forms().iter().filter(|(n, _)| !n.starts_with("x-"))
}

/// Unpacks a file; gives what is said of it and what came out.
fn unpacked(
    dir: &Path,
    name: &str,
    data: &[u8],
    limits: Limits,
) -> Result<(Unpacked, Vec<u8>), ContainerError> {
    let path = dir.join(name);
    std::fs::write(&path, data).expect("write");
    let source: Arc<dyn ByteSource> = Arc::new(FileSource::open(&path).expect("open"));
    let mut file = tempfile::tempfile_in(dir).expect("file");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("runtime");
    let _in = runtime.enter();
    let u = unpack(&source, &file, "here", limits, true, &|_, _| {})?;
    let mut out = Vec::new();
    file.rewind().expect("seek");
    file.read_to_end(&mut out).expect("read");
    Ok((u, out))
}

#[test]
fn every_container_gives_the_capture_in_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    assert!(good().count() >= 19);
    for (name, data) in good() {
        let done = unpacked(dir.path(), name, data, Limits::default());
        let (u, out) = done.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(out == capture(), "{name}: {} bytes", out.len());
        assert_eq!(u.cut, None, "{name}");
        assert_eq!(u.len, out.len() as u64);
        assert!(
            (u.name.ends_with(".lime") || name == "memory.zdmp") && !u.what.is_empty(),
            "{name}: {u:?}"
        );
        // The hash is the container's, whatever of it a decoder reads.
        assert_eq!(u.blake3, blake3::hash(data).to_hex().to_string(), "{name}");
        let sum = Command::new("sha256sum")
            .arg(dir.path().join(name))
            .output()
            .expect("sha256sum");
        let sum = String::from_utf8(sum.stdout).expect("hex");
        assert_eq!(u.sha256.as_deref(), sum.split_whitespace().next(), "{name}");
    }
    let what = |n: &str| {
        unpacked(dir.path(), n, &forms()[n], Limits::default())
            .expect("whole")
            .0
    };
    assert_eq!(what("memory.tar.gz").what, "tar in gzip");
    assert_eq!(what("memory.zdmp").name, "memory.dmp");
    assert_eq!(what("inside.tar").what, "xz in tar");
    assert!(what("memory.tar").others[0].contains("notes.txt"));
}

/// A container that is cut gives a beginning of the capture and says that it is not all of it; or an error.
#[test]
fn what_is_cut_is_never_whole() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, data) in good() {
        let step = if data.len() > 200_000 { 65_536 } else { 4096 };
        let ends = [1, 2, 5, 12].map(|n| data.len() - n);
        for cut in (step..data.len()).step_by(step).chain(ends) {
            let done = unpacked(dir.path(), name, &data[..cut], Limits::default());
            let Ok((u, out)) = done else { continue };
            assert!(capture().starts_with(&out), "{name} cut at {cut}");
            // The end marks of a tar archive may go: its members are there.
            let whole = out.len() == capture().len();
            assert!(
                u.cut.is_some() || whole && u.what.contains("tar"),
                "{name} cut at {cut}: {u:?}"
            );
        }
        // Most of what is before the cut is there, but of formats that pack it in large blocks.
        let half = unpacked(
            dir.path(),
            name,
            &data[..data.len() - 100],
            Limits::default(),
        );
        let large = [
            "inside.tar",
            "memory.lime.lz4",
            "memory.lime.xz",
            "streams.lime.xz",
        ];
        if !name.ends_with("zip") && !name.contains(".zst") && !large.contains(&name.as_str()) {
            let (_, out) = half.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!out.is_empty(), "{name}");
        }
    }
}

#[test]
fn damage_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, data) in good() {
        // tar has checksums of headers alone, and LZ4 none of its header's rest.
        if name.ends_with(".tar") {
            continue;
        }
        let mut bad = data.clone();
        let at = bad.len() / 3;
        bad[at] ^= 0x55;
        match unpacked(dir.path(), name, &bad, Limits::default()) {
            Ok((u, out)) => assert!(u.cut.is_some() || out == capture(), "{name}: {u:?}"),
            Err(e) => assert!(!e.is_outage(), "{name}: {e}"),
        }
    }
}

#[test]
fn what_holds_no_single_capture_is_explained() {
    let dir = tempfile::tempdir().expect("tempdir");
    let say = |n: &str| {
        let e = unpacked(dir.path(), n, &forms()[n], Limits::default());
        e.expect_err(n).to_string()
    };
    for n in ["x-two.tar", "x-two.zip"] {
        let e = say(n);
        assert!(e.contains("2 captures: a.lime, b.lime"), "{n}: {e}");
    }
    for n in ["x-none.tar.gz", "x-none.zip"] {
        let e = say(n);
        assert!(
            e.contains("no capture") && e.contains("notes.txt"),
            "{n}: {e}"
        );
    }
    assert!(say("x-disk.gz").contains("qcow2"), "{}", say("x-disk.gz"));
    assert!(say("x-deep.gz").contains("deep"), "{}", say("x-deep.gz"));
    assert!(say("x-zip.gz").contains("ZIP"), "{}", say("x-zip.gz"));
    // A window of 2 GiB, which zstd refuses as well unless it is told not to.
    assert!(
        say("x-window.zst").contains("memory"),
        "{}",
        say("x-window.zst")
    );
    let bomb = say("x-bomb.gz");
    assert!(bomb.contains("unpack.ratio"), "{bomb}");
    let small = Limits {
        bytes: 1 << 20,
        ..Limits::default()
    };
    let e = unpacked(
        dir.path(),
        "memory.lime.gz",
        &forms()["memory.lime.gz"],
        small,
    );
    let e = e.expect_err("too large").to_string();
    assert!(e.contains("unpack.bytes"), "{e}");
}

#[test]
fn zeros_take_no_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let name = "memory.lime.gz";
    let path = dir.path().join(name);
    let zeros = vec![0; 64 << 20];
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &dumps::lime_range(0x1000, &zeros)).expect("into memory");
    std::fs::write(&path, gz.finish().expect("into memory")).expect("write");
    let source: Arc<dyn ByteSource> = Arc::new(FileSource::open(&path).expect("open"));
    let file = tempfile::tempfile_in(dir.path()).expect("file");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime");
    let _in = runtime.enter();
    let u = unpack(&source, &file, "here", Limits::default(), false, &|_, _| {}).expect("whole");
    assert_eq!(u.len, (64 << 20) + 32);
    let meta = file.metadata().expect("metadata");
    assert_eq!(meta.len(), u.len);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&meta);
    assert!(blocks < 2048, "{blocks} blocks of 512 bytes");
}

#[test]
fn folders_take_containers_of_captures() {
    // Archives that begin with something else are to be named.
    let others = ["inside.tar", "inside.zip", "memory.tar", "memory.zip"];
    for (name, data) in good() {
        let head = &data[..data.len().min(PEEK_LEN)];
        let taken = looks_like_capture(name, head, data.len() as u64);
        assert_eq!(
            taken.is_ok(),
            !others.contains(&name.as_str()),
            "{name}: {taken:?}"
        );
        assert!(
            Kind::of(head).is_some() && peek(head, name).is_some(),
            "{name}"
        );
    }
    for name in ["x-none.tar.gz", "x-none.zip", "x-disk.gz"] {
        let data = &forms()[name];
        let head = &data[..data.len().min(4096)];
        let e = looks_like_capture(name, head, data.len() as u64);
        assert!(e.is_err(), "{name}");
    }
    // Memory is none of them.
    let ivt: Vec<u8> = [0x53, 0xff, 0x00, 0xf0].repeat(1024);
    for head in [
        vec![0; 4096],
        vec![0xff; 4096],
        ivt,
        dumps::page(3),
        capture()[..4096].to_vec(),
    ] {
        assert_eq!(Kind::of(&head), None);
    }
}
