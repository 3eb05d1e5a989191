//! The one binary: embedded scans, the four services, and what users ask of results.

mod args;
mod artifacts;
mod buckets;
mod capture;
mod client;
mod config;
mod convert;
mod demo;
mod embedded;
mod evidence;
mod export;
mod files;
mod grep;
mod inspect;
mod loudest;
mod overview;
mod owner;
mod process;
mod progress;
mod results;
mod rows;
mod rules;
mod scan;
mod services;
mod setup;
mod suggest;
mod summary;
mod symbols;
mod terminal;
mod verify;
mod view;

use crate::terminal::tell;
use anyhow::Result;
use args::{Args, Command};
use clap::Parser;
use ramsift_telemetry::{Identity, LogFormat};
use std::process::ExitCode;

/// Could not run.
const CANNOT_RUN: u8 = 2;

/// Keeps the C library from giving every thread an arena of its own, since blocking threads come and go, and from
/// giving pages back to the system that the next batch of rows asks for again. Measured on a 1 GiB scan with two
/// slots: one arena takes 60 MiB less than two and no more CPU time; larger thresholds save a fiftieth of it.
fn tune_malloc() {
    #[cfg(target_env = "gnu")]
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and is called before any other thread exists.
    unsafe {
        libc::mallopt(
            libc::M_ARENA_MAX,
            i32::try_from(cpus / 2).unwrap_or(1).max(1),
        );
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}

fn main() -> ExitCode {
    tune_malloc();
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(r) => r,
        Err(e) => {
            tell!("ramsift: the async runtime can't be started: {e}");
            return ExitCode::from(CANNOT_RUN);
        }
    };
    let code = runtime.block_on(async {
        match run(args).await {
            Ok(code) => code,
            Err(e) => {
                tell!("ramsift: {e:#}");
                CANNOT_RUN
            }
        }
    });
    // Blocking reads that still run must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    ExitCode::from(code)
}

async fn run(args: Args) -> Result<u8> {
    let mut config = config::load(args.config.as_deref(), std::env::vars(), &args.set)?;
    if let Some(store) = &args.store {
        config.store.url.clone_from(store);
    }
    config
        .scan
        .page_files
        .extend(args.page_files.iter().cloned());
    if args.insecure {
        config.server.insecure = true;
        config.client.insecure = true;
    }
    let format = if config.log.format == "json" {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let who = Identity {
        service: args.command.service(),
        instance: services::instance(args.command.service()),
        is_service: args.command.is_service(),
    };
    let telemetry = ramsift_telemetry::init(&who, format)?;
    let done = match args.command {
        Command::Scan(a) => scan::run(&config, a).await,
        Command::Inspect(a) => inspect::run(&config, a).await,
        Command::Convert(a) => convert::run(&config, a).await,
        Command::Demo(a) => demo::run(&config, a).await,
        Command::Coordinator => services::coordinator(&config).await,
        Command::ChunkWorker => services::chunk_worker(&config).await,
        Command::StructuredWorker => services::structured_worker(&config).await,
        Command::Aggregator => services::aggregator(&config).await,
        Command::Submit(a) => client::submit(&config, a).await,
        Command::Jobs => client::jobs(&config).await,
        Command::Status { job } => client::status(&config, &job).await,
        Command::Watch { job } => client::watch(&config, &job).await,
        Command::Cancel { job, reason } => client::cancel(&config, &job, &reason).await,
        Command::Retry { job } => client::retry(&config, &job).await,
        Command::Results(a) => results::results(&config, a).await,
        Command::Query(a) => results::query(&config, a).await,
        Command::View(a) => view::run(&config, a).await,
        Command::Ls(a) => files::ls(&config, a).await,
        Command::Cat(a) => files::cat(&config, a).await,
        Command::Recover(a) => files::recover(&config, a).await,
        Command::Owner(a) => owner::run(&config, a).await,
        Command::Overview(a) => overview::run(&config, a).await,
        Command::Process(a) => process::run(&config, a).await,
        Command::Grep(a) => grep::run(&config, a).await,
        Command::Procdump(a) => files::procdump(&config, a).await,
        Command::History(a) => view::short(&config, "history", a).await,
        Command::Logins(a) => view::short(&config, "logins", a).await,
        Command::Export(a) => export::export(&config, a).await,
        Command::Artifact(a) => export::artifact(&config, a).await,
        Command::Verify(a) => verify::run(&config, a).await,
        Command::Rules { command } => rules::run(command),
        Command::Symbols { command } => symbols::run(&config, command).await,
        Command::Config => {
            terminal::out(&toml::to_string(&config.masked())?);
            Ok(0)
        }
    };
    telemetry.shutdown();
    done
}
