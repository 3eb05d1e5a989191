//! OS-aware views of a capture: find the kernel, then read its structures.

pub mod kernel;
pub mod linux;
pub mod table;
pub mod view;
