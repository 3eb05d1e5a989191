//! ClamAV through clamd.
use std::time::Duration;

/// clamd's word on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AvVerdict {
    /// Looked at in full, nothing known.
    Clean,
    /// Signature name.
    Infected(String),
    /// Not looked at, or not in full.
    NotScanned {
        /// Why.
        reason: String,
    },
    /// clamd failed; says nothing of the object.
    Error {
        /// What happened.
        reason: String,
    },
}

/// clamd can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClamdError {
    /// Address isn't understood.
    #[error("{0:?} is no clamd address: use tcp://host:port, host:port, unix:/path or /path")]
    Address(String),
}

/// What clamd is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClamdVersion { /// e.g. `ClamAV 1.4.3`
 pub engine: String, /// signature database version, if any is loaded
 pub database: Option<String>, /// its date as clamd prints it
 pub database_time: Option<String> }

/// Settings.
#[derive(Clone, Debug)]
pub struct ClamdOptions {
    /// To connect.
    pub connect_timeout: Duration,
    /// For any single read or write.
    pub io_timeout: Duration,
    /// Largest object worth probing for and sending.
    pub max_object: u64,
}
impl Default for ClamdOptions { fn default() -> Self { Self { connect_timeout: Duration::from_secs(5), io_timeout: Duration::from_secs(120), max_object: 256 << 20 } } }

/// A clamd. Cheap to clone; each scan is a connection of its own.
#[derive(Clone, Debug)]
pub struct Clamd {}
impl Clamd {
    /// Connects, asks for the version and probes limits.
    pub async fn connect(_addr: &str, _options: ClamdOptions) -> Result<Self, ClamdError> { unimplemented!() }
    /// Alive?
    pub async fn ping(&self) -> Result<(), ClamdError> { unimplemented!() }
    /// Version learnt at connect.
    pub fn version(&self) -> &ClamdVersion { unimplemented!() }
    /// Largest object that is looked at in full.
    pub fn max_size(&self) -> u64 { unimplemented!() }
    /// Scans.
    pub async fn scan(&self, _data: &[u8]) -> AvVerdict { unimplemented!() }
}
