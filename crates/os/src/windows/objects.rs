//! Kernel objects: headers, types, names; handle tables.
//!
//! ```text
//! optional headers | _OBJECT_HEADER | body
//! ```
//!
//! From Windows 10 on the type's number in a header is mixed with the second byte of the header's address and a cookie.
//! Which optional headers there are is in InfoMask; those with lower bits lie nearer to the header.
//!
//! Sources: the public types `_OBJECT_HEADER`, `_OBJECT_TYPE`, `_HANDLE_TABLE`, `_HANDLE_TABLE_ENTRY`, `_EX_FAST_REF`.

use super::{Kernel, Object, WindowsError};
use std::collections::BTreeMap;

/// Optional headers, by their bits in InfoMask: type and the bytes that it has where the layouts don't tell.
const OPTIONAL: [(&str, u64); 8] = [
    ("_OBJECT_HEADER_CREATOR_INFO", 0x20),
    ("_OBJECT_HEADER_NAME_INFO", 0x20),
    ("_OBJECT_HEADER_HANDLE_INFO", 0x10),
    ("_OBJECT_HEADER_QUOTA_INFO", 0x20),
    ("_OBJECT_HEADER_PROCESS_INFO", 0x10),
    ("_OBJECT_HEADER_PADDING_INFO", 0x10),
    ("_OBJECT_HEADER_AUDIT_INFO", 0x10),
    ("_OBJECT_HEADER_EXTENDED_INFO", 0x10),
];
/// Bit of the header with the name.
const NAME: u64 = 2;
/// Types of objects at most.
const MAX_TYPES: u64 = 256;
/// Directories above an object at most.
const MAX_DEPTH: usize = 16;

/// The types of objects, by number.
#[derive(Clone, Debug)]
pub(super) struct ObjectTypes {
    names: BTreeMap<u64, String>,
    cookie: Option<u8>,
    body: u64,
}

impl ObjectTypes {
    pub(super) fn new(k: &Kernel<'_>) -> Result<Self, WindowsError> {
        let table = k.address("ObTypeIndexTable")?;
        let mut names = BTreeMap::new();
        for i in 2..MAX_TYPES {
            let va = k.space.u64(table.wrapping_add(i * 8))?;
            if va == 0 {
                break;
            }
            if let Ok(name) = k.object("_OBJECT_TYPE", va).unicode("Name") {
                names.insert(i, name);
            }
        }
        let cookie = k.cookie;
        let body = k.symbols.types().field("_OBJECT_HEADER", "Body")?.offset;
        Ok(Self {
            names,
            cookie,
            body,
        })
    }

    /// The header of an object.
    pub(super) fn header<'k>(&self, k: &'k Kernel<'_>, body: u64) -> Object<'k> {
        k.object("_OBJECT_HEADER", body.wrapping_sub(self.body))
    }

    /// The object behind a header.
    pub(super) fn body(&self, header: u64) -> u64 {
        header.wrapping_add(self.body)
    }

    /// What an object is.
    pub(super) fn of(&self, header: &Object<'_>) -> Result<&str, WindowsError> {
        let raw = header.number("TypeIndex")?;
        let number = match self.cookie {
            Some(c) => raw ^ u64::from(c) ^ (header.va >> 8 & 0xff),
            None => raw,
        };
        Ok(self.names.get(&number).map_or("", String::as_str))
    }
}

/// The header with an object's name, if it has one.
fn name_info<'k>(
    k: &'k Kernel<'_>,
    header: &Object<'_>,
) -> Result<Option<Object<'k>>, WindowsError> {
    let mask = header.number("InfoMask")?;
    if mask & NAME == 0 {
        return Ok(None);
    }
    let types = k.symbols.types();
    let back: u64 = OPTIONAL
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 != 0 && 1u64 << bit <= NAME)
        .map(|(_, (ty, bytes))| types.size_of(ty).unwrap_or(*bytes))
        .sum();
    let va = header.va.wrapping_sub(back);
    Ok(Some(k.object("_OBJECT_HEADER_NAME_INFO", va)))
}

/// The name of an object in its directory.
pub(super) fn name(k: &Kernel<'_>, header: &Object<'_>) -> Result<Option<String>, WindowsError> {
    let Some(info) = name_info(k, header)? else {
        return Ok(None);
    };
    let name = info.unicode("Name")?;
    Ok((!name.is_empty()).then_some(name))
}

/// The name of an object with the directories above it, as far as they can be read.
pub(super) fn path(k: &Kernel<'_>, t: &ObjectTypes, body: u64) -> Option<String> {
    let mut parts = Vec::new();
    let mut at = body;
    for _ in 0..MAX_DEPTH {
        let header = t.header(k, at);
        let info = name_info(k, &header).ok().flatten()?;
        let name = info.unicode("Name").ok()?;
        if name == "\\" {
            break;
        }
        parts.push(name);
        at = info.number("Directory").ok()?;
        if at == 0 {
            break;
        }
    }
    parts.reverse();
    (!parts.is_empty()).then(|| format!("\\{}", parts.join("\\")))
}

/// Entries of a table at most: 2^24 handles are the limit of a process.
const MAX_ENTRIES: u64 = 1 << 24;
const PAGE: u64 = 4096;

/// A handle that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) value: u64,
    /// Address of the object's header; of the table of process and thread numbers that of the object itself.
    pub(super) object: u64,
    pub(super) access: u64,
}

/// Visits the handles of a `_HANDLE_TABLE`. Parts of it that can't be read are passed over and counted.
pub(super) fn handles(
    k: &Kernel<'_>,
    table: u64,
    visit: &mut dyn FnMut(Handle),
) -> Result<usize, WindowsError> {
    let code = k.object("_HANDLE_TABLE", table).number("TableCode")?;
    let entry = k.symbols.types().size_of("_HANDLE_TABLE_ENTRY")?;
    let mut v = Visit {
        k,
        entry,
        unread: 0,
        visited: 0,
    };
    v.level(code & !7, code & 7, 0, visit);
    Ok(v.unread)
}

struct Visit<'k> {
    k: &'k Kernel<'k>,
    entry: u64,
    unread: usize,
    visited: u64,
}

impl Visit<'_> {
    /// One page of the table: of entries at level 0, else of pointers to pages. `first` is the number of its first entry.
    fn level(&mut self, page: u64, level: u64, first: u64, visit: &mut dyn FnMut(Handle)) {
        if level > 2 || page == 0 {
            return;
        }
        let mut raw = [0; 4096];
        if self.k.space.read(page, &mut raw).is_err() {
            self.unread += 1;
            return;
        }
        let per = PAGE / self.entry.max(1);
        if level > 0 {
            let below = per * 512u64.pow(u32::try_from(level - 1).unwrap_or(0));
            for (i, b) in raw.as_chunks::<8>().0.iter().enumerate() {
                let next = u64::from_le_bytes(*b);
                if next != 0 && self.visited < MAX_ENTRIES {
                    self.level(next, level - 1, first + i as u64 * below, visit);
                }
            }
            return;
        }
        for i in 0..per {
            self.visited += 1;
            let e = self.k.object("_HANDLE_TABLE_ENTRY", page + i * self.entry);
            let Some(object) = pointer(&e) else { continue };
            // The first entry of a page is never handed out.
            if object == 0 || i == 0 {
                continue;
            }
            visit(Handle {
                value: (first + i) * 4,
                object,
                access: e
                    .first_of(&["GrantedAccessBits", "GrantedAccess"])
                    .unwrap_or(0),
            });
        }
    }
}

/// What an entry leads to. From Windows 8 on it has bits of the address alone.
fn pointer(e: &Object<'_>) -> Option<u64> {
    if e.has("ObjectPointerBits") {
        let bits = e.number("ObjectPointerBits").ok()?;
        return Some(if bits == 0 {
            0
        } else {
            0xffff_0000_0000_0000 | bits << 4
        });
    }
    let raw = e.number("Object").ok()?;
    // A free entry leads to the next free one.
    Some(if raw >> 47 == 0x1_ffff { raw & !7 } else { 0 })
}
