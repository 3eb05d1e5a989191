//! What the scanners for indicators share: where they are, what they have seen, how they report.

use crate::api::{Encoding, Finding, Sink};
use crate::chars::Chars;
use ramsift_layers::ImageOffset;
use std::ops::Range;

/// Bytes of context on either side of a value.
const CONTEXT: usize = 16;

/// The part of the image that is scanned, and scratch for values.
pub(crate) struct Place<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) base: u64,
    pub(crate) core: Range<usize>,
    pub(crate) sink: &'a mut dyn Sink,
    /// Values are put together here.
    buf: Vec<u8>,
    /// Ends of the last host-name run looked at, in both encodings: the dots in it are done with.
    pub(crate) run_end: [usize; 2],
    /// The same for runs of hexadecimal digits and colons.
    pub(crate) colons_end: [usize; 2],
}

impl<'a> Place<'a> {
    pub(crate) fn new(
        data: &'a [u8],
        base: u64,
        core: Range<usize>,
        sink: &'a mut dyn Sink,
    ) -> Self {
        Self {
            data,
            base,
            core,
            sink,
            buf: Vec::new(),
            run_end: [0; 2],
            colons_end: [0; 2],
        }
    }

    pub(crate) fn chars<const STEP: usize>(&self) -> Chars<'a, STEP> {
        Chars(self.data)
    }

    /// The characters from byte `from` to byte `to`.
    pub(crate) fn text<const STEP: usize>(&mut self, from: usize, to: usize) -> &str {
        Chars::<STEP>(self.data).text(from, to, &mut self.buf)
    }

    /// Reports the characters from byte `from` to byte `to`, if they begin in the core.
    pub(crate) fn report<const STEP: usize>(
        &mut self,
        carver: &'static str,
        kind: &'static str,
        from: usize,
        to: usize,
    ) {
        if !self.core.contains(&from) {
            return;
        }
        let value = Chars::<STEP>(self.data).text(from, to, &mut self.buf);
        let (a, b) = (
            from.saturating_sub(CONTEXT),
            (to + CONTEXT).min(self.data.len()),
        );
        self.sink.finding(&Finding {
            carver,
            kind,
            offset: ImageOffset(self.base + from as u64),
            len: (to - from) as u64,
            value,
            encoding: if STEP == 2 {
                Encoding::Utf16Le
            } else {
                Encoding::Utf8
            },
            context: &self.data[a..b],
        });
    }
}
