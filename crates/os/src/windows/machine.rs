//! A Windows kernel as any other opened machine.

use super::names::Names;
use super::views::ALL;
use super::{Kernel, Windows, WindowsError};
use crate::content::Recovered;
use crate::files::{Files, FilesError, Viewer};
use crate::frames::Frame;
use crate::machine::{Machine, ViewError};
use crate::resident::{Resident, Unit};
use crate::system::System;
use crate::table::Table;
use crate::view::View;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::{Mapped, PhysRead, mappings};
use std::ops::{ControlFlow, Range};

impl From<WindowsError> for ViewError {
    fn from(e: WindowsError) -> Self {
        Self::new(e)
    }
}

/// Addresses that processes have for themselves.
const USER: Range<u64> = 0..1 << 47;
/// Pages of tables of one process that are read at most.
const TABLES: usize = 1 << 20;

impl Kernel<'_> {
    /// Visits the memory that page tables of a process map in its own half. Large tables that lead in circles end with
    /// a budget; what could not be read is a doubt.
    pub(super) fn own_pages(
        &self,
        p: &super::process::Process<'_>,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Mapped),
    ) {
        let Ok(space) = p.space(self) else { return };
        let mut budget = TABLES;
        let shape = space.shape();
        let memory = self.memory();
        let unread = mappings(memory, shape, space.dtb(), USER, &mut budget, visit);
        if (unread > 0 || budget == 0) && !p.has_ended() {
            doubts.push(format!(
                "{unread} pages of the page tables of {} could not be read",
                p.label()
            ));
        }
    }
}

impl Machine for Kernel<'_> {
    fn system(&self) -> &'static dyn System {
        &Windows
    }

    fn memory(&self) -> &dyn PhysRead {
        Kernel::memory(self)
    }

    fn damage(&self) -> Option<String> {
        None
    }

    fn lists_processes(&self) -> bool {
        // Without them it would not have been opened.
        true
    }

    fn build(&self, view: &View) -> Result<Table, ViewError> {
        let own = ALL.iter().find(|v| v.name == view.name);
        let own =
            own.ok_or_else(|| ViewError::new(format!("{} is no view of Windows", view.name)))?;
        Ok((own.build)(self)?)
    }

    fn recover(
        &self,
        view: &View,
        pid: Option<i64>,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
    ) -> Result<(), ViewError> {
        let own = ALL.iter().find(|v| v.name == view.name);
        let Some(recover) = own.and_then(|v| v.recover) else {
            let able = ALL.iter().filter(|v| v.recover.is_some());
            let able: Vec<&str> = able.map(|v| v.name).collect();
            return Err(ViewError::new(format!(
                "{} gives no content of a capture of Windows; {} do",
                view.name,
                able.join(", ")
            )));
        };
        Ok(recover(self, pid, doubts, visit)?)
    }

    fn frames(
        &self,
        runs: &RunMap,
        doubts: &mut Vec<String>,
        out: &mut dyn FnMut(Frame),
    ) -> Result<(), ViewError> {
        Ok(super::frames::frames(self, runs, doubts, out)?)
    }

    fn resident(
        &self,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
    ) -> Result<Vec<Resident>, ViewError> {
        Ok(super::resident::resident(self, doubts, visit)?)
    }

    fn files(&self, viewer: &Viewer) -> Result<Box<dyn Files + '_>, FilesError> {
        match viewer {
            Viewer::Machine => {}
            Viewer::Process(pid) => {
                let all = self.processes(&mut Vec::new()).map_err(ViewError::from)?;
                if !all.iter().any(|p| p.pid == i64::from(*pid)) {
                    return Err(FilesError::NoProcess(*pid));
                }
            }
            Viewer::Namespace(ns) => return Err(FilesError::NoNamespace(*ns)),
            Viewer::Container(name) => {
                return Err(FilesError::NoContainer {
                    wanted: name.clone(),
                    there: Vec::new(),
                });
            }
        }
        let names = Names::new(self).map_err(ViewError::from)?;
        Ok(Box::new(names))
    }

    fn seen_by_others(&self, _: &str) -> Vec<String> {
        Vec::new()
    }
}
