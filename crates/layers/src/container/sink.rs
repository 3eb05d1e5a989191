//! Where unpacked bytes go: a file with holes where they are zeros, within bounds.

use super::stream::Shared;
use super::{ContainerError, Limits};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

/// Bytes that are zeros or not: a block of them is a hole.
const BLOCK: usize = 64 << 10;
/// Bytes that are unpacked at a time.
const STEP: usize = 16 * BLOCK;
/// Bytes that are no zeros and cost nothing: small containers may be packed well.
const FREE: u64 = 64 << 20;
/// Bytes between two words on how far it is.
const TOLD: u64 = 64 << 20;

/// Takes what is unpacked.
pub(super) struct Sink<'a> {
    file: &'a File,
    /// The folder that the file is in, for messages.
    place: &'a str,
    limits: Limits,
    stream: Shared,
    progress: &'a dyn Fn(u64, u64),
    len: u64,
    /// Bytes that are no zeros.
    solid: u64,
    told: u64,
}

/// How a stream of bytes ended.
pub(super) enum Ended {
    /// Where it should.
    Whole,
    /// Earlier: why.
    Short(String),
}

impl<'a> Sink<'a> {
    pub(super) fn new(
        file: &'a File,
        place: &'a str,
        limits: Limits,
        stream: Shared,
        progress: &'a dyn Fn(u64, u64),
    ) -> Self {
        Self {
            file,
            place,
            limits,
            stream,
            progress,
            len: 0,
            solid: 0,
            told: 0,
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What reading met: the source's own trouble is none of the container's, unless its medium failed.
    pub(super) fn trouble(&self, e: &io::Error) -> Result<String, ContainerError> {
        let s = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match &s.trouble {
            Some(t) if !t.is_content() => Err(t.clone().into()),
            Some(t) => Ok(t.to_string()),
            None if e.kind() == io::ErrorKind::UnexpectedEof => {
                Ok("it ends before it is complete".to_owned())
            }
            None => Ok(e.to_string()),
        }
    }

    /// Bytes of the container that were read.
    pub(super) fn read(&self) -> u64 {
        self.stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read
    }

    /// Writes a stream up to its end. `what` names the container in errors.
    pub(super) fn take(
        &mut self,
        from: &mut dyn Read,
        what: &str,
    ) -> Result<Ended, ContainerError> {
        let mut buf = vec![0; STEP];
        let ended = loop {
            let (n, ended) = fill(from, &mut buf);
            self.put(&buf[..n], what)?;
            match ended {
                None => {}
                Some(Ok(())) => break Ended::Whole,
                Some(Err(e)) => break Ended::Short(self.trouble(&e)?),
            }
        };
        self.file.set_len(self.len).map_err(|e| self.failed(&e))?;
        (self.progress)(self.read(), self.len);
        Ok(ended)
    }

    fn failed(&self, e: &io::Error) -> ContainerError {
        ContainerError::Write {
            place: self.place.to_owned(),
            detail: e.to_string(),
            setting: "worker.spill",
        }
    }

    fn put(&mut self, bytes: &[u8], what: &str) -> Result<(), ContainerError> {
        let read = self.read();
        let too_large = |limit: String, setting| ContainerError::TooLarge {
            what: what.to_owned(),
            limit,
            setting,
        };
        if self.len + bytes.len() as u64 > self.limits.bytes {
            let limit = format!("{} bytes", self.limits.bytes);
            return Err(too_large(limit, "unpack.bytes"));
        }
        for b in bytes.chunks(BLOCK) {
            if b.iter().any(|x| *x != 0) {
                self.solid += b.len() as u64;
                let most = read.saturating_mul(self.limits.ratio).max(FREE);
                if self.solid > most {
                    let limit = format!(
                        "{} times its own size, of bytes that are no zeros",
                        self.limits.ratio
                    );
                    return Err(too_large(limit, "unpack.ratio"));
                }
                self.file
                    .write_all_at(b, self.len)
                    .map_err(|e| self.failed(&e))?;
            }
            self.len += b.len() as u64;
        }
        if self.len >= self.told + TOLD {
            self.told = self.len;
            (self.progress)(read, self.len);
        }
        Ok(())
    }
}

/// Fills a buffer; says how the stream ended if it did.
pub(super) fn fill(from: &mut dyn Read, buf: &mut [u8]) -> (usize, Option<io::Result<()>>) {
    let mut n = 0;
    while n < buf.len() {
        match from.read(&mut buf[n..]) {
            Ok(0) => return (n, Some(Ok(()))),
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (n, Some(Err(e))),
        }
    }
    (n, None)
}
