//! The symbol store, ISF files and the symbol table without a capture.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use ramsift_layers::VirtAddr;
use ramsift_symbols::store::{Files, Folder, StoreError, SymbolStore, digest};
use ramsift_symbols::{NewSymbol, Provenance, Source, SymbolTable, Types, isf};
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

const BANNER: &str = "Linux version 6.1.0 (me@here) #1 SMP";

/// A small ISF; `linux_banner` holds `Linux version 6.1.0 (me@here) #1 SMP\n\0`.
const ISF: &str = r#"{
 "metadata": {"format": "6.2.0"},
 "base_types": {
  "int": {"size": 4, "signed": true, "kind": "int", "endian": "little"},
  "unsigned int": {"size": 4, "signed": false, "kind": "int", "endian": "little"},
  "pointer": {"size": 8, "signed": false, "kind": "int", "endian": "little"},
  "void": {"size": 0, "signed": false, "kind": "void", "endian": "little"}},
 "user_types": {
  "task_struct": {"size": 32, "kind": "struct", "fields": {
    "pid": {"type": {"kind": "base", "name": "int"}, "offset": 0},
    "flag": {"type": {"kind": "bitfield", "bit_position": 3, "bit_length": 2,
             "type": {"kind": "base", "name": "unsigned int"}}, "offset": 4},
    "parent": {"type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "task_struct"}},
             "offset": 8},
    "unnamed_field_0": {"type": {"kind": "union", "name": "unnamed_12ab"}, "offset": 16,
             "anonymous": true},
    "gone": {"type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "nowhere"}},
             "offset": 24}}},
  "unnamed_12ab": {"size": 8, "kind": "union", "fields": {
    "a": {"type": {"kind": "array", "count": 2, "subtype": {"kind": "base", "name": "int"}},
          "offset": 0}}}},
 "enums": {"state": {"size": 4, "base": "unsigned int", "constants": {"ON": 1, "OFF": 0}}},
 "symbols": {
  "linux_banner": {"address": 18446744071588000000, "constant_data":
    "TGludXggdmVyc2lvbiA2LjEuMCAobWVAaGVyZSkgIzEgU01QCgA="},
  "init_task": {"address": 18446744071589000000, "type": {"kind": "struct", "name": "task_struct"}},
  "cpu_thing": {"address": 4096, "type": {"kind": "base", "name": "int"}}}
}"#;

/// A store in memory: what a caller does for a prefix of an object store.
#[derive(Default)]
struct Ram(Mutex<BTreeMap<String, Vec<u8>>>);

impl Files for Ram {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }
    fn read(&self, name: &str, _: u64) -> io::Result<Vec<u8>> {
        let files = self.0.lock().unwrap();
        let file = files.get(name).cloned();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn write(&self, name: &str, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert(name.into(), data.to_vec());
        Ok(())
    }
}

fn conforms(files: impl Files) {
    let store = SymbolStore::new(files);
    assert!(store.list().unwrap().is_empty());
    assert!(store.find(BANNER).unwrap().is_none());
    let stored = store.import("some.json", ISF.as_bytes()).unwrap();
    assert_eq!(stored.name, format!("{}.json", digest(BANNER)));
    assert_eq!(store.list().unwrap(), [stored]);
    let t = store.find(&format!("{BANNER}\n")).unwrap().expect("found");
    assert_eq!(t.banner(), Some(BANNER));
    assert!(store.find(&format!("{BANNER} ")).unwrap().is_some());
    assert!(
        store
            .find("Linux version 6.1.0 (me@there)")
            .unwrap()
            .is_none()
    );
    let e = store.import("x.json", b"{}").expect_err("no ISF");
    assert!(e.to_string().contains("x.json"), "{e}");
    let mute = ISF.replace("linux_banner", "linux_flag");
    let e = store.import("x.json", mute.as_bytes()).expect_err("mute");
    assert!(matches!(e, StoreError::NoBanner { .. }));
}

#[test]
fn stores_conform() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Folder::new(dir.path().join("new")));
    conforms(Ram::default());
}

#[test]
fn files_put_there_by_hand_are_found_and_wrong_ones_refused() {
    let ram = Ram::default();
    ram.write("mine.json", ISF.as_bytes()).unwrap();
    ram.write("damaged.json.xz", b"\xfd7zXZ\0nothing").unwrap();
    ram.write("README", b"hello").unwrap();
    let store = SymbolStore::new(ram);
    let list = store.list().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].banner, None);
    assert_eq!(list[1].banner.as_deref(), Some(BANNER));
    assert!(store.find(BANNER).unwrap().is_some());
    let ram = Ram::default();
    let other = "Linux version 5.10";
    ram.write(&format!("{}.json", digest(other)), ISF.as_bytes())
        .unwrap();
    let e = SymbolStore::new(ram).find(other).expect_err("wrong");
    assert!(matches!(e, StoreError::WrongBanner { .. }), "{e}");
}

#[test]
fn an_isf_becomes_a_table() {
    let t = isf::parse("small", ISF.as_bytes()).unwrap().shifted(0x1000);
    assert_eq!(t.provenance().types.to_string(), "ISF small");
    let types = t.types();
    let f = types.field("task_struct", "a[1]").expect("in a union");
    assert_eq!((f.offset, f.size), (20, 4));
    let f = types.field("task_struct", "flag").expect("flag");
    let b = f.bits.expect("bits");
    assert_eq!((f.offset, b.offset, b.size), (4, 3, 2));
    let f = types.field("task_struct", "gone").expect("gone");
    assert_eq!(types.describe(f.ty), "struct nowhere *");
    assert_eq!(types.enum_name("state", 1), Some("ON"));
    // The image moves, per-CPU offsets don't.
    let at = t.address("init_task").unwrap().0;
    assert_eq!(at, 18_446_744_071_589_000_000 + 0x1000);
    assert_eq!(t.address("cpu_thing"), Some(VirtAddr(4096)));
    for (wrong, what) in [
        (
            ISF.replace(
                "\"kind\": \"union\", \"fields\"",
                "\"kind\": \"onion\", \"fields\"",
            ),
            "onion",
        ),
        (
            ISF.replace(
                "\"name\": \"int\"}, \"offset\": 0}",
                "\"name\": \"tin\"}, \"offset\": 0}",
            ),
            "tin",
        ),
        (
            ISF.replace("\"offset\": 24", "\"offset\": 2400"),
            "inside its struct",
        ),
        (
            ISF.replace("\"bit_length\": 2", "\"bit_length\": 99"),
            "1 to 64 bits",
        ),
    ] {
        assert_ne!(wrong, ISF, "{what}");
        let e = isf::parse("bad", wrong.as_bytes()).expect_err(what);
        assert!(e.to_string().contains(what), "{e}");
    }
}

fn symbol(name: &str, address: u64, kind: u8) -> NewSymbol<'_> {
    NewSymbol {
        name,
        address,
        kind,
        ty: None,
    }
}

#[test]
fn the_table_answers_by_name_and_by_address() {
    let k = 0xffff_ffff_8100_0000;
    let kernel = [
        symbol("_text", k, b'T'),
        symbol("alias", k + 16, b't'),
        symbol("Main", k + 16, b'T'),
        symbol("twice", k + 64, b't'),
        symbol("twice", k + 32, b't'),
        symbol("__per_cpu_start", 0, b'A'),
        symbol("runqueues", 0x1000, b'A'),
    ];
    let provenance = Provenance {
        symbols: Source::KallsymsCarved,
        types: Source::None,
    };
    let mut t = SymbolTable::new(kernel, Types::default(), provenance);
    t.add_module(
        "nf",
        [
            symbol("twice", k - 0x100, b'T'),
            symbol("nf_x", k + 0x200, b't'),
        ],
    );
    assert_eq!(t.provenance().symbols.to_string(), "kallsyms carved");
    let near = |a: u64| t.nearest(VirtAddr(a)).map(|(s, o)| (s.name, o));
    assert_eq!(near(k + 17), Some(("Main", 1)));
    assert_eq!(near(k + 16), Some(("Main", 0)));
    assert_eq!(near(k + 40), Some(("twice", 8)));
    assert_eq!(near(0x1004), Some(("runqueues", 4)));
    assert_eq!(near(k - 0x101), None);
    assert_eq!(t.next_address(VirtAddr(k)), Some(VirtAddr(k + 16)));
    assert_eq!(t.symbols("twice").len(), 3);
    let s = t.find("twice").expect("the kernel's first one");
    assert_eq!((s.address.0, s.module), (k + 32, None));
    assert_eq!(t.find("nf_x").and_then(|s| s.module), Some("nf"));
    assert!(t.find("none").is_none());
    let order: Vec<u64> = t.iter().map(|s| s.address.0).collect();
    assert!(order.is_sorted());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_isf_ends_in_a_result(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut b = ISF.as_bytes().to_vec();
        let n = b.len();
        for (i, v) in flips {
            b[i.index(n)] = v;
        }
        let _ = isf::parse("x", &b);
        let _ = isf::banner(&b);
    }
}
