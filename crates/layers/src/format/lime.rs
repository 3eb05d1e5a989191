//! LiME: a header before each range of System RAM.
//!
//! ```text
//! 0   u32  magic 0x4C694D45 ("EMiL" in the file)
//! 4   u32  version 1
//! 8   u64  first physical address
//! 16  u64  last physical address, inclusive
//! 24  8    reserved
//! 32  ...  the bytes of the range, then the next header
//! ```
//!
//! Source: LiME, `src/lime.h` and `doc/README.md` (format "lime"). A file cut short inside a range
//! keeps that range with its missing end; one cut inside a header keeps the ranges before it.

use super::{FormatError, ImageFormat, Layout, MAX_RUNS};
use crate::FileOffset;
use crate::run::{Run, RunMap};
use crate::source::ByteSource;
use async_trait::async_trait;

const MAGIC: u32 = 0x4c69_4d45;
const HEADER_LEN: u64 = 32;

/// LiME captures.
#[derive(Clone, Copy, Debug)]
pub struct Lime;

struct Header {
    magic: u32,
    version: u32,
    first: u64,
    last: u64,
}

impl Header {
    fn parse(b: &[u8]) -> Option<Self> {
        let u32_at = |o: usize| Some(u32::from_le_bytes(b.get(o..o + 4)?.try_into().ok()?));
        let u64_at = |o: usize| Some(u64::from_le_bytes(b.get(o..o + 8)?.try_into().ok()?));
        Some(Self {
            magic: u32_at(0)?,
            version: u32_at(4)?,
            first: u64_at(8)?,
            last: u64_at(16)?,
        })
    }
}

#[async_trait]
impl ImageFormat for Lime {
    fn name(&self) -> &'static str {
        "lime"
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        Header::parse(head).is_some_and(|h| h.magic == MAGIC && h.version == 1)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Layout, FormatError> {
        let end = source.len();
        let (mut runs, mut notes, mut at) = (Vec::new(), Vec::new(), 0u64);
        while at < end {
            if end - at < HEADER_LEN {
                notes.push(format!(
                    "{} bytes after the last range at {at:#x} are no header",
                    end - at
                ));
                break;
            }
            let b = source.read_vec(FileOffset(at), 32).await?;
            let Some(h) = Header::parse(&b) else { break };
            if h.magic != MAGIC || h.version != 1 {
                return Err(FormatError::Header {
                    format: "lime",
                    offset: at,
                    expected: format!("magic {MAGIC:#x} and version 1"),
                    found: format!("{:#x} and {}", h.magic, h.version),
                });
            }
            let len = h
                .last
                .checked_sub(h.first)
                .and_then(|n| n.checked_add(1))
                .ok_or_else(|| FormatError::Header {
                    format: "lime",
                    offset: at,
                    expected: "a last address at or above the first".into(),
                    found: format!("{:#x} to {:#x}", h.first, h.last),
                })?;
            let data = at + HEADER_LEN;
            let stored = len.min(end - data);
            if stored < len {
                notes.push(format!(
                    "the range at physical {:#x} is cut short: {} of {len} bytes are there",
                    h.first, stored
                ));
            }
            runs.push(Run {
                pa: h.first,
                len,
                file: data,
                stored,
            });
            if runs.len() > MAX_RUNS {
                return Err(FormatError::Header {
                    format: "lime",
                    offset: at,
                    expected: format!("at most {MAX_RUNS} ranges"),
                    found: "more".into(),
                });
            }
            at = data.saturating_add(len);
        }
        let runs = RunMap::new(runs).map_err(|source| FormatError::Runs {
            format: "lime",
            source,
        })?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: "lime" });
        }
        Ok(Layout {
            format: "lime".into(),
            runs,
            arch: None,
            dtb_hints: Vec::new(),
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::source::RamSource;
    use crate::{ImageOffset, PhysAddr};

    fn header(first: u64, last: u64) -> Vec<u8> {
        let mut h = b"EMiL".to_vec();
        h.extend(1u32.to_le_bytes());
        h.extend(first.to_le_bytes());
        h.extend(last.to_le_bytes());
        h.extend([0; 8]);
        h
    }

    #[tokio::test]
    async fn reads_ranges_and_a_cut_end() {
        let mut f = header(0x1000, 0x1fff);
        f.extend([1; 0x1000]);
        f.extend(header(0x10_0000, 0x10_1fff));
        f.extend([2; 0x1800]);
        let l = super::super::open(&RamSource::new("x", f))
            .await
            .expect("lime");
        assert_eq!(l.format, "lime");
        assert_eq!(l.runs.image_len(), 0x3000);
        assert_eq!(
            l.runs.to_phys(ImageOffset(0x1000)),
            Some(PhysAddr(0x10_0000))
        );
        assert_eq!(l.runs.missing(), vec![0x2800..0x3000]);
        assert!(l.notes[0].contains("cut short"));
    }

    #[tokio::test]
    async fn a_header_that_claims_terabytes_costs_nothing() {
        let mut f = header(0, (8 << 40) - 1);
        f.extend([1; 0x1000]);
        let l = super::super::open(&RamSource::new("x", f))
            .await
            .expect("lime");
        assert_eq!(l.runs.missing(), vec![0x1000..8 << 40]);
    }

    #[tokio::test]
    async fn garbage_between_ranges_names_its_place() {
        let mut f = header(0, 0xfff);
        f.extend([1; 0x1000]);
        f.extend([0xcc; 64]);
        let e = super::super::open(&RamSource::new("x", f))
            .await
            .expect_err("garbage");
        assert!(e.to_string().contains("0x1020"), "{e}");
    }
}
