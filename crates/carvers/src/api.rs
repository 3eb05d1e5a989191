//! The contract between a carver, the driver that runs them all in one pass, and whoever takes
//! what they find.
//!
//! Everything here depends on the bytes of the image alone, never on where a window begins or
//! ends: a scan in windows finds exactly what one scan of the whole image finds.

use ramsift_layers::ImageOffset;
use std::ops::Range;

/// How far before its core a window reaches (less at the start of the image). Whether something
/// begins at a byte is decided by at most this many bytes before it.
pub const LOOK_BEHIND: usize = 64 << 10;

/// A stretch of the image, contiguous in image offsets: look-behind, core, overlap.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// Image offset of `data[0]`.
    pub base: ImageOffset,
    /// The part of `data` whose first bytes this scan owns: what starts elsewhere is not reported.
    pub core_start: usize,
    /// End of the core in `data`.
    pub core_end: usize,
    /// Length of the whole image: tells a cut window from the end of the evidence.
    pub image_len: u64,
}

/// Why bytes after the window could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoreError {
    /// The byte budget for following long artifacts is used up.
    #[error("the budget for following artifacts past the chunk is used up")]
    Budget,
    /// The source failed.
    #[error("reading past the chunk failed: {0}")]
    Source(String),
}

/// Bytes after the window, for artifacts that are longer than the overlap.
pub trait ReadMore {
    /// Appends image bytes from `at` to `buf`, `len` of them or as many as the image still has.
    fn read_more(
        &mut self,
        at: ImageOffset,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), MoreError>;
}

/// How text was stored in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// ASCII or UTF-8.
    Utf8,
    /// UTF-16, little-endian.
    Utf16Le,
}

impl Encoding {
    /// Name used in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Utf16Le => "utf16le",
        }
    }
}

/// One typed extra field of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// Text.
    Str(&'a str),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// Texts in order.
    List(&'a [String]),
}

impl From<i64> for Field<'_> {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Field<'_> {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

/// A feature: a URL, a domain, an address.
#[derive(Clone, Copy, Debug)]
pub struct Finding<'a> {
    /// The carver's name.
    pub carver: &'static str,
    /// What was found, for example `url`.
    pub kind: &'static str,
    /// First byte.
    pub offset: ImageOffset,
    /// Bytes in the image.
    pub len: u64,
    /// The value as text, decoded.
    pub value: &'a str,
    /// How it was stored.
    pub encoding: Encoding,
    /// Bytes just before, the value's own and some after, as they lie in the image.
    pub context: &'a [u8],
    /// Extra fields.
    pub fields: &'a [(&'static str, Field<'a>)],
}

/// A record with a time: a log line, an event record.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The carver's name.
    pub carver: &'static str,
    /// What kind of record, for example `syslog`.
    pub kind: &'static str,
    /// First byte.
    pub offset: ImageOffset,
    /// Bytes in the image.
    pub len: u64,
    /// Microseconds since 1970-01-01 UTC, when the record itself says so in full.
    pub time: Option<i64>,
    /// A time that rests on something outside the record.
    pub inferred_time: Option<i64>,
    /// What `inferred_time` rests on, in words.
    pub inferred_from: Option<&'a str>,
    /// The time as it stands in the record.
    pub raw_time: &'a str,
    /// What the time means: `logged`, `created`, ...
    pub time_kind: &'static str,
    /// Host name.
    pub host: Option<&'a str>,
    /// Program or provider.
    pub program: Option<&'a str>,
    /// Process id.
    pub pid: Option<u32>,
    /// The message.
    pub message: &'a str,
    /// How it was stored.
    pub encoding: Encoding,
    /// Extra fields.
    pub fields: &'a [(&'static str, Field<'a>)],
}

/// Recovered content.
#[derive(Clone, Copy, Debug)]
pub struct Artifact<'a> {
    /// The carver's name.
    pub carver: &'static str,
    /// What it is: `png`, `elf`, `text`, ...
    pub kind: &'static str,
    /// First byte.
    pub offset: ImageOffset,
    /// The content, exactly as it lies in the image.
    pub data: &'a [u8],
    /// A name that the content itself gives.
    pub name: Option<&'a str>,
    /// Whether all of it is there; `None`: that can't be told, and [`Self::gap`] says why.
    pub complete: Option<bool>,
    /// What is missing, or why it can't be told whether anything is, in words; `None` when it is
    /// complete.
    pub gap: Option<&'a str>,
    /// Extra fields.
    pub fields: &'a [(&'static str, Field<'a>)],
}

/// A spot that helps to find the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Anchor<'a> {
    /// `linux_banner`, `vmcoreinfo`, `kallsyms_token_table`, `btf`, `swapper`, `rsds`,
    /// `windows_banner`, ...
    pub kind: &'static str,
    /// First byte.
    pub offset: ImageOffset,
    /// The bytes that tell (at most 4 KiB).
    pub data: &'a [u8],
}

/// Takes what the carvers find, in no particular order between two checkpoints. The borrows end
/// with each call.
pub trait Sink {
    /// A feature.
    fn finding(&mut self, finding: &Finding<'_>);
    /// A record with a time.
    fn event(&mut self, event: &Event<'_>);
    /// Recovered content.
    fn artifact(&mut self, artifact: &Artifact<'_>);
    /// A spot that helps to find the kernel.
    fn anchor(&mut self, anchor: &Anchor<'_>);
    /// Everything that begins before `done` has been reported, and nothing after it.
    fn checkpoint(&mut self, done: ImageOffset) {
        let _ = done;
    }
}

/// What a scan of one window looked at.
#[derive(Clone, Debug, Default)]
pub struct ScanStats {
    /// Image ranges of the core that hold one repeated byte per page (zero pages mostly), merged.
    pub sparse: Vec<Range<u64>>,
    /// Image ranges of the core that a carver did not finish, with its name and the reason.
    pub partial: Vec<(&'static str, Range<u64>, String)>,
}
