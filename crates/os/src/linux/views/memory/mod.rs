//! The memory of processes.

pub(in crate::linux) mod elfs;
pub(in crate::linux) mod malfind;
pub(in crate::linux) mod maps;
