//! A store that writes and does not say so.

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use ramsift_proto::v1::{JobPhase, JobState};
use ramsift_queue::MemoryQueue;
use ramsift_store::job::read;
use ramsift_store::objects::ObjectMeta;
use ramsift_store::{Keys, ObjectError, Objects};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{World, spec};
use tokio_util::sync::CancellationToken;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(120);

/// Loses the answers to the next replacements.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn Objects>,
    lose: AtomicUsize,
}

#[async_trait]
impl Objects for Forgetful {
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.inner.put(key, data).await
    }

    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.inner.put_new(key, data).await
    }

    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError> {
        let done = self.inner.put_over(key, data, etag).await?;
        if !key.ends_with("state.json") {
            return Ok(done);
        }
        let lose = |n: usize| n.checked_sub(1);
        let lost = self
            .lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose);
        match lost {
            Ok(_) => Err(ObjectError::Failed {
                what: key.to_owned(),
                detail: "connection reset".into(),
            }),
            Err(_) => Ok(done),
        }
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.inner.put_file(key, path).await
    }

    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.inner.put_file_new(key, path).await
    }

    async fn get(&self, key: &str) -> Result<(Bytes, String), ObjectError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.inner.list(prefix).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        self.inner.list_folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.inner.delete(key).await
    }

    fn url(&self, key: &str) -> String {
        self.inner.url(key)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.inner.path(key)
    }
}

#[tokio::test]
async fn who_watches_a_job_hears_of_an_end_whose_answer_was_lost() {
    let mut w = World::new();
    let store = Arc::new(Forgetful {
        inner: w.objects.clone(),
        lose: AtomicUsize::new(0),
    });
    w.objects = store.clone();
    let folder = w.dir.path().join("in");
    std::fs::create_dir(&folder).expect("folder");
    let capture = folder.join("a.mem");
    std::fs::write(&capture, vec![7; 1 << 20]).expect("written");
    let allow = folder.display().to_string();
    let c = w.coordinator_with("a", &allow, Arc::new(MemoryQueue::new()));
    let stop = CancellationToken::new();
    let (running, until) = (c.clone(), stop.clone());
    tokio::spawn(async move { running.run(until).await });
    let s = spec("j", &capture.display().to_string());
    c.submit(s).await.expect("taken");
    let key = Keys::new("j").state();
    let test = async {
        let mut watch = loop {
            let state = read::<JobState>(w.objects.as_ref(), &key).await;
            if state.is_ok_and(|(s, _)| s.phase() == JobPhase::Running)
                && let Some(watch) = c.subscribe("j")
            {
                break watch;
            }
            tokio::task::yield_now().await;
        };
        store.lose.store(1, Ordering::SeqCst);
        c.cancel("j", "enough").await.expect("noted");
        let ends = |p: &ramsift_proto::v1::JobProgress| {
            let state = p.state.as_ref();
            state.is_some_and(|s| s.phase() == JobPhase::Cancelled)
        };
        watch.wait_for(ends).await.expect("it ends");
    };
    let done = tokio::time::timeout(HANGS, test).await;
    done.expect("who watches hears of the end");
    assert_eq!(store.lose.load(Ordering::SeqCst), 0, "an answer was lost");
    let (state, _) = read::<JobState>(w.objects.as_ref(), &key)
        .await
        .expect("a state");
    assert_eq!(state.phase(), JobPhase::Cancelled);
    stop.cancel();
}
