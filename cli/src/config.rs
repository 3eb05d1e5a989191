//! Configuration: defaults < file < environment < flags. Unknown keys are errors.
//!
//! A setting `section.key` is named `RAMSIFT_SECTION_KEY` in the environment and
//! `--set section.key=value` on the command line.

use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::source::{Allowed, S3Config, SignPayloads};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) store: Store,
    pub(crate) s3: S3,
    pub(crate) sources: Sources,
    pub(crate) queue: Queue,
    pub(crate) ledger: Ledger,
    pub(crate) clamd: Clamd,
    pub(crate) scan: Scan,
    pub(crate) coordinator: Coordinator,
    pub(crate) aggregator: Aggregator,
    pub(crate) worker: Worker,
    pub(crate) symbols: Symbols,
    pub(crate) rules: Rules,
    pub(crate) http: Http,
    pub(crate) log: Log,
}

/// Where results lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Store {
    /// A folder, or `s3://bucket/prefix`.
    pub(crate) url: String,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: "ramsift-results".into(),
        }
    }
}

/// The S3 service, for evidence and results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct S3 {
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) path_style: bool,
    pub(crate) sign_payloads: SignPayloads,
}

impl S3 {
    pub(crate) fn to_layers(&self) -> S3Config {
        S3Config {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            path_style: self.path_style,
            sign_payloads: self.sign_payloads,
        }
    }
}

/// Which evidence services read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sources {
    /// What jobs of a cluster may name, separated by commas: `s3://` (every object), `s3://bucket`,
    /// `s3://bucket/prefix`, `/folder` (regular files below it, on each worker's machine).
    pub(crate) allow: String,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            allow: "s3://".into(),
        }
    }
}

impl Sources {
    pub(crate) fn allowed(&self) -> Result<Allowed> {
        Allowed::parse(&self.allow).map_err(anyhow::Error::msg)
    }
}

/// RabbitMQ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Queue {
    pub(crate) url: String,
    pub(crate) prefix: String,
    /// PEM file of authorities for `amqps://`; empty: those of the system alone.
    pub(crate) ca_file: String,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            url: "amqp://guest:guest@127.0.0.1:5672/%2f".into(),
            prefix: "ramsift".into(),
            ca_file: String::new(),
        }
    }
}

impl Queue {
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        (!self.ca_file.is_empty()).then(|| self.ca_file.clone().into())
    }
}

/// Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ledger {
    pub(crate) url: String,
    pub(crate) prefix: String,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            prefix: "ramsift".into(),
        }
    }
}

/// clamd; no address: not used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Clamd {
    pub(crate) address: String,
}

/// How captures are cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Scan {
    pub(crate) chunk_size: u64,
    pub(crate) overlap: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            chunk_size: 64 << 20,
            overlap: 1 << 20,
        }
    }
}

/// The coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Coordinator {
    /// Where it listens.
    pub(crate) listen: String,
    /// Where others find it.
    pub(crate) url: String,
    pub(crate) window: u64,
    pub(crate) lease_seconds: u64,
    pub(crate) poll_milliseconds: u64,
    pub(crate) republish_seconds: u64,
    /// A part of a chunk that takes workers down is cut no further than this.
    pub(crate) smallest_bytes: u64,
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:7400".into(),
            url: "http://127.0.0.1:7400".into(),
            window: 256,
            lease_seconds: 10,
            poll_milliseconds: 500,
            republish_seconds: 900,
            smallest_bytes: 1 << 20,
        }
    }
}

/// The aggregator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Aggregator {
    pub(crate) listen: String,
    pub(crate) url: String,
    pub(crate) commit_bytes: u64,
    pub(crate) commit_milliseconds: u64,
    /// Bytes of rows in memory before reports are told to come again.
    pub(crate) memory_bytes: u64,
    /// Bytes of memory for sorting before it spills.
    pub(crate) sort_bytes: u64,
    /// Folder for what is spilled; empty: the system's temporary folder.
    pub(crate) spill: String,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:7401".into(),
            url: "http://127.0.0.1:7401".into(),
            commit_bytes: 64 << 20,
            commit_milliseconds: 2000,
            memory_bytes: 512 << 20,
            sort_bytes: 512 << 20,
            spill: String::new(),
        }
    }
}

/// Chunk and structured workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Worker {
    /// Chunks scanned at once; 0: one per processor.
    pub(crate) slots: u64,
    /// Parts of structured analyses done at once.
    pub(crate) view_slots: u64,
    pub(crate) chunk_seconds: u64,
    pub(crate) rule_seconds: u64,
    pub(crate) follow_bytes: u64,
    pub(crate) max_artifact_bytes: u64,
    pub(crate) cache_bytes: u64,
    /// Bytes of an object that views keep on disk; 0: none.
    pub(crate) disk_cache_bytes: u64,
    /// Folder for the disk cache and for recovered files on their way to the store; empty: the system's
    /// temporary folder.
    pub(crate) spill: String,
    /// Folder in which views without a job keep where a kernel is; empty: the user's cache.
    pub(crate) kernels: String,
    pub(crate) patience_seconds: u64,
    pub(crate) grace_seconds: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            slots: 0,
            view_slots: 2,
            chunk_seconds: 300,
            rule_seconds: 10,
            follow_bytes: 256 << 20,
            max_artifact_bytes: 64 << 20,
            cache_bytes: 128 << 20,
            disk_cache_bytes: 8 << 30,
            spill: String::new(),
            kernels: String::new(),
            patience_seconds: 600,
            grace_seconds: 25,
        }
    }
}

/// YARA rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rules {
    /// Folder for compiled sets; empty: one of the user's; `off`: none.
    pub(crate) cache: String,
}

impl Rules {
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match self.cache.as_str() {
            "" => crate::evidence::user_cache("rules"),
            "off" => None,
            dir => Some(dir.into()),
        }
    }
}

/// Symbol files for kernels that don't carry their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Symbols {
    /// A folder, or `s3://bucket/prefix`; empty: a folder of the user's.
    pub(crate) store: String,
}

/// `/livez` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:7480".into(),
        }
    }
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: "text".into(),
        }
    }
}

/// Environment variables of ours that are no settings.
const NOT_SETTINGS: &[&str] = &["RAMSIFT_CONFIG", "RAMSIFT_LOG"];
/// Variables that only tests and benches read.
const NOT_OURS: &[&str] = &["RAMSIFT_TEST_", "RAMSIFT_BENCH_"];

/// Every setting with its default: `section`, `key`, value.
fn leaves() -> Result<Vec<(String, String, Value)>> {
    let all = Table::try_from(Config::default())?;
    let mut out = Vec::new();
    for (section, v) in all {
        let Value::Table(t) = v else { continue };
        out.extend(t.into_iter().map(|(k, v)| (section.clone(), k, v)));
    }
    Ok(out)
}

/// Text as a value of the setting's type.
fn typed(name: &str, default: &Value, text: &str) -> Result<Value> {
    Ok(match default {
        Value::Integer(_) => Value::Integer(
            text.trim()
                .parse()
                .with_context(|| format!("{name}: {text:?} is no whole number"))?,
        ),
        Value::Boolean(_) => Value::Boolean(
            text.trim()
                .parse()
                .with_context(|| format!("{name}: {text:?} is not true or false"))?,
        ),
        _ => Value::String(text.to_owned()),
    })
}

fn put(into: &mut Table, section: &str, key: &str, v: Value) {
    let s = into
        .entry(section.to_owned())
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(t) = s {
        t.insert(key.to_owned(), v);
    }
}

/// Layers file, environment and flags over the defaults.
pub(crate) fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    sets: &[String],
) -> Result<Config> {
    let mut table = Table::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("configuration {} can't be read", path.display()))?;
        // The first parse is for the error: it names line and key.
        toml::from_str::<Config>(&text).with_context(|| format!("in {}", path.display()))?;
        table = text
            .parse()
            .with_context(|| format!("in {}", path.display()))?;
    }
    let leaves = leaves()?;
    for (name, text) in env {
        let ours = name.starts_with("RAMSIFT_")
            && !NOT_SETTINGS.contains(&name.as_str())
            && !NOT_OURS.iter().any(|p| name.starts_with(p));
        if !ours {
            continue;
        }
        let found = leaves
            .iter()
            .find(|(s, k, _)| name == format!("RAMSIFT_{s}_{k}").to_ascii_uppercase())
            .ok_or_else(|| {
                anyhow!("{name} in the environment is no setting; see ramsift config")
            })?;
        put(
            &mut table,
            &found.0,
            &found.1,
            typed(&name, &found.2, &text)?,
        );
    }
    for set in sets {
        let (name, text) = set
            .split_once('=')
            .ok_or_else(|| anyhow!("--set {set:?}: expected section.key=value"))?;
        let found = leaves
            .iter()
            .find(|(s, k, _)| name == format!("{s}.{k}"))
            .ok_or_else(|| anyhow!("--set {name}: no such setting; see ramsift config"))?;
        put(&mut table, &found.0, &found.1, typed(name, &found.2, text)?);
    }
    let config: Config = table.try_into().context("configuration")?;
    if !matches!(config.log.format.as_str(), "text" | "json") {
        bail!("log.format {:?}: use text or json", config.log.format);
    }
    Ok(config)
}

/// A URL without its password.
fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let name = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{name}:***@{host}")
        }
        None => url.to_owned(),
    }
}

impl Config {
    /// The same with secrets masked.
    pub(crate) fn masked(&self) -> Self {
        let mut c = self.clone();
        for secret in [&mut c.s3.secret_key, &mut c.s3.access_key] {
            if !secret.is_empty() {
                *secret = "***".into();
            }
        }
        c.queue.url = mask_url(&c.queue.url);
        c.ledger.url = mask_url(&c.ledger.url);
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn each_layer_wins_over_the_one_before() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "[scan]\nchunk_size = 1\noverlap = 1\n[queue]\nprefix = \"f\"\n",
        )
        .expect("write");
        let e = env(&[
            ("RAMSIFT_SCAN_CHUNK_SIZE", "2"),
            ("RAMSIFT_QUEUE_PREFIX", "e"),
            ("HOME", "x"),
        ]);
        let c = load(Some(&file), e, &["queue.prefix=s".into()]).expect("valid");
        assert_eq!(
            (c.scan.chunk_size, c.scan.overlap, c.queue.prefix.as_str()),
            (2, 1, "s")
        );
        assert_eq!(c.worker, Worker::default());
    }

    #[test]
    fn unknown_names_are_errors_everywhere() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[scan]\nchunksize = 1\n").expect("write");
        let e = load(Some(&file), env(&[]), &[]).expect_err("unknown key");
        assert!(format!("{e:#}").contains("chunksize"), "{e:#}");
        let e = load(None, env(&[("RAMSIFT_SCAN_CHUNKSIZE", "1")]), &[]).expect_err("unknown");
        assert!(e.to_string().contains("RAMSIFT_SCAN_CHUNKSIZE"));
        assert!(load(None, env(&[]), &["scan.x=1".into()]).is_err());
        assert!(load(None, env(&[("RAMSIFT_SCAN_OVERLAP", "many")]), &[]).is_err());
    }

    #[test]
    fn services_read_objects_alone_unless_told_otherwise() {
        let c = Config::default();
        let allowed = c.sources.allowed().expect("valid");
        assert!(allowed.check("s3://bucket/key").is_ok());
        assert!(allowed.check("/etc/passwd").is_err());
        let e = env(&[("RAMSIFT_SOURCES_ALLOW", "s3://evidence,/captures")]);
        let c = load(None, e, &[]).expect("valid");
        let allowed = c.sources.allowed().expect("valid");
        assert!(allowed.check("/captures/a.mem").is_ok());
        assert!(allowed.check("s3://other/a.mem").is_err());
        let c = load(None, env(&[]), &["sources.allow=".into()]).expect("valid");
        let e = c.sources.allowed().expect_err("nothing").to_string();
        assert!(e.contains("sources.allow"), "{e}");
    }

    #[test]
    fn secrets_never_show() {
        let mut c = Config::default();
        c.s3.secret_key = "hunter2".into();
        c.queue.url = "amqp://me:hunter2@broker:5672/%2f".into();
        c.ledger.url = "redis://:hunter2@redis:6379".into();
        let shown = toml::to_string(&c.masked()).expect("toml");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("broker:5672"));
    }
}
