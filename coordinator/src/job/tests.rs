use super::*;
use ramsift_layers::source::{S3Config, Sources};
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{CommitRecord, FilesWork, MemoryWork, VerdictWork};
use ramsift_queue::MemoryQueue;
use ramsift_store::commits::{CommitSegments, encode};
use ramsift_store::job::{self, rules_key};
use ramsift_store::{LocalObjects, MemoryLedger, VerdictPlan};
use ramsift_telemetry::Readiness;

/// One group for all rules that matched, and none else.
#[derive(Debug)]
struct OneGroup;

impl crate::VerdictPlanner for OneGroup {
    fn groups(&self, _: &[u8], matched: &[RuleCount]) -> Result<Vec<serde_json::Value>, String> {
        let rules: Vec<u32> = matched.iter().map(|m| m.rule).collect();
        Ok(vec![serde_json::json!({ "rules": rules })])
    }
}

impl crate::SpecCheck for OneGroup {
    fn spec(&self, _: &JobSpec) -> Result<(), String> {
        Ok(())
    }

    fn rules(&self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Debug)]
struct Never;

#[async_trait::async_trait]
impl crate::Finaliser for Never {
    async fn finalise(&self, _: &str) -> Result<bool, (String, bool)> {
        Err(("not asked for here".into(), true))
    }
}

struct World {
    deps: Deps,
    spec: JobSpec,
    plan: Plan,
    _dir: tempfile::TempDir,
}

/// A job of two chunks with rules, planned.
async fn world() -> World {
    let dir = tempfile::tempdir().expect("tempdir");
    let capture = dir.path().join("c.raw");
    std::fs::write(&capture, vec![7; 2 << 20]).expect("written");
    let objects = LocalObjects::open(&dir.path().join("store")).expect("store");
    let deps = Deps {
        queue: Arc::new(MemoryQueue::new()),
        ledger: Arc::new(MemoryLedger::default()),
        objects: Arc::new(objects),
        sources: Sources::new(S3Config::default()),
        verdicts: Arc::new(OneGroup),
        specs: Arc::new(OneGroup),
        finaliser: Arc::new(Never),
        readiness: Readiness::default(),
    };
    let spec = JobSpec {
        job: "j".into(),
        source: capture.display().to_string(),
        structured: true,
        unstructured: true,
        rules_digest: "r".into(),
        chunk_size: 1 << 20,
        overlap: 4096,
        ..JobSpec::default()
    };
    let key = rules_key("r");
    let put = deps.objects.put(&key, bytes::Bytes::new());
    put.await.expect("stored");
    let planned = crate::plan::plan(&deps.sources, spec.clone()).await;
    let crate::plan::Planned { plan, source, .. } = planned.expect("planned");
    assert_eq!((plan.chunk_count, source.len()), (2, 2 << 20));
    World {
        deps,
        spec,
        plan,
        _dir: dir,
    }
}

impl World {
    /// A coordinator that has just started.
    async fn job(&self) -> Job {
        let mut job = Job::new(self.spec.clone(), JobState::default(), String::new());
        let begun = job.begin(&self.deps, self.plan.clone());
        begun.await.expect("begun");
        job
    }

    async fn report(&self, task: &str, r: TaskReport) {
        let r = TaskReport {
            job: "j".into(),
            task: task.into(),
            ..r
        };
        let record = CommitRecord {
            id: task.into(),
            job: "j".into(),
            reports: vec![r],
            ..CommitRecord::default()
        };
        let key = Keys::new("j").commit(task);
        let put = self.deps.objects.put(
            &key,
            encode(record, CommitSegments::default()).expect("JSON"),
        );
        put.await.expect("stored");
    }
}

/// Names of the tasks that a job publishes, as far as it may.
fn published(job: &mut Job) -> Vec<(String, Work)> {
    let mut out = Vec::new();
    for lane in [Lane::Views, Lane::Chunks] {
        while job.next_cost(lane, 100).is_some() {
            let (_, task) = job.take(lane).expect("a task");
            out.push((task.task, task.work.expect("work")));
        }
    }
    out
}

fn names(job: &mut Job) -> Vec<String> {
    published(job).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn views_begin_with_the_job_and_those_that_need_its_chunks_wait_for_them() {
    let w = world().await;
    let mut job = w.job().await;
    assert_eq!(names(&mut job), ["view-system", "chunk-0", "chunk-1"]);
    let asks = |views: &[&str]| TaskReport {
        wishes: Some(Wishes {
            views: views.iter().map(|v| (*v).to_owned()).collect(),
            ..Wishes::default()
        }),
        ..TaskReport::default()
    };
    w.report("view-system", asks(&["anchored", "views"])).await;
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    // Chunks are still out: what does not need them is published.
    assert_eq!(names(&mut job), ["view-views"]);
    w.report("chunk-0", TaskReport::default()).await;
    w.report("chunk-1", TaskReport::default()).await;
    // Another coordinator reads the same from the records; `view-views` is not settled yet.
    let mut next = w.job().await;
    for job in [&mut job, &mut next] {
        job.refresh(&w.deps).await.expect("read");
        job.advance(&w.deps).await.expect("advanced");
    }
    assert_eq!(names(&mut job), ["view-anchored", "verdict-0"]);
    assert_eq!(
        names(&mut next),
        ["view-views", "view-anchored", "verdict-0"]
    );
}

#[tokio::test]
async fn chunks_that_lie_nowhere_are_published_again_and_each_time_later() {
    let w = world().await;
    let mut job = w.job().await;
    let all = ["view-system", "chunk-0", "chunk-1"];
    assert_eq!(names(&mut job), all);
    let longest = Duration::from_secs(900);
    let quiet = |job: &mut Job, seconds| {
        let then = Instant::now().checked_sub(Duration::from_secs(seconds));
        job.last_progress = then.expect("a clock that runs for long");
        job.republish_lost(longest)
    };
    assert!(!quiet(&mut job, 29));
    assert!(quiet(&mut job, 31));
    // A view may take that long.
    assert_eq!(names(&mut job), all[1..]);
    assert!(!quiet(&mut job, 59));
    assert!(quiet(&mut job, 61));
    assert_eq!(names(&mut job), all[1..]);
    w.report("chunk-0", TaskReport::default()).await;
    job.refresh(&w.deps).await.expect("read");
    assert!(quiet(&mut job, 31));
    assert_eq!(names(&mut job), ["chunk-1"]);
    // A broker that lost everything.
    job.republish();
    let mut got = names(&mut job);
    got.sort();
    assert_eq!(got, ["chunk-1", "view-system"]);
}

#[tokio::test]
async fn what_views_ask_for_becomes_tasks_and_then_verdicts_on_processes() {
    let w = world().await;
    let mut job = w.job().await;
    assert_eq!(names(&mut job), ["view-system", "chunk-0", "chunk-1"]);
    for chunk in ["chunk-0", "chunk-1"] {
        w.report(chunk, TaskReport::default()).await;
    }
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    assert_eq!(names(&mut job), ["verdict-0"]);
    w.report("verdict-0", TaskReport::default()).await;
    let asks = |wishes: Wishes| TaskReport {
        wishes: Some(wishes),
        ..TaskReport::default()
    };
    let more = Wishes {
        views: vec!["content".into(), "memory".into()],
        ..Wishes::default()
    };
    w.report("view-system", asks(more)).await;
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    assert_eq!(names(&mut job), ["view-content", "view-memory"]);
    let folder = |attempt: &str| format!("jobs/j/lists/{attempt}/");
    let content = Wishes {
        folder: folder("b"),
        files: 1,
        ..Wishes::default()
    };
    let of_processes = Wishes {
        folder: folder("a"),
        memory: 2,
        ..Wishes::default()
    };
    w.report("view-memory", asks(of_processes)).await;
    w.report("view-content", asks(content)).await;
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    let mut got = published(&mut job);
    got.sort_by(|a, b| b.0.cmp(&a.0));
    let list = |name: &str| format!("{}{name}", folder("a"));
    let memory = |n| MemoryWork { list: list(n) };
    let files = |n| FilesWork {
        list: format!("{}{n}", folder("b")),
    };
    let want = [
        ("memory-1", Work::Memory(memory("memory-1.json"))),
        ("memory-0", Work::Memory(memory("memory-0.json"))),
        ("files-0", Work::Files(files("files-0.json"))),
    ];
    assert_eq!(got, want.map(|(name, work)| (name.to_owned(), work)));

    // A coordinator that takes over knows what is left, and keeps chunks and processes apart.
    w.report("files-0", TaskReport::default()).await;
    let matched = TaskReport {
        rule_matches: vec![RuleCount { rule: 9, count: 4 }],
        ..TaskReport::default()
    };
    w.report("memory-0", matched).await;
    let mut job = w.job().await;
    job.advance(&w.deps).await.expect("advanced");
    assert_eq!(names(&mut job), ["memory-1"]);
    let failed = TaskReport {
        outcome: Outcome::Failed.into(),
        reason: "every worker died".into(),
        ..TaskReport::default()
    };
    w.report("memory-1", failed).await;
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    let verdict = Work::Verdict(VerdictWork {
        group: 0,
        processes: list("processes.json"),
    });
    assert_eq!(published(&mut job), [("process-0".to_owned(), verdict)]);
    let objects = w.deps.objects.as_ref();
    let of = |key: String| async move {
        let read = job::read::<VerdictPlan>(objects, &key);
        read.await.expect("a plan").0
    };
    let keys = Keys::new("j");
    let (image, memory) = (of(keys.verdicts()).await, of(keys.process_verdicts()).await);
    assert!(!image.failed_ranges && memory.failed_ranges);
    assert_eq!(image.groups[0]["rules"], serde_json::json!([]));
    assert_eq!(memory.groups[0]["rules"], serde_json::json!([9]));

    // And one that takes over here goes on here.
    let mut job = w.job().await;
    job.advance(&w.deps).await.expect("advanced");
    assert_eq!(names(&mut job), ["process-0"]);
    w.report("process-0", TaskReport::default()).await;
    job.refresh(&w.deps).await.expect("read");
    job.advance(&w.deps).await.expect("advanced");
    assert_eq!(job.stage, Stage::Settled);
}

/// The report on a task, of those in the store.
async fn reported(w: &World, task: &str) -> TaskReport {
    let keys = Keys::new("j");
    let all = commits::all(w.deps.objects.as_ref(), &keys).await;
    let mut reports = all.expect("read").into_iter().flat_map(|c| c.reports);
    reports.find(|r| r.task == task).expect("a report")
}

#[tokio::test]
async fn a_part_that_no_worker_survives_is_hashed_all_the_same() {
    let w = world().await;
    let config = Config {
        smallest: 512 << 10,
        ..Config::default()
    };
    let mut job = w.job().await;
    names(&mut job);
    let cut = job.bury(&w.deps, &config, "chunk-1").await;
    assert_eq!(cut.expect("stored"), None, "cut in two");
    assert_eq!(names(&mut job), ["chunk-1.0", "chunk-1.1"]);
    let lost = job.bury(&w.deps, &config, "chunk-1.1").await;
    let lost = lost.expect("stored").expect("too small to cut");
    lost.clone().note(&w.deps).await.expect("noted");
    let r = reported(&w, "chunk-1.1").await;
    assert_eq!(r.outcome(), Outcome::Failed);
    let want = ramsift_layers::hash::piece(3 << 19, &[7; 512 << 10]);
    let hex: String = want.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(r.hash, hex);
    job.refresh(&w.deps).await.expect("read");
    assert!(!job.open.contains(&"chunk-1.1".parse().expect("a task")));

    // Evidence that is gone has no hash, and its part is noted all the same.
    std::fs::remove_file(w.spec.source.as_str()).expect("removed");
    let gone = Lost {
        task: "chunk-0".into(),
        file: 0..1 << 20,
        ..lost
    };
    gone.note(&w.deps).await.expect("noted");
    assert_eq!(reported(&w, "chunk-0").await.hash, "");
}

#[tokio::test]
async fn a_view_that_nobody_is_at_twice_is_published_again() {
    let w = world().await;
    let mut job = w.job().await;
    assert_eq!(names(&mut job), ["view-system", "chunk-0", "chunk-1"]);
    let idle = ["view-system".to_owned()];
    assert!(
        !job.republish_idle(&idle),
        "once may be a ledger that has just forgotten"
    );
    assert!(!job.republish_idle(&[]), "somebody is at it");
    assert!(!job.republish_idle(&idle));
    assert!(job.republish_idle(&idle));
    assert_eq!(names(&mut job), ["view-system"]);
    assert!(!job.republish_idle(&idle), "it was just published");
    // A task that is settled is nobody's.
    w.report("view-system", TaskReport::default()).await;
    job.refresh(&w.deps).await.expect("read");
    job.republish_idle(&idle);
    job.republish_idle(&idle);
    assert_eq!(names(&mut job), Vec::<String>::new());
}
