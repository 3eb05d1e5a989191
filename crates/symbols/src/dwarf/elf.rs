//! The ELF file around the debug information.

use super::{DwarfError, MAX_SECTION};
use gimli::{EndianSlice, LittleEndian, SectionId};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};
use std::borrow::Cow;
use std::collections::BTreeMap;

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of a banner at most.
const MAX_BANNER: usize = 4096;

pub(super) struct Elf<'a> {
    file: object::File<'a>,
    sections: BTreeMap<&'static str, Cow<'a, [u8]>>,
}

/// The sections that types need.
const SECTIONS: [SectionId; 9] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
    SectionId::DebugRngLists,
    SectionId::DebugRanges,
];

impl<'a> Elf<'a> {
    pub(super) fn new(data: &'a [u8]) -> Result<Self, DwarfError> {
        let file = object::File::parse(data)?;
        if !file.is_64() || !file.is_little_endian() {
            return Err(DwarfError::Machine);
        }
        let mut sections = BTreeMap::new();
        for id in SECTIONS {
            if let Some(s) = file.section_by_name(id.name()) {
                sections.insert(id.name(), contents(&file, &s)?);
            }
        }
        if !sections.contains_key(SectionId::DebugInfo.name()) {
            return Err(DwarfError::Missing);
        }
        Ok(Self { file, sections })
    }

    pub(super) fn dwarf(&self) -> Result<gimli::Dwarf<Slice<'_>>, DwarfError> {
        gimli::Dwarf::load(|id| {
            let data = self.sections.get(id.name()).map_or(&[][..], |s| s.as_ref());
            Ok(EndianSlice::new(data, LittleEndian))
        })
        .map_err(super::damaged("sections"))
    }

    /// Name, address and kind of each symbol.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (&str, u64, u8)> {
        self.file.symbols().filter_map(|s| {
            let wanted = !matches!(s.kind(), SymbolKind::File | SymbolKind::Section);
            let name = s.name().ok()?;
            let here = wanted && !s.is_undefined() && !name.is_empty();
            here.then(|| (name, s.address(), self.kind(&s)))
        })
    }

    /// The letter that `nm` gives a symbol.
    fn kind(&self, s: &object::Symbol<'a, '_>) -> u8 {
        let section = s
            .section_index()
            .and_then(|i| self.file.section_by_index(i).ok());
        let letter = match section.map(|s| s.kind()) {
            None => b'A',
            Some(SectionKind::Text) => b'T',
            Some(SectionKind::ReadOnlyData | SectionKind::ReadOnlyString) => b'R',
            Some(SectionKind::UninitializedData) => b'B',
            Some(_) => b'D',
        };
        if s.is_weak() {
            return b'W';
        }
        if s.is_global() {
            letter
        } else {
            letter.to_ascii_lowercase()
        }
    }

    /// The text at `linux_banner`, without its line end.
    pub(super) fn banner(&self) -> Option<String> {
        let s = self
            .file
            .symbols()
            .find(|s| s.name() == Ok("linux_banner"))?;
        let section = self.file.section_by_index(s.section_index()?).ok()?;
        let at = usize::try_from(s.address().checked_sub(section.address())?).ok()?;
        let text = section.data().ok()?.get(at..)?;
        let text = text.get(..text.len().min(MAX_BANNER))?;
        let end = text.iter().position(|b| *b == 0)?;
        let text = String::from_utf8_lossy(text.get(..end)?);
        Some(text.trim_end_matches('\n').to_owned())
    }
}

/// A section, decompressed, and with the relocations applied that a module still has.
fn contents<'a>(
    file: &object::File<'a>,
    section: &object::Section<'a, '_>,
) -> Result<Cow<'a, [u8]>, DwarfError> {
    let compressed = section.compressed_data()?;
    let size = compressed.uncompressed_size;
    if size > MAX_SECTION {
        return Err(DwarfError::TooLarge {
            name: section.name()?.to_owned(),
            size,
        });
    }
    let mut data = compressed.decompress()?;
    for (offset, r) in section.relocations() {
        let RelocationTarget::Symbol(index) = r.target() else {
            continue;
        };
        let symbol = file.symbol_by_index(index)?;
        let value = symbol.address().wrapping_add_signed(r.addend());
        let (Ok(at), width) = (usize::try_from(offset), usize::from(r.size() / 8)) else {
            continue;
        };
        if r.kind() != object::RelocationKind::Absolute || !matches!(width, 4 | 8) {
            continue;
        }
        if let Some(place) = data.to_mut().get_mut(at..at.saturating_add(width)) {
            place.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
    Ok(data)
}
