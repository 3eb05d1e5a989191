//! Every format that has a writer, cut at every 4 KiB, with bytes and words that are others, and with ranges that make no sense:
//! an error that says where, or what is there with the rest told. Never a panic, never more memory than the file is worth.

#[path = "common/fuzz.rs"]
mod fuzz;

use futures::FutureExt;
use fuzz::dumps;
use fuzz::forms::{self, Form};
use ramsift_layers::format::{self, FormatError, Opened};
use ramsift_layers::source::{RamSource, SourceError};
use ramsift_layers::{ByteSource, FileOffset, ImageReader, PhysAddr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Counts what this thread has, and the most it had.
struct Counting;

thread_local! {
    static HAS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn count(more: usize, less: usize) {
    let _ = HAS.try_with(|c| {
        let (now, most) = c.get();
        let now = now.saturating_add(more).saturating_sub(less);
        c.set((now, most.max(now)));
    });
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        count(l.size(), 0);
        // SAFETY: the caller's.
        unsafe { System.alloc(l) }
    }

    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        count(l.size(), 0);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(l) }
    }

    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        count(0, l.size());
        // SAFETY: the caller's.
        unsafe { System.dealloc(p, l) }
    }

    unsafe fn realloc(&self, p: *mut u8, l: Layout, size: usize) -> *mut u8 {
        count(size, l.size());
        // SAFETY: the caller's.
        unsafe { System.realloc(p, l, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was allocated at a time while something ran.
fn most(run: impl FnOnce()) -> usize {
    let (before, _) = HAS.get();
    HAS.set((before, before));
    run();
    HAS.get().1 - before
}

/// Memory that opening a small file may take: blocks that are read at once, tables of a bounded size.
const MOST: usize = 80 << 20;

fn opened(file: &[u8]) -> Result<(Opened, ImageReader), FormatError> {
    let source: Arc<dyn ByteSource> = Arc::new(RamSource::new("x", file.to_vec()));
    let open = async {
        let o = format::open(source.as_ref()).await?;
        let r = o.reader(source.clone()).await?;
        Ok((o, r))
    };
    open.now_or_never().expect("memory does not wait")
}

fn read(r: &ImageReader, at: u64) -> Result<Vec<u8>, SourceError> {
    let read = async { r.bytes().read_vec(FileOffset(at), 4096).await };
    read.now_or_never().expect("memory does not wait")
}

/// What a capture gives of the memory that it was made of.
#[derive(Debug, Default)]
struct Given {
    /// Pages with their content.
    right: usize,
    /// Pages with other content.
    wrong: usize,
    /// Pages that are there and can't be read: coverage counts them as failed.
    failed: usize,
    /// Pages that are not there.
    without: usize,
    /// Something is told: a gap, missing bytes.
    told: bool,
}

impl Given {
    fn of(o: &Opened, r: &ImageReader, form: &Form) -> Self {
        let l = &o.layout;
        let mut out = Self {
            told: !l.gaps.is_empty() || !l.runs.missing().is_empty(),
            ..Self::default()
        };
        for (pa, bytes) in &form.memory {
            for (i, want) in bytes.chunks_exact(4096).enumerate() {
                let pa = PhysAddr(pa + 4096 * i as u64);
                match l.runs.stored_at(pa) {
                    Some((at, n)) if n >= 4096 => match read(r, at.0) {
                        Ok(got) if got == want => out.right += 1,
                        Ok(_) => out.wrong += 1,
                        Err(e) => {
                            assert!(e.is_content(), "{}: {e}", form.name);
                            out.failed += 1;
                        }
                    },
                    _ => out.without += 1,
                }
            }
        }
        out
    }

    /// Whether the verdict is `complete`, as far as the container decides.
    fn is_complete(&self) -> bool {
        !self.told && self.failed == 0
    }
}

#[test]
fn as_they_are_they_hold_the_memory() {
    for f in forms::all() {
        let (o, r) = opened(&f.file).unwrap_or_else(|e| panic!("{}: {e}", f.name));
        assert_eq!(o.layout.format, f.format, "{}", f.name);
        let g = Given::of(&o, &r, &f);
        assert_eq!(
            (g.wrong, g.failed, g.without),
            (0, 0, 0),
            "{}: {g:?}",
            f.name
        );
        // Windows leaves out what it need not restore.
        assert!(
            g.is_complete() || f.format == "hiberfil",
            "{}: {:?}",
            f.name,
            o.layout.gaps
        );
    }
}

/// Cut at every 4 KiB, and around the ends of structures.
#[test]
fn cut_they_are_never_complete() {
    for f in forms::all() {
        let len = f.file.len();
        let odd = [
            1,
            7,
            8,
            31,
            32,
            33,
            63,
            64,
            65,
            100,
            200,
            300,
            500,
            len - 1,
            len - 9,
        ];
        let cuts = (4096..len).step_by(4096).chain(odd);
        for cut in cuts.filter(|c| *c < len) {
            let name = format!("{} cut at {cut} of {len}", f.name);
            let taken = most(|| {
                let (o, r) = match opened(&f.file[..cut]) {
                    Ok(x) => x,
                    Err(e) => {
                        let e = e.to_string();
                        let place = ["offset", "no memory", "beside", "begins at", "hibernation"];
                        assert!(
                            cut < 64 || place.iter().any(|p| e.contains(p)),
                            "{name}: {e}"
                        );
                        return;
                    }
                };
                // Nothing tells where a raw image ended.
                if o.layout.format == "raw" {
                    assert!(f.format == "raw" || cut < 64, "{name}");
                    return;
                }
                let g = Given::of(&o, &r, &f);
                // A stream may end before a page was sent again.
                assert!(g.wrong == 0 || f.format == "qemu_savevm", "{name}: {g:?}");
                // What is cut may be an end mark alone.
                let whole = g.without == 0 && g.failed == 0 && g.wrong == 0;
                assert!(whole || !g.is_complete(), "{name}: {g:?}");
            });
            assert!(taken < MOST, "{name}: {taken} bytes");
        }
    }
}

/// Places that are looked at: all of the first bytes, which are headers, and some of the rest.
fn places(len: usize) -> impl Iterator<Item = usize> {
    let near = 0..len.min(640);
    let far = (640..len).step_by((len / 150).max(61) | 1);
    near.chain(far)
}

/// A byte that is another: the runs stay sound, every stored byte has one owner, and little is read and allocated.
#[test]
fn bytes_that_are_others_cost_no_more_than_an_error() {
    for f in forms::all() {
        for at in places(f.file.len()) {
            let mut file = f.file.clone();
            let was = file[at];
            for v in [was ^ 1, if at % 2 == 0 { 0xff } else { was ^ 0x80 }] {
                file[at] = v;
                let taken = most(|| fuzz::formats(&file));
                assert!(taken < MOST, "{} {at:#x} {v:#x}: {taken} bytes", f.name);
            }
        }
    }
}

/// Numbers that no file of this size has: the ends of what they can be.
#[test]
fn numbers_without_measure_cost_no_more_than_an_error() {
    for f in forms::all() {
        let len = f.file.len();
        for at in (0..len.min(512)).chain(512..len.min(9000)).step_by(4) {
            for n in [u64::MAX, i64::MAX as u64, 1 << 40, 0x7fff_f000, 0] {
                for bytes in [4, 8] {
                    let mut file = f.file.clone();
                    let end = (at + bytes).min(len);
                    file[at..end].copy_from_slice(&n.to_le_bytes()[..end - at]);
                    if file == f.file || (at >= 512 && (bytes == 4 || n == 1 << 40)) {
                        continue;
                    }
                    let taken = most(|| {
                        let _ = opened(&file);
                    });
                    assert!(taken < MOST, "{} {at:#x} {n:#x}: {taken} bytes", f.name);
                }
            }
        }
    }
}

/// Memory that a header no longer names is not lost in silence.
#[test]
fn what_headers_lose_is_told() {
    // Where a byte that is another takes memory away and nothing in the file contradicts it.
    let mut silent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for f in forms::all() {
        for at in places(f.file.len()) {
            for bit in [1u8, 0x10] {
                let mut file = f.file.clone();
                file[at] ^= bit;
                let Ok((o, r)) = opened(&file) else {
                    continue;
                };
                let stored: u64 = o.layout.runs.runs().iter().map(|r| r.stored).sum();
                let had: u64 = f.memory.iter().map(|(_, b)| b.len() as u64).sum();
                if stored >= had || o.layout.format == "raw" {
                    continue;
                }
                if Given::of(&o, &r, &f).is_complete() {
                    let places = silent.entry(f.name.clone()).or_default();
                    places.push(format!("{at:#x}^{bit:#x}: {}", had - stored));
                }
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

/// Ranges in no order hold what they hold; of ranges that hold the same addresses one is kept, and the others are told.
#[test]
fn ranges_in_no_order_and_over_one_another() {
    let m = forms::memory();
    let backwards: dumps::Memory = m.iter().rev().cloned().collect();
    for f in forms::of(&backwards) {
        let (o, r) = opened(&f.file).unwrap_or_else(|e| panic!("{}: {e}", f.name));
        let g = Given::of(&o, &r, &f);
        assert!(
            g.is_complete() && g.wrong + g.without == 0,
            "{}: {g:?} {:?}",
            f.name,
            o.layout.gaps
        );
    }
    // The second half of the first range again, with other bytes, and on.
    let mut over = m.clone();
    over.insert(1, (4 * 4096, (70..76).flat_map(dumps::page).collect()));
    let others: Vec<Form> = forms::of(&over)
        .into_iter()
        // A bitmap has a page once.
        .filter(|f| f.name != "active memory")
        .collect();
    for f in others {
        match opened(&f.file) {
            Err(e) => assert!(e.to_string().contains("offset"), "{}: {e}", f.name),
            Ok((o, r)) => {
                let g = Given::of(&o, &r, &f);
                assert!(!g.is_complete(), "{}: {:?}", f.name, o.layout.runs);
            }
        }
    }
    // The same bytes twice are no loss.
    let mut again = m.clone();
    again.push((2 * 4096, m[0].1[4096..3 * 4096].to_vec()));
    for f in forms::of(&again)
        .into_iter()
        .filter(|f| f.name != "active memory")
    {
        if let Ok((o, r)) = opened(&f.file) {
            let g = Given::of(
                &o,
                &r,
                &Form {
                    memory: m.clone(),
                    ..f.clone()
                },
            );
            assert_eq!(g.wrong + g.without + g.failed, 0, "{}: {g:?}", f.name);
        }
    }
}

/// Pages of another size than machines have are refused with the place; of a size that they have they are read as that.
#[test]
fn pages_of_other_sizes() {
    let all = forms::all();
    let of = |name: &str| {
        let found = all.iter().find(|f| f.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).file.clone()
    };
    let with = |name: &str, at: usize, n: u32| {
        let mut file = of(name);
        file[at..at + 4].copy_from_slice(&n.to_le_bytes());
        file
    };
    for size in [0, 1, 512, 4095, 4097, 12_288, 1 << 31] {
        for (name, at) in [("Zlib", 428), ("hiberfil 448 false", 0x18)] {
            match opened(&with(name, at, size)) {
                Err(e) => {
                    let e = e.to_string();
                    assert!(
                        e.contains("offset") || e.contains("hibernation"),
                        "{name} {size}: {e}"
                    );
                }
                Ok((o, _)) => panic!("{name} {size}: {:?}", o.layout),
            }
        }
        let mut xen = of("Xen true");
        let magic = 0xf00f_ebeeu64.to_le_bytes();
        let at = xen.windows(8).position(|w| w == magic).expect("the note") + 24;
        xen[at..at + 8].copy_from_slice(&u64::from(size).to_le_bytes());
        let e = opened(&xen).expect_err("no page").to_string();
        assert!(e.contains("4096"), "{size}: {e}");
    }
}
