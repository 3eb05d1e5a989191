//! ELF core dumps of whole machines: QEMU's `dump-guest-memory`, kdump's vmcore, `/proc/kcore`,
//! VirtualBox's `dumpvmcore`.
//!
//! ```text
//! ELF header (ET_CORE) -> program headers: PT_NOTE (CPU state), PT_LOAD (p_paddr, p_offset, p_filesz)
//! notes: name "CORE" NT_PRSTATUS; name "QEMU" CPU state with CR3 at offset 0x1a8; "VMCOREINFO"
//! ```
//!
//! Source: System V ABI, generic and AMD64 parts; QEMU `target/i386/arch_dump.c`
//! (`QEMUX86CPUState`: version, size, 18 registers, 10 segments of 24 bytes, CR0-CR4).
//! `e_phnum` of 0xffff means the count stands in section header 0, `sh_info`.

use super::{FormatError, ImageFormat, Layout, MAX_RUNS, note};
use crate::FileOffset;
use crate::run::{Run, RunMap};
use crate::source::{ByteSource, SourceError};
use async_trait::async_trait;

const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PHDR_LEN: u64 = 56;
/// CR3 in `QEMUX86CPUState`: 8 + 18 * 8 + 10 * 24 + 3 * 8.
const QEMU_CR3: usize = 8 + 18 * 8 + 10 * 24 + 3 * 8;
/// Notes are a few KiB a processor; more, in all segments, is not looked at.
const MAX_NOTES: u64 = 4 << 20;

/// ELF core dumps.
#[derive(Clone, Copy, Debug)]
pub struct ElfCore;

struct Phdr {
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
}

fn u16_at(b: &[u8], o: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        b.get(o..o.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(b: &[u8], o: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        b.get(o..o.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(b: &[u8], o: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        b.get(o..o.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn machine(head: &[u8]) -> Option<&'static str> {
    // 64-bit, little-endian
    if !head.starts_with(b"\x7fELF\x02\x01") || u16_at(head, 16)? != ET_CORE {
        return None;
    }
    match u16_at(head, 18)? {
        EM_X86_64 => Some("x86_64"),
        EM_AARCH64 => Some("aarch64"),
        _ => None,
    }
}

fn cut(what: &str, at: u64) -> FormatError {
    FormatError::Header {
        format: "elf_core",
        offset: at,
        expected: format!("{what} inside the file"),
        found: "the end of the file; the capture was cut short, take it again".into(),
    }
}

async fn program_headers(src: &dyn ByteSource, head: &[u8]) -> Result<Vec<Phdr>, FormatError> {
    let field = |v: Option<u64>| v.ok_or_else(|| cut("the ELF header", 0));
    let phoff = field(u64_at(head, 32))?;
    let entry = field(u16_at(head, 54).map(u64::from))?;
    let mut count = field(u16_at(head, 56).map(u64::from))?;
    if entry != PHDR_LEN {
        return Err(FormatError::Header {
            format: "elf_core",
            offset: 54,
            expected: "program headers of 56 bytes".into(),
            found: entry.to_string(),
        });
    }
    if count == 0xffff {
        let shoff = field(u64_at(head, 40))?;
        let sh = read(src, shoff, 64, "section header 0").await?;
        count = u64::from(u32_at(&sh, 44).unwrap_or(0));
    }
    if count > MAX_RUNS as u64 {
        return Err(FormatError::Header {
            format: "elf_core",
            offset: 56,
            expected: format!("at most {MAX_RUNS} program headers"),
            found: count.to_string(),
        });
    }
    let table = read(src, phoff, count * PHDR_LEN, "the program headers").await?;
    let parse = |b: &[u8]| {
        Some(Phdr {
            kind: u32_at(b, 0)?,
            offset: u64_at(b, 8)?,
            paddr: u64_at(b, 24)?,
            filesz: u64_at(b, 32)?,
        })
    };
    Ok(table
        .chunks_exact(PHDR_LEN as usize)
        .filter_map(parse)
        .collect())
}

async fn read(src: &dyn ByteSource, at: u64, len: u64, what: &str) -> Result<Vec<u8>, FormatError> {
    let n = usize::try_from(len).map_err(|_| cut(what, at))?;
    match at.checked_add(len) {
        Some(end) if end <= src.len() => Ok(src.read_vec(FileOffset(at), n).await?),
        _ => Err(cut(what, at)),
    }
}

/// CR3 of each processor from QEMU's notes.
fn dtbs_of(notes: &[u8], out: &mut Vec<u64>) {
    let mut at = 0usize;
    while let (Some(name_len), Some(desc_len)) = (u32_at(notes, at), u32_at(notes, at + 4)) {
        let (name_len, desc_len) = (name_len as usize, desc_len as usize);
        let Some(name) = notes.get(at + 12..(at + 12).saturating_add(name_len)) else {
            break;
        };
        let desc_at = at + 12 + name_len.next_multiple_of(4);
        let Some(desc) = notes.get(desc_at..desc_at.saturating_add(desc_len)) else {
            break;
        };
        if name.starts_with(b"QEMU")
            && let Some(cr3) = u64_at(desc, QEMU_CR3)
        {
            let dtb = cr3 & 0x000f_ffff_ffff_f000;
            if dtb != 0 && !out.contains(&dtb) {
                out.push(dtb);
            }
        }
        at = desc_at + desc_len.next_multiple_of(4);
    }
}

#[async_trait]
impl ImageFormat for ElfCore {
    fn name(&self) -> &'static str {
        "elf_core"
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        machine(head).is_some()
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Layout, FormatError> {
        let head = source.head(64).await?;
        let arch = machine(&head).unwrap_or("x86_64");
        let (mut runs, mut notes, mut dtb_hints) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = MAX_NOTES;
        for p in program_headers(source, &head).await? {
            match p.kind {
                PT_LOAD if p.filesz > 0 => {
                    let stored = source.len().saturating_sub(p.offset).min(p.filesz);
                    if stored < p.filesz {
                        note(&mut notes, || {
                            let (pa, len) = (p.paddr, p.filesz);
                            format!(
                                "the range at physical {pa:#x} is cut short: {stored} of {len} bytes are there"
                            )
                        });
                    }
                    runs.push(Run {
                        pa: p.paddr,
                        len: p.filesz,
                        file: p.offset,
                        stored,
                    });
                }
                PT_NOTE if arch == "x86_64" && left > 0 => {
                    let len = p.filesz.min(left);
                    left -= len;
                    match read(source, p.offset, len, "the notes").await {
                        Ok(b) => dtbs_of(&b, &mut dtb_hints),
                        Err(FormatError::Source(e @ SourceError::Unavailable { .. })) => {
                            return Err(e.into());
                        }
                        Err(e) => note(&mut notes, || e.to_string()),
                    }
                }
                _ => {}
            }
        }
        let runs = RunMap::new(runs).map_err(|source| FormatError::Runs {
            format: "elf_core",
            source,
        })?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: "elf_core" });
        }
        Ok(Layout {
            format: "elf_core".into(),
            runs,
            arch: Some(arch.into()),
            dtb_hints,
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageOffset;
    use crate::source::RamSource;

    fn core(loads: &[(u64, u64, u64)], cut: usize) -> Vec<u8> {
        let mut f = b"\x7fELF\x02\x01\x01".to_vec();
        f.resize(16, 0);
        f.extend(ET_CORE.to_le_bytes());
        f.extend(EM_X86_64.to_le_bytes());
        f.extend(1u32.to_le_bytes());
        f.extend(0u64.to_le_bytes());
        f.extend(64u64.to_le_bytes());
        f.extend(0u64.to_le_bytes());
        f.extend(0u32.to_le_bytes());
        for v in [64u16, 56, loads.len() as u16, 64, 0, 0] {
            f.extend(v.to_le_bytes());
        }
        for (pa, off, len) in loads {
            f.extend(PT_LOAD.to_le_bytes());
            f.extend(0u32.to_le_bytes());
            for v in [*off, 0, *pa, *len, *len, 4096] {
                f.extend(v.to_le_bytes());
            }
        }
        f.resize(cut, 0xaa);
        f
    }

    #[tokio::test]
    async fn ranges_out_of_order_in_the_file_are_sorted_in_the_image() {
        let f = core(&[(0x10_0000, 0x1000, 0x1000), (0, 0x2000, 0x1000)], 0x3000);
        let l = super::super::open(&RamSource::new("x", f))
            .await
            .expect("core");
        assert_eq!(
            (l.format.as_str(), l.arch.as_deref()),
            ("elf_core", Some("x86_64"))
        );
        assert_eq!(l.runs.to_file(ImageOffset(0)), Some(FileOffset(0x2000)));
        assert_eq!(
            l.runs.to_file(ImageOffset(0x1000)),
            Some(FileOffset(0x1000))
        );
    }

    #[tokio::test]
    async fn a_cut_core_keeps_what_is_there() {
        let f = core(&[(0, 0x1000, 0x1000), (0x10_0000, 0x2000, 0x1000)], 0x2800);
        let l = super::super::open(&RamSource::new("x", f))
            .await
            .expect("core");
        assert_eq!(l.runs.missing(), vec![0x1800..0x2000]);
        let e = super::super::open(&RamSource::new("x", core(&[(0, 0, 1); 40], 100))).await;
        assert!(
            e.expect_err("cut headers")
                .to_string()
                .contains("cut short")
        );
    }

    #[test]
    fn cr3_of_a_qemu_note() {
        let mut n = Vec::new();
        let desc_len = 432u32;
        for v in [5u32, desc_len, 0] {
            n.extend(v.to_le_bytes());
        }
        n.extend(b"QEMU\0\0\0\0");
        let at = n.len();
        n.resize(at + desc_len as usize, 0);
        n[at + QEMU_CR3..at + QEMU_CR3 + 8].copy_from_slice(&0x0961_0000u64.to_le_bytes());
        let mut out = Vec::new();
        dtbs_of(&n, &mut out);
        assert_eq!(out, [0x0961_0000]);
    }
}
