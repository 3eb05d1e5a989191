//! A source that says how much of it was read.

use super::{ByteSource, Mapping, SourceError, SourcePin};
use crate::FileOffset;
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes reads on and counts their bytes.
#[derive(Debug)]
pub struct CountedSource {
    source: Arc<dyn ByteSource>,
    bytes: AtomicU64,
}

impl CountedSource {
    /// Counts what is read of `source` through this.
    pub fn new(source: Arc<dyn ByteSource>) -> Self {
        Self {
            source,
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes that were read so far; what was mapped is not among them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl ByteSource for CountedSource {
    fn pin(&self) -> &SourcePin {
        self.source.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        self.source.read_at(offset, buf).await?;
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        self.source.check_pin().await
    }

    fn map(&self, range: Range<u64>) -> Option<Mapping> {
        self.source.map(range)
    }

    fn unmap(&self) {
        self.source.unmap();
    }

    fn parts(&self) -> &[Arc<dyn ByteSource>] {
        self.source.parts()
    }

    fn coalesce_distance(&self) -> u64 {
        self.source.coalesce_distance()
    }

    fn len(&self) -> u64 {
        self.source.len()
    }
}
