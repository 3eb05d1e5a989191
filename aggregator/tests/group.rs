//! When a group of reports is committed: here no group ever gets old or large.

use ramsift_aggregator::{Aggregator, CommitLimits};
use ramsift_proto::v1::{ObjectRef, SegmentRef, TaskReport, Wishes};
use ramsift_store::commits::all as commits;
use ramsift_store::{Ack, Keys, Ledger, LocalObjects, MemoryLedger, Objects, Report};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(60);

struct World {
    aggregator: Aggregator,
    objects: Arc<dyn Objects>,
    ledger: Arc<MemoryLedger>,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    world_with(usize::MAX).await
}

/// One where as many reports as this are all that can wait.
async fn world_with(reports: usize) -> World {
    let dir = tempfile::tempdir().expect("tempdir");
    let objects: Arc<dyn Objects> = Arc::new(LocalObjects::open(dir.path()).expect("store"));
    let key = Keys::new("j").plan();
    let plan = objects.put(&key, "{}".into());
    plan.await.expect("planned");
    let ledger = Arc::new(MemoryLedger::default());
    let limits = CommitLimits {
        age: Duration::MAX,
        reports,
        ..CommitLimits::default()
    };
    World {
        aggregator: Aggregator::new(objects.clone(), ledger.clone(), limits),
        objects,
        ledger,
        _dir: dir,
    }
}

fn report(task: &str) -> Report {
    let header = TaskReport {
        job: "j".into(),
        task: task.into(),
        attempt: format!("attempt at {task}"),
        ..TaskReport::default()
    };
    Report {
        header,
        ..Report::default()
    }
}

impl World {
    /// The tasks of each commit, in order.
    async fn committed(&self) -> Vec<Vec<String>> {
        let all = commits(self.objects.as_ref(), &Keys::new("j")).await;
        let mut out = Vec::new();
        for c in all.expect("commits") {
            out.push(c.reports.into_iter().map(|r| r.task).collect());
        }
        out
    }

    /// Hands a report over and waits until it is in a group.
    async fn hand_over(&self, r: Report) -> tokio::task::JoinHandle<Result<Ack, String>> {
        let a = self.aggregator.clone();
        let handed = tokio::spawn(async move { a.take(r).await });
        while self.aggregator.is_idle() {
            assert!(!handed.is_finished(), "{:?}", handed.await);
            tokio::task::yield_now().await;
        }
        handed
    }
}

#[tokio::test]
async fn the_last_reports_of_a_job_do_not_wait_for_others() {
    let w = world().await;
    w.ledger.expect("j", 3).await.expect("noted");
    w.ledger
        .settle("j", &["chunk-0".into()])
        .await
        .expect("noted");
    let first = w.hand_over(report("chunk-1")).await;
    assert_eq!(w.committed().await, Vec::<Vec<String>>::new());
    let last = timeout(HANGS, w.aggregator.take(report("chunk-2")));
    assert_eq!(last.await.expect("in time"), Ok(Ack::Durable));
    assert_eq!(first.await.expect("handed over"), Ok(Ack::Durable));
    assert_eq!(w.committed().await, [["chunk-1", "chunk-2"]]);
    assert_eq!(w.ledger.left("j").await.expect("answer"), Some(0));
}

#[tokio::test]
async fn a_report_that_asks_for_tasks_does_not_wait() {
    let w = world().await;
    w.ledger.expect("j", 9).await.expect("noted");
    let first = w.hand_over(report("verdict-0")).await;
    let mut asks = report("view-system");
    asks.header.wishes = Some(Wishes {
        views: vec!["content".into()],
        ..Wishes::default()
    });
    let done = timeout(HANGS, w.aggregator.take(asks)).await;
    assert_eq!(done.expect("in time"), Ok(Ack::Durable));
    assert_eq!(first.await.expect("handed over"), Ok(Ack::Durable));
    assert_eq!(w.committed().await, [["verdict-0", "view-system"]]);
}

#[tokio::test]
async fn without_a_count_of_tasks_a_group_waits_and_a_stop_commits_it() {
    let w = world().await;
    let waits = w.hand_over(report("chunk-1")).await;
    assert_eq!(w.committed().await, Vec::<Vec<String>>::new());
    w.aggregator.drain();
    let done = timeout(HANGS, waits).await.expect("in time");
    assert_eq!(done.expect("handed over"), Ok(Ack::Durable));
    assert_eq!(w.committed().await, [["chunk-1"]]);
}

/// What a report names becomes keys and files: names that lead elsewhere are not taken, and nothing of them is stored.
#[tokio::test]
async fn a_report_names_what_is_its_own() {
    let w = world().await;
    let segment = |table: &str, key: &str| SegmentRef {
        table: table.into(),
        key: key.into(),
        ..SegmentRef::default()
    };
    let with = |f: &dyn Fn(&mut TaskReport)| {
        let mut r = report("chunk-0");
        f(&mut r.header);
        r
    };
    let memory = |n| Wishes {
        folder: "jobs/j/lists/a/".into(),
        memory: n,
        ..Wishes::default()
    };
    let elsewhere = Wishes {
        folder: "jobs/other/lists/a/".into(),
        ..memory(1)
    };
    let forged = [
        with(&|h| h.attempt = "../../frozen".into()),
        with(&|h| h.attempt = String::new()),
        with(&|h| h.task = "../spec".into()),
        with(&|h| h.job = "../j".into()),
        with(&|h| {
            h.segments = vec![segment(
                "findings",
                "jobs/other/segments/a/findings.parquet",
            )]
        }),
        with(&|h| h.segments = vec![segment("findings", "jobs/j/segments/../frozen.json")]),
        with(&|h| h.segments = vec![segment("../../x", "jobs/j/segments/a/x.parquet")]),
        with(&|h| {
            h.objects = vec![ObjectRef {
                key: "rules/x.rules".into(),
                bytes: 1,
            }];
        }),
        with(&|h| h.wishes = Some(memory(u32::MAX))),
        with(&|h| h.wishes = Some(elsewhere.clone())),
    ];
    for r in forged {
        let what = format!("{:?}", r.header);
        let ack = timeout(HANGS, w.aggregator.take(r)).await.expect("in time");
        assert!(matches!(ack, Ok(Ack::Refused(_))), "{what}: {ack:?}");
    }
    assert_eq!(w.committed().await, Vec::<Vec<String>>::new());
    let stored = w.objects.list("").await.expect("a listing");
    let keys: Vec<_> = stored.into_iter().map(|m| m.key).collect();
    assert_eq!(keys, ["jobs/j/plan.json"]);
}

#[tokio::test]
async fn when_all_that_can_wait_do_none_waits_for_more() {
    let w = world_with(2).await;
    w.ledger.expect("j", 100).await.expect("noted");
    let first = w.hand_over(report("chunk-1")).await;
    assert_eq!(w.committed().await, Vec::<Vec<String>>::new());
    let second = timeout(HANGS, w.aggregator.take(report("chunk-2")));
    assert_eq!(second.await.expect("in time"), Ok(Ack::Durable));
    assert_eq!(first.await.expect("handed over"), Ok(Ack::Durable));
    assert_eq!(w.committed().await, [["chunk-1", "chunk-2"]]);
}
