//! Jobs share the queue by turns: a small one does not wait behind all chunks of a large one.

mod support;

use prost::Message as _;
use ramsift_coordinator::{Coordinator, Submitted};
use ramsift_proto::v1::{JobPhase, JobSpec, JobState, Task};
use ramsift_queue::{Lane, MemoryQueue, Queue};
use ramsift_store::Keys;
use ramsift_store::job::read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{World, spec};
use tokio_util::sync::CancellationToken;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(120);
const CHUNK: u64 = 64 << 20;

async fn submit(c: &Coordinator, w: &World, job: &str, capture: &Path, bytes: u64) {
    let file = std::fs::File::create(capture).expect("created");
    file.set_len(bytes).expect("sparse");
    let spec = JobSpec {
        chunk_size: CHUNK,
        structured: false,
        ..spec(job, &capture.display().to_string())
    };
    assert_eq!(c.submit(spec).await.expect("taken"), Submitted::New);
    let running = async {
        let key = Keys::new(job).state();
        loop {
            let (state, _) = read::<JobState>(w.objects.as_ref(), &key)
                .await
                .expect("a state");
            if state.phase() == JobPhase::Running {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(HANGS, running).await;
    done.unwrap_or_else(|_| panic!("{job} does not run within {HANGS:?}"));
}

#[tokio::test]
async fn a_small_job_comes_soon_after_a_large_one_has_begun() {
    let w = World::new();
    let folder = w.dir.path().join("in");
    std::fs::create_dir(&folder).expect("folder");
    let queue = Arc::new(MemoryQueue::new());
    let c = w.coordinator_with("a", &folder.display().to_string(), queue.clone());
    let stop = CancellationToken::new();
    let (running, until) = (c.clone(), stop.clone());
    tokio::spawn(async move { running.run(until).await });
    submit(&c, &w, "large", &folder.join("large.raw"), 200 * CHUNK).await;
    submit(&c, &w, "small", &folder.join("small.raw"), 1 << 20).await;
    let take = async {
        let mut tasks = queue.consume(Lane::Chunks, 1).await.expect("a consumer");
        let mut before = 0;
        loop {
            let d = tasks.next().await.expect("a task");
            let task = Task::decode(d.message.body.clone()).expect("a task");
            d.ack().await.expect("answered");
            if task.job == "small" {
                return before;
            }
            before += 1;
        }
    };
    let before = tokio::time::timeout(HANGS, take)
        .await
        .expect("the small one");
    // Its turn comes after two chunks of the large one, and what lay in the queue before it; the window is 256.
    assert!(before <= 8, "{before} chunks of the large one came first");
    stop.cancel();
}
