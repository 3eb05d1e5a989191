//! OS-aware views of a capture: find the kernel, then read its structures.

mod claims;
pub mod content;
mod disassembly;
pub mod discover;
pub mod files;
pub mod frames;
pub mod image;
pub mod input;
pub mod linux;
pub mod machine;
pub mod page;
pub mod resident;
pub mod system;
pub mod table;
pub mod view;
pub mod windows;

pub use machine::Machine;
pub use system::open;
pub use view::{View, by_name, views};

/// Every system that is looked for.
pub const SYSTEMS: &[&dyn system::System] = &[&linux::Linux, &windows::Windows];
