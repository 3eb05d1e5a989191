//! `windows/bigpools`, `windows/hivescan`: pool memory of whole pages, and hives wherever they lie.
//!
//! ```text
//! PoolBigPageTable -> PoolBigPageTableSize entries: address (bit 0: free), tag, kind, bytes
//! ```
//!
//! What takes a page or more of the pool has no header of its own; its tag stands in that table. Hives of newer builds are so
//! large.
//!
//! Sources: the public type `_POOL_TRACKER_BIG_PAGES`; `_HHIVE.Signature`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::is_kernel;
use crate::windows::scan::scanned;
use crate::windows::{Kernel, WindowsError, WindowsView, lists};
use std::collections::{BTreeMap, HashSet};

/// `windows/bigpools`.
pub(in crate::windows) const BIGPOOLS: WindowsView = WindowsView {
    name: "windows/bigpools",
    meaning: "pool memory of a page and more",
    columns: POOLS,
    build: pools,
    recover: None,
};

const POOLS: &[Column] = &[
    column("address", Kind::Hex, "where it begins"),
    column("tag", Kind::Text, "its tag"),
    column("bytes", Kind::Number, "bytes of it"),
    column("kind", Kind::Hex, "kind of pool, as the kernel numbers it"),
    column("freed", Kind::Flag, "whether it was given back"),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// `windows/hivescan`.
pub(in crate::windows) const HIVESCAN: WindowsView = WindowsView {
    name: "windows/hivescan",
    meaning: "hives found by a scan of all memory",
    columns: HIVES,
    build: hives,
    recover: None,
};

const HIVES: &[Column] = &[
    column(
        "hive",
        Kind::Hex,
        "virtual address of its _CMHIVE; null where the scan does not tell",
    ),
    column("root", Kind::Text, "where it hangs in the registry"),
    column("file", Kind::Text, "path of its file"),
    column("listed", Kind::Flag, "whether the kernel's list has it"),
    column("freed", Kind::Flag, "whether its memory was given back"),
    column("physical", Kind::Hex, "physical address of its _CMHIVE"),
];

/// Entries of the table at most.
const MOST: u64 = 1 << 24;
/// Bytes of the table that are read together.
const STEP: u64 = 4096;
/// Tag and mark of a hive.
const HIVE_TAG: [u8; 4] = *b"CM10";
const HIVE_MARK: u64 = 0xbee0_bee0;

/// Pool memory of whole pages.
pub(in crate::windows) struct Pool {
    pub(in crate::windows) va: u64,
    pub(in crate::windows) tag: [u8; 4],
    pub(in crate::windows) bytes: Option<u64>,
    kind: Option<u64>,
    pub(in crate::windows) freed: bool,
}

/// Visits the entries of the table that were used. Gives how many pages of it could not be read.
pub(in crate::windows) fn each(
    k: &Kernel<'_>,
    visit: &mut dyn FnMut(Pool),
) -> Result<u64, WindowsError> {
    let ty = "_POOL_TRACKER_BIG_PAGES";
    let types = k.symbols.types();
    let size = types.size_of(ty)?;
    let (va, key) = (types.field(ty, "Va")?, types.field(ty, "Key")?);
    let (bytes, kind) = (
        types.field(ty, "NumberOfBytes"),
        types.field(ty, "PoolType"),
    );
    let table = k.global("PoolBigPageTable")?;
    let count = k.global("PoolBigPageTableSize")?.min(MOST);
    let per = (STEP / size.max(1)).max(1);
    let mut unread = 0;
    let mut raw = vec![0; usize::try_from(per * size).unwrap_or(0)];
    for first in (0..count).step_by(usize::try_from(per).unwrap_or(1)) {
        if k.space
            .read(table.wrapping_add(first * size), &mut raw)
            .is_err()
        {
            unread += 1;
            continue;
        }
        for (i, e) in raw.chunks(usize::try_from(size).unwrap_or(1)).enumerate() {
            if first + i as u64 >= count {
                break;
            }
            let number = |f: &ramsift_symbols::Field| {
                let from = usize::try_from(f.offset).ok()?;
                f.value(e.get(from..)?)
            };
            let address = number(&va).unwrap_or(0);
            if !is_kernel(address) {
                continue;
            }
            let tag = number(&key).unwrap_or(0) as u32;
            visit(Pool {
                va: address & !1,
                tag: tag.to_le_bytes(),
                bytes: bytes.as_ref().ok().and_then(number),
                kind: kind.as_ref().ok().and_then(number),
                freed: address & 1 != 0,
            });
        }
    }
    Ok(unread)
}

/// Rows at most.
const ROWS: usize = 1 << 20;

fn pools(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(POOLS);
    let mut left_out = 0u64;
    let unread = each(k, &mut |p| {
        if out.rows.len() >= ROWS {
            left_out += 1;
            return;
        }
        let tag: String = p.tag.iter().map(|b| char::from(*b)).collect();
        out.push(vec![
            p.va.into(),
            tag.into(),
            p.bytes.into(),
            p.kind.into(),
            p.freed.into(),
            k.physical(p.va).map(|p| p.0).into(),
        ]);
    })?;
    if unread > 0 {
        out.doubts.push(format!(
            "{unread} pages of the table of large pool memory could not be read"
        ));
    }
    if left_out > 0 {
        out.doubts.push(format!(
            "{left_out} rows are left out behind the first {ROWS}"
        ));
    }
    Ok(out)
}

fn hives(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(HIVES);
    let walk = lists::list(k, k.address("CmpHiveListHead")?, "_CMHIVE", "HiveList")?;
    out.doubts.extend(walk.broken);
    let listed: HashSet<u64> = walk.items.iter().copied().collect();
    // By their place in memory: virtual address where it is known, and whether it was given back.
    let mut found: BTreeMap<u64, (Option<u64>, bool)> = BTreeMap::new();
    let unread = each(k, &mut |p| {
        let is_hive = p.tag == HIVE_TAG
            && k.object("_HHIVE", p.va)
                .number("Signature")
                .is_ok_and(|s| s == HIVE_MARK);
        if let Some(at) = k.physical(p.va).filter(|_| is_hive) {
            found.insert(at.0, (Some(p.va), p.freed));
        }
    });
    match unread {
        Ok(0) => {}
        Ok(n) => out.doubts.push(format!(
            "{n} pages of the table of large pool memory could not be read"
        )),
        Err(e) => out
            .doubts
            .push(format!("the table of large pool memory is not known: {e}")),
    }
    let scanned = scanned(k)?;
    out.doubts.extend(scanned.doubts.iter().cloned());
    let places: BTreeMap<u64, u64> = listed
        .iter()
        .filter_map(|va| Some((k.physical(*va)?.0, *va)))
        .collect();
    for h in &scanned.hives {
        found
            .entry(h.physical)
            .or_insert((places.get(&h.physical).copied(), h.freed));
    }
    for (physical, (va, freed)) in found {
        let own = va.map(|va| k.object("_CMHIVE", va));
        let text = |path: &str| own.as_ref().and_then(|o| o.unicode(path).ok());
        out.push(vec![
            va.into(),
            text("HiveRootPath").into(),
            text("FileFullPath").into(),
            va.is_some_and(|va| listed.contains(&va)).into(),
            freed.into(),
            physical.into(),
        ]);
    }
    Ok(out)
}
