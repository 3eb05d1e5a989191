//! Where a Windows kernel's page table and image lie, without a pass over all of memory.
//!
//! ```text
//! container       the processors' CR3, or the table that a crash dump's header names
//! low stub        a page of the first MiB from which processors start: jump and length at 0, an address in the kernel
//!                 at 0x70, CR3 at 0xA0
//! low top table   a page of the first MiBs of which one entry of the upper half leads to the page itself
//! ```
//!
//! A table counts if it maps KUSER_SHARED_DATA at 0xFFFFF78000000000 and that page says what such a page says. The image is
//! looked for downwards from the stub's address, else among what the table maps in large pages; it counts if its debug
//! directory names a kernel's symbol file.
//!
//! Sources: the low stub as `PROCESSOR_START_BLOCK` in published analyses of the boot code; `_KUSER_SHARED_DATA` of the
//! public symbols; "PE Format" (Microsoft), debug directory and CodeView record.

use super::Space;
use super::space::wide;
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysRead, X86_64, X86_64_LA57};

const PAGE: u64 = 4096;
/// What every address space of the kernel maps here.
const SHARED_DATA: u64 = 0xffff_f780_0000_0000;
/// Pages below this are looked at for a low stub.
const STUB_END: u64 = 1 << 20;
/// Pages below this are looked at for a top table: the first one that the loader makes lies low.
const TOP_TABLE_END: u64 = 5 << 20;
/// Bits 47:12.
const NUMBER: u64 = 0x0000_ffff_ffff_f000;
/// Bytes of a kernel's image at most, and at least.
const IMAGE: std::ops::Range<u64> = 2 << 20..64 << 20;
/// What a kernel's symbol file is called.
const PDBS: [&str; 5] = [
    "ntkrnlmp.pdb",
    "ntoskrnl.pdb",
    "ntkrpamp.pdb",
    "ntkrnlpa.pdb",
    "ntkrnlup.pdb",
];

/// A kernel that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Physical address of its top table.
    pub(super) dtb: u64,
    /// Whether tables have five levels.
    pub(super) five_levels: bool,
    /// What led to the table.
    pub(super) place: &'static str,
    /// Where its image begins.
    pub(super) base: u64,
    /// Bytes of it.
    pub(super) size: u64,
    /// Its symbol file.
    pub(super) pdb: Pdb,
    /// Major and minor version, and build, as far as KUSER_SHARED_DATA tells.
    pub(super) version: (u32, u32, Option<u32>),
}

/// The record that names an image's symbol file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pdb {
    /// Its name.
    pub(super) name: String,
    /// GUID as 32 hexadecimal digits in upper case, without dashes.
    pub(super) guid: String,
    pub(super) age: u32,
    /// Virtual address of the record.
    pub(super) va: u64,
}

impl Pdb {
    /// What symbol stores know it by.
    pub(super) fn key(&self) -> String {
        format!("{} {}-{}", self.name, self.guid, self.age)
    }
}

/// A table that may be a kernel's.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    dtb: u64,
    place: &'static str,
    /// An address in the kernel's image.
    inside: Option<u64>,
}

/// The kernel that known places lead to, else one of these `tables`, which a pass over memory found. `roots` are page tables that the
/// container recorded.
pub(super) fn find(memory: &dyn PhysRead, roots: &[u64], tables: &[u64]) -> Option<Found> {
    let recorded = roots.iter().map(|dtb| Candidate {
        dtb: *dtb & NUMBER,
        place: "the container's processor state",
        inside: None,
    });
    let all: Vec<Candidate> = stub(memory).into_iter().chain(recorded).collect();
    if let Some(found) = all.iter().find_map(|c| kernel(memory, c)) {
        return Some(found);
    }
    let low = low_tables(memory).find_map(|c| kernel(memory, &c));
    low.or_else(|| {
        let found = tables.iter().filter(|pa| is_top_table(memory, **pa));
        found
            .map(|dtb| Candidate {
                dtb: *dtb,
                place: "a top table that maps itself",
                inside: None,
            })
            .find_map(|c| kernel(memory, &c))
    })
}

/// The page that processors start from.
fn stub(memory: &dyn PhysRead) -> Vec<Candidate> {
    let mut out = Vec::new();
    for pa in (PAGE..STUB_END).step_by(4096) {
        let mut raw = [0; 0xa8];
        if memory.read_phys(PhysAddr(pa), &mut raw).is_err() {
            continue;
        }
        let word = |at: usize| {
            let b = raw.get(at..at + 8).and_then(|b| b.first_chunk());
            b.map_or(0, |b| u64::from_le_bytes(*b))
        };
        let (target, dtb) = (word(0x70), word(0xa0));
        if word(0) & 0xffff_ffff_ffff_00ff == 0x0000_0001_0006_00e9
            && target >> 47 == 0x1_ffff
            && target & 3 == 0
            && dtb != 0
            && dtb >> 48 == 0
        {
            out.push(Candidate {
                dtb: dtb & NUMBER,
                place: "the low stub that processors start from",
                inside: Some(target),
            });
        }
    }
    out
}

/// Low pages of which one entry of the upper half leads to the page itself.
fn low_tables(memory: &dyn PhysRead) -> impl Iterator<Item = Candidate> {
    (PAGE..TOP_TABLE_END)
        .step_by(4096)
        .filter(|pa| is_top_table(memory, *pa))
        .map(|dtb| Candidate {
            dtb,
            place: "a low top table that maps itself",
            inside: None,
        })
}

fn is_top_table(memory: &dyn PhysRead, pa: u64) -> bool {
    let mut raw = [0; 4096];
    if memory.read_phys(PhysAddr(pa), &mut raw).is_err() {
        return false;
    }
    let upper = raw.as_chunks::<8>().0.iter().skip(256);
    let own = upper.map(|e| u64::from_le_bytes(*e));
    own.filter(|e| e & 1 != 0 && e & 0x80 == 0 && e & NUMBER == pa)
        .count()
        == 1
}

/// The kernel below a table, if it is one.
fn kernel(memory: &dyn PhysRead, c: &Candidate) -> Option<Found> {
    [X86_64, X86_64_LA57].into_iter().find_map(|shape| {
        let space = Space::new(memory, shape, c.dtb);
        let version = shared_data(&space)?;
        let near = c.inside.and_then(|va| below(&space, va));
        let (base, size, pdb) = near.or_else(|| mapped(&space))?;
        Some(Found {
            dtb: c.dtb,
            five_levels: shape.name == X86_64_LA57.name,
            place: c.place,
            base,
            size,
            pdb,
            version,
        })
    })
}

/// Version and build by KUSER_SHARED_DATA (NtSystemRoot at 0x30, NtBuildNumber at 0x260 from Windows 10 on, NtMajorVersion
/// at 0x26C, NtMinorVersion at 0x270); `None` if nothing like it is mapped there.
fn shared_data(space: &Space<'_>) -> Option<(u32, u32, Option<u32>)> {
    let mut raw = [0; 0x280];
    space.read(SHARED_DATA, &mut raw).ok()?;
    let root = wide(raw.get(0x30..0x30 + 520)?);
    let b = root.as_bytes();
    let is_path = b.len() >= 4 && b[0].is_ascii_alphabetic() && b[1..3] == *b":\\";
    let number = |at: usize| {
        let b = raw.get(at..at + 4).and_then(|b| b.first_chunk());
        b.map_or(0, |b| u32::from_le_bytes(*b))
    };
    let (major, minor) = (number(0x26c), number(0x270));
    let build = number(0x260) & 0xffff;
    (is_path && (5..=10).contains(&major) && minor < 10).then_some((
        major,
        minor,
        (build > 2000).then_some(build),
    ))
}

/// The image that holds an address: looked for downwards, first where the loader puts it.
fn below(space: &Space<'_>, inside: u64) -> Option<(u64, u64, Pdb)> {
    const LARGE: u64 = 2 << 20;
    let large = inside & !(LARGE - 1);
    let reach = IMAGE.end / 2;
    let first = (0..reach / LARGE).map(|i| large.wrapping_sub(i * LARGE));
    let page = inside & !(PAGE - 1);
    let then = (0..reach / PAGE).map(|i| page.wrapping_sub(i * PAGE));
    first.chain(then).find_map(|va| {
        let (size, pdb) = image(space, va)?;
        (inside - va < size).then_some((va, size, pdb))
    })
}

/// Entries of upper tables that are looked through for the image at most.
const TABLES: usize = 4096;

/// The image among what the table maps where Windows puts its kernel: from 0xFFFFF80000000000 on for 512 GiB, in 1 GiB steps
/// that are mapped.
fn mapped(space: &Space<'_>) -> Option<(u64, u64, Pdb)> {
    const START: u64 = 0xffff_f800_0000_0000;
    let mut left = TABLES;
    for gib in 0..512u64 {
        let va = START + (gib << 30);
        // One probe tells whether the whole step is empty.
        if !holds_tables(space, va) {
            continue;
        }
        for large in 0..512u64 {
            let at = va + (large << 21);
            if space.translate(at).is_err() {
                continue;
            }
            if left == 0 {
                return None;
            }
            left -= 1;
            if let Some((size, pdb)) = image(space, at) {
                return Some((at, size, pdb));
            }
        }
    }
    // Builds before Windows 10 put it on any page.
    let mut left = TABLES;
    for gib in (0..512u64).map(|g| START + (g << 30)) {
        if !holds_tables(space, gib) {
            continue;
        }
        for va in (0..1 << 18).map(|p| gib + p * PAGE) {
            if left > 0 && space.translate(va).is_ok() {
                left -= 1;
                if let Some((size, pdb)) = image(space, va) {
                    return Some((va, size, pdb));
                }
            }
        }
    }
    None
}

/// Whether anything is mapped in the GiB that begins at `va`.
fn holds_tables(space: &Space<'_>, va: u64) -> bool {
    use ramsift_layers::VirtAddr;
    use ramsift_layers::translate::{TranslateError, walk};
    match walk(space.memory(), space.shape(), space.dtb(), VirtAddr(va)) {
        Ok(_) => true,
        Err(TranslateError::NotPresent { level, .. }) => level <= 2,
        Err(_) => false,
    }
}

/// Bytes and symbol file of the kernel's image at an address, if one begins there.
pub(super) fn image(space: &Space<'_>, base: u64) -> Option<(u64, Pdb)> {
    let mut head = [0; 1024];
    space.read(base, &mut head[..64]).ok()?;
    if !head.starts_with(b"MZ") {
        return None;
    }
    space.read(base, &mut head).ok()?;
    let u32_at = |at: usize| {
        let b = head.get(at..at + 4)?.first_chunk()?;
        Some(u32::from_le_bytes(*b))
    };
    let pe = usize::try_from(u32_at(0x3c)?).ok()?;
    let is_pe = u32_at(pe)? == 0x4550 && u32_at(pe + 4)? & 0xffff == 0x8664;
    let optional = pe + 24;
    if !is_pe || u32_at(optional)? & 0xffff != 0x20b {
        return None;
    }
    let size = u64::from(u32_at(optional + 56)?);
    if !IMAGE.contains(&size) {
        return None;
    }
    // Directory 6 of the optional header, which begins at 112 there.
    let (debug, bytes) = (u32_at(optional + 112 + 48)?, u32_at(optional + 116 + 48)?);
    for i in 0..u64::from(bytes / 28).min(16) {
        let at = base + u64::from(debug) + i * 28;
        let kind = space.u32(at + 12).ok()?;
        if kind == 2
            && let Some(pdb) = code_view(space, base + u64::from(space.u32(at + 20).ok()?), &PDBS)
        {
            return Some((size, pdb));
        }
    }
    None
}

/// A CodeView record (`RSDS`, GUID, age, name) of an image whose symbol file has one of these names.
pub(super) fn code_view(space: &Space<'_>, va: u64, names: &[&str]) -> Option<Pdb> {
    let mut raw = [0; 24 + 32];
    space.read(va, &mut raw).ok()?;
    let g: &[u8; 16] = raw.strip_prefix(b"RSDS")?.first_chunk()?;
    let [a, b, c, d, e, f, h, i, rest @ ..] = *g;
    let (first, second, third) = (
        u32::from_le_bytes([a, b, c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([h, i]),
    );
    let tail: String = rest.iter().map(|b| format!("{b:02X}")).collect();
    let age = u32::from_le_bytes(*raw.get(20..24)?.first_chunk()?);
    let name = raw.get(24..)?;
    let name = name.get(..name.iter().position(|b| *b == 0)?)?;
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    names.contains(&name.as_str()).then(|| Pdb {
        name,
        guid: format!("{first:08X}{second:04X}{third:04X}{tail}"),
        age,
        va,
    })
}
