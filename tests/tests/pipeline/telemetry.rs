//! Traces and metrics over OTLP, received as a collector would.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use ramsift_layers::source::S3Client;
use ramsift_store::S3Objects;
use ramsift_tests::fixtures::image;
use ramsift_tests::program::{Cluster, run};
use ramsift_tests::{block_on, wait_for};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Debug, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<BTreeSet<String>>>,
    labels: Arc<Mutex<BTreeSet<String>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        r: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = r
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|s| s.scope_spans)
            .flat_map(|s| s.spans);
        self.spans.lock().expect("lock").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        r: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let text = format!("{:?}", r.get_ref());
        let all = r
            .into_inner()
            .resource_metrics
            .into_iter()
            .flat_map(|m| m.scope_metrics);
        for m in all.flat_map(|m| m.metrics) {
            self.metrics.lock().expect("lock").insert(m.name);
        }
        self.labels.lock().expect("lock").insert(text);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[test]
fn one_trace_from_submission_to_commit() {
    let collector = Collector::default();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("bind");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let (t, m) = (collector.clone(), collector.clone());
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(t))
            .add_service(MetricsServiceServer::new(m))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let c = Cluster::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ("RAMSIFT_SCAN_CHUNK_SIZE", "262144"),
        ("RAMSIFT_SCAN_OVERLAP", "4096"),
    ]);
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(
        file.path(),
        image(1 << 20, &[(64, b"\0http://trace.example.org/\0")]),
    )
    .expect("write");
    block_on(async {
        let o = S3Objects::new(S3Client::connect(&c.s3.config()).await, "evidence", "");
        ramsift_store::Objects::put_file(&o, "trace.mem", file.path())
            .await
            .expect("upload");
    });
    let _services: Vec<_> = [
        "coordinator",
        "aggregator",
        "chunk-worker",
        "structured-worker",
    ]
    .map(|s| c.service(s))
    .into();
    let r = run(c
        .command()
        .args(["submit", "s3://evidence/trace.mem", "--wait"]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let wanted = [
        "job.plan",
        "send chunks",
        "process chunk",
        "s3.read",
        "scan.carve",
        "aggregate.commit",
        "settle",
    ];
    wait_for("all spans", Duration::from_secs(30), || {
        let spans = collector.spans.lock().expect("lock");
        wanted
            .iter()
            .all(|w| spans.iter().any(|s| s.name == *w))
            .then_some(())
    });
    let spans = collector.spans.lock().expect("lock").clone();
    let named = |n: &str| {
        spans
            .iter()
            .filter(|s| s.name == n)
            .cloned()
            .collect::<Vec<_>>()
    };
    // Through the broker's headers: a chunk's span is of the trace that sent it.
    let senders: BTreeSet<_> = named("send chunks")
        .into_iter()
        .map(|s| s.trace_id)
        .collect();
    let chunks = named("process chunk");
    assert!(chunks.len() >= 4, "{}", chunks.len());
    assert!(chunks.iter().all(|s| senders.contains(&s.trace_id)));
    assert!(
        chunks.iter().all(|s| !s.links.is_empty()),
        "linked to the message that sent it"
    );
    // Inside the worker: reading and carving lie below the chunk.
    let of_chunks: BTreeSet<_> = chunks.iter().map(|s| s.span_id.clone()).collect();
    assert!(
        named("scan.carve")
            .iter()
            .all(|s| of_chunks.contains(&s.parent_span_id))
    );
    // Through gRPC metadata: a commit is linked to the chunks in it.
    let linked = named("aggregate.commit")
        .iter()
        .flat_map(|s| s.links.clone())
        .any(|l| of_chunks.contains(&l.span_id));
    assert!(linked, "a commit is linked to its chunks");
    for m in [
        "ramsift_chunk_bytes_total",
        "ramsift_chunk_duration_seconds",
        "ramsift_engine_bytes_total",
        "ramsift_read_duration_seconds",
        "ramsift_commit_duration_seconds",
        "ramsift_coordinator_backlog_bytes",
    ] {
        wait_for(m, Duration::from_secs(30), || {
            collector
                .metrics
                .lock()
                .expect("lock")
                .contains(m)
                .then_some(())
        });
    }
    // Labels are bounded: no job, no path.
    let job = r.out.split_whitespace().next().expect("job").to_owned();
    let labels = collector.labels.lock().expect("lock");
    assert!(
        labels
            .iter()
            .all(|l| !l.contains(&job) && !l.contains("trace.mem"))
    );
}
