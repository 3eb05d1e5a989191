//! BTF: the types of a kernel, as it carries them in its memory.
//!
//! ```text
//! header    u16 magic 0xeb9f, u8 version 1, u8 flags, u32 hdr_len
//!           u32 type_off, type_len, str_off, str_len      (counted from the end of the header)
//! types     u32 name, u32 info, u32 size or type, then what the kind has
//!           info: bits 0..16 count, 24..29 kind, 31 kind_flag
//! strings   NUL-terminated; the first one is empty
//! ```
//!
//! Types are numbered from 1; 0 is void. The *split* BTF of a module goes on where its base, the
//! kernel's, ends: type numbers from the base's count, string offsets from the base's length.
//!
//! Before a blob is accepted, every type is checked: each capture holds decoys, from the header's
//! magic in the kernel's own code to stale copies.
//!
//! Source: Linux, `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`, `kernel/bpf/btf.c`.

mod damaged;
mod error;
mod find;
mod types;
mod walk;

pub use damaged::read_damaged;
pub use error::BtfError;
pub use find::{MAGIC, candidate, read_at, read_kernel_at};
pub use types::{add_split, to_types};

use crate::phys::{u16_at, u32_at};
use std::sync::Arc;

/// Bytes of types, and of strings, at most. The kernel itself stops at 16 MiB of strings.
const MAX_SECTION: u32 = 64 << 20;
/// Bytes of the header as it has always been. Later versions may append to it.
const HEADER: usize = 24;
const MAX_HEADER: usize = 256;

/// Kinds of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Int = 1,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    const ALL: [Self; 19] = [
        Self::Int,
        Self::Ptr,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Fwd,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Func,
        Self::FuncProto,
        Self::Var,
        Self::Datasec,
        Self::Float,
        Self::DeclTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    fn new(n: u32) -> Option<Self> {
        let i = usize::try_from(n).ok()?.checked_sub(1)?;
        Self::ALL.get(i).copied()
    }

    /// Bytes behind the three words that every type has.
    fn extra(self, count: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => 12 * count,
            Self::Enum | Self::FuncProto => 8 * count,
            _ => 0,
        }
    }
}

/// The parts of a blob, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the header.
    pub header_len: usize,
    /// Offset of the types.
    pub types: usize,
    /// Bytes of the types.
    pub types_len: usize,
    /// Offset of the strings.
    pub strings: usize,
    /// Bytes of the strings.
    pub strings_len: usize,
}

impl Header {
    /// Parses and checks a header: 24 bytes are enough.
    pub fn parse(b: &[u8]) -> Result<Self, BtfError> {
        let word = |at: usize| {
            u32_at(b, at).ok_or(BtfError::Truncated {
                what: "header",
                at: 0,
                needed: HEADER,
                len: b.len(),
            })
        };
        let (first, hdr_len) = (word(0)?, word(4)?);
        let (type_off, type_len) = (word(8)?, word(12)?);
        let (str_off, str_len) = (word(16)?, word(20)?);
        let bad = |at, expected, found: u32| {
            Err(BtfError::Header {
                at,
                expected,
                found: format!("{found:#x}"),
            })
        };
        match u16_at(b, 0) {
            Some(MAGIC) => {}
            Some(m) if m.swap_bytes() == MAGIC => return Err(BtfError::BigEndian),
            _ => return bad(0, "magic 0xeb9f", first & 0xffff),
        }
        if first >> 16 != 1 {
            return bad(2, "version 1 and no flags", first >> 16);
        }
        if !(HEADER..=MAX_HEADER).contains(&(hdr_len as usize)) || hdr_len % 4 != 0 {
            return bad(4, "a header of 24 bytes or little more", hdr_len);
        }
        if type_len == 0 || type_len > MAX_SECTION || type_len % 4 != 0 {
            return bad(12, "up to 64 MiB of types, in words", type_len);
        }
        if str_len == 0 || str_len > MAX_SECTION {
            return bad(20, "up to 64 MiB of strings", str_len);
        }
        if type_off % 4 != 0 || type_off > MAX_SECTION {
            return bad(8, "an offset in words", type_off);
        }
        if str_off < type_off.saturating_add(type_len) || str_off > 2 * MAX_SECTION {
            return bad(16, "strings behind the types", str_off);
        }
        let header_len = hdr_len as usize;
        Ok(Self {
            header_len,
            types: header_len + type_off as usize,
            types_len: type_len as usize,
            strings: header_len + str_off as usize,
            strings_len: str_len as usize,
        })
    }

    /// Bytes of the whole blob.
    pub fn total(&self) -> usize {
        self.strings + self.strings_len
    }
}

/// A parsed and checked blob.
#[derive(Clone)]
pub struct Btf {
    data: Box<[u8]>,
    header: Header,
    /// Offset in `data` of each type; the first is number `first_id`.
    at: Vec<u32>,
    first_id: u32,
    first_string: u32,
    base: Option<Arc<Btf>>,
    /// Types that can't be read; their places say so.
    lost: usize,
    /// Whether types behind the last one that is known can't be read, nobody knows how many.
    open_end: bool,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("header", &self.header)
            .field("types", &self.at.len())
            .field("split", &self.base.is_some())
            .finish_non_exhaustive()
    }
}

/// One type as it stands in the blob.
#[derive(Clone, Copy, Debug)]
pub struct RawType<'a> {
    /// Its number.
    pub id: u32,
    /// Its kind.
    pub kind: Kind,
    /// Offset of its name, in the string space of blob and base; 0 is none.
    pub name: u32,
    /// What the kind makes of it.
    pub kind_flag: bool,
    /// Members, values, parameters: how many.
    pub count: usize,
    /// Bytes, or the type that is meant.
    pub size_or_type: u32,
    /// What follows the three words.
    pub extra: &'a [u8],
}

impl RawType<'_> {
    /// A word of what follows.
    pub fn word(&self, i: usize) -> u32 {
        u32_at(self.extra, 4 * i).unwrap_or(0)
    }
}

impl Btf {
    /// Parses a blob of its own, such as a kernel's. Bytes behind it are ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        Self::new(bytes, None)
    }

    /// Parses a module's blob, which goes on where `base` ends.
    ///
    /// A module built on a *distilled* base (6.11) is moved onto the kernel's BTF when it is
    /// loaded, so what a running kernel holds is always of this form.
    pub fn parse_split(bytes: &[u8], base: &Arc<Self>) -> Result<Self, BtfError> {
        Self::new(bytes, Some(Arc::clone(base)))
    }

    fn new(bytes: &[u8], base: Option<Arc<Self>>) -> Result<Self, BtfError> {
        let header = Header::parse(bytes)?;
        let Some(data) = bytes.get(..header.total()) else {
            return Err(BtfError::Truncated {
                what: "blob",
                at: 0,
                needed: header.total(),
                len: bytes.len(),
            });
        };
        let end = |b: &Arc<Self>| (b.first_id + b.count_u32(), b.strings_end());
        let (first_id, first_string) = base.as_ref().map_or((1, 0), end);
        let mut btf = Self {
            data: data.into(),
            header,
            at: Vec::new(),
            first_id,
            first_string,
            base,
            lost: 0,
            open_end: false,
        };
        btf.check_strings()?;
        btf.walk()?;
        Ok(btf)
    }

    fn count_u32(&self) -> u32 {
        u32::try_from(self.at.len()).unwrap_or(u32::MAX)
    }

    fn strings_end(&self) -> u32 {
        let own = u32::try_from(self.header.strings_len).unwrap_or(u32::MAX);
        self.first_string.saturating_add(own)
    }

    /// The whole blob, as it lay in memory.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Types of this blob, without those of a base.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Types that could not be read: [`read_damaged`] goes on behind damage. Their numbers stand for nothing.
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// Whether it is known where the numbers of this blob end, and so where those of modules begin.
    pub fn has_end(&self) -> bool {
        !self.open_end
    }

    /// The number of the first type of this blob: 1, or behind the base's.
    pub fn first_id(&self) -> u32 {
        self.first_id
    }

    /// What this blob is split from.
    pub fn base(&self) -> Option<&Arc<Self>> {
        self.base.as_ref()
    }

    /// The string section of this blob, and the offset of its first byte in the string space.
    pub fn strings(&self) -> (&str, u32) {
        let b = self.data.get(self.header.strings..).unwrap_or_default();
        (
            std::str::from_utf8(b).unwrap_or_default(),
            self.first_string,
        )
    }

    /// The string at an offset in the string space. `None` past its end.
    pub fn string(&self, offset: u32) -> Option<&str> {
        if offset < self.first_string {
            return self.base.as_ref()?.string(offset);
        }
        let (text, first) = self.strings();
        let rest = text.get((offset - first) as usize..)?;
        Some(rest.split('\0').next().unwrap_or_default())
    }

    /// A type by its number, the base's included. `None` for void and past the end.
    pub fn get(&self, id: u32) -> Option<RawType<'_>> {
        if id < self.first_id {
            return self.base.as_ref()?.get(id);
        }
        let at = *self.at.get((id - self.first_id) as usize)? as usize;
        self.raw(id, at)
    }

    /// The types of this blob in order.
    pub fn iter(&self) -> impl Iterator<Item = RawType<'_>> {
        let first = self.first_id;
        (first..)
            .zip(&self.at)
            .filter_map(|(id, at)| self.raw(id, *at as usize))
    }

    /// The three words at an offset and what follows them; `None` past the end or of no kind.
    fn raw(&self, id: u32, at: usize) -> Option<RawType<'_>> {
        let types = self.data.get(..self.header.types + self.header.types_len)?;
        raw_at(types, id, at)
    }
}

/// The three words at an offset and what follows them.
fn raw_at(types: &[u8], id: u32, at: usize) -> Option<RawType<'_>> {
    let info = u32_at(types, at.checked_add(4)?)?;
    let kind = Kind::new(info >> 24 & 0x1f)?;
    let count = (info & 0xffff) as usize;
    Some(RawType {
        id,
        kind,
        name: u32_at(types, at)?,
        kind_flag: info >> 31 != 0,
        count,
        size_or_type: u32_at(types, at + 8)?,
        extra: types.get(at + 12..at + 12 + kind.extra(count))?,
    })
}
