//! Objects: named, immutable byte strings in a folder or a bucket, and the few that change under
//! a condition.
//!
//! The store is the truth of every job. Two conditional writes carry that: create-if-absent (a
//! commit record exists once) and replace-if-unchanged (a lease has one holder). A store without
//! them is refused when a service starts ([`check_conditions`]).

mod local;
mod s3;
mod shim;

pub use local::LocalObjects;
pub use s3::S3Objects;
pub use shim::ReadShim;

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// No such object.
    #[error("{what} does not exist")]
    NotFound {
        /// The object.
        what: String,
    },
    /// It exists already, or is not the version that the write expected.
    #[error("{what} was written by someone else")]
    Conflict {
        /// The object.
        what: String,
    },
    /// Not allowed.
    #[error("{what}: access refused: {detail}")]
    Denied {
        /// The object.
        what: String,
        /// What the store said.
        detail: String,
    },
    /// The store can't hold results, today or tomorrow: its bucket does not exist, or it ignores conditions of writes.
    #[error("{what}: {detail}")]
    Unusable {
        /// The object.
        what: String,
        /// What is wrong with the store.
        detail: String,
    },
    /// The store can't be reached, or failed.
    #[error("{what}: {detail}")]
    Failed {
        /// The object.
        what: String,
        /// What happened.
        detail: String,
    },
}

impl ObjectError {
    /// Whether the object is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether a conditional write lost.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

/// What a listing tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Tag of this version.
    pub etag: String,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// A key that names a part of an object: `OBJECT.commit/START-END/NAME`, or `.segments` in place of `.commit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartKey<'a> {
    /// The object that holds it.
    pub object: &'a str,
    /// Where it lies there, bytes.
    pub range: Range<u64>,
}

impl<'a> PartKey<'a> {
    /// What such a key is, if it is one.
    pub fn of(key: &'a str) -> Option<Self> {
        let (rest, name) = key.rsplit_once('/')?;
        let (object, place) = rest.rsplit_once('/')?;
        let range = Self::within(&key[object.len() + 1..])?;
        let holds = [".commit", ".segments"].iter().any(|e| object.ends_with(e));
        (holds && !name.is_empty() && !place.is_empty()).then_some(Self { object, range })
    }

    /// The place that `START-END/NAME` gives.
    pub fn within(name: &str) -> Option<Range<u64>> {
        let (place, _) = name.split_once('/')?;
        let (start, end) = place.split_once('-')?;
        let range = start.parse().ok()?..end.parse().ok()?;
        (range.start <= range.end).then_some(range)
    }

    /// `START-END/TABLE.parquet`.
    pub fn name(place: Range<u64>, table: &str) -> String {
        format!("{}-{}/{table}.parquet", place.start, place.end)
    }

    /// The part of the object that a range of the part is; `None` where it reaches beyond.
    fn narrow(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (end <= self.range.end).then_some(start..end)
    }

    /// What there is to know of the part, by what there is of its object: of one that was cut, so much as is there.
    fn meta(&self, key: &str, whole: ObjectMeta) -> ObjectMeta {
        let end = self.range.end.min(whole.size);
        ObjectMeta {
            key: key.to_owned(),
            size: end.saturating_sub(self.range.start),
            ..whole
        }
    }
}

/// A range reaches beyond the end of what it is a range of.
fn beyond(what: String) -> ObjectError {
    ObjectError::Failed {
        what,
        detail: "it ends before the part that was asked for".into(),
    }
}

/// A folder or bucket prefix that holds objects. Keys are relative, with `/`. A key of the form of [`PartKey`] reads a
/// part of an object as if it were one.
#[async_trait]
pub trait Objects: Send + Sync + fmt::Debug {
    /// Writes an object whole and durably, whatever was there; returns its tag.
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError>;

    /// Creates an object; [`ObjectError::Conflict`] when it exists.
    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError>;

    /// Replaces the version `etag` of an object; [`ObjectError::Conflict`] when it is another.
    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError>;

    /// Uploads a file, which may be large.
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError>;

    /// Creates an object from a file, which may be large; [`ObjectError::Conflict`] when it exists.
    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError>;

    /// An object's bytes and tag.
    async fn get(&self, key: &str) -> Result<(Bytes, String), ObjectError>;

    /// Part of an object.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError>;

    /// What there is to know of an object.
    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError>;

    /// All objects whose key begins with `prefix`, by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError>;

    /// The names one level below `prefix` (which ends in `/`) that have something below them.
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError>;

    /// Removes an object; it is no error if there is none.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// The whole name of an object, for people.
    fn url(&self, key: &str) -> String;

    /// Where an object lies on this machine's file system, if it does.
    fn path(&self, key: &str) -> Option<PathBuf>;
}

/// Tries both conditional writes and fails with a clear sentence where the store ignores them.
pub async fn check_conditions(objects: &dyn Objects) -> Result<(), ObjectError> {
    // Some servers make a bucket that does not exist for whoever writes into it.
    objects.list_folders("jobs/").await?;
    let key = format!("probe/{}", uuid::Uuid::now_v7());
    let ignored = |which: &str| ObjectError::Unusable {
        what: objects.url(&key),
        detail: format!(
            "this store ignores {which}, without which results can't be kept consistent; \
             use one with conditional writes"
        ),
    };
    let etag = objects.put_new(&key, Bytes::from_static(b"1")).await?;
    let again = objects.put_new(&key, Bytes::from_static(b"2")).await;
    let over = objects
        .put_over(&key, Bytes::from_static(b"3"), "\"none\"")
        .await;
    let right = objects
        .put_over(&key, Bytes::from_static(b"4"), &etag)
        .await;
    objects.delete(&key).await?;
    match (again, over) {
        (Err(e), _) | (_, Err(e)) if !e.is_conflict() => return Err(e),
        (Ok(_), _) => return Err(ignored("If-None-Match")),
        (_, Ok(_)) => return Err(ignored("If-Match on writes")),
        _ => {}
    }
    right.map(|_| ())
}
