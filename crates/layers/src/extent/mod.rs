//! Extents: where the bytes of an image lie in a container that does not hold them as they are, and how to get them.
//!
//! ```text
//! image    0 ........ 0x10000 ........ 0x20000 ..................... 0x1000000
//! extents  [snappy frame][snappy frame][ zero                      ][ raw    ]
//! source   0x2a..0x5f01  0x5f05..0x9000 (accounted to 0x5f05)        0x9020..
//! ```
//!
//! Raw, LiME and ELF core files hold memory as it is: there an image offset is a file offset plus a constant, and
//! [`RunMap`](crate::run::RunMap) says which. Of other containers the runs name image offsets, and this module turns those into bytes:
//!
//! * [`ImageBuilder`] takes what a container holds, in physical order, and gives runs and a table;
//! * [`Extents`] reads slices of that table, which lies beside the plan: 64 GiB in pages are 16 million extents;
//! * [`ImageReader`] stands between the source and everything that reads.
//!
//! An extent belongs to the chunk that holds its first byte; one without bytes belongs to the chunk of the one before.

mod build;
mod decode;
mod lzo;
mod read;
mod table;
mod vm_compress;
mod windows;
mod xpress;

pub use build::{BuildError, ImageBuilder, Stored};
pub use decode::Decoder;
pub use read::{DecodedNear, ImageReader, Near};
pub use table::{Extents, Table, TableInfo};
pub use windows::owned;

/// Bytes of the image in one extent at most.
pub const MAX_EXTENT: u64 = 16 << 20;
/// Bytes that a compressed extent may have in the source: a page or frame that didn't get smaller, with some room.
pub const MAX_STORED: u64 = 1 << 20;

/// How the bytes of an extent are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// Not at all: zeros.
    Zero,
    /// Four bytes of masked CRC-32C, then a snappy block: the body of a compressed chunk of a snappy frame.
    SnappyFrame,
    /// Four bytes of masked CRC-32C, then the bytes: the body of an uncompressed chunk of a snappy frame.
    PlainFrame,
    /// A zlib stream.
    Zlib,
    /// An LZO1X stream.
    Lzo,
    /// A snappy block.
    Snappy,
    /// A zstd frame.
    Zstd,
    /// Xpress: plain LZ77.
    Xpress,
    /// Xpress: LZ77 with Huffman codes.
    XpressHuffman,
    /// Pages one by one, as saved states of Hyper-V have them: words that fill them, Xpress, as they are.
    VmCompress,
}

impl Codec {
    const ALL: [Self; 11] = [
        Self::Raw,
        Self::Zero,
        Self::SnappyFrame,
        Self::PlainFrame,
        Self::Zlib,
        Self::Lzo,
        Self::Snappy,
        Self::Zstd,
        Self::Xpress,
        Self::XpressHuffman,
        Self::VmCompress,
    ];

    fn number(self) -> u8 {
        self as u8
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zero => "zero",
            Self::SnappyFrame => "snappy frame",
            Self::PlainFrame => "uncompressed snappy frame",
            Self::Zlib => "zlib",
            Self::Lzo => "lzo",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
            Self::Xpress => "xpress",
            Self::XpressHuffman => "xpress huffman",
            Self::VmCompress => "Hyper-V block",
        }
    }
}

/// A range of the image and where its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First image offset.
    pub image: u64,
    /// Bytes of the image.
    pub len: u64,
    /// Where its first byte lies in the source. Of zeros, which lie nowhere: of the extent that they are accounted to.
    pub source: u64,
    /// Bytes in the source; 0 of zeros.
    pub stored: u64,
    /// Where the rest of its bytes lies in the source, where they are in two parts, and how many bytes that is.
    pub rest: Option<(u64, u64)>,
    /// How they are stored.
    pub codec: Codec,
    /// Where what is stored stands for more than this extent: how many bytes of that come before it, and how many it is in all.
    pub part: Option<(u64, u64)>,
}

impl Extent {
    /// The image offset behind it.
    pub fn end(&self) -> u64 {
        self.image.saturating_add(self.len)
    }

    /// Whether it is what an extent can be, in a source of `source_len` bytes.
    fn is_sound(&self, source_len: u64) -> bool {
        let most = if self.codec == Codec::Raw {
            MAX_EXTENT
        } else {
            MAX_STORED
        };
        let inside = |at: u64, n: u64| at.checked_add(n).is_some_and(|end| end <= source_len);
        let stored = self.stored.saturating_add(self.rest.map_or(0, |(_, n)| n));
        let fits = match self.codec {
            Codec::Raw => stored == self.len,
            Codec::Zero => stored == 0,
            _ => stored > 0,
        };
        let within = |(before, whole): (u64, u64)| {
            let end = before.checked_add(self.len);
            let packed = !matches!(self.codec, Codec::Raw | Codec::Zero);
            packed && whole <= MAX_EXTENT && end.is_some_and(|end| end <= whole)
        };
        (1..=MAX_EXTENT).contains(&self.len)
            && self.part.is_none_or(within)
            && self.image.checked_add(self.len).is_some()
            && fits
            && stored <= most
            && self.source < source_len
            && inside(self.source, self.stored)
            && self.rest.is_none_or(|(at, n)| inside(at, n))
    }
}
