//! `ramsift scan`: captures in, findings out, in this process.

use crate::args::ScanArgs;
use crate::config::Config;
use crate::embedded::{self, Embedded};
use crate::progress::Display;
use crate::terminal::{Shown, tell};
use crate::{CANNOT_RUN, capture, inspect, setup, summary};
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use ramsift_layers::source::Sources;
use ramsift_layers::{Severity, SourcePin};
use ramsift_proto::v1::{JobPhase, JobSpec, JobState};
use ramsift_store::Objects;
use std::sync::Arc;
use tracing::Instrument;

/// Findings at or above `--fail-on`.
pub(crate) const FINDINGS: u8 = 1;
/// Complete with gaps.
pub(crate) const GAPS: u8 = 3;

/// Name of the job for this evidence and these options: the same scan of the same bytes is the
/// same job, so that it can go on where it stopped.
fn job_name(pin: &SourcePin, spec: &JobSpec) -> Result<String> {
    // Who and when don't make it another scan.
    let same = JobSpec {
        job: String::new(),
        user: String::new(),
        host: String::new(),
        submitted_micros: 0,
        ..spec.clone()
    };
    let mut h = blake3::Hasher::new();
    h.update(&serde_json::to_vec(pin)?);
    h.update(&serde_json::to_vec(&same)?);
    let name: String = pin
        .name()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                c
            } else {
                '_'
            }
        })
        .take(60)
        .collect();
    Ok(format!(
        "{}-{}",
        name.trim_start_matches('.'),
        &h.finalize().to_hex()[..12]
    ))
}

async fn remove(objects: &dyn Objects, job: &str) -> Result<()> {
    for m in objects.list(&format!("jobs/{job}/")).await? {
        objects.delete(&m.key).await?;
    }
    Ok(())
}

/// One capture on its way.
pub(crate) struct Submission {
    pub(crate) job: String,
    pub(crate) source: String,
}

/// Runs the command. Returns the exit code.
pub(crate) async fn run(config: &Config, args: ScanArgs) -> Result<u8> {
    let sources = Sources::new(config.s3.to_layers()?);
    let found = capture::find(&args.images, &sources).await?;
    for (name, why) in &found.skipped {
        tell!("skipped {}: {}", Shown(name), Shown(why));
    }
    let store = args.out.clone().unwrap_or_else(|| config.store.url.clone());
    let objects = setup::store(&store, &sources).await?;
    ramsift_store::objects::check_conditions(objects.as_ref())
        .await
        .context("results store")?;
    let clamd = setup::clamd(args.clamd.as_deref().unwrap_or(&config.clamd.address)).await?;
    let rules = setup::compile_rules(config, objects.as_ref(), &args.job).await?;
    let mut todo = Vec::new();
    let mut worst = 0;
    for source in found.captures {
        let mut spec = setup::spec(config, &args.job, &source)?;
        spec.clamav = clamd.is_some();
        spec.rules_digest = rules
            .as_ref()
            .map(|r| hex::encode(r.digest()))
            .unwrap_or_default();
        let opened = match sources.open(&source).await {
            Ok(s) => s,
            Err(e) => {
                // The other captures are scanned all the same.
                tell!("ramsift: {}", Shown(e.to_string()));
                worst = worst.max(CANNOT_RUN);
                continue;
            }
        };
        if let Some(what) = inspect::line(&sources, opened.as_ref(), spec.chunk_size).await {
            tell!("{}: {}", Shown(&source), Shown(what));
        }
        spec.job = job_name(opened.pin(), &spec)?;
        if args.fresh {
            remove(objects.as_ref(), &spec.job).await?;
        }
        if ramsift_coordinator::revive(objects.as_ref(), &spec.job).await? {
            tracing::info!(job = spec.job, "ended before; goes on");
        }
        todo.push((spec, opened.len()));
    }
    if todo.is_empty() {
        return Ok(CANNOT_RUN);
    }
    let names = todo.iter().map(|(s, _)| s.job.clone()).collect();
    let services = embedded::start(config, objects.clone(), sources, clamd, names).await?;
    let done = drive(
        &services,
        objects.clone(),
        todo,
        &store,
        args.fail_on,
        worst,
    )
    .await;
    tokio::select! {
        () = services.stop() => {}
        // A second Ctrl-C: at once. What was settled is on disk.
        _ = tokio::signal::ctrl_c() => {}
    }
    done
}

/// Bytes up to which captures are small: several are scanned side by side.
const SMALL: u64 = 256 << 20;

/// Submits jobs, small ones side by side, and shows each when it ends, in their order; then all in one table.
async fn drive(
    services: &Embedded,
    objects: Arc<dyn Objects>,
    todo: Vec<(JobSpec, u64)>,
    store: &str,
    fail_on: Option<Severity>,
    mut worst: u8,
) -> Result<u8> {
    let many = todo.len() > 1;
    let mut lines = Vec::new();
    let mut rest = todo.as_slice();
    while let Some((_, size)) = rest.first() {
        // What is large has the machine to itself.
        let side_by_side = if *size > SMALL {
            1
        } else {
            rest.iter().take_while(|(_, n)| *n <= SMALL).count()
        };
        let (now, later) = rest.split_at(side_by_side);
        rest = later;
        let at_once = std::thread::available_parallelism()
            .map_or(2, usize::from)
            .max(2);
        let quiet = now.len() > 1;
        let mut ended = futures::stream::iter(now)
            .map(|(spec, _)| async move {
                let s = Submission {
                    job: spec.job.clone(),
                    source: spec.source.clone(),
                };
                let span = tracing::info_span!("scan", job = spec.job);
                let submitted = services.coordinator.submit(spec.clone());
                submitted.instrument(span).await?;
                let state = follow(services, &s, quiet).await?;
                anyhow::Ok((s, state))
            })
            .buffered(at_once);
        while let Some(done) = ended.next().await {
            let (s, state) = done?;
            let Some(state) = state else {
                tell!(
                    "stopped; what was settled is kept in {}. Run the same command to go on.",
                    Shown(store)
                );
                return Ok(CANNOT_RUN);
            };
            match state.phase() {
                JobPhase::Complete | JobPhase::CompleteWithGaps => {
                    let line = summary::print(&objects, &s.job, store).await?;
                    let loud = fail_on
                        .zip(line.loudest)
                        .is_some_and(|(limit, l)| l >= limit);
                    if loud {
                        worst = if worst == CANNOT_RUN {
                            CANNOT_RUN
                        } else {
                            FINDINGS
                        };
                    } else if state.phase() == JobPhase::CompleteWithGaps && worst == 0 {
                        worst = GAPS;
                    }
                    lines.push(line);
                }
                phase => {
                    tell!(
                        "ramsift: {}: {}: {}",
                        Shown(&s.source),
                        phase.name(),
                        Shown(&state.reason)
                    );
                    worst = CANNOT_RUN;
                    lines.push(summary::Line {
                        capture: s.source.rsplit('/').next().unwrap_or(&s.source).to_owned(),
                        verdict: phase.name().to_owned(),
                        says: state.reason.clone(),
                        job: s.job,
                        ..summary::Line::default()
                    });
                }
            }
        }
    }
    if many {
        summary::many(lines);
    }
    Ok(worst)
}

/// Shows a job until it ends. `None`: the user stopped it.
async fn follow(services: &Embedded, s: &Submission, quiet: bool) -> Result<Option<JobState>> {
    let mut display = Display::new(s.source.rsplit('/').next().unwrap_or(&s.source), quiet);
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let p = services.coordinator.progress(&s.job).await?;
        display.show(&p);
        if let Some(state) = p.state.filter(|st| st.phase().is_final()) {
            display.end();
            return Ok(Some(state));
        }
        let changed = async {
            let every = std::time::Duration::from_millis(100);
            match services.coordinator.subscribe(&s.job) {
                Some(mut w) => {
                    let _ = tokio::time::timeout(every, w.changed()).await;
                }
                None => tokio::time::sleep(every).await,
            }
        };
        tokio::select! {
            () = changed => {}
            r = &mut interrupt => {
                display.end();
                if let Err(e) = r {
                    bail!("signals can't be received: {e}");
                }
                return Ok(None);
            }
            _ = terminate.recv() => {
                display.end();
                return Ok(None);
            }
        }
    }
}
