//! One view of a capture without a job.

use crate::anchors;
use ramsift_layers::source::CachedPhys;
use ramsift_layers::{ByteSource, SourceError};
use ramsift_os::kernel::{Discovery, discover};
use ramsift_os::linux::{self, LinuxError, LinuxView, OpenError};
use ramsift_os::table::Table;
use ramsift_os::view::ViewInput;
use ramsift_store::Plan;
use std::sync::Arc;

/// Why there is no view.
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

/// What a view alone gave.
#[derive(Debug)]
pub struct Alone {
    /// The kernel it was built from.
    pub discovery: Discovery,
    /// Its rows.
    pub table: Table,
    /// Bytes read of the capture for the view, the pass that finds the kernel aside.
    pub bytes_read: u64,
}

/// Finds the kernel in one streaming pass and builds a view. `cache`: bytes of the capture kept in
/// memory.
pub async fn view_alone(
    source: Arc<dyn ByteSource>,
    plan: &Plan,
    view: &'static LinuxView,
    cache: u64,
) -> Result<Alone, AloneError> {
    let anchors = anchors::stream(source.clone(), plan).await?;
    let memory = CachedPhys::new(source.clone(), plan.layout.runs.clone(), cache);
    let layout = plan.layout.clone();
    let built = tokio::task::spawn_blocking(move || {
        let input = ViewInput {
            memory: &memory,
            runs: &layout.runs,
            arch: layout.arch.as_deref(),
            dtb_hints: &layout.dtb_hints,
            anchors: &anchors,
        };
        let discovery = discover(&input);
        let table = match &discovery.impossible {
            Some(why) => Err(AloneError::NoKernel(why.clone())),
            None => linux::open(&input, &discovery)
                .map_err(AloneError::from)
                .and_then(|kernel| {
                    (view.build)(&kernel).map_err(|error| AloneError::View {
                        view: view.name,
                        error,
                    })
                }),
        };
        // What looked like unreadable memory may have been a source that failed.
        if let Some(e) = memory.take_trouble() {
            return Err(AloneError::from(e));
        }
        Ok(Alone {
            table: table?,
            bytes_read: memory.bytes_read(),
            discovery,
        })
    });
    let built = built
        .await
        .map_err(|e| AloneError::Thread(e.to_string()))??;
    source.check_pin().await?;
    Ok(built)
}
