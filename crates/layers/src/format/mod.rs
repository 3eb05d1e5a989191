//! Formats: what container the capture is in, and which runs of physical memory it holds.
//!
//! Detection looks at the first bytes only, in an explicit order, raw last. Everything a header
//! says is capped by the real length of the file.

mod elf_core;
mod lime;
mod raw;

use crate::run::{RunError, RunMap};
use crate::source::{ByteSource, SourceError};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use elf_core::ElfCore;
pub use lime::Lime;
pub use raw::Raw;

/// Bytes that detection looks at.
pub const HEAD_LEN: usize = 4096;

/// Most runs that a capture may have; a header that asks for more is hostile.
pub const MAX_RUNS: usize = 1 << 20;

/// Most notes on one capture: a header may give reason for as many as it has entries.
const MAX_NOTES: usize = 100;

/// Adds a note while there is room.
fn note(notes: &mut Vec<String>, say: impl FnOnce() -> String) {
    match notes.len() {
        n if n < MAX_NOTES => notes.push(say()),
        MAX_NOTES => notes.push("and more of the kind".to_owned()),
        _ => {}
    }
}

/// What a container holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Name of the format: `raw`, `lime`, `elf_core`.
    pub format: String,
    /// Physical memory and where it lies in the file.
    pub runs: RunMap,
    /// Processor, where the container tells: `x86_64`, `aarch64`.
    pub arch: Option<String>,
    /// Page-table roots (CR3, TTBR1) that the container recorded.
    pub dtb_hints: Vec<u64>,
    /// What the container says of the machine or tool, for people.
    pub notes: Vec<String>,
}

/// Why a container can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A header is not what the format says.
    #[error("{format} header at file offset {offset:#x}: expected {expected}, found {found}")]
    Header {
        /// Name of the format.
        format: &'static str,
        /// Where in the file.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The runs contradict each other.
    #[error("{format}: {source}")]
    Runs {
        /// Name of the format.
        format: &'static str,
        /// What is wrong with them.
        source: RunError,
    },
    /// There are headers but no memory.
    #[error("{format}: the headers name no memory at all")]
    NoMemory {
        /// Name of the format.
        format: &'static str,
    },
    /// A container that is recognised and not supported.
    #[error("this is {what}, which can't be read yet; {hint}")]
    Unsupported {
        /// The container.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

/// One container format.
#[async_trait]
pub trait ImageFormat: Send + Sync {
    /// Its name in tables and messages.
    fn name(&self) -> &'static str;

    /// Whether the first bytes of a file of `len` bytes are this format's.
    fn probe(&self, head: &[u8], len: u64) -> bool;

    /// Reads the headers.
    async fn open(&self, source: &dyn ByteSource) -> Result<Layout, FormatError>;
}

/// All formats in the order in which they are tried; raw takes what nothing else wants.
pub const FORMATS: &[&dyn ImageFormat] = &[&Lime, &ElfCore, &Raw];

/// Containers that are recognised and refused, so that nobody scans compressed noise for hours:
/// magic, name, what to do.
const UNSUPPORTED: &[(&[u8], &str, &str)] = &[
    (
        b"AVML",
        "an AVML capture",
        "convert it with avml-convert --source-format lime_compressed",
    ),
    (b"LMVA", "an AVML capture", "convert it with avml-convert"),
    (b"PAGEDU64", "a Windows crash dump", "convert it to raw"),
    (b"PAGEDUMP", "a Windows crash dump", "convert it to raw"),
    (
        b"KDUMP   ",
        "a kdump-compressed vmcore",
        "convert it with makedumpfile -E or crash",
    ),
    (
        b"makedumpfile\0",
        "a flattened kdump",
        "rearrange it with makedumpfile -R",
    ),
    (
        b"\xd2\xbe\xd2\xbe",
        "a VMware state file",
        "name the .vmem beside it",
    ),
    (
        b"\xd1\xba\xd1\xba",
        "a VMware state file",
        "name the .vmem beside it",
    ),
    (
        b"\x1f\x8b\x08",
        "gzip-compressed",
        "unpack it first: gzip -d",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "zstd-compressed",
        "unpack it first: zstd -d",
    ),
    (b"\xfd7zXZ\0", "xz-compressed", "unpack it first: xz -d"),
    (b"BZh", "bzip2-compressed", "unpack it first: bzip2 -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it first"),
    (
        b"EVF\x09\x0d\x0a\xff\x00",
        "an EnCase image (E01)",
        "export it as raw",
    ),
    (
        b"QEVM",
        "a QEMU saved state",
        "dump the guest with dump-guest-memory",
    ),
    (
        b"ZDMP",
        "a compressed DumpIt capture",
        "unpack it with Z2Dmp",
    ),
    (b"HIBR", "a Windows hibernation file", "convert it to raw"),
    (b"hibr", "a Windows hibernation file", "convert it to raw"),
];

/// Finds the format of a source and reads its headers.
pub async fn open(source: &dyn ByteSource) -> Result<Layout, FormatError> {
    let head = source.head(HEAD_LEN).await?;
    for f in FORMATS {
        if f.probe(&head, source.len()) {
            if f.name() == "raw" {
                refuse_known(&head)?;
            }
            return f.open(source).await;
        }
    }
    Raw.open(source).await
}

fn refuse_known(head: &[u8]) -> Result<(), FormatError> {
    match UNSUPPORTED
        .iter()
        .find(|(magic, ..)| head.starts_with(magic))
    {
        Some((_, what, hint)) => Err(FormatError::Unsupported { what, hint }),
        None => Ok(()),
    }
}

/// Endings of files that are captures by custom.
const EXTENSIONS: &[&str] = &[
    "mem", "raw", "lime", "img", "dmp", "vmem", "core", "elf", "bin", "dd", "dump", "ram", "vmcore",
];

/// Endings of files that never are, although their bytes could be taken for raw memory.
const NOT_CAPTURES: &[&str] = &[
    "json", "txt", "md", "log", "sha256", "md5", "b3", "csv", "yaml", "yml", "toml", "parquet",
    "yar", "yara",
];

/// Whether a file found in a folder or under a prefix is a capture, by its name and first bytes;
/// if not, why not, in words.
pub fn looks_like_capture(name: &str, head: &[u8], len: u64) -> Result<(), String> {
    if len == 0 {
        return Err("empty".into());
    }
    let ext = name
        .rsplit_once('.')
        .map(|(_, e)| e.to_ascii_lowercase())
        .unwrap_or_default();
    if Lime.probe(head, len) || ElfCore.probe(head, len) {
        return Ok(());
    }
    refuse_known(head).map_err(|e| e.to_string())?;
    if head.starts_with(b"\x7fELF") {
        return Err("an ELF file, but not a core dump".into());
    }
    if NOT_CAPTURES.contains(&ext.as_str()) {
        return Err(format!(
            "a .{ext} file is not a capture; name it alone to scan it all the same"
        ));
    }
    if EXTENSIONS.contains(&ext.as_str()) {
        return Ok(());
    }
    // Without a known ending only what has the size and alignment of memory is taken.
    if len >= 1 << 20 && len.is_multiple_of(4096) {
        return Ok(());
    }
    Err("no known ending, and its size is not that of memory; name it alone to scan it all the same".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    #[tokio::test]
    async fn compressed_input_is_named_not_scanned() {
        let mut gz = b"\x1f\x8b\x08\0".to_vec();
        gz.resize(8192, 0);
        let e = open(&RamSource::new("x", gz)).await.expect_err("refused");
        assert!(e.to_string().contains("gzip -d"), "{e}");
    }

    #[test]
    fn folders_are_sorted_by_name_and_content() {
        assert!(looks_like_capture("a.mem", &[0; 64], 100).is_ok());
        assert!(looks_like_capture("a.json", b"{}", 2 << 20).is_err());
        assert!(looks_like_capture("memory", &[0; 64], 2 << 20).is_ok());
        assert!(looks_like_capture("memory", &[0; 64], (2 << 20) + 1).is_err());
        assert!(
            looks_like_capture("a.mem", b"PK\x03\x04", 100)
                .expect_err("zip")
                .contains("ZIP")
        );
        assert!(looks_like_capture("a.mem", b"", 0).is_err());
    }
}
