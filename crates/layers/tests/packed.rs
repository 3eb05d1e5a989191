//! Captures that pack their memory, read back byte for byte, cut anywhere, and damaged.

#[path = "common/dumps.rs"]
mod dumps;

use dumps::{CODECS, Kind, Memory, Packed};
use ramsift_layers::format::{self, FormatError, Opened};
use ramsift_layers::source::{RamSource, S3Config, Sources};
use ramsift_layers::{ByteSource, FileOffset, ImageReader, PhysAddr};
use std::sync::Arc;

async fn opened(file: &[u8]) -> Result<(Opened, ImageReader), FormatError> {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x", file.to_vec()));
    let o = format::open(source.as_ref()).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}

/// What the reader gives for a physical page: its bytes, or nothing.
async fn page(o: &Opened, r: &ImageReader, pa: u64) -> Option<Vec<u8>> {
    let at = o.layout.runs.from_phys(PhysAddr(pa))?;
    let at = o.layout.runs.to_file(at)?;
    r.bytes().read_vec(at, 4096).await.ok()
}

/// Holds every page against what was packed; gives how many can be read.
async fn same(o: &Opened, r: &ImageReader, m: &Memory) -> usize {
    let mut there = 0;
    for (pa, bytes) in m {
        for (i, want) in bytes.chunks_exact(4096).enumerate() {
            let pa = pa + 4096 * i as u64;
            if let Some(got) = page(o, r, pa).await {
                assert!(got == want, "the page at {pa:#x} differs");
                there += 1;
            }
        }
    }
    there
}

fn pages(m: &Memory) -> usize {
    m.iter().map(|(_, b)| b.len() / 4096).sum()
}

async fn whole(name: &str, file: &[u8], format: &str, m: &Memory) -> Opened {
    let (o, r) = opened(file).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(o.layout.format, format, "{name}");
    assert_eq!(same(&o, &r, m).await, pages(m), "{name}");
    let len: usize = m.iter().map(|(_, b)| b.len()).sum();
    assert_eq!(
        o.layout.runs.image_len(),
        len as u64,
        "{name}: no more than that"
    );
    assert!(o.layout.gaps.is_empty(), "{name}: {:?}", o.layout.gaps);
    // All of it at once is the same.
    let all = r.bytes().read_vec(FileOffset(0), len).await.expect("read");
    let want: Vec<u8> = m.iter().flat_map(|(_, b)| b.clone()).collect();
    assert!(all == want, "{name}");
    o
}

/// Every form of a capture that is written here.
fn forms(m: &Memory) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("avml".to_owned(), dumps::avml(m))];
    for packed in CODECS {
        let dump = dumps::kdump(m, &Kind::of(packed));
        for part in [4096, 5000] {
            all.push((
                format!("{packed:?} flattened {part}"),
                dumps::flattened(&dump, part),
            ));
        }
        all.push((format!("{packed:?}"), dump));
    }
    all
}

#[tokio::test]
async fn every_form_holds_the_same_memory() {
    let m = dumps::memory();
    for (name, file) in forms(&m) {
        let format = if name == "avml" { "avml" } else { "kdump" };
        whole(&name, &file, format, &m).await;
    }
}

#[tokio::test]
async fn plain_and_packed_ranges_may_be_mixed_and_out_of_order() {
    let m = dumps::memory();
    let ranges = |plain: [bool; 3]| -> Vec<u8> {
        let one = |i: usize| {
            let (pa, b) = &m[i];
            if plain[i] {
                dumps::lime_range(*pa, b)
            } else {
                dumps::avml_range(*pa, b)
            }
        };
        [2, 0, 1].into_iter().flat_map(one).collect()
    };
    for plain in [[true, false, true], [false, true, false], [false; 3]] {
        whole("mixed", &ranges(plain), "avml", &m).await;
    }
}

#[tokio::test]
async fn blocks_of_zeros_that_avml_left_out_are_zeros() {
    const BLOCK: usize = 16 << 20;
    let first = dumps::page(1).repeat(BLOCK / 4096);
    let last = dumps::page(2);
    let at = 0x10_0000 + 3 * BLOCK as u64;
    let file = [
        dumps::avml_range(0x10_0000, &first),
        dumps::avml_range(at, &last),
    ]
    .concat();
    let (o, r) = opened(&file).await.expect("avml");
    assert_eq!(o.layout.runs.runs().len(), 1, "one stretch of memory");
    assert_eq!(
        page(&o, &r, 0x10_0000 + 2 * BLOCK as u64).await,
        Some(vec![0; 4096])
    );
    assert_eq!(page(&o, &r, at).await, Some(last.clone()));
    assert!(
        o.layout
            .notes
            .iter()
            .any(|n| n.contains("33554432 bytes of zeros")),
        "{:?}",
        o.layout.notes
    );
    // A hole behind a range that is not a whole block is a hole.
    let short = [
        dumps::avml_range(0x10_0000, &first[4096..]),
        dumps::avml_range(at, &last),
    ]
    .concat();
    let (o, _) = opened(&short).await.expect("avml");
    assert_eq!(o.layout.runs.runs().len(), 2);
}

#[tokio::test]
async fn ranges_that_are_there_twice_are_kept_once_and_told() {
    let m = dumps::memory();
    let again = dumps::avml_range(m[0].0 + 4096, &m[0].1[..8192]);
    let (o, r) = opened(&[dumps::avml(&m), again].concat())
        .await
        .expect("avml");
    assert_eq!(same(&o, &r, &m).await, pages(&m));
    assert_eq!(o.layout.gaps.len(), 1);
    assert!(
        o.layout.gaps[0].reason.contains("twice"),
        "{:?}",
        o.layout.gaps
    );
}

#[tokio::test]
async fn zeros_that_a_dump_left_out_are_zeros_where_nothing_else_was() {
    let m = dumps::memory();
    let kind = Kind {
        without_zeros: true,
        ..Kind::of(Packed::Zstd)
    };
    let mut dump = dumps::kdump(&m, &kind);
    let o = whole("level 1", &dump, "kdump", &m).await;
    assert!(
        o.layout.notes.iter().any(|n| n.contains("dump level 1")),
        "{:?}",
        o.layout.notes
    );
    // At another level nobody knows what they were.
    dump[4096 + 8] = 31;
    let (o, r) = opened(&dump).await.expect("kdump");
    let zeros = m
        .iter()
        .flat_map(|(_, b)| b.chunks(4096))
        .filter(|p| p.iter().all(|b| *b == 0))
        .count();
    assert_eq!(same(&o, &r, &m).await, pages(&m) - zeros);
    assert!(
        o.layout.notes.iter().any(|n| n.contains("not known")),
        "{:?}",
        o.layout.notes
    );
}

#[tokio::test]
async fn fields_of_i386_and_vmcoreinfo_are_found() {
    let m = dumps::memory();
    let narrow = Kind {
        narrow: true,
        ..Kind::of(Packed::Zlib)
    };
    let o = whole("i386", &dumps::kdump(&m, &narrow), "kdump", &m).await;
    assert_eq!(o.layout.arch.as_deref(), Some("x86"));
    let info =
        b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=16777216\n";
    let told = Kind {
        vmcoreinfo: info.to_vec(),
        ..Kind::of(Packed::Lzo)
    };
    let o = whole("vmcoreinfo", &dumps::kdump(&m, &told), "kdump", &m).await;
    assert_eq!(o.layout.arch.as_deref(), Some("x86_64"));
    assert_eq!(o.layout.dtb_hints, [0x3a1_0000]);
}

/// Cut anywhere, a capture is refused with a reason, or what is left of it is what was there, and what is not is told.
#[tokio::test]
async fn cut_anywhere_it_is_refused_or_says_what_is_missing() {
    let m = dumps::memory();
    for (name, file) in forms(&m) {
        let mut most = 0;
        for at in (1..file.len()).step_by(if name == "avml" { 1021 } else { 4093 }) {
            let Ok((o, r)) = opened(&file[..at]).await else {
                continue;
            };
            if o.layout.format == "raw" {
                assert!(at < 16, "{name}: {at}");
                continue;
            }
            let there = same(&o, &r, &m).await;
            // Of a flattened dump the end mark may be all that is cut.
            assert!(
                there < pages(&m) || name.contains("flattened"),
                "{name}: cut at {at} nothing is missing"
            );
            assert!(
                !o.layout.notes.is_empty(),
                "{name}: cut at {at} and nothing is said"
            );
            most = most.max(there);
        }
        assert!(most > pages(&m) / 2, "{name}: {most}");
    }
}

/// A byte that is another costs an error or its own pages, never the program or another page's content in silence.
#[tokio::test]
async fn damage_never_panics() {
    let m = dumps::memory();
    for (name, file) in forms(&m) {
        for at in (0..file.len()).step_by(file.len() / 40) {
            for bit in [0x01, 0x80] {
                let mut f = file.clone();
                f[at] ^= bit;
                let Ok((o, r)) = opened(&f).await else {
                    continue;
                };
                if o.layout.format == "raw" {
                    continue;
                }
                let all = r.bytes();
                for run in o.layout.runs.runs() {
                    let mut done = 0;
                    while done < run.stored.min(1 << 20) {
                        let n = usize::try_from((run.stored - done).min(4096)).expect("small");
                        if let Err(e) = all.read_vec(FileOffset(run.file + done), n).await {
                            assert!(e.is_content(), "{name}: {e}");
                        }
                        done += n as u64;
                    }
                }
            }
        }
    }
}

/// Names that lie beside one another, in a folder.
async fn beside(path: &std::path::Path) -> Result<(Opened, ImageReader), FormatError> {
    let sources = Sources::new(S3Config::default());
    let source = sources.open(&path.display().to_string()).await?;
    let siblings = sources.beside(source.pin());
    let joined = format::joined(&source, &siblings).await?;
    let source = joined.unwrap_or(source);
    let o = format::open_beside(source.as_ref(), &siblings).await?;
    let r = o.reader(source.clone()).await?;
    // A worker opens it by its pin alone.
    let again = sources.open_pinned(source.pin()).await?;
    assert_eq!(again.len(), source.len());
    Ok((o, r.over(again)))
}

#[tokio::test]
async fn all_files_of_a_split_dump_are_one() {
    let m = dumps::memory();
    let last = 0x10_0000 + 9;
    let cuts = [0, 20, 0x105, 0x10_0002, last];
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |i: usize| dir.path().join(format!("vmcore-{i:02}.kdump"));
    let part = |range: std::ops::Range<u64>| {
        let kind = Kind {
            part: Some(range),
            ..Kind::of(Packed::Zlib)
        };
        dumps::kdump(&m, &kind)
    };
    for (i, w) in cuts.windows(2).enumerate() {
        let dump = part(w[0]..w[1]);
        // One of them flattened.
        let dump = if i == 2 {
            dumps::flattened(&dump, 5000)
        } else {
            dump
        };
        std::fs::write(at(9 + i), dump).expect("write");
    }
    // makedumpfile writes files without pages too, which end with their bitmaps.
    let mut empty = part(last..last);
    empty.truncate(empty.len() - 4);
    std::fs::write(at(13), empty).expect("write");
    // From whichever of them: the whole memory.
    for i in [9, 10, 12, 13] {
        let (o, r) = beside(&at(i)).await.expect("a dump");
        assert_eq!(same(&o, &r, &m).await, pages(&m), "{i}");
        assert!(o.layout.gaps.is_empty() && o.layout.runs.missing().is_empty());
        let notes = o.layout.notes.join("; ");
        assert!(notes.contains("split in 4 files"), "{notes}");
    }
    // What lies beside it and is of another machine is none of it.
    let mut other = part(0..20);
    other[12 + 65] = b'x';
    std::fs::write(at(8), &other).expect("write");
    std::fs::write(at(7), b"text").expect("write");
    let (o, r) = beside(&at(9)).await.expect("a dump");
    assert_eq!(same(&o, &r, &m).await, pages(&m));
    assert!(o.layout.runs.missing().is_empty());
    // A file that is gone is missing.
    std::fs::remove_file(at(11)).expect("removed");
    let (o, r) = beside(&at(9)).await.expect("a dump");
    let there = same(&o, &r, &m).await;
    let missing: u64 = o
        .layout
        .runs
        .missing()
        .iter()
        .map(|r| r.end - r.start)
        .sum();
    assert!(there < pages(&m), "{there}");
    assert_eq!(missing / 4096 + there as u64, pages(&m) as u64);
    let notes = o.layout.notes.join("; ");
    assert!(notes.contains("other files of the dump"), "{notes}");
    // So it is for one that was named alone, of which nothing else is there.
    let (o, r) = opened(&part(20..0x105)).await.expect("a part");
    let there = same(&o, &r, &m).await;
    let missing: u64 = o
        .layout
        .runs
        .missing()
        .iter()
        .map(|r| r.end - r.start)
        .sum();
    assert_eq!(missing / 4096 + there as u64, pages(&m) as u64);
}
