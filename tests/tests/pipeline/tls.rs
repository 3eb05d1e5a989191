//! A broker that speaks TLS only, with a certificate that a private authority signed.

use crate::distributed::{manifest, submit, upload};
use ramsift_queue::{Lane, Message, Queue, QueueError, RabbitConfig, RabbitQueue};
use ramsift_store::{Ledger, RedisLedger};
use ramsift_tests::fixtures::image;
use ramsift_tests::program::{Cluster, run};
use ramsift_tests::servers::{REDIS_PASSWORD, Rabbit, Redis};
use ramsift_tests::{block_on, wait_for};
use std::path::PathBuf;
use std::time::Duration;

/// A queue at `url` that trusts the system's authorities and those in `ca_file`.
fn queue(url: String, ca_file: Option<PathBuf>) -> RabbitQueue {
    RabbitQueue::new(RabbitConfig {
        url: url.into(),
        prefix: "tests".into(),
        name: "tests".into(),
        ca_file,
    })
}

/// What a first connection ends with.
fn refused(url: String, ca_file: Option<PathBuf>) -> String {
    match block_on(queue(url, ca_file).check()) {
        Err(e @ QueueError::Unavailable { .. }) => e.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_broker_is_trusted_by_its_authority_and_by_its_name() {
    let rabbit = Rabbit::start_tls();
    let q = queue(rabbit.url(), rabbit.ca_file());
    let sent = Message {
        body: "over TLS".into(),
        ..Message::default()
    };
    block_on(async {
        q.publish(Lane::Chunks, sent.clone()).await.expect("stored");
        let mut c = q.consume(Lane::Chunks, 1).await.expect("subscribed");
        let d = c.next().await.expect("delivered");
        assert_eq!(d.message, sent);
        d.ack().await.expect("answered");
    });

    let said = refused(rabbit.url(), None);
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert!(said.contains("queue.ca_file"), "{said}");
    // The certificate holds for 127.0.0.1.
    let said = refused(rabbit.url_at("127.0.0.2"), rabbit.ca_file());
    assert!(said.contains("127.0.0.2"), "{said}");
    assert!(said.contains("a name in its certificate"), "{said}");
    // Not TLS at all: the broker ends the connection.
    refused(rabbit.url().replace("amqps:", "amqp:"), None);

    let dir = tempfile::tempdir().expect("tempdir");
    let missing = dir.path().join("no.pem");
    let said = refused(rabbit.url(), Some(missing.clone()));
    assert!(said.contains(&missing.display().to_string()), "{said}");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no PEM\n").expect("write");
    let said = refused(rabbit.url(), Some(empty));
    assert!(said.contains("no certificate in it"), "{said}");
}

#[test]
fn a_cluster_works_with_a_broker_that_speaks_tls_only() {
    let c = Cluster::with(Rabbit::start_tls(), Redis::start(), &[]);
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a.mem");
    let bytes = image(1 << 20, &[(0x2000, b"\0http://tls.example.org/\0")]);
    std::fs::write(&path, &bytes).expect("write");
    upload(&c, "a.mem", &path);
    // Without the authority a service says what is missing.
    let stranger = c.service_with("structured-worker", &[("RAMSIFT_QUEUE_CA_FILE", "")]);
    wait_for("the reason", Duration::from_secs(60), || {
        let (status, body) = stranger.ready()?;
        (status == 503 && body.contains("queue.ca_file")).then_some(())
    });
    let _services = [
        "coordinator",
        "aggregator",
        "structured-worker",
        "chunk-worker",
    ]
    .map(|what| c.service(what));
    let job = submit(&c, &["s3://evidence/a.mem"]);
    let r = run(c.command().args(["watch", &job]));
    assert_eq!(r.code, 0, "{}{}\n{}", r.out, r.err, c.log());
    assert_eq!(manifest(&c, &job).verdict, "complete");
    let r = run(c.command().args(["results", &job, "--kind", "url"]));
    assert!(r.out.contains("tls.example.org"), "{}{}", r.out, r.err);
}

#[test]
fn a_redis_over_tls_is_trusted_by_its_authority() {
    let redis = Redis::start_tls();
    let ledger = |ca: Option<PathBuf>| RedisLedger::new(redis.url(), "tests").trusting(ca);
    block_on(async {
        let l = ledger(redis.ca_file());
        l.check().await.expect("answers");
        l.expect("job", 3).await.expect("noted");
        l.settle("job", &["chunk-1".into()]).await.expect("noted");
        assert_eq!(l.left("job").await.expect("told"), Some(2));
    });
    let refused = |ca: Option<PathBuf>| {
        let said = block_on(ledger(ca).check())
            .expect_err("refused")
            .to_string();
        assert!(!said.contains(REDIS_PASSWORD), "{said}");
        said
    };
    let said = refused(None);
    assert!(
        said.contains("UnknownIssuer") && said.contains("ledger.ca_file"),
        "{said}"
    );
    let dir = tempfile::tempdir().expect("tempdir");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no PEM\n").expect("write");
    assert!(refused(Some(empty)).contains("no certificate in it"));
    let missing = dir.path().join("no.pem");
    assert!(refused(Some(missing.clone())).contains(&missing.display().to_string()));
    // Not TLS at all.
    let plain = redis.url().replace("rediss:", "redis:");
    let said = block_on(RedisLedger::new(&plain, "tests").check()).expect_err("plain");
    assert!(!said.to_string().contains(REDIS_PASSWORD), "{said}");
}

#[test]
fn a_ledger_takes_a_new_authority_without_being_made_anew() {
    // Two servers of two authorities, one after the other at the same place: as after a renewal.
    let dir = tempfile::tempdir().expect("tempdir");
    let ca = dir.path().join("ca.crt");
    let mut redis = Redis::start_tls();
    std::fs::copy(redis.ca_file().expect("TLS"), &ca).expect("copy");
    let l = RedisLedger::new(redis.url(), "tests").trusting(Some(ca.clone()));
    // One runtime: the connection lives on it.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(l.check()).expect("answers");
    redis.down();
    redis.renew();
    redis.up();
    std::fs::copy(redis.ca_file().expect("TLS"), &ca).expect("copy");
    wait_for("the new authority", Duration::from_secs(60), || {
        runtime.block_on(l.check()).ok()
    });
}
