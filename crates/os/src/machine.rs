//! A captured machine whose kernel is opened, whatever its system.

use crate::content::Recovered;
use crate::files::{Files, FilesError, Viewer};
use crate::frames::Frame;
use crate::resident::{Resident, Unit};
use crate::system::System;
use crate::table::Table;
use crate::view::View;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::PhysRead;
use std::error::Error;
use std::fmt::Debug;
use std::ops::ControlFlow;

/// Why a kernel that was found can't be opened.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OpenError(Box<dyn Error + Send + Sync>);

impl OpenError {
    /// From what a system says.
    pub fn new(e: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(e.into())
    }
}

/// Why a view can't be built, or content not recovered.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ViewError(Box<dyn Error + Send + Sync>);

impl ViewError {
    /// What the system says.
    pub fn reason(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }

    /// From what a system says.
    pub fn new(e: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(e.into())
    }
}

/// An opened machine. Errors are of one request; other requests may be met all the same.
pub trait Machine: Debug {
    /// Its system.
    fn system(&self) -> &'static dyn System;

    /// Physical memory.
    fn memory(&self) -> &dyn PhysRead;

    /// What of the kernel's own tables could not be read, in words; `None` when all of it could.
    fn damage(&self) -> Option<String>;

    /// Whether its processes can be listed: without them a kernel is no use.
    fn lists_processes(&self) -> bool;

    /// Builds a view, which must be one of its system's.
    fn build(&self, view: &View) -> Result<Table, ViewError>;

    /// Visits what a view can recover, one at a time, until the visitor breaks off: with `pid` that of one process, of
    /// views whose content belongs to processes. What is skipped goes into `doubts`.
    fn recover(
        &self,
        view: &View,
        pid: Option<i64>,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
    ) -> Result<(), ViewError>;

    /// Makes the map of who owns which page of all memory in the image and hands over its stretches in physical order.
    fn frames(
        &self,
        runs: &RunMap,
        doubts: &mut Vec<String>,
        out: &mut dyn FnMut(Frame),
    ) -> Result<(), ViewError>;

    /// Visits all memory that processes have, each byte once, until the visitor breaks off, and gives the processes
    /// that have it.
    fn resident(
        &self,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
    ) -> Result<Vec<Resident>, ViewError>;

    /// The files as a viewer sees them.
    fn files(&self, viewer: &Viewer) -> Result<Box<dyn Files + '_>, FilesError>;

    /// Viewers who have something at a path, in words, where the machine's own view has not.
    fn seen_by_others(&self, path: &str) -> Vec<String>;
}

/// Whether a kernel needs nothing more than what it was opened with. What lies in damaged pages may lie elsewhere once
/// more.
pub fn is_whole(machine: &dyn Machine) -> bool {
    machine.damage().is_none() && machine.lists_processes()
}
