//! AVML, version 2: ranges of at most 16 MiB, each a snappy frame with its length behind it.
//!
//! AVML itself leaves out ranges that are all zeros. Here they are written, since a reader can't tell them from a hole.
//!
//! Source: AVML `src/image.rs`, `src/io/snappy.rs`.

use super::Writer;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// Writes AVML files.
pub(super) struct Avml<'a> {
    out: BufWriter<&'a File>,
}

impl<'a> Avml<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            out: BufWriter::new(file),
        }
    }
}

impl Writer for Avml<'_> {
    fn put(&mut self, pa: u64, bytes: &[u8]) -> io::Result<()> {
        let mut frame = snap::write::FrameEncoder::new(Vec::new());
        frame.write_all(bytes)?;
        let frame = frame
            .into_inner()
            .map_err(|e| io::Error::other(e.to_string()))?;
        let mut head = b"AVML\x02\0\0\0".to_vec();
        for v in [pa, pa + bytes.len() as u64 - 1, 0] {
            head.extend(v.to_le_bytes());
        }
        self.out.write_all(&head)?;
        self.out.write_all(&frame)?;
        self.out.write_all(&(frame.len() as u64).to_le_bytes())
    }

    fn finish(mut self: Box<Self>) -> io::Result<Vec<String>> {
        self.out.flush()?;
        Ok(Vec::new())
    }
}
