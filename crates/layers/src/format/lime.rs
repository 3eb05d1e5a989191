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
//! keeps that range with its missing end. Where a header should be and none is, the ranges before it are kept, and the
//! rest of the file is a gap, unless it is zeros. Ranges that hold the same addresses are kept once.

use super::twice::lay_out;
use super::{
    Avml, ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, gap, note,
};
use crate::FileOffset;
use crate::run::Run;
use crate::source::ByteSource;
use async_trait::async_trait;

const MAGIC: u32 = 0x4c69_4d45;
/// What a range that AVML packed begins with.
const AVML: u32 = 0x4c4d_5641;
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

    /// The header with the length of its range, if it is one. An empty range ends below where it begins.
    fn checked(self) -> Option<(Self, u64)> {
        let end = self.last.checked_add(1)?;
        let len = end.checked_sub(self.first)?;
        (self.magic == MAGIC && self.version == 1).then_some((self, len))
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

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let end = source.len();
        let (mut runs, mut notes, mut gaps, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        while at < end {
            let head = match end - at {
                left if left < HEADER_LEN => None,
                _ => Header::parse(&source.read_vec(FileOffset(at), 32).await?),
            };
            if head.as_ref().is_some_and(|h| h.magic == AVML) {
                // Plain ranges between packed ones.
                return Avml.open(source).await;
            }
            let Some((h, len)) = head.and_then(Header::checked) else {
                rest(source, at, &mut notes, &mut gaps).await?;
                break;
            };
            let data = at + HEADER_LEN;
            let stored = len.min(end - data);
            if stored < len {
                note(&mut notes, || {
                    format!(
                        "the range at physical {:#x} is cut short: {stored} of {len} bytes are there",
                        h.first
                    )
                });
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
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: "lime" });
        }
        Ok(Layout {
            format: "lime".into(),
            version: Some("1".into()),
            runs,
            arch: None,
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

/// Zeros behind the last range that are padding, not a gap; more is not looked at.
const MAX_PADDING: u64 = 1 << 20;

/// Says what lies where the next header should be.
async fn rest(
    source: &dyn ByteSource,
    at: u64,
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) -> Result<(), FormatError> {
    let end = source.len();
    let left = end - at;
    let n = usize::try_from(left.min(MAX_PADDING)).unwrap_or(0);
    let b = source.read_vec(FileOffset(at), n).await?;
    if left <= MAX_PADDING && b.iter().all(|b| *b == 0) {
        note(notes, || {
            format!("{left} zero bytes follow the last range, at {at:#x}")
        });
        return Ok(());
    }
    let found = match Header::parse(&b) {
        None => format!("a header that is cut after {} bytes", b.len()),
        Some(h) if h.magic != MAGIC => format!("magic {:#x}", h.magic),
        Some(h) if h.version != 1 => format!("version {}", h.version),
        Some(h) => format!("a range from {:#x} to {:#x}", h.first, h.last),
    };
    gap(gaps, at..end, || {
        format!(
            "expected the header of a range (magic {MAGIC:#x}, version 1), found {found}: {left} bytes are not read"
        )
    });
    Ok(())
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
            .expect("lime")
            .layout;
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
            .expect("lime")
            .layout;
        assert_eq!(l.runs.missing(), vec![0x1000..8 << 40]);
    }

    async fn gaps_of(f: Vec<u8>) -> (u64, Vec<(u64, u64)>) {
        let l = super::super::open(&RamSource::new("x", f))
            .await
            .expect("lime")
            .layout;
        let gaps = l.gaps.iter().map(|g| (g.file.start, g.file.end)).collect();
        (l.runs.image_len(), gaps)
    }

    #[tokio::test]
    async fn what_follows_sound_ranges_is_a_gap_and_costs_none_of_them() {
        let mut f = header(0, 0xfff);
        f.extend([1; 0x1000]);
        let with = |tail: &[u8]| [&f[..], tail].concat();
        assert_eq!(
            gaps_of(with(&[0xcc; 64])).await,
            (0x1000, vec![(0x1020, 0x1060)])
        );
        // Padding says nothing; a header that is cut, or zeros before data, do.
        assert_eq!(gaps_of(with(&[0; 4096])).await, (0x1000, vec![]));
        assert_eq!(
            gaps_of(with(&header(0x5000, 0x5fff)[..20])).await.1.len(),
            1
        );
        let torn = [vec![0; 32], vec![7; 0x1000]].concat();
        assert_eq!(gaps_of(with(&torn)).await.1.len(), 1);
        // An empty range is one, and what follows it is read.
        let mut more = with(&header(0x5_0000, 0x4_ffff));
        more.extend(header(0x10_0000, 0x10_0fff));
        more.extend([2; 0x1000]);
        assert_eq!(gaps_of(more).await, (0x2000, vec![]));
    }

    #[tokio::test]
    async fn addresses_that_are_there_twice_are_kept_once() {
        let mut f = header(0, 0x1fff);
        f.extend([1; 0x2000]);
        f.extend(header(0x1000, 0x1fff));
        let same = [&f[..], &[1; 0x1000]].concat();
        assert_eq!(gaps_of(same).await, (0x2000, vec![]));
        let other = [&f[..], &[2; 0x1000]].concat();
        assert_eq!(gaps_of(other).await, (0x2000, vec![(0x2040, 0x3040)]));
    }
}
