//! Headers made to hurt.

#[path = "common/fuzz.rs"]
mod fuzz;

/// What the fuzz target found, and its seeds.
#[test]
fn whatever_headers_claim() {
    fuzz::seeds().iter().for_each(|s| fuzz::formats(s));
    fuzz::formats(&fuzz::many_notes());
    fuzz::seeds().iter().for_each(|s| fuzz::several(s));
    fuzz::hole(&fuzz::tables());
}
