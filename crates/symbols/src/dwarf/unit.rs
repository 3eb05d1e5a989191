//! The types and variables of one unit.

use super::elf::Slice;
use super::merge::{Merger, Print, print};
use super::{DwarfError, damaged};
use crate::types::{IntUse, Member, Shape, TypeId};
use gimli::{AttributeValue, DwTag, UnitHeader, UnitOffset};
use hashbrown::HashMap;

/// Entries inside each other at most, and types that lead to each other.
const MAX_DEPTH: usize = 64;

/// One entry of the unit, as far as types need it.
#[derive(Clone, Debug)]
struct Die<'a> {
    tag: DwTag,
    name: &'a str,
    size: Option<u64>,
    ty: Option<UnitOffset>,
    encoding: Option<gimli::DwAte>,
    declaration: bool,
    location: u64,
    bit_size: u16,
    /// Bits from the start of the struct, or what the older form has.
    data_bit_offset: Option<u64>,
    bit_offset: Option<i64>,
    count: Option<u64>,
    value: i64,
    specification: Option<UnitOffset>,
    children: Vec<usize>,
}

struct Unit<'a, 'm> {
    dies: Vec<Die<'a>>,
    by_offset: HashMap<UnitOffset, usize>,
    done: HashMap<usize, TypeId>,
    prints: HashMap<usize, Print>,
    /// Structs that have a number and want their members: filled in one after the other, because
    /// structs that point to each other form chains of any length.
    pending: Vec<(usize, TypeId, Shape)>,
    merger: &'m mut Merger,
}

pub(super) fn read<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    header: UnitHeader<Slice<'a>>,
    merger: &mut Merger,
) -> Result<(), DwarfError> {
    let place = format!("unit at {:?}", header.offset());
    let unit = dwarf.unit(header).map_err(damaged(&place))?;
    let mut dies: Vec<Die<'a>> = Vec::new();
    let mut by_offset = HashMap::new();
    // The entry that each depth is in, if it is kept.
    let mut path: Vec<Option<usize>> = Vec::new();
    let mut roots = Vec::new();
    let mut entries = unit.entries();
    while let Some(entry) = entries.next_dfs().map_err(damaged(&place))? {
        let depth = usize::try_from(entry.depth()).unwrap_or(0);
        path.truncate(depth);
        let kept = if wanted(entry.tag()) {
            let die = read_die(dwarf, &unit, entry).map_err(damaged(&place))?;
            let i = dies.len();
            by_offset.insert(entry.offset(), i);
            match path.last().copied().flatten() {
                Some(parent) => dies[parent].children.push(i),
                None if entry.tag() == gimli::DW_TAG_variable && depth <= 1 => roots.push(i),
                None => {}
            }
            dies.push(die);
            Some(i)
        } else {
            None
        };
        while path.len() < depth {
            path.push(None);
        }
        path.push(kept);
    }
    let mut u = Unit {
        dies,
        by_offset,
        done: HashMap::new(),
        prints: HashMap::new(),
        pending: Vec::new(),
        merger,
    };
    for i in 0..u.dies.len() {
        if u.dies.get(i).is_some_and(|d| is_type(d.tag)) {
            u.convert(i, 0);
            u.fill();
        }
    }
    for i in roots {
        u.variable(i);
    }
    u.fill();
    Ok(())
}

fn is_type(tag: DwTag) -> bool {
    matches!(
        tag,
        gimli::DW_TAG_structure_type
            | gimli::DW_TAG_class_type
            | gimli::DW_TAG_union_type
            | gimli::DW_TAG_enumeration_type
            | gimli::DW_TAG_typedef
            | gimli::DW_TAG_base_type
            | gimli::DW_TAG_unspecified_type
            | gimli::DW_TAG_pointer_type
            | gimli::DW_TAG_array_type
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_restrict_type
            | gimli::DW_TAG_atomic_type
            | gimli::DW_TAG_subroutine_type
    )
}

fn wanted(tag: DwTag) -> bool {
    is_type(tag)
        || matches!(
            tag,
            gimli::DW_TAG_member
                | gimli::DW_TAG_enumerator
                | gimli::DW_TAG_subrange_type
                | gimli::DW_TAG_variable
        )
}

fn read_die<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &gimli::Unit<Slice<'a>>,
    entry: &gimli::DebuggingInformationEntry<Slice<'a>>,
) -> gimli::Result<Die<'a>> {
    let mut die = Die {
        tag: entry.tag(),
        name: "",
        size: None,
        ty: None,
        encoding: None,
        declaration: false,
        location: 0,
        bit_size: 0,
        data_bit_offset: None,
        bit_offset: None,
        count: None,
        value: 0,
        specification: None,
        children: Vec::new(),
    };
    for attr in entry.attrs() {
        let value = attr.value();
        let reference = || match attr.value() {
            AttributeValue::UnitRef(o) => Some(o),
            _ => None,
        };
        match attr.name() {
            gimli::DW_AT_name => {
                let s = dwarf.attr_string(unit, value)?;
                die.name = std::str::from_utf8(s.slice()).unwrap_or_default();
            }
            gimli::DW_AT_byte_size => die.size = attr.udata_value(),
            gimli::DW_AT_type => die.ty = reference(),
            gimli::DW_AT_specification => die.specification = reference(),
            gimli::DW_AT_encoding => {
                if let AttributeValue::Encoding(e) = value {
                    die.encoding = Some(e);
                }
            }
            gimli::DW_AT_declaration => die.declaration = value == AttributeValue::Flag(true),
            gimli::DW_AT_data_member_location => {
                die.location = match value {
                    AttributeValue::Exprloc(e) => plus_constant(e, unit.encoding()),
                    _ => attr.udata_value().unwrap_or(0),
                };
            }
            gimli::DW_AT_bit_size => {
                let bits = attr.udata_value().and_then(|v| u16::try_from(v).ok());
                die.bit_size = bits.unwrap_or(0);
            }
            gimli::DW_AT_data_bit_offset => die.data_bit_offset = attr.udata_value(),
            // Negative where a packed bit-field leaves its unit.
            gimli::DW_AT_bit_offset => die.bit_offset = constant(attr),
            gimli::DW_AT_count => die.count = attr.udata_value(),
            // The bound of an empty array is -1.
            gimli::DW_AT_upper_bound => {
                die.count = attr
                    .sdata_value()
                    .filter(|v| *v >= 0)
                    .map(|v| v.cast_unsigned().saturating_add(1))
                    .or_else(|| attr.udata_value().and_then(|v| v.checked_add(1)));
            }
            gimli::DW_AT_const_value => die.value = constant(attr).unwrap_or(0),
            _ => {}
        }
    }
    Ok(die)
}

/// A constant. Forms of a fixed size do not say whether there is a sign; compilers write negative
/// values in the form that does.
fn constant(attr: &gimli::Attribute<Slice<'_>>) -> Option<i64> {
    let plain = attr.udata_value().map(u64::cast_signed);
    plain.or_else(|| attr.sdata_value())
}

/// DWARF 2 writes a member's place as an expression that adds a constant.
fn plus_constant(e: gimli::Expression<Slice<'_>>, encoding: gimli::Encoding) -> u64 {
    match e.operations(encoding).next() {
        Ok(Some(gimli::Operation::PlusConstant { value })) => value,
        _ => 0,
    }
}

impl Unit<'_, '_> {
    fn target(&mut self, i: usize, depth: usize) -> TypeId {
        let target = self.dies.get(i).and_then(|d| d.ty);
        match target.and_then(|o| self.by_offset.get(&o)).copied() {
            Some(t) => self.convert(t, depth + 1),
            None => TypeId::VOID,
        }
    }

    /// The type of an entry. Types that refer to themselves do so through a struct, which has its
    /// number before its members are looked at.
    fn convert(&mut self, i: usize, depth: usize) -> TypeId {
        if let Some(id) = self.done.get(&i) {
            return *id;
        }
        let Some(die) = self.dies.get(i).cloned() else {
            return TypeId::VOID;
        };
        if depth > MAX_DEPTH {
            return TypeId::VOID;
        }
        let size = u32::try_from(die.size.unwrap_or(0)).unwrap_or(0);
        let id = match die.tag {
            gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type => {
                return self.composite(i, &die, Shape::Struct { size });
            }
            gimli::DW_TAG_union_type => {
                return self.composite(i, &die, Shape::Union { size });
            }
            gimli::DW_TAG_enumeration_type => self.enumeration(&die, size),
            gimli::DW_TAG_typedef => {
                let target = self.target(i, depth);
                self.merger.simple(die.name, Shape::Typedef { target })
            }
            gimli::DW_TAG_pointer_type => {
                let target = self.target(i, depth);
                self.merger.simple("", Shape::Pointer { target })
            }
            gimli::DW_TAG_array_type => {
                let mut element = self.target(i, depth);
                for c in die.children.iter().rev() {
                    let bound = self.dies.get(*c);
                    let bound = bound.filter(|d| d.tag == gimli::DW_TAG_subrange_type);
                    let Some(bound) = bound else { continue };
                    let count = u32::try_from(bound.count.unwrap_or(0)).unwrap_or(0);
                    element = self.merger.simple("", Shape::Array { element, count });
                }
                element
            }
            gimli::DW_TAG_base_type => self.merger.simple(die.name, base(&die, size)),
            gimli::DW_TAG_subroutine_type => self.merger.simple("", Shape::Function),
            gimli::DW_TAG_unspecified_type => TypeId::VOID,
            // Qualifiers change nothing that is asked here.
            _ => self.target(i, depth),
        };
        self.done.insert(i, id);
        id
    }

    fn enumeration(&mut self, die: &Die<'_>, size: u32) -> TypeId {
        let mut values = Vec::with_capacity(die.children.len());
        for c in &die.children {
            if let Some(d) = self.dies.get(*c)
                && d.tag == gimli::DW_TAG_enumerator
            {
                let (name, value) = (d.name.to_owned(), d.value);
                values.push((self.merger.string(&name), value));
            }
        }
        let base = die.ty.and_then(|o| self.by_offset.get(&o));
        let base = base
            .and_then(|b| self.dies.get(*b))
            .and_then(|d| d.encoding);
        let signed = match base {
            Some(e) => matches!(e, gimli::DW_ATE_signed | gimli::DW_ATE_signed_char),
            None => values.iter().any(|(_, v)| *v < 0),
        };
        self.merger
            .enumeration(die.name, Shape::Enum { size, signed }, &values)
    }

    fn composite(&mut self, i: usize, die: &Die<'_>, shape: Shape) -> TypeId {
        if die.declaration {
            let union = matches!(shape, Shape::Union { .. });
            let id = self.merger.declared(die.name, union);
            self.done.insert(i, id);
            return id;
        }
        let key = self.print(i, 0);
        let (id, fresh) = self.merger.composite(die.name, shape, key);
        self.done.insert(i, id);
        if fresh {
            self.pending.push((i, id, shape));
        }
        id
    }

    /// Gives the pending structs their members.
    fn fill(&mut self) {
        while let Some((i, id, shape)) = self.pending.pop() {
            let children = self.dies.get(i).map(|d| d.children.clone());
            let mut members = Vec::new();
            for c in children.unwrap_or_default() {
                let Some(d) = self.dies.get(c).cloned() else {
                    continue;
                };
                if d.tag != gimli::DW_TAG_member {
                    continue;
                }
                let ty = self.target(c, 0);
                members.push(Member {
                    name: self.merger.string(d.name),
                    ty,
                    bit: self.bit(&d),
                    bits: d.bit_size,
                });
            }
            self.merger.define(id, shape, &members);
        }
    }

    /// Bits from the start of the struct.
    fn bit(&self, d: &Die<'_>) -> u64 {
        if let Some(bit) = d.data_bit_offset {
            return bit;
        }
        let start = d.location.saturating_mul(8);
        let Some(from_top) = d.bit_offset else {
            return start;
        };
        // DWARF 2 and 3 count from the most significant bit of the unit.
        let unit = d.size.or_else(|| {
            let t = d.ty.and_then(|o| self.by_offset.get(&o))?;
            self.dies.get(self.plain(*t))?.size
        });
        let bits = unit.unwrap_or(4).saturating_mul(8);
        let end = start.saturating_add(bits);
        end.saturating_add_signed(from_top.saturating_neg())
            .saturating_sub(u64::from(d.bit_size))
    }

    /// Behind typedefs and qualifiers.
    fn plain(&self, mut i: usize) -> usize {
        for _ in 0..MAX_DEPTH {
            let Some(d) = self.dies.get(i) else { return i };
            let through = matches!(
                d.tag,
                gimli::DW_TAG_typedef | gimli::DW_TAG_const_type | gimli::DW_TAG_volatile_type
            );
            match d.ty.and_then(|o| self.by_offset.get(&o)) {
                Some(next) if through => i = *next,
                _ => return i,
            }
        }
        i
    }

    /// What a type is made of. Named structs count by name where they are referred to, so that the
    /// same type prints the same whether or not a unit defines what it points to.
    fn print(&mut self, i: usize, depth: usize) -> Print {
        let Some(die) = self.dies.get(i) else {
            return 0;
        };
        let tagged = matches!(
            die.tag,
            gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type | gimli::DW_TAG_class_type
        );
        // Before what is known: whether this unit has asked for the struct itself makes no difference.
        if tagged && depth > 0 && !die.name.is_empty() {
            return print((die.tag.0, die.name));
        }
        if let Some(p) = self.prints.get(&i) {
            return *p;
        }
        if depth > MAX_DEPTH {
            return 1;
        }
        let die = die.clone();
        let own = print((die.tag.0, die.name, die.size, die.count, die.value));
        let mut parts = vec![own];
        if let Some(t) = die.ty.and_then(|o| self.by_offset.get(&o)).copied() {
            parts.push(self.print(t, depth + 1));
        }
        for c in &die.children {
            let Some(d) = self.dies.get(*c).cloned() else {
                continue;
            };
            parts.push(print((d.name, self.bit(&d), d.bit_size, d.value, d.count)));
            if let Some(t) = d.ty.and_then(|o| self.by_offset.get(&o)).copied() {
                parts.push(self.print(t, depth + 1));
            }
        }
        let all = print(parts);
        // Cut short by the depth, it would be another from elsewhere.
        if depth < MAX_DEPTH / 2 && !(tagged && depth > 0) {
            self.prints.insert(i, all);
        }
        all
    }

    fn variable(&mut self, i: usize) {
        let Some(mut die) = self.dies.get(i).cloned() else {
            return;
        };
        let mut at = i;
        if let Some(s) = die.specification.and_then(|o| self.by_offset.get(&o)) {
            at = *s;
            // The definition may complete the type: an array gets its length.
            if die.ty.is_none()
                && let Some(d) = self.dies.get(at)
            {
                die = Die {
                    declaration: false,
                    ..d.clone()
                };
            } else {
                let name = self.dies.get(at).map_or("", |d| d.name);
                die.name = name;
                at = i;
            }
        }
        if die.name.is_empty() {
            return;
        }
        let ty = self.target(at, 0);
        if ty != TypeId::VOID {
            self.merger.add_variable(die.name, ty, die.declaration);
        }
    }
}

fn base(die: &Die<'_>, size: u32) -> Shape {
    let int = |signed, usage| Shape::Int {
        size,
        signed,
        usage,
    };
    match die.encoding {
        Some(gimli::DW_ATE_float) => Shape::Float { size },
        Some(gimli::DW_ATE_boolean) => int(false, IntUse::Bool),
        Some(gimli::DW_ATE_signed_char) => int(true, IntUse::Char),
        Some(gimli::DW_ATE_unsigned_char) => int(false, IntUse::Char),
        Some(gimli::DW_ATE_signed) => int(true, IntUse::Number),
        _ => int(false, IntUse::Number),
    }
}
