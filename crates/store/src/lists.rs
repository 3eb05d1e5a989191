//! What the structured worker asks the chunk workers to scan: memory of processes in the order of
//! their addresses, and content that views recovered. One list, an object of its own, is one task.
//!
//! ```text
//! unit      memory that is scanned once: what a process has for itself, or a part of a file that
//!           processes map; has addresses of its own
//! process   units, each shifted to where the process has it
//! buffer    some of a unit, end to end: what is searched in one go
//! ```

use crate::placed::Placed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes that a list has at least, unless it is the last. With one buffer more it is as large as a chunk.
pub const LIST: u64 = 48 << 20;

/// Bytes of a buffer at most, what lies around its core apart.
pub const BUFFER: u64 = 16 << 20;

/// Name of the list of processes in the folder of lists.
pub const PROCESSES: &str = "processes.json";

/// Name of a list of memory in the folder of lists.
pub fn memory_name(number: u32) -> String {
    format!("memory-{number}.json")
}

/// Name of a list of recovered content in the folder of lists.
pub fn files_name(number: u32) -> String {
    format!("files-{number}.json")
}

/// Memory for one task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryList {
    /// What to search.
    pub buffers: Vec<Buffer>,
    /// Whose memory a unit is, by number: `process:sshd[812]`, `file:/var/log/auth.log`.
    #[serde(default)]
    pub names: BTreeMap<u32, String>,
}

/// Some of a unit. Its core is what another buffer of the unit doesn't have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Number of the unit.
    pub unit: u32,
    /// Rules and the virus scanner look at it: it is memory of a process.
    #[serde(default)]
    pub scan: bool,
    /// Carvers look at it: what they find where its pages meet is told in its order.
    #[serde(default)]
    pub carve: bool,
    /// Bytes in front of the core: the end of another buffer's.
    pub before: u64,
    /// Bytes behind the core: the start of another buffer's.
    pub after: u64,
    /// What is adjacent in the unit's addresses, by address. Between two there is memory that is not
    /// in the image.
    pub stretches: Vec<Stretch>,
}

/// Bytes that are adjacent in a unit's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stretch {
    /// Address of the first.
    pub address: u64,
    /// Where they lie in the image: offset and length, in order. Neighbours are not adjacent there.
    pub extents: Vec<(u64, u64)>,
}

impl Stretch {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.extents.iter().map(|e| e.1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.extents.iter().all(|e| e.1 == 0)
    }
}

impl Buffer {
    /// Bytes, those around the core included.
    pub fn len(&self) -> u64 {
        self.stretches.iter().map(Stretch::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stretches.iter().all(Stretch::is_empty)
    }
}

/// The processes of a capture, and which units each has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessList {
    /// Processes with memory of their own, in the order of the task list.
    pub processes: Vec<Process>,
    /// Path of the file that a unit is of, by number; other units are memory of one process.
    pub files: BTreeMap<u32, String>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: i64,
    /// Name of its main thread.
    pub comm: String,
    /// Address of the kernel's object of the process.
    pub object: u64,
    /// When it was started, in nanoseconds since a moment that is the same for all processes of the machine.
    pub started: Option<u64>,
    /// Units, and what is added to a unit's addresses to get the process's (wrapping).
    pub units: Vec<(u32, u64)>,
}

impl Process {
    /// What names it in a capture for good: ids are used again.
    pub fn key(&self) -> String {
        format!("{:#x}@{}", self.object, self.started.unwrap_or(0))
    }

    /// `sshd[812]`.
    pub fn name(&self) -> String {
        format!("{}[{}]", self.comm, self.pid)
    }
}

/// Recovered content for one task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileList {
    /// Artifacts.
    pub files: Vec<Recovered>,
}

/// An artifact in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    /// What it is: `cached_file`, `module`, `process_elf`.
    pub kind: String,
    /// Path or name.
    pub name: String,
    /// Of its content, hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// The object that has a copy of it; empty: it lies in the image.
    #[serde(default)]
    pub object: String,
    /// Where in that.
    #[serde(default)]
    pub object_offset: u64,
    /// Where it lies in the image.
    #[serde(default)]
    pub extents: Placed,
    /// Where its first byte lies in the image.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Why it is not whole: what the image lacks is zeros.
    pub gap: Option<String>,
}
