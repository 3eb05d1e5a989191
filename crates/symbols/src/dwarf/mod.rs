//! DWARF: a symbol table from the debug information of a kernel or module.
//!
//! A kernel's debug information describes every type again in each of some 3,000 units. They are
//! read one after the other, and types that are the same - name, size, members, and what the
//! members are - are kept once, as the BTF of the same kernel has them.
//!
//! Symbols are those of `.symtab`, with the types that the global variables of the debug
//! information have. The banner is read where the symbol `linux_banner` says.
//!
//! Not read: type units (`.debug_types`), references from one unit into another (which only
//! `dwz` makes), split debug information (`.dwo`). A kernel's build makes none of them; what is
//! referred to so becomes `void`.
//!
//! Source: DWARF 5, chapters 5 and 7; ELF.

mod elf;
mod merge;
mod unit;

use crate::table::{NewSymbol, Provenance, Source, SymbolTable};
use merge::Merger;

/// Bytes of a section at most, decompressed.
pub(crate) const MAX_SECTION: u64 = 4 << 30;

/// Why a file gives no table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DwarfError {
    /// The file is no ELF, or damaged.
    #[error("DWARF: the ELF file is damaged: {0}")]
    Elf(#[from] object::Error),
    /// The debug information is damaged.
    #[error("DWARF: {place}: {source}")]
    Dwarf {
        /// What was read.
        place: String,
        /// What is wrong.
        source: gimli::Error,
    },
    /// There is no debug information.
    #[error("DWARF: the file has no debug information (.debug_info)")]
    Missing,
    /// The file is for a big-endian or 32-bit machine.
    #[error("DWARF: the file is not for a 64-bit little-endian machine")]
    Machine,
    /// A section is larger than is ever looked at.
    #[error("DWARF: section {name} has {size} bytes, more than {MAX_SECTION}")]
    TooLarge {
        /// Its name.
        name: String,
        /// Its size.
        size: u64,
    },
}

pub(crate) fn damaged(place: impl Into<String>) -> impl FnOnce(gimli::Error) -> DwarfError {
    let place = place.into();
    move |source| DwarfError::Dwarf { place, source }
}

/// Reads a vmlinux or module. `name` goes into the provenance.
///
/// Write the result with [`isf::write_xz`](crate::isf::write_xz). Fails with [`DwarfError`].
pub fn parse(name: &str, file: &[u8]) -> Result<SymbolTable, DwarfError> {
    let elf = elf::Elf::new(file)?;
    let dwarf = elf.dwarf()?;
    let mut merger = Merger::new();
    let mut units = dwarf.units();
    let mut any = false;
    while let Some(header) = units.next().map_err(damaged("unit header"))? {
        any = true;
        unit::read(&dwarf, header, &mut merger)?;
    }
    if !any {
        return Err(DwarfError::Missing);
    }
    let symbols: Vec<_> = elf
        .symbols()
        .map(|(name, address, kind)| NewSymbol {
            ty: merger.variable(name),
            name,
            address,
            kind,
        })
        .collect();
    let provenance = Provenance {
        symbols: Source::Dwarf(name.to_owned()),
        types: Source::Dwarf(name.to_owned()),
    };
    let banner = elf.banner();
    Ok(SymbolTable::new(symbols, merger.finish(), provenance).with_banner(banner))
}
