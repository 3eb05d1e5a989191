//! The seam for views: one file per view, one line in a registry.

use crate::kernel::{Anchor, Discovery};
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

/// More work that a view asks for: scan these virtual ranges of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanWish {
    /// Page-table root of the process.
    pub dtb: u64,
    /// Virtual ranges.
    pub ranges: Vec<(u64, u64)>,
}

/// What a view gave.
#[derive(Clone, Debug, Default)]
pub struct ViewOutput {
    /// The kernel, where the view looked for it.
    pub discovery: Discovery,
    /// More work that it asks for.
    pub wishes: Vec<ScanWish>,
}

/// One view.
pub trait View: Send + Sync {
    /// Its name: `system`, `linux/pslist`.
    fn name(&self) -> &'static str;

    /// Builds it. What is not possible is part of the output, with the reason.
    fn build(&self, input: &ViewInput<'_>) -> ViewOutput;
}

/// The system view: which system was captured.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl View for System {
    fn name(&self) -> &'static str {
        "system"
    }

    fn build(&self, input: &ViewInput<'_>) -> ViewOutput {
        ViewOutput {
            discovery: crate::kernel::discover(input),
            wishes: Vec::new(),
        }
    }
}

/// All views.
pub const VIEWS: &[&dyn View] = &[&System];

/// A view by its name.
pub fn by_name(name: &str) -> Option<&'static dyn View> {
    VIEWS.iter().find(|v| v.name() == name).copied()
}
