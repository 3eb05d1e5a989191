//! The JSON as it stands.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// A JSON object in its own order.
#[derive(Debug)]
pub(super) struct Map<'a, T>(pub(super) Vec<(Cow<'a, str>, T)>);

impl<T> Default for Map<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A key that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Map<'a, T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries<'a, T>(PhantomData<(&'a (), T)>);
        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for Entries<'a, T> {
            type Value = Map<'a, T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some((Key(k), v)) = map.next_entry::<Key<'a>, T>()? {
                    out.push((k, v));
                }
                Ok(Map(out))
            }
        }
        d.deserialize_map(Entries(PhantomData))
    }
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Isf<'a> {
    #[serde(default)]
    pub(super) metadata: Option<super::read::Metadata>,
    #[serde(borrow)]
    pub(super) base_types: Map<'a, Base<'a>>,
    #[serde(borrow)]
    pub(super) user_types: Map<'a, User<'a>>,
    #[serde(borrow)]
    pub(super) enums: Map<'a, Enum<'a>>,
    #[serde(borrow)]
    pub(super) symbols: Map<'a, Sym<'a>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Base<'a> {
    pub(super) size: u32,
    #[serde(default)]
    pub(super) signed: bool,
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) endian: Cow<'a, str>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct User<'a> {
    pub(super) size: u32,
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) fields: Map<'a, FieldOf<'a>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct FieldOf<'a> {
    pub(super) offset: u64,
    #[serde(borrow, rename = "type")]
    pub(super) ty: Type<'a>,
    #[serde(default)]
    pub(super) anonymous: bool,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Enum<'a> {
    pub(super) size: u32,
    #[serde(borrow)]
    pub(super) base: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) constants: Map<'a, i128>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Sym<'a> {
    #[serde(default)]
    pub(super) address: u64,
    #[serde(borrow, rename = "type")]
    pub(super) ty: Option<Type<'a>>,
    #[serde(borrow)]
    pub(super) constant_data: Option<Cow<'a, str>>,
}

/// A type as fields and symbols name it. The kind decides which of the others there are.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Type<'a> {
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(default)]
    pub(super) count: u32,
    #[serde(borrow)]
    pub(super) subtype: Option<Box<Type<'a>>>,
    #[serde(default)]
    pub(super) bit_position: u32,
    #[serde(default)]
    pub(super) bit_length: u16,
    #[serde(borrow, rename = "type")]
    pub(super) ty: Option<Box<Type<'a>>>,
}
