//! `linux/ip_route`: the routing tables of IPv4 and IPv6.
//!
//! ```text
//! net.ipv4.fib_table_hash -> fib_table.tb_data -> trie: key_vector { bits, tnode[] | leaf }
//!                            leaf -> fib_alias -> fib_info { fib_nh[] | nh -> nexthop }
//! net.ipv6.fib_table_hash -> fib6_table.tb6_root: fib6_node { left, right, leaf -> fib6_info }
//! ```
//!
//! As long as there are no rules the tables `local` and `main` of IPv4 share one trie; each alias
//! says which it belongs to.
//!
//! Sources: Linux `include/net/ip_fib.h`, `net/ipv4/fib_trie.c`, `net/ipv4/fib_lookup.h`,
//! `include/net/ip6_fib.h`, `include/net/nexthop.h`, `include/uapi/linux/rtnetlink.h`.

use crate::linux::netdev::{Device, devices};
use crate::linux::sock::namespaces;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// `linux/ip_route`.
pub(in crate::linux) const IP_ROUTE: LinuxView = LinuxView {
    name: "linux/ip_route",
    meaning: "routing tables of IPv4 and IPv6",
    columns: ROUTES,
    build: ip_route,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ip_route`.
const ROUTES: &[Column] = &[
    column("namespace", Kind::Number, "number of its network namespace"),
    column("family", Kind::Text, "ipv4, ipv6"),
    column(
        "table",
        Kind::Number,
        "number of the table: 254 main, 255 local",
    ),
    column(
        "type",
        Kind::Text,
        "unicast, local, broadcast, multicast, blackhole, unreachable, prohibit, ...",
    ),
    column("destination", Kind::Text, "the network"),
    column("prefix", Kind::Number, "bits of it; 0: the default route"),
    column(
        "gateway",
        Kind::Text,
        "next router; null of what is reached directly",
    ),
    column("interface", Kind::Text, "name of the interface"),
    column(
        "source",
        Kind::Text,
        "address that is preferred as the source",
    ),
    column("metric", Kind::Number, "the lower, the better"),
    column(
        "protocol",
        Kind::Number,
        "who made it: 2 kernel, 3 boot, 4 static, 9 router advertisement, 16 DHCP",
    ),
    column(
        "scope",
        Kind::Number,
        "0 global, 253 link, 254 host; null of IPv6",
    ),
    column(
        "route",
        Kind::Hex,
        "virtual address of its fib_info or fib6_info",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Tables of a namespace: chains of their hash.
const CHAINS: u64 = 256;
/// Nodes of one table at most: more than the whole Internet's routes.
const MAX: usize = 8 << 20;
/// Bits of a node of the trie at most: it has two to the power of that as children.
const MAX_BITS: u64 = 22;
/// Next hops of one route at most.
const MAX_HOPS: u64 = 1024;
/// `RTN_RTINFO`: the node has routes of its own.
const RTINFO: u64 = 4;

fn type_name(ty: u64) -> &'static str {
    const NAMES: [&str; 12] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];
    let i = usize::try_from(ty & 0xff).unwrap_or(0);
    NAMES.get(i).copied().unwrap_or("?")
}

/// What is read of one namespace.
struct Reader<'k> {
    kernel: &'k Kernel<'k>,
    namespace: u64,
    devices: &'k BTreeMap<u64, Device>,
}

/// A route without its next hops.
struct Route {
    family: &'static str,
    table: u64,
    ty: u64,
    destination: String,
    prefix: u64,
    source: Option<String>,
    metric: u64,
    protocol: u64,
    scope: Option<u64>,
    va: u64,
}

fn ip_route(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ROUTES);
    let devices = devices(kernel, &mut out.doubts)?;
    for (net, namespace) in namespaces(kernel, &mut out.doubts)? {
        let reader = Reader {
            kernel,
            namespace,
            devices: &devices,
        };
        let net = kernel.object("net", net);
        if let Err(e) = reader.ipv4(&net, &mut out) {
            out.doubts
                .push(format!("IPv4 routes of namespace {namespace}: {e}"));
        }
        if let Err(e) = reader.ipv6(&net, &mut out) {
            out.doubts
                .push(format!("IPv6 routes of namespace {namespace}: {e}"));
        }
    }
    Ok(out)
}

impl<'k> Reader<'k> {
    fn tables(
        &self,
        net: &Object<'_>,
        path: &str,
        many: bool,
        node: (&str, &str),
        doubts: &mut Vec<String>,
    ) -> Result<Vec<u64>, LinuxError> {
        let first = net.number(path)?;
        let offset = self.kernel.symbols.types().field(node.0, node.1)?.offset;
        // Without policy routing there are two tables of IPv4 and one chain of IPv6.
        let chains = match (many, path.starts_with("ipv4")) {
            (true, _) => CHAINS,
            (false, true) => 2,
            (false, false) => 1,
        };
        let mut out = Vec::new();
        for i in 0..chains {
            if first == 0 {
                break;
            }
            let walk = self.kernel.hlist(first.wrapping_add(i * 8), offset)?;
            doubts.extend(walk.broken);
            out.extend(walk.items);
        }
        Ok(out)
    }

    fn ipv4(&self, net: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
        let many = net.has("ipv4.fib_main");
        let node = ("fib_table", "tb_hlist");
        let tables = self.tables(net, "ipv4.fib_table_hash", many, node, &mut out.doubts)?;
        let mut tries = HashSet::new();
        for va in tables {
            let trie = self.kernel.object("fib_table", va).number("tb_data")?;
            if trie != 0 && tries.insert(trie) {
                self.trie(trie, out)?;
            }
        }
        Ok(())
    }

    fn trie(&self, trie: u64, out: &mut Table) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let f = kernel.fields("key_vector", ["key", "pos", "bits", "tnode"])?;
        let alias = kernel.symbols.types().field("fib_alias", "fa_list")?.offset;
        // The root's only child is the first node.
        let first = kernel.space.u64(f.address(trie, 3))?;
        let (mut stack, mut seen) = (vec![first], HashSet::new());
        while let Some(at) = stack.pop() {
            if at == 0 || seen.len() >= MAX || !seen.insert(at) {
                continue;
            }
            let [key, pos, bits, _] = match f.read(kernel, at) {
                Ok(v) => v,
                Err(e) => {
                    out.doubts.push(format!("key_vector at {at:#x}: {e}"));
                    continue;
                }
            };
            let children = f.address(at, 3);
            if bits != 0 {
                if pos.saturating_add(bits) > 32 || stack.len() >= MAX || bits > MAX_BITS {
                    out.doubts
                        .push(format!("key_vector at {at:#x}: {bits} bits from bit {pos}"));
                    continue;
                }
                // The last child first, so that the stack gives them in order.
                for i in (0..1u64 << bits).rev() {
                    match kernel.space.u64(children.wrapping_add(i * 8)) {
                        Ok(child) => stack.push(child),
                        // The rest would be no better.
                        Err(e) => {
                            out.doubts.push(format!("key_vector at {at:#x}: {e}"));
                            break;
                        }
                    }
                }
                continue;
            }
            let walk = kernel.hlist(children, alias)?;
            out.doubts.extend(walk.broken);
            for va in walk.items {
                if let Err(e) = self.alias(va, key, out) {
                    out.doubts.push(format!("fib_alias at {va:#x}: {e}"));
                }
            }
        }
        Ok(())
    }

    fn alias(&self, va: u64, key: u64, out: &mut Table) -> Result<(), LinuxError> {
        let a = self.kernel.object("fib_alias", va);
        let Some(info) = a.follow("fa_info", "fib_info")? else {
            return Ok(());
        };
        let source = (info.number("fib_prefsrc")? & 0xffff_ffff) as u32;
        let route = Route {
            family: "ipv4",
            table: a.number("tb_id")? & 0xffff_ffff,
            ty: a.number("fa_type")?,
            // Keys are in the order of the processor.
            destination: Ipv4Addr::from((key & 0xffff_ffff) as u32).to_string(),
            prefix: 32u64.saturating_sub(a.number("fa_slen")? & 0xff),
            source: (source != 0).then(|| Ipv4Addr::from(source.to_le_bytes()).to_string()),
            metric: info.number("fib_priority")? & 0xffff_ffff,
            protocol: info.number("fib_protocol")? & 0xff,
            scope: Some(info.number("fib_scope")? & 0xff),
            va: info.va,
        };
        let hops = if info.number("nh")? != 0 {
            self.nexthop(info.number("nh")?)?
        } else {
            let size = self.kernel.symbols.types().size_of("fib_nh")?;
            let (count, first) = (info.number("fib_nhs")? & 0xffff_ffff, info.at("fib_nh")?);
            let hop = |i: u64| first.wrapping_add(i * size);
            (0..count.min(MAX_HOPS)).map(hop).collect()
        };
        self.push(&route, &hops, &info, out)
    }

    fn ipv6(&self, net: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let many = net.has("ipv6.fib6_local_tbl");
        let node = ("fib6_table", "tb6_hlist");
        let tables = self.tables(net, "ipv6.fib_table_hash", many, node, &mut out.doubts)?;
        let none = net.number("ipv6.fib6_null_entry")?;
        let f = kernel.fields(
            "fib6_node",
            ["left", "right", "?subtree", "leaf", "fn_flags"],
        )?;
        for va in tables {
            let table = kernel.object("fib6_table", va);
            let id = table.number("tb6_id")? & 0xffff_ffff;
            let (mut stack, mut seen) = (vec![table.at("tb6_root")?], HashSet::new());
            while let Some(at) = stack.pop() {
                if at == 0 || seen.len() >= MAX || !seen.insert(at) {
                    continue;
                }
                match f.read(kernel, at) {
                    Ok([left, right, subtree, leaf, flags]) => {
                        stack.extend([right, left, subtree]);
                        if flags & RTINFO != 0 {
                            self.leaf(leaf, none, id, out);
                        }
                    }
                    Err(e) => out.doubts.push(format!("fib6_node at {at:#x}: {e}")),
                }
            }
        }
        Ok(())
    }

    /// The routes of a node, with those of equal cost beside each.
    fn leaf(&self, first: u64, none: u64, table: u64, out: &mut Table) {
        let mut seen = HashSet::new();
        let mut at = first;
        while at != 0 && at != none && seen.len() < MAX && seen.insert(at) {
            let info = self.kernel.object("fib6_info", at);
            let next = info.number("fib6_next");
            if let Err(e) = self.info6(&info, table, out) {
                out.doubts.push(format!("fib6_info at {at:#x}: {e}"));
            }
            at = next.unwrap_or(0);
        }
    }

    fn info6(&self, info: &Object<'_>, table: u64, out: &mut Table) -> Result<(), LinuxError> {
        let address = |path: &str| -> Result<String, LinuxError> {
            let mut raw = [0; 16];
            self.kernel.space.read(info.at(path)?, &mut raw)?;
            Ok(Ipv6Addr::from(raw).to_string())
        };
        let source = match info.number("fib6_prefsrc.plen")? & 0xff {
            0 => None,
            _ => Some(address("fib6_prefsrc.addr")?),
        };
        let route = Route {
            family: "ipv6",
            table,
            ty: info.number("fib6_type")?,
            destination: address("fib6_dst.addr")?,
            prefix: info.number("fib6_dst.plen")? & 0xff,
            source,
            metric: info.number("fib6_metric")? & 0xffff_ffff,
            protocol: info.number("fib6_protocol")? & 0xff,
            scope: None,
            va: info.va,
        };
        let hops = match info.number("nh")? {
            0 => vec![info.at("fib6_nh")?],
            nh => self.nexthop(nh)?,
        };
        self.push(&route, &hops, info, out)
    }

    /// The hops of a nexthop object; those of a group one by one.
    fn nexthop(&self, va: u64) -> Result<Vec<u64>, LinuxError> {
        let kernel = self.kernel;
        let nh = kernel.object("nexthop", va);
        let hop = |nh: &Object<'_>| -> Result<Option<u64>, LinuxError> {
            let info = nh.follow("nh_info", "nh_info")?;
            info.map(|i| i.at("fib_nhc")).transpose()
        };
        if nh.number("is_group")? & 0xff == 0 {
            return Ok(hop(&nh)?.into_iter().collect());
        }
        let Some(group) = nh.follow("nh_grp", "nh_group")? else {
            return Ok(Vec::new());
        };
        let size = kernel.symbols.types().size_of("nh_grp_entry")?;
        let first = group.at("nh_entries")?;
        let mut out = Vec::new();
        for i in 0..(group.number("num_nh")? & 0xffff).min(MAX_HOPS) {
            let entry = kernel.object("nh_grp_entry", first.wrapping_add(i * size));
            if let Some(nh) = entry.follow("nh", "nexthop")? {
                out.extend(hop(&nh)?);
            }
        }
        Ok(out)
    }

    /// One row for each hop; one without if there is none.
    fn push(
        &self,
        r: &Route,
        hops: &[u64],
        info: &Object<'_>,
        out: &mut Table,
    ) -> Result<(), LinuxError> {
        let physical = info.physical();
        let mut row = |gateway: Option<String>, device: Option<String>| {
            out.push(vec![
                self.namespace.into(),
                r.family.into(),
                r.table.into(),
                type_name(r.ty).into(),
                r.destination.as_str().into(),
                r.prefix.into(),
                gateway.into(),
                device.into(),
                r.source.clone().into(),
                r.metric.into(),
                r.protocol.into(),
                r.scope.into(),
                r.va.into(),
                Value::from(physical),
            ]);
        };
        if hops.is_empty() {
            row(None, None);
        }
        for va in hops {
            // fib_nh and fib6_nh begin with what they have in common.
            let hop = self.kernel.object("fib_nh_common", *va);
            let mut raw = [0; 16];
            let gateway = match hop.number("nhc_gw_family")? & 0xff {
                2 => {
                    self.kernel.space.read(hop.at("nhc_gw")?, &mut raw[..4])?;
                    Some(Ipv4Addr::new(raw[0], raw[1], raw[2], raw[3]).to_string())
                }
                10 => {
                    self.kernel.space.read(hop.at("nhc_gw")?, &mut raw)?;
                    Some(Ipv6Addr::from(raw).to_string())
                }
                _ => None,
            };
            let device = self.devices.get(&hop.number("nhc_dev")?);
            row(gateway, device.map(|d| d.name.clone()));
        }
        Ok(())
    }
}
