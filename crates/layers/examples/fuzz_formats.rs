//! Mutates captures for some seconds and reads their headers:
//! `cargo run --release -p ramsift-layers --example fuzz_formats [SECONDS] [SEED]`
#![allow(missing_docs)]

#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[path = "../tests/common/fuzz.rs"]
mod fuzz;

fn main() {
    drive::drive("formats", &fuzz::seeds(), |data: &[u8]| {
        fuzz::formats(data);
        fuzz::several(data);
    });
}
