//! Bytes in memory: tables of extents, tests and small fixtures.

use super::{ByteSource, SourceError, SourcePin, in_bounds};
use crate::FileOffset;
use async_trait::async_trait;
use std::sync::Arc;

/// A source whose bytes are in memory.
pub struct RamSource {
    data: Arc<Vec<u8>>,
    pin: SourcePin,
}

impl std::fmt::Debug for RamSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RamSource({})", self.pin)
    }
}

impl RamSource {
    /// A source of these bytes.
    pub fn new(name: impl Into<String>, data: Vec<u8>) -> Self {
        Self::shared(name, Arc::new(data))
    }

    /// A source of bytes that others have, too.
    pub fn shared(name: impl Into<String>, data: Arc<Vec<u8>>) -> Self {
        let pin = SourcePin::Ram {
            name: name.into(),
            size: data.len() as u64,
        };
        Self { data, pin }
    }
}

#[async_trait]
impl ByteSource for RamSource {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        in_bounds(&self.pin, offset.0, buf.len())?;
        let at = usize::try_from(offset.0).unwrap_or(usize::MAX);
        buf.copy_from_slice(&self.data[at..at + buf.len()]);
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
