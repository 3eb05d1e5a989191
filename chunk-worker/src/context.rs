//! What a worker keeps of a job: its plan, its evidence, its carvers and rules. Read once per job.

use crate::{Config, Deps};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_engines::yara::RuleSet;
use ramsift_layers::source::{SourceError, Sources};
use ramsift_layers::{ByteSource, ImageReader, RunMap};
use ramsift_store::image;
use ramsift_store::job::{self, rules_key};
use ramsift_store::{Keys, Objects, Plan, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Carvers of what is shorter than a few pages and has no structure that tells where it ends.
const LINE_CARVERS: &[&str] = &["log", "url", "domain", "email", "ip"];
/// Jobs kept in memory at a time.
const JOBS: usize = 32;
/// Rule sets kept in memory at a time.
const RULE_SETS: usize = 4;

/// Why a job's context could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The evidence.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no plan in this store.
    #[error("{0}")]
    NoPlan(String),
    /// The plan asks for something that this version can't do.
    #[error("{0}")]
    Unusable(String),
}

impl ContextError {
    /// Whether every job would meet it.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Store(e) => !e.is_content(),
            Self::Source(e) => !e.is_fatal() && !e.is_content(),
            Self::NoPlan(_) | Self::Unusable(_) => false,
        }
    }
}

/// What a worker keeps of a job.
#[derive(Debug)]
pub struct JobContext {
    /// The plan.
    pub plan: Plan,
    /// Names of its objects.
    pub keys: Keys,
    /// The evidence, pinned, as it is stored.
    pub source: Arc<dyn ByteSource>,
    /// The image that it stands for, with its page files.
    pub image: ImageReader,
    /// The runs of the image, and those of its page files behind them: lists of processes' memory count in these.
    pub paged_runs: RunMap,
    /// The carvers that the plan asks for.
    pub carvers: CarverSet,
    /// Those of them that look for lines, names and addresses; they run over pages in their order, too.
    pub line_carvers: Option<CarverSet>,
    /// The rules that the plan asks for.
    pub rules: Option<RuleSet>,
}

type Slot<T> = Arc<OnceCell<Arc<T>>>;

/// Contexts of recent jobs.
#[derive(Debug)]
pub struct JobCache {
    objects: Arc<dyn Objects>,
    sources: Sources,
    max_artifact: usize,
    jobs: Mutex<BTreeMap<String, Slot<JobContext>>>,
    rules: Mutex<BTreeMap<String, Slot<RuleSet>>>,
}

fn slot<T>(map: &Mutex<BTreeMap<String, Slot<T>>>, key: &str, cap: usize) -> Slot<T> {
    let mut m = map.lock().unwrap_or_else(PoisonError::into_inner);
    if !m.contains_key(key) && m.len() >= cap {
        // Names begin with their time: the first is the oldest.
        m.pop_first();
    }
    m.entry(key.to_owned()).or_default().clone()
}

impl JobCache {
    /// An empty cache.
    pub fn new(config: &Config, deps: &Deps) -> Self {
        Self {
            objects: deps.objects.clone(),
            sources: deps.sources.clone(),
            max_artifact: config.max_artifact,
            jobs: Mutex::default(),
            rules: Mutex::default(),
        }
    }

    /// The context of a job.
    pub async fn get(&self, job: &str) -> Result<Arc<JobContext>, ContextError> {
        let slot = slot(&self.jobs, job, JOBS);
        slot.get_or_try_init(|| async { self.load(job).await.map(Arc::new) })
            .await
            .cloned()
    }

    async fn load(&self, job: &str) -> Result<JobContext, ContextError> {
        let keys = Keys::new(job);
        let found = job::read_opt::<Plan>(self.objects.as_ref(), &keys.plan()).await?;
        let Some((plan, _)) = found else {
            let at = self.objects.url(&keys.plan());
            return Err(ContextError::NoPlan(format!("{at} does not exist")));
        };
        let source = self.sources.open_pinned(&plan.pin).await?;
        let image = image::reader(&self.objects, &keys, &plan, source.clone()).await?;
        let files = self
            .sources
            .open_page_files(&plan.layout.page_files)
            .await?;
        let image = image.with_page_files(files);
        let paged_runs = plan.layout.paged_runs(image.paged_bytes().len());
        let options = carver_options(&plan, self.max_artifact)?;
        let unusable = |e: ramsift_carvers::CarverError| ContextError::Unusable(e.to_string());
        let carvers = CarverSet::new(options.clone()).map_err(unusable)?;
        let lines = carvers
            .names()
            .into_iter()
            .filter(|n| LINE_CARVERS.contains(n));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        let line_carvers = (!lines.is_empty())
            .then(|| {
                CarverSet::new(CarverOptions {
                    only: Some(lines),
                    ..options
                })
            })
            .transpose()
            .map_err(unusable)?;
        let rules = match plan.spec.rules_digest.as_str() {
            "" => None,
            digest => Some(self.rules(digest).await?),
        };
        Ok(JobContext {
            plan,
            keys,
            source,
            image,
            paged_runs,
            carvers,
            line_carvers,
            rules,
        })
    }

    async fn rules(&self, digest: &str) -> Result<RuleSet, ContextError> {
        let slot = slot(&self.rules, digest, RULE_SETS);
        let load = || async {
            let (data, _) = self
                .objects
                .get(&rules_key(digest))
                .await
                .map_err(StoreError::from)?;
            let parsed = tokio::task::spawn_blocking(move || RuleSet::from_bytes(&data)).await;
            match parsed {
                Ok(Ok(set)) => Ok(Arc::new(set)),
                Ok(Err(e)) => Err(ContextError::Unusable(e.to_string())),
                Err(e) => Err(ContextError::Unusable(format!("loading the rules: {e}"))),
            }
        };
        slot.get_or_try_init(load).await.map(|r| RuleSet::clone(r))
    }
}

/// The carver options that a plan asks for.
pub(crate) fn carver_options(plan: &Plan, max: usize) -> Result<CarverOptions, ContextError> {
    let timezone = match plan.spec.timezone.as_str() {
        "" => None,
        tz => Some(parse_timezone(tz).map_err(ContextError::Unusable)?),
    };
    let only = (!plan.spec.carvers.is_empty()).then(|| plan.spec.carvers.clone());
    Ok(CarverOptions {
        timezone,
        reference_time: plan.reference_time.clone(),
        max_artifact: max,
        only,
    })
}

/// An IANA name (`Europe/Berlin`) or a fixed offset (`+02:00`).
pub fn parse_timezone(s: &str) -> Result<jiff::tz::TimeZone, String> {
    if s.eq_ignore_ascii_case("utc") {
        return Ok(jiff::tz::TimeZone::UTC);
    }
    let bad = || {
        format!(
            "{s:?} is no time zone: use UTC, an offset like +02:00 or a name like Europe/Berlin"
        )
    };
    if let Some(sign) = s.strip_prefix(['+', '-']) {
        let (h, m) = sign.split_once(':').unwrap_or((sign, "0"));
        let (h, m): (i32, i32) = (h.parse().map_err(|_| bad())?, m.parse().map_err(|_| bad())?);
        let seconds = (h * 60 + m) * 60 * if s.starts_with('-') { -1 } else { 1 };
        let offset = jiff::tz::Offset::from_seconds(seconds).map_err(|_| bad())?;
        return Ok(jiff::tz::TimeZone::fixed(offset));
    }
    jiff::tz::TimeZone::get(s).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_zones_by_offset_and_name() {
        for ok in [
            "UTC",
            "+02:00",
            "-0730".get(..3).unwrap_or("-07"),
            "Europe/Berlin",
        ] {
            assert!(parse_timezone(ok).is_ok(), "{ok}");
        }
        assert!(
            parse_timezone("Mars/Olympus")
                .expect_err("none")
                .contains("Mars")
        );
    }
}
