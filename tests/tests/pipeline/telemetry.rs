//! Traces and metrics over OTLP, received as a collector would, and metrics as Prometheus scrapes them.

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
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use ramsift_layers::source::S3Client;
use ramsift_store::S3Objects;
use ramsift_tests::fixtures::image;
use ramsift_tests::program::{Cluster, Service, http_get, run};
use ramsift_tests::servers::Process;
use ramsift_tests::{block_on, free_port, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span, and which service it is of.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    span: Span,
}

#[derive(Clone, Debug, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
    metrics: Arc<Mutex<BTreeSet<String>>>,
    labels: Arc<Mutex<BTreeSet<String>>>,
    /// Processes that did not say which they are.
    nameless: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// The service that a resource names, which must say which process and version of it speaks.
    fn service(&self, r: Option<&Resource>) -> String {
        let text = |key: &str| {
            let all = r.map(|r| r.attributes.as_slice()).unwrap_or_default();
            let value = all.iter().find(|a| a.key == key)?.value.clone()?.value?;
            match value {
                Value::StringValue(s) if !s.is_empty() => Some(s),
                _ => None,
            }
        };
        let instance = text("service.instance.id").zip(text("service.version"));
        if instance.is_none() {
            self.nameless.lock().expect("lock").push(format!("{r:?}"));
        }
        text("service.name").unwrap_or_default()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        r: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in r.into_inner().resource_spans {
            let service = self.service(of.resource.as_ref());
            let spans = of.scope_spans.into_iter().flat_map(|s| s.spans);
            let seen = spans.map(|span| Seen {
                service: service.clone(),
                span,
            });
            self.spans.lock().expect("lock").extend(seen);
        }
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
        for of in r.into_inner().resource_metrics {
            self.service(of.resource.as_ref());
            for m in of.scope_metrics.into_iter().flat_map(|m| m.metrics) {
                self.metrics.lock().expect("lock").insert(m.name);
            }
        }
        self.labels.lock().expect("lock").insert(text);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

const SERVICES: [&str; 4] = [
    "coordinator",
    "aggregator",
    "chunk-worker",
    "structured-worker",
];

fn upload(c: &Cluster, name: &str, content: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), content).expect("write");
    block_on(async {
        let o = S3Objects::new(S3Client::connect(&c.s3.config()).await, "evidence", "");
        ramsift_store::Objects::put_file(&o, name, file.path())
            .await
            .expect("upload");
    });
}

/// Spans that lie below one that nobody exported.
fn orphans(spans: &[Seen]) -> Vec<&Seen> {
    let known: BTreeSet<&[u8]> = spans.iter().map(|s| s.span.span_id.as_slice()).collect();
    let has_parent = |s: &&Seen| {
        let parent = s.span.parent_span_id.as_slice();
        parent.is_empty() || known.contains(parent)
    };
    spans.iter().filter(|s| !has_parent(s)).collect()
}

#[test]
fn one_trace_from_submission_to_seal() {
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
    let planted = image(1 << 20, &[(64, b"\0http://trace.example.org/\0")]);
    upload(&c, "trace.mem", &planted);
    let _services = SERVICES.map(|s| c.service(s));
    let submit = |key: &str| {
        let source = format!("s3://evidence/{key}");
        run(c.command().args(["submit", &source, "--wait"]))
    };
    let r = submit("trace.mem");
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let wanted = [
        ("ramsift-cli", "submit"),
        ("ramsift-coordinator", "job.submit"),
        ("ramsift-coordinator", "job.plan"),
        ("ramsift-coordinator", "tasks.publish"),
        ("ramsift-chunk-worker", "process chunk"),
        ("ramsift-chunk-worker", "s3.read"),
        ("ramsift-chunk-worker", "scan.carve"),
        ("ramsift-structured-worker", "build view"),
        ("ramsift-aggregator", "aggregate.commit"),
        ("ramsift-aggregator", "settle"),
        ("ramsift-coordinator", "job.seal"),
        ("ramsift-aggregator", "job.finalise"),
    ];
    let lacks = |spans: &[Seen]| -> Vec<String> {
        let is_there = |(service, name): &(&str, &str)| {
            let same = |s: &Seen| s.service == *service && s.span.name == *name;
            spans.iter().any(same)
        };
        let missing = wanted.iter().filter(|w| !is_there(w));
        let missing = missing.map(|(service, name)| format!("{service} has no span {name}"));
        let lost = orphans(spans).into_iter();
        let lost = lost.map(|s| format!("above {} of {} nothing was seen", s.span.name, s.service));
        missing.chain(lost).collect()
    };
    let patience = Instant::now() + Duration::from_secs(30);
    let spans = wait_for("spans", Duration::from_secs(60), || {
        let spans = collector.spans.lock().expect("lock").clone();
        (lacks(&spans).is_empty() || Instant::now() > patience).then_some(spans)
    });
    assert_eq!(lacks(&spans), Vec::<String>::new());
    // One trace, whose only beginning is the command.
    let traces: BTreeSet<&[u8]> = spans.iter().map(|s| s.span.trace_id.as_slice()).collect();
    let roots = spans.iter().filter(|s| s.span.parent_span_id.is_empty());
    let roots: Vec<&str> = roots.map(|s| s.span.name.as_str()).collect();
    assert_eq!((traces.len(), roots), (1, vec!["submit"]), "{spans:#?}");
    let named = |n: &str| {
        let named = spans.iter().filter(|s| s.span.name == n);
        named.map(|s| s.span.clone()).collect::<Vec<_>>()
    };
    let ids =
        |spans: &[Span]| -> BTreeSet<Vec<u8>> { spans.iter().map(|s| s.span_id.clone()).collect() };
    // Through the broker's headers.
    let chunks = named("process chunk");
    assert!(chunks.len() >= 4, "{}", chunks.len());
    let sent = ids(&named("tasks.publish"));
    assert!(chunks.iter().all(|s| sent.contains(&s.parent_span_id)));
    // Inside the worker: reading and carving lie below the chunk.
    let of_chunks = ids(&chunks);
    let carving = named("scan.carve");
    assert!(
        carving
            .iter()
            .all(|s| of_chunks.contains(&s.parent_span_id))
    );
    // Through gRPC metadata: a commit is linked to every chunk in it.
    let linked: BTreeSet<Vec<u8>> = named("aggregate.commit")
        .iter()
        .flat_map(|s| s.links.iter().map(|l| l.span_id.clone()))
        .collect();
    assert!(of_chunks.is_subset(&linked));
    let sealing = ids(&named("job.seal"));
    let finalised = named("job.finalise");
    assert!(
        finalised
            .iter()
            .all(|s| sealing.contains(&s.parent_span_id))
    );
    let is_error = |s: &Span| {
        let status = s.status.as_ref();
        status.is_some_and(|s| s.code == i32::from(StatusCode::Error))
    };
    assert!(!spans.iter().any(|s| is_error(&s.span)), "{spans:#?}");
    for m in [
        "ramsift_chunk_bytes_total",
        "ramsift_coordinator_backlog_bytes",
        "ramsift_commit_duration_seconds",
        "ramsift_s3_requests_total",
        "ramsift_view_task_duration_seconds",
    ] {
        wait_for(m, Duration::from_secs(30), || {
            let metrics = collector.metrics.lock().expect("lock");
            metrics.contains(m).then_some(())
        });
    }
    // Labels are bounded: no job, no path.
    let job = r.out.split_whitespace().next().expect("job").to_owned();
    let labels = collector.labels.lock().expect("lock").clone();
    assert!(
        labels
            .iter()
            .all(|l| !l.contains(&job) && !l.contains("trace.mem"))
    );
    // A disk image can't be planned: its trace says so.
    upload(&c, "disk.qcow2", b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\0");
    let r = submit("disk.qcow2");
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    let why = wait_for("a failed plan", Duration::from_secs(30), || {
        let spans = collector.spans.lock().expect("lock");
        let failed = spans
            .iter()
            .find(|s| s.span.name == "job.plan" && is_error(&s.span));
        failed.and_then(|s| s.span.status.clone())
    });
    assert!(why.message.contains("qcow2"), "{why:?}");
    let nameless = collector.nameless.lock().expect("lock");
    assert!(nameless.is_empty(), "{nameless:?}");
}

/// Debian's Prometheus.
struct Prometheus {
    _process: Process,
    _folder: tempfile::TempDir,
    port: u16,
}

impl Prometheus {
    /// Has it scrape these services every second.
    fn scraping(services: &[Service]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let targets: Vec<String> = services
            .iter()
            .map(|s| format!("\"127.0.0.1:{}\"", s.http()))
            .collect();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: ramsift\n    \
             static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        std::fs::write(&config, text).expect("write");
        let port = free_port();
        let mut c = Command::new("prometheus");
        c.arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start("prometheus", &mut c, &folder.path().join("log"));
        let p = Self {
            _process: process,
            _folder: folder,
            port,
        };
        wait_for("Prometheus answers", Duration::from_secs(60), || {
            http_get(port, "/-/ready").filter(|(s, _)| *s == 200)
        });
        p
    }

    /// What a call of its API gives.
    fn api(&self, path: &str) -> serde_json::Value {
        let (status, body) = http_get(self.port, &format!("/api/v1/{path}")).expect("an answer");
        assert_eq!(status, 200, "{body}");
        // Between the marks of a chunked answer.
        let (from, to) = (body.find('{'), body.rfind('}'));
        let json = &body[from.expect("JSON")..=to.expect("JSON")];
        serde_json::from_str(json).expect("JSON")
    }

    /// Value of each series that a query gives, by one of its labels.
    fn by(&self, label: &str, query: &str) -> BTreeMap<String, f64> {
        let answer = self.api(&format!("query?query={query}"));
        let series = answer["data"]["result"]
            .as_array()
            .expect("a vector")
            .clone();
        let one = |s: &serde_json::Value| {
            let value = s["value"][1]
                .as_str()
                .expect("a value")
                .parse()
                .expect("a number");
            (s["metric"][label].as_str().unwrap_or("").to_owned(), value)
        };
        series.iter().map(one).collect()
    }
}

/// Metrics that docs/operations.md names, and those of them that are always there.
fn documented() -> (BTreeSet<String>, BTreeSet<String>) {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = std::fs::read_to_string(page).expect("docs/operations.md");
    let (mut all, mut always) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines().filter(|l| l.starts_with("| `ramsift_")) {
        let names = line.split('|').nth(1).expect("a first cell").split(',');
        for name in names.map(|n| n.trim().trim_matches('`').to_owned()) {
            if !line.contains("*when it happens:*") {
                always.insert(name.clone());
            }
            all.insert(name);
        }
    }
    (all, always)
}

#[test]
fn prometheus_sees_every_metric_that_is_documented_and_no_other() {
    let c = Cluster::start(&[]);
    upload(
        &c,
        "a.mem",
        &image(1 << 20, &[(64, b"\0http://a.example.org/\0")]),
    );
    let rules = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(
        rules.path(),
        "rule r { strings: $a = \"example.org\" condition: $a }",
    )
    .expect("write");
    let services = SERVICES.map(|s| c.service(s));
    // Stands by: the other is active.
    let port = free_port();
    let other = format!("127.0.0.1:{port}");
    let standby = c.service_with("coordinator", &[("RAMSIFT_COORDINATOR_LISTEN", &other)]);
    let all: Vec<Service> = services.into_iter().chain([standby]).collect();
    let p = Prometheus::scraping(&all);
    let rules = rules.path().to_str().expect("a path");
    let r = run(c
        .command()
        .args(["submit", "s3://evidence/a.mem", "--wait", "--rules", rules]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let (documented, always) = documented();
    assert!(documented.len() > 40, "{documented:?}");
    let series = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name)
            .to_owned()
    };
    let seen = || -> BTreeSet<String> {
        let names = p.api("label/__name__/values");
        let names = names["data"].as_array().expect("names").clone();
        let names = names.iter().filter_map(|n| n.as_str());
        names
            .filter(|n| n.starts_with("ramsift_"))
            .map(series)
            .collect()
    };
    let patience = Instant::now() + Duration::from_secs(60);
    // Without the rest after a minute, the next line says which are missing.
    let seen = wait_for("every metric", Duration::from_secs(90), || {
        let seen = seen();
        (always.is_subset(&seen) || Instant::now() > patience).then_some(seen)
    });
    let missing: Vec<&String> = always.difference(&seen).collect();
    assert!(missing.is_empty(), "not there: {missing:?}");
    let strange: Vec<&String> = seen.difference(&documented).collect();
    assert!(strange.is_empty(), "not in docs/operations.md: {strange:?}");
    // A scrape can come too late on a machine that is busy.
    wait_for("every service answers", Duration::from_secs(60), || {
        (p.by("instance", "up").values().sum::<f64>() == 5.0).then_some(())
    });
    // One of the two coordinators is active, each by its own name.
    let active = p.by("service_instance_id", "ramsift_coordinator_active");
    assert_eq!(active.len(), 2, "{active:?}");
    assert_eq!(active.values().sum::<f64>(), 1.0, "{active:?}");
    let ended = p.by("phase", "ramsift_coordinator_jobs_ended_total");
    assert_eq!(ended.get("complete"), Some(&1.0), "{ended:?}");
    let bytes = p.by(
        "outcome",
        "sum by(outcome)(ramsift_chunk_bytes_total)"
            .replace(' ', "+")
            .as_str(),
    );
    assert_eq!(bytes.values().sum::<f64>(), f64::from(1 << 20), "{bytes:?}");
    let messages = p.by("lane", "ramsift_queue_messages");
    let lanes: Vec<&str> = messages.keys().map(String::as_str).collect();
    assert_eq!(lanes, ["chunks", "dead", "suspects", "views"]);
}
