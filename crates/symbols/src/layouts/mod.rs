//! Layouts of Windows kernels: types and places of globals by the GUID of the kernel's symbol file, in one table that the
//! program carries.
//!
//! ```text
//! table   JSON, compressed with xz: variants of types, each once; builds, which name the variant of each type and where
//!         their globals lie, counted from the image's base
//! pack    makes such a table from files of facts, or from ISF files of kernels
//! ```
//!
//! A type is `[size, {field: [offset, kind, ...]}]`, where a kind is the name of a base type, or `"*"` with what it points
//! to, `"struct"` or `"union"` with a name or a type written out, `"[]"` with count and element, `"bits"` with
//! first bit, number of bits and base type. Structs are told from unions only where a field names them.
//!
//! Source of the facts: the public symbol files of the kernels, through the ISF collection of JPCERT/CC
//! (Windows-Symbol-Tables, BSD-3-Clause).

mod drivers;
mod pack;
mod read;

pub use drivers::{DriverTables, driver_tables};
pub use pack::{PackError, pack};

use crate::isf::IsfError;
use crate::table::SymbolTable;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

/// The table that the program carries.
const BUILT_IN: &[u8] = include_bytes!("../../data/windows-x64.json.xz");

/// Bytes and fields of a type.
type Variant = (u32, BTreeMap<String, Value>);

/// A table as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Table {
    /// Where its facts come from.
    about: String,
    /// Variants of types, by name.
    types: BTreeMap<String, Vec<Variant>>,
    /// Names of globals.
    globals: Vec<String>,
    builds: Vec<Build>,
}

/// A kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Build {
    /// GUID of its symbol file, 32 hexadecimal digits in upper case.
    guid: String,
    /// Age of its symbol file.
    age: u32,
    /// Number of the variant of each type, in the order of names; -1 of a type that it has not.
    types: Vec<i16>,
    /// Offset of each global from the image's base; 0 of one that it has not.
    globals: Vec<u32>,
}

/// What is wrong with a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// It can't be unpacked.
    #[error("the table of layouts can't be unpacked: {0}")]
    Compression(#[from] IsfError),
    /// It is no table.
    #[error("the table of layouts is damaged: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has a kind that is none.
    #[error("the table of layouts is damaged: {place}: expected {expected}")]
    Malformed {
        /// The type and the field.
        place: String,
        /// What should be there.
        expected: &'static str,
    },
}

/// Layouts of kernels.
#[derive(Debug)]
pub struct Layouts {
    table: Table,
}

impl Layouts {
    /// The table that the program carries. Unpacked once, which takes some hundredths of a second.
    pub fn built_in() -> Result<&'static Self, &'static LayoutError> {
        static TABLE: OnceLock<Result<Layouts, LayoutError>> = OnceLock::new();
        TABLE.get_or_init(|| Self::read(BUILT_IN)).as_ref()
    }

    /// Reads a table. Fails on one that is damaged.
    pub fn read(data: &[u8]) -> Result<Self, LayoutError> {
        let json = crate::isf::decompress(data)?;
        let table = serde_json::from_slice(&json)?;
        Ok(Self { table })
    }

    /// How many kernels it has.
    pub fn len(&self) -> usize {
        self.table.builds.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.table.builds.is_empty()
    }

    /// GUID and age of each kernel's symbol file.
    pub fn kernels(&self) -> impl Iterator<Item = (&str, u32)> {
        let builds = self.table.builds.iter();
        builds.map(|b| (b.guid.as_str(), b.age))
    }

    /// GUIDs of kernels that differ in their types, one of each family.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        let mut seen = HashSet::new();
        let builds = self.table.builds.iter();
        builds
            .filter(move |b| seen.insert(&b.types))
            .map(|b| b.guid.as_str())
    }

    /// Symbols and types of the kernel with this symbol file, for an image at `base`. `None` where the table has not this
    /// kernel. An age of another number is taken too: it counts how often the file was written anew for the same build.
    pub fn kernel(&self, guid: &str, base: u64) -> Option<Result<SymbolTable, LayoutError>> {
        let builds = &self.table.builds;
        let b = builds.iter().find(|b| b.guid.eq_ignore_ascii_case(guid))?;
        Some(read::table(&self.table, b, base))
    }
}
