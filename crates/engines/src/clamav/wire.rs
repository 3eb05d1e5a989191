//! clamd's protocol.

use std::{fmt, future::Future, io, path::PathBuf, str::FromStr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{AvVerdict, ClamdError, ClamdOptions, ClamdVersion};

/// Bytes per piece of a stream.
const PIECE: usize = 1 << 20;
/// Longest answer that is read: clamd's are a line.
const MAX_ANSWER: usize = 4096;

/// Where a clamd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClamdAddress {
    /// `host:port`.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for ClamdAddress {
    type Err = ClamdError;

    fn from_str(s: &str) -> Result<Self, ClamdError> {
        let text = s.trim();
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"));
        if let Some(path) = path.or(Some(text).filter(|t| t.starts_with('/'))) {
            let valid = Some(path).filter(|p| p.starts_with('/'));
            return valid
                .map(|p| Self::Unix(p.into()))
                .ok_or_else(|| ClamdError::Address(s.to_owned()));
        }
        let host = text.strip_prefix("tcp://").unwrap_or(text);
        match host.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(host.to_owned()))
            }
            _ => Err(ClamdError::Address(s.to_owned())),
        }
    }
}

impl fmt::Display for ClamdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// Sends commands, one connection each.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    address: ClamdAddress,
    options: ClamdOptions,
}

impl Wire {
    pub(super) fn new(address: ClamdAddress, options: ClamdOptions) -> Self {
        Self { address, options }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) async fn ping(&self) -> Result<(), ClamdError> {
        let answer = self.command("PING", b"zPING\0").await?;
        if answer == "PONG" {
            Ok(())
        } else {
            Err(self.unexpected("PING", answer))
        }
    }

    pub(super) async fn version(&self) -> Result<ClamdVersion, ClamdError> {
        let answer = self.command("VERSION", b"zVERSION\0").await?;
        if !answer.starts_with("ClamAV") {
            return Err(self.unexpected("VERSION", answer));
        }
        // `ClamAV 1.4.3/27764/Mon Sep 15 10:27:30 2025`; without signatures only the first part.
        let mut parts = answer.splitn(3, '/').map(str::to_owned);
        Ok(ClamdVersion {
            engine: parts.next().unwrap_or_default(),
            database: parts.next(),
            database_time: parts.next(),
        })
    }

    /// Streams `parts` as one object.
    pub(super) async fn stream(&self, parts: &[&[u8]]) -> Result<String, ClamdError> {
        let mut socket = self.connect().await?;
        match self.send(&mut *socket, parts).await {
            Ok(()) => self.answer(&mut *socket).await,
            // clamd hangs up in the middle of a stream that is too long, after saying so.
            Err(e) => match self.answer(&mut *socket).await {
                Ok(answer) if !answer.is_empty() => Ok(answer),
                _ => Err(self.broken(e)),
            },
        }
    }

    pub(super) fn verdict(&self, answer: &str) -> AvVerdict {
        let word = answer.strip_prefix("stream: ").unwrap_or(answer);
        if word == "OK" {
            return AvVerdict::Clean;
        }
        if let Some(name) = word.strip_suffix(" FOUND") {
            // Told instead of OK where the administrator asked for alerts on exceeded limits.
            if name.starts_with("Heuristics.Limits.Exceeded") {
                let reason = format!("clamd stopped at a limit of its own ({name})");
                return AvVerdict::NotScanned { reason };
            }
            return AvVerdict::Infected(name.to_owned());
        }
        if word.contains("size limit exceeded") {
            let reason = "longer than clamd's StreamMaxLength".to_owned();
            return AvVerdict::NotScanned { reason };
        }
        if word.ends_with("ERROR") {
            let reason = format!("clamd at {}: {word}", self.address);
            return AvVerdict::Error { reason };
        }
        let reason = self.unexpected("INSTREAM", answer.to_owned()).to_string();
        AvVerdict::Error { reason }
    }

    async fn command(&self, _name: &str, bytes: &[u8]) -> Result<String, ClamdError> {
        let mut socket = self.connect().await?;
        self.within(socket.write_all(bytes))
            .await
            .map_err(|e| self.broken(e))?;
        self.answer(&mut *socket).await
    }

    async fn send(&self, socket: &mut dyn Socket, parts: &[&[u8]]) -> io::Result<()> {
        self.within(socket.write_all(b"zINSTREAM\0")).await?;
        for piece in parts.iter().flat_map(|p| p.chunks(PIECE)) {
            let len = (piece.len() as u32).to_be_bytes();
            self.within(socket.write_all(&len)).await?;
            self.within(socket.write_all(piece)).await?;
        }
        self.within(socket.write_all(&0_u32.to_be_bytes())).await?;
        self.within(socket.flush()).await
    }

    /// Reads up to the closing NUL, or the end of the connection.
    async fn answer(&self, socket: &mut dyn Socket) -> Result<String, ClamdError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 512];
        while !bytes.contains(&0) && bytes.len() < MAX_ANSWER {
            match self.within(socket.read(&mut buffer)).await {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                // What was said before the connection broke counts.
                Err(e) if bytes.is_empty() => return Err(self.broken(e)),
                Err(_) => break,
            }
        }
        if bytes.is_empty() {
            let hung_up = io::Error::new(io::ErrorKind::UnexpectedEof, "hung up without an answer");
            return Err(self.broken(hung_up));
        }
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned())
    }

    async fn connect(&self) -> Result<Box<dyn Socket>, ClamdError> {
        let limit = self.options.connect_timeout;
        let socket: io::Result<Box<dyn Socket>> = match &self.address {
            ClamdAddress::Tcp(host) => within(limit, TcpStream::connect(host))
                .await
                .map(|s| Box::new(s) as Box<dyn Socket>),
            ClamdAddress::Unix(path) => within(limit, UnixStream::connect(path))
                .await
                .map(|s| Box::new(s) as Box<dyn Socket>),
        };
        socket.map_err(|e| self.broken(e))
    }

    async fn within<T>(&self, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        within(self.options.io_timeout, io).await
    }

    fn broken(&self, source: io::Error) -> ClamdError {
        ClamdError::Io {
            address: self.address.to_string(),
            source,
        }
    }

    fn unexpected(&self, command: &'static str, answer: String) -> ClamdError {
        let answer = answer.chars().take(80).collect();
        ClamdError::Protocol {
            address: self.address.to_string(),
            command,
            answer,
        }
    }
}

async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, io).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("no progress for {} ms", limit.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let tcp = |s: &str| ClamdAddress::Tcp(s.to_owned());
        assert_eq!(
            "tcp://av:3310".parse::<ClamdAddress>().unwrap(),
            tcp("av:3310")
        );
        assert_eq!(
            "[::1]:3310".parse::<ClamdAddress>().unwrap(),
            tcp("[::1]:3310")
        );
        let unix = ClamdAddress::Unix("/run/clamd.ctl".into());
        assert_eq!("unix:/run/clamd.ctl".parse::<ClamdAddress>().unwrap(), unix);
        assert_eq!("/run/clamd.ctl".parse::<ClamdAddress>().unwrap(), unix);
        for bad in ["", "av", "tcp://av", "av:99999", ":1", "unix:relative"] {
            assert!(bad.parse::<ClamdAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_understood() {
        let wire = Wire::new(
            ClamdAddress::Tcp("av:1".to_owned()),
            ClamdOptions::default(),
        );
        assert_eq!(wire.verdict("stream: OK"), AvVerdict::Clean);
        assert_eq!(
            wire.verdict("stream: Win.Test.EICAR_HDB-1 FOUND"),
            AvVerdict::Infected("Win.Test.EICAR_HDB-1".to_owned())
        );
        let limit = "INSTREAM size limit exceeded. ERROR";
        assert!(matches!(wire.verdict(limit), AvVerdict::NotScanned { .. }));
        let limit = "stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND";
        assert!(matches!(wire.verdict(limit), AvVerdict::NotScanned { .. }));
        for other in [
            "stream: Can't allocate memory ERROR",
            "HTTP/1.1 400",
            "",
            "stream: okay",
        ] {
            assert!(
                matches!(wire.verdict(other), AvVerdict::Error { .. }),
                "{other}"
            );
        }
    }
}
