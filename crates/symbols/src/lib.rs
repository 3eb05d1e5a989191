//! Symbols: what a captured kernel says of its own addresses and types.

pub mod vmcoreinfo;

pub use vmcoreinfo::VmCoreInfo;
