//! What can be wrong with a kallsyms table.

use ramsift_layers::PhysAddr;
use ramsift_layers::translate::PhysError;

/// Why the tables could not be decoded.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KallsymsError {
    /// A part of the tables is not in the image.
    #[error("kallsyms: {what} can't be read: {source}")]
    Read {
        /// The part.
        what: &'static str,
        /// What the image said.
        source: PhysError,
    },
    /// VMCOREINFO lacks an address that decoding needs (kernels before 6.0 have none of them).
    #[error("kallsyms: VMCOREINFO has no {key}")]
    MissingKey {
        /// The key, as it would stand in the text.
        key: &'static str,
    },
    /// Bytes are not what the format has at this place.
    #[error("kallsyms: {what} at {pa}: expected {expected}, found {found}")]
    Malformed {
        /// The part.
        what: &'static str,
        /// Where.
        pa: PhysAddr,
        /// What the format has there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// No names could be found around a token table.
    #[error(
        "kallsyms: no names belong to the token table at {token_table}: {markers} runs of markers \
         looked at between {from} and it"
    )]
    NoNames {
        /// The token table.
        token_table: PhysAddr,
        /// Where the search began.
        from: PhysAddr,
        /// How many runs looked like markers.
        markers: usize,
    },
    /// The names were decoded, but no table of addresses agrees with what is known.
    #[error("kallsyms: {symbols} names at {names}, but no addresses for them: {tried}")]
    NoAddresses {
        /// The names.
        names: PhysAddr,
        /// How many there are.
        symbols: usize,
        /// Each way that was tried, and why it was refused.
        tried: String,
    },
}

pub(super) fn malformed(
    what: &'static str,
    pa: PhysAddr,
    expected: impl Into<String>,
    found: impl ToString,
) -> KallsymsError {
    KallsymsError::Malformed {
        what,
        pa,
        expected: expected.into(),
        found: found.to_string(),
    }
}

pub(super) fn read(what: &'static str) -> impl FnOnce(PhysError) -> KallsymsError {
    move |source| KallsymsError::Read { what, source }
}
