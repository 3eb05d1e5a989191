//! Saved states of machines, read back byte for byte, cut anywhere, with the wrong file beside them.

#[path = "common/dumps.rs"]
mod dumps;
#[path = "common/machines.rs"]
mod machines;

use dumps::Memory;
use machines::{Stream, Vm, ewf, macho, savevm, vmware, xen_core};
use ramsift_layers::format::{self, FormatError, Opened};
use ramsift_layers::source::{RamSource, S3Config, Sources};
use ramsift_layers::{ByteSource, FileOffset, ImageReader, PhysAddr};
use std::path::Path;
use std::sync::Arc;

async fn opened(file: &[u8]) -> Result<(Opened, ImageReader), FormatError> {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x", file.to_vec()));
    let o = format::open(source.as_ref()).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}

/// A file by its name, with what lies beside it.
async fn beside(path: &Path) -> Result<(Opened, ImageReader), FormatError> {
    let sources = Sources::new(S3Config::default());
    let source = sources.open(&path.display().to_string()).await?;
    let o = format::open_beside(source.as_ref(), &sources.beside(source.pin())).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}

/// Holds every page against what was written; gives how many can be read.
async fn same(o: &Opened, r: &ImageReader, m: &Memory) -> usize {
    let (bytes, mut there) = (r.bytes(), 0);
    for (pa, all) in m {
        for (i, want) in all.chunks_exact(4096).enumerate() {
            let pa = pa + 4096 * i as u64;
            let Some((at, len)) = o.layout.runs.stored_at(PhysAddr(pa)) else {
                continue;
            };
            if len < 4096 {
                continue;
            }
            let got = bytes
                .read_vec(FileOffset(at.0), 4096)
                .await
                .expect("stored");
            // A stream that is cut may end before a page was sent again.
            if got.iter().all(|b| *b == 0x77) && !o.layout.runs.missing().is_empty() {
                continue;
            }
            assert!(got == want, "the page at {pa:#x} differs");
            there += 1;
        }
    }
    there
}

fn pages(m: &Memory) -> usize {
    m.iter().map(|(_, b)| b.len() / 4096).sum()
}

fn size(m: &Memory) -> u64 {
    m.iter().map(|(_, b)| b.len() as u64).sum()
}

/// All of it from 0 on, holes zeros: what a machine without holes has.
fn flat() -> (Memory, Vec<u8>) {
    let m = dumps::memory();
    let mut ram = vec![0; 0x120 * 4096];
    for (pa, b) in &m[..2] {
        let at = *pa as usize;
        ram[at..at + b.len()].copy_from_slice(b);
    }
    (vec![(0, ram.clone())], ram)
}

const STREAM: Stream = Stream {
    machine: "pc-i440fx-7.2",
    libvirt: false,
};

/// Each form in one file, with its memory and the name of its format.
fn forms() -> Vec<(String, Vec<u8>, Memory, &'static str)> {
    let m = dumps::memory();
    let mut all = Vec::new();
    for magic in [0xbed2_bed0, 0xbad1_bad1, 0xbed2_bed2, 0xbed3_bed3] {
        for regions in [true, false] {
            let vm = Vm {
                magic,
                inside: true,
                regions,
            };
            // Without regions memory is one stretch.
            let m = if regions {
                m.clone()
            } else {
                vec![(0, m[0].1.clone())]
            };
            all.push((format!("{vm:x?}"), vmware(&m, vm).0, m, "vmware"));
        }
    }
    for wide in [true, false] {
        // 32 bits reach up to 4 GiB.
        let m = if wide { m.clone() } else { m[..2].to_vec() };
        all.push((format!("Mach-O {wide}"), macho(&m, wide), m, "macho"));
    }
    for hvm in [true, false] {
        all.push((
            format!("Xen {hvm}"),
            xen_core(&m, hvm),
            m.clone(),
            "xen_core",
        ));
    }
    let (m, ram) = flat();
    for libvirt in [false, true] {
        let how = Stream { libvirt, ..STREAM };
        all.push((
            format!("{how:?}"),
            savevm(&ram, how),
            m.clone(),
            "qemu_savevm",
        ));
    }
    for per_table in [7, 1000] {
        let one = ewf(&ram, 1, per_table).remove(0);
        all.push((format!("E01 {per_table}"), one, m.clone(), "ewf"));
    }
    all
}

#[tokio::test]
async fn every_form_holds_the_memory() {
    for (name, file, m, format) in forms() {
        let (o, r) = opened(&file)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(o.layout.format, format, "{name}");
        assert_eq!(same(&o, &r, &m).await, pages(&m), "{name}");
        assert_eq!(
            o.layout.runs.image_len(),
            size(&m),
            "{name}: no more than that"
        );
        assert!(o.layout.gaps.is_empty(), "{name}: {:?}", o.layout.gaps);
        let hints = &o.layout.dtb_hints;
        let want: &[u64] = match format {
            "vmware" => &[0x1aa_a000, 0x1aa_b000],
            "xen_core" if name == "Xen true" => &[0x1aa_a000, 0x1aa_b000],
            _ => &[],
        };
        assert_eq!(hints, want, "{name}");
    }
}

/// Cut at every 4 KiB and around the ends of headers: an error that names a place, or what is there with the rest missing.
#[tokio::test]
async fn what_is_cut_is_told() {
    for (name, file, m, _) in forms() {
        let near = [1, 7, 8, 12, 31, 32, 63, 64, 90, 100, 200, 300, 500];
        let cuts = (0..file.len())
            .step_by(4096)
            .chain(near)
            .filter(|c| *c > 0 && *c < file.len());
        for cut in cuts {
            let part = &file[..cut];
            match opened(part).await {
                Err(e) => {
                    let e = e.to_string();
                    assert!(
                        cut < 64
                            || e.contains("offset")
                            || e.contains("no memory")
                            || e.contains("beside"),
                        "{name} at {cut}: {e}"
                    );
                }
                Ok((o, r)) => {
                    if o.layout.format == "raw" {
                        assert!(cut < 64, "{name} at {cut}");
                        continue;
                    }
                    let there = same(&o, &r, &m).await;
                    let missing: u64 = o
                        .layout
                        .runs
                        .missing()
                        .iter()
                        .map(|m| m.end - m.start)
                        .sum();
                    let told = missing > 0 || !o.layout.gaps.is_empty();
                    let whole = there == pages(&m);
                    assert!(
                        told || whole,
                        "{name} at {cut}: {there} of {} pages",
                        pages(&m)
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn memory_beside_its_state_lies_where_that_says() {
    let m = dumps::memory();
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| dir.path().join(n);
    let vm = Vm {
        magic: 0xbed2_bed2,
        inside: false,
        regions: true,
    };
    let (state, memory) = vmware(&m, vm);
    std::fs::write(at("a.vmem"), &memory).expect("write");
    // Alone it is raw, and what is lost is told.
    let (o, _) = beside(&at("a.vmem")).await.expect("raw");
    assert_eq!(o.layout.format, "raw");
    assert!(o.layout.notes[0].contains(".vmss"), "{:?}", o.layout.notes);
    for ending in ["vmss", "vmsn"] {
        let path = at(&format!("a.{ending}"));
        std::fs::write(&path, &state).expect("write");
        let (o, r) = beside(&at("a.vmem")).await.expect("vmware");
        assert_eq!(o.layout.format, "vmware", "{ending}");
        assert_eq!(same(&o, &r, &m).await, pages(&m));
        assert_eq!(o.layout.dtb_hints, [0x1aa_a000, 0x1aa_b000]);
        assert_eq!(o.layout.arch.as_deref(), Some("x86_64"));
        // The state alone says where the memory is.
        let e = beside(&path).await.expect_err("no memory").to_string();
        assert!(e.contains(".vmem"), "{e}");
        std::fs::remove_file(path).expect("removed");
    }
    // The state of a larger machine.
    let mut larger = m.clone();
    larger.push((1 << 33, vec![0; 4 << 20]));
    std::fs::write(at("a.vmss"), vmware(&larger, vm).0).expect("write");
    let e = beside(&at("a.vmem"))
        .await
        .expect_err("another machine")
        .to_string();
    assert!(e.contains("another machine") && e.contains("a.vmss"), "{e}");
    // What is no state is passed over.
    std::fs::write(at("a.vmss"), b"text").expect("write");
    let (o, _) = beside(&at("a.vmem")).await.expect("raw");
    assert_eq!(o.layout.format, "raw");
}

/// A state of another machine of the same size names page tables that are none here.
#[tokio::test]
async fn a_state_of_another_machine_is_doubted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: &str| dir.path().join(n);
    let vm = Vm {
        magic: 0xbed2_bed2,
        inside: false,
        regions: true,
    };
    // The two processors have their tables at 0x1aaa000 and behind it; one that may be a table is enough.
    let mut four = vec![0u8; 4096];
    four[256 * 8..256 * 8 + 8].copy_from_slice(&0x8000_0000_0123_4063u64.to_le_bytes());
    let mut pae = vec![0u8; 4096];
    pae[..8].copy_from_slice(&0x0000_0001_0002_0001u64.to_le_bytes());
    let mut narrow = vec![0u8; 4096];
    narrow[3072..3080].copy_from_slice(&[0xe3, 0, 0, 0, 0x63, 0x50, 0x01, 0]);
    let text = b"Jan  2 03:04:05 web01 sshd[1]: hello\n".repeat(200)[..4096].to_vec();
    for (tables, sound) in [
        ([&text, &four], true),
        ([&pae, &text], true),
        ([&narrow, &text], true),
        ([&text, &text], false),
        ([&dumps::page(7), &vec![0; 4096]], false),
    ] {
        let m: Memory = vec![
            (0x1000, dumps::page(1)),
            (0x1aa_a000, [tables[0].as_slice(), tables[1]].concat()),
        ];
        let (state, memory) = vmware(&m, vm);
        std::fs::write(at("a.vmem"), &memory).expect("write");
        std::fs::write(at("a.vmss"), &state).expect("write");
        let (o, r) = beside(&at("a.vmem")).await.expect("vmware");
        assert_eq!(same(&o, &r, &m).await, 3);
        let told = o
            .layout
            .gaps
            .iter()
            .any(|g| g.reason.contains("another machine"));
        assert_eq!(told, !sound, "{:?}", o.layout.gaps);
    }
}

#[tokio::test]
async fn streams_split_memory_below_four_gib() {
    // No memory is sent but a page on each side: the rest is missing, and told.
    let len: u64 = 6 << 30;
    let be = |n: u64, bytes: usize| n.to_be_bytes()[8 - bytes..].to_vec();
    let mut f = b"QEVM\0\0\0\x03\x07\0\0\0\x0apc-q35-7.2".to_vec();
    f.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    f.extend(be(len | 4, 8));
    f.extend(b"\x06pc.ram");
    f.extend(be(len, 8));
    for at in [0x7fff_f000u64, 0x8000_0000] {
        f.extend(be(at | 8, 8));
        f.extend(b"\x06pc.ram");
        f.extend(dumps::page(at));
    }
    f.extend(be(0x10, 8));
    let (o, r) = opened(&f).await.expect("a stream");
    assert_eq!(o.layout.runs.image_len(), len);
    let m: Memory = vec![
        (0x7fff_f000, dumps::page(0x7fff_f000)),
        (4 << 30, dumps::page(0x8000_0000)),
    ];
    assert_eq!(same(&o, &r, &m).await, 2);
    assert!(!o.layout.gaps.is_empty(), "its end is missing");
    let missing: u64 = o
        .layout
        .runs
        .missing()
        .iter()
        .map(|m| m.end - m.start)
        .sum();
    assert_eq!(missing, len - 8192);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_name() {
    let m = dumps::memory();
    let mut kernel = macho(&m, true);
    kernel[32 + 24..32 + 32].copy_from_slice(&0xffff_ff80_0020_0000u64.to_le_bytes());
    let e = opened(&kernel).await.expect_err("virtual").to_string();
    assert!(e.contains("virtual memory"), "{e}");
    let (_, ram) = flat();
    let mut packed = savevm(
        &ram,
        Stream {
            libvirt: true,
            ..STREAM
        },
    );
    packed[28] = 3;
    let e = opened(&packed).await.expect_err("packed").to_string();
    assert!(e.contains("save_image_format"), "{e}");
    // XBZRLE, which depends on the pages before.
    let mut odd = savevm(&ram, STREAM);
    let at = odd
        .windows(8)
        .rposition(|w| w == 0x10u64.to_be_bytes())
        .expect("an end");
    odd[at + 7] = 0x40;
    let (o, _) = opened(&odd).await.expect("a stream");
    assert!(
        o.layout.gaps[0].reason.contains("0x40"),
        "{:?}",
        o.layout.gaps
    );
    let (mut state, _) = vmware(
        &m,
        Vm {
            magic: 0xbed2_bed2,
            inside: true,
            regions: true,
        },
    );
    let at = state
        .windows(6)
        .position(|w| w == b"Memory")
        .expect("the tag")
        + 6
        + 8;
    state[at] ^= 1;
    let e = opened(&state).await.expect_err("compressed").to_string();
    assert!(e.contains("vmss2core"), "{e}");
}

#[tokio::test]
async fn segments_of_an_encase_image_are_one() {
    let (m, ram) = flat();
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |n: usize| dir.path().join(format!("memory.E{n:02}"));
    let segments = ewf(&ram, 4, 5);
    assert_eq!(segments.len(), 4);
    for (i, s) in segments.iter().enumerate() {
        std::fs::write(at(i + 1), s).expect("write");
    }
    for n in [1, 3] {
        let (o, r) = joined(&at(n)).await.expect("an image");
        assert_eq!(same(&o, &r, &m).await, pages(&m), "{n}");
        assert!(o.layout.gaps.is_empty() && o.layout.runs.missing().is_empty());
    }
    // A segment of another image of the same size, under the next name.
    let mut other = ram.clone();
    other[0x10_0000] ^= 1;
    std::fs::write(at(3), &ewf(&other, 4, 5)[2]).expect("write");
    let e = joined(&at(1)).await.expect_err("another image").to_string();
    assert!(e.contains("one of another") && e.contains("offset"), "{e}");
    // Without the third the rest is missing; a later one alone can't be placed.
    std::fs::remove_file(at(3)).expect("removed");
    let (o, r) = joined(&at(1)).await.expect("an image");
    let there = same(&o, &r, &m).await;
    let missing: u64 = o
        .layout
        .runs
        .missing()
        .iter()
        .map(|m| m.end - m.start)
        .sum();
    assert_eq!(there as u64 + missing / 4096, pages(&m) as u64);
    assert!(
        missing > 0
            && o.layout
                .notes
                .join(" ")
                .contains("segments that are not there")
    );
    let e = joined(&at(4)).await.expect_err("no first").to_string();
    assert!(e.contains("segment 1"), "{e}");
    // A disk is told, and a capture in another format explained.
    let mut disk = ram.clone();
    disk[512..520].copy_from_slice(b"EFI PART");
    let (o, _) = opened(&ewf(&disk, 1, 100)[0]).await.expect("an image");
    assert!(
        o.layout.gaps[0].reason.contains("GPT"),
        "{:?}",
        o.layout.gaps
    );
    let lime = dumps::lime_range(0x1000, &ram[..0x1_0000 - 32]);
    let e = opened(&ewf(&lime, 1, 100)[0])
        .await
        .expect_err("LiME in it")
        .to_string();
    assert!(e.contains("lime") && e.contains("ewfexport"), "{e}");
}

/// A file by its name, with the other files that it is one of.
async fn joined(path: &Path) -> Result<(Opened, ImageReader), FormatError> {
    let sources = Sources::new(S3Config::default());
    let source = sources.open(&path.display().to_string()).await?;
    let all = format::joined(&source, &sources.beside(source.pin())).await?;
    let source = all.unwrap_or(source);
    let o = format::open(source.as_ref()).await?;
    let r = o.reader(source).await?;
    Ok((o, r))
}
