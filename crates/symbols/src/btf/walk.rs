//! The check of every type, which tells BTF from bytes that begin like it.

use super::{Btf, BtfError, Kind, RawType};
use crate::phys::u32_at;

/// Bytes of a struct at most; the largest of real kernels have some hundred thousand.
const MAX_SIZE: u32 = 1 << 30;

impl Btf {
    /// Strings are text between NULs, and begin with the empty one, which a module has from its base.
    pub(super) fn check_strings(&self) -> Result<(), BtfError> {
        let at = self.header.strings;
        let b = self.data.get(at..).unwrap_or_default();
        let bad = |at: usize, expected, found: String| {
            Err(BtfError::Header {
                at,
                expected,
                found,
            })
        };
        let begins = self.base.is_some() || b.first() == Some(&0);
        if !begins || b.last() != Some(&0) {
            return bad(
                at,
                "strings that begin and end with NUL",
                format!("{:?} and {:?}", b.first(), b.last()),
            );
        }
        if let Some(i) = b.iter().position(|c| (1..0x20).contains(c) || *c == 0x7f) {
            return bad(at + i, "text", format!("{:#x}", b[i]));
        }
        match std::str::from_utf8(b) {
            Ok(_) => Ok(()),
            Err(e) => bad(at + e.valid_up_to(), "UTF-8", e.to_string()),
        }
    }

    /// Finds where each type begins, then checks them all.
    pub(super) fn walk(&mut self) -> Result<(), BtfError> {
        let (mut at, end) = (self.header.types, self.header.types + self.header.types_len);
        let mut starts = Vec::with_capacity(self.header.types_len / 32);
        let mut id = self.first_id;
        while at < end {
            let Some(t) = self.raw(id, at) else {
                let info = u32_at(&self.data, at + 4).unwrap_or(0);
                return Err(BtfError::Type {
                    id,
                    at,
                    expected: "kind 1 to 19 and a body inside the section",
                    found: format!("kind {} count {}", info >> 24 & 0x1f, info & 0xffff),
                });
            };
            let len = 12 + t.extra.len();
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
            at += len;
            id = id.saturating_add(1);
        }
        self.at = starts;
        let limit = self.first_id.saturating_add(self.count_u32());
        for (t, at) in self.iter().zip(&self.at) {
            if let Err((expected, found)) = self.check(&t, limit) {
                return Err(BtfError::Type {
                    id: t.id,
                    at: *at as usize,
                    expected,
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }

    /// What the kernel checks when it loads BTF, as far as it tells types from other bytes.
    fn check(&self, t: &RawType<'_>, limit: u32) -> Result<(), (&'static str, u32)> {
        use Kind::*;
        let strings = self.strings_end();
        let name = |n: u32| {
            if n < strings {
                Ok(())
            } else {
                Err(("a name inside the strings", n))
            }
        };
        let known = |id: u32| {
            if id < limit {
                Ok(())
            } else {
                Err(("a type that exists", id))
            }
        };
        name(t.name)?;
        let many = matches!(
            t.kind,
            Struct | Union | Enum | FuncProto | Datasec | Enum64 | Func
        );
        if !many && t.count != 0 {
            return Err(("no members", u32::try_from(t.count).unwrap_or(u32::MAX)));
        }
        let nameless = matches!(
            t.kind,
            Ptr | Array | Volatile | Const | Restrict | FuncProto
        );
        if nameless && t.name != 0 {
            return Err(("no name", t.name));
        }
        match t.kind {
            Int => {
                let (size, bits) = (t.size_or_type, t.word(0) & 0xff);
                if !matches!(size, 1 | 2 | 4 | 8 | 16) || bits > 8 * size {
                    return Err(("an integer of 1 to 16 bytes", size));
                }
            }
            Float if !matches!(t.size_or_type, 2 | 4 | 8 | 12 | 16) => {
                return Err(("a float of 2 to 16 bytes", t.size_or_type));
            }
            Enum | Enum64 if !matches!(t.size_or_type, 1 | 2 | 4 | 8) => {
                return Err(("an enum of 1 to 8 bytes", t.size_or_type));
            }
            Struct | Union if t.size_or_type > MAX_SIZE => {
                return Err(("a struct of a sane size", t.size_or_type));
            }
            Ptr | Typedef | Volatile | Const | Restrict | Func | FuncProto | Var | DeclTag
            | TypeTag => known(t.size_or_type)?,
            Array => {
                known(t.word(0))?;
                known(t.word(1))?;
            }
            _ => {}
        }
        let stride = match t.kind {
            Struct | Union | Datasec | Enum64 => 3,
            Enum | FuncProto => 2,
            _ => return Ok(()),
        };
        for i in (0..t.count).map(|i| i * stride) {
            match t.kind {
                Struct | Union => {
                    name(t.word(i))?;
                    known(t.word(i + 1))?;
                    let bit = t.word(i + 2) & if t.kind_flag { 0xff_ffff } else { u32::MAX };
                    if u64::from(bit) > 8 * u64::from(t.size_or_type) {
                        return Err(("a member inside the struct", bit));
                    }
                }
                FuncProto => {
                    name(t.word(i))?;
                    known(t.word(i + 1))?;
                }
                Datasec => known(t.word(i))?,
                _ => name(t.word(i))?,
            }
        }
        Ok(())
    }
}
