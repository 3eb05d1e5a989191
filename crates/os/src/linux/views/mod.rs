//! The views, by what they are about. One file a view.

pub(in crate::linux) mod files;
pub(in crate::linux) mod kernel;
pub(in crate::linux) mod memory;
pub(in crate::linux) mod network;
pub(in crate::linux) mod process;
