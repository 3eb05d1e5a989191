//! `windows/netscan`: connections, listeners and UDP endpoints, from the pool objects of the network driver.
//!
//! ```text
//! connection  family, addresses (behind two pointers), ports, state, owner, time of creation
//! listener    family, local address, port, owner, time of creation
//! ```
//!
//! The driver's public symbols lack these types. The places below are those that published tools use, by build; which one
//! fits is seen by the object itself: the family must be one of the two, the state one that there is, and the owner a process.
//!
//! Source: layouts of endpoints as published with Volatility 3 (facts alone), RFC 9293 3.3.2 (states).

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::scan::{Body, scanned};
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::Severity;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `windows/netscan`.
pub(in crate::windows) const NETSCAN: WindowsView = WindowsView {
    name: "windows/netscan",
    meaning: "connections and listeners found by a scan of all memory",
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
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// States by their number.
const STATES: [&str; 14] = [
    "CLOSED",
    "LISTENING",
    "SYN_SENT",
    "SYN_RCVD",
    "ESTABLISHED",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "CLOSE_WAIT",
    "CLOSING",
    "LAST_ACK",
    "",
    "",
    "TIME_WAIT",
    "DELETE_TCB",
];

/// Where a connection has its fields.
#[derive(Clone, Copy)]
struct Connection {
    family: usize,
    addresses: usize,
    state: usize,
    local_port: usize,
    remote_port: usize,
    owner: usize,
    created: usize,
}

const fn connection(
    family: usize,
    addresses: usize,
    state: usize,
    owner: usize,
    created: usize,
) -> Connection {
    Connection {
        family,
        addresses,
        state,
        local_port: state + 4,
        remote_port: state + 6,
        owner,
        created,
    }
}

/// By the first build that has them, the newest first. Of 8.1 there are two, by revision.
const CONNECTIONS: [(u32, Connection); 12] = [
    (20348, connection(16, 24, 108, 752, 776)),
    (19041, connection(16, 24, 108, 728, 744)),
    (18362, connection(16, 24, 108, 656, 672)),
    (17763, connection(16, 24, 108, 712, 728)),
    (17134, connection(16, 24, 108, 632, 648)),
    (16299, connection(16, 24, 108, 624, 640)),
    (15063, connection(16, 24, 108, 624, 616)),
    (10240, connection(16, 24, 108, 600, 616)),
    (9600, connection(16, 24, 108, 600, 0)),
    (9600, connection(16, 24, 108, 608, 624)),
    (9200, connection(16, 24, 108, 592, 0)),
    (7600, connection(24, 32, 104, 568, 0)),
];

/// Where a listener, or a UDP endpoint, has its fields.
#[derive(Clone, Copy)]
struct Listener {
    family: usize,
    address: usize,
    port: usize,
    owner: usize,
    created: usize,
    /// The address stands behind one pointer, not behind two and a struct.
    direct: bool,
}

const fn listener(
    family: usize,
    address: usize,
    port: usize,
    owner: usize,
    created: usize,
) -> Listener {
    Listener {
        family,
        address,
        port,
        owner,
        created,
        direct: false,
    }
}

/// By the first build that has them, the newest first.
const LISTENERS: [(u32, Listener); 3] = [
    (10240, listener(40, 96, 114, 48, 64)),
    (9200, listener(96, 88, 106, 40, 64)),
    (7600, listener(96, 88, 106, 40, 32)),
];

const fn udp(address: usize, port: usize, direct: bool) -> Listener {
    Listener {
        family: 32,
        address,
        port,
        owner: 40,
        created: 88,
        direct,
    }
}

/// By the first build that has them, the newest first.
const UDP: [(u32, Listener); 5] = [
    (19041, udp(168, 160, true)),
    (18363, udp(136, 128, true)),
    (10240, udp(128, 120, true)),
    (9600, udp(96, 120, false)),
    (7600, udp(96, 128, false)),
];

/// A list of layouts with those of a build in front.
fn by_build<T: Copy>(all: &[(u32, T)], build: u32) -> Vec<T> {
    let own = all.iter().map(|(b, _)| *b).find(|b| *b <= build);
    let first = all.iter().filter(|(b, _)| Some(*b) == own);
    let rest = all.iter().filter(|(b, _)| Some(*b) != own);
    first.chain(rest).map(|(_, layout)| *layout).collect()
}

/// Processes by the address of their object: number and name.
pub(super) type Owners = BTreeMap<u64, (i64, String)>;

/// What an endpoint says.
pub(super) struct Endpoint {
    pub(super) protocol: &'static str,
    pub(super) local: Option<IpAddr>,
    pub(super) local_port: u16,
    pub(super) remote: Option<IpAddr>,
    pub(super) remote_port: Option<u16>,
    pub(super) state: Option<&'static str>,
    pub(super) owner: Option<u64>,
    pub(super) created: Option<i64>,
}

/// Reads fields of an object and what they lead to.
pub(super) struct Reader<'k> {
    pub(super) k: &'k Kernel<'k>,
    pub(super) owners: Owners,
    pub(super) build: u32,
}

impl Reader<'_> {
    fn u64(bytes: &[u8], at: usize) -> Option<u64> {
        let b = bytes.get(at..at + 8)?.first_chunk()?;
        Some(u64::from_le_bytes(*b))
    }

    /// Ports are in network order.
    fn port(bytes: &[u8], at: usize) -> Option<u16> {
        let b = bytes.get(at..at + 2)?.first_chunk()?;
        Some(u16::from_be_bytes(*b))
    }

    /// Whether the family is IPv6; `None` if it is none of the two. Builds have it at 24 or at 20 of what the field leads to.
    fn is_v6(&self, bytes: &[u8], at: usize) -> Option<bool> {
        let va = Self::u64(bytes, at)?;
        let is = |inside: u64| {
            let mut raw = [0; 2];
            self.k.space.read(va.wrapping_add(inside), &mut raw).ok()?;
            // AF_INET, AF_INET6 of `ws2def.h`.
            match u16::from_le_bytes(raw) {
                2 => Some(false),
                23 => Some(true),
                _ => None,
            }
        };
        is(24).or_else(|| is(20))
    }

    fn address(&self, va: u64, v6: bool) -> Option<IpAddr> {
        if v6 {
            let mut raw = [0; 16];
            self.k.space.read(va, &mut raw).ok()?;
            return Some(IpAddr::V6(Ipv6Addr::from(raw)));
        }
        let mut raw = [0; 4];
        self.k.space.read(va, &mut raw).ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(raw)))
    }

    /// The address of `_LOCAL_ADDRESS`, which has a pointer to a pointer at 16.
    fn local(&self, va: u64, v6: bool) -> Option<IpAddr> {
        let first = self.k.space.u64(va.wrapping_add(16)).ok()?;
        self.address(self.k.space.u64(first).ok()?, v6)
    }

    fn any(v6: bool) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }
    }

    /// The owner, if the field leads to a process.
    fn owner(&self, bytes: &[u8], at: usize) -> Option<u64> {
        Self::u64(bytes, at).filter(|va| self.owners.contains_key(va))
    }

    fn connection(&self, bytes: &[u8], c: &Connection) -> Option<Endpoint> {
        let v6 = self.is_v6(bytes, c.family)?;
        let state = bytes.get(c.state..c.state + 4)?.first_chunk()?;
        let state = usize::try_from(u32::from_le_bytes(*state)).ok()?;
        let state = STATES.get(state).filter(|s| !s.is_empty())?;
        let pair = Self::u64(bytes, c.addresses)?;
        let local = self.k.space.u64(pair).ok();
        let remote = self.k.space.u64(pair.wrapping_add(16)).ok();
        Some(Endpoint {
            protocol: if v6 { "TCPv6" } else { "TCPv4" },
            local: local.and_then(|va| self.local(va, v6)),
            local_port: Self::port(bytes, c.local_port)?,
            remote: remote.and_then(|va| self.address(va, v6)),
            remote_port: Self::port(bytes, c.remote_port),
            state: Some(state),
            owner: self.owner(bytes, c.owner),
            created: Self::u64(bytes, c.created).and_then(time),
        })
    }

    fn listener(&self, bytes: &[u8], l: &Listener, tcp: bool) -> Option<Endpoint> {
        let v6 = self.is_v6(bytes, l.family)?;
        let at = Self::u64(bytes, l.address)?;
        let local = match (at, l.direct) {
            (0, _) => Some(Self::any(v6)),
            (at, true) => {
                let va = self.k.space.u64(at).ok();
                va.and_then(|va| self.address(va, v6))
            }
            (at, false) => self.local(at, v6),
        };
        Some(Endpoint {
            protocol: match (tcp, v6) {
                (true, false) => "TCPv4",
                (true, true) => "TCPv6",
                (false, false) => "UDPv4",
                (false, true) => "UDPv6",
            },
            local,
            local_port: Self::port(bytes, l.port)?,
            remote: None,
            remote_port: None,
            state: tcp.then_some("LISTENING"),
            owner: self.owner(bytes, l.owner),
            created: Self::u64(bytes, l.created).and_then(time),
        })
    }

    /// What an object says by the build's layout; if that does not lead to an owner and a time, by the first that does;
    /// else by the build's without both.
    pub(super) fn read(&self, letter: u8, body: &Body) -> Option<Endpoint> {
        let bytes = &body.bytes;
        let all: Vec<Option<Endpoint>> = match letter {
            b'E' => by_build(&CONNECTIONS, self.build)
                .iter()
                .map(|c| self.connection(bytes, c))
                .collect(),
            b'L' => by_build(&LISTENERS, self.build)
                .iter()
                .map(|l| self.listener(bytes, l, true))
                .collect(),
            _ => by_build(&UDP, self.build)
                .iter()
                .map(|l| self.listener(bytes, l, false))
                .collect(),
        };
        let mut all: Vec<Endpoint> = all.into_iter().flatten().collect();
        let whole = |e: &Endpoint| e.owner.is_some() && e.created.is_some();
        if let Some(i) = all.iter().position(whole) {
            return Some(all.swap_remove(i));
        }
        let first = all.into_iter().next()?;
        Some(Endpoint {
            owner: None,
            created: None,
            ..first
        })
    }
}

/// Processes that endpoints may belong to, and those of them that are in the list.
pub(super) fn owners(
    k: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<(Owners, Owners), WindowsError> {
    let mut owners = Owners::new();
    for p in k.processes(doubts)? {
        owners.insert(p.object.va, (p.pid, p.name()));
    }
    let listed = owners.clone();
    // One that is off the list is known by its number.
    for va in super::psxview::numbered(k) {
        let p = k.object("_EPROCESS", va);
        if let (Ok(pid), Ok(name)) = (p.number("UniqueProcessId"), p.text("ImageFileName")) {
            owners.entry(va).or_insert((pid.cast_signed(), name));
        }
    }
    Ok((owners, listed))
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let (owners, listed) = owners(k, &mut out.doubts)?;
    // Nobody can say that a broken list lacks a process.
    let torn = !out.doubts.is_empty();
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let build = k.build_number().unwrap_or(u32::MAX);
    let r = Reader { k, owners, build };
    for (letter, body) in &found.endpoints {
        let Some(e) = r.read(*letter, body) else {
            continue;
        };
        let owner = e.owner.and_then(|va| r.owners.get(&va));
        let (pid, comm) = owner.map_or((Value::Null, Value::Null), |(pid, comm)| {
            ((*pid).into(), comm.as_str().into())
        });
        let unlisted = e.owner.is_some_and(|va| !listed.contains_key(&va));
        let hidden = unlisted && !body.freed && !torn;
        let what = format!(
            "{} {}:{}",
            e.protocol,
            e.local.map_or_else(|| "?".to_owned(), |a| a.to_string()),
            e.local_port
        );
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
            body.freed.into(),
            body.physical.into(),
        ]);
        if let Some((pid, comm)) = owner.filter(|_| hidden) {
            let reason = format!(
                "{what} belongs to {comm}[{pid}], which is not in the kernel's list of processes"
            );
            out.flag("endpoint_of_hidden_process", Severity::High, reason);
        }
        if let Some(at) = e.created {
            let of = owner.map_or_else(String::new, |(pid, comm)| format!(" of {comm}[{pid}]"));
            out.event(at, "endpoint created", format!("{what}{of}"));
        }
    }
    Ok(out)
}
