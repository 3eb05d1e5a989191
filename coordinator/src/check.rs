//! What a job asks for, checked before it is taken: a job that can't be done is refused with the reason, not found out by one
//! worker after the other.

use crate::Deps;
use crate::plan::{named_page_files, parameters};
use crate::service::{Inner, lock};
use ramsift_layers::SourceError;
use ramsift_proto::v1::JobSpec;
use ramsift_store::StoreError;
use ramsift_store::job::rules_key;
use std::fmt;

/// Characters of a name at most.
const NAME: usize = 128;
/// Characters of the name of a capture at most: what S3 and Linux allow, with room.
const SOURCE: usize = 8192;
/// Rule sets that are known to be good.
const KNOWN_RULES: usize = 256;

/// Looks at what only the engines and carvers can judge: handed in by the binary.
pub trait SpecCheck: Send + Sync + fmt::Debug {
    /// Fails for carvers, zones and other names in a job that this version doesn't have.
    fn spec(&self, spec: &JobSpec) -> Result<(), String>;

    /// Fails for rules that this version can't use. May take seconds.
    fn rules(&self, rules: &[u8]) -> Result<(), String>;
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// It can't be done as it is.
    #[error("{0}")]
    Invalid(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a job has a name that its folder can have.
fn name(job: &str) -> Result<(), String> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if job.is_empty() || job.len() > NAME || job.starts_with('.') || !job.chars().all(ok) {
        return Err(format!("{job:?} is no job name"));
    }
    Ok(())
}

/// Whether a text is a hash of 32 bytes in hex.
fn is_digest(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

fn one_of(what: &str, value: &str, of: &[&str]) -> Result<(), String> {
    if value.is_empty() || of.contains(&value) {
        return Ok(());
    }
    Err(format!("unknown {what} {value:?}: use {}", of.join(", ")))
}

/// Bytes of the list of kinds of artifacts to copy.
const COPIES: usize = 1024;

/// What needs no look at anything else.
fn words(spec: &JobSpec) -> Result<(), String> {
    name(&spec.job)?;
    if spec.source.is_empty() || spec.source.len() > SOURCE || spec.source.contains('\0') {
        return Err("the job names no capture".into());
    }
    if !spec.structured && !spec.unstructured {
        return Err("the job asks for neither analysis".into());
    }
    parameters(spec)?;
    one_of("av", &spec.av, &["files", "memory", "both"])?;
    one_of("matches", &spec.matches, &["all"])?;
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_, ".contains(c);
    if spec.copy_artifacts.len() > COPIES || !spec.copy_artifacts.chars().all(word) {
        return Err(
            "copy_artifacts: expected kinds of artifacts with commas between them, or all".into(),
        );
    }
    if !spec.expect_hash.is_empty() && !is_digest(&spec.expect_hash) {
        return Err(format!(
            "expect_hash {:?} is no BLAKE3 or SHA-256 in hex",
            spec.expect_hash
        ));
    }
    if !spec.rules_digest.is_empty() && !is_digest(&spec.rules_digest) {
        return Err(format!("{:?} is no digest of rules", spec.rules_digest));
    }
    Ok(())
}

/// Checks a job that was submitted.
pub(crate) async fn check(inner: &Inner, spec: &JobSpec) -> Result<(), SubmitError> {
    words(spec).map_err(SubmitError::Invalid)?;
    let deps = &inner.deps;
    deps.specs.spec(spec).map_err(SubmitError::Invalid)?;
    // Whether it can be read now is found out when the job is planned.
    if let Err(e @ SourceError::Refused { .. }) = deps.sources.check(&spec.source).await {
        return Err(SubmitError::Invalid(e.to_string()));
    }
    for (_, path) in named_page_files(spec).map_err(SubmitError::Invalid)? {
        if let Err(e @ SourceError::Refused { .. }) = deps.sources.check(path).await {
            return Err(SubmitError::Invalid(e.to_string()));
        }
    }
    if !spec.rules_digest.is_empty() {
        rules(inner, deps, &spec.rules_digest).await?;
    }
    Ok(())
}

/// Checks that a rule set is in this store and of this version.
async fn rules(inner: &Inner, deps: &Deps, digest: &str) -> Result<(), SubmitError> {
    let key = rules_key(digest);
    let missing = |e: &StoreError| matches!(e, StoreError::Object(e) if e.is_not_found());
    let absent = || {
        let at = deps.objects.url(&key);
        SubmitError::Invalid(format!(
            "the rules of the job are not in the coordinator's store ({at} does not exist): submit with the same store.url"
        ))
    };
    let fail = |e: StoreError| if missing(&e) { absent() } else { e.into() };
    deps.objects.head(&key).await.map_err(|e| fail(e.into()))?;
    let known = || lock(&inner.good_rules);
    // Who runs everything in one process has made them just now.
    if inner.config.deployment.is_embedded() || known().contains(digest) {
        return Ok(());
    }
    let (data, _) = deps.objects.get(&key).await.map_err(|e| fail(e.into()))?;
    let specs = deps.specs.clone();
    let good = tokio::task::spawn_blocking(move || specs.rules(&data)).await;
    good.map_err(|e| e.to_string())
        .and_then(|r| r)
        .map_err(|why| {
            SubmitError::Invalid(format!("the rules of the job can't be used: {why}"))
        })?;
    let mut known = known();
    if known.len() >= KNOWN_RULES {
        known.pop_first();
    }
    known.insert(digest.to_owned());
    Ok(())
}
