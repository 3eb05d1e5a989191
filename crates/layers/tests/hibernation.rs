//! Hibernation files, read back page by page, cut anywhere, damaged, and of machines that were resumed.

#[path = "common/dumps.rs"]
mod dumps;
#[path = "common/hiber.rs"]
mod hiber;

use dumps::Memory;
use hiber::{Hiber, legacy, modern};
use ramsift_layers::extent::{Codec, Decoder};
use ramsift_layers::format::{self, FormatError, Opened, outline};
use ramsift_layers::source::RamSource;
use ramsift_layers::{ByteSource, FileOffset, ImageOffset, ImageReader, PhysAddr};
use std::collections::BTreeMap;
use std::sync::Arc;

async fn opened(file: &[u8]) -> Result<(Opened, ImageReader), FormatError> {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("hiberfil.sys", file.to_vec()));
    let o = format::open(source.as_ref()).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}

/// Holds every page against what was written; gives how many can be read. Reads all that is stored in one piece at once.
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

/// Enough ranges for two tables of Windows 7.
fn scattered() -> Memory {
    let one = |i: u64| (i * 3 * 4096, dumps::page(i % 50));
    (1..600).map(one).collect()
}

const VERSIONS: [u32; 13] = [
    0x360, 0x3b0, 0x3c8, 0x3d8, 0x3e0, 0x448, 0x4d8, 0x2c8, 0x310, 0x328, 0x338, 0x340,
    // A later one.
    0x540,
];

/// A form of each kind, for what opens a file many times.
fn few() -> Vec<(String, Vec<u8>, Memory)> {
    let m = dumps::memory();
    let one = |h: Hiber| (format!("{h:x?}"), modern(&m, h), m.clone());
    let mixed = Hiber {
        mixed: true,
        ..Hiber::of(0x3e0)
    };
    let mut all = vec![one(mixed), one(Hiber::of(0x2c8)), one(Hiber::of(0x540))];
    for (length, m) in [(0x128, scattered()), (0xe0, m.clone())] {
        let h = Hiber::of(length);
        all.push((format!("{h:x?}"), legacy(&m, h), m));
    }
    all
}

/// Each form with its memory.
fn forms() -> Vec<(String, Vec<u8>, Memory)> {
    let m = dumps::memory();
    let mut all = Vec::new();
    for length in VERSIONS {
        for mixed in [false, true] {
            let h = Hiber {
                mixed,
                ..Hiber::of(length)
            };
            all.push((format!("{h:x?}"), modern(&m, h), m.clone()));
        }
    }
    for method in 0..5 {
        let h = Hiber {
            method: Some(method),
            ..Hiber::of(0x3e0)
        };
        all.push((format!("{h:x?}"), modern(&m, h), m.clone()));
    }
    for length in [0x128, 0xe0] {
        let h = Hiber::of(length);
        all.push((format!("{h:x?}"), legacy(&m, h), m.clone()));
        let m = scattered();
        all.push((format!("{h:x?} in two tables"), legacy(&m, h), m));
    }
    all
}

#[tokio::test]
async fn every_version_holds_the_memory() {
    for (name, file, m) in forms() {
        let (o, r) = opened(&file)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let l = &o.layout;
        assert_eq!(l.format, "hiberfil", "{name}");
        assert_eq!(same(&o, &r, &m).await, pages(&m), "{name}");
        assert_eq!(l.runs.image_len(), 4096 * pages(&m) as u64, "{name}");
        assert!(l.runs.missing().is_empty(), "{name}");
        assert_eq!(l.dtb_hints, [0x1aa_a000], "{name}");
        assert_eq!(
            l.notes[0], "hibernated at 2024-02-29 12:34:56 UTC",
            "{name}"
        );
        // What Windows leaves out is a gap, and nothing else is.
        assert_eq!(l.gaps.len(), 1, "{name}: {:?}", l.gaps);
        assert!(l.gaps[0].reason.contains("leaves out"), "{name}");
        // All of it at once is the same.
        let len: usize = m.iter().map(|(_, b)| b.len()).sum();
        let all = r.bytes().read_vec(FileOffset(0), len).await.expect("read");
        let want: Vec<u8> = m.iter().flat_map(|(_, b)| b.clone()).collect();
        assert!(all == want, "{name}");
        let seen = outline(r.stored().as_ref()).await.expect("read");
        let seen = seen.expect("a hibernation file");
        assert_eq!(seen.dtb_hints, l.dtb_hints, "{name}");
        assert!(seen.memory.is_none_or(|n| n == len as u64), "{name}");
    }
}

#[tokio::test]
async fn what_is_not_in_the_file_is_counted() {
    let m = dumps::memory();
    let h = Hiber {
        highest: Some(0x1f_ffff),
        ..Hiber::of(0x448)
    };
    let (o, _) = opened(&modern(&m, h)).await.expect("opens");
    let lacks = 0x20_0000 - pages(&m);
    let want = format!("{lacks} of {} pages", 0x20_0000);
    assert!(
        o.layout.gaps[0].reason.contains(&want),
        "{:?}",
        o.layout.gaps
    );
}

/// Pages that follow each other in the image and in a set are one extent, whatever lies between them in memory.
#[tokio::test]
async fn a_set_in_order_is_one_extent() {
    let m = scattered();
    let h = Hiber {
        method: Some(0),
        ..Hiber::of(0x3e0)
    };
    let (o, _) = opened(&modern(&m, h)).await.expect("opens");
    let sets = (pages(&m) / 10).div_ceil(16) + (pages(&m) - pages(&m) / 10).div_ceil(16);
    let t = o.table.expect("a table");
    assert_eq!(t.info.extents, sets as u64);
    assert_eq!(o.layout.runs.runs().len(), pages(&m));
}

/// Cut at every 4 KiB and around the heads of sets: an error that names a place, or what is there and a word on the rest.
#[tokio::test]
async fn what_is_cut_is_told() {
    for (name, file, m) in few() {
        let near = [
            1,
            3,
            15,
            16,
            64,
            0x60,
            0x200,
            0x3ff,
            5 * 4096 + 2,
            5 * 4096 + 40,
        ];
        let mut most = 0;
        for cut in (0..file.len()).step_by(4096).chain(near) {
            if cut == 0 || cut >= file.len() {
                continue;
            }
            match opened(&file[..cut]).await {
                Err(e) => {
                    let e = e.to_string();
                    assert!(
                        cut < 0x800 || e.contains("offset") || e.contains("no memory"),
                        "{name} at {cut}: {e}"
                    );
                }
                Ok((o, _)) if o.layout.format == "raw" => assert!(cut < 4, "{name} at {cut}"),
                Ok((o, r)) => {
                    let there = same(&o, &r, &m).await;
                    let gaps = &o.layout.gaps;
                    let told = gaps.iter().any(|g| {
                        g.reason.contains("cut")
                            || g.reason.contains("lost")
                            || g.reason.contains("nothing")
                    });
                    // Of a version that is not known nobody knows how many there should be.
                    let known = !name.contains("540");
                    assert!(
                        told || there == pages(&m) || !known,
                        "{name} at {cut}: {there} pages, {gaps:?}"
                    );
                    most = most.max(there);
                }
            }
        }
        assert!(most > pages(&m) / 2, "{name}: {most}");
    }
}

/// A byte that is another costs an error or its own set, never the program.
#[tokio::test]
async fn damage_never_panics() {
    for (name, file, m) in few() {
        for at in (0..file.len()).step_by(file.len() / 30 + 1) {
            let mut f = file.clone();
            f[at] ^= 0x41;
            let Ok((o, r)) = opened(&f).await else {
                continue;
            };
            for (pa, _) in &m {
                if let Some((at, 4096..)) = o.layout.runs.stored_at(PhysAddr(*pa))
                    && let Err(e) = r.bytes().read_vec(at, 4096).await
                {
                    assert!(e.is_content(), "{name}: {e}");
                }
            }
        }
    }
}

#[tokio::test]
async fn files_of_machines_that_were_resumed() {
    let m = dumps::memory();
    // Windows 8 and later wipe all behind the header.
    let mut wiped = modern(&m, Hiber::of(0x3e0));
    wiped[..4].copy_from_slice(b"WAKE");
    wiped[4096..].fill(0);
    let e = opened(&wiped)
        .await
        .expect_err("nothing is left")
        .to_string();
    assert!(e.contains("resumed"), "{e}");
    // Being restored, all is there, and a gap says that it may not be.
    let mut restored = modern(&m, Hiber::of(0x3e0));
    restored[..4].copy_from_slice(b"RSTR");
    let (o, r) = opened(&restored).await.expect("opens");
    assert_eq!(same(&o, &r, &m).await, pages(&m));
    assert!(
        o.layout.gaps[0].reason.contains("resumed"),
        "{:?}",
        o.layout.gaps
    );
    // Windows 7 wipes the first page alone.
    for length in [0x128, 0xe0] {
        let mut file = legacy(&scattered(), Hiber::of(length));
        file[..4096].fill(0);
        let (o, r) = opened(&file).await.expect("opens");
        assert_eq!(o.layout.format, "hiberfil");
        assert_eq!(same(&o, &r, &scattered()).await, 599);
        assert!(
            o.layout.gaps[0].reason.contains("wiped"),
            "{:?}",
            o.layout.gaps
        );
    }
    // Of a fast startup there is no user's memory.
    for (length, at) in [(0x360, 0x2fc), (0x3e0, 0x364)] {
        let mut file = modern(&m, Hiber::of(length));
        file[at] = 1;
        let (o, _) = opened(&file).await.expect("opens");
        let told = o
            .layout
            .gaps
            .iter()
            .any(|g| g.reason.contains("fast startup"));
        assert!(told, "{:?}", o.layout.gaps);
    }
    // A version before Windows 7 is named.
    let mut old = legacy(&m, Hiber::of(0xe0));
    old[0xc] = 0xa8;
    let e = opened(&old).await.expect_err("not known").to_string();
    assert!(e.contains("hibernation") && e.contains("Hibr2Bin"), "{e}");
}

#[tokio::test]
async fn pages_that_are_there_twice_are_told() {
    let m = dumps::memory();
    let mut file = modern(&m, Hiber::of(0x3e0));
    // The second section begins where the first one does, so what is in that is there twice.
    let first = file[0x68..0x70].to_vec();
    file[0x70..0x78].copy_from_slice(&first);
    let (o, r) = opened(&file).await.expect("opens");
    let n = same(&o, &r, &m).await;
    assert_eq!(n, pages(&m) / 10);
    let told = o.layout.gaps.iter().any(|g| g.reason.contains("twice"));
    assert!(told, "{:?}", o.layout.gaps);
}

#[test]
fn codecs_give_back_what_was_packed() {
    let mut d = Decoder::default();
    let lines: Vec<u8> = (0..3000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
    for data in [
        vec![0; 65_536],
        dumps::page(3).repeat(16),
        (0..16).flat_map(dumps::page).collect(),
        [&[7; 40_000][..], &lines].concat(),
        // More than a block, with a match that needs 32 bits of length.
        vec![9; 200_000],
        b"abc".to_vec(),
    ] {
        for (codec, packed) in [
            (Codec::Xpress, hiber::xpress(&data)),
            (Codec::XpressHuffman, hiber::xpress_huffman(&data)),
        ] {
            let mut out = vec![0; data.len()];
            assert_eq!(d.decode(codec, &packed, &mut out), Ok(()), "{codec:?}");
            assert!(out == data, "{codec:?}");
            for cut in (0..packed.len()).step_by(packed.len() / 20 + 1) {
                let _ = d.decode(codec, &packed[..cut], &mut out);
            }
        }
    }
}

/// What wimlib 1.13.6 made of this text, 60,000 zeros and the text again: codes of many lengths, a long match and a far one.
#[test]
fn what_another_encoder_packed() {
    use base64::Engine as _;
    let packed = concat!(
        "CAAAAAAAAAAAAAAAAAAAAAYAAAAAAAAAREVkRUWAAAAAAAAAAAAAAAAAAAAAAAAAUFZFhQAAcHAHCAgAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIAAgAAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAHAAVwAAUAgAAABwBgAAAAAAAHgG",
        "AAAIAAAAeAAAAAAAAAAHAAAAdAAAAAcAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAgD/hyEbfMrds7Ta+/k/5",
        "INvz+YfLHB6xci4iy4OOoVZJGq0uH3QsYq0lNMfl/I6nZ+MZo5CBNuTzxXFUat1oTDjJceZYWt0dS8/8CqfW4WSVzyHlgqy0kvTvwPfjKfLmSPe37C8XIDD3",
        "LUjOs/m6YcxYBC1pc7xqII0N/kZ95rabH/GTooUI83WTmkAUb8PYHFNor1lQV25zgdkef0ryFhPO1wBtDGh3JnXynFA0EvsbeJttFZvjaB6wAtHXGX1zpe1I",
        "m+NLS5Qs/hbe5hsRv3iZriI1/JzNXQS0DKzu78xsqFbfoNvcmMPlL/zHuL7uf/9c6vhg/+QDAAA="
    );
    let packed = base64::engine::general_purpose::STANDARD
        .decode(packed)
        .expect("base64");
    let text: String = (0..60u64)
        .map(|i| {
            format!(
                "page {i} of memory at {:08x}; ",
                (i * i * 2_654_435_761) & 0xffff_ffff
            )
        })
        .collect();
    let want = [
        &text.as_bytes()[..1024],
        &[0; 60_000],
        &text.as_bytes()[..1000],
    ]
    .concat();
    let mut out = vec![0; want.len()];
    let mut d = Decoder::default();
    assert_eq!(d.decode(Codec::XpressHuffman, &packed, &mut out), Ok(()));
    assert!(out == want);
}
