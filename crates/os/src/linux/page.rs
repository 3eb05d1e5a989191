//! The pages about a machine and about one process.

use crate::page::{OverviewSection, ProcessSection, joined};

/// The page about a process.
pub(super) const PROCESS: &[ProcessSection] = &[
    ProcessSection::new(
        "process",
        "linux/pslist",
        "comm, state, concat('uid ', uid), concat('parent ', ppid)",
        1,
    ),
    ProcessSection::new("started", "linux/pstree", "start", 1),
    ProcessSection::new("command", "linux/psaux", "args", 1),
    ProcessSection::new(
        "program",
        "linux/exe",
        "path, CASE WHEN deleted THEN 'DELETED' END, CASE WHEN memfd THEN 'MEMFD' END, sha256",
        1,
    ),
    ProcessSection {
        filter: "ppid = {pid}",
        ..ProcessSection::new("children", "linux/pslist", "pid, comm, state", 10)
    },
    ProcessSection::new(
        "identity",
        "linux/creds",
        "concat('uid ', uid), concat('euid ', euid), concat('groups ', groups), seccomp",
        1,
    ),
    ProcessSection::new("rights", "linux/capabilities", "effective_names", 1),
    ProcessSection::new(
        "lives in",
        "linux/namespaces",
        "container, runtime, hostname, concat('mount namespace ', mnt_ns), concat('net ', net_ns)",
        1,
    ),
    ProcessSection {
        filter: "list <> scan OR NOT pid_table",
        ..ProcessSection::new(
            "cross view",
            "linux/psxview",
            "comm, concat('list ', list), concat('pid table ', pid_table), concat('scan ', scan)",
            3,
        )
    },
    ProcessSection::new("traced by", "linux/ptrace", "tracer_comm, tracer_pid", 3),
    ProcessSection::new(
        "sockets",
        "linux/sockstat",
        "protocol, state, concat(local, ':', local_port), concat(remote, ':', remote_port)",
        20,
    ),
    ProcessSection::new(
        "files",
        "linux/lsof",
        "fd, type, path, CASE WHEN deleted THEN '(deleted)' END",
        25,
    ),
    ProcessSection::new("typed", "linux/bash", "time, command", 20),
    ProcessSection::new(
        "suspicious",
        "linux/malfind",
        "concat('0x', to_hex(start)), permissions, path, reason",
        10,
    ),
    ProcessSection::new(
        "libraries",
        "linux/library_list",
        "path, CASE WHEN deleted THEN '(deleted)' END",
        12,
    ),
    ProcessSection::new("environment", "linux/envars", "concat(key, '=', value)", 15),
    ProcessSection {
        filter: "path IS NULL OR path = ''",
        ..ProcessSection::new(
            "own memory",
            "linux/maps",
            "concat('0x', to_hex(start)), permissions, concat(resident, ' pages')",
            6,
        )
    },
];

/// Rows that the page about a machine begins with.
pub(super) const OVERVIEW: &[OverviewSection] = &[
    OverviewSection {
        title: "machine",
        sql: "SELECT nodename, release, version FROM linux_uname ORDER BY processes DESC",
        shape: joined,
        most: 3,
        command: "view linux/uname",
    },
    OverviewSection {
        title: "clock",
        sql: "SELECT boot, captured, uptime_s FROM linux_boottime LIMIT 1",
        shape: |r| {
            let up = r[2].parse::<u64>().map_or_else(
                |_| String::new(),
                |s| format!(", up {} h {} min", s / 3600, s / 60 % 60),
            );
            format!("started {}, captured {}{up}", r[0], r[1])
        },
        most: 1,
        command: "view linux/boottime",
    },
    OverviewSection {
        title: "containers",
        sql: "SELECT container, min(runtime), min(hostname), count(*) FROM linux_namespaces WHERE container IS NOT NULL GROUP BY container ORDER BY 4 DESC",
        shape: |r| format!("{:.12} {} {} ({} processes)", r[0], r[1], r[2], r[3]),
        most: 5,
        command: "view linux/namespaces",
    },
    OverviewSection {
        title: "users",
        sql: "SELECT uid, count(*) AS n, array_to_string(array_slice(array_agg(DISTINCT comm), 1, 6), ' ') FROM linux_pslist \
               WHERE NOT kernel_thread GROUP BY uid ORDER BY n DESC",
        shape: |r| format!("uid {}: {} processes ({})", r[0], r[1], r[2]),
        most: 6,
        command: "view linux/creds",
    },
    OverviewSection {
        title: "logins",
        sql: "SELECT * FROM (SELECT coalesce(time, inferred_time) AS at, message FROM events WHERE source = 'sshd' \
                  AND (message LIKE 'Accepted %' OR message LIKE 'Failed %') \
                  UNION ALL SELECT time, concat(kind, ' ', \"user\", ' on ', line, ' from ', coalesce(host, address, 'here')) \
                  FROM linux_logins WHERE kind IN ('login', 'failed')) ORDER BY at DESC LIMIT 50",
        shape: joined,
        most: 5,
        command: "logins",
    },
    OverviewSection {
        title: "typed",
        sql: "SELECT time, \"user\", program, command FROM linux_history ORDER BY time DESC NULLS LAST LIMIT 200",
        shape: joined,
        most: 8,
        command: "history",
    },
    OverviewSection {
        title: "addresses",
        sql: "SELECT interface, address, prefix FROM linux_ip_addr WHERE address IS NOT NULL AND interface <> 'lo'",
        shape: |r| format!("{} {}/{}", r[0], r[1], r[2]),
        most: 6,
        command: "view linux/ip_addr",
    },
    OverviewSection {
        title: "listening",
        sql: "SELECT DISTINCT protocol, local, local_port, comm, pid FROM linux_sockstat WHERE state = 'LISTEN' AND local_port IS NOT NULL ORDER BY local_port",
        shape: |r| format!("{} {}:{} {}[{}]", r[0], r[1], r[2], r[3], r[4]),
        most: 8,
        command: "view sockstat",
    },
    OverviewSection {
        title: "connected",
        sql: "SELECT DISTINCT protocol, remote, remote_port, state, comm, pid FROM linux_sockstat WHERE remote IS NOT NULL AND remote_port > 0 ORDER BY remote",
        shape: |r| format!("{} {}:{} {} {}[{}]", r[0], r[1], r[2], r[3], r[4], r[5]),
        most: 10,
        command: "view sockstat",
    },
];
