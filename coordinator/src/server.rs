//! The coordinator over gRPC, with health checking.

use crate::{Coordinator, RetryError, SubmitError, Submitted};
use ramsift_auth::ServerSecurity;
use ramsift_proto::MAX_MESSAGE;
use ramsift_proto::v1::coordinator_server::{Coordinator as Service, CoordinatorServer};
use ramsift_proto::v1::{
    CancelRequest, CancelResponse, GetJobRequest, JobProgress, ListJobsRequest, ListJobsResponse,
    RetryRequest, RetryResponse, SubmitRequest, SubmitResponse,
};
use ramsift_store::StoreError;
use ramsift_telemetry::{extract, failed, set_parent};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument;

#[derive(Debug)]
struct Server {
    coordinator: Coordinator,
    stop: CancellationToken,
}

fn status(e: StoreError) -> Status {
    match e {
        StoreError::Object(e) if e.is_not_found() => Status::not_found("there is no such job"),
        other => Status::unavailable(other.to_string()),
    }
}

fn not_taken(e: SubmitError) -> Status {
    match e {
        SubmitError::Invalid(why) => Status::invalid_argument(why),
        SubmitError::Store(e) => Status::unavailable(e.to_string()),
    }
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<JobProgress, Status>> + Send>>;

/// How often a job that another coordinator runs is looked at in the store.
const LOOK: Duration = Duration::from_secs(2);

#[tonic::async_trait]
impl Service for Server {
    async fn submit(&self, r: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let sent_along = extract(r.metadata());
        let spec = r
            .into_inner()
            .spec
            .ok_or_else(|| Status::invalid_argument("no job given"))?;
        let job = spec.job.clone();
        let span = tracing::info_span!("job.submit", job);
        set_parent(&span, &sent_along);
        let submitted = self.coordinator.submit(spec).instrument(span.clone());
        let submitted = submitted.await.map_err(|e| {
            let refused = not_taken(e);
            failed(&span, refused.message());
            refused
        });
        match submitted? {
            Submitted::New => {
                let active = self.coordinator.active_elsewhere().unwrap_or_default();
                Ok(Response::new(SubmitResponse { job, active }))
            }
            Submitted::Known => Err(Status::already_exists(format!("job {job} exists already"))),
        }
    }

    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let jobs = self.coordinator.jobs().await.map_err(status)?;
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn get_job(&self, r: Request<GetJobRequest>) -> Result<Response<JobProgress>, Status> {
        let p = self
            .coordinator
            .progress(&r.into_inner().job)
            .await
            .map_err(status)?;
        Ok(Response::new(p))
    }

    type WatchStream = ProgressStream;

    async fn watch(&self, r: Request<GetJobRequest>) -> Result<Response<ProgressStream>, Status> {
        let job = r.into_inner().job;
        let first = self.coordinator.progress(&job).await.map_err(status)?;
        let (tx, rx) = tokio::sync::mpsc::channel(8);
        let (coordinator, stop) = (self.coordinator.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut last = first;
            loop {
                let ended = last.state.as_ref().is_some_and(|s| s.phase().is_final());
                if tx.send(Ok(last.clone())).await.is_err() || ended {
                    return;
                }
                // Changes come at once from the loop; from elsewhere they are looked for.
                let changed = async {
                    match coordinator.subscribe(&job) {
                        Some(mut w) => {
                            let _ = tokio::time::timeout(LOOK, w.changed()).await;
                        }
                        None => tokio::time::sleep(LOOK).await,
                    }
                };
                tokio::select! {
                    () = changed => {}
                    // A stream that waits for its job would keep the service from ending.
                    () = stop.cancelled() => return,
                }
                match coordinator.progress(&job).await {
                    Ok(p) => last = p,
                    Err(e) => {
                        let _ = tx.send(Err(status(e))).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn cancel(&self, r: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        let r = r.into_inner();
        self.coordinator
            .cancel(&r.job, &r.reason)
            .await
            .map_err(status)?;
        Ok(Response::new(CancelResponse {}))
    }

    async fn retry(&self, r: Request<RetryRequest>) -> Result<Response<RetryResponse>, Status> {
        let job = r.into_inner().job;
        self.coordinator.retry(&job).await.map_err(|e| match e {
            RetryError::Store(e) => status(e),
            e @ RetryError::Phase { .. } => Status::failed_precondition(e.to_string()),
        })?;
        let active = self.coordinator.active_elsewhere().unwrap_or_default();
        Ok(Response::new(RetryResponse { active }))
    }
}

/// Answers whom `security` lets on `address` until `stop`. Returns the bound address.
pub async fn serve(
    address: SocketAddr,
    coordinator: Coordinator,
    security: &ServerSecurity,
    stop: CancellationToken,
) -> std::io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServer<Server>>().await;
    let service = CoordinatorServer::new(Server {
        coordinator,
        stop: stop.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let server = security
        .server()
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(security.incoming(listener), stop.cancelled_owned());
    let handle = tokio::spawn(async move {
        if let Err(e) = server.await {
            tracing::error!(error = %e, "coordinator endpoint ended");
        }
    });
    Ok((bound, handle))
}
