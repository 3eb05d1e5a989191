//! Small reads that go forward through a source: what lies close together comes with one read.

use crate::FileOffset;
use crate::source::{ByteSource, SourceError};

/// Bytes that are read at once where a read is a request over the network: several are under way together then.
const FAR: u64 = 48 << 20;
/// Bytes that are read at once where a read is a call.
const PAGE: u64 = 4096;
/// Bytes that are read at once of what is read as a whole.
const SEQUENCE: u64 = 1 << 20;
/// What a read costs where it is one of the network, in bytes, at least.
pub(super) const NETWORK: u64 = 256 << 10;

/// A reader that goes forward.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    source: &'a dyn ByteSource,
    step: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(source: &'a dyn ByteSource) -> Self {
        let distance = source.coalesce_distance();
        Self {
            source,
            step: if distance >= NETWORK { FAR } else { PAGE },
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// One that reads all of it: what it looks for lies everywhere.
    pub(super) fn in_sequence(source: &'a dyn ByteSource) -> Self {
        let mut out = Self::new(source);
        out.step = out.step.max(SEQUENCE);
        out
    }

    /// At most `n` bytes from `at`: fewer at the end of the source.
    pub(super) async fn get(&mut self, at: u64, n: usize) -> Result<&[u8], SourceError> {
        let end = at.saturating_add(n as u64).min(self.source.len());
        let have = self.start..self.start + self.bytes.len() as u64;
        if at < have.start || end > have.end {
            let to = at
                .saturating_add(self.step.max(n as u64))
                .min(self.source.len());
            let len = usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX);
            self.bytes = self.source.read_vec(FileOffset(at), len).await?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let len = usize::try_from(end.saturating_sub(at)).unwrap_or(0);
        Ok(self
            .bytes
            .get(from..from.saturating_add(len))
            .unwrap_or_default())
    }
}
