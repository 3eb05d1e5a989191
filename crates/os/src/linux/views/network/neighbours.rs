//! `linux/neighbours`: hardware addresses of neighbours: the ARP cache and its twin of IPv6.
//!
//! ```text
//! arp_tbl, nd_tbl -> neigh_table.nht -> neigh_hash_table { 1 << hash_shift chains of neighbour }
//! ```
//!
//! Sources: Linux `include/net/neighbour.h` (chains of `next`, from 6.13 of `hash`),
//! `include/uapi/linux/neighbour.h`.

use crate::linux::netdev::{Device, devices, mac};
use crate::linux::{Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// `linux/neighbours`.
pub(in crate::linux) const NEIGHBOURS: LinuxView = LinuxView {
    name: "linux/neighbours",
    meaning: "hardware addresses of neighbours (ARP, NDP)",
    columns: ENTRIES,
    build: neighbours,
    recover: None,
    on_request: false,
};

/// Columns of `linux/neighbours`.
const ENTRIES: &[Column] = &[
    column("namespace", Kind::Number, "number of its network namespace"),
    column("interface", Kind::Text, "name of the interface"),
    column("address", Kind::Text, "its IP address"),
    column(
        "mac",
        Kind::Text,
        "its hardware address; null as long as it isn't known",
    ),
    column(
        "state",
        Kind::Text,
        "REACHABLE, STALE, DELAY, PROBE, FAILED, INCOMPLETE, PERMANENT, NOARP, NONE",
    ),
    column(
        "neighbour",
        Kind::Hex,
        "virtual address of its struct neighbour",
    ),
    column(
        "physical",
        Kind::Hex,
        "physical address of its struct neighbour",
    ),
];

/// Chains of a table at most.
const MAX_SHIFT: u64 = 20;

fn neighbours(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(ENTRIES);
    let devices = devices(kernel, &mut out.doubts)?;
    for table in ["arp_tbl", "nd_tbl"] {
        if let Err(e) = cache(kernel, table, &devices, &mut out) {
            out.doubts.push(format!("{table}: {e}"));
        }
    }
    Ok(out)
}

fn cache(
    kernel: &Kernel<'_>,
    table: &'static str,
    devices: &BTreeMap<u64, Device>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let t = kernel.object("neigh_table", kernel.address(table)?);
    let key = usize::try_from((t.number("key_len")? & 0xffff_ffff).min(16)).unwrap_or(0);
    let Some(hash) = t.follow("nht", "neigh_hash_table")? else {
        return Ok(());
    };
    let (heads, node) = if hash.has("hash_heads") {
        let node = kernel.symbols.types().field("neighbour", "hash")?.offset;
        (hash.number("hash_heads")?, node)
    } else {
        // `next` is the first member.
        (hash.number("hash_buckets")?, 0)
    };
    let shift = (hash.number("hash_shift")? & 0xffff_ffff).min(MAX_SHIFT);
    for i in 0..1u64 << shift {
        let walk = kernel.hlist(heads.wrapping_add(i * 8), node)?;
        out.doubts.extend(walk.broken);
        for va in walk.items {
            match row(kernel, va, key, devices) {
                Ok(r) => out.push(r),
                Err(e) => out.doubts.push(format!("struct neighbour at {va:#x}: {e}")),
            }
        }
    }
    Ok(())
}

fn row(
    kernel: &Kernel<'_>,
    va: u64,
    key: usize,
    devices: &BTreeMap<u64, Device>,
) -> Result<Vec<Value>, LinuxError> {
    let n = kernel.object("neighbour", va);
    let mut raw = vec![0; key];
    kernel.space.read(n.at("primary_key")?, &mut raw)?;
    let address = match raw.first_chunk::<16>() {
        Some(v6) => Some(Ipv6Addr::from(*v6).to_string()),
        None => raw
            .first_chunk::<4>()
            .map(|v4| Ipv4Addr::from(*v4).to_string()),
    };
    let device = devices.get(&n.number("dev")?);
    let state = n.number("nud_state")? & 0xff;
    let mut ha = vec![0; device.map_or(0, |d| d.address_length)];
    kernel.space.read(n.at("ha")?, &mut ha)?;
    // REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: those that have an address.
    let valid = state & 0xde != 0;
    Ok(vec![
        device.map(|d| d.namespace).into(),
        device.map(|d| d.name.as_str()).into(),
        address.into(),
        valid.then(|| mac(&ha)).into(),
        name(state).into(),
        va.into(),
        n.physical().into(),
    ])
}

fn name(state: u64) -> &'static str {
    match state {
        0 => "NONE",
        0x01 => "INCOMPLETE",
        0x02 => "REACHABLE",
        0x04 => "STALE",
        0x08 => "DELAY",
        0x10 => "PROBE",
        0x20 => "FAILED",
        0x40 => "NOARP",
        0x80 => "PERMANENT",
        _ => "?",
    }
}
