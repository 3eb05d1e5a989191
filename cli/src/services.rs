//! The four services, each until it is told to stop.

use crate::config::{Client, Config};
use crate::embedded::worker_config;
use crate::setup::{self, Specs, YaraVerdicts, finalise_info};
use anyhow::{Context, Result};
use async_trait::async_trait;
use ramsift_aggregator::{Aggregator, CommitLimits};
use ramsift_auth::{AuthChannel, ClientSecurity, ServerSecurity, describe, is_refusal};
use ramsift_coordinator::{Coordinator, Finaliser};
use ramsift_layers::source::Sources;
use ramsift_mask::MaskedUrl;
use ramsift_proto::v1::FinaliseRequest;
use ramsift_proto::v1::aggregator_client::AggregatorClient;
use ramsift_proto::{Deployment, MAX_MESSAGE};
use ramsift_queue::{Queue, RabbitConfig, RabbitQueue};
use ramsift_store::{
    Agreement, Ledger, ObjectError, Objects, RedisLedger, RemoteReporter, Reporter,
};
use ramsift_telemetry::Readiness;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled on SIGTERM and SIGINT.
fn until_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

fn address(name: &str, s: &str) -> Result<SocketAddr> {
    s.to_socket_addrs()
        .ok()
        .and_then(|mut a| a.next())
        .with_context(|| format!("{name} {s:?} is no address to listen on: use host:port"))
}

/// Names this process, for leases, reports, connections and telemetry.
pub(crate) fn instance(what: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{what}@{}:{}", host.trim(), std::process::id())
}

/// What this process has of that which services must have in common.
fn agreement(config: &Config, coordinator: &str) -> Agreement {
    Agreement {
        coordinator: coordinator.to_owned(),
        queue_prefix: config.queue.prefix.clone(),
        ledger_prefix: config.ledger.prefix.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

struct Shared {
    agreement: Agreement,
    sources: Sources,
    objects: Arc<dyn Objects>,
    queue: Arc<dyn Queue>,
    ledger: Arc<dyn Ledger>,
    readiness: Readiness,
    stop: CancellationToken,
}

/// Opens what all services use. Waits for a store that can't be reached, but not for one that
/// can't work.
async fn shared(config: &Config, what: &str) -> Result<Shared> {
    let stop = until_signal()?;
    let readiness = Readiness::default();
    readiness.block("store", "not reached yet");
    let bound = health(config, what, &readiness, &stop).await?;
    tracing::info!(address = %bound, "health endpoint");
    let sources = Sources::new(config.s3.to_layers()?)
        .only(config.sources.allowed()?)
        .owning(&config.store.url);
    let objects = setup::store(&config.store.url, &sources).await?;
    let queue: Arc<dyn Queue> = Arc::new(RabbitQueue::new(RabbitConfig {
        url: config.queue.url.clone(),
        prefix: config.queue.prefix.clone(),
        name: instance(what),
        ca_file: config.queue.ca_file(),
    }));
    let ledger = RedisLedger::new(config.ledger.url.clone(), &config.ledger.prefix);
    let ledger: Arc<dyn Ledger> = Arc::new(ledger.trusting(config.ledger.ca_file()));
    await_store(objects.as_ref(), &readiness, &stop).await?;
    Ok(Shared {
        agreement: agreement(config, ""),
        sources,
        objects,
        queue,
        ledger,
        readiness,
        stop,
    })
}

/// Answers for the service's health.
async fn health(
    config: &Config,
    what: &str,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<SocketAddr> {
    let serve = async |at: SocketAddr| {
        let served = ramsift_telemetry::serve(at, readiness.clone(), stop.clone()).await;
        served.with_context(|| format!("http.listen {at}"))
    };
    if !config.http.listen.is_empty() {
        return serve(address("http.listen", &config.http.listen)?).await;
    }
    // Side by side on one machine, each has its own.
    let own = match what {
        "coordinator" => 7480,
        "aggregator" => 7481,
        "chunk-worker" => 7482,
        _ => 7483,
    };
    let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    match serve(loopback(own)).await {
        Ok(bound) => Ok(bound),
        Err(_) => serve(loopback(0)).await,
    }
}

async fn await_store(
    objects: &dyn Objects,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<()> {
    let mut wait = Duration::from_millis(500);
    loop {
        let e = match ramsift_store::objects::check_conditions(objects).await {
            Ok(()) => {
                readiness.ready("store");
                return Ok(());
            }
            Err(e @ (ObjectError::Denied { .. } | ObjectError::Unusable { .. })) => {
                return Err(e).context("results store");
            }
            Err(e) => e,
        };
        tracing::warn!(error = %e, "results store not usable, trying again");
        readiness.block("store", e.to_string());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return Err(e).context("results store"),
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// Keeps the readiness of ledger, queue and aggregator up to date.
fn watch_parts(s: &Shared, reporter: Option<Arc<dyn Reporter>>) {
    let (ledger, queue, readiness, stop) = (
        s.ledger.clone(),
        s.queue.clone(),
        s.readiness.clone(),
        s.stop.clone(),
    );
    let (objects, own) = (s.objects.clone(), s.agreement.clone());
    tokio::spawn(async move {
        let mut refused = String::new();
        let mut other_version = String::new();
        while !stop.is_cancelled() {
            // Without an answer nothing is known; the store's own readiness is told elsewhere.
            if let Ok(Some(said)) = Agreement::read(objects.as_ref()).await {
                match said.differences(&own).join("; ") {
                    differ if differ.is_empty() => readiness.ready("settings"),
                    differ => readiness.block("settings", differ),
                }
                if said.version != own.version && said.version != other_version {
                    tracing::warn!(
                        coordinator = said.coordinator,
                        its_version = said.version,
                        own_version = own.version,
                        "the coordinator is of another version; run the same everywhere"
                    );
                    other_version = said.version;
                }
            }
            // The ledger is a cache: without it a service works, so it never blocks readiness.
            if let Err(e) = ledger.check().await {
                tracing::warn!(error = %e, "ledger does not answer; going on without it");
            }
            match queue.check().await {
                Ok(()) => readiness.ready("queue"),
                Err(e) => readiness.block("queue", e.to_string()),
            }
            if let Some(r) = &reporter {
                match r.check().await {
                    Ok(()) => readiness.ready("aggregator"),
                    Err(e) => {
                        let said = e.to_string();
                        if e.refused && said != refused {
                            tracing::error!(reason = said, "this worker may not report");
                            refused.clone_from(&said);
                        }
                        readiness.block("aggregator", said);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
                () = stop.cancelled() => {}
            }
        }
    });
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seals jobs through the aggregator.
#[derive(Debug)]
struct RemoteFinaliser {
    client: Client,
    url: MaskedUrl,
    /// Replaced when the aggregator refuses who it is with: a new connection shows new certificates.
    channel: Mutex<AuthChannel>,
}

#[async_trait]
impl Finaliser for RemoteFinaliser {
    async fn finalise(&self, job: &str) -> Result<bool, (String, bool)> {
        let over = lock(&self.channel).clone();
        let mut client = AggregatorClient::new(over).max_decoding_message_size(MAX_MESSAGE);
        match client
            .finalise(FinaliseRequest {
                job: job.to_owned(),
            })
            .await
        {
            Ok(r) => Ok(r.into_inner().gaps),
            Err(e) => {
                let fatal = e.code() == tonic::Code::FailedPrecondition;
                if is_refusal(&e) {
                    tracing::error!(
                        reason = describe(&e),
                        "this coordinator may not have jobs sealed"
                    );
                    if let Ok(new) = channel(&self.client, "aggregator.url", &self.url) {
                        *lock(&self.channel) = new;
                    }
                }
                Err((describe(&e), fatal))
            }
        }
    }
}

/// A channel to the service that a setting names, which connects when it is first used.
pub(crate) fn channel(client: &Client, setting: &str, url: &MaskedUrl) -> Result<AuthChannel> {
    let security = ClientSecurity::new(&client.settings())?;
    let patience = Duration::from_secs(5);
    Ok(security.channel(setting, url, |e| e.connect_timeout(patience))?)
}

/// Where this worker reports to.
fn reporter(config: &Config) -> Result<Arc<dyn Reporter>> {
    let security = ClientSecurity::new(&config.client.settings())?;
    Ok(Arc::new(RemoteReporter::new(
        &config.aggregator.url,
        &security,
    )?))
}

/// Where a service listens, and to whom.
fn listener(config: &Config, setting: &str, listen: &str) -> Result<(SocketAddr, ServerSecurity)> {
    let at = address(setting, listen)?;
    let security = ServerSecurity::new(setting, at, &config.server.settings())?;
    Ok((at, security))
}

/// `ramsift coordinator`
pub(crate) async fn coordinator(config: &Config) -> Result<u8> {
    let c = &config.coordinator;
    // What is wrong with settings is told before anything is waited for.
    let (listen, security) = listener(config, "coordinator.listen", &c.listen)?;
    let aggregator = channel(&config.client, "aggregator.url", &config.aggregator.url)?;
    let s = shared(config, "coordinator").await?;
    let coordinator = Coordinator::new(
        ramsift_coordinator::Config {
            name: instance("coordinator"),
            agreement: agreement(config, &instance("coordinator")),
            window: usize::try_from(c.window).unwrap_or(usize::MAX),
            poll: Duration::from_millis(c.poll_milliseconds.max(1)),
            republish: Duration::from_secs(c.republish_seconds),
            lease: Duration::from_secs(c.lease_seconds.max(1)),
            smallest: c.smallest_bytes.max(1 << 16),
            unpack: config.unpack.limits(),
            spill: setup::temporary(&config.worker.spill),
            ..ramsift_coordinator::Config::default()
        },
        ramsift_coordinator::Deps {
            queue: s.queue.clone(),
            ledger: s.ledger.clone(),
            objects: s.objects.clone(),
            sources: s.sources.clone(),
            verdicts: Arc::new(YaraVerdicts),
            specs: Arc::new(Specs),
            finaliser: Arc::new(RemoteFinaliser {
                client: config.client.clone(),
                url: config.aggregator.url.clone(),
                channel: Mutex::new(aggregator),
            }),
            readiness: s.readiness.clone(),
        },
    );
    watch_parts(&s, None);
    let (bound, server) =
        ramsift_coordinator::serve(listen, coordinator.clone(), &security, s.stop.clone())
            .await
            .with_context(|| format!("coordinator.listen {listen}"))?;
    tracing::info!(address = %bound, tls = security.is_tls(), "coordinator listens");
    coordinator.run(s.stop.clone()).await;
    server.await?;
    Ok(0)
}

/// `ramsift chunk-worker`
pub(crate) async fn chunk_worker(config: &Config) -> Result<u8> {
    let reporter = reporter(config)?;
    let s = shared(config, "chunk-worker").await?;
    watch_parts(&s, Some(reporter.clone()));
    let clamd = await_clamd(config, &s).await?;
    let deps = ramsift_chunk_worker::Deps {
        queue: s.queue,
        ledger: s.ledger,
        objects: s.objects,
        reporter,
        sources: s.sources,
        clamd,
        readiness: s.readiness,
    };
    ramsift_chunk_worker::run(
        worker_config(
            config,
            &instance("chunk-worker"),
            Deployment::Cluster,
            setup::disk(config),
        ),
        deps,
        s.stop,
    )
    .await;
    Ok(0)
}

/// Waits for clamd where one is configured: without it, jobs that want it would go unscanned.
async fn await_clamd(
    config: &Config,
    s: &Shared,
) -> Result<Option<ramsift_engines::clamav::Clamd>> {
    let mut wait = Duration::from_millis(500);
    loop {
        match setup::clamd(&config.clamd.address).await {
            Ok(c) => {
                s.readiness.ready("clamd");
                return Ok(c);
            }
            Err(e) if s.stop.is_cancelled() => return Err(e),
            Err(e) => {
                tracing::warn!(error = format!("{e:#}"), "clamd not usable, trying again");
                s.readiness.block("clamd", format!("{e:#}"));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = s.stop.cancelled() => {}
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// `ramsift structured-worker`
pub(crate) async fn structured_worker(config: &Config) -> Result<u8> {
    let reporter = reporter(config)?;
    let s = shared(config, "structured-worker").await?;
    watch_parts(&s, Some(reporter.clone()));
    let deps = ramsift_structured_worker::Deps {
        queue: s.queue,
        ledger: s.ledger,
        objects: s.objects,
        reporter,
        sources: s.sources,
        readiness: s.readiness,
    };
    let name = instance("structured-worker");
    let disk = setup::disk(config);
    let c = setup::structured(config, name, Deployment::Cluster, disk).await?;
    ramsift_structured_worker::run(c, deps, s.stop).await;
    Ok(0)
}

/// `ramsift aggregator`
pub(crate) async fn aggregator(config: &Config) -> Result<u8> {
    let listen = &config.aggregator.listen;
    let (listen, security) = listener(config, "aggregator.listen", listen)?;
    let s = shared(config, "aggregator").await?;
    let limits = CommitLimits {
        bytes: usize::try_from(config.aggregator.commit_bytes).unwrap_or(usize::MAX),
        age: Duration::from_millis(config.aggregator.commit_milliseconds),
        total: usize::try_from(config.aggregator.memory_bytes).unwrap_or(usize::MAX),
        ..CommitLimits::default()
    };
    let clamd = setup::clamd(&config.clamd.address)
        .await
        .unwrap_or_else(|e| {
            tracing::warn!(
                error = format!("{e:#}"),
                "clamd's version will not be in manifests"
            );
            None
        });
    let a = Aggregator::new(s.objects.clone(), s.ledger.clone(), limits);
    let info = finalise_info(config, clamd.as_ref())?;
    let (bound, server) = ramsift_aggregator::serve(listen, a, info, &security, s.stop.clone())
        .await
        .with_context(|| format!("aggregator.listen {listen}"))?;
    tracing::info!(address = %bound, tls = security.is_tls(), "aggregator listens");
    server.await?;
    Ok(0)
}
