//! Views of the network.

use crate::common::{Capture, build, each_with_tasks, number, text};
use ramsift_os::table::{Table, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A cell as text; nothing where it is null.
fn cell(t: &Table, row: usize, column: &str) -> String {
    match t.cell(row, column) {
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Text(s)) => s.clone(),
        _ => String::new(),
    }
}

/// An end as /proc/net writes it: words of memory in hexadecimal, a port.
fn end(s: &str) -> (String, String) {
    let (address, port) = s.split_once(':').unwrap();
    let words: Vec<u8> = (0..address.len())
        .step_by(8)
        .flat_map(|i| {
            let w = u32::from_str_radix(&address[i..i + 8], 16).unwrap();
            w.to_le_bytes()
        })
        .collect();
    let text = match <[u8; 4]>::try_from(words.as_slice()) {
        Ok(v4) => Ipv4Addr::from(v4).to_string(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(words.as_slice()).unwrap()).to_string(),
    };
    (text, u16::from_str_radix(port, 16).unwrap().to_string())
}

const STATES: [&str; 13] = [
    "",
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
];

/// Files of /proc/net by namespace, parsed into fields.
fn files(c: &Capture) -> BTreeMap<(i128, String), Vec<Vec<String>>> {
    let mut out = BTreeMap::new();
    for (link, all) in c.truth["net_by_ns"].as_object().unwrap() {
        let n = link.trim_start_matches("net:[").trim_end_matches(']');
        for (name, content) in all.as_object().unwrap() {
            let lines = content.as_str().unwrap_or_default().lines().skip(1);
            let fields = |l: &str| l.split_whitespace().map(str::to_owned).collect();
            out.insert(
                (n.parse().unwrap(), name.clone()),
                lines.map(fields).collect(),
            );
        }
    }
    out
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn internet_sockets_are_those_of_proc_net() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/sockstat");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let truth = files(c);
        let nets: BTreeSet<i128> = truth.keys().map(|k| k.0).collect();
        for name in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
            let (protocol, family) = match name.strip_suffix('6') {
                Some(p) => (p, "ipv6"),
                None => (name, "ipv4"),
            };
            // Unlike the other tables, /proc/net/udp has no sockets without a port.
            let mut got: BTreeMap<i128, BTreeSet<Vec<String>>> = BTreeMap::new();
            for r in 0..t.rows.len() {
                let is = |column: &str, what: &str| text(&t, r, column) == what;
                if !is("protocol", protocol) || !is("family", family) {
                    continue;
                }
                let state = cell(&t, r, "state");
                // Those come to their end between the truth and the dump.
                if state == "TIME_WAIT" || cell(&t, r, "table").is_empty() {
                    continue;
                }
                let all = [
                    "local",
                    "local_port",
                    "remote",
                    "remote_port",
                    "tx_queue",
                    "rx_queue",
                    "uid",
                    "inode_number",
                ];
                let mut row: Vec<String> = all.iter().map(|n| cell(&t, r, n)).collect();
                row.push(if protocol == "raw" {
                    "CLOSE".into()
                } else {
                    state
                });
                got.entry(number(&t, r, "namespace"))
                    .or_default()
                    .insert(row);
            }
            for net in &nets {
                let want: BTreeSet<Vec<String>> = truth[&(*net, name.to_owned())]
                    .iter()
                    .filter(|f| f[3] != "06")
                    .map(|f| {
                        let ((local, lport), (remote, rport)) = (end(&f[1]), end(&f[2]));
                        let queue = |s: &str| u64::from_str_radix(s, 16).unwrap().to_string();
                        let (tx, rx) = f[4].split_once(':').unwrap();
                        let state = usize::from_str_radix(&f[3], 16).unwrap();
                        vec![
                            local,
                            lport,
                            remote,
                            rport,
                            queue(tx),
                            queue(rx),
                            f[7].clone(),
                            f[9].clone(),
                            STATES[state].to_owned(),
                        ]
                    })
                    .collect();
                let got = got.remove(net).unwrap_or_default();
                assert_eq!(got, want, "{} {name} of {net}", c.name);
            }
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn other_sockets_are_those_of_proc_net() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/sockstat");
        for ((net, name), lines) in files(c) {
            let rows = |columns: &[&str]| -> BTreeSet<Vec<String>> {
                (0..t.rows.len())
                    .filter(|r| {
                        cell(&t, *r, "protocol") == name
                            && cell(&t, *r, "namespace") == net.to_string()
                    })
                    .map(|r| columns.iter().map(|n| cell(&t, r, n)).collect())
                    .collect()
            };
            let at = format!("{} {name} of {net}", c.name);
            match name.as_str() {
                "unix" => {
                    let want: BTreeSet<Vec<String>> = lines
                        .iter()
                        .map(|f| {
                            let state = match (f[3].as_str(), f[5].as_str()) {
                                ("00010000", _) => "LISTEN",
                                (_, "03") => "ESTABLISHED",
                                _ => "CLOSE",
                            };
                            let ty = ["", "stream", "dgram", "", "", "seqpacket"]
                                [f[4].parse::<usize>().unwrap()];
                            let path = f.get(7).cloned().unwrap_or_default();
                            vec![f[6].clone(), ty.to_owned(), state.to_owned(), path]
                        })
                        .collect();
                    let got = rows(&["inode_number", "type", "state", "local"]);
                    assert_eq!(got, want, "{at}");
                }
                "packet" => {
                    let want: BTreeSet<Vec<String>> = lines
                        .iter()
                        .map(|f| {
                            let protocol = u16::from_str_radix(&f[3], 16).unwrap().to_string();
                            vec![f[8].clone(), protocol, f[7].clone()]
                        })
                        .collect();
                    let got = rows(&["inode_number", "protocol_number", "uid"]);
                    assert_eq!(got, want, "{at}");
                }
                "netlink" => {
                    let want: BTreeSet<Vec<String>> = lines
                        .iter()
                        .map(|f| vec![f[9].clone(), f[1].clone(), f[2].clone()])
                        .collect();
                    let got = rows(&["inode_number", "protocol_number", "local_port"]);
                    assert_eq!(got, want, "{at}");
                }
                _ => {}
            }
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn sockets_lead_to_the_processes_that_ss_named() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/sockstat");
        let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            let of = cell(&t, r, "owners");
            let of = of.split_whitespace().map(str::to_owned).collect();
            owners.insert(cell(&t, r, "inode_number"), of);
        }
        let mut checked = 0;
        for line in c.truth["ss"].as_str().unwrap().lines() {
            let Some((_, ino)) = line.split_once(" ino:") else {
                continue;
            };
            let ino = ino.split(' ').next().unwrap();
            // What waits for its end has neither; it is looked for below.
            if line.contains("TIME-WAIT") {
                continue;
            }
            let want: BTreeSet<String> = line
                .split("pid=")
                .skip(1)
                .map(|p| {
                    let (pid, rest) = p.split_once(",fd=").unwrap();
                    format!("{pid}/{}", rest.split(')').next().unwrap())
                })
                .collect();
            assert_eq!(owners.get(ino), Some(&want), "{} {line}", c.name);
            checked += 1;
        }
        assert!(checked > 5, "{}", c.name);
        // All that wait for their end were waiting when the machine was asked, and of those that then
        // had half a minute to go all are there.
        let lines = c.truth["ss"].as_str().unwrap().lines();
        let waiting: BTreeMap<String, u32> = lines
            .filter(|l| l.contains("TIME-WAIT"))
            .map(|l| {
                let ends: Vec<&str> = l.split_whitespace().skip(4).take(2).collect();
                let left = l.split_once("(timewait,").unwrap().1;
                let left = left.split_once("sec").map_or(0, |l| l.0.parse().unwrap());
                (ends.join(" "), left)
            })
            .collect();
        let got: BTreeSet<String> = (0..t.rows.len())
            .filter(|r| cell(&t, *r, "state") == "TIME_WAIT")
            .map(|r| {
                let of = |n: &str| cell(&t, r, n);
                format!(
                    "{}:{} {}:{}",
                    of("local"),
                    of("local_port"),
                    of("remote"),
                    of("remote_port")
                )
            })
            .collect();
        for ends in &got {
            assert!(waiting.contains_key(ends), "{} {ends}", c.name);
        }
        for (ends, left) in &waiting {
            assert!(got.contains(ends) || *left < 30, "{} {ends}", c.name);
        }
        // Nothing else is wrong on these machines than what was planted.
        let flagged: BTreeSet<(&str, i128)> = t
            .anomalies
            .iter()
            .map(|a| (a.rule, number(&t, a.row, "pid")))
            .collect();
        let planted = i128::from(c.truth["notes"]["raw_packet"].as_u64().unwrap());
        let want = [("packet_socket", planted), ("raw_socket", planted)].into();
        assert_eq!(flagged, want, "{}", c.name);
    });
}

/// The namespace of the process that asked for the truth.
fn first_namespace(c: &Capture) -> i128 {
    let link = c.truth["ps"]["1"]["ns"]["net"].as_str().unwrap();
    let n = link.trim_start_matches("net:[").trim_end_matches(']');
    n.parse().unwrap()
}

/// Rows of the first namespace.
fn rows(c: &Capture, t: &Table) -> Vec<usize> {
    let first = first_namespace(c);
    (0..t.rows.len())
        .filter(|r| number(t, *r, "namespace") == first)
        .collect()
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn interfaces_and_addresses_are_those_of_ip() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/ip_addr");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let columns = [
            "index",
            "interface",
            "mac",
            "mtu",
            "state",
            "address",
            "prefix",
        ];
        let got: BTreeSet<Vec<String>> = rows(c, &t)
            .iter()
            .map(|r| columns.iter().map(|n| cell(&t, *r, n)).collect())
            .collect();
        let mut want = BTreeSet::new();
        let mut promiscuous = BTreeSet::new();
        for i in c.truth["ip_addr"].as_array().unwrap() {
            let of = |v: &serde_json::Value| v.as_str().map_or(v.to_string(), str::to_owned);
            let interface: Vec<String> = ["ifindex", "ifname", "address", "mtu", "operstate"]
                .iter()
                .map(|n| of(&i[n]))
                .collect();
            let addresses = i["addr_info"].as_array().unwrap();
            for a in addresses {
                let mut row = interface.clone();
                row.extend([of(&a["local"]), of(&a["prefixlen"])]);
                want.insert(row);
            }
            if addresses.is_empty() {
                let mut row = interface.clone();
                row.extend([String::new(), String::new()]);
                want.insert(row);
            }
            let flags = i["flags"].as_array().unwrap();
            if flags.iter().any(|f| f == "PROMISC") {
                promiscuous.insert(interface[1].clone());
            }
        }
        assert_eq!(got, want, "{}", c.name);
        let flagged: BTreeSet<String> = t
            .anomalies
            .iter()
            .map(|a| {
                assert_eq!(a.rule, "promiscuous_interface");
                cell(&t, a.row, "interface")
            })
            .collect();
        assert_eq!(flagged, promiscuous, "{}", c.name);
        assert_eq!(t.anomalies.len(), 1, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn neighbours_are_those_of_ip() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/neighbours");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let got: BTreeMap<(String, String), (String, String)> = rows(c, &t)
            .into_iter()
            // ip leaves those out that need no neighbour: multicast, the loopback device.
            .filter(|r| !["NOARP", "NONE"].contains(&text(&t, *r, "state")))
            .map(|r| {
                let of = |n: &str| cell(&t, r, n);
                ((of("interface"), of("address")), (of("mac"), of("state")))
            })
            .collect();
        let truth = c.truth["ip_neigh"].as_array().unwrap();
        assert!(!truth.is_empty(), "{}", c.name);
        assert_eq!(got.len(), truth.len(), "{}: {got:?}", c.name);
        for n in truth {
            let of = |key: &str| n[key].as_str().unwrap_or_default().to_owned();
            let (mac, state) = &got[&(of("dev"), of("dst"))];
            assert_eq!(*mac, of("lladdr"), "{} {n}", c.name);
            // Its state goes on from one to the next in the seconds until the dump.
            let was = n["state"][0].as_str().unwrap();
            let fixed = ["PERMANENT", "STALE"];
            assert!(
                state == was || !fixed.contains(&was),
                "{} {n}: {state}",
                c.name
            );
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn routes_are_those_of_ip() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/ip_route");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let of = |r: usize, n: &str| cell(&t, r, n);
        let route = |r: usize| {
            let columns = [
                "destination",
                "prefix",
                "gateway",
                "interface",
                "source",
                "metric",
                "protocol",
                "scope",
            ];
            columns.iter().map(|n| of(r, n)).collect::<Vec<_>>()
        };
        let first = rows(c, &t);
        let is = |r: &usize, family: &str, table: &str| {
            of(*r, "family") == family && of(*r, "table") == table
        };
        let got: BTreeSet<Vec<String>> = first
            .iter()
            .filter(|r| is(r, "ipv4", "254"))
            .map(|r| route(*r))
            .collect();
        let truth = c.truth["ip_route"].as_array().unwrap();
        let want: BTreeSet<Vec<String>> = truth
            .iter()
            .map(|r| {
                let of = |key: &str| r[key].as_str().unwrap_or_default().to_owned();
                let (destination, prefix) = match r["dst"].as_str().unwrap() {
                    "default" => ("0.0.0.0", "0"),
                    d => d.split_once('/').unwrap_or((d, "32")),
                };
                let number = |key: &str, names: &[(&str, &str)], none: &str| {
                    let name = r[key].as_str().unwrap_or(none);
                    let n = names.iter().find(|n| n.0 == name);
                    n.unwrap_or_else(|| panic!("{r}")).1.to_owned()
                };
                vec![
                    destination.to_owned(),
                    prefix.to_owned(),
                    of("gateway"),
                    of("dev"),
                    of("prefsrc"),
                    r["metric"].as_u64().unwrap_or(0).to_string(),
                    // ip leaves out what is usual.
                    number(
                        "protocol",
                        &[("kernel", "2"), ("boot", "3"), ("dhcp", "16")],
                        "boot",
                    ),
                    number("scope", &[("link", "253"), ("global", "0")], "global"),
                ]
            })
            .collect();
        assert_eq!(got, want, "{}", c.name);
        for r in &first {
            if of(*r, "family") == "ipv6" {}
        }
        // Each address makes the machine its end, and its network one that is reached directly.
        let has =
            |family: &str, table: &str, ty: &str, destination: &str, prefix: u64, dev: &str| {
                first.iter().any(|r| {
                    is(r, family, table)
                        && of(*r, "type") == ty
                        && of(*r, "destination") == destination
                        && of(*r, "prefix") == prefix.to_string()
                        && (of(*r, "interface") == dev || dev.is_empty())
                })
            };
        let mut sixes = 0;
        for i in c.truth["ip_addr"].as_array().unwrap() {
            let dev = i["ifname"].as_str().unwrap();
            for a in i["addr_info"].as_array().unwrap() {
                let local = a["local"].as_str().unwrap();
                let prefix = a["prefixlen"].as_u64().unwrap();
                if a["family"] == "inet" {
                    assert!(
                        has("ipv4", "255", "local", local, 32, dev),
                        "{} {a}",
                        c.name
                    );
                    continue;
                }
                sixes += 1;
                assert!(
                    has("ipv6", "255", "local", local, 128, ""),
                    "{} {a}",
                    c.name
                );
                // An address that is the whole network needs no other route.
                if prefix == 128 {
                    continue;
                }
                let bits = u128::from(local.parse::<Ipv6Addr>().unwrap());
                let mask = u128::MAX << (128 - prefix);
                let network = Ipv6Addr::from(bits & mask).to_string();
                assert!(
                    has("ipv6", "254", "unicast", &network, prefix, dev),
                    "{} {a}",
                    c.name
                );
            }
        }
        assert!(sixes > 2, "{}", c.name);
    });
}
