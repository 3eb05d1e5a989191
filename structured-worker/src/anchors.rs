//! Anchors: from known places, from the reports of the chunk workers, or from a pass of our own.

use crate::alone::{Means, input, memory};
use arrow::array::RecordBatch;
use ramsift_carvers::api::{
    self, Artifact, Event, Finding, LOOK_BEHIND, MoreError, ReadMore, Sink, Window,
};
use ramsift_carvers::windows::{self, POOL, PoolHeaders};
use ramsift_carvers::{CarverOptions, CarverSet};
use ramsift_layers::format::Layout;
use ramsift_layers::run::RunMap;
use ramsift_layers::source::CachedPhys;
use ramsift_layers::translate::PhysRead;
use ramsift_layers::{ByteSource, FileOffset, ImageOffset, PhysAddr, SourceError};
use ramsift_os::discover::{Anchor, discover};
use ramsift_os::image::{KernelImage, anchors_beside, known_images};
use ramsift_os::input::{KernelSymbols, PoolScan};
use ramsift_os::{SYSTEMS, open};
use ramsift_store::commits;
use ramsift_store::tables::{anchor_rows, name, read_segment};
use ramsift_store::{Keys, Objects, Plan};
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Anchors of one kind that are kept: hostile memory can be full of them.
const PER_KIND: usize = 256;

/// The batches of anchors in the committed segments.
async fn batches(objects: &dyn Objects, keys: &Keys) -> Result<Vec<RecordBatch>, String> {
    let mut out = Vec::new();
    for c in commits::all(objects, keys)
        .await
        .map_err(|e| e.to_string())?
    {
        let of_reports = c.reports.iter().flat_map(|r| &r.segments);
        for s in c
            .segments
            .iter()
            .chain(of_reports)
            .filter(|s| s.table == name::ANCHORS)
        {
            let (data, _) = objects.get(&s.key).await.map_err(|e| e.to_string())?;
            out.extend(read_segment(data).map_err(|e| format!("{}: {e}", s.key))?);
        }
    }
    Ok(out)
}

/// The anchors in the committed segments, each once, in image order.
pub(crate) async fn reported(objects: &dyn Objects, keys: &Keys) -> Result<Vec<Anchor>, String> {
    let mut out = Vec::new();
    for b in batches(objects, keys).await? {
        out.extend(
            anchor_rows(&b)
                .into_iter()
                .map(|(kind, image_offset, _, data)| Anchor {
                    kind,
                    image_offset,
                    data,
                }),
        );
    }
    out.retain(|a| a.kind != POOL);
    Ok(thin(out))
}

/// What the chunks told of pool memory, in the committed segments; nothing of a job without chunks.
pub(crate) async fn pool(
    objects: &dyn Objects,
    keys: &Keys,
    runs: &RunMap,
) -> Result<PoolScan, String> {
    let mut out = Vec::new();
    for b in batches(objects, keys).await? {
        for (kind, image_offset, _, data) in anchor_rows(&b) {
            let Some(found) = Some(data)
                .filter(|_| kind == POOL)
                .and_then(|d| PoolHeaders::decode(&d))
            else {
                continue;
            };
            // A window never crosses a hole in physical memory.
            let Some(pa) = runs.to_phys(ImageOffset(image_offset)).map(|p| p.0) else {
                continue;
            };
            let headers = found.at.iter().map(|at| pa + u64::from(*at));
            out.push((pa..pa.saturating_add(found.len), headers.collect()));
        }
    }
    Ok(PoolScan::new(out))
}

fn thin(mut all: Vec<Anchor>) -> Vec<Anchor> {
    all.sort_by(|a, b| (&a.kind, a.image_offset).cmp(&(&b.kind, b.image_offset)));
    all.dedup();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    all.retain(|a| {
        let n = seen.entry(a.kind.clone()).or_default();
        *n += 1;
        *n <= PER_KIND
    });
    all
}

#[derive(Default)]
struct Collect(Vec<Anchor>);

impl Collect {
    /// Scans bytes that lie at `base` in the image; anchors that begin in `core` count. With the physical address of the first
    /// byte top tables are looked for too.
    fn scan(
        &mut self,
        carvers: &CarverSet,
        data: &[u8],
        base: u64,
        core: Range<u64>,
        image_len: u64,
        physical: Option<u64>,
    ) {
        let offset = |o: u64| usize::try_from(o).unwrap_or(usize::MAX);
        let window = Window {
            data,
            base: ImageOffset(base),
            core_start: offset(core.start),
            core_end: offset(core.end),
            image_len,
        };
        carvers.scan(&window, &mut Nothing, self, &|| false);
        if let Some(physical) = physical {
            let core = window.core_start..window.core_end;
            for at in windows::top_tables(data, physical, &core) {
                self.0.push(Anchor {
                    kind: windows::TOP_TABLE.to_owned(),
                    image_offset: base + at as u64,
                    data: Vec::new(),
                });
            }
        }
    }
}

impl Sink for Collect {
    fn finding(&mut self, _: &Finding<'_>) {}
    fn event(&mut self, _: &Event<'_>) {}
    fn artifact(&mut self, _: &Artifact<'_>) {}
    fn anchor(&mut self, a: &api::Anchor<'_>) {
        self.0.push(Anchor {
            kind: a.kind.to_owned(),
            image_offset: a.offset.0,
            data: a.data.to_vec(),
        });
    }
}

/// Anchors are short: what a window's overlap doesn't hold isn't one.
struct Nothing;

impl ReadMore for Nothing {
    fn read_more(&mut self, _: ImageOffset, _: usize, _: &mut Vec<u8>) -> Result<(), MoreError> {
        Err(MoreError::Budget)
    }
}

/// Bytes of a window of the streaming pass.
const STEP: u64 = 16 << 20;

/// Bytes behind a window's core: anchors end within.
const BEHIND: u64 = 8192;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes that are scanned at a time of a kernel's image.
const PIECE: u64 = 1 << 20;

/// What known places lead to: the anchors of a kernel whose page table is confirmed, and the place. Whether it opens
/// whole ([`ramsift_os::machine::is_whole`]) is for the caller to see. Must be called where blocking is allowed.
pub(crate) fn at_known_places(
    memory: &CachedPhys,
    layout: &Layout,
    symbols: Option<&dyn KernelSymbols>,
) -> Option<(Vec<Anchor>, String)> {
    let mut of_systems = known_images(memory, &layout.dtb_hints);
    of_systems.find_map(|images| led_to(memory, layout, symbols, &images))
}

/// The same of these images.
fn led_to(
    memory: &CachedPhys,
    layout: &Layout,
    symbols: Option<&dyn KernelSymbols>,
    images: &[KernelImage],
) -> Option<(Vec<Anchor>, String)> {
    let mut anchors = Vec::new();
    for image in images {
        anchors.extend(of_image(memory, &layout.runs, image));
        anchors = thin(anchors);
        let input = input(memory, &layout.runs, layout, &anchors, symbols);
        let beside = anchors_beside(&input, image);
        anchors.extend(beside);
    }
    let anchors = thin(anchors);
    let input = input(memory, &layout.runs, layout, &anchors, symbols);
    let d = discover(&input);
    let table = d.page_tables.iter().find(|t| t.confirmed)?;
    let of = images.iter().find(|i| i.is_mapped_by(memory, table.dtb));
    let place = of.or(images.first())?.place.clone();
    Some((anchors, place))
}

/// The anchors in a kernel's image.
pub(crate) fn of_image(memory: &CachedPhys, runs: &RunMap, image: &KernelImage) -> Vec<Anchor> {
    let Some(carvers) = carvers() else {
        return Vec::new();
    };
    let mut found = Collect::default();
    let mut buf = Vec::new();
    for r in &image.data {
        let mut at = r.start;
        while at < r.end {
            let end = (at + PIECE).min(r.end);
            let from = at.saturating_sub(LOOK_BEHIND as u64).max(r.start);
            let to = (end + BEHIND).min(r.end);
            buf.clear();
            for page in (from..to).step_by(PAGE) {
                let n = buf.len();
                let len = usize::try_from(to - page).unwrap_or(PAGE).min(PAGE);
                buf.resize(n + len, 0);
                // A page that is missing holds no anchor; the rest is looked at.
                let _ = memory.read_phys(PhysAddr(page), &mut buf[n..]);
            }
            let place = |pa: u64| runs.from_phys(PhysAddr(pa)).map(|i| i.0);
            // Where the capture has a hole in the piece, its places would be wrong.
            let whole = place(from).zip(place(to - 1));
            if let Some((base, _)) = whole.filter(|(a, b)| b - a == to - 1 - from) {
                found.scan(
                    &carvers,
                    &buf,
                    base,
                    at - from..end - from,
                    runs.image_len(),
                    None,
                );
            }
            at = end;
        }
    }
    found.0
}

/// The carver of anchors alone, which exists.
fn carvers() -> Option<CarverSet> {
    let options = CarverOptions {
        only: Some(vec!["anchors".to_owned()]),
        ..CarverOptions::default()
    };
    CarverSet::new(options).ok()
}

/// Whether a kernel can be opened with these anchors.
fn enough(
    source: &Arc<dyn ByteSource>,
    anchors: &[Anchor],
    layout: &Layout,
    means: &Means,
) -> bool {
    let (memory, runs) = memory(source.clone(), layout, anchors, means.cache);
    let input = input(&memory, &runs, layout, anchors, means.symbols.as_deref());
    let d = discover(&input);
    // What leads to its processes may come later.
    d.impossible.is_none() && open(&input, &d).is_ok_and(|m| m.lists_processes())
}

/// One pass over the image, of which `source` are the bytes, for anchors alone. It ends as soon as a kernel can be opened with them: tables that
/// don't translate the kernel they are found in are never confirmed.
pub(crate) async fn stream(
    source: Arc<dyn ByteSource>,
    plan: &Plan,
    means: &Means,
) -> Result<Vec<Anchor>, SourceError> {
    let mut layout = plan.layout.clone();
    // These bytes are the image's alone.
    layout.page_files.clear();
    let means = means.clone();
    let done = tokio::task::spawn_blocking(move || {
        let Some(carvers) = carvers() else {
            return Ok(Vec::new());
        };
        let mut found = Collect::default();
        let mut told = 0;
        let runs = &layout.runs;
        let mut buf = Vec::new();
        let runtime = Handle::current();
        for stretch in runs.stored_in(0..u64::MAX) {
            let mut at = stretch.start;
            while at < stretch.end {
                let end = (at + STEP).min(stretch.end);
                let from = at.saturating_sub(LOOK_BEHIND as u64).max(stretch.start);
                let to = (end + BEHIND).min(stretch.end);
                buf.clear();
                for p in runs.pieces(from..to) {
                    let n = buf.len();
                    buf.resize(n + usize::try_from(p.len).unwrap_or(0), 0);
                    let read = source.read_at(FileOffset(p.file), &mut buf[n..]);
                    match runtime.block_on(read) {
                        // A bad place holds no anchor; the rest is looked at.
                        Err(e) if e.is_content() => buf[n..].fill(0),
                        other => other?,
                    }
                }
                let physical = runs.to_phys(ImageOffset(from)).map(|p| p.0);
                let core = at - from..end - from;
                found.scan(&carvers, &buf, from, core, stretch.end, physical);
                // Worth a try when one of those that say where things are came in.
                let tells = |a: &&Anchor| {
                    let mut kinds = SYSTEMS.iter().flat_map(|s| s.telling_anchors());
                    kinds.any(|k| *k == a.kind)
                };
                let telling = found.0.iter().filter(tells).count();
                if telling > told && enough(&source, &found.0, &layout, &means) {
                    return Ok(thin(found.0));
                }
                told = telling;
                at = end;
            }
        }
        Ok(thin(found.0))
    });
    match done.await {
        Ok(found) => found,
        Err(e) => Err(SourceError::Unavailable {
            what: "the anchor pass".into(),
            detail: e.to_string(),
        }),
    }
}
