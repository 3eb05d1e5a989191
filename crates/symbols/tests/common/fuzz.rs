//! What the fuzz targets do with their bytes. No panic, no hang, bounded memory: nothing else is
//! asked of a result.
#![allow(dead_code)]

use ramsift_layers::translate::{
    AARCH64_4K_48, PhysError, PhysRead, X86_64, X86_64_LA57, mappings, walk,
};
use ramsift_layers::{Dtb, PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{self, DIGITS, Hints, Places};
use ramsift_symbols::layouts::Layouts;
use ramsift_symbols::{
    Btf, Provenance, SymbolTable, Types, btf as btf_of, isf as isf_of, pdb as pdb_of,
};
use std::sync::Arc;

/// The bytes as physical memory from 1 MiB on.
struct Bytes<'a>(&'a [u8]);

const BASE: u64 = 1 << 20;

impl PhysRead for Bytes<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let at = usize::try_from(pa.0.wrapping_sub(BASE)).unwrap_or(usize::MAX);
        match at
            .checked_add(buf.len())
            .and_then(|end| self.0.get(at..end))
        {
            Some(b) => buf.copy_from_slice(b),
            None => return Err(PhysError::NotInImage { pa }),
        }
        Ok(())
    }
}

/// Bytes at the front that say where the tables are.
pub(crate) const PLACES: usize = 24;

pub(crate) fn kallsyms(data: &[u8]) {
    let memory = Bytes(data);
    let mut at = 0;
    // As the scan of an image does: each hit is tried.
    for _ in 0..2 {
        let rest = data.get(at..).unwrap_or_default();
        let Some(hit) = rest.windows(DIGITS.len()).position(|w| w == DIGITS) else {
            break;
        };
        let pa = PhysAddr(BASE + (at + hit) as u64);
        if let Ok(k) = kallsyms::carve(&memory, pa, &Hints::default()) {
            let t = SymbolTable::from_kernel(&k, Types::default(), Provenance::default());
            let _ = (t.nearest(k.base()), t.address("_stext"));
        }
        at += hit + 1;
    }
    let Some((head, _)) = data.split_first_chunk::<PLACES>() else {
        return;
    };
    let place = |i: usize| {
        let raw = head.get(4 * i..4 * i + 4).and_then(|w| w.first_chunk());
        PhysAddr(BASE + u64::from(raw.map_or(0, |w: &[u8; 4]| u32::from_le_bytes(*w))))
    };
    let places = Places {
        num_syms: place(0),
        names: place(1),
        token_table: place(2),
        token_index: place(3),
        addresses: place(4),
        addresses_va: None,
        relative_base: (head[20] & 1 != 0).then(|| place(5)),
    };
    let _ = kallsyms::decode(&memory, &places, &Hints::default());
}

pub(crate) fn pdb(data: &[u8]) {
    let _ = pdb_of::key(data);
    if let Ok(isf) = pdb_of::to_isf("ntkrnlmp.pdb", data) {
        let _ = isf_of::parse("fuzz", isf.to_string().as_bytes());
    }
}

pub(crate) fn btf(data: &[u8]) {
    let Ok(base) = Btf::parse(data) else { return };
    let mut types = btf_of::to_types(&base);
    ask(&types);
    let end = base.bytes().len();
    let base = Arc::new(base);
    if let Ok(split) = Btf::parse_split(data.get(end..).unwrap_or_default(), &base) {
        btf_of::add_split(&mut types, &split);
        ask(&types);
    }
}

/// Tables read at most on one visit of everything that a table maps.
const TABLES: usize = 64;

/// The bytes as page tables: their first 8 bytes say where a walk goes, all else is tables.
pub(crate) fn walker(data: &[u8]) {
    let Some((head, _)) = data.split_first_chunk::<8>() else {
        return;
    };
    let va = u64::from_le_bytes(*head);
    let memory = Bytes(data);
    for shape in [X86_64, X86_64_LA57, AARCH64_4K_48] {
        for va in [va, va >> 16, va | 0xffff_8000_0000_0000] {
            let _ = walk(&memory, &shape, Dtb(BASE), VirtAddr(va));
        }
        let (mut budget, mut met) = (TABLES, 0usize);
        let range = va >> 17..va >> 3;
        mappings(&memory, &shape, Dtb(BASE), range, &mut budget, &mut |_| {
            met += 1;
        });
        assert!(met <= TABLES * 513, "{met} from {TABLES} tables");
    }
}

pub(crate) fn isf(data: &[u8]) {
    if let Ok(t) = isf_of::parse("fuzz", data) {
        ask(t.types());
        let names: Vec<String> = t.iter().take(50).map(|s| s.name.to_owned()).collect();
        for n in names {
            let _ = t.type_of(&n);
        }
        let mut out = Vec::new();
        let _ = isf_of::write(&t, &mut out);
    }
}

/// The bytes as a table of layouts of Windows kernels.
pub(crate) fn layouts(data: &[u8]) {
    let Ok(table) = Layouts::read(data) else {
        return;
    };
    let guids: Vec<String> = table.kernels().map(|k| k.0.to_owned()).collect();
    for guid in guids.iter().take(8) {
        if let Some(Ok(t)) = table.kernel(guid, 0xffff_f800_0000_0000) {
            ask(t.types());
            let _ = t.types().field("_EPROCESS", "ImageFileName");
            let _ = t.address("PsActiveProcessHead");
        }
    }
    let _ = table.families().count();
}

fn ask(t: &Types) {
    for name in ["task_struct", "twice", "nf_one", "pid_t", "unnamed_12ab"] {
        for id in t.composites(name) {
            let _ = (t.describe(id), t.size(id), t.fields(id).len());
            for m in t.members(id) {
                let _ = (t.describe(m.ty), t.array(m.ty), t.target(m.ty));
            }
        }
        for path in ["pid", "comm[3]", "a[1]", "parent.pid", ""] {
            let _ = t.field(name, path);
        }
    }
    let _ = t.constant("RED");
}
