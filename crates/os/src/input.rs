//! What whoever looks for a kernel, or builds a view of it, may read.

use crate::discover::Anchor;
use ramsift_layers::page_file::PageFile;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::PhysRead;
use ramsift_symbols::store::Files;
use ramsift_symbols::{SymbolStore, SymbolTable};

/// What a view may read.
pub struct ViewInput<'a> {
    /// Physical memory.
    pub memory: &'a dyn PhysRead,
    /// Which physical memory there is.
    pub runs: &'a RunMap,
    /// Processor, where the container told.
    pub arch: Option<&'a str>,
    /// Page-table roots that the container recorded.
    pub dtb_hints: &'a [u64],
    /// Spots that help to find the kernel.
    pub anchors: &'a [Anchor],
    /// Where symbol files are looked for when a kernel does not carry its own.
    pub symbols: Option<&'a dyn KernelSymbols>,
    /// Page files of the captured system. Their pages are in `memory` at the addresses of [`ramsift_layers::page_file`], and
    /// not among the `runs`.
    pub page_files: &'a [PageFile],
}

/// Symbol files, found by the exact banner of the kernel that they are for.
pub trait KernelSymbols: Send + Sync + std::fmt::Debug {
    /// The table of a kernel, as linked; `None` if there is none. The error says what is wrong with the
    /// file that should be it.
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String>;
}

impl<F: Files + Send + Sync + std::fmt::Debug> KernelSymbols for SymbolStore<F> {
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String> {
        Self::find(self, banner).map_err(|e| e.to_string())
    }
}

impl std::fmt::Debug for ViewInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewInput({} anchors)", self.anchors.len())
    }
}
