//! Captures that pack their memory, through the whole pipeline, against the same memory as it is.

use crate::distributed::{manifest as sealed, submit, upload};
use crate::embedded::{manifest, ok, query};
use ramsift_layers::source::FileSource;
use ramsift_layers::{ByteSource, FileOffset, ImageReader, PhysAddr, format};
use ramsift_tests::block_on;
use ramsift_tests::dumps::{avml_capture, dumps};
use ramsift_tests::fixtures::capture;
use ramsift_tests::program::{Cluster, command, run, scan};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A capture as it is, and the same one packed.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let made = |name: &str| dumps().join(name);
    vec![
        (
            capture().image.with_file_name("memory.lime"),
            avml_capture().to_owned(),
        ),
        (made("vmcore.elf"), made("makedumpfile-lzo.kdump")),
        (made("qemu.elf"), made("qemu-zlib.kdump")),
    ]
}

fn opened(path: &Path) -> (format::Opened, ImageReader) {
    block_on(async {
        let source: Arc<dyn ByteSource> = Arc::new(FileSource::open(path).expect("there"));
        let o = format::open(source.as_ref()).await.expect("opens");
        let r = o.reader(source).await.expect("the table just made");
        (o, r)
    })
}

/// Physical memory of a capture, in pieces that are there whole.
fn memory(path: &Path, mut piece: impl FnMut(PhysAddr, Vec<u8>)) {
    let (o, r) = opened(path);
    let bytes = r.bytes();
    for run in o.layout.runs.runs() {
        let mut at = 0;
        while at < run.stored {
            let n = (run.stored - at).min(1 << 20);
            let read = bytes.read_vec(
                FileOffset(run.file + at),
                usize::try_from(n).expect("small"),
            );
            piece(PhysAddr(run.pa + at), block_on(read).expect("readable"));
            at += n;
        }
    }
}

#[test]
fn every_dump_of_other_tools_holds_the_same_physical_memory() {
    let raw = std::fs::read(&capture().image).expect("the capture");
    // A machine that QEMU has just made has some memory of its own: tables of its firmware.
    let mut of_qemu = vec![0; raw.len()];
    memory(&dumps().join("qemu.elf"), |pa, b| {
        let at = usize::try_from(pa.0).expect("small");
        if let Some(to) = of_qemu.get_mut(at..at + b.len()) {
            to.copy_from_slice(&b);
        }
    });
    let found = std::fs::read_dir(dumps()).expect("dumps");
    let mut all: Vec<PathBuf> = found.map(|e| e.expect("entry").path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "kdump"));
    all.push(avml_capture().to_owned());
    assert!(all.len() > 5, "{all:?}");
    for path in all {
        let (mut bytes, name) = (0, path.display().to_string());
        let whole = if name.contains("qemu") {
            &of_qemu
        } else {
            &raw
        };
        memory(&path, |pa, b| {
            let at = usize::try_from(pa.0).expect("small");
            if let Some(want) = whole.get(at..at + b.len()) {
                assert!(want == b, "{name}: memory at {pa} differs");
                bytes += b.len();
            }
        });
        let filtered = name.contains("filtered");
        assert_eq!(
            bytes < 200 << 20,
            filtered,
            "{name}: {bytes} bytes of memory"
        );
        let (o, _) = opened(&path);
        assert!(o.layout.gaps.is_empty(), "{name}: {:?}", o.layout.gaps);
        assert_eq!(
            o.layout.notes.iter().any(|n| n.contains("not known")),
            filtered,
            "{name}: {:?}",
            o.layout.notes
        );
    }
}

/// All rows of a job's tables, without what names the job.
fn rows(out: &Path, table: &str) -> Vec<String> {
    let but = match table {
        "artifacts" => "capture, object, object_offset",
        "views" => "capture, millis",
        _ => "capture",
    };
    let all = query(out, &format!("SELECT * EXCLUDE ({but}) FROM {table}"));
    let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.sort_unstable();
    all
}

/// Small chunks, so that what a chunk stands for goes over its ends many times.
const CHUNKS: [&str; 2] = ["--set", "scan.chunk_size=8388608"];

#[test]
fn a_packed_capture_gives_the_tables_of_the_plain_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (i, (plain, packed)) in pairs().into_iter().enumerate() {
        let [a, b] = ["plain", "packed"].map(|n| dir.path().join(format!("{n}-{i}")));
        ok(&scan(&plain, &a, &[]));
        ok(&scan(&packed, &b, &CHUNKS));
        let m = manifest(&b);
        assert_eq!(m.verdict, "complete", "{:?}", m.gaps);
        assert_eq!(m.analyses, "structured + unstructured");
        assert_eq!(m.image_bytes, manifest(&a).image_bytes);
        // The chunks' hashes are those of the file as it is.
        let hash = blake3::hash(&std::fs::read(&packed).expect("the capture"));
        assert_eq!(m.evidence_blake3, Some(hash.to_hex().to_string()));
        let sums = |c: &ramsift_store::Coverage| (c.scanned, c.sparse, c.total());
        for (engine, c) in &m.coverage {
            assert_eq!(sums(c), sums(&manifest(&a).coverage[engine]), "{engine}");
        }
        let tables = query(&b, "SHOW TABLES");
        let names: BTreeSet<&str> = tables.iter().filter_map(|t| t["table"].as_str()).collect();
        assert!(names.len() > 40, "{names:?}");
        let skipped = ["captures", "system", "groups", "views", "coverage"];
        for table in names.iter().filter(|t| !skipped.contains(t)) {
            let (want, got) = (rows(&a, table), rows(&b, table));
            for (w, g) in want.iter().zip(&got) {
                assert_eq!(w, g, "{table} of {}", packed.display());
            }
            assert_eq!(want.len(), got.len(), "{table} of {}", packed.display());
        }
    }
}

#[test]
fn commands_without_a_job_read_packed_captures() {
    let dir = tempfile::tempdir().expect("tempdir");
    let said = |image: &Path, args: &[&str]| {
        let args = args
            .iter()
            .map(|a| a.replace("IMAGE", &image.display().to_string()));
        let r = run(command().env("XDG_CACHE_HOME", dir.path()).args(args));
        ok(&r);
        r.out.replace(&image.display().to_string(), "IMAGE")
    };
    for (plain, packed) in pairs() {
        for args in [
            &["view", "linux/pslist", "IMAGE", "--format", "jsonl"][..],
            &[
                "view",
                "linux/pagecache_files",
                "IMAGE",
                "--format",
                "jsonl",
            ],
            &["ls", "IMAGE:/etc"],
            &["cat", "IMAGE:/etc/nginx/nginx.conf"],
            &["grep", "auth.log", "IMAGE"],
            &["owner", "IMAGE", "0x2000000"],
        ] {
            assert_eq!(said(&plain, args), said(&packed, args), "{args:?}");
        }
        let to = dir.path().join("recovered");
        let args = ["recover", &format!("{}:/etc/nginx", packed.display())];
        ok(&run(command()
            .env("XDG_CACHE_HOME", dir.path())
            .args(args)
            .arg(&to)));
        assert!(std::fs::read_dir(&to).expect("a folder").count() > 0);
        std::fs::remove_dir_all(&to).expect("removed");
    }
}

#[test]
fn a_cluster_reads_packed_captures_from_the_store() {
    let c = Cluster::start(&[("RAMSIFT_SCAN_CHUNK_SIZE", "8388608")]);
    let dir = tempfile::tempdir().expect("tempdir");
    let (coordinator, _aggregator) = (c.service("coordinator"), c.service("aggregator"));
    let _workers = [c.service("chunk-worker"), c.service("structured-worker")];
    coordinator.await_ready();
    for (i, (plain, packed)) in pairs().into_iter().take(2).enumerate() {
        let key = format!("packed-{i}.dump");
        let url = format!("s3://evidence/{key}");
        upload(&c, &key, &packed);
        let job = submit(&c, &[&url]);
        let r = run(c.command().args(["watch", &job]));
        assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
        let m = sealed(&c, &job);
        assert_eq!(
            (m.verdict.as_str(), m.analyses.as_str()),
            ("complete", "structured + unstructured")
        );
        let out = dir.path().join(format!("alone-{i}"));
        ok(&scan(&plain, &out, &[]));
        let count = |r: &str| format!("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM {r}");
        for table in ["findings", "events", "artifacts"] {
            let r =
                run(c
                    .command()
                    .args(["query", &count(table), "--job", &job, "--format", "jsonl"]));
            assert_eq!(r.code, 0, "{}", r.err);
            let far: serde_json::Value = serde_json::from_str(r.out.trim()).expect("JSON");
            assert_eq!(far, query(&out, &count(table))[0], "{table}");
        }
        // Without a job: a list of processes from the object itself.
        let view = |c: &mut std::process::Command, image: &str| {
            let r = run(c
                .env("XDG_CACHE_HOME", dir.path())
                .args(["view", "pslist", image, "--format", "jsonl"]));
            assert_eq!(r.code, 0, "{}", r.err);
            r.out
        };
        assert_eq!(
            view(&mut c.command(), &url),
            view(&mut command(), &plain.display().to_string())
        );
    }
}

#[test]
fn a_capture_that_is_cut_or_damaged_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let whole = std::fs::read(avml_capture()).expect("the capture");
    let cut = dir.path().join("cut.avml");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("write");
    let out = dir.path().join("cut");
    let r = scan(&cut, &out, &[]);
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    assert!(r.out.contains("cut short"), "{}", r.out);
    let m = manifest(&out);
    assert!(m.coverage["carvers"].missing > 0 && m.coverage["carvers"].scanned > 50 << 20);
    // One byte of a frame: its 64 KiB are lost, and nothing else.
    let damaged = dir.path().join("damaged.avml");
    let mut bytes = whole;
    let at = bytes.len() / 3;
    bytes[at] ^= 0xff;
    std::fs::write(&damaged, &bytes).expect("write");
    let out = dir.path().join("damaged");
    let r = scan(&damaged, &out, &CHUNKS);
    assert_eq!(r.code, 3, "{}{}", r.out, r.err);
    let lost = manifest(&out).coverage["carvers"].failed;
    assert!((1..=2 * 65_536).contains(&lost), "{lost}");
    let why = query(
        &out,
        "SELECT reason FROM coverage WHERE outcome = 'failed' AND engine = 'carvers'",
    );
    let why = why[0]["reason"].as_str().expect("a reason");
    assert!(why.contains("can't be unpacked"), "{why}");
}

#[test]
fn a_plan_whose_table_is_damaged_fails_its_job() {
    let c = Cluster::start(&[]);
    upload(&c, "a.avml", avml_capture());
    let coordinator = c.service("coordinator");
    let _aggregator = c.service("aggregator");
    coordinator.await_ready();
    let job = submit(&c, &["s3://evidence/a.avml", "--only", "unstructured"]);
    let results = crate::distributed::objects(&c, "results", "r");
    let folder = format!("jobs/{job}/extents/");
    let key = ramsift_tests::wait_for("the table", std::time::Duration::from_secs(60), || {
        use ramsift_store::Objects;
        let found = block_on(results.list(&folder)).ok()?;
        found.first().map(|m| m.key.clone())
    });
    {
        use ramsift_store::Objects;
        let (data, _) = block_on(results.get(&key)).expect("the table");
        let mut data = data.to_vec();
        data[10] ^= 1;
        block_on(results.put(&key, data.into())).expect("put");
    }
    let _worker = c.service("chunk-worker");
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.out.contains("damaged"), "{}{}\n{}", r.out, r.err, c.log());
}
