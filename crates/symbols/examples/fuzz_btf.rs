//! Mutates seeds for some seconds and feeds them to the btf parser:
//! `cargo run --release -p ramsift-symbols --example fuzz_btf [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("btf", &common::seeds::btf_seeds(), common::fuzz::btf);
}
