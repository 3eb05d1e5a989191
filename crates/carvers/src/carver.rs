//! What a carver is, and what it is given at a hit.

use crate::api::{Anchor, Artifact, Event, Field, Sink};
use crate::source::{Item, Source};
use ramsift_layers::ImageOffset;

/// A detector that anchors on literals. One file each; the registry in `lib.rs` has a line each.
pub(crate) trait Carver: Send + Sync {
    /// Its name: in rows, on the command line, in the manifest.
    fn name(&self) -> &'static str;

    /// Goes up whenever it would find something else in the same bytes.
    fn version(&self) -> u32;

    /// The byte strings it wants to be called at: at least 3 bytes, and none may begin with one of
    /// any carver (a test checks), since a search reports one literal for a place.
    fn literals(&self) -> &'static [&'static [u8]];

    /// How far a literal may lie after the first byte of what it stands for.
    fn reach(&self) -> usize {
        0
    }

    /// How far before the core a literal may lie and still tell of something in the core.
    fn carry(&self) -> usize {
        0
    }

    /// Called at each literal; `at` is an index into the window.
    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>);
}

/// What a carver may use at a hit.
pub(crate) struct Hit<'a, 'w> {
    /// The bytes.
    pub(crate) source: &'a mut Source<'w>,
    /// Where findings go.
    pub(crate) sink: &'a mut dyn Sink,
    /// Asked in long loops: true means stop.
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Ranges that could not be finished: carver, first byte, length, reason.
    pub(crate) partial: &'a mut Vec<(&'static str, u64, u64, String)>,
    /// The carver that is called.
    pub(crate) carver: &'static str,
    /// What carvers remember between hits.
    pub(crate) seen: &'a mut crate::ends::Seen,
}

/// How far an artifact reaches.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Extent {
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Its bytes.
    pub(crate) len: usize,
    /// Whether all of it is there.
    pub(crate) whole: Whole,
    /// A name from its content.
    pub(crate) name: Option<String>,
    /// Fields.
    pub(crate) fields: Vec<(&'static str, Field<'static>)>,
    /// Bytes before the item's first that belong to it: at most the carver's reach.
    pub(crate) back: usize,
}

/// Whether all of an artifact is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Whole {
    /// All that its format's pointers reach.
    #[default]
    Yes,
    /// No, and what is missing.
    No(String),
    /// It can't be told, and why.
    Unknown(String),
}

impl Extent {
    /// Something of it is missing. What was said first stays.
    pub(crate) fn lacks(&mut self, why: &str) {
        if !matches!(self.whole, Whole::No(_)) {
            self.whole = Whole::No(why.to_owned());
        }
    }

    /// Whether something is missing can't be told.
    pub(crate) fn doubt(&mut self, why: &str) {
        if self.whole == Whole::Yes {
            self.whole = Whole::Unknown(why.to_owned());
        }
    }
}

impl<'w> Hit<'_, 'w> {
    /// True when something that begins at `at` is this window's to report.
    pub(crate) fn owns(&self, at: usize) -> bool {
        self.source.core.contains(&at)
    }

    /// Follows what begins at `at` with `walk` and reports it.
    pub(crate) fn follow(
        &mut self,
        at: usize,
        walk: impl FnOnce(&mut Item<'_, 'w>) -> Option<Extent>,
    ) {
        if self.owns(at) {
            self.follow_back(at, walk);
        }
    }

    /// As [`Self::follow`], for what may begin before `at`: the carver's reach says how far.
    pub(crate) fn follow_back(
        &mut self,
        at: usize,
        walk: impl FnOnce(&mut Item<'_, 'w>) -> Option<Extent>,
    ) {
        let mut item = Item::new(self.source, at);
        let extent = walk(&mut item);
        let (budget, tired) = (item.starved(), item.tired());
        let begin = at - extent.as_ref().map_or(0, |e| e.back.min(at));
        if !self.owns(begin) {
            return;
        }
        if tired {
            let from = self.source.base + at as u64;
            let why = "the work limit for following artifacts was reached";
            self.partial.push((self.carver, from, 1, why.to_owned()));
        }
        let Some(mut extent) = extent else {
            if let Some(why) = budget {
                let from = self.source.base + at as u64;
                self.partial.push((self.carver, from, 1, why));
            }
            return;
        };
        if let Some(why) = budget {
            extent.whole = Whole::No(why);
        }
        self.emit(begin, &extent);
    }

    fn emit(&mut self, at: usize, extent: &Extent) {
        let offset = ImageOffset(self.source.base + at as u64);
        if !self.source.charge(extent.len / 4) {
            let why = "the work limit for following artifacts was reached".to_owned();
            self.partial
                .push((self.carver, offset.0, extent.len as u64, why));
            return;
        }
        let (bytes, short) = self.source.upto(at, extent.len);
        let (complete, gap) = match (&short, &extent.whole) {
            (Some(why), _) | (None, Whole::No(why)) => (Some(false), Some(why.as_str())),
            (None, Whole::Unknown(why)) => (None, Some(why.as_str())),
            (None, Whole::Yes) => (Some(true), None),
        };
        self.sink.artifact(&Artifact {
            carver: self.carver,
            kind: extent.kind,
            offset,
            data: bytes,
            name: extent.name.as_deref(),
            complete,
            gap,
            fields: &extent.fields,
        });
    }

    /// Reports an event.
    pub(crate) fn event(&mut self, event: &Event<'_>) {
        self.sink.event(event);
    }

    /// Reports an anchor of `len` bytes at `at`.
    pub(crate) fn anchor(&mut self, kind: &'static str, at: usize, len: usize) {
        if self.owns(at) {
            let offset = ImageOffset(self.source.base + at as u64);
            let end = (at + len).min(self.source.data.len());
            self.sink.anchor(&Anchor {
                kind,
                offset,
                data: &self.source.data[at..end],
            });
        }
    }
}
