//! Commit objects: the record of a commit and the segments it names, in one object, so that a commit is one write that
//! is there whole or not at all.
//!
//! ```text
//! 0   8 bytes        "RAMSIFTC"
//! 8   8 bytes        length of the record, little endian
//! 16  the record     JSON
//!     the segments   Parquet, one behind the other
//! ```
//!
//! A segment within has a key that names its object, its place there and its table
//! (`…/commits/ID.commit/START-END/TABLE.parquet`); [`Objects`] reads such a key like any other. In the record itself,
//! places count from the end of the record, and the object is left out.

use crate::job::StoreError;
use crate::objects::{ObjectError, Objects, PartKey};
use crate::{Keys, job};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use ramsift_proto::v1::{CommitRecord, SegmentRef};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"RAMSIFTC";
const HEADER: usize = 16;
/// Bytes that are read first: most records are shorter.
const FIRST: u64 = 64 << 10;
/// Commit objects read at a time.
const READS: usize = 16;

/// The segments of a commit on their way into its object.
#[derive(Debug, Default)]
pub struct CommitSegments {
    refs: Vec<SegmentRef>,
    data: Vec<u8>,
}

impl CommitSegments {
    /// Adds a segment. Its key and its size are filled in.
    pub fn add(&mut self, segment: SegmentRef, data: &[u8]) {
        let start = self.data.len() as u64;
        let bytes = data.len() as u64;
        let within = PartKey::name(start..start + bytes, &segment.table);
        self.data.extend_from_slice(data);
        self.refs.push(SegmentRef {
            key: within,
            bytes,
            ..segment
        });
    }
}

/// Segments of one report that are too large to wait for their commit in memory, on their way to objects of their own:
/// Parquet, one behind the other, about 16 MiB each at most.
#[derive(Debug)]
pub struct SegmentPacks {
    objects: Arc<dyn Objects>,
    keys: Keys,
    attempt: String,
    open: CommitSegments,
    refs: Vec<SegmentRef>,
    packs: usize,
}

/// Bytes after which an object of segments is written.
const PACK: usize = 16 << 20;

impl SegmentPacks {
    /// None yet, of this attempt at a task.
    pub fn new(objects: Arc<dyn Objects>, keys: Keys, attempt: &str) -> Self {
        Self {
            objects,
            keys,
            attempt: attempt.to_owned(),
            open: CommitSegments::default(),
            refs: Vec::new(),
            packs: 0,
        }
    }

    /// Adds a segment of a table.
    pub async fn add(&mut self, table: &str, rows: u64, data: Vec<u8>) -> Result<(), ObjectError> {
        let segment = SegmentRef {
            table: table.to_owned(),
            rows,
            blake3: blake3::hash(&data).to_hex().to_string(),
            ..SegmentRef::default()
        };
        if self.open.data.len() + data.len() > PACK {
            self.flush().await?;
        }
        if data.len() < PACK {
            self.open.add(segment, &data);
            return Ok(());
        }
        // Alone, without a copy.
        let bytes = data.len() as u64;
        let key = self.keys.segment_pack(&self.attempt, self.packs);
        self.packs += 1;
        self.refs.push(SegmentRef {
            key: format!("{key}/{}", PartKey::name(0..bytes, table)),
            bytes,
            ..segment
        });
        self.objects.put(&key, data.into()).await.map(|_| ())
    }

    async fn flush(&mut self) -> Result<(), ObjectError> {
        let CommitSegments { refs, data } = std::mem::take(&mut self.open);
        if refs.is_empty() {
            return Ok(());
        }
        let key = self.keys.segment_pack(&self.attempt, self.packs);
        self.packs += 1;
        self.refs.extend(refs.into_iter().map(|s| SegmentRef {
            key: format!("{key}/{}", s.key),
            ..s
        }));
        self.objects.put(&key, data.into()).await.map(|_| ())
    }

    /// Writes what is left; gives the segments in the order in which they came.
    pub async fn finish(mut self) -> Result<Vec<SegmentRef>, ObjectError> {
        self.flush().await?;
        Ok(self.refs)
    }
}

/// The object of a commit: `record`, and the segments that are stored with it behind those that it names already.
pub fn encode(mut record: CommitRecord, segments: CommitSegments) -> Result<Bytes, StoreError> {
    record.segments.extend(segments.refs);
    let json = job::to_json(&record)?;
    let mut out = Vec::with_capacity(HEADER + json.len() + segments.data.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(json.len() as u64).to_le_bytes());
    out.extend_from_slice(&json);
    out.extend_from_slice(&segments.data);
    Ok(out.into())
}

/// Reads the record of a commit object of `size` bytes. Its segments have their whole keys.
pub async fn read(objects: &dyn Objects, key: &str, size: u64) -> Result<CommitRecord, StoreError> {
    let damaged = |detail: String| StoreError::Format {
        what: objects.url(key),
        detail,
    };
    let mut data = objects.get_range(key, 0..size.min(FIRST)).await?;
    let header = data
        .first_chunk::<HEADER>()
        .and_then(|h| h.split_first_chunk::<8>());
    let Some((MAGIC, length)) = header else {
        return Err(damaged("it does not begin as a commit does".into()));
    };
    let length = length.try_into().map_or(0, u64::from_le_bytes);
    let segments = (HEADER as u64).saturating_add(length);
    if segments > size {
        return Err(damaged(format!(
            "its record has {length} bytes and the object {size}"
        )));
    }
    if segments > data.len() as u64 {
        data = objects.get_range(key, 0..segments).await?;
    }
    let json = usize::try_from(segments)
        .ok()
        .and_then(|end| data.get(HEADER..end))
        .ok_or_else(|| damaged("cut".into()))?;
    let mut record: CommitRecord =
        serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
    for s in &mut record.segments {
        if let Some(part) = PartKey::within(&s.key) {
            let place = segments.saturating_add(part.start)..segments.saturating_add(part.end);
            s.key = format!("{key}/{}", PartKey::name(place, &s.table));
        }
    }
    Ok(record)
}

/// All commit records of a job, oldest first.
pub async fn all(objects: &dyn Objects, keys: &Keys) -> Result<Vec<CommitRecord>, StoreError> {
    let listed = objects.list(&keys.commits()).await?;
    let mut out: Vec<CommitRecord> = futures::stream::iter(listed)
        .map(|m| async move { read(objects, &m.key, m.size).await })
        .buffered(READS)
        .try_collect()
        .await?;
    out.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalObjects;
    use ramsift_proto::v1::TaskReport;

    fn segment(table: &str) -> SegmentRef {
        SegmentRef {
            table: table.into(),
            rows: 1,
            ..SegmentRef::default()
        }
    }

    async fn store(reports: usize) -> (tempfile::TempDir, LocalObjects, String, u64) {
        let dir = tempfile::tempdir().expect("a folder");
        let objects = LocalObjects::open(dir.path()).expect("a store");
        let report = |i: usize| TaskReport {
            task: format!("chunk-{i}"),
            ..TaskReport::default()
        };
        let apart = SegmentRef {
            key: "jobs/j/segments/a/events.parquet".into(),
            ..segment("events")
        };
        let record = CommitRecord {
            id: "1".into(),
            job: "j".into(),
            reports: (0..reports).map(report).collect(),
            segments: vec![apart],
            ..CommitRecord::default()
        };
        let mut within = CommitSegments::default();
        within.add(segment("findings"), b"first");
        within.add(segment("linux_pslist"), b"and second");
        let key = Keys::new("j").commit("1");
        let data = encode(record, within).expect("JSON");
        let size = data.len() as u64;
        objects.put(&key, data).await.expect("stored");
        (dir, objects, key, size)
    }

    #[tokio::test]
    async fn segments_are_read_by_their_keys() {
        // The second record is longer than what is read first.
        for reports in [1, 2000] {
            let (_dir, objects, ..) = store(reports).await;
            let all = all(&objects, &Keys::new("j")).await.expect("read");
            assert_eq!((all.len(), all[0].reports.len()), (1, reports));
            let s = &all[0].segments;
            assert_eq!(s[0].key, "jobs/j/segments/a/events.parquet");
            for (s, want) in s[1..].iter().zip([&b"first"[..], b"and second"]) {
                assert_eq!(s.bytes, want.len() as u64);
                assert_eq!(objects.get(&s.key).await.expect("read").0, want);
                let head = objects.head(&s.key).await.expect("there");
                assert_eq!((head.key, head.size), (s.key.clone(), s.bytes));
                let part = objects.get_range(&s.key, 1..3).await.expect("read");
                assert_eq!(part, &want[1..3]);
                assert!(objects.get_range(&s.key, 1..s.bytes + 1).await.is_err());
            }
        }
    }

    #[tokio::test]
    async fn a_cut_object_is_damaged_wherever_it_ends() {
        let (_dir, objects, key, size) = store(3).await;
        let (whole, _) = objects.get(&key).await.expect("read");
        let record = read(&objects, &key, size).await.expect("read");
        for end in 0..whole.len() {
            let put = objects.put(&key, whole.slice(..end)).await;
            put.expect("stored");
            match read(&objects, &key, end as u64).await {
                Err(e) => assert!(e.is_content(), "{e}"),
                // The record is there; what it names is not.
                Ok(r) => {
                    assert_eq!(r, record);
                    let last = record.segments.last().expect("a segment");
                    let there = objects.head(&last.key).await.expect("a size").size;
                    assert!(there < last.bytes, "{there}");
                    objects.get(&last.key).await.expect_err("cut");
                }
            }
        }
    }
}
