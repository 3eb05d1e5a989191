//! Mutates seeds for some seconds and feeds them to the kallsyms parser:
//! `cargo run --release -p ramsift-symbols --example fuzz_kallsyms [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive(
        "kallsyms",
        &common::seeds::kallsyms_seeds(),
        common::fuzz::kallsyms,
    );
}
