//! Sockets: those that processes have open, and those in the kernel's tables.
//!
//! ```text
//! file -> inode of sockfs -> socket_alloc.socket.sk -> sock { __sk_common, ... }
//! tcp_hashinfo { ehash, lhash2 or listening_hash }   udp_table.hash   raw_v4_hashinfo.ht
//! net.packet.sklist   net.unx.table (6.0) or unix_socket_table   nl_table
//! ```
//!
//! In `ehash` are also what stands for a connection before and after its socket: `request_sock` and
//! `inet_timewait_sock`, which are as long as their common part and little more.
//!
//! Sources: Linux `include/net/sock.h`, `include/net/inet_hashtables.h`, `include/net/udp.h`,
//! `include/net/raw.h`, `include/net/netns/*.h`, `net/netlink/af_netlink.h`, `net/unix/af_unix.c`.

use crate::linux::fields::Fields;
use crate::linux::{Kernel, LinuxError};
use std::collections::{BTreeMap, HashMap};

/// Which table a socket was found in.
pub(in crate::linux) type Table = &'static str;

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Owner {
    pub(in crate::linux) pid: i64,
    pub(in crate::linux) comm: String,
    pub(in crate::linux) fd: u64,
}

/// Sockets by the address of their struct sock.
#[derive(Debug, Default)]
pub(in crate::linux) struct Sockets {
    pub(in crate::linux) owners: HashMap<u64, Vec<Owner>>,
    /// In the order in which they were met.
    pub(in crate::linux) all: Vec<(u64, Option<Table>)>,
    places: HashMap<u64, usize>,
}

impl Sockets {
    fn add(&mut self, sock: u64, table: Option<Table>) {
        if sock == 0 {
            return;
        }
        let next = self.all.len();
        let i = *self.places.entry(sock).or_insert(next);
        match self.all.get_mut(i) {
            Some((_, t)) => *t = t.or(table),
            None => self.all.push((sock, table)),
        }
    }

    fn add_all(&mut self, socks: impl IntoIterator<Item = u64>, table: Table) {
        for s in socks {
            self.add(s, Some(table));
        }
    }
}

/// Buckets of a table at most: the kernel's own limit for TCP is 512 Ki.
const MAX_BUCKETS: u64 = 16 << 20;
/// Sockets of a table at most.
const MAX_SOCKETS: usize = 8 << 20;
/// Chains that break off and are told one by one.
const TOLD: usize = 16;
/// `SOCKFS_MAGIC` of `include/uapi/linux/magic.h`.
const SOCKFS_MAGIC: u64 = 0x534f_434b;
/// Protocols of netlink (`MAX_LINKS`).
const NETLINK_PROTOCOLS: u64 = 32;

/// The network namespaces: their addresses and numbers.
pub(in crate::linux) fn namespaces(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<BTreeMap<u64, u64>, LinuxError> {
    let found = match kernel.address("net_namespace_list") {
        Ok(head) => {
            let walk = kernel.list(head, "net", "list")?;
            doubts.extend(walk.broken);
            walk.items
        }
        // Without names of data: those that processes are in.
        Err(_) => {
            let init = kernel.object("task_struct", kernel.address("init_task")?);
            let mut tasks = vec![init];
            tasks.extend(kernel.processes(doubts)?);
            let mut nets = Vec::new();
            for t in tasks {
                if let Some(proxy) = t.follow("nsproxy", "nsproxy")? {
                    nets.push(proxy.number("net_ns")?);
                }
            }
            nets
        }
    };
    let mut out = BTreeMap::new();
    for net in found {
        match kernel.object("net", net).number("ns.inum") {
            Ok(n) => {
                out.insert(net, n & 0xffff_ffff);
            }
            Err(e) => doubts.push(format!("struct net at {net:#x}: {e}")),
        }
    }
    Ok(out)
}

/// All sockets, those of processes first.
pub(in crate::linux) fn sockets(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    doubts: &mut Vec<String>,
) -> Result<Sockets, LinuxError> {
    let mut out = Sockets::default();
    open_sockets(kernel, &mut out, doubts)?;
    let part = |what: &str, r: Result<(), LinuxError>, doubts: &mut Vec<String>| {
        if let Err(e) = r {
            doubts.push(format!("{what}: {e}"));
        }
    };
    let r = tcp(kernel, nets, &mut out, doubts);
    part("TCP sockets", r, doubts);
    let r = udp(kernel, nets, &mut out, doubts);
    part("UDP sockets", r, doubts);
    let r = raw(kernel, &mut out, doubts);
    part("raw sockets", r, doubts);
    let r = packet(kernel, nets, &mut out, doubts);
    part("packet sockets", r, doubts);
    let r = unix(kernel, nets, &mut out, doubts);
    part("unix sockets", r, doubts);
    let r = netlink(kernel, &mut out, doubts);
    part("netlink sockets", r, doubts);
    Ok(out)
}

fn open_sockets(
    kernel: &Kernel<'_>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let types = kernel.symbols.types();
    let inode = types.field("socket_alloc", "vfs_inode")?.offset;
    let sk = types.field("socket_alloc", "socket.sk")?.offset;
    let files = kernel.fields("file", ["f_inode"])?;
    let inodes = kernel.fields("inode", ["i_mode", "i_sb"])?;
    let magic = kernel.fields("super_block", ["s_magic"])?;
    let sock = |file: u64| -> Result<u64, LinuxError> {
        let [at] = files.read(kernel, file)?;
        let [mode, sb] = inodes.read(kernel, at)?;
        if mode & 0o170_000 != 0o140_000 || magic.read(kernel, sb)? != [SOCKFS_MAGIC] {
            return Ok(0);
        }
        let socket = at.wrapping_sub(inode);
        Ok(kernel.space.u64(socket.wrapping_add(sk))?)
    };
    for task in kernel.processes(doubts)? {
        let open = kernel.open_files(&task, doubts);
        let named = task
            .int("tgid")
            .and_then(|pid| Ok((pid, task.text("comm")?, open?)));
        let (pid, comm, open) = match named {
            Ok(n) => n,
            Err(e) => {
                doubts.push(format!("task_struct at {:#x}: {e}", task.va));
                continue;
            }
        };
        for f in open {
            match sock(f.file) {
                Ok(0) => {}
                Ok(s) => {
                    out.add(s, None);
                    let (comm, fd) = (comm.clone(), f.fd);
                    let owners = out.owners.entry(s).or_default();
                    owners.push(Owner { pid, comm, fd });
                }
                Err(e) => doubts.push(format!("struct file at {:#x}: {e}", f.file)),
            }
        }
    }
    Ok(())
}

/// The chains of a table whose buckets are `step` bytes apart and begin with a pointer.
fn buckets(
    kernel: &Kernel<'_>,
    (first, count, step): (u64, u64, u64),
    node: u64,
    doubts: &mut Vec<String>,
) -> Vec<u64> {
    const PIECE: u64 = 4096;
    let mut out = Vec::new();
    if count > MAX_BUCKETS || step < 8 {
        doubts.push(format!("a table at {first:#x} claims {count} buckets"));
        return out;
    }
    let bytes = count * step;
    let mut raw = vec![0; usize::try_from(PIECE + step).unwrap_or(0)];
    let mut bad = 0usize;
    let mut tell = |why: String, doubts: &mut Vec<String>| {
        bad += 1;
        match bad {
            ..=TOLD => doubts.push(why),
            n if n == TOLD + 1 => doubts.push(format!("more like that in the table at {first:#x}")),
            _ => {}
        }
    };
    let mut at = 0;
    while at < bytes {
        // Whole buckets.
        let n = (PIECE / step).max(1).saturating_mul(step).min(bytes - at);
        let piece = raw
            .get_mut(..usize::try_from(n).unwrap_or(0))
            .unwrap_or_default();
        if let Err(e) = kernel.space.read(first.wrapping_add(at), piece) {
            tell(
                format!("buckets at {:#x}: {e}", first.wrapping_add(at)),
                doubts,
            );
        } else {
            for b in piece.chunks_exact(usize::try_from(step).unwrap_or(8)) {
                let Some(head) = b.first_chunk::<8>() else {
                    continue;
                };
                let walk = kernel.chain(u64::from_le_bytes(*head), node);
                if let Some(b) = walk.broken {
                    tell(b, doubts);
                }
                out.extend(walk.items);
                if out.len() > MAX_SOCKETS {
                    doubts.push(format!("the table at {first:#x} has too many sockets"));
                    return out;
                }
            }
        }
        at += n;
    }
    out
}

/// The offset of the node of hash tables in a sock, which all kinds share.
fn node(kernel: &Kernel<'_>) -> Result<u64, LinuxError> {
    let field = kernel.symbols.types().field("sock_common", "skc_node")?;
    Ok(field.offset)
}

/// The tables of a kind: the machine's and those that namespaces have for themselves.
fn tables(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    symbol: &'static str,
    own: &str,
) -> Result<Vec<u64>, LinuxError> {
    let mut all: Vec<u64> = kernel.address(symbol).into_iter().collect();
    for net in nets.keys() {
        let net = kernel.object("net", *net);
        if net.has(own) {
            all.push(net.number(own)?);
        }
    }
    all.retain(|t| *t != 0);
    all.sort_unstable();
    all.dedup();
    match all.is_empty() {
        true => Err(LinuxError::Symbol(symbol)),
        false => Ok(all),
    }
}

fn tcp(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let types = kernel.symbols.types();
    let node = node(kernel)?;
    let bucket = types.size_of("inet_ehash_bucket")?;
    let listen = types.size_of("inet_listen_hashbucket")?;
    for va in tables(kernel, nets, "tcp_hashinfo", "ipv4.tcp_death_row.hashinfo")? {
        let h = kernel.object("inet_hashinfo", va);
        let count = (h.number("ehash_mask")? & 0xffff_ffff) + 1;
        let all = buckets(kernel, (h.number("ehash")?, count, bucket), node, doubts);
        out.add_all(all, "tcp");
        // Until 6.1 what listens is in a table of its own by the usual node; lhash2 has another.
        if let Ok(f) = types.field("inet_hashinfo", "listening_hash") {
            let head = types.field("inet_listen_hashbucket", "nulls_head")?.offset;
            let first = va.wrapping_add(f.offset).wrapping_add(head);
            let count = f.size.checked_div(listen).unwrap_or(0);
            out.add_all(buckets(kernel, (first, count, listen), node, doubts), "tcp");
        } else {
            let head = types.field("inet_listen_hashbucket", "nulls_head")?.offset;
            let first = h.number("lhash2")?.wrapping_add(head);
            let count = (h.number("lhash2_mask")? & 0xffff_ffff) + 1;
            out.add_all(buckets(kernel, (first, count, listen), node, doubts), "tcp");
        }
    }
    Ok(())
}

fn udp(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let node = node(kernel)?;
    let slot = kernel.symbols.types().size_of("udp_hslot")?;
    let mut all = tables(kernel, nets, "udp_table", "ipv4.udp_table")?;
    // UDP-Lite went in 7.0.
    all.extend(kernel.address("udplite_table"));
    for va in all {
        let t = kernel.object("udp_table", va);
        let first = t.number("hash")?;
        if first == 0 {
            continue;
        }
        let count = (t.number("mask")? & 0xffff_ffff) + 1;
        out.add_all(buckets(kernel, (first, count, slot), node, doubts), "udp");
    }
    Ok(())
}

fn raw(kernel: &Kernel<'_>, out: &mut Sockets, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
    let node = node(kernel)?;
    let ht = kernel.symbols.types().field("raw_hashinfo", "ht")?;
    for name in ["raw_v4_hashinfo", "raw_v6_hashinfo"] {
        let first = kernel.address(name)?.wrapping_add(ht.offset);
        out.add_all(
            buckets(kernel, (first, ht.size / 8, 8), node, doubts),
            "raw",
        );
    }
    Ok(())
}

fn packet(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let node = node(kernel)?;
    for net in nets.keys() {
        let walk = kernel.hlist(kernel.object("net", *net).at("packet.sklist")?, node)?;
        doubts.extend(walk.broken);
        out.add_all(walk.items, "packet");
    }
    Ok(())
}

fn unix(
    kernel: &Kernel<'_>,
    nets: &BTreeMap<u64, u64>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    /// `UNIX_HASH_SIZE`: named sockets and others had halves of their own until 6.0.
    const OWN: u64 = 256;
    const SHARED: u64 = 512;
    let node = node(kernel)?;
    let types = kernel.symbols.types();
    if !types.has_field("net", "unx.table.buckets") {
        let first = kernel.address("unix_socket_table")?;
        out.add_all(buckets(kernel, (first, SHARED, 8), node, doubts), "unix");
        return Ok(());
    }
    for net in nets.keys() {
        let first = kernel.object("net", *net).number("unx.table.buckets")?;
        if first != 0 {
            out.add_all(buckets(kernel, (first, OWN, 8), node, doubts), "unix");
        }
    }
    Ok(())
}

fn netlink(
    kernel: &Kernel<'_>,
    out: &mut Sockets,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let types = kernel.symbols.types();
    let node = types.field("netlink_sock", "node")?.offset;
    let step = types.size_of("netlink_table")?;
    let first = kernel.space.u64(kernel.address("nl_table")?)?;
    for i in 0..NETLINK_PROTOCOLS {
        let table = kernel.object("netlink_table", first.wrapping_add(i * step));
        let buckets_at = table.number("hash.tbl")?;
        if buckets_at == 0 {
            continue;
        }
        let b = kernel.object("bucket_table", buckets_at);
        if b.number("nest")? != 0 {
            doubts.push(format!("bucket_table at {buckets_at:#x} is a nested one"));
            continue;
        }
        let count = b.number("size")? & 0xffff_ffff;
        if count > MAX_BUCKETS {
            doubts.push(format!("bucket_table at {buckets_at:#x} claims {count}"));
            continue;
        }
        let heads = b.at("buckets")?;
        for k in 0..count {
            // The lowest bit of a bucket is its lock.
            let head = kernel.space.u64(heads.wrapping_add(k * 8))? & !1;
            let walk = kernel.chain(head, node);
            doubts.extend(walk.broken);
            out.add_all(walk.items, "netlink");
        }
    }
    Ok(())
}

/// What all kinds of sockets have in common.
#[derive(Clone, Copy, Debug)]
pub(in crate::linux) struct Common {
    pub(in crate::linux) family: u64,
    pub(in crate::linux) state: u64,
    pub(in crate::linux) port: u64,
    pub(in crate::linux) remote_port: u64,
    pub(in crate::linux) local4: u32,
    pub(in crate::linux) remote4: u32,
    pub(in crate::linux) net: u64,
    pub(in crate::linux) interface: u64,
    /// Whether it holds its namespace; the kernel's own don't.
    pub(in crate::linux) holds_net: bool,
}

/// Reads what sockets have in common.
pub(in crate::linux) struct CommonReader {
    fields: Fields<9>,
}

impl CommonReader {
    pub(in crate::linux) fn new(kernel: &Kernel<'_>) -> Result<Self, LinuxError> {
        let fields = kernel.fields(
            "sock_common",
            [
                "skc_family",
                "skc_state",
                "skc_num",
                "skc_dport",
                "skc_rcv_saddr",
                "skc_daddr",
                "skc_net",
                "skc_bound_dev_if",
                "skc_net_refcnt",
            ],
        )?;
        Ok(Self { fields })
    }

    pub(in crate::linux) fn read(
        &self,
        kernel: &Kernel<'_>,
        sock: u64,
    ) -> Result<Common, LinuxError> {
        let [
            family,
            state,
            port,
            dport,
            local,
            remote,
            net,
            interface,
            holds,
        ] = self.fields.read(kernel, sock)?;
        Ok(Common {
            family,
            state,
            port,
            remote_port: u64::from(((dport & 0xffff) as u16).swap_bytes()),
            local4: (local & 0xffff_ffff) as u32,
            remote4: (remote & 0xffff_ffff) as u32,
            net,
            interface: interface & 0xffff_ffff,
            holds_net: holds != 0,
        })
    }
}
