//! Containers: compressed streams and archives that hold one capture, and are unpacked once before it is read.
//!
//! ```text
//! source -> gzip | zlib | zstd | xz | LZ4 | ZDMP -> tar -> ... -> one capture -> a file of its own, with holes where it is zeros
//! source -> zip (which is read from its end)
//! ```
//!
//! What can't be read at random places is unpacked as a stream, whatever its size, within bounds: bytes in all, bytes that are
//! no zeros for each byte of the container, containers in one another. A stream that ends early or is damaged gives what
//! comes before that, and a gap. An archive must hold one capture; what else is in it is told.
//!
//! Sources: RFC 1950, 1952, 8878; the xz and LZ4 frame descriptions; POSIX.1 pax; APPNOTE.TXT.

mod lz4;
mod peek;
mod sink;
mod stream;
mod unpack;
mod zdmp;

pub use peek::{Inside, peek};
pub use unpack::{Unpacked, unpack};

use crate::source::SourceError;
use std::sync::Arc;

/// Bytes of a container that tell what it begins with: a block of zstd, of xz and of most LZ4 frames.
pub const PEEK_LEN: usize = 256 << 10;

/// Containers in one another at most: a capture, compressed, in an archive, compressed again.
pub const MAX_DEPTH: usize = 4;

/// A kind of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 1952, one member or several.
    Gzip,
    /// RFC 1950, as LiME writes with `compress=1`.
    Zlib,
    /// RFC 8878, one frame or several.
    Zstd,
    /// xz, one stream or several.
    Xz,
    /// LZ4 frames.
    Lz4,
    /// ustar, pax or GNU tar.
    Tar,
    /// A ZIP archive.
    Zip,
    /// A compressed capture of DumpIt.
    Zdmp,
}

impl Kind {
    /// The kind of a container by its first bytes.
    pub fn of(head: &[u8]) -> Option<Self> {
        let skippable =
            head.len() > 8 && head[1..4] == [0x2a, 0x4d, 0x18] && head[0] & 0xf0 == 0x50;
        Some(match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ if head.starts_with(zdmp::MAGIC) => Self::Zdmp,
            // zstd's command line writes such frames in front; LZ4's does not.
            _ if skippable => Self::Zstd,
            [b'P', b'K', 3, 4, ..] if !is_aff4(head) => Self::Zip,
            _ if crate::format::is_tar(head) => Self::Tar,
            _ if crate::format::is_zlib(head) => Self::Zlib,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4 => "LZ4",
            Self::Tar => "tar",
            Self::Zip => "ZIP",
            Self::Zdmp => "DumpIt (ZDMP)",
        }
    }

    /// Whether it holds members with names.
    fn is_archive(self) -> bool {
        matches!(self, Self::Tar | Self::Zip)
    }
}

/// AFF4 images are ZIP archives that hold no file of memory as it is.
fn is_aff4(head: &[u8]) -> bool {
    let has = |what: &[u8]| memchr::memmem::find(head, what).is_some();
    has(b"aff4") || has(b"container.description")
}

/// What unpacking may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the capture at most, zeros among them.
    pub bytes: u64,
    /// Bytes of it that are no zeros, for each byte of the container, at most.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 40,
            ratio: 1000,
        }
    }
}

/// Why a container can't be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The container's own bytes could not be had.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// There is nothing to read in it.
    #[error("{what} at offset {offset:#x}: {detail}; nothing could be unpacked")]
    Damaged {
        /// The kinds, the innermost first.
        what: String,
        /// Bytes of the container that were read.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// No capture in it.
    #[error("{what} holds no capture: {members}")]
    NoCapture {
        /// The kinds, the innermost first.
        what: String,
        /// What it holds, with the reasons.
        members: String,
    },
    /// More than one.
    #[error("{what} holds {count} captures: {members}; unpack it and name one, or the folder")]
    Several {
        /// The kinds, the innermost first.
        what: String,
        /// How many.
        count: usize,
        /// Their names.
        members: String,
    },
    /// What it holds is of a kind that can't be read.
    #[error("{what} holds {inside}")]
    Unsupported {
        /// The kinds, the innermost first.
        what: String,
        /// What it is, and what to do.
        inside: String,
    },
    /// It goes past a bound.
    #[error("{what} unpacks to more than {limit}; if that is right, raise {setting}")]
    TooLarge {
        /// The kinds, the innermost first.
        what: String,
        /// The bound, in words.
        limit: String,
        /// The setting that has it.
        setting: &'static str,
    },
    /// Containers in containers.
    #[error("{what}: containers in one another are more than {MAX_DEPTH} deep; unpack it first")]
    TooDeep {
        /// The kinds, the innermost first.
        what: String,
    },
    /// What was unpacked can't be written.
    #[error(
        "the unpacked capture can't be written to {place}: {detail}; name a folder with more room with {setting}"
    )]
    Write {
        /// The folder.
        place: String,
        /// What the system said.
        detail: String,
        /// The setting that names it.
        setting: &'static str,
    },
}

impl ContainerError {
    /// Whether another try may do.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Source(e) => matches!(e.as_ref(), SourceError::Unavailable { .. }),
            Self::Write { .. } => true,
            _ => false,
        }
    }
}
