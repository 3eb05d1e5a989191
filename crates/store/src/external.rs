//! A map that is larger than memory: entries are merged by key, and what doesn't fit is written to sorted runs on disk
//! that are merged at the end.

use crate::StoreError;
use crate::query::fail;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// An entry that can take in another of the same key.
pub(crate) trait Mergeable: Serialize + DeserializeOwned {
    /// Takes in another entry of the same key, which came later.
    fn merge(&mut self, other: Self);

    /// Bytes that it holds in memory besides its own size.
    fn bytes(&self) -> usize;
}

/// The map.
pub(crate) struct External<V> {
    map: HashMap<Box<[u8]>, V>,
    bytes: usize,
    limit: usize,
    folder: PathBuf,
    runs: Vec<File>,
}

/// What an entry takes besides its key and what it holds: its slot in a table that may be half empty, or growing into one of
/// twice the size, and its place in the sorted list; and what an allocator adds.
const fn entry_bytes<V>() -> usize {
    3 * std::mem::size_of::<(Box<[u8]>, V)>() + 32
}

/// Runs that are merged at a time: each takes a file and a buffer.
const FAN_IN: usize = 64;

impl<V: Mergeable> External<V> {
    /// An empty map that keeps `limit` bytes in memory.
    pub(crate) fn new(folder: &Path, limit: usize) -> Self {
        Self {
            map: HashMap::new(),
            bytes: 0,
            limit,
            folder: folder.to_owned(),
            runs: Vec::new(),
        }
    }

    /// Changes the entry of a key, which is made where there is none.
    pub(crate) fn add(
        &mut self,
        key: &[u8],
        make: impl FnOnce() -> V,
        change: impl FnOnce(&mut V),
    ) -> Result<(), StoreError> {
        if let Some(v) = self.map.get_mut(key) {
            let before = v.bytes();
            change(v);
            self.bytes = (self.bytes + v.bytes()).saturating_sub(before);
        } else {
            let mut v = make();
            change(&mut v);
            self.bytes += key.len() + v.bytes() + entry_bytes::<V>();
            self.map.insert(key.into(), v);
        }
        if self.bytes > self.limit {
            self.spill()?;
        }
        Ok(())
    }

    /// The entries in memory, sorted by key.
    fn sorted(&mut self) -> Vec<(Box<[u8]>, V)> {
        self.bytes = 0;
        let mut all: Vec<_> = std::mem::take(&mut self.map).into_iter().collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn spill(&mut self) -> Result<(), StoreError> {
        let entries = self.sorted();
        let run = write_run(&self.folder, entries.into_iter().map(Ok))?;
        self.runs.push(run);
        if self.runs.len() >= FAN_IN {
            let runs = std::mem::take(&mut self.runs);
            let merged = Merge::<V>::new(runs)?;
            self.runs.push(write_run(&self.folder, merged)?);
        }
        Ok(())
    }

    /// Hands over every entry once, by key.
    pub(crate) fn drain(
        mut self,
        mut each: impl FnMut(&[u8], V) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if !self.runs.is_empty() {
            self.spill()?;
            for e in Merge::new(self.runs)? {
                let (k, v) = e?;
                each(&k, v)?;
            }
            return Ok(());
        }
        for (k, v) in self.sorted() {
            each(&k, v)?;
        }
        Ok(())
    }
}

fn io(e: std::io::Error) -> StoreError {
    StoreError::Disk(e.to_string())
}

type Entry<V> = (Box<[u8]>, V);

fn write_run<V: Mergeable>(
    folder: &Path,
    entries: impl Iterator<Item = Result<Entry<V>, StoreError>>,
) -> Result<File, StoreError> {
    let file = tempfile::tempfile_in(folder).map_err(io)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    for e in entries {
        let (k, v) = e?;
        let value = serde_json::to_vec(&v).map_err(fail)?;
        for part in [&k[..], &value] {
            let n = u32::try_from(part.len()).map_err(fail)?;
            out.write_all(&n.to_le_bytes())
                .and_then(|()| out.write_all(part))
                .map_err(io)?;
        }
    }
    let mut file = out.into_inner().map_err(|e| io(e.into_error()))?;
    file.rewind().map_err(io)?;
    Ok(file)
}

/// Sorted runs as one.
struct Merge<V> {
    runs: Vec<BufReader<File>>,
    /// The next key of each run, and its value.
    heads: BinaryHeap<Reverse<(Box<[u8]>, usize)>>,
    values: Vec<Option<V>>,
}

impl<V: Mergeable> Merge<V> {
    fn new(runs: Vec<File>) -> Result<Self, StoreError> {
        let mut out = Self {
            values: runs.iter().map(|_| None).collect(),
            runs: runs
                .into_iter()
                .map(|r| BufReader::with_capacity(256 << 10, r))
                .collect(),
            heads: BinaryHeap::new(),
        };
        for i in 0..out.runs.len() {
            out.advance(i)?;
        }
        Ok(out)
    }

    fn advance(&mut self, i: usize) -> Result<(), StoreError> {
        let mut part = || -> std::io::Result<Option<Vec<u8>>> {
            let mut n = [0; 4];
            match self.runs[i].read_exact(&mut n) {
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other?,
            }
            let mut b = vec![0; u32::from_le_bytes(n) as usize];
            self.runs[i].read_exact(&mut b)?;
            Ok(Some(b))
        };
        if let Some(key) = part().map_err(io)? {
            let value = part().map_err(io)?.unwrap_or_default();
            self.values[i] = Some(serde_json::from_slice(&value).map_err(fail)?);
            self.heads.push(Reverse((key.into(), i)));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Entry<V>>, StoreError> {
        let Some(Reverse((key, i))) = self.heads.pop() else {
            return Ok(None);
        };
        let mut value = self.values[i].take();
        self.advance(i)?;
        while let Some(Reverse((k, j))) = self.heads.peek()
            && *k == key
        {
            let j = *j;
            self.heads.pop();
            match (&mut value, self.values[j].take()) {
                (Some(v), Some(w)) => v.merge(w),
                (none, w) => *none = w,
            }
            self.advance(j)?;
        }
        Ok(value.map(|v| (key, v)))
    }
}

impl<V: Mergeable> Iterator for Merge<V> {
    type Item = Result<Entry<V>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sum(u64, Vec<u64>);

    impl Mergeable for Sum {
        fn merge(&mut self, other: Self) {
            self.0 += other.0;
            self.1.extend(other.1);
        }

        fn bytes(&self) -> usize {
            16
        }
    }

    /// A map in memory is the oracle of one that spills at nearly every key, through merges of merges.
    #[test]
    fn what_is_spilled_is_counted_like_what_is_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        for limit in [1 << 20, 2000, 100] {
            let mut ours = External::new(dir.path(), limit);
            let mut oracle: BTreeMap<Vec<u8>, Sum> = BTreeMap::new();
            let mut x = 1u64;
            for n in 0..5000u64 {
                x = x
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let key = format!("k{}\0", (x >> 33) % 700).into_bytes();
                let add = |s: &mut Sum| {
                    s.0 += n;
                    s.1.push(n);
                };
                add(oracle.entry(key.clone()).or_insert(Sum(0, Vec::new())));
                ours.add(&key, || Sum(0, Vec::new()), add).expect("added");
            }
            let mut got = BTreeMap::new();
            ours.drain(|k, v| {
                assert!(got.insert(k.to_vec(), v).is_none(), "a key comes once");
                Ok(())
            })
            .expect("drained");
            assert_eq!(got, oracle);
        }
    }
}
