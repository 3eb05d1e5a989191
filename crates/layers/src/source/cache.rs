//! Physical memory through a bounded cache of blocks: what views read, without downloading the
//! image.

use crate::run::RunMap;
use crate::source::{ByteSource, SourceError};
use crate::translate::{PhysError, PhysRead};
use crate::{FileOffset, ImageOffset, PhysAddr};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;

#[derive(Debug, Default)]
struct Blocks {
    map: BTreeMap<u64, Arc<Vec<u8>>>,
    /// Oldest first.
    order: VecDeque<u64>,
    read: u64,
}

/// Physical memory of a capture, read in blocks of which a bounded number is kept.
///
/// Reads block the calling thread: use it where that is allowed.
#[derive(Debug)]
pub struct CachedPhys {
    source: Arc<dyn ByteSource>,
    runs: RunMap,
    runtime: Handle,
    capacity: usize,
    blocks: Mutex<Blocks>,
    /// The first failure that is not the evidence's own.
    trouble: Mutex<Option<SourceError>>,
}

impl CachedPhys {
    /// Keeps at most `bytes` of blocks. Must be made inside the async runtime.
    pub fn new(source: Arc<dyn ByteSource>, runs: RunMap, bytes: u64) -> Self {
        let capacity = usize::try_from(bytes / BLOCK).unwrap_or(usize::MAX).max(2);
        Self {
            source,
            runs,
            runtime: Handle::current(),
            capacity,
            blocks: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// The runs of the capture.
    pub fn runs(&self) -> &RunMap {
        &self.runs
    }

    /// The first outage, or sign that the evidence is gone, that a reader met. Whoever builds on
    /// what was read must ask: readers only see that memory was unreadable.
    pub fn take_trouble(&self) -> Option<SourceError> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Bytes read from the source so far.
    pub fn bytes_read(&self) -> u64 {
        self.blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read
    }

    fn block(&self, number: u64) -> Result<Arc<Vec<u8>>, String> {
        if let Some(b) = self
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map
            .get(&number)
        {
            return Ok(b.clone());
        }
        let at = number * BLOCK;
        let len = BLOCK.min(self.source.len().saturating_sub(at));
        let len = usize::try_from(len).map_err(|e| e.to_string())?;
        let data = self
            .runtime
            .block_on(self.source.read_vec(FileOffset(at), len))
            .map_err(|e| {
                let text = e.to_string();
                if !e.is_content() {
                    let mut t = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    t.get_or_insert(e);
                }
                text
            })?;
        let data = Arc::new(data);
        let mut b = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        b.read += len as u64;
        if b.map.insert(number, data.clone()).is_none() {
            b.order.push_back(number);
        }
        while b.map.len() > self.capacity {
            let Some(old) = b.order.pop_front() else {
                break;
            };
            b.map.remove(&old);
        }
        Ok(data)
    }

    /// Fills `buf` from an image offset.
    pub fn read_image(&self, at: ImageOffset, buf: &mut [u8]) -> Result<(), PhysError> {
        let pa = self
            .runs
            .to_phys(at)
            .ok_or(PhysError::NotInImage { pa: PhysAddr(at.0) })?;
        self.read_phys(pa, buf)
    }
}

impl PhysRead for CachedPhys {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let mut done = 0usize;
        while done < buf.len() {
            let here = pa.saturating_add(done as u64);
            let not_there = PhysError::NotInImage { pa: here };
            let image = self.runs.from_phys(here).ok_or(not_there.clone())?;
            let stretch = self.runs.stretch(image).ok_or(not_there.clone())?;
            let want = ((buf.len() - done) as u64).min(stretch.end - image.0);
            let pieces = self.runs.pieces(image.0..image.0 + want);
            let p = pieces.first().ok_or(not_there)?;
            let inside = p.file % BLOCK;
            let n = p.len.min(BLOCK - inside);
            let block = self
                .block(p.file / BLOCK)
                .map_err(|detail| PhysError::Source { pa: here, detail })?;
            let (a, n) = (
                usize::try_from(inside).unwrap_or(usize::MAX),
                usize::try_from(n).unwrap_or(usize::MAX),
            );
            let from = block
                .get(a..a + n)
                .ok_or(PhysError::NotInImage { pa: here })?;
            buf[done..done + n].copy_from_slice(from);
            done += n;
        }
        Ok(())
    }
}
