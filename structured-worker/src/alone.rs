//! One kernel opened without a job, for whoever asks it something.

use crate::anchors;
use ramsift_layers::format::Layout;
use ramsift_layers::run::RunMap;
use ramsift_layers::source::CachedPhys;
use ramsift_layers::{ByteSource, SourceError};
use ramsift_os::discover::{Anchor, Discovery, discover, raw_base};
use ramsift_os::linux::{self, Kernel, LinuxError, LinuxView, OpenError};
use ramsift_os::table::Table;
use ramsift_os::view::{KernelSymbols, ViewInput};
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
        error: LinuxError,
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
    }
}

/// Physical memory of a capture and its runs: those of the container, unless the kernel says that
/// the memory of a raw image begins elsewhere. Must be called where blocking is allowed.
pub(crate) fn memory(
    source: Arc<dyn ByteSource>,
    layout: &Layout,
    anchors: &[Anchor],
    cache: u64,
) -> (CachedPhys, RunMap) {
    let memory = CachedPhys::new(source.clone(), layout.runs.clone(), cache);
    let base = raw_base(&input(&memory, &layout.runs, layout, anchors, None));
    match base.map(|b| layout.runs.moved_up(b)) {
        Some(Ok(runs)) => (CachedPhys::new(source, runs.clone(), cache), runs),
        _ => (memory, layout.runs.clone()),
    }
}

/// Where a kernel was looked for, and whether it was found there.
pub(crate) enum Found {
    /// Opened whole, with these anchors, by this known place.
    There(Box<CachedPhys>, Vec<Anchor>, String),
    /// Not at a known place.
    Not,
    /// The evidence could not be read.
    Trouble(SourceError),
}

/// Looks at the known places of a capture. Must be called where blocking is allowed.
pub(crate) fn at_known_places(
    source: Arc<dyn ByteSource>,
    layout: &Layout,
    cache: u64,
    around: u64,
    symbols: Option<&dyn KernelSymbols>,
) -> Found {
    let memory = CachedPhys::new(source, layout.runs.clone(), cache).around(around);
    let found = anchors::at_known_places(&memory, layout, symbols);
    // What looked like unreadable memory may have been a source that failed.
    match (memory.take_trouble(), found) {
        (Some(e), _) => Found::Trouble(e),
        (None, Some((anchors, place))) => Found::There(Box::new(memory), anchors, place),
        (None, None) => Found::Not,
    }
}

/// The anchors of a capture whose kernel is not known: by known places, else by one streaming pass, which ends where
/// the kernel can be opened.
async fn look_for(
    source: &Arc<dyn ByteSource>,
    plan: &Plan,
    means: &Means,
) -> Result<(Vec<Anchor>, Option<Box<CachedPhys>>), AloneError> {
    let (of, layout, by) = (source.clone(), plan.layout.clone(), means.clone());
    let looked = tokio::task::spawn_blocking(move || {
        at_known_places(of, &layout, by.cache, 0, by.symbols.as_deref())
    });
    match looked
        .await
        .map_err(|e| AloneError::Thread(e.to_string()))?
    {
        Found::There(memory, anchors, _) => Ok((anchors, Some(memory))),
        Found::Not => Ok((anchors::stream(source.clone(), plan, means).await?, None)),
        Found::Trouble(e) => Err(e.into()),
    }
}

/// Opens the kernel of a capture and asks it something. Without a record the kernel is looked for.
pub async fn with_kernel<T: Send + 'static>(
    source: Arc<dyn ByteSource>,
    plan: &Plan,
    record_of: Option<&KernelRecord>,
    means: Means,
    ask: impl FnOnce(&Kernel<'_>, &RunMap) -> Result<T, AloneError> + Send + 'static,
) -> Result<Alone<T>, AloneError> {
    let (anchors, read, found) = match record_of {
        Some(r) => (known(r), None, None),
        None => {
            let (anchors, read) = look_for(&source, plan, &means).await?;
            let found = record(&anchors);
            (anchors, read, Some(found))
        }
    };
    let layout = plan.layout.clone();
    let of = source.clone();
    let built = tokio::task::spawn_blocking(move || {
        let (memory, runs) = match read {
            // What was read to find the kernel is kept.
            Some(memory) => (*memory, layout.runs.clone()),
            None => memory(of, &layout, &anchors, means.cache),
        };
        let input = input(&memory, &runs, &layout, &anchors, means.symbols.as_deref());
        let discovery = discover(&input);
        let answer = match &discovery.impossible {
            Some(why) => Err(AloneError::NoKernel(why.clone())),
            None => linux::open(&input, &discovery)
                .map_err(AloneError::from)
                .and_then(|kernel| ask(&kernel, &runs)),
        };
        // What looked like unreadable memory may have been a source that failed.
        if let Some(e) = memory.take_trouble() {
            return Err(AloneError::from(e));
        }
        Ok(Alone {
            answer: answer?,
            bytes_read: memory.bytes_read(),
            discovery,
            found,
        })
    });
    let built = built
        .await
        .map_err(|e| AloneError::Thread(e.to_string()))??;
    source.check_pin().await?;
    Ok(built)
}

/// Builds a view.
pub async fn view_alone(
    source: Arc<dyn ByteSource>,
    plan: &Plan,
    record: Option<&KernelRecord>,
    view: &'static LinuxView,
    means: Means,
) -> Result<Alone<Table>, AloneError> {
    let ask = move |kernel: &Kernel<'_>, _: &RunMap| {
        (view.build)(kernel).map_err(|error| AloneError::View {
            view: view.name,
            error,
        })
    };
    with_kernel(source, plan, record, means, ask).await
}
