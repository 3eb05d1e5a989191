//! Readers of the kernel's objects, which views share: lists and trees, paths, inodes, sockets, areas, modules.

pub(in crate::linux) mod areas;
pub(in crate::linux) mod cached;
pub(in crate::linux) mod code;
pub(in crate::linux) mod elf;
pub(in crate::linux) mod fields;
pub(in crate::linux) mod files;
pub(in crate::linux) mod history_files;
pub(in crate::linux) mod hlist;
pub(in crate::linux) mod hooks;
pub(in crate::linux) mod inode;
pub(in crate::linux) mod kernel_memory;
pub(in crate::linux) mod link_map;
pub(in crate::linux) mod login_records;
pub(in crate::linux) mod memory;
pub(in crate::linux) mod module;
pub(in crate::linux) mod object;
pub(in crate::linux) mod pages;
pub(in crate::linux) mod path;
pub(in crate::linux) mod programs;
pub(in crate::linux) mod registers;
pub(in crate::linux) mod sock;
pub(in crate::linux) mod time;
pub(in crate::linux) mod tree;
pub(in crate::linux) mod vmas;
pub(in crate::linux) mod walk;
pub(in crate::linux) mod xarray;
