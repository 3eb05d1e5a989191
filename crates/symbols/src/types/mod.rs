//! Types: structs, unions, enums and what they are made of, whoever told of them.
//!
//! BTF, an ISF and DWARF all end here, and views ask here. The three differ in what they keep:
//! an ISF has no typedefs and no function types, DWARF has no separate names for a struct that is
//! defined in many places. So what a view asks must not depend on it: offsets, sizes, bit ranges
//! and counts are the same from each, and names resolve through typedefs.
//!
//! A name may be defined more than once: kernels have 10 to 20 such structs, private to different
//! source files. All are kept. A question by name is answered from the largest one (then the one
//! with most members, then the first); [`Types::composites`] gives all. Those of the kernel go before
//! those of modules, whatever their size: what a module calls its own does not change what the kernel's
//! structs are.

mod build;
mod error;
mod lookup;

pub(crate) use build::{Builder, Str};
pub use error::TypeError;
pub use lookup::{BitRange, Field, MemberInfo};

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// A type of one [`Types`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub(crate) u32);

impl TypeId {
    /// `void`.
    pub const VOID: Self = Self(0);
}

/// What an integer is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IntUse {
    Number,
    Char,
    Bool,
}

/// What a type is. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `void`, or something that has no values (a section, a tag).
    Void,
    /// An integer.
    Int {
        /// Bytes.
        size: u32,
        /// Whether it has a sign.
        signed: bool,
        /// What it is used for.
        usage: IntUse,
    },
    /// A floating-point number.
    Float {
        /// Bytes.
        size: u32,
    },
    /// A pointer.
    Pointer {
        /// What it points to.
        target: TypeId,
    },
    /// An array.
    Array {
        /// Its element.
        element: TypeId,
        /// How many; 0 for flexible ones.
        count: u32,
    },
    /// A struct.
    Struct {
        /// Bytes.
        size: u32,
    },
    /// A union.
    Union {
        /// Bytes.
        size: u32,
    },
    /// An enumeration.
    Enum {
        /// Bytes.
        size: u32,
        /// Whether its values have a sign.
        signed: bool,
    },
    /// Another name for a type.
    Typedef {
        /// The type.
        target: TypeId,
    },
    /// `const`, `volatile`, `restrict` or a tag on a type.
    Qualified {
        /// The type.
        target: TypeId,
    },
    /// A struct or union that is named and nowhere defined.
    Forward {
        /// Whether it is a union.
        union: bool,
    },
    /// A function.
    Function,
}

impl Shape {
    /// Whether it has members.
    pub fn is_composite(self) -> bool {
        matches!(self, Self::Struct { .. } | Self::Union { .. })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) shape: Shape,
    pub(crate) name: Str,
    /// First of its members or values.
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// A member as written: bit offset from the start of the struct, bits if it is a bit-field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) name: Str,
    pub(crate) ty: TypeId,
    pub(crate) bit: u64,
    pub(crate) bits: u16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    pub(crate) name: Str,
    pub(crate) value: i64,
    pub(crate) owner: TypeId,
}

/// All types of a kernel.
///
/// Look-ups by name are one probe of a hash table; members of a struct are compared one after the
/// other, which takes about a microsecond: keep the [`Field`] instead of asking per object.
#[derive(Clone)]
pub struct Types {
    pub(crate) text: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) members: Vec<Member>,
    pub(crate) values: Vec<Value>,
    pub(crate) variables: Vec<(Str, TypeId)>,
    hasher: DefaultHashBuilder,
    by_name: HashTable<u32>,
    constants: HashTable<u32>,
    variable_names: HashTable<u32>,
    pointer_size: u32,
    /// The first type that is a module's.
    pub(crate) modules_from: u32,
}

impl std::fmt::Debug for Types {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Types")
            .field("types", &self.nodes.len())
            .field("members", &self.members.len())
            .field("values", &self.values.len())
            .finish_non_exhaustive()
    }
}

impl Default for Types {
    fn default() -> Self {
        Builder::new().finish()
    }
}

impl Types {
    pub(crate) fn empty() -> Self {
        Self {
            text: "\0".into(),
            nodes: vec![Node {
                shape: Shape::Void,
                name: Str::NONE,
                first: 0,
                count: 0,
            }],
            members: Vec::new(),
            values: Vec::new(),
            variables: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            by_name: HashTable::new(),
            constants: HashTable::new(),
            variable_names: HashTable::new(),
            pointer_size: 8,
            modules_from: u32::MAX,
        }
    }

    /// How many types there are, `void` included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but `void`.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// Bytes that this takes in memory, hash tables included.
    pub fn memory_bytes(&self) -> usize {
        let tables = [&self.by_name, &self.constants, &self.variable_names];
        self.text.capacity()
            + self.nodes.capacity() * size_of::<Node>()
            + self.members.capacity() * size_of::<Member>()
            + self.values.capacity() * size_of::<Value>()
            + self.variables.capacity() * size_of::<(Str, TypeId)>()
            + tables.iter().map(|t| t.allocation_size()).sum::<usize>()
    }

    /// Enters the nodes, values and variables from these numbers on into the hash tables.
    pub(crate) fn index_from(&mut self, node: usize, value: usize, variable: usize) {
        let Self {
            text,
            nodes,
            values,
            variables,
            hasher,
            by_name,
            constants,
            variable_names,
            ..
        } = self;
        let hash = |s: Str| hasher.hash_one(s.of(text));
        let named = |n: &Node| {
            n.name != Str::NONE && !matches!(n.shape, Shape::Void | Shape::Forward { .. })
        };
        let numbered = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
        let fresh = nodes.iter().skip(node).filter(|n| named(n)).count();
        by_name.reserve(fresh, |i| hash(nodes[*i as usize].name));
        for (i, n) in nodes.iter().enumerate().skip(node) {
            if named(n) {
                by_name.insert_unique(hash(n.name), numbered(i), |i| hash(nodes[*i as usize].name));
            }
        }
        constants.reserve(values.len() - value, |i| hash(values[*i as usize].name));
        for (i, v) in values.iter().enumerate().skip(value) {
            constants.insert_unique(hash(v.name), numbered(i), |i| {
                hash(values[*i as usize].name)
            });
        }
        for (i, v) in variables.iter().enumerate().skip(variable) {
            variable_names
                .insert_unique(hash(v.0), numbered(i), |i| hash(variables[*i as usize].0));
        }
    }
}
