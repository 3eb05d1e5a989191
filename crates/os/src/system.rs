//! What every system tells of itself.

use crate::discover::Discovery;
use crate::view::ViewInput;

/// A kind of operating system that captures are read of.
pub trait System: Send + Sync {
    /// Its name, which its views' names begin with.
    fn name(&self) -> &'static str;

    /// Looks at the anchors, reads what they point at, and enters what it recognises: candidates for the page-table
    /// root, confirmed ones first, and what the kernel calls itself.
    fn discover(&self, input: &ViewInput<'_>, d: &mut Discovery);

    /// Where the physical memory of a raw image begins, if the kernel in it says that it is not at 0.
    fn raw_base(&self, input: &ViewInput<'_>) -> Option<u64>;

    /// Why none of the page tables of a kernel that was found is confirmed.
    fn unconfirmed(&self, d: &Discovery) -> String;
}
