//! Types: records of CodeView, handed on as the types of an ISF.
//!
//! ```text
//! header   version, bytes of the header, first number, number behind the last, bytes of the records
//! record   bytes behind, kind; a struct names the list of its fields, a field the number of its type
//! ```
//!
//! A type without a name gets one by its number, as other producers of ISF files give them.

use super::msf::Bytes;
use super::{PdbError, malformed};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Kinds of records (`LF_...`).
const MODIFIER: u16 = 0x1001;
const POINTER: u16 = 0x1002;
const PROCEDURE: u16 = 0x1008;
const FIELDS: u16 = 0x1203;
const BITS: u16 = 0x1205;
const BASE: u16 = 0x1400;
const MORE: u16 = 0x1404;
const ENUMERATE: u16 = 0x1502;
const ARRAY: u16 = 0x1503;
const CLASS: u16 = 0x1504;
const STRUCT: u16 = 0x1505;
const UNION: u16 = 0x1506;
const ENUM: u16 = 0x1507;
const MEMBER: u16 = 0x150d;
const STATIC: u16 = 0x150e;
const METHODS: u16 = 0x150f;
const NESTED: u16 = 0x1510;
const METHOD: u16 = 0x1511;
/// Numbers below are base types, and pointers to these.
const FIRST: u32 = 0x1000;
/// A type that is only named (`fwdref`).
const FORWARD: u16 = 0x80;
/// Types named inside each other at most, and lists of fields that go on in another.
const DEPTH: usize = 32;
/// Fields of a type at most.
const MOST_FIELDS: usize = 1 << 16;
/// Types at most.
const MOST_TYPES: u32 = 1 << 22;

/// What an ISF has of types.
pub(super) struct Types {
    pub(super) base: Value,
    pub(super) user: Map<String, Value>,
    pub(super) enums: Map<String, Value>,
}

/// Base types: number, name, bytes, kind, sign.
const BASES: [(u32, &str, u64, &str, bool); 31] = [
    (0x03, "void", 0, "void", false),
    (0x08, "HRESULT", 4, "int", true),
    (0x10, "char", 1, "char", true),
    (0x20, "unsigned char", 1, "char", false),
    (0x68, "int8", 1, "int", true),
    (0x69, "uint8", 1, "int", false),
    (0x70, "char", 1, "char", true),
    (0x71, "wchar", 2, "int", false),
    (0x7a, "char16", 2, "int", false),
    (0x7b, "char32", 4, "int", false),
    (0x7c, "char8", 1, "char", false),
    (0x11, "short", 2, "int", true),
    (0x21, "unsigned short", 2, "int", false),
    (0x72, "short", 2, "int", true),
    (0x73, "unsigned short", 2, "int", false),
    (0x12, "long", 4, "int", true),
    (0x22, "unsigned long", 4, "int", false),
    (0x74, "int", 4, "int", true),
    (0x75, "unsigned int", 4, "int", false),
    (0x13, "long long", 8, "int", true),
    (0x23, "unsigned long long", 8, "int", false),
    (0x76, "long long", 8, "int", true),
    (0x77, "unsigned long long", 8, "int", false),
    (0x78, "int128", 16, "int", true),
    (0x79, "uint128", 16, "int", false),
    (0x30, "bool", 1, "bool", false),
    (0x31, "bool16", 2, "bool", false),
    (0x32, "bool32", 4, "bool", false),
    (0x40, "float", 4, "float", true),
    (0x41, "double", 8, "float", true),
    (0x42, "long double", 10, "float", true),
];

struct Reader<'a> {
    /// By number, from `FIRST` on: kind and bytes.
    records: Vec<(u16, &'a [u8])>,
    /// Numbers of types that are defined, by their names: a type that is only named is one of these.
    defined: BTreeMap<String, u32>,
}

/// A number of variable length at a place, and where it ends.
fn numeric(b: Bytes<'_>, at: usize) -> Option<(i128, usize)> {
    let kind = b.u16(at)?;
    let wide = |n: usize| -> Option<u64> {
        let raw = b.0.get(at + 2..(at + 2).checked_add(n)?)?;
        let mut all = [0; 8];
        all.get_mut(..n)?.copy_from_slice(raw);
        Some(u64::from_le_bytes(all))
    };
    let signed = |n: usize| -> Option<i128> {
        let shift = 64 - 8 * u32::try_from(n).ok()?;
        Some(i128::from((wide(n)? << shift).cast_signed() >> shift))
    };
    let value = match kind {
        0..0x8000 => return Some((i128::from(kind), at + 2)),
        0x8000 => (signed(1)?, 1),
        0x8001 => (signed(2)?, 2),
        0x8002 => (i128::from(wide(2)?), 2),
        0x8003 => (signed(4)?, 4),
        0x8004 => (i128::from(wide(4)?), 4),
        0x8009 => (signed(8)?, 8),
        0x800a => (i128::from(wide(8)?), 8),
        _ => return None,
    };
    Some((value.0, at + 2 + value.1))
}

/// Reads the stream of types.
pub(super) fn read(stream: &[u8]) -> Result<Types, PdbError> {
    let bad = |expected| malformed("the stream of types", expected);
    let head = Bytes(stream);
    let first = head.size(4).ok_or_else(|| bad("a header"))?;
    let (begin, end) = (head.u32(8), head.u32(12));
    let count = match (begin, end) {
        (Some(FIRST), Some(end)) => end.checked_sub(FIRST).filter(|n| *n <= MOST_TYPES),
        _ => None,
    };
    let count = count.ok_or_else(|| bad("numbers of types from 0x1000 on"))?;
    let mut r = Reader {
        records: Vec::new(),
        defined: BTreeMap::new(),
    };
    let mut at = first;
    for number in 0..count {
        let record = head.u16(at).and_then(|len| {
            let end = at.checked_add(2 + usize::from(len))?;
            Some((stream.get(at + 2..end)?, end))
        });
        let Some((record, end)) = record else {
            return Err(malformed(format!("type {:#x}", FIRST + number), "a record"));
        };
        at = end;
        let kind = Bytes(record).u16(0).unwrap_or(0);
        r.records.push((kind, record.get(2..).unwrap_or_default()));
    }
    let (mut user, mut enums) = (Map::new(), Map::new());
    for number in FIRST..FIRST + count {
        if let Some((name, _)) = r.composite(number).filter(|(_, c)| !c.forward) {
            r.defined.entry(name).or_insert(number);
        }
    }
    for (name, number) in &r.defined {
        let Some((_, c)) = r.composite(*number) else {
            continue;
        };
        match c.kind {
            ENUM => {
                let mut constants = Map::new();
                r.fields(c.list, 0, &mut |kind, name, value, _| {
                    if kind == ENUMERATE {
                        constants.insert(name, json!(i64::try_from(value).unwrap_or(0)));
                    }
                });
                let base = r.base_of(c.underlying);
                let size = BASES.iter().find(|b| b.1 == base).map_or(4, |b| b.2);
                enums.insert(
                    name.clone(),
                    json!({ "size": size, "base": base, "constants": constants }),
                );
            }
            kind => {
                let mut fields = Map::new();
                r.fields(c.list, 0, &mut |kind, name, offset, ty| {
                    if kind == MEMBER && offset >= 0 && offset <= i128::from(c.size) {
                        let ty = r.of(ty, 0);
                        fields.insert(name, json!({ "offset": offset as u64, "type": ty }));
                    }
                });
                let kind = if kind == UNION { "union" } else { "struct" };
                user.insert(
                    name.clone(),
                    json!({ "size": c.size, "kind": kind, "fields": fields }),
                );
            }
        }
    }
    let mut base = Map::new();
    for (_, name, size, kind, signed) in BASES {
        base.insert(
            name.to_owned(),
            json!({ "size": size, "kind": kind, "signed": signed, "endian": "little" }),
        );
    }
    base.insert(
        "pointer".to_owned(),
        json!({ "size": 8, "kind": "int", "signed": false, "endian": "little" }),
    );
    Ok(Types {
        base: Value::Object(base),
        user,
        enums,
    })
}

/// A struct, union or enum.
struct Composite {
    kind: u16,
    forward: bool,
    list: u32,
    underlying: u32,
    size: u32,
}

impl<'a> Reader<'a> {
    fn record(&self, number: u32) -> Option<(u16, Bytes<'a>)> {
        let i = usize::try_from(number.checked_sub(FIRST)?).ok()?;
        self.records.get(i).map(|(kind, b)| (*kind, Bytes(b)))
    }

    /// The name and the rest of a struct, union or enum.
    fn composite(&self, number: u32) -> Option<(String, Composite)> {
        let (kind, b) = self.record(number)?;
        let forward = b.u16(2)? & FORWARD != 0;
        let (list, underlying, size, name) = match kind {
            CLASS | STRUCT => {
                let (size, at) = numeric(b, 16)?;
                (b.u32(4)?, 0, size, b.text(at)?)
            }
            UNION => {
                let (size, at) = numeric(b, 8)?;
                (b.u32(4)?, 0, size, b.text(at)?)
            }
            ENUM => (b.u32(8)?, b.u32(4)?, 0, b.text(12)?),
            _ => return None,
        };
        let composite = Composite {
            kind,
            forward,
            list,
            underlying,
            size: u32::try_from(size).ok()?,
        };
        let unnamed = name.is_empty()
            || name.starts_with("<unnamed")
            || name.starts_with("<anonymous")
            || name.starts_with("__unnamed");
        let name = if unnamed {
            format!("__unnamed_{number:x}")
        } else {
            name
        };
        Some((name, composite))
    }

    /// Visits the fields of a list: kind, name, value or offset, type.
    fn fields(&self, list: u32, depth: usize, visit: &mut dyn FnMut(u16, String, i128, u32)) {
        let Some((FIELDS, b)) = self.record(list).filter(|_| depth < DEPTH) else {
            return;
        };
        let mut at = 0;
        for _ in 0..MOST_FIELDS {
            // Records are padded to 4 bytes with 0xf1 to 0xf3.
            while b.0.get(at).is_some_and(|p| *p >= 0xf0) {
                at += 1;
            }
            let Some(next) = self.field(b, at, depth, visit) else {
                return;
            };
            at = next;
        }
    }

    /// One field of a list at a place; where it ends.
    fn field(
        &self,
        b: Bytes<'_>,
        at: usize,
        depth: usize,
        visit: &mut dyn FnMut(u16, String, i128, u32),
    ) -> Option<usize> {
        let kind = b.u16(at)?;
        match kind {
            MEMBER => {
                let (offset, end) = numeric(b, at + 8)?;
                visit(kind, b.text(end)?, offset, b.u32(at + 4)?);
                b.behind(end)
            }
            ENUMERATE => {
                let (value, end) = numeric(b, at + 4)?;
                visit(kind, b.text(end)?, value, 0);
                b.behind(end)
            }
            MORE => {
                self.fields(b.u32(at + 4)?, depth + 1, visit);
                Some(at + 8)
            }
            BASE => numeric(b, at + 8).map(|(_, end)| end),
            STATIC | METHODS | NESTED => b.behind(at + 8),
            METHOD => {
                // A virtual one that begins a table has its place in it.
                let begins = matches!(b.u16(at + 2)? >> 2 & 7, 4 | 6);
                b.behind(at + 8 + if begins { 4 } else { 0 })
            }
            _ => None,
        }
    }

    /// The name of a base type.
    fn base_of(&self, number: u32) -> &'static str {
        let known = BASES.iter().find(|b| b.0 == number & 0xff);
        known.map_or("int", |b| b.1)
    }

    /// The bytes of a type; 0 where they are not known.
    fn size(&self, number: u32, depth: usize) -> u64 {
        if depth > DEPTH {
            return 0;
        }
        if number < FIRST {
            let known = BASES.iter().find(|b| b.0 == number & 0xff);
            return if number & 0xf00 != 0 {
                8
            } else {
                known.map_or(0, |b| b.2)
            };
        }
        let Some((kind, b)) = self.record(number) else {
            return 0;
        };
        match kind {
            POINTER => 8,
            MODIFIER => self.size(b.u32(0).unwrap_or(0), depth + 1),
            ARRAY => numeric(b, 8)
                .and_then(|(n, _)| u64::try_from(n).ok())
                .unwrap_or(0),
            ENUM => self.size(b.u32(4).unwrap_or(0), depth + 1),
            _ => {
                let Some((name, c)) = self.composite(number) else {
                    return 0;
                };
                match self.defined.get(&name).filter(|_| c.forward) {
                    Some(own) if *own != number => self.size(*own, depth + 1),
                    _ => u64::from(c.size),
                }
            }
        }
    }

    /// A type as fields name it.
    fn of(&self, number: u32, depth: usize) -> Value {
        let void = || json!({ "kind": "base", "name": "void" });
        if depth > DEPTH {
            return void();
        }
        if number < FIRST {
            let base = match BASES.iter().find(|b| b.0 == number & 0xff) {
                Some(b) => json!({ "kind": "base", "name": b.1 }),
                None => void(),
            };
            return match number & 0xf00 {
                0 => base,
                _ => json!({ "kind": "pointer", "subtype": base }),
            };
        }
        let Some((kind, b)) = self.record(number) else {
            return void();
        };
        let at = |i: usize| b.u32(i).unwrap_or(0);
        match kind {
            MODIFIER => self.of(at(0), depth + 1),
            POINTER => json!({ "kind": "pointer", "subtype": self.of(at(0), depth + 1) }),
            PROCEDURE => json!({ "kind": "function" }),
            BITS => {
                let (len, first) = (
                    b.0.get(4).copied().unwrap_or(1),
                    b.0.get(5).copied().unwrap_or(0),
                );
                json!({
                    "kind": "bitfield", "bit_length": len, "bit_position": first, "type": self.of(at(0), depth + 1),
                })
            }
            ARRAY => {
                let (element, bytes) = (at(0), self.size(number, depth));
                let one = self.size(element, depth + 1);
                let count = bytes.checked_div(one).unwrap_or(0);
                json!({ "kind": "array", "count": u32::try_from(count).unwrap_or(0), "subtype": self.of(element, depth + 1) })
            }
            _ => match self.composite(number) {
                Some((name, c)) => {
                    let kind = match c.kind {
                        ENUM if !self.defined.contains_key(&name) => {
                            return json!({ "kind": "base", "name": "int" });
                        }
                        ENUM => "enum",
                        UNION => "union",
                        _ => "struct",
                    };
                    json!({ "kind": kind, "name": name })
                }
                None => json!({ "kind": "function" }),
            },
        }
    }
}
