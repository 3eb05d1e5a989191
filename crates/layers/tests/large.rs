//! Captures of hundreds of GiB, by a source that stands in for them: what planning reads of one, and raw images without the hole
//! below 4 GiB, told by page tables alone.

#[path = "common/large.rs"]
mod large;
#[path = "common/linux.rs"]
mod linux;

use async_trait::async_trait;
use large::Large;
use linux::Linux;
use ramsift_layers::format::{self, Beside, Opened, outline};
use ramsift_layers::source::SourceError;
use ramsift_layers::{ByteSource, ChunkParams, FileOffset, PhysAddr};
use std::sync::Arc;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn lime_header(first: u64, len: u64) -> Vec<u8> {
    let mut h = b"EMiL\x01\0\0\0".to_vec();
    for v in [first, first + len - 1, 0] {
        h.extend(v.to_le_bytes());
    }
    h
}

/// Ranges of a machine of 512 GiB.
const RANGES: [(u64, u64); 3] = [
    (0x1000, 0x9e000),
    (0x10_0000, 0xbfe0_0000),
    (4 * GIB, 509 * GIB),
];

fn lime() -> Large {
    let (mut at, mut pieces) = (0, Vec::new());
    for (pa, len) in RANGES {
        pieces.push((at, lime_header(pa, len)));
        at += 32 + len;
        pieces.push((at - 4096, vec![0xab; 4096]));
    }
    Large::object(at, pieces)
}

fn put(b: &mut [u8], at: usize, n: u64, bytes: usize) {
    b[at..at + bytes].copy_from_slice(&n.to_le_bytes()[..bytes]);
}

fn elf_core() -> Large {
    let mut h = vec![0; 4096];
    h[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, n, bytes) in [
        (16, 4, 2),
        (18, 62, 2),
        (20, 1, 4),
        (32, 64, 8),
        (52, 64, 2),
        (54, 56, 2),
        (56, 3, 2),
    ] {
        put(&mut h, at, n, bytes);
    }
    let mut at = 4096;
    let mut pieces = Vec::new();
    for (i, (pa, len)) in RANGES.iter().enumerate() {
        let p = 64 + 56 * i;
        for (field, n) in [(8, at), (24, *pa), (32, *len), (40, *len)] {
            put(&mut h, p + field, n, 8);
        }
        put(&mut h, p, 1, 4);
        at += len;
        pieces.push((at - 4096, vec![0xab; 4096]));
    }
    pieces.push((0, h));
    Large::object(at, pieces)
}

fn crash_dump(bitmap: bool) -> Large {
    let mut h = b"PAGE".repeat(0x800);
    h[..8].copy_from_slice(b"PAGEDU64");
    put(&mut h, 0x10, 0x1ad_000, 8);
    put(&mut h, 0x30, 0x8664, 4);
    put(&mut h, 0xf98, if bitmap { 5 } else { 1 }, 4);
    put(&mut h, 0x88, RANGES.len() as u64, 4);
    put(&mut h, 0x90, RANGES.iter().map(|r| r.1 / 4096).sum(), 8);
    for (i, (pa, len)) in RANGES.iter().enumerate() {
        put(&mut h, 0x98 + 16 * i, pa / 4096, 8);
        put(&mut h, 0xa0 + 16 * i, len / 4096, 8);
    }
    let len: u64 = RANGES.iter().map(|r| r.1).sum();
    let mut at = 0x2000;
    if bitmap {
        let bits = (RANGES[2].0 + RANGES[2].1) / 4096;
        let mut map = vec![0u8; (bits / 8) as usize];
        for (pa, len) in RANGES {
            for page in pa / 4096..(pa + len) / 4096 {
                map[page as usize / 8] |= 1 << (page % 8);
            }
        }
        h.extend(b"SDMPDUMP");
        h.resize(0x2038, 0);
        h.extend(map);
        h.resize(h.len().next_multiple_of(4096), 0);
        at = h.len() as u64;
        put(&mut h, 0x2020, at, 8);
        put(&mut h, 0x2028, len / 4096, 8);
        put(&mut h, 0x2030, bits, 8);
    }
    let (mut end, mut pieces) = (at, Vec::new());
    for (_, len) in RANGES {
        end += len;
        pieces.push((end - 4096, vec![0xab; 4096]));
    }
    pieces.push((0, h));
    Large::object(end, pieces)
}

/// Opens a capture, reads its last page, and plans a chunk in the middle; gives what opening it cost.
async fn planned(source: Large) -> (Opened, u64, u64) {
    let source = Arc::new(source);
    let o = format::open(source.as_ref()).await.expect("a capture");
    let (bytes, reads) = source.cost();
    let reader = o.reader(source.clone()).await.expect("a reader");
    let runs = &o.layout.runs;
    for r in runs.runs() {
        let (at, _) = runs
            .stored_at(PhysAddr(r.pa + r.len - 4096))
            .expect("stored");
        let page = reader.bytes().read_vec(at, 4096).await.expect("read");
        assert!(o.layout.format == "raw" || page == [0xab; 4096]);
    }
    let chunks = ChunkParams {
        size: 64 * MIB,
        ..ChunkParams::default()
    };
    let count = chunks.count(source.len());
    assert_eq!(count, source.len().div_ceil(64 * MIB));
    let start = count / 2 * chunks.size;
    let windows = reader
        .windows(&chunks, runs, start..start + chunks.size)
        .await;
    let owned: u64 = windows
        .expect("windows")
        .iter()
        .map(|w| w.core.end - w.core.start)
        .sum();
    assert_eq!(owned, chunks.size);
    (o, bytes, reads)
}

#[tokio::test]
async fn planning_reads_little_of_512_gib() {
    for (name, source, most) in [
        ("raw", Large::object(512 * GIB, []), MIB),
        ("raw file", Large::object(512 * GIB, []).file(), MIB),
        ("LiME", lime(), MIB),
        ("LiME file", lime().file(), MIB),
        ("ELF core", elf_core(), MIB),
        ("crash dump", crash_dump(false), MIB),
        // Its bitmap besides: a bit for each page.
        (
            "bitmap dump",
            crash_dump(true),
            MIB + (4 + 509) * GIB / 4096 / 8,
        ),
    ] {
        let (o, bytes, reads) = planned(source).await;
        println!("{name}: {bytes} bytes in {reads} reads");
        assert!(bytes < most, "{name}: {bytes} bytes in {reads} reads");
        let len = if o.layout.format == "raw" {
            512 * GIB
        } else {
            RANGES.iter().map(|r| r.1).sum()
        };
        assert_eq!(o.layout.runs.image_len(), len, "{name}");
        assert!(o.layout.runs.missing().is_empty(), "{name}");
    }
}

/// What a store lets a client write at once, a byte less and a byte more.
#[tokio::test]
async fn around_5_gib() {
    for len in [5 * GIB - 1, 5 * GIB, 5 * GIB + 1] {
        let source = Large::object(
            len,
            [
                (0, lime_header(0, len - 32)),
                (len - 4096, vec![0xab; 4096]),
            ],
        );
        let (o, bytes, _) = planned(source).await;
        assert_eq!(o.layout.runs.image_len(), len - 32);
        assert!(bytes < MIB);
    }
}

/// The bitmap of a kdump that is too large for who only asks is not read.
#[tokio::test]
async fn who_asks_reads_little_of_a_kdump() {
    let pages = 512 * GIB / 4096;
    let bitmaps = 2 * pages / 8 / 4096;
    let mut h = vec![0; 8192];
    h[..8].copy_from_slice(b"KDUMP   ");
    put(&mut h, 8, 6, 4);
    h[12 + 4 * 65..12 + 4 * 65 + 6].copy_from_slice(b"x86_64");
    for (i, v) in [0, 4096, 1, bitmaps, 0, 0, 0, 0, 0, 1].iter().enumerate() {
        put(&mut h, 424 + 4 * i, *v, 4);
    }
    put(&mut h, 4096 + 96, pages, 8);
    let source = Large::object(100 * GIB, [(0, h)]);
    let o = outline(&source).await.expect("read").expect("a kdump");
    assert_eq!((o.format, o.arch.as_deref()), ("kdump", Some("x86_64")));
    let (bytes, reads) = source.cost();
    assert!(bytes < 64 * KIB && reads < 8, "{bytes} in {reads}");
}

struct State(Arc<Large>);

#[async_trait]
impl Beside for State {
    async fn with_ending(&self, ending: &str) -> Result<Option<Arc<dyn ByteSource>>, SourceError> {
        let found: Arc<dyn ByteSource> = self.0.clone();
        Ok((ending == "vmss").then_some(found))
    }

    async fn numbered(&self) -> Result<Vec<Arc<dyn ByteSource>>, SourceError> {
        Ok(Vec::new())
    }
}

/// The state beside the memory says where the hole is; without it, page tables may.
#[tokio::test]
async fn the_state_of_a_machine_of_512_gib_is_small() {
    let mut tags = Vec::new();
    let tag = |tags: &mut Vec<u8>, name: &str, i: Option<u32>, n: u64| {
        tags.extend([u8::from(i.is_some()) << 6 | 4, name.len() as u8]);
        tags.extend(name.as_bytes());
        tags.extend(i.map_or(Vec::new(), |i| i.to_le_bytes().to_vec()));
        tags.extend((n as u32).to_le_bytes());
    };
    let below = 3 * GIB / 4096;
    let above = 509 * GIB / 4096;
    tag(&mut tags, "regionsCount", None, 2);
    for (i, (ppn, at, size)) in [(0, 0, below), (4 * GIB / 4096, below, above)]
        .iter()
        .enumerate()
    {
        let i = Some(i as u32);
        tag(&mut tags, "regionPPN", i, *ppn);
        tag(&mut tags, "regionPageNum", i, *at);
        tag(&mut tags, "regionSize", i, *size);
    }
    tags.extend([0, 0]);
    let mut state = 0xbed2_bed2u32.to_le_bytes().to_vec();
    state.extend([8, 0, 0, 0, 1, 0, 0, 0]);
    let mut group = b"memory".to_vec();
    group.resize(64, 0);
    group.extend(92u64.to_le_bytes());
    group.extend((tags.len() as u64).to_le_bytes());
    state.extend(group);
    state.extend(&tags);
    let len = state.len() as u64;
    let state = Arc::new(Large::object(len.max(4096), [(0, state)]));
    let memory = Large::object(512 * GIB, []).named("a.vmem");
    let o = format::open_beside(&memory, &State(state.clone()))
        .await
        .expect("vmware");
    assert_eq!(o.layout.format, "vmware");
    let runs = o.layout.runs.runs();
    assert_eq!(
        (runs[1].pa, runs[1].file, runs[1].len),
        (4 * GIB, 3 * GIB, 509 * GIB)
    );
    assert!(memory.cost().0 + state.cost().0 < MIB);
}

async fn runs(source: &Large) -> Vec<(u64, u64, u64)> {
    let o = format::open(source).await.expect("raw");
    let (bytes, reads) = source.cost();
    assert!(bytes < MIB, "{bytes} bytes in {reads} reads");
    let note = o
        .layout
        .notes
        .iter()
        .any(|n| n.contains("hole below 4 GiB"));
    let runs: Vec<_> = o
        .layout
        .runs
        .runs()
        .iter()
        .map(|r| (r.pa, r.len, r.file))
        .collect();
    assert_eq!(note, runs.len() > 1, "{:?}", o.layout.notes);
    runs
}

#[tokio::test]
async fn page_tables_prove_a_hole_that_was_left_out() {
    for hole in [
        0x8000_0000,
        0xb000_0000,
        0xc000_0000,
        0xe000_0000,
        0xf800_0000,
    ] {
        for end in [4 * GIB + 512 * MIB, 20 * GIB, 500 * GIB] {
            let m = Linux::of(hole, end);
            let high = Linux {
                kernel: end - 64 * MIB,
                ..Linux::of(hole, end)
            };
            let low = Linux {
                tables: 0x400_0000,
                ..Linux::of(hole, end)
            };
            let huge = Linux {
                huge: true,
                firmware: 0,
                ..Linux::of(hole, end)
            };
            for m in [m, high, low, huge] {
                let want = [(0, hole, 0), (4 * GIB, m.len() - hole, hole)];
                assert_eq!(
                    runs(&m.image(true, m.len())).await,
                    want,
                    "{hole:#x} {end:#x}"
                );
                // With the hole in the file nothing changes.
                assert_eq!(
                    runs(&m.image(false, end)).await,
                    [(0, end, 0)],
                    "{hole:#x} {end:#x}"
                );
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_proved_is_not_told() {
    let m = Linux::of(0xc000_0000, 20 * GIB);
    let len = m.len();
    // Cut: the tables that are left prove it still.
    assert_eq!(runs(&m.image(true, len - 4 * MIB)).await.len(), 2);
    assert_eq!(runs(&m.image(false, m.end - 4 * MIB)).await.len(), 1);
    // Cut in front of the tables: nothing does.
    for cut in [len - 20 * MIB, 4 * GIB, 0xc000_0000 + 4096] {
        assert_eq!(runs(&m.image(true, cut)).await, [(0, cut, 0)]);
    }
    // A hole that no hypervisor has.
    let odd = Linux::of(0xc123_0000, 20 * GIB);
    assert_eq!(runs(&odd.image(true, odd.len())).await.len(), 1);
    // No kernel at all, and one whose image is gone.
    assert_eq!(runs(&Large::object(8 * GIB, [])).await.len(), 1);
    let mut without = m.pages();
    without.remove(&m.kernel);
    let pieces = without.into_iter().map(|(pa, t)| {
        let at = if pa >= 4 * GIB { pa - GIB } else { pa };
        (
            at,
            t.iter().flat_map(|e| e.to_le_bytes()).collect::<Vec<u8>>(),
        )
    });
    assert_eq!(
        runs(&Large::object(len, pieces.collect::<Vec<_>>()))
            .await
            .len(),
        1
    );
}

/// Where nothing lies above the hole, a machine has none in its file.
#[tokio::test]
async fn machines_that_fit_below_their_hole() {
    for end in [3 * GIB, 3 * GIB + 256 * MIB] {
        let m = Linux {
            tables: end - 32 * MIB,
            ..Linux::of(end, 4 * GIB)
        };
        assert_eq!(runs(&m.image(true, end)).await, [(0, end, 0)]);
    }
}

/// A page of the file, as its reader sees it.
#[tokio::test]
async fn what_lies_above_the_hole_is_read_from_behind_it() {
    let m = Linux::of(0xc000_0000, 6 * GIB);
    let source: Arc<dyn ByteSource> = Arc::new(m.image(true, m.len()));
    let o = format::open(source.as_ref()).await.expect("raw");
    let reader = o.reader(source).await.expect("plain");
    let (at, _) = o.layout.runs.stored_at(PhysAddr(m.tables)).expect("stored");
    assert_eq!(at, FileOffset(m.tables - GIB));
    let page = reader.bytes().read_vec(at, 8).await.expect("read");
    assert_eq!(page, m.pages()[&m.tables][0].to_le_bytes());
}
