//! `windows/netstat`: connections, listeners and UDP endpoints that hang in the network driver's own tables.
//!
//! Unlike a scan it finds what is in use, and nothing that was given back; what an intruder unlinked is in `windows/netscan` alone.
//!
//! Sources: as in `tcpip.rs` and `network.rs`.

use super::network::{Endpoint, Reader, owners};
use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::kernel_modules::Modules;
use crate::windows::scan::{Body, ENDPOINT};
use crate::windows::tcpip::Driver;
use crate::windows::{Kernel, WindowsError, WindowsView};

/// `windows/netstat`.
pub(in crate::windows) const NETSTAT: WindowsView = WindowsView {
    name: "windows/netstat",
    meaning: "connections and listeners by the network driver's tables",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("protocol", Kind::Text, "TCPv4, TCPv6, UDPv4, UDPv6"),
    column("local", Kind::Text, "local address"),
    column("local_port", Kind::Number, "local port"),
    column("remote", Kind::Text, "remote address"),
    column("remote_port", Kind::Number, "remote port"),
    column("state", Kind::Text, "state of a TCP endpoint"),
    column("pid", Kind::Number, "process that owns it"),
    column("comm", Kind::Text, "name of its program"),
    column("created", Kind::Time, "when it was created"),
    column("object", Kind::Hex, "virtual address of the object"),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// The object at an address, as far as its bytes are there.
fn body(k: &Kernel<'_>, va: u64) -> Option<Body> {
    let mut bytes = vec![0; ENDPOINT];
    if k.space.read(va, &mut bytes).is_err() {
        // The page behind it may be missing.
        bytes.truncate(usize::try_from(4096 - va % 4096).ok()?.min(ENDPOINT));
        k.space.read(va, &mut bytes).ok()?;
    }
    Some(Body {
        bytes,
        physical: k.physical(va)?.0,
        freed: false,
        name: None,
    })
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let driver = Driver::new(k, &modules)?;
    let (owners, _) = owners(k, &mut out.doubts)?;
    let build = k.build_number().unwrap_or(u32::MAX);
    let r = Reader { k, owners, build };
    let endpoint = |va: u64, letter: u8| -> Option<(Endpoint, u64)> {
        let b = body(k, va)?;
        let e = r.read(letter, &b)?;
        (e.owner.is_some() || letter == b'E').then_some((e, b.physical))
    };
    let letter = |tcp: bool| if tcp { b'L' } else { b'A' };
    let is_endpoint = |va: u64, port: u16, tcp: bool| {
        endpoint(va, letter(tcp)).is_some_and(|(e, _)| e.local_port == port)
    };
    let found = driver.list(&is_endpoint)?;
    out.doubts.extend(found.doubts);
    let connections = found.connections.iter().map(|va| (*va, b'E'));
    let listeners = found.listeners.iter().map(|(va, _)| (*va, b'L'));
    let udp = found.udp.iter().map(|(va, _)| (*va, b'A'));
    let mut strange = 0;
    for (va, letter) in connections.chain(listeners).chain(udp) {
        let Some((e, physical)) = endpoint(va, letter) else {
            strange += 1;
            continue;
        };
        let owner = e.owner.and_then(|va| r.owners.get(&va));
        let (pid, comm) = owner.map_or((Value::Null, Value::Null), |(pid, comm)| {
            ((*pid).into(), comm.as_str().into())
        });
        out.push(vec![
            e.protocol.into(),
            e.local.map(|a| a.to_string()).into(),
            u64::from(e.local_port).into(),
            e.remote.map(|a| a.to_string()).into(),
            e.remote_port.map(u64::from).into(),
            e.state.into(),
            pid,
            comm,
            e.created.into(),
            va.into(),
            physical.into(),
        ]);
    }
    if strange > 0 {
        out.doubts.push(format!(
            "{strange} objects in the hash tables of connections are none"
        ));
    }
    Ok(out)
}
