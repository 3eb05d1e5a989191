//! Mutates PDBs for some seconds and reads them:
//! `cargo run --release -p ramsift-symbols --example fuzz_pdb [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

fn main() {
    drive::drive("pdb", &common::seeds::pdb_seeds(), common::fuzz::pdb);
}
