//! One kernel opened without a job, for whoever asks it something.

use crate::anchors;
use ramsift_layers::format::Layout;
use ramsift_layers::run::RunMap;
use ramsift_layers::source::CachedPhys;
use ramsift_layers::{ByteSource, ImageReader, SourceError};
use ramsift_os::discover::{Anchor, Discovery, discover, raw_base};
use ramsift_os::input::{KernelSymbols, ViewInput};
use ramsift_os::machine::{OpenError, ViewError, is_whole};
use ramsift_os::table::Table;
use ramsift_os::{Machine, View, open};
use ramsift_store::Plan;
use ramsift_store::kernel::{KernelRecord, Spot};
use std::sync::Arc;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AloneError {
    /// The evidence.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No kernel.
    #[error("{0}")]
    NoKernel(String),
    /// The kernel can't be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The view can't be built.
    #[error("{view}: {error}")]
    View {
        /// Which.
        view: &'static str,
        /// Why.
        error: ViewError,
    },
    /// The captured system has no such view.
    #[error(
        "this is a capture of {system}, which has no view {wanted}; ramsift view --list names all"
    )]
    NoView {
        /// Name of the system.
        system: &'static str,
        /// The views that were asked for, by name.
        wanted: String,
    },
    /// The thread that built it.
    #[error("the view failed: {0}")]
    Thread(String),
}

/// What was asked of a kernel.
#[derive(Debug)]
pub struct Alone<T> {
    /// The kernel it was asked of.
    pub discovery: Discovery,
    /// The answer.
    pub answer: T,
    /// Bytes read of the capture for it, a pass over the image aside.
    pub bytes_read: u64,
    /// Where the kernel is, where that was looked for and not known before.
    pub found: Option<KernelRecord>,
}

/// What a kernel may be read with.
#[derive(Clone, Debug)]
pub struct Means {
    /// Bytes of the capture kept in memory.
    pub cache: u64,
    /// Symbol files for kernels that don't carry their own.
    pub symbols: Option<Arc<dyn KernelSymbols>>,
}

/// A record of these anchors.
pub(crate) fn record(anchors: &[Anchor]) -> KernelRecord {
    KernelRecord {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        spots: anchors
            .iter()
            .map(|a| Spot {
                kind: a.kind.clone(),
                image_offset: a.image_offset,
                data: hex::encode(&a.data),
            })
            .collect(),
    }
}

/// The anchors of a record; spots that are damaged are left out.
pub(crate) fn known(r: &KernelRecord) -> Vec<Anchor> {
    let anchor = |s: &Spot| {
        Some(Anchor {
            kind: s.kind.clone(),
            image_offset: s.image_offset,
            data: hex::decode(&s.data).ok()?,
        })
    };
    r.spots.iter().filter_map(anchor).collect()
}

/// What a view of a capture may read.
pub(crate) fn input<'i>(
    memory: &'i CachedPhys,
    runs: &'i RunMap,
    layout: &'i Layout,
    anchors: &'i [Anchor],
    symbols: Option<&'i dyn KernelSymbols>,
) -> ViewInput<'i> {
    ViewInput {
        memory,
        runs,
        arch: layout.arch.as_deref(),
        dtb_hints: &layout.dtb_hints,
        anchors,
        symbols,
        page_files: &layout.page_files,
        pool: None,
    }
}

/// Physical memory of a capture, of whose image and page files `source` are the bytes, and its runs: those of the container, unless the kernel says that
/// the memory of a raw image begins elsewhere. Must be called where blocking is allowed.
pub(crate) fn memory(
    source: Arc<dyn ByteSource>,
    layout: &Layout,
    anchors: &[Anchor],
    cache: u64,
) -> (CachedPhys, RunMap) {
    let memory = CachedPhys::new(source.clone(), layout.paged_runs(source.len()), cache);
    let base = raw_base(&input(&memory, &layout.runs, layout, anchors, None));
    match base.map(|b| layout.runs.moved_up(b)) {
        Some(Ok(runs)) => (CachedPhys::new(source, runs.clone(), cache), runs),
        _ => (memory, layout.runs.clone()),
    }
}

/// What lies at the known places of a capture.
pub(crate) enum Found {
    /// The anchors of a kernel, by this known place, and the memory that they were read through.
    There(Box<CachedPhys>, Vec<Anchor>, String),
    /// No kernel.
    Not,
    /// The evidence could not be read.
    Trouble(SourceError),
}

/// Looks at the known places of a capture, of whose image and page files `source` are the bytes. Must be called where blocking is allowed.
pub(crate) fn at_known_places(
    source: Arc<dyn ByteSource>,
    layout: &Layout,
    cache: u64,
    around: u64,
    symbols: Option<&dyn KernelSymbols>,
) -> Found {
    let runs = layout.paged_runs(source.len());
    let memory = CachedPhys::new(source, runs, cache).around(around);
    let found = anchors::at_known_places(&memory, layout, symbols);
    // What looked like unreadable memory may have been a source that failed.
    match (memory.take_trouble(), found) {
        (Some(e), _) => Found::Trouble(e),
        (None, Some((anchors, place))) => Found::There(Box::new(memory), anchors, place),
        (None, None) => Found::Not,
    }
}

/// What came of asking a kernel.
enum Asked<T, F> {
    /// An answer.
    Answered(Box<Alone<T>>),
    /// No kernel that is whole lies at a known place: the question is still open.
    Elsewhere(F),
}

/// Opens the kernel of a capture and asks it something. Without a record the kernel is looked for: at known places,
/// else by one streaming pass, which ends where the kernel can be opened.
pub async fn with_machine<T: Send + 'static>(
    image: &ImageReader,
    plan: &Plan,
    record_of: Option<&KernelRecord>,
    means: Means,
    ask: impl FnOnce(&dyn Machine, &RunMap) -> Result<T, AloneError> + Send + 'static,
) -> Result<Alone<T>, AloneError> {
    let known = record_of.map(known);
    let source = image.bytes();
    let paged = image.paged_bytes();
    let mut asked = on_kernel(&paged, plan, known, &means, ask).await?;
    if let Asked::Elsewhere(ask) = asked {
        let anchors = anchors::stream(source.clone(), plan, &means).await?;
        let found = record(&anchors);
        asked = on_kernel(&paged, plan, Some(anchors), &means, ask).await?;
        if let Asked::Answered(a) = &mut asked {
            a.found = Some(found);
        }
    }
    image.check_pin().await?;
    match asked {
        Asked::Answered(a) => Ok(*a),
        Asked::Elsewhere(_) => Err(AloneError::NoKernel("no kernel was found".into())),
    }
}

/// Asks the kernel that these anchors lead to, or known places where there are none.
async fn on_kernel<T, F>(
    source: &Arc<dyn ByteSource>,
    plan: &Plan,
    known: Option<Vec<Anchor>>,
    means: &Means,
    ask: F,
) -> Result<Asked<T, F>, AloneError>
where
    T: Send + 'static,
    F: FnOnce(&dyn Machine, &RunMap) -> Result<T, AloneError> + Send + 'static,
{
    let (of, layout, means) = (source.clone(), plan.layout.clone(), means.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let symbols = means.symbols.as_deref();
        let looked = known.is_none();
        let (memory, runs, anchors) = match known {
            Some(anchors) => {
                let (memory, runs) = memory(of, &layout, &anchors, means.cache);
                (memory, runs, anchors)
            }
            None => match at_known_places(of, &layout, means.cache, 0, symbols) {
                Found::There(memory, anchors, _) => (*memory, layout.runs.clone(), anchors),
                Found::Not => return Ok(Asked::Elsewhere(ask)),
                Found::Trouble(e) => return Err(e.into()),
            },
        };
        let input = input(&memory, &runs, &layout, &anchors, symbols);
        let discovery = discover(&input);
        let opened = match &discovery.impossible {
            Some(why) => Err(AloneError::NoKernel(why.clone())),
            None => open(&input, &discovery).map_err(AloneError::from),
        };
        // What looked like unreadable memory may have been a source that failed.
        let trouble = || {
            memory
                .take_trouble()
                .map_or(Ok(()), |e| Err(AloneError::from(e)))
        };
        if looked && !opened.as_ref().is_ok_and(|m| is_whole(m.as_ref())) {
            trouble()?;
            return Ok(Asked::Elsewhere(ask));
        }
        let answer = opened.and_then(|machine| ask(machine.as_ref(), &runs));
        trouble()?;
        Ok(Asked::Answered(Box::new(Alone {
            answer: answer?,
            bytes_read: memory.bytes_read(),
            found: looked.then(|| record(&anchors)),
            discovery,
        })))
    });
    asked.await.map_err(|e| AloneError::Thread(e.to_string()))?
}

/// Builds the one of these views that is of the captured system.
pub async fn view_alone(
    image: &ImageReader,
    plan: &Plan,
    record: Option<&KernelRecord>,
    views: Vec<&'static View>,
    means: Means,
) -> Result<Alone<(&'static View, Table)>, AloneError> {
    let ask = move |machine: &dyn Machine, _: &RunMap| {
        let own = machine.system().views();
        let is_own = |v: &&&View| own.iter().any(|o| o.name == v.name);
        let view = views
            .iter()
            .find(is_own)
            .ok_or_else(|| AloneError::NoView {
                system: machine.system().name(),
                wanted: views.iter().map(|v| v.name).collect::<Vec<_>>().join(", "),
            })?;
        let table = machine.build(view).map_err(|error| AloneError::View {
            view: view.name,
            error,
        })?;
        Ok((*view, table))
    };
    with_machine(image, plan, record, means, ask).await
}
