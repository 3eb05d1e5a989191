//! Conversion: the physical memory of a capture, written in another format. One file for each format.
//!
//! A writer is told which ranges there are, then gets their bytes in physical order, in pieces of at most 16 MiB. What can't be
//! read is not written: a range may have holes where it was announced, and the writer says so in the form of its format, so that
//! nobody takes them for memory. Raw alone can't: there holes are zeros.

mod avml;
mod elf_core;
mod kdump;
mod lime;
mod raw;

use crate::format::Layout;
use crate::source::SourceError;
use crate::{FileOffset, ImageOffset, ImageReader, PhysAddr};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::str::FromStr;

/// Bytes that are read at a time.
const STEP: u64 = 16 << 20;
/// Bytes of the smallest piece that is told apart where something can't be read.
const PAGE: u64 = 4096;

/// A format to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Physical memory from address 0 on, holes zeros.
    Raw,
    /// LiME, version 1.
    Lime,
    /// A 64-bit ELF core.
    ElfCore,
    /// AVML, version 2.
    Avml,
    /// A kdump-compressed dump, pages packed by zlib.
    Kdump,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Raw,
        Self::Lime,
        Self::ElfCore,
        Self::Avml,
        Self::Kdump,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lime => "lime",
            Self::ElfCore => "elf-core",
            Self::Avml => "avml",
            Self::Kdump => "kdump",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|t| t.name() == s);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{s:?} is none of {names}")
        })
    }
}

/// Why a capture can't be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The capture.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file that is written.
    #[error("the converted capture can't be written: {0}")]
    Write(#[from] io::Error),
    /// The format can't hold it.
    #[error("{target} can't hold this capture: {why}")]
    Refused {
        /// The format.
        target: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// What was written is not what was read.
    #[error("what was written differs at physical {pa:#x}")]
    Differs {
        /// Where.
        pa: u64,
    },
}

/// What of a machine a format has room for.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its processor, as a layout names it.
    pub arch: Option<String>,
    /// The kernel's VMCOREINFO, where the capture's container has it.
    pub vmcoreinfo: Option<Vec<u8>>,
}

/// What was converted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of memory that were written.
    pub bytes: u64,
    /// Ranges of physical memory that were written, in order, neighbours joined.
    pub ranges: Vec<Range<u64>>,
    /// Bytes of the capture's ranges that its file lacks.
    pub missing: u64,
    /// Ranges that could not be read, with the reason of the first.
    pub bad: Vec<Range<u64>>,
    /// Why the first of these could not be read.
    pub bad_reason: Option<String>,
    /// BLAKE3 of the memory, range after range.
    pub content: String,
    /// What people are to know.
    pub notes: Vec<String>,
}

/// Writes one format.
pub(crate) trait Writer {
    /// Writes bytes of a range that was announced, in physical order.
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes what comes last. Gives what people are to know.
    fn finish(self: Box<Self>) -> io::Result<Vec<String>>;
}

/// The ranges of memory that a capture has bytes of, neighbours joined.
fn stored(layout: &Layout) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for r in layout.runs.runs().iter().filter(|r| r.stored > 0) {
        let end = r.pa + r.stored;
        match out.last_mut() {
            Some(l) if l.end == r.pa => l.end = end,
            _ => out.push(r.pa..end),
        }
    }
    out
}

/// Reads a range, and what of it can be read where it can't as a whole.
async fn pieces(
    image: &ImageReader,
    layout: &Layout,
    range: Range<u64>,
    out: &mut Vec<(u64, Vec<u8>)>,
    bad: &mut Vec<(Range<u64>, String)>,
) -> Result<(), SourceError> {
    let bytes = image.bytes();
    let mut todo = vec![range];
    while let Some(r) = todo.pop() {
        match read(bytes.as_ref(), layout, r.clone()).await {
            Ok(b) => out.push((r.start, b)),
            Err(e) if e.is_content() && r.end - r.start > PAGE => {
                let half = (r.start + (r.end - r.start) / 2).next_multiple_of(PAGE);
                let half = half.min(r.end - 1).max(r.start + 1);
                todo.push(half..r.end);
                todo.push(r.start..half);
            }
            Err(e) if e.is_content() => bad.push((r, e.to_string())),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads a range of physical memory that is stored.
async fn read(
    bytes: &dyn crate::ByteSource,
    layout: &Layout,
    range: Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let mut out = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
    let mut pa = range.start;
    while pa < range.end {
        let at = layout.runs.stored_at(PhysAddr(pa));
        let Some((file, there)) = at else {
            return Err(SourceError::Medium {
                what: bytes.pin().to_string(),
                offset: pa,
                len: range.end - pa,
                detail: "no run has this physical address".into(),
            });
        };
        let n = there.min(range.end - pa);
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let b = bytes.read_vec(FileOffset(file.0), n).await?;
        out.extend_from_slice(&b);
        pa += n as u64;
    }
    Ok(out)
}

/// Writes the physical memory of a capture to an empty file. `progress` is told bytes that are done, of all.
pub async fn convert(
    image: &ImageReader,
    layout: &Layout,
    machine: &Machine,
    to: Target,
    file: &File,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Converted, ConvertError> {
    let ranges = stored(layout);
    let total: u64 = ranges.iter().map(|r| r.end - r.start).sum();
    let mut writer: Box<dyn Writer + Send + '_> = match to {
        Target::Raw => Box::new(raw::Raw::new(file, &ranges)?),
        Target::Lime => Box::new(lime::Lime::new(file)),
        Target::ElfCore => Box::new(elf_core::ElfCore::new(file, &ranges, machine)?),
        Target::Avml => Box::new(avml::Avml::new(file)),
        Target::Kdump => Box::new(kdump::Kdump::new(file, &ranges, machine)?),
    };
    let mut out = Converted {
        missing: layout.runs.image_len() - total,
        ..Converted::default()
    };
    let mut hash = blake3::Hasher::new();
    let mut done = 0;
    for r in ranges {
        let mut at = r.start;
        while at < r.end {
            // Pieces end at whole steps, so that formats of blocks get whole ones.
            let end = (at / STEP + 1).saturating_mul(STEP).min(r.end);
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            pieces(image, layout, at..end, &mut good, &mut bad).await?;
            for (pa, b) in good {
                hash.update(&b);
                writer.put(pa, &b)?;
                out.bytes += b.len() as u64;
                join(&mut out.ranges, pa..pa + b.len() as u64);
            }
            for (r, why) in bad {
                out.bad_reason.get_or_insert(why);
                join(&mut out.bad, r);
            }
            done += end - at;
            progress(done, total);
            at = end;
        }
    }
    out.notes = writer.finish()?;
    out.content = hash.finalize().to_hex().to_string();
    image.stored().check_pin().await?;
    Ok(out)
}

fn join(all: &mut Vec<Range<u64>>, r: Range<u64>) {
    match all.last_mut() {
        Some(l) if l.end == r.start => l.end = r.end,
        _ => all.push(r),
    }
}

/// Reads what was written, and fails where it is not the memory that was converted.
pub async fn verify(
    image: &ImageReader,
    layout: &Layout,
    of: &Converted,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), ConvertError> {
    let bytes = image.bytes();
    let mut hash = blake3::Hasher::new();
    let mut done = 0;
    for r in &of.ranges {
        let mut at = r.start;
        while at < r.end {
            let end = (at + STEP).min(r.end);
            if layout.runs.from_phys(PhysAddr(at)).is_none() {
                return Err(ConvertError::Differs { pa: at });
            }
            hash.update(&read(bytes.as_ref(), layout, at..end).await?);
            done += end - at;
            progress(done, of.bytes);
            at = end;
        }
    }
    if hash.finalize().to_hex().as_str() != of.content {
        let pa = of.ranges.first().map_or(0, |r| r.start);
        return Err(ConvertError::Differs { pa });
    }
    // Nothing else is there, but for what a raw image fills its holes with.
    let raw = layout.format == "raw";
    let there: u64 = stored(layout).iter().map(|r| r.end - r.start).sum();
    let first = layout.runs.to_phys(ImageOffset(0)).map_or(0, |p| p.0);
    if !raw && there != of.bytes {
        return Err(ConvertError::Differs { pa: first });
    }
    Ok(())
}
