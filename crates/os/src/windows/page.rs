//! The pages about a machine and about one process.

use crate::page::{OverviewSection, ProcessSection, joined};

/// The page about a process.
pub(super) const PROCESS: &[ProcessSection] = &[
    ProcessSection::new(
        "process",
        "windows/pslist",
        "comm, concat('session ', session), concat('parent ', ppid), CASE WHEN wow64 THEN '32-bit' END",
        1,
    ),
    ProcessSection::new(
        "started",
        "windows/pslist",
        "start, CASE WHEN exit IS NOT NULL THEN concat('ended ', exit) END",
        1,
    ),
    ProcessSection::new("command", "windows/cmdline", "args", 1),
    ProcessSection::new("program", "windows/pslist", "path", 1),
    ProcessSection {
        filter: "ppid = {pid}",
        ..ProcessSection::new("children", "windows/pslist", "pid, comm", 10)
    },
    ProcessSection {
        filter: "role <> 'group'",
        ..ProcessSection::new("identity", "windows/getsids", "sid, name", 3)
    },
    ProcessSection {
        filter: "enabled",
        ..ProcessSection::new("rights", "windows/privileges", "privilege", 12)
    },
    ProcessSection {
        filter: "list <> scan OR NOT cid_table",
        ..ProcessSection::new(
            "cross view",
            "windows/psxview",
            "comm, concat('list ', list), concat('number table ', cid_table), concat('scan ', scan)",
            3,
        )
    },
    ProcessSection {
        filter: "name IS NOT NULL",
        ..ProcessSection::new("open", "windows/handles", "type, name", 25)
    },
    ProcessSection::new(
        "suspicious",
        "windows/malfind",
        "concat('0x', to_hex(start)), protection, reason",
        10,
    ),
    ProcessSection {
        filter: "reason IS NOT NULL",
        ..ProcessSection::new("program", "windows/hollowprocesses", "reason", 3)
    },
    ProcessSection::new(
        "odd threads",
        "windows/suspicious_threads",
        "tid, concat('0x', to_hex(address)), reason",
        10,
    ),
    ProcessSection {
        filter: "NOT in_load",
        ..ProcessSection::new("unlinked", "windows/ldrmodules", "path", 10)
    },
    ProcessSection::new("libraries", "windows/dlllist", "path", 12),
    ProcessSection::new(
        "environment",
        "windows/envars",
        "concat(key, '=', value)",
        15,
    ),
];

/// Rows that the page about a machine begins with.
pub(super) const OVERVIEW: &[OverviewSection] = &[
    OverviewSection {
        title: "machine",
        sql: "SELECT product, build_lab, concat(processors, ' processors'), system_root FROM windows_info",
        shape: joined,
        most: 1,
        command: "view windows/info",
    },
    OverviewSection {
        title: "clock",
        sql: "SELECT boot, captured FROM windows_info",
        shape: |r| format!("started {}, captured {}", r[0], r[1]),
        most: 1,
        command: "view windows/info",
    },
    OverviewSection {
        title: "users",
        sql: "SELECT sid, min(name), count(*) AS n, array_to_string(array_slice(array_agg(DISTINCT comm), 1, 6), ' ') \
              FROM windows_getsids WHERE role = 'user' GROUP BY sid ORDER BY n DESC",
        shape: |r| format!("{} {}: {} processes ({})", r[0], r[1], r[2], r[3]),
        most: 6,
        command: "view windows/getsids",
    },
];
