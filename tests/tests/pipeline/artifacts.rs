//! Artifacts that are read from the capture, and copies of them.

use crate::embedded::{self, ok, query};
use ramsift_tests::fixtures::{capture, planted};
use ramsift_tests::program::{Run, command, run, scan};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Bytes of the objects that hold copies of artifacts.
fn copied(out: &Path) -> u64 {
    embedded::manifest(out)
        .artifacts
        .iter()
        .map(|a| a.bytes)
        .sum()
}

fn artifact(out: &Path, sha: &str, more: &[&str]) -> (Run, Vec<u8>) {
    let to = out.join("content");
    let mut c = command();
    c.arg("--store").arg(out).args(["artifact", sha, "--to"]);
    let r = run(c.arg(&to).args(more));
    let data = std::fs::read(&to).unwrap_or_default();
    let _ = std::fs::remove_file(&to);
    (r, data)
}

#[test]
fn artifacts_in_the_capture_are_those_that_copies_have() {
    let dir = tempfile::tempdir().expect("tempdir");
    let rules = planted().rules.display().to_string();
    for (name, image) in [("planted", &planted().image), ("machine", &capture().image)] {
        let [a, b] = ["in", "all"].map(|n| dir.path().join(format!("{name}-{n}")));
        ok(&scan(image, &a, &["--rules", &rules]));
        ok(&scan(
            image,
            &b,
            &["--rules", &rules, "--copy-artifacts", "all"],
        ));
        let tables = [
            "SELECT id, sha256, md5, detector, kind, name, size, image_offset, physical_address, complete, gap, \
             fields, owner FROM artifacts ORDER BY id",
            "SELECT * EXCLUDE (capture) FROM findings ORDER BY id",
        ];
        for sql in tables {
            let (x, y) = (query(&a, sql), query(&b, sql));
            assert!(x.len() > 20, "{name}: {}", x.len());
            assert!(x == y, "{name}: {sql}");
        }
        // Nothing of a capture without compressed or rebuilt content is copied.
        assert_eq!(copied(&a), 0, "{name}");
        let size = query(
            &b,
            "SELECT sum(size) AS n FROM (SELECT DISTINCT sha256, size FROM artifacts)",
        );
        let size = size[0]["n"].as_u64().expect("a sum");
        assert!(copied(&b) >= size, "{} of {size}", copied(&b));
        // Some of each kind, and of those with holes.
        let some = "SELECT sha256, size, complete FROM (SELECT *, row_number() OVER (PARTITION BY kind, complete \
                    ORDER BY image_offset) AS n FROM artifacts) WHERE n <= 3 AND size > 0";
        let some = query(&a, some);
        assert!(some.len() >= 10, "{}", some.len());
        for row in some {
            let sha = row["sha256"].as_str().expect("a hash");
            let (r, data) = artifact(&a, sha, &[]);
            ok(&r);
            assert_eq!(Some(data.len() as u64), row["size"].as_u64());
            assert_eq!(hex::encode(Sha256::digest(&data)), sha);
            assert_eq!(artifact(&b, sha, &[]).1, data);
        }
    }
}

#[test]
fn an_artifact_of_a_capture_that_moved_or_changed_is_not_guessed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (at, moved) = (dir.path().join("a.mem"), dir.path().join("b.mem"));
    std::fs::copy(&planted().image, &at).expect("copy");
    let out = dir.path().join("out");
    ok(&scan(&at, &out, &["--copy-artifacts", "png"]));
    let one = |sql: &str| {
        let sql =
            format!("SELECT sha256, image_offset FROM artifacts WHERE {sql} ORDER BY id LIMIT 1");
        let rows = query(&out, &sql);
        let row = rows.first().expect("an artifact");
        let offset = row["image_offset"].as_u64().expect("an offset");
        (row["sha256"].as_str().expect("a hash").to_owned(), offset)
    };
    let (copy, _) = one("kind = 'png' AND object IS NOT NULL");
    let (there, offset) = one("kind = 'elf' AND object IS NULL");
    std::fs::rename(&at, &moved).expect("moved");
    // What was to be copied does without the capture.
    ok(&artifact(&out, &copy, &[]).0);
    let (r, _) = artifact(&out, &there, &[]);
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("--evidence"), "{}", r.err);
    let moved_to = moved.display().to_string();
    let (r, data) = artifact(&out, &there, &["--evidence", &moved_to]);
    ok(&r);
    assert_eq!(hex::encode(Sha256::digest(&data)), there);
    // One other byte, and it is another capture.
    let mut bytes = std::fs::read(&moved).expect("read");
    bytes[usize::try_from(offset).expect("fits") + 70] ^= 1;
    let other = dir.path().join("c.mem");
    std::fs::write(&other, bytes).expect("write");
    let (r, data) = artifact(&out, &there, &["--evidence", &other.display().to_string()]);
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("is not the capture"), "{}", r.err);
    assert!(data.is_empty());
}

#[test]
fn a_kind_of_artifact_that_does_not_exist_is_not_waved_through() {
    let dir = tempfile::tempdir().expect("tempdir");
    let r = scan(
        &planted().image,
        &dir.path().join("out"),
        &["--copy-artifacts", "pe,pngs"],
    );
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("did you mean png"), "{}", r.err);
}
