//! Mutates the cells of a Windows machine's registry for some seconds and reads them:
//! `cargo run --release -p ramsift-os --example fuzz_registry [SECONDS] [SEED]`
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

#[path = "../tests/windows/common.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[path = "../tests/windows/fuzz.rs"]
mod fuzz;

fn main() {
    let t = fuzz::Target::registry();
    drive::drive("registry", std::slice::from_ref(&t.seed), |data| {
        t.views(data, &fuzz::REGISTRY);
    });
}
