//! Builds what one task asks for.

use crate::alone::{self, Found};
use crate::lists::Asked;
use crate::parts::{Collector, Opened, Part};
use crate::{SHA256, Worker, anchors, sha256};
use ramsift_layers::{ImageReader, RunMap, SourceError};
use ramsift_os::discover::{Anchor, Discovery, discover};
use ramsift_os::input::{PoolScan, ViewInput};
use ramsift_os::machine::is_whole;
use ramsift_os::{Machine, open};
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{Outcome, Task, TaskReport, Wishes};
use ramsift_proto::{TaskId, view};
use ramsift_store::image;
use ramsift_store::job::{read, to_json};
use ramsift_store::kernel::KernelRecord;
use ramsift_store::packs::Copies;
use ramsift_store::tables::{SystemRow, name, system_batch};
use ramsift_store::{Keys, Plan, Report, StoreError};
use ramsift_telemetry::current;
use ramsift_worker::Trouble;
use std::sync::Arc;

/// Builds a view. An error is an outage; what is wrong with the evidence is a report.
pub(crate) async fn build(worker: &Arc<Worker>, task: &Task) -> Result<Report, Trouble> {
    let Some(Work::View(work)) = &task.work else {
        return Ok(failed(
            worker,
            task,
            "this is no task of a structured worker".into(),
        ));
    };
    if work.view == SHA256 {
        return sha256::hash(worker, task).await;
    }
    let Some(part) = Part::of(&work.view) else {
        let why = format!("there is no view {}", work.view);
        return Ok(failed(worker, task, why));
    };
    let objects = worker.deps.objects.as_ref();
    let keys = Keys::new(&task.job);
    let plan = match read::<Plan>(objects, &keys.plan()).await {
        Ok((plan, _)) => plan,
        Err(e) => return no_record(worker, task, &e),
    };
    let source = match worker.deps.sources.open_pinned(&plan.pin).await {
        Ok(s) => s,
        Err(e) => return gone(worker, task, e),
    };
    let image = match image::reader(&worker.deps.objects, &keys, &plan, source.clone()).await {
        Ok(i) => i,
        Err(e) => return no_record(worker, task, &e),
    };
    let opened = worker.deps.sources.open_page_files(&plan.layout.page_files);
    let image = match opened.await {
        Ok(files) => image.with_page_files(files),
        Err(e) => return gone(worker, task, e),
    };
    // The first part looks for the kernel; the others take what it found.
    let known = match part {
        Part::System => None,
        Part::Anchored => {
            let found = anchors::reported(objects, &keys).await?;
            Some((anchors::with_told(found, &plan.layout), BY_CHUNKS))
        }
        _ => match read::<KernelRecord>(objects, &keys.kernel()).await {
            Ok((record, _)) => Some((alone::known(&record), BEFORE)),
            Err(e) => return no_record(worker, task, &e),
        },
    };
    // The chunks went over all of memory: what they saw of pools is not looked for again.
    let pool = match late(task) {
        true => Some(anchors::pool(objects, &keys, &plan.layout.runs).await?),
        false => None,
    };
    let mut built = on_kernel(worker, task, &plan, &image, part, (known, pool)).await;
    if let Ok(Built::Elsewhere) = built {
        if plan.spec.unstructured {
            // The chunks' anchors tell when they are all in.
            return Ok(asks_for_anchors(worker, task));
        }
        let anchors = match anchors::stream(image.bytes(), &plan, &worker.config.means).await {
            Ok(a) => a,
            Err(e) => return gone(worker, task, e),
        };
        let known = Some((anchors, BY_PASS));
        built = on_kernel(worker, task, &plan, &image, part, (known, None)).await;
    }
    match built {
        Ok(Built::Rows(report, anchors)) => {
            if let Err(e) = image.check_pin().await {
                return gone(worker, task, e);
            }
            if part.finds_the_kernel() && !anchors.is_empty() {
                let kernel = to_json(&alone::record(&anchors)).map_err(|e| e.to_string())?;
                let put = objects.put(&keys.kernel(), kernel).await;
                put.map_err(|e| e.to_string())?;
            }
            Ok(*report)
        }
        Ok(Built::Elsewhere) => Ok(failed(worker, task, "no kernel to build it from".into())),
        // What looked like unreadable memory was an outage, or evidence that is gone.
        Ok(Built::Trouble(e)) => gone(worker, task, e),
        Err(Ended::Store(why)) => Err(why.into()),
        // Whatever it was, the anchors may lead to the kernel without it.
        Err(Ended::Panic(why)) if part == Part::System && plan.spec.unstructured => {
            tracing::error!(reason = %why, "known places given up, the chunks' anchors are waited for");
            Ok(asks_for_anchors(worker, task))
        }
        Err(Ended::Panic(why)) => Ok(failed(worker, task, format!("the view failed: {why}"))),
    }
}

/// Whether a part waited for the chunks, to use what they told of pool memory.
fn late(task: &Task) -> bool {
    matches!(&task.work, Some(Work::View(v)) if v.view.starts_with(view::LATE))
}

/// What led to the kernel, where no known place did.
const BY_CHUNKS: &str = "the anchors that chunks reported";
const BY_PASS: &str = "a pass over the image";
/// What the first part found already.
const BEFORE: &str = "the job's record";

/// What came of work on a kernel.
enum Built {
    /// Its rows, and the anchors that the kernel was opened with.
    Rows(Box<Report>, Vec<Anchor>),
    /// The kernel is at no known place.
    Elsewhere,
    /// The evidence can't be read.
    Trouble(SourceError),
}

/// Why there are no rows.
enum Ended {
    /// An outage of the store.
    Store(String),
    /// The thread that worked.
    Panic(String),
}

/// A report that asks for the part that waits for the chunks' anchors.
fn asks_for_anchors(worker: &Worker, task: &Task) -> Report {
    let wishes = Wishes {
        views: vec![view::ANCHORED.to_owned()],
        ..Wishes::default()
    };
    Report {
        header: TaskReport {
            wishes: Some(wishes),
            ..header(worker, task)
        },
        batches: Vec::new(),
        trace: current(),
    }
}

/// Opens the kernel, by these anchors or by known places, and does a part's work on it.
async fn on_kernel(
    worker: &Arc<Worker>,
    task: &Task,
    plan: &Plan,
    image: &ImageReader,
    part: Part,
    (known, pool): (Option<(Vec<Anchor>, &'static str)>, Option<PoolScan>),
) -> Result<Built, Ended> {
    let mut header = header(worker, task);
    let mut collector = Collector::new(
        worker.deps.objects.clone(),
        Keys::new(&task.job),
        &header.attempt,
        Asked::of(plan),
        (
            worker.config.disk.folder().to_owned(),
            Copies::parse(&plan.spec.copy_artifacts),
        ),
    );
    let layout = plan.layout.clone();
    let means = worker.config.means.clone();
    // All views together read most of a capture.
    let near = worker.config.disk.source(&task.job, image.stored());
    let near = image.over(near).paged_bytes();
    let cache = means.cache / worker.config.slots.max(1) as u64;
    let work = move || {
        let around = near.coalesce_distance();
        let symbols = means.symbols.as_deref();
        let looked = known.is_none();
        let (memory, runs, anchors, found_by) = match known {
            Some((anchors, by)) => {
                let (memory, runs) = alone::memory(near, &layout, &anchors, cache);
                (memory.around(around), runs, anchors, by.to_owned())
            }
            None => match alone::at_known_places(near, &layout, cache, around, symbols) {
                Found::There(memory, anchors, place) => {
                    (*memory, layout.runs.clone(), anchors, place)
                }
                Found::Not => return Ok(Built::Elsewhere),
                Found::Trouble(e) => return Ok(Built::Trouble(e)),
            },
        };
        let input = ViewInput {
            pool: pool.as_ref(),
            ..alone::input(&memory, &runs, &layout, &anchors, symbols)
        };
        let base = (runs != layout.runs).then(|| runs.runs().first().map_or(0, |r| r.pa));
        let found = SystemRow {
            physical_base: base,
            found_by: Some(found_by),
            ..SystemRow::default()
        };
        let mut d = discover(&input);
        let opened = match &d.impossible {
            Some(_) => None,
            None => open(&input, &d)
                .map_err(|e| d.impossible = Some(e.to_string()))
                .ok(),
        };
        if looked && !opened.as_ref().is_some_and(|m| is_whole(m.as_ref())) {
            return Ok(memory
                .take_trouble()
                .map_or(Built::Elsewhere, Built::Trouble));
        }
        let found = SystemRow {
            damage: opened.as_ref().and_then(|m| m.damage()),
            bytes_read: opened.is_some().then(|| memory.bytes_read()),
            ..found
        };
        let machine = opened.as_deref();
        let paged = memory.runs();
        build_part(part, machine, &input, paged, &d, found, &mut collector)
            .map_err(Ended::Store)?;
        drop(opened);
        if let Some(e) = memory.take_trouble() {
            return Ok(Built::Trouble(e));
        }
        header.bytes_read = memory.bytes_read();
        header.wishes = collector.wishes();
        let batches = collector.into_rows(&mut header).map_err(Ended::Store)?;
        let report = Report {
            header,
            batches,
            trace: current(),
        };
        Ok(Built::Rows(Box::new(report), anchors))
    };
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.unwrap_or_else(|e| Err(Ended::Panic(e.to_string())))
}

/// Does a part's work on a kernel; a part that finds the kernel tells of it in a row, beside what is `found` already.
fn build_part(
    part: Part,
    machine: Option<&dyn Machine>,
    input: &ViewInput<'_>,
    paged: &RunMap,
    d: &Discovery,
    found: SystemRow,
    rows: &mut Collector,
) -> Result<(), String> {
    if let Some(machine) = machine {
        let runs = input.runs;
        let of = Opened {
            machine,
            runs,
            paged,
        };
        part.build(of, rows)?;
    }
    if part.finds_the_kernel() {
        let row = SystemRow {
            physical_base: found.physical_base,
            damage: found.damage,
            found_by: found.found_by.filter(|_| machine.is_some()),
            bytes_read: found.bytes_read,
            page_files: page_files(input),
            ..system_row(d)
        };
        let batch = system_batch(&row).map_err(|e| e.to_string())?;
        rows.take(name::SYSTEM, Some(batch))?;
    } else if let Some(why) = &d.impossible {
        rows.not_built(d.os.unwrap_or("system"), part, why.clone());
    }
    rows.finish()
}

/// The page files that were read with the capture, for people and programs.
fn page_files(input: &ViewInput<'_>) -> Option<String> {
    let all = input.page_files.iter().map(|f| {
        serde_json::json!({
            "number": f.number, "source": f.pin.to_string(), "bytes": f.pin.size(), "found": f.found,
        })
    });
    let all: Vec<_> = all.collect();
    (!all.is_empty()).then(|| serde_json::Value::from(all).to_string())
}

pub(crate) fn header(worker: &Worker, task: &Task) -> TaskReport {
    TaskReport {
        job: task.job.clone(),
        task: task.task.clone(),
        attempt: uuid::Uuid::now_v7().to_string(),
        worker: worker.config.name.clone(),
        outcome: Outcome::Done.into(),
        ..TaskReport::default()
    }
}

/// Another worker may be able to.
fn elsewhere(why: String) -> Trouble {
    Trouble::Elsewhere { why, fatal: false }
}

/// Evidence that is gone or changed ends the job; an outage is tried again.
pub(crate) fn gone(worker: &Worker, task: &Task, e: SourceError) -> Result<Report, Trouble> {
    if let SourceError::Denied { .. } = e {
        return Err(elsewhere(e.to_string()));
    }
    if !e.is_fatal() {
        return Err(Trouble::Outage(e.to_string()));
    }
    let mut report = failed(worker, task, e.to_string());
    report.header.fatal = true;
    Ok(report)
}

/// A record of the job that can't be read: gone or damaged, perhaps in this worker's store alone, or out of reach.
pub(crate) fn no_record(worker: &Worker, task: &Task, e: &StoreError) -> Result<Report, Trouble> {
    let why = e.to_string();
    match e {
        StoreError::Object(o) if o.is_not_found() => Err(elsewhere(why)),
        e if e.is_content() => Ok(failed(worker, task, why)),
        _ => Err(Trouble::Outage(why)),
    }
}

pub(crate) fn failed(worker: &Worker, task: &Task, why: String) -> Report {
    let row = SystemRow {
        status: "not possible".into(),
        reason: Some(why.clone()),
        page_tables: "[]".into(),
        anchors: "{}".into(),
        ..SystemRow::default()
    };
    // The other parts only come where the system is known.
    let finds = [view::SYSTEM, view::ANCHORED].map(|v| TaskId::View(v.to_owned()).to_string());
    let batches = if finds.contains(&task.task) {
        system_batch(&row).map(|b| vec![(name::SYSTEM.to_owned(), b)])
    } else {
        Ok(Vec::new())
    };
    Report {
        header: TaskReport {
            outcome: Outcome::Failed.into(),
            reason: why,
            ..header(worker, task)
        },
        batches: batches.unwrap_or_default(),
        trace: current(),
    }
}

fn system_row(d: &Discovery) -> SystemRow {
    let tables: Vec<_> = d
        .page_tables
        .iter()
        .map(|p| {
            serde_json::json!({
                "dtb": p.dtb.0, "shape": p.shape, "source": p.source, "confirmed": p.confirmed,
            })
        })
        .collect();
    SystemRow {
        status: if d.impossible.is_none() {
            "recognised"
        } else {
            "not possible"
        }
        .into(),
        reason: d
            .impossible
            .as_ref()
            .map(|why| format!("structured analysis not possible: {why}")),
        os: d.os.map(str::to_owned),
        architecture: d.architecture.clone(),
        banner: d.banner.clone(),
        banner_offset: d.banner_offset,
        release: d.release.clone(),
        build_id: d.build_id.clone(),
        page_tables: serde_json::Value::from(tables).to_string(),
        anchors: serde_json::to_string(&d.anchors).unwrap_or_else(|_| "{}".into()),
        ..SystemRow::default()
    }
}
