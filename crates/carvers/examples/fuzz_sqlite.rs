//! Mutates seeds for some seconds and feeds them to the carver of SQLite databases:
//! `cargo run --release -p ramsift-carvers --example fuzz_sqlite [SECONDS] [SEED]`
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive(
        "sqlite",
        &common::fuzz::seeds(&["sqlite"]),
        common::fuzz::sqlite,
    );
}
