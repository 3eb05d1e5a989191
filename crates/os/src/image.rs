//! Where a kernel's image lies, told without a pass over all of memory.
//!
//! A machine starts its processors from fixed places, and what they need there leads on to the kernel: so a list of
//! processes takes the reads of one kernel image, however large the capture.

use crate::SYSTEMS;
use crate::discover::Anchor;
use crate::input::ViewInput;
use ramsift_layers::translate::{PhysRead, Shape, walk};
use ramsift_layers::{Dtb, VirtAddr};
use std::ops::Range;

/// The image of a kernel in physical memory.
#[derive(Clone, Debug)]
pub struct KernelImage {
    /// The place that led to it, in words.
    pub place: String,
    /// A page table that maps the image; not necessarily the kernel's own top table.
    pub root: Dtb,
    /// Its shape.
    pub shape: Shape,
    /// What to add to a physical address of the image for the virtual one; wraps.
    pub delta: u64,
    /// Physical addresses of its pages that hold no code, in order: anchors lie there.
    pub data: Vec<Range<u64>>,
}

impl KernelImage {
    /// Whether a physical address lies between its first and its last page.
    pub fn contains(&self, pa: u64) -> bool {
        let ends = self.data.first().zip(self.data.last());
        ends.is_some_and(|(first, last)| (first.start..last.end).contains(&pa))
    }

    /// Whether a page table maps its first page where it lies.
    pub fn is_mapped_by(&self, memory: &dyn PhysRead, dtb: Dtb) -> bool {
        self.data.first().is_some_and(|first| {
            let va = VirtAddr(first.start.wrapping_add(self.delta));
            walk(memory, &self.shape, dtb, va).is_ok_and(|t| t.pa.0 == first.start)
        })
    }
}

/// Images that known places lead to, each once, of one system after the other: the next is only looked for when it is
/// asked for. `roots` are page tables that the container recorded.
pub fn known_images<'m>(
    memory: &'m dyn PhysRead,
    roots: &'m [u64],
) -> impl Iterator<Item = Vec<KernelImage>> + 'm {
    SYSTEMS.iter().map(move |s| {
        let mut out: Vec<KernelImage> = Vec::new();
        for found in s.images(memory, roots) {
            if !out.iter().any(|i| i.data == found.data) {
                out.push(found);
            }
        }
        out
    })
}

/// Anchors that the image leads to and that lie elsewhere. `input` has those of the image.
pub fn anchors_beside(input: &ViewInput<'_>, image: &KernelImage) -> Vec<Anchor> {
    let all = SYSTEMS.iter();
    all.flat_map(|s| s.anchors_beside(input, image)).collect()
}
