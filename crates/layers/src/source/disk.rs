//! A source whose bytes are kept on this machine's disk once they were read: what views jump about in is
//! fetched from the object store once, in large pieces.
//!
//! Views read some pages many times and most of a capture at least once. An object store takes
//! milliseconds for each request, whatever its size, so that asking for a few pages at a time costs many times
//! the transfer itself.

use super::measured::cache_bytes;
use super::{ByteSource, SourceError, SourcePin, in_bounds};
use crate::FileOffset;
use async_trait::async_trait;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Bytes of a block where the disk holds the whole capture: a request is cheapest per byte then.
const LARGE: u64 = 8 << 20;
/// Bytes of a block where it doesn't, and blocks are read that nobody asks for again.
const SMALL: u64 = 1 << 20;
/// Blocks that are fetched ahead of a reader that goes from one to the next.
const AHEAD: u64 = 3;
/// Blocks below which the disk is of no use.
const FEWEST: u64 = 16;

/// How much of which disk may be used.
#[derive(Clone, Debug)]
pub struct DiskLimits {
    /// Bytes at most; 0: nothing is kept.
    pub bytes: u64,
    /// Folder of the file that holds them. The file has no name: it is gone with its process.
    pub folder: PathBuf,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self {
            bytes: 8 << 30,
            folder: std::env::temp_dir(),
        }
    }
}

/// A place in the file.
#[derive(Debug)]
struct Slot {
    block: u64,
    /// Used since the hand last passed.
    used: bool,
    /// Reads of it that are under way.
    readers: u32,
}

/// Which block lies where in the file, with a clock hand that looks for one to give up.
#[derive(Debug, Default)]
struct Slots {
    at: HashMap<u64, usize>,
    held: Vec<Slot>,
    hand: usize,
    /// Blocks on their way; who waits for one is told when its sender is gone.
    coming: HashMap<u64, watch::Sender<()>>,
    /// The block that was asked for last.
    last: u64,
    /// The disk failed: everything is read from the source itself.
    off: bool,
}

impl Slots {
    /// A place for a new block, which nobody finds before it is written.
    fn take(&mut self, most: usize) -> Option<usize> {
        let slot = |used| Slot {
            block: u64::MAX,
            used,
            readers: 0,
        };
        if self.held.len() < most {
            self.held.push(slot(true));
            return Some(self.held.len() - 1);
        }
        for _ in 0..2 * most {
            let i = self.hand;
            self.hand = (i + 1) % most;
            // A place without a block is being written to.
            let s = &mut self.held[i];
            if s.readers > 0 || s.block == u64::MAX || std::mem::take(&mut s.used) {
                continue;
            }
            self.at.remove(&s.block);
            *s = slot(true);
            return Some(i);
        }
        None
    }
}

#[derive(Debug)]
struct Inner {
    source: Arc<dyn ByteSource>,
    file: File,
    block: u64,
    most: usize,
    slots: Mutex<Slots>,
    fetched: AtomicU64,
}

/// A source behind a file on this machine.
#[derive(Debug)]
pub struct DiskCache(Arc<Inner>);

/// What a reader does about a block.
enum Way {
    /// It lies in this place, and is held there.
    Held(usize),
    /// Somebody fetches it.
    Wait(watch::Receiver<()>),
    /// The reader fetches it.
    Fetch,
    /// There is no disk any more.
    Straight,
}

impl DiskCache {
    /// Keeps what is read of `source` on disk. Without room for it, the error says so: read the source itself then.
    ///
    /// Takes half of the free space at most.
    pub fn new(source: Arc<dyn ByteSource>, limits: &DiskLimits) -> io::Result<Self> {
        let file = tempfile::tempfile_in(&limits.folder)?;
        let room = limits.bytes.min(free(&limits.folder)? / 2);
        Self::with(source, file, room)
    }

    /// The same with `room` of the limits, where there is any; else the source as it is.
    fn of_object(
        source: &Arc<dyn ByteSource>,
        limits: &DiskLimits,
        room: u64,
    ) -> Arc<dyn ByteSource> {
        if room == 0 {
            return source.clone();
        }
        let limits = DiskLimits {
            bytes: room,
            ..limits.clone()
        };
        match Self::new(source.clone(), &limits) {
            Ok(c) => Arc::new(c),
            Err(e) => {
                let folder = limits.folder.display();
                tracing::warn!(error = %e, %folder, "no disk cache: the object is asked each time");
                source.clone()
            }
        }
    }

    fn with(source: Arc<dyn ByteSource>, file: File, room: u64) -> io::Result<Self> {
        let len = source.len();
        let block = if len <= room { LARGE } else { SMALL };
        let most = room.min(len.next_multiple_of(block)).div_ceil(block);
        if most < FEWEST.min(len.div_ceil(block)) {
            let why = format!("{room} bytes of disk are too few");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(Self(Arc::new(Inner {
            source,
            file,
            block,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            slots: Mutex::default(),
            fetched: AtomicU64::new(0),
        })))
    }

    /// Bytes fetched from the source behind this so far.
    pub fn fetched(&self) -> u64 {
        self.0.fetched.load(Ordering::Relaxed)
    }
}

/// Takes a block off the list of those on their way, whatever became of it.
struct Arrival<'a>(&'a Inner, u64);

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.0.lock().coming.remove(&self.1);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self, block: u64) -> Way {
        let mut slots = self.lock();
        if let Some(&i) = slots.at.get(&block) {
            slots.held[i].used = true;
            slots.held[i].readers += 1;
            return Way::Held(i);
        }
        if slots.off {
            return Way::Straight;
        }
        if let Some(c) = slots.coming.get(&block) {
            return Way::Wait(c.subscribe());
        }
        slots.coming.insert(block, watch::Sender::new(()));
        Way::Fetch
    }

    /// Fetches a block that was entered as on its way, and keeps it.
    async fn fetch(&self, block: u64) -> Result<Vec<u8>, SourceError> {
        let _arrival = Arrival(self, block);
        let start = block * self.block;
        let len = self.block.min(self.source.len() - start);
        self.fetched.fetch_add(len, Ordering::Relaxed);
        cache_bytes("store", len);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let data = self.source.read_vec(FileOffset(start), len).await?;
        let slot = {
            let mut slots = self.lock();
            let off = slots.off;
            if off { None } else { slots.take(self.most) }
        };
        let Some(slot) = slot else { return Ok(data) };
        let written = self.file.write_all_at(&data, slot as u64 * self.block);
        let mut slots = self.lock();
        match written {
            Ok(()) => {
                slots.held[slot].block = block;
                slots.at.insert(block, slot);
                slots.coming.remove(&block);
            }
            // The disk is full or broken: the evidence is read all the same.
            Err(e) => {
                tracing::warn!(error = %e, "disk cache failed; reading from the source itself");
                slots.off = true;
            }
        }
        Ok(data)
    }

    async fn straight(&self, block: u64, at: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.fetched.fetch_add(buf.len() as u64, Ordering::Relaxed);
        cache_bytes("store", buf.len() as u64);
        let offset = FileOffset(block * self.block + at);
        self.source.read_at(offset, buf).await
    }

    /// Reads a part of one block.
    async fn part(&self, block: u64, at: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        loop {
            match self.way(block) {
                Way::Straight => return self.straight(block, at, buf).await,
                // An error is that the sender is gone: the block has come, or its fetch has failed.
                Way::Wait(mut come) => drop(come.changed().await),
                Way::Held(slot) => {
                    let place = slot as u64 * self.block + at;
                    let read = self.file.read_exact_at(buf, place);
                    let mut slots = self.lock();
                    slots.held[slot].readers -= 1;
                    let Err(e) = read else {
                        cache_bytes("disk", buf.len() as u64);
                        return Ok(());
                    };
                    tracing::warn!(error = %e, "disk cache failed; reading from the source itself");
                    slots.at.clear();
                    slots.off = true;
                }
                Way::Fetch => match self.fetch(block).await {
                    Ok(data) => {
                        let from = usize::try_from(at).unwrap_or(usize::MAX);
                        let bytes = data.get(from..from.saturating_add(buf.len()));
                        let Some(bytes) = bytes else {
                            return self.straight(block, at, buf).await;
                        };
                        buf.copy_from_slice(bytes);
                        return Ok(());
                    }
                    // One bad place must not cost the whole block.
                    Err(e) if e.is_content() => return self.straight(block, at, buf).await,
                    Err(e) => return Err(e),
                },
            }
        }
    }

    /// Blocks to fetch for a reader that goes from block to block.
    fn ahead(&self, block: u64) -> Vec<u64> {
        let mut slots = self.lock();
        let before = std::mem::replace(&mut slots.last, block);
        if before + 1 != block || slots.off {
            return Vec::new();
        }
        let end = self.source.len().div_ceil(self.block);
        let mut out = Vec::new();
        for next in block + 1..(block + 1 + AHEAD).min(end) {
            if !slots.at.contains_key(&next) && !slots.coming.contains_key(&next) {
                slots.coming.insert(next, watch::Sender::new(()));
                out.push(next);
            }
        }
        out
    }
}

/// Jobs that are remembered.
const JOBS: usize = 32;

/// What is kept for a job.
#[derive(Debug)]
struct Kept {
    job: String,
    source: Arc<dyn ByteSource>,
    /// Bytes of disk that it may take.
    room: u64,
}

/// Disk caches of the objects that a worker reads for its jobs.
#[derive(Debug)]
pub struct DiskCaches {
    limits: DiskLimits,
    /// The job that came last at the end.
    kept: Mutex<VecDeque<Kept>>,
}

impl Default for DiskCaches {
    fn default() -> Self {
        Self::new(DiskLimits::default())
    }
}

impl DiskCaches {
    /// None yet; all together stay within the limits.
    pub fn new(limits: DiskLimits) -> Self {
        Self {
            limits,
            kept: Mutex::default(),
        }
    }

    /// Folder for temporary files.
    pub fn folder(&self) -> &Path {
        &self.limits.folder
    }

    /// The evidence of a job for readers that jump about in it: behind a disk cache where it is an object, else
    /// as it is.
    pub fn source(&self, job: &str, source: &Arc<dyn ByteSource>) -> Arc<dyn ByteSource> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.iter().find(|k| k.job == job) {
            return k.source.clone();
        }
        let object = source.pin().is_object();
        let room = if object {
            make_room(&mut kept, source.len(), self.limits.bytes)
        } else {
            0
        };
        let near = DiskCache::of_object(source, &self.limits, room);
        if kept.len() == JOBS {
            kept.pop_front();
        }
        kept.push_back(Kept {
            job: job.to_owned(),
            source: near.clone(),
            room,
        });
        near
    }
}

/// Room for an object of `len` bytes: all of it, if that can be had without what another job holds, else half of
/// the disk or more. What is given up is held by tasks that still read it.
fn make_room(kept: &mut VecDeque<Kept>, len: u64, limit: u64) -> u64 {
    let want = len.next_multiple_of(LARGE).min(limit);
    loop {
        let used: u64 = kept.iter().map(|k| k.room).sum();
        let left = limit.saturating_sub(used);
        if left >= want.min(limit / 2) || kept.pop_front().is_none() {
            return left.min(want);
        }
    }
}

/// Bytes that are free in the file system of a folder.
fn free(folder: &Path) -> io::Result<u64> {
    let s = rustix::fs::statvfs(folder)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

#[async_trait]
impl ByteSource for DiskCache {
    fn pin(&self) -> &SourcePin {
        self.0.source.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        in_bounds(self.pin(), offset.0, buf.len())?;
        let size = self.0.block;
        let (mut at, mut rest) = (offset.0, buf);
        while !rest.is_empty() {
            let (block, inside) = (at / size, at % size);
            for next in self.0.ahead(block) {
                let inner = self.0.clone();
                // Its write to the disk may block, which the runtime's own threads must not.
                let runtime = Handle::current();
                tokio::task::spawn_blocking(move || {
                    // A reader that comes for it tries again, and is told what is wrong.
                    if let Err(e) = runtime.block_on(inner.fetch(next)) {
                        tracing::debug!(error = %e, block = next, "fetching ahead failed");
                    }
                });
            }
            let n = usize::try_from(size - inside)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (head, tail) = rest.split_at_mut(n);
            self.0.part(block, inside, head).await?;
            at += n as u64;
            rest = tail;
        }
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        self.0.source.check_pin().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Fault, FaultSource, RamSource};

    const LEN: u64 = 40 * SMALL + 12_345;

    fn byte(at: u64) -> u8 {
        (at.wrapping_mul(0x9e37_79b9) >> 24) as u8
    }

    fn source(faults: Vec<Fault>) -> Arc<dyn ByteSource> {
        let data = (0..LEN).map(byte).collect();
        Arc::new(FaultSource::new(RamSource::new("object", data), faults))
    }

    fn cache(faults: Vec<Fault>, room: u64) -> DiskCache {
        let file = tempfile::tempfile().expect("a file");
        DiskCache::with(source(faults), file, room).expect("room")
    }

    async fn right(c: &DiskCache, at: u64, len: usize) -> bool {
        let mut buf = vec![0; len];
        match c.read_at(FileOffset(at), &mut buf).await {
            Ok(()) => (at..).zip(&buf).all(|(i, b)| *b == byte(i)),
            Err(_) => false,
        }
    }

    /// Places in no order, none twice in a row.
    fn places(n: u64) -> impl Iterator<Item = u64> {
        (0..n).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (LEN - 70_000))
    }

    #[tokio::test]
    async fn what_fits_is_fetched_once() {
        let c = cache(vec![], 2 * LEN);
        for at in places(200) {
            assert!(right(&c, at, 70_000).await, "{at:#x}");
        }
        assert!(right(&c, LEN - 10, 10).await);
        assert!(right(&c, 0, LEN as usize).await);
        assert_eq!(c.fetched(), LEN);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_fetched_again() {
        let c = cache(vec![], 20 * SMALL);
        for at in places(200) {
            assert!(right(&c, at, 70_000).await, "{at:#x}");
        }
        let held = c.0.file.metadata().expect("file").len();
        assert_eq!(held, 20 * SMALL);
        assert!(c.fetched() > LEN);
    }

    #[tokio::test]
    async fn going_on_fetches_ahead_and_nothing_twice() {
        let c = cache(vec![], 2 * LEN);
        for at in (0..LEN - 4096).step_by(4096) {
            assert!(right(&c, at, 4096).await, "{at:#x}");
        }
        assert_eq!(c.fetched(), LEN);
        assert!(c.0.lock().coming.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_readers_get_what_they_ask_for() {
        for room in [17 * SMALL, 2 * LEN] {
            let c = Arc::new(cache(vec![], room));
            let mut readers = tokio::task::JoinSet::new();
            for n in 0..8 {
                let c = c.clone();
                readers.spawn(async move {
                    for at in places(300).skip(30 * n) {
                        assert!(right(&c, at, 70_000).await, "{at:#x}");
                    }
                });
            }
            readers.join_all().await;
            if room > LEN {
                assert_eq!(c.fetched(), LEN);
            }
            assert!(c.0.lock().held.iter().all(|s| s.readers == 0));
        }
    }

    #[tokio::test]
    async fn an_outage_is_told_and_the_next_try_is_new() {
        let c = cache(vec![Fault::Outage(2.into())], 2 * LEN);
        assert!(!right(&c, 0, 10).await);
        assert!(!right(&c, 0, 10).await);
        assert!(right(&c, 0, 10).await);
    }

    #[tokio::test]
    async fn a_bad_place_costs_itself_alone() {
        let bad = 9 * SMALL;
        let c = cache(vec![Fault::BadRange(bad..bad + 1)], 2 * LEN);
        assert!(right(&c, bad - 10, 10).await);
        assert!(!right(&c, bad - 10, 20).await);
        assert!(right(&c, bad + 1, 100).await);
        let past = c.read_vec(FileOffset(LEN - 1), 2).await;
        assert!(matches!(past, Err(SourceError::PastEnd { .. })), "{past:?}");
    }

    #[tokio::test]
    async fn a_full_disk_is_gone_round() {
        // /dev/full takes no byte.
        let full = File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let c = DiskCache::with(source(vec![]), full, 2 * LEN).expect("room");
        for at in places(20) {
            assert!(right(&c, at, 70_000).await, "{at:#x}");
        }
        assert!(c.0.lock().off);
    }

    #[test]
    fn jobs_share_the_disk() {
        let mut kept = VecDeque::new();
        let mut job = |len: u64| {
            let room = make_room(&mut kept, len, 100 * LARGE);
            kept.push_back(Kept {
                job: len.to_string(),
                source: source(vec![]),
                room,
            });
            (room / LARGE, kept.len())
        };
        // One that fits has all the room it needs, the next what is left.
        assert_eq!(job(60 * LARGE - 1), (60, 1));
        assert_eq!(job(30 * LARGE), (30, 2));
        // The oldest gives way; one that is larger than the disk leaves what others hold up to half of it.
        assert_eq!(job(20 * LARGE), (20, 2));
        assert_eq!(job(500 * LARGE), (50, 3));
        assert_eq!(job(70 * LARGE), (50, 2));
    }

    #[test]
    fn too_little_room_is_told() {
        let file = tempfile::tempfile().expect("a file");
        let e = DiskCache::with(source(vec![]), file, 3 * SMALL).expect_err("no room");
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    }
}
