//! What a view is called and shows; how it is built is its system's own ([`Machine::build`]).
//!
//! [`Machine::build`]: crate::machine::Machine::build

use crate::SYSTEMS;
use crate::table::Column;

/// A view of an opened machine.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Its name, which begins with its system's: `linux/pslist`; what is comparable is called as in Volatility 3.
    pub name: &'static str,
    /// What it shows.
    pub meaning: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
    /// Whether content can be recovered from what it shows.
    pub recovers: bool,
    /// Whether content is recovered only where somebody asks for this view's: it is as large as the memory itself, and
    /// a job that stores all other content leaves it out.
    pub on_request: bool,
    /// Whether what it recovers belongs to processes, so that those of one process can be had alone.
    pub by_process: bool,
    /// Whether responders ask for it first: it is there while chunks are still being scanned.
    pub first: bool,
    /// Whether it looks for objects in all of memory: in a job it waits for the chunks, where these do that
    /// ([`System::scans_pools`]).
    ///
    /// [`System::scans_pools`]: crate::system::System::scans_pools
    pub scans: bool,
}

/// What a view is for, where a command needs the one of a system that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Lists the processes: `pid`, `ppid`, `comm` and what the system has besides.
    Processes,
    /// Gives the content of files that are in memory.
    CachedFiles,
    /// Gives the memory of processes as cores.
    ProcessCores,
    /// Lists the sessions of users.
    Logins,
    /// Compares the places that know of processes.
    CrossView,
    /// Tells the machine's clock, in `captured`.
    Clock,
}

/// All views of all systems, in the order in which a job builds them.
pub fn views() -> impl Iterator<Item = &'static View> {
    SYSTEMS.iter().flat_map(|s| s.views())
}

/// A view by its full name.
pub fn by_name(name: &str) -> Option<&'static View> {
    views().find(|v| v.name == name)
}
