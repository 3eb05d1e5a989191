//! The frame map of any system: claims on pages of physical memory, window by window, to stretches of one owner.
//!
//! The map is made window by window, so that its memory is bounded whatever the machine had: a
//! window with more owners than fit is halved and made again.

use crate::frames::{Frame, PageState};
use ramsift_layers::PhysAddr;
use ramsift_layers::run::RunMap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = 4096;
/// Bytes of physical memory that are looked at together at most.
const WINDOW: u64 = 16 << 30;
/// Owners of pages in one window at most: 24 bytes each.
const ENTRIES: usize = 4 << 20;
/// Processes that an owner's text names.
const NAMED: usize = 4;

/// What claims a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    File,
    Process,
    Table,
    Kernel,
}

/// One claim on one page.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Number of the page in the window.
    page: u32,
    claim: Claim,
    /// Number of the owner's text.
    owner: u32,
    /// Virtual address or offset in the file.
    at: u64,
}

/// Texts of owners, each once.
#[derive(Default)]
pub(crate) struct Names {
    all: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    /// The number of a text, a new one where it is not there yet.
    pub(crate) fn number(&mut self, name: &str) -> u32 {
        if let Some(n) = self.numbers.get(name) {
            return *n;
        }
        let n = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.all.push(name.clone());
        self.numbers.insert(name, n);
        n
    }

    fn get(&self, n: u32) -> &str {
        self.all.get(n as usize).map_or("", |s| s)
    }
}

/// A part of physical memory and who claims its pages.
pub(crate) struct Window {
    range: Range<u64>,
    entries: Vec<Entry>,
    pub(crate) names: Names,
    /// Whether there are more claims than it may have: those that follow are of no use.
    pub(crate) full: bool,
}

impl Window {
    fn new(range: Range<u64>) -> Self {
        Self {
            range,
            entries: Vec::new(),
            names: Names::default(),
            full: false,
        }
    }

    /// Claims the pages of a physical stretch that lie in the window.
    pub(crate) fn claim(&mut self, claim: Claim, pa: u64, len: u64, owner: u32, at: u64) {
        let from = pa.max(self.range.start);
        let to = pa.saturating_add(len).min(self.range.end);
        let mut page = from & !(PAGE - 1);
        while page < to && !self.full {
            if self.entries.len() == ENTRIES {
                self.full = true;
                return;
            }
            self.entries.push(Entry {
                page: u32::try_from((page - self.range.start) / PAGE).unwrap_or(u32::MAX),
                claim,
                owner,
                at: at.wrapping_add(page.wrapping_sub(pa)),
            });
            page += PAGE;
        }
    }
}

/// Makes the map of all memory in the image and hands over its stretches in physical order. `claims` makes the claims of a
/// window, and is asked again for halves of one that is full; `states` tells what is known of `count` pages from a physical
/// address on.
pub(crate) fn make(
    runs: &RunMap,
    doubts: &mut Vec<String>,
    claims: &mut dyn FnMut(&mut Window, &mut Vec<String>),
    states: &dyn Fn(u64, u64) -> Option<Vec<PageState>>,
    out: &mut dyn FnMut(Frame),
) {
    let mut todo: Vec<Range<u64>> = Vec::new();
    for r in runs.runs() {
        let (mut at, end) = (r.pa, r.pa + r.len);
        while at < end {
            let to = (at + WINDOW).min(end);
            todo.push(at..to);
            at = to;
        }
    }
    todo.reverse();
    let mut last: Option<Frame> = None;
    while let Some(range) = todo.pop() {
        let mut w = Window::new(range.clone());
        claims(&mut w, doubts);
        if !w.full {
            emit(w, states, &mut last, out);
            continue;
        }
        let mid = (range.start + (range.end - range.start) / 2).next_multiple_of(PAGE);
        if mid >= range.end {
            doubts.push(format!(
                "the page at {:#x} has more owners than fit; it is left out",
                range.start
            ));
            continue;
        }
        todo.push(mid..range.end);
        todo.push(range.start..mid);
    }
    if let Some(f) = last {
        out(f);
    }
}

/// Turns claims into stretches; `last` may still grow.
fn emit(
    mut w: Window,
    states: &dyn Fn(u64, u64) -> Option<Vec<PageState>>,
    last: &mut Option<Frame>,
    out: &mut dyn FnMut(Frame),
) {
    w.entries.sort_by_key(|e| (e.page, e.claim, e.owner, e.at));
    let total = (w.range.end - w.range.start).div_ceil(PAGE);
    let states = states(w.range.start, total);
    let mut texts: HashMap<Vec<u32>, Arc<str>> = HashMap::new();
    let mut at = 0;
    for page in 0..total {
        let from = at;
        while w.entries.get(at).is_some_and(|e| u64::from(e.page) == page) {
            at += 1;
        }
        let claims = &w.entries[from..at];
        let start = w.range.start + page * PAGE;
        let len = PAGE.min(w.range.end - start);
        let state = states.as_ref().and_then(|s| s.get(page as usize).copied());
        let f = frame(start, len, claims, state, &w.names, &mut texts);
        match last {
            Some(l) if continues(l, &f) => l.len += f.len,
            _ => {
                if let Some(l) = last.replace(f) {
                    out(l);
                }
            }
        }
    }
}

fn continues(l: &Frame, f: &Frame) -> bool {
    let follows = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.wrapping_add(l.len) == b,
        _ => false,
    };
    l.start.0 + l.len == f.start.0
        && l.state == f.state
        && l.owner == f.owner
        && follows(l.va, f.va)
        && follows(l.file_offset, f.file_offset)
}

fn frame(
    start: u64,
    len: u64,
    claims: &[Entry],
    state: Option<PageState>,
    names: &Names,
    texts: &mut HashMap<Vec<u32>, Arc<str>>,
) -> Frame {
    let first = |c: Claim| claims.iter().find(|e| e.claim == c);
    let (file, process) = (first(Claim::File), first(Claim::Process));
    let (table, image) = (first(Claim::Table), first(Claim::Kernel));
    let name = match (file, process, table, image, state) {
        // What the allocator calls free is free, whatever a stale table says.
        (None, None, ..) if state == Some(PageState::Free) => "free",
        (Some(_), ..) => "file",
        (None, Some(_), ..) => "process",
        (None, None, Some(_), ..) => "page table",
        (None, None, None, Some(_), _) => "kernel",
        (.., Some(PageState::Slab)) => "slab",
        (.., Some(PageState::Used)) => "in use",
        _ => "unknown",
    };
    let owner = (!claims.is_empty() && name != "free").then(|| {
        let mut key: Vec<u32> = vec![name.len() as u32];
        key.extend(claims.iter().map(|e| e.owner));
        texts
            .entry(key)
            .or_insert_with(|| owner_text(claims, names).into())
            .clone()
    });
    Frame {
        start: PhysAddr(start),
        len,
        state: name,
        owner,
        va: process.or(image).map(|e| e.at).filter(|_| name != "free"),
        file_offset: file.map(|e| e.at),
    }
}

fn owner_text(claims: &[Entry], names: &Names) -> String {
    let of = |c: Claim| {
        let mut all: Vec<u32> = claims
            .iter()
            .filter(|e| e.claim == c)
            .map(|e| e.owner)
            .collect();
        all.dedup();
        all
    };
    let listed = |all: &[u32]| {
        let mut text = all
            .iter()
            .take(NAMED)
            .map(|n| names.get(*n))
            .collect::<Vec<_>>()
            .join(", ");
        if all.len() > NAMED {
            text.push_str(&format!(" and {} more", all.len() - NAMED));
        }
        text
    };
    let (files, processes) = (of(Claim::File), of(Claim::Process));
    match (files.is_empty(), processes.is_empty()) {
        (false, true) => listed(&files),
        (false, false) => {
            // The area's name is the file's own: the process says it all.
            let short: Vec<String> = processes
                .iter()
                .take(NAMED)
                .map(|n| {
                    let name = names.get(*n);
                    let end = name.find("] ").map_or(name.len(), |i| i + 1);
                    name[..end].to_owned()
                })
                .collect();
            let more = processes.len().saturating_sub(NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("{}, mapped by {}{more}", listed(&files), short.join(", "))
        }
        (true, false) => listed(&processes),
        (true, true) => {
            let (tables, image) = (of(Claim::Table), of(Claim::Kernel));
            if tables.is_empty() {
                listed(&image)
            } else {
                format!("page table of {}", listed(&tables))
            }
        }
    }
}
