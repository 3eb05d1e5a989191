//! Roles, and which calls each may make.

use std::fmt;

/// What a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reports what it found.
    Worker,
    /// Submits, lists, cancels and reads jobs.
    Client,
    /// Has jobs sealed.
    Coordinator,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Client, Self::Coordinator];

    /// As certificates and files of tokens name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Client => "client",
            Self::Coordinator => "coordinator",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// The role that a URI of a certificate stands for: `ramsift://role`, or `ramsift://role/name`.
    pub(crate) fn of_uri(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("ramsift://")?;
        let role = rest.split_once('/').map_or(rest, |(role, _)| role);
        Self::named(role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who may call what. A method that is not here may be called by nobody.
const METHODS: &[(&str, Role)] = &[
    ("/ramsift.v1.Coordinator/Submit", Role::Client),
    ("/ramsift.v1.Coordinator/ListJobs", Role::Client),
    ("/ramsift.v1.Coordinator/GetJob", Role::Client),
    ("/ramsift.v1.Coordinator/Watch", Role::Client),
    ("/ramsift.v1.Coordinator/Cancel", Role::Client),
    ("/ramsift.v1.Coordinator/Retry", Role::Client),
    ("/ramsift.v1.Aggregator/Report", Role::Worker),
    ("/ramsift.v1.Aggregator/CheckReporter", Role::Worker),
    ("/ramsift.v1.Aggregator/Finalise", Role::Coordinator),
];

/// Health, which probes ask for without a name.
const ANYONE: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// Whether everyone may call a method, known or not.
pub(crate) fn is_open(path: &str) -> bool {
    ANYONE.contains(&path)
}

/// The role that may call a method, by its path (`/package.Service/Method`). `None`: no such method is known here, and
/// nobody may.
pub fn may_call(path: &str) -> Option<Role> {
    METHODS.iter().find(|(p, _)| *p == path).map(|(_, r)| *r)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every method of the services, as their definition says.
    fn defined() -> Vec<String> {
        let text = include_str!("../../../proto/ramsift/v1/service.proto");
        let mut out = Vec::new();
        let mut service = "";
        for line in text.lines().map(str::trim) {
            let word = |what: &str| {
                let rest = line.strip_prefix(what)?;
                rest.split(|c: char| !c.is_alphanumeric()).next()
            };
            if let Some(name) = word("service ") {
                service = name;
            } else if let Some(name) = word("rpc ") {
                out.push(format!("/ramsift.v1.{service}/{name}"));
            }
        }
        out
    }

    #[test]
    fn every_method_has_its_caller() {
        let defined = defined();
        assert!(defined.len() >= 8, "{defined:?}");
        for path in &defined {
            assert!(may_call(path).is_some(), "{path}: nobody may call it");
        }
        for (path, _) in METHODS {
            assert!(defined.iter().any(|d| d == path), "{path}: no such method");
        }
        assert_eq!(may_call("/ramsift.v1.Aggregator/Other"), None);
        assert!(!is_open("/ramsift.v1.Aggregator/Report"));
    }

    #[test]
    fn roles_in_certificates() {
        for (uri, role) in [
            ("ramsift://worker", Some(Role::Worker)),
            ("ramsift://client/analyst-7", Some(Role::Client)),
            ("ramsift://coordinator/", Some(Role::Coordinator)),
            ("ramsift://workers", None),
            ("ramsift:///worker", None),
            ("spiffe://worker", None),
            ("worker", None),
        ] {
            assert_eq!(Role::of_uri(uri), role, "{uri}");
        }
    }
}
