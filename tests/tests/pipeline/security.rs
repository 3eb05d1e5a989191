//! Who speaks is known: clusters whose services and clients show certificates or tokens.

use crate::distributed::{manifest, objects, submit, tables, upload, without_inference};
use ramsift_proto::v1::aggregator_client::AggregatorClient;
use ramsift_proto::v1::coordinator_client::CoordinatorClient;
use ramsift_proto::v1::{
    CancelRequest, CheckReporterRequest, FinaliseRequest, GetJobRequest, ListJobsRequest,
    RetryRequest, SubmitRequest,
};
use ramsift_store::LocalObjects;
use ramsift_store::objects::Objects;
use ramsift_tests::authority::Authority;
use ramsift_tests::fixtures::image;
use ramsift_tests::program::{Cluster, Proof, Run, command, run, scan};
use ramsift_tests::servers::{Process, REDIS_PASSWORD, Rabbit, Redis};
use ramsift_tests::{block_on, free_port, wait_for};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

const SERVICES: [&str; 4] = [
    "coordinator",
    "aggregator",
    "chunk-worker",
    "structured-worker",
];
const SIZES: [(&str, &str); 2] = [
    ("RAMSIFT_SCAN_CHUNK_SIZE", "262144"),
    ("RAMSIFT_SCAN_OVERLAP", "4096"),
];

/// A small capture, as a file and as the object `a.mem`.
fn capture(c: &Cluster, dir: &Path) -> PathBuf {
    let path = dir.join("a.mem");
    let planted = b"\0http://known.example.org/ 192.0.2.7 someone@example.org\0";
    std::fs::write(
        &path,
        image(1 << 20, &[(0x2000, planted), (0x9_0000, planted)]),
    )
    .expect("write");
    upload(c, "a.mem", &path);
    path
}

/// What a channel to a service shows: the certificate of a role, a token, both or neither.
fn endpoint(url: &str, trusted: &Authority, shown: Option<[PathBuf; 2]>) -> Endpoint {
    // tonic's own TLS, which is not what the services use.
    let read = |p: &Path| std::fs::read(p).expect("a file");
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&trusted.ca_file())));
    if let Some([cert, key]) = shown {
        tls = tls.identity(Identity::from_pem(read(&cert), read(&key)));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    endpoint.tls_config(tls).expect("TLS")
}

/// What each method of both services answers.
async fn answers(
    services: [Channel; 2],
    token: Option<&str>,
) -> Vec<(&'static str, Result<(), Status>)> {
    fn with<T>(message: T, token: Option<&str>) -> Request<T> {
        let mut r = Request::new(message);
        r.set_timeout(Duration::from_secs(30));
        if let Some(t) = token {
            let value = format!("Bearer {t}").parse().expect("a header");
            r.metadata_mut().insert("authorization", value);
        }
        r
    }
    let [coordinator, aggregator] = services;
    let mut c = CoordinatorClient::new(coordinator);
    let mut a = AggregatorClient::new(aggregator);
    let job = || "none".to_owned();
    let get = || with(GetJobRequest { job: job() }, token);
    let cancel = CancelRequest {
        job: job(),
        reason: String::new(),
    };
    let parts = tokio_stream::iter(Vec::new());
    vec![
        (
            "Submit",
            c.submit(with(SubmitRequest { spec: None }, token))
                .await
                .map(|_| ()),
        ),
        (
            "ListJobs",
            c.list_jobs(with(ListJobsRequest {}, token))
                .await
                .map(|_| ()),
        ),
        ("GetJob", c.get_job(get()).await.map(|_| ())),
        ("Watch", c.watch(get()).await.map(|_| ())),
        ("Cancel", c.cancel(with(cancel, token)).await.map(|_| ())),
        (
            "Retry",
            c.retry(with(RetryRequest { job: job() }, token))
                .await
                .map(|_| ()),
        ),
        ("Report", a.report(with(parts, token)).await.map(|_| ())),
        (
            "CheckReporter",
            a.check_reporter(with(CheckReporterRequest {}, token))
                .await
                .map(|_| ()),
        ),
        (
            "Finalise",
            a.finalise(with(FinaliseRequest { job: job() }, token))
                .await
                .map(|_| ()),
        ),
    ]
}

/// The methods that a role may call.
fn own(role: &str) -> &'static [&'static str] {
    match role {
        "client" => &["Submit", "ListJobs", "GetJob", "Watch", "Cancel", "Retry"],
        "worker" => &["Report", "CheckReporter"],
        "coordinator" => &["Finalise"],
        _ => &[],
    }
}

/// Whether a role may call what is its own, and nothing else.
fn assert_own(role: &str, answers: Vec<(&str, Result<(), Status>)>) {
    for (method, answer) in answers {
        let code = answer.err().map_or(Code::Ok, |s| s.code());
        if own(role).contains(&method) {
            // There is no such job, and no task in an empty report: the service itself answers.
            let itself = [
                Code::Ok,
                Code::InvalidArgument,
                Code::NotFound,
                Code::FailedPrecondition,
                Code::Unavailable,
            ];
            assert!(itself.contains(&code), "{role} {method}: {code:?}");
        } else {
            assert_eq!(code, Code::PermissionDenied, "{role} {method}");
        }
    }
}

fn assert_unknown(answers: Vec<(&str, Result<(), Status>)>, says: &str) {
    for (method, answer) in answers {
        let e = answer.expect_err(method);
        assert_eq!(e.code(), Code::Unauthenticated, "{method}: {e}");
        assert!(e.message().contains(says), "{method}: {e}");
    }
}

#[test]
fn a_cluster_with_certificates_finds_what_a_plain_run_finds() {
    // Everything over TLS by private authorities: gRPC, RabbitMQ, Redis.
    let c = Cluster::with(Rabbit::start_tls(), Redis::start_tls(), &SIZES)
        .secured(Proof::certificates());
    let dir = tempfile::tempdir().expect("tempdir");
    let path = capture(&c, dir.path());
    let _services = SERVICES.map(|what| c.service(what));
    let job = submit(&c, &["s3://evidence/a.mem"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    assert_eq!(manifest(&c, &job).verdict, "complete");
    let r = run(c.command().args(["jobs"]));
    assert!(r.code == 0 && r.out.contains(&job), "{}{}", r.out, r.err);

    let out = dir.path().join("out");
    let sizes = [
        "--set",
        "scan.chunk_size=262144",
        "--set",
        "scan.overlap=4096",
    ];
    let plain = scan(&path, &out, &sizes);
    assert_eq!(plain.code, 0, "{}", plain.err);
    let local: Arc<dyn Objects> = Arc::new(LocalObjects::open_existing(&out).expect("store"));
    let of = block_on(local.list_folders("jobs/"))
        .expect("jobs")
        .remove(0);
    let names = ["findings", "artifacts", "coverage", "system"];
    let cluster: Arc<dyn Objects> = Arc::new(objects(&c, "results", "r"));
    let both = tables(cluster, &job, &names)
        .into_iter()
        .zip(tables(local, &of, &names));
    for ((table, a), (_, b)) in both {
        assert!(table == "artifacts" || !a.is_empty(), "{table} is empty");
        assert_eq!(without_inference(a), without_inference(b), "{table}");
    }
    // Neither Redis' password nor the broker's is in what services say.
    let mut said = String::new();
    for e in std::fs::read_dir(c.logs.path()).expect("logs").flatten() {
        said += &std::fs::read_to_string(e.path()).expect("a log");
    }
    assert!(
        !said.contains(REDIS_PASSWORD) && !said.contains("guest:guest"),
        "{said}"
    );
}

#[test]
fn each_call_is_for_a_role_and_nobody_else() {
    let c = Cluster::start(&[]).secured(Proof::certificates());
    let _services = ["coordinator", "aggregator"].map(|what| c.service(what));
    let authority = c.proof().authority();
    let of = |shown: Option<[PathBuf; 2]>| {
        let urls = c.urls();
        block_on(async {
            let channels = urls.map(|u| endpoint(&u, authority, shown.clone()).connect_lazy());
            answers(channels, None).await
        })
    };
    for role in ["client", "worker", "coordinator"] {
        assert_own(role, of(Some(authority.issued(role))));
    }
    // Signed by the right authority, for no role: a service's own.
    let none = of(Some(authority.issued("aggregator")));
    assert_own("none", none);
    assert_unknown(of(None), "client.cert_file");
    // A token where none is taken.
    let urls = c.urls();
    let with_token = block_on(async {
        let channels = urls
            .clone()
            .map(|u| endpoint(&u, authority, None).connect_lazy());
        answers(channels, Some("0123456789abcdef")).await
    });
    assert_unknown(with_token, "client.cert_file");

    // The same names, by another authority: no method answers at all.
    let other = Authority::new("IP:127.0.0.1");
    let forged = other.issue("client", "URI:ramsift://client,URI:ramsift://worker");
    for (method, answer) in of(Some(forged.clone())) {
        let e = answer.expect_err(method);
        let transport = [
            Code::Unavailable,
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
        ];
        assert!(transport.contains(&e.code()), "{method}: {e}");
    }
    let [cert, key] = forged.map(|p| p.display().to_string());
    let r = run(c
        .command()
        .envs([
            ("RAMSIFT_CLIENT_CERT_FILE", &cert),
            ("RAMSIFT_CLIENT_KEY_FILE", &key),
        ])
        .arg("jobs"));
    assert_eq!(r.code, 2, "{}{}", r.out, r.err);
    assert!(r.err.contains("client.cert_file"), "{}", r.err);
    // Not TLS at all, and a service that another authority signed for.
    let said = |settings: &[(&str, &str)]| {
        let r = run(c.command().envs(settings.iter().copied()).arg("jobs"));
        assert_eq!(r.code, 2, "{}{}", r.out, r.err);
        r.err
    };
    let ca = other.ca_file().display().to_string();
    let err = said(&[("RAMSIFT_CLIENT_CA_FILE", &ca)]);
    assert!(err.contains("client.ca_file"), "{err}");
    let plain = urls[0].replace("https:", "http:");
    let nothing = [
        ("RAMSIFT_COORDINATOR_URL", plain.as_str()),
        ("RAMSIFT_CLIENT_CA_FILE", ""),
        ("RAMSIFT_CLIENT_CERT_FILE", ""),
        ("RAMSIFT_CLIENT_KEY_FILE", ""),
    ];
    let err = said(&nothing);
    assert!(err.contains("write https://"), "{err}");
    let err = said(&nothing[..1]);
    assert!(
        err.contains("client.ca_file") && err.contains("https://"),
        "{err}"
    );
    let by_name = urls[0].replace("127.0.0.1", "localhost");
    let err = said(&[("RAMSIFT_COORDINATOR_URL", &by_name)]);
    assert!(err.contains("a name in the service's certificate"), "{err}");

    // Probes ask without a name.
    block_on(async {
        for url in c.urls() {
            let channel = endpoint(&url, authority, None)
                .connect()
                .await
                .expect("TLS");
            let path = "/grpc.health.v1.Health/Check".parse().expect("a path");
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.expect("ready");
            let codec = tonic_prost::ProstCodec::<ListJobsRequest, ListJobsRequest>::default();
            let answer = grpc
                .unary(Request::new(ListJobsRequest {}), path, codec)
                .await;
            answer.expect("healthy");
        }
    });
}

#[test]
fn tokens_give_roles_and_new_ones_are_taken_without_a_restart() {
    let c = Cluster::start(&SIZES).secured(Proof::tokens());
    let dir = tempfile::tempdir().expect("tempdir");
    capture(&c, dir.path());
    let _services = SERVICES.map(|what| c.service(what));
    let job = submit(&c, &["s3://evidence/a.mem"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    let authority = c.proof().authority();
    let of = |token: Option<&str>| {
        let urls = c.urls();
        block_on(async {
            let channels = urls.map(|u| endpoint(&u, authority, None).connect_lazy());
            answers(channels, token).await
        })
    };
    for role in ["client", "worker", "coordinator"] {
        assert_own(role, of(Some(&format!("token-of-{role}-0123456789"))));
    }
    assert_unknown(of(None), "client.token_file");
    for wrong in ["token-of-worker-0123456788", "x"] {
        assert_unknown(of(Some(wrong)), "server.token_file");
    }
    // The new one is known beside the old one, then sent, then alone.
    let (old, new) = (
        "client:token-of-client-0123456789",
        "client:token-of-client-9876543210",
    );
    let file = authority.at("client");
    let write = |text: String| std::fs::write(&file, text).expect("write");
    let jobs = || run(c.command().arg("jobs"));
    write(format!("{new}\n{old}\n"));
    wait_for("the new token", Duration::from_secs(30), || {
        (jobs().code == 0).then_some(())
    });
    write(format!("{new}\n"));
    wait_for("the old token is refused", Duration::from_secs(30), || {
        let said = of(Some("token-of-client-0123456789")).remove(1).1;
        said.is_err_and(|e| e.code() == Code::Unauthenticated)
            .then_some(())
    });
    assert_eq!(jobs().code, 0);
    // A file that can't be used changes nothing.
    write("nobody\n".into());
    let mut bad = 0;
    wait_for("the warning", Duration::from_secs(30), || {
        bad += 1;
        assert_own("client", of(Some("token-of-client-9876543210")));
        c.log()
            .contains("going on with those of before")
            .then_some(())
    });
    assert!(bad > 0);
}

/// A folder as Kubernetes mounts a secret: `name` is a link into `..data`, which is turned to a new folder at once.
struct Mounted {
    dir: tempfile::TempDir,
    turns: u32,
}

impl Mounted {
    fn new(files: &[(&str, &Path)]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, _) in files {
            symlink(format!("..data/{name}"), dir.path().join(name)).expect("link");
        }
        let mut m = Self { dir, turns: 0 };
        m.turn(files);
        m
    }

    fn turn(&mut self, files: &[(&str, &Path)]) {
        self.turns += 1;
        let (root, to) = (self.dir.path(), format!("..{}", self.turns));
        std::fs::create_dir(root.join(&to)).expect("folder");
        for (name, from) in files {
            std::fs::copy(from, root.join(&to).join(name)).expect("copy");
        }
        symlink(&to, root.join("..tmp")).expect("link");
        std::fs::rename(root.join("..tmp"), root.join("..data")).expect("rename");
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

#[test]
fn certificates_that_are_renewed_are_in_use_without_a_restart() {
    let c = Cluster::start(&[]).secured(Proof::certificates());
    let first = c.proof().authority();
    let second = Authority::new("IP:127.0.0.1");
    let names = "IP:127.0.0.1,URI:ramsift://coordinator";
    second.issue("coordinator", names);
    let files = |a: &Authority, what: &str| {
        let [cert, key] = a.issued(what);
        [("tls.crt", cert), ("tls.key", key), ("ca.crt", a.ca_file())]
    };
    fn refs<'a>(f: &'a [(&'a str, PathBuf)]) -> Vec<(&'a str, &'a Path)> {
        f.iter().map(|(n, p)| (*n, p.as_path())).collect()
    }
    let mut mounted = Mounted::new(&refs(&files(first, "coordinator")));
    let _coordinator = c.service_with(
        "coordinator",
        &[
            ("RAMSIFT_SERVER_CERT_FILE", &mounted.at("tls.crt")),
            ("RAMSIFT_SERVER_KEY_FILE", &mounted.at("tls.key")),
            ("RAMSIFT_SERVER_CLIENT_CA_FILE", &mounted.at("ca.crt")),
        ],
    );
    let jobs = |a: &Authority| {
        let [cert, key] = a.issue("client", "URI:ramsift://client");
        let shown = [
            ("RAMSIFT_CLIENT_CA_FILE", a.ca_file()),
            ("RAMSIFT_CLIENT_CERT_FILE", cert),
            ("RAMSIFT_CLIENT_KEY_FILE", key),
        ];
        run(c.command().envs(shown).arg("jobs"))
    };
    let r = jobs(first);
    assert_eq!(r.code, 0, "{}", r.err);
    assert_eq!(jobs(&second).code, 2);
    mounted.turn(&refs(&files(&second, "coordinator")));
    wait_for("the new certificate", Duration::from_secs(30), || {
        (jobs(&second).code == 0).then_some(())
    });
    assert_eq!(jobs(first).code, 2, "its authority is gone");
    // A key that belongs to another certificate: the one of before stays, and the log says why.
    let mut broken = files(&second, "coordinator");
    broken[1].1 = first.issued("coordinator")[1].clone();
    mounted.turn(&refs(&broken));
    wait_for("the warning", Duration::from_secs(30), || {
        assert_eq!(jobs(&second).code, 0);
        c.log()
            .contains("going on with those of before")
            .then_some(())
    });
    assert!(c.log().contains("server.key_file"), "{}", c.log());
    mounted.turn(&refs(&files(first, "coordinator")));
    wait_for("the old certificate again", Duration::from_secs(30), || {
        (jobs(first).code == 0).then_some(())
    });
}

#[test]
fn a_worker_that_may_not_report_says_so_and_loses_no_task() {
    let c = Cluster::start(&SIZES).secured(Proof::certificates());
    let a = c.proof().authority();
    let dir = tempfile::tempdir().expect("tempdir");
    capture(&c, dir.path());
    let _services = ["coordinator", "aggregator", "structured-worker"].map(|what| c.service(what));
    let [cert, key] = a.issued("client");
    let mut mounted = Mounted::new(&[("tls.crt", cert.as_path()), ("tls.key", key.as_path())]);
    let worker = c.service_with(
        "chunk-worker",
        &[
            ("RAMSIFT_CLIENT_CERT_FILE", &mounted.at("tls.crt")),
            ("RAMSIFT_CLIENT_KEY_FILE", &mounted.at("tls.key")),
            ("RAMSIFT_WORKER_PATIENCE_SECONDS", "1"),
        ],
    );
    let job = submit(&c, &["s3://evidence/a.mem"]);
    wait_for("the worker says why", Duration::from_secs(60), || {
        let (status, body) = worker.ready()?;
        (status == 503 && body.contains("work:") && body.contains("role")).then_some(())
    });
    let log = c.log();
    assert!(log.contains("this worker may not report"), "{log}");
    let r = run(c.command().args(["status", &job]));
    assert!(r.out.contains("running"), "{}{}", r.out, r.err);
    // The right certificate comes while it runs; new connections show it.
    let [cert, key] = a.issued("worker");
    mounted.turn(&[("tls.crt", cert.as_path()), ("tls.key", key.as_path())]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    assert_eq!(manifest(&c, &job).verdict, "complete");
}

/// A service that does not start.
fn does_not_start(what: &str, settings: &[&str]) -> String {
    let mut c = command();
    for s in settings {
        c.args(["--set", s]);
    }
    let r: Run = run(c.arg(what));
    assert_eq!(r.code, 2, "{settings:?}: {}", r.err);
    r.err
}

#[test]
fn a_listener_for_other_machines_needs_tls_and_a_way_to_know_callers() {
    let p = Proof::certificates();
    let a = p.authority();
    let [cert, key] = a.issued("coordinator").map(|p| p.display().to_string());
    let tokens = a.at("tokens");
    std::fs::write(&tokens, "worker:0123456789abcdef\n").expect("write");
    let (cert_file, key_file) = (
        format!("server.cert_file={cert}"),
        format!("server.key_file={key}"),
    );
    let token_file = format!("server.token_file={}", tokens.display());
    let ca_file = format!("server.client_ca_file={}", a.ca_file().display());
    let (tls, callers) = (
        ["server.cert_file", "server.key_file"],
        ["server.client_ca_file", "server.token_file"],
    );
    for what in ["coordinator", "aggregator"] {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let listen = format!("{what}.listen={any}");
            let err = does_not_start(what, &[&listen]);
            for s in [
                &tls[..],
                &callers[..],
                &[listen.split('=').next().expect("a name"), "--insecure"],
            ]
            .concat()
            {
                assert!(err.contains(s), "{s}: {err}");
            }
            let err = does_not_start(what, &[&listen, &cert_file, &key_file]);
            assert!(
                callers.iter().all(|s| err.contains(s)) && !err.contains(tls[0]),
                "{err}"
            );
            let err = does_not_start(what, &[&listen, &token_file]);
            assert!(tls.iter().all(|s| err.contains(s)), "{err}");
        }
        let err = does_not_start(what, &[&cert_file]);
        assert!(tls.iter().all(|s| err.contains(s)), "{err}");
        let err = does_not_start(what, &[&ca_file]);
        assert!(tls.iter().all(|s| err.contains(s)), "{err}");
        // What a file lacks is told with its name and its setting.
        let err = does_not_start(what, &["server.cert_file=/none.pem", &key_file]);
        assert!(err.contains("server.cert_file /none.pem"), "{err}");
        let swapped = format!("server.key_file={cert}");
        let err = does_not_start(what, &[&cert_file, &swapped]);
        assert!(
            err.contains("server.key_file") && err.contains("no private key"),
            "{err}"
        );
        let [_, other] = a.issued("worker").map(|p| p.display().to_string());
        let err = does_not_start(what, &[&cert_file, &format!("server.key_file={other}")]);
        assert!(err.contains(&other), "{err}");
    }
    // A token over plain HTTP to another machine.
    let token_file = format!("client.token_file={}", tokens.display());
    let err = does_not_start(
        "chunk-worker",
        &["aggregator.url=http://aggregator:7401", &token_file],
    );
    assert!(
        err.contains("aggregator.url") && err.contains("https://"),
        "{err}"
    );
    let err = does_not_start("chunk-worker", &["client.key_file=/k.pem"]);
    assert!(
        err.contains("client.cert_file and client.key_file"),
        "{err}"
    );
}

/// An address of this machine that is not loopback, where it has one. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let s = UdpSocket::bind("0.0.0.0:0").ok()?;
    s.connect("192.0.2.1:9").ok()?;
    let ip = s.local_addr().ok()?.ip();
    (!ip.is_loopback()).then_some(ip)
}

#[test]
fn insecure_starts_and_says_so() {
    let c = Cluster::start(&[]);
    let (port, http) = (free_port(), free_port());
    let log = c.logs.path().join("insecure.log");
    let mut start = c.command_of("coordinator");
    start
        .args(["--insecure", "coordinator"])
        .env("RAMSIFT_COORDINATOR_LISTEN", format!("0.0.0.0:{port}"))
        .env("RAMSIFT_HTTP_LISTEN", format!("127.0.0.1:{http}"));
    for starts in 1..=2 {
        let mut service = Process::start("coordinator", &mut start, &log);
        wait_for("it listens", Duration::from_secs(60), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let said = std::fs::read_to_string(&log).expect("log");
        assert_eq!(said.matches("INSECURE").count(), starts, "{said}");
        assert!(said.contains("server.cert_file"), "{said}");
        let host = own_address().unwrap_or_else(|| [127, 0, 0, 1].into());
        let url = format!("coordinator.url=http://{host}:{port}");
        let r = run(c.command().args(["jobs", "--set", &url]));
        assert_eq!(r.code, 0, "{}{}", r.out, r.err);
        assert_eq!(service.terminate(), Some(0));
    }
}

#[test]
fn services_on_one_machine_need_no_more_than_the_servers() {
    // As the README has it: the same settings for all, none of them about who may speak.
    let c = Cluster::start(&SIZES);
    let dir = tempfile::tempdir().expect("tempdir");
    capture(&c, dir.path());
    let _services = SERVICES.map(|what| {
        let log = c.logs.path().join(format!("{what}.log"));
        Process::start(what, c.command().arg(what), &log)
    });
    // A second worker of a kind takes another port.
    let log = c.logs.path().join("another.log");
    let _another = Process::start("another", c.command().arg("chunk-worker"), &log);
    wait_for("the coordinator listens", Duration::from_secs(60), || {
        TcpStream::connect(("127.0.0.1", c.ports[0])).ok()
    });
    let r = run(c
        .command()
        .args(["submit", "s3://evidence/a.mem", "--wait"]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    wait_for(
        "all have a port for their health",
        Duration::from_secs(60),
        || (c.log().matches("health endpoint").count() == 5).then_some(()),
    );
    assert!(!c.log().contains("INSECURE"), "{}", c.log());
}

#[test]
fn passwords_and_tokens_in_urls_are_in_nothing_that_is_printed() {
    const SECRET: &str = "hunter2hunter2";
    let port = free_port();
    // Nothing listens there: all that can be said about these URLs is said.
    let urls = [
        ("RAMSIFT_STORE_URL", "s3://results/r".to_owned()),
        ("RAMSIFT_S3_ACCESS_KEY", "a-name".to_owned()),
        ("RAMSIFT_S3_SECRET_KEY", SECRET.to_owned()),
        (
            "RAMSIFT_S3_ENDPOINT",
            format!("http://me:{SECRET}@127.0.0.1:{port}"),
        ),
        (
            "RAMSIFT_QUEUE_URL",
            format!("amqp://me:{SECRET}@127.0.0.1:{port}/%2f?token={SECRET}"),
        ),
        (
            "RAMSIFT_LEDGER_URL",
            format!("redis://:{SECRET}@127.0.0.1:{port}/0"),
        ),
        (
            "RAMSIFT_COORDINATOR_URL",
            format!("http://me:{SECRET}@127.0.0.1:{port}/?token={SECRET}"),
        ),
        (
            "RAMSIFT_AGGREGATOR_URL",
            format!("http://{SECRET}@127.0.0.1:{port}"),
        ),
    ];
    let said = |args: &[&str], more: &[(&str, &str)]| {
        let r = run(command()
            .envs(urls.iter().map(|(k, v)| (*k, v.as_str())))
            .env("RAMSIFT_LOG", "debug")
            .envs(more.iter().copied())
            .args(args));
        let said = format!("{}{}", r.out, r.err);
        assert!(!said.contains(SECRET), "{args:?}: {said}");
        said
    };
    let config = said(&["config"], &[]);
    assert_eq!(
        config.matches(&format!("@127.0.0.1:{port}")).count(),
        5,
        "{config}"
    );
    assert!(said(&["cancel", "job"], &[]).contains("can't be reached"));
    let wrong = format!("htp:/me:{SECRET}@x y");
    for setting in ["RAMSIFT_COORDINATOR_URL", "RAMSIFT_S3_ENDPOINT"] {
        said(&["cancel", "job"], &[(setting, &wrong)]);
        said(&["jobs"], &[(setting, &wrong)]);
    }
    said(&["submit", "s3://evidence/a.mem"], &[]);
    // Services wait for what they can't reach, and say so.
    let store = tempfile::tempdir().expect("tempdir");
    let store = store.path().display().to_string();
    for (setting, value) in [
        ("RAMSIFT_QUEUE_URL", ""),
        ("RAMSIFT_QUEUE_URL", wrong.as_str()),
        ("RAMSIFT_LEDGER_URL", wrong.as_str()),
        ("RAMSIFT_AGGREGATOR_URL", ""),
    ] {
        let log = tempfile::NamedTempFile::new().expect("tempfile");
        let http = free_port();
        let mut c = command();
        c.envs(urls.iter().map(|(k, v)| (*k, v.as_str())))
            .env("RAMSIFT_LOG", "debug")
            .env("RAMSIFT_STORE_URL", &store)
            .env("RAMSIFT_HTTP_LISTEN", format!("127.0.0.1:{http}"));
        if !value.is_empty() {
            c.env(setting, value);
        }
        let mut service = Process::start("chunk-worker", c.arg("chunk-worker"), log.path());
        let read = || std::fs::read_to_string(log.path()).expect("log");
        let told = wait_for(
            "it says what it can't reach",
            Duration::from_secs(60),
            || {
                let (_, body) = ramsift_tests::program::http_get(http, "/readyz")?;
                let log = read();
                let queue = body.contains("queue:") && log.contains("ledger does not answer");
                (queue && body.contains("aggregator:")).then_some(body)
            },
        );
        service.terminate();
        let all = format!("{told}{}", read());
        assert!(!all.contains(SECRET), "{setting}: {all}");
    }
}
