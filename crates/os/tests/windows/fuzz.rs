//! What the fuzz targets of Windows' memory do with their bytes: they lie over pages of a generated machine. No panic, no hang,
//! bounded memory: nothing else is asked of a result.

use crate::common::{KERNELS, Made, anchors, make};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::discover;
use ramsift_os::input::ViewInput;
use ramsift_os::{Machine, by_name, open};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// A machine and those of its pages that bytes lie over.
pub(crate) struct Target {
    made: Made,
    /// Number of a page of the machine, and which of the bytes lie there.
    places: HashMap<u64, usize>,
    /// The machine's own bytes of these pages.
    pub(crate) seed: Vec<u8>,
}

/// The machine with bytes laid over it.
struct Laid<'t> {
    target: &'t Target,
    data: &'t [u8],
}

impl PhysRead for Laid<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.target.made.image.read_phys(pa, buf)?;
        let mut at = 0;
        while at < buf.len() {
            let here = pa.0 + at as u64;
            let inside = (here % 4096) as usize;
            let n = (4096 - inside).min(buf.len() - at);
            if let Some(i) = self.target.places.get(&(here / 4096)) {
                let own = self.data.get(i * 4096 + inside..).unwrap_or_default();
                let n = n.min(own.len());
                buf[at..at + n].copy_from_slice(&own[..n]);
            }
            at += n;
        }
        Ok(())
    }
}

impl Target {
    /// The machine, with the pages that a question about it gives.
    fn new(name: &str, pages: impl FnOnce(&Made) -> Vec<u64>) -> Self {
        let made = make(name, KERNELS[6].1, 5, &[]);
        let mut out = Self {
            places: HashMap::new(),
            seed: Vec::new(),
            made,
        };
        for page in pages(&out.made) {
            out.places.insert(page, out.seed.len() / 4096);
            let mut own = [0; 4096];
            out.made
                .image
                .read_phys(PhysAddr(page * 4096), &mut own)
                .unwrap();
            out.seed.extend(own);
        }
        out
    }

    /// The cells of all hives.
    pub(crate) fn registry() -> Self {
        Self::new("fuzz-registry", |m| {
            m.ask(|machine| {
                let mut out = Vec::new();
                let view = by_name("windows/hivelist").unwrap();
                let hives = machine.recover(view, None, &mut Vec::new(), &mut |r| {
                    let all = r.content.extents().iter();
                    out.extend(all.flat_map(|e| e.pa.0 / 4096..(e.pa.0 + e.len) / 4096));
                    ControlFlow::Continue(())
                });
                hives.unwrap();
                out
            })
        })
    }

    /// The page tables of two processes.
    pub(crate) fn entries() -> Self {
        Self::new("fuzz-entries", |m| {
            let mut out = Vec::new();
            m.ask(|machine| {
                let mut keep = |f: ramsift_os::frames::Frame| {
                    let owner = f.owner.as_deref().unwrap_or("");
                    if owner.starts_with("page table of notepad")
                        || owner.starts_with("page table of explorer")
                    {
                        out.extend(f.start.0 / 4096..(f.start.0 + f.len) / 4096);
                    }
                };
                machine.frames(&m.runs, &mut Vec::new(), &mut keep).unwrap();
            });
            out
        })
    }

    /// Opens the machine with bytes laid over it.
    fn ask(&self, data: &[u8], question: impl FnOnce(&dyn Machine)) {
        let memory = Laid { target: self, data };
        let anchors = anchors();
        let input = ViewInput {
            memory: &memory,
            ..self.made.input(&anchors)
        };
        if let Ok(machine) = open(&input, &discover(&input)) {
            question(machine.as_ref());
        }
    }

    /// Builds views on the machine.
    pub(crate) fn views(&self, data: &[u8], views: &[&str]) {
        self.ask(data, |machine| {
            for v in views {
                let _ = machine.build(by_name(v).unwrap());
            }
        });
    }

    /// Reads all memory of processes.
    pub(crate) fn resident(&self, data: &[u8]) {
        self.ask(data, |machine| {
            let _ = machine.resident(&mut Vec::new(), &mut |_| ControlFlow::Continue(()));
        });
    }
}

/// Views of the registry.
pub(crate) const REGISTRY: [&str; 5] = [
    "windows/hivelist",
    "windows/registry",
    "windows/services",
    "windows/run_keys",
    "windows/getsids",
];

/// Views of the memory of processes.
pub(crate) const MEMORY: [&str; 6] = [
    "windows/pagefiles",
    "windows/cmdline",
    "windows/envars",
    "windows/dlllist",
    "windows/malfind",
    "windows/pedump",
];
