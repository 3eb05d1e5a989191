//! The records of a job in the object store, and where each lies.

use crate::objects::{ObjectError, Objects};
use bytes::Bytes;
use ramsift_layers::format::Layout;
use ramsift_layers::{ChunkParams, SourcePin};
use ramsift_proto::v1::{JobSpec, JobState, RuleGap};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Its content.
    #[error("{what} is damaged or from another version: {detail}")]
    Format {
        /// The object.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// A table segment.
    #[error("{what}: {source}")]
    Segment {
        /// The object.
        what: String,
        /// What is wrong.
        source: crate::tables::SegmentError,
    },
    /// The query engine.
    #[error("query: {0}")]
    Query(String),
    /// A temporary file of this machine: its disk is full, or failed. Another try, or another machine, may do it.
    #[error("temporary files: {0}")]
    Disk(String),
    /// The ledger.
    #[error("ledger at {at}: {detail}")]
    Ledger {
        /// Where.
        at: String,
        /// What happened.
        detail: String,
    },
}

impl StoreError {
    /// Whether what was asked for is not there or not what it should be, and another try would find the same: the store
    /// itself is in reach.
    pub fn is_content(&self) -> bool {
        match self {
            Self::Object(e) => e.is_not_found(),
            Self::Format { .. } | Self::Segment { .. } => true,
            _ => false,
        }
    }
}

/// Names of a job's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    job: String,
}

impl Keys {
    /// The names of `job`'s objects.
    pub fn new(job: &str) -> Self {
        Self {
            job: job.to_owned(),
        }
    }

    fn key(&self, rest: &str) -> String {
        format!("jobs/{}/{rest}", self.job)
    }

    /// What the user asked for.
    pub fn spec(&self) -> String {
        self.key("spec.json")
    }

    /// The immutable plan.
    pub fn plan(&self) -> String {
        self.key("plan.json")
    }

    /// The table of extents whose directory has this BLAKE3.
    pub fn extents(&self, blake3: &str) -> String {
        self.key(&format!("extents/{blake3}.extents"))
    }

    /// Where the kernel is.
    pub fn kernel(&self) -> String {
        self.key("kernel.json")
    }

    /// Where the job stands.
    pub fn state(&self) -> String {
        self.key("state.json")
    }

    /// A user's wish to end the job.
    pub fn cancel(&self) -> String {
        self.key("cancel.json")
    }

    /// The groups of rules to decide.
    pub fn verdicts(&self) -> String {
        self.key("verdicts.json")
    }

    /// The groups of rules to decide for each process.
    pub fn process_verdicts(&self) -> String {
        self.key("process_verdicts.json")
    }

    /// Folder of the lists of what chunk workers are to scan, as one attempt at the views made them.
    pub fn lists(&self, attempt: &str) -> String {
        self.key(&format!("lists/{attempt}/"))
    }

    /// What was unpacked for the job; with an empty name, the folder of it.
    pub fn unpacked(&self, name: &str) -> String {
        self.key(&format!("unpacked/{name}"))
    }

    /// Folder of the lists of all attempts.
    pub fn all_lists(&self) -> String {
        self.key("lists/")
    }

    /// Folder of tasks that were cut in two.
    pub fn splits(&self) -> String {
        self.key("splits/")
    }

    /// A task that was cut in two.
    pub fn split(&self, task: &str) -> String {
        self.key(&format!("splits/{task}.json"))
    }

    /// Folder of the commit objects.
    pub fn commits(&self) -> String {
        self.key("commits/")
    }

    /// A commit object: see [`crate::commits`].
    pub fn commit(&self, id: &str) -> String {
        self.key(&format!("commits/{id}.commit"))
    }

    /// A segment of a table that is an object of its own.
    pub fn segment(&self, commit: &str, table: &str) -> String {
        self.key(&format!("segments/{commit}/{table}.parquet"))
    }

    /// An object that holds segments of one report.
    pub fn segment_pack(&self, attempt: &str, n: usize) -> String {
        self.key(&format!("segments/{attempt}-{n}.segments"))
    }

    /// Folder of those segments.
    pub fn segments(&self) -> String {
        self.key("segments/")
    }

    /// Folder of the packs of small artifacts.
    pub fn packs(&self) -> String {
        self.key("packs/")
    }

    /// A pack of small artifacts, by its content.
    pub fn pack(&self, blake3: &str) -> String {
        self.key(&format!("packs/{blake3}.pack"))
    }

    /// The commits that count.
    pub fn frozen(&self) -> String {
        self.key("frozen.json")
    }

    /// A finished table.
    pub fn table(&self, table: &str) -> String {
        self.key(&format!("tables/{table}.parquet"))
    }

    /// Folder of the finished tables.
    pub fn tables(&self) -> String {
        self.key("tables/")
    }

    /// The manifest.
    pub fn manifest(&self) -> String {
        self.key("manifest.json")
    }
}

/// Key of a large artifact.
pub fn artifact_key(sha256: &str) -> String {
    format!("artifacts/{sha256}")
}

/// Key of a compiled rule set.
pub fn rules_key(digest: &str) -> String {
    format!("rules/{digest}.rules")
}

/// How a capture is cut into tasks. Immutable: written once, read by every worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What the user asked for.
    pub spec: JobSpec,
    /// Which version of which file or object.
    pub pin: SourcePin,
    /// Container and runs; of one that packs its memory, what is to be known of the table of extents beside the plan.
    pub layout: Layout,
    /// How the file is cut.
    pub chunks: ChunkParams,
    /// How many chunks.
    pub chunk_count: u64,
    /// Views to build.
    pub views: Vec<String>,
    /// When the capture was taken at the latest, microseconds, and what says so.
    pub reference_time: Option<(i64, String)>,
}

/// The groups of rules whose conditions are decided after the last chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictPlan {
    /// The groups, as the rule engine describes them.
    pub groups: Vec<serde_json::Value>,
    /// Rules that ran out of time or matches somewhere.
    pub gaps: Vec<RuleGap>,
    /// Some of the image could not be scanned.
    pub failed_ranges: bool,
    /// Segments with the matches of all chunks.
    pub segments: Vec<String>,
}

/// The commits that count, fixed when the job is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// Ids of the commit records.
    pub commits: Vec<String>,
    /// The chosen commit and attempt of each task.
    pub chosen: BTreeMap<String, (String, String)>,
    /// Tasks that were cut in two.
    pub split: BTreeSet<String>,
    /// When the list was fixed, microseconds since 1970: whoever seals the job writes the same time.
    #[serde(default)]
    pub micros: i64,
    /// What the manifest says of the program that fixed the list.
    #[serde(default)]
    pub by: Option<SealedBy>,
}

/// What a manifest says of the program that sealed a job: of the one that fixed the list of commits, whoever writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedBy {
    /// Carvers with their versions.
    pub carvers: BTreeMap<String, u32>,
    /// Digest of carvers and options.
    pub carvers_digest: String,
    /// clamd's engine and signature version.
    pub clamav: Option<String>,
    /// Version of the program.
    pub version: String,
}

/// Bytes by outcome for one engine; they sum to the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Looked at in full.
    pub scanned: u64,
    /// One repeated byte, page after page.
    pub sparse: u64,
    /// Looked at, but something ran out of time or budget.
    pub partial: u64,
    /// Could not be looked at.
    pub failed: u64,
    /// The header claims them, the file lacks them.
    pub missing: u64,
}

impl Coverage {
    /// Sum over all outcomes.
    pub fn total(&self) -> u64 {
        self.scanned + self.sparse + self.partial + self.failed + self.missing
    }

    /// Whether something was not looked at in full.
    pub fn has_gaps(&self) -> bool {
        self.partial + self.failed + self.missing > 0
    }
}

/// One result file with its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Key in the store.
    pub key: String,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3, hex.
    pub blake3: String,
    /// Rows, for tables.
    pub rows: Option<u64>,
    /// Rows of each kind, for tables whose rows have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, u64>,
}

/// What was done to which evidence by whom, with the hashes that let anyone check it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The job.
    pub job: String,
    /// What the user asked for.
    pub spec: JobSpec,
    /// Which version of which file or object.
    pub evidence: SourcePin,
    /// Bytes of the file or object.
    pub evidence_bytes: u64,
    /// BLAKE3 of the file or object, when every byte was read.
    pub evidence_blake3: Option<String>,
    /// SHA-256, where the provider keeps one or one was asked for.
    pub evidence_sha256: Option<String>,
    /// Where the SHA-256 comes from.
    pub evidence_sha256_from: Option<String>,
    /// Container.
    pub format: String,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// `complete` or `complete with gaps`.
    pub verdict: String,
    /// Per engine.
    pub coverage: BTreeMap<String, Coverage>,
    /// What is missing, in words.
    pub gaps: Vec<String>,
    /// `structured + unstructured` or `unstructured only: <reason>`.
    pub analyses: String,
    /// Carvers with their versions.
    pub carvers: BTreeMap<String, u32>,
    /// Digest of carvers and options.
    pub carvers_digest: String,
    /// Digest of the rule set.
    pub rules_digest: Option<String>,
    /// clamd's engine and signature version.
    pub clamav: Option<String>,
    /// Version of this program.
    pub version: String,
    /// The result files.
    pub files: Vec<ManifestFile>,
    /// Objects with artifacts.
    pub artifacts: Vec<ManifestFile>,
    /// Microseconds since 1970.
    pub started_micros: i64,
    /// Microseconds since 1970.
    pub finished_micros: i64,
}

/// Reads a JSON record and its tag.
pub async fn read<T: DeserializeOwned>(
    objects: &dyn Objects,
    key: &str,
) -> Result<(T, String), StoreError> {
    let (data, etag) = objects.get(key).await?;
    let v = serde_json::from_slice(&data).map_err(|e| StoreError::Format {
        what: objects.url(key),
        detail: e.to_string(),
    })?;
    Ok((v, etag))
}

/// Reads a JSON record that may not exist.
pub async fn read_opt<T: DeserializeOwned>(
    objects: &dyn Objects,
    key: &str,
) -> Result<Option<(T, String)>, StoreError> {
    match read(objects, key).await {
        Ok(v) => Ok(Some(v)),
        Err(StoreError::Object(e)) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether nothing more is wanted for a job: it has ended, is to be cancelled, or is gone. Who waits for something that a job
/// needs asks this, so as not to wait for ever.
pub async fn is_over(objects: &dyn Objects, job: &str) -> Result<bool, StoreError> {
    let keys = Keys::new(job);
    let Some((state, _)) = read_opt::<JobState>(objects, &keys.state()).await? else {
        return Ok(true);
    };
    if state.phase().is_final() {
        return Ok(true);
    }
    match objects.head(&keys.cancel()).await {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A record as JSON.
pub fn to_json<T: Serialize>(v: &T) -> Result<Bytes, StoreError> {
    serde_json::to_vec_pretty(v)
        .map(Bytes::from)
        .map_err(|e| StoreError::Format {
            what: "record".into(),
            detail: e.to_string(),
        })
}

/// Microseconds since 1970.
pub fn now_micros() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}
