//! Two coordinators over one store: one is active, the other stands by and is asked all the same.

mod support;

use ramsift_auth::ServerSecurity;
use ramsift_coordinator::{Coordinator, Submitted, serve};
use ramsift_proto::v1::coordinator_client::CoordinatorClient;
use ramsift_proto::v1::{
    CommitRecord, GetJobRequest, JobPhase, JobState, ListJobsRequest, SubmitRequest, TaskReport,
};
use ramsift_store::commits::{CommitSegments, encode};
use ramsift_store::job::{read, to_json};
use ramsift_store::{Keys, Objects};
use std::net::SocketAddr;
use std::time::Duration;
use support::{World, spec};
use tokio_util::sync::CancellationToken;

/// Ends a test that would wait for ever.
const HANGS: Duration = Duration::from_secs(120);

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(t) = look().await {
                return t;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let done = tokio::time::timeout(HANGS, waiting).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {HANGS:?}"))
}

fn start(c: &Coordinator) -> CancellationToken {
    let stop = CancellationToken::new();
    let (c, s) = (c.clone(), stop.clone());
    tokio::spawn(async move { c.run(s).await });
    stop
}

async fn state(objects: &dyn Objects, job: &str) -> JobState {
    let key = Keys::new(job).state();
    read::<JobState>(objects, &key).await.expect("a state").0
}

async fn holder(objects: &dyn Objects) -> Option<serde_json::Value> {
    let (data, _) = objects.get("leases/coordinator.json").await.ok()?;
    serde_json::from_slice(&data).ok()
}

#[tokio::test]
async fn a_standby_names_the_active_one_tells_it_and_answers_from_the_store() {
    let w = World::new();
    std::fs::create_dir(w.dir.path().join("in")).expect("folder");
    let capture = w.dir.path().join("in/a.mem");
    std::fs::write(&capture, vec![7; 3 << 20]).expect("written");
    let allow = w.dir.path().join("in").display().to_string();
    let objects = w.objects.as_ref();
    let a = w.coordinator("a", &allow);
    let _a = start(&a);
    until("a is active", async || holder(objects).await).await;
    let b = w.coordinator("b", &allow);
    let _b = start(&b);
    until("b stands by", async || b.active_elsewhere()).await;
    assert_eq!(a.active_elsewhere(), None);
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let (at, _) = serve(
        any,
        b.clone(),
        &ServerSecurity::anyone(),
        CancellationToken::new(),
    )
    .await
    .expect("bound");
    let mut c = CoordinatorClient::connect(format!("http://{at}"))
        .await
        .expect("connected");

    let s = spec("j", &capture.display().to_string());
    let r = c
        .submit(SubmitRequest { spec: Some(s) })
        .await
        .expect("taken")
        .into_inner();
    assert_eq!((r.job.as_str(), r.active.as_str()), ("j", "a"));
    let running = async || (state(objects, "j").await.phase() == JobPhase::Running).then_some(());
    until("the job runs", running).await;
    assert!(
        objects.head("leases/news").await.is_ok(),
        "the active one was told"
    );

    let report = TaskReport {
        job: "j".into(),
        task: "chunk-1".into(),
        ..TaskReport::default()
    };
    let record = CommitRecord {
        id: "1".into(),
        job: "j".into(),
        reports: vec![report],
        ..CommitRecord::default()
    };
    let key = Keys::new("j").commit("1");
    let put = objects.put(
        &key,
        encode(record, CommitSegments::default()).expect("JSON"),
    );
    put.await.expect("stored");
    let of = GetJobRequest { job: "j".into() };
    let p = c.get_job(of).await.expect("known").into_inner();
    assert_eq!((p.bytes_done, p.bytes_total), (1 << 20, 3 << 20));
    // Three chunks, and the view that begins with them.
    assert_eq!((p.tasks_done, p.tasks_total), (1, 4));
    let all = c
        .list_jobs(ListJobsRequest {})
        .await
        .expect("a list")
        .into_inner()
        .jobs;
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].bytes_done, all[0].bytes_total), (1 << 20, 3 << 20));
}

#[tokio::test]
async fn a_job_that_has_ended_runs_again_when_a_standby_is_asked() {
    let w = World::new();
    let capture = w.dir.path().join("a.mem");
    std::fs::write(&capture, vec![7; 3 << 20]).expect("written");
    let allow = w.dir.path().display().to_string();
    let objects = w.objects.as_ref();
    let a = w.coordinator("a", &allow);
    let _a = start(&a);
    until("a is active", async || holder(objects).await).await;
    let b = w.coordinator("b", &allow);
    let _b = start(&b);
    until("b stands by", async || b.active_elsewhere()).await;
    let submitted = a.submit(spec("j", &capture.display().to_string())).await;
    assert_eq!(submitted.expect("stored"), Submitted::New);
    let is = async |phase: JobPhase| (state(objects, "j").await.phase() == phase).then_some(());
    until("the job runs", async || is(JobPhase::Running).await).await;
    // A job that runs can't be tried again.
    let refused = b.retry("j").await.expect_err("it runs").to_string();
    assert!(refused.contains("j is running"), "{refused}");
    let commit = async |id: &str, report: TaskReport| {
        let record = CommitRecord {
            id: id.into(),
            job: "j".into(),
            reports: vec![report],
            ..CommitRecord::default()
        };
        let key = Keys::new("j").commit(id);
        let put = objects.put(
            &key,
            encode(record, CommitSegments::default()).expect("JSON"),
        );
        put.await.expect("stored");
    };
    let report = |task: &str, fatal: bool| TaskReport {
        job: "j".into(),
        task: task.into(),
        reason: if fatal { "worn out" } else { "" }.into(),
        fatal,
        ..TaskReport::default()
    };
    commit("1", report("chunk-0", false)).await;
    commit("2", report("chunk-1", true)).await;
    until("the job fails", async || is(JobPhase::Failed).await).await;
    b.retry("j").await.expect("taken");
    until("the job runs again", async || is(JobPhase::Running).await).await;
    let p = a.progress("j").await.expect("known");
    // What was settled stays, what ended the job is to be done.
    assert_eq!((p.bytes_done, p.bytes_total), (1 << 20, 3 << 20));
    assert_eq!(state(objects, "j").await.reason, "");
    // Cancelled on the one, asked for on the other.
    a.cancel("j", "wrong case").await.expect("noted");
    until("the job is cancelled", async || {
        is(JobPhase::Cancelled).await
    })
    .await;
    b.retry("j").await.expect("taken");
    until("it runs once more", async || is(JobPhase::Running).await).await;
}

/// A state that the first term wrote is under the second's epoch before that one does anything: what the first still
/// writes meets another version.
#[tokio::test]
async fn what_an_old_reign_writes_is_refused() {
    let w = World::new();
    let objects = w.objects.clone();
    let a = w.coordinator("a", "s3://");
    let submitted = a.submit(spec("j", "s3://b/k")).await.expect("stored");
    assert_eq!(submitted, Submitted::New);
    // The job as a term of epoch 7 left it, whose lease object is lost besides.
    let key = Keys::new("j").state();
    let left = JobState {
        job: "j".into(),
        phase: JobPhase::Running.into(),
        epoch: 7,
        ..JobState::default()
    };
    let old = objects
        .put(&key, to_json(&left).expect("JSON"))
        .await
        .expect("stored");
    let plan = Keys::new("j").plan();
    objects.put(&plan, "no plan".into()).await.expect("stored");
    let b = w.coordinator("b", "s3://");
    let _b = start(&b);
    let newer = async || Some(state(objects.as_ref(), "j").await).filter(|s| s.epoch > 7);
    let taken = until("the job is under a later epoch", newer).await;
    let lease = holder(objects.as_ref()).await.expect("a lease");
    assert!(lease["epoch"].as_u64() >= Some(taken.epoch), "{lease}");
    let late = JobState {
        phase: JobPhase::Complete.into(),
        ..left
    };
    let refused = objects
        .put_over(&key, to_json(&late).expect("JSON"), &old)
        .await;
    assert!(refused.expect_err("its epoch is old").is_conflict());
}
