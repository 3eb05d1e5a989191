//! What every system tells of itself.

use crate::discover::{Anchor, Discovery};
use crate::image::KernelImage;
use crate::view::ViewInput;
use ramsift_layers::translate::PhysRead;

/// A kind of operating system that captures are read of.
pub trait System: Send + Sync {
    /// Its name, which its views' names begin with.
    fn name(&self) -> &'static str;

    /// Images of its kernels that known places lead to, without a pass over all of memory. `roots` are page tables that
    /// the container recorded.
    fn images(&self, memory: &dyn PhysRead, roots: &[u64]) -> Vec<KernelImage>;

    /// Anchors that an image leads to and that lie outside of it. `input` has those of the image.
    fn anchors_beside(&self, input: &ViewInput<'_>, image: &KernelImage) -> Vec<Anchor>;

    /// Looks at the anchors, reads what they point at, and enters what it recognises: candidates for the page-table
    /// root, confirmed ones first, and what the kernel calls itself.
    fn discover(&self, input: &ViewInput<'_>, d: &mut Discovery);

    /// Where the physical memory of a raw image begins, if the kernel in it says that it is not at 0.
    fn raw_base(&self, input: &ViewInput<'_>) -> Option<u64>;

    /// Why none of the page tables of a kernel that was found is confirmed.
    fn unconfirmed(&self, d: &Discovery) -> String;
}
