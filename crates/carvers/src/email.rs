//! E-mail addresses, in ASCII and UTF-16LE.
//!
//! ```text
//! first.last+tag @ mail.example.com       RFC 5321 section 4.1.2, as people use it: no quoted
//! <- 1..64 LOCAL   <- a name with a TLD    local parts, no address literals
//! ```
//!
//! The runs on both sides of the `@` are taken whole; a local part of more than 64 characters is
//! not an address.

use crate::chars::{ALNUM, HOST, LOCAL, is};
use crate::feature::Place;
use crate::tld;

pub(crate) const VERSION: u32 = 1;

/// Looks at the `@` at byte `at`.
pub(crate) fn visit<const STEP: usize>(place: &mut Place<'_>, at: usize) {
    let chars = place.chars::<STEP>();
    let Some(mut from) = chars.back(at, LOCAL, 64) else {
        return;
    };
    while from < at && !is(chars.at(from), ALNUM) && chars.at(from) != b'_' {
        from += STEP;
    }
    let end = chars.forward(at + STEP, HOST, 254);
    if from == at || chars.before(at) == b'.' || is(chars.at(end), HOST) {
        return;
    }
    let name = place
        .text::<STEP>(at + STEP, end)
        .trim_end_matches(['.', '-', '_']);
    let to = at + STEP + name.len() * STEP;
    if crate::domain::is_name(name) && tld::known(name) {
        place.report::<STEP>("email", "email", from, to);
    }
}
