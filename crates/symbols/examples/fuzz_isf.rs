//! Mutates seeds for some seconds and feeds them to the isf parser:
//! `cargo run --release -p ramsift-symbols --example fuzz_isf [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("isf", &common::seeds::isf_seeds(), common::fuzz::isf);
}
