//! A source that fails where it is told to: what a dying disk or an outage looks like.

use super::{ByteSource, SourceError, SourcePin};
use crate::FileOffset;
use async_trait::async_trait;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// One planned failure.
#[derive(Debug)]
pub enum Fault {
    /// Reads that touch this range of the file fail for good.
    BadRange(Range<u64>),
    /// The next `n` reads fail as unavailable, then all is well.
    Outage(AtomicU32),
}

/// Wraps a source and fails as planned.
#[derive(Debug)]
pub struct FaultSource<S> {
    inner: S,
    faults: Vec<Fault>,
}

impl<S: ByteSource> FaultSource<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, faults: Vec<Fault>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl<S: ByteSource> ByteSource for FaultSource<S> {
    fn pin(&self) -> &SourcePin {
        self.inner.pin()
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        let what = self.pin().to_string();
        let end = offset.0 + buf.len() as u64;
        for f in &self.faults {
            match f {
                Fault::BadRange(r) if r.start < end && offset.0 < r.end => {
                    return Err(SourceError::Medium {
                        what,
                        offset: offset.0.max(r.start),
                        len: buf.len() as u64,
                        detail: "input/output error (planned)".into(),
                    });
                }
                Fault::Outage(n)
                    if n.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                        .is_ok() =>
                {
                    return Err(SourceError::Unavailable {
                        what,
                        detail: "planned outage".into(),
                    });
                }
                _ => {}
            }
        }
        self.inner.read_at(offset, buf).await
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        self.inner.check_pin().await
    }
}
