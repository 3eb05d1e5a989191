//! What users ask of a coordinator.

use crate::args::SubmitArgs;
use crate::config::Config;
use crate::progress::Display;
use crate::services::channel;
use crate::{CANNOT_RUN, capture, glue};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanBytes;
use ramsift_layers::source::{Sources, split_s3_url};
use ramsift_proto::v1::coordinator_client::CoordinatorClient;
use ramsift_proto::v1::{
    CancelRequest, GetJobRequest, JobPhase, JobProgress, ListJobsRequest, SubmitRequest,
};
use tonic::transport::Channel;

fn client(config: &Config) -> Result<CoordinatorClient<Channel>> {
    Ok(CoordinatorClient::new(channel(
        "coordinator.url",
        &config.coordinator.url,
    )?))
}

/// An error of a call, for people.
fn explain(config: &Config, s: &tonic::Status) -> anyhow::Error {
    match s.code() {
        tonic::Code::Unavailable => anyhow!(
            "the coordinator at {} can't be reached ({}); is it running? It is named by \
             coordinator.url",
            config.coordinator.url,
            s.message()
        ),
        _ => anyhow!("{}", s.message()),
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
    let sources = Sources::new(config.s3.to_layers());
    if let Some(local) = args.sources.iter().find(|s| split_s3_url(s).is_none()) {
        bail!("{local} is not in S3: workers elsewhere can't read it; use ramsift scan");
    }
    let found = capture::find(&args.sources, &sources).await?;
    for (name, why) in &found.skipped {
        eprintln!("skipped {name}: {why}");
    }
    let objects = glue::store(&config.store.url, &sources).await?;
    let rules = glue::compile_rules(objects.as_ref(), &args.job).await?;
    let mut client = client(config)?;
    let mut jobs = Vec::new();
    for source in found.captures {
        let mut spec = glue::spec(config, &args.job, &source)?;
        spec.job = job_name();
        spec.priority = args.priority;
        spec.clamav = args.clamav;
        spec.rules_digest = rules
            .as_ref()
            .map(|r| hex::encode(r.digest()))
            .unwrap_or_default();
        let r = client.submit(SubmitRequest { spec: Some(spec) }).await;
        let job = r.map_err(|s| explain(config, &s))?.into_inner().job;
        println!("{job}  {source}");
        jobs.push(job);
    }
    let mut worst = 0;
    if args.wait {
        for job in jobs {
            worst = worst.max(watch(config, &job).await?);
        }
    }
    Ok(worst)
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
    format!("{job:<24} {phase:<18} {share:>6}  {}{why}", p.source)
}

/// `ramsift jobs`
pub(crate) async fn jobs(config: &Config) -> Result<u8> {
    let r = client(config)?
        .list_jobs(ListJobsRequest {})
        .await
        .map_err(|s| explain(config, &s))?;
    for p in r.into_inner().jobs {
        println!("{}", line(&p));
    }
    Ok(0)
}

/// `ramsift status`
pub(crate) async fn status(config: &Config, job: &str) -> Result<u8> {
    let request = GetJobRequest {
        job: job.to_owned(),
    };
    let p = client(config)?
        .get_job(request)
        .await
        .map_err(|s| explain(config, &s))?
        .into_inner();
    println!("{}", line(&p));
    println!(
        "  {} of {} in {} of {} tasks, {} failed",
        HumanBytes(p.bytes_done),
        HumanBytes(p.bytes_total),
        p.tasks_done,
        p.tasks_total,
        p.tasks_failed
    );
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
    let mut display = Display::new(job);
    let mut last = None;
    while let Some(p) = stream.message().await.map_err(|s| explain(config, &s))? {
        display.show(&p);
        last = p.state;
    }
    display.end();
    let state = last.context("the coordinator ended before the job did; watch again")?;
    let why = if state.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", state.reason)
    };
    println!("{job}: {}{why}", state.phase().name());
    Ok(match state.phase() {
        JobPhase::Complete => 0,
        JobPhase::CompleteWithGaps => crate::scan::GAPS,
        _ => CANNOT_RUN,
    })
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
    println!("{job}: will be cancelled");
    Ok(0)
}
