//! Mutates seeds for some seconds and feeds them to the carver of ZIP files:
//! `cargo run --release -p ramsift-carvers --example fuzz_zip [SECONDS] [SEED]`
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("zip", &common::fuzz::seeds(&["zip"]), common::fuzz::zip);
}
