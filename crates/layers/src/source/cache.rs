//! Physical memory through a bounded cache of blocks: what views read, without downloading the
//! image.
//!
//! Where block after block is read, ever more of them are read at once: a scan of all memory would be
//! tens of thousands of requests to an object store otherwise.

use crate::run::RunMap;
use crate::source::{ByteSource, SourceError};
use crate::translate::{PhysError, PhysRead};
use crate::{FileOffset, ImageOffset, PhysAddr};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Bytes of a block: small, since what views read lies far apart.
const BLOCK: u64 = 64 << 10;
/// Blocks that are read at once at most.
const MOST: u64 = 64;

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
    /// The block behind the last that was fetched, and how many were fetched with it.
    ahead: (u64, u64),
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

    /// Blocks to fetch when one is missing: `need` of them are about to be read, and `around` is worth
    /// a request.
    fn wanted(&mut self, number: u64, need: u64, around: u64, most: u64) -> Range<u64> {
        let (next, before) = self.ahead;
        let window = if number == next { before * 2 } else { 1 };
        let first = number - number % around;
        let end = (number + window.max(need)).max(first + around);
        let end = end.min(number + most);
        let missing = |n: &u64| !self.map.contains_key(n);
        let start = (first..number).rev().take_while(missing).last();
        let end = (number + 1..end).take_while(missing).last();
        let range = start.unwrap_or(number)..end.unwrap_or(number) + 1;
        self.ahead = (range.end, (range.end - number).min(most));
        range
    }

    fn put(&mut self, number: u64, data: Arc<Vec<u8>>, capacity: usize) {
        self.read += data.len() as u64;
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
    /// Blocks that are fetched around one that is missing.
    around: u64,
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
            around: 1,
            blocks: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Fetches this many bytes around what is missing: for readers of much that lies close together,
    /// where a request costs more than that many bytes.
    #[must_use]
    pub fn around(mut self, bytes: u64) -> Self {
        self.around = (bytes / BLOCK).clamp(1, self.most());
        self
    }

    /// Blocks that are fetched at once at most.
    fn most(&self) -> u64 {
        MOST.min(self.capacity as u64 / 4).max(1)
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

    /// Copies from a block, which is fetched where it isn't kept, with the `need` blocks from it on.
    fn copy(&self, number: u64, need: u64, at: usize, buf: &mut [u8]) -> Result<(), String> {
        let from = |data: &[u8], buf: &mut [u8]| {
            let end = at + buf.len();
            let short = || format!("block {number} has no bytes {at} to {end}");
            buf.copy_from_slice(data.get(at..end).ok_or_else(short)?);
            Ok(())
        };
        let lock = || self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = {
            let mut blocks = lock();
            if let Some(b) = blocks.get(number) {
                return from(b, buf);
            }
            blocks.wanted(number, need, self.around, self.most())
        };
        let (first, data) = match self.fetch(&wanted) {
            Ok(data) => (wanted.start, data),
            // One bad page must not cost its neighbours.
            Err(e) if e.is_content() && wanted.end - wanted.start > 1 => {
                let one = self.fetch(&(number..number + 1));
                (number, one.map_err(|e| self.failed(e))?)
            }
            Err(e) => return Err(self.failed(e)),
        };
        let mut copied = from(&[], buf);
        let mut blocks = lock();
        for (n, data) in (first..).zip(data.chunks(BLOCK as usize)) {
            if n == number {
                copied = from(data, buf);
            }
            blocks.put(n, Arc::new(data.to_vec()), self.capacity);
        }
        copied
    }

    /// Reads blocks, as far as the source has them.
    fn fetch(&self, blocks: &Range<u64>) -> Result<Vec<u8>, SourceError> {
        let start = blocks.start * BLOCK;
        let end = (blocks.end * BLOCK).min(self.source.len());
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let read = self.source.read_vec(FileOffset(start), len);
        self.runtime.block_on(read)
    }

    /// Notes a failure that is not the evidence's own.
    fn failed(&self, e: SourceError) -> String {
        let text = e.to_string();
        if !e.is_content() {
            let mut t = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            t.get_or_insert(e);
        }
        text
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
            let rest = len.min((buf.len() - done) as u64);
            let need = (inside + rest).div_ceil(BLOCK);
            self.copy(file.0 / BLOCK, need, at, &mut buf[done..done + n])
                .map_err(|detail| PhysError::Source { pa: here, detail })?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Fault, FaultSource, RamSource};

    const LEN: u64 = 40 * 1024 * 1024;

    fn data() -> Vec<u8> {
        (0..LEN as u32 / 4).flat_map(u32::to_le_bytes).collect()
    }

    /// What is read at these places, and how many bytes the source gave for it.
    fn read(around: u64, faults: Vec<Fault>, places: &[(u64, usize)]) -> (Vec<bool>, u64, u64) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let _in = runtime.enter();
        let data = data();
        let source = FaultSource::new(RamSource::new("ram", data.clone()), faults);
        let source: Arc<dyn ByteSource> = Arc::new(source);
        let c = CachedPhys::new(source, RunMap::raw(LEN), 16 << 20).around(around);
        let right = places.iter().map(|(at, len)| {
            let mut buf = vec![0; *len];
            let from = usize::try_from(*at).expect("small");
            c.read_phys(PhysAddr(*at), &mut buf).is_ok() && buf == data[from..from + len]
        });
        let right = right.collect();
        let blocks = c.blocks.lock().expect("lock");
        let fetched = blocks.ahead.1;
        (right, blocks.read, fetched)
    }

    #[test]
    fn a_scan_reads_ever_more_at_once_and_nothing_twice() {
        let steps: Vec<(u64, usize)> = (0..LEN / 4096).map(|i| (i * 4096, 4096)).collect();
        let (right, bytes, fetched) = read(1, vec![], &steps);
        assert!(right.iter().all(|r| *r));
        assert_eq!(bytes, LEN);
        assert!(fetched >= 32, "{fetched}");
    }

    #[test]
    fn what_lies_apart_costs_a_block_each() {
        let places: Vec<(u64, usize)> = (0..20).map(|i| (i * 0x20_0000 + 5, 8)).collect();
        let (right, bytes, _) = read(1, vec![], &places);
        assert!(right.iter().all(|r| *r));
        assert_eq!(bytes, 20 * BLOCK);
        let (right, bytes, _) = read(8 * BLOCK, vec![], &places);
        assert!(right.iter().all(|r| *r));
        assert_eq!(bytes, 20 * 8 * BLOCK);
        // A long read is one request, and not more than it asks for.
        let (right, bytes, fetched) = read(1, vec![], &[(BLOCK / 2, 1 << 20)]);
        assert_eq!((right, bytes, fetched), (vec![true], 17 * BLOCK, 17));
    }

    #[test]
    fn a_bad_page_costs_its_block_alone() {
        let faults = vec![Fault::BadRange(9 * BLOCK..9 * BLOCK + 1)];
        let places = [(8 * BLOCK, 10), (9 * BLOCK, 10), (10 * BLOCK, 10)];
        let (right, ..) = read(8 * BLOCK, faults, &places);
        assert_eq!(right, [true, false, true]);
    }

    #[test]
    fn the_end_of_the_source_is_the_end() {
        let (right, ..) = read(32 * BLOCK, vec![], &[(LEN - 10, 10), (LEN - 5, 6)]);
        assert_eq!(right, [true, false]);
    }
}
