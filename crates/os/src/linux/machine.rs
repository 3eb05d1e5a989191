//! A Linux kernel as any other opened machine.

use super::views::memory::elfs;
use super::views::process::procdump;
use super::{Kernel, Linux, LinuxError, LinuxView, VIEWS, viewers};
use crate::content::Recovered;
use crate::files::{Files, FilesError, Viewer};
use crate::frames::Frame;
use crate::machine::{Machine, ViewError};
use crate::resident::{Resident, Unit};
use crate::system::System;
use crate::table::Table;
use crate::view::View;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::PhysRead;
use std::ops::ControlFlow;

impl From<LinuxError> for ViewError {
    fn from(e: LinuxError) -> Self {
        Self::new(e)
    }
}

/// How a view is built.
fn own(view: &View) -> Result<&'static LinuxView, ViewError> {
    let found = VIEWS.iter().find(|v| v.name == view.name);
    found.ok_or_else(|| ViewError::new(format!("{} is no view of Linux", view.name)))
}

impl Machine for Kernel<'_> {
    fn system(&self) -> &'static dyn System {
        &Linux
    }

    fn memory(&self) -> &dyn PhysRead {
        self.space.memory()
    }

    fn damage(&self) -> Option<String> {
        Kernel::damage(self)
    }

    fn lists_processes(&self) -> bool {
        self.symbols.address("init_task").is_some()
    }

    fn build(&self, view: &View) -> Result<Table, ViewError> {
        Ok((own(view)?.build)(self)?)
    }

    fn recover(
        &self,
        view: &View,
        pid: Option<i64>,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
    ) -> Result<(), ViewError> {
        let own = own(view)?;
        // What is a process's own is found without a walk through the pages of others.
        match own.name {
            "linux/procdump" if pid.is_some() => {
                return Ok(procdump::recover_of(self, pid, doubts, visit)?);
            }
            "linux/elfs" if pid.is_some() => {
                return Ok(elfs::recover_of(self, pid, doubts, visit)?);
            }
            _ => {}
        }
        let Some(recover) = own.recover else {
            return Err(ViewError::new(format!("{} gives no content", own.name)));
        };
        Ok(recover(self, doubts, visit)?)
    }

    fn frames(
        &self,
        runs: &RunMap,
        doubts: &mut Vec<String>,
        out: &mut dyn FnMut(Frame),
    ) -> Result<(), ViewError> {
        Ok(super::frames(self, runs, doubts, out)?)
    }

    fn resident(
        &self,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
    ) -> Result<Vec<Resident>, ViewError> {
        Ok(super::resident(self, doubts, visit)?)
    }

    fn files(&self, viewer: &Viewer) -> Result<Box<dyn Files + '_>, FilesError> {
        viewers::files(self, viewer)
    }

    fn seen_by_others(&self, path: &str) -> Vec<String> {
        viewers::elsewhere(self, path)
    }
}
