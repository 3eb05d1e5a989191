//! A PDB that clang and lld made of `data/ntkrnlmp.c` (for x86_64-pc-windows-msvc, `-g -gcodeview`, `lld-link /debug`), against the
//! record layouts that clang prints of the same file, and the addresses that llvm-pdbutil does.
#![allow(clippy::unwrap_used, missing_docs)]

use ramsift_symbols::layouts::{Layouts, pack};
use ramsift_symbols::store::{Folder, StoreError};
use ramsift_symbols::{SymbolStore, SymbolTable, isf, pdb};

const GUID: &str = "59398F65FCDB23254C4C44205044422E";

fn file() -> Vec<u8> {
    isf::decompress(include_bytes!("data/ntkrnlmp.pdb.xz"))
        .unwrap()
        .into_owned()
}

fn table() -> SymbolTable {
    let isf = pdb::to_isf_xz("ntkrnlmp.pdb", &file()).unwrap();
    isf::parse("x", &isf).unwrap()
}

#[test]
fn types_have_the_places_that_the_compiler_gave_them() {
    let table = table();
    let types = table.types();
    let offset = |path: &str| types.field("_EPROCESS", path).unwrap().offset;
    let want = [
        ("ActiveProcessLinks.Blink", 8),
        ("Cid", 16),
        ("Cid[1].UniqueThread", 40),
        ("ImageFileName", 48),
        ("Priority", 63),
        ("Flags", 64),
        ("State", 68),
        ("Token.Value", 72),
        ("Count", 80),
        ("Name", 88),
        ("Times", 96),
        ("Times[2].High", 136),
        ("Callback", 144),
        ("Load", 152),
        ("Sum", 160),
        ("Sign", 168),
        ("Wide", 176),
        ("Table", 184),
        ("Later", 208),
    ];
    for (path, at) in want {
        assert_eq!(offset(path), at, "{path}");
    }
    assert_eq!(types.size_of("_EPROCESS").unwrap(), 216);
    assert_eq!(types.size_of("_LATER").unwrap(), 224);
    assert_eq!(types.field("_LATER", "End").unwrap().offset, 216);
    assert_eq!(types.field("_UNICODE_STRING", "Buffer").unwrap().offset, 8);
    let kind = types.field("_EPROCESS", "Kind").unwrap();
    let bits = kind.bits.unwrap();
    assert_eq!((kind.offset, bits.offset), (64, 1));
    assert_eq!(kind.value(&0b1010u32.to_le_bytes()), Some(5));
    let count = types.field("_FAST", "RefCnt").unwrap();
    assert_eq!(count.value(&0x1237u64.to_le_bytes()), Some(7));
}

#[test]
fn public_symbols_have_their_places_in_the_image() {
    let table = table();
    let at = |name: &str| table.address(name).unwrap().0;
    // Section 1 lies at 0x1000, 2 at 0x2000, 3 at 0x3000.
    let want = [
        ("NtClose", 0x1000),
        ("NtOpen", 0x1020),
        ("PsConstant", 0x2000),
        ("NtBuildNumber", 0x3000),
        ("PsState", 0x3008),
        ("PsFirst", 0x3010),
        ("PsLater", 0x30e8),
    ];
    for (name, place) in want {
        assert_eq!(at(name), place, "{name}");
    }
    assert_eq!(pdb::key(&file()).unwrap(), (GUID.to_owned(), 1));
}

#[test]
fn a_store_finds_pdbs_wherever_they_lie_in_it() {
    let banner = format!("ntkrnlmp.pdb {GUID}-1");
    let dir = tempfile::tempdir().unwrap();
    let store = SymbolStore::new(Folder::new(dir.path()));
    assert!(store.find(&banner).unwrap().is_none());
    // As a symbol server has it.
    let server = dir.path().join("ntkrnlmp.pdb").join(format!("{GUID}1"));
    std::fs::create_dir_all(&server).unwrap();
    std::fs::write(server.join("ntkrnlmp.pdb"), file()).unwrap();
    let found = store.find(&banner).unwrap().unwrap();
    assert!(found.address("NtOpen").is_some());
    std::fs::remove_dir_all(dir.path().join("ntkrnlmp.pdb")).unwrap();
    // By hand, under any name.
    std::fs::write(dir.path().join("kernel.pdb"), file()).unwrap();
    assert!(store.find(&banner).unwrap().is_some());
    assert_eq!(
        store.list().unwrap()[0].banner.as_deref(),
        Some(&*format!("kernel.pdb {GUID}-1"))
    );
    assert!(
        store
            .find(&format!("ntkrnlmp.pdb {GUID}-2"))
            .unwrap()
            .is_none()
    );
    std::fs::remove_file(dir.path().join("kernel.pdb")).unwrap();
    // Imported.
    let stored = store.import("/some/ntkrnlmp.pdb", &file()).unwrap();
    assert_eq!(stored.banner.as_deref(), Some(&*banner));
    assert!(store.find(&banner).unwrap().is_some());
    let e = store.import("x.pdb", &file()[..4096]).unwrap_err();
    assert!(matches!(e, StoreError::Pdb { .. }), "{e}");
}

#[test]
fn a_table_of_layouts_is_packed_from_pdbs() {
    let table = pack("a test", &[("ntkrnlmp.pdb".to_owned(), file())]).unwrap();
    let layouts = Layouts::read(&table).unwrap();
    let kernel = layouts.kernel(GUID, 0x1_0000).unwrap().unwrap();
    assert_eq!(kernel.address("NtBuildNumber").unwrap().0, 0x1_3000);
    let links = kernel
        .types()
        .field("_EPROCESS", "ActiveProcessLinks")
        .unwrap();
    assert_eq!(links.offset, 0);
    assert_eq!(
        kernel
            .types()
            .field("_EPROCESS", "Times[1].Low")
            .unwrap()
            .offset,
        112
    );
}

#[test]
fn damaged_files_end_in_errors_or_fewer_types() {
    let good = file();
    // Every place of the parts that lead to others, and some of all the rest.
    let mut random = 7u64;
    let mut next = |n: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % n
    };
    for round in 0..3000 {
        let mut bad = good.clone();
        for _ in 0..1 + next(4) {
            let at = next(bad.len());
            bad[at] = u8::try_from(next(256)).unwrap();
        }
        if round % 7 == 0 {
            bad.truncate(next(good.len()));
        }
        if let Ok(isf) = pdb::to_isf("ntkrnlmp.pdb", &bad) {
            let json = serde_json::to_vec(&isf).unwrap();
            let _ = isf::parse("x", &json);
        }
        let _ = pdb::key(&bad);
    }
    for len in (0..good.len()).step_by(997) {
        let _ = pdb::to_isf("x", &good[..len]);
    }
}
