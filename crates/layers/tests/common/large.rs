//! A source that stands in for a large file or object: a few pieces with bytes, zeros between them, and a count of what is read.
#![allow(dead_code)]

use async_trait::async_trait;
use ramsift_layers::source::{SourceError, SourcePin};
use ramsift_layers::{ByteSource, FileOffset};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(crate) struct Large {
    pin: SourcePin,
    pieces: BTreeMap<u64, Vec<u8>>,
    bytes: AtomicU64,
    reads: AtomicU64,
    /// What a read costs, in bytes: a request to a store, or a call.
    distance: u64,
}

impl Large {
    /// An object of `len` bytes.
    pub(crate) fn object(len: u64, pieces: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        Self {
            pin: SourcePin::Ram {
                name: "large".into(),
                size: len,
            },
            pieces: pieces.into_iter().collect(),
            bytes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            distance: 512 << 10,
        }
    }

    /// The same by another name.
    pub(crate) fn named(self, name: &str) -> Self {
        let pin = SourcePin::Ram {
            name: name.into(),
            size: self.len(),
        };
        Self { pin, ..self }
    }

    /// The same as a file.
    pub(crate) fn file(self) -> Self {
        Self {
            distance: 16 << 10,
            ..self
        }
    }

    /// Bytes that were read, and with how many reads.
    pub(crate) fn cost(&self) -> (u64, u64) {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (of(&self.bytes), of(&self.reads))
    }
}

#[async_trait]
impl ByteSource for Large {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        let end = offset.0 + buf.len() as u64;
        assert!(end <= self.len(), "{end:#x} is behind the end");
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.fill(0);
        for (at, piece) in self.pieces.range(..end) {
            let (a, b) = (offset.0.max(*at), end.min(at + piece.len() as u64));
            if a < b {
                let to = (a - offset.0) as usize..(b - offset.0) as usize;
                buf[to].copy_from_slice(&piece[(a - at) as usize..(b - at) as usize]);
            }
        }
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn coalesce_distance(&self) -> u64 {
        self.distance
    }
}
