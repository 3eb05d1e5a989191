//! How providers fill a [`Types`].

use super::{Member, Node, Shape, TypeId, Types, Value};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::hash::BuildHasher;

/// A NUL-terminated string, by its offset in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Str(pub(crate) u32);

impl Str {
    /// The empty string.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn of(self, text: &str) -> &str {
        let rest = text.get(self.0 as usize..).unwrap_or_default();
        let end = rest.bytes().position(|b| b == 0).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    /// Whether this is `name`, without looking for its end.
    pub(crate) fn is(self, text: &str, name: &str) -> bool {
        let at = self.0 as usize;
        let bytes = text.as_bytes().get(at..).unwrap_or_default();
        bytes.starts_with(name.as_bytes()) && bytes.get(name.len()) == Some(&0)
    }
}

/// Builds a [`Types`] node by node, with strings and derived types kept once.
#[derive(Debug)]
pub(crate) struct Builder {
    types: Types,
    strings: HashTable<u32>,
    hasher: DefaultHashBuilder,
    derived: HashMap<(u8, TypeId, u32), TypeId>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            types: Types::empty(),
            strings: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            derived: HashMap::new(),
        }
    }

    /// Keeps a string; a NUL inside ends it.
    pub(crate) fn string(&mut self, s: &str) -> Str {
        let s = s.split('\0').next().unwrap_or_default();
        if s.is_empty() {
            return Str::NONE;
        }
        let hash = self.hasher.hash_one(s);
        let text = &mut self.types.text;
        if let Some(at) = self.strings.find(hash, |at| Str(*at).is(text, s)) {
            return Str(*at);
        }
        // Texts beyond 4 GiB are refused long before, by the size of what is read.
        let at = u32::try_from(text.len()).unwrap_or(0);
        text.push_str(s);
        text.push('\0');
        let hasher = &self.hasher;
        self.strings
            .insert_unique(hash, at, |at| hasher.hash_one(Str(*at).of(text)));
        Str(at)
    }

    pub(crate) fn push(&mut self, shape: Shape, name: Str) -> TypeId {
        let id = TypeId(u32::try_from(self.types.nodes.len()).unwrap_or(u32::MAX));
        self.types.nodes.push(Node {
            shape,
            name,
            first: 0,
            count: 0,
        });
        id
    }

    /// A pointer, array or qualified type, kept once per target.
    pub(crate) fn derived(&mut self, shape: Shape) -> TypeId {
        let key = match shape {
            Shape::Pointer { target } => (0, target, 0),
            Shape::Array { element, count } => (1, element, count),
            Shape::Qualified { target } => (2, target, 0),
            Shape::Function => (3, TypeId::VOID, 0),
            _ => return self.push(shape, Str::NONE),
        };
        if let Some(id) = self.derived.get(&key) {
            return *id;
        }
        let id = self.push(shape, Str::NONE);
        self.derived.insert(key, id);
        id
    }

    /// Gives a node its shape and members, if it has none yet.
    pub(crate) fn define(&mut self, id: TypeId, shape: Shape, members: &[Member]) {
        let first = u32::try_from(self.types.members.len()).unwrap_or(u32::MAX);
        if let Some(n) = self.types.nodes.get_mut(id.0 as usize) {
            n.shape = shape;
            n.first = first;
            n.count = u32::try_from(members.len()).unwrap_or(u32::MAX);
            self.types.members.extend_from_slice(members);
        }
    }

    /// Gives a node the shape of an enumeration, with these values.
    pub(crate) fn define_enum(&mut self, id: TypeId, shape: Shape, values: &[(Str, i64)]) {
        let first = u32::try_from(self.types.values.len()).unwrap_or(u32::MAX);
        if let Some(n) = self.types.nodes.get_mut(id.0 as usize) {
            n.shape = shape;
            n.first = first;
            n.count = u32::try_from(values.len()).unwrap_or(u32::MAX);
            let own = |(name, value): &(Str, i64)| Value {
                name: *name,
                value: *value,
                owner: id,
            };
            self.types.values.extend(values.iter().map(own));
        }
    }

    pub(crate) fn node(&self, id: TypeId) -> Option<&Node> {
        self.types.nodes.get(id.0 as usize)
    }

    pub(crate) fn finish(mut self) -> Types {
        self.types.index_from(0, 0, 0);
        let t = &mut self.types;
        t.text.shrink_to_fit();
        t.nodes.shrink_to_fit();
        t.members.shrink_to_fit();
        t.values.shrink_to_fit();
        self.types
    }
}
