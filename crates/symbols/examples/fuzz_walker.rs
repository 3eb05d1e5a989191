//! Mutates page tables for some seconds and walks them:
//! `cargo run --release -p ramsift-symbols --example fuzz_walker [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive(
        "walker",
        &common::seeds::walker_seeds(),
        common::fuzz::walker,
    );
}
