//! Sparse files: their holes are zeros, and cost no reading.

use crate::embedded::{manifest, ok, query};
use ramsift_tests::fixtures::image;
use ramsift_tests::program::scan;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

#[test]
fn a_sparse_file_gives_what_the_same_file_without_holes_gives() {
    let dir = tempfile::tempdir().expect("folder");
    let (len, mib) = (96u64 << 20, 1u64 << 20);
    let data = image(65_536, &[(64, b"\0http://hole.example.org/a\0")]);
    // At its start, over the border of two chunks, and in the middle of a chunk; zeros that are stored, too.
    let places = [0, 32 * mib - 32_768, 70 * mib];
    let (sparse, full) = (dir.path().join("sparse.mem"), dir.path().join("full.mem"));
    let f = File::create(&sparse).expect("create");
    f.set_len(len).expect("length");
    for at in places {
        f.write_all_at(&data, at).expect("data");
    }
    f.write_all_at(&[0; 8192], 90 * mib).expect("zeros");
    let mut whole = vec![0; usize::try_from(len).expect("small")];
    for at in places {
        let at = usize::try_from(at).expect("small");
        whole[at..at + data.len()].copy_from_slice(&data);
    }
    std::fs::write(&full, &whole).expect("write");
    assert!(f.metadata().expect("there").blocks() * 512 < mib);
    let rules = dir.path().join("r.yar");
    std::fs::write(
        &rules,
        "rule url { strings: $a = \"hole.example.org\" condition: #a == 3 }\n\
         rule zeros { strings: $z = { 00 00 00 00 00 00 00 01 } condition: $z }\n",
    )
    .expect("write");
    let rules = rules.to_str().expect("a path");
    let scanned = [&sparse, &full].map(|path| {
        let out = path.with_extension("out");
        let more = ["--set", "scan.chunk_size=16777216", "--rules", rules];
        ok(&scan(path, &out, &more));
        let m = manifest(&out);
        assert_eq!(
            m.evidence_blake3.as_deref(),
            Some(blake3::hash(&whole).to_hex().as_str()),
        );
        let tables = ["findings", "events", "artifacts", "coverage", "groups"];
        let tables = tables.map(|t| {
            let mut rows: Vec<String> = query(&out, &format!("select * from {t}"))
                .into_iter()
                .map(|mut row| {
                    if let Some(row) = row.as_object_mut() {
                        row.remove("capture");
                    }
                    row.to_string()
                })
                .collect();
            rows.sort();
            rows
        });
        assert!(tables[0].len() >= 3, "{tables:?}");
        (m.coverage.clone(), tables)
    });
    assert_eq!(scanned[0], scanned[1]);
}
