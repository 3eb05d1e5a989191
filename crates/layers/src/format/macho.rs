//! Mach-O cores of physical memory, as MacMemoryReader writes them.
//!
//! ```text
//! mach_header(_64)  magic, processor, subtype, file type 4 (core), number and bytes of the load commands, flags, (reserved)
//! LC_SEGMENT(_64)   command 1 (0x19), size, name[16], address, size, place in the file, size there: 4 (8) bytes each
//! ```
//!
//! The address of a segment is physical. Cores that macOS itself writes hold virtual memory and are refused.
//!
//! Source: `mach-o/loader.h`.

use super::bytes::{le32, le64};
use super::twice::{lay_out, unnamed};
use super::{FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, note};
use crate::FileOffset;
use crate::run::Run;
use crate::source::ByteSource;
use async_trait::async_trait;

const NAME: &str = "macho";
const NARROW: u32 = 0xfeed_face;
const WIDE: u32 = 0xfeed_facf;
const MH_CORE: u32 = 4;
const LC_SEGMENT: u32 = 1;
const LC_SEGMENT_64: u32 = 0x19;
/// Bytes of load commands at most.
const MAX_COMMANDS: u64 = 64 << 20;
/// Processors have no more bits of physical addresses; kernels' virtual ones have all upper bits set.
const PHYSICAL: u64 = 1 << 52;
/// Bytes between segments that align them to pages.
const ALIGNMENT: u64 = 4096;

/// Mach-O cores.
#[derive(Clone, Copy, Debug)]
pub struct MachO;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

/// A segment: address, its size, place in the file, size there.
fn segment(c: &[u8], wide: bool) -> Option<[u64; 4]> {
    let field = |i: usize| match wide {
        true => le64(c, 24 + 8 * i),
        false => le32(c, 24 + 4 * i).map(u64::from),
    };
    Some([field(0)?, field(1)?, field(2)?, field(3)?])
}

#[async_trait]
impl ImageFormat for MachO {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        matches!(le32(head, 0), Some(NARROW | WIDE)) && le32(head, 12) == Some(MH_CORE)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let head = source.head(32).await?;
        let wide = le32(&head, 0) == Some(WIDE);
        let field = |at: usize| {
            le32(&head, at).ok_or_else(|| bad(at as u64, "a header", "the end of the file"))
        };
        let (processor, count, size) = (field(4)?, field(16)?, u64::from(field(20)?));
        let first = if wide { 32 } else { 28 };
        if size > MAX_COMMANDS || count as usize > MAX_RUNS {
            return Err(bad(
                16,
                format!("at most {MAX_RUNS} load commands in {MAX_COMMANDS} bytes"),
                format!("{count} in {size} bytes"),
            ));
        }
        if first + size > source.len() {
            return Err(bad(
                first,
                format!("{size} bytes of load commands"),
                "the end of the file; the capture was cut short, take it again",
            ));
        }
        let n = usize::try_from(size).unwrap_or(0);
        let commands = source.read_vec(FileOffset(first), n).await?;
        let (mut runs, mut notes, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = 0usize;
        for _ in 0..count {
            let c = commands.get(at..).unwrap_or_default();
            let (Some(kind), Some(len)) = (le32(c, 0), le32(c, 4)) else {
                return Err(bad(first + at as u64, "a load command", "their end"));
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let Some(c) = c.get(..len).filter(|_| len >= 8) else {
                return Err(bad(
                    first + at as u64 + 4,
                    "the size of a load command",
                    len.to_string(),
                ));
            };
            if matches!((kind, wide), (LC_SEGMENT, false) | (LC_SEGMENT_64, true)) {
                let Some([pa, memory, file, filesz]) = segment(c, wide) else {
                    return Err(bad(first + at as u64, "a segment", format!("{len} bytes")));
                };
                if pa >= PHYSICAL {
                    return Err(FormatError::Unsupported {
                        what: "a Mach-O core of virtual memory",
                        hint: "take one of physical memory",
                    });
                }
                let stored = source.len().saturating_sub(file).min(filesz);
                let len = memory.max(filesz);
                if stored < len {
                    note(&mut notes, || {
                        format!(
                            "of the segment at physical {pa:#x} the file has {stored} of {len} bytes"
                        )
                    });
                }
                runs.push(Run {
                    pa,
                    len,
                    file,
                    stored,
                });
            }
            at += len;
        }
        let named = runs
            .iter()
            .map(|r| (r.file, r.file.saturating_add(r.stored)));
        unnamed(
            first + size..source.len(),
            named,
            ALIGNMENT,
            "segment",
            &mut gaps,
        );
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: NAME });
        }
        let arch = match processor {
            0x0100_0007 => Some("x86_64"),
            0x0100_000c => Some("aarch64"),
            7 => Some("x86"),
            _ => None,
        };
        Ok(Layout {
            format: NAME.into(),
            version: Some(if wide { "64-bit" } else { "32-bit" }.into()),
            runs,
            arch: arch.map(str::to_owned),
            dtb_hints: Vec::new(),
            notes,
            gaps,
            extents: None,
            page_files: Vec::new(),
            told: Told::default(),
        }
        .into())
    }
}
