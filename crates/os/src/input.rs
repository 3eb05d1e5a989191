//! What whoever looks for a kernel, or builds a view of it, may read.

use crate::discover::Anchor;
use ramsift_layers::page_file::PageFile;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::PhysRead;
use ramsift_symbols::store::Files;
use ramsift_symbols::{SymbolStore, SymbolTable};
use std::ops::Range;

/// What a view may read.
pub struct ViewInput<'a> {
    /// Physical memory.
    pub memory: &'a dyn PhysRead,
    /// Which physical memory there is.
    pub runs: &'a RunMap,
    /// Processor, where the container told.
    pub arch: Option<&'a str>,
    /// Page-table roots that the container recorded.
    pub dtb_hints: &'a [u64],
    /// Spots that help to find the kernel.
    pub anchors: &'a [Anchor],
    /// Where symbol files are looked for when a kernel does not carry its own.
    pub symbols: Option<&'a dyn KernelSymbols>,
    /// Page files of the captured system. Their pages are in `memory` at the addresses of [`ramsift_layers::page_file`], and
    /// not among the `runs`.
    pub page_files: &'a [PageFile],
    /// What a pass over memory, which others made, found of pool memory; `None`: no pass was made.
    pub pool: Option<&'a PoolScan>,
}

/// What a pass over memory found of pool memory whose tags objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolScan {
    /// Physical memory that was looked at, in order, no two ranges touching.
    pub covered: Vec<Range<u64>>,
    /// Physical addresses of headers, in order.
    pub headers: Vec<u64>,
}

impl PoolScan {
    /// From what the windows of a pass told, in any order and as often as they were looked at: a range of physical addresses, and
    /// the headers in it.
    pub fn new(windows: impl IntoIterator<Item = (Range<u64>, Vec<u64>)>) -> Self {
        let (mut ranges, mut headers) = (Vec::new(), Vec::new());
        for (range, own) in windows {
            headers.extend(own.into_iter().filter(|h| range.contains(h)));
            ranges.push(range);
        }
        ranges.sort_by_key(|r| r.start);
        let mut covered: Vec<Range<u64>> = Vec::new();
        for r in ranges.into_iter().filter(|r| r.start < r.end) {
            match covered.last_mut() {
                Some(l) if r.start <= l.end => l.end = l.end.max(r.end),
                _ => covered.push(r),
            }
        }
        headers.sort_unstable();
        headers.dedup();
        Self { covered, headers }
    }

    /// The parts of a range that were not looked at.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut at, mut out) = (range.start, Vec::new());
        let first = self.covered.partition_point(|c| c.end <= range.start);
        for c in self.covered[first..]
            .iter()
            .take_while(|c| c.start < range.end)
        {
            if c.start > at {
                out.push(at..c.start);
            }
            at = c.end;
        }
        if at < range.end {
            out.push(at..range.end);
        }
        out
    }
}

/// Symbol files, found by the exact banner of the kernel that they are for.
pub trait KernelSymbols: Send + Sync + std::fmt::Debug {
    /// The table of a kernel, as linked; `None` if there is none. The error says what is wrong with the
    /// file that should be it.
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String>;
}

impl<F: Files + Send + Sync + std::fmt::Debug> KernelSymbols for SymbolStore<F> {
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String> {
        Self::find(self, banner).map_err(|e| e.to_string())
    }
}

impl std::fmt::Debug for ViewInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewInput({} anchors)", self.anchors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_windows_told_is_laid_together() {
        let scan = PoolScan::new([
            (0x4000..0x6000, vec![0x5000]),
            (0x1000..0x2000, vec![0x1010, 0x1020]),
            (0x2000..0x3000, vec![0x9999]),
            (0x4000..0x5000, vec![0x4000]),
        ]);
        assert_eq!(scan.covered, [0x1000..0x3000, 0x4000..0x6000]);
        assert_eq!(scan.headers, [0x1010, 0x1020, 0x4000, 0x5000]);
        assert_eq!(
            scan.missing(0..0x7000),
            [0..0x1000, 0x3000..0x4000, 0x6000..0x7000]
        );
        assert!(scan.missing(0x1800..0x2800).is_empty());
        assert_eq!(scan.missing(0x2800..0x4800).len(), 1);
        assert_eq!(PoolScan::default().missing(1..2).len(), 1);
    }
}
