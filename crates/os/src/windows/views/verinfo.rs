//! `windows/verinfo`: what images say of their version, in processes and in the kernel.
//!
//! ```text
//! resources: directory of kinds (16 is the version) -> of names -> of languages -> place, bytes
//! version:   length, length of value, kind | key, UTF-16 | value from a multiple of 4 on | further ones inside
//! ```
//!
//! Sources: "PE Format" (Microsoft), the .rsrc section; `VS_VERSIONINFO`, `VS_FIXEDFILEINFO` of the public header `verrsrc.h`;
//! Volatility 3 `plugins/windows/verinfo.py` for the name.

use super::vads;
use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::objects::ObjectTypes;
use crate::windows::space::wide;
use crate::windows::{Kernel, Space, WindowsError, WindowsView, lists, pe};

/// `windows/verinfo`.
pub(in crate::windows) const VERINFO: WindowsView = WindowsView {
    name: "windows/verinfo",
    meaning: "versions of images in processes and in the kernel",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column(
        "pid",
        Kind::Number,
        "process id; null of the kernel's modules",
    ),
    column("comm", Kind::Text, "name of the program"),
    column("base", Kind::Hex, "where the image begins"),
    column("name", Kind::Text, "name of its file"),
    column(
        "version",
        Kind::Text,
        "version of the file, of four numbers",
    ),
    column("company", Kind::Text, "who made it, as it says"),
    column("description", Kind::Text, "what it is, as it says"),
    column(
        "original_name",
        Kind::Text,
        "name of its file when it was made",
    ),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// Bytes of a version that are read at most.
const MOST: u64 = 64 << 10;
/// Number of versions among the kinds of resources (`RT_VERSION`).
const RT_VERSION: u32 = 16;
/// Blocks inside each other at most.
const MAX_DEPTH: usize = 4;
/// Characters of a text that are kept.
const SHOWN: usize = 256;

/// What a version says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Version {
    numbers: Option<[u16; 4]>,
    texts: Vec<(String, String)>,
}

impl Version {
    fn text(&self, key: &str) -> Value {
        let found = self.texts.iter().find(|(k, _)| k == key);
        found
            .map(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty())
            .into()
    }
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    let raw = b.get(at..at.checked_add(2)?)?.first_chunk()?;
    Some(u16::from_le_bytes(*raw))
}

fn word(b: &[u8], at: usize) -> Option<u32> {
    let raw = b.get(at..at.checked_add(4)?)?.first_chunk()?;
    Some(u32::from_le_bytes(*raw))
}

/// The place in the resources that the first entry of a directory leads to, or the entry of a number.
fn entry(space: &Space<'_>, directory: u64, number: Option<u32>) -> Option<u64> {
    let mut raw = [0; 16];
    space.read(directory, &mut raw).ok()?;
    let count = u64::from(half(&raw, 12)?) + u64::from(half(&raw, 14)?);
    for i in 0..count.min(256) {
        let at = directory.wrapping_add(16 + i * 8);
        if number.is_none_or(|n| space.u32(at).is_ok_and(|own| own == n)) {
            return space.u32(at.wrapping_add(4)).ok().map(u64::from);
        }
    }
    None
}

/// The version of the image at an address.
fn version(space: &Space<'_>, base: u64) -> Option<Version> {
    const BELOW: u64 = 1 << 31;
    let image = pe::read(space, base)?;
    let (rva, len) = *image.directories.get(2).filter(|d| d.0 != 0)?;
    let root = base.wrapping_add(rva);
    let inside = |at: u64| (at & !BELOW < len.max(16)).then_some(root.wrapping_add(at & !BELOW));
    let names = inside(entry(space, root, Some(RT_VERSION))?)?;
    let languages = inside(entry(space, names, None)?)?;
    let leaf = inside(entry(space, languages, None)?)?;
    let (at, bytes) = (space.u32(leaf).ok()?, space.u32(leaf.wrapping_add(4)).ok()?);
    let bytes = u64::from(bytes).min(MOST);
    let mut raw = vec![0; usize::try_from(bytes).ok()?];
    space
        .read(base.wrapping_add(u64::from(at)), &mut raw)
        .ok()?;
    let mut out = Version::default();
    block(&raw, 0, &mut out)?;
    Some(out)
}

/// Reads a block and those inside of it.
fn block(b: &[u8], depth: usize, out: &mut Version) -> Option<()> {
    let (len, value, kind) = (
        usize::from(half(b, 0)?),
        usize::from(half(b, 2)?),
        half(b, 4)?,
    );
    let b = b.get(..len.min(b.len()))?;
    let key = wide(b.get(6..)?);
    let at = (6 + key.encode_utf16().count() * 2 + 2).next_multiple_of(4);
    // The value's length counts characters where it is text.
    let bytes = if kind == 1 { value * 2 } else { value };
    let own = b.get(at..).unwrap_or_default();
    if depth == 0 && word(own, 0) == Some(0xfeef_04bd) {
        let (high, low) = (word(own, 8)?, word(own, 12)?);
        out.numbers = Some([
            (high >> 16) as u16,
            high as u16,
            (low >> 16) as u16,
            low as u16,
        ]);
    }
    if depth == 3 && bytes > 0 && out.texts.len() < 64 {
        let text = wide(own.get(..bytes.min(own.len()))?);
        out.texts.push((key, text.chars().take(SHOWN).collect()));
        return Some(());
    }
    if depth + 1 >= MAX_DEPTH {
        return Some(());
    }
    let mut from = (at + bytes).next_multiple_of(4);
    while let Some(below) = b.get(from..).filter(|b| b.len() >= 6) {
        let n = usize::from(half(below, 0)?);
        if n < 6 {
            break;
        }
        block(below, depth + 1, out);
        from = (from + n).next_multiple_of(4);
    }
    Some(())
}

/// Adds the row of an image.
fn row(space: &Space<'_>, whose: [Value; 2], base: u64, name: Value, out: &mut Table) {
    let Some(v) = version(space, base) else {
        return;
    };
    let numbers = v.numbers.map(|n| n.map(|n| n.to_string()).join("."));
    let [pid, comm] = whose;
    out.push(vec![
        pid,
        comm,
        base.into(),
        name,
        numbers.into(),
        v.text("CompanyName"),
        v.text("FileDescription"),
        v.text("OriginalFilename"),
        space.translate(base).ok().map(|p| p.0).into(),
    ]);
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let ty = k.module_type();
    let walk = lists::list(k, k.address("PsLoadedModuleList")?, ty, "InLoadOrderLinks")?;
    out.doubts.extend(walk.broken);
    for va in walk.items {
        let m = k.object(ty, va);
        let name = m.unicode("BaseDllName").ok();
        if let Ok(base) = m.number("DllBase") {
            row(
                &k.space,
                [Value::Null, Value::Null],
                base,
                name.into(),
                &mut out,
            );
        }
    }
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let Ok(space) = p.space(k) else { continue };
        // Doubts about descriptors are those of windows/vadinfo.
        let all = vads::of(k, &types, &p, &mut Vec::new()).unwrap_or_default();
        for a in all.into_iter().filter(|a| a.image) {
            let name = a.file.as_deref().and_then(|f| f.rsplit('\\').next());
            let whose = [p.pid.into(), p.name().into()];
            row(&space, whose, a.start, name.into(), &mut out);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_versions_end() {
        let mut out = Version::default();
        assert_eq!(block(b"", 0, &mut out), None);
        // Lengths of zero, and longer than there is.
        block(&[0xff; 40], 0, &mut out);
        block(&[0; 40], 0, &mut out);
        assert_eq!(out, Version::default());
    }
}
