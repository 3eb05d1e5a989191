//! Configuration: defaults < file < environment < flags. Unknown keys are errors.
//!
//! A setting `section.key` is named `RAMSIFT_SECTION_KEY` in the environment and
//! `--set section.key=value` on the command line.

use anyhow::{Context, Result, anyhow, bail};
use ramsift_auth::{ClientSettings, ServerSettings};
use ramsift_layers::container::Limits;
use ramsift_layers::source::{Allowed, SignPayloads};
use ramsift_mask::MaskedUrl;
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
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) clamd: Clamd,
    pub(crate) scan: Scan,
    pub(crate) unpack: Unpack,
    pub(crate) coordinator: Coordinator,
    pub(crate) aggregator: Aggregator,
    pub(crate) worker: Worker,
    pub(crate) symbols: Symbols,
    pub(crate) rules: Rules,
    pub(crate) artifacts: Artifacts,
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
    pub(crate) endpoint: MaskedUrl,
    pub(crate) region: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) path_style: bool,
    /// Profile of the shared configuration and credentials files; empty: `AWS_PROFILE`, else `default`.
    pub(crate) profile: String,
    /// Requests are not signed: for buckets that everybody may read.
    pub(crate) anonymous: bool,
    /// Whoever reads pays for it.
    pub(crate) requester_pays: bool,
    /// PEM file of authorities for `https://`, beside those of the system; empty: these alone.
    pub(crate) ca_file: String,
    /// File with the key of objects that are encrypted with one of their owner (SSE-C): 32 bytes, or these in base64.
    pub(crate) sse_c_key_file: String,
    /// TOML file of buckets that are reached otherwise: a table for each, with keys of this section.
    pub(crate) buckets_file: String,
    pub(crate) sign_payloads: SignPayloads,
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
    pub(crate) url: MaskedUrl,
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
        file(&self.ca_file)
    }
}

/// The file that a setting names; empty: none.
fn file(path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| path.into())
}

/// Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ledger {
    pub(crate) url: MaskedUrl,
    pub(crate) prefix: String,
    /// PEM file of authorities for `rediss://`; empty: those of the system.
    pub(crate) ca_file: String,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            prefix: "ramsift".into(),
            ca_file: String::new(),
        }
    }
}

impl Ledger {
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        file(&self.ca_file)
    }
}

/// What coordinators and aggregators show to who calls them, and ask of them. All empty: they listen on loopback alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// PEM file of the service's certificate.
    pub(crate) cert_file: String,
    /// PEM file of its key.
    pub(crate) key_file: String,
    /// PEM file of the authorities that sign the certificates of callers.
    pub(crate) client_ca_file: String,
    /// Files of the tokens that callers may send, separated by commas.
    pub(crate) token_file: String,
    /// Listen for other machines without TLS, or without knowing who calls (`--insecure`).
    pub(crate) insecure: bool,
}

impl Server {
    pub(crate) fn settings(&self) -> ServerSettings {
        let tokens = self.token_file.split(',').map(str::trim);
        ServerSettings {
            cert_file: file(&self.cert_file),
            key_file: file(&self.key_file),
            client_ca_file: file(&self.client_ca_file),
            token_files: tokens.filter_map(file).collect(),
            insecure: self.insecure,
        }
    }
}

/// What this program shows to coordinators and aggregators, and whom it trusts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Client {
    /// PEM file of the authorities that sign the services' certificates; empty: those of the system.
    pub(crate) ca_file: String,
    /// PEM file of its own certificate.
    pub(crate) cert_file: String,
    /// PEM file of its key.
    pub(crate) key_file: String,
    /// File whose first token it sends.
    pub(crate) token_file: String,
    /// Send the token over plain HTTP to other machines too (`--insecure`).
    pub(crate) insecure: bool,
}

impl Client {
    pub(crate) fn settings(&self) -> ClientSettings {
        ClientSettings {
            ca_file: file(&self.ca_file),
            cert_file: file(&self.cert_file),
            key_file: file(&self.key_file),
            token_file: file(&self.token_file),
            insecure: self.insecure,
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
    /// Page files of the captured system; empty: those beside the capture.
    pub(crate) page_files: Vec<String>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            chunk_size: 64 << 20,
            overlap: 1 << 20,
            page_files: Vec::new(),
        }
    }
}

/// What unpacking a compressed capture, or one in an archive, may cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Unpack {
    /// Bytes of the capture at most, zeros among them.
    pub(crate) bytes: u64,
    /// Bytes of it that are no zeros, for each byte of the container, at most.
    pub(crate) ratio: u64,
}

impl Default for Unpack {
    fn default() -> Self {
        let l = Limits::default();
        Self {
            bytes: l.bytes,
            ratio: l.ratio,
        }
    }
}

impl Unpack {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            bytes: self.bytes,
            ratio: self.ratio,
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
    pub(crate) url: MaskedUrl,
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
            listen: "127.0.0.1:7400".into(),
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
    pub(crate) url: MaskedUrl,
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
            listen: "127.0.0.1:7401".into(),
            url: "http://127.0.0.1:7401".into(),
            commit_bytes: 64 << 20,
            commit_milliseconds: 1000,
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

/// Artifacts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Artifacts {
    /// Those that are copied into the store although the capture has them: kinds with commas between them, or `all`;
    /// empty: none.
    pub(crate) copy: String,
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
    /// Servers that are asked for symbol files of Windows kernels that neither the program nor the store has; empty: none.
    pub(crate) servers: Vec<String>,
}

/// `/livez` and `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    /// Empty: loopback, at a port of the service's own (7480 to 7483), or at any where that is taken.
    pub(crate) listen: String,
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
        toml::from_str::<Config>(&text).map_err(|e| unreadable(path, &text, &e))?;
        table = text.parse().map_err(|e| unreadable(path, &text, &e))?;
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

/// Where a file is wrong, without the line itself, which may hold a password.
fn unreadable(path: &Path, text: &str, e: &toml::de::Error) -> anyhow::Error {
    let at = e.span().and_then(|s| text.get(..s.start));
    let line = at.map_or(0, |before| before.matches('\n').count()) + 1;
    anyhow!("in {} at line {line}: {}", path.display(), e.message())
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
        // The other URLs mask themselves.
        for place in [&mut c.store.url, &mut c.symbols.store] {
            if place.contains("://") {
                *place = MaskedUrl::from(place.as_str()).to_string();
            }
        }
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
        c.s3.endpoint = "https://me:hunter2@s3:9000".into();
        c.coordinator.url = "https://hunter2@coordinator:7400/?token=hunter2".into();
        c.aggregator.url = "https://me:hunter2@aggregator:7401".into();
        c.store.url = "s3://bucket/prefix?signature=hunter2".into();
        let shown = toml::to_string(&c.masked()).expect("toml");
        assert!(!shown.contains("hunter2"), "{shown}");
        for place in [
            "broker:5672",
            "redis:6379",
            "s3:9000",
            "coordinator:7400",
            "aggregator:7401",
        ] {
            assert!(shown.contains(place), "{place}: {shown}");
        }
        let debug = format!("{:?}", c.masked());
        assert!(!debug.contains("hunter2"), "{debug}");
    }

    #[test]
    fn errors_of_a_file_name_the_line_and_do_not_quote_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("c.toml");
        for text in [
            "[queue]\nurl = \"amqp://me:hunter2@broker\" oops\n",
            "[queue]\nurl = \"amqp://me:hunter2@broker\nprefix = 1\n",
        ] {
            std::fs::write(&file, text).expect("write");
            let e = load(Some(&file), env(&[]), &[]).expect_err("no TOML");
            let said = format!("{e:#}");
            assert!(
                said.contains("at line 2") && !said.contains("hunter2"),
                "{said}"
            );
        }
    }

    #[test]
    fn listeners_are_of_this_machine_unless_told_otherwise() {
        let c = Config::default();
        for listen in [&c.coordinator.listen, &c.aggregator.listen] {
            let at: std::net::SocketAddr = listen.parse().expect("an address");
            assert!(at.ip().is_loopback(), "{listen}");
        }
        let e = env(&[
            ("RAMSIFT_SERVER_TOKEN_FILE", "/a, /b"),
            ("RAMSIFT_SERVER_INSECURE", "true"),
        ]);
        let c = load(None, e, &[]).expect("valid").server.settings();
        assert_eq!(c.token_files, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(c.insecure && c.cert_file.is_none());
    }
}
