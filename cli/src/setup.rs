//! Puts the parts together: stores, sources, rules, clamd, and the seams between services.

use crate::args::{AvScope, JobArgs, Only};
use crate::config::Config;
use crate::terminal::{Shown, tell};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use ramsift_aggregator::{Aggregator, FinaliseInfo, finalise};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_coordinator::{Finaliser, SpecCheck, VerdictPlanner};
use ramsift_engines::clamav::{Clamd, ClamdOptions};
use ramsift_engines::yara::{
    External, RuleSet, load_rules, load_rules_cached, parse_define, plan_verdicts,
};
use ramsift_layers::source::{DiskCaches, DiskLimits, Sources, split_s3_url};
use ramsift_proto::Deployment;
use ramsift_proto::v1::{JobSpec, Label, RuleCount};
use ramsift_store::job::{now_micros, rules_key};
use ramsift_store::query::QueryLimits;
use ramsift_store::{LocalObjects, Objects, Plan, S3Objects};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Opens a store for writing.
pub(crate) async fn store(url: &str, sources: &Sources) -> Result<Arc<dyn Objects>> {
    Ok(match split_s3_url(url) {
        Some((bucket, prefix)) => {
            Arc::new(S3Objects::new(sources.s3(bucket).await, bucket, prefix)) as Arc<dyn Objects>
        }
        None => Arc::new(LocalObjects::open(Path::new(url)).context("results store")?),
    })
}

/// Opens a store that must exist, for reading.
pub(crate) async fn existing_store(config: &Config) -> Result<Arc<dyn Objects>> {
    let sources = Sources::new(config.s3.to_layers()?);
    if split_s3_url(&config.store.url).is_some() {
        return store(&config.store.url, &sources).await;
    }
    let o = LocalObjects::open_existing(Path::new(&config.store.url))
        .with_context(|| "no results there; name the store with --store")?;
    Ok(Arc::new(o))
}

/// The job that the user means: the one named, the one whose name begins so, else the only one there is.
pub(crate) async fn pick_job(objects: &dyn Objects, job: Option<&str>) -> Result<String> {
    let jobs = objects.list_folders("jobs/").await?;
    let names: Vec<&str> = jobs.iter().map(String::as_str).collect();
    match job {
        Some(j) if names.contains(&j) => Ok(j.to_owned()),
        Some(j) => {
            let found: Vec<_> = names.iter().filter(|x| x.starts_with(j)).collect();
            match found.as_slice() {
                [one] => Ok((**one).to_owned()),
                [] => Err(crate::suggest::unknown("job", j, &names)
                    .context(format!("in {}", objects.url("")))),
                several => bail!(
                    "{} jobs begin with {j}, among them {}; give more of the name",
                    several.len(),
                    several
                        .iter()
                        .take(10)
                        .map(|s| **s)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }
        }
        None => match names.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => bail!("there is no job in {}", objects.url("")),
            _ => bail!(
                "which job? There are {}, among them {}; name one, or the beginning of its name \
                 (ramsift jobs lists all)",
                names.len(),
                names
                    .iter()
                    .take(10)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        },
    }
}

/// Compiles rules and stores the set. Returns it; what can't be compiled is printed.
pub(crate) async fn compile_rules(
    config: &Config,
    objects: &dyn Objects,
    args: &JobArgs,
) -> Result<Option<RuleSet>> {
    if args.rules.is_empty() {
        return Ok(None);
    }
    let paths = args.rules.clone();
    let defined = defines(&args.define)?;
    let cache = config.rules.folder();
    let load = move || match cache {
        Some(folder) => load_rules_cached(&paths, defined, &folder),
        None => load_rules(&paths, defined),
    };
    let set = tokio::task::spawn_blocking(load).await??;
    for w in set.warnings() {
        tell!("rule taken as YARA 4 did: {}", Shown(w.to_string()));
    }
    for e in set.errors() {
        tell!("rule left out: {}", Shown(e.to_string()));
    }
    if set.rules().is_empty() {
        bail!("none of the rules can be used");
    }
    let key = rules_key(&hex::encode(set.digest()));
    if objects.head(&key).await.is_err() {
        objects.put(&key, set.to_bytes().into()).await?;
    }
    Ok(Some(set))
}

/// External variables as the user writes them.
pub(crate) fn defines(all: &[String]) -> Result<Vec<(String, External)>> {
    let one = |d: &String| parse_define(d).map_err(|e| anyhow::anyhow!("--define {e}"));
    all.iter().map(one).collect()
}

/// Connects to clamd where one is named.
pub(crate) async fn clamd(address: &str) -> Result<Option<Clamd>> {
    if address.is_empty() {
        return Ok(None);
    }
    let c = Clamd::connect(address, ClamdOptions::default())
        .await
        .with_context(|| {
            format!("clamd at {address}; start it, or leave --clamd out to scan without")
        })?;
    Ok(Some(c))
}

fn user() -> String {
    ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(|k| std::env::var(k).ok().filter(|v| !v.is_empty()))
        .unwrap_or_else(|| "unknown".into())
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|s| s.trim().to_owned())
        .unwrap_or_else(|_| "unknown".into())
}

/// What the user asks for, as it is stored.
pub(crate) fn spec(config: &Config, args: &JobArgs, source: &str) -> Result<JobSpec> {
    if let Some(tz) = &args.timezone {
        ramsift_chunk_worker::parse_timezone(tz).map_err(anyhow::Error::msg)?;
    }
    if !args.carvers.is_empty() {
        CarverSet::new(CarverOptions {
            only: Some(args.carvers.clone()),
            ..CarverOptions::default()
        })?;
    }
    let labels = args
        .label
        .iter()
        .map(|l| match l.split_once('=') {
            Some((k, v)) => Ok(Label {
                key: k.into(),
                value: v.into(),
            }),
            None => bail!("--label {l:?}: expected key=value"),
        })
        .collect::<Result<_>>()?;
    Ok(JobSpec {
        source: source.to_owned(),
        structured: args.only != Some(Only::Unstructured),
        unstructured: args.only != Some(Only::Structured),
        chunk_size: config.scan.chunk_size,
        overlap: config.scan.overlap,
        page_files: config.scan.page_files.clone(),
        timezone: args.timezone.clone().unwrap_or_default(),
        carvers: args.carvers.clone(),
        hash: args.hash.clone().unwrap_or_default(),
        expect_hash: args.expect_hash.clone().unwrap_or_default(),
        case_name: args.case_name.clone().unwrap_or_default(),
        evidence: args.evidence.clone().unwrap_or_default(),
        examiner: args.examiner.clone().unwrap_or_default(),
        labels,
        user: user(),
        host: host(),
        submitted_micros: now_micros(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        copy_artifacts: {
            let own = args.copy_artifacts.as_deref();
            crate::artifacts::copies(own.unwrap_or(&config.artifacts.copy))?
        },
        matches: Some(args.matches.clone())
            .filter(|m| m == "all")
            .unwrap_or_default(),
        av: match args.av {
            AvScope::Files => "files",
            AvScope::Memory => "memory",
            AvScope::Both => "both",
        }
        .to_owned(),
        ..JobSpec::default()
    })
}

/// The rule engine's grouping, for the coordinator.
#[derive(Debug)]
pub(crate) struct YaraVerdicts;

impl VerdictPlanner for YaraVerdicts {
    fn groups(
        &self,
        rules: &[u8],
        matched: &[RuleCount],
    ) -> Result<Vec<serde_json::Value>, String> {
        let set = RuleSet::from_bytes(rules).map_err(|e| e.to_string())?;
        let matched: Vec<(u32, u64)> = matched.iter().map(|c| (c.rule, c.count)).collect();
        plan_verdicts(&set, &matched)
            .iter()
            .map(|g| serde_json::to_value(g).map_err(|e| e.to_string()))
            .collect()
    }
}

/// What jobs may ask of carvers and rule engine, for the coordinator.
#[derive(Debug)]
pub(crate) struct Specs;

impl SpecCheck for Specs {
    fn spec(&self, spec: &JobSpec) -> Result<(), String> {
        if !spec.timezone.is_empty() {
            ramsift_chunk_worker::parse_timezone(&spec.timezone)?;
        }
        if !spec.carvers.is_empty() {
            let only = Some(spec.carvers.clone());
            let options = CarverOptions {
                only,
                ..CarverOptions::default()
            };
            CarverSet::new(options).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn rules(&self, rules: &[u8]) -> Result<(), String> {
        RuleSet::from_bytes(rules)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }
}

/// Seals jobs in this process.
#[derive(Debug)]
pub(crate) struct LocalFinaliser {
    pub(crate) aggregator: Aggregator,
    pub(crate) info: FinaliseInfo,
}

#[async_trait]
impl Finaliser for LocalFinaliser {
    async fn finalise(&self, job: &str) -> Result<bool, (String, bool)> {
        finalise(&self.aggregator, job, &self.info)
            .await
            .map(|m| m.verdict != "complete")
            .map_err(|e| (e.to_string(), e.is_fatal()))
    }
}

fn carvers_digest(plan: &Plan) -> String {
    let timezone = ramsift_chunk_worker::parse_timezone(&plan.spec.timezone).ok();
    let only = (!plan.spec.carvers.is_empty()).then(|| plan.spec.carvers.clone());
    let options = CarverOptions {
        timezone: timezone.filter(|_| !plan.spec.timezone.is_empty()),
        reference_time: plan.reference_time.clone(),
        only,
        ..CarverOptions::default()
    };
    CarverSet::new(options)
        .map(|s| hex::encode(s.digest()))
        .unwrap_or_default()
}

/// A folder for temporary files, by the setting that names it.
pub(crate) fn temporary(setting: &str) -> PathBuf {
    match setting {
        "" => std::env::temp_dir(),
        dir => dir.into(),
    }
}

/// Where workers keep objects on disk; the workers of one process share it.
pub(crate) fn disk(config: &Config) -> Arc<DiskCaches> {
    Arc::new(DiskCaches::new(DiskLimits {
        bytes: config.worker.disk_cache_bytes,
        folder: temporary(&config.worker.spill),
    }))
}

/// Settings of the structured worker that has this name.
pub(crate) async fn structured(
    config: &Config,
    name: String,
    deployment: Deployment,
    disk: Arc<DiskCaches>,
) -> Result<ramsift_structured_worker::Config> {
    Ok(ramsift_structured_worker::Config {
        name,
        slots: usize::try_from(config.worker.view_slots)
            .unwrap_or(usize::MAX)
            .max(1),
        means: crate::symbols::means(config).await?,
        disk,
        deployment,
        patience: deployment.patience(Duration::from_secs(config.worker.patience_seconds)),
        grace: deployment.grace(Duration::from_secs(config.worker.grace_seconds)),
    })
}

/// What the manifest says of this program.
pub(crate) fn finalise_info(config: &Config, clamd: Option<&Clamd>) -> Result<FinaliseInfo> {
    let set = CarverSet::new(CarverOptions::default())?;
    let carvers = set
        .names()
        .into_iter()
        .map(|n| (n.to_owned(), set.carver_version(n)))
        .collect();
    Ok(FinaliseInfo {
        carvers,
        carvers_digest,
        clamav: clamd.map(|c| {
            let v = c.version();
            format!(
                "{} / {}",
                v.engine,
                v.database.as_deref().unwrap_or("no database version")
            )
        }),
        limits: QueryLimits {
            memory: usize::try_from(config.aggregator.sort_bytes).unwrap_or(usize::MAX),
            spill: temporary(&config.aggregator.spill),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        },
    })
}
