//! Reads of a chunk: one buffer, or one mapping, for the chunk's range of the file and what lies around it.
//!
//! Where the medium fails, the read is tried again in ever smaller pieces, so that only the bad
//! pages are lost: they read as zeros and are reported as failed.

use ramsift_layers::chunk::ChunkWindow;
use ramsift_layers::extent::{DecodedNear, Near};
use ramsift_layers::source::Mapping;
use ramsift_layers::{ByteSource, FileOffset, ImageReader, SourceError};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Buffers that are used again, so that the pages of each are touched for the first time once.
#[derive(Debug)]
pub(crate) struct BufferPool {
    permits: Arc<Semaphore>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer from the pool; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

impl BufferPool {
    pub(crate) fn new(n: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(n)),
            free: Arc::default(),
        }
    }

    /// Waits for a buffer. `None` only when the pool is closed, which it never is.
    pub(crate) async fn take(&self) -> Option<Buffer> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        let bytes = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Some(Buffer {
            bytes: bytes.unwrap_or_default(),
            free: self.free.clone(),
            _permit: permit,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }
}

/// The bytes of a chunk.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Empty where the bytes are mapped; the permit counts all the same.
    pub(crate) buffer: Buffer,
    pub(crate) mapped: Option<Mapping>,
    /// Range of the file that the slab holds.
    pub(crate) file: Range<u64>,
    /// Ranges of the file that could not be read (zeros here), with the reason.
    pub(crate) bad: Vec<(Range<u64>, String)>,
}

/// The range of the file to read at once for these windows of a chunk.
pub(crate) fn span(chunk: &Range<u64>, windows: &[ChunkWindow], around: u64) -> Range<u64> {
    let mut r = chunk.clone();
    for p in windows.iter().flat_map(|w| &w.pieces) {
        // Pieces far away (runs out of order in the file) are fetched on their own.
        if p.file < r.start && chunk.start - p.file <= around {
            r.start = p.file;
        }
        let end = p.file + p.len;
        if end > r.end && end - chunk.end <= around {
            r.end = end;
        }
    }
    r
}

/// Smallest piece that is tried on its own.
const PAGE: usize = 4096;

/// Reads a range of the file into `buf`, which takes its length. Bad places become zeros and are
/// returned; any other error ends the read.
pub(crate) async fn read_range(
    source: &dyn ByteSource,
    file: Range<u64>,
    buf: &mut Vec<u8>,
) -> Result<Vec<(Range<u64>, String)>, SourceError> {
    let len = usize::try_from(file.end - file.start).unwrap_or(usize::MAX);
    buf.resize(len, 0);
    let mut bad = Vec::new();
    // Halves wait here, lower first.
    let mut todo: Vec<Range<usize>> = std::iter::once(0..len).collect();
    while let Some(r) = todo.pop() {
        let at = FileOffset(file.start + r.start as u64);
        match source.read_at(at, &mut buf[r.clone()]).await {
            Ok(()) => {}
            Err(e) if e.is_content() && r.len() > PAGE => {
                let mid = r.start + (r.len() / 2).next_multiple_of(PAGE).min(r.len() - 1);
                todo.push(mid..r.end);
                todo.push(r.start..mid);
            }
            Err(e) if e.is_content() => {
                buf[r.clone()].fill(0);
                let range = at.0..at.0 + r.len() as u64;
                match bad.last_mut() {
                    Some((last, _)) if Range::<u64>::clone(last).end == range.start => {
                        last.end = range.end;
                    }
                    _ => bad.push((range, e.to_string())),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(bad)
}

impl Slab {
    fn all(&self) -> &[u8] {
        match &self.mapped {
            Some(m) => m.bytes(),
            None => &self.buffer.bytes,
        }
    }

    /// Bytes of the file in it.
    pub(crate) fn len(&self) -> u64 {
        self.all().len() as u64
    }

    fn slice(&self, file: Range<u64>) -> Option<&[u8]> {
        if file.start < self.file.start || file.end > self.file.end {
            return None;
        }
        let a = usize::try_from(file.start - self.file.start).ok()?;
        let b = usize::try_from(file.end - self.file.start).ok()?;
        self.all().get(a..b)
    }

    /// The bytes of a range of the file that the slab holds whole.
    pub(crate) fn bytes(&self, file: Range<u64>) -> &[u8] {
        self.slice(file).unwrap_or_default()
    }

    /// The bytes of a window: borrowed where they lie in one piece, else put together.
    pub(crate) async fn window(
        &self,
        source: &dyn ByteSource,
        w: &ChunkWindow,
    ) -> Result<Cow<'_, [u8]>, SourceError> {
        if let [p] = w.pieces.as_slice()
            && let Some(b) = self.slice(p.file..p.file + p.len)
        {
            return Ok(Cow::Borrowed(b));
        }
        let len = usize::try_from(w.span.end - w.span.start).unwrap_or(usize::MAX);
        let mut out = Vec::with_capacity(len);
        for p in &w.pieces {
            match self.slice(p.file..p.file + p.len) {
                Some(b) => out.extend_from_slice(b),
                None => {
                    let at = out.len();
                    out.resize(at + usize::try_from(p.len).unwrap_or(0), 0);
                    match source.read_at(FileOffset(p.file), &mut out[at..]).await {
                        // Context outside the core: zeros there cost context, never a finding's place.
                        Err(e) if e.is_content() => out[at..].fill(0),
                        other => other?,
                    }
                }
            }
        }
        Ok(Cow::Owned(out))
    }
}

impl Slab {
    /// Unpacks a window into `out`, from the slab where it holds what is needed. Bad places become zeros; those of the core
    /// are returned, by image offset.
    pub(crate) async fn unpack(
        &self,
        image: &ImageReader,
        w: &ChunkWindow,
        out: &mut Vec<u8>,
    ) -> Result<Vec<(Range<u64>, String)>, SourceError> {
        let near = Near {
            start: self.file.start,
            bytes: self.all(),
            bad: &self.bad,
        };
        read_range(&DecodedNear { image, near }, w.span.clone(), out).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::source::{Fault, FaultSource, RamSource};

    #[tokio::test]
    async fn only_the_bad_pages_are_lost() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8 + 1).collect();
        let source = FaultSource::new(
            RamSource::new("disk", data.clone()),
            vec![
                Fault::BadRange(20_000..20_001),
                Fault::BadRange(70_000..80_000),
            ],
        );
        let mut buf = Vec::new();
        let bad = read_range(&source, 4096..100_000, &mut buf)
            .await
            .expect("content only");
        let lost: u64 = bad.iter().map(|(r, _)| r.end - r.start).sum();
        assert!(bad.iter().any(|(r, _)| r.contains(&20_000)));
        assert!(lost < 10_001 + 4 * 4096, "{lost}");
        for (i, b) in buf.iter().enumerate() {
            let at = i as u64 + 4096;
            let is_bad = bad.iter().any(|(r, _)| r.contains(&at));
            assert_eq!(*b, if is_bad { 0 } else { data[at as usize] });
        }
    }
}
