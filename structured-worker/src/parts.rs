//! The parts of a job's structured analysis: every view gives its table, its findings and its events, and one that fails takes
//! no other along. What takes longest on a large machine are tasks of their own ([`Part`]), which several workers
//! do at a time.

use crate::artifacts::{Lost, store};
use crate::lists::{Asked, Lists};
use crate::metrics;
use crate::rows;
use arrow::array::RecordBatch;
use ramsift_layers::run::RunMap;
use ramsift_os::Machine;
use ramsift_os::table::Table;
use ramsift_os::view::{Purpose, View};
use ramsift_proto::v1::{ObjectRef, TaskReport, Wishes};
use ramsift_proto::view;
use ramsift_store::commits::SegmentPacks;
use ramsift_store::packs::{Copies, PackWriter};
use ramsift_store::report::batch_bytes;
use ramsift_store::tables::{
    CoverageBuilder, CoverageRow, EventsBuilder, FindingsBuilder, FrameRow, FramesBuilder, ViewRow,
    name, place_columns, sort_batch, views_batch, write_segment,
};
use ramsift_store::{Keys, Objects};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// Bytes of rows from which on they are stored at once and not sent with the report.
const SEGMENT: usize = 8 << 20;

/// Bytes of recovered content that a job stores at most; larger files are for `ramsift recover`.
const LARGEST: u64 = 256 << 20;

/// What recovers content, in the coverage: what this machine's disk could not take is a gap.
const RECOVERY: &str = "recovered files";

/// Stretches of the frame map that are taken together.
const FRAMES: usize = 128 << 10;

/// Doubts that are told one by one.
const DOUBTS: usize = 20;

/// A task of the structured analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Finds the kernel by known places and builds the first lists; asks for the other parts.
    System,
    /// The same by the anchors of the chunks.
    Anchored,
    /// Builds the other views.
    Views,
    /// Builds those views that scan all of memory, where that was left out of the others.
    Scans,
    /// Recovers content: cached files, modules, programs in memory.
    Content,
    /// Lists the memory of processes for the rules.
    Memory,
    /// Makes the map of who owns which page.
    Frames,
}

impl Part {
    /// The part that a view of a job is.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let all = [
            Self::System,
            Self::Anchored,
            Self::Views,
            Self::Scans,
            Self::Content,
            Self::Memory,
            Self::Frames,
        ];
        let name = name.strip_prefix(view::LATE).unwrap_or(name);
        all.into_iter().find(|p| p.name() == name)
    }

    /// Whether it looks for the kernel that the others take.
    pub(crate) fn finds_the_kernel(self) -> bool {
        matches!(self, Self::System | Self::Anchored)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => view::SYSTEM,
            Self::Anchored => view::ANCHORED,
            Self::Views => view::VIEWS,
            Self::Scans => view::SCANS,
            Self::Content => view::CONTENT,
            Self::Memory => view::MEMORY,
            Self::Frames => view::FRAMES,
        }
    }

    /// Does its work on a kernel. An error is an outage of the store.
    pub(crate) fn build(self, of: Opened<'_>, out: &mut Collector) -> Result<(), String> {
        match self {
            Self::System | Self::Anchored => {
                out.views(of, &|v| v.first)?;
                out.ask_for_the_rest(of.machine.system().scans_pools());
                Ok(())
            }
            Self::Views => {
                let waits = out.asked.lines && of.machine.system().scans_pools();
                out.views(of, &|v| !(v.first || waits && v.scans))
            }
            Self::Scans => out.views(of, &|v| v.scans),
            Self::Content => out.artifacts(of),
            Self::Memory => out.memory(of),
            Self::Frames => out.frames(of),
        }
    }
}

/// An opened machine, whatever its system.
#[derive(Clone, Copy)]
pub(crate) struct Opened<'m> {
    pub(crate) machine: &'m dyn Machine,
    pub(crate) runs: &'m RunMap,
    /// The same, and those of page files behind them: lists of memory count in these.
    pub(crate) paged: &'m RunMap,
}

/// Rows on their way into a report.
pub(crate) struct Collector {
    objects: Arc<dyn Objects>,
    keys: Keys,
    runtime: Handle,
    pub(crate) batches: Vec<(String, RecordBatch)>,
    segments: SegmentPacks,
    pub(crate) refs: Vec<ObjectRef>,
    asked: Asked,
    /// Folder for recovered files on their way to the store.
    spill: PathBuf,
    copies: Copies,
    lists: Lists,
    views: Vec<ViewRow>,
    coverage: CoverageBuilder,
    /// Parts to be done next.
    more: Vec<String>,
}

impl Collector {
    pub(crate) fn new(
        objects: Arc<dyn Objects>,
        keys: Keys,
        attempt: &str,
        asked: Asked,
        (spill, copies): (PathBuf, Copies),
    ) -> Self {
        Self {
            segments: SegmentPacks::new(objects.clone(), keys.clone(), attempt),
            asked,
            spill,
            copies,
            lists: Lists::new(objects.clone(), Handle::current(), keys.lists(attempt)),
            objects,
            keys,
            runtime: Handle::current(),
            batches: Vec::new(),
            refs: Vec::new(),
            views: Vec::new(),
            coverage: CoverageBuilder::default(),
            more: Vec::new(),
        }
    }

    /// Takes rows of a table: small ones go with the report, large ones to the store.
    pub(crate) fn take(&mut self, table: &str, b: Option<RecordBatch>) -> Result<(), String> {
        let Some(b) = b else { return Ok(()) };
        let b = match place_columns(table) {
            Some(c) => sort_batch(b, c).map_err(|e| e.to_string())?,
            None => b,
        };
        if batch_bytes(&b) < SEGMENT {
            self.batches.push((table.to_owned(), b));
            return Ok(());
        }
        let rows = b.num_rows() as u64;
        let data = write_segment(table, b.schema(), &[b]).map_err(|e| e.to_string())?;
        self.runtime
            .block_on(self.segments.add(table, rows, data))
            .map_err(|e| e.to_string())
    }

    /// Stores what is left, and names what is stored in the report. Gives the rows that go with it.
    pub(crate) fn into_rows(
        self,
        header: &mut TaskReport,
    ) -> Result<Vec<(String, RecordBatch)>, String> {
        let segments = self.runtime.block_on(self.segments.finish());
        header.segments = segments.map_err(|e| e.to_string())?;
        header.objects = self.refs;
        Ok(self.batches)
    }

    /// Stores what views can recover: content with holes as zeros, the holes told.
    fn artifacts(&mut self, of: Opened<'_>) -> Result<(), String> {
        let runs = of.runs;
        let mut packs = PackWriter::new(
            self.objects.clone(),
            self.keys.clone(),
            self.runtime.clone(),
            self.copies.clone(),
        );
        let views = of.machine.system().views().iter();
        for view in views.filter(|v| v.recovers && !v.on_request) {
            let started = Instant::now();
            let (mut doubts, mut rows, mut failed) = (Vec::new(), 0, None);
            let (mut left, mut lost) = (Vec::new(), Vec::new());
            let made = guarded(|| {
                of.machine
                    .recover(view, None, &mut doubts, &mut |r| {
                        let size = r.content.size();
                        if size > LARGEST {
                            left.push(format!("{} has {size} bytes, over {LARGEST}", r.name));
                            return ControlFlow::Continue(());
                        }
                        match store(of, view.name, &r, &mut packs, &self.spill) {
                            Ok(()) => rows += 1,
                            // A full disk costs this file, not all that was found.
                            Err(Lost::Here(e)) => {
                                let first = r.content.extents().first();
                                let at =
                                    first.and_then(|x| runs.from_phys(x.pa)).map_or(0, |i| i.0);
                                lost.push(CoverageRow {
                                    engine: RECOVERY.to_owned(),
                                    outcome: "failed".to_owned(),
                                    start: at,
                                    end: at.saturating_add(r.content.present()),
                                    reason: Some(format!("{} was not stored: {e}", r.name)),
                                });
                                left.push(format!("{}: {e}", r.name));
                            }
                            Err(Lost::Store(e)) => {
                                failed = Some(e);
                                return ControlFlow::Break(());
                            }
                        }
                        ControlFlow::Continue(())
                    })
                    .map_err(|e| e.to_string())
            });
            if let Some(why) = failed {
                return Err(why);
            }
            lost.iter().for_each(|r| self.coverage.push(r));
            let left = left.iter();
            doubts.extend(left.map(|l| format!("not stored: {l}; ramsift recover writes it")));
            self.views.push(ViewRow {
                view: format!("{} (content)", view.name),
                status: if made.is_ok() { "built" } else { "failed" }.to_owned(),
                rows,
                doubtful: doubts.len() as u64,
                anomalies: 0,
                detail: made.err().or_else(|| told(&doubts)),
                micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            });
        }
        packs.flush().map_err(|e| e.to_string())?;
        self.refs = std::mem::take(&mut packs.refs);
        let rows = packs.rows.finish().map_err(|e| e.to_string())?;
        if let (true, Some(rows)) = (self.asked.files, &rows) {
            self.lists.files(rows)?;
        }
        self.take(name::ARTIFACTS, rows)
    }

    /// Lists the memory of processes for the rules.
    fn memory(&mut self, of: Opened<'_>) -> Result<(), String> {
        let runs = of.paged;
        let started = Instant::now();
        let (mut doubts, mut failed, mut next) = (Vec::new(), None, 0);
        let (asked, lists) = (&self.asked, &mut self.lists);
        let made = guarded(|| {
            of.machine
                .resident(&mut doubts, &mut |unit| {
                    next = next.max(unit.number.saturating_add(1));
                    match lists.unit(unit, runs, asked) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(e) => {
                            failed = Some(e);
                            ControlFlow::Break(())
                        }
                    }
                })
                .map_err(|e| e.to_string())
        });
        if failed.is_none() && self.asked.lines {
            failed = self.cached_files(of, next, &mut doubts).err();
        }
        let lists = &mut self.lists;
        if let Some(why) = failed {
            return Err(why);
        }
        let (rows, why) = match made {
            Ok(processes) => (lists.processes(processes)?, None),
            Err(why) => {
                lists.forget_memory();
                (0, Some(why))
            }
        };
        self.views.push(ViewRow {
            view: format!("{}/memory (scan)", of.machine.system().name()),
            status: if why.is_none() { "built" } else { "failed" }.to_owned(),
            rows,
            doubtful: doubts.len() as u64,
            anomalies: 0,
            detail: why.or_else(|| told(&doubts)),
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
        Ok(())
    }

    /// Lists cached files for the carvers: in RAM their pages lie apart, and beside those of others.
    fn cached_files(
        &mut self,
        of: Opened<'_>,
        first: u32,
        doubts: &mut Vec<String>,
    ) -> Result<(), String> {
        let (mut number, mut failed) = (first, None);
        if let Some(view) = of.machine.system().view_for(Purpose::CachedFiles) {
            let (asked, lists) = (&self.asked, &mut self.lists);
            let made = guarded(|| {
                of.machine
                    .recover(view, None, doubts, &mut |r| {
                        let extents = r.content.extents().to_vec();
                        match lists.cached(number, r.name, extents, of.paged, asked) {
                            Ok(()) => {
                                number = number.saturating_add(1);
                                ControlFlow::Continue(())
                            }
                            Err(e) => {
                                failed = Some(e);
                                ControlFlow::Break(())
                            }
                        }
                    })
                    .map_err(|e| e.to_string())
            });
            if let Err(why) = made {
                doubts.push(format!("cached files are not carved in their order: {why}"));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes the frame map and takes it.
    fn frames(&mut self, of: Opened<'_>) -> Result<(), String> {
        let started = Instant::now();
        let mut doubts = Vec::new();
        let (mut rows, mut failed) = (0, None);
        let mut builder = FramesBuilder::default();
        let made = guarded(|| {
            of.machine
                .frames(of.runs, &mut doubts, &mut |f| {
                    let Some(at) = of.runs.from_phys(f.start) else {
                        return;
                    };
                    rows += 1;
                    builder.push(&FrameRow {
                        image_offset: at.0,
                        physical_address: f.start.0,
                        length: f.len,
                        state: f.state,
                        owner: f.owner.as_deref(),
                        virtual_address: f.va,
                        file_offset: f.file_offset,
                    });
                    if builder.rows() >= FRAMES && failed.is_none() {
                        let b = builder.finish().map_err(|e| e.to_string());
                        failed = b.and_then(|b| self.take(name::FRAMES, b)).err();
                    }
                })
                .map_err(|e| e.to_string())
        });
        if let Some(why) = failed {
            return Err(why);
        }
        let rest = builder.finish().map_err(|e| e.to_string())?;
        self.take(name::FRAMES, rest)?;
        self.views.push(ViewRow {
            view: format!("{}/frames", of.machine.system().name()),
            status: if made.is_ok() { "built" } else { "failed" }.to_owned(),
            rows,
            doubtful: doubts.len() as u64,
            anomalies: 0,
            detail: made.err().or_else(|| told(&doubts)),
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
        Ok(())
    }

    /// Builds the views that are wanted.
    fn views(&mut self, of: Opened<'_>, wanted: &dyn Fn(&View) -> bool) -> Result<(), String> {
        for view in of.machine.system().views().iter().filter(|v| wanted(v)) {
            let span = tracing::info_span!("view.build", view = view.name);
            let _inside = span.clone().entered();
            let started = Instant::now();
            let mut row = ViewRow {
                view: view.name.to_owned(),
                ..ViewRow::default()
            };
            match guarded(|| of.machine.build(view).map_err(|e| e.to_string())) {
                Ok(t) => {
                    self.view(view.name, &t, of.runs)?;
                    row.status = "built".into();
                    row.rows = t.rows.len() as u64;
                    row.doubtful = t.doubts.len() as u64;
                    row.anomalies = t.anomalies.len() as u64;
                    row.detail = told(&t.doubts);
                }
                Err(why) => {
                    tracing::warn!(view = view.name, reason = %why, "view failed");
                    ramsift_telemetry::failed(&span, &why);
                    row.status = "failed".into();
                    row.detail = Some(why);
                }
            }
            let built = row.status == "built";
            let status = if built { "built" } else { "failed" };
            metrics::view(view.name, status, started.elapsed());
            row.micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.views.push(row);
        }
        Ok(())
    }

    /// Asks for the parts that can be done now that the kernel is known. Where the chunks look for objects in pool memory, what
    /// needs these waits for them.
    fn ask_for_the_rest(&mut self, scans_pools: bool) {
        let waits = scans_pools && self.asked.lines;
        let memory = (self.asked.memory || self.asked.lines).then_some(Part::Memory);
        let scans = waits.then_some(Part::Scans);
        let late = [Part::Content, Part::Frames]
            .into_iter()
            .chain(memory)
            .chain(scans);
        let name = |p: Part| match waits {
            true => format!("{}{}", view::LATE, p.name()),
            false => p.name().to_owned(),
        };
        self.more = std::iter::once(Part::Views.name().to_owned())
            .chain(late.map(name))
            .collect();
    }

    /// What is asked for by what was built.
    pub(crate) fn wishes(&mut self) -> Option<Wishes> {
        let mut w = self.lists.finish();
        w.views.clone_from(&self.more);
        (w.memory + w.files > 0 || !w.views.is_empty()).then_some(w)
    }

    /// Takes the rows of a view.
    fn view(&mut self, view: &str, t: &Table, runs: &RunMap) -> Result<(), String> {
        let own = rows::batch(t).map_err(|e| e.to_string())?;
        self.take(
            &rows::table_name(view),
            Some(own).filter(|b| b.num_rows() > 0),
        )?;
        let mut findings = FindingsBuilder::default();
        rows::findings(view, t, runs, &mut findings);
        let findings = findings.finish().map_err(|e| e.to_string())?;
        self.take(name::FINDINGS, findings)?;
        let mut events = EventsBuilder::default();
        rows::events(view, t, runs, &mut events);
        let events = events.finish().map_err(|e| e.to_string())?;
        self.take(name::EVENTS, events)
    }

    /// Notes that a part could not be begun.
    pub(crate) fn not_built(&mut self, system: &str, part: Part, why: String) {
        self.views.push(ViewRow {
            view: format!("{system}/{}", part.name()),
            status: "failed".into(),
            detail: Some(why),
            ..ViewRow::default()
        });
    }

    /// Closes the table of what came of each view.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        let views = std::mem::take(&mut self.views);
        let b = views_batch(&views).map_err(|e| e.to_string())?;
        self.take(name::VIEWS, b)?;
        let gaps = self.coverage.finish().map_err(|e| e.to_string())?;
        self.take(name::COVERAGE, gaps)
    }
}

/// Does something that may meet a fault of this program: a panic costs that one thing alone.
fn guarded<T>(what: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|p| {
        let what = p
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| p.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(format!("a fault of this program: {what}"))
    })
}

fn told(doubts: &[String]) -> Option<String> {
    if doubts.is_empty() {
        return None;
    }
    let mut text = doubts[..doubts.len().min(DOUBTS)].join("; ");
    if doubts.len() > DOUBTS {
        text.push_str(&format!("; and {} more", doubts.len() - DOUBTS));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_one_thing() {
        let e = guarded::<()>(|| panic!("at {}", 7)).expect_err("caught");
        assert!(e.contains("at 7"), "{e}");
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!(guarded::<()>(|| Err("no".into())), Err("no".into()));
    }

    #[test]
    fn many_doubts_are_told_in_part() {
        assert_eq!(told(&[]), None);
        let many: Vec<String> = (0..DOUBTS + 3).map(|i| format!("d{i}")).collect();
        let text = told(&many).expect("doubts");
        assert!(
            text.starts_with("d0; d1") && text.ends_with("and 3 more"),
            "{text}"
        );
    }
}
