//! The network driver's own tables: where they begin, and what hangs in them.
//!
//! ```text
//! PartitionTable -> PartitionCount partitions -> hash table of connections, by chains
//! TcpCompartmentSet, UdpCompartmentSet -> compartment -> protocol -> pool of ports
//! pool: a bit for each port that is taken; 256 pointers -> 256 entries each -> endpoint, and the next of the same port
//! ```
//!
//! Where the tables begin is told by the symbol file of the driver, by its GUID; the structs are in none, and are taken by build. So what
//! they lead to counts only where it makes sense as an endpoint of that port.
//!
//! Sources: layouts as published with Volatility 3 (facts alone); `_RTL_DYNAMIC_HASH_TABLE` of the public symbols of the kernel, and how its chains are
//! found as published in the hash table of msquic.

use super::kernel_modules::Modules;
use super::{Kernel, Space, WindowsError, image, pe};
use ramsift_symbols::layouts::{DriverTables, driver_tables};
use std::collections::HashSet;

/// Connections, or endpoints of a port, at most.
const MOST: usize = 1 << 20;
/// Partitions at most, and chains of one.
const PARTITIONS: u64 = 256;
const CHAINS: u64 = 1 << 20;
/// Chains in the first part of a hash table; each further part has as many as all before it.
const FIRST_PART: u64 = 128;

/// Where the structs of a build have their fields.
#[derive(Clone, Copy, Debug)]
struct Structs {
    /// Of a pool of ports: the bits, and the pointers.
    bits: u64,
    pointers: u64,
    /// Of what a pointer leads to: the entries.
    entries: u64,
    /// Bytes of an entry, and the endpoint in it.
    entry: u64,
    endpoint: u64,
    /// Bytes of a partition.
    partition: u64,
    /// Of a listener and of an endpoint of UDP: the next of the same port, which is where an entry leads to.
    next_listener: u64,
    next_udp: u64,
}

const fn structs(
    pool: (u64, u64),
    entries: u64,
    (entry, endpoint): (u64, u64),
    partition: u64,
    (next_listener, next_udp): (u64, u64),
) -> Structs {
    Structs {
        bits: pool.0,
        pointers: pool.1,
        entries,
        entry,
        endpoint,
        partition,
        next_listener,
        next_udp,
    }
}

/// By the builds that have them, first and last. Of 8.1 there are two, by revision.
const STRUCTS: [(u32, u32, Structs); 7] = [
    (
        7600,
        7601,
        structs((144, 160), 32, (16, 8), 128, (112, 136)),
    ),
    (
        9200,
        9200,
        structs((160, 176), 32, (16, 8), 128, (112, 136)),
    ),
    (
        9600,
        9600,
        structs((200, 216), 24, (24, 8), 128, (112, 112)),
    ),
    (
        9600,
        9600,
        structs((160, 176), 32, (24, 8), 128, (112, 112)),
    ),
    (
        15063,
        17763,
        structs((216, 232), 24, (24, 8), 128, (120, 112)),
    ),
    (
        18362,
        18363,
        structs((208, 224), 24, (24, 8), 128, (120, 112)),
    ),
    (
        19041,
        22000,
        structs((208, 224), 24, (32, 16), 192, (120, 112)),
    ),
];

/// Place of a connection's links in it.
const LINKS: u64 = 40;

/// The driver, as it was found.
pub(super) struct Driver<'k> {
    k: &'k Kernel<'k>,
    base: u64,
    tables: DriverTables,
    structs: Vec<Structs>,
}

/// What was found, and what was not.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Virtual addresses; of listeners and endpoints of UDP with the port that they were found by.
    pub(super) connections: Vec<u64>,
    pub(super) listeners: Vec<(u64, u16)>,
    pub(super) udp: Vec<(u64, u16)>,
    pub(super) doubts: Vec<String>,
}

impl<'k> Driver<'k> {
    /// The driver in the list of modules, if its tables are known.
    pub(super) fn new(k: &'k Kernel<'k>, modules: &Modules) -> Result<Self, WindowsError> {
        let unknown = |why: String| WindowsError::Network(why);
        let base = modules
            .named("tcpip.sys")
            .ok_or_else(|| unknown("tcpip.sys is not in the list of modules".into()))?
            .base;
        let key = symbol_file(&k.space, base)
            .ok_or_else(|| unknown("tcpip.sys does not tell its symbol file".into()))?;
        let tables = driver_tables(&key)
            .ok_or_else(|| unknown(format!("where they begin is not known for tcpip.pdb {key}")))?;
        let build = k.build_number().unwrap_or(0);
        let own = STRUCTS
            .iter()
            .filter(|(first, last, _)| (*first..=*last).contains(&build));
        let structs: Vec<Structs> = own.map(|(_, _, s)| *s).collect();
        if structs.is_empty() {
            return Err(unknown(format!(
                "their structs are not known for build {build}"
            )));
        }
        Ok(Self {
            k,
            base,
            tables,
            structs,
        })
    }

    fn at(&self, place: u32) -> u64 {
        self.base.wrapping_add(u64::from(place))
    }

    /// What hangs in the tables. `is_endpoint` tells whether an address is that of an endpoint of a port, of TCP or not.
    pub(super) fn list(
        &self,
        is_endpoint: &dyn Fn(u64, u16, bool) -> bool,
    ) -> Result<Listed, WindowsError> {
        let mut out = Listed::default();
        self.connections(&mut out)?;
        for (tcp, place) in [(true, self.tables.tcp), (false, self.tables.udp)] {
            // Where two layouts are possible, the one that leads to endpoints is it.
            let mut best: Option<Vec<(u64, u16)>> = None;
            let mut last = None;
            for s in &self.structs {
                match self.ports(place, s, tcp, is_endpoint) {
                    Ok(found) if best.as_ref().is_none_or(|b| b.len() < found.len()) => {
                        best = Some(found);
                    }
                    Ok(_) => {}
                    Err(e) => last = Some(e),
                }
            }
            let to = if tcp {
                &mut out.listeners
            } else {
                &mut out.udp
            };
            match (best, last) {
                (Some(found), _) => *to = found,
                (None, Some(e)) => out.doubts.push(format!(
                    "the ports of {} can't be read: {e}",
                    if tcp { "TCP" } else { "UDP" }
                )),
                (None, None) => {}
            }
        }
        Ok(out)
    }

    fn connections(&self, out: &mut Listed) -> Result<(), WindowsError> {
        let space = &self.k.space;
        let table = space.u64(self.at(self.tables.partitions))?;
        let count = u64::from(space.u32(self.at(self.tables.count))?) & 0xff;
        let size = self.structs.first().map_or(128, |s| s.partition);
        let mut unread = 0usize;
        for i in 0..count.min(PARTITIONS) {
            let hash = table.wrapping_add(i * size + 8);
            match space.u64(hash) {
                Ok(0) => {}
                Ok(va) => unread += self.hash_table(va, &mut out.connections),
                Err(_) => unread += 1,
            }
        }
        if unread > 0 {
            out.doubts.push(format!(
                "{unread} chains of connections can't be followed to their end"
            ));
        }
        Ok(())
    }

    /// Adds what hangs in a hash table; how many of its chains are broken.
    fn hash_table(&self, va: u64, out: &mut Vec<u64>) -> usize {
        let space = &self.k.space;
        // `TableSize` and `Directory` lie there in all builds.
        let chains = space.u32(va.wrapping_add(8)).map(u64::from);
        let (Ok(chains), Ok(directory)) = (chains, space.u64(va.wrapping_add(32))) else {
            return 1;
        };
        if chains > CHAINS {
            return 1;
        }
        let mut broken = 0;
        for i in 0..chains {
            let head = match chains <= FIRST_PART {
                true => Ok(directory.wrapping_add(i * 16)),
                false => {
                    let place = i + FIRST_PART;
                    let part = u64::from(place.ilog2());
                    let first = part - u64::from(FIRST_PART.ilog2());
                    let inside = place ^ (1 << part);
                    space
                        .u64(directory.wrapping_add(first * 8))
                        .map(|p| p.wrapping_add(inside * 16))
                }
            };
            let Ok(head) = head else {
                broken += 1;
                continue;
            };
            let mut seen = HashSet::from([head]);
            let mut at = space.u64(head);
            while let Ok(link) = at {
                if link == head {
                    break;
                }
                if !seen.insert(link) || out.len() >= MOST {
                    broken += 1;
                    break;
                }
                out.push(link.wrapping_sub(LINKS));
                at = space.u64(link);
            }
            broken += usize::from(at.is_err());
        }
        broken
    }

    /// Endpoints by the ports that are taken.
    fn ports(
        &self,
        place: u32,
        s: &Structs,
        tcp: bool,
        is_endpoint: &dyn Fn(u64, u16, bool) -> bool,
    ) -> Result<Vec<(u64, u16)>, WindowsError> {
        let space = &self.k.space;
        // Of the set its compartment, of that its protocol's part, and of that its pool.
        let set = space.u64(self.at(place))?;
        let compartment = space.u64(set.wrapping_add(328))?;
        let protocol = space.u64(compartment.wrapping_add(32))?;
        let pool = space.u64(protocol)?;
        let bits = u64::from(space.u32(pool.wrapping_add(s.bits))?).min(1 << 16);
        let buffer = space.u64(pool.wrapping_add(s.bits + 8))?;
        let mut taken = vec![0; usize::try_from(bits / 8).unwrap_or(0)];
        space.read(buffer, &mut taken)?;
        let next = if tcp { s.next_listener } else { s.next_udp };
        let (mut out, mut seen) = (Vec::new(), HashSet::new());
        let is_taken = |p: &u64| {
            let byte = usize::try_from(p / 8).ok().and_then(|i| taken.get(i));
            byte.is_some_and(|b| b >> (p % 8) & 1 == 1)
        };
        for port in (0..bits).filter(is_taken) {
            let Ok(number) = u16::try_from(port) else {
                break;
            };
            let pointer = pool.wrapping_add(s.pointers + (port >> 8) * 8);
            let entry = || {
                let list = space
                    .u64(space.u64(pointer).ok()?.wrapping_add(s.entries))
                    .ok()?;
                let at = list.wrapping_add((port & 0xff) * s.entry + s.endpoint);
                space.u64(at).ok()
            };
            // The lowest bits are marks.
            let mut link = entry().unwrap_or(0) & !3;
            while link != 0 && out.len() < MOST {
                let va = link.wrapping_sub(next);
                if !seen.insert(va) || !is_endpoint(va, number, tcp) {
                    break;
                }
                out.push((va, number));
                link = space.u64(link).unwrap_or(0) & !3;
            }
        }
        Ok(out)
    }
}

/// GUID and age of the symbol file of an image.
fn symbol_file(space: &Space<'_>, base: u64) -> Option<String> {
    let image = pe::read(space, base)?;
    // Directory 6 is that of debug records, of 28 bytes each.
    let (debug, bytes) = *image.directories.get(6)?;
    (0..(bytes / 28).min(16)).find_map(|i| {
        let at = base + debug + i * 28;
        let record = base + u64::from(space.u32(at + 20).ok()?);
        let found = (space.u32(at + 12).ok()? == 2)
            .then(|| image::code_view(space, record, &["tcpip.pdb"]));
        found.flatten().map(|p| format!("{}-{}", p.guid, p.age))
    })
}
