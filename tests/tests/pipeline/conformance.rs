//! One suite per seam: what is in process and what is remote behave alike.

use bytes::Bytes;
use ramsift_layers::source::{S3Client, S3Config, SignPayloads};
use ramsift_queue::{Lane, MemoryQueue, Message, Queue};
use ramsift_store::ledger::Wanted;
use ramsift_store::objects::check_conditions;
use ramsift_store::{Ledger, LocalObjects, MemoryLedger, Objects, RedisLedger, S3Objects};
use ramsift_tests::servers::{Rabbit, Redis, S3};
use std::time::Duration;

fn message(text: &str) -> Message {
    let headers = [("traceparent".to_owned(), format!("00-{text}"))].into();
    Message {
        body: Bytes::copy_from_slice(text.as_bytes()),
        headers,
    }
}

/// Fails when nothing comes.
async fn next(c: &mut Box<dyn ramsift_queue::Consumer>) -> ramsift_queue::Delivery {
    tokio::time::timeout(Duration::from_secs(20), c.next())
        .await
        .expect("a delivery within 20 s")
        .expect("the subscription holds")
}

async fn queue_suite(q: &dyn Queue) {
    q.check().await.expect("reachable");
    q.publish(Lane::Chunks, message("one"))
        .await
        .expect("stored");
    let mut c = q.consume(Lane::Chunks, 1).await.expect("subscribed");
    let d = next(&mut c).await;
    assert_eq!(d.message, message("one"));
    assert_eq!(d.redelivered, 0);
    d.hand_back().await.expect("answered");
    let d = next(&mut c).await;
    assert_eq!(d.message.body, "one");
    d.ack().await.expect("answered");
    // Prefetch 1: the second message waits for the first one's answer.
    q.publish(Lane::Chunks, message("two"))
        .await
        .expect("stored");
    q.publish(Lane::Chunks, message("three"))
        .await
        .expect("stored");
    let two = next(&mut c).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(300), c.next())
            .await
            .is_err()
    );
    two.ack().await.expect("answered");
    drop(c);
    let mut c = q.consume(Lane::Chunks, 10).await.expect("subscribed");
    next(&mut c).await.ack().await.expect("answered");
    // Given up too often, a task moves on: to the suspects, and from there to the dead.
    q.publish(Lane::Chunks, message("poison"))
        .await
        .expect("stored");
    let mut suspects = q.consume(Lane::Suspects, 1).await.expect("subscribed");
    let mut dead = q.consume(Lane::Dead, 1).await.expect("subscribed");
    for _ in 0..=Lane::Chunks.delivery_limit().expect("limited") {
        let d = next(&mut c).await;
        assert_eq!(d.message.body, "poison");
        d.give_up().await.expect("answered");
    }
    for _ in 0..=Lane::Suspects.delivery_limit().expect("limited") {
        let d = next(&mut suspects).await;
        assert_eq!(d.message.body, "poison");
        d.give_up().await.expect("answered");
    }
    let d = next(&mut dead).await;
    assert_eq!(d.message.body, "poison");
    d.ack().await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_in_process() {
    queue_suite(&MemoryQueue::new()).await;
}

#[test]
fn queue_on_rabbitmq() {
    let mut r = Rabbit::start();
    let q = r.queue("suite");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(queue_suite(&q));
    // A broker that is gone is noticed. Its return is tested with the queue itself.
    r.down();
    assert!(runtime.block_on(q.check()).is_err());
}

async fn object_suite(o: &dyn Objects) {
    check_conditions(o).await.expect("conditional writes");
    assert!(o.get("a/none").await.expect_err("none").is_not_found());
    assert!(o.head("a/none").await.expect_err("none").is_not_found());
    let tag = o
        .put("a/b/one", Bytes::from_static(b"hello world"))
        .await
        .expect("put");
    let (data, found) = o.get("a/b/one").await.expect("get");
    assert_eq!((&data[..], &found), (&b"hello world"[..], &tag));
    assert_eq!(
        &o.get_range("a/b/one", 6..11).await.expect("range")[..],
        b"world"
    );
    assert_eq!(o.head("a/b/one").await.expect("head").size, 11);
    let again = o.put_new("a/b/one", Bytes::from_static(b"other")).await;
    assert!(again.expect_err("exists").is_conflict());
    let new = o
        .put_over("a/b/one", Bytes::from_static(b"second"), &tag)
        .await
        .expect("over");
    let stale = o
        .put_over("a/b/one", Bytes::from_static(b"third"), &tag)
        .await;
    assert!(stale.expect_err("stale").is_conflict());
    assert_ne!(new, tag);
    o.put("a/c", Bytes::from_static(b"x")).await.expect("put");
    o.put("ab/d", Bytes::from_static(b"x")).await.expect("put");
    let keys: Vec<_> = o
        .list("a/")
        .await
        .expect("list")
        .into_iter()
        .map(|m| m.key)
        .collect();
    assert_eq!(keys, ["a/b/one", "a/c"]);
    assert_eq!(o.list_folders("a/").await.expect("folders"), ["b"]);
    let file = tempfile::NamedTempFile::new().expect("file");
    let big: Vec<u8> = ramsift_tests::fixtures::noise(7, (20 << 20) + 3);
    std::fs::write(file.path(), &big).expect("write");
    o.put_file("big", file.path()).await.expect("upload");
    assert!(o.get("big").await.expect("get").0 == big);
    let again = o.put_file_new("big", file.path()).await;
    assert!(again.expect_err("exists").is_conflict());
    o.delete("big").await.expect("delete");
    o.put_file_new("big", file.path()).await.expect("new");
    assert!(o.get("big").await.expect("get").0 == big);
    let small = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(small.path(), b"small").expect("write");
    o.put_file_new("small", small.path()).await.expect("new");
    let again = o.put_file_new("small", file.path()).await;
    assert!(again.expect_err("exists").is_conflict());
    assert_eq!(&o.get("small").await.expect("get").0[..], b"small");
    o.delete("small").await.expect("delete");
    o.delete("big").await.expect("delete");
    o.delete("big").await.expect("deleting nothing is no error");
    assert!(o.get("big").await.expect_err("gone").is_not_found());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_in_a_folder() {
    let dir = tempfile::tempdir().expect("tempdir");
    object_suite(&LocalObjects::open(dir.path()).expect("open")).await;
    let o = LocalObjects::open(dir.path()).expect("open");
    assert!(o.get("../outside").await.is_err());
}

#[test]
fn objects_on_s3() {
    let s3 = S3::start();
    let bucket = s3.bucket("suite");
    ramsift_tests::block_on(object_suite(&bucket));
    drop(s3.bucket("unsigned"));
    ramsift_tests::block_on(async {
        let config = S3Config {
            sign_payloads: SignPayloads::Never,
            ..s3.config()
        };
        let client = S3Client::connect(&config).await;
        object_suite(&S3Objects::new(client, "unsigned", "")).await;
    });
}

async fn ledger_suite(l: &dyn Ledger) {
    l.check().await.expect("reachable");
    assert_eq!(l.wanted("j", "chunk-1").await.expect("answer"), Wanted::Yes);
    l.settle("j", &["chunk-1".into(), "chunk-2".into(), "chunk-1".into()])
        .await
        .expect("noted");
    l.settle("j", &[]).await.expect("nothing to note");
    assert_eq!(l.settled("j").await.expect("answer"), 2);
    assert_eq!(l.left("j").await.expect("answer"), None);
    l.expect("j", 3).await.expect("noted");
    assert_eq!(l.left("j").await.expect("answer"), Some(1));
    l.expect("j", 5).await.expect("noted");
    assert_eq!(l.left("j").await.expect("answer"), Some(3));
    assert_eq!(l.left("other").await.expect("answer"), None);
    assert_eq!(
        l.wanted("j", "chunk-1").await.expect("answer"),
        Wanted::Settled
    );
    assert_eq!(l.wanted("j", "chunk-3").await.expect("answer"), Wanted::Yes);
    l.close("j").await.expect("noted");
    assert_eq!(
        l.wanted("j", "chunk-3").await.expect("answer"),
        Wanted::Closed
    );
    assert_eq!(
        l.wanted("other", "chunk-3").await.expect("answer"),
        Wanted::Yes
    );
    l.forget("j").await.expect("forgotten");
    assert_eq!(l.wanted("j", "chunk-1").await.expect("answer"), Wanted::Yes);
    assert_eq!(l.left("j").await.expect("answer"), None);
}

#[tokio::test]
async fn ledger_in_process() {
    ledger_suite(&MemoryLedger::default()).await;
}

#[test]
fn ledger_on_redis() {
    let redis = Redis::start();
    ramsift_tests::block_on(ledger_suite(&RedisLedger::new(redis.url(), "suite")));
    let url = redis.url();
    drop(redis);
    let down = RedisLedger::new(&url, "suite");
    let e = ramsift_tests::block_on(down.check()).expect_err("down");
    assert!(e.to_string().contains("ledger at"), "{e}");
}
