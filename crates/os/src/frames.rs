//! Rows of the frame map: who owns each page of physical memory.

use ramsift_layers::PhysAddr;
use std::sync::Arc;

/// A stretch of physical memory of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its first byte.
    pub start: PhysAddr,
    /// Bytes.
    pub len: u64,
    /// `process`, `file`, `page table`, `kernel`, `slab`, `free`, `in use`, `unknown`.
    pub state: &'static str,
    /// Who owns it, in words: `sshd[812] [heap]`, `/var/log/auth.log, mapped by cron[9]`.
    pub owner: Option<Arc<str>>,
    /// Virtual address of its first byte: in the first process that maps it, or in the kernel.
    pub va: Option<u64>,
    /// Offset of its first byte in the file.
    pub file_offset: Option<u64>,
}

/// What the system itself says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// In the lists of free memory.
    Free,
    /// Objects of the kernel.
    Slab,
    /// Something else.
    Used,
    /// Not known.
    Unknown,
}
