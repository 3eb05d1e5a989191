//! BTF in physical memory: the kernel's lies contiguous in its read-only data.

use super::{Btf, BtfError, HEADER, Header, Kind};
use crate::phys::exact;
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::PhysRead;

/// The first two bytes of a blob, `9F EB` in memory; with the version `9F EB 01`.
pub const MAGIC: u16 = 0xeb9f;

/// A struct that every kernel's BTF has.
pub(super) const EVERY_KERNEL: &str = "task_struct";
/// The kernel's BTF has some 4 million bytes of types; less than this is a module's.
pub(super) const KERNEL_TYPES: usize = 256 << 10;

/// Looks at the header at an address, which costs one small read. Blobs are aligned to 4 bytes.
///
/// `Ok` says that the header is sane, no more; most of what an image has of those is no BTF.
pub fn candidate(mem: &dyn PhysRead, pa: PhysAddr) -> Result<Header, BtfError> {
    let mut head = [0; HEADER];
    mem.read_phys(pa, &mut head)?;
    Header::parse(&head)
}

/// Reads and checks the whole blob at an address.
pub fn read_at(mem: &dyn PhysRead, pa: PhysAddr) -> Result<Btf, BtfError> {
    let header = candidate(mem, pa)?;
    // A decoy's first string is rarely empty: look there before reading megabytes.
    let mut first = [0];
    mem.read_phys(pa.saturating_add(header.strings as u64), &mut first)?;
    if first != [0] {
        return Err(BtfError::Header {
            at: header.strings,
            expected: "an empty first string",
            found: format!("{:#x}", first[0]),
        });
    }
    Btf::parse(&exact(mem, pa, header.total())?)
}

/// Reads the blob at an address if it is a kernel's: whole, sound, and with `task_struct` in it.
pub fn read_kernel_at(mem: &dyn PhysRead, pa: PhysAddr) -> Result<Btf, BtfError> {
    let not = |types| BtfError::NotAKernel {
        types,
        missing: EVERY_KERNEL,
    };
    if candidate(mem, pa)?.types_len < KERNEL_TYPES {
        return Err(not(0));
    }
    let btf = read_at(mem, pa)?;
    let is = btf
        .iter()
        .any(|t| t.kind == Kind::Struct && btf.string(t.name) == Some(EVERY_KERNEL));
    if is { Ok(btf) } else { Err(not(btf.len())) }
}
