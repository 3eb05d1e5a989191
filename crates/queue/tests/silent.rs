//! Brokers that accept and say nothing, from the start or from some point on: every call ends.

mod support;

use ramsift_queue::{Lane, Queue, QueueError};
use std::sync::Arc;
use std::time::Duration;
use support::{Broker, message, queue_at, soon};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long calls that nobody answers are to wait. What is asserted holds for any value.
const SHORT: Duration = Duration::from_millis(200);

/// Accepts and stays silent; the port.
async fn silence() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            open.push(socket);
        }
    });
    port
}

/// Passes everything on to `port` until it freezes; then bytes go nowhere and nothing closes.
async fn through(port: u16) -> (u16, Arc<watch::Sender<bool>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let own = listener.local_addr().expect("bound").port();
    let (freeze, frozen) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    return;
                };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                    _ = frozen.wait_for(|f| *f) => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (own, Arc::new(freeze))
}

/// Threads on which connections are read and written.
fn connection_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a list of threads");
    let names = tasks.flatten().map(|t| t.path().join("comm"));
    let names = names.filter_map(|p| std::fs::read_to_string(p).ok());
    names.filter(|n| n.starts_with("lapin-io-loop")).count()
}

fn is_unavailable<T>(r: Result<T, QueueError>) -> bool {
    matches!(r, Err(QueueError::Unavailable { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_waits_for_ever_on_a_silent_broker() {
    let q = queue_at(silence().await).answer_within(SHORT);
    assert!(is_unavailable(soon("an error", q.check()).await));
    let published = q.publish(Lane::Chunks, message("one"));
    assert!(is_unavailable(soon("an error", published).await));
    let consumed = q.consume(Lane::Chunks, 1);
    assert!(is_unavailable(soon("an error", consumed).await));
    // Those who wait for each other's connection get no longer a wait by it.
    let crowd = (0..50).map(|_| q.check());
    let all = soon("all errors", futures::future::join_all(crowd)).await;
    assert!(all.into_iter().all(is_unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_noticed() {
    let broker = Broker::start();
    let (port, freeze) = through(broker.port()).await;
    let q = queue_at(port);
    for text in ["one", "two"] {
        q.publish(Lane::Chunks, message(text))
            .await
            .expect("stored");
    }
    let mut c = q.consume(Lane::Chunks, 1).await.expect("subscribed");
    let d = soon("a delivery", c.next()).await.expect("delivered");
    freeze.send(true).expect("connections");
    // The same link, with less patience.
    let q = q.answer_within(SHORT);
    soon("an answer or not", d.ack()).await.ok();
    assert!(is_unavailable(soon("the end", c.next()).await));
    assert!(is_unavailable(soon("an error", c.pause()).await));
    assert!(is_unavailable(soon("an error", q.check()).await));
    let published = q.publish(Lane::Chunks, message("three"));
    assert!(is_unavailable(soon("an error", published).await));
    let consumed = q.consume(Lane::Chunks, 1);
    assert!(is_unavailable(soon("an error", consumed).await));
    drop((c, q));
    // Of all those connections nothing stays.
    soon("the end of all connections", async {
        while connection_threads() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
