//! From a symbol table to ISF.

use super::IsfError;
use crate::table::SymbolTable;
use crate::types::{IntUse, Shape, Str, TypeId, Types};
use base64::Engine;
use hashbrown::{HashMap, HashSet};
use serde_json::{Value as Json, json};
use std::io::{self, Write};

/// Integers that enumerations may rest on: bytes, sign, name.
const INTEGERS: [(u32, bool, &str); 8] = [
    (1, false, "unsigned char"),
    (1, true, "signed char"),
    (2, false, "short unsigned int"),
    (2, true, "short int"),
    (4, false, "unsigned int"),
    (4, true, "int"),
    (8, false, "long unsigned int"),
    (8, true, "long int"),
];

/// Writes a table as JSON. Addresses are written as linked, that is without the table's shift.
///
/// Typedefs disappear, as the schema has none; a struct that has no name but a typedef gets the
/// typedef's. Of several structs of one name, the one that answers questions keeps it.
pub fn write(table: &SymbolTable, out: &mut dyn Write) -> Result<(), IsfError> {
    let names = Names::new(table.types());
    let w = Writer { table, names };
    w.all(out)
}

/// Writes a table as JSON compressed with xz.
pub fn write_xz(table: &SymbolTable, out: &mut dyn Write) -> Result<(), IsfError> {
    let options = lzma_rust2::XzOptions::with_preset(6);
    let mut xz = lzma_rust2::XzWriter::new(&mut *out, options).map_err(IsfError::Write)?;
    {
        let mut buffered = io::BufWriter::with_capacity(1 << 16, &mut xz);
        write(table, &mut buffered)?;
        buffered.flush().map_err(IsfError::Write)?;
    }
    xz.finish().map_err(IsfError::Write)?;
    Ok(())
}

/// The names under which structs, unions and enums are written.
struct Names<'a> {
    types: &'a Types,
    /// Anonymous types that a typedef names.
    by_typedef: HashMap<TypeId, &'a str>,
    /// Types that have a name of their own and keep it.
    keepers: HashSet<TypeId>,
}

impl<'a> Names<'a> {
    fn new(types: &'a Types) -> Self {
        let mut by_typedef = HashMap::new();
        let mut keepers = HashSet::new();
        let mut taken: HashSet<&str> = HashSet::new();
        for id in ids(types) {
            let name = types.name(id);
            let shape = types.shape(id);
            let tagged = shape.is_composite() || matches!(shape, Shape::Enum { .. });
            if name.is_empty() || !tagged || taken.contains(name) {
                continue;
            }
            let keeper = match shape {
                Shape::Enum { .. } => Some(id),
                _ => types.composites(name).first().copied(),
            };
            taken.insert(name);
            keepers.extend(keeper);
        }
        for id in ids(types) {
            let Shape::Typedef { .. } = types.shape(id) else {
                continue;
            };
            let (name, target) = (types.name(id), types.resolve(id));
            let shape = types.shape(target);
            let nameless = types.name(target).is_empty()
                && (shape.is_composite() || matches!(shape, Shape::Enum { .. }));
            if nameless && !by_typedef.contains_key(&target) && taken.insert(name) {
                by_typedef.insert(target, name);
            }
        }
        Self {
            types,
            by_typedef,
            keepers,
        }
    }

    fn of(&self, id: TypeId) -> String {
        let forward = matches!(self.types.shape(id), Shape::Forward { .. });
        if self.keepers.contains(&id) || forward {
            return self.types.name(id).to_owned();
        }
        match self.by_typedef.get(&id) {
            Some(name) => (*name).to_owned(),
            None => format!("unnamed_{:016x}", id.0),
        }
    }
}

fn ids(types: &Types) -> impl Iterator<Item = TypeId> + use<> {
    (1..u32::try_from(types.len()).unwrap_or(u32::MAX)).map(TypeId)
}

struct Writer<'a> {
    table: &'a SymbolTable,
    names: Names<'a>,
}

/// Writes the entries of one JSON object.
struct Object<'w> {
    out: &'w mut dyn Write,
    first: bool,
}

impl<'w> Object<'w> {
    fn open(out: &'w mut dyn Write, name: &str) -> Result<Self, IsfError> {
        write!(out, "\"{name}\":{{").map_err(IsfError::Write)?;
        Ok(Self { out, first: true })
    }

    fn entry(&mut self, key: &str, value: &Json) -> Result<(), IsfError> {
        if !self.first {
            self.out.write_all(b",\n").map_err(IsfError::Write)?;
        }
        self.first = false;
        serde_json::to_writer(&mut self.out, key)?;
        self.out.write_all(b":").map_err(IsfError::Write)?;
        serde_json::to_writer(&mut self.out, value)?;
        Ok(())
    }

    fn close(self, end: &str) -> Result<(), IsfError> {
        writeln!(self.out, "}}{end}").map_err(IsfError::Write)
    }
}

impl Writer<'_> {
    fn types(&self) -> &Types {
        self.table.types()
    }

    fn all(&self, out: &mut dyn Write) -> Result<(), IsfError> {
        let metadata = json!({
            "producer": { "name": "ramsift", "version": env!("CARGO_PKG_VERSION") },
            "format": "6.2.0",
            "linux": { "symbols": [], "types": [] },
        });
        writeln!(out, "{{\"metadata\":{metadata},").map_err(IsfError::Write)?;
        self.base_types(&mut *out)?;
        self.user_types(&mut *out)?;
        self.enums(&mut *out)?;
        self.symbols(&mut *out)?;
        out.write_all(b"}\n").map_err(IsfError::Write)
    }

    fn base_types(&self, out: &mut dyn Write) -> Result<(), IsfError> {
        let mut o = Object::open(out, "base_types")?;
        let base = |size: u32, signed: bool, kind: &str| json!({ "size": size, "signed": signed, "kind": kind, "endian": "little" });
        let mut seen: HashSet<&str> = HashSet::from(["void", "pointer"]);
        o.entry("void", &base(0, false, "void"))?;
        o.entry("pointer", &base(8, false, "int"))?;
        for id in ids(self.types()) {
            let name = self.types().name(id);
            let entry = match self.types().shape(id) {
                Shape::Int {
                    size,
                    signed,
                    usage,
                } => {
                    let kind = match usage {
                        IntUse::Number => "int",
                        IntUse::Char => "char",
                        IntUse::Bool => "bool",
                    };
                    base(size, signed, kind)
                }
                Shape::Float { size } => base(size, true, "float"),
                _ => continue,
            };
            if !name.is_empty() && seen.insert(name) {
                o.entry(name, &entry)?;
            }
        }
        for (size, signed, name) in INTEGERS {
            if seen.insert(name) {
                o.entry(name, &base(size, signed, "int"))?;
            }
        }
        o.close(",")
    }

    fn user_types(&self, out: &mut dyn Write) -> Result<(), IsfError> {
        let mut o = Object::open(out, "user_types")?;
        for id in ids(self.types()) {
            let (size, kind) = match self.types().shape(id) {
                Shape::Struct { size } => (size, "struct"),
                Shape::Union { size } => (size, "union"),
                _ => continue,
            };
            let mut fields = serde_json::Map::new();
            for m in self.types().raw_members(id) {
                let place = self.types().place(*m, 0);
                let mut ty = self.ty(m.ty);
                if let Some(b) = place.bits {
                    ty = json!({ "kind": "bitfield", "bit_position": b.offset,
                                 "bit_length": b.size, "type": ty });
                }
                let mut field = json!({ "offset": place.offset, "type": ty });
                if m.name != Str::NONE {
                    fields.insert(m.name.of(&self.types().text).to_owned(), field);
                } else if self
                    .types()
                    .shape(self.types().resolve(m.ty))
                    .is_composite()
                {
                    // Other members without a name only make room.
                    field["anonymous"] = true.into();
                    fields.insert(format!("unnamed_field_{}", fields.len()), field);
                }
            }
            let entry = json!({ "size": size, "kind": kind, "fields": fields });
            o.entry(&self.names.of(id), &entry)?;
        }
        o.close(",")
    }

    fn enums(&self, out: &mut dyn Write) -> Result<(), IsfError> {
        let mut o = Object::open(out, "enums")?;
        for id in ids(self.types()) {
            let Shape::Enum { size, signed } = self.types().shape(id) else {
                continue;
            };
            let constants: serde_json::Map<String, Json> = self
                .types()
                .values(id)
                .map(|(name, v)| {
                    let v = if signed || size < 8 {
                        v.into()
                    } else {
                        v.cast_unsigned().into()
                    };
                    (name.to_owned(), v)
                })
                .collect();
            let base = INTEGERS
                .iter()
                .find(|(s, sign, _)| (*s, *sign) == (size, signed))
                .map_or("unsigned int", |(_, _, name)| name);
            let entry = json!({ "size": size, "base": base, "constants": constants });
            o.entry(&self.names.of(id), &entry)?;
        }
        o.close(",")
    }

    fn symbols(&self, out: &mut dyn Write) -> Result<(), IsfError> {
        let mut o = Object::open(out, "symbols")?;
        let mut seen: HashSet<&str> = HashSet::new();
        for s in self.table.iter() {
            if !seen.insert(s.name) {
                continue;
            }
            let Some(best) = self.table.find(s.name) else {
                continue;
            };
            // Who reads the file may want a type of each symbol, functions and the linker's included.
            let ty = self.table.own_type(s.name).unwrap_or_default();
            let mut entry = json!({
                "address": self.table.linked(best.address.0),
                "type": self.ty(ty),
            });
            if let (true, Some(banner)) = (s.name == "linux_banner", self.table.banner()) {
                let raw = format!("{banner}\n\0");
                let data = base64::engine::general_purpose::STANDARD.encode(raw);
                entry["constant_data"] = data.into();
            }
            o.entry(s.name, &entry)?;
        }
        o.close("")
    }

    /// A type as fields name it.
    fn ty(&self, id: TypeId) -> Json {
        self.ty_at(id, 32)
    }

    fn ty_at(&self, id: TypeId, hops: u8) -> Json {
        let id = self.types().resolve(id);
        let named = |kind: &str| json!({ "kind": kind, "name": self.names.of(id) });
        let void = json!({ "kind": "base", "name": "void" });
        let Some(left) = hops.checked_sub(1) else {
            return void;
        };
        match self.types().shape(id) {
            Shape::Int { .. } | Shape::Float { .. } if !self.types().name(id).is_empty() => {
                json!({ "kind": "base", "name": self.types().name(id) })
            }
            Shape::Pointer { target } => {
                json!({ "kind": "pointer", "subtype": self.ty_at(target, left) })
            }
            Shape::Array { element, count } => {
                json!({ "kind": "array", "count": count, "subtype": self.ty_at(element, left) })
            }
            Shape::Struct { .. } | Shape::Forward { union: false } => named("struct"),
            Shape::Union { .. } | Shape::Forward { union: true } => named("union"),
            Shape::Enum { .. } => named("enum"),
            Shape::Function => json!({ "kind": "function" }),
            _ => void,
        }
    }
}
