//! From ISF to a symbol table.

use super::schema::{Isf, Type, User};
use super::{IsfError, decompress};
use crate::table::{NewSymbol, Provenance, Source, SymbolTable};
use crate::types::{Builder, IntUse, Member, Shape, Str, TypeId};
use base64::Engine;
use hashbrown::HashMap;
use std::borrow::Cow;

/// Anonymous types and fields are named so.
const UNNAMED: &str = "unnamed_";

fn unnamed(name: &str) -> bool {
    // Anonymous types of newer producers, fields of all.
    name.starts_with(UNNAMED) || name.starts_with("__unnamed_")
}

fn malformed(place: &str, expected: &'static str, found: impl Into<String>) -> IsfError {
    IsfError::Malformed {
        place: place.to_owned(),
        expected,
        found: found.into(),
    }
}

/// Reads a file, compressed or not. `name` goes into the provenance.
///
/// Fails with [`IsfError`] on damaged data, and on more than 512 MiB of JSON.
pub fn parse(name: &str, file: &[u8]) -> Result<SymbolTable, IsfError> {
    let json = decompress(file)?;
    let isf: Isf<'_> = serde_json::from_slice(&json)?;
    let mut r = Reader {
        b: Builder::new(),
        user: HashMap::new(),
        base: HashMap::new(),
        enums: HashMap::new(),
    };
    r.declare(&isf)?;
    for (name, user) in &isf.user_types.0 {
        r.user_type(name, user)?;
    }
    r.define_enums(&isf)?;
    let mut symbols = Vec::with_capacity(isf.symbols.0.len());
    for (name, s) in &isf.symbols.0 {
        let ty = match &s.ty {
            Some(t) => Some(r.ty(t, name)?),
            None => None,
        };
        symbols.push(NewSymbol {
            name,
            address: s.address,
            kind: b'?',
            ty,
        });
    }
    let banner = match isf.symbols.0.iter().find(|(n, _)| n == "linux_banner") {
        Some((_, s)) => s.constant_data.as_deref().map(decode).transpose()?,
        None => isf.metadata.as_ref().and_then(Metadata::key),
    };
    let provenance = Provenance {
        symbols: Source::Isf(name.to_owned()),
        types: Source::Isf(name.to_owned()),
    };
    Ok(SymbolTable::new(symbols, r.b.finish(), provenance).with_banner(banner))
}

fn decode(data: &str) -> Result<String, IsfError> {
    let raw = base64::engine::general_purpose::STANDARD
        .decode(data)
        .map_err(|e| malformed("linux_banner", "base64", e.to_string()))?;
    let text = String::from_utf8_lossy(&raw);
    Ok(text.trim_end_matches(['\0', '\n']).to_owned())
}

/// The banner of a file, without reading the rest into a table; of a Windows kernel the name of its symbol file, GUID and
/// age (`ntkrnlmp.pdb 0123...-1`). Takes the time of decompression and one pass over the JSON.
pub fn banner(file: &[u8]) -> Result<Option<String>, IsfError> {
    #[derive(serde::Deserialize)]
    struct Only<'a> {
        #[serde(default)]
        metadata: Option<Metadata>,
        #[serde(borrow)]
        symbols: super::schema::Map<'a, Constant<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Constant<'a> {
        #[serde(borrow)]
        constant_data: Option<Cow<'a, str>>,
    }
    let json = decompress(file)?;
    let only: Only<'_> = serde_json::from_slice(&json)?;
    if let Some(key) = only.metadata.and_then(|m| m.key()) {
        return Ok(Some(key));
    }
    let found = only.symbols.0.iter().find(|(n, _)| n == "linux_banner");
    found
        .and_then(|(_, c)| c.constant_data.as_deref())
        .map(decode)
        .transpose()
}

/// Of what a file says of its origin: the symbol file of a Windows kernel.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    windows: Option<OfWindows>,
}

#[derive(Debug, serde::Deserialize)]
struct OfWindows {
    pdb: Pdb,
}

#[derive(Debug, serde::Deserialize)]
struct Pdb {
    #[serde(rename = "GUID")]
    guid: String,
    age: u32,
    database: String,
}

impl Metadata {
    fn key(&self) -> Option<String> {
        let Pdb {
            guid,
            age,
            database,
        } = &self.windows.as_ref()?.pdb;
        let guid = guid.to_ascii_uppercase();
        Some(format!("{} {guid}-{age}", database.to_ascii_lowercase()))
    }
}

struct Reader<'a> {
    b: Builder,
    user: HashMap<&'a str, TypeId>,
    base: HashMap<&'a str, TypeId>,
    enums: HashMap<&'a str, TypeId>,
}

impl<'a> Reader<'a> {
    /// Gives every named type a number, so that types can name each other in any order.
    fn declare(&mut self, isf: &'a Isf<'a>) -> Result<(), IsfError> {
        for (name, t) in &isf.base_types.0 {
            if t.endian == "big" {
                return Err(malformed(name, "little-endian types", "big"));
            }
            let (size, signed) = (t.size, t.signed);
            let int = |usage| Shape::Int {
                size,
                signed,
                usage,
            };
            let shape = match t.kind.as_ref() {
                "void" => {
                    self.base.insert(name, TypeId::VOID);
                    continue;
                }
                "int" => int(IntUse::Number),
                "char" => int(IntUse::Char),
                "bool" => int(IntUse::Bool),
                "float" => Shape::Float { size },
                other => return Err(malformed(name, "a kind of base type", other)),
            };
            // Not a type of the language; pointers say what they are.
            let named = if name == "pointer" { "" } else { name };
            let named = self.b.string(named);
            let id = self.b.push(shape, named);
            self.base.insert(name, id);
        }
        for (name, _) in &isf.user_types.0 {
            let id = self.fresh(name);
            self.user.insert(name, id);
        }
        for (name, _) in &isf.enums.0 {
            let id = self.fresh(name);
            self.enums.insert(name, id);
        }
        Ok(())
    }

    fn fresh(&mut self, name: &str) -> TypeId {
        let named = if unnamed(name) { "" } else { name };
        let named = self.b.string(named);
        self.b.push(Shape::Forward { union: false }, named)
    }

    fn user_type(&mut self, name: &str, user: &'a User<'a>) -> Result<(), IsfError> {
        let size = user.size;
        let shape = match user.kind.as_ref() {
            "struct" | "class" => Shape::Struct { size },
            "union" => Shape::Union { size },
            other => return Err(malformed(name, "struct or union", other)),
        };
        let mut members = Vec::with_capacity(user.fields.0.len());
        for (field, f) in &user.fields.0 {
            let (mut bit, mut bits) = (f.offset.checked_mul(8), 0);
            let ty = if f.ty.kind == "bitfield" {
                let inner = f.ty.ty.as_deref();
                let inner = inner.ok_or_else(|| malformed(field, "a type", "none"))?;
                bit = bit.and_then(|b| b.checked_add(u64::from(f.ty.bit_position)));
                bits = f.ty.bit_length;
                if bits == 0 || bits > 64 {
                    return Err(malformed(field, "1 to 64 bits", bits.to_string()));
                }
                self.ty(inner, field)?
            } else {
                self.ty(&f.ty, field)?
            };
            let bit = bit.filter(|b| *b <= 8 * u64::from(size).max(1));
            let bit = bit.ok_or_else(|| {
                malformed(field, "a field inside its struct", f.offset.to_string())
            })?;
            let name = if f.anonymous || (unnamed(field) && f.ty.name.starts_with(UNNAMED)) {
                Str::NONE
            } else {
                self.b.string(field)
            };
            members.push(Member {
                name,
                ty,
                bit,
                bits,
            });
        }
        // Fields come by name; a struct has them by place.
        members.sort_by_key(|m| m.bit);
        if let Some(id) = self.user.get(name) {
            self.b.define(*id, shape, &members);
        }
        Ok(())
    }

    fn define_enums(&mut self, isf: &'a Isf<'a>) -> Result<(), IsfError> {
        for (name, e) in &isf.enums.0 {
            let mut values = Vec::with_capacity(e.constants.0.len());
            for (constant, v) in &e.constants.0 {
                let wrapped = i64::try_from(*v)
                    .or_else(|_| u64::try_from(*v).map(u64::cast_signed))
                    .map_err(|_| malformed(constant, "64 bits", v.to_string()))?;
                values.push((self.b.string(constant), wrapped));
            }
            values.sort_by_key(|(_, v)| *v);
            let signed = self
                .base
                .get(e.base.as_ref())
                .and_then(|id| self.b.node(*id))
                .is_some_and(|n| matches!(n.shape, Shape::Int { signed: true, .. }));
            let shape = Shape::Enum {
                size: e.size,
                signed,
            };
            if let Some(id) = self.enums.get(name.as_ref()) {
                self.b.define_enum(*id, shape, &values);
            }
        }
        Ok(())
    }

    /// The type that a field or symbol names. What it names and nobody defines becomes a struct
    /// without a size; the nesting is bounded by that of the JSON.
    fn ty(&mut self, t: &'a Type<'a>, place: &str) -> Result<TypeId, IsfError> {
        let missing = || malformed(place, "a subtype", "none");
        let name = t.name.as_ref();
        Ok(match t.kind.as_ref() {
            "base" => match self.base.get(name) {
                Some(id) => *id,
                None => return Err(malformed(place, "a known base type", name)),
            },
            "struct" | "class" | "union" => match self.user.get(name) {
                Some(id) => *id,
                None => {
                    let id = self.fresh(name);
                    let union = t.kind == "union";
                    self.b.define(id, Shape::Forward { union }, &[]);
                    self.user.insert(name, id);
                    id
                }
            },
            "enum" => match self.enums.get(name) {
                Some(id) => *id,
                None => return Err(malformed(place, "a known enum", name)),
            },
            "pointer" => {
                let target = self.ty(t.subtype.as_deref().ok_or_else(missing)?, place)?;
                self.b.derived(Shape::Pointer { target })
            }
            "array" => {
                let element = self.ty(t.subtype.as_deref().ok_or_else(missing)?, place)?;
                self.b.derived(Shape::Array {
                    element,
                    count: t.count,
                })
            }
            "bitfield" => self.ty(t.ty.as_deref().ok_or_else(missing)?, place)?,
            "function" => self.b.derived(Shape::Function),
            other => return Err(malformed(place, "a kind of type", other)),
        })
    }
}
