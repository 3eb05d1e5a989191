//! Physical memory through a bounded cache of blocks: what views read, without downloading the
//! image.

use crate::run::RunMap;
use crate::source::{ByteSource, SourceError};
use crate::translate::{PhysError, PhysRead};
use crate::{FileOffset, ImageOffset, PhysAddr};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Bytes of a block: small, since what views read lies far apart.
const BLOCK: u64 = 64 << 10;

#[derive(Debug)]
struct Block {
    data: Arc<Vec<u8>>,
    /// Used since the hand last passed.
    used: bool,
}

/// Blocks by number, with a clock hand that looks for one to give up.
#[derive(Debug, Default)]
struct Blocks {
    map: HashMap<u64, Block>,
    order: VecDeque<u64>,
    /// The block that was read last: neighbours are read together.
    last: Option<(u64, Arc<Vec<u8>>)>,
    read: u64,
}

impl Blocks {
    fn get(&mut self, number: u64) -> Option<&Arc<Vec<u8>>> {
        if self.last.as_ref().is_none_or(|(n, _)| *n != number) {
            let b = self.map.get_mut(&number)?;
            b.used = true;
            self.last = Some((number, b.data.clone()));
        }
        self.last.as_ref().map(|(_, data)| data)
    }

    fn put(&mut self, number: u64, data: Arc<Vec<u8>>, capacity: usize) {
        self.read += data.len() as u64;
        self.last = Some((number, data.clone()));
        let block = Block { data, used: true };
        if self.map.insert(number, block).is_none() {
            self.order.push_back(number);
        }
        while self.map.len() > capacity {
            let Some(old) = self.order.pop_front() else {
                break;
            };
            match self.map.get_mut(&old) {
                // A second chance.
                Some(b) if b.used => {
                    b.used = false;
                    self.order.push_back(old);
                }
                _ => {
                    self.map.remove(&old);
                }
            }
        }
    }
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

    /// Copies from a block, which is fetched where it isn't kept.
    fn copy(&self, number: u64, at: usize, buf: &mut [u8]) -> Result<(), String> {
        let from = |data: &[u8], buf: &mut [u8]| {
            let end = at + buf.len();
            let short = || format!("block {number} has no bytes {at} to {end}");
            buf.copy_from_slice(data.get(at..end).ok_or_else(short)?);
            Ok(())
        };
        {
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(b) = blocks.get(number) {
                return from(b, buf);
            }
        }
        let start = number * BLOCK;
        let len = BLOCK.min(self.source.len().saturating_sub(start));
        let len = usize::try_from(len).map_err(|e| e.to_string())?;
        let data = self
            .runtime
            .block_on(self.source.read_vec(FileOffset(start), len))
            .map_err(|e| {
                let text = e.to_string();
                if !e.is_content() {
                    let mut t = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    t.get_or_insert(e);
                }
                text
            })?;
        let data = Arc::new(data);
        let copied = from(&data, buf);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.put(number, data, self.capacity);
        copied
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
            let stored = self.runs.stored_at(here);
            let (file, len) = stored.ok_or(PhysError::NotInImage { pa: here })?;
            let inside = file.0 % BLOCK;
            let n = len.min(BLOCK - inside).min((buf.len() - done) as u64);
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            let at = usize::try_from(inside).unwrap_or(usize::MAX);
            self.copy(file.0 / BLOCK, at, &mut buf[done..done + n])
                .map_err(|detail| PhysError::Source { pa: here, detail })?;
            done += n;
        }
        Ok(())
    }
}
