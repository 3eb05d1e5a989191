//! What every system tells of itself.

use crate::SYSTEMS;
use crate::discover::{Anchor, Discovery};
use crate::image::KernelImage;
use crate::input::ViewInput;
use crate::machine::{Machine, OpenError};
use crate::page::{OverviewSection, ProcessSection};
use crate::view::{Purpose, View};
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

    /// What in an image tells of it, for people: `banner, no ...` behind "no".
    fn looked_for(&self) -> &'static str;

    /// Why none of the page tables of a kernel that was found is confirmed.
    fn unconfirmed(&self, d: &Discovery) -> String;

    /// Kinds of anchors of which a new one makes it worth to try whether the kernel can be opened now.
    fn telling_anchors(&self) -> &'static [&'static str];

    /// What an anchor alone tells of the kernel's release, which is less than discovery wants of it.
    fn release_in(&self, _anchor: &Anchor) -> Option<String> {
        None
    }

    /// Opens the kernel of the first confirmed page table.
    fn open<'a>(
        &self,
        input: &ViewInput<'a>,
        d: &Discovery,
    ) -> Result<Box<dyn Machine + 'a>, OpenError>;

    /// Whether it has views that look for objects in pool memory, and use what a pass that others make found of it
    /// ([`ViewInput::pool`]).
    fn scans_pools(&self) -> bool {
        false
    }

    /// Its views, in the order in which a job builds them.
    fn views(&self) -> &'static [View];

    /// The view that does something.
    fn view_for(&self, purpose: Purpose) -> Option<&'static View>;

    /// What the page about one process shows.
    fn process_page(&self) -> &'static [ProcessSection];

    /// What the page about a machine shows of its views.
    fn overview(&self) -> &'static [OverviewSection];
}

/// Opens the kernel that was discovered.
pub fn open<'a>(input: &ViewInput<'a>, d: &Discovery) -> Result<Box<dyn Machine + 'a>, OpenError> {
    let system = SYSTEMS.iter().find(|s| Some(s.name()) == d.os);
    match system {
        Some(s) => s.open(input, d),
        None => Err(OpenError::new("no system was recognised")),
    }
}
