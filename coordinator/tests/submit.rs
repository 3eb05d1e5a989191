//! What a coordinator takes and what it refuses, as clients see it.

mod support;

use ramsift_auth::ServerSecurity;
use ramsift_coordinator::serve;
use ramsift_proto::v1::coordinator_client::CoordinatorClient;
use ramsift_proto::v1::{JobSpec, SubmitRequest};
use ramsift_store::job::rules_key;
use std::net::SocketAddr;
use support::{World, spec};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

async fn client(w: &World, allow: &str) -> CoordinatorClient<Channel> {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let served = serve(
        any,
        w.coordinator("a", allow),
        &ServerSecurity::anyone(),
        CancellationToken::new(),
    )
    .await;
    let (at, _) = served.expect("a free port");
    let connected = CoordinatorClient::connect(format!("http://{at}")).await;
    connected.expect("a connection")
}

async fn submit(c: &mut CoordinatorClient<Channel>, spec: JobSpec) -> Result<String, Status> {
    let r = c.submit(SubmitRequest { spec: Some(spec) }).await?;
    Ok(r.into_inner().job)
}

/// Refused as a mistake of whoever asks, saying these words, and not stored.
async fn refused(w: &World, c: &mut CoordinatorClient<Channel>, spec: JobSpec, says: &[&str]) {
    let e = submit(c, spec.clone())
        .await
        .expect_err(&format!("{spec:?}"));
    assert_eq!(e.code(), Code::InvalidArgument, "{e}");
    for s in says {
        assert!(e.message().contains(s), "{s:?} in {}", e.message());
    }
    let stored = w.objects.list("jobs/").await.expect("a listing");
    assert!(stored.is_empty(), "{spec:?}");
}

#[tokio::test]
async fn files_of_the_service_are_no_evidence() {
    let w = World::new();
    let path = |n: &str| w.dir.path().join(n).display().to_string();
    std::fs::create_dir_all(path("in")).expect("folder");
    std::fs::write(path("in/a.mem"), vec![7; 1 << 16]).expect("written");
    std::fs::write(path("other"), b"secret").expect("written");
    std::os::unix::fs::symlink(path("other"), path("in/link")).expect("link");
    let made = std::process::Command::new("mkfifo")
        .arg(path("in/fifo"))
        .status();
    assert!(made.expect("mkfifo").success());

    let mut c = client(&w, "s3://").await;
    for local in [
        "/etc/passwd",
        "etc/passwd",
        "file:///etc/passwd",
        "/dev/zero",
        &path("in/fifo"),
        &path("in/a.mem"),
    ] {
        refused(&w, &mut c, spec("j", local), &["sources.allow"]).await;
    }
    let listed = format!("s3://evidence/cases,{}", path("in"));
    let mut c = client(&w, &listed).await;
    for local in [
        "/etc/passwd",
        &path("in/link"),
        &path("in/../other"),
        "s3://evidence/a",
        "s3://else/cases/a",
    ] {
        refused(&w, &mut c, spec("j", local), &["sources.allow"]).await;
    }
    for odd in ["in/fifo", "in"] {
        refused(&w, &mut c, spec("j", &path(odd)), &["no regular file"]).await;
    }
    for (job, right) in [
        ("a", path("in/a.mem")),
        ("b", "s3://evidence/cases/b.mem".to_owned()),
    ] {
        let taken = submit(&mut c, spec(job, &right)).await;
        assert_eq!(taken.expect("taken"), job);
    }
}

#[tokio::test]
async fn what_a_job_names_must_be_there() {
    let w = World::new();
    let mut c = client(&w, "s3://").await;
    let right = || spec("j", "s3://evidence/a.mem");
    let key = rules_key(&"ab".repeat(32));
    let with = |f: &dyn Fn(&mut JobSpec)| {
        let mut s = right();
        f(&mut s);
        s
    };
    type Wrong<'a> = (&'a dyn Fn(&mut JobSpec), &'a [&'a str]);
    let wrong: [Wrong<'_>; 16] = [
        (&|s| s.job = "../up".into(), &["no job name"]),
        (&|s| s.job = "x".repeat(300), &["no job name"]),
        (&|s| s.source = String::new(), &["no capture"]),
        (
            &|s| (s.structured, s.unstructured) = (false, false),
            &["neither"],
        ),
        (&|s| s.chunk_size = 0, &["0"]),
        (&|s| s.chunk_size = 5000, &["5000"]),
        (&|s| s.chunk_size = 1 << 40, &["1099511627776"]),
        (&|s| s.overlap = 1 << 30, &["overlap"]),
        (&|s| s.hash = "md5".into(), &["md5"]),
        (&|s| s.expect_hash = "abc".into(), &["abc"]),
        (&|s| s.av = "all".into(), &["av", "all"]),
        (&|s| s.matches = "some".into(), &["matches", "some"]),
        (
            &|s| s.carvers = vec!["url".into(), "nonsense".into()],
            &["nonsense"],
        ),
        (&|s| s.timezone = "Mars/Olympus".into(), &["Mars/Olympus"]),
        (
            &|s| s.rules_digest = "../jobs/j/spec.json".into(),
            &["no digest"],
        ),
        (&|s| s.rules_digest = "ab".repeat(32), &["store.url", "ab"]),
    ];
    for (change, says) in wrong {
        refused(&w, &mut c, with(change), says).await;
    }
    // There, but not of this version; then as it should be.
    let put = async |data: &'static [u8]| {
        let put = w.objects.put(&key, data.into());
        put.await.expect("stored");
    };
    let ruled = with(&|s| s.rules_digest = "ab".repeat(32));
    put(b"old").await;
    refused(&w, &mut c, ruled.clone(), &["another version"]).await;
    put(b"good").await;
    submit(&mut c, ruled.clone()).await.expect("taken");
    // Known to be good, and gone all the same.
    w.objects.delete(&key).await.expect("deleted");
    let again = JobSpec {
        job: "k".into(),
        ..ruled
    };
    let e = submit(&mut c, again).await.expect_err("no rules");
    assert_eq!(e.code(), Code::InvalidArgument, "{e}");
}
