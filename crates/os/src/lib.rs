//! OS-aware views of a capture: find the kernel, then read its structures.

pub mod discover;
pub mod image;
pub mod linux;
pub mod system;
pub mod table;
pub mod view;

/// Every system that is looked for.
pub const SYSTEMS: &[&dyn system::System] = &[&linux::Linux];
