//! `linux/ip_addr`: network interfaces and their addresses.
//!
//! ```text
//! net.dev_base_head -> net_device { ip_ptr -> in_device.ifa_list, ip6_ptr -> inet6_dev.addr_list }
//! ```
//!
//! Sources: Linux `include/linux/netdevice.h`, `include/linux/inetdevice.h`, `include/net/if_inet6.h`,
//! `include/uapi/linux/if.h`.

use crate::linux::sock::namespaces;
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// `linux/ip_addr`.
pub(in crate::linux) const IP_ADDR: LinuxView = LinuxView {
    name: "linux/ip_addr",
    meaning: "network interfaces and their addresses",
    columns: ADDRESSES,
    build: ip_addr,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ip_addr`.
const ADDRESSES: &[Column] = &[
    column("namespace", Kind::Number, "number of its network namespace"),
    column("index", Kind::Number, "index of the interface"),
    column("interface", Kind::Text, "name of the interface"),
    column("mac", Kind::Text, "hardware address"),
    column("mtu", Kind::Number, "largest packet"),
    column(
        "state",
        Kind::Text,
        "UP, DOWN, UNKNOWN, ...: the operational state",
    ),
    column("up", Kind::Flag, "whether it is switched on"),
    column(
        "promiscuous",
        Kind::Flag,
        "whether it takes what is not for it",
    ),
    column("flags", Kind::Hex, "flags of the interface"),
    column(
        "family",
        Kind::Text,
        "ipv4, ipv6; null of an interface without addresses",
    ),
    column("address", Kind::Text, "the address"),
    column("prefix", Kind::Number, "bits of its network"),
    column("device", Kind::Hex, "virtual address of the net_device"),
    column(
        "ifaddr",
        Kind::Hex,
        "virtual address of the in_ifaddr or inet6_ifaddr",
    ),
    column("physical", Kind::Hex, "physical address of the net_device"),
];

/// `IFF_UP` and `IFF_PROMISC`.
const UP: u64 = 1;
const PROMISC: u64 = 0x100;
/// Addresses of one interface at most.
const MAX: usize = 1 << 16;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Device {
    pub(in crate::linux) va: u64,
    pub(in crate::linux) namespace: u64,
    pub(in crate::linux) name: String,
    pub(in crate::linux) index: u64,
    /// Bytes of its hardware addresses.
    pub(in crate::linux) address_length: usize,
}

/// All interfaces by the address of their net_device.
pub(in crate::linux) fn devices(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<BTreeMap<u64, Device>, LinuxError> {
    let mut out = BTreeMap::new();
    for (net, namespace) in namespaces(kernel, doubts)? {
        let head = kernel.object("net", net).at("dev_base_head")?;
        let walk = kernel.list(head, "net_device", "dev_list")?;
        doubts.extend(walk.broken);
        for va in walk.items {
            let d = kernel.object("net_device", va);
            let read = || -> Result<Device, LinuxError> {
                let length = d.number("addr_len")?.min(32);
                Ok(Device {
                    va,
                    namespace,
                    name: d.text("name")?,
                    index: d.number("ifindex")? & 0xffff_ffff,
                    address_length: usize::try_from(length).unwrap_or(0),
                })
            };
            match read() {
                Ok(d) => {
                    out.insert(va, d);
                }
                Err(e) => doubts.push(format!("net_device at {va:#x}: {e}")),
            }
        }
    }
    Ok(out)
}

/// A hardware address as it is written.
pub(in crate::linux) fn mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// An address of an interface.
struct Address {
    va: u64,
    family: &'static str,
    text: String,
    prefix: u64,
}

fn ip_addr(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ADDRESSES);
    let mut all: Vec<Device> = devices(kernel, &mut out.doubts)?.into_values().collect();
    all.sort_by_key(|d| (d.namespace, d.index));
    for device in all {
        if let Err(e) = interface(kernel, &device, &mut out) {
            out.doubts
                .push(format!("net_device at {:#x}: {e}", device.va));
        }
    }
    Ok(out)
}

fn interface(kernel: &Kernel<'_>, device: &Device, out: &mut Table) -> Result<(), LinuxError> {
    let d = kernel.object("net_device", device.va);
    let flags = d.number("flags")? & 0xffff_ffff;
    let promiscuous = flags & PROMISC != 0 || d.number("promiscuity")? & 0xffff_ffff != 0;
    let mut raw = vec![0; device.address_length];
    kernel.space.read(d.number("dev_addr")?, &mut raw)?;
    let first: Vec<Value> = vec![
        device.namespace.into(),
        device.index.into(),
        device.name.as_str().into(),
        mac(&raw).into(),
        (d.number("mtu")? & 0xffff_ffff).into(),
        state(&d)?.into(),
        (flags & UP != 0).into(),
        promiscuous.into(),
        flags.into(),
    ];
    let mut addresses = ipv4(kernel, &d)?;
    match ipv6(kernel, &d, &mut out.doubts) {
        Ok(more) => addresses.extend(more),
        Err(e) => out
            .doubts
            .push(format!("IPv6 addresses of {}: {e}", device.name)),
    }
    let push = |a: Option<Address>, out: &mut Table| {
        let mut row = first.clone();
        row.extend([
            a.as_ref().map(|a| a.family).into(),
            a.as_ref().map(|a| a.text.as_str()).into(),
            a.as_ref().map(|a| a.prefix).into(),
            device.va.into(),
            a.as_ref().map(|a| a.va).into(),
            d.physical().into(),
        ]);
        out.push(row);
    };
    let mut addresses = addresses.into_iter();
    push(addresses.next(), out);
    // A port of a bridge takes everything, that is its work.
    let port = kernel.symbols.types().constant("IFF_BRIDGE_PORT");
    let port = port.and_then(|p| u64::try_from(p).ok()).unwrap_or(0);
    if promiscuous && d.number("priv_flags")? & port == 0 {
        let reason = format!(
            "interface {} (net_device at {:#x}, namespace {}) is promiscuous: it hands on traffic that \
             is not for this machine, as a sniffer wants it; tcpdump and virtual switches do that too",
            device.name, device.va, device.namespace
        );
        out.flag("promiscuous_interface", Severity::Low, reason);
    }
    for a in addresses {
        push(Some(a), out);
    }
    Ok(())
}

/// Names of RFC 2863.
fn state(d: &Object<'_>) -> Result<&'static str, LinuxError> {
    const NAMES: [&str; 7] = [
        "UNKNOWN",
        "NOTPRESENT",
        "DOWN",
        "LOWERLAYERDOWN",
        "TESTING",
        "DORMANT",
        "UP",
    ];
    // What does not run is down, whatever it said last.
    if d.number("state")? & 1 == 0 {
        return Ok("DOWN");
    }
    let i = usize::try_from(d.number("operstate")? & 0xff).unwrap_or(0);
    Ok(NAMES.get(i).copied().unwrap_or("?"))
}

fn ipv4(kernel: &Kernel<'_>, d: &Object<'_>) -> Result<Vec<Address>, LinuxError> {
    let mut out = Vec::new();
    let Some(of) = d.follow("ip_ptr", "in_device")? else {
        return Ok(out);
    };
    let mut seen = HashSet::new();
    let mut at = of.number("ifa_list")?;
    while at != 0 && seen.len() < MAX && seen.insert(at) {
        let a = kernel.object("in_ifaddr", at);
        let raw = (a.number("ifa_local")? & 0xffff_ffff) as u32;
        out.push(Address {
            va: at,
            family: "ipv4",
            text: Ipv4Addr::from(raw.to_le_bytes()).to_string(),
            prefix: a.number("ifa_prefixlen")?,
        });
        at = a.number("ifa_next")?;
    }
    Ok(out)
}

fn ipv6(
    kernel: &Kernel<'_>,
    d: &Object<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Address>, LinuxError> {
    let mut out = Vec::new();
    let Some(of) = d.follow("ip6_ptr", "inet6_dev")? else {
        return Ok(out);
    };
    let walk = kernel.list(of.at("addr_list")?, "inet6_ifaddr", "if_list")?;
    doubts.extend(walk.broken);
    for va in walk.items.into_iter().take(MAX) {
        let a = kernel.object("inet6_ifaddr", va);
        let mut raw = [0; 16];
        kernel.space.read(a.at("addr")?, &mut raw)?;
        out.push(Address {
            va,
            family: "ipv6",
            text: Ipv6Addr::from(raw).to_string(),
            prefix: a.number("prefix_len")? & 0xff,
        });
    }
    Ok(out)
}
