//! Kernels found by known places, without a pass over the image.

use crate::common::{Capture, anchors_in, build, captures};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::{Anchor, discover};
use ramsift_os::image::{KernelImage, anchors_beside, known_images};
use ramsift_os::input::ViewInput;
use ramsift_os::linux;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Bytes that may be read until a kernel is open.
const MOST: u64 = 48 << 20;
/// What one read takes of a capture at least.
const BLOCK: u64 = 64 << 10;

/// Memory that counts the blocks that were read of it.
struct Counted<'c> {
    of: &'c dyn PhysRead,
    blocks: RefCell<BTreeSet<u64>>,
}

impl<'c> Counted<'c> {
    fn new(of: &'c dyn PhysRead) -> Self {
        Self {
            of,
            blocks: RefCell::default(),
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.borrow().len() as u64 * BLOCK
    }
}

impl PhysRead for Counted<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let last = pa.0 + buf.len().max(1) as u64 - 1;
        let mut blocks = self.blocks.borrow_mut();
        blocks.extend(pa.0 / BLOCK..=last / BLOCK);
        self.of.read_phys(pa, buf)
    }
}

fn anchors(c: &Capture, memory: &dyn PhysRead, image: &KernelImage) -> Vec<Anchor> {
    let mut out = Vec::new();
    for r in &image.data {
        let mut bytes = vec![0; usize::try_from(r.end - r.start).unwrap()];
        memory.read_phys(PhysAddr(r.start), &mut bytes).unwrap();
        let base = c.runs.from_phys(PhysAddr(r.start)).unwrap().0;
        out.extend(anchors_in(&bytes).into_iter().map(|a| Anchor {
            image_offset: a.image_offset + base,
            ..a
        }));
    }
    out
}

fn input<'c>(c: &'c Capture, memory: &'c dyn PhysRead, anchors: &'c [Anchor]) -> ViewInput<'c> {
    ViewInput {
        memory,
        anchors,
        ..c.input()
    }
}

fn is_x86(c: &Capture) -> bool {
    discover(&c.input()).architecture.as_deref() == Some("x86_64")
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn the_first_mebibyte_leads_to_a_kernel_that_opens() {
    let mut checked = 0;
    for c in captures().iter().filter(|c| is_x86(c)) {
        let memory = Counted::new(&c.image);
        let images = known_images(&memory, &[]).next().unwrap();
        let mut opened = None;
        for image in &images {
            let mut found = anchors(c, &memory, image);
            let beside = anchors_beside(&input(c, &memory, &found), image);
            found.extend(beside);
            let input = input(c, &memory, &found);
            let d = discover(&input);
            let Ok(kernel) = linux::open(&input, &d) else {
                continue;
            };
            assert_eq!(kernel.damage(), None, "{}", c.name);
            let read = memory.bytes();
            assert!(read <= MOST, "{}: {} MiB read", c.name, read >> 20);
            let whole = discover(&c.input());
            assert_eq!(d.page_tables[0].dtb, whole.page_tables[0].dtb, "{}", c.name);
            assert_eq!((d.release, d.build_id), (whole.release, whole.build_id));
            assert_eq!(
                (d.banner, d.banner_offset),
                (whole.banner, whole.banner_offset)
            );
            let list = |t: &ramsift_os::table::Table| format!("{:?}", t.rows);
            let want = c.kernel(&discover(&c.input()));
            assert_eq!(
                list(&build(&kernel, "linux/pslist")),
                list(&build(&want, "linux/pslist")),
                "{}",
                c.name
            );
            opened = Some(read);
            break;
        }
        let read = opened.unwrap_or_else(|| panic!("{}: not opened, {images:x?}", c.name));
        eprintln!("{}: {} KiB read, {}", c.name, read >> 10, images[0].place);
        checked += 1;
    }
    assert!(checked > 0, "no capture of an x86-64 machine");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_table_that_leads_nowhere_is_no_kernel() {
    for c in captures().iter().filter(|c| is_x86(c)) {
        // The same first MiB with nothing behind it.
        let end = 1 << 20;
        let low = crate::common::Image::new(c.image()[..end].to_vec());
        assert!(
            known_images(&low, &[0, 0x1000, u64::MAX]).all(|i| i.is_empty()),
            "{}",
            c.name
        );
    }
}
