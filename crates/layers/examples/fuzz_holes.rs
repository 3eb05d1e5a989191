//! Mutates page tables for some seconds and looks for the hole that a raw image may lack:
//! `cargo run --release -p ramsift-layers --example fuzz_holes [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[path = "../tests/common/fuzz.rs"]
mod fuzz;

fn main() {
    drive::drive("holes", &[fuzz::tables()], fuzz::hole);
}
