//! What the fuzz target on container headers does with its bytes, and what it begins with.
#![allow(dead_code)]

use async_trait::async_trait;
use futures::FutureExt;
use ramsift_layers::source::{JoinedSource, RamSource, SourceError, SourcePin};
use ramsift_layers::{ByteSource, ChunkParams, FileOffset, ImageOffset, format};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

#[path = "dumps.rs"]
pub(crate) mod dumps;
#[path = "forms.rs"]
pub(crate) mod forms;
#[path = "hiber.rs"]
pub(crate) mod hiber;
#[path = "hyperv.rs"]
pub(crate) mod hyperv;
#[path = "large.rs"]
pub(crate) mod large;
#[path = "linux.rs"]
pub(crate) mod linux;
#[path = "machines.rs"]
pub(crate) mod machines;

/// Counts what is read.
#[derive(Debug)]
struct Counted(RamSource, AtomicU64);

#[async_trait]
impl ByteSource for Counted {
    fn pin(&self) -> &SourcePin {
        self.0.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(offset, buf).await
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// The bytes as what lies beside the memory of a VMware machine, and as two files of one capture.
pub(crate) fn several(data: &[u8]) {
    let ram = |name: &str, b: &[u8]| -> Arc<dyn ByteSource> {
        Arc::new(RamSource::new(name, b.to_vec()))
    };
    let memory = ram("a.vmem", &[0; 0x45_000]);
    let beside = Neighbour(ram("a.vmss", data));
    let opened = format::open_beside(memory.as_ref(), &beside).now_or_never();
    if let Ok(o) = opened.expect("memory does not wait") {
        assert!(o.layout.runs.image_len() > 0);
    }
    let (first, second) = data.split_at(data.len() / 2);
    let both = JoinedSource::new(vec![ram("x.001", first), ram("x.002", second)]);
    let _ = format::open(&both)
        .now_or_never()
        .expect("memory does not wait");
    let one = ram("x.001", data);
    let joined = format::joined(&one, &beside).now_or_never();
    let _ = joined.expect("memory does not wait");
}

struct Neighbour(Arc<dyn ByteSource>);

#[async_trait]
impl format::Beside for Neighbour {
    async fn with_ending(&self, ending: &str) -> Result<Option<Arc<dyn ByteSource>>, SourceError> {
        Ok((ending == "vmss").then(|| self.0.clone()))
    }

    async fn numbered(&self) -> Result<Vec<Arc<dyn ByteSource>>, SourceError> {
        Ok(vec![self.0.clone()])
    }
}

/// Memory of the raw image that the bytes are page tables of.
const TABLES_LEN: u64 = 5 << 30;

/// A machine whose hole was left out, and its page tables.
fn machine() -> linux::Linux {
    linux::Linux::of(0xc000_0000, TABLES_LEN + (1 << 30))
}

/// The page tables of a machine, one after the other.
pub(crate) fn tables() -> Vec<u8> {
    let all = machine().pages().into_values().take(TABLES);
    all.flatten().flat_map(u64::to_le_bytes).collect()
}

const TABLES: usize = 24;

/// The bytes as page tables of a raw image of 5 GiB: the first two lie where those of a machine do, and so on.
pub(crate) fn hole(data: &[u8]) {
    static PLACES: OnceLock<Vec<u64>> = OnceLock::new();
    let places = PLACES.get_or_init(|| {
        let gib = 1u64 << 30;
        let place = |pa: u64| if pa >= 4 * gib { pa - gib } else { pa };
        machine().pages().into_keys().map(place).collect()
    });
    let pages = data.chunks(4096).map(<[u8]>::to_vec);
    let pieces: Vec<_> = places.iter().copied().zip(pages).collect();
    let source = large::Large::object(TABLES_LEN, pieces);
    let opened = format::open(&source).now_or_never();
    let o = opened.expect("memory does not wait").expect("a raw image");
    let (bytes, reads) = source.cost();
    assert!(bytes < 1 << 20 && reads < 200, "{bytes} in {reads}");
    let runs = o.layout.runs.runs();
    assert_eq!(runs.iter().map(|r| r.stored).sum::<u64>(), TABLES_LEN);
    assert!(runs.len() <= 2);
}

/// Most chunks that are planned of one file.
const CHUNKS: u64 = 64;

/// The bytes as a capture: what its headers say is laid out and cut into chunks. Headers may cost
/// a few reads of the file, and whatever they claim, the bytes that are there have one owner.
pub(crate) fn formats(data: &[u8]) {
    let len = data.len() as u64;
    let source = Counted(RamSource::new("fuzz", data.to_vec()), AtomicU64::new(0));
    let opened = format::open(&source).now_or_never();
    let read = source.1.load(Ordering::Relaxed);
    assert!(read <= 8 * len + (8 << 20), "{read} bytes read of {len}");
    let Ok(opened) = opened.expect("memory does not wait") else {
        return;
    };
    let bytes: Arc<dyn ByteSource> = Arc::new(RamSource::new("fuzz", data.to_vec()));
    let reader = opened
        .reader(bytes)
        .now_or_never()
        .expect("memory does not wait");
    let reader = reader.expect("the table that was just made");
    let coded = reader.extents().is_some();
    let image = reader.bytes();
    let layout = opened.layout;
    let (map, mut at, mut stored) = (&layout.runs, 0u64, 0u64);
    for r in map.runs() {
        assert!(
            r.stored <= r.len && (r.stored == 0 || r.file + r.stored <= image.len()),
            "{r:x?}"
        );
        let phys = map.to_phys(ImageOffset(at)).expect("in the image");
        assert_eq!((phys.0, map.from_phys(phys)), (r.pa, Some(ImageOffset(at))));
        let file = map.to_file(ImageOffset(at));
        assert_eq!(file, (r.stored > 0).then_some(FileOffset(r.file)));
        at += r.len;
        stored += r.stored;
    }
    assert_eq!(at, map.image_len());
    let missing: u64 = map.missing().iter().map(|m| m.end - m.start).sum();
    assert_eq!(missing, at - stored);
    let chunks = ChunkParams {
        size: len.div_ceil(CHUNKS).next_power_of_two().max(4096),
        overlap: 4096,
        behind: 512,
    };
    let mut owned = 0;
    for i in 0..chunks.count(len) {
        let file = i * chunks.size..((i + 1) * chunks.size).min(len);
        let windows = reader.windows(&chunks, map, file).now_or_never();
        for w in windows
            .expect("memory does not wait")
            .expect("sound extents")
        {
            assert!(w.span.start <= w.core.start && w.core.end <= w.span.end);
            assert!(w.span.end <= w.stretch_end && w.stretch_end <= at);
            owned += w.core.end - w.core.start;
            if coded && !w.zero && w.span.end - w.span.start <= MAX_READ {
                // Whatever is packed there: bytes or an error.
                let n = usize::try_from(w.span.end - w.span.start).expect("small");
                let read = image.read_vec(FileOffset(w.span.start), n).now_or_never();
                if let Err(e) = read.expect("memory does not wait") {
                    assert!(e.is_content(), "{e}");
                }
            }
        }
    }
    assert_eq!(owned, stored, "every stored byte has one owner");
}

/// Bytes of a window that is read; more would make the target slow.
const MAX_READ: u64 = 1 << 20;

/// A LiME header.
fn lime(first: u64, last: u64) -> Vec<u8> {
    let mut h = b"EMiL\x01\0\0\0".to_vec();
    h.extend(first.to_le_bytes());
    h.extend(last.to_le_bytes());
    h.extend([0; 8]);
    h
}

/// An ELF core with these program headers: type, place in the file, physical address, length.
fn core(headers: &[(u32, u64, u64, u64)], len: usize) -> Vec<u8> {
    let mut f = b"\x7fELF\x02\x01\x01".to_vec();
    f.resize(16, 0);
    f.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for v in [0u64, 64, 0] {
        f.extend(v.to_le_bytes());
    }
    f.extend([0; 4]);
    for v in [64u16, 56, headers.len() as u16, 64, 0, 0] {
        f.extend(v.to_le_bytes());
    }
    for (kind, at, pa, n) in headers {
        f.extend(kind.to_le_bytes());
        f.extend([0; 4]);
        for v in [*at, 0, *pa, *n, *n, 4096] {
            f.extend(v.to_le_bytes());
        }
    }
    // A note of a processor's state, in front of the memory.
    let note = f.len();
    for v in [5u32, 432, 0] {
        f.extend(v.to_le_bytes());
    }
    f.extend(b"QEMU\0\0\0\0");
    f.resize(note + 20 + 432, 0x11);
    f.resize(len, 0xaa);
    f
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let ranges = [(0x1000, 0x2fff), (0x10_0000, 0x10_0fff), (0x4000, 0x4fff)];
    let mut three = Vec::new();
    for (first, last) in ranges {
        three.extend(lime(first, last));
        three.resize(three.len() + (last - first + 1) as usize, 0x55);
    }
    let mut cut = three.clone();
    cut.truncate(three.len() - 700);
    let loads = [
        (4, 64 + 4 * 56, 0, 452),
        (1, 0x1000, 0x10_0000, 0x2000),
        (1, 0x3000, 0, 0x1000),
        (1, 0x4000, 0x20_0000, 0x1800),
    ];
    let core = core(&loads, 0x5800);
    // So many program headers that their number stands in a section header.
    let mut many = core.clone();
    many[56..58].copy_from_slice(&[0xff, 0xff]);
    many[40..48].copy_from_slice(&0x5000u64.to_le_bytes());
    many[0x5000 + 44..0x5000 + 48].copy_from_slice(&4u32.to_le_bytes());
    let mut all = vec![three, cut, core, many, vec![0; 0x3000]];
    all.extend(packed());
    all.extend(of_machines());
    all.extend(forms::all().into_iter().map(|f| f.file));
    all
}

/// Saved states of machines of a few pages.
fn of_machines() -> Vec<Vec<u8>> {
    let m: dumps::Memory = vec![
        (0, dumps::memory()[0].1[..5 * 4096].to_vec()),
        (0x10_0000, dumps::page(7)),
    ];
    let mut all = Vec::new();
    for magic in [0xbed2_bed0, 0xbed2_bed2] {
        for regions in [true, false] {
            let vm = machines::Vm {
                magic,
                inside: true,
                regions,
            };
            all.push(machines::vmware(&m, vm).0);
        }
    }
    for wide in [true, false] {
        all.push(machines::macho(&m, wide));
    }
    for hvm in [true, false] {
        all.push(machines::xen_core(&m, hvm));
    }
    for (machine, libvirt) in [("pc-q35-7.2", false), ("virt-7.2", true)] {
        let how = machines::Stream { machine, libvirt };
        all.push(machines::savevm(&m[0].1, how));
    }
    all.extend(machines::ewf(&m[0].1, 1, 2));
    for mixed in [false, true] {
        for length in [0x360, 0x448, 0x2c8] {
            let h = hiber::Hiber {
                mixed,
                ..hiber::Hiber::of(length)
            };
            all.push(hiber::modern(&m, h));
        }
    }
    all.extend([0x128, 0xe0].map(|length| hiber::legacy(&m, hiber::Hiber::of(length))));
    for (packed, objects) in [(true, 200), (true, 3)] {
        let s = hyperv::State {
            packed,
            objects,
            log: 0,
        };
        all.push(hyperv::vmrs(&m, s, 0x1aa_a000));
    }
    let mut wiped = hiber::legacy(&m, hiber::Hiber::of(0x128));
    wiped[..4096].fill(0);
    all.push(wiped);
    all
}

/// Packed captures of a few pages.
fn packed() -> Vec<Vec<u8>> {
    let m: dumps::Memory = vec![
        (0x1000, dumps::memory()[0].1[..5 * 4096].to_vec()),
        (0x8000, dumps::page(7)),
    ];
    let mixed = [
        dumps::lime_range(0x1000, &m[0].1),
        dumps::avml_range(0x8000, &m[1].1),
    ]
    .concat();
    let mut all = vec![dumps::avml(&m), mixed];
    for packed in dumps::CODECS {
        let dump = dumps::kdump(&m, &dumps::Kind::of(packed));
        all.push(dumps::flattened(&dump, 3000));
        all.push(dump);
    }
    all
}

/// A core whose program headers all name the same notes, each of them as long as the file.
pub(crate) fn many_notes() -> Vec<u8> {
    let len = 4 << 20;
    let mut headers = vec![(4, 0, 0, len); 50_000];
    headers.push((1, 0x1000, 0, 0x1000));
    core(&headers, len as usize)
}
