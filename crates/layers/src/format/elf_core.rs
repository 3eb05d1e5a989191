//! ELF core dumps of whole machines: QEMU's `dump-guest-memory`, kdump's vmcore, `/proc/kcore`,
//! VirtualBox's `dumpvmcore`; 32 and 64 bits, both byte orders, any processor.
//!
//! ```text
//! ELF header (ET_CORE) -> program headers: PT_NOTE (CPU state), PT_LOAD (p_paddr, p_offset, p_filesz, p_memsz)
//! notes: name "CORE" NT_PRSTATUS; name "QEMU" CPU state with CR3; "VMCOREINFO" (notes.rs)
//! ```
//!
//! `p_memsz` above `p_filesz` is memory that the file lacks. A segment whose physical address is all ones (`/proc/kcore`'s
//! vmalloc area) has none; older kernels give 0 for all, and then what is mapped directly tells.
//!
//! Source: System V ABI, generic and AMD64 parts; Linux `fs/proc/kcore.c`,
//! `Documentation/arch/x86/x86_64/mm.rst`.
//! `e_phnum` of 0xffff means the count stands in section header 0, `sh_info`.

use super::twice::{lay_out, unnamed as unnamed_parts};
use super::{
    ContainerGap, FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, gap, note,
    notes as elf_notes,
};
use crate::FileOffset;
use crate::run::Run;
use crate::source::{ByteSource, SourceError};
use async_trait::async_trait;

const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Notes are a few KiB a processor; more, in all segments, is not looked at.
const MAX_NOTES: u64 = 4 << 20;
/// Where the direct map may begin on x86-64: a multiple of the range of one entry of the third level.
const DIRECT_MAP_ALIGNMENT: u64 = 1 << 30;

/// ELF core dumps.
#[derive(Clone, Copy, Debug)]
pub struct ElfCore;

/// One program header.
#[derive(Clone, Copy)]
struct Phdr {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// Class and byte order of an ELF file.
#[derive(Clone, Copy)]
struct Shape {
    wide: bool,
    big: bool,
}

impl Shape {
    fn of(head: &[u8]) -> Option<Self> {
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        let wide = match head.get(4)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        let big = match head.get(5)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        Some(Self { wide, big })
    }

    /// A number of `n` bytes.
    fn number(self, b: &[u8], at: usize, n: usize) -> Option<u64> {
        let bytes = b.get(at..at.checked_add(n)?)?;
        let add = |sum: u64, b: &u8| sum << 8 | u64::from(*b);
        Some(if self.big {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        })
    }

    fn half(self, b: &[u8], at: usize) -> Option<u16> {
        u16::try_from(self.number(b, at, 2)?).ok()
    }

    fn word(self, b: &[u8], at: usize) -> Option<u32> {
        u32::try_from(self.number(b, at, 4)?).ok()
    }

    /// An address or offset: at one place in 32-bit files and at another in 64-bit ones.
    fn address(self, b: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            self.number(b, wide, 8)
        } else {
            self.number(b, narrow, 4)
        }
    }

    /// For people.
    fn name(self) -> &'static str {
        match (self.wide, self.big) {
            (true, false) => "64-bit",
            (false, false) => "32-bit",
            (true, true) => "64-bit big-endian",
            (false, true) => "32-bit big-endian",
        }
    }

    fn phdr_len(self) -> u64 {
        if self.wide { 56 } else { 32 }
    }

    fn phdr(self, b: &[u8]) -> Option<Phdr> {
        let paddr = self.address(b, 12, 24)?;
        // A 32-bit file writes -1 in 32 bits.
        let none = !self.wide && paddr == u64::from(u32::MAX);
        Some(Phdr {
            kind: self.word(b, 0)?,
            offset: self.address(b, 4, 8)?,
            vaddr: self.address(b, 8, 16)?,
            paddr: if none { u64::MAX } else { paddr },
            filesz: self.address(b, 16, 32)?,
            memsz: self.address(b, 20, 40)?,
        })
    }
}

/// Name of a processor by `e_machine`.
fn processor(machine: u16) -> Option<&'static str> {
    match machine {
        3 => Some("x86"),
        8 => Some("mips"),
        21 => Some("ppc64"),
        22 => Some("s390x"),
        40 => Some("arm"),
        62 => Some("x86_64"),
        183 => Some("aarch64"),
        243 => Some("riscv"),
        258 => Some("loongarch"),
        _ => None,
    }
}

fn core_shape(head: &[u8]) -> Option<Shape> {
    let shape = Shape::of(head)?;
    (shape.half(head, 16)? == ET_CORE).then_some(shape)
}

fn cut(what: &str, at: u64) -> FormatError {
    FormatError::Header {
        format: "elf_core",
        offset: at,
        expected: format!("{what} inside the file"),
        found: "the end of the file; the capture was cut short, take it again".into(),
    }
}

async fn program_headers(
    src: &dyn ByteSource,
    shape: Shape,
    head: &[u8],
) -> Result<Vec<Phdr>, FormatError> {
    let field = |v: Option<u64>| v.ok_or_else(|| cut("the ELF header", 0));
    let at = |narrow: usize, wide: usize| if shape.wide { wide } else { narrow };
    let phoff = field(shape.address(head, 28, 32))?;
    let entry = field(shape.half(head, at(42, 54)).map(u64::from))?;
    let mut count = field(shape.half(head, at(44, 56)).map(u64::from))?;
    if entry != shape.phdr_len() {
        return Err(FormatError::Header {
            format: "elf_core",
            offset: at(42, 54) as u64,
            expected: format!("program headers of {} bytes", shape.phdr_len()),
            found: entry.to_string(),
        });
    }
    if count == 0xffff {
        let shoff = field(shape.address(head, 32, 40))?;
        let sh = read(src, shoff, at(40, 64) as u64, "section header 0").await?;
        count = u64::from(shape.word(&sh, at(28, 44)).unwrap_or(0));
    }
    if count > MAX_RUNS as u64 {
        return Err(FormatError::Header {
            format: "elf_core",
            offset: at(44, 56) as u64,
            expected: format!("at most {MAX_RUNS} program headers"),
            found: count.to_string(),
        });
    }
    let table = read(src, phoff, count * entry, "the program headers").await?;
    let entry = usize::try_from(entry).unwrap_or(56);
    Ok(table
        .chunks_exact(entry)
        .filter_map(|b| shape.phdr(b))
        .collect())
}

async fn read(src: &dyn ByteSource, at: u64, len: u64, what: &str) -> Result<Vec<u8>, FormatError> {
    let n = usize::try_from(len).map_err(|_| cut(what, at))?;
    match at.checked_add(len) {
        Some(end) if end <= src.len() => Ok(src.read_vec(FileOffset(at), n).await?),
        _ => Err(cut(what, at)),
    }
}

/// Gives segments whose physical address is 0, all of them, those that their place in the direct map says: old
/// kernels' `/proc/kcore` has none. `false` where the addresses are those of a program.
fn from_direct_map(loads: &mut [Phdr], notes: &mut Vec<String>) -> bool {
    let zero = loads.iter().filter(|p| p.paddr == 0).count();
    if zero < 2 || zero < loads.len() {
        return true;
    }
    // The upper half of the address space is the kernel's.
    if loads.iter().all(|p| p.vaddr >> 63 == 0) {
        return false;
    }
    let direct = 0xffff_8000_0000_0000..0xffff_c900_0000_0000u64;
    let lowest = loads
        .iter()
        .map(|p| p.vaddr)
        .filter(|v| direct.contains(v))
        .min();
    let base = lowest.map(|v| v & !(DIRECT_MAP_ALIGNMENT - 1));
    for p in loads.iter_mut() {
        p.paddr = match base {
            Some(base) if direct.contains(&p.vaddr) && p.vaddr >= base => p.vaddr - base,
            _ => u64::MAX,
        };
    }
    if let Some(base) = base {
        note(notes, || {
            format!(
                "the headers give no physical addresses; taken from the direct map at {base:#x}"
            )
        });
    }
    true
}

/// Adds the run of a segment, or says why it has none.
fn run_of(
    p: &Phdr,
    file_len: u64,
    runs: &mut Vec<Run>,
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) {
    let stored = file_len.saturating_sub(p.offset).min(p.filesz);
    let Phdr { paddr, filesz, .. } = *p;
    if paddr == u64::MAX {
        if stored > 0 {
            gap(gaps, p.offset..p.offset + stored, || {
                format!(
                    "{stored} bytes at virtual {:#x} have no physical address and are not read",
                    p.vaddr
                )
            });
        }
        return;
    }
    if stored < filesz {
        note(notes, || {
            format!(
                "the range at physical {paddr:#x} is cut short: {stored} of {filesz} bytes are there"
            )
        });
    }
    if p.memsz > filesz {
        note(notes, || {
            format!(
                "of the range at physical {paddr:#x} the file has {filesz} of {} bytes",
                p.memsz
            )
        });
    }
    runs.push(Run {
        pa: paddr,
        len: filesz.max(p.memsz),
        file: p.offset,
        stored,
    });
}

/// Bytes between what the headers name that are padding.
const SLACK: u64 = 64 << 10;

/// Says which parts of the file no header names.
fn unnamed(file_len: u64, phdrs: &[Phdr], notes_end: u64, gaps: &mut Vec<ContainerGap>) {
    let strange = |p: &&Phdr| !matches!(p.kind, PT_LOAD | PT_NOTE) && p.filesz > 0;
    for p in phdrs.iter().filter(strange) {
        let end = p.offset.saturating_add(p.filesz).min(file_len);
        let what = format!("type {:#x}", p.kind);
        gap(gaps, p.offset.min(end)..end, || {
            format!("bytes of a program header of {what} are not read")
        });
    }
    let place = |p: &Phdr| (p.offset, p.offset.saturating_add(p.filesz));
    let named = phdrs.iter().map(place);
    unnamed_parts(notes_end..file_len, named, SLACK, "header", gaps);
}

/// The VMCOREINFO in the notes of a core, if there is one.
pub(super) async fn vmcoreinfo(source: &dyn ByteSource) -> Option<Vec<u8>> {
    let head = source.head(64).await.ok()?;
    let shape = core_shape(&head).filter(|s| !s.big)?;
    let phdrs = program_headers(source, shape, &head).await.ok()?;
    for p in phdrs.iter().filter(|p| p.kind == PT_NOTE) {
        let len = p.filesz.min(MAX_NOTES);
        let notes = read(source, p.offset, len, "the notes").await.ok()?;
        if let Some(found) = elf_notes::vmcoreinfo(&notes) {
            return Some(found);
        }
    }
    None
}

#[async_trait]
impl ImageFormat for ElfCore {
    fn name(&self) -> &'static str {
        "elf_core"
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        core_shape(head).is_some()
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let head = source.head(64).await?;
        let shape = core_shape(&head).ok_or_else(|| cut("the ELF header", 0))?;
        let arch = shape.half(&head, 18).and_then(processor);
        let (mut runs, mut notes, mut dtb_hints) = (Vec::new(), Vec::new(), Vec::new());
        let (mut gaps, mut told) = (Vec::new(), Told::default());
        let mut left = MAX_NOTES;
        let phdrs = program_headers(source, shape, &head).await?;
        let is_load = |p: &&Phdr| p.kind == PT_LOAD && p.filesz.max(p.memsz) > 0;
        let mut loads: Vec<Phdr> = phdrs.iter().filter(is_load).copied().collect();
        if !from_direct_map(&mut loads, &mut notes) {
            return Err(FormatError::Unsupported {
                what: "the core dump of one program",
                hint: "take a dump of the whole machine",
            });
        }
        for p in &loads {
            run_of(p, source.len(), &mut runs, &mut notes, &mut gaps);
        }
        for p in phdrs.iter().filter(|p| p.kind == PT_NOTE) {
            if shape.big || left == 0 {
                continue;
            }
            let len = p.filesz.min(left);
            left -= len;
            match read(source, p.offset, len, "the notes").await {
                Ok(b) => {
                    elf_notes::page_tables(&b, arch, &mut dtb_hints);
                    told.take_vmcoreinfo(&elf_notes::vmcoreinfo(&b).unwrap_or_default());
                }
                Err(FormatError::Source(e @ SourceError::Unavailable { .. })) => {
                    return Err(e.into());
                }
                Err(e) => note(&mut notes, || e.to_string()),
            }
        }
        let headers = shape.phdr_len() * phdrs.len() as u64 + SLACK;
        unnamed(source.len(), &phdrs, headers, &mut gaps);
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: "elf_core" });
        }
        Ok(Layout {
            format: "elf_core".into(),
            version: Some(shape.name().to_owned()),
            runs,
            arch: arch.map(str::to_owned),
            dtb_hints,
            notes,
            gaps,
            extents: None,
            page_files: Vec::new(),
            told,
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageOffset;
    use crate::source::RamSource;

    const EM_X86_64: u16 = 62;

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
            .expect("core")
            .layout;
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
            .expect("core")
            .layout;
        assert_eq!(l.runs.missing(), vec![0x1800..0x2000]);
        let e = super::super::open(&RamSource::new("x", core(&[(0, 0, 1); 40], 100))).await;
        assert!(
            e.expect_err("cut headers")
                .to_string()
                .contains("cut short")
        );
    }

    /// One segment: virtual address, physical address, bytes in the file, bytes in memory.
    type Load = (u64, u64, u64, u64);

    /// A core of any class and byte order, its segments behind the headers, each filled with its number.
    fn core_of(wide: bool, big: bool, machine: u16, loads: &[Load]) -> Vec<u8> {
        let put = |f: &mut Vec<u8>, v: u64, n: usize| {
            let b = v.to_be_bytes();
            let mut b = b[8 - n..].to_vec();
            if !big {
                b.reverse();
            }
            f.extend(b);
        };
        let w = if wide { 8 } else { 4 };
        let (eh, ph) = if wide { (64, 56) } else { (52, 32) };
        let mut f = b"\x7fELF".to_vec();
        f.extend([1 + u8::from(wide), 1 + u8::from(big), 1]);
        f.resize(16, 0);
        put(&mut f, 4, 2);
        put(&mut f, u64::from(machine), 2);
        put(&mut f, 1, 4);
        put(&mut f, 0, w);
        put(&mut f, eh, w);
        put(&mut f, 0, w);
        put(&mut f, 0, 4);
        for v in [eh, ph, loads.len() as u64, 0, 0, 0] {
            put(&mut f, v, 2);
        }
        let mut at = 0x1000;
        for (v, p, filesz, memsz) in loads {
            put(&mut f, 1, 4);
            if wide {
                put(&mut f, 7, 4);
            }
            for x in [at, *v, *p, *filesz, *memsz] {
                put(&mut f, if wide { x } else { x & 0xffff_ffff }, w);
            }
            if !wide {
                put(&mut f, 7, 4);
            }
            put(&mut f, 0x1000, w);
            at += filesz;
        }
        f.resize(0x1000, 0);
        for (i, l) in loads.iter().enumerate() {
            f.resize(f.len() + l.2 as usize, i as u8 + 1);
        }
        f
    }

    async fn opened(f: Vec<u8>) -> Layout {
        super::super::open(&RamSource::new("x", f))
            .await
            .expect("core")
            .layout
    }

    #[tokio::test]
    async fn every_class_and_byte_order_is_read() {
        for (wide, big, machine, name) in [
            (true, false, 243, Some("riscv")),
            (true, true, 22, Some("s390x")),
            (false, false, 3, Some("x86")),
            (false, true, 8, Some("mips")),
            (true, false, 9999, None),
        ] {
            let l = opened(core_of(wide, big, machine, &[(0, 0x1000, 0x2000, 0x2000)])).await;
            assert_eq!(l.arch.as_deref(), name);
            let at = l.runs.stored_at(crate::PhysAddr(0x2fff));
            assert_eq!(at, Some((FileOffset(0x2fff), 1)), "{name:?}");
            assert_eq!(l.gaps, []);
        }
    }

    #[tokio::test]
    async fn layouts_of_kcore() {
        const TEXT: u64 = 0xffff_ffff_8100_0000;
        const VMALLOC: u64 = 0xffff_c900_0000_0000;
        const DIRECT: u64 = 0xffff_8880_0000_0000;
        let ram = [
            (DIRECT + 0x1000, 0x1000, 0x3000, 0x3000),
            (DIRECT + 0x10_0000, 0x10_0000, 0x8000, 0x8000),
        ];
        // The kernel's text has its physical address inside RAM, and is there twice.
        let text = (TEXT, 0x10_2000, 0x2000, 0x2000);
        let l = opened(core_of(true, false, 62, &[text, ram[0], ram[1]])).await;
        assert_eq!(l.runs.image_len(), 0xb000);
        assert_eq!(l.gaps.len(), 1, "the copies differ here");
        // Memory that has no physical address is told of, whatever kernel wrote it.
        let vmalloc = (VMALLOC, u64::MAX, 0x1000, 0x1000);
        let l = opened(core_of(true, false, 62, &[vmalloc, ram[0], ram[1]])).await;
        assert_eq!((l.runs.image_len(), l.gaps.len()), (0xb000, 1));
        assert!(l.gaps[0].reason.contains("0xffffc90000000000"));
        // Kernels before 4.19 give every segment the physical address 0.
        let old: Vec<Load> = ram.iter().map(|r| (r.0, 0, r.2, r.3)).collect();
        let l = opened(core_of(true, false, 62, &old)).await;
        let at: Vec<_> = l.runs.runs().iter().map(|r| (r.pa, r.len)).collect();
        assert_eq!(at, [(0x1000, 0x3000), (0x10_0000, 0x8000)]);
        assert!(l.notes[0].contains("direct map"), "{:?}", l.notes);
        // One program's core looks like that too, but for its addresses.
        let program = [
            (0x40_0000, 0, 0x1000, 0x1000),
            (0x7f00_0000_0000, 0, 0x1000, 0x1000),
        ];
        let f = core_of(true, false, 62, &program);
        let e = super::super::open(&RamSource::new("x", f))
            .await
            .expect_err("refused");
        assert!(e.to_string().contains("one program"), "{e}");
    }

    #[tokio::test]
    async fn the_same_bytes_mapped_twice_are_read_once() {
        // dump-guest-memory -p: two virtual ranges of one physical range, one place in the file.
        let mut f = core_of(
            true,
            false,
            62,
            &[
                (0, 0x1000, 0x2000, 0x2000),
                (0x7f00_0000_0000, 0x1000, 0x2000, 0x2000),
            ],
        );
        f[64 + 56 + 8..64 + 56 + 16].copy_from_slice(&0x1000u64.to_le_bytes());
        f.truncate(0x3000);
        let l = opened(f).await;
        assert_eq!((l.runs.image_len(), l.gaps.len()), (0x2000, 0));
    }

    #[tokio::test]
    async fn memory_that_the_file_lacks_is_missing() {
        let loads = [(0, 0x1000, 0x1000, 0x4000), (0, 0x8_0000, 0, 0x2000)];
        let l = opened(core_of(true, false, 62, &loads)).await;
        assert_eq!(l.runs.image_len(), 0x6000);
        assert_eq!(l.runs.missing(), vec![0x1000..0x4000, 0x4000..0x6000]);
    }

    #[tokio::test]
    async fn bytes_that_no_header_names_are_a_gap() {
        let mut f = core_of(true, false, 62, &[(0, 0x1000, 0x1000, 0x1000)]);
        let end = f.len() as u64;
        f.resize(f.len() + 0x20_0000, 9);
        let l = opened(f).await;
        assert_eq!(l.gaps.len(), 1);
        assert_eq!(l.gaps[0].file, end.max(SLACK + 56)..end + 0x20_0000);
    }
}
