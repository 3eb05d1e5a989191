//! Mutates seeds for some seconds and feeds them to the kallsyms parser:
//! `cargo run --release -p ramsift-symbols --example fuzz_kallsyms [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    common::seeds::drive(
        "kallsyms",
        &common::seeds::kallsyms_seeds(),
        common::fuzz::kallsyms,
    );
}
