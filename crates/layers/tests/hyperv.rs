//! Saved states of Hyper-V, read back page by page, cut anywhere, damaged, with a log that was not applied.

#[path = "common/dumps.rs"]
mod dumps;
#[path = "common/hiber.rs"]
mod hiber;
#[path = "common/hyperv.rs"]
mod hyperv;

use dumps::Memory;
use hyperv::{State, vmrs};
use ramsift_layers::format::{self, FormatError, Opened, looks_like_capture};
use ramsift_layers::source::RamSource;
use ramsift_layers::{ByteSource, FileOffset, ImageOffset, ImageReader};
use std::collections::BTreeMap;
use std::sync::Arc;

const CR3: u64 = 0x1aa_a000;
const STATE: State = State {
    packed: true,
    objects: 200,
    log: 0,
};

async fn opened(file: &[u8]) -> Result<(Opened, ImageReader), FormatError> {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("machine.vmrs", file.to_vec()));
    let o = format::open(source.as_ref()).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}

/// Ranges below and above a hole, of which the upper one ends in the middle of a block.
fn memory() -> Memory {
    let fill = |len: usize, parts: &[(usize, &[u8])]| {
        let mut out = vec![0; len];
        for (at, b) in parts {
            out[*at..*at + b.len()].copy_from_slice(b);
        }
        out
    };
    let m = dumps::memory();
    vec![
        (
            0,
            fill(3 << 20, &[(4096, &m[0].1), (0x10_0000 + 8192, &m[1].1)]),
        ),
        (
            0x1_0000_0000,
            fill(
                (1 << 20) + 0x5000,
                &[
                    (0x2000, &m[2].1),
                    (0x10_0000, &dumps::page(4)),
                    (4096, &[0x5a; 4096]),
                ],
            ),
        ),
    ]
}

/// Holds every page against what was written; gives how many can be read.
async fn same(o: &Opened, r: &ImageReader, m: &Memory) -> usize {
    let want: BTreeMap<u64, &[u8]> = m
        .iter()
        .flat_map(|(pa, b)| (*pa..).step_by(4096).zip(b.chunks_exact(4096)))
        .collect();
    let (runs, bytes, mut there) = (&o.layout.runs, r.bytes(), 0);
    for piece in runs.pieces(0..runs.image_len()) {
        let n = usize::try_from(piece.len).expect("small");
        let got = bytes
            .read_vec(FileOffset(piece.file), n)
            .await
            .expect("stored");
        for (image, page) in (piece.image..).step_by(4096).zip(got.chunks_exact(4096)) {
            let pa = runs.to_phys(ImageOffset(image)).expect("in the image").0;
            assert!(
                want.get(&pa).is_some_and(|w| *w == page),
                "the page at {pa:#x} differs"
            );
            there += 1;
        }
    }
    there
}

fn pages(m: &Memory) -> usize {
    m.iter().map(|(_, b)| b.len() / 4096).sum()
}

#[tokio::test]
async fn every_form_holds_the_memory() {
    let m = memory();
    for packed in [true, false] {
        // One table of objects, and several.
        for objects in [200, 4] {
            let s = State {
                packed,
                objects,
                log: 0,
            };
            let (o, r) = opened(&vmrs(&m, s, CR3))
                .await
                .unwrap_or_else(|e| panic!("{s:?}: {e}"));
            let l = &o.layout;
            assert_eq!(
                (l.format.as_str(), l.version.as_deref()),
                ("hyperv", Some("4.0"))
            );
            assert_eq!(same(&o, &r, &m).await, pages(&m), "{s:?}");
            assert_eq!(l.runs.image_len(), 4096 * pages(&m) as u64, "{s:?}");
            assert!(
                l.gaps.is_empty() && l.runs.missing().is_empty(),
                "{s:?}: {:?}",
                l.gaps
            );
            assert_eq!(
                (l.dtb_hints.as_slice(), l.arch.as_deref()),
                (&[CR3][..], Some("x86_64"))
            );
        }
    }
}

#[tokio::test]
async fn changes_in_the_log_are_a_gap() {
    let s = State { log: 3, ..STATE };
    let (o, _) = opened(&vmrs(&memory(), s, CR3)).await.expect("opens");
    assert!(
        o.layout.gaps[0].reason.contains("3 changes"),
        "{:?}",
        o.layout.gaps
    );
}

#[tokio::test]
async fn of_two_headers_the_newer_one_that_is_whole_counts() {
    let m = memory();
    let file = vmrs(&m, STATE, CR3);
    for at in [0, 4096] {
        let mut one = file.clone();
        one[at + 20] ^= 1;
        if at == 0 {
            let (o, r) = opened(&one).await.expect("the other header");
            assert_eq!(same(&o, &r, &m).await, pages(&m));
        }
        one[4096 - at + 20] ^= 1;
        let e = opened(&one).await.expect_err("no header").to_string();
        assert!(e.contains("checksum"), "{e}");
    }
}

#[tokio::test]
async fn what_is_no_saved_state_is_named() {
    let e = opened(&vmrs(&[], STATE, CR3))
        .await
        .expect_err("no memory")
        .to_string();
    assert!(
        e.contains("RamMemoryBlock0") && e.contains("running"),
        "{e}"
    );
    let head = &vmrs(&[], STATE, CR3)[..4096];
    assert!(looks_like_capture("a.vmrs", head, 1 << 20).is_ok());
    let why = looks_like_capture("a.vmcx", head, 1 << 20).expect_err("a configuration");
    assert!(why.contains(".vmrs"), "{why}");
}

/// Cut at every 4 KiB: an error that names a place, or what is there and a word on the rest.
#[tokio::test]
async fn what_is_cut_is_told() {
    let m = memory();
    for packed in [true, false] {
        for objects in [200, 4] {
            let s = State {
                packed,
                objects,
                log: 0,
            };
            let file = vmrs(&m, s, CR3);
            let step = if packed { 4096 } else { 65_536 };
            for cut in (step..file.len()).step_by(step) {
                match opened(&file[..cut]).await {
                    Err(e) => assert!(e.to_string().contains("offset"), "{s:?} at {cut}: {e}"),
                    Ok((o, r)) => {
                        let there = same(&o, &r, &m).await;
                        assert!(!o.layout.gaps.is_empty(), "{s:?} at {cut}: {there} pages");
                    }
                }
            }
        }
    }
}

/// A byte that is another costs an error or its own block, never the program.
#[tokio::test]
async fn damage_never_panics() {
    let m = memory();
    let file = vmrs(&m, STATE, CR3);
    let heads = (8192..8192 + 600).chain(file.len() - 12_000..file.len());
    for at in (0..file.len())
        .step_by(file.len() / 100)
        .chain(heads.step_by(13))
    {
        let mut f = file.clone();
        f[at] ^= 0x41;
        let Ok((o, r)) = opened(&f).await else {
            continue;
        };
        for piece in o
            .layout
            .runs
            .pieces(0..o.layout.runs.image_len().min(8 << 20))
        {
            let n = usize::try_from(piece.len.min(1 << 20)).expect("small");
            if let Err(e) = r.bytes().read_vec(FileOffset(piece.file), n).await {
                assert!(e.is_content(), "{e}");
            }
        }
    }
}
