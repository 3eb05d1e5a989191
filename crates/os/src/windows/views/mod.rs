//! Views, one file each.

mod command_lines;
mod dlllist;
mod drivers;
mod dumpfiles;
mod files;
mod handles;
mod info;
mod modules;
mod network;
mod pedump;
mod pslist;
mod psscan;
mod pstree;
mod psxview;
mod registry;
mod threads;
mod tokens;
mod vads;

use super::WindowsView;

/// All views, in the order in which a job builds them.
pub(super) const ALL: &[WindowsView] = &[
    info::INFO,
    pslist::PSLIST,
    psscan::PSSCAN,
    psxview::PSXVIEW,
    pstree::PSTREE,
    command_lines::CMDLINE,
    command_lines::ENVARS,
    threads::THREADS,
    tokens::GETSIDS,
    tokens::PRIVILEGES,
    handles::HANDLES,
    dlllist::DLLLIST,
    dlllist::LDRMODULES,
    vads::VADINFO,
    vads::MALFIND,
    pedump::PEDUMP,
    modules::MODULES,
    drivers::DRIVERSCAN,
    network::NETSCAN,
    files::FILESCAN,
    dumpfiles::DUMPFILES,
    registry::HIVELIST,
    registry::REGISTRY,
];
