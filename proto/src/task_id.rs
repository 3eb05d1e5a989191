//! Names of tasks: what a task is, from its name alone.
//!
//! ```text
//! chunk-12       chunk 12 of the plan
//! chunk-12.01    its first half's second half, after it took workers down twice
//! verdict-3      group 3 of the verdict plan
//! view-system    one view, see [`view`]
//! memory-7       list 7 of memory of processes
//! files-2        list 2 of recovered content
//! process-3      group 3 of the verdict plan for processes
//! ```

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Names of the views that are tasks of a job.
pub mod view {
    /// Systems whose views a store takes: names of views and of their tables begin so.
    pub const SYSTEMS: [&str; 3] = ["linux", "windows", "mac"];

    /// Finds the kernel by known places and builds the first lists; asks for the others.
    pub const SYSTEM: &str = "system";
    /// The same by the anchors that chunks report, where known places do not lead to the kernel.
    pub const ANCHORED: &str = "anchored";
    /// Every view that is not among the first lists.
    pub const VIEWS: &str = "views";
    /// Every view that looks for objects in all of memory, where the chunks do that.
    pub const SCANS: &str = "scans";
    /// Recovers content.
    pub const CONTENT: &str = "content";
    /// Lists the memory of processes.
    pub const MEMORY: &str = "memory";
    /// Makes the frame map.
    pub const FRAMES: &str = "frames";
    /// The evidence's SHA-256.
    pub const SHA256: &str = "sha256";

    /// What the name of a part begins with that is built only when every chunk has been scanned, since it uses what they
    /// report of objects in memory: `late-content`.
    pub const LATE: &str = "late-";

    /// Whether a view is built only when every chunk has been scanned: it uses what they report, or
    /// nobody waits for it.
    pub fn waits_for_chunks(name: &str) -> bool {
        matches!(name, ANCHORED | SHA256) || name.starts_with(LATE)
    }
}

/// A parsed task name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskId {
    /// A chunk, or a part of one: each `false` takes the lower half, each `true` the upper.
    Chunk {
        /// Number of the chunk.
        index: u64,
        /// Which half of which half.
        part: Vec<bool>,
    },
    /// A group of rules.
    Verdict(u32),
    /// A view.
    View(String),
    /// A list of memory of processes.
    Memory(u32),
    /// A list of recovered content.
    Files(u32),
    /// A group of rules, decided for each process.
    Process(u32),
}

/// A name that is none of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskIdError(pub String);

impl fmt::Display for TaskIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no task name", self.0)
    }
}

impl std::error::Error for TaskIdError {}

impl TaskId {
    /// A whole chunk.
    pub fn chunk(index: u64) -> Self {
        Self::Chunk {
            index,
            part: Vec::new(),
        }
    }

    /// The two halves of a chunk task; `None` for other tasks.
    pub fn halves(&self) -> Option<[Self; 2]> {
        let Self::Chunk { index, part } = self else {
            return None;
        };
        let half = |upper| {
            let mut part = part.clone();
            part.push(upper);
            Self::Chunk {
                index: *index,
                part,
            }
        };
        Some([half(false), half(true)])
    }

    /// The task that this is a half of.
    pub fn parent(&self) -> Option<Self> {
        match self {
            Self::Chunk { index, part } if !part.is_empty() => Some(Self::Chunk {
                index: *index,
                part: part[..part.len() - 1].to_vec(),
            }),
            _ => None,
        }
    }

    /// The range of the file that this part of a chunk covers, given the chunk's own. The lower
    /// half is the largest power of two that leaves something to the upper, and at least a page:
    /// the way BLAKE3 cuts, so that parts are subtrees of the file's hash tree as chunks are.
    pub fn narrow(&self, chunk: Range<u64>) -> Range<u64> {
        let mut r = chunk;
        if let Self::Chunk { part, .. } = self {
            for upper in part {
                let lower = (r.end - r.start).next_power_of_two() / 2;
                let mid = (r.start + lower.max(4096)).min(r.end);
                r = if *upper { mid..r.end } else { r.start..mid };
            }
        }
        r
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chunk { index, part } => {
                write!(f, "chunk-{index}")?;
                if !part.is_empty() {
                    f.write_str(".")?;
                }
                part.iter()
                    .try_for_each(|p| f.write_str(if *p { "1" } else { "0" }))
            }
            Self::Verdict(g) => write!(f, "verdict-{g}"),
            Self::View(v) => write!(f, "view-{v}"),
            Self::Memory(n) => write!(f, "memory-{n}"),
            Self::Files(n) => write!(f, "files-{n}"),
            Self::Process(g) => write!(f, "process-{g}"),
        }
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || TaskIdError(s.to_owned());
        let (kind, rest) = s.split_once('-').ok_or_else(bad)?;
        match kind {
            "chunk" => {
                let (index, part) = rest.split_once('.').unwrap_or((rest, ""));
                let part = part
                    .bytes()
                    .map(|b| match b {
                        b'0' => Ok(false),
                        b'1' => Ok(true),
                        _ => Err(bad()),
                    })
                    .collect::<Result<_, _>>()?;
                Ok(Self::Chunk {
                    index: index.parse().map_err(|_| bad())?,
                    part,
                })
            }
            "verdict" => rest.parse().map(Self::Verdict).map_err(|_| bad()),
            "memory" => rest.parse().map(Self::Memory).map_err(|_| bad()),
            "files" => rest.parse().map(Self::Files).map_err(|_| bad()),
            "process" => rest.parse().map(Self::Process).map_err(|_| bad()),
            "view" if !rest.is_empty() => Ok(Self::View(rest.to_owned())),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for n in [
            "chunk-12",
            "chunk-12.01",
            "verdict-3",
            "view-system",
            "memory-7",
            "files-2",
            "process-0",
        ] {
            assert_eq!(n.parse::<TaskId>().expect(n).to_string(), n);
        }
        for n in ["chunk", "chunk-x", "chunk-1.2", "view-", "", "verdict--1"] {
            assert!(n.parse::<TaskId>().is_err(), "{n}");
        }
    }

    #[test]
    fn halves_partition_their_parent() {
        let whole = TaskId::chunk(1);
        let [a, b] = whole.halves().expect("chunk");
        let r = 0x10_0000..0x20_0000;
        assert_eq!(a.narrow(r.clone()).end, b.narrow(r.clone()).start);
        assert_eq!(
            (a.narrow(r.clone()).start, b.narrow(r.clone()).end),
            (r.start, r.end)
        );
        assert_eq!(b.parent(), Some(whole));
    }

    #[test]
    fn parts_are_aligned_to_their_size() {
        for len in [4096u64, 5000, 20_480, 1 << 20, (1 << 20) + 1, 3_000_000] {
            let mut todo = vec![TaskId::chunk(3)];
            while let Some(t) = todo.pop() {
                let r = t.narrow(3 << 22..(3 << 22) + len);
                let size = (r.end - r.start).next_power_of_two();
                assert!(r.start.is_multiple_of(size), "{t} of {len}: {r:x?}");
                if r.end - r.start > 4096 {
                    todo.extend(t.halves().expect("chunk"));
                }
            }
        }
    }
}
