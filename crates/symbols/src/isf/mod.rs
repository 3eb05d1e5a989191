//! ISF: the symbol files of Volatility 3, JSON, usually compressed with xz.
//!
//! ```text
//! { "metadata":   ...,
//!   "base_types": { name: { size, signed, kind: int|char|bool|float|void, endian } },
//!   "user_types": { name: { size, kind: struct|union|class,
//!                           fields: { name: { offset, type, anonymous? } } } },
//!   "enums":      { name: { size, base, constants: { name: value } } },
//!   "symbols":    { name: { address, type?, constant_data? } } }
//!
//! type  { kind: base|struct|union|enum|class, name }
//!       { kind: pointer, subtype } | { kind: array, count, subtype } | { kind: function }
//!       { kind: bitfield, bit_position, bit_length, type }
//! ```
//!
//! Addresses are as the kernel was linked; address randomisation is added by
//! [`SymbolTable::shifted`](crate::SymbolTable::shifted). Anonymous types have made-up names
//! (`unnamed_` and digits) and so do the fields that have such a type and no name; both lose them
//! here. What kernel it is for, the symbol `linux_banner` says: its bytes, in base64.
//!
//! Source: Volatility 3, `volatility3/schemas/schema-6.2.0.json`.

mod read;
mod schema;
mod write;

pub use read::{banner, parse};
pub use write::{write, write_xz};

use std::io::Read;

/// Bytes of JSON at most, decompressed. Real files have 30 to 60 million.
pub const MAX_JSON: usize = 512 << 20;
/// Memory that decompression may take, in KiB: the largest dictionary of `xz -9` is 64 MiB.
const MAX_XZ_MEMORY: u32 = 160 << 10;

/// Why a file is no ISF, or can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsfError {
    /// Decompression failed.
    #[error("ISF: the xz data is damaged: {0}")]
    Xz(std::io::Error),
    /// Writing failed.
    #[error("ISF: writing failed: {0}")]
    Write(std::io::Error),
    /// There is more than is ever looked at.
    #[error("ISF: more than {MAX_JSON} bytes of JSON")]
    TooLarge,
    /// The JSON is damaged, or not of the schema.
    #[error("ISF: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON has something that makes no sense.
    #[error("ISF: {place}: expected {expected}, found {found}")]
    Malformed {
        /// What it is of, by name.
        place: String,
        /// What the schema has there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// The JSON of a file, decompressed if it is xz. The contents decide, not the name.
pub fn decompress(file: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, IsfError> {
    const XZ: &[u8] = b"\xfd7zXZ\0";
    if !file.starts_with(XZ) {
        if file.len() > MAX_JSON {
            return Err(IsfError::TooLarge);
        }
        return Ok(file.into());
    }
    let reader = lzma_rust2::XzReader::new_mem_limit(file, true, MAX_XZ_MEMORY);
    let mut out = Vec::new();
    reader
        .take(MAX_JSON as u64 + 1)
        .read_to_end(&mut out)
        .map_err(IsfError::Xz)?;
    if out.len() > MAX_JSON {
        return Err(IsfError::TooLarge);
    }
    Ok(out.into())
}
