//! Sources: where the bytes of a capture live, pinned to one version.
//!
//! A source answers for exactly one version of the evidence. What changes underneath is an error
//! ([`SourceError::Changed`]), never a mix of two versions.

mod allow;
mod cache;
mod count;
mod disk;
mod fault;
mod file;
mod headers;
mod joined;
mod map;
mod measured;
mod name;
mod ram;
pub mod s3;
mod web;

pub use allow::Allowed;
pub use cache::CachedPhys;
pub use count::CountedSource;
pub use disk::{DiskCache, DiskCaches, DiskLimits};
pub use fault::{Fault, FaultSource};
pub use file::FileSource;
pub use joined::JoinedSource;
pub use map::Mapping;
pub use name::{name_of, path_of};
pub use ram::RamSource;
pub use s3::{CustomerKey, S3Client, S3Config, S3Source, SignPayloads};
pub use web::Web;

use crate::FileOffset;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Which version of which file or object the evidence is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourcePin {
    /// A file on this machine.
    File {
        /// Absolute path.
        path: String,
        /// Device number.
        device: u64,
        /// Inode number.
        inode: u64,
        /// Bytes.
        size: u64,
        /// Modification time, nanoseconds since 1970.
        mtime_ns: i64,
    },
    /// An object in S3.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// Version, where the bucket keeps versions.
        version_id: Option<String>,
        /// Entity tag, quotes included.
        etag: String,
        /// Bytes.
        size: u64,
        /// Last modification, nanoseconds since 1970.
        mtime_ns: i64,
        /// The provider's SHA-256 of the full object, lower-case hex, where it keeps one.
        sha256: Option<String>,
    },
    /// Bytes in memory (tests).
    Ram {
        /// A name for messages.
        name: String,
        /// Bytes.
        size: u64,
    },
    /// Several of them, one after the other: a capture in several files.
    Parts {
        /// In their order.
        parts: Vec<SourcePin>,
    },
}

impl SourcePin {
    /// Bytes of the file or object.
    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } | Self::S3 { size, .. } | Self::Ram { size, .. } => *size,
            Self::Parts { parts } => parts.iter().fold(0, |n, p| n.saturating_add(p.size())),
        }
    }

    /// Whether it lies in an object store.
    pub fn is_object(&self) -> bool {
        match self {
            Self::S3 { .. } => true,
            Self::File { .. } | Self::Ram { .. } => false,
            Self::Parts { parts } => parts.iter().any(Self::is_object),
        }
    }

    /// Last modification, nanoseconds since 1970, where the source tells.
    pub fn mtime_ns(&self) -> Option<i64> {
        match self {
            Self::File { mtime_ns, .. } | Self::S3 { mtime_ns, .. } => Some(*mtime_ns),
            Self::Ram { .. } => None,
            Self::Parts { parts } => parts.iter().filter_map(Self::mtime_ns).max(),
        }
    }

    /// The last part of the path or key.
    pub fn name(&self) -> &str {
        let whole = match self {
            Self::File { path, .. } => path,
            Self::S3 { key, .. } => key,
            Self::Ram { name, .. } => name,
            Self::Parts { parts } => return parts.first().map_or("", Self::name),
        };
        whole.rsplit('/').find(|p| !p.is_empty()).unwrap_or(whole)
    }
}

impl fmt::Display for SourcePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => f.write_str(path),
            Self::S3 { bucket, key, .. } => write!(f, "s3://{bucket}/{key}"),
            Self::Ram { name, .. } => write!(f, "ram:{name}"),
            Self::Parts { parts } => match parts.split_first() {
                None => f.write_str("no file at all"),
                Some((first, rest)) => write!(f, "{first} and {} more", rest.len()),
            },
        }
    }
}

/// Why bytes could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No such file, bucket, object or version.
    #[error("{what} does not exist: {detail}")]
    NotFound {
        /// The file or object.
        what: String,
        /// What exactly is not there.
        detail: String,
    },
    /// Not allowed, or the credentials are wrong.
    #[error("{what} may not be read: {detail}")]
    Denied {
        /// The file or object.
        what: String,
        /// What the system or provider said.
        detail: String,
    },
    /// Never to be read, by what it is or by configuration: another try is no use, here or elsewhere.
    #[error("{what} may not be read: {detail}")]
    Refused {
        /// The file or object.
        what: String,
        /// Why.
        detail: String,
    },
    /// There are no bytes in it.
    #[error("{what} is empty: there is nothing to scan")]
    Empty {
        /// The file or object.
        what: String,
    },
    /// The evidence is no longer the pinned version.
    #[error("evidence changed: {what}: {detail}; scan a copy that nobody writes to")]
    Changed {
        /// The file or object.
        what: String,
        /// What differs.
        detail: String,
    },
    /// A read past the end.
    #[error("{what}: {len} bytes at offset {offset:#x} lie past its end ({size} bytes)")]
    PastEnd {
        /// The file or object.
        what: String,
        /// Start of the read.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes there are.
        size: u64,
    },
    /// The medium failed at this place: another try elsewhere would fail the same way.
    #[error("{what}: reading {len} bytes at offset {offset:#x} failed: {detail}")]
    Medium {
        /// The file or object.
        what: String,
        /// Start of the read.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// What the system said.
        detail: String,
    },
    /// The service can't be reached or is overloaded, after retries.
    #[error("{what} can't be reached: {detail}")]
    Unavailable {
        /// The file, object or service.
        what: String,
        /// What happened last.
        detail: String,
    },
}

impl SourceError {
    /// Whether the evidence itself is at fault (and not the way to it): another try is no use.
    pub fn is_content(&self) -> bool {
        matches!(self, Self::Medium { .. } | Self::PastEnd { .. })
    }

    /// Whether the job can't go on: the evidence is gone, changed or forbidden.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Denied { .. }
                | Self::Refused { .. }
                | Self::Empty { .. }
                | Self::Changed { .. }
        )
    }
}

/// Something with bytes at offsets, pinned to one version.
#[async_trait]
pub trait ByteSource: Send + Sync + fmt::Debug {
    /// Which version this source answers for.
    fn pin(&self) -> &SourcePin;

    /// Fills `buf` with the bytes from `offset`, all of them or none.
    ///
    /// A file source blocks the calling thread for as long as the disk takes: call it where that
    /// is allowed.
    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError>;

    /// Fails with [`SourceError::Changed`] when the evidence is no longer the pinned version.
    async fn check_pin(&self) -> Result<(), SourceError>;

    /// The bytes of a range without a copy, where the source can give them so; else read them. Blocks as
    /// reading does.
    ///
    /// Look at [`Mapping::is_torn`] after the last use of the bytes; after that, or after any other trouble with
    /// them, call [`unmap`](Self::unmap) and read.
    fn map(&self, _range: Range<u64>) -> Option<Mapping> {
        None
    }

    /// Maps nothing any more.
    fn unmap(&self) {}

    /// Whether a range is known to be zeros without being read: nothing of a sparse file is stored there. May block
    /// as reading does.
    fn is_hole(&self, _range: Range<u64>) -> bool {
        false
    }

    /// Bytes that are rather read in vain than skipped: what a read costs, in bytes.
    fn coalesce_distance(&self) -> u64 {
        16 << 10
    }

    /// The files or objects that it is made of, where it is several.
    fn parts(&self) -> &[Arc<dyn ByteSource>] {
        &[]
    }

    /// Bytes of the file or object.
    fn len(&self) -> u64 {
        self.pin().size()
    }

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `offset`, `len` of them.
    async fn read_vec(&self, offset: FileOffset, len: usize) -> Result<Vec<u8>, SourceError> {
        let mut buf = vec![0; len];
        self.read_at(offset, &mut buf).await?;
        Ok(buf)
    }

    /// At most `len` bytes from the start: what a probe looks at.
    async fn head(&self, len: usize) -> Result<Vec<u8>, SourceError> {
        let n = usize::try_from(self.len()).unwrap_or(usize::MAX).min(len);
        self.read_vec(FileOffset(0), n).await
    }
}

/// Opens sources by name or by pin, with one S3 client for all buckets that are reached in the same way.
#[derive(Clone, Debug)]
pub struct Sources {
    s3: S3Config,
    client: Arc<OnceCell<S3Client>>,
    /// Those of buckets with a configuration of their own.
    others: Arc<BTreeMap<String, OnceCell<S3Client>>>,
    allowed: Arc<Allowed>,
    own: Option<Arc<str>>,
}

impl Sources {
    /// Sources that reach S3 with this configuration.
    pub fn new(s3: S3Config) -> Self {
        let others = s3.buckets.keys().map(|b| (b.clone(), OnceCell::new()));
        Self {
            others: Arc::new(others.collect()),
            s3,
            client: Arc::default(),
            allowed: Arc::default(),
            own: None,
        }
    }

    /// The same, and what jobs of this store unpacked for themselves: a plan may name it, and nobody who submits a job.
    pub fn owning(mut self, store: &str) -> Self {
        self.own = Some(Arc::from(store.trim_end_matches('/')));
        self
    }

    /// Whether a name is that of what a job unpacked.
    fn is_own(&self, name: &str) -> bool {
        let Some(own) = &self.own else {
            return false;
        };
        let below = name
            .strip_prefix(own.as_ref())
            .and_then(|r| r.strip_prefix("/jobs/"));
        below.is_some_and(|r| {
            let mut parts = r.split('/');
            let unpacked = parts.nth(1) == Some("unpacked");
            unpacked && !r.split('/').any(|p| matches!(p, "" | "." | ".."))
        })
    }

    /// Opens what was unpacked for a job.
    pub async fn open_own(&self, name: &str) -> Result<Arc<dyn ByteSource>, SourceError> {
        let all = Self {
            allowed: Arc::default(),
            ..self.clone()
        };
        all.open(name).await
    }

    /// The same, for no more than what is allowed.
    pub fn only(mut self, allowed: Allowed) -> Self {
        self.allowed = Arc::new(allowed);
        self
    }

    /// The S3 client for a bucket, made on first use.
    pub async fn s3(&self, bucket: &str) -> S3Client {
        let own = self.others.get(bucket).zip(self.s3.buckets.get(bucket));
        let (client, config) = own.unwrap_or((self.client.as_ref(), &self.s3));
        client
            .get_or_init(|| S3Client::connect(config))
            .await
            .clone()
    }

    /// Fails for evidence that may not be read here. Of a file more than its name is looked at; whether an object
    /// is there is not.
    pub async fn check(&self, name: &str) -> Result<(), SourceError> {
        if split_s3_url(name).is_some() {
            return self.allowed.check(name);
        }
        match self.open(name).await {
            Err(e @ SourceError::Refused { .. }) => Err(e),
            _ => Ok(()),
        }
    }

    /// Opens a path or an `s3://bucket/key` URL and pins its present version.
    pub async fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>, SourceError> {
        if let Some((bucket, key)) = split_s3_url(name) {
            self.allowed.check(name)?;
            let s = S3Source::open(&self.s3(bucket).await, bucket, key).await?;
            return Ok(Arc::new(s));
        }
        let (allowed, file) = (self.allowed.clone(), name.to_owned());
        let open = move || FileSource::open_allowed(&path_of(&file), &allowed);
        Ok(Arc::new(apart(name, open).await?))
    }

    /// What lies beside a source that was opened.
    pub fn beside(&self, pin: &SourcePin) -> Siblings {
        Siblings {
            sources: self.clone(),
            name: pin.to_string(),
        }
    }

    /// Opens the version that was pinned before.
    pub async fn open_pinned(&self, pin: &SourcePin) -> Result<Arc<dyn ByteSource>, SourceError> {
        if let SourcePin::Parts { parts } = pin {
            let mut opened = Vec::with_capacity(parts.len());
            for p in parts {
                opened.push(self.open_one(p).await?);
            }
            return Ok(Arc::new(JoinedSource::new(opened)));
        }
        self.open_one(pin).await
    }

    /// The same of one file or object.
    async fn open_one(&self, pin: &SourcePin) -> Result<Arc<dyn ByteSource>, SourceError> {
        if let SourcePin::S3 { bucket, key, .. } = pin {
            if !self.is_own(&pin.to_string()) {
                self.allowed.check_object(bucket, key)?;
            }
            return Ok(Arc::new(S3Source::pinned(&self.s3(bucket).await, pin)?));
        }
        let own = self.is_own(&pin.to_string());
        let allowed = if own {
            Arc::default()
        } else {
            self.allowed.clone()
        };
        let of = pin.clone();
        let open = move || FileSource::open_pinned_allowed(&of, &allowed);
        Ok(Arc::new(apart(&pin.to_string(), open).await?))
    }
}

/// Files or objects that differ from another in the ending of their names alone.
#[derive(Clone, Debug)]
pub struct Siblings {
    sources: Sources,
    name: String,
}

/// Files of one capture at most.
const MAX_PARTS: u32 = 1024;

impl Siblings {
    /// Names that have another number where this one has its last: `None` where it has none.
    fn numbered_names(&self) -> Option<(String, u32, usize, String)> {
        let base = self.name.rfind('/').map_or(0, |i| i + 1);
        let end = self.name.rfind(|c: char| c.is_ascii_digit())? + 1;
        let digits = self.name.get(..end)?;
        let start = digits
            .rfind(|c: char| !c.is_ascii_digit())
            .map_or(0, |i| i + 1);
        let number = self.name.get(start..end)?;
        let value = number.parse().ok().filter(|_| start >= base)?;
        let (before, behind) = (self.name.get(..start)?, self.name.get(end..)?);
        Some((before.to_owned(), value, number.len(), behind.to_owned()))
    }

    /// Opens neighbours one after the other until one is not there.
    async fn run(
        &self,
        numbers: impl Iterator<Item = u32>,
        name: impl Fn(u32) -> String,
    ) -> Result<Vec<Arc<dyn ByteSource>>, SourceError> {
        let mut out = Vec::new();
        for n in numbers {
            match self.sources.open(&name(n)).await {
                Ok(s) => out.push(s),
                Err(SourceError::NotFound { .. } | SourceError::Empty { .. }) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }
}

#[async_trait]
impl crate::format::Beside for Siblings {
    async fn numbered(&self) -> Result<Vec<Arc<dyn ByteSource>>, SourceError> {
        let Some((before, value, width, behind)) = self.numbered_names() else {
            return Ok(Vec::new());
        };
        let name = |n: u32| format!("{before}{n:0width$}{behind}");
        let mut out = self
            .run((0..value).rev().take(MAX_PARTS as usize), name)
            .await?;
        out.extend(
            self.run((value + 1..).take(MAX_PARTS as usize), name)
                .await?,
        );
        Ok(out)
    }

    async fn with_ending(&self, ending: &str) -> Result<Option<Arc<dyn ByteSource>>, SourceError> {
        let Some((stem, _)) = self.name.rsplit_once('.') else {
            return Ok(None);
        };
        match self.sources.open(&format!("{stem}.{ending}")).await {
            Ok(s) => Ok(Some(s)),
            Err(SourceError::NotFound { .. } | SourceError::Empty { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Opens a file on a thread that may wait: a file system can take as long as it likes.
async fn apart(
    name: &str,
    open: impl FnOnce() -> Result<FileSource, SourceError> + Send + 'static,
) -> Result<FileSource, SourceError> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.unwrap_or_else(|e| {
        Err(SourceError::Unavailable {
            what: name.to_owned(),
            detail: e.to_string(),
        })
    })
}

/// Bucket and key of an `s3://` URL; the key may be empty.
pub fn split_s3_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    Some(rest.split_once('/').unwrap_or((rest, "")))
}

/// Fails when a read would leave a source of `size` bytes.
pub(crate) fn in_bounds(pin: &SourcePin, offset: u64, len: usize) -> Result<(), SourceError> {
    let size = pin.size();
    match offset.checked_add(len as u64) {
        Some(end) if end <= size => Ok(()),
        _ => Err(SourceError::PastEnd {
            what: pin.to_string(),
            offset,
            len: len as u64,
            size,
        }),
    }
}
