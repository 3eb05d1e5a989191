//! Times what a capture's symbols take:
//! `cargo run --release -p ramsift-symbols --example measure [NAME...]`
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::capture;
use ramsift_layers::{PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{DIGITS, Hints, Places};
use ramsift_symbols::{Provenance, SymbolTable, btf, isf, kallsyms};
use std::time::Instant;

/// The shortest of ten runs, in milliseconds.
fn best<T>(mut f: impl FnMut() -> T) -> (T, f64) {
    let mut least = f64::MAX;
    let mut out = None;
    for _ in 0..10 {
        let t = Instant::now();
        let v = f();
        least = least.min(t.elapsed().as_secs_f64() * 1e3);
        out = Some(v);
    }
    (out.unwrap(), least)
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names = capture::names("");
    }
    for name in names {
        let c = capture::open(&name);
        let places = Places::from_vmcoreinfo(&c.info, c.delta()).expect("6.0 or later");
        let known = [("_stext", VirtAddr(c.info.symbol("_stext").unwrap()))];
        let hints = Hints {
            known: &known,
            delta: None,
        };
        let (k, ms) = best(|| kallsyms::decode(&c.image, &places, &hints).unwrap());
        println!("{name}");
        println!(
            "  kallsyms via VMCOREINFO  {ms:8.1} ms  {} symbols {:?}",
            k.len(),
            k.layout()
        );
        let hits = c.hits(DIGITS);
        let (_, ms) = best(|| {
            let carve = |pa: &PhysAddr| kallsyms::carve(&c.image, *pa, &Hints::default()).ok();
            hits.iter().find_map(carve).unwrap()
        });
        println!(
            "  kallsyms carved          {ms:8.1} ms  {} hits",
            hits.len()
        );
        let heads = c.hits(b"\x9f\xeb\x01");
        let (b, ms) = best(|| {
            let read = |pa: &PhysAddr| btf::read_kernel_at(&c.image, *pa).ok();
            heads.iter().find_map(read).unwrap()
        });
        println!(
            "  BTF found and checked    {ms:8.1} ms  {} heads, {} types",
            heads.len(),
            b.len()
        );
        let (t, ms) = best(|| btf::to_types(&b));
        println!(
            "  BTF to types             {ms:8.1} ms  {} bytes",
            t.memory_bytes()
        );
        let (t, ms) = best(|| SymbolTable::from_kernel(&k, t.clone(), Provenance::default()));
        println!(
            "  symbol table             {ms:8.1} ms  {} bytes",
            t.memory_bytes()
        );
        let n = 100_000;
        let start = Instant::now();
        for _ in 0..n {
            std::hint::black_box(t.types().field("task_struct", "thread.sp").ok());
        }
        let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(n);
        println!("  field look-up            {each:8.0} ns");
        let start = Instant::now();
        for _ in 0..n {
            std::hint::black_box(t.address("init_task"));
        }
        let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(n);
        println!("  symbol look-up           {each:8.0} ns");
    }
    let Ok(dir) = std::fs::read_dir(capture::folder().join("isf")) else {
        return;
    };
    for f in dir.flatten() {
        let name = f.file_name().to_string_lossy().into_owned();
        let raw = std::fs::read(f.path()).unwrap();
        let start = Instant::now();
        let json = isf::decompress(&raw).unwrap();
        let xz = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let t = isf::parse(&name, &json).unwrap();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        println!(
            "{name}: xz {xz:.0} ms, JSON {ms:.0} ms, {} bytes kept",
            t.memory_bytes()
        );
    }
}
