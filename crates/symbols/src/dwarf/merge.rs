//! Types of all units, each kept once.

use crate::types::{Builder, Member, Shape, Str, TypeId, Types};
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What makes two types the same: the hash of all that they are made of. 64 bits for some 100,000
/// types: the chance that two differing ones meet is below one in a thousand million.
pub(super) type Print = u64;

/// Hashes what a type is made of.
pub(super) fn print(what: impl Hash) -> Print {
    let mut h = DefaultHasher::new();
    what.hash(&mut h);
    h.finish()
}

pub(super) struct Merger {
    b: Builder,
    seen: HashMap<Print, TypeId>,
    /// Named structs and unions: the first definition, or a declaration that waits for one.
    tags: HashMap<(bool, String), TypeId>,
    waiting: HashSet<TypeId>,
    variables: HashMap<String, TypeId>,
    /// Variables that units only declare: those that no unit defines come from assembly or the linker.
    declared: HashMap<String, TypeId>,
}

impl Merger {
    pub(super) fn new() -> Self {
        Self {
            b: Builder::new(),
            seen: HashMap::new(),
            tags: HashMap::new(),
            waiting: HashSet::new(),
            variables: HashMap::new(),
            declared: HashMap::new(),
        }
    }

    pub(super) fn string(&mut self, s: &str) -> Str {
        self.b.string(s)
    }

    /// A type without members.
    pub(super) fn simple(&mut self, name: &str, shape: Shape) -> TypeId {
        if name.is_empty() {
            return self.b.derived(shape);
        }
        let key = print((name, format!("{shape:?}")));
        if let Some(id) = self.seen.get(&key) {
            return *id;
        }
        let name = self.b.string(name);
        let id = self.b.push(shape, name);
        self.seen.insert(key, id);
        id
    }

    /// A struct that a unit declares and does not define.
    pub(super) fn declared(&mut self, name: &str, union: bool) -> TypeId {
        if let Some(id) = self.tags.get(&(union, name.to_owned())) {
            return *id;
        }
        let s = self.b.string(name);
        let id = self.b.push(Shape::Forward { union }, s);
        self.tags.insert((union, name.to_owned()), id);
        self.waiting.insert(id);
        id
    }

    /// The number of a defined struct, and whether its members are still wanted.
    pub(super) fn composite(&mut self, name: &str, shape: Shape, key: Print) -> (TypeId, bool) {
        if let Some(id) = self.seen.get(&key) {
            return (*id, false);
        }
        let union = matches!(shape, Shape::Union { .. });
        let s = self.b.string(name);
        let id = if name.is_empty() {
            self.b.push(shape, s)
        } else {
            match self.tags.entry((union, name.to_owned())) {
                Entry::Occupied(e) if self.waiting.remove(e.get()) => *e.get(),
                Entry::Occupied(_) => self.b.push(shape, s),
                Entry::Vacant(e) => *e.insert(self.b.push(shape, s)),
            }
        };
        self.seen.insert(key, id);
        (id, true)
    }

    pub(super) fn define(&mut self, id: TypeId, shape: Shape, members: &[Member]) {
        self.b.define(id, shape, members);
    }

    pub(super) fn enumeration(
        &mut self,
        name: &str,
        shape: Shape,
        values: &[(Str, i64)],
    ) -> TypeId {
        let plain: Vec<_> = values.iter().map(|(s, v)| (s.0, *v)).collect();
        let key = print((name, format!("{shape:?}"), plain));
        if let Some(id) = self.seen.get(&key) {
            return *id;
        }
        let s = self.b.string(name);
        let id = self.b.push(shape, s);
        self.b.define_enum(id, shape, values);
        self.seen.insert(key, id);
        id
    }

    pub(super) fn add_variable(&mut self, name: &str, ty: TypeId, declared: bool) {
        let of = if declared {
            &mut self.declared
        } else {
            &mut self.variables
        };
        of.entry(name.to_owned()).or_insert(ty);
    }

    /// The type that the definition of a variable has, or else its first declaration.
    pub(super) fn variable(&self, name: &str) -> Option<TypeId> {
        let found = self.variables.get(name);
        found.or_else(|| self.declared.get(name)).copied()
    }

    pub(super) fn finish(self) -> Types {
        self.b.finish()
    }
}
