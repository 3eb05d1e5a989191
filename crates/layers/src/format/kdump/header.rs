//! The headers of a kdump-compressed dump.

use super::{MAGIC, MAX_NOTES};
use crate::format::flat::Dump;
use crate::format::{FormatError, Told, notes as elf_notes, told};

/// Bytes of a bitmap that are read for who only asks how much memory there is: that of 256 GiB.
const MAX_ASKED: u64 = 8 << 20;

/// What the headers say.
#[derive(Debug)]
pub(in crate::format) struct Header {
    pub(in crate::format) version: u32,
    pub(in crate::format) block: u64,
    pub(in crate::format) arch: Option<&'static str>,
    pub(in crate::format) status: u32,
    pub(in crate::format) dump_level: u32,
    /// Where the second bitmap begins, and its bytes.
    pub(in crate::format) dumped: (u64, u64),
    /// Where the first begins.
    pub(in crate::format) memory: u64,
    pub(in crate::format) descriptors: u64,
    /// Pages that this file has descriptors of, by number.
    pub(in crate::format) pages: std::ops::Range<u64>,
    /// Pages of the whole dump.
    pub(in crate::format) total: u64,
    /// Names of the system and the time: the same in all files of a dump.
    pub(in crate::format) machine: Vec<u8>,
    /// When it was written, in seconds since 1970.
    pub(in crate::format) written: i64,
    /// Whether it is one file of several.
    pub(in crate::format) part: bool,
    pub(in crate::format) vmcoreinfo: (u64, u64),
    pub(in crate::format) notes: (u64, u64),
}

pub(super) fn bad(
    offset: u64,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> FormatError {
    FormatError::Header {
        format: "kdump",
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

pub(super) fn cut(what: &str, offset: u64) -> FormatError {
    bad(
        offset,
        format!("{what} inside the file"),
        "the end of the file; the dump was cut short, copy or take it again",
    )
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Names of processors in `utsname.machine`.
fn arch(machine: &[u8]) -> Option<&'static str> {
    let end = machine
        .iter()
        .position(|b| *b == 0)
        .unwrap_or(machine.len());
    match &machine[..end] {
        b"x86_64" => Some("x86_64"),
        b"aarch64" => Some("aarch64"),
        b"i386" | b"i486" | b"i586" | b"i686" => Some("x86"),
        b"ppc64le" => Some("ppc64"),
        b"riscv64" => Some("riscv"),
        b"loongarch64" => Some("loongarch"),
        _ => None,
    }
}

/// Sizes of a page that are possible.
fn is_block(n: u32) -> bool {
    n.is_power_of_two() && (4096..=64 << 10).contains(&n)
}

/// Offset of `status`: behind names of 6 * 65 bytes at 12 and a time of two words with their alignment.
const STATUS_64: usize = 424;
const STATUS_32: usize = 412;
/// Offset of the time's first word, seconds.
const WRITTEN_64: usize = 408;
const WRITTEN_32: usize = 404;

impl Header {
    pub(in crate::format) async fn read(dump: &Dump<'_>) -> Result<Self, FormatError> {
        let head = dump
            .read(0, 4096)
            .await?
            .ok_or_else(|| cut("the header", 0))?;
        if !head.starts_with(MAGIC) {
            return Err(bad(0, "KDUMP", format!("{:02x?}", &head[..8])));
        }
        let version = u32_at(&head, 8);
        let block_at = |status: usize| u32_at(&head, status + 4);
        let status = [STATUS_64, STATUS_32]
            .into_iter()
            .find(|s| is_block(block_at(*s)));
        let Some(s) = status else {
            let big = [STATUS_64, STATUS_32]
                .iter()
                .any(|s| is_block(block_at(*s).swap_bytes()));
            let found = if big {
                "a dump of a big-endian machine, which can't be read yet; convert it to ELF: makedumpfile -E".to_owned()
            } else {
                block_at(STATUS_64).to_string()
            };
            return Err(bad(
                STATUS_64 as u64 + 4,
                "a size of blocks of 4096 to 65536",
                found,
            ));
        };
        let wide = s == STATUS_64;
        let block = u64::from(block_at(s));
        let blocks = |at: usize| u64::from(u32_at(&head, s + at)) * block;
        let (sub_len, bitmaps) = (blocks(8), blocks(12));
        let sub_at = block;
        let want = usize::try_from(sub_len.min(block)).unwrap_or(0);
        let sub = dump
            .read(sub_at, want)
            .await?
            .ok_or_else(|| cut("the sub header", sub_at))?;
        let word = |at: usize| {
            if wide {
                u64_at(&sub, at)
            } else {
                u64::from(u32_at(&sub, at))
            }
        };
        let since = |v: u32, field: (u64, u64)| if version >= v { field } else { (0, 0) };
        let at = |wide_at: usize, narrow: usize| if wide { wide_at } else { narrow };
        let vmcoreinfo = (u64_at(&sub, at(32, 20)), word(at(40, 28)));
        let notes = (u64_at(&sub, at(48, 32)), word(at(56, 40)));
        let max_mapnr = match version {
            6.. => u64_at(&sub, at(96, 72)),
            _ => u64::from(u32_at(&head, s + 16)),
        };
        let part = version >= 2 && u32_at(&sub, at(12, 8)) != 0;
        let (first, last) = match version {
            6.. => (u64_at(&sub, at(80, 56)), u64_at(&sub, at(88, 64))),
            _ => (word(at(16, 12)), word(at(24, 16))),
        };
        let bitmap = bitmaps / 2;
        let memory = sub_at.saturating_add(sub_len);
        let count = max_mapnr.min(bitmap.saturating_mul(8));
        let header = Self {
            version,
            block,
            arch: arch(&head[12 + 4 * 65..12 + 5 * 65]),
            status: u32_at(&head, s),
            dump_level: if version >= 1 {
                u32_at(&sub, at(8, 4))
            } else {
                0
            },
            dumped: (memory.saturating_add(bitmap), bitmap),
            memory,
            descriptors: memory.saturating_add(bitmaps),
            pages: if part {
                first.min(count)..last.min(count)
            } else {
                0..count
            },
            total: count,
            written: if wide {
                u64_at(&head, WRITTEN_64).cast_signed()
            } else {
                i64::from(u32_at(&head, WRITTEN_32))
            },
            machine: head.get(12..s).unwrap_or_default().to_vec(),
            part,
            vmcoreinfo: since(3, vmcoreinfo),
            notes: since(4, notes),
        };
        // makedumpfile has files without pages, where there are more files than it has use for.
        let empty = part && header.pages.is_empty();
        if header.descriptors >= dump.len() && !empty {
            return Err(cut("the bitmaps", memory));
        }
        if count == 0 {
            return Err(FormatError::NoMemory { format: "kdump" });
        }
        Ok(header)
    }

    /// Bytes of dumped pages by the bitmap; `None` where it is larger than who only asks wants to read.
    pub(in crate::format) async fn dumped_bytes(
        &self,
        dump: &Dump<'_>,
    ) -> Result<Option<u64>, FormatError> {
        let (at, len) = self.dumped;
        if self.part || len > MAX_ASKED {
            return Ok(None);
        }
        let bits = dump.read_some(at, len).await?;
        let pages: u64 = bits.iter().map(|b| u64::from(b.count_ones())).sum();
        Ok(Some(pages.saturating_mul(self.block)))
    }

    /// The kernel's VMCOREINFO.
    pub(in crate::format) async fn info(&self, dump: &Dump<'_>) -> Option<Vec<u8>> {
        let (at, len) = self.vmcoreinfo;
        let found = dump.read_some(at, len.min(MAX_NOTES)).await.ok()?;
        Some(found).filter(|f| !f.is_empty())
    }

    /// What the headers and VMCOREINFO say of the machine. The time is that of the header; that of the crash comes first.
    pub(in crate::format) async fn told(&self, dump: &Dump<'_>) -> Told {
        let name = |i: usize| {
            let b = self.machine.get(65 * i..65 * (i + 1)).unwrap_or_default();
            let text = b.iter().take_while(|b| (0x21..0x7f).contains(*b));
            let text: String = text.map(|b| char::from(*b)).collect();
            (!text.is_empty()).then_some(text)
        };
        let linux = name(0).is_some_and(|n| n == "Linux");
        let of = |n: Option<String>| n.filter(|_| linux);
        let mut out = Told {
            system: linux.then(|| "linux".to_owned()),
            kernel: of(name(2)),
            host: of(name(1)).filter(|n| n != "(none)"),
            acquired: told::seconds(self.written),
            vmcoreinfo: None,
        };
        if let Some(info) = self.info(dump).await {
            out.take_vmcoreinfo(&info);
        }
        out
    }

    /// What the headers say, for people.
    pub(in crate::format) fn notes(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.dump_level > 1 {
            out.push(format!(
                "dump level {}: kinds of pages were left out",
                self.dump_level
            ));
        }
        if self.part {
            out.push("one file of a dump that was split".to_owned());
        }
        out
    }

    /// Page tables that the dump's notes lead to.
    pub(in crate::format) async fn page_tables(
        &self,
        dump: &Dump<'_>,
    ) -> Result<Vec<u64>, FormatError> {
        let mut out = Vec::new();
        let arch = self.arch;
        let (at, len) = self.notes;
        if len > 0 {
            let b = dump.read_some(at, len.min(MAX_NOTES)).await?;
            elf_notes::page_tables(&b, arch, &mut out);
        }
        let (at, len) = self.vmcoreinfo;
        if len > 0 {
            let b = dump.read_some(at, len.min(MAX_NOTES)).await?;
            let found = elf_notes::of_vmcoreinfo(&b, arch);
            out.extend(found.filter(|t| !out.contains(t)));
        }
        Ok(out)
    }
}
