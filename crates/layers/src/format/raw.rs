//! Raw and padded images: the file offset is the physical address.
//!
//! Nothing in the file says so; raw is what is left when no other format matches. So its content is asked whether it
//! can be memory at all. Of an image that lacks the hole below 4 GiB the kernel's page tables tell (see [`hole`](super::hole)); where the
//! memory of a machine begins elsewhere than at 0, its kernel decides later.

use super::{ContainerGap, FormatError, ImageFormat, Layout, Opened, Told, content, hole};
use crate::run::RunMap;
use crate::source::ByteSource;
use async_trait::async_trait;

/// Bytes of the smallest page of any machine that is read.
const PAGE: u64 = 4096;

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

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let len = source.len();
        let mut gaps = Vec::new();
        if let Some(why) = content::doubt(source).await? {
            gaps.push(ContainerGap {
                file: 0..len,
                reason: format!("does not look like physical memory: {why}"),
            });
        }
        let mut notes = Vec::new();
        let rest = len % PAGE;
        if rest > 0 && len > PAGE {
            notes.push(format!(
                "the last {rest} bytes are no whole page: was the file cut short?"
            ));
        }
        let packed = match gaps.is_empty() {
            true => hole::left_out(source).await?,
            false => None,
        };
        if let Some([below, above]) = packed.as_ref().map(RunMap::runs) {
            notes.push(format!(
                "the hole below 4 GiB was left out, as the kernel's page tables prove: what lies in the file from {:#x} on is at physical {:#x}",
                below.len, above.pa
            ));
        }
        Ok(Layout {
            format: "raw".into(),
            version: None,
            runs: packed.unwrap_or_else(|| RunMap::raw(len)),
            arch: None,
            dtb_hints: Vec::new(),
            notes,
            gaps,
            extents: None,
            page_files: Vec::new(),
            told: Told::default(),
        }
        .into())
    }
}
