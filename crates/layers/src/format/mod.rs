//! Formats: what container the capture is in, and which runs of physical memory it holds.
//!
//! Detection looks at the first bytes only, in an explicit order, raw last. Everything a header
//! says is capped by the real length of the file.

mod ahead;
mod avml;
mod bytes;
mod content;
mod crash_dump;
mod elf_core;
mod ewf;
mod flat;
mod hiberfil;
mod hole;
mod hyperv;
mod kdump;
mod known;
mod lime;
mod macho;
mod magics;
mod notes;
mod outline;
mod raw;
mod savevm;
mod told;
mod twice;
mod vmware;
mod xen_core;

use crate::container::{self, Inside};
use crate::extent::{BuildError, Extents, ImageReader, Table, TableInfo};
use crate::page_file::{self, PageFile};
use crate::run::{RunError, RunMap};
use crate::source::{ByteSource, RamSource, SourceError};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

pub use avml::Avml;
pub use crash_dump::CrashDump;
pub use elf_core::ElfCore;
pub use ewf::Ewf;
pub use hiberfil::Hiberfil;
pub use hyperv::HyperV;
pub use kdump::Kdump;
pub(crate) use known::{is_tar, is_zlib};
pub use lime::Lime;
pub use macho::MachO;
pub use outline::{Outline, outline, vmcoreinfo};
pub use raw::Raw;
pub use savevm::Savevm;
pub use told::Told;
pub use vmware::Vmware;
pub use xen_core::XenCore;

/// Bytes that detection looks at.
pub const HEAD_LEN: usize = 4096;

/// Most runs that a capture may have; a header that asks for more is hostile.
pub const MAX_RUNS: usize = 1 << 20;

/// Most notes, and most gaps, on one capture: a header may give reason for as many as it has entries.
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
    /// Name of the format: `raw`, `lime`, `elf_core`, `avml`, `kdump`, `crash_dump`, `vmware`, `xen_core`, `macho`,
    /// `qemu_savevm`, `ewf`, `hiberfil`, `hyperv`.
    pub format: String,
    /// The version or kind of the format, in the format's own words, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Physical memory and where it lies: in the file, or, where there are `extents`, in the image that these stand for.
    pub runs: RunMap,
    /// Processor, where the container tells: `x86_64`, `aarch64`.
    pub arch: Option<String>,
    /// Page-table roots (CR3, TTBR1) that the container recorded.
    pub dtb_hints: Vec<u64>,
    /// What the container says of the machine or tool, for people.
    pub notes: Vec<String>,
    /// Parts of the file that the image lacks, or reasons to doubt that it is one: the verdict is not `complete`.
    #[serde(default)]
    pub gaps: Vec<ContainerGap>,
    /// The table of the extents that hold the memory, where the container does not hold it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<TableInfo>,
    /// What the captured system wrote out of its memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub page_files: Vec<PageFile>,
    /// What else the container says of the machine.
    #[serde(default, skip_serializing_if = "Told::is_empty")]
    pub told: Told,
}

impl Layout {
    /// The runs, with those of page files behind them. `bytes` is the length of [`ImageReader::paged_bytes`].
    pub fn paged_runs(&self, bytes: u64) -> RunMap {
        page_file::runs_with(&self.runs, &self.page_files, bytes)
    }
}

/// A container that was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What it holds.
    pub layout: Layout,
    /// The table that the layout describes, where it describes one.
    pub table: Option<Table>,
}

impl From<Layout> for Opened {
    fn from(layout: Layout) -> Self {
        Self {
            layout,
            table: None,
        }
    }
}

impl Opened {
    /// A reader of the image, whose table is in memory.
    pub async fn reader(&self, source: Arc<dyn ByteSource>) -> Result<ImageReader, SourceError> {
        let Some(t) = &self.table else {
            return Ok(ImageReader::plain(source));
        };
        let bytes = RamSource::shared("the table of extents", t.data.clone());
        let x = Extents::open(Arc::new(bytes), &t.info, source.len()).await?;
        Ok(ImageReader::coded(source, Arc::new(x)))
    }
}

/// A part of a container that is not in the image, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerGap {
    /// The part of the file.
    pub file: Range<u64>,
    /// Why it is not in the image.
    pub reason: String,
}

/// Adds a gap while there is room.
fn gap(gaps: &mut Vec<ContainerGap>, file: Range<u64>, reason: impl FnOnce() -> String) {
    if gaps.len() < MAX_NOTES {
        let reason = reason();
        gaps.push(ContainerGap { file, reason });
    } else if let Some(last) = gaps.get_mut(MAX_NOTES - 1) {
        last.file.end = last.file.end.max(file.end);
        "this and more of the kind".clone_into(&mut last.reason);
    }
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
    /// What the container holds can't be laid out.
    #[error("{format}: {source}")]
    Layout {
        /// Name of the format.
        format: &'static str,
        /// Why.
        source: BuildError,
    },
    /// There are headers but no memory.
    #[error("{format}: the headers name no memory at all")]
    NoMemory {
        /// Name of the format.
        format: &'static str,
    },
    /// What a container holds is a capture in a format of its own.
    #[error("this is {what} that holds {inside}, which can't be read there; {hint}")]
    Inside {
        /// The container.
        what: &'static str,
        /// What it holds.
        inside: String,
        /// What to do.
        hint: &'static str,
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

impl FormatError {
    fn built(format: &'static str, source: BuildError) -> Self {
        Self::Layout { format, source }
    }
}

/// One container format.
#[async_trait]
pub trait ImageFormat: Send + Sync {
    /// Its name in tables and messages.
    fn name(&self) -> &'static str;

    /// Whether the first bytes of a file of `len` bytes are this format's.
    fn probe(&self, head: &[u8], len: u64) -> bool;

    /// Reads the headers.
    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError>;
}

/// All formats in the order in which they are tried; raw takes what nothing else wants.
pub const FORMATS: &[&dyn ImageFormat] = &[
    &Lime, &Avml, &XenCore, &ElfCore, &Kdump, &CrashDump, &Hiberfil, &HyperV, &Vmware, &MachO,
    &Savevm, &Ewf, &Raw,
];

/// Finds the format of a source and reads its headers.
pub async fn open(source: &dyn ByteSource) -> Result<Opened, FormatError> {
    recognise(source).await?.open(source).await
}

/// What lies beside a capture, for formats that keep a part of it in another file.
#[async_trait]
pub trait Beside: Send + Sync {
    /// The file or object of the same name with another ending; `None` where there is none.
    async fn with_ending(&self, ending: &str) -> Result<Option<Arc<dyn ByteSource>>, SourceError>;

    /// Those of the same name with another number, as far as they follow one another.
    async fn numbered(&self) -> Result<Vec<Arc<dyn ByteSource>>, SourceError>;
}

/// All files of the capture that a file is one of, where it is one of several; else `None`.
pub async fn joined(
    source: &Arc<dyn ByteSource>,
    beside: &dyn Beside,
) -> Result<Option<Arc<dyn ByteSource>>, FormatError> {
    match kdump::joined(source, beside).await? {
        None => ewf::joined(source, beside).await,
        found => Ok(found),
    }
}

/// Whether a file is one of several that are one capture, and not the first of them.
pub async fn is_later_part(source: &dyn ByteSource) -> Result<bool, FormatError> {
    if ewf::is_later_segment(&source.head(16).await?) {
        return Ok(true);
    }
    kdump::is_later_part(source).await
}

/// The same as [`open`], with what lies beside it.
pub async fn open_beside(
    source: &dyn ByteSource,
    beside: &dyn Beside,
) -> Result<Opened, FormatError> {
    let format = recognise(source).await?;
    let name = source.pin().name().to_ascii_lowercase();
    if format.name() != Raw.name() || !name.ends_with(".vmem") {
        return format.open(source).await;
    }
    for ending in ["vmss", "vmsn"] {
        let state = beside.with_ending(ending).await?;
        if let Some(o) = vmware::open_vmem(source, state.as_deref()).await? {
            return Ok(o);
        }
    }
    let mut opened = format.open(source).await?;
    let hole_is_known = opened.layout.runs.runs().len() > 1;
    let lacks = vmware::without_state(source.len(), hole_is_known);
    opened.layout.notes.insert(0, lacks);
    Ok(opened)
}

/// Finds the format of a source by its first bytes.
pub async fn recognise(source: &dyn ByteSource) -> Result<&'static dyn ImageFormat, FormatError> {
    let head = source.head(HEAD_LEN).await?;
    let found = FORMATS.iter().find(|f| f.probe(&head, source.len()));
    let found: &'static dyn ImageFormat = found.copied().unwrap_or(&Raw);
    if found.name() == Raw.name() {
        refuse_known(&head)?;
        if hiberfil::is_wiped(source, &head).await? {
            return Ok(&Hiberfil);
        }
    }
    Ok(found)
}

fn refuse_known(head: &[u8]) -> Result<(), FormatError> {
    match known::known(head) {
        Some(k) => Err(FormatError::Unsupported {
            what: k.what,
            hint: k.hint,
        }),
        None => Ok(()),
    }
}

/// The format that the first bytes of a capture are of, if they tell; raw never is.
pub fn named(head: &[u8]) -> Option<&'static str> {
    let claims = |f: &&&dyn ImageFormat| f.name() != Raw.name() && f.probe(head, u64::MAX);
    FORMATS.iter().find(claims).map(|f| f.name())
}

/// What a file holds that can't be read, by its first bytes, and what to do about it.
pub(crate) fn refused(head: &[u8]) -> Option<String> {
    let claimed = FORMATS
        .iter()
        .any(|f| f.name() != Raw.name() && f.probe(head, u64::MAX));
    let known = known::known(head).filter(|_| !claimed)?;
    Some(format!(
        "{}, which can't be read yet; {}",
        known.what, known.hint
    ))
}

/// Endings of files that are captures by custom.
const EXTENSIONS: &[&str] = &[
    "mem", "raw", "lime", "avml", "img", "dmp", "vmem", "core", "elf", "bin", "dd", "dump", "ram",
    "vmcore", "kdump", "vmss", "vmsn", "qevm", "save", "e01",
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
    if ext == "vmcx" {
        return Err("the configuration of a Hyper-V machine; its memory is in the .vmrs".into());
    }
    let claims = |f: &&&dyn ImageFormat| f.name() != Raw.name() && f.probe(head, len);
    if FORMATS.iter().any(|f| claims(&f)) {
        return Ok(());
    }
    if let Some(inside) = container::peek(head, name) {
        return inside_is_capture(&inside);
    }
    if page_file::is_name(name) {
        return Err(
            "a page file: it is read with the capture beside it; name it alone to scan it as it is"
                .into(),
        );
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

/// The same of what is in a container, whose size is not known.
fn inside_is_capture(inside: &Inside) -> Result<(), String> {
    let Inside {
        what, name, head, ..
    } = inside;
    let unnamed = !name.contains('.') && !inside.archive;
    if head.is_empty() {
        let ending = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
        let by_name = ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()));
        return match by_name || unnamed {
            true => Ok(()),
            false => Err(format!(
                "{what}, and nothing says that it holds a capture; name it alone to scan it all the same"
            )),
        };
    }
    // A size that is that of no memory: the ending or the first bytes must tell.
    match looks_like_capture(name, head, 1) {
        Ok(()) => Ok(()),
        Err(why) if inside.archive => Err(format!(
            "{what}, and the first member, {name}, is no capture ({why}); name it alone to look at all of it"
        )),
        Err(why) => Err(format!("{what}: {why}")),
    }
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
