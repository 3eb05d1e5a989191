//! Mutates seeds for some seconds and feeds them to the carvers of event logs:
//! `cargo run --release -p ramsift-carvers --example fuzz_evtx [SECONDS] [SEED]`
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("evtx", &common::fuzz::seeds(&["evtx"]), common::fuzz::evtx);
}
