//! Layers: where the bytes of a capture come from, what container they lie in, and how addresses
//! of one space become addresses of another.
//!
//! ```text
//! source   bytes of a file or object, pinned to one version
//! container a compressed stream or an archive with one capture in it, which is unpacked first
//! format   container headers -> runs (physical address, file extent)
//! run      physical address <-> image offset <-> file offset
//! extent   image offset -> bytes, where a container does not hold them as they are
//! convert  an image, written in another format
//! page_file pages that were written out of memory, in files beside the capture
//! chunk    aligned pieces of the file, and the windows of the image that lie in them
//! translate virtual -> physical through the captured page tables
//! hash     BLAKE3 of the whole file from the pieces
//! ```

pub mod address;
pub mod chunk;
pub mod container;
pub mod convert;
pub mod extent;
pub mod format;
pub mod hash;
pub mod page_file;
pub mod run;
pub mod severity;
pub mod source;
pub mod translate;

pub use address::{Dtb, FileOffset, ImageOffset, PhysAddr, VirtAddr};
pub use chunk::{Chunk, ChunkParams, ChunkWindow};
pub use extent::ImageReader;
pub use page_file::PageFile;
pub use run::{Run, RunMap};
pub use severity::Severity;
pub use source::{ByteSource, SourceError, SourcePin};
