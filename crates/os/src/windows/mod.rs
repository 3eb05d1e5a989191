//! Windows on x86-64: an opened kernel, and views of it. One file per view.
//!
//! ```text
//! low stub, container, top table that maps itself -> DTB -> KUSER_SHARED_DATA, the kernel's image -> GUID
//! GUID -> layouts built in, or a symbol file -> Kernel -> views
//! ```
//!
//! Which fields a struct has decides how it is read, never the kernel's version.

mod cached;
mod devices;
mod discover;
mod frames;
mod image;
mod kernel_modules;
mod lists;
mod machine;
mod memory;
mod minidump;
mod names;
mod nearest;
mod object;
mod objects;
mod open;
mod page;
mod page_files;
mod pe;
mod process;
mod registry;
mod resident;
mod scan;
mod space;
mod tcpip;
mod views;

pub use object::Object;
pub use open::OpenError;
pub use space::{PageError, Space};

use crate::content::Recovered;
use crate::input::PoolScan;
use crate::table::{Column, Table};
use crate::view::View;
use ramsift_layers::PhysAddr;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::PhysRead;
use ramsift_symbols::{SymbolTable, TypeError};
use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::sync::LazyLock;

/// The system.
#[derive(Clone, Copy, Debug)]
pub struct Windows;

/// How a view is built: its own part of [`View`], and the function.
#[derive(Clone, Copy, Debug)]
struct WindowsView {
    name: &'static str,
    meaning: &'static str,
    columns: &'static [Column],
    build: fn(&Kernel<'_>) -> Result<Table, WindowsError>,
    /// Content that can be recovered from what it shows, where there is such.
    recover: Option<Recover>,
}

/// Visits everything that a view can recover, one at a time, until the visitor breaks off; of views whose content belongs to
/// processes that of one process, if it is named. What is skipped goes into the list of doubts.
type Recover = fn(
    &Kernel<'_>,
    Option<i64>,
    &mut Vec<String>,
    &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError>;

/// All views, in the order in which a job builds them.
const VIEWS: &[WindowsView] = views::ALL;

/// What responders ask first.
const FIRST: [&str; 4] = [
    "windows/info",
    "windows/pslist",
    "windows/pstree",
    "windows/cmdline",
];

/// Views that look for objects in pool memory.
const SCANS: [&str; 13] = [
    "windows/psscan",
    "windows/psxview",
    "windows/thrdscan",
    "windows/mutantscan",
    "windows/symlinkscan",
    "windows/modscan",
    "windows/driverscan",
    "windows/driverirp",
    "windows/devicetree",
    "windows/netscan",
    "windows/filescan",
    "windows/dumpfiles",
    "windows/hivescan",
];

/// Views whose content belongs to processes.
const BY_PROCESS: [&str; 2] = ["windows/pedump", "windows/procdump"];
/// Views whose content is recovered only where somebody asks for it.
const ON_REQUEST: [&str; 1] = ["windows/procdump"];

/// The views as others know them.
static SHARED: LazyLock<Vec<View>> = LazyLock::new(|| {
    let shared = |v: &WindowsView| View {
        name: v.name,
        meaning: v.meaning,
        columns: v.columns,
        recovers: v.recover.is_some(),
        on_request: ON_REQUEST.contains(&v.name),
        by_process: BY_PROCESS.contains(&v.name),
        first: FIRST.contains(&v.name),
        scans: SCANS.contains(&v.name),
    };
    VIEWS.iter().map(shared).collect()
});

/// A kernel that can be read.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// The kernel's own address space.
    pub space: Space<'a>,
    /// Names, addresses and types.
    pub symbols: SymbolTable,
    /// Where its image begins.
    pub base: u64,
    /// Bytes of its image.
    pub size: u64,
    /// Which physical memory there is.
    runs: RunMap,
    /// What the numbers of types in objects' headers are mixed with, from Windows 10 on.
    cookie: Option<u8>,
    /// What a pass that others made found of pool memory.
    pool: Option<PoolScan>,
    /// What a scan of all memory gave.
    scanned: OnceCell<scan::Scanned>,
}

/// Why a view can't be built.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WindowsError {
    /// The kernel has no such symbol.
    #[error("the layouts of this kernel have no symbol {0}")]
    Symbol(&'static str),
    /// A type lacks what the view reads.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The network driver's tables.
    #[error("the network driver's tables can't be read: {0}")]
    Network(String),
    /// Memory that the view starts from.
    #[error(transparent)]
    Read(#[from] PageError),
}

impl<'a> Kernel<'a> {
    /// Physical memory.
    pub fn memory(&self) -> &'a dyn PhysRead {
        self.space.memory()
    }

    /// Which physical memory there is.
    pub fn runs(&self) -> &RunMap {
        &self.runs
    }

    /// Pages of the image and of page files at hand: no more can be anybody's own.
    fn pages(&self) -> usize {
        let pages = self.runs.image_len() / 4096 + self.space.page_files().pages();
        usize::try_from(pages).unwrap_or(usize::MAX)
    }

    /// The object of a type at an address of the kernel's.
    pub fn object(&self, ty: &'static str, va: u64) -> Object<'_> {
        Object::new(self, &self.space, ty, va)
    }

    /// The address of a symbol.
    pub fn address(&self, name: &'static str) -> Result<u64, WindowsError> {
        let va = self.symbols.address(name);
        va.map(|a| a.0).ok_or(WindowsError::Symbol(name))
    }

    /// The pointer in a global.
    pub fn global(&self, name: &'static str) -> Result<u64, WindowsError> {
        Ok(self.space.u64(self.address(name)?)?)
    }

    /// The type of the records in the list of modules; where the layouts have none of its own, that of libraries.
    fn module_type(&self) -> &'static str {
        let own = "_KLDR_DATA_TABLE_ENTRY";
        if self.symbols.types().has_type(own) {
            own
        } else {
            "_LDR_DATA_TABLE_ENTRY"
        }
    }

    /// Number of the build.
    pub fn build_number(&self) -> Option<u32> {
        let at = self.symbols.address("NtBuildNumber")?;
        self.space.u32(at.0).ok().map(|b| b & 0xffff)
    }

    /// The physical address of a virtual one of the kernel's.
    pub fn physical(&self, va: u64) -> Option<PhysAddr> {
        self.space.translate(va).ok()
    }
}

/// Ticks of 100 nanoseconds from 1601-01-01 to 1970-01-01 (MS-DTYP 2.3.3).
const EPOCH: i64 = 116_444_736_000_000_000;

/// A FILETIME as microseconds since 1970-01-01 UTC; `None` of one that is not set, or no time of a computer.
pub(crate) fn time(filetime: u64) -> Option<i64> {
    let since = i64::try_from(filetime).ok()?.checked_sub(EPOCH)?;
    // To 2200.
    (0..7_258_118_400 * 10_000_000)
        .contains(&since)
        .then_some(since / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filetimes_count_from_1601() {
        assert_eq!(time(116_444_736_000_000_000), Some(0));
        // 2020-01-01 00:00:00 UTC.
        assert_eq!(time(132_223_104_000_000_000), Some(1_577_836_800_000_000));
        assert_eq!((time(0), time(u64::MAX)), (None, None));
    }
}
