//! What users ask of a coordinator.

use crate::args::SubmitArgs;
use crate::config::Config;
use crate::loudest::Loudest;
use crate::progress::{Display, pace};
use crate::services::channel;
use crate::terminal::{Shown, say, tell};
use crate::{CANNOT_RUN, capture, inspect, setup};
use anyhow::{Context, Result, anyhow, bail};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use indicatif::HumanBytes;
use ramsift_auth::{AuthChannel, describe, is_untrusted};
use ramsift_layers::source::{Sources, split_s3_url};
use ramsift_proto::v1::coordinator_client::CoordinatorClient;
use ramsift_proto::v1::{
    CancelRequest, GetJobRequest, JobPhase, JobProgress, JobSpec, JobState, ListJobsRequest,
    RetryRequest, SubmitRequest, SubmitResponse,
};
use ramsift_store::job::read_opt;
use ramsift_store::{Keys, Manifest};
use tracing::Instrument;

type Client = CoordinatorClient<AuthChannel>;

fn client(config: &Config) -> Result<Client> {
    let channel = channel(&config.client, "coordinator.url", &config.coordinator.url)?;
    Ok(CoordinatorClient::new(channel))
}

/// An error of a call, for people.
fn explain(config: &Config, s: &tonic::Status) -> anyhow::Error {
    match s.code() {
        tonic::Code::Unavailable => anyhow!(
            "the coordinator at {} can't be reached ({}); is it running? It is named by \
             coordinator.url",
            config.coordinator.url,
            describe(s)
        ),
        // A service that speaks TLS ends a connection that does not, and can't say why.
        tonic::Code::Unknown | tonic::Code::Internal | tonic::Code::Cancelled
            if config.coordinator.url.reveal().starts_with("http:") =>
        {
            anyhow!(
                "the coordinator at {} ended the connection ({}); if it speaks TLS, write https:// in coordinator.url",
                config.coordinator.url,
                describe(s)
            )
        }
        _ => anyhow!("{}", describe(s)),
    }
}

/// Names begin with their time, so that they sort by age.
fn job_name() -> String {
    let secs = ramsift_store::job::now_micros() / 1_000_000;
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{secs:012}-{}", &random[..8])
}

/// `ramsift submit`
pub(crate) async fn submit(config: &Config, args: SubmitArgs) -> Result<u8> {
    let wait = args.wait;
    let mut worst = 0;
    for job in submit_all(config, args).await? {
        if wait {
            worst = worst.max(watch(config, &job).await?);
        }
    }
    Ok(worst)
}

/// Captures that are looked at and handed in side by side.
const SUBMITS: usize = 16;

/// Looks at a capture and hands its job in. Gives the answer, and what the capture is.
async fn submit_one(
    config: &Config,
    args: &SubmitArgs,
    sources: &Sources,
    mut client: Client,
    rules: &str,
    source: &str,
) -> Result<(SubmitResponse, Option<String>)> {
    let mut spec = setup::spec(config, &args.job, source)?;
    let mut what = None;
    // Evidence that only the services can reach is none of this machine's business.
    if let Ok(opened) = sources.open(source).await {
        what = inspect::line(sources, opened.as_ref(), spec.chunk_size).await;
    }
    spec.job = job_name();
    spec.priority = args.priority;
    spec.clamav = args.clamav;
    rules.clone_into(&mut spec.rules_digest);
    let span = tracing::info_span!("submit", job = spec.job);
    let r = client.submit(SubmitRequest { spec: Some(spec) });
    let taken = r.instrument(span).await;
    let taken = taken.map_err(|s| explain(config, &s))?.into_inner();
    Ok((taken, what))
}

/// Hands jobs in; gives their names.
async fn submit_all(config: &Config, args: SubmitArgs) -> Result<Vec<String>> {
    let sources = Sources::new(config.s3.to_layers()?);
    let allowed = config.sources.allowed()?;
    for local in args.sources.iter().filter(|s| split_s3_url(s).is_none()) {
        // Where every machine has the folder, sources.allow may name it.
        if let Err(e) = allowed.check(local) {
            bail!("{local} is not in S3: workers elsewhere can't read it; use ramsift scan ({e})");
        }
    }
    let found = capture::find(&args.sources, &sources).await?;
    for (name, why) in &found.skipped {
        tell!("skipped {}: {}", Shown(name), Shown(why));
    }
    let objects = setup::store(&config.store.url, &sources).await?;
    let rules = setup::compile_rules(config, objects.as_ref(), &args.job).await?;
    let rules = rules.map(|r| hex::encode(r.digest())).unwrap_or_default();
    let client = client(config)?;
    let mut jobs = Vec::new();
    // Looking at a capture takes a few reads of the store: some are looked at side by side.
    for batch in found.captures.chunks(SUBMITS) {
        let all = batch
            .iter()
            .map(|source| submit_one(config, &args, &sources, client.clone(), &rules, source));
        let mut failed = None;
        for (source, taken) in batch.iter().zip(join_all(all).await) {
            let (taken, what) = match taken {
                Ok(t) => t,
                Err(e) => {
                    failed.get_or_insert(e);
                    continue;
                }
            };
            if let Some(what) = what {
                tell!("{}: {}", Shown(source), Shown(what));
            }
            if !taken.active.is_empty() {
                tell!(
                    "taken by a coordinator that stands by; {} runs jobs and was told",
                    Shown(&taken.active)
                );
            }
            say!("{}  {}", taken.job, Shown(source));
            jobs.push(taken.job);
        }
        // What was handed in beside it has been said.
        if let Some(e) = failed {
            return Err(e);
        }
    }
    Ok(jobs)
}

fn line(p: &JobProgress) -> String {
    let (job, phase, reason) = p.state.as_ref().map_or(("", "", ""), |s| {
        (s.job.as_str(), s.phase().name(), s.reason.as_str())
    });
    let share = if p.bytes_total > 0 {
        format!(
            "{:.0} %",
            p.bytes_done as f64 * 100.0 / p.bytes_total as f64
        )
    } else {
        "-".into()
    };
    let why = if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    };
    Shown(format!(
        "{job:<24} {phase:<18} {share:>6}  {}{why}",
        p.source
    ))
    .to_string()
}

/// Whether the store, and not a coordinator, is to be asked: it is a folder of this machine, or nobody answers.
fn of_store(config: &Config, e: Option<&tonic::Status>) -> bool {
    match e {
        None => split_s3_url(&config.store.url).is_none(),
        Some(e) => e.code() == tonic::Code::Unavailable && !is_untrusted(e),
    }
}

/// Where the jobs of a store stand, by what lies in it.
async fn stored(
    config: &Config,
    only: Option<&str>,
) -> Result<Vec<(JobProgress, Option<Manifest>)>> {
    let objects = setup::existing_store(config).await?;
    let jobs = match only {
        Some(j) => vec![setup::pick_job(objects.as_ref(), Some(j)).await?],
        None => objects.list_folders("jobs/").await?,
    };
    let read_one = |job: String| {
        let objects = objects.clone();
        async move {
            let keys = Keys::new(&job);
            let state = read_opt::<JobState>(objects.as_ref(), &keys.state())
                .await?
                .map(|s| s.0);
            let manifest = read_opt::<Manifest>(objects.as_ref(), &keys.manifest())
                .await?
                .map(|m| m.0);
            let spec = read_opt::<JobSpec>(objects.as_ref(), &keys.spec())
                .await?
                .map(|s| s.0);
            let bytes = manifest.as_ref().map_or(0, |m| m.evidence_bytes);
            let p = JobProgress {
                state: Some(state.unwrap_or_else(|| JobState {
                    job: job.clone(),
                    ..JobState::default()
                })),
                source: spec.map(|s| s.source).unwrap_or_default(),
                bytes_done: bytes,
                bytes_total: bytes,
                ..JobProgress::default()
            };
            anyhow::Ok((p, manifest))
        }
    };
    futures::stream::iter(jobs)
        .map(read_one)
        .buffered(32)
        .try_collect()
        .await
}

/// `ramsift jobs`
pub(crate) async fn jobs(config: &Config) -> Result<u8> {
    if !of_store(config, None) {
        match client(config)?.list_jobs(ListJobsRequest {}).await {
            Ok(r) => {
                for p in r.into_inner().jobs {
                    say!("{}", line(&p));
                }
                return Ok(0);
            }
            Err(e) if of_store(config, Some(&e)) => {
                tell!(
                    "{}; this is what the store says",
                    Shown(explain(config, &e).to_string())
                );
            }
            Err(e) => return Err(explain(config, &e)),
        }
    }
    for (p, m) in stored(config, None).await? {
        let gaps = m.map_or(0, |m| m.gaps.len());
        let gaps = if gaps > 0 {
            format!("  {gaps} gaps")
        } else {
            String::new()
        };
        say!("{}{gaps}", line(&p));
    }
    Ok(0)
}

/// Gaps that `status` names.
const GAPS: usize = 20;

/// Where a job of the store stands.
async fn stored_status(config: &Config, job: &str) -> Result<u8> {
    for (p, m) in stored(config, Some(job)).await? {
        say!("{}", line(&p));
        let Some(m) = m else {
            say!("  not sealed; ramsift scan or a coordinator goes on with it");
            continue;
        };
        say!("  {} in {}", HumanBytes(m.image_bytes), m.format);
        say!("  {}", m.verdict);
        for g in m.gaps.iter().take(GAPS) {
            say!("  gap: {}", Shown(g));
        }
        if m.gaps.len() > GAPS {
            say!(
                "  and {} more gaps, in the coverage table",
                m.gaps.len() - GAPS
            );
        }
    }
    Ok(0)
}

/// `ramsift status`
pub(crate) async fn status(config: &Config, job: &str) -> Result<u8> {
    if of_store(config, None) {
        return stored_status(config, job).await;
    }
    let request = GetJobRequest {
        job: job.to_owned(),
    };
    let p = match client(config)?.get_job(request).await {
        Ok(p) => p.into_inner(),
        Err(e) if of_store(config, Some(&e)) => {
            tell!(
                "{}; this is what the store says",
                Shown(explain(config, &e).to_string())
            );
            return stored_status(config, job).await;
        }
        Err(e) => return Err(explain(config, &e)),
    };
    say!("{}", line(&p));
    say!(
        "  {} of {} in {} of {} tasks, {} failed",
        HumanBytes(p.bytes_done),
        HumanBytes(p.bytes_total),
        p.tasks_done,
        p.tasks_total,
        p.tasks_failed
    );
    if !p.stage.is_empty() {
        say!("  stage: {}, {}", Shown(&p.stage), pace(&p));
    }
    for w in &p.waits_for {
        say!("  waits: {}", Shown(w));
    }
    if p.state.as_ref().is_some_and(|s| !s.phase().is_final()) {
        let objects = setup::existing_store(config).await.ok();
        for line in Loudest::new(objects, job).all().await {
            say!("  {line}");
        }
    }
    Ok(0)
}

/// `ramsift watch`
pub(crate) async fn watch(config: &Config, job: &str) -> Result<u8> {
    let request = GetJobRequest {
        job: job.to_owned(),
    };
    let mut stream = client(config)?
        .watch(request)
        .await
        .map_err(|s| explain(config, &s))?
        .into_inner();
    let mut display = Display::new(job, false);
    let mut last = None;
    let mut loudest = Loudest::new(setup::existing_store(config).await.ok(), job);
    while let Some(p) = stream.message().await.map_err(|s| explain(config, &s))? {
        display.show(&p);
        if p.state.as_ref().is_some_and(|s| !s.phase().is_final()) {
            for line in loudest.news().await {
                display.note(&line);
            }
        }
        last = p.state;
    }
    display.end();
    let state = last.context("the coordinator ended before the job did; watch again")?;
    let why = if state.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", state.reason)
    };
    say!("{job}: {}{}", state.phase().name(), Shown(why));
    Ok(match state.phase() {
        JobPhase::Complete => 0,
        JobPhase::CompleteWithGaps => crate::scan::GAPS,
        _ => CANNOT_RUN,
    })
}

/// `ramsift retry`
pub(crate) async fn retry(config: &Config, job: &str) -> Result<u8> {
    if of_store(config, None) {
        bail!(
            "{} is a folder of this machine, where no coordinator runs jobs: ramsift scan with the same capture and options goes on with \
             a job that failed",
            config.store.url
        );
    }
    let request = RetryRequest {
        job: job.to_owned(),
    };
    let r = client(config)?.retry(request).await;
    let taken = r.map_err(|s| explain(config, &s))?.into_inner();
    if !taken.active.is_empty() {
        tell!(
            "taken by a coordinator that stands by; {} runs jobs and was told",
            Shown(&taken.active)
        );
    }
    say!("{job}: runs again; what it had settled stays");
    Ok(0)
}

/// `ramsift cancel`
pub(crate) async fn cancel(config: &Config, job: &str, reason: &str) -> Result<u8> {
    let request = CancelRequest {
        job: job.to_owned(),
        reason: reason.to_owned(),
    };
    client(config)?
        .cancel(request)
        .await
        .map_err(|s| explain(config, &s))?;
    say!("{job}: will be cancelled");
    Ok(0)
}
