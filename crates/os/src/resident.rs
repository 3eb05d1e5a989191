//! What processes have in memory, each byte once: for scans that take a process as a whole.

use crate::content::Extent;

/// Memory that is scanned once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its number; numbers ascend.
    pub number: u32,
    /// Path of the file that it is a part of; `None` of memory that is a process's own.
    pub file: Option<String>,
    /// The process whose own memory it is, `sshd[812]`; of several that share it the first.
    pub process: Option<String>,
    /// Its bytes, by address, which is their [`Extent::offset`].
    pub extents: Vec<Extent>,
}

/// A process and its units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Process id.
    pub pid: i64,
    /// Its name.
    pub comm: String,
    /// Address of the kernel's object of the process.
    pub object: u64,
    /// When it was started, in nanoseconds since a moment that is the same for all processes of the machine.
    pub started: Option<u64>,
    /// Units, and what is added to their addresses to get the process's (wrapping).
    pub units: Vec<(u32, u64)>,
}
