//! Mutates seeds for some seconds and feeds them to all carvers:
//! `cargo run --release -p ramsift-carvers --example fuzz_carvers [SECONDS] [SEED]`
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("carvers", &common::fuzz::seeds(&[]), common::fuzz::carvers);
}
