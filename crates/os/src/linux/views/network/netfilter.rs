//! `linux/netfilter`: functions that see the packets of each network namespace.
//!
//! ```text
//! net.nf: hooks_ipv4[], hooks_ipv6[], hooks_arp[], hooks_bridge[] -> nf_hook_entries
//! net_device.nf_hooks_ingress, nf_hooks_egress                    -> nf_hook_entries
//! nf_hook_entries { num_hook_entries, hooks[n] { hook, priv }, nf_hook_ops *[n] }
//! nf_hook_ops { hook_ops_type, priv } -> nft_chain { name, table -> nft_table { name } }
//! ```
//!
//! Sources: Linux `include/linux/netfilter.h`, `include/net/netns/netfilter.h`,
//! `include/net/netfilter/nf_tables.h`, `net/netfilter/core.c`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::BTreeMap;

/// `linux/netfilter`.
pub(in crate::linux) const NETFILTER: LinuxView = LinuxView {
    name: "linux/netfilter",
    meaning: "netfilter hooks of all network namespaces",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/netfilter`.
const COLUMNS: &[Column] = &[
    column(
        "net_ns",
        Kind::Number,
        "inode number of the network namespace",
    ),
    column(
        "family",
        Kind::Text,
        "`ipv4`, `ipv6`, `arp`, `bridge`, `netdev`",
    ),
    column(
        "hook",
        Kind::Text,
        "where in the way of packets; with the device for `netdev`",
    ),
    column(
        "position",
        Kind::Number,
        "which in the order of calls, from 0",
    ),
    column("priority", Kind::Number, "what the order follows"),
    column("handler", Kind::Hex, "the function"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column(
        "chain",
        Kind::Text,
        "table and chain of nf_tables that it runs; null of other hooks",
    ),
    column(
        "ops",
        Kind::Hex,
        "virtual address of the struct nf_hook_ops that it was registered with",
    ),
    column("va", Kind::Hex, "virtual address of the entry"),
    column("physical", Kind::Hex, "physical address of the entry"),
];

const INET: [&str; 6] = [
    "PRE_ROUTING",
    "LOCAL_IN",
    "FORWARD",
    "LOCAL_OUT",
    "POST_ROUTING",
    "BROUTING",
];
const ARP: [&str; 3] = ["IN", "OUT", "FORWARD"];
/// Entries of a hook at most: the kernel allows 1024.
const MAX: u64 = 1024;
/// Bytes of a name at most (`NFT_NAME_MAXLEN`).
const MAX_NAME: usize = 256;
/// Devices of a namespace are in a list; these are where they keep hooks.
const DEVICE: [(&str, &str); 2] = [
    ("nf_hooks_ingress", "INGRESS"),
    ("nf_hooks_egress", "EGRESS"),
];

impl Kernel<'_> {
    /// The network namespaces, by address: of the kernel's list and of all processes.
    pub fn network_namespaces(&self, doubts: &mut Vec<String>) -> Result<Vec<u64>, LinuxError> {
        let mut all: BTreeMap<u64, ()> = BTreeMap::new();
        if let Some(head) = self.symbols.address("net_namespace_list") {
            let walk = self.list(head.0, "net", "list")?;
            doubts.extend(walk.broken);
            all.extend(walk.items.into_iter().map(|n| (n, ())));
        }
        for task in self.processes(doubts)? {
            let ns = task.follow("nsproxy", "nsproxy");
            match ns.and_then(|n| n.map(|n| n.number("net_ns")).transpose()) {
                Ok(Some(net)) if net != 0 => drop(all.insert(net, ())),
                Ok(_) => {}
                Err(e) => doubts.push(format!("task_struct at {:#x}: {e}", task.va)),
            }
        }
        Ok(all.into_keys().collect())
    }
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    for net in kernel.network_namespaces(&mut out.doubts)? {
        if let Err(e) = namespace(kernel, &code, net, &mut out) {
            out.doubts.push(format!("struct net at {net:#x}: {e}"));
        }
    }
    Ok(out)
}

/// Where a chain of hooks stands.
struct Place<'a> {
    net: u64,
    family: &'a str,
    hook: String,
}

fn namespace(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    va: u64,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let types = kernel.symbols.types();
    let net = kernel.object("net", va);
    let inode = net.number("ns.inum")?;
    for family in ["ipv4", "ipv6", "arp", "bridge"] {
        let Ok(f) = types.field("net", &format!("nf.hooks_{family}")) else {
            continue;
        };
        for i in 0..f.size.min(256) / 8 {
            let names = if family == "arp" { &ARP[..] } else { &INET };
            let named = usize::try_from(i).ok().and_then(|i| names.get(i));
            let place = Place {
                net: inode,
                family,
                hook: named.map_or_else(|| i.to_string(), |n| (*n).to_owned()),
            };
            let at = va.wrapping_add(f.offset + i * 8);
            let list = kernel.space.u64(at)?;
            entries(kernel, code, &place, list, out);
        }
    }
    let walk = kernel.list(net.at("dev_base_head")?, "net_device", "dev_list")?;
    out.doubts.extend(walk.broken);
    for device in walk.items {
        let device = kernel.object("net_device", device);
        for (field, hook) in DEVICE {
            if device.has(field) {
                let place = Place {
                    net: inode,
                    family: "netdev",
                    hook: format!("{hook} of {}", device.text("name")?),
                };
                entries(kernel, code, &place, device.number(field)?, out);
            }
        }
    }
    Ok(())
}

fn entries(kernel: &Kernel<'_>, code: &CodeMap<'_>, p: &Place<'_>, list: u64, out: &mut Table) {
    if list != 0
        && let Err(e) = chain(kernel, code, p, list, out)
    {
        out.doubts
            .push(format!("nf_hook_entries at {list:#x}: {e}"));
    }
}

fn chain(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    p: &Place<'_>,
    list: u64,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let object = kernel.object("nf_hook_entries", list);
    let count = object.number("num_hook_entries")?;
    if count > MAX {
        out.doubts.push(format!(
            "nf_hook_entries at {list:#x}: it claims {count} hooks, {MAX} are read"
        ));
    }
    let count = count.min(MAX);
    let first = object.at("hooks")?;
    let size = kernel.symbols.types().size_of("nf_hook_entry")?;
    // Behind the entries: what each was registered with.
    let registered = first.wrapping_add(count * size);
    for i in 0..count {
        let va = first.wrapping_add(i * size);
        let entry = kernel.object("nf_hook_entry", va);
        let handler = entry.number("hook")?;
        let ops = kernel.space.u64(registered.wrapping_add(i * 8))?;
        let priority = kernel.object("nf_hook_ops", ops).int("priority");
        let rules = nf_tables(kernel, ops).unwrap_or_else(|e| {
            out.doubts.push(format!("nf_hook_ops at {ops:#x}: {e}"));
            None
        });
        let owner = code.owner(handler);
        out.push(vec![
            p.net.into(),
            p.family.into(),
            p.hook.as_str().into(),
            i.into(),
            priority.map_or(Value::Null, Value::from),
            handler.into(),
            owner.to_string().into(),
            owner.module().into(),
            rules.into(),
            ops.into(),
            va.into(),
            entry.physical().into(),
        ]);
        let what = format!(
            "the netfilter hook at {} {} of network namespace {}",
            p.family, p.hook, p.net
        );
        judge(out, code, "netfilter_hook", &what, handler);
    }
    Ok(())
}

/// `filter INPUT`: what a hook of nf_tables runs. Its structs are a module's on most kernels; where their
/// types are not known, nothing is told.
fn nf_tables(kernel: &Kernel<'_>, ops: u64) -> Result<Option<String>, LinuxError> {
    let types = kernel.symbols.types();
    let ops = kernel.object("nf_hook_ops", ops);
    let kind = types.enum_value("nf_hook_ops_type", "NF_HOOK_OP_NF_TABLES");
    let known = types.has_field("nft_chain", "table") && types.has_field("nft_table", "name");
    let (Some(kind), true, true) = (kind, known, ops.has("hook_ops_type")) else {
        return Ok(None);
    };
    if i64::try_from(ops.number("hook_ops_type")? & 0xffff_ffff) != Ok(kind) {
        return Ok(None);
    }
    let Some(chain) = ops.follow("priv", "nft_chain")? else {
        return Ok(None);
    };
    let Some(table) = chain.follow("table", "nft_table")? else {
        return Ok(None);
    };
    let name = |of: &Object<'_>| kernel.text(of.number("name")?, MAX_NAME);
    Ok(Some(format!("{} {}", name(&table)?, name(&chain)?)))
}
