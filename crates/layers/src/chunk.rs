//! Chunks: the file cut into aligned pieces, and the windows of the image that lie in each.
//!
//! ```text
//! file     |----- chunk 0 -----|----- chunk 1 -----|-- chunk 2 --|
//! window        [behind|======= core =======|overlap]
//! ```
//!
//! A chunk is an aligned power-of-two range of the *file*, so that it is a subtree of the file's
//! BLAKE3 tree. Its cores are the image bytes stored there; between them they own every stored
//! byte once. A window adds the bytes before (context that decides whether something begins in
//! the core) and after (so that nothing is cut); it never crosses a hole in physical memory.

use crate::run::{Piece, RunMap};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a file is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkParams {
    /// Bytes of the file in a chunk; a power of two of at least 4 KiB.
    pub size: u64,
    /// Image bytes read after a core.
    pub overlap: u64,
    /// Image bytes read before a core.
    pub behind: u64,
}

impl Default for ChunkParams {
    fn default() -> Self {
        Self {
            size: 64 << 20,
            overlap: 1 << 20,
            behind: 64 << 10,
        }
    }
}

/// Why the parameters can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The size is no power of two, or too small.
    #[error("chunk size {0} is not a power of two of at least 4096 bytes")]
    Size(u64),
    /// A chunk number past the end of the file.
    #[error("there is no chunk {index}: the file has {count}")]
    Index {
        /// The number asked for.
        index: u64,
        /// How many there are.
        count: u64,
    },
}

/// One piece of the file with its windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its number.
    pub index: u64,
    /// Its range of the file.
    pub file: Range<u64>,
    /// The windows of the image to scan, in image order.
    pub windows: Vec<ChunkWindow>,
}

/// A window of the image: look-behind, core, overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkWindow {
    /// The image bytes that this chunk owns.
    pub core: Range<u64>,
    /// The image bytes to read.
    pub span: Range<u64>,
    /// End of the physically contiguous stretch that the core lies in.
    pub stretch_end: u64,
    /// Where the bytes of `span` lie in what the runs count in.
    pub pieces: Vec<Piece>,
    /// Whether all of the core is zeros of which the container holds no bytes.
    pub zero: bool,
}

impl ChunkParams {
    /// Checks that the parameters can be used.
    pub fn validate(&self) -> Result<(), ChunkError> {
        if self.size < 4096 || !self.size.is_power_of_two() {
            return Err(ChunkError::Size(self.size));
        }
        Ok(())
    }

    /// How many chunks a file of `file_len` bytes has.
    pub fn count(&self, file_len: u64) -> u64 {
        file_len.div_ceil(self.size)
    }

    /// The `index`-th chunk of a file of `file_len` bytes.
    pub fn chunk(&self, runs: &RunMap, file_len: u64, index: u64) -> Result<Chunk, ChunkError> {
        self.validate()?;
        let count = self.count(file_len);
        if index >= count {
            return Err(ChunkError::Index { index, count });
        }
        let file = index * self.size..((index + 1).saturating_mul(self.size)).min(file_len);
        let windows = self.windows(runs, file.clone());
        Ok(Chunk {
            index,
            file,
            windows,
        })
    }

    /// The windows whose cores are stored in any range of the file: a whole chunk, or a part of
    /// one that is tried again on its own.
    pub fn windows(&self, runs: &RunMap, file: Range<u64>) -> Vec<ChunkWindow> {
        runs.stored_in(file)
            .into_iter()
            .filter_map(|core| self.window(runs, core))
            .collect()
    }

    /// The window around a core that is physically contiguous; `None` where nothing is stored.
    pub fn window(&self, runs: &RunMap, core: Range<u64>) -> Option<ChunkWindow> {
        let stretch = runs.stretch(crate::ImageOffset(core.start))?;
        let start = core.start.saturating_sub(self.behind).max(stretch.start);
        let end = core.end.saturating_add(self.overlap).min(stretch.end);
        let span = start..end;
        let pieces = runs.pieces(span.clone());
        Some(ChunkWindow {
            core,
            span,
            stretch_end: stretch.end,
            pieces,
            zero: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Run;
    use proptest::prelude::*;

    #[test]
    fn raw_image_has_one_window_a_chunk() {
        let p = ChunkParams {
            size: 4096,
            overlap: 100,
            behind: 50,
        };
        let m = RunMap::raw(10_000);
        assert_eq!(p.count(10_000), 3);
        let c = p.chunk(&m, 10_000, 1).expect("there");
        assert_eq!(c.file, 4096..8192);
        assert_eq!(c.windows[0].core, 4096..8192);
        assert_eq!(c.windows[0].span, 4046..8292);
        assert_eq!(
            p.chunk(&m, 10_000, 2).expect("there").windows[0].span,
            8142..10_000
        );
        assert!(p.chunk(&m, 10_000, 3).is_err());
        assert!(ChunkParams { size: 5000, ..p }.validate().is_err());
    }

    proptest! {
        /// Cores partition the stored bytes whatever the runs and their order in the file.
        #[test]
        fn cores_own_every_stored_byte_once(
            lens in prop::collection::vec((1u64..9000, 0u64..3, 0u64..64), 1..8),
            order in any::<u64>(), size in 12u32..15, overlap in 0u64..5000, cut in 0u64..4000,
        ) {
            let mut runs: Vec<Run> = Vec::new();
            let mut pa = 0;
            for (len, gap, _) in &lens {
                pa += gap * 4096;
                runs.push(Run { pa, len: *len, file: 0, stored: *len });
                pa += len;
            }
            // places in the file in another order than in physical memory
            let n = runs.len();
            let mut idx: Vec<usize> = (0..n).collect();
            idx.rotate_left(order as usize % n);
            let mut file = 0;
            for i in idx {
                file += lens[i].2;
                runs[i].file = file;
                file += runs[i].len;
            }
            let file_len = file.saturating_sub(cut).max(1);
            for r in &mut runs {
                r.stored = file_len.saturating_sub(r.file).min(r.len);
            }
            let map = RunMap::new(runs).expect("valid");
            let p = ChunkParams { size: 1 << size, overlap, behind: 100 };
            let mut owned = vec![0u8; map.image_len() as usize];
            for i in 0..p.count(file_len) {
                let c = p.chunk(&map, file_len, i).expect("there");
                for w in &c.windows {
                    for b in &mut owned[w.core.start as usize..w.core.end as usize] { *b += 1; }
                    prop_assert_eq!(w.pieces.iter().map(|p| p.len).sum::<u64>(), w.span.end - w.span.start);
                    prop_assert!(w.span.start <= w.core.start && w.core.end <= w.span.end);
                }
            }
            for m in map.missing() {
                for b in &mut owned[m.start as usize..m.end as usize] { prop_assert_eq!(*b, 0); *b = 1; }
            }
            prop_assert!(owned.iter().all(|n| *n == 1));
        }
    }
}
