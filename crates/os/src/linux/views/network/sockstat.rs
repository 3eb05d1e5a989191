//! `linux/sockstat`: every socket, with its ends, its state and the processes that have it open.
//!
//! Sockets of processes and those in the kernel's tables are put together, so that connections
//! that wait for their end, and sockets that no listed process has, are there too.
//!
//! Sources: Linux `include/net/sock.h`, `include/net/tcp_states.h`, `include/net/inet_timewait_sock.h`,
//! `include/linux/tcp.h`, `net/ipv4/tcp_ipv4.c` (`get_tcp4_sock`), `net/unix/af_unix.c`
//! (`unix_seq_show`), `net/packet/af_packet.c`.

use crate::linux::fields::Fields;
use crate::linux::programs::{Program, programs};
use crate::linux::sock::{Common, CommonReader, Owner, namespaces, sockets};
use crate::linux::suspicious::{is_interpreter, is_shell};
use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// `linux/sockstat`.
pub(in crate::linux) const SOCKSTAT: LinuxView = LinuxView {
    name: "linux/sockstat",
    meaning: "sockets of processes and of the kernel's tables",
    columns: SOCKETS,
    build: sockstat,
    recover: None,
    on_request: false,
};

/// Columns of `linux/sockstat`.
const SOCKETS: &[Column] = &[
    column("namespace", Kind::Number, "number of its network namespace"),
    column(
        "family",
        Kind::Text,
        "ipv4, ipv6, unix, netlink, packet or the number of another",
    ),
    column("type", Kind::Text, "stream, dgram, raw, seqpacket, ..."),
    column(
        "protocol",
        Kind::Text,
        "tcp, udp, udplite, icmp, raw, unix, netlink, packet",
    ),
    column(
        "protocol_number",
        Kind::Number,
        "of the IP protocol, of netlink, or EtherType of a packet socket",
    ),
    column(
        "state",
        Kind::Text,
        "of TCP and of unix sockets: LISTEN, ESTABLISHED, TIME_WAIT, ...",
    ),
    column(
        "local",
        Kind::Text,
        "local address; path of a unix socket (@: abstract)",
    ),
    column("local_port", Kind::Number, "local port; port id of netlink"),
    column("remote", Kind::Text, "remote address"),
    column("remote_port", Kind::Number, "remote port"),
    column(
        "interface",
        Kind::Number,
        "index of the interface that it is bound to",
    ),
    column(
        "rx_queue",
        Kind::Number,
        "bytes not read yet; of what listens, connections not accepted",
    ),
    column(
        "tx_queue",
        Kind::Number,
        "bytes not sent or not acknowledged yet",
    ),
    column("uid", Kind::Number, "user that it belongs to"),
    column(
        "inode_number",
        Kind::Number,
        "number of its inode; null without one",
    ),
    column(
        "peer",
        Kind::Number,
        "inode number of a unix socket's other end",
    ),
    column("pid", Kind::Number, "first process that has it open"),
    column("comm", Kind::Text, "name of that process"),
    column("fd", Kind::Number, "descriptor in that process"),
    column(
        "owners",
        Kind::Text,
        "all that have it open: pid/descriptor",
    ),
    column(
        "table",
        Kind::Text,
        "table of the kernel that it is in; null: none",
    ),
    column(
        "kernel",
        Kind::Flag,
        "whether the kernel made it for itself",
    ),
    column("sock", Kind::Hex, "virtual address of its struct sock"),
    column("physical", Kind::Hex, "physical address of its struct sock"),
];

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const AF_PACKET: u64 = 17;

const ESTABLISHED: u64 = 1;
const TIME_WAIT: u64 = 6;
const LISTEN: u64 = 10;
const NEW_SYN_RECV: u64 = 12;

/// Names of `include/net/tcp_states.h`.
fn state_name(state: u64) -> &'static str {
    const NAMES: [&str; 14] = [
        "?",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
        "BOUND_INACTIVE",
    ];
    let i = usize::try_from(state).unwrap_or(0);
    NAMES.get(i).copied().unwrap_or("?")
}

fn type_name(ty: u64) -> String {
    let name = match ty {
        1 => "stream",
        2 => "dgram",
        3 => "raw",
        4 => "rdm",
        5 => "seqpacket",
        6 => "dccp",
        10 => "packet",
        n => return n.to_string(),
    };
    name.to_owned()
}

/// A row in the making.
#[derive(Clone, Debug, Default)]
struct Row {
    family: String,
    ty: Option<String>,
    protocol: String,
    number: Option<u64>,
    state: Option<&'static str>,
    local: Option<String>,
    local_port: Option<u64>,
    remote: Option<String>,
    remote_port: Option<u64>,
    interface: Option<u64>,
    rx: Option<u64>,
    tx: Option<u64>,
    uid: Option<u64>,
    inode: Option<u64>,
    peer: Option<u64>,
    /// Whether a file of a process leads or led to it.
    has_file: bool,
}

struct Reader<'k> {
    kernel: &'k Kernel<'k>,
    common: CommonReader,
    /// type, protocol, uid, socket, rmem, wmem, backlog of what listens.
    sock: Fields<7>,
    tcp: Fields<4>,
    socket: Fields<1>,
    inode_number: Fields<1>,
    /// From a socket to its inode.
    vfs_inode: u64,
    addresses: [u64; 2],
}

impl<'k> Reader<'k> {
    fn new(kernel: &'k Kernel<'k>) -> Result<Self, LinuxError> {
        let types = kernel.symbols.types();
        let at = |path| types.field("sock_common", path).map(|f| f.offset);
        Ok(Self {
            kernel,
            common: CommonReader::new(kernel)?,
            sock: kernel.fields(
                "sock",
                [
                    "sk_type",
                    "sk_protocol",
                    "sk_uid.val",
                    "sk_socket",
                    "sk_backlog.rmem_alloc",
                    "sk_wmem_alloc",
                    "sk_ack_backlog",
                ],
            )?,
            tcp: kernel.fields(
                "tcp_sock",
                ["rcv_nxt", "copied_seq", "write_seq", "snd_una"],
            )?,
            socket: kernel.fields("socket", ["file"])?,
            inode_number: kernel.fields("inode", ["i_ino"])?,
            vfs_inode: types
                .field("socket_alloc", "vfs_inode")?
                .offset
                .wrapping_sub(types.field("socket_alloc", "socket")?.offset),
            addresses: [
                at("skc_v6_rcv_saddr").unwrap_or(0),
                at("skc_v6_daddr").unwrap_or(0),
            ],
        })
    }

    /// Fills in the ends of an Internet socket.
    fn ends(&self, sock: u64, c: &Common, row: &mut Row) -> Result<(), LinuxError> {
        let v4 = |a: u32| Ipv4Addr::from(a.to_le_bytes()).to_string();
        if c.family == AF_INET {
            row.family = "ipv4".into();
            (row.local, row.remote) = (Some(v4(c.local4)), Some(v4(c.remote4)));
        } else {
            row.family = "ipv6".into();
            let v6 = |offset: u64| -> Result<Option<String>, LinuxError> {
                let mut raw = [0; 16];
                self.kernel
                    .space
                    .read(sock.wrapping_add(offset), &mut raw)?;
                Ok(Some(Ipv6Addr::from(raw).to_string()))
            };
            let [local, remote] = self.addresses;
            (row.local, row.remote) = (v6(local)?, v6(remote)?);
        }
        (row.local_port, row.remote_port) = (Some(c.port), Some(c.remote_port));
        Ok(())
    }

    fn row(&self, sock: u64, table: Option<&str>, c: &Common) -> Result<Row, LinuxError> {
        let mut row = Row {
            interface: (c.interface != 0).then_some(c.interface),
            ..Row::default()
        };
        let internet = c.family == AF_INET || c.family == AF_INET6;
        if internet {
            self.ends(sock, c, &mut row)?;
        }
        // What stands for a connection without a socket has no more than the common part.
        if table == Some("tcp") && (c.state == TIME_WAIT || c.state == NEW_SYN_RECV) {
            let mut state = c.state;
            if state == TIME_WAIT {
                let tw = self.kernel.object("inet_timewait_sock", sock);
                state = tw.number("tw_substate")?;
            }
            (row.protocol, row.number) = ("tcp".into(), Some(6));
            (row.ty, row.state) = (Some("stream".into()), Some(state_name(state)));
            return Ok(row);
        }
        let [ty, protocol, uid, socket, rmem, wmem, backlog] = self.sock.read(self.kernel, sock)?;
        row.ty = Some(type_name(ty));
        row.number = Some(protocol);
        row.uid = Some(uid & 0xffff_ffff);
        let rmem = rmem & 0xffff_ffff;
        // One stands for the socket itself.
        let wmem = (wmem & 0xffff_ffff).saturating_sub(1);
        (row.rx, row.tx) = (Some(rmem), Some(wmem));
        if socket != 0 {
            let [file] = self.socket.read(self.kernel, socket)?;
            row.has_file = file != 0;
            let inode = socket.wrapping_add(self.vfs_inode);
            let [number] = self.inode_number.read(self.kernel, inode)?;
            row.inode = (number != 0).then_some(number);
        }
        match c.family {
            AF_INET | AF_INET6 => self.internet(sock, c, (ty, protocol, backlog), &mut row)?,
            AF_UNIX => self.unix(sock, c, backlog, &mut row)?,
            AF_NETLINK => {
                (row.family, row.protocol) = ("netlink".into(), "netlink".into());
                let n = self.kernel.object("netlink_sock", sock);
                row.local_port = Some(n.number("portid")? & 0xffff_ffff);
            }
            AF_PACKET => {
                (row.family, row.protocol) = ("packet".into(), "packet".into());
                row.number = None;
                // Its type is in a module of its own on some kernels.
                let p = self.kernel.object("packet_sock", sock);
                if p.has("num") {
                    let num = (p.number("num")? & 0xffff) as u16;
                    row.number = Some(num.swap_bytes().into());
                    let i = p.number("ifindex")? & 0xffff_ffff;
                    row.interface = (i != 0).then_some(i);
                }
            }
            n => {
                row.family = n.to_string();
                row.protocol = "other".into();
            }
        }
        Ok(row)
    }

    fn internet(
        &self,
        sock: u64,
        c: &Common,
        (ty, protocol, backlog): (u64, u64, u64),
        row: &mut Row,
    ) -> Result<(), LinuxError> {
        row.protocol = match (ty, protocol) {
            (3, _) => "raw".into(),
            (_, 6) => "tcp".into(),
            (_, 17) => "udp".into(),
            (_, 136) => "udplite".into(),
            (_, 1 | 58) => "icmp".into(),
            (_, 132) => "sctp".into(),
            (_, 262) => "mptcp".into(),
            (_, n) => n.to_string(),
        };
        if row.protocol == "tcp" {
            row.state = Some(state_name(c.state));
            let [rcv_nxt, copied, write, una] = self.tcp.read(self.kernel, sock)?;
            let less = |a: u64, b: u64| {
                let d = ((a & 0xffff_ffff) as u32).wrapping_sub((b & 0xffff_ffff) as u32);
                u64::from(d)
            };
            row.tx = Some(less(write, una));
            row.rx = Some(match c.state {
                LISTEN => backlog & 0xffff_ffff,
                // What is read up to can lie ahead by the end mark of the other side.
                _ => match less(rcv_nxt, copied) {
                    n if n > u64::from(u32::MAX / 2) => 0,
                    n => n,
                },
            });
        } else if row.protocol == "udp" {
            row.state = Some(state_name(c.state));
        }
        Ok(())
    }

    fn unix(&self, sock: u64, c: &Common, backlog: u64, row: &mut Row) -> Result<(), LinuxError> {
        (row.family, row.protocol) = ("unix".into(), "unix".into());
        row.number = None;
        row.state = Some(state_name(c.state));
        if c.state == LISTEN {
            row.rx = Some(backlog & 0xffff_ffff);
        }
        let u = self.kernel.object("unix_sock", sock);
        row.local = self.unix_name(u.number("addr")?)?;
        let peer = u.number("peer")?;
        if peer != 0 {
            let [_, _, _, socket, ..] = self.sock.read(self.kernel, peer)?;
            if socket != 0 {
                let inode = socket.wrapping_add(self.vfs_inode);
                let [number] = self.inode_number.read(self.kernel, inode)?;
                row.peer = Some(number);
            }
            row.remote = self.unix_name(self.kernel.object("unix_sock", peer).number("addr")?)?;
        }
        Ok(())
    }

    /// The name in a `unix_address`; an abstract one begins with `@`.
    fn unix_name(&self, address: u64) -> Result<Option<String>, LinuxError> {
        if address == 0 {
            return Ok(None);
        }
        let a = self.kernel.object("unix_address", address);
        // Two bytes are the family; a path has up to 108.
        let len = (a.number("len")? & 0xffff_ffff).clamp(2, 110) - 2;
        let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
        let at = a.at("name")?.wrapping_add(2);
        self.kernel.space.read(at, &mut raw)?;
        let is_path = raw.first().is_some_and(|b| *b != 0);
        if is_path {
            let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
            raw.truncate(end);
        } else {
            raw.iter_mut().filter(|b| **b == 0).for_each(|b| *b = b'@');
        }
        Ok(Some(String::from_utf8_lossy(&raw).into_owned()))
    }
}

fn sockstat(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(SOCKETS);
    let nets = namespaces(kernel, &mut out.doubts)?;
    let all = sockets(kernel, &nets, &mut out.doubts)?;
    let reader = Reader::new(kernel)?;
    // Without them nothing is said of programs.
    let programs = programs(kernel).unwrap_or_default();
    for (sock, table) in &all.all {
        let read = reader
            .common
            .read(kernel, *sock)
            .and_then(|c| Ok((c, reader.row(*sock, *table, &c)?)));
        let owners = all.owners.get(sock).map(Vec::as_slice).unwrap_or_default();
        match read {
            Ok((c, row)) => {
                out.push(cells(kernel, &nets, (*sock, *table), &c, &row, owners));
                judge(&mut out, *sock, *table, &c, &row, owners);
                judge_programs(&mut out, *sock, &row, owners, &programs);
            }
            Err(e) => out.doubts.push(format!("struct sock at {sock:#x}: {e}")),
        }
    }
    Ok(out)
}

fn cells(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    (sock, table): (u64, Option<&'static str>),
    c: &Common,
    row: &Row,
    owners: &[Owner],
) -> Vec<Value> {
    let first = owners.first();
    let listed: Vec<String> = owners
        .iter()
        .map(|o| format!("{}/{}", o.pid, o.fd))
        .collect();
    vec![
        nets.get(&c.net).copied().into(),
        row.family.as_str().into(),
        row.ty.clone().into(),
        row.protocol.as_str().into(),
        row.number.into(),
        row.state.into(),
        row.local.clone().into(),
        row.local_port.into(),
        row.remote.clone().into(),
        row.remote_port.into(),
        row.interface.into(),
        row.rx.into(),
        row.tx.into(),
        row.uid.into(),
        row.inode.into(),
        row.peer.into(),
        first.map(|o| o.pid).into(),
        first.map(|o| o.comm.as_str()).into(),
        first.map(|o| o.fd).into(),
        (!listed.is_empty()).then(|| listed.join(" ")).into(),
        table.into(),
        (!c.holds_net && owners.is_empty()).into(),
        sock.into(),
        kernel.object("sock", sock).physical().into(),
    ]
}

/// Says what is wrong with a socket.
fn judge(out: &mut Table, sock: u64, table: Option<&str>, c: &Common, row: &Row, owners: &[Owner]) {
    if let Some(o) = owners.first()
        && matches!(row.protocol.as_str(), "raw" | "packet")
    {
        let rule = if row.protocol == "raw" {
            "raw_socket"
        } else {
            "packet_socket"
        };
        let reason = format!(
            "{} (pid {}) has a {} socket open (descriptor {}, struct sock at {sock:#x}): it can read \
             or forge traffic below TCP and UDP, as sniffers do; ping, tcpdump and DHCP clients do too",
            o.comm, o.pid, row.protocol, o.fd
        );
        out.flag(rule, Severity::Low, reason);
    }
    let lives = c.state == LISTEN || c.state == ESTABLISHED;
    if owners.is_empty() && table == Some("tcp") && lives && row.has_file {
        let reason = format!(
            "the {} TCP socket {}:{} (struct sock at {sock:#x}) belongs to an open file, but no listed \
             process has it: its process is hidden, or the file is under way to another process or \
             held by io_uring",
            row.state.unwrap_or("?"),
            row.local.as_deref().unwrap_or("?"),
            row.local_port.unwrap_or(0),
        );
        out.flag("socket_without_process", Severity::Medium, reason);
    }
}

/// Ports from here on are given to who doesn't ask for one (`ip_local_port_range`).
const EPHEMERAL: u64 = 32768;

/// Says what is wrong with the programs that have an Internet socket.
fn judge_programs(
    out: &mut Table,
    sock: u64,
    row: &Row,
    owners: &[Owner],
    programs: &HashMap<i64, Program>,
) {
    if !matches!(row.family.as_str(), "ipv4" | "ipv6") {
        return;
    }
    let port = row.local_port.unwrap_or(0);
    let connected = row.remote_port.is_some_and(|p| p != 0);
    let ended = matches!(row.state, Some("CLOSE" | "TIME_WAIT")) && row.protocol == "tcp";
    let listens = match row.protocol.as_str() {
        "tcp" => row.state == Some("LISTEN"),
        "udp" => !connected && (1..EPHEMERAL).contains(&port),
        _ => false,
    };
    let mut told = HashSet::new();
    for o in owners {
        let Some(p) = programs.get(&o.pid) else {
            continue;
        };
        let standard = owners
            .iter()
            .any(|other| other.pid == o.pid && other.fd <= 2);
        if !told.insert(o.pid) {
            continue;
        }
        let who = format!("{} (pid {}, {})", o.comm, o.pid, p.path);
        let end = |a: &Option<String>, p: Option<u64>| {
            format!("{}:{}", a.as_deref().unwrap_or("?"), p.unwrap_or(0))
        };
        let (local, remote) = (
            end(&row.local, row.local_port),
            end(&row.remote, row.remote_port),
        );
        let shell = is_shell(&p.name);
        if (shell || is_interpreter(&p.name)) && standard && !ended && (connected || shell) {
            let reason = format!(
                "{who} has the {} socket {local} -> {remote} (struct sock at {sock:#x}) for its standard input or \
                 output: what comes from the network is what it runs, as in a reverse shell. Scripts that inetd or \
                 systemd start for each connection look like this",
                row.protocol
            );
            out.flag("shell_on_socket", Severity::High, reason);
        } else if shell && connected && !ended {
            let reason = format!(
                "{who} is a shell and has the {} connection {local} -> {remote} (struct sock at {sock:#x}, descriptor \
                 {}) open. A shell that a server starts and leaves its connection to looks like this",
                row.protocol, o.fd
            );
            out.flag("shell_with_connection", Severity::Medium, reason);
        }
        if listens && p.here && !p.is_packaged() {
            let severity = if p.is_temporary() {
                Severity::High
            } else {
                Severity::Low
            };
            let reason = format!(
                "{who} listens on {} {local} (struct sock at {sock:#x}), and its file lies in no folder of packages. \
                 What users and developers install for themselves does that too",
                row.protocol
            );
            out.flag("listener_outside_packages", severity, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a socket that one process has at some descriptors.
    fn rules(
        state: &'static str,
        remote: u64,
        fds: &[u64],
        path: &str,
        here: bool,
    ) -> Vec<&'static str> {
        let row = Row {
            family: "ipv4".into(),
            protocol: "tcp".into(),
            state: Some(state),
            local_port: Some(4444),
            remote_port: Some(remote),
            ..Row::default()
        };
        let owner = |fd: &u64| Owner {
            pid: 7,
            comm: "x".into(),
            fd: *fd,
        };
        let owners: Vec<Owner> = fds.iter().map(owner).collect();
        let program = Program {
            name: path.rsplit('/').next().unwrap_or_default().into(),
            path: path.into(),
            here,
        };
        let mut out = Table::new(SOCKETS);
        out.push(vec![Value::Null; SOCKETS.len()]);
        judge_programs(&mut out, 1, &row, &owners, &[(7, program)].into());
        out.anomalies.iter().map(|a| a.rule).collect()
    }

    #[test]
    fn programs_are_judged_by_what_they_do_with_sockets() {
        let up = "ESTABLISHED";
        assert_eq!(
            rules(up, 9, &[0, 1, 2], "/usr/bin/dash", true),
            ["shell_on_socket"]
        );
        assert_eq!(
            rules(up, 9, &[5, 1], "/usr/bin/python3.11", true),
            ["shell_on_socket"]
        );
        assert_eq!(
            rules(up, 9, &[3], "/usr/bin/bash", true),
            ["shell_with_connection"]
        );
        let tmp = "/tmp/x (deleted)";
        assert_eq!(
            rules("LISTEN", 0, &[3], tmp, true),
            ["listener_outside_packages"]
        );
        for (state, remote, fds, path, here) in [
            (up, 9, &[3], "/usr/bin/python3.11", true),
            (up, 9, &[0], "/usr/sbin/sshd", true),
            (up, 9, &[3], "/home/a/tool", true),
            ("CLOSE", 9, &[3], "/usr/bin/bash", true),
            ("LISTEN", 0, &[3], "/usr/sbin/sshd", true),
            ("LISTEN", 0, &[3], "/server", false),
        ] {
            assert_eq!(
                rules(state, remote, fds, path, here),
                Vec::<&str>::new(),
                "{path}"
            );
        }
    }
}
