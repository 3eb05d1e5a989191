//! Raw and padded images: the file offset is the physical address.
//!
//! Nothing in the file says so; raw is what is left when no other format matches. Images of
//! machines whose memory doesn't begin at 0, or with a hole that was left out, can't be told
//! apart here: the kernel's own tables decide that later.

use super::{FormatError, ImageFormat, Layout};
use crate::run::RunMap;
use crate::source::ByteSource;
use async_trait::async_trait;

/// Raw images.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

#[async_trait]
impl ImageFormat for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn probe(&self, _head: &[u8], _len: u64) -> bool {
        true
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Layout, FormatError> {
        Ok(Layout {
            format: "raw".into(),
            runs: RunMap::raw(source.len()),
            arch: None,
            dtb_hints: Vec::new(),
            notes: Vec::new(),
        })
    }
}
