//! A source as a stream: what decoders read from. It hashes what goes by in order.

use crate::FileOffset;
use crate::source::{ByteSource, SourceError};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// Bytes that are read at once.
const STEP: u64 = 8 << 20;

/// What is known of a stream while decoders own it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bytes up to which the source was read.
    pub(super) read: u64,
    /// What the source said when it failed.
    pub(super) trouble: Option<Arc<SourceError>>,
    hasher: blake3::Hasher,
    sha256: Option<sha2::Sha256>,
    hashed: u64,
}

/// What is known of a stream, shared.
pub(super) type Shared = Arc<Mutex<State>>;

/// Reads a source forward, or at other places where a format asks for that. Must be used where blocking is allowed.
pub(super) struct SourceStream {
    source: Arc<dyn ByteSource>,
    runtime: Handle,
    at: u64,
    start: u64,
    bytes: Vec<u8>,
    state: Shared,
}

impl SourceStream {
    pub(super) fn new(source: Arc<dyn ByteSource>, runtime: Handle, sha256: bool) -> Self {
        let state = State {
            sha256: sha256.then(sha2::Sha256::default),
            ..State::default()
        };
        Self {
            source,
            runtime,
            at: 0,
            start: 0,
            bytes: Vec::new(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn state(&self) -> Shared {
        self.state.clone()
    }

    fn fetch(&mut self) -> io::Result<()> {
        let len = STEP.min(self.source.len().saturating_sub(self.at));
        let n = usize::try_from(len).unwrap_or(0);
        let mut lock = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self
            .runtime
            .block_on(self.source.read_vec(FileOffset(self.at), n))
        {
            Ok(b) => {
                if self.at == lock.hashed {
                    lock.hasher.update(&b);
                    if let Some(s) = &mut lock.sha256 {
                        sha2::Digest::update(s, &b);
                    }
                    lock.hashed += len;
                }
                lock.read = lock.read.max(self.at + len);
                self.start = self.at;
                self.bytes = b;
                Ok(())
            }
            Err(e) => {
                let why = e.to_string();
                lock.trouble = Some(Arc::new(e));
                Err(io::Error::other(why))
            }
        }
    }
}

impl Read for SourceStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.source.len() || buf.is_empty() {
            return Ok(0);
        }
        let have = self.start..self.start + self.bytes.len() as u64;
        if !have.contains(&self.at) {
            self.fetch()?;
        }
        let from = usize::try_from(self.at - self.start).unwrap_or(usize::MAX);
        let rest = self.bytes.get(from..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for SourceStream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.source.len().checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = at.ok_or_else(|| io::Error::other("a place before the beginning"))?;
        Ok(self.at)
    }
}

/// BLAKE3 and, where it was asked for, SHA-256 of all of a source: what decoders didn't read in order is read now.
pub(super) fn hashes(
    source: &dyn ByteSource,
    runtime: &Handle,
    state: &Shared,
) -> Result<(String, Option<String>), Arc<SourceError>> {
    let mut s = state.lock().unwrap_or_else(PoisonError::into_inner);
    while s.hashed < source.len() {
        let len = STEP.min(source.len() - s.hashed);
        let n = usize::try_from(len).unwrap_or(0);
        let b = runtime
            .block_on(source.read_vec(FileOffset(s.hashed), n))
            .map_err(Arc::new)?;
        s.hasher.update(&b);
        if let Some(h) = &mut s.sha256 {
            sha2::Digest::update(h, &b);
        }
        s.hashed += len;
    }
    let sha256 = s.sha256.take().map(|h| {
        let digest = sha2::Digest::finalize(h);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    });
    Ok((s.hasher.finalize().to_hex().to_string(), sha256))
}
