//! A Windows kernel as any other opened machine.

use super::names::Names;
use super::views::ALL;
use super::{Kernel, Windows, WindowsError};
use crate::content::{Extent, Recovered};
use crate::files::{Files, FilesError, Viewer};
use crate::frames::Frame;
use crate::machine::{Machine, ViewError};
use crate::resident::{Resident, Unit};
use crate::system::System;
use crate::table::Table;
use crate::view::View;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::{Mapped, PhysRead, mappings};
use std::collections::{BTreeMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

impl From<WindowsError> for ViewError {
    fn from(e: WindowsError) -> Self {
        Self::new(e)
    }
}

/// Addresses that processes have for themselves.
const USER: Range<u64> = 0..1 << 47;
const PAGE: u64 = 4096;
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
        let mut owners: BTreeMap<u64, (Arc<str>, &'static str, u64)> = BTreeMap::new();
        for p in self.processes(doubts)? {
            if p.object.number("Peb").is_ok_and(|peb| peb == 0) {
                continue;
            }
            let name: Arc<str> = p.label().into();
            self.own_pages(&p, doubts, &mut |m| match m {
                Mapped::Page { va, pa, len, .. } => {
                    for i in 0..len / PAGE {
                        let page = pa.0 + i * PAGE;
                        owners
                            .entry(page)
                            .or_insert((name.clone(), "process", va + i * PAGE));
                    }
                }
                Mapped::Table { pa, .. } => {
                    owners.insert(pa.0, (name.clone(), "page table", 0));
                }
            });
        }
        let held = |pa: u64| runs.from_phys(ramsift_layers::PhysAddr(pa)).is_some();
        let mut last: Option<Frame> = None;
        for (pa, (owner, state, va)) in owners.into_iter().filter(|(pa, _)| held(*pa)) {
            let va = (state == "process").then_some(va);
            let goes_on = last.as_ref().is_some_and(|l: &Frame| {
                l.start.0 + l.len == pa
                    && l.state == state
                    && l.owner.as_deref() == Some(&*owner)
                    && l.va.map(|v| v + l.len) == va
            });
            match &mut last {
                Some(l) if goes_on => l.len += PAGE,
                _ => {
                    last.take().into_iter().for_each(&mut *out);
                    last = Some(Frame {
                        start: ramsift_layers::PhysAddr(pa),
                        len: PAGE,
                        state,
                        owner: Some(owner),
                        va,
                        file_offset: None,
                    });
                }
            }
        }
        last.into_iter().for_each(out);
        Ok(())
    }

    fn resident(
        &self,
        doubts: &mut Vec<String>,
        visit: &mut dyn FnMut(Unit) -> ControlFlow<()>,
    ) -> Result<Vec<Resident>, ViewError> {
        let mut seen = HashSet::new();
        let (mut out, mut number, mut shared) = (Vec::new(), 0u32, 0u64);
        for p in self.processes(doubts)? {
            if p.object.number("Peb").is_ok_and(|peb| peb == 0) {
                continue;
            }
            let mut extents: Vec<Extent> = Vec::new();
            self.own_pages(&p, doubts, &mut |m| {
                let Mapped::Page { va, pa, len, .. } = m else {
                    return;
                };
                for i in 0..len / PAGE {
                    if !seen.insert(pa.0 + i * PAGE) {
                        shared += 1;
                        continue;
                    }
                    let (va, pa) = (va + i * PAGE, pa.saturating_add(i * PAGE));
                    match extents.last_mut() {
                        Some(l) if l.offset + l.len == va && l.pa.0 + l.len == pa.0 => {
                            l.len += PAGE
                        }
                        _ => extents.push(Extent {
                            offset: va,
                            pa,
                            len: PAGE,
                        }),
                    }
                }
            });
            if extents.is_empty() {
                continue;
            }
            out.push(Resident {
                pid: p.pid,
                comm: p.name(),
                object: p.object.va,
                started: p
                    .object
                    .number("CreateTime")
                    .ok()
                    .map(|t| t.saturating_mul(100)),
                units: vec![(number, 0)],
            });
            let unit = Unit {
                number,
                file: None,
                process: Some(p.label()),
                extents,
            };
            number = number.saturating_add(1);
            if visit(unit).is_break() {
                break;
            }
        }
        if shared > 0 {
            doubts.push(format!(
                "{shared} pages that processes share are searched as memory of the first one that has them"
            ));
        }
        Ok(out)
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
