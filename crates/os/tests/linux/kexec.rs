//! Images with more or less than one kernel in them.

use crate::common::{
    Capture, Image, anchors_in, build, captures, each_with_tasks, has_data_symbols, number,
};
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_layers::{ImageOffset, PhysAddr};
use ramsift_os::Machine as _;
use ramsift_os::discover::{Anchor, discover};
use ramsift_os::input::ViewInput;
use ramsift_os::linux::{self, Kernel};
use std::cell::Cell;
use std::ops::Range;

const PAGE: usize = 4096;

/// Where the machine said that its kernel lies.
fn kernel_of(c: &Capture) -> Vec<Range<usize>> {
    let lines = c.truth["iomem"].as_str().unwrap().lines();
    let ranges = lines.filter_map(|l| l.trim().split_once(" : Kernel "));
    let ends = ranges.map(|(r, _)| r.split_once('-').unwrap());
    let hex = |n: &str| usize::from_str_radix(n, 16).unwrap();
    ends.map(|(a, b)| hex(a)..(hex(b) + 1).next_multiple_of(PAGE))
        .collect()
}

/// A machine that went on with another kernel: the earlier one's image lies where it lay, and its
/// note on itself in a page that the later one has not used, before its own. `None` where the two
/// lay in each other's place, or the later machine has no memory there.
fn kexec(later: &Capture, earlier: &Capture) -> Option<Vec<u8>> {
    let (new, old) = (kernel_of(later), kernel_of(earlier));
    let meet = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
    let fits = |o: &Range<usize>| o.end <= later.image().len();
    if !old.iter().all(fits) || old.iter().any(|o| new.iter().any(|n| meet(o, n))) {
        return None;
    }
    let mut image = later.image().to_vec();
    let note = earlier.truth["vmcoreinfo"].as_str().unwrap();
    let note = note
        .split_whitespace()
        .next()
        .unwrap()
        .trim_start_matches("0x");
    let note = usize::from_str_radix(note, 16).unwrap() / PAGE;
    let empty = |n: &usize| image[n * PAGE..(n + 1) * PAGE].iter().all(|b| *b == 0);
    let free = (256..note).find(empty).expect("a page that was not used");
    let mut put = |from: Range<usize>, at: usize| {
        image[at..at + from.len()].copy_from_slice(&earlier.image()[from]);
    };
    put(note * PAGE..(note + 1) * PAGE, free * PAGE);
    for r in old {
        put(r.clone(), r.start);
    }
    Some(image)
}

fn pids(k: &Kernel<'_>) -> Vec<i128> {
    let t = build(k, "linux/pslist");
    assert_eq!(t.doubts, Vec::<String>::new());
    (0..t.rows.len()).map(|r| number(&t, r, "pid")).collect()
}

/// When the machine told what it knew of itself.
fn when(c: &Capture) -> u64 {
    c.truth["when"].as_f64().unwrap() as u64
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn of_two_kernels_the_one_that_ran_last_is_opened() {
    let x86 =
        |c: &&Capture| c.image.base() == 0 && has_data_symbols(&c.kernel(&discover(&c.input())));
    let machines: Vec<&Capture> = captures().iter().filter(x86).collect();
    // What the clock of each says alone. A machine is stopped after it has told of itself, how long after is not told.
    let seconds = |c: &Capture| c.kernel(&discover(&c.input())).clock().unwrap().seconds;
    for c in &machines {
        // The clock in memory is a tick behind the one that was asked.
        assert!(seconds(c) >= when(c) - 1, "{}", c.name);
    }
    let (mut tried, mut met) = (0, 0);
    for later in &machines {
        for earlier in machines.iter().filter(|e| e.name != later.name) {
            let at = format!("{} after {}", later.name, earlier.name);
            if seconds(later) <= seconds(earlier) {
                met += usize::from(seconds(later) == seconds(earlier));
                continue;
            }
            let Some(image) = kexec(later, earlier) else {
                met += 1;
                continue;
            };
            let anchors = anchors_in(&image);
            let memory = Image::new(image);
            let input = ViewInput {
                memory: &memory,
                anchors: &anchors,
                ..later.input()
            };
            let (alone, before) = (discover(&later.input()), discover(&earlier.input()));
            let d = discover(&input);
            let confirmed: Vec<_> = d.page_tables.iter().filter(|p| p.confirmed).collect();
            let tables: Vec<_> = confirmed.iter().map(|p| p.dtb).collect();
            assert_eq!(
                tables,
                [alone.page_tables[0].dtb, before.page_tables[0].dtb],
                "{at}"
            );
            assert_eq!(d.release, alone.release, "{at}");
            assert_eq!(d.build_id, alone.build_id, "{at}");
            let (k, own) = (linux::open(&input, &d).unwrap(), later.kernel(&alone));
            for name in ["_stext", "swapper_pg_dir", "init_uts_ns"] {
                assert_eq!(k.info.symbol(name), own.info.symbol(name), "{at}");
            }
            assert_eq!(k.clock(), own.clock(), "{at}");
            tried += 1;
        }
    }
    assert!(tried + met > 0, "two captures of x86-64 are needed");
    eprintln!("{tried} pairs of kernels, {met} that lay in each other's place");
}

/// An image that ends at `end`, or lacks what lies before `start`.
struct Cut<'i> {
    image: &'i dyn PhysRead,
    start: u64,
    end: u64,
}

impl PhysRead for Cut<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let end = pa.0.saturating_add(buf.len() as u64);
        if pa.0 < self.start || end > self.end {
            return Err(PhysError::NotInImage { pa });
        }
        self.image.read_phys(pa, buf)
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn an_image_that_is_cut_off_gives_what_is_there_and_says_what_is_not() {
    let opened = Cell::new(0);
    each_with_tasks(|c, whole| {
        let all = pids(whole);
        let (base, len) = (c.image.base(), c.image().len() as u64);
        for eighth in [2, 4, 7] {
            let at = len * eighth / 8;
            for (start, end) in [(base, base + at), (base + at, base + len)] {
                let cut = Cut {
                    image: &c.image,
                    start,
                    end,
                };
                let there = |a: &&Anchor| {
                    let pa = c.runs.to_phys(ImageOffset(a.image_offset));
                    pa.is_some_and(|p| p.0 >= start && p.0 + a.data.len() as u64 <= end)
                };
                let anchors: Vec<Anchor> = c.anchors.iter().filter(there).cloned().collect();
                let input = ViewInput {
                    memory: &cut,
                    anchors: &anchors,
                    ..c.input()
                };
                let d = discover(&input);
                let Ok(k) = linux::open(&input, &d) else {
                    // The kernel's own image is not whole: a sentence says so.
                    let why = d.impossible.is_some() || linux::open(&input, &d).is_err();
                    assert!(why, "{} {start:#x}..{end:#x}", c.name);
                    continue;
                };
                opened.set(opened.get() + 1);
                // Whatever is listed is true, and what could not be followed is a doubt.
                let mut doubts = Vec::new();
                let tasks = k.processes(&mut doubts).unwrap_or_default();
                let got: Vec<i128> = tasks
                    .iter()
                    .filter_map(|t| t.int("tgid").ok())
                    .map(i128::from)
                    .collect();
                assert!(got.iter().all(|p| all.contains(p)), "{} {got:?}", c.name);
                assert!(
                    got.len() == all.len() || !doubts.is_empty() || got.len() < tasks.len(),
                    "{} {start:#x}..{end:#x}: {} of {} and no doubt",
                    c.name,
                    got.len(),
                    all.len()
                );
                // Every view ends, built or with its reason.
                for v in ramsift_os::views().filter(|_| eighth == 4) {
                    let _ = k.build(v);
                }
            }
        }
    });
    assert!(opened.get() > 0, "no cut left a kernel whole");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn memory_without_a_kernel_says_what_was_looked_for() {
    each_with_tasks(|c, _| {
        // A note of a kernel that is not there.
        let notes = c.anchors.iter().filter(|a| a.kind == "vmcoreinfo");
        let notes: Vec<Anchor> = notes.cloned().collect();
        let nothing = Cut {
            image: &c.image,
            start: 0,
            end: 0,
        };
        for (anchors, want) in [
            (&[][..], "no kernel was found"),
            (&notes, "does not translate"),
        ] {
            let input = ViewInput {
                memory: &nothing,
                anchors,
                ..c.input()
            };
            let d = discover(&input);
            let why = d.impossible.as_deref().unwrap_or_default();
            assert!(why.contains(want), "{}: {why}", c.name);
            assert!(linux::open(&input, &d).is_err(), "{}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_note_of_another_kernel_before_the_kernels_own_misleads_nobody() {
    each_with_tasks(|c, whole| {
        // The same words with another build, place and table: below the kernel in the image.
        let own = c.anchors.iter().filter(|a| a.kind == "vmcoreinfo");
        let stale = own.map(|a| {
            let text = String::from_utf8_lossy(&a.data);
            let moved = text.lines().map(|l| match l.split_once('=') {
                Some((k @ "NUMBER(phys_base)", _)) => format!("{k}=117440512\n"),
                Some((k @ "NUMBER(kimage_voffset)", _)) => format!("{k}=0xffff800000000000\n"),
                Some((k @ "BUILD-ID", _)) => format!("{k}=00ff\n"),
                _ => format!("{l}\n"),
            });
            Anchor {
                kind: "vmcoreinfo".into(),
                image_offset: a.image_offset % 4096,
                data: moved.collect::<String>().into_bytes(),
            }
        });
        let mut anchors: Vec<Anchor> = stale.collect();
        anchors.extend(c.anchors.iter().cloned());
        anchors.sort_by_key(|a| a.image_offset);
        let input = ViewInput {
            anchors: &anchors,
            ..c.input()
        };
        let (alone, d) = (discover(&c.input()), discover(&input));
        assert_eq!(d.build_id, alone.build_id, "{}", c.name);
        let k = linux::open(&input, &d).unwrap();
        assert_eq!(k.info.build_id(), alone.build_id.as_deref(), "{}", c.name);
        assert_eq!(pids(&k), pids(whole), "{}", c.name);
    });
}
