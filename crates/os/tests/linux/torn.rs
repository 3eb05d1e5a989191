//! Kernels some pages of which are missing or overwritten.

use crate::common::{Capture, captures, number};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::discover;
use ramsift_os::input::ViewInput;
use ramsift_os::linux;
use ramsift_os::{Machine as _, by_name};
use std::collections::{BTreeMap, BTreeSet};

const PAGE: usize = 4096;

/// A capture with other pages in some places.
struct Torn<'c> {
    capture: &'c Capture,
    /// What lies in a page instead; `None`: it can't be read.
    pages: BTreeMap<usize, Option<Vec<u8>>>,
}

impl PhysRead for Torn<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.capture.image.read_phys(pa, buf)?;
        let at = usize::try_from(pa.0 - self.capture.image.base()).unwrap();
        let end = at + buf.len();
        for (page, other) in self.pages.range(at / PAGE..end.div_ceil(PAGE)) {
            let Some(other) = other else {
                return Err(PhysError::NotInImage { pa });
            };
            let from = (page * PAGE).max(at);
            let to = ((page + 1) * PAGE).min(end);
            buf[from - at..to - at].copy_from_slice(&other[from - page * PAGE..to - page * PAGE]);
        }
        Ok(())
    }
}

/// Numbers without order that are the same each time (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// A part of all pages zeroed, overwritten, exchanged for others or missing.
fn tear(capture: &Capture, seed: u64, per_mille: usize) -> Torn<'_> {
    let bytes = capture.image();
    let all = bytes.len() / PAGE;
    let page = |n: usize| bytes[n * PAGE..(n + 1) * PAGE].to_vec();
    let mut random = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut pages = BTreeMap::new();
    while pages.len() < all * per_mille / 1000 {
        let at = random.below(all);
        match random.below(4) {
            0 => drop(pages.insert(at, Some(vec![0; PAGE]))),
            1 => {
                let noise = (0..PAGE / 8).flat_map(|_| random.next().to_le_bytes());
                pages.insert(at, Some(noise.collect()));
            }
            2 => {
                let other = random.below(all);
                pages.insert(at, Some(page(other)));
                pages.insert(other, Some(page(at)));
            }
            _ => drop(pages.insert(at, None)),
        }
    }
    Torn { capture, pages }
}

impl Torn<'_> {
    /// Whether bytes lie in pages that are as they were.
    fn whole(&self, physical: u64, len: u64) -> bool {
        let at = usize::try_from(physical - self.capture.image.base()).unwrap();
        let end = at + usize::try_from(len).unwrap();
        self.pages
            .range(at / PAGE..end.div_ceil(PAGE))
            .next()
            .is_none()
    }

    /// The processes that are found: numbers and names. The error says why the kernel can't be read.
    fn processes(&self) -> Result<BTreeSet<i128>, String> {
        let anchors: Vec<_> = self
            .capture
            .anchors
            .iter()
            .filter(|a| {
                let first = usize::try_from(a.image_offset).unwrap() / PAGE;
                let last = (usize::try_from(a.image_offset).unwrap() + a.data.len()).div_ceil(PAGE);
                self.pages.range(first..last).next().is_none()
            })
            .cloned()
            .collect();
        let input = ViewInput {
            memory: self,
            runs: &self.capture.runs,
            arch: None,
            dtb_hints: &[],
            anchors: &anchors,
            symbols: None,
            page_files: &[],
            pool: None,
        };
        let d = discover(&input);
        if let Some(why) = d.impossible {
            return Err(why);
        }
        let k = linux::open(&input, &d).map_err(|e| e.to_string())?;
        let view = by_name("linux/pslist").unwrap();
        let t = k.build(view).map_err(|e| e.to_string())?;
        Ok((0..t.rows.len()).map(|i| number(&t, i, "pid")).collect())
    }
}

/// Opens `tries` torn copies of each capture; at least `open` of them must open, with every process whose own pages
/// are whole.
fn survive(per_mille: usize, tries: u64, open: u64) {
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        let whole = k.build(by_name("linux/pslist").unwrap()).unwrap();
        let size = k.symbols.types().size_of("task_struct").unwrap();
        let own: Vec<(i128, u64)> = (0..whole.rows.len())
            .map(|i| {
                (
                    number(&whole, i, "pid"),
                    u64::try_from(number(&whole, i, "physical")).unwrap(),
                )
            })
            .collect();
        let (mut opened, mut why) = (0, Vec::new());
        for seed in 1..=tries {
            let torn = tear(c, seed, per_mille);
            match torn.processes() {
                Ok(found) => {
                    let mut missing = own
                        .iter()
                        .filter(|(pid, at)| torn.whole(*at, size) && !found.contains(pid));
                    match missing.next() {
                        None => opened += 1,
                        Some(m) => why.push(format!(
                            "{seed}: process {} of {} is missing",
                            m.0,
                            own.len()
                        )),
                    }
                }
                Err(e) => why.push(format!("{seed}: {e:.200}")),
            }
        }
        println!(
            "{}: {opened} of {tries} with {per_mille} per mille damaged",
            c.name
        );
        assert!(
            opened >= open,
            "{}: {opened} of {tries} with {per_mille} per mille of their pages damaged:\n{}",
            c.name,
            why.join("\n")
        );
    }
}

#[test]
fn a_few_damaged_pages_cost_themselves_alone() {
    survive(2, 50, 48);
}

#[test]
fn of_fifty_damaged_pages_in_a_thousand_half_the_kernels_still_open() {
    survive(20, 50, 25);
}

/// What is cut off takes no more with it than it holds.
#[test]
fn a_capture_that_is_cut_short_opens_where_its_kernel_is() {
    let mut tried = 0;
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        let end = k.symbols.address("_end").unwrap().0;
        let end = k.space.translate(end - 1).unwrap().0 - c.image.base();
        for quarters in [1, 2, 3] {
            let all = c.image().len() / PAGE;
            let cut = all * quarters / 4;
            if end > (cut * PAGE) as u64 {
                continue;
            }
            let pages = (cut..all).map(|p| (p, None)).collect();
            let torn = Torn { capture: c, pages };
            let found = torn.processes();
            assert!(found.is_ok(), "{} cut at {quarters}/4: {found:?}", c.name);
            tried += 1;
        }
    }
    assert!(tried > 0, "no capture has its kernel before the cut");
}
