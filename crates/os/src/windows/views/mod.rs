//! Views, one file each.

pub(super) mod bigpools;
mod callbacks;
mod command_lines;
mod dlllist;
mod driver_functions;
mod drivers;
mod dumpfiles;
mod files;
mod handles;
mod hollowprocesses;
mod info;
mod inline_hooks;
mod modscan;
mod modules;
mod netstat;
mod network;
mod object_scans;
mod pagefiles;
mod pedump;
mod procdump;
mod pslist;
mod psscan;
mod pstree;
mod psxview;
mod registry;
mod run_keys;
mod services;
mod sessions;
mod ssdt;
mod suspicious_threads;
mod svcscan;
mod threads;
mod tokens;
pub(super) mod vads;
mod verinfo;

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
    sessions::SESSIONS,
    threads::THREADS,
    object_scans::THRDSCAN,
    suspicious_threads::SUSPICIOUS_THREADS,
    tokens::GETSIDS,
    tokens::PRIVILEGES,
    handles::HANDLES,
    object_scans::MUTANTSCAN,
    object_scans::SYMLINKSCAN,
    dlllist::DLLLIST,
    dlllist::LDRMODULES,
    vads::VADINFO,
    vads::MALFIND,
    hollowprocesses::HOLLOWPROCESSES,
    pedump::PEDUMP,
    verinfo::VERINFO,
    procdump::PROCDUMP,
    pagefiles::PAGEFILES,
    modules::MODULES,
    modscan::MODSCAN,
    modscan::UNLOADEDMODULES,
    drivers::DRIVERSCAN,
    driver_functions::DRIVERIRP,
    driver_functions::DEVICETREE,
    ssdt::SSDT,
    inline_hooks::INLINE_HOOKS,
    callbacks::CALLBACKS,
    bigpools::BIGPOOLS,
    network::NETSCAN,
    netstat::NETSTAT,
    files::FILESCAN,
    dumpfiles::DUMPFILES,
    registry::HIVELIST,
    bigpools::HIVESCAN,
    registry::REGISTRY,
    services::SERVICES,
    svcscan::SVCSCAN,
    run_keys::RUN_KEYS,
];
