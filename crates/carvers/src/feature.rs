//! What the scanners for indicators share: where they are, what they have seen, how they report.

use crate::api::{Encoding, Field, Finding, Sink};
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
    /// Addresses of people are wanted.
    pub(crate) emails: bool,
    /// Values are put together here.
    buf: Vec<u8>,
    /// Ends of the last host-name run looked at, in both encodings: the dots in it are done with.
    pub(crate) run_end: [usize; 2],
    /// The same for runs of hexadecimal digits and colons.
    pub(crate) colons_end: [usize; 2],
}

/// What is said of a value: its kind, the text where it is not just what lies there, and fields.
pub(crate) struct Said<'s> {
    pub(crate) carver: &'static str,
    pub(crate) kind: &'static str,
    /// `None`: the characters as they lie there, all of them ASCII.
    pub(crate) value: Option<&'s str>,
    pub(crate) fields: &'s [(&'static str, Field<'s>)],
}

/// Fields of a finding, the ones that there are.
pub(crate) fn fields<'s>(
    all: &[(&'static str, Option<&'s str>)],
) -> Vec<(&'static str, Field<'s>)> {
    all.iter()
        .filter_map(|(k, v)| v.map(|v| (*k, Field::Str(v))))
        .collect()
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
            emails: false,
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

    /// Reports what lies from byte `from` to byte `to`, if it begins in the core.
    pub(crate) fn report<const STEP: usize>(&mut self, said: &Said<'_>, from: usize, to: usize) {
        if !self.core.contains(&from) {
            return;
        }
        let value = match said.value {
            Some(v) => v,
            None => Chars::<STEP>(self.data).text(from, to, &mut self.buf),
        };
        let (a, b) = (
            from.saturating_sub(CONTEXT),
            (to + CONTEXT).min(self.data.len()),
        );
        self.sink.finding(&Finding {
            carver: said.carver,
            kind: said.kind,
            offset: ImageOffset(self.base + from as u64),
            len: (to - from) as u64,
            value,
            encoding: if STEP == 2 {
                Encoding::Utf16Le
            } else {
                Encoding::Utf8
            },
            context: &self.data[a..b],
            fields: said.fields,
        });
    }
}
