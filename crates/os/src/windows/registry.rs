//! Registry hives as the kernel has them in memory.
//!
//! ```text
//! cell number: bit 31 volatile storage | 10 bits of a table | 9 bits of an entry | 12 bits in a block of 4 KiB
//! _CMHIVE.Hive.Storage[i].Map -> directory -> table -> entry -> the block
//! cell: size i32, negative while in use | "nk" key, "vk" value, "lf" "lh" "li" "ri" lists of keys, "db" long data
//! ```
//!
//! From Windows 10 1709 on the blocks lie in the memory of the process Registry, before in paged pool. All numbers are of
//! hostile memory: lists are followed to bounds, keys each once.
//!
//! Sources: the public types `_CMHIVE`, `_HHIVE`, `_DUAL`, `_HMAP_ENTRY`; "Windows NT Registry File (REGF) format
//! specification" (J. Metz).

use super::{Kernel, Object, Space, WindowsError, lists};
use std::collections::HashSet;

/// No cell.
const NONE: u32 = u32::MAX;
const VOLATILE: u32 = 1 << 31;
/// Bytes of a cell at most: what is longer is split.
const MAX_CELL: usize = 1 << 20;
/// Entries of a list of keys or values at most.
const MAX_LIST: usize = 1 << 16;
/// Keys inside each other at most (the limit of Windows is 512).
const MAX_DEPTH: usize = 512;
/// Bytes of a segment of long data.
const SEGMENT: usize = 16344;

/// A hive.
pub(super) struct Hive<'k> {
    pub(super) object: Object<'k>,
    k: &'k Kernel<'k>,
    /// Memory of the process Registry.
    registry: Option<&'k Space<'k>>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Path below the root of the hive; empty of the root itself.
    pub(super) path: String,
    /// FILETIME of the last change.
    pub(super) changed: u64,
    /// Virtual address of its cell.
    pub(super) va: u64,
    /// Values.
    pub(super) values: Vec<Value>,
    /// Whether a part of it could not be read.
    pub(super) torn: bool,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) name: String,
    pub(super) kind: u32,
    /// `None` where it could not be read.
    pub(super) data: Option<Vec<u8>>,
}

/// The space of the process Registry, where there is one.
pub(super) fn registry_space<'k>(
    k: &'k Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Option<Space<'k>>, WindowsError> {
    let all = k.processes(doubts)?;
    let own = all
        .iter()
        .find(|p| p.name() == "Registry" && p.object.number("Peb").is_ok_and(|p| p == 0));
    own.map(|p| p.space(k)).transpose()
}

/// The hives of the kernel's list.
pub(super) fn hives<'k>(
    k: &'k Kernel<'k>,
    registry: Option<&'k Space<'k>>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Hive<'k>>, WindowsError> {
    let walk = lists::list(k, k.address("CmpHiveListHead")?, "_CMHIVE", "HiveList")?;
    doubts.extend(walk.broken);
    let hive = |va| Hive {
        object: k.object("_CMHIVE", va),
        k,
        registry,
    };
    Ok(walk.items.into_iter().map(hive).collect())
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..at + 2)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn word(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at + 4)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn long(b: &[u8], at: usize) -> Option<u64> {
    b.get(at..at + 8)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

/// A name in bytes of one or of two for each character.
fn name(b: &[u8], narrow: bool) -> String {
    if narrow {
        return b.iter().map(|b| char::from(*b)).collect();
    }
    let units: Vec<u16> = b
        .as_chunks::<2>()
        .0
        .iter()
        .map(|u| u16::from_le_bytes(*u))
        .collect();
    String::from_utf16_lossy(&units)
}

/// The name in the cell of a key.
fn own_name(nk: &[u8]) -> Option<String> {
    let (flags, len) = (half(nk, 2)?, usize::from(half(nk, 0x48)?));
    Some(name(nk.get(0x4c..0x4c + len)?, flags & 0x20 != 0))
}

impl Key {
    /// Its last name.
    pub(super) fn leaf(&self) -> &str {
        self.path.rsplit('\\').next().unwrap_or_default()
    }

    /// The value of a name, without regard to case.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.values
            .iter()
            .find(|v| v.name.eq_ignore_ascii_case(name))
    }

    /// A value that is text; of several texts all, side by side.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.value(name)?.as_text()
    }

    /// A value of 32 bits.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        let raw = self.value(name)?.data.as_deref()?.first_chunk()?;
        Some(u32::from_le_bytes(*raw))
    }
}

/// Characters of a text that are kept.
const TEXT: usize = 4096;

impl Value {
    /// As text, if it is some: REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ.
    pub(super) fn as_text(&self) -> Option<String> {
        let data = self.data.as_deref()?;
        let out = match self.kind {
            1 | 2 => super::space::wide(data),
            7 => {
                let units = data.as_chunks::<2>().0.iter();
                let units: Vec<u16> = units.map(|u| u16::from_le_bytes(*u)).collect();
                let parts = units.split(|u| *u == 0).filter(|p| !p.is_empty());
                let parts: Vec<String> = parts.map(String::from_utf16_lossy).collect();
                parts.join(" | ")
            }
            _ => return None,
        };
        Some(out.chars().take(TEXT).collect())
    }
}

impl<'k> Hive<'k> {
    /// Where the hive hangs in the registry: `\REGISTRY\MACHINE\SYSTEM`.
    pub(super) fn root(&self) -> String {
        self.object.unicode("HiveRootPath").unwrap_or_default()
    }

    /// Path of its file.
    pub(super) fn file(&self) -> String {
        self.object.unicode("FileFullPath").unwrap_or_default()
    }

    /// What an address of the hive's is to be read in: below the kernel's half it is the process Registry's.
    pub(super) fn space(&self, va: u64) -> &Space<'k> {
        match self.registry {
            Some(r) if va >> 47 == 0 => r,
            _ => &self.k.space,
        }
    }

    /// Bytes of its stable part, base block aside.
    pub(super) fn length(&self) -> Result<u64, WindowsError> {
        self.object.number("Hive.Storage[0].Length")
    }

    /// Virtual address of its base block.
    pub(super) fn base_block(&self) -> Result<u64, WindowsError> {
        self.object.number("Hive.BaseBlock")
    }

    /// The address of a cell, or of a block where the lower 12 bits are 0.
    pub(super) fn address(&self, cell: u32) -> Option<u64> {
        let map = if cell & VOLATILE == 0 {
            "Hive.Storage[0].Map"
        } else {
            "Hive.Storage[1].Map"
        };
        let directory = self.object.number(map).ok().filter(|va| *va != 0)?;
        let (table, entry) = (u64::from(cell >> 21 & 0x3ff), u64::from(cell >> 12 & 0x1ff));
        let table = self
            .k
            .space
            .u64(directory + table * 8)
            .ok()
            .filter(|va| *va != 0)?;
        let size = self.k.symbols.types().size_of("_HMAP_ENTRY").ok()?;
        let e = self.k.object("_HMAP_ENTRY", table + entry * size);
        let block = if e.has("PermanentBinAddress") {
            let bin = e.number("PermanentBinAddress").ok()? & !0xf;
            bin.checked_add(e.number("BlockOffset").ok()?)?
        } else {
            e.number("BlockAddress").ok()?
        };
        (block >= 4096).then_some(block + u64::from(cell & 0xfff))
    }

    /// The bytes of a cell that is in use, and where they lie.
    fn cell(&self, cell: u32) -> Option<(u64, Vec<u8>)> {
        if cell == NONE {
            return None;
        }
        let va = self.address(cell)?;
        let space = self.space(va);
        let mut raw = [0; 4];
        space.read(va, &mut raw).ok()?;
        let size = i32::from_le_bytes(raw);
        let len = usize::try_from(size.checked_neg()?).ok()?.checked_sub(4)?;
        if len == 0 || len > MAX_CELL {
            return None;
        }
        let mut out = vec![0; len];
        // Blocks of one bin are neighbours in memory.
        space.read(va + 4, &mut out).ok()?;
        Some((va, out))
    }

    /// Visits its keys, each before those below it, until the visitor has enough. Gives how many could not be read.
    pub(super) fn keys(&self, visit: &mut dyn FnMut(Key) -> bool) -> Result<usize, WindowsError> {
        let base = self.base_block()?;
        let mut raw = [0; 4];
        // `RootCell` of the base block.
        self.space(base).read(base + 0x24, &mut raw)?;
        let mut todo = vec![(u32::from_le_bytes(raw), String::new(), 0usize)];
        let (mut seen, mut lost) = (HashSet::new(), 0);
        while let Some((cell, above, depth)) = todo.pop() {
            if !seen.insert(cell) || depth > MAX_DEPTH {
                continue;
            }
            let Some((va, nk)) = self.cell(cell).filter(|(_, b)| b.starts_with(b"nk")) else {
                lost += 1;
                continue;
            };
            let Some((key, below)) = self.key(va, &nk, &above, depth == 0) else {
                lost += 1;
                continue;
            };
            let path = key.path.clone();
            lost += usize::from(key.torn);
            if !visit(key) {
                break;
            }
            todo.extend(
                below
                    .into_iter()
                    .rev()
                    .map(|c| (c, path.clone(), depth + 1)),
            );
        }
        Ok(lost)
    }

    /// The hive of this leaf of the registry's names: `SYSTEM`, `SOFTWARE`; by the name of its file where its place is not
    /// noted.
    pub(super) fn is(&self, leaf: &str) -> bool {
        let ends = |text: &str| {
            let last = text.rsplit('\\').next().unwrap_or_default();
            last.eq_ignore_ascii_case(leaf)
        };
        let root = self.root();
        if root.is_empty() {
            return ends(&self.file());
        }
        ends(&root)
            && root
                .to_ascii_uppercase()
                .starts_with("\\REGISTRY\\MACHINE\\")
    }

    /// Whether it is that of a user.
    pub(super) fn is_of_user(&self) -> bool {
        let root = self.root().to_ascii_uppercase();
        let own = root.strip_prefix("\\REGISTRY\\USER\\");
        own.is_some_and(|u| !u.ends_with("_CLASSES"))
            || (root.is_empty() && self.file().to_ascii_lowercase().ends_with("\\ntuser.dat"))
    }

    /// The key at a path below the root, and the cells of those below it. Names count without regard to case.
    fn find(&self, path: &str) -> Option<(Key, Vec<u32>)> {
        let base = self.base_block().ok()?;
        let mut raw = [0; 4];
        self.space(base).read(base + 0x24, &mut raw).ok()?;
        let (va, nk) = self
            .cell(u32::from_le_bytes(raw))
            .filter(|(_, b)| b.starts_with(b"nk"))?;
        let mut at = self.key(va, &nk, "", true)?;
        for part in path.split('\\').filter(|p| !p.is_empty()) {
            let above = at.0.path.clone();
            at = at.1.iter().find_map(|cell| {
                let (va, nk) = self.cell(*cell).filter(|(_, b)| b.starts_with(b"nk"))?;
                let own = own_name(&nk)?;
                (own.to_lowercase() == part.to_lowercase()).then_some(())?;
                self.key(va, &nk, &above, false)
            })?;
        }
        Some(at)
    }

    /// The key at a path below the root.
    pub(super) fn open(&self, path: &str) -> Option<Key> {
        self.find(path).map(|(key, _)| key)
    }

    /// The keys directly below that at a path, if all of them can be read.
    pub(super) fn whole_below(&self, path: &str) -> Option<Vec<Key>> {
        let (key, cells) = self.find(path).filter(|(key, _)| !key.torn)?;
        let count = cells.len();
        let all = self.below(path);
        (all.len() == count && !key.path.is_empty()).then_some(all)
    }

    /// The keys directly below that at a path; none where there is no such key. What can't be read is left out.
    pub(super) fn below(&self, path: &str) -> Vec<Key> {
        let Some((key, cells)) = self.find(path) else {
            return Vec::new();
        };
        let read = |cell: u32| {
            let (va, nk) = self.cell(cell).filter(|(_, b)| b.starts_with(b"nk"))?;
            self.key(va, &nk, &key.path, false).map(|(k, _)| k)
        };
        cells.into_iter().filter_map(read).collect()
    }

    /// A key and the cells of those below it.
    fn key(&self, va: u64, nk: &[u8], above: &str, is_root: bool) -> Option<(Key, Vec<u32>)> {
        let own = own_name(nk)?;
        let path = match (is_root, above.is_empty()) {
            (true, _) => String::new(),
            (false, true) => own,
            (false, false) => format!("{above}\\{own}"),
        };
        let mut below = Vec::new();
        let mut torn = false;
        for (count, list) in [(0x14, 0x1c), (0x18, 0x20)] {
            let (count, list) = (word(nk, count)?, word(nk, list)?);
            if count > 0 && list != NONE {
                torn |= !self.list(list, &mut below, 0);
            }
        }
        let mut values = Vec::new();
        let (count, list) = (word(nk, 0x24)?, word(nk, 0x28)?);
        if count > 0 && list != NONE {
            let count = usize::try_from(count).unwrap_or(0).min(MAX_LIST);
            match self.cell(list) {
                Some((_, cells)) => {
                    for i in 0..count {
                        let value = word(&cells, i * 4).and_then(|c| self.value(c));
                        torn |= value.as_ref().is_none_or(|v| v.data.is_none());
                        values.extend(value);
                    }
                }
                None => torn = true,
            }
        }
        Some((
            Key {
                path,
                changed: long(nk, 4)?,
                va,
                values,
                torn,
            },
            below,
        ))
    }

    /// Adds the keys of a list; false if a part of it could not be read.
    fn list(&self, cell: u32, out: &mut Vec<u32>, depth: usize) -> bool {
        let Some((_, b)) = self.cell(cell) else {
            return false;
        };
        let Some(count) = half(&b, 2).map(usize::from) else {
            return false;
        };
        let step = match b.get(..2) {
            Some(b"lf" | b"lh") => 8,
            Some(b"li") => 4,
            Some(b"ri") if depth == 0 => {
                let mut whole = true;
                for i in 0..count {
                    whole &= word(&b, 4 + i * 4).is_some_and(|c| self.list(c, out, 1));
                }
                return whole;
            }
            _ => return false,
        };
        for i in 0..count {
            match word(&b, 4 + i * step) {
                Some(c) if out.len() < MAX_LIST => out.push(c),
                _ => return false,
            }
        }
        true
    }

    fn value(&self, cell: u32) -> Option<Value> {
        let (_, vk) = self.cell(cell).filter(|(_, b)| b.starts_with(b"vk"))?;
        let len = usize::from(half(&vk, 2)?);
        let narrow = half(&vk, 0x10)? & 1 != 0;
        let (size, at) = (word(&vk, 4)?, word(&vk, 8)?);
        let data = if size & VOLATILE != 0 {
            // Up to four bytes stand in the place of the cell's number.
            let n = usize::try_from(size & !VOLATILE).ok()?.min(4);
            vk.get(8..8 + n).map(<[u8]>::to_vec)
        } else if size == 0 {
            Some(Vec::new())
        } else {
            self.data(at, usize::try_from(size).ok()?)
        };
        Some(Value {
            name: name(vk.get(0x14..0x14 + len)?, narrow),
            kind: word(&vk, 0xc)?,
            data,
        })
    }

    fn data(&self, cell: u32, size: usize) -> Option<Vec<u8>> {
        let (_, b) = self.cell(cell)?;
        if !(size > SEGMENT && b.starts_with(b"db")) {
            return b.get(..size).map(<[u8]>::to_vec);
        }
        let count = usize::from(half(&b, 2)?);
        let (_, parts) = self.cell(word(&b, 4)?)?;
        let mut out = Vec::new();
        for i in 0..count {
            let (_, part) = self.cell(word(&parts, i * 4)?)?;
            let n = (size - out.len()).min(SEGMENT).min(part.len());
            out.extend_from_slice(&part[..n]);
        }
        (out.len() == size).then_some(out)
    }
}
