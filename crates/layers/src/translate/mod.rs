//! Translation: virtual to physical addresses through the captured machine's own page tables.
//!
//! The shape of a table is data ([`Shape`]); the walk is one function ([`walk`]).

mod aarch64;
mod mappings;
mod walker;
mod x86_64;

pub use aarch64::AARCH64_4K_48;
pub use mappings::{Mapped, mappings};
pub use walker::{Shape, TranslateError, Translation, walk};
pub use x86_64::{X86_64, X86_64_LA57};

use crate::PhysAddr;

/// Why physical memory could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PhysError {
    /// The capture does not hold this address.
    #[error("physical address {pa} is not in the image")]
    NotInImage {
        /// The address.
        pa: PhysAddr,
    },
    /// The source failed.
    #[error("reading physical address {pa} failed: {detail}")]
    Source {
        /// The address.
        pa: PhysAddr,
        /// What happened.
        detail: String,
    },
}

/// Physical memory.
pub trait PhysRead {
    /// Fills `buf` from `pa`, all of it or nothing.
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError>;
}
