//! Names and types beyond those that the kernel lists: of variables, and of modules.

pub(in crate::linux) mod aarch64;
pub(in crate::linux) mod fits;
pub(in crate::linux) mod module_types;
pub(in crate::linux) mod referred;
pub(in crate::linux) mod unnamed;
