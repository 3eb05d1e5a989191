//! Places of the network driver's tables, by the GUID of its symbol file.

/// The facts: a line for each driver.
const TCPIP: &str = include_str!("../../data/tcpip-x64.txt");

/// Where `tcpip.sys` has its tables, from its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverTables {
    /// The pointer to the partitions of connections.
    pub partitions: u32,
    /// How many there are.
    pub count: u32,
    /// The pointer to the compartments of TCP.
    pub tcp: u32,
    /// The same of UDP.
    pub udp: u32,
}

/// The tables of the driver whose symbol file has this GUID and age (`GUID-AGE`); `None` of one that is not known.
pub fn driver_tables(key: &str) -> Option<DriverTables> {
    let line = TCPIP.lines().find(|l| l.split(' ').next() == Some(key))?;
    let mut places = line.split(' ').skip(1).map(|p| u32::from_str_radix(p, 16));
    let mut next = || places.next()?.ok();
    Some(DriverTables {
        partitions: next()?,
        count: next()?,
        tcp: next()?,
        udp: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_driver() {
        let all = TCPIP.lines().filter(|l| !l.starts_with('#'));
        let keys: Vec<&str> = all.filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(keys.len(), 85);
        for key in keys {
            let t = driver_tables(key).expect("four places");
            assert!(
                [t.partitions, t.count, t.tcp, t.udp]
                    .iter()
                    .all(|p| *p > 0x1000),
                "{key}"
            );
        }
        assert_eq!(driver_tables("#"), None);
        assert_eq!(driver_tables("0123456789ABCDEF0123456789ABCDEF-1"), None);
    }
}
