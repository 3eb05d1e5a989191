//! Views, one file each.

mod callbacks;
mod command_lines;
mod dlllist;
mod driver_functions;
mod drivers;
mod dumpfiles;
mod files;
mod handles;
mod info;
mod modscan;
mod modules;
mod network;
mod object_scans;
mod pedump;
mod pslist;
mod psscan;
mod pstree;
mod psxview;
mod registry;
mod ssdt;
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
    object_scans::THRDSCAN,
    tokens::GETSIDS,
    tokens::PRIVILEGES,
    handles::HANDLES,
    object_scans::MUTANTSCAN,
    object_scans::SYMLINKSCAN,
    dlllist::DLLLIST,
    dlllist::LDRMODULES,
    vads::VADINFO,
    vads::MALFIND,
    pedump::PEDUMP,
    modules::MODULES,
    modscan::MODSCAN,
    modscan::UNLOADEDMODULES,
    drivers::DRIVERSCAN,
    driver_functions::DRIVERIRP,
    driver_functions::DEVICETREE,
    ssdt::SSDT,
    callbacks::CALLBACKS,
    network::NETSCAN,
    files::FILESCAN,
    dumpfiles::DUMPFILES,
    registry::HIVELIST,
    registry::REGISTRY,
];
