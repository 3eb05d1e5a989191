//! Notes of a core dump that lead to the kernel: the processors' page tables and VMCOREINFO.
//!
//! ```text
//! name length, descriptor length, type (u32 each), name, descriptor; both padded to 4 bytes
//! "QEMU"        state of a processor: version, size, 18 registers, 10 segments of 24 bytes, CR0 to CR4
//! "VBCPU"       the same of VirtualBox: 18 registers, 6 segments of 24 bytes, CR0, CR2, CR3, CR4
//! "VMCOREINFO"  the kernel's own text: OSRELEASE=..., SYMBOL(swapper_pg_dir)=..., NUMBER(phys_base)=...
//! ```
//!
//! Sources: System V ABI; QEMU `target/i386/arch_dump.c`; VirtualBox `include/VBox/vmm/dbgfcorefmt.h`; Linux `kernel/vmcore_info.c`,
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`: on x86-64 the kernel image maps `va - 0xffffffff80000000 + phys_base`, on
//! arm64 `va - kimage_voffset`.

/// CR3 in `QEMUX86CPUState`: 8 + 18 * 8 + 10 * 24 + 3 * 8.
const QEMU_CR3: usize = 8 + 18 * 8 + 10 * 24 + 3 * 8;
/// CR3 in `DBGFCORECPU`: behind 18 registers, six segments of 24 bytes, CR0 and CR2.
const VBOX_CR3: usize = 18 * 8 + 6 * 24 + 2 * 8;
/// Where x86-64 links its kernel.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bytes of VMCOREINFO that are looked at; it is a page.
const MAX_INFO: usize = 64 << 10;

fn word(b: &[u8], at: usize) -> Option<usize> {
    let bytes = b.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// The VMCOREINFO among the notes of a little-endian dump.
pub(super) fn vmcoreinfo(notes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0usize;
    while let (Some(name_len), Some(desc_len)) = (word(notes, at), word(notes, at + 4)) {
        let name = notes.get(at + 12..(at + 12).saturating_add(name_len))?;
        let desc_at = at + 12 + name_len.next_multiple_of(4);
        let desc = notes.get(desc_at..desc_at.saturating_add(desc_len))?;
        if name.starts_with(b"VMCOREINFO") && desc.len() <= MAX_INFO {
            return Some(desc.to_vec());
        }
        at = desc_at + desc_len.next_multiple_of(4);
    }
    None
}

/// Adds the page tables that the notes of a little-endian dump name.
pub(super) fn page_tables(notes: &[u8], arch: Option<&str>, out: &mut Vec<u64>) {
    let mut at = 0usize;
    while let (Some(name_len), Some(desc_len)) = (word(notes, at), word(notes, at + 4)) {
        let Some(name) = notes.get(at + 12..(at + 12).saturating_add(name_len)) else {
            break;
        };
        let desc_at = at + 12 + name_len.next_multiple_of(4);
        let Some(desc) = notes.get(desc_at..desc_at.saturating_add(desc_len)) else {
            break;
        };
        if name.starts_with(b"VMCOREINFO") {
            out.extend(of_vmcoreinfo(desc, arch));
            at = desc_at + desc_len.next_multiple_of(4);
            continue;
        }
        let cr3 = match name {
            n if n.starts_with(b"QEMU") => Some(QEMU_CR3),
            n if n.starts_with(b"VBCPU") => Some(VBOX_CR3),
            _ => None,
        };
        if arch == Some("x86_64")
            && let Some(cr3) = cr3.and_then(|at| desc.get(at..at + 8))
        {
            let cr3 = cr3.try_into().map_or(0, u64::from_le_bytes);
            out.push(cr3 & 0x000f_ffff_ffff_f000);
        }
        at = desc_at + desc_len.next_multiple_of(4);
    }
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|dtb| *dtb != 0 && seen.insert(*dtb));
}

/// What a line of a VMCOREINFO says.
pub(super) fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let find = |l: &'t str| l.strip_prefix(key)?.strip_prefix('=');
    text.lines().find_map(find)
}

/// The page table that a VMCOREINFO names, by its physical address.
pub(super) fn of_vmcoreinfo(text: &[u8], arch: Option<&str>) -> Option<u64> {
    let text = String::from_utf8_lossy(text.get(..MAX_INFO).unwrap_or(text));
    let value = |key: &str| value(&text, key);
    let table = u64::from_str_radix(value("SYMBOL(swapper_pg_dir)")?.trim(), 16).ok()?;
    let number = |key: &str| -> Option<u64> {
        let v = value(key)?;
        let v = v.trim();
        match v.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => v.parse::<i64>().ok().map(i64::cast_unsigned),
        }
    };
    match arch {
        Some("x86_64") => {
            let base = number("NUMBER(phys_base)")?;
            Some(table.wrapping_sub(START_KERNEL_MAP).wrapping_add(base))
        }
        Some("aarch64") => Some(table.wrapping_sub(number("NUMBER(kimage_voffset)")?)),
        _ => None,
    }
    .filter(|pa| pa % 4096 == 0 && *pa >> 52 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], desc: &[u8]) -> Vec<u8> {
        let mut n = Vec::new();
        for w in [name.len(), desc.len(), 0] {
            n.extend((w as u32).to_le_bytes());
        }
        for part in [name, desc] {
            n.extend(part);
            n.resize(n.len().next_multiple_of(4), 0);
        }
        n
    }

    #[test]
    fn page_tables_come_from_processors_and_from_vmcoreinfo() {
        let mut cpu = vec![0; 440];
        cpu[QEMU_CR3..QEMU_CR3 + 8].copy_from_slice(&0x1234_5003u64.to_le_bytes());
        let info = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff9ee10000\nNUMBER(phys_base)=-503316480\n";
        let notes = [
            note(b"CORE\0", &[1; 336]),
            note(b"QEMU\0", &cpu),
            note(b"QEMU\0", &cpu),
            note(b"VMCOREINFO\0", info),
        ]
        .concat();
        let mut out = Vec::new();
        page_tables(&notes, Some("x86_64"), &mut out);
        assert_eq!(out, [0x1234_5000, 0xe10000]);
        // VirtualBox: general registers, segments, then CR0, CR2, CR3.
        let mut cpu = vec![0x5a; 144 + 144];
        for v in [0x8005_0033u64, 0x7fff_0000, 0x1aa_a000, 0x6f0] {
            cpu.extend(v.to_le_bytes());
        }
        cpu.resize(2000, 0);
        let core = [0xc01a_c0deu32.to_le_bytes(), [5, 0, 1, 0], [24, 0, 0, 0]].concat();
        let notes = [note(b"VBCORE", &core), note(b"VBCPU", &cpu)].concat();
        out.clear();
        page_tables(&notes, Some("x86_64"), &mut out);
        assert_eq!(out, [0x1aa_a000]);
    }

    #[test]
    fn arm64_names_its_offset() {
        let info =
            b"SYMBOL(swapper_pg_dir)=ffffdd80b2c4a000\nNUMBER(kimage_voffset)=0xffffdd8070400000\n";
        assert_eq!(of_vmcoreinfo(info, Some("aarch64")), Some(0x4284_a000));
        assert_eq!(of_vmcoreinfo(info, Some("x86_64")), None);
        assert_eq!(
            of_vmcoreinfo(b"SYMBOL(swapper_pg_dir)=zz\n", Some("x86_64")),
            None
        );
    }

    #[test]
    fn cut_notes_end_quietly() {
        let n = note(b"QEMU\0", &[0xff; 440]);
        for len in 0..n.len() {
            page_tables(&n[..len], Some("x86_64"), &mut Vec::new());
        }
        page_tables(&[0xff; 64], Some("x86_64"), &mut Vec::new());
    }
}
