//! Questions about types.

use super::build::Str;
use super::{Member, Node, Shape, TypeError, TypeId, Types};
use std::hash::BuildHasher;

/// Typedefs, qualifiers and dimensions to go through at most.
const MAX_HOPS: usize = 64;
/// Anonymous structs inside each other at most.
const MAX_DEPTH: usize = 16;
/// Members to look at for one question: bounds the work on tangled types.
const MAX_LOOKS: usize = 100_000;

/// Bits of a bit-field inside its unit, counted from the least significant one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BitRange {
    /// The first bit.
    pub offset: u8,
    /// How many.
    pub size: u8,
}

/// Where a member lies.
///
/// A bit-field has the offset and size of the unit of its declared type that holds it: read `size`
/// bytes at `offset`, shift down by `bits.offset`, keep `bits.size`. One that leaves such a unit
/// (in packed structs) has the offset of its first byte and as many bytes as it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// Bytes from the start of the type that was asked.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Set for bit-fields.
    pub bits: Option<BitRange>,
    /// Its type.
    pub ty: TypeId,
}

impl Field {
    /// The value of the field in the bytes that were read at its offset, little-endian and without
    /// a sign. `None` if there are fewer bytes than it has, or it has more than 8.
    pub fn value(&self, bytes: &[u8]) -> Option<u64> {
        let n = usize::try_from(self.size).ok()?;
        if n > 8 {
            return None;
        }
        let mut raw = [0; 8];
        raw[..n].copy_from_slice(bytes.get(..n)?);
        let v = u64::from_le_bytes(raw);
        let Some(b) = self.bits else { return Some(v) };
        let mask = 1u64.checked_shl(b.size.into()).map_or(u64::MAX, |m| m - 1);
        Some(v.checked_shr(b.offset.into())? & mask)
    }
}

/// A member as it stands in its struct.
#[derive(Clone, Copy, Debug)]
pub struct MemberInfo<'a> {
    /// Its name; empty for anonymous structs and unions.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Bits from the start of the struct.
    pub bit_offset: u64,
    /// Bits of a bit-field; 0 for other members.
    pub bits: u16,
}

impl Types {
    fn node(&self, id: TypeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// What a type is, typedefs and qualifiers included.
    pub fn shape(&self, id: TypeId) -> Shape {
        self.node(id).map_or(Shape::Void, |n| n.shape)
    }

    /// The name that a type has itself; empty for pointers, arrays and anonymous types.
    pub fn name(&self, id: TypeId) -> &str {
        self.node(id).map_or("", |n| n.name.of(&self.text))
    }

    /// The type behind typedefs and qualifiers.
    pub fn resolve(&self, mut id: TypeId) -> TypeId {
        for _ in 0..MAX_HOPS {
            match self.shape(id) {
                Shape::Typedef { target } | Shape::Qualified { target } => id = target,
                _ => return id,
            }
        }
        TypeId::VOID
    }

    /// All types of a name: structs, unions, enums, typedefs and base types.
    fn named(&self, name: &str) -> impl Iterator<Item = TypeId> {
        let hash = self.hasher.hash_one(name);
        self.by_name
            .iter_hash(hash)
            .copied()
            .filter(move |i| self.nodes[*i as usize].name.is(&self.text, name))
            .map(TypeId)
    }

    /// All structs and unions of a name, the one that answers questions first. A typedef of one
    /// counts when nothing has the name itself (`atomic_t` is a typedef in BTF and a struct in an
    /// ISF).
    pub fn composites(&self, name: &str) -> Vec<TypeId> {
        let mut all = self.composites_of(name, false);
        all.extend(self.composites_of(name, true));
        all
    }

    /// The same of the kernel alone or of modules alone.
    fn composites_of(&self, name: &str, modules: bool) -> Vec<TypeId> {
        let named = || {
            self.named(name)
                .filter(|id| self.is_of_module(*id) == modules)
        };
        let mut found: Vec<TypeId> = named()
            .filter(|id| self.shape(*id).is_composite())
            .collect();
        if found.is_empty() {
            found = named()
                .map(|id| self.resolve(id))
                .filter(|id| self.shape(*id).is_composite())
                .collect();
            found.sort_unstable();
            found.dedup();
        }
        let rank = |id: &TypeId| {
            let members = self.node(*id).map_or(0, |n| n.count);
            (self.size(*id).unwrap_or(0), members, std::cmp::Reverse(*id))
        };
        found.sort_by_key(|id| std::cmp::Reverse(rank(id)));
        found
    }

    /// Whether a type came with a module, not with the kernel.
    pub fn is_of_module(&self, id: TypeId) -> bool {
        id.0 >= self.modules_from
    }

    /// A type by name: a struct or union first, then an enum, a typedef or a base type.
    pub fn find(&self, name: &str) -> Option<TypeId> {
        if name == "void" {
            return Some(TypeId::VOID);
        }
        [false, true].into_iter().find_map(|modules| {
            let composite = self.composites_of(name, modules).into_iter().next();
            composite.or_else(|| {
                self.named(name)
                    .filter(|id| self.is_of_module(*id) == modules)
                    .min()
            })
        })
    }

    fn must(&self, name: &str) -> Result<TypeId, TypeError> {
        self.find(name).ok_or_else(|| TypeError::NoType {
            name: name.to_owned(),
        })
    }

    /// Whether a struct, union, enum, typedef or base type of that name exists.
    pub fn has_type(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    /// Bytes of a type. `None` for void, functions, and structs that are nowhere defined.
    pub fn size(&self, id: TypeId) -> Option<u64> {
        let (mut id, mut times) = (id, 1u64);
        for _ in 0..MAX_HOPS {
            let own = match self.shape(id) {
                Shape::Int { size, .. }
                | Shape::Float { size }
                | Shape::Struct { size }
                | Shape::Union { size }
                | Shape::Enum { size, .. } => size,
                Shape::Pointer { .. } => self.pointer_size,
                Shape::Array { element, count } => {
                    times = times.checked_mul(u64::from(count))?;
                    id = element;
                    continue;
                }
                Shape::Typedef { target } | Shape::Qualified { target } => {
                    id = target;
                    continue;
                }
                Shape::Void | Shape::Forward { .. } | Shape::Function => return None,
            };
            return times.checked_mul(u64::from(own));
        }
        None
    }

    /// Bytes of a named type.
    pub fn size_of(&self, name: &str) -> Result<u64, TypeError> {
        self.size(self.must(name)?)
            .ok_or_else(|| TypeError::NoSize {
                name: name.to_owned(),
            })
    }

    /// What a pointer points to; `None` if the type is no pointer.
    pub fn target(&self, id: TypeId) -> Option<TypeId> {
        match self.shape(self.resolve(id)) {
            Shape::Pointer { target } => Some(target),
            _ => None,
        }
    }

    /// Element and count of an array; `None` if the type is none.
    pub fn array(&self, id: TypeId) -> Option<(TypeId, u32)> {
        match self.shape(self.resolve(id)) {
            Shape::Array { element, count } => Some((element, count)),
            _ => None,
        }
    }

    /// The members of a struct or union as written. Nothing for other types.
    pub fn members(&self, id: TypeId) -> impl ExactSizeIterator<Item = MemberInfo<'_>> {
        self.raw_members(id).iter().map(|m| MemberInfo {
            name: m.name.of(&self.text),
            ty: m.ty,
            bit_offset: m.bit,
            bits: m.bits,
        })
    }

    pub(crate) fn raw_members(&self, id: TypeId) -> &[Member] {
        let id = self.resolve(id);
        match self.node(id) {
            Some(n) if n.shape.is_composite() => self
                .members
                .get(n.first as usize..n.first.saturating_add(n.count) as usize)
                .unwrap_or_default(),
            _ => &[],
        }
    }

    /// Where a member of a named struct lies: `"mm"`, `"thread.sp"`, `"nf.hooks_ipv4[1]"`. Members
    /// of anonymous structs and unions belong to the struct around them. Pointers are not followed.
    pub fn field(&self, name: &str, path: &str) -> Result<Field, TypeError> {
        self.field_in(self.must(name)?, path)
    }

    /// The same for one of several types of a name.
    pub fn field_in(&self, id: TypeId, path: &str) -> Result<Field, TypeError> {
        let mut at = Field {
            offset: 0,
            size: self.size(id).unwrap_or(0),
            bits: None,
            ty: id,
        };
        for part in path.split('.') {
            let (name, mut indices) = match part.find('[') {
                Some(i) => part.split_at(i),
                None => (part, ""),
            };
            let resolved = self.resolve(at.ty);
            if !self.shape(resolved).is_composite() {
                return Err(TypeError::NotComposite {
                    path: path.to_owned(),
                    part: part.to_owned(),
                    ty: self.describe(at.ty),
                });
            }
            let (member, base) = self
                .search(resolved, name)
                .ok_or_else(|| TypeError::NoField {
                    ty: self.describe(at.ty),
                    path: path.to_owned(),
                    part: name.to_owned(),
                })?;
            let inner = self.place(member, base);
            at = Field {
                offset: at.offset.saturating_add(inner.offset),
                ..inner
            };
            while let Some(rest) = indices.strip_prefix('[') {
                let (index, rest) = rest.split_once(']').unwrap_or((rest, ""));
                at = self.element(at, index).ok_or_else(|| TypeError::BadIndex {
                    path: path.to_owned(),
                    part: name.to_owned(),
                    index: index.to_owned(),
                    ty: self.describe(at.ty),
                })?;
                indices = rest;
            }
        }
        Ok(at)
    }

    fn element(&self, at: Field, index: &str) -> Option<Field> {
        let (ty, count) = self.array(at.ty)?;
        let i: u32 = index.parse().ok()?;
        // Flexible arrays have as many elements as there is memory for.
        if count != 0 && i >= count {
            return None;
        }
        let size = self.size(ty)?;
        let step = size.checked_mul(u64::from(i))?;
        Some(Field {
            offset: at.offset.checked_add(step)?,
            size,
            bits: None,
            ty,
        })
    }

    /// Whether a named struct has a member: the way to tell kernels apart.
    pub fn has_field(&self, name: &str, path: &str) -> bool {
        self.field(name, path).is_ok()
    }

    /// The member of that name and the bits that come before the struct that has it.
    fn search(&self, id: TypeId, name: &str) -> Option<(Member, u64)> {
        let mut found = None;
        self.each(id, &mut |m, base| {
            if m.name.is(&self.text, name) {
                found = Some((*m, base));
                return false;
            }
            true
        });
        found
    }

    /// All members of a struct, those of anonymous ones included, with their places.
    pub fn fields(&self, id: TypeId) -> Vec<(&str, Field)> {
        let mut out = Vec::new();
        self.each(self.resolve(id), &mut |m, base| {
            out.push((m.name.of(&self.text), self.place(*m, base)));
            true
        });
        out
    }

    /// Calls `f` for each named member until it returns false.
    fn each(&self, id: TypeId, f: &mut dyn FnMut(&Member, u64) -> bool) {
        let mut looks = MAX_LOOKS;
        self.descend(id, 0, 0, &mut looks, f);
    }

    fn descend(
        &self,
        id: TypeId,
        base: u64,
        depth: usize,
        looks: &mut usize,
        f: &mut dyn FnMut(&Member, u64) -> bool,
    ) -> bool {
        for m in self.raw_members(id) {
            *looks = looks.saturating_sub(1);
            if *looks == 0 {
                return false;
            }
            if m.name != Str::NONE {
                if !f(m, base) {
                    return false;
                }
                continue;
            }
            let inner = self.resolve(m.ty);
            let deeper = depth < MAX_DEPTH && self.shape(inner).is_composite();
            let at = base.saturating_add(m.bit);
            if deeper && !self.descend(inner, at, depth + 1, looks, f) {
                return false;
            }
        }
        true
    }

    /// Makes bytes of bits, the same for every provider.
    pub(crate) fn place(&self, m: Member, base: u64) -> Field {
        let bit = base.saturating_add(m.bit);
        let size = self.size(m.ty).unwrap_or(0);
        let whole = Field {
            offset: bit / 8,
            size,
            bits: None,
            ty: m.ty,
        };
        if m.bits == 0 {
            return whole;
        }
        let bits = |unit: u64| {
            Some(BitRange {
                offset: u8::try_from(bit - unit * 8).ok()?,
                size: u8::try_from(m.bits).ok()?,
            })
        };
        if let Some(unit) = (bit / 8).checked_div(size).map(|n| n * size)
            && bit + u64::from(m.bits) <= (unit + size) * 8
        {
            return Field {
                offset: unit,
                bits: bits(unit),
                ..whole
            };
        }
        let end = (bit + u64::from(m.bits)).div_ceil(8);
        Field {
            size: end - bit / 8,
            bits: bits(bit / 8),
            ..whole
        }
    }

    /// The values of an enumeration with their names. Nothing for other types.
    pub fn values(&self, id: TypeId) -> impl Iterator<Item = (&str, i64)> {
        let id = self.resolve(id);
        let all = match self.node(id) {
            Some(n) if matches!(n.shape, Shape::Enum { .. }) => self
                .values
                .get(n.first as usize..n.first.saturating_add(n.count) as usize)
                .unwrap_or_default(),
            _ => &[],
        };
        all.iter().map(|v| (v.name.of(&self.text), v.value))
    }

    /// All types of a name, the kernel's first.
    fn in_order(&self, name: &str) -> Vec<TypeId> {
        let mut all: Vec<TypeId> = self.named(name).collect();
        all.sort_unstable();
        all
    }

    /// The value of a constant in a named enumeration. Values of unsigned 64-bit ones keep their
    /// bits.
    pub fn enum_value(&self, name: &str, constant: &str) -> Option<i64> {
        self.in_order(name)
            .into_iter()
            .find_map(|id| Some(self.values(id).find(|(n, _)| *n == constant)?.1))
    }

    /// The name that a value has in a named enumeration.
    pub fn enum_name(&self, name: &str, value: i64) -> Option<&str> {
        self.in_order(name)
            .into_iter()
            .find_map(|id| Some(self.values(id).find(|(_, v)| *v == value)?.0))
    }

    /// The value of a constant of any enumeration, anonymous ones included; the first where there
    /// are several.
    pub fn constant(&self, constant: &str) -> Option<i64> {
        let hash = self.hasher.hash_one(constant);
        self.constants
            .iter_hash(hash)
            .copied()
            .filter(|i| self.values[*i as usize].name.is(&self.text, constant))
            .min()
            .map(|i| self.values[i as usize].value)
    }

    /// The enumeration that a constant belongs to.
    pub fn enum_of(&self, constant: &str) -> Option<TypeId> {
        let hash = self.hasher.hash_one(constant);
        self.constants
            .iter_hash(hash)
            .copied()
            .filter(|i| self.values[*i as usize].name.is(&self.text, constant))
            .min()
            .map(|i| self.values[i as usize].owner)
    }

    /// The type of a variable that the provider names: BTF has those of per-CPU variables.
    pub fn variable(&self, name: &str) -> Option<TypeId> {
        let hash = self.hasher.hash_one(name);
        self.variable_names
            .iter_hash(hash)
            .copied()
            .filter(|i| self.variables[*i as usize].0.is(&self.text, name))
            .min()
            .map(|i| self.variables[i as usize].1)
    }

    /// The type in C, for messages and tables: `struct list_head *`, `char [16]`.
    pub fn describe(&self, id: TypeId) -> String {
        self.describe_at(id, MAX_HOPS)
    }

    fn describe_at(&self, id: TypeId, hops: usize) -> String {
        let Some(left) = hops.checked_sub(1) else {
            return "...".into();
        };
        let name = match self.name(id) {
            "" => "{...}",
            n => n,
        };
        match self.shape(id) {
            Shape::Void => "void".into(),
            Shape::Function => "function".into(),
            Shape::Int { .. } | Shape::Float { .. } | Shape::Typedef { .. } => name.to_owned(),
            Shape::Struct { .. } | Shape::Forward { union: false } => format!("struct {name}"),
            Shape::Union { .. } | Shape::Forward { union: true } => format!("union {name}"),
            Shape::Enum { .. } => format!("enum {name}"),
            Shape::Qualified { target } => self.describe_at(target, left),
            Shape::Pointer { target } => match self.describe_at(target, left) {
                t if t.ends_with('*') => format!("{t}*"),
                t => format!("{t} *"),
            },
            Shape::Array { element, count } => {
                format!("{} [{count}]", self.describe_at(element, left))
            }
        }
    }
}
