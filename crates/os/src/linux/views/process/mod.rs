//! Processes: what they are, what they were started with, what was typed into them.

pub(in crate::linux) mod arguments;
pub(in crate::linux) mod bash;
pub(in crate::linux) mod command_lines;
pub(in crate::linux) mod credentials;
pub(in crate::linux) mod exe;
pub(in crate::linux) mod history;
pub(in crate::linux) mod ld_preload;
pub(in crate::linux) mod library_list;
pub(in crate::linux) mod namespaces;
pub(in crate::linux) mod procdump;
pub(in crate::linux) mod pslist;
pub(in crate::linux) mod psscan;
pub(in crate::linux) mod pstree;
pub(in crate::linux) mod psxview;
pub(in crate::linux) mod ptrace;
pub(in crate::linux) mod secrets;
pub(in crate::linux) mod suspicious;
pub(in crate::linux) mod threads;
