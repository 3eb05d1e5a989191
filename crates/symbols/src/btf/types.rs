//! From BTF to [`Types`].

use super::{Btf, Kind, RawType};
use crate::types::{IntUse, Member, Node, Shape, Str, TypeId, Types, Value};

/// The types of a kernel's blob. Type numbers stay what they are in the blob.
pub fn to_types(btf: &Btf) -> Types {
    let mut types = Types::empty();
    types.text.clear();
    append(&mut types, btf, |id| id, |name| name);
    types
}

/// Adds the types of a module's split blob to those of its base.
///
/// `types` must come from the base of `split` (other modules may have been added before). A name that the
/// kernel has too still means the kernel's.
pub fn add_split(types: &mut Types, split: &Btf) {
    let kernel = u32::try_from(types.nodes.len()).unwrap_or(u32::MAX);
    types.modules_from = types.modules_from.min(kernel);
    let (_, first_string) = split.strings();
    let (nodes, text) = (types.nodes.len(), types.text.len());
    let first = split.first_id();
    append(
        types,
        split,
        |id| match id.checked_sub(first) {
            Some(own) => own.saturating_add(u32::try_from(nodes).unwrap_or(u32::MAX)),
            None => id,
        },
        |name| match name.checked_sub(first_string) {
            Some(own) => own.saturating_add(u32::try_from(text).unwrap_or(u32::MAX)),
            None => name,
        },
    );
}

fn append(types: &mut Types, btf: &Btf, id: impl Fn(u32) -> u32, name: impl Fn(u32) -> u32) {
    let before = (types.nodes.len(), types.values.len(), types.variables.len());
    types.text.push_str(btf.strings().0);
    types.nodes.reserve(btf.len());
    let last = btf.first_id().saturating_add(btf.count_u32());
    for number in btf.first_id()..last {
        let Some(t) = btf.get(number) else {
            // A type that is lost keeps its number.
            types.nodes.push(Node {
                shape: Shape::Void,
                name: Str::NONE,
                first: 0,
                count: 0,
            });
            continue;
        };
        let ty = |n: u32| TypeId(id(n));
        let string = |n: u32| Str(if n == 0 { 0 } else { name(n) });
        let own = TypeId(u32::try_from(types.nodes.len()).unwrap_or(u32::MAX));
        let mut node = Node {
            shape: shape(&t, &ty),
            name: string(t.name),
            first: 0,
            count: u32::try_from(t.count).unwrap_or(0),
        };
        match t.kind {
            Kind::Struct | Kind::Union => {
                node.first = u32::try_from(types.members.len()).unwrap_or(u32::MAX);
                for i in (0..t.count).map(|i| 3 * i) {
                    let (mut bit, mut bits) = (t.word(i + 2), 0);
                    if t.kind_flag {
                        (bit, bits) = (bit & 0xff_ffff, bit >> 24);
                    }
                    let mut member = Member {
                        name: string(t.word(i)),
                        ty: ty(t.word(i + 1)),
                        bit: u64::from(bit),
                        bits: u16::try_from(bits).unwrap_or(0),
                    };
                    if bits == 0 {
                        narrow(btf, t.word(i + 1), &mut member);
                    }
                    types.members.push(member);
                }
            }
            Kind::Enum | Kind::Enum64 => {
                node.first = u32::try_from(types.values.len()).unwrap_or(u32::MAX);
                for i in 0..t.count {
                    let (n, value) = enumerator(&t, i);
                    types.values.push(Value {
                        name: string(n),
                        value,
                        owner: own,
                    });
                }
            }
            Kind::Var => {
                types.variables.push((node.name, ty(t.size_or_type)));
                node.name = Str::NONE;
            }
            // Their names are not those of types.
            Kind::Func | Kind::Datasec | Kind::DeclTag | Kind::TypeTag => node.name = Str::NONE,
            _ => {}
        }
        types.nodes.push(node);
    }
    // Void is node 0 and has no entry in a blob; a base's nodes begin behind it.
    types.index_from(before.0, before.1, before.2);
}

fn shape(t: &RawType<'_>, ty: &impl Fn(u32) -> TypeId) -> Shape {
    let target = ty(t.size_or_type);
    let size = t.size_or_type;
    match t.kind {
        Kind::Int => {
            let encoding = t.word(0) >> 24 & 0xf;
            Shape::Int {
                size,
                signed: encoding & 1 != 0,
                usage: match encoding {
                    e if e & 4 != 0 => IntUse::Bool,
                    e if e & 2 != 0 => IntUse::Char,
                    _ => IntUse::Number,
                },
            }
        }
        Kind::Ptr => Shape::Pointer { target },
        Kind::Array => Shape::Array {
            element: ty(t.word(0)),
            count: t.word(2),
        },
        Kind::Struct => Shape::Struct { size },
        Kind::Union => Shape::Union { size },
        Kind::Enum | Kind::Enum64 => Shape::Enum {
            size,
            // Enums say so since 6.0; before, a negative value does.
            signed: t.kind_flag
                || (t.kind == Kind::Enum && (0..t.count).any(|i| t.word(2 * i + 1) >> 31 != 0)),
        },
        Kind::Fwd => Shape::Forward { union: t.kind_flag },
        Kind::Typedef => Shape::Typedef { target },
        Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
            Shape::Qualified { target }
        }
        Kind::Func | Kind::FuncProto => Shape::Function,
        Kind::Float => Shape::Float { size },
        Kind::Var | Kind::Datasec | Kind::DeclTag => Shape::Void,
    }
}

fn enumerator(t: &RawType<'_>, i: usize) -> (u32, i64) {
    if t.kind == Kind::Enum64 {
        let (low, high) = (t.word(3 * i + 1), t.word(3 * i + 2));
        let value = u64::from(high) << 32 | u64::from(low);
        return (t.word(3 * i), value.cast_signed());
    }
    // Without the flag values are unsigned since 6.0. Before, they are signed; a set high bit was
    // a negative value far more often than one above 2^31.
    let value = t.word(2 * i + 1).cast_signed();
    (t.word(2 * i), i64::from(value))
}

/// Before the flag for bit-fields, the integer type itself said how many bits it has and where.
fn narrow(btf: &Btf, mut id: u32, member: &mut Member) {
    for _ in 0..32 {
        let Some(t) = btf.get(id) else { return };
        match t.kind {
            Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
                id = t.size_or_type;
            }
            Kind::Int => {
                let (offset, bits) = (t.word(0) >> 16 & 0xff, t.word(0) & 0xff);
                if bits < 8 * t.size_or_type {
                    member.bit = member.bit.saturating_add(u64::from(offset));
                    member.bits = u16::try_from(bits).unwrap_or(0);
                }
                return;
            }
            _ => return,
        }
    }
}
