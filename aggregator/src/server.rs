//! The aggregator over gRPC, with health checking.

use crate::{Aggregator, FinaliseInfo, finalise};
use ramsift_auth::ServerSecurity;
use ramsift_proto::MAX_MESSAGE;
use ramsift_proto::v1::aggregator_server::{Aggregator as Service, AggregatorServer};
use ramsift_proto::v1::{
    CheckReporterRequest, CheckReporterResponse, FinaliseRequest, FinaliseResponse, ReportAck,
    ReportPart,
};
use ramsift_store::Ack;
use ramsift_store::report::Assembler;
use ramsift_telemetry::{extract, failed, set_parent};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

/// Bytes of one report at most.
const MAX_REPORT: usize = 512 << 20;

#[derive(Debug)]
struct Server {
    aggregator: Aggregator,
    info: FinaliseInfo,
}

#[tonic::async_trait]
impl Service for Server {
    async fn report(
        &self,
        request: Request<Streaming<ReportPart>>,
    ) -> Result<Response<ReportAck>, Status> {
        let trace = extract(request.metadata());
        let mut parts = request.into_inner();
        let mut assembler = Assembler::default();
        let mut held = self.aggregator.account();
        while let Some(part) = parts.next().await {
            let before = assembler.bytes();
            assembler.push(part?).map_err(Status::invalid_argument)?;
            held.grow(assembler.bytes() - before, self.aggregator.memory())
                .map_err(Status::resource_exhausted)?;
            if assembler.bytes() > MAX_REPORT {
                return Err(Status::resource_exhausted("the report is too large"));
            }
        }
        let mut report = assembler.finish().map_err(Status::invalid_argument)?;
        report.trace = trace;
        let ack = match self
            .aggregator
            .take_held(report, held)
            .await
            .map_err(Status::unavailable)?
        {
            Ack::Durable => ReportAck {
                accepted: true,
                reason: String::new(),
            },
            Ack::Refused(reason) => ReportAck {
                accepted: false,
                reason,
            },
        };
        Ok(Response::new(ack))
    }

    async fn check_reporter(
        &self,
        _: Request<CheckReporterRequest>,
    ) -> Result<Response<CheckReporterResponse>, Status> {
        Ok(Response::new(CheckReporterResponse {}))
    }

    async fn finalise(
        &self,
        request: Request<FinaliseRequest>,
    ) -> Result<Response<FinaliseResponse>, Status> {
        let trace = extract(request.metadata());
        let job = request.into_inner().job;
        let span = tracing::info_span!("job.finalise", job);
        set_parent(&span, &trace);
        let (a, info) = (self.aggregator.clone(), self.info.clone());
        // Goes on if the caller hangs up: the next call finds it done.
        let sealing = async move { finalise(&a, &job, &info).await };
        let done = tokio::spawn(sealing.instrument(span.clone())).await;
        if let Ok(Err(e)) = &done {
            failed(&span, &e.to_string());
        }
        match done.map_err(|e| Status::internal(e.to_string()))? {
            Ok(manifest) => {
                let gaps = manifest.verdict != "complete";
                Ok(Response::new(FinaliseResponse { gaps }))
            }
            Err(e) if e.is_fatal() => Err(Status::failed_precondition(e.to_string())),
            Err(e) => Err(Status::unavailable(e.to_string())),
        }
    }
}

/// Answers whom `security` lets on `address` until `stop`; then commits what waits and ends. Returns the bound address.
pub async fn serve(
    address: SocketAddr,
    aggregator: Aggregator,
    info: FinaliseInfo,
    security: &ServerSecurity,
    stop: CancellationToken,
) -> std::io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AggregatorServer<Server>>().await;
    let drain = aggregator.clone();
    let service = AggregatorServer::new(Server { aggregator, info })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = security
        .server()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(20)))
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(security.incoming(listener), async move {
            stop.cancelled().await;
            // Reports that wait are committed at once and their workers told.
            drain.drain();
        });
    let handle = tokio::spawn(async move {
        if let Err(e) = server.await {
            tracing::error!(error = %e, "aggregator ended");
        }
    });
    Ok((bound, handle))
}
