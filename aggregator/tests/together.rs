//! Two aggregators that seal one job, step by step beside each other.

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use ramsift_aggregator::{FinaliseError, finalise};
use ramsift_store::job::read;
use ramsift_store::objects::ObjectMeta;
use ramsift_store::tables::{name, read_segment};
use ramsift_store::{Keys, Manifest, ObjectError, Objects};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::{JOB, aggregator, differing, folder, honest, info, store};
use tokio::sync::watch;

/// How far those are that go in step.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Who has not ended.
    live: usize,
    waiting: usize,
    round: u64,
}

/// Lets nobody write before all others are about to write too, or have ended.
#[derive(Debug)]
struct InStep(watch::Sender<Step>);

impl InStep {
    fn new(live: usize) -> Self {
        let step = Step {
            live,
            waiting: 0,
            round: 0,
        };
        Self(watch::Sender::new(step))
    }

    async fn write(&self) {
        let mut seen = self.0.subscribe();
        let mut mine = 0;
        self.0.send_modify(|s| {
            mine = s.round;
            s.waiting += 1;
            Self::turn(s);
        });
        let gone = seen.wait_for(|s| s.round > mine).await;
        drop(gone.expect("the sender is a field"));
    }

    fn end(&self) {
        self.0.send_modify(|s| {
            s.live -= 1;
            Self::turn(s);
        });
    }

    fn turn(s: &mut Step) {
        if s.waiting >= s.live {
            (s.waiting, s.round) = (0, s.round + 1);
        }
    }
}

/// A store whose writers go in step, and which counts what is written over.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Objects>,
    step: Arc<InStep>,
    /// Hashes of what every key has had.
    had: Arc<Mutex<BTreeMap<String, Vec<blake3::Hash>>>>,
}

impl Watched {
    async fn note(&self, key: &str) {
        if let Ok((data, _)) = self.inner.get(key).await {
            let hash = blake3::hash(&data);
            let mut had = self.had.lock().expect("not poisoned");
            let of = had.entry(key.to_owned()).or_default();
            if of.last() != Some(&hash) {
                of.push(hash);
            }
        }
    }
}

#[async_trait]
impl Objects for Watched {
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.step.write().await;
        let done = self.inner.put(key, data).await;
        self.note(key).await;
        done
    }
    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.step.write().await;
        let done = self.inner.put_new(key, data).await;
        self.note(key).await;
        done
    }
    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError> {
        self.step.write().await;
        let done = self.inner.put_over(key, data, etag).await;
        self.note(key).await;
        done
    }
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.step.write().await;
        let done = self.inner.put_file(key, path).await;
        self.note(key).await;
        done
    }
    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.step.write().await;
        let done = self.inner.put_file_new(key, path).await;
        self.note(key).await;
        done
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
        self.step.write().await;
        self.inner.delete(key).await
    }
    fn url(&self, key: &str) -> String {
        self.inner.url(key)
    }
    fn path(&self, key: &str) -> Option<PathBuf> {
        self.inner.path(key)
    }
}

async fn seal(
    objects: Arc<dyn Objects>,
    step: Arc<InStep>,
    clamav: Option<&'static str>,
) -> Result<Manifest, FinaliseError> {
    let sealed = finalise(&aggregator(&objects), JOB, &info(clamav)).await;
    step.end();
    sealed
}

#[tokio::test(flavor = "multi_thread")]
async fn they_agree_on_one_manifest_that_verifies_and_write_nothing_over() {
    let (_dir, objects) = folder();
    store(objects.as_ref(), &honest()).await;
    let step = Arc::new(InStep::new(2));
    let watched = Watched {
        inner: objects.clone(),
        step: step.clone(),
        had: Arc::default(),
    };
    let had = watched.had.clone();
    let watched: Arc<dyn Objects> = Arc::new(watched);
    // They differ in what they know of clamd: what they write must not.
    let (a, b) = tokio::join!(
        tokio::spawn(seal(watched.clone(), step.clone(), Some("1.0 / 27000"))),
        tokio::spawn(seal(watched.clone(), step, None)),
    );
    let (a, b) = (
        a.expect("ran").expect("sealed"),
        b.expect("ran").expect("sealed"),
    );
    assert_eq!(a, b);
    let (stored, _) = read::<Manifest>(objects.as_ref(), &Keys::new(JOB).manifest())
        .await
        .expect("read");
    assert_eq!(stored, a);
    assert_eq!(a.verdict, "complete", "{:?}", a.gaps);
    assert_eq!(differing(objects.as_ref(), &a).await, Vec::<String>::new());
    let had = had.lock().expect("not poisoned");
    let over: Vec<_> = had.iter().filter(|(_, h)| h.len() > 1).collect();
    assert!(over.is_empty(), "written over: {over:?}");
    assert!(had.len() > 4, "{had:?}");
}

#[tokio::test]
async fn what_an_earlier_attempt_left_is_not_written_over_but_named() {
    let (_dir, objects) = folder();
    store(objects.as_ref(), &honest()).await;
    let seal = async || finalise(&aggregator(&objects), JOB, &info(None)).await;
    let first = seal().await.expect("sealed");
    // An attempt of another version, which died before its manifest: the same rows, encoded otherwise.
    let keys = Keys::new(JOB);
    let key = keys.table(name::FINDINGS);
    let encode = |n: usize, data: Bytes| {
        let all = read_segment(data).expect("Parquet");
        let mut w = ArrowWriter::try_new(Vec::new(), all[0].schema(), None).expect("a writer");
        for b in &all {
            w.write(&b.slice(0, b.num_rows() - n)).expect("rows");
        }
        w.into_inner().expect("Parquet")
    };
    let (ours, _) = objects.get(&key).await.expect("a table");
    let theirs = encode(0, ours.clone());
    assert_ne!(theirs, ours);
    let leave = async |data: Vec<u8>| {
        objects.delete(&keys.manifest()).await.expect("deleted");
        objects.put(&key, data.into()).await.expect("stored");
    };
    leave(theirs.clone()).await;
    let second = seal().await.expect("sealed");
    let (now, _) = objects.get(&key).await.expect("a table");
    assert_eq!(now, theirs, "left as it was");
    assert_eq!(
        differing(objects.as_ref(), &second).await,
        Vec::<String>::new()
    );
    let rows = |m: &Manifest| m.files.iter().find(|f| f.key == key).expect("named").rows;
    assert_eq!(rows(&second), rows(&first));
    // With a row less it is no table of this job.
    leave(encode(1, ours)).await;
    let e = seal().await.expect_err("a row is missing");
    assert!(e.is_fatal() && e.to_string().contains("findings"), "{e}");
}
