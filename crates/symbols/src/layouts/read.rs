//! From the table to the symbols and types of one kernel.

use super::{Build, LayoutError, Table, Variant};
use crate::table::{NewSymbol, Provenance, Source, SymbolTable};
use crate::types::{Builder, IntUse, Member, Shape, TypeId};
use hashbrown::HashMap;
use serde_json::Value;

/// Types written out inside each other at most.
const MAX_DEPTH: usize = 16;

/// Base types: bytes, and whether they have a sign.
const BASE: [(&str, u32, bool); 17] = [
    ("unsigned char", 1, false),
    ("char", 1, true),
    ("wchar", 2, false),
    ("unsigned short", 2, false),
    ("short", 2, true),
    ("unsigned long", 4, false),
    ("long", 4, true),
    ("unsigned int", 4, false),
    ("int", 4, true),
    ("unsigned long long", 8, false),
    ("long long", 8, true),
    ("bool", 1, false),
    ("float", 4, true),
    ("double", 8, true),
    ("HRESULT", 4, true),
    ("long double", 10, true),
    ("char16", 2, false),
];

fn malformed(place: &str, expected: &'static str) -> LayoutError {
    LayoutError::Malformed {
        place: place.to_owned(),
        expected,
    }
}

struct Reader<'t> {
    b: Builder,
    base: HashMap<&'static str, TypeId>,
    named: HashMap<&'t str, TypeId>,
}

/// Symbols and types of a build.
pub(super) fn table(t: &Table, build: &Build, at: u64) -> Result<SymbolTable, LayoutError> {
    let mut r = Reader {
        b: Builder::new(),
        base: HashMap::new(),
        named: HashMap::new(),
    };
    for (name, size, signed) in BASE {
        let usage = match name {
            "bool" => IntUse::Bool,
            "char" | "wchar" => IntUse::Char,
            _ => IntUse::Number,
        };
        let shape = Shape::Int {
            size,
            signed,
            usage,
        };
        let named = r.b.string(name);
        let id = r.b.push(shape, named);
        r.base.insert(name, id);
    }
    let of = |numbers: &[i16], i: usize| {
        let n = numbers.get(i).copied().unwrap_or(-1);
        usize::try_from(n).ok()
    };
    let mut own: Vec<(&str, TypeId, &Variant)> = Vec::new();
    for (i, (name, variants)) in t.types.iter().enumerate() {
        let Some(v) = of(&build.types, i).and_then(|n| variants.get(n)) else {
            continue;
        };
        let named = r.b.string(name);
        let id = r.b.push(Shape::Forward { union: false }, named);
        r.named.insert(name, id);
        own.push((name, id, v));
    }
    for (name, id, (size, fields)) in own {
        let members = r.members(fields, *size, name, 0)?;
        r.b.define(id, Shape::Struct { size: *size }, &members);
    }
    let symbols = t.globals.iter().zip(&build.globals);
    let symbols = symbols
        .filter(|(_, rva)| **rva != 0)
        .map(|(name, rva)| NewSymbol {
            name,
            address: at.wrapping_add(u64::from(*rva)),
            kind: b'?',
            ty: None,
        });
    let from = Source::Layouts(format!("{}-{}", build.guid, build.age));
    let provenance = Provenance {
        symbols: from.clone(),
        types: from,
    };
    Ok(SymbolTable::new(symbols, r.b.finish(), provenance))
}

impl<'t> Reader<'t> {
    fn members(
        &mut self,
        fields: impl IntoIterator<Item = (&'t String, &'t Value)>,
        size: u32,
        place: &str,
        depth: usize,
    ) -> Result<Vec<Member>, LayoutError> {
        let mut out = Vec::new();
        for (name, field) in fields {
            let place = format!("{place}.{name}");
            let parts = field.as_array();
            let (offset, kind) = parts
                .and_then(|p| p.split_first())
                .ok_or_else(|| malformed(&place, "offset and kind"))?;
            let offset = offset.as_u64().filter(|o| *o <= u64::from(size));
            let offset = offset.ok_or_else(|| malformed(&place, "an offset in the type"))?;
            let (ty, first, bits) = self.kind(kind, &place, depth)?;
            out.push(Member {
                name: self.b.string(name),
                ty,
                bit: offset * 8 + u64::from(first),
                bits,
            });
        }
        // Fields come by name; a type has them by place.
        out.sort_by_key(|m| m.bit);
        Ok(out)
    }

    /// The type that a kind tells, and the bits where it is a bit-field.
    fn kind(
        &mut self,
        kind: &'t [Value],
        place: &str,
        depth: usize,
    ) -> Result<(TypeId, u16, u16), LayoutError> {
        if depth > MAX_DEPTH {
            return Err(malformed(place, "fewer types inside each other"));
        }
        let of = |i: usize| {
            let list = kind.get(i).and_then(Value::as_array);
            list.map(Vec::as_slice)
        };
        let number = |i: usize| kind.get(i).and_then(Value::as_u64);
        let what = kind.first().and_then(Value::as_str);
        let what = what.ok_or_else(|| malformed(place, "a kind"))?;
        let ty = match what {
            "bits" => {
                let small = |i| number(i).and_then(|n| u16::try_from(n).ok());
                let first = small(1).filter(|n| *n < 64);
                let bits = small(2).filter(|n| (1..=64).contains(n));
                let (first, bits) = first
                    .zip(bits)
                    .ok_or_else(|| malformed(place, "first bit and number of bits"))?;
                let inner = of(3).ok_or_else(|| malformed(place, "a base type"))?;
                let (ty, ..) = self.kind(inner, place, depth + 1)?;
                return Ok((ty, first, bits));
            }
            "*" => {
                let inner = of(1).ok_or_else(|| malformed(place, "what it points to"))?;
                let (target, ..) = self.kind(inner, place, depth + 1)?;
                self.b.derived(Shape::Pointer { target })
            }
            "[]" => {
                let count = number(1).and_then(|n| u32::try_from(n).ok());
                let count = count.ok_or_else(|| malformed(place, "a count"))?;
                let inner = of(2).ok_or_else(|| malformed(place, "an element"))?;
                let (element, ..) = self.kind(inner, place, depth + 1)?;
                self.b.derived(Shape::Array { element, count })
            }
            "struct" | "union" => self.composite(kind, what == "union", place, depth)?,
            // Enumerations are numbers: their values are what views know.
            "enum" => self.base.get("long").copied().unwrap_or_default(),
            "void" => TypeId::VOID,
            "fn" => self.b.derived(Shape::Function),
            // A struct that is named alone, as some files of facts have them.
            name if name.starts_with('_') => self.by_name(name, false),
            name => match self.base.get(name) {
                Some(id) => *id,
                None => return Err(malformed(place, "a base type")),
            },
        };
        Ok((ty, 0, 0))
    }

    /// A struct or union of a name, which may be defined nowhere.
    fn by_name(&mut self, name: &'t str, union: bool) -> TypeId {
        if let Some(id) = self.named.get(name) {
            return *id;
        }
        let named = self.b.string(name);
        let id = self.b.push(Shape::Forward { union }, named);
        self.named.insert(name, id);
        id
    }

    fn composite(
        &mut self,
        kind: &'t [Value],
        union: bool,
        place: &str,
        depth: usize,
    ) -> Result<TypeId, LayoutError> {
        match kind.get(1) {
            Some(Value::String(name)) => Ok(self.by_name(name, union)),
            Some(Value::Array(written)) => {
                let size = written.first().and_then(Value::as_u64);
                let size = size.and_then(|n| u32::try_from(n).ok());
                let size = size.ok_or_else(|| malformed(place, "bytes of a type"))?;
                let Some(Value::Object(fields)) = written.get(1) else {
                    return Err(malformed(place, "fields of a type"));
                };
                let members = self.members(fields, size, place, depth + 1)?;
                let shape = if union {
                    Shape::Union { size }
                } else {
                    Shape::Struct { size }
                };
                let id = self.b.push(shape, crate::types::Str::NONE);
                self.b.define(id, shape, &members);
                Ok(id)
            }
            _ => Err(malformed(place, "a name or a type")),
        }
    }
}
