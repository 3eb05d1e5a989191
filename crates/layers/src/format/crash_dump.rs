//! Crash dumps of Windows: full, bitmap ("active memory", "automatic") and kernel dumps, of 64-bit machines; full ones of
//! 32-bit machines.
//!
//! ```text
//! PAGEDU64, 8 KiB   build at 0xC, top page table at 0x10, machine 0x30, bug check 0x38, runs 0x88, kind of dump 0xF98, time 0xFA8,
//!                   comment 0xFB0
//!   1 full          runs: number, pages, then first page and number of pages of each; their bytes follow from 0x2000 on
//!   2, 5, 6 bitmap  at 0x2000 "SDMP" or "FDMP", "DUMP"; place of the first page at 0x20, pages 0x28, bits 0x30, bitmap 0x38:
//!                   the pages of the bits that are set follow each other
//!   4 triage        what a debugger looks at first, by virtual address: no physical memory
//! PAGEDUMP, 4 KiB   top page table at 0x10, machine 0x20, PAE 0x5C, runs 0x64 with fields of four bytes, kind 0xF88,
//!                   time 0xFC0
//! ```
//!
//! Sources: the structures `DUMP_HEADER64`, `DUMP_HEADER32` and `SUMMARY_DUMP` as published with Volatility 3 and in the
//! Windows debugger's headers (`wdbgexts.h`, `ntdbg`); kinds of dumps by their numbers there.

use super::twice::lay_out;
use super::{ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, gap, note};
use crate::FileOffset;
use crate::run::Run;
use crate::source::ByteSource;
use async_trait::async_trait;

const NAME: &str = "crash_dump";
const MAGIC_64: &[u8] = b"PAGEDU64";
const MAGIC_32: &[u8] = b"PAGEDUMP";
const PAGE: u64 = 4096;
/// Bytes of the bitmap that are read at once.
const STEP: u64 = 1 << 20;
/// Runs that the header has room for.
const HEADER_RUNS: u32 = 42;

/// Crash dumps of Windows.
#[derive(Clone, Copy, Debug)]
pub struct CrashDump;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

fn number(b: &[u8], at: usize, wide: bool) -> u64 {
    let narrow = || {
        b.get(at..at + 4)?
            .first_chunk()
            .map(|b| u32::from_le_bytes(*b))
    };
    let full = || {
        b.get(at..at + 8)?
            .first_chunk()
            .map(|b| u64::from_le_bytes(*b))
    };
    if wide {
        full().unwrap_or(0)
    } else {
        narrow().map_or(0, u64::from)
    }
}

/// Where a header of one of the two sizes has its fields.
struct Shape {
    wide: bool,
    /// Bytes of the header.
    len: u64,
    machine: usize,
    bug_check: usize,
    runs: usize,
    kind: usize,
    comment: usize,
    time: usize,
}

const WIDE: Shape = Shape {
    wide: true,
    len: 0x2000,
    machine: 0x30,
    bug_check: 0x38,
    runs: 0x88,
    kind: 0xf98,
    comment: 0xfb0,
    time: 0xfa8,
};

const NARROW: Shape = Shape {
    wide: false,
    len: 0x1000,
    machine: 0x20,
    bug_check: 0x28,
    runs: 0x64,
    kind: 0xf88,
    comment: 0xf9c,
    time: 0xfc0,
};

#[async_trait]
impl ImageFormat for CrashDump {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC_64) || head.starts_with(MAGIC_32)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let end = source.len();
        let magic = source.read_vec(FileOffset(0), 8).await?;
        let s = if magic.starts_with(MAGIC_64) {
            WIDE
        } else {
            NARROW
        };
        if end < s.len {
            return Err(bad(
                end,
                format!("a header of {} bytes", s.len),
                "the end of the file; the dump was cut short, copy or take it again",
            ));
        }
        let n = usize::try_from(s.len).unwrap_or(0);
        let head = source.read_vec(FileOffset(0), n).await?;
        let kind = number(&head, s.kind, false);
        let (mut notes, mut gaps) = (Vec::new(), Vec::new());
        let runs = match kind {
            1 => full(&head, &s, end)?,
            2 | 5 | 6 if s.wide => bitmap(source, &s).await?,
            4 => {
                return Err(FormatError::Unsupported {
                    what: "a small Windows dump (minidump of the kernel)",
                    hint: "it holds no physical memory; set the machine to a complete or active memory dump, or take memory \
                           with another tool",
                });
            }
            2 | 5 | 6 => {
                return Err(FormatError::Unsupported {
                    what: "a bitmap dump of a 32-bit Windows",
                    hint: "take a complete memory dump, or convert it to raw",
                });
            }
            other => {
                return Err(bad(
                    s.kind as u64,
                    "1 (complete), 2 or 6 (kernel) or 5 (active memory)",
                    format!("kind of dump {other}"),
                ));
            }
        };
        if matches!(kind, 2 | 6) {
            gap(&mut gaps, s.kind as u64..s.kind as u64 + 4, || {
                "this is a kernel dump: the memory of processes was not dumped".to_owned()
            });
        }
        if kind == 1 {
            agree(&head, &s, &runs, &mut gaps);
        }
        tell(&head, &s, kind, &mut notes);
        let last = runs.iter().map(|r| r.file + r.stored).max();
        for r in runs.iter().filter(|r| r.stored < r.len) {
            note(&mut notes, || {
                format!(
                    "the run at physical {:#x} is cut short: {} of {} bytes are there",
                    r.pa, r.stored, r.len
                )
            });
        }
        if let Some(last) = last.filter(|l| *l < end) {
            note(&mut notes, || {
                format!("{} bytes follow the memory, at {last:#x}", end - last)
            });
        }
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: NAME });
        }
        let arch = match number(&head, s.machine, false) {
            0x8664 => Some("x86_64"),
            0xaa64 => Some("aarch64"),
            0x14c => Some("x86"),
            _ => None,
        };
        Ok(layout(runs, arch, &head, &s, kind, notes, gaps))
    }
}

fn layout(
    runs: crate::run::RunMap,
    arch: Option<&str>,
    head: &[u8],
    s: &Shape,
    kind: u64,
    notes: Vec<String>,
    gaps: Vec<ContainerGap>,
) -> Opened {
    let dtb = number(head, 0x10, s.wide) & 0x000f_ffff_ffff_f000;
    let bits = if s.wide { 64 } else { 32 };
    let version = format!("{bits}-bit, kind {kind}");
    Layout {
        format: NAME.into(),
        version: Some(version),
        runs,
        arch: arch.map(str::to_owned),
        dtb_hints: Some(dtb).filter(|d| *d != 0).into_iter().collect(),
        notes,
        gaps,
        extents: None,
        page_files: Vec::new(),
        told: of_machine(head, s),
    }
    .into()
}

/// What the header says of the machine: the build, where it is one, and when the dump was made.
fn of_machine(head: &[u8], s: &Shape) -> Told {
    let build = number(head, 12, false);
    let mut out = Told {
        system: Some("windows".into()),
        kernel: (2000..100_000)
            .contains(&build)
            .then(|| format!("build {build}")),
        ..Told::default()
    };
    out.take_windows_time(number(head, s.time, true));
    out
}

/// What the header says of the machine, for people.
fn tell(head: &[u8], s: &Shape, kind: u64, notes: &mut Vec<String>) {
    let what = match kind {
        1 => "complete",
        5 => "active memory",
        _ => "kernel",
    };
    let code = number(head, s.bug_check, false);
    note(notes, || format!("{what} memory dump, bug check {code:#x}"));
    let comment = head.get(s.comment..s.comment + 128).unwrap_or_default();
    let text = comment.iter().take_while(|b| (0x20..0x7f).contains(*b));
    let text: String = text.map(|b| char::from(*b)).collect();
    // Fields that nobody set are full of the word PAGE.
    if !text.is_empty() && !text.starts_with("PAGEPAGE") {
        note(notes, || format!("comment: {text}"));
    }
}

/// Runs of a full dump, whose bytes follow each other.
fn full(head: &[u8], s: &Shape, end: u64) -> Result<Vec<Run>, FormatError> {
    let count = number(head, s.runs, false);
    if count == 0 || count > u64::from(HEADER_RUNS) {
        return Err(bad(
            s.runs as u64,
            format!("1 to {HEADER_RUNS} runs of memory"),
            count.to_string(),
        ));
    }
    let (first, each) = if s.wide {
        (s.runs + 16, 16)
    } else {
        (s.runs + 8, 8)
    };
    let mut at = s.len;
    let mut out = Vec::new();
    for i in 0..usize::try_from(count).unwrap_or(0) {
        let here = first + i * each;
        let base = number(head, here, s.wide);
        let pages = number(head, here + each / 2, s.wide);
        let bytes = pages.checked_mul(PAGE).zip(base.checked_mul(PAGE));
        let sound = bytes.filter(|(len, pa)| pa.checked_add(*len).is_some());
        let Some((len, pa)) = sound.filter(|(len, _)| at.checked_add(*len).is_some()) else {
            return Err(bad(
                here as u64,
                "a run inside the address space",
                format!("{pages:#x} pages from page {base:#x} on"),
            ));
        };
        out.push(Run {
            pa,
            len,
            file: at,
            stored: end.saturating_sub(at).min(len),
        });
        at += len;
    }
    Ok(out)
}

/// Says where the runs of a full dump have another number of pages than the header says they have: one run that is wrong moves all
/// behind it.
fn agree(head: &[u8], s: &Shape, runs: &[Run], gaps: &mut Vec<ContainerGap>) {
    let word = if s.wide { 8 } else { 4 };
    let at = s.runs + word;
    let said = number(head, at, s.wide);
    let pages: u64 = runs.iter().map(|r| r.len / PAGE).sum();
    if said != pages {
        gap(gaps, at as u64..(at + word) as u64, || {
            format!(
                "the header names {said} pages and its runs have {pages}: a run is wrong, and pages may have the content of others"
            )
        });
    }
}

/// Runs of a bitmap dump: pages whose bits are set follow each other.
async fn bitmap(source: &dyn ByteSource, s: &Shape) -> Result<Vec<Run>, FormatError> {
    let end = source.len();
    let head_len = 0x38u64;
    if end < s.len + head_len {
        return Err(bad(
            end,
            "the header of the bitmap",
            "the end of the file; the dump was cut short, copy or take it again",
        ));
    }
    let n = usize::try_from(head_len).unwrap_or(0);
    let head = source.read_vec(FileOffset(s.len), n).await?;
    let known = [&b"SDMPDUMP"[..], b"FDMPDUMP"];
    if !known.iter().any(|k| head.starts_with(k)) {
        return Err(bad(
            s.len,
            "SDMPDUMP or FDMPDUMP",
            format!("{:02x?}", head.get(..8).unwrap_or_default()),
        ));
    }
    let (data, pages, bits) = (
        number(&head, 0x20, true),
        number(&head, 0x28, true),
        number(&head, 0x30, true),
    );
    let first = s.len + head_len;
    let bytes = bits.div_ceil(8);
    if first.checked_add(bytes).is_none_or(|e| e > data.min(end)) {
        return Err(bad(
            s.len + 0x30,
            format!("a bitmap that ends before the first page at {data:#x}"),
            format!("{bits} bits"),
        ));
    }
    let mut out: Vec<Run> = Vec::new();
    let (mut at, mut set) = (0u64, 0u64);
    let mut open: Option<(u64, u64)> = None;
    while at < bytes {
        let n = (bytes - at).min(STEP);
        let part = source
            .read_vec(FileOffset(first + at), usize::try_from(n).unwrap_or(0))
            .await?;
        for (i, byte) in part.iter().enumerate() {
            let base = (at + i as u64) * 8;
            if (*byte == 0 && open.is_none())
                || (*byte == 0xff && open.is_some() && base + 8 <= bits)
            {
                set += u64::from(byte.count_ones());
                continue;
            }
            for bit in 0..8 {
                let page = base + bit;
                let is_set = byte >> bit & 1 != 0 && page < bits;
                match (is_set, open) {
                    (true, None) => open = Some((page, set)),
                    (false, Some((from, rank))) => {
                        close(&mut out, from..page, rank, data, end)?;
                        open = None;
                    }
                    _ => {}
                }
                set += u64::from(is_set);
            }
        }
        at += n;
    }
    if let Some((from, rank)) = open {
        close(&mut out, from..bits, rank, data, end)?;
    }
    if set != pages {
        return Err(bad(
            s.len + 0x28,
            format!("{set} pages, as many as the bitmap has"),
            pages.to_string(),
        ));
    }
    Ok(out)
}

/// Adds the run of pages of which the first is the one of this rank in the file.
fn close(
    out: &mut Vec<Run>,
    pages: std::ops::Range<u64>,
    rank: u64,
    data: u64,
    end: u64,
) -> Result<(), FormatError> {
    if out.len() >= MAX_RUNS {
        return Err(bad(0x2038, format!("at most {MAX_RUNS} runs"), "more"));
    }
    let len = (pages.end - pages.start) * PAGE;
    let file = rank.checked_mul(PAGE).and_then(|r| data.checked_add(r));
    let file =
        file.ok_or_else(|| bad(0x2020, "a first page inside the file", format!("{data:#x}")))?;
    out.push(Run {
        pa: pages.start * PAGE,
        len,
        file,
        stored: end.saturating_sub(file).min(len),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::open;
    use crate::source::RamSource;

    /// A header of a 64-bit dump of this kind, filled as Windows fills it.
    fn header(kind: u32) -> Vec<u8> {
        let mut h = b"PAGE".repeat(0x800);
        h[..8].copy_from_slice(MAGIC_64);
        h[0x10..0x18].copy_from_slice(&0x1ad_000u64.to_le_bytes());
        h[0x30..0x34].copy_from_slice(&0x8664u32.to_le_bytes());
        h[0xf98..0xf9c].copy_from_slice(&kind.to_le_bytes());
        h
    }

    fn put(h: &mut [u8], at: usize, v: u64) {
        h[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }

    async fn of(data: Vec<u8>) -> Result<Layout, FormatError> {
        open(&RamSource::new("x", data)).await.map(|o| o.layout)
    }

    fn runs(l: &Layout) -> Vec<(u64, u64, u64)> {
        let all = l.runs.runs().iter();
        all.map(|r| (r.pa, r.len, r.file)).collect()
    }

    #[tokio::test]
    async fn runs_of_a_full_dump_follow_each_other() {
        let mut h = header(1);
        h[0x88..0x8c].copy_from_slice(&2u32.to_le_bytes());
        for (at, v) in [(0x90, 3), (0x98, 1), (0xa0, 2), (0xa8, 0x100), (0xb0, 1)] {
            put(&mut h, at, v);
        }
        h.resize(0x2000 + 3 * 4096, 7);
        let l = of(h.clone()).await.expect("sound");
        assert_eq!(
            runs(&l),
            [(0x1000, 0x2000, 0x2000), (0x10_0000, 0x1000, 0x4000)]
        );
        assert_eq!(
            (l.dtb_hints.as_slice(), l.arch.as_deref()),
            (&[0x1ad_000][..], Some("x86_64"))
        );
        // Cut short inside: the part that is there.
        h.truncate(0x2000 + 4096 + 100);
        let l = of(h.clone()).await.expect("sound");
        assert!(
            l.notes
                .iter()
                .any(|n| n.contains("cut short: 4196 of 8192")),
            "{:?}",
            l.notes
        );
        h[0x88..0x8c].copy_from_slice(&0x4547_4150u32.to_le_bytes());
        let e = of(h).await.expect_err("no number").to_string();
        assert!(e.contains("0x88") && e.contains("1 to 42"), "{e}");
    }

    #[tokio::test]
    async fn pages_of_a_bitmap_dump_are_those_of_its_bits() {
        let mut h = header(5);
        h.extend(b"SDMPDUMP");
        h.resize(0x2038, 0);
        put(&mut h, 0x2020, 0x3000);
        put(&mut h, 0x2028, 13);
        put(&mut h, 0x2030, 24);
        // Pages 1, 2, 4, and 7 to 16.
        h.extend([0b1001_0110, 0xff, 0b0000_0001]);
        h.resize(0x3000 + 13 * 4096, 0);
        let l = of(h.clone()).await.expect("sound");
        let want = [
            (0x1000, 0x2000, 0x3000),
            (0x4000, 0x1000, 0x5000),
            (0x7000, 0xa000, 0x6000),
        ];
        assert_eq!(runs(&l), want);
        assert_eq!(l.gaps, []);
        put(&mut h, 0x2028, 12);
        let e = of(h.clone()).await.expect_err("another number").to_string();
        assert!(e.contains("13 pages"), "{e}");
        put(&mut h, 0x2030, u64::MAX);
        assert!(of(h).await.is_err());
    }

    #[tokio::test]
    async fn what_holds_less_says_so() {
        let e = of(header(4)).await.expect_err("triage").to_string();
        assert!(e.contains("no physical memory"), "{e}");
        let e = of(header(9)).await.expect_err("no kind").to_string();
        assert!(e.contains("0xf98") && e.contains("kind of dump 9"), "{e}");
        let mut h = header(6);
        h.extend(b"FDMPDUMP");
        h.resize(0x2038, 0);
        put(&mut h, 0x2020, 0x3000);
        put(&mut h, 0x2028, 1);
        put(&mut h, 0x2030, 8);
        h.push(4);
        h.resize(0x4000, 0);
        let l = of(h).await.expect("sound");
        assert!(l.gaps[0].reason.contains("kernel dump"), "{:?}", l.gaps);
        let mut cut = header(1);
        cut.truncate(5000);
        assert!(of(cut).await.is_err());
    }
}
