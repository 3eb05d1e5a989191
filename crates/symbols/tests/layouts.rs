//! Layouts of Windows kernels: the table that is built in, and tables made of others' files.

use proptest::prelude::*;
use ramsift_symbols::Source;
use ramsift_symbols::layouts::{Layouts, pack};

const BASE: u64 = 0xffff_f800_1000_0000;

fn offset(guid: &str, ty: &str, field: &str) -> u64 {
    let built_in = Layouts::built_in().expect("sound");
    let k = built_in.kernel(guid, BASE).expect("known").expect("sound");
    k.types().field(ty, field).expect(field).offset
}

#[test]
fn the_built_in_table_has_the_offsets_that_are_published() {
    // As debuggers show them (`dt nt!_EPROCESS`) for 7 SP1, 19041 and 22000.
    let seven = "339E74133576439CBCDF7E0229DA3773";
    assert_eq!(offset(seven, "_EPROCESS", "UniqueProcessId"), 0x180);
    assert_eq!(offset(seven, "_EPROCESS", "ActiveProcessLinks"), 0x188);
    assert_eq!(offset(seven, "_EPROCESS", "ImageFileName"), 0x2e0);
    for ten in [
        "606FF669409B00F7FC8C61A9C1670129",
        "0CE4A95C0CD782A7596B034D8648E585",
    ] {
        assert_eq!(offset(ten, "_EPROCESS", "UniqueProcessId"), 0x440);
        assert_eq!(offset(ten, "_EPROCESS", "ActiveProcessLinks"), 0x448);
        assert_eq!(offset(ten, "_EPROCESS", "Token"), 0x4b8);
        assert_eq!(offset(ten, "_EPROCESS", "ImageFileName"), 0x5a8);
        assert_eq!(offset(ten, "_EPROCESS", "Pcb.DirectoryTableBase"), 0x28);
    }
    // MS documents KUSER_SHARED_DATA: NtMajorVersion at 0x26C, SystemTime at 0x14.
    assert_eq!(offset(seven, "_KUSER_SHARED_DATA", "NtMajorVersion"), 0x26c);
    assert_eq!(offset(seven, "_KUSER_SHARED_DATA", "SystemTime"), 0x14);
}

#[test]
fn every_kernel_of_the_table_can_be_read() {
    let built_in = Layouts::built_in().expect("sound");
    let by_name = built_in.kernels().filter(|(_, age)| *age == 0).count();
    assert_eq!((built_in.len() - by_name, by_name), (213, 23));
    for (guid, age) in built_in.kernels() {
        let k = built_in.kernel(guid, BASE).expect("known").expect("sound");
        assert_eq!(
            k.provenance().types,
            Source::Layouts(format!("{guid}-{age}"))
        );
        // Of builds that go by a name types alone are known.
        let list = k.address("PsActiveProcessHead");
        assert_eq!(list.is_some(), age != 0, "{guid}");
        assert!(
            list.is_none_or(|l| (BASE..BASE + (32 << 20)).contains(&l.0)),
            "{guid}: {list:?}"
        );
        for ty in [
            "_EPROCESS",
            "_ETHREAD",
            "_TOKEN",
            "_MMVAD",
            "_FILE_OBJECT",
            "_OBJECT_HEADER",
        ] {
            assert!(k.types().size_of(ty).expect(ty) > 8, "{guid} {ty}");
        }
    }
    assert!(
        built_in
            .kernel("00000000000000000000000000000000", BASE)
            .is_none()
    );
}

/// An ISF of a kernel with one type, as Volatility 3's tools write them.
fn isf(guid: &str) -> Vec<u8> {
    serde_json::json!({
        "metadata": { "windows": { "pdb": { "GUID": guid, "age": 2, "database": "ntkrnlmp.pdb" } } },
        "base_types": {},
        "enums": {},
        "symbols": { "PsActiveProcessHead": { "address": 4096 }, "SomethingElse": { "address": 8 } },
        "user_types": {
            "_EPROCESS": { "kind": "struct", "size": 64, "fields": {
                "ImageFileName": { "offset": 16, "type": { "kind": "array", "count": 15,
                    "subtype": { "kind": "base", "name": "unsigned char" } } },
                "Links": { "offset": 32, "type": { "kind": "struct", "name": "_LIST_ENTRY" } },
                "u": { "offset": 48, "type": { "kind": "union", "name": "__unnamed_1" } },
                "Bits": { "offset": 56, "type": { "kind": "bitfield", "bit_position": 3, "bit_length": 2,
                    "type": { "kind": "base", "name": "unsigned long" } } },
            } },
            "__unnamed_1": { "kind": "union", "size": 8, "fields": {
                "Inside": { "offset": 4, "type": { "kind": "base", "name": "unsigned long" } } } },
            "_LIST_ENTRY": { "kind": "struct", "size": 16, "fields": {
                "Flink": { "offset": 0, "type": { "kind": "pointer",
                    "subtype": { "kind": "struct", "name": "_LIST_ENTRY" } } } } },
            "_NOBODY_ASKS": { "kind": "struct", "size": 8, "fields": {} },
        },
    })
    .to_string()
    .into_bytes()
}

#[test]
fn a_table_of_symbol_files_has_their_types_and_globals() {
    let files = [
        ("a.json".to_owned(), isf("AA")),
        ("b.json".to_owned(), isf("BB")),
    ];
    let made = pack("two files", &files).expect("packed");
    let table = Layouts::read(&made).expect("sound");
    assert_eq!(table.kernels().collect::<Vec<_>>(), [("AA", 2), ("BB", 2)]);
    let k = table.kernel("bb", BASE).expect("known").expect("sound");
    let at = |field| k.types().field("_EPROCESS", field).expect(field);
    assert_eq!(
        (at("ImageFileName").offset, at("ImageFileName").size),
        (16, 15)
    );
    assert_eq!(at("Links.Flink").offset, 32);
    assert_eq!(at("u.Inside").offset, 52);
    let bits = at("Bits");
    assert_eq!(
        (bits.offset, bits.bits.map(|b| (b.offset, b.size))),
        (56, Some((3, 2)))
    );
    assert_eq!(
        k.address("PsActiveProcessHead").map(|a| a.0),
        Some(BASE + 4096)
    );
    assert!(k.address("SomethingElse").is_none());
    assert!(!k.types().has_type("_NOBODY_ASKS"));
}

/// Some facts tell arrays by their bytes, below zero: of enumerations that is a number of elements.
#[test]
fn arrays_that_are_told_by_their_bytes_have_elements() {
    let facts = serde_json::json!({
        "builds": [{ "guid": "AA", "types": { "_EPROCESS": 0 } }],
        "types": { "_EPROCESS": [[800, {
            "Before": [0, "unsigned long"],
            "History": [308, "[]", -80, ["enum", "long"]],
            "Unknown": [600, "[]", -24, ["struct", "_NOBODY_KNOWS"]],
            "Plain": [700, "[]", 3, ["unsigned long"]],
        }]] },
    });
    let file = [("facts.json".to_owned(), facts.to_string().into_bytes())];
    let made = pack("facts", &file).expect("packed");
    let k = Layouts::read(&made).expect("sound").kernel("AA", BASE);
    let k = k.expect("known").expect("sound");
    let at = |field| k.types().field("_EPROCESS", field).expect(field);
    assert_eq!((at("History").offset, at("History").size), (308, 80));
    assert_eq!((at("Unknown").offset, at("Unknown").size), (600, 0));
    assert_eq!((at("Plain").offset, at("Plain").size), (700, 12));
}

#[test]
fn what_is_no_symbol_file_is_named() {
    let of = |text: &str| pack("", &[("x.json".to_owned(), text.as_bytes().to_vec())]);
    let e = of("{}").expect_err("nothing").to_string();
    assert!(
        e.contains("x.json") && e.contains("metadata.windows.pdb"),
        "{e}"
    );
    let e = of("no").expect_err("no JSON").to_string();
    assert!(e.contains("x.json"), "{e}");
    let e = of(r#"{"builds": [{}], "types": {}}"#)
        .expect_err("no GUID")
        .to_string();
    assert!(e.contains("guid"), "{e}");
    assert!(Layouts::read(b"{").is_err());
}

proptest! {
    #[test]
    fn a_damaged_table_is_an_error_or_another_table(at in 0usize..1 << 16, to in any::<u8>()) {
        let files = [("a.json".to_owned(), isf("AA"))];
        let made = pack("", &files).expect("packed");
        let mut text = ramsift_symbols::isf::decompress(&made).expect("xz").into_owned();
        let n = text.len();
        text[at % n] = to;
        if let Ok(t) = Layouts::read(&text) {
            let guids: Vec<String> = t.kernels().map(|k| k.0.to_owned()).collect();
            for g in guids {
                let _ = t.kernel(&g, BASE);
            }
        }
        let mut packed = made;
        let n = packed.len();
        packed[at % n] ^= to;
        let _ = Layouts::read(&packed);
    }
}
