//! The network: sockets, interfaces, routes, filters.

pub(in crate::linux) mod neighbours;
pub(in crate::linux) mod netdev;
pub(in crate::linux) mod netfilter;
pub(in crate::linux) mod routes;
pub(in crate::linux) mod sockstat;
