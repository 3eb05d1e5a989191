//! Mutates tables of layouts for some seconds and reads them:
//! `cargo run --release -p ramsift-symbols --example fuzz_layouts [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive(
        "layouts",
        &common::seeds::layouts_seeds(),
        common::fuzz::layouts,
    );
}
