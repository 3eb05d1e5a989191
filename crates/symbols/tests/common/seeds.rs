//! Seeds for the fuzz targets.

use super::fuzz::PLACES;
use super::synthetic::{ERAS, Rng, encode, symbols};

pub(crate) fn kallsyms_seeds() -> Vec<Vec<u8>> {
    let all = ERAS.iter().map(|era| {
        let e = encode(*era, symbols(*era, 520, 1), 1);
        // The tables alone: the image before them is only data.
        let at = usize::try_from(e.digits.0 - e.memory.base).unwrap();
        let from = at.saturating_sub(24 << 10) & !7;
        let mut bytes = vec![0; PLACES];
        bytes.extend(&e.memory.bytes[from..]);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    });
    all.collect()
}

pub(crate) fn btf_seeds() -> Vec<Vec<u8>> {
    let base = super::blob::every_kind();
    let mut both = base.finish();
    let own = both.clone();
    let parsed = ramsift_symbols::Btf::parse(&own).unwrap();
    let next = u32::try_from(parsed.len()).unwrap() + 1;
    let strings = u32::try_from(parsed.strings().0.len()).unwrap();
    let mut split = super::blob::Blob::split(next, strings);
    let p = split.add("", 2, 0, 1, &[]);
    split.composite(4, "nf_one", 24, &[("owner", p, 64, 0)]);
    both.extend(split.finish());
    vec![own, both]
}

pub(crate) fn pdb_seeds() -> Vec<Vec<u8>> {
    let file = ramsift_symbols::isf::decompress(include_bytes!("../data/ntkrnlmp.pdb.xz"));
    vec![file.unwrap().into_owned()]
}

pub(crate) fn isf_seeds() -> Vec<Vec<u8>> {
    let blob = super::blob::every_kind().finish();
    let types = ramsift_symbols::btf::to_types(&ramsift_symbols::Btf::parse(&blob).unwrap());
    let table = ramsift_symbols::SymbolTable::new([], types, Default::default());
    let (mut json, mut xz) = (Vec::new(), Vec::new());
    ramsift_symbols::isf::write(&table, &mut json).unwrap();
    ramsift_symbols::isf::write_xz(&table, &mut xz).unwrap();
    vec![json, xz]
}

/// Tables of layouts of two small kernels: text, and packed.
pub(crate) fn layouts_seeds() -> Vec<Vec<u8>> {
    let process = |name_at: u32| {
        serde_json::json!([64, {
            "Links": [32, "struct", "_LIST_ENTRY"],
            "ImageFileName": [name_at, "[]", 15, ["unsigned char"]],
            "Bits": [56, "bits", 3, 2, ["unsigned long"]],
            "u": [48, "union", [8, {"Whole": [0, "unsigned long long"], "Inside": [4, "unsigned long"]}]],
            "Next": [0, "*", ["struct", "_EPROCESS"]],
        }])
    };
    let list = serde_json::json!([16, {"Flink": [0, "*", ["struct", "_LIST_ENTRY"]], "Blink": [8, "*", ["void"]]}]);
    let table = serde_json::json!({
        "about": "made for a test",
        "types": {"_EPROCESS": [process(16), process(8)], "_LIST_ENTRY": [list]},
        "globals": ["PsActiveProcessHead", "NtCreateFile"],
        "builds": [
            {"guid": "AA", "age": 1, "types": [0, 0], "globals": [4096, 8192]},
            {"guid": "BB", "age": 2, "types": [1, -1], "globals": [0, 64]},
        ],
    });
    let text = serde_json::to_vec(&table).unwrap();
    let mut packed =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(6)).unwrap();
    std::io::Write::write_all(&mut packed, &text).unwrap();
    vec![text, packed.finish().unwrap()]
}

/// Tables of which each entry leads to another, to itself, to a large page or nowhere.
pub(crate) fn walker_seeds() -> Vec<Vec<u8>> {
    let mut rng = Rng(7);
    let table = |rng: &mut Rng, pages: usize| {
        let mut bytes = Vec::new();
        for _ in 0..pages * 512 {
            let to = (1u64 << 20) + rng.below(pages + 1) as u64 * 4096;
            let flags = [0, 3, 7, 0x83, 0x703][rng.below(5)];
            bytes.extend((to | flags).to_le_bytes());
        }
        bytes
    };
    vec![table(&mut rng, 1), table(&mut rng, 8), table(&mut rng, 32)]
}
