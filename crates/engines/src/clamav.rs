//! ClamAV through clamd.
//!
//! ```text
//! zINSTREAM\0  [len: u32 be][bytes] ... [0: u32 be]   -->   stream: OK\0
//!                                                           stream: Some.Signature FOUND\0
//! ```
//!
//! One verdict per stream, without an offset. A stream above `StreamMaxLength` is refused, but one
//! above `MaxFileSize` or `MaxScanSize` is answered `OK` without having been looked at. So when
//! connecting, the limits are probed: a known test file is put at the end of a large stream, and
//! only sizes at which it is found count as looked at.
//!
//! Sources: `clamd(8)`, `clamd.conf(5)`; <https://docs.clamav.net/manual/Usage/Scanning.html>.

mod probe;
mod wire;

use std::{io, time::Duration};

pub use wire::ClamdAddress;

/// clamd's word on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AvVerdict {
    /// Looked at, and no signature matches.
    Clean,
    /// Name of the signature that matches.
    Infected(String),
    /// Not looked at, or not in full.
    NotScanned {
        /// Why.
        reason: String,
    },
    /// clamd failed. This says nothing about the object.
    Error {
        /// What happened, and where.
        reason: String,
    },
}

/// clamd can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClamdError {
    /// The address isn't understood.
    #[error("{0:?} is no clamd address: use tcp://host:port, host:port, unix:/path or /path")]
    Address(String),
    /// Nobody answers there, or the connection broke.
    #[error("clamd at {address}: {source}; is it running and listening there?")]
    Io {
        /// Where.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// The answer isn't one that clamd gives.
    #[error("clamd at {address} answered {answer:?} to {command}; is that a clamd?")]
    Protocol {
        /// Where.
        address: String,
        /// The command that was sent.
        command: &'static str,
        /// The start of the answer.
        answer: String,
    },
    /// Even the 68 bytes of the EICAR test file aren't scanned.
    #[error("clamd at {address} can't scan a small test file ({answer}): see its log")]
    Blind {
        /// Where.
        address: String,
        /// clamd's answer.
        answer: String,
    },
}

/// What clamd says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClamdVersion {
    /// As in `ClamAV 1.4.3`.
    pub engine: String,
    /// Version of the daily signatures, when any are loaded.
    pub database: Option<String>,
    /// Their date, as clamd prints it.
    pub database_time: Option<String>,
}

/// How to talk to clamd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClamdOptions {
    /// Time to get a connection.
    pub connect_timeout: Duration,
    /// Time without any progress: one write, or the wait for the answer.
    pub io_timeout: Duration,
    /// Largest object that will ever be sent; sizes above aren't probed.
    pub max_object: u64,
}

impl Default for ClamdOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            io_timeout: Duration::from_secs(120),
            max_object: 64 << 20,
        }
    }
}

/// A clamd. Cheap to clone. Each command has a connection of its own, so one that broke is of no
/// concern to the next; how many run at once is up to the caller.
#[derive(Clone, Debug)]
pub struct Clamd {
    wire: wire::Wire,
    version: ClamdVersion,
    max_size: u64,
    limited_by: String,
    proven: bool,
}

impl Clamd {
    /// Connects to `tcp://host:port`, `host:port`, `unix:/path` or `/path`, asks for the version and
    /// probes the size up to which objects are looked at.
    pub async fn connect(address: &str, options: ClamdOptions) -> Result<Self, ClamdError> {
        let max_object = options.max_object;
        let wire = wire::Wire::new(address.parse()?, options);
        wire.ping().await?;
        let version = wire.version().await?;
        let limit = probe::size_limit(&wire, max_object).await?;
        let probe::Limit {
            max_size,
            limited_by,
            proven,
        } = limit;
        tracing::debug!(
            max_size,
            limited_by,
            engine = version.engine,
            "clamd probed"
        );
        Ok(Self {
            wire,
            version,
            max_size,
            limited_by,
            proven,
        })
    }

    /// Whether clamd answers.
    pub async fn ping(&self) -> Result<(), ClamdError> {
        self.wire.ping().await
    }

    /// What clamd said when it was connected to.
    pub fn version(&self) -> &ClamdVersion {
        &self.version
    }

    /// Objects up to this size are looked at in full.
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// What sets [`Clamd::max_size`], in words.
    pub fn limited_by(&self) -> &str {
        &self.limited_by
    }

    /// Whether [`Clamd::max_size`] was proven by finding a test file at the end of an object of that
    /// size. A clamd that doesn't know the EICAR test file leaves only an assumption.
    pub fn limit_proven(&self) -> bool {
        self.proven
    }

    /// Has an object scanned. Larger ones than [`Clamd::max_size`] aren't sent.
    pub async fn scan(&self, data: &[u8]) -> AvVerdict {
        if data.len() as u64 > self.max_size {
            let reason = format!(
                "{} bytes are more than the {} that clamd looks at ({})",
                data.len(),
                self.max_size,
                self.limited_by
            );
            return AvVerdict::NotScanned { reason };
        }
        match self.wire.stream(&[data]).await {
            Ok(answer) => self.wire.verdict(&answer),
            Err(e) => AvVerdict::Error {
                reason: e.to_string(),
            },
        }
    }
}
