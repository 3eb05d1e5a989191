//! PDB: the symbol files of Windows programs, of which kernels name theirs in their images.
//!
//! ```text
//! MSF          blocks of a file, and streams that lie in them
//! stream 1     GUID, age
//! stream 2     TPI: types, records that name each other by number, from 0x1000 on
//! stream 3     DBI: age, which streams have the symbols, the section headers, and the maps of an image that was rearranged
//! symbols      public ones: name, section, place in it
//! ```
//!
//! What is read is handed on as an ISF ([`crate::isf`]), so that everything that takes one takes a PDB: the store, a view, a table of
//! layouts. Kept are types with a size and a name, or inside of such, and public symbols.
//!
//! Sources: "The PDB File Format" of the LLVM project; `cvinfo.h` and `dbi.h` of microsoft-pdb, for numbers of records.

mod msf;
mod types;

use crate::isf::IsfError;
use msf::{Bytes, Msf};
use serde_json::{Map, Value, json};
use std::io::Write;

/// What a PDB begins with.
const MAGIC: &[u8] = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0";
/// Public symbols at most.
const MOST_SYMBOLS: usize = 1 << 20;
/// `S_PUB32`.
const PUBLIC: u16 = 0x110e;

/// Why a file is no PDB.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PdbError {
    /// It ends too early, or a place in it leads nowhere.
    #[error("PDB: {place}: expected {expected}")]
    Malformed {
        /// What it is of.
        place: String,
        /// What should be there.
        expected: &'static str,
    },
    /// It could not be written as an ISF.
    #[error(transparent)]
    Isf(#[from] IsfError),
}

fn malformed(place: impl Into<String>, expected: &'static str) -> PdbError {
    PdbError::Malformed {
        place: place.into(),
        expected,
    }
}

/// Whether a file is a PDB, by its first bytes.
pub fn is_pdb(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Of which image a PDB is: GUID (32 hexadecimal digits in upper case) and age. Reads only what tells.
pub fn key(file: &[u8]) -> Result<(String, u32), PdbError> {
    identity(&Msf::open(file)?)
}

fn identity(msf: &Msf<'_>) -> Result<(String, u32), PdbError> {
    let info = msf.stream(1)?;
    let info = Bytes(&info);
    let bad = || malformed("the stream of information", "version, time, age, GUID");
    let guid = info.0.get(12..28).ok_or_else(bad)?;
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid else {
        return Err(bad());
    };
    let (first, second, third) = (
        u32::from_le_bytes([*a, *b, *c, *d]),
        u16::from_le_bytes([*e, *f]),
        u16::from_le_bytes([*g, *h]),
    );
    let tail: String = rest.iter().map(|b| format!("{b:02X}")).collect();
    // The age that an image names is that of the DBI stream, where there is one.
    let dbi = msf.stream(3).ok();
    let age = dbi.as_deref().and_then(|d| Bytes(d).u32(8));
    let age = age.or_else(|| info.u32(8)).ok_or_else(bad)?;
    Ok((format!("{first:08X}{second:04X}{third:04X}{tail}"), age))
}

/// A PDB as an ISF. `name` is what the file is called where it is looked for: `ntkrnlmp.pdb`.
///
/// Fails with [`PdbError`] on what is no PDB. Records that make no sense are left out; what refers to them has no type.
pub fn to_isf(name: &str, file: &[u8]) -> Result<Value, PdbError> {
    let msf = Msf::open(file)?;
    let (guid, age) = identity(&msf)?;
    let types = types::read(&msf.stream(2)?)?;
    let symbols = symbols(&msf)?;
    Ok(json!({
        "metadata": {
            "format": "6.2.0",
            "producer": { "name": "ramsift", "version": env!("CARGO_PKG_VERSION") },
            "windows": { "pdb": { "GUID": guid, "age": age, "database": name, "machine_type": 34404 } },
        },
        "base_types": types.base,
        "user_types": types.user,
        "enums": types.enums,
        "symbols": symbols,
    }))
}

/// The same, as a file: JSON, compressed with xz.
pub fn to_isf_xz(name: &str, file: &[u8]) -> Result<Vec<u8>, PdbError> {
    let json = serde_json::to_vec(&to_isf(name, file)?).map_err(IsfError::from)?;
    let options = lzma_rust2::XzOptions::with_preset(6);
    let write = || {
        let mut out = lzma_rust2::XzWriter::new(Vec::new(), options)?;
        out.write_all(&json)?;
        out.finish()
    };
    write().map_err(|e| IsfError::Write(e).into())
}

/// What of the DBI stream leads to symbols.
struct Dbi {
    /// Number of the stream of symbols.
    records: u16,
    /// Of the streams of section headers, of those of the image before it was rearranged, and of the map from that.
    sections: Option<u16>,
    original: Option<u16>,
    moved: Option<u16>,
}

impl Dbi {
    fn read(raw: &[u8]) -> Option<Self> {
        let b = Bytes(raw);
        // Lengths of the parts behind the header of 64 bytes, in their order: modules, contributions, section map, sources,
        // type servers; then names, and the list of further streams.
        let len = |at: usize| b.u32(at).and_then(|n| usize::try_from(n).ok());
        let (parts, names, more) = ([24, 28, 32, 36, 40], len(52)?, len(48)?);
        let mut at = 64usize.checked_add(names)?;
        for p in parts {
            at = at.checked_add(len(p)?)?;
        }
        let list = raw.get(at..at.checked_add(more)?).unwrap_or_default();
        let stream = |i: usize| Bytes(list).u16(i * 2).filter(|n| *n != u16::MAX);
        Some(Self {
            records: b.u16(20)?,
            sections: stream(5),
            original: stream(10),
            moved: stream(4),
        })
    }
}

/// First address of each section in the image.
fn sections(msf: &Msf<'_>, stream: Option<u16>) -> Result<Vec<u32>, PdbError> {
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let raw = msf.stream(usize::from(stream))?;
    let rva = |h: &[u8]| Bytes(h).u32(12).unwrap_or(0);
    Ok(raw.chunks_exact(40).map(rva).collect())
}

/// Public symbols by name, with their place from the image's base.
fn symbols(msf: &Msf<'_>) -> Result<Map<String, Value>, PdbError> {
    let mut out = Map::new();
    // A file of types alone has no symbols.
    let Ok(dbi) = msf.stream(3) else {
        return Ok(out);
    };
    let Some(dbi) = Dbi::read(&dbi) else {
        return Ok(out);
    };
    let own = sections(msf, dbi.sections)?;
    let (before, map) = match (dbi.original, dbi.moved) {
        (Some(o), Some(m)) => (sections(msf, Some(o))?, Some(msf.stream(usize::from(m))?)),
        _ => (own, None),
    };
    let place = |section: u16, offset: u32| {
        let first = before.get(usize::from(section).checked_sub(1)?)?;
        let rva = first.checked_add(offset)?;
        match &map {
            None => Some(rva),
            Some(map) => moved(map, rva),
        }
    };
    let raw = msf.stream(usize::from(dbi.records))?;
    let mut at = 0;
    while let Some(len) = Bytes(&raw).u16(at) {
        let end = at + 2 + usize::from(len);
        let Some(record) = raw.get(at + 2..end) else {
            break;
        };
        at = end;
        let b = Bytes(record);
        if b.u16(0) != Some(PUBLIC) || out.len() >= MOST_SYMBOLS {
            continue;
        }
        // Flags, offset, section, name.
        let (Some(offset), Some(section), Some(name)) = (b.u32(6), b.u16(10), b.text(12)) else {
            continue;
        };
        if let Some(rva) = place(section, offset).filter(|_| !name.is_empty()) {
            out.insert(name, json!({ "address": rva }));
        }
    }
    Ok(out)
}

/// Where an address of the image before it was rearranged lies now: the map is pairs of addresses, from and to, by the first.
fn moved(map: &[u8], rva: u32) -> Option<u32> {
    let pairs = map.as_chunks::<8>().0;
    let from = |p: &[u8; 8]| Bytes(p).u32(0).unwrap_or(u32::MAX);
    let i = pairs.partition_point(|p| from(p) <= rva).checked_sub(1)?;
    let pair = pairs.get(i)?;
    let to = Bytes(pair).u32(4).filter(|to| *to != 0)?;
    to.checked_add(rva - from(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rearranged_images_are_followed() {
        let mut map = Vec::new();
        for (from, to) in [(0x1000u32, 0x9000u32), (0x1100, 0), (0x2000, 0x1000)] {
            map.extend(from.to_le_bytes());
            map.extend(to.to_le_bytes());
        }
        assert_eq!(moved(&map, 0x1010), Some(0x9010));
        // What was left out of the image.
        assert_eq!(moved(&map, 0x1180), None);
        assert_eq!(moved(&map, 0x2fff), Some(0x1fff));
        assert_eq!(moved(&map, 0xfff), None);
        assert_eq!(moved(&[], 1), None);
    }

    #[test]
    fn what_is_no_pdb_is_refused() {
        assert!(!is_pdb(
            b"Microsoft C/C++ program database 2.00\r\n\x1aJG\0\0"
        ));
        for n in [0, 10, 32, 56, 4096] {
            let mut file = MAGIC.to_vec();
            file.resize(n.max(MAGIC.len()), 0xff);
            assert!(key(&file).is_err(), "{n}");
            assert!(to_isf("x.pdb", &file).is_err(), "{n}");
        }
    }
}
